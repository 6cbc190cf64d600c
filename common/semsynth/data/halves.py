"""Two fixed halves of the patients, for networks that have to judge cases that they have not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError


def half_of(patient: str) -> int:
    """0 or 1, by the SHA-256 of the patient's name: the same in every data set, whoever else is in it."""
    return hashlib.sha256(patient.encode()).digest()[-1] % 2


def in_half(entries: Iterable[Mapping[str, Any]], half: int | None) -> list[dict[str, Any]]:
    """The entries of patients of one half, in their order.

    Args:
        entries: entries of a loaded datalist; one without ``patient`` is a patient of its own, by the name of its case
            (or of the case that it was made from).
        half: 0 or 1; None takes all.

    Raises:
        InputError: for another half, or one without a patient.
    """
    found = [dict(entry) for entry in entries]
    if half is None:
        return found
    if isinstance(half, bool) or half not in (0, 1):
        raise InputError(f"half must be 0, 1 or null (all patients), got {half!r}")
    kept = [entry for entry in found if half_of(_patient(entry)) == half]
    if not kept:
        raise InputError(
            f"none of the {len(found)} cases is of a patient in half {half}; to take all, give half null (typed: "
            "--half '$None')"
        )
    return kept


def _patient(entry: Mapping[str, Any]) -> str:
    return str(entry.get("patient") or entry.get("source_case") or entry.get("case", ""))
