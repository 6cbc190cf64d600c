"""Paths as they are typed."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError


def expanded(path: str) -> str:
    """A path as it was typed, with the home folder in place of ``~`` or ``~name`` at its beginning.

    A shell does this only where the path stands by itself, not in ``--output=~/prep`` or between quotes.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - a pattern or "NAME" is no Path, and stays as it was typed


def as_path(path: str | Path, option: str = "a path") -> Path:
    """A path that somebody typed: :func:`expanded`, and text.

    Args:
        path: what was typed.
        option: name of the option or argument, for the message.

    Raises:
        InputError: for a number or a list, such as command lines make of ``2024_11_28`` and ``a,b``.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"{option} must be text, got {path!r} ({type(path).__name__}); write it with ./ in front, or "
                         "between quotes of its own: \"'…'\"")  # fmt: skip
    return Path(expanded(str(path)))
