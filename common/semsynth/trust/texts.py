"""Texts of a bundle, JSON and YAML, read as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..paths import read_text
from .kinds import MOST_TEXT

MOST_DEPTH = 60
_STRUCTURE = (yaml.events.ScalarEvent, yaml.events.CollectionStartEvent)


class NotPlainError(Exception):
    """Why a text is not read."""


def read_plain(path: Path) -> Any:
    """What a JSON or YAML file holds.

    Raises:
        NotPlainError: for one that cannot be read, is too large or too deep, says a key twice (who reads it later may
            take the other one), or holds tags or references of YAML, which make objects of texts, or much of little.
    """
    try:
        text = read_text(path, MOST_TEXT)
        content = _yaml(text) if path.suffix.lower() in (".yaml", ".yml") else _json(text)
    except (InputError, OSError, ValueError, RecursionError, MemoryError, yaml.YAMLError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise NotPlainError(f"cannot be read as data ({reason[0]})") from error
    if _depth(content) > MOST_DEPTH:
        raise NotPlainError(f"is nested more than {MOST_DEPTH} levels deep")
    return content


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NotPlainError(f"says {key!r} twice, and readers differ in which one they take")
        found[key] = value
    return found


def _yaml(text: str) -> Any:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.events.AliasEvent):
            raise NotPlainError("holds references of YAML (*name), which can unpack to far more than the file")
        if isinstance(event, _STRUCTURE) and event.tag is not None:
            raise NotPlainError(f"holds a tag of YAML ({event.tag}), which makes an object of a text")
    _keys_once(yaml.compose(text, Loader=yaml.SafeLoader))
    return yaml.safe_load(text)


def _keys_once(node: Any) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(node.value):
            raise NotPlainError("has a key that is no text")
        _once([(key, None) for key in keys])
    for part in node.value if isinstance(node, yaml.CollectionNode) else ():
        for inner in part if isinstance(part, tuple) else (part,):
            _keys_once(inner)


def _depth(content: Any) -> int:
    deepest, level = 0, [content]
    while level and deepest <= MOST_DEPTH:
        deepest += 1
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
    return deepest
