"""What a change is worth: scores of segmenters, case by case, against each other."""

from .compare import Comparison, Paired, compare
from .scores import Scores, read_patients, read_scores

__all__ = ["Comparison", "Paired", "Scores", "compare", "read_patients", "read_scores"]
