"""Overlap and surface distance of segmentations; MONAI's metrics, in millimetres."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric, SurfaceDistanceMetric

from ..errors import InputError


class HausdorffDistanceMm(HausdorffDistanceMetric):
    """Hausdorff distance in mm, of the foreground classes; MONAI's metric, with each case's own voxel size.

    MONAI takes the voxel size as an argument of every call, which its handlers do not pass on: without it the result is
    in voxels. Here it comes from the affine of ``y``. Surfaces are voxel borders of the class, both directions count
    (the larger is taken). NaN where one of the two masks is empty, infinite where MONAI says so.

    Args:
        percentile: 95 for HD95; 100 is the maximum.
        kwargs: all else that ``monai.metrics.HausdorffDistanceMetric`` takes.
    """

    def __init__(self, *, percentile: float = 95, **kwargs: Any) -> None:
        super().__init__(percentile=percentile, **kwargs)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        return super()._compute_tensor(_bare(y_pred), _bare(y), **({"spacing": voxel_size(y)} | kwargs))


class AverageSurfaceDistanceMm(SurfaceDistanceMetric):
    """Average symmetric surface distance in mm, of the foreground classes (as :class:`HausdorffDistanceMm`).

    Args:
        kwargs: what ``monai.metrics.SurfaceDistanceMetric`` takes; ``symmetric`` is true unless said otherwise.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"symmetric": True} | kwargs))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        return super()._compute_tensor(_bare(y_pred), _bare(y), **({"spacing": voxel_size(y)} | kwargs))


def voxel_size(x: torch.Tensor) -> list[float]:
    """Voxel size in mm along H, W, D of a MetaTensor.

    Raises:
        InputError: for a tensor without an affine.
    """
    if not isinstance(x, MetaTensor):
        raise InputError("distances in mm need the voxel size: y must be a MetaTensor with its affine")
    affine = x.affine[0] if x.affine.ndim == 3 else x.affine
    return [float(s) for s in affine[:3, :3].square().sum(dim=0).sqrt()]


def _bare(x: torch.Tensor) -> torch.Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x
