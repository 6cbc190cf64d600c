"""What a bundle's configs join to paths: everything that is joined has to be a text that was judged itself.

``$@x * 0 + '/etc'``, or an attribute that is an empty text, would make an absolute path of a harmless one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .expressions import is_join, referred
from .walking import name_of, walk

_PLAIN = re.compile(r"[@%][\w#:]+|\$\s*@[\w#:]+\s*")
"""A reference and nothing else."""


def joined_names(contents: Iterable[Any]) -> frozenset[str]:
    """The names of all values that are joined to paths, also by way of references, anywhere in a bundle's configs."""
    joins: set[str] = set()
    followed: dict[str, set[str]] = {}
    for content in contents:
        for _, name, value, _ in walk(content):
            if not isinstance(value, str):
                continue
            if value.startswith("$") and is_join(value):
                joins |= set(map(name_of, referred(value)))
            elif _PLAIN.fullmatch(value):
                followed.setdefault(name, set()).update(map(name_of, referred(value.replace("%", "@"))))
    open_ = set(joins)
    while open_:
        more = followed.get(open_.pop(), set()) - joins
        joins |= more
        open_ |= more
    return frozenset(joins)


def problems_of_joined(content: Any, names: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Values of these names that are no texts which were judged, each with its id and what is wrong."""
    for where, name, value, _ in walk(content):
        if name not in names:
            continue
        if isinstance(value, Mapping) and "_target_" in value:
            yield where, "is joined to a path, and a component is no text; give the path itself"
        if isinstance(value, str) and value.startswith("$") and not (is_join(value) or _PLAIN.fullmatch(value)):
            yield where, f"is joined to a path, and {value[:100]!r} may be any text; give the path itself"
