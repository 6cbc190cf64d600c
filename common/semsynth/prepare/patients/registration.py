"""Rigid registration of two scans: a shift by cross-correlation, then Gauss-Newton steps on a few thousand points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from .scans import Scan

LEAST_INSIDE = 0.4
"""Share of the smaller scan's points that has to lie within the other scan."""
MOST_STEPS = 20
MOST_TURN = 0.15


@dataclass(frozen=True)
class Pose:
    """Where the moving scan lies: point ``x`` (mm from the fixed array's centre) is at ``rotation @ x + shift``.

    Attributes:
        rotation: ``(3, 3)``.
        shift: ``(3,)`` mm.
        correlation: correlation of the normalised images where both are, -1 to 1.
        inside: share of the fixed scan's points that lie within the moving scan.
    """

    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    correlation: float = -1.0
    inside: float = 0.0

    @property
    def degrees(self) -> float:
        """Angle of the rotation."""
        return float(np.degrees(Rotation.from_matrix(self.rotation).magnitude()))


def sample(volume: torch.Tensor, half: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a volume ``(1, 1, H, W, D)`` at ``(N, 3)`` mm from its centre, linear, and which of them lie within."""
    grid = places / half
    inside = (grid.abs() <= 1).all(dim=1)
    values = F.grid_sample(volume, grid.flip(1)[None, None, None], align_corners=True, padding_mode="border")
    return values.view(-1), inside


def register(fixed: Scan, moving: NDArray[np.float32], start: Pose, *, steps: int = MOST_STEPS) -> Pose:
    """Rotate and shift until the correlation of two normalised images is highest.

    Inverse compositional Gauss-Newton (Baker and Matthews, 2004): the slopes are those of the fixed scan's points and
    are never computed again. A step that makes it worse is taken back and shortened (Levenberg-Marquardt).

    Args:
        fixed: the smaller scan.
        moving: ``(H, W, D)`` normalised image on the same spacing, in the orientation that is tried.
        start: pose to begin with.
        steps: at most.

    Returns:
        The best pose; its correlation is -1 where the scans do not overlap enough from the start.
    """
    volume = torch.from_numpy(moving)[None, None]
    half = torch.from_numpy(((np.array(moving.shape) - 1) / 2 * fixed.spacing).astype(np.float32))
    best, pose, damping = start, start, 1e-3
    system: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    for _ in range(steps):
        tried, found = _measure(fixed, volume, half, pose)
        gain = tried.correlation - best.correlation
        if gain > 0:
            best, system, damping = tried, found, max(damping / 4, 1e-4)
        else:
            damping *= 8
        if system is None or damping > 10 or 0 < gain < 1e-4:
            break
        pose = _step(best, *system, damping)
    return best


def _measure(
    fixed: Scan, volume: torch.Tensor, half: torch.Tensor, pose: Pose
) -> tuple[Pose, tuple[NDArray[np.float64], NDArray[np.float64]] | None]:
    """The pose with its correlation, and the normal equations there."""
    rotation, shift = (torch.from_numpy(part.astype(np.float32)) for part in (pose.rotation, pose.shift))
    values, within = sample(volume, half, fixed.points @ rotation.T + shift)
    share = float(within.float().mean())
    if share < LEAST_INSIDE:
        return Pose(pose.rotation, pose.shift, -1.0, share), None
    weights = within.float()
    own, other = fixed.values * weights, values * weights
    squares = float(own @ own), float(other @ other)
    if min(squares) <= 0:
        return Pose(pose.rotation, pose.shift, -1.0, share), None
    product = float(own @ other)
    correlation = product / float(np.sqrt(squares[0] * squares[1]))
    residual = max(product, 1e-6) / squares[1] * other - own
    slopes = fixed.slopes * weights[:, None]
    system = (slopes.T @ slopes).double().numpy(), (slopes.T @ residual).double().numpy()
    return Pose(pose.rotation, pose.shift, correlation, share), system


def _step(pose: Pose, matrix: NDArray[np.float64], vector: NDArray[np.float64], damping: float) -> Pose:
    diagonal = np.diag(matrix)
    change = np.linalg.solve(matrix + np.diag(damping * diagonal + 1e-6 * diagonal.max() + 1e-12), vector)
    turn = float(np.linalg.norm(change[:3]))
    change = change * min(1.0, MOST_TURN / turn) if turn > 0 else change
    rotation = pose.rotation @ Rotation.from_rotvec(change[:3]).as_matrix().T
    return Pose(rotation, pose.shift - rotation @ change[3:])
