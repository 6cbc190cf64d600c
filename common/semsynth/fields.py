"""Smooth deformations that can be undone: stationary velocity fields in mm, integrated by scaling and squaring.

A velocity field that does not change in time carries every point along its flow. After unit time that is φ = exp(v),
and its inverse is exp(−v) (Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006).
Fields are held at control points a few millimetres apart: what is smooth needs no more. MONAI's ``DVF2DDF`` and
``Warp`` compute the same; they keep a grid of the last volume's size, which threads would share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

SQUARINGS = 6
STEP_MM = 2.5
"""Between control points."""


class ControlGrid:
    """The control points of a volume, the outermost at its outermost voxels.

    Args:
        shape: ``(H, W, D)`` voxels of the volume.
        spacing: mm per voxel along each axis.
        step: mm between control points, at most; along an axis with larger voxels there is one in each voxel.
    """

    def __init__(self, shape: Sequence[int], spacing: Sequence[float], step: float = STEP_MM) -> None:
        self.shape, self.spacing = tuple(shape), tuple(float(s) for s in spacing)
        self.extent = tuple((n - 1) * s for n, s in zip(self.shape, self.spacing, strict=True))
        self.size = tuple(min(n, math.ceil(e / step) + 1) for n, e in zip(self.shape, self.extent, strict=True))
        self.steps = tuple(e / (n - 1) if n > 1 else 1.0 for n, e in zip(self.size, self.extent, strict=True))

    def points(self) -> torch.Tensor:
        """Positions of the control points in mm from the first voxel, ``(3, h, w, d)``."""
        axes = [torch.arange(n, dtype=torch.float32) * s for n, s in zip(self.size, self.steps, strict=True)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))

    def exponential(self, velocity: torch.Tensor) -> torch.Tensor:
        """Displacement after unit time, u(x) = φ(x) − x with φ = exp(v).

        Args:
            velocity: ``(3, h, w, d)``, mm.

        Returns:
            ``(3, h, w, d)``, mm.
        """
        steps = torch.tensor(self.steps).view(3, 1, 1, 1)
        moved = velocity / steps / 2**SQUARINGS
        for _ in range(SQUARINGS):
            moved = moved + looked_up(moved, moved)
        displacement: torch.Tensor = moved * steps
        return displacement

    def jacobian(self, displacement: torch.Tensor) -> torch.Tensor:
        """Determinants of the Jacobian of φ at the eight corners of each cell between control points.

        Args:
            displacement: ``(3, h, w, d)``, mm.

        Returns:
            ``(8, h − 1, w − 1, d − 1)``, each 1 along an axis of one point. Where one is not positive, φ folds. Between
            the corners of a cell it is interpolated.
        """
        found = []
        for corner in range(8):
            side = [slice(corner >> a & 1, n - 1 + (corner >> a & 1)) for a, n in enumerate(self.size)]
            side = [s if n > 1 else slice(None) for s, n in zip(side, self.size, strict=True)]
            columns = []
            for axis, step in enumerate(self.steps):
                whole = [slice(None) if a == axis else s for a, s in enumerate(side)]
                along = displacement[(slice(None), *whole)]
                along = torch.diff(along, dim=axis + 1) / step if self.size[axis] > 1 else torch.zeros_like(along)
                columns.append(along + torch.eye(3)[axis].view(3, 1, 1, 1))
            first, second, third = columns
            found.append((first * torch.linalg.cross(second, third, dim=0)).sum(dim=0))
        return torch.stack(found)

    def places(self, displacement: torch.Tensor) -> torch.Tensor:
        """Where each voxel comes from, x + u(x), in the form of :func:`sampled`.

        Positions are interpolated between control points, not displacements: they are linear in x, and what
        ``grid_sample`` wants is then made in one go.

        Args:
            displacement: ``(3, h, w, d)``, mm.

        Returns:
            ``(H, W, D, 3)``, the last axis' position first; −1 and 1 are the outermost voxels.
        """
        moved = self.points() + displacement
        ends = [(2 / e, -1.0) if e > 0 else (0.0, 0.0) for e in self.extent]
        scaled = torch.stack([moved[axis] * factor + first for axis, (factor, first) in enumerate(ends)][::-1])
        across = self._along(scaled, (2, 3)).permute(1, 2, 3, 0).flatten(1)
        return (self._weights(0) @ across).view(*self.shape, 3)

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """Values at the control points ``(C, h, w, d)``, linearly interpolated at each voxel ``(C, H, W, D)``."""
        across = self._along(values, (2, 3))
        return (self._weights(0) @ across.flatten(2)).view(len(values), *self.shape)

    def _along(self, values: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """Values ``(C, h, w, d)`` interpolated along some of their axes (1 to 3)."""
        for axis in axes:
            values = torch.tensordot(values, self._weights(axis - 1), dims=([axis], [1])).movedim(-1, axis)
        return values

    def _weights(self, axis: int) -> torch.Tensor:
        """Shares of the control points in each voxel along an axis, ``(voxels, points)``.

        A product with them is several times as fast as ``interpolate`` is for a few channels.
        """
        voxels, points = self.shape[axis], self.size[axis]
        if points == 1:
            return torch.ones(voxels, 1)
        place = torch.arange(voxels, dtype=torch.float32) * ((points - 1) / (voxels - 1))
        return (1 - (place[:, None] - torch.arange(points)).abs()).clamp(min=0)


def looked_up(volume: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """A volume at x + u(x); beyond its faces it goes on as it is there.

    Args:
        volume: ``(C, H, W, D)``.
        displacement: ``(3, H, W, D)``, u in voxels.

    Returns:
        ``(C, H, W, D)``, float32.
    """
    places = []
    for axis, n in enumerate(volume.shape[1:]):
        view = [1, 1, 1]
        view[axis] = n
        own = torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)
        places.append(own.view(view) + displacement[axis] * (2 / (n - 1) if n > 1 else 0.0))
    return sampled(volume, torch.stack(places[::-1], dim=-1))


def sampled(volume: torch.Tensor, places: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
    """A volume at given places; beyond its faces it goes on as it is there.

    Args:
        volume: ``(C, H, W, D)``.
        places: ``(…, 3)`` of three axes before the last, of :meth:`ControlGrid.places`.
        nearest: the value of the nearest voxel, in place of the linearly interpolated one.

    Returns:
        ``(C, …)``, float32.
    """
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(volume[None].float(), places[None], mode=mode, padding_mode="border", align_corners=True)[0]
