"""The words that all rooms share: classes of composite maps, splits, planes (free of torch)."""

from __future__ import annotations

BACKGROUND, ENDO, WALL = 0, 1, 2


FIRST_TISSUE = 3
"""Tissue clusters are numbered from here, by rising mean intensity."""
SPLITS = ("training", "validation", "testing")
UNLABELLED = "unlabelled"
"""Key of a datalist's images that have no label map: an autoencoder's training takes them too."""
PREPARED = "prepare.json"
"""What a preparation writes beside the files of a case."""
OWN_STYLE = "own"
"""``style_from`` of an inference that gives each volume the style of the very image that its label map belongs to."""
PLANES = ("sagittal", "coronal", "axial")
"""Planes by the axis (H, W, D of RAS volumes) along which their slices follow one another."""


def num_classes(k: int, *, background: bool = True) -> int:
    """Number of classes of a composite map with ``k`` clusters.

    ``max(k, 1) + 2`` where one of the clusters is set aside as background, ``k + 3`` where none is.
    """
    return max(k, 1) + 2 if background else k + 3


def class_names(count: int) -> dict[int, str]:
    """Names of the ``count`` classes of a composite map: background, endo, wall, tissue 1, tissue 2, …"""
    names = {BACKGROUND: "background", ENDO: "endo", WALL: "wall"}
    names |= {i: f"tissue {i - FIRST_TISSUE + 1}" for i in range(FIRST_TISSUE, count)}
    return {i: names[i] for i in range(count)}
