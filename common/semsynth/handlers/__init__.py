"""Ignite handlers: checkpoints, averages, initial weights, progress, previews, evaluation, styles, volumes on disk."""

from .average import MovingAverage
from .checkpoint import TrainingCheckpoint
from .evaluation import EvaluationHandler
from .initial import InitWeights
from .memory import MemoryReport
from .preview import PreviewHandler
from .progress import ProgressHandler, SynthesisProgress
from .ranked import RankedSegmentations
from .samples import SampleSeeds
from .segmentation import SegmentationWriter
from .style import StyleFrom
from .synthetic import SyntheticWriter
from .weights import SaveBestWeights, SaveFinalWeights

__all__ = [
    "EvaluationHandler",
    "InitWeights",
    "MemoryReport",
    "MovingAverage",
    "PreviewHandler",
    "ProgressHandler",
    "RankedSegmentations",
    "SampleSeeds",
    "SaveBestWeights",
    "SaveFinalWeights",
    "SegmentationWriter",
    "StyleFrom",
    "SynthesisProgress",
    "SyntheticWriter",
    "TrainingCheckpoint",
]
