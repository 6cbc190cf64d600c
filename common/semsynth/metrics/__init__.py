"""Metrics: always ``(y_pred, y)``."""

from .overlap import AverageSurfaceDistanceMm, HausdorffDistanceMm

__all__ = ["AverageSurfaceDistanceMm", "HausdorffDistanceMm"]
