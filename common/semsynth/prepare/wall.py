"""The wall where none was drawn: all within a stated distance of the cavity, in a plane or in space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..data.volumes import Volume
from .job import resample

WallPlane: TypeAlias = Literal["axial", "acquisition", "3d"]
WALL_PLANES = ("axial", "acquisition", "3d")
IN_WORDS = {"axial": "axial plane", "acquisition": "plane of the stack", "3d": "in 3D"}
VOXELS_WITHIN = 2
"""The wall is made on the source's voxels where so many fit into its width, else on finer ones."""
FINE = 4
"""So many of the finer voxels fit into the width."""
MOST_VOXELS = 1 << 25
TILT = np.cos(np.deg2rad(15.0))
"""Slices that are turned less than 15 degrees out of the axial plane are taken for axial ones."""


def derive_wall(endo: Volume, width: float, plane: WallPlane = "axial") -> Volume:
    """The accepted stand-in for a wall mask: the cavity and all within ``width`` mm of it.

    Distances are from the centre of a voxel to that of the nearest cavity voxel: in each anatomically axial slice, in
    each slice of the stack, or in space. Where fewer than two voxels fit into the width along one of these directions,
    or where an axial slice lies across the source's slices, the cavity is first brought to finer voxels: its signed
    distance is interpolated, by which the outline between two slices lies between theirs (Raya & Udupa, "Shape-based
    interpolation of multidimensional objects", IEEE Transactions on Medical Imaging 9(1), 1990).

    Args:
        endo: 0/1 mask in right–anterior–superior order.
        width: mm; 0 gives the cavity alone.
        plane: plane in which distances are measured.

    Returns:
        0/1 mask of cavity and wall together: on the cavity's own grid, or on the finer one, a box around the cavity.
    """
    axes = wall_axes(endo, plane)
    tilted = plane == "axial" and not _is_axial(endo)
    if width > 0 and (tilted or max(endo.spacing[axis] for axis in axes) > width / VOXELS_WITHIN + 1e-6):
        endo = _finer(endo, width, axes, in_world=plane == "axial")
    return Volume(within(endo.data, endo.spacing, width, axes), endo.affine)


def wall_axes(endo: Volume, plane: WallPlane) -> tuple[int, ...]:
    """The axes of the array along which distances are measured.

    The plane of a stack is that of the two smallest voxel sizes; of equal ones, the axial plane.
    """
    if plane == "3d":
        return (0, 1, 2)
    if plane == "axial":
        return (0, 1)
    thick = max(endo.spacing)
    across = max(axis for axis in range(3) if endo.spacing[axis] >= 0.99 * thick)
    return tuple(axis for axis in range(3) if axis != across)


def wall_mask(
    endo: Volume, target: Volume, spacing: Sequence[float], *, width: float, plane: WallPlane
) -> NDArray[np.uint8]:
    """:func:`derive_wall` on the grid of a prepared image, with the cavity still in it.

    Args:
        endo, width, plane: as in :func:`derive_wall`.
        target: the image, resampled from the grid of ``endo`` to ``spacing``.
        spacing: mm per voxel of the target as typed: that of its affine is rounded, which may tip a voxel.

    Returns:
        0/1 mask of the shape of ``target``.
    """
    outer = derive_wall(endo, width, plane)
    if outer.data.shape == endo.data.shape and np.array_equal(outer.affine, endo.affine):
        return resample(outer, spacing, nearest=True).data.astype(np.uint8)
    return _sampled(outer.data, outer.affine, target.affine, target.data.shape, order=0, mode="grid-constant")


def wall_of_map(
    cavity: NDArray[np.bool_], spacing: Sequence[float], width: float, plane: WallPlane
) -> NDArray[np.bool_]:
    """The wall of a cavity that was never seen on finer voxels, as that of scanned ones comes out on this grid.

    It is made on voxels of a quarter of its width, about those of the scans that walls are mostly derived on, and
    taken to this grid by nearest neighbours. On voxels of 1 mm themselves a wall of 2.5 mm would be one of 2 mm.

    Args:
        cavity: ``(H, W, D)``, axes right, anterior, superior.
        spacing: mm per voxel.
        width, plane: as in :func:`derive_wall`.

    Returns:
        Cavity and wall together.
    """
    own = Volume(cavity.astype(np.uint8), np.diag([*spacing, 1.0]))
    if not cavity.any() or width <= 0:
        return cavity
    axes = wall_axes(own, plane)
    fine = _finer(own, width, axes, in_world=False)
    outer = Volume(within(fine.data, fine.spacing, width, axes), fine.affine)
    found = _sampled(outer.data, outer.affine, own.affine, cavity.shape, order=0, mode="constant")
    mask: NDArray[np.bool_] = (found > 0) | cavity
    return mask


def thickness(endo: NDArray[np.uint8], wall: NDArray[np.uint8], axes: Sequence[int]) -> float:
    """How many voxels a wall is thick: the mean run from the cavity outwards, along that axis where it is the least.

    Args:
        endo, wall: ``(H, W, D)`` 0/1 masks.
        axes: along which the wall is looked for.

    Returns:
        0 where there is no wall.
    """
    cavity, shell = endo > 0, wall > 0
    means = []
    for axis in axes:
        border = found = 0
        for step in (1, -1):
            front = _moved(cavity, axis, step) & ~cavity
            border += int(np.count_nonzero(front))
            while (front := front & shell).any():
                found += int(np.count_nonzero(front))
                front = _moved(front, axis, step)
        means.append(found / border if border else 0.0)
    return float(min(means))


def measured_axes(affine: NDArray[np.float64], endo: Volume, plane: WallPlane) -> tuple[int, ...]:
    """The axes of a prepared array along which a wall of this plane is to be found: all that lie near the plane."""
    if plane != "axial":
        return wall_axes(endo, plane)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(axis for axis in range(2) if abs(directions[2, axis]) < 0.5)


def _moved(mask: NDArray[np.bool_], axis: int, step: int) -> NDArray[np.bool_]:
    """A mask one voxel further along an axis; what leaves the array is lost."""
    result = np.zeros_like(mask)
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(0, -1), slice(1, None)
    there, here = (high, low) if step > 0 else (low, high)
    result[tuple(there)] = mask[tuple(here)]
    return result


def within(cavity: NDArray[np.uint8], spacing: Sequence[float], width: float, axes: Sequence[int]) -> NDArray[np.uint8]:
    """All within ``width`` mm of the cavity, in space or slice by slice."""
    result = np.zeros(cavity.shape, dtype=np.uint8)
    if len(axes) == 3:
        if cavity.any():
            result[:] = ndimage.distance_transform_edt(cavity == 0, sampling=spacing) <= width + 1e-6
        return result
    across = next(axis for axis in range(3) if axis not in axes)
    slices, made = np.moveaxis(cavity, across, 2), np.moveaxis(result, across, 2)
    for z in np.flatnonzero(slices.any(axis=(0, 1))):
        distance = ndimage.distance_transform_edt(slices[:, :, z] == 0, sampling=[spacing[axis] for axis in axes])
        made[:, :, z] = distance <= width + 1e-6
    return result


def _is_axial(endo: Volume) -> bool:
    """Whether the slices across the third axis are (nearly) axial, and the axes within them right-angled to it."""
    directions = endo.affine[:3, :3] / np.asarray(endo.spacing)
    return bool(abs(directions[2, 2]) >= TILT and abs(directions[2, :2]).max() <= np.sqrt(1 - TILT**2))


def _finer(endo: Volume, width: float, axes: Sequence[int], *, in_world: bool) -> Volume:
    """The cavity on finer voxels in a box around it: along the patient's axes, or along its own where ``axes`` says."""
    spacing, inside = np.asarray(endo.spacing), np.argwhere(endo.data)
    directions = np.eye(3) if in_world else endo.affine[:3, :3] / spacing
    if not len(inside):
        return endo
    middles = [(a, b) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True)]
    corners = np.array(np.meshgrid(*middles, indexing="ij"), dtype=np.float64).reshape(3, -1)
    places = np.linalg.solve(directions, endo.affine[:3, :3] @ corners + endo.affine[:3, 3:])
    finer = [in_world or axis in axes for axis in range(3)]  # the others keep their slices
    around = np.where([axis in axes for axis in range(3)], width, 0.0) + np.where(finer, spacing.max(), 0.0)
    low, high = places.min(axis=1) - around, places.max(axis=1) + around
    step = max(width / FINE, float((np.prod(high - low + spacing) / MOST_VOXELS) ** (1 / 3)))
    sizes = np.where(finer, np.minimum(step, spacing if not in_world else np.inf), spacing)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * sizes, directions @ low
    shape = tuple(int(n) for n in np.rint(np.ceil((high - low) / sizes - 1e-6)) + 1)
    padded = np.pad(endo.data, 1)  # a cavity that fills the volume has an outside too
    moved = endo.affine.copy()
    moved[:3, 3] -= endo.affine[:3, :3].sum(axis=1)
    signed = ndimage.distance_transform_edt(padded == 0, sampling=spacing)
    signed -= ndimage.distance_transform_edt(padded, sampling=spacing)
    signed = _sampled(signed.astype(np.float32), moved, affine, shape, order=1, mode="nearest")
    return Volume((signed < 0).astype(np.uint8), affine)


def _sampled(
    data: NDArray[Any],
    affine: NDArray[np.float64],
    target: NDArray[np.float64],
    shape: Sequence[int],
    *,
    order: int,
    mode: str,
) -> NDArray[Any]:
    """``data`` of one affine at the voxels of another grid."""
    change = np.linalg.inv(affine) @ target
    return np.asarray(
        ndimage.affine_transform(data, change[:3, :3], change[:3, 3], tuple(shape), order=order, mode=mode)
    )
