"""The command that started this process, without folders: their names are those of patients, projects and people."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import real

_QUOTED_PATH = re.compile(r"(?<=['\"])(?:/|[A-Za-z]:[\\/])[^'\"]+")
_BARE_PATH = re.compile(r"(?<![\w.~…/\\)\]}'\"*?-])(?:/|\b[A-Za-z]:[\\/])[^\s'\",;()\[\]{}]+")
_IN_LIST = re.compile(r"[^'\",()\[\]{}]*[/\\][^'\",()\[\]{}]*")
_IN_QUOTES = re.compile(r"(?<=['\"])[^'\"/…][^'\"]*[/\\][^'\"]*(?=['\"])")
_CONFIGS = {"config_file", "meta_file", "logging_file", "args_file"}
"""Options whose relative paths stay: they are files of the bundle, and say what was run."""
DATA_OPTIONS = frozenset({
    "baseline", "cache_dir", "centers", "data", "dataset_dir", "datalists", "endo", "given", "heldout", "image",
    "images", "input", "label", "label_maps", "labels", "latents_dir", "like", "path", "patients", "pseudonyms", "real",
    "real_datalist", "scores", "style", "style_from", "style_map", "synthetic", "train", "train_real", "unlabelled",
    "validation_datalist", "volume", "wall",
})  # fmt: skip
"""Options that name data: nothing of their paths stays, since a file or a folder is often called after a patient."""
_URL = re.compile(r"\b(?!file\b|sqlite\b)[a-z][a-z0-9+]+://[^\s'\"]+")


def run_command() -> str:
    """The command that started this process, as one would type it, without folders.

    Of a path only the last part stays, after "…/", and nothing of that of data; but config files under the working
    directory have their paths relative to it.
    """
    program, arguments = _program()
    return " ".join([*program, *(_quote(argument) for argument in _shown(arguments))])


def _shown(arguments: Sequence[str]) -> Iterator[str]:
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = re.split("#|::", argument.removeprefix("--").partition("=")[0])[-1].replace("-", "_")
        if option in DATA_OPTIONS:
            yield _without_data(argument)
            continue
        shown = without_absolute(argument)
        yield shown if option in _CONFIGS else _without_folders(shown)


def _without_data(argument: str) -> str:
    """An option that names data, or its value: ``--real=…``, ``…``, ``NAME=…`` where a path has a name of its own."""
    if argument.startswith("--"):
        name, equals, _ = argument.partition("=")
        return f"{name}{equals}…" if equals else name
    name, equals, _ = argument.partition("=")
    return f"{name}=…" if equals and re.fullmatch(r"[\w.-]+", name) else "…"


def _without_folders(argument: str) -> str:
    """An argument without absolute paths, of whose relative ones only the last part stays as well."""
    key, equals, value = argument.partition("=")
    if not equals or "/" in key or "\\" in key or key[:1] in "$[({'\"":
        key, equals, value = "", "", argument  # not --key=path or NAME=path
    if value.startswith("$"):
        value = _IN_QUOTES.sub(lambda match: _last(match[0]), value)
    elif value[:1] in ("[", "(", "{", "'", '"'):
        value = _IN_LIST.sub(lambda match: _last(match[0]), value)
    else:
        value = _last(value)
    return key + equals + value


def _last(path: str) -> str:
    """The last part of a path; all of a URL, a ratio such as ``1/2``, and of what has been shortened before."""
    if _URL.search(path) or re.fullmatch(r"[\d.]+/[\d.]+", path) or re.search(r"…/[^/\\]*$", path):
        return path
    parts = [part for part in re.split(r"[\\/]", path) if part]
    return f"…/{parts[-1]}" if len(parts) > 1 else path


def _program() -> tuple[list[str], list[str]]:
    """How the process was started ("python -m …", "python script.py", an installed command), and its arguments."""
    first, *arguments = sys.argv or [""]
    module = started_module()
    if module:
        return ["python", "-m", module], arguments
    if first in ("", "-c"):
        return ["python", *([first] if first else [])], arguments
    if real(Path(first).parent) == real(Path(sys.executable).parent):
        return [_quote(Path(first).name)], arguments
    return ["python", _quote(without_absolute(first))], arguments


def started_module() -> str | None:
    """What stands after ``python -m``, if it was started like this."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return None if spec is None or spec.name == "__main__" else str(spec.name).removesuffix(".__main__")


def _quote(text: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./#…~-]+", text):
        return text
    # as lists are typed, "['a.json','b.json']", where nothing in it means something else between double quotes
    return shlex.quote(text) if "'" not in text or re.search(r'["$`\\!]', text) else f'"{text}"'


def without_absolute(argument: str) -> str:
    """An argument (a path, ``--key=path``, a list of paths, an expression that holds paths) without absolute paths."""
    key, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if _is_absolute(value):
        return key + equals + _shorten(value)
    expression = value.startswith("$")

    def shorten(match: re.Match[str]) -> str:
        path = match[0]
        # in "$@run_dir + '/model.pt'" the text is the end of a path, not a path
        first = Path(path).parents[-1].joinpath(*Path(path).parts[1:2])
        if expression and not os.path.exists(first):  # noqa: PTH110 - False for what can be no path
            return path
        return _shorten(path)

    parts = re.split(f"({_URL.pattern})", argument)
    return "".join(
        part if i % 2 else _BARE_PATH.sub(shorten, _QUOTED_PATH.sub(shorten, part)) for i, part in enumerate(parts)
    )


def _is_absolute(text: str) -> bool:
    return text.startswith("/") or re.match(r"[A-Za-z]:[\\/]", text) is not None


def _shorten(path: str) -> str:
    absolute = Path(os.path.normpath(path))
    here = Path.cwd()
    if absolute.is_absolute() and here != Path(here.anchor):  # under the root of the file system is everything
        for candidate in (absolute, real(absolute)):
            if candidate.is_relative_to(here):
                return candidate.relative_to(here).as_posix()
    last = [part for part in re.split(r"[\\/]", str(path)) if part]
    return "…/" + (last[-1] if last else "")
