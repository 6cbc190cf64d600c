"""Reading a study's YAML file: every value is taken once, by name and kind, and what nobody takes is an error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import InputError
from ..paths import as_path, expanded, read_text

Value = TypeVar("Value")
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "yes or no", list: "a list", dict: "a table"}
_REQUIRED: Any = object()


class Fields:
    """A table of the file.

    Args:
        content: what stands there.
        where: file and place, for messages.
        root: folder that paths start from.
    """

    def __init__(self, content: Any, where: str, root: Path) -> None:
        if not isinstance(content, Mapping):
            raise InputError(f"{where}: must hold names with values, found {_brief(content)}")
        self.content, self.where, self.root = {str(key): value for key, value in content.items()}, where, root
        self.taken: list[str] = []

    def take(self, name: str, kind: type[Value], default: Value = _REQUIRED) -> Value:
        """A value of one kind; where there is none, or null, the default.

        Raises:
            InputError: for a value of another kind, or none where one is needed.
        """
        self.taken.append(name)
        value = self.content.get(name)
        if value is None:
            if default is _REQUIRED:
                raise InputError(f"{self.where}: needs {name}, {_KINDS[kind]}")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{self.where}: {name} must be {_KINDS[kind]}, found {_brief(value)}")
        return value

    def any(self, name: str, default: Any = None) -> Any:
        """A value of whatever kind."""
        self.taken.append(name)
        value = self.content.get(name)
        return default if value is None else value

    def whole(self, name: str, least: int, default: int = _REQUIRED) -> int:
        """A whole number of at least ``least``, or the default."""
        value = self.take(name, int, default)
        if value < least and value is not default:
            raise InputError(f"{self.where}: {name} must be {least} or more, found {value}")
        return value

    def path(self, name: str, default: Path = _REQUIRED) -> Path:
        """A path, from the file's folder on."""
        if default is not _REQUIRED and self.content.get(name) is None:
            self.taken.append(name)
            return default
        return self.resolved(self.take(name, str), name)

    def resolved(self, typed: str, name: str) -> Path:
        """A path that is typed in the file, made absolute."""
        path = as_path(expanded(typed), f"{self.where}: {name}")
        return Path(*(self.root / path).parts) if path.is_absolute() else (self.root / path).resolve()

    def inner(self, name: str) -> Fields:
        """A table in the table; an empty one where it is not there."""
        return Fields(self.take(name, dict, {}), f"{self.where}: {name}", self.root)

    def tables(self, name: str) -> dict[str, Fields]:
        """A table of tables."""
        inner = self.inner(name)
        return {key: Fields(value, f"{inner.where}: {key}", self.root) for key, value in inner.content.items()}

    def end(self) -> None:
        """Raise for names that were not taken."""
        for name in self.content:
            if name not in self.taken:
                near = difflib.get_close_matches(name, self.taken, n=1)
                hint = f"did you mean {near[0]}?" if near else f"possible are {', '.join(self.taken)}"
                raise InputError(f"{self.where}: unknown setting {name!r}; {hint}")


def read_fields(path: str | Path) -> Fields:
    """The file's table.

    Raises:
        InputError: for a file that is missing, no YAML, or no table.
    """
    path = as_path(path, "--config")
    if not path.is_file():
        raise InputError(
            f"--config {path}: no such file; give a study's YAML file, such as examples/study_phantom.yaml"
        )
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: no YAML ({str(error).splitlines()[0]}); correct it") from error
    return Fields(content, str(path), path.absolute().parent)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
