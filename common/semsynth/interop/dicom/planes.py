"""Volumes as DICOM stacks: which plane the slices are in, which way rows and columns run, where each slice lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ...data.headers import LPS_TO_RAS, fail
from ...data.volumes import Volume

PLANES = {"axial": ("L", "P", "S"), "coronal": ("L", "I", "P"), "sagittal": ("P", "I", "R")}
"""Where columns, rows and slices go from the first to the last, as scanners store these planes; right-handed."""
_NORMAL = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}
CLEARLY_LARGER = 1.1
"""A voxel size that is so many times the others is the distance of slices."""
SHEAR_VOXELS = 0.01
"""How far axes that are not at right angles may move a voxel."""


@dataclass(frozen=True)
class Stack:
    """A volume in the order of DICOM.

    Attributes:
        volume: ``(columns, rows, slices)``, right-handed.
        directions: ``(3, 3)``, unit vectors in LPS+, of rising column, row and slice, one per row of the array.
    """

    volume: Volume
    directions: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Between columns, rows and slices, mm."""
        return self.volume.spacing

    def position(self, slice_: int) -> NDArray[np.float64]:
        """The centre of a slice's first voxel, mm, LPS+."""
        lps: NDArray[np.float64] = LPS_TO_RAS @ self.volume.affine
        place: NDArray[np.float64] = lps[:3, 3] + slice_ * self.spacing[2] * self.directions[2]
        return place


def stacked(path: Path, volume: Volume, axes: tuple[str, str, str] | None = None) -> Stack:
    """The same voxels as a stack of slices, without resampling.

    Args:
        path: path of the volume, for messages.
        volume: any order and direction of axes.
        axes: directions of columns, rows and slices, as :data:`PLANES`; None: the plane across the clearly largest
            voxel size, else the axial one.

    Raises:
        FindingError: for axes that are not at right angles.
    """
    _check_right_angles(path, volume)
    wanted = nib.orientations.axcodes2ornt(axes or PLANES[plane_of(volume)])
    change = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), wanted)
    data = nib.orientations.apply_orientation(volume.data, change)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(change, volume.data.shape)
    lps = (LPS_TO_RAS @ affine)[:3, :3]
    left, _, right = np.linalg.svd(lps / np.linalg.norm(lps, axis=0))  # the right-angled axes nearest to these
    return Stack(Volume(data, affine), (left @ right).T)


def plane_of(volume: Volume) -> str:
    """``axial``, ``coronal`` or ``sagittal``: across the clearly largest voxel size, else axial."""
    largest = int(np.argmax(volume.spacing))
    others = max(size for axis, size in enumerate(volume.spacing) if axis != largest)
    if volume.spacing[largest] <= CLEARLY_LARGER * others:
        return "axial"
    return _NORMAL[nib.aff2axcodes(volume.affine)[largest]]


def axes_of(directions: tuple[float, ...]) -> tuple[str, str, str]:
    """Where columns, rows and slices go in a series, from its Image Orientation (Patient)."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[:3], directions[3:]
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
    first, second, third = nib.aff2axcodes(LPS_TO_RAS @ affine)
    return str(first), str(second), str(third)


def _check_right_angles(path: Path, volume: Volume) -> None:
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    tilt = np.abs(axes.T @ axes - np.eye(3)).max(axis=1)
    moved = tilt * np.array(volume.data.shape) * np.array(volume.spacing) / min(volume.spacing)
    if moved.max() > SHEAR_VOXELS:
        fail(path, "axes that are not at right angles", found=f"an affine with shear, which moves a voxel by up to "
             f"{moved.max():.2g} voxels", expected="right angles: DICOM series have no shear",
             fix="resample the volume to axes at right angles")  # fmt: skip
