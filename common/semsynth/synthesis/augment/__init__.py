"""From few labelled scans to a training set of real and synthetic volumes."""

from .plan import AugmentSettings
from .run import GateOptions, Summary, augment

__all__ = ["AugmentSettings", "GateOptions", "Summary", "augment"]
