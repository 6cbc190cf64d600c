"""Label maps from nothing: what is asked for, how a map is drawn, checked and finished."""

from .finishing import DerivedWall, Finishing
from .inferer import DrawnMapInferer
from .requests import RequestedMapd, load_requests

__all__ = ["DerivedWall", "DrawnMapInferer", "Finishing", "RequestedMapd", "load_requests"]
