"""What synthetic volumes are worth: every metric with its floor and its uncertainty."""

from .files import Results
from .run import DEFAULT_EXTRACTORS, evaluate, open_extractors

__all__ = ["DEFAULT_EXTRACTORS", "Results", "evaluate", "open_extractors"]
