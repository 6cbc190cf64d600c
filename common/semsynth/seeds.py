"""Seeds as all generators take them."""

from __future__ import annotations

from typing import Any

from .errors import InputError

LARGEST = 2**32 - 1
"""NumPy's and scikit-learn's older generators take no more."""


def checked_seed(value: Any, option: str = "seed") -> int:
    """A seed.

    Args:
        value: value that was given.
        option: its name, for the message.

    Raises:
        InputError: for anything else than a whole number from 0 to 2^32 − 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise InputError(f"{option} must be a whole number from 0 to {LARGEST}, got {value!r}")
    return value
