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
            found.append(torch.linalg.det(torch.stack(columns, dim=-1).permute(1, 2, 3, 0, 4)))
        return torch.stack(found)

    def voxels(self, displacement: torch.Tensor) -> torch.Tensor:
        """Displacement of each voxel, in voxels.

        Args:
            displacement: ``(3, h, w, d)``, mm.

        Returns:
            ``(3, H, W, D)``.
        """
        return self.dense(displacement / torch.tensor(self.spacing).view(3, 1, 1, 1))

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """Values at the control points ``(C, h, w, d)``, interpolated at each voxel ``(C, H, W, D)``."""
        return F.interpolate(values[None], self.shape, mode="trilinear", align_corners=True)[0]


def looked_up(volume: torch.Tensor, displacement: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
    """A volume at x + u(x); beyond its faces it goes on as it is there.

    Args:
        volume: ``(C, H, W, D)``.
        displacement: ``(3, H, W, D)``, u in voxels.
        nearest: the value of the nearest voxel, in place of the linearly interpolated one.

    Returns:
        ``(C, H, W, D)``, float32.
    """
    places = []
    for axis, n in enumerate(volume.shape[1:]):
        view = [1, 1, 1]
        view[axis] = n
        own = torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)
        places.append(own.view(view) + displacement[axis] * (2 / (n - 1) if n > 1 else 0.0))
    grid = torch.stack(places[::-1], dim=-1)  # grid_sample wants the last axis first
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(volume[None].float(), grid[None], mode=mode, padding_mode="border", align_corners=True)[0]
