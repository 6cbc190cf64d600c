"""A bundle's configs, read and judged; nothing in them is evaluated, imported or called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import targets
from .expressions import RULE, is_allowed, texts_of
from .findings import Finding
from .texts import NotPlainError, read_plain

SUFFIXES = (".json", ".yaml", ".yml")
MODES = ("default", "callable")
_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[\\/]|file:", re.IGNORECASE)
_UPWARDS = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
BESIDE = re.compile(r"/\.\./\w+/models/\w[\w.-]*\.(pt|safetensors)")
"""Weights of another bundle in the same folder, which a packed bundle has inside."""
_PARTS = re.compile(r"#|::")
_OF_FILE = re.compile(r"\.(json|yaml|yml)\b", re.IGNORECASE)
_READER = re.compile(r"[A-Za-z]\w*(Reader|Writer)")
_READERS = ("reader", "writer")
_NETWORK = ("download", "pretrained")


def check_configs(bundle: Path, files: Sequence[str] | None = None, *, packed: bool = False) -> list[Finding]:
    """What of a bundle's configs would do more than build networks, transforms and the like.

    Args:
        bundle: its folder.
        files: names below ``configs``; None takes all JSON and YAML files there.
        packed: whether it stands alone, so that weights of other bundles beside it are none.
    """
    found = []
    folder = bundle / "configs"
    names = files if files is not None else sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    for name in names:
        where = f"configs/{name}"
        try:
            content = read_plain(folder / name)
        except NotPlainError as error:
            found.append(Finding(where, f"{error}; take the bundle's own"))
            continue
        found += [Finding(where, text) for text in problems_in(content, packed=packed)]
    return found


def refuse_configs(bundle: str | Path, *files: str) -> None:
    """Raise, before a config is evaluated, for what no bundle needs: it may do anything.

    Args:
        bundle: its folder.
        files: names below ``configs`` of what is to be evaluated.

    Raises:
        InputError: naming the first file, and every value that is not allowed.
    """
    folder = Path(bundle)
    there = [name for name in files if (folder / "configs" / name).is_file()]
    found = check_configs(folder, there)
    if found:
        raise InputError(
            f"{folder}: its configs are not run, as they name or say what those of a bundle do not need "
            "(docs/trust.md); take the bundle's own",
            [finding.line() for finding in found],
        )


def problems_in(content: Any, *, packed: bool = False, only_targets: bool = False) -> list[str]:
    """What is not allowed in a config, or in several merged ones, each with its id.

    Args:
        content: of the config.
        packed: as of :func:`check_configs`.
        only_targets: of a file that is no config, such as a card, whose texts mean nothing to MONAI.
    """
    found = []
    for where, key, value, owner in walk(content):
        if only_targets and key != "_target_":
            continue
        problems = _of_reader(value, owner) if key in _READERS else []
        found += [f"{where}: {text}" for text in problems or _problems(key, value, packed=packed)]
    return found


def walk(content: Any, where: str = "", name: str = "", owner: Any = None) -> Iterator[tuple[str, str, Any, Any]]:
    """Every value with its id, the name under which it stands, and the component whose argument it is.

    Of ``a#b::_target_`` the name is the last part; what stands in a list has the list's name.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            place, last = (f"{where}#{key}" if where else str(key)), _PARTS.split(str(key))[-1].lstrip("+")
            yield place, last, value, content
            yield from walk(value, place, last, content)
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield f"{where}#{i}", name, value, owner
            yield from walk(value, f"{where}#{i}", name, owner)


def _of_reader(value: Any, owner: Any) -> list[str]:
    """MONAI calls whatever stands under ``reader`` and ``writer`` in its transforms, by its name."""
    ours = isinstance(owner, Mapping) and str(owner.get("_target_")).removeprefix("scripts.").startswith("semsynth.")
    if ours or not isinstance(value, str) or _READER.fullmatch(value):
        return []
    return [f"{value[:100]!r} is the name of no reader or writer of MONAI's, which calls whatever stands there"]


def _problems(key: str, value: Any, *, packed: bool) -> list[str]:
    if key == "_target_":
        reason = targets.problem(value)
        return [] if reason is None else [f"the target {str(value)[:100]!r} {reason}"]
    if key == "_mode_" and value not in MODES:
        return [f"the mode {str(value)[:40]!r} is none of {' and '.join(MODES)}"]
    if key == "_desc_" or not isinstance(value, str):
        return [f"{key!r} is true, which asks a network"] if key in _NETWORK and value is True else []
    if value.startswith("$"):
        return _in_expression(value, packed=packed)
    if value.startswith("%") and _OF_FILE.search(value):
        return [f"the macro {value[:100]!r} brings in another file"]
    if value[:1] in "@%" and value:
        return []
    return problems_of_path(value)


def _in_expression(value: str, *, packed: bool) -> list[str]:
    if not is_allowed(value):
        return [f"the expression {value[:100]!r} is not allowed; {RULE}"]
    for text in texts_of(value):
        if _UPWARDS.search(text) and (packed or not BESIDE.fullmatch(text)):
            return [f"the path {value[:100]!r} leads out of the bundle ('..')"]
    return []


def problems_of_path(value: str) -> list[str]:
    """Why a text can be no path in a bundle; texts that are none have no such reason."""
    if not value:
        return ["is an empty text, which makes an absolute path of what is joined to it; give null, or '.'"]
    if _ABSOLUTE.match(value):
        return [f"the path {value[:100]!r} is absolute: it is a file of this machine, not of the bundle"]
    return [f"the path {value[:100]!r} leads out of the bundle ('..')"] if _UPWARDS.search(value) else []
