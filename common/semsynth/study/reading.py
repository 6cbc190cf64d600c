"""Reading a study's YAML file: every value is taken once, by name and kind, and what nobody takes is an error."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import InputError
from ..paths import as_path, expanded, read_text
from ..seeds import checked_seed

Value = TypeVar("Value")
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "yes or no", list: "a list", dict: "a table"}
_REQUIRED: Any = object()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


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
        wrong = isinstance(value, float) and not math.isfinite(value)
        if wrong or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
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

    def with_paths(self, value: Any, name: str) -> Any:
        """A value whose texts that begin with ``./`` or ``../`` are paths from the file's folder on, made absolute."""
        if isinstance(value, str) and value.startswith(("./", "../")):
            return str(self.resolved(value, name))
        if isinstance(value, dict):
            return {key: self.with_paths(item, name) for key, item in value.items()}
        return [self.with_paths(item, name) for item in value] if isinstance(value, list) else value

    def settings(self, name: str) -> dict[str, Any]:
        """A table of settings for a command."""
        return {str(key): self.with_paths(value, name) for key, value in self.take(name, dict, {}).items()}

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


def named(name: str, where: str) -> str:
    """A name that can be that of a folder."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: the name {name!r} must be of letters, digits, _ and -, 40 at most")
    return name


def names(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of different texts."""
    value = fields.take(name, list, [])
    if not all(isinstance(item, str) for item in value) or len(set(value)) < len(value):
        raise InputError(f"{fields.where}: {name} must be a list of different names, found {_brief(value)}")
    return tuple(value)


def one_of(fields: Fields, name: str, known: Sequence[str]) -> str:
    """One of several texts, the first where none is given."""
    value = fields.take(name, str, known[0])
    if value not in known:
        raise InputError(f"{fields.where}: {name} must be of {', '.join(known)}, found {_brief(value)}")
    return value


def ratio(fields: Fields, default: tuple[float, float] | None) -> tuple[float, float] | None:
    """Real to synthetic cases."""
    value = fields.any("ratio")
    if value is None:
        return default
    numbers = isinstance(value, list) and len(value) == 2 and all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e6 for x in value
    )  # fmt: skip
    if not numbers:
        raise InputError(f"{fields.where}: ratio must be two numbers above 0, real to synthetic, found {_brief(value)}")
    return float(value[0]), float(value[1])


def seeds(fields: Fields, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Different seeds."""
    value = fields.any("seeds")
    if value is None:
        return default
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise InputError(f"{fields.where}: seeds must be a list of different whole numbers, found {_brief(value)}")
    return tuple(checked_seed(seed, "seeds") for seed in value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
