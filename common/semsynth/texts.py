"""What others have written (names, paths, messages), shown so that it can do nothing but be read."""

from __future__ import annotations

import logging
import re
from pathlib import PurePath

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (terminals obey some), line separators, marks that turn the order of letters, lone surrogates."""
_NO_LINES = re.compile(_UNSEEN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def shown(text: object, *, lines: bool = False) -> str:
    r"""A text with an escape such as ``\x1b`` or ``\n`` for every character that does something instead of being seen.

    Args:
        text: anything; what is no text is made one.
        lines: leave line breaks as they are, for what is meant to have several lines.
    """
    return (_NO_LINES if lines else _UNSEEN).sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "backslashreplace").decode("ascii")


def message(text: str) -> str:
    """An error's message as one line; below it, indented, the lines of a list of problems."""
    return "\n".join(shown(part) for part in re.split(r"\n(?=\s*- )", text))


def counted(number: int, what: str) -> str:
    """A number with what it counts: "1 case", "2 cases"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def in_csv(text: str) -> str:
    """A text that no spreadsheet takes for a formula: with an apostrophe in front where it begins like one."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def log_plainly() -> None:
    """From here on whatever is logged has its names and paths escaped, whoever writes it and wherever it goes.

    Texts and paths that a message is filled with stand on one line; the message itself keeps its lines.
    """
    factory = logging.getLogRecordFactory()
    if getattr(factory, "plain", False):
        return

    def record(*args: object, **kwargs: object) -> logging.LogRecord:
        made: logging.LogRecord = factory(*args, **kwargs)
        if isinstance(made.msg, str):
            made.msg = shown(made.msg, lines=True)
        if isinstance(made.args, tuple):
            made.args = tuple(_plain(value) for value in made.args)
        elif isinstance(made.args, dict):
            made.args = {key: _plain(value) for key, value in made.args.items()}
        return made

    record.plain = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _plain(value: object) -> object:
    if isinstance(value, BaseException):
        return shown(value, lines=True)
    return shown(value) if isinstance(value, str | PurePath) else value
