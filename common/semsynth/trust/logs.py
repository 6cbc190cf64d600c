"""``logging.conf``: Python evaluates its ``class``, ``args`` and ``kwargs``, so that only plain values may be there."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

from ..paths import read_text
from .findings import Finding
from .kinds import MOST_TEXT
from .paths import problems_of_path

HANDLERS = {
    "StreamHandler", "FileHandler", "NullHandler", "handlers.RotatingFileHandler", "handlers.TimedRotatingFileHandler",
}  # fmt: skip
"""Of Python's own: those that write to the screen or into files; others send what they are given away."""
FORMATTERS = {"Formatter"}
STREAMS = {"sys.stdout", "sys.stderr"}
EVALUATED = ("args", "kwargs")


def check_logging(path: Path, name: str) -> list[Finding]:
    """What a logging configuration would call or write that no bundle needs.

    Args:
        path: the file.
        name: its path in the bundle.
    """
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(read_text(path, MOST_TEXT))
    except (configparser.Error, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        return [Finding(name, f"cannot be read as a logging configuration ({reason}); take the bundle's own")]
    texts: list[str] = []
    for section in [parser.default_section, *parser.sections()]:
        values = dict(parser.defaults() if section == parser.default_section else parser.items(section))
        known = FORMATTERS if section.startswith("formatter_") else HANDLERS
        if "class" in values and values["class"].strip().removeprefix("logging.") not in known:
            texts.append(f"{section}: the class {values['class'][:80]!r} is none of {', '.join(sorted(known))}")
        for key in ("class", *EVALUATED):
            if "%" in values.get(key, ""):  # Python puts other values of the file there before it evaluates them
                texts.append(f"{section}: {key}: {values[key][:80]!r} takes in other values of the file ('%')")
        for key in EVALUATED:
            if "%" in values.get(key, ""):
                continue
            texts += [f"{section}: {key}: {text}" for text in _in_value(values[key])] if key in values else []
    return [Finding(name, text) for text in texts]


def _in_value(value: str) -> list[str]:
    """What is wrong with a value that Python evaluates."""
    try:
        body = ast.parse(value.strip() or "()", mode="eval").body
        return [text for node in _leaves(body) for text in _in_leaf(node)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [f"{value[:80]!r} is no literal"]


def _leaves(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Tuple | ast.List):
        return [leaf for element in node.elts for leaf in _leaves(element)]
    if isinstance(node, ast.Dict):
        return [leaf for element in (*node.keys, *node.values) if element is not None for leaf in _leaves(element)]
    return [node]


def _in_leaf(node: ast.expr) -> list[str]:
    text = ast.unparse(node)
    if text in STREAMS:
        return []
    if not isinstance(node, ast.Constant):
        return [f"{text[:80]!r} is no literal, and would be evaluated"]
    return problems_of_path(node.value) if isinstance(node.value, str) else []
