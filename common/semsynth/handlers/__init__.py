"""Ignite handlers: checkpoints, initial weights, progress, previews, volumes on disk."""

from .checkpoint import SaveBestWeights, SaveFinalWeights, TrainingCheckpoint
from .initial import InitWeights
from .judge import JudgeDice
from .preview import PreviewHandler
from .progress import ProgressHandler
from .ranked import RankedSegmentations
from .segmentation import SegmentationWriter
from .synthetic import SyntheticWriter

__all__ = [
    "InitWeights",
    "JudgeDice",
    "PreviewHandler",
    "ProgressHandler",
    "RankedSegmentations",
    "SaveBestWeights",
    "SaveFinalWeights",
    "SegmentationWriter",
    "SyntheticWriter",
    "TrainingCheckpoint",
]
