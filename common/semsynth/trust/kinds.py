"""Files that are not what their names say, or that bring something along which their kind can but a bundle does not."""

from __future__ import annotations

import re
from pathlib import Path

from .contents import Contents
from .findings import Finding
from .names import PICTURES, TEXTS

MOST_TEXT = 1 << 24
"""Bytes of a text in a bundle; the largest card of ours has a 200th of it."""
_PICTURE = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_IN_SVG = re.compile(rb"<\s*(script|foreignObject|iframe|!ENTITY)|\son\w+\s*=|javascript:", re.IGNORECASE)
_DETACHED = re.compile(rb"^data ?file:", re.IGNORECASE | re.MULTILINE)
_HEADER = 1 << 16


def kinds_findings(contents: Contents) -> list[Finding]:
    """Texts that are none or too large, pictures that are none or hold scripts, volumes whose data are elsewhere."""
    found = []
    for name, path in contents.files.items():
        reason = _reason(name.lower(), path)
        found += [] if reason is None else [Finding(name, reason)]
    return found


def _reason(name: str, path: Path) -> str | None:
    if name.endswith(PICTURES):
        return None if _starts(path, 8).startswith(_PICTURE) else "is no picture, as its name says; remove it"
    if name.endswith(".nrrd") and _DETACHED.search(_starts(path, _HEADER).partition(b"\n\n")[0].replace(b"\r", b"")):
        return "has its voxels in another file ('data file'), which may be any of this machine; write it as one file"
    if not name.endswith((*TEXTS, "license", "notice")):
        return None
    if path.stat().st_size > MOST_TEXT:
        return f"has more than {MOST_TEXT} bytes, which no such text has"
    content = path.read_bytes()
    if b"\0" in content:
        return "is no text, as its name says (it holds zero bytes); remove it"
    if name.endswith(".svg") and _IN_SVG.search(content):
        return "is a picture with a script in it, which runs where the picture is opened; remove it, or make it a PNG"
    return None


def _starts(path: Path, most: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(most)
