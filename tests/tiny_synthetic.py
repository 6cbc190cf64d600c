"""Small synthetic volumes with their records, label maps and datalist, as a bundle's inference leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from semsynth.data.volumes import write_image, write_label
from semsynth.data.voxels import hash_file
from semsynth.files import relative_to, sha256

SHAPE = (9, 8, 6)
LA = {0: "background", 1: "endo", 2: "wall", 3: "tissue 1"}
MRI = {"window": [0.0, 1.0], "scaling": {"scale": "percentiles", "percentiles": [0, 99.9]}}
CT = {"window": [-1000, 1000], "scaling": {"scale": "window", "window": [24, 2024]}, "unit": "HU",
      "unit_range": [-1000, 1000]}  # fmt: skip


def affine_of(angles=(0.0, 0.0, 0.0), spacing=(0.7, 0.9, 2.5), origin=(12.5, -7.0, 30.0), flip=(1, 1, 1)):
    """Voxel indices → mm, RAS+: turned about three axes, with other voxel sizes, left-handed where flips are odd."""
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(np.multiply(spacing, flip))
    affine[:3, 3] = origin
    return affine


def intensities(shape=SHAPE):
    """In [0, 1], all different."""
    count = int(np.prod(shape))
    return np.random.default_rng(0).permutation(count).reshape(shape) / (count - 1)


def label_of(shape=SHAPE, classes=4):
    """Class indices of which no plane is like another."""
    return np.random.default_rng(1).integers(0, classes, shape).astype(np.uint8)


def write_case(
    folder: Path,
    case: str = "case_1",
    *,
    affine: np.ndarray | None = None,
    shape: tuple[int, ...] = SHAPE,
    held: Mapping[str, Any] = MRI,
    classes: int = 4,
    record: Mapping[str, Any] | None = None,
    data: np.ndarray | None = None,
) -> Path:
    """A volume in ``folder/made`` with its record, its map in ``folder/maps``; gives the volume's path."""
    affine = affine_of() if affine is None else affine
    image = folder / "made" / f"{case}_synthetic.nii.gz"
    label = folder / "maps" / case / "label.nii.gz"
    window = None if held.get("unit") is None else tuple(held["window"])
    write_image(image, intensities(shape) if data is None else data, affine, "int16", window)
    write_label(label, label_of(shape, classes), affine)
    about = {
        "synthetic": True, "bundle": "tiny", "version": "0.1", "weights_sha256": "ab" * 32, "case": case,
        "intensity": dict(held), "label": label.name, "label_from": relative_to(label, image.parent),
        "label_sha256": sha256(label), "label_voxels": hash_file(label), "volume_sha256": sha256(image),
    }  # fmt: skip
    image.with_name(f"{case}_synthetic.json").write_text(json.dumps(about | dict(record or {})))
    return image


def write_list(folder: Path, cases: Mapping[str, Mapping[str, Any]], names: Mapping[int, str] = LA) -> Path:
    """The datalist of ``folder/made``: case → what its entry says further."""
    entries = [
        {"case": case, "image": f"{case}_synthetic.nii.gz", "label": f"../maps/{case}/label.nii.gz",
         "synthetic": True, **more}
        for case, more in cases.items()
    ]  # fmt: skip
    path = folder / "made" / "datalist.json"
    classes = {str(index): name for index, name in names.items()}
    content = {"num_classes": len(names), "classes": classes, "training": entries}
    path.write_text(json.dumps(content))
    return path
