"""A bundle's configs, read and judged; nothing in them is evaluated, imported or called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import targets
from .expressions import is_allowed, texts_of
from .findings import Finding
from .joins import joined_names, problems_of_joined
from .paths import problems_of_end, problems_of_path
from .texts import NotPlainError, read_plain
from .walking import walk

SUFFIXES = (".json", ".yaml", ".yml")
MODES = ("default", "callable")
_OF_FILE = re.compile(r"\.(json|yaml|yml)\b", re.IGNORECASE)
CALLED = {
    name: re.compile(rf"[A-Za-z]\w*{kind}|[@%]([\w#:]*[#:])?{name}", re.IGNORECASE)
    for name, kind in (("reader", "Reader"), ("writer", "Writer"), ("merger_cls", "Merger"))
}
"""Arguments under which MONAI imports and calls whatever a text names, so that only its own names may stand there, or
what is defined under the same name. Whose argument it is says nothing: another file may exchange the ``_target_``."""
SWITCHES = {
    "pretrained": "asks a network", "download": "asks a network", "allow_pickle": "unpickles files, which runs what "
    "is in them", "_debug_": "stops in a debugger",
}  # fmt: skip
"""Arguments that have to be off, and what they do."""


def check_configs(bundle: Path, files: Sequence[str] | None = None, *, packed: bool = False) -> list[Finding]:
    """What of a bundle's configs would do more than build networks, transforms and the like.

    Args:
        bundle: its folder.
        files: names below ``configs``; None takes all JSON and YAML files there.
        packed: True where it stands alone, without weights of other bundles beside it.
    """
    found: list[Finding] = []
    folder = bundle / "configs"
    names = files if files is not None else sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    contents: dict[str, Any] = {}
    for name in names:
        try:
            contents[name] = read_plain(folder / name)
        except NotPlainError as error:
            found.append(Finding(f"configs/{name}", f"{error}; take the bundle's own"))
    joined = joined_names(contents.values())  # of one file to what another one says
    for name, content in contents.items():
        found += [Finding(f"configs/{name}", text) for text in problems_in(content, packed=packed, joined=joined)]
    return found


def problems_in(content: Any, *, packed: bool = False, joined: frozenset[str] | None = None) -> list[str]:
    """What is not allowed in a config, or in several merged ones, each with its id.

    Args:
        content: content of the config.
        packed: as in :func:`check_configs`.
        joined: names of what is joined to paths, in all configs; None takes those of this one.
    """
    names = joined_names([content]) if joined is None else joined
    found = [f"{where}: {text}" for where, name, value, owner in walk(content)
             for text in _problems(name, value, owner, packed=packed)]  # fmt: skip
    return found + [f"{where}: {text}" for where, text in problems_of_joined(content, names)]


def problems_in_text(content: Any) -> list[str]:
    """What is not allowed in a file that is no config, such as a card, should somebody give it to MONAI as one."""
    return [
        f"{where}: {text}"
        for where, name, value, owner in walk(content)
        if name == "_target_" or (isinstance(value, str) and value.startswith("$"))
        for text in _problems(name, value, owner, packed=False)
    ]


def _problems(name: str, value: Any, owner: Any, *, packed: bool) -> list[str]:
    if name == "_target_":
        return _of_target(value, owner)
    if name == "_mode_" and value not in MODES:
        return [f"the mode {str(value)[:40]!r} is none of {' and '.join(MODES)}"]
    if name == "weights_only" and value is not True:
        return ["'weights_only' is not true, so that files are unpickled, which runs what is in them"]
    if name in SWITCHES and not (value is None or value is False or _is_own(name, value)):
        return [f"{name!r} is {str(value)[:40]!r}, which {SWITCHES[name]}; give false"]
    if not isinstance(value, str):
        return []
    if value.startswith("$"):
        return _in_expression(value, packed=packed)
    if value.startswith("%") and _OF_FILE.search(value):
        return [f"the macro {value[:100]!r} brings in another file"]
    if name in CALLED and not CALLED[name].fullmatch(value):
        return [f"{value[:100]!r} is the name of no {name} of MONAI's, which calls whatever stands there"]
    if name == "_desc_" or re.fullmatch(r"[@%][\w#:]*", value):
        return []
    return problems_of_path(value)


def _of_target(value: Any, owner: Any) -> list[str]:
    reason = targets.problem(value)
    if reason is None and "pretrained" not in owner and targets.fetches(value):
        reason = "asks a network unless 'pretrained' is false"
    return [] if reason is None else [f"the target {str(value)[:100]!r} {reason}"]


def _is_own(name: str, value: Any) -> bool:
    """Whether a text refers to what stands under the same name elsewhere, and is judged there."""
    return isinstance(value, str) and re.fullmatch(rf"[@%]([\w#:]*[#:])?{name}", value) is not None


def _in_expression(value: str, *, packed: bool) -> list[str]:
    if not is_allowed(value):
        return [f"the expression {value[:100]!r} is not allowed (docs/trust.md says which ones are)"]
    return [problem for text in texts_of(value) for problem in problems_of_end(text, packed=packed)]
