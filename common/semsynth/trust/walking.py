"""Every value of a config, with the name under which MONAI finds it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_PARTS = re.compile(r"#|::")


def walk(content: Any, where: str = "", name: str = "", owner: Any = None) -> Iterator[tuple[str, str, Any, Any]]:
    """Every value with its id, the name under which it stands, and the component whose argument it is.

    Of ``a#b::_target_`` the name is the last part; what stands in a list has the list's name.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            place, last = (f"{where}#{key}" if where else str(key)), name_of(str(key))
            yield place, last, value, content
            yield from walk(value, place, last, content)
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield f"{where}#{i}", name, value, owner
            yield from walk(value, f"{where}#{i}", name, owner)


def name_of(identifier: str) -> str:
    """The name of what an id leads to: its last part, or the list's for what stands in a list."""
    parts = [part.lstrip("+") for part in _PARTS.split(identifier)]
    named = [part for part in parts if part and not part.isdecimal()]
    return named[-1] if named else ""
