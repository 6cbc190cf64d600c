"""Ignite handlers: checkpoints, initial weights, progress, previews, evaluation, styles, volumes on disk."""

from .checkpoint import TrainingCheckpoint
from .evaluation import EvaluationHandler
from .initial import InitWeights
from .preview import PreviewHandler
from .progress import ProgressHandler
from .ranked import RankedSegmentations
from .samples import SampleSeeds
from .segmentation import SegmentationWriter
from .style import StyleFrom
from .synthetic import SyntheticWriter
from .weights import SaveBestWeights, SaveFinalWeights

__all__ = [
    "EvaluationHandler",
    "InitWeights",
    "PreviewHandler",
    "ProgressHandler",
    "RankedSegmentations",
    "SampleSeeds",
    "SaveBestWeights",
    "SaveFinalWeights",
    "SegmentationWriter",
    "StyleFrom",
    "SyntheticWriter",
    "TrainingCheckpoint",
]
