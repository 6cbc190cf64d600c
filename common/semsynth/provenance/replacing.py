"""Whether a file of weights and its card may go where somebody wants them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..files import real, sha256
from ..json_files import read_object_or_none
from ..ownership import object_with, refuse

_IS_CARD = object_with("file", "sha256", "training_cases")


def check_replaced_weights(path: str | Path, *, instead: str = "--output", source: str | Path | None = None) -> None:
    """Raise, before any work, where weights or the card beside them would replace a file that is not ours.

    Weights that stand there are ours if the card beside them has their SHA-256. A ``.json`` beside them is ours if it
    is the card of a file of that name: ``datalist.pt`` would get the card ``datalist.json``.

    Args:
        path: file for the weights; the card is the same with ``.json``.
        instead: option that the user can give in its place, for the message.
        source: file that the weights are made from, which they must not replace either.

    Raises:
        InputError: naming the file, why, and what to do.
    """
    path = Path(path)
    card = path.with_suffix(".json")
    if path.is_dir() or path.suffix == ".json":
        what = "a folder" if path.is_dir() else "the name of a card"
        raise InputError(f"{path}: is {what}; give {instead} a file such as model.pt")
    if source is not None and real(source) in (real(path), real(card)):
        raise InputError(f"{path}: would overwrite what the weights are made from; give another {instead}")
    refuse([reason for reason in (_foreign_card(path, card), _foreign_weights(path, card)) if reason], instead)


def _foreign_card(path: Path, card: Path) -> str | None:
    if not os.path.lexists(card):
        return None
    if not _IS_CARD(card):
        return f"{card}: would be replaced by the card of {path.name}, and is no card"
    described = str((read_object_or_none(card) or {}).get("file"))
    if described != path.name and card.with_name(Path(described).name).exists():
        return f"{card}: is the card of {described}, and would be replaced by that of {path.name}"
    return None


def _foreign_weights(path: Path, card: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    if not path.is_file() or not card.is_file():
        return f"{path}: has no card beside it, so it is not known to be weights of ours"
    known = (read_object_or_none(card) or {}).get("sha256")
    return None if sha256(path) == known else f"{path}: is not the file that its card describes (SHA-256)"
