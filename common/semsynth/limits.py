"""Limits of settings that would otherwise cost all memory or time (free of torch)."""

from __future__ import annotations

import math

from .errors import InputError

MOST_CLASSES = 256
"""Label maps are stored in bytes."""
MOST_JOBS = 256
MOST_SIGMA = 20.0
"""Voxels: a kernel of 161 along each axis, in which nothing of an organ is left."""


def check_number(name: str, value: float, least: float, most: float, *, unit: str = "") -> None:
    """Raise for a number outside of what work can be done with; NaN is outside.

    Args:
        name: the option, for the message.
        value: value that was given.
        least, most: the limits, which are allowed.
        unit: such as ``" mm"``.

    Raises:
        InputError: naming both limits.
    """
    if not (math.isfinite(value) and least <= value <= most):
        raise InputError(f"{name} must lie in {_shown(least)}…{_shown(most)}{unit}, got {_shown(value)}")


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and not value.is_integer() else f"{value:.15g}"


def check_classes(count: int, source: str = "num_classes") -> None:
    """Raise for another number of classes than label maps can have.

    Args:
        count: number of the classes, background too.
        source: place where it stands, for the message.

    Raises:
        InputError: naming it.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= MOST_CLASSES:
        raise InputError(f"{source} must be a whole number of classes from 2 to {MOST_CLASSES}, got {count!r}")


def check_jobs(jobs: int) -> None:
    """Raise for a number of threads that is none.

    Raises:
        InputError: naming the option.
    """
    if jobs < 1:
        raise InputError(f"--jobs must be 1 or more, got {jobs}")
    check_number("--jobs", jobs, 1, MOST_JOBS)
