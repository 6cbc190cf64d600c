"""Options of the command line as values: texts as they were typed, numbers and lists as Fire reads them.

Fire reads what looks like Python: ``2024_11_28`` as a number, ``a,b`` as a tuple. What a command's annotations call
text is therefore taken as it was typed (:func:`as_typed`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial, wraps
from typing import Annotated, Any, TypeAlias, get_args, get_type_hints

from fire.decorators import SetParseFns

from ..booleans import understood
from ..errors import InputError
from ..paths import as_path, expanded, read_text

FilePath: TypeAlias = Annotated[str, "path"]
"""Text that names files or folders: a ``~`` at its beginning is the home folder."""
Words: TypeAlias = str | Sequence[str]
"""Several texts with commas, or ``NAME=VALUE`` several times."""


_given: ContextVar[frozenset[str]] = ContextVar("given", default=frozenset())


def as_typed(command: Callable[..., str]) -> Callable[..., str]:
    """Have Fire hand the command's texts on as they were typed, and booleans as they were meant; numbers it reads.

    Args:
        command: function whose annotations say what is text (``str``), a path (:data:`FilePath`), several texts
            (:data:`Words`) or a boolean (``bool``).
    """

    @wraps(command)
    def run(**options: Any) -> str:
        _given.set(frozenset(options))
        return command(**options)

    kinds = {name: kind for name, kind in _kinds(command).items() if kind is not None}
    booleans = {name: partial(yes_or_no, name.replace("_", "-")) for name in booleans_of(command)}
    decorated: Callable[..., str] = SetParseFns(**kinds, **booleans)(run)
    return decorated


def given() -> frozenset[str]:
    """The names of the options that were given to the command that runs, in contrast to those left at their default."""
    return _given.get()


def texts_of(command: Callable[..., str]) -> dict[str, bool]:
    """The options of a command that are texts, and so need a value, and whether they are paths, which are not empty."""
    return {name: kind is expanded for name, kind in _kinds(command).items() if kind is not None}


def booleans_of(command: Callable[..., str]) -> list[str]:
    """The options of a command that are yes or no."""
    return [name for name, hint in get_type_hints(command).items() if hint is bool]


def yes_or_no(name: str, typed: str) -> bool:
    """What was typed behind a boolean option; ``True`` where it stands alone.

    Raises:
        InputError: naming the option, for anything that is neither yes nor no.
    """
    meant = understood(typed)
    if meant is None:
        raise InputError(f"--{name} is yes or no, got {typed!r}; write --{name} yes or --{name} no")
    return meant


def _kinds(command: Callable[..., str]) -> dict[str, Callable[[str], Any] | None]:
    """Option → how its text is read; None leaves it to Fire."""
    hints = get_type_hints(command, include_extras=True)
    return {name: _reader(hint) for name, hint in hints.items() if name != "return"}


def _reader(hint: Any) -> Callable[[str], Any] | None:
    members = [hint] if hint in (str, FilePath) else list(get_args(hint))
    if Sequence[str] in members:
        return _texts
    if FilePath in members:
        return expanded
    return str if str in members else None


def _texts(typed: str) -> str | list[str]:
    """What was typed, or the texts of a list such as ``['a', 'b']``."""
    if typed.startswith("[") and typed.endswith("]"):
        try:
            return [str(value) for value in ast.literal_eval(typed)]
        except (ValueError, SyntaxError):  # [a, b]
            return [word.strip(" '\"") for word in typed[1:-1].split(",") if word.strip(" '\"")]
    return typed


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


def numbers_or_text(name: str, typed: Any) -> tuple[float, ...] | str:
    """Numbers with commas, or what was typed where it is anything else, such as a folder.

    Raises:
        InputError: naming the option, for a value that is neither.
    """
    if not isinstance(typed, str):
        return numbers(name, typed, float)
    parts = [part.strip() for part in typed.strip("()[] ").split(",") if part.strip()]
    digits = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # not Python's 2024_11_28
    return tuple(map(float, parts)) if parts and all(map(digits.fullmatch, parts)) else typed


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
            lines = read_text(as_path(value)).splitlines()
            return [line.strip() for line in lines if line.strip()]
        except (OSError, UnicodeDecodeError) as reason:
            raise InputError(f"{value}: cannot be read as a text of one name per line ({reason})") from reason
    return [word.strip() for word in words(value)]


def pairs(name: str, value: Any, *, alone: str | None = None) -> dict[str, list[str]]:
    """``a=x b=y a=z`` → ``{"a": ["x", "z"], "b": ["y"]}``; a value without a name belongs to ``alone``.

    A ``~`` at the beginning of a value is the home folder.

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
        pairs.setdefault(key, []).append(expanded(rest))
    return pairs


def usable_device(typed: str | None) -> str:
    """Where torch computes: what was typed, or a GPU where there is one, else the CPU.

    Raises:
        InputError: for what is no device, or none that is here.
    """
    import torch

    place = str(typed or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {place}: no GPU that torch can use is here; leave it out, or give cpu")
    try:
        if torch.empty(1, device=place).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError, NotImplementedError) as reason:  # one for each kind of device
        raise InputError(
            f"--device {place}: is no device that torch can use here ({str(reason).splitlines()[0]}); leave it out, or "
            "give cpu"
        ) from reason
    return place
