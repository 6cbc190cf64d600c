"""Small label maps that differ in two ways, and the generators that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from semsynth.anatomy import MapFigures
from semsynth.data.volumes import write_image, write_label
from semsynth.networks.shape_model import ShapeModel
from tiny_anatomy import places

CLASSES = ["background", "endo", "wall", "tissue 1"]
NAMES = ["endo.volume_ml", "endo.elongation", "endo.branches", "endo.branches_mm"]
CHECKED = ["endo.volume_ml", "endo.parts", "endo.hollows", "wall.thickness_mm"]
SPACING = (2.0, 2.0, 2.0)


def egg(radius: float, length: float, shape=(36, 32, 28), tissue: float = 12.0) -> np.ndarray:
    """An ellipsoid (1) that is longer along the first axis, with a wall of 4 mm (2), and tissue (3) above a height."""
    x, y, z = places(shape, SPACING)
    distance = np.sqrt((x / length) ** 2 + y**2 + z**2)
    label = np.where(z > tissue - radius, 3, 0).astype(np.uint8)
    label[distance < radius + 4] = 2
    label[distance < radius] = 1
    return label


def eggs(count: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [egg(r, s, tissue=t) for r, s, t in zip(rng.uniform(12, 17, count), rng.uniform(1.0, 1.5, count),
                                                   rng.uniform(6, 18, count), strict=True)]  # fmt: skip


def write_eggs(folder: Path, count: int = 8, held_out: int = 2) -> Path:
    """A prepared data set of eggs, with images that nobody needs."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0])
    entries = []
    for i, label in enumerate(eggs(count + held_out)):
        write_label(folder / f"egg{i}_label.nii.gz", label, affine)
        write_image(folder / f"egg{i}.nii.gz", (label / 3).astype(np.float32), affine, "float32")
        entries.append(
            {"case": f"egg{i}", "image": f"egg{i}.nii.gz", "label": f"egg{i}_label.nii.gz", "patient": f"p{i}"}
        )
    content = {
        "num_classes": 4, "classes": {str(i): name for i, name in enumerate(CLASSES)},
        "settings": {"spacing": list(SPACING)}, "training": entries[:count], "validation": entries[count:],
    }  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


def model(**more) -> ShapeModel:
    """A shape model as small as the eggs."""
    given = {
        "figures": MapFigures(CLASSES, NAMES), "checked": MapFigures(CLASSES, CHECKED), "walls": {2: 1},
        "spacing": SPACING, "frame": (36, 32, 28), "modes": 7, "shape_modes": 7, "control_mm": 10.0, "most_maps": 16,
    }  # fmt: skip
    return ShapeModel(4, **(given | more))


def blank(shape=(36, 32, 28)) -> torch.Tensor:
    return torch.full((1, 1, *shape), -1.0)


def map_in(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)
