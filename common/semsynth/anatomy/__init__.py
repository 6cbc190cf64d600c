"""What a label map's structures look like in figures, which class is what of which, and limits of both."""

from .figures import MapFigures
from .measured import Anatomy, ShapeLimits, anatomy_of
from .rules import ClassRule, MorphRules, rules_for

__all__ = ["Anatomy", "ClassRule", "MapFigures", "MorphRules", "ShapeLimits", "anatomy_of", "rules_for"]
