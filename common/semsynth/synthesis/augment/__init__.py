"""From few labelled scans to a training set of real and synthetic volumes."""

from ..gate import GateOptions
from .plan import AugmentSettings, shares_of
from .run import Summary, augment

__all__ = ["AugmentSettings", "GateOptions", "Summary", "augment", "shares_of"]
