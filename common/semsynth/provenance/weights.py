"""Files of weights, read only where they are what is stated of them beside."""

from __future__ import annotations

import hashlib
import logging
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..json_files import read_object_or_none
from ..paths import as_path
from ..tensor_files import read_tensors
from .seen import card_of, refuse_another

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
"""Beside the checkpoints of a training: their SHA-256."""


def read_weights(path: str | Path, what: str = "weights", *, fix: str = "copy the file again") -> Any:
    """What a file of weights or a checkpoint holds, on the CPU, after its SHA-256 is found to be the stated one.

    It is stated in the card beside weights (``model.pt``, ``model.json``), and in the list of a training's checkpoints.
    Where it is not stated, that is a warning.

    Args:
        path, what, fix: as in :func:`semsynth.tensor_files.read_tensors`.

    Raises:
        InputError: for a file that is not the one which is described there; for a card that is none; as
            :func:`semsynth.tensor_files.read_tensors`.
    """
    return read_hashed_weights(path, what, fix=fix)[0]


def read_hashed_weights(
    path: str | Path, what: str = "weights", *, fix: str = "copy the file again"
) -> tuple[Any, str]:
    """What :func:`read_weights` gives, and the SHA-256 of the bytes that it read.

    Args:
        path, what, fix: as there.

    Raises:
        InputError: as there.
    """
    path, found = as_path(path, what), ""

    def compare(stream: BufferedReader) -> None:
        nonlocal found
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if not is_as_stated(path, found):
            logger.warning("%s: unknown, no card beside it says what it is; whether it is as it was written cannot be "
                           "checked", path)  # fmt: skip

    content = read_tensors(path, what, fix=fix, check=compare)
    return content, found


def is_as_stated(path: Path, found: str | None = None) -> bool:
    """Whether a file is what is stated of it; False where it is not stated.

    Args:
        path: the file.
        found: its SHA-256, where it is known already.

    Raises:
        InputError: for one that is not; for a card that is none.
    """
    card = card_of(path, found)
    if card is not None:
        return card.get("sha256") is not None
    stated = _listed(path)
    if stated is None:
        return False
    refuse_another(path, stated, f"the list {MANIFEST} beside it", "take another checkpoint", found)
    return True


def _listed(path: Path) -> str | None:
    """The SHA-256 of a checkpoint in its folder's list."""
    entries = (read_object_or_none(path.with_name(MANIFEST)) or {}).get("checkpoints")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("file") == path.name and isinstance(entry.get("sha256"), str):
            return str(entry["sha256"])
    return None
