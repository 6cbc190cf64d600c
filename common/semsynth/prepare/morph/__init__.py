"""Anatomy that was never scanned: label maps changed within limits."""

from ...anatomy import Anatomy, ClassRule, MapFigures, MorphRules, ShapeLimits
from .deform import Morphed
from .transforms import MorphLabel, MorphLabeld

__all__ = ["Anatomy", "ClassRule", "MapFigures", "MorphLabel", "MorphLabeld", "MorphRules", "Morphed", "ShapeLimits"]
