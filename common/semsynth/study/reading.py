"""Reading a study's YAML file: every value is taken once, by name and kind; one that is left over is an error."""

from __future__ import annotations

import difflib
import json
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
        content: value that stands there.
        where: file and place, for messages.
        root: folder that paths start from.
    """

    def __init__(self, content: Any, where: str, root: Path) -> None:
        if not isinstance(content, Mapping):
            raise InputError(f"{where}: must hold names with values, found {_brief(content)}")
        for key in content:
            if not isinstance(key, str):
                raise InputError(f"{where}: names must be texts, found {_brief(key)}")
        self.content, self.where, self.root = dict(content), where, root
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
            quoted = "; put it in quotes" if kind is str and not isinstance(value, bool | list | dict) else ""
            raise InputError(f"{self.where}: {name} must be {_KINDS[kind]}, found {_brief(value)}{quoted}")
        return value

    def any(self, name: str, default: Any = None) -> Any:
        """A value of whatever kind."""
        self.taken.append(name)
        value = self.content.get(name)
        return default if value is None else value

    def text(self, name: str, default: str = _REQUIRED) -> str:
        """A text that is not empty, or the default."""
        value = self.take(name, str, default)
        if not value.strip() and value is not default:
            raise InputError(f"{self.where}: {name} must not be empty; leave it out, or give a text")
        return value

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
        return self.resolved(self.text(name), name)

    def resolved(self, typed: str, name: str) -> Path:
        """A path that is typed in the file, made absolute."""
        path = as_path(expanded(typed), f"{self.where}: {name}")
        return Path(*(self.root / path).parts) if path.is_absolute() else (self.root / path).resolve()

    def with_paths(self, value: Any, name: str) -> Any:
        """A value whose texts that begin with ``./``, ``../`` or ``~/`` are paths (from the file's folder on), made
        absolute."""
        if isinstance(value, str) and value.startswith(("./", "../", "~/")):
            return str(self.resolved(value, name))
        if isinstance(value, dict):
            return {key: self.with_paths(item, name) for key, item in value.items()}
        return [self.with_paths(item, name) for item in value] if isinstance(value, list) else value

    def settings(self, name: str) -> dict[str, Any]:
        """A table of settings for a command."""
        return self.with_paths(dict(self.inner(name).content), name)  # type: ignore[no-any-return]

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
                known = ", ".join(dict.fromkeys(self.taken))
                hint = f"did you mean {near[0]}?" if near else f"possible are {known}"
                raise InputError(f"{self.where}: unknown setting {name!r}; {hint}")


class _Loader(yaml.SafeLoader):
    """YAML in which a name stands once in a table."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which takes the last of several values without a word."""
        seen = set[str]()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def read_fields(path: str | Path) -> Fields:
    """The file's table.

    Raises:
        InputError: for a file that is missing, no YAML, or no table; for a name that is there twice.
    """
    path = as_path(path, "--config")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"--config {path}: {what}; give a study's YAML file, such as examples/study_phantom.yaml")
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=_Loader)
        json.dumps(content, default=str)  # a table that holds itself has no end
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"{path}: {_fault(error, text)}; correct it") from error
    return Fields(content, str(path), path.absolute().parent)


def _fault(error: Exception, text: str) -> str:
    """What is wrong with YAML, and in which line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"no YAML that can be used ({str(error).splitlines()[0]})"
    lines = text.splitlines()
    tab = mark.line < len(lines) and "\t" in lines[mark.line]
    return f"line {mark.line + 1}: {'a tab: YAML takes spaces alone' if tab else error.problem}"  # type: ignore[attr-defined]


def named(name: str, where: str) -> str:
    """A name that can be that of a folder."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: the name {name!r} must be of letters, digits, _ and -, 40 at most")
    return name


def names(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of different texts."""
    value = fields.take(name, list, [])
    for item in value:
        if not isinstance(item, str):
            raise InputError(f"{fields.where}: {name} must be a list of names, found {_brief(item)}; put a name that "
                             "looks like a number, a date, yes or no in quotes")  # fmt: skip
    twice = [item for item in dict.fromkeys(value) if value.count(item) > 1]
    if twice:
        raise InputError(f"{fields.where}: {name}: {', '.join(twice)} is there twice; give each name once")
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
        raise InputError(f"{fields.where}: ratio must be two numbers above 0, real to synthetic, such as [1, 1], found "
                         f"{_brief(value)}")  # fmt: skip
    return float(value[0]), float(value[1])


def seeds(fields: Fields, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Different seeds."""
    value = fields.any("seeds")
    if value is None:
        return default
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise InputError(f"{fields.where}: seeds must be a list of different whole numbers, found {_brief(value)}")
    return tuple(checked_seed(seed, f"{fields.where}: seeds") for seed in value)


def _brief(value: Any) -> str:
    if isinstance(value, bool):
        return f"{value} (YAML takes yes, no, on and off for true and false; put a name in quotes)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
