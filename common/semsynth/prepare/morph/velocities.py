"""Velocity fields that change anatomy as people differ: at random, by an affine map, along a surface, along a vein."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import linalg, ndimage

from ...anatomy.shape import Mask, box_of
from ...fields import ControlGrid

FADE_MM = 15.0
"""Within so many mm of a face of the volume nothing moves across it."""
SMOOTH_MM = 2.0
"""Of the distance whose gradient is the normal: voxels have steps."""
REACH_MM = 12.0
"""From a surface, at which its movement has fallen to 0.6."""
LEAST_SLOPE = 0.5
"""Of that distance; in the middle of a structure there is no normal."""


def random_field(grid: ControlGrid, wavelength: float, generator: torch.Generator, channels: int = 3) -> torch.Tensor:
    """Smooth random values: a Gaussian process of mean 0 and standard deviation 1.

    White noise on knots, joined by Gaussians of standard deviation ``wavelength`` / 4 that stand one standard deviation
    apart: the same everywhere within 2 %, whatever the voxels.

    Args:
        grid: the control points.
        wavelength: mm over which the values turn to their opposite and back, about.
        generator: generator of the noise.
        channels: independent fields.

    Returns:
        ``(channels, h, w, d)``.
    """
    sigma = wavelength / 4
    bases = []
    for extent, points, step in zip(grid.extent, grid.size, grid.steps, strict=True):
        knots = torch.arange(-3, math.ceil(extent / sigma) + 4, dtype=torch.float32) * sigma
        places = torch.arange(points, dtype=torch.float32) * step
        bases.append(torch.exp(-0.5 * ((places[:, None] - knots) / sigma).square()) / math.pi**0.25)
    noise = torch.randn((channels, *(basis.shape[1] for basis in bases)), generator=generator)
    return torch.einsum("cijk,ai,bj,dk->cabd", noise, *bases)


def affine(grid: ControlGrid, matrix: NDArray[np.float64], centre: Sequence[float]) -> torch.Tensor:
    """The velocity whose flow is x → A (x − c) + c, which is log(A) (x − c).

    Args:
        grid: the control points.
        matrix: A, ``(3, 3)``, near the identity.
        centre: c, ``(3,)`` in mm from the first voxel.

    Returns:
        ``(3, h, w, d)``, mm.
    """
    rate = torch.tensor(np.real(linalg.logm(matrix)), dtype=torch.float32)
    offset = grid.points() - torch.tensor(list(centre), dtype=torch.float32).view(3, 1, 1, 1)
    return torch.einsum("ij,jhwd->ihwd", rate, offset)


def outwards(grid: ControlGrid, mask: Mask) -> torch.Tensor:
    """A velocity of 1 mm along the normal at the surface of a structure, less with the distance from it (12 mm: 0.6).

    Args:
        grid: the control points.
        mask: ``(H, W, D)``, the structure.

    Returns:
        ``(3, h, w, d)``, mm.
    """
    solid = _at_points(grid, mask) > 0.5
    if not solid.any() or solid.all():
        return torch.zeros(3, *grid.size)
    signed = ndimage.distance_transform_edt(~solid, sampling=grid.steps)
    signed = signed - ndimage.distance_transform_edt(solid, sampling=grid.steps)
    signed = ndimage.gaussian_filter(signed, [SMOOTH_MM / s for s in grid.steps], mode="nearest")
    parts = [
        np.gradient(signed, step, axis=axis) if n > 1 else np.zeros_like(signed)
        for axis, (n, step) in enumerate(zip(grid.size, grid.steps, strict=True))
    ]
    normal = np.stack(parts)
    length = np.sqrt((normal**2).sum(axis=0))
    share = np.exp(-0.5 * (signed / REACH_MM) ** 2) / np.maximum(length, LEAST_SLOPE)
    return torch.from_numpy((normal * share).astype(np.float32))


def along(grid: ControlGrid, root: Sequence[float], tip: Sequence[float], radius: float) -> torch.Tensor:
    """A velocity that moves the tip of a vein by 1 mm away from its root, and less towards the root.

    Args:
        grid: the control points.
        root, tip: ``(3,)``, mm from the first voxel.
        radius: radius of the vein, mm; what lies within 1.5 of it moves along.

    Returns:
        ``(3, h, w, d)``, mm.
    """
    start, end = torch.tensor(list(root)).float(), torch.tensor(list(tip)).float()
    length = float(torch.linalg.vector_norm(end - start))
    axis = (end - start) / length
    offset = grid.points() - start.view(3, 1, 1, 1)
    depth = torch.einsum("i,ihwd->hwd", axis, offset)
    across = (offset.square().sum(dim=0) - depth.square()).clamp(min=0)
    beyond = (depth - length).clamp(min=0).square()
    share = (depth / length).clamp(0, 1) * torch.exp(-0.5 * (across + beyond) / (1.5 * radius) ** 2)
    return share * axis.view(3, 1, 1, 1)


def sliding(grid: ControlGrid, velocity: torch.Tensor) -> torch.Tensor:
    """A velocity without what crosses the faces of the volume, so that its flow maps the volume onto itself.

    Nothing is looked up outside of the volume, where nothing is known.

    Args:
        grid: the control points.
        velocity: ``(3, h, w, d)``, mm.

    Returns:
        ``(3, h, w, d)``, mm: within 15 mm of a face (a quarter of a small volume) the component across it falls to 0.
    """
    result = velocity.clone()
    for axis, (points, step, extent) in enumerate(zip(grid.size, grid.steps, grid.extent, strict=True)):
        places = torch.arange(points, dtype=torch.float32) * step
        near = (torch.minimum(places, extent - places) / max(min(FADE_MM, extent / 4), 1e-6)).clamp(0, 1)
        shape = [1, 1, 1]
        shape[axis] = -1
        result[axis] *= (near * near * (3 - 2 * near)).view(shape)
    return result


def _at_points(grid: ControlGrid, mask: Mask) -> NDArray[np.float32]:
    """Share of a mask around each control point, ``(h, w, d)``."""
    widths = [max(1, round(step / s)) for step, s in zip(grid.steps, grid.spacing, strict=True)]
    box = box_of(mask, widths)
    smooth = np.zeros(mask.shape, dtype=np.float32)
    smooth[box] = ndimage.uniform_filter(mask[box].astype(np.float32), widths)  # of what is 0 elsewhere
    share = F.interpolate(torch.from_numpy(smooth)[None, None], grid.size, mode="trilinear", align_corners=True)[0, 0]
    return np.asarray(share.numpy())
