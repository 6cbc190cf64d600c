"""All figures of a label map that tell whether it is like those of people: of single classes, and of how they meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..data.classes import plain_name
from .measured import anatomy_of
from .rules import MorphRules

LEAST_PART_ML = 0.1
"""Smaller parts of a tissue are not counted."""
ALIGNED_MM = 2.0
"""Cells in which maps are compared."""


def portrait_of(
    label: NDArray[np.integer], spacing: Sequence[float], names: Mapping[int, str], rules: MorphRules
) -> dict[str, float]:
    """Figures of a map, by name.

    Args:
        label: ``(H, W, D)`` class indices.
        spacing: mm per voxel.
        names: index → name of the classes.
        rules: rules whose classes have a shape of their own.

    Returns:
        ``<class>.<figure>`` of :func:`~semsynth.anatomy.measured.anatomy_of`, and its parts and tunnels; of each class
        ``share`` of the volume, of one without a rule also ``parts`` of 0.1 ml and more per 100 ml of the volume;
        ``<class>|<class>``: share that the two have of all faces between voxels of different classes.
    """
    names = {number: plain_name(name) for number, name in names.items()}
    index = {name: number for number, name in names.items()}
    anatomy = anatomy_of(label, spacing, index, rules)
    found = {f"{owner}.{f}": float(v) for owner, figures in anatomy.figures.items() for f, v in figures.items()}
    for owner, topology in anatomy.topology.items():
        found |= {f"{owner}.{what}": float(getattr(topology, what)) for what in topology._fields}
    volume = float(np.prod(spacing)) / 1000
    for number, name in names.items():
        mask = label == number
        found[f"{name}.share"] = float(mask.mean())
        if name not in anatomy.figures:
            parts, count = ndimage.label(mask)
            sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * volume
            found[f"{name}.parts"] = float((sizes >= LEAST_PART_ML).sum()) / (label.size * volume / 100)
    return found | _contacts(label, spacing, names)


def _contacts(label: NDArray[np.integer], spacing: Sequence[float], names: Mapping[int, str]) -> dict[str, float]:
    """Share of each pair of classes of all faces between different classes, by area."""
    top = max(names) + 1
    areas = np.zeros((top, top))
    for axis in range(3):
        area = float(np.prod(spacing)) / spacing[axis]
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        first, second = label[tuple(low)].astype(np.int64), label[tuple(high)].astype(np.int64)
        areas += area * np.bincount((first * top + second).ravel(), minlength=top * top).reshape(top, top)
    areas = areas + areas.T
    pairs = list(combinations(sorted(names), 2))
    whole = sum(areas[a, b] for a, b in pairs) or 1.0
    return {f"{names[a]}|{names[b]}": float(areas[a, b] / whole) for a, b in pairs}


def aligned_cells(
    label: NDArray[np.integer], spacing: Sequence[float], centre: int, size: Sequence[int]
) -> NDArray[np.integer]:
    """A map on cells of 2 mm around the middle of a class, −1 outside of it, to compare it with others.

    Args:
        label: ``(H, W, D)`` class indices.
        spacing: mm per voxel.
        centre: class whose middle is put into the middle; of the map's middle where it has none of it.
        size: cells along H, W, D.
    """
    places = np.argwhere(label == centre)
    middle = places.mean(axis=0) if len(places) else (np.array(label.shape) - 1) / 2
    steps = ALIGNED_MM / np.asarray(spacing)
    offset = middle - (np.asarray(size) - 1) / 2 * steps
    cells: NDArray[np.integer] = ndimage.affine_transform(
        label.astype(np.int16), steps, offset, output_shape=tuple(size), order=0, mode="constant", cval=-1
    )
    return cells


def difference(first: NDArray[np.integer], second: NDArray[np.integer], classes: Sequence[int]) -> float:
    """One minus the mean Dice of two maps' classes, over the cells that both show; 0 for the same map.

    Args:
        first, second: result of :func:`aligned_cells`.
        classes: classes that are compared; one that neither has does not count.
    """
    both = (first >= 0) & (second >= 0)
    found = []
    for index in classes:
        a, b = (first == index) & both, (second == index) & both
        if total := int(a.sum()) + int(b.sum()):
            found.append(2 * int((a & b).sum()) / total)
    return 1.0 - float(np.mean(found)) if found else 1.0
