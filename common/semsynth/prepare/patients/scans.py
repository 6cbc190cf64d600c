"""A scan as the search for scans of one patient sees it: small, locally normalised, its place in space forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ...data.check import Checkable, read_role
from ...data.headers import read_header
from ...data.volumes import Volume, read_volume
from ...errors import InputError

FINEST_MM = 2.0
MOST_VOXELS = 300_000
REACH = 3.5
"""Standard deviation of the local normalisation, in voxels: 7 mm at 2 mm."""
LEAST_CONTRAST = 0.1
"""Local contrast, as a share of the whole scan's, below which a region counts for nothing (air, padding)."""
POINTS = 5000
SMALLEST = 8


@dataclass(frozen=True)
class Scan:
    """One scan on the common grid.

    Attributes:
        name: name of the case.
        image: ``(H, W, D)`` float32, grey levels scaled to [0, 1] between their 1st and 99th percentile.
        normal: ``(H, W, D)`` float32, the image less its local mean, over its local standard deviation.
        mask: ``(H, W, D)`` bool: the cavity, a label map's classes, or without either what is not dark.
        spacing: mm per voxel, the same along all axes.
        points: ``(N, 3)`` float32, mm from the array's centre, of the voxels that are compared.
        values: ``(N,)`` of ``normal`` at the points.
        slopes: ``(N, 6)``: by how much the values change with a small rotation (rad) and shift (mm) of the points.
    """

    name: str
    image: NDArray[np.float32]
    normal: NDArray[np.float32]
    mask: NDArray[np.bool_]
    spacing: float
    points: torch.Tensor
    values: torch.Tensor
    slopes: torch.Tensor

    @property
    def half(self) -> NDArray[np.float64]:
        """The vector from the centre of the array to the centre of its last voxel, in mm."""
        result: NDArray[np.float64] = (np.array(self.normal.shape) - 1) / 2 * self.spacing
        return result


def common_spacing(cases: Sequence[Checkable]) -> float:
    """Mm per voxel at which scans like these are compared: 2, more where that would be more than 300 000 voxels."""
    volumes = []
    for case in cases:
        header = read_header(case.files["image"])
        volumes.append(float(np.prod(np.array(header.shape) * np.array(header.spacing))))
    return max(FINEST_MM, float((np.median(volumes) / MOST_VOXELS) ** (1 / 3)))


def read_scan(case: Checkable, spacing: float) -> Scan:
    """Read a case's image and masks and bring them to the common grid.

    Raises:
        InputError: for files that cannot be read, a constant image, or a scan of less than 8 voxels at this spacing.
    """
    volume = read_volume(case.files["image"]).canonical()
    masks = [read_role(case, role).canonical() for role in ("endo", "label") if role in case.files][:1]
    return make_scan(case.name, volume, masks[0] if masks else None, spacing)


def make_scan(name: str, volume: Volume, mask: Volume | None, spacing: float) -> Scan:
    """A scan of volumes in right–anterior–superior order; ``mask`` has the image's grid.

    Raises:
        InputError: as :func:`read_scan`.
    """
    data = np.asarray(volume.data, dtype=np.float32)
    box = content_box(data)
    data, edges = data[box], np.array(volume.spacing)
    if min(np.array(data.shape) * edges / spacing) < SMALLEST:
        raise InputError(f"case {name}: {data.shape} voxels of {edges.round(3)} mm are too small to be compared")
    image = resized(data, edges, spacing)
    low, high = np.quantile(image, (0.01, 0.99))
    if not high > low:
        raise InputError(f"case {name}: image is constant ({low:g}); check that it is the right file")
    image = np.clip((image - low) / (high - low), 0.0, 1.0)
    normal, contrast = locally_normal(image)
    inside = image > float(image.mean())
    if mask is not None and mask.data.shape == volume.data.shape:
        label = np.asarray(mask.data)[box]
        cavity = label == 1 if (label == 1).any() else label > 0
        inside = resized(cavity.astype(np.float32), edges, spacing) > 0.5
    points, values, slopes = _points(normal, contrast, spacing)
    return Scan(name, image, normal, inside, spacing, points, values, slopes)


def content_box(data: NDArray[np.float32]) -> tuple[slice, ...]:
    """The smallest box around what differs from the first voxel, the value that padding has."""
    different = data != data[0, 0, 0]
    if different[-1, -1, -1] or not different.any():  # not padded all around
        return (slice(None),) * 3
    sides = [np.flatnonzero(different.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)


def resized(data: NDArray[np.float32], edges: NDArray[np.floating], spacing: float) -> NDArray[np.float32]:
    """An ``(H, W, D)`` array of voxels of ``edges`` mm on cubes of ``spacing`` mm, smoothed first where it shrinks."""
    step = spacing / np.asarray(edges, dtype=np.float64)
    smooth = np.where(step > 1, step / 2.5, 0.0)
    shape = tuple(int(n) for n in np.maximum(np.floor(np.array(data.shape) / step + 1e-6), 1))
    blurred = ndimage.gaussian_filter(data, smooth, truncate=3, mode="nearest")
    offset = (np.array(data.shape) - 1) / 2 - step * (np.array(shape) - 1) / 2  # the centre stays where it is
    return np.asarray(ndimage.affine_transform(blurred, step, offset, shape, order=1, mode="nearest"))


def locally_normal(image: NDArray[np.float32], reach: float = REACH) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An image less its local mean, over its local standard deviation: blind to gain, shading and most of gamma.

    Args:
        image: ``(H, W, D)``.
        reach: standard deviation of the Gaussian that is "local", in voxels.

    Returns:
        The normalised image, and the local standard deviation as a share of the whole image's.
    """
    apart = image - ndimage.gaussian_filter(image, reach, truncate=2.5, mode="nearest")
    deviation = np.sqrt(ndimage.gaussian_filter(apart**2, reach, truncate=2.5, mode="nearest")) / image.std()
    normal = apart / (image.std() * np.sqrt(deviation**2 + LEAST_CONTRAST**2))
    return normal.astype(np.float32), deviation.astype(np.float32)


def _points(normal: NDArray[np.float32], contrast: NDArray[np.float32], spacing: float) -> tuple[Any, Any, Any]:
    """Points, values and slopes of a scan, drawn from where there is contrast; always the same ones."""
    where = np.flatnonzero(contrast.ravel() > LEAST_CONTRAST)
    if len(where) > POINTS:
        where = np.sort(np.random.default_rng(0).choice(where, POINTS, replace=False))
    indices = np.stack(np.unravel_index(where, normal.shape), axis=1)
    points = ((indices - (np.array(normal.shape) - 1) / 2) * spacing).astype(np.float32)
    gradient = np.stack([g.ravel()[where] for g in np.gradient(normal, spacing)], axis=1)
    slopes = np.concatenate([np.cross(points, gradient), gradient], axis=1).astype(np.float32)
    return torch.from_numpy(points), torch.from_numpy(normal.ravel()[where]), torch.from_numpy(slopes)


def oriented(array: NDArray[Any], orientation: Sequence[Sequence[int]]) -> NDArray[Any]:
    """An array stored otherwise: nibabel's orientation, per axis its new place and direction (1 or -1)."""
    return np.ascontiguousarray(nib.orientations.apply_orientation(array, np.array(orientation)))
