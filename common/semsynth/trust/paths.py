"""Texts of a bundle that may be paths: none may leave the bundle, or be the name of a program that runs later."""

from __future__ import annotations

import re

_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[\\/]|file:", re.IGNORECASE)
_UPWARDS = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
_PROGRAM = re.compile(r"\S*\.(py|pyc|pyo|pyw|pyd|so|dll|dylib|sh|bash|bat|cmd|ps1|exe|desktop)", re.IGNORECASE)
BESIDE = re.compile(r"/\.\./\w+/models/\w[\w.-]*\.(pt|safetensors)")
"""Weights of another bundle in the same folder, which a packed bundle has inside."""


def problems_of_path(value: str) -> list[str]:
    """Why a text can be no path in a bundle; texts that are none have no such reason."""
    if not value:
        return ["is an empty text, which makes an absolute path of what is joined to it; give null, or '.'"]
    if _ABSOLUTE.match(value):
        return [f"the path {value[:100]!r} is absolute: it is a file of this machine, not of the bundle"]
    return problems_of_end(value, packed=True)


def problems_of_end(value: str, *, packed: bool) -> list[str]:
    """Why a text can be no part of a path, behind a folder of the bundle.

    Args:
        value: the text.
        packed: True where the bundle stands alone, without weights of other bundles beside it.
    """
    if _UPWARDS.search(value) and (packed or not BESIDE.fullmatch(value)):
        return [f"the path {value[:100]!r} leads out of the bundle ('..')"]
    if _PROGRAM.fullmatch(value):
        return [f"{value[:100]!r} is the name of a program: what is written there would run later"]
    return []
