"""Levels that are shown beside those that decide: features of networks, and the shape of the cavity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from ..data.volumes import Volume
from ..evaluation.measure import Measurer
from ..prepare.patients.scans import resized
from ..vocabulary import ENDO
from .copies import Sides

SHAPE = "shape"
SHAPE_MM = 4.0


class Extra(Protocol):
    """A level that compares a volume with all real scans at once."""

    def add(self, key: str, image: Volume, label: Volume | None) -> None:
        """One more real scan."""

    def row(self, key: str, image: Volume, label: Volume | None) -> NDArray[np.float64] | None:
        """Likeness of a volume to every real scan ``(N, levels)``; None where it cannot be compared."""

    def row_of_scan(self, index: int) -> NDArray[np.float64] | None:
        """The same of a real scan."""

    def sides(
        self, row: NDArray[np.float64], training: NDArray[np.bool_], allowed: NDArray[np.bool_]
    ) -> dict[str, Sides]:
        """The nearest scan of each side, by level."""


def _sides(row: NDArray[np.float64], training: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> Sides | None:
    best = []
    for side in (training, ~training):
        index = np.flatnonzero(side & allowed & np.isfinite(row))
        if not len(index):
            return None
        best.append(int(index[row[index].argmax()]))
    return Sides(float(row[best[0]]), float(row[best[1]]), best[0], best[1])


class FeatureLevels:
    """Cosine similarity of the features that networks see in a volume.

    Args:
        measurer: with its extractors and its store.
    """

    def __init__(self, measurer: Measurer) -> None:
        self.measurer = measurer
        self.names = [extractor.name for extractor in measurer.extractors]
        self.scans: list[list[NDArray[np.float64]]] = []

    def _vectors(self, key: str, image: Volume) -> list[NDArray[np.float64]]:
        data = np.asarray(image.data, dtype=np.float32)
        low, high = float(data.min()), float(np.quantile(data, 0.999))
        scaled = Volume(((data - low) / max(high - low, 1e-6)).clip(0, 1), image.affine)
        found = self.measurer.features(["privacy", key], scaled)
        return [np.asarray(found[name].volume, dtype=np.float64).ravel() for name in self.names]

    def add(self, key: str, image: Volume, label: Volume | None) -> None:
        """As in :class:`Extra`."""
        self.scans.append(self._vectors(key, image))

    def row(self, key: str, image: Volume, label: Volume | None) -> NDArray[np.float64]:
        """As in :class:`Extra`."""
        return self._rows(self._vectors(key, image))

    def row_of_scan(self, index: int) -> NDArray[np.float64]:
        """As in :class:`Extra`."""
        return self._rows(self.scans[index])

    def _rows(self, own: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        columns = []
        for number, vector in enumerate(own):
            table = np.stack([scan[number] for scan in self.scans])
            centre = table.mean(axis=0)  # what all scans have in common says nothing
            a, b = vector - centre, table - centre
            columns.append(b @ a / np.maximum(np.linalg.norm(b, axis=1) * np.linalg.norm(a), 1e-12))
        return np.stack(columns, axis=1)

    def sides(
        self, row: NDArray[np.float64], training: NDArray[np.bool_], allowed: NDArray[np.bool_]
    ) -> dict[str, Sides]:
        """As in :class:`Extra`."""
        found = {name: _sides(row[:, i], training, allowed) for i, name in enumerate(self.names)}
        return {f"features of {name}": sides for name, sides in found.items() if sides is not None}


class ShapeLevel:
    """Dice of the cavities (class 1, or all classes where there is none) at the best shift, at 4 mm per voxel."""

    def __init__(self) -> None:
        self.scans: list[NDArray[np.float32] | None] = []

    def add(self, key: str, image: Volume, label: Volume | None) -> None:
        """As in :class:`Extra`."""
        self.scans.append(_cavity(label))

    def row(self, key: str, image: Volume, label: Volume | None) -> NDArray[np.float64] | None:
        """As in :class:`Extra`."""
        return self._row(_cavity(label))

    def row_of_scan(self, index: int) -> NDArray[np.float64] | None:
        """As in :class:`Extra`."""
        return self._row(self.scans[index])

    def _row(self, own: NDArray[np.float32] | None) -> NDArray[np.float64] | None:
        if own is None:
            return None
        return np.array([[np.nan if scan is None else best_dice(own, scan)] for scan in self.scans])

    def sides(
        self, row: NDArray[np.float64], training: NDArray[np.bool_], allowed: NDArray[np.bool_]
    ) -> dict[str, Sides]:
        """As in :class:`Extra`."""
        found = _sides(row[:, 0], training, allowed)
        return {} if found is None else {SHAPE: found}


def _cavity(label: Volume | None) -> NDArray[np.float32] | None:
    if label is None or not (label.data > 0).any():
        return None
    mask = label.data == ENDO if (label.data == ENDO).any() else label.data > 0
    small = resized(mask.astype(np.float32), np.array(label.spacing), SHAPE_MM) > 0.5
    if not small.any():
        return None
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(small))
    return small[box].astype(np.float32)


def best_dice(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Highest Dice of two masks ``(H, W, D)`` over all shifts of whole voxels, mirrored left to right or not."""
    size = [next_fast_len(n + m, real=True) for n, m in zip(a.shape, b.shape, strict=True)]
    one = torch.fft.rfftn(torch.from_numpy(a), s=size).conj()
    overlaps = [
        float(
            torch.fft.irfftn(one * torch.fft.rfftn(torch.from_numpy(np.ascontiguousarray(other)), s=size), s=size).max()
        )
        for other in (b, b[::-1])
    ]
    return min(2 * max(overlaps) / float(a.sum() + b.sum()), 1.0)
