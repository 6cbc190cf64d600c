"""The wall around a cavity: how thick and how open it is, and how it is made thinner or thicker."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .shape import Mask, surface_of

LEAST_MM, MOST_MM = 1.0, 6.0
"""Between these a wall is left, whatever is asked for."""


def thickness_of(cavity: Mask, wall: Mask, spacing: Sequence[float], openness: float) -> float:
    """Mean thickness of a wall in mm: its volume by the area that it covers.

    The area is the mean of the cavity's surface and that of cavity and wall together, less the part that is open: right
    for a flat wall, and within t² / 12 r² (0.3 % at t = 3 mm, r = 15 mm) for one around a ball.

    Args:
        cavity: ``(H, W, D)``.
        wall: mask of the wall, of the same shape, apart from the cavity.
        spacing: mm per voxel.
        openness: result of :func:`openness_of`.

    Returns:
        0 where there is no wall or no cavity.
    """
    area = 50 * (surface_of(cavity, spacing) + surface_of(cavity | wall, spacing)) * (1 - openness)
    return float(np.count_nonzero(wall) * math.prod(spacing) / area) if wall.any() and area > 0 else 0.0


def openness_of(cavity: Mask, wall: Mask, spacing: Sequence[float]) -> float:
    """Share of the cavity's surface (faces of voxels, by their area) that no wall covers, 0…1.

    Faces of the volume do not count.
    """
    bare = whole = 0.0
    for axis in range(3):
        area = math.prod(spacing) / spacing[axis]
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        for here, there in ((tuple(low), tuple(high)), (tuple(high), tuple(low))):
            face = cavity[here] & ~cavity[there]
            whole += area * int(np.count_nonzero(face))
            bare += area * int(np.count_nonzero(face & ~wall[there]))
    return bare / whole if whole else 0.0


def moved_outwards(cavity: Mask, wall: Mask, change: NDArray[np.floating], spacing: Sequence[float]) -> Mask:
    """A wall whose outer surface is moved along its normal.

    It moves where the wall is: openings, such as the ends of veins and the mitral valve, stay open. The wall stays 1 to
    6 mm thick; where it was thinner or thicker, it stays as it is.

    Args:
        cavity: ``(H, W, D)``.
        wall: mask of the wall, of the same shape, apart from the cavity.
        change: ``(H, W, D)``, mm outwards; inwards where negative.
        spacing: mm per voxel.

    Returns:
        The new wall, apart from the cavity.
    """
    away, above = _to_surface(cavity, spacing), _to_surface(wall, spacing)
    below = _to_surface(~(cavity | wall), spacing)
    added = ~cavity & (above <= change) & (above <= away) & (away <= MOST_MM)
    kept = wall & ((below >= -change) | (away <= LEAST_MM))
    moved: Mask = kept | (added & ~wall)
    return moved


def _to_surface(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float32]:
    """Distance of each voxel outside of a mask from the mask's surface in mm; infinite where the mask is empty.

    A distance transform measures from centre to centre; the surface lies where the line leaves the nearest voxel.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    distance, nearest = ndimage.distance_transform_edt(~mask, sampling=spacing, return_indices=True)
    inside = np.full(mask.shape, np.inf, dtype=np.float32)
    for axis, size in enumerate(spacing):
        own = np.arange(mask.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        run = np.abs(own - nearest[axis]).astype(np.float32) * size
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.fmin(inside, np.float32(size / 2) * distance.astype(np.float32) / run)
    return np.where(mask, np.float32(0), distance.astype(np.float32) - inside)
