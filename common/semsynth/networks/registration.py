"""Diffeomorphic registration of label maps: the velocity field that brings a mean map to a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import ndimage
from torch.nn import functional as F

from ..fields import ControlGrid, sampled


class Registration:
    """Class probabilities of a mean and of a map → the velocity v with map(exp(v)(x)) ≈ mean(x).

    Squared differences of smoothed one-hot maps, and the squared slope of the velocity, by Adam.

    Args:
        grid: the control points of the velocity, over the cells.
        weights: weights of the classes, ``(C,)``.
        stiffness: weight of the squared slope.
        rate: rate of Adam, mm.
    """

    def __init__(self, grid: ControlGrid, weights: torch.Tensor, *, stiffness: float = 0.06, rate: float = 0.4) -> None:
        self.grid, self.weights, self.stiffness, self.rate = grid, weights.view(-1, 1, 1, 1), stiffness, rate

    def __call__(
        self, mean: torch.Tensor, shown: torch.Tensor, cells: torch.Tensor, start: torch.Tensor, *, steps: int
    ) -> tuple[torch.Tensor, float]:
        """Register.

        Args:
            mean: ``(C, h, w, d)``.
            shown: mask of the voxels at which the mean counts, ``(h, w, d)``, 0 or 1.
            cells: cells of the map, of :func:`one_hot_cells`.
            start: velocity to start from, ``(3, …)`` at the control points, mm.
            steps: number of steps of Adam.

        Returns:
            The velocity, and the last value of what is minimised.
        """
        velocity = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([velocity], lr=self.rate)
        loss = velocity.sum() * 0
        for _ in range(steps):
            moved = sampled(cells, self.grid.places(self.grid.exponential(velocity)))
            counts = moved[-1] * shown
            apart = (self.weights * (moved[:-1] - mean).square()).sum(dim=0)
            loss = (apart * counts).sum() / counts.sum().clamp(min=1.0) + self.stiffness * self._slope(velocity)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return velocity.detach(), float(loss.detach())

    def _slope(self, velocity: torch.Tensor) -> torch.Tensor:
        wide = [axis for axis in range(3) if velocity.shape[axis + 1] > 1]
        slopes = [velocity.diff(dim=axis + 1) / self.grid.steps[axis] for axis in wide]
        return sum((slope.square().mean() for slope in slopes), velocity.sum() * 0)


def place(label: torch.Tensor, frame: Sequence[int], outside: int = -1) -> torch.Tensor:
    """The middle of a map ``(H, W, D)`` in the middle of a frame; ``outside`` where it shows nothing."""
    result = torch.full(tuple(frame), outside, dtype=label.dtype, device=label.device)
    here, there = _middles(label.shape, frame)
    result[there] = label[here]
    return result


def taken(framed: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The inverse of :func:`place`: the middle of ``(B, C, H, W, D)``; beyond the frame, as it is at its faces."""
    sides = []
    for most, n in zip(framed.shape[:1:-1], reversed(size), strict=True):
        before = max((n - most) // 2, 0)
        sides += [before, max(n - most - before, 0)]
    whole = F.pad(framed, sides, mode="replicate") if any(sides) else framed
    starts = [(most - n) // 2 for n, most in zip(size, whole.shape[2:], strict=True)]
    h, w, d = (slice(s, s + n) for s, n in zip(starts, size, strict=True))
    return whole[:, :, h, w, d]


def _middles(size: Sequence[int], frame: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the middle that both have lies in a map and in a frame."""
    here, there = [], []
    for n, most in zip(size, frame, strict=True):
        own, shift = min(n, most), (most - n) // 2
        here.append(slice(max(-shift, 0), max(-shift, 0) + own))
        there.append(slice(max(shift, 0), max(shift, 0) + own))
    return tuple(here), tuple(there)


def one_hot_cells(label: torch.Tensor, num_classes: int, cell: int, sigma: float) -> torch.Tensor:
    """Smoothed shares of the classes in cells of voxels, and how much of each cell the map shows.

    Args:
        label: class indices ``(H, W, D)``, multiples of ``cell``; −1 where the map shows nothing.
        num_classes: C.
        cell: voxels of a cell along each axis.
        sigma: standard deviation of the Gaussian over the cells, in voxels.

    Returns:
        ``(C + 1, h, w, d)``; the last is 1 where the whole cell is shown.
    """
    shown = (label >= 0).float()
    classes = torch.stack([(label == c).float() for c in range(num_classes)])
    cells = F.avg_pool3d(torch.cat([classes, shown[None]])[None], cell)[0]
    width = [0.0, *[sigma / cell] * 3]
    smooth = torch.from_numpy(ndimage.gaussian_filter(cells.numpy(), width, mode="constant", truncate=3.0))
    return torch.cat([smooth[:-1] / smooth[-1:].clamp(min=1e-3), cells[-1:]])
