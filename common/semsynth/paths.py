"""Paths as they are typed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import InputError

_TYPED_FOR_BUNDLES = ("run_dir", "output_dir", "evaluation_dir", "best_weights", "final_weights", "cache_dir")


def problem(path: str) -> str | None:
    """Why a text can be no path of this system, or None."""
    if "\0" in path:
        return "it holds a zero byte"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return "it holds half of a character (a lone surrogate)"
    return None


MOST_TEXT = 1 << 28
"""Bytes of a text: a datalist of a hundred thousand cases has a fifth of it."""


def expanded(path: str) -> str:
    """A path as it was typed, with the home folder in place of ``~`` or ``~name`` at its beginning.

    A shell does this only where the path stands by itself, not in ``--output=~/prep`` or between quotes.

    Raises:
        InputError: for a text that can be no path.
    """
    if (found := problem(path)) is not None:
        raise InputError(f"{path}: cannot be a path, since {found}; correct it")
    return os.path.expanduser(path)  # noqa: PTH111 - a pattern or "NAME" is no Path, and stays as it was typed


def as_path(path: str | Path, option: str = "a path") -> Path:
    """A path that somebody typed: :func:`expanded`, and text.

    Args:
        path: path as it was typed.
        option: name of the option or argument, for the message.

    Raises:
        InputError: for a number or a list, such as command lines make of ``2024_11_28`` and ``a,b``, and for a text
            that can be no path.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"{option} must be text, got {path!r} ({type(path).__name__}); write it with ./ in front, or "
                         "between quotes of its own: \"'…'\"")  # fmt: skip
    if option in _TYPED_FOR_BUNDLES and "::" in str(path) and not os.path.lexists(path):
        raise InputError(f"{option} {path}: MONAI's configs turn '#' into '::', and look for another "
                         "folder; give a path with neither of them")  # fmt: skip
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
