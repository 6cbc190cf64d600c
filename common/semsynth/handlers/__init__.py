"""Ignite handlers: checkpoints, averages, initial weights, progress, previews, evaluation, volumes on disk."""

from .attachment import Attach, Stats, TensorBoardStats
from .average import MovingAverage
from .checkpoint import TrainingCheckpoint
from .drawn import MapWriter
from .evaluation import EvaluationHandler
from .initial import InitWeights
from .limits import LearnLimits
from .memory import MemoryReport
from .preview import PreviewHandler
from .progress import ProgressHandler, SynthesisProgress
from .ranked import RankedSegmentations
from .schedule import LearningRate
from .segmentation import SegmentationWriter
from .summary import MetricsSummary, SaveMetrics
from .synthetic import SyntheticWriter
from .weights import LoadWeights, SaveBestWeights, SaveFinalWeights

__all__ = [
    "Attach",
    "EvaluationHandler",
    "InitWeights",
    "LearnLimits",
    "LearningRate",
    "LoadWeights",
    "MapWriter",
    "MemoryReport",
    "MetricsSummary",
    "MovingAverage",
    "PreviewHandler",
    "ProgressHandler",
    "RankedSegmentations",
    "SaveBestWeights",
    "SaveFinalWeights",
    "SaveMetrics",
    "SegmentationWriter",
    "Stats",
    "SynthesisProgress",
    "SyntheticWriter",
    "TensorBoardStats",
    "TrainingCheckpoint",
]
