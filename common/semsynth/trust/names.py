"""What files of a bundle are called, and what kinds of files it has."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..texts import shown

WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")
VOLUMES = (".nii.gz", ".nii", ".nrrd")
PICTURES = (".png", ".jpg", ".jpeg")
TEXTS = (".json", ".yaml", ".yml", ".conf", ".md", ".txt", ".py", ".sha256", ".svg", ".html", ".smk", ".typed")
OF_CODE = (".html", ".smk", ".typed")
"""Kinds that only the package has which a packed bundle brings along."""
CODE = "scripts/"
_ELSEWHERE = re.compile(r'[:*?"<>|]|[. ](/|$)')
"""Of which some systems make something else: of ``a.txt:b`` a file within another, of ``configs./`` ``configs/``."""


def bad_name(name: str) -> str | None:
    """Why a path is none of a file in a bundle, or None."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "." in parts or "" in parts:
        return "a path that leads out of the bundle: absolute, or with '..'"
    if shown(name) != name or "\\" in name or _ELSEWHERE.search(name):
        return (
            'a name with characters that are not seen, with a backslash, with one of : * ? " < > |, or with a point or '
            "a space at the end"
        )
    return None


def unknown_kind(name: str) -> str | None:
    """Why a file is of no kind that bundles have, or None. LICENSE has no ending."""
    lower = name.lower()
    if lower.endswith((".pyc", ".pyo")) or "__pycache__" in name.split("/"):
        return "compiled Python, which cannot be read and runs in place of its source; remove the folder __pycache__"
    if lower.endswith(OF_CODE) and not name.startswith(CODE):
        return "a kind of file that may run something where it is opened, and that no bundle needs; remove it"
    if lower.endswith((*WEIGHTS, *VOLUMES, *PICTURES, *TEXTS)) or PurePosixPath(name).name in ("LICENSE", "NOTICE"):
        return None
    return "a kind of file that no bundle needs (programs, archives and TorchScript are among them); remove it"
