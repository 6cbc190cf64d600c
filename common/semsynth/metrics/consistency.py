"""Consistency across slices: whether a volume runs on smoothly from slice to slice, in each of the three planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.data import MetaTensor

from ..errors import InputError

CONSTANT = 1e-6  # standard deviation of a slice, relative to the volume's largest intensity, that is rounding only


class SliceStatistics(NamedTuple):
    """Statistics of adjacent slices, each ``(B, 3)``, in the order of :data:`PLANES`; never NaN.

    Attributes:
        difference: mean absolute difference of adjacent slices, in units of intensity (per mm where spacing was given).
        correlation: mean Pearson correlation of adjacent slices, -1 to 1. Two constant slices count as 1, a constant
            one beside one that is not as 0.
        flicker: coefficient of variation, over the pairs of slices, of their mean absolute difference: 0 where all
            steps are alike, large where a few jump (seams of slice-wise or patch-wise generators). 0 where no slice
            differs from the next.
    """

    difference: torch.Tensor
    correlation: torch.Tensor
    flicker: torch.Tensor


@torch.no_grad()
def slice_statistics(y: torch.Tensor, spacing: Sequence[float] | None = None) -> SliceStatistics:
    """How adjacent slices of volumes go together, in each plane.

    Args:
        y: volumes ``(B, C, H, W, D)``, axes of RAS; channels are averaged.
        spacing: voxel size in mm along H, W, D: differences are then per mm. None: per slice.

    Raises:
        InputError: for another number of dimensions, fewer than two slices along an axis, NaN or infinite voxels, or a
            voxel size that is not three numbers above 0.

    Examples:
        >>> slice_statistics(torch.zeros(2, 1, 16, 16, 16)).difference
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    if y.ndim != 5 or y.numel() == 0 or min(y.shape[2:]) < 2:
        raise InputError(
            f"volumes have shape {tuple(y.shape)}; needed is (B, C, H, W, D) with two slices or more along each axis"
        )
    steps = (1.0, 1.0, 1.0) if spacing is None else tuple(float(s) for s in spacing)
    if len(steps) != 3 or not all(0 < s < float("inf") for s in steps):
        raise InputError(f"spacing must be three sizes in mm above 0 (H, W, D), got {spacing}")
    y = (y.as_tensor() if isinstance(y, MetaTensor) else y).detach()
    y = y if y.dtype == torch.float64 else y.float()
    low, high = torch.aminmax(y)
    if not bool(torch.isfinite(high - low)):
        raise InputError(
            f"volumes have intensities from {float(low):.4g} to {float(high):.4g}; remove NaN and infinity"
        )
    planes = [_plane(y, axis, step) for axis, step in zip((2, 3, 4), steps, strict=True)]
    return SliceStatistics(*(torch.stack(column, dim=1) for column in zip(*planes, strict=True)))


def inter_slice_consistency(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Adjacent-slice difference of the generated volumes over that of the real ones, ``(B, 3)`` by :data:`PLANES`.

    1 is ideal; above, the generated volume is rougher along that axis, below, smoother. 1 also where neither has any
    difference, infinite where only the real one has none.

    Args:
        y_pred: generated volumes ``(B, C, H, W, D)``.
        y: the real ones, of the same shape and scale of intensities.

    Raises:
        InputError: for shapes that differ, and as in :func:`slice_statistics`.

    Examples:
        >>> y = torch.rand(1, 1, 16, 16, 16)
        >>> inter_slice_consistency(y / 2, y)
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    if y_pred.shape != y.shape:
        raise InputError(f"y_pred has shape {tuple(y_pred.shape)} and y has {tuple(y.shape)}; bring both to one grid")
    pred, real = slice_statistics(y_pred).difference, slice_statistics(y).difference
    return torch.where((pred == 0) & (real == 0), torch.ones_like(real), pred / real)


def _plane(y: torch.Tensor, axis: int, step: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Difference, correlation and flicker along one axis, each ``(B,)``."""
    slices = y.movedim(axis, 2).flatten(3)  # (B, C, slices, voxels)
    first, second = slices[:, :, :-1], slices[:, :, 1:]
    steps = (second - first).abs_().mean(dim=3) / step
    difference = steps.mean(dim=2)
    spread = steps.std(dim=2, correction=0)
    flicker = torch.where(difference > 0, spread / difference, torch.zeros_like(spread))

    centered = slices - slices.mean(dim=3, keepdim=True)
    deviation = centered.square().mean(dim=3).sqrt()
    constant = deviation <= CONSTANT * slices.abs().amax(dim=(2, 3))[:, :, None]
    covariance = (centered[:, :, :-1] * centered[:, :, 1:]).mean(dim=3)
    either, both = constant[:, :, :-1] | constant[:, :, 1:], constant[:, :, :-1] & constant[:, :, 1:]
    pearson = (covariance / (deviation[:, :, :-1] * deviation[:, :, 1:])).clamp(-1.0, 1.0)
    pearson = torch.where(either, both.to(pearson.dtype), pearson)
    return difference.mean(dim=1), pearson.mean(dim=(1, 2)), flicker.mean(dim=1)
