"""The form of a datalist's entries: what may stand under which key, before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import paths

FILES = ("image", "label", "endo", "wall")
"""Keys of files."""
TEXTS = ("case", "source_case", "patient")
"""Keys of names."""
LONGEST = 60
"""Letters of a value that a message shows."""


def problems_of(entry: Any) -> list[str]:
    """What is wrong with an entry of a datalist; null counts as a key that is not there.

    What else an entry holds is MONAI's and the user's business, as long as its texts are texts.
    """
    if not isinstance(entry, Mapping):
        return [f"needs to be an object with file names, found {brief(entry)}"]
    found = []
    for key, value in entry.items():
        if value is None:
            continue
        if key in FILES and (not isinstance(value, str) or not value):
            found.append(f"{key!r} must be the path of a file, found {brief(value)}")
        elif key in TEXTS and (isinstance(value, bool) or not isinstance(value, str | int | float) or value == ""):
            found.append(f"{key!r} must be a name, found {brief(value)}")
        elif isinstance(value, str) and (problem := paths.problem(value)) is not None:
            found.append(f"{key!r} cannot be used, since {problem}: {brief(value)}")
        elif key == "content" and not _is_part(value):
            found.append(f'{key!r} must be such as {{"start": [0, 0, 0], "shape": [64, 64, 32]}}, found {brief(value)}')
    return found


def name_of(entry: Any) -> str:
    """An entry's name in brackets, where it has one, to be found by."""
    stated = entry.get("case", entry.get("image")) if isinstance(entry, Mapping) else None
    return f" ({brief(stated)})" if isinstance(stated, str | int) else ""


def brief(value: Any) -> str:
    """A value as it stands in JSON, or the beginning of a long one."""
    if isinstance(value, dict | list):  # never in full: it may be nested without end
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = "null" if value is None else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _is_part(content: Any) -> bool:
    """Whether a case's place in its padded files is said as ``prepare`` says it."""
    if not isinstance(content, Mapping):
        return False
    return all(
        isinstance(content.get(key), list)
        and len(content[key]) == 3
        and all(type(n) is int and n >= least for n in content[key])
        for key, least in (("start", 0), ("shape", 1))
    )
