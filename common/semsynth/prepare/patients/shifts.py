"""The best shift of one scan over another, at once for all shifts: correlation by Fourier transform, coarsely."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from .scans import Scan, locally_normal, oriented, resized

Orientation = tuple[tuple[int, int], ...]
AS_STORED: Orientation = ((0, 1), (1, 1), (2, 1))
ORIENTATIONS: tuple[Orientation, ...] = tuple(
    tuple(zip(order, directions, strict=True))
    for order in itertools.permutations(range(3))
    for directions in itertools.product((1, -1), repeat=3)
)
"""All 48 ways to store three axes, the one as they are first."""
COARSE, COARSEST = 2.5, 4.0
"""Voxel size for the shift of scans as stored, and for all other ways of storing them, in voxels of the scans."""
LEAST_OVERLAP = 0.5
LEAST_ENERGY = 0.1
"""Share of either array's squares that has to lie in the overlap: in air, of which CT has much, nothing is alike."""
REACH = 2.0


@dataclass(frozen=True)
class Shift:
    """Correlation at the best shift, and the shift from centre to centre in mm."""

    score: float
    mm: NDArray[np.float64]


class Shifts:
    """Best shifts between scans as they are stored.

    Args:
        scans: all of one spacing.
    """

    def __init__(self, scans: Sequence[Scan]) -> None:
        self.scans = scans
        self.spacing = COARSE * scans[0].spacing if scans else 1.0
        arrays = [coarse(scan, COARSE) for scan in scans]
        self.shapes = [array.shape for array in arrays]
        longest = np.max(self.shapes, axis=0) if scans else np.ones(3)
        self.size = [next_fast_len(int(2 * n), real=True) for n in longest]
        self.spectra = [spectra_of(array, self.size) for array in arrays]

    def between(self, a: int, b: int) -> Shift:
        """The best shift of scan ``a`` over scan ``b``, of those with half of the smaller one inside."""
        return best_shift(self.spectra[a], self.spectra[b], self.size, self.shapes[a], self.shapes[b], self.spacing)


def shift_turned(fixed: Scan, moving: Scan, orientation: Orientation) -> Shift:
    """The same as :meth:`Shifts.between`, with the second scan turned over."""
    arrays = coarse(fixed, COARSE), oriented(coarse(moving, COARSE), orientation)
    one, other = (array.shape for array in arrays)
    size = [next_fast_len(a + b, real=True) for a, b in zip(one, other, strict=True)]
    spectra = [spectra_of(array, size) for array in arrays]
    return best_shift(spectra[0], spectra[1], size, one, other, COARSE * fixed.spacing)


def spectra_of(array: NDArray[np.float32], size: Sequence[int]) -> torch.Tensor:
    """Fourier transforms ``(3, …)`` of an ``(H, W, D)`` array, of its squares, and of where it is."""
    parts = np.stack([array, array * array, np.ones_like(array)])
    result: torch.Tensor = torch.fft.rfftn(torch.from_numpy(parts), s=tuple(size), dim=(1, 2, 3))
    return result


def best_shift(
    one: torch.Tensor,
    other: torch.Tensor,
    size: Sequence[int],
    fixed: Sequence[int],
    moving: Sequence[int],
    spacing: float,
) -> Shift:
    """The best shift of one array over another.

    Of those with half of the smaller array, and a tenth of the squares of each, in the overlap.

    Args:
        one, other: :func:`spectra_of` the fixed and of the moving array.
        size: size of the transforms, at least the sum of the arrays' sizes.
        fixed, moving: shapes of the arrays.
        spacing: mm per voxel.
    """
    first = one.conj()
    products = torch.stack([first[0] * other[0], first[1] * other[2], first[2] * other[1], first[2] * other[2]])
    both, energy, energy_b, overlap = torch.fft.irfftn(products, s=tuple(size), dim=(1, 2, 3))
    scores = (both / (energy * energy_b).clamp(min=1e-3).sqrt()).clamp(-1, 1)
    enough = overlap >= LEAST_OVERLAP * float(min(np.prod(fixed), np.prod(moving)))
    for part, whole in ((energy, one), (energy_b, other)):  # the first term of a transform is the sum
        enough &= part >= LEAST_ENERGY * float(whole[1].real.flatten()[0])
    scores = torch.where(enough, scores, -1.0)
    best = int(scores.argmax())
    return Shift(float(scores.view(-1)[best]), _centred(best, size, fixed, moving) * spacing)


class OtherStorage:
    """How well scans match when one of them is turned over: mirrored, or with its axes in another order.

    Args:
        scans: all of one spacing.
    """

    def __init__(self, scans: Sequence[Scan]) -> None:
        self.arrays = [coarse(scan, COARSEST) for scan in scans]
        longest = max(max(array.shape) for array in self.arrays)
        self.size = [next_fast_len(int(1.5 * longest), real=True)] * 3
        self.energy = [float((array**2).sum()) for array in self.arrays]
        self.spectra = [self._spectrum(array[None])[0] for array in self.arrays]

    def _spectrum(self, arrays: NDArray[np.float32]) -> torch.Tensor:
        result: torch.Tensor = torch.fft.rfftn(torch.from_numpy(arrays), s=self.size, dim=(1, 2, 3))
        return result

    def best(self, moving: int, fixed: Sequence[int]) -> list[tuple[float, Orientation]]:
        """The best shift of ``moving`` with each of ``fixed``: its score, and how the moving scan is turned for it."""
        turned = [oriented(self.arrays[moving], o) for o in ORIENTATIONS[1:]]
        spectra = torch.stack([self._spectrum(array[None])[0] for array in turned])
        result = []
        for index in fixed:
            both = torch.fft.irfftn(self.spectra[index].conj() * spectra, s=self.size, dim=(1, 2, 3))
            best = int(both.argmax())
            which = best // int(np.prod(self.size))
            score = float(both.view(-1)[best]) / min(self.energy[index], self.energy[moving])
            result.append((score, ORIENTATIONS[1:][which]))
        return result


def coarse(scan: Scan, factor: float) -> NDArray[np.float32]:
    """A scan's image on voxels ``factor`` times as large, locally normalised."""
    return locally_normal(resized(scan.image, np.ones(3), factor), REACH)[0]


def _centred(place: int, size: Sequence[int], fixed: Sequence[int], moving: Sequence[int]) -> NDArray[np.float64]:
    """A place in a circular correlation as the shift, in voxels, between coordinates from the arrays' centres."""
    index = np.array(np.unravel_index(place, tuple(size)), dtype=np.float64)
    # a shift is one way round or the other: that which leaves more overlap
    overlap = [np.minimum(np.array(fixed), np.array(moving) - s) - np.maximum(0, -s) for s in (index, index - size)]
    index = np.where(overlap[0] >= overlap[1], index, index - np.array(size))
    return index + (np.array(fixed) - 1) / 2 - (np.array(moving) - 1) / 2
