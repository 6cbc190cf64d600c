"""Anatomy that nobody scanned: label maps changed within limits."""

from .anatomy import Anatomy, ShapeLimits
from .deform import Morphed
from .rules import ClassRule, MorphRules
from .transforms import MorphLabel, MorphLabeld

__all__ = ["Anatomy", "ClassRule", "MorphLabel", "MorphLabeld", "MorphRules", "Morphed", "ShapeLimits"]
