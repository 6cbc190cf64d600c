"""Overlap and surface distance of segmentations; MONAI's metrics, in millimetres."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import (
    HausdorffDistanceMetric,
    SurfaceDistanceMetric,
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)

from ..errors import InputError


class HausdorffDistanceMm(HausdorffDistanceMetric):
    """Hausdorff distance in mm, of the foreground classes; MONAI's metric, with each case's own voxel size.

    MONAI takes the voxel size as an argument of every call, which its handlers do not pass on: without it the result is
    in voxels. Here it comes from the affine of ``y``. Surfaces are voxel borders of the class, both directions count
    (the larger is taken). NaN where one of the two masks is empty, infinite where MONAI says so.

    Args:
        percentile: 95 for HD95; 100 is the maximum.
        kwargs: all else that ``monai.metrics.HausdorffDistanceMetric`` takes.

    Examples:
        >>> from monai.data import MetaTensor
        >>> cube = torch.zeros(1, 1, 16, 16, 16)
        >>> cube[:, :, 4:12, 4:12, 4:12] = 1
        >>> y = MetaTensor(torch.cat([1 - cube, cube], dim=1), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
        >>> metric = HausdorffDistanceMm(percentile=100)
        >>> _ = metric(y.roll(1, dims=2), y)  # one voxel of 2 mm
        >>> float(metric.aggregate())
        2.0
    """

    def __init__(self, *, percentile: float = 95, **kwargs: Any) -> None:
        super().__init__(percentile=percentile, **kwargs)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        return super()._compute_tensor(_bare(y_pred), _bare(y), **({"spacing": voxel_size(y)} | kwargs))


class AverageSurfaceDistanceMm(SurfaceDistanceMetric):
    """Average symmetric surface distance in mm, of the foreground classes (as :class:`HausdorffDistanceMm`).

    Args:
        kwargs: arguments of ``monai.metrics.SurfaceDistanceMetric``; ``symmetric`` is true unless said otherwise.

    Examples:
        >>> from monai.data import MetaTensor
        >>> cube = torch.zeros(1, 1, 16, 16, 16)
        >>> cube[:, :, 4:12, 4:12, 4:12] = 1
        >>> y = MetaTensor(torch.cat([1 - cube, cube], dim=1), affine=torch.eye(4))
        >>> metric = AverageSurfaceDistanceMm()
        >>> _ = metric(y, y)
        >>> float(metric.aggregate())
        0.0
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"symmetric": True} | kwargs))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        return super()._compute_tensor(_bare(y_pred), _bare(y), **({"spacing": voxel_size(y)} | kwargs))


def segmentation_scores(
    y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float] | None = None
) -> dict[str, torch.Tensor]:
    """Overlap and surface distances of binary masks, by MONAI's functions.

    Where a mask is empty the values are MONAI's: all are NaN where ``y`` is empty, whatever was predicted; where only
    ``y_pred`` is empty, ``dice`` and ``jaccard`` are 0, the distances NaN or infinite.

    Args:
        y_pred: predicted masks, ``(B, 1, H, W, D)``, bool or 0/1.
        y: the expert's, of the same shape.
        spacing: voxel size in mm along H, W, D; None takes it from the affine of ``y`` (a MetaTensor).

    Returns:
        ``dice`` and ``jaccard`` (0 to 1), ``hd95`` (95th percentile of the Hausdorff distance, the larger of both
        directions) and ``asd`` (average symmetric surface distance) in mm; each ``(B,)``, float32.

    Raises:
        InputError: for shapes that differ or are not ``(B, 1, H, W, D)``, values other than 0 and 1, a voxel size that
            is not three numbers above 0, or none where ``y`` has no affine.

    Examples:
        >>> y = torch.zeros(1, 1, 16, 16, 16)
        >>> y[..., 4:12, 4:12, 4:12] = 1
        >>> segmentation_scores(y, y, spacing=(1.0, 1.0, 1.0))["dice"]
        tensor([1.])
    """
    if y_pred.shape != y.shape or y.ndim != 5 or y.shape[1] != 1:
        raise InputError(
            f"masks have shapes {tuple(y_pred.shape)} (y_pred) and {tuple(y.shape)} (y); both must be one "
            "(B, 1, H, W, D): one class at a time, on one grid"
        )
    size = [float(s) for s in (voxel_size(y) if spacing is None else spacing)]
    if len(size) != 3 or not all(0 < s < float("inf") for s in size):
        raise InputError(f"spacing must be three sizes in mm above 0 (H, W, D), got {size}")
    pred, real = _mask("y_pred", y_pred), _mask("y", y)
    scores = {"dice": compute_dice(pred, real), "jaccard": compute_iou(pred, real)}
    with warnings.catch_warnings():  # MONAI 1.6 warns of an argument that it sets itself, once per call
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
        scores |= {
            "hd95": compute_hausdorff_distance(pred, real, include_background=True, percentile=95, spacing=size),
            "asd": compute_average_surface_distance(pred, real, include_background=True, symmetric=True, spacing=size),
        }
    return {name: score[:, 0] for name, score in scores.items()}


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


def _mask(name: str, x: torch.Tensor) -> torch.Tensor:
    x = _bare(x)
    mask = x != 0
    if not torch.equal(mask.to(x.dtype), x):
        raise InputError(f"{name} must be a mask of 0 and 1, has {x[mask].unique()[:5].tolist()}; compare label == c")
    return mask.float()
