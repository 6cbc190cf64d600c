"""Ignite handlers: checkpoints, progress, previews, synthetic volumes on disk."""

from .checkpoint import SaveBestWeights, TrainingCheckpoint
from .preview import PreviewHandler
from .progress import ProgressHandler
from .synthetic import SyntheticWriter

__all__ = ["PreviewHandler", "ProgressHandler", "SaveBestWeights", "SyntheticWriter", "TrainingCheckpoint"]
