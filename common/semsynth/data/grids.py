"""Whether two volumes lie on one grid, in whatever order each stores its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

VOXEL_SHARE = 0.01
"""Two grids are one where no corner of the volume is further apart than this share of a voxel."""


@dataclass(frozen=True)
class Placement:
    """A volume after its voxels were brought into the order that another one stores them in.

    Attributes:
        change: ``(3, 2)`` as nibabel's orientations: axis of the other volume, and 1 or −1 for its direction, per axis.
        shape: shape of the reordered array.
        affine: ``(4, 4)`` of the reordered array, voxel indices → mm.
        voxels: largest distance of corresponding corners of the two grids, as a share of the other's voxel along one of
            its axes; infinite where the shapes differ.
        mm: the same distance, in mm.
    """

    change: NDArray[np.float64]
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    voxels: float
    mm: float

    @property
    def one_grid(self) -> bool:
        """Whether both lie on one grid."""
        return self.voxels <= VOXEL_SHARE

    @property
    def reordered(self) -> bool:
        """Whether the two are stored in different orders."""
        return not np.array_equal(self.change, [[0, 1], [1, 1], [2, 1]])

    def apply(self, data: NDArray[Any]) -> NDArray[Any]:
        """The array ``(H, W, D)`` in the other volume's order, no value changed."""
        return np.asarray(nib.orientations.apply_orientation(data, self.change)) if self.reordered else data


def place(
    affine: NDArray[np.float64], shape: Sequence[int], other: NDArray[np.float64], other_shape: Sequence[int]
) -> Placement:
    """How a volume of this affine and shape lies on the grid of another one.

    The axes are matched with those of the other grid, not with the patient's, so that two oblique volumes that are a
    hair apart are never taken for turned ones.
    """
    change = nib.io_orientation(np.linalg.inv(other) @ affine)
    new_shape = [0, 0, 0]
    for length, axis in zip(shape, change[:, 0], strict=True):
        new_shape[int(axis)] = int(length)
    moved = affine @ nib.orientations.inv_ornt_aff(change, tuple(shape))
    voxels, mm = apart(moved, other, new_shape)
    if tuple(new_shape) != tuple(other_shape):
        voxels = mm = float("inf")
    return Placement(change, tuple(new_shape), moved, voxels, mm)


def apart(a: NDArray[np.float64], b: NDArray[np.float64], shape: Sequence[int]) -> tuple[float, float]:
    """How far the corners of a volume are apart at most by two affines: in voxels of ``b`` along an axis, and in mm."""
    corners = np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in shape))]).T
    there = np.asarray(a) @ corners
    voxels = np.abs(np.linalg.inv(b) @ there - corners)[:3].max()
    return float(voxels), float(np.linalg.norm((there - np.asarray(b) @ corners)[:3], axis=0).max())


def same_affine(a: NDArray[np.float64], b: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Whether two affines put every voxel of a volume of this shape within 1 % of a voxel at the same place."""
    return apart(a, b, shape)[0] <= VOXEL_SHARE
