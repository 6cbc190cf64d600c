"""Yes and no as people type them, in the command line and in MONAI's (free of all else)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

YES, NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


def understood(typed: str) -> bool | None:
    """Whether a text says yes or no, in any case; None where it says neither."""
    word = typed.strip().lower()
    return True if word in YES else False if word in NO else None


def misread(arguments: Sequence[str], paths: re.Pattern[str] | None = None) -> str | None:
    """What is wrong with the booleans that were given to a bundle; None where nothing is.

    MONAI's command line knows ``True``, ``False``, numbers and texts. ``--resume no`` is the text ``no``, which counts
    as true wherever it is asked, so that a training would be resumed.

    Args:
        arguments: arguments of the process, ``--resume no`` or ``--resume=no``, with ``--config_file``.
        paths: names of the options that are paths: a folder may be called ``no``.
    """
    options = dict(_options(arguments))
    booleans = _booleans(options.get("config_file", ""))
    for name, typed in options.items():
        meant = understood(typed)
        if typed in ("True", "False", "1", "0") or (paths is not None and paths.fullmatch(re.split("#|::", name)[-1])):
            continue
        if meant is not None:
            return f"{name}: {typed!r} is no boolean here, but a text, which counts as true; write --{name} {meant}"
        if name.replace("::", "#") in booleans and not typed.startswith(("@", "%", "$")):
            return f"{name} must be True or False, got {typed!r}"
    return None


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        name, equals, typed = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and (equals or not following.startswith("--")):
            yield name, typed if equals else following


def _booleans(configs: str) -> set[str]:
    """The keys, ``a#b`` within each other, that are true or false in the config files."""
    try:
        files = ast.literal_eval(configs) if configs.startswith(("[", "(", "'", '"')) else configs
    except (ValueError, SyntaxError):
        files = re.sub(r"[\[\]()'\" ]", "", configs)
    listed = files.split(",") if isinstance(files, str) else list(files)
    found: dict[str, Any] = {}
    for file in listed:
        try:
            found |= dict(_leaves(json.loads(Path(str(file)).read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError):
            continue  # MONAI says what is wrong with it, or it is YAML
    return {key for key, value in found.items() if isinstance(value, bool)}


def _leaves(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            name = str(key).lstrip("+")
            yield from _leaves(value, f"{above}#{name}" if above else name)
    else:
        yield above, content
