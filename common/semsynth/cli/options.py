"""Options of the command line as values: what Fire made of what was typed, or one clear error that names the option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import InputError


def whole(name: str, value: Any) -> int:
    """A whole number.

    Raises:
        InputError: naming the option, for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"--{name} must be a whole number, got {value!r}")
    return value


def number(name: str, value: Any) -> float:
    """A number.

    Raises:
        InputError: naming the option, for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"--{name} must be a number, got {value!r}")
    return float(value)


def numbers(name: str, value: Any, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """One or several of them, such as Fire makes of ``1,1,1``.

    Raises:
        InputError: naming the option, for anything else.
    """
    values = value if isinstance(value, list | tuple) else (value,)
    check = whole if kind is int else number
    try:
        return tuple(check(name, v) for v in values)
    except InputError:
        example = "128,96,64" if kind is int else "1,1,1.5"
        raise InputError(f"--{name} must be numbers with commas, such as {example}, got {value!r}") from None


def two_numbers(name: str, value: Any) -> tuple[float, float]:
    """Two numbers with a comma.

    Raises:
        InputError: naming the option, for anything else.
    """
    found = numbers(name, value, float)
    if len(found) != 2:
        raise InputError(f"--{name} must be two numbers with a comma, such as -1000,1000, got {value!r}")
    return found[0], found[1]


def one_or_more(name: str, value: Any) -> int | list[int] | None:
    """A whole number, or several with commas, or None.

    Raises:
        InputError: naming the option, for anything else.
    """
    if value is None or isinstance(value, int):
        return None if value is None else whole(name, value)
    return list(numbers(name, value, int))


def words(value: Any) -> list[str]:
    """Words of a list, or of a text with commas."""
    return [str(v) for v in value] if isinstance(value, list | tuple) else [w for w in str(value).split(",") if w]


def lines_or_words(value: Any) -> list[str]:
    """Words of a list or of a text with commas, or the lines of a text file."""
    if isinstance(value, str) and value.endswith(".txt"):
        try:
            return [line.strip() for line in Path(value).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as reason:
            raise InputError(f"{value}: cannot be read as a text of one name per line ({reason})") from reason
    return [word.strip() for word in words(value)]


def pairs(name: str, value: Any, *, alone: str | None = None) -> dict[str, list[str]]:
    """``a=x b=y a=z`` → ``{"a": ["x", "z"], "b": ["y"]}``; a value without a name belongs to ``alone``.

    Raises:
        InputError: naming the option, for a value without a name where there is no ``alone``.
    """
    pairs: dict[str, list[str]] = {}
    for word in words(value):
        key, equals, rest = word.partition("=")
        if alone is not None and (not equals or re.search(r"[/\\*]", key)):  # a path may hold a "=" of its own
            key, rest = alone, word
        if not key or not rest:
            raise InputError(f"--{name} takes NAME=VALUE, got {word!r}")
        pairs.setdefault(key, []).append(rest)
    return pairs
