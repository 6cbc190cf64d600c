"""Scans of patients that have nothing in common: random fields with label maps, and volumes that copy some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from semsynth.data.volumes import write_image, write_label

SHAPE = (26, 24, 20)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
INTENSITY = {"window": [0.0, 1.0]}


def patient(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Image in [0, 1] and classes 0 to 3, ``(H, W, D)``: coarse anatomy, which the map shows, and texture."""
    random = np.random.default_rng(seed)
    anatomy = ndimage.gaussian_filter(random.normal(size=SHAPE), 3)
    anatomy = (anatomy - anatomy.min()) / np.ptp(anatomy)
    texture = ndimage.gaussian_filter(random.normal(size=SHAPE), 1)
    label = np.digitize(anatomy, [0.35, 0.5, 0.65]).astype(np.int64)
    image = np.array([0.2, 0.4, 0.6, 0.8])[label] + 0.06 * texture / texture.std()
    return image.clip(0, 1).astype(np.float32), label


def write_pair(folder: Path, image: NDArray[Any], label: NDArray[Any]) -> dict[str, str]:
    """Both as files, and their names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / "image.nii.gz", image, AFFINE, "float32")
    write_label(folder / "label.nii.gz", label, AFFINE)
    return {"image": f"{folder.name}/image.nii.gz", "label": f"{folder.name}/label.nii.gz"}


def write_list(folder: Path, entries: Sequence[Mapping[str, Any]], split: str = "training") -> Path:
    """A datalist in a folder, and that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datalist.json").write_text(json.dumps({"intensity": INTENSITY, "num_classes": 4, split: entries}))
    return folder


def scans(folder: Path, seeds: Sequence[int], split: str = "training") -> Path:
    """A list of patients of one scan each."""
    entries = [
        {"case": f"P{seed}", "patient": f"patient {seed}", **write_pair(folder / f"P{seed}", *patient(seed))}
        for seed in seeds
    ]
    return write_list(folder, entries, split)


def volumes(folder: Path, new: Sequence[int], copied: Sequence[int] = (), own: Sequence[int] = ()) -> Path:
    """Synthetic volumes: of new maps, copies of scans with noise, and new texture in the maps of scans."""
    entries = []
    for kind, seeds in (("new", new), ("copy", copied), ("own", own)):
        for seed in seeds:
            image, label = patient(seed)
            noise = np.random.default_rng(seed + 1).normal(size=SHAPE)
            if kind == "copy":
                image = (image + 0.02 * noise).clip(0, 1)
            if kind == "own":
                means = np.array([image[label == i].mean() for i in range(4)])
                image = (means[label] + 0.05 * ndimage.gaussian_filter(noise, 1) / 0.2).clip(0, 1)
            source = {"drawn": True} if kind != "own" else {"source_case": f"P{seed}"}
            files = write_pair(folder / f"{kind}{seed}", image.astype(np.float32), label)
            entries.append({"case": f"{kind}{seed}", "synthetic": True, **source, **files})
    return write_list(folder, entries)
