"""Paths as they are typed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import InputError

MOST_TEXT = 1 << 28
"""Bytes of a text: a datalist of a hundred thousand cases has a fifth of it."""


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


def read_text(path: str | Path, most: int = MOST_TEXT) -> str:
    """A text file (UTF-8), such as a datalist or a card.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        InputError: for a pipe or a device, which may have no end, and for a file that is larger.
        OSError, UnicodeDecodeError: where it cannot be read.
    """
    path = Path(path)
    found = path.stat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise InputError(f"{path}: is a pipe or a device; give a file")
    if found.st_size > most:
        raise InputError(f"{path}: has {found.st_size} bytes, and such a text has at most {most}; check the path")
    return path.read_text(encoding="utf-8")
