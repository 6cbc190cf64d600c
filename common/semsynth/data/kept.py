"""Whether a file that was written before is still what was written."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from ..errors import InputError
from ..files import sha256, stamp
from .headers import SUFFIXES
from .volumes import read_volume

State: TypeAlias = Literal["kept", "missing", "damaged", "changed"]


def state_of(path: str | Path, digest: str | None) -> State:
    """Compare a file with the SHA-256 that its record has of it.

    Args:
        path: a volume or a picture.
        digest: SHA-256 as hex; None for a record of version 0.1.0, which has none: only whether it is whole.

    Returns:
        ``"kept"``: it is what was written. ``"missing"``. ``"damaged"``: it cannot be read, such as one that a full
        disk cut off. ``"changed"``: it is whole but another one, such as a label map that somebody has corrected.
    """
    path = Path(path)
    if not path.is_file():
        return "missing"
    if digest is not None and _digest(str(path), stamp(path)) == digest:
        return "kept"
    if not _is_whole(path):
        return "damaged"
    return "kept" if digest is None else "changed"


@lru_cache(maxsize=65536)
def _digest(path: str, stamp: tuple[int, int]) -> str:
    """Of a file of this size and time, which is asked for several times in one run."""
    return sha256(path)


def _is_whole(path: Path) -> bool:
    try:
        if path.name.lower().endswith(SUFFIXES):
            read_volume(path)
            return True
        with Image.open(path) as picture:
            picture.load()
    except (InputError, OSError, SyntaxError, ValueError):  # Pillow's own errors on malformed bytes
        return False
    return True
