"""Metrics: always ``(y_pred, y)``."""

from .consistency import SliceStatistics, inter_slice_consistency, slice_statistics
from .frechet import FeatureMetric, FrechetDistance, fid
from .mmd import MaximumMeanDiscrepancy, kid, mmd2
from .overlap import AverageSurfaceDistanceMm, HausdorffDistanceMm, segmentation_scores
from .perceptual import lpips
from .similarity import (
    MAE,
    PAPER_WEIGHTS,
    PSNR,
    RMSE,
    SSIM,
    MultiScaleSSIM,
    ScaleTerms,
    mae,
    ms_ssim,
    ms_ssim_terms,
    psnr,
    rmse,
    similarity,
    ssim,
)

__all__ = [
    "MAE",
    "PAPER_WEIGHTS",
    "PSNR",
    "RMSE",
    "SSIM",
    "AverageSurfaceDistanceMm",
    "FeatureMetric",
    "FrechetDistance",
    "HausdorffDistanceMm",
    "MaximumMeanDiscrepancy",
    "MultiScaleSSIM",
    "ScaleTerms",
    "SliceStatistics",
    "fid",
    "inter_slice_consistency",
    "kid",
    "lpips",
    "mae",
    "mmd2",
    "ms_ssim",
    "ms_ssim_terms",
    "psnr",
    "rmse",
    "segmentation_scores",
    "similarity",
    "slice_statistics",
    "ssim",
]
