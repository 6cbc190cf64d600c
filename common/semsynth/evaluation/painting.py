"""The cheapest generator: every class of a label map painted with its mean intensity."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def class_means(image: NDArray[np.floating], label: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """Mean intensity per class.

    Args:
        image: intensities ``(H, W, D)``.
        label: class indices ``(H, W, D)``, 0 to ``count`` - 1.
        count: number of classes.

    Returns:
        ``(count,)``; NaN for a class without voxels.
    """
    voxels = np.bincount(label.ravel(), minlength=count)
    sums = np.bincount(label.ravel(), image.ravel().astype(np.float64), minlength=count)
    return np.where(voxels > 0, sums / np.maximum(voxels, 1), np.nan)


def average_means(means: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Class means over a data set: each case counts once; a class that no case has gets the mean of the others."""
    found = list(means)
    table = np.full((len(found), max(len(m) for m in found)), np.nan)
    for row, values in zip(table, found, strict=True):
        row[: len(values)] = values
    has = np.isfinite(table)
    total = np.where(has, table, 0).sum(axis=0) / np.maximum(has.sum(axis=0), 1)
    result: NDArray[np.float64] = np.where(has.any(axis=0), total, total[has.any(axis=0)].mean())
    return result


def paint(label: NDArray[np.integer], means: NDArray[np.float64]) -> NDArray[np.float32]:
    """A volume with each class at its mean; classes beyond ``means`` get the mean of all."""
    count = int(label.max()) + 1
    table = np.full(max(count, len(means)), np.nanmean(means))
    table[: len(means)] = np.where(np.isfinite(means), means, np.nanmean(means))
    painted: NDArray[np.float32] = table.astype(np.float32)[label]
    return painted
