"""What ``$`` expressions and references of our own configs hold: the grammar is :mod:`semsynth.trust.expressions`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bundle_configs import walk
from semsynth.trust.expressions import RULE, is_allowed

ID = re.compile(r"[@%][\w#:-]+")
POSITION = re.compile(r"#-?\d+(?=#|$|[^\w])")


def has_position(text: str) -> bool:
    """Whether an id, or a text with references, goes by a place in a list (``handlers#5``, ``handlers::5``)."""
    return POSITION.search(text.replace("::", "#")) is not None


def check_expressions(bundle: Path) -> list[str]:
    """Every expression is within the rule, and nothing is referred to by its position in a list."""
    found = []
    for path in sorted(bundle.glob("configs/*.json")):
        if path.stem == "metadata":
            continue
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for where, value in walk(content):
            if isinstance(value, str) and value.startswith("$") and not is_allowed(value):
                found.append(f"{path.name}: {where}: {value!r} is not allowed; {RULE}")
            if (
                isinstance(value, str)
                and value[:1] in "@%$"
                and any(map(has_position, re.findall(r"[@%][\w#:-]+", value)))
            ):
                found.append(f"{path.name}: {where}: {value!r} refers to a position; give what it means a name")
        found += [
            f"{path.name}: {key!r} changes what stands at a position; give it a name"
            for key in content
            if has_position(key)
        ]
    return found
