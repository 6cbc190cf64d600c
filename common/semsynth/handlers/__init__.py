"""Ignite handlers: checkpoints, initial weights, progress, previews, volumes on disk."""

from .checkpoint import TrainingCheckpoint
from .initial import InitWeights
from .judge import JudgeDice
from .preview import PreviewHandler
from .progress import ProgressHandler
from .ranked import RankedSegmentations
from .segmentation import SegmentationWriter
from .synthetic import SyntheticWriter
from .weights import SaveBestWeights, SaveFinalWeights

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
