"""The verdict of an audit, by rules that stand here before anything is looked at (docs/audit.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..provenance.audits import CANNOT_TELL, COPIES_FOUND, NO_SIGN_FOUND
from .copies import COPIED_TEXTURE, SURE, Counts
from .planted import LEAST_RECALL, SelfTest

LEAST_VOLUMES = 20


@dataclass(frozen=True)
class Verdict:
    """One of three words, and why.

    Attributes:
        word: :data:`~semsynth.provenance.audits.COPIES_FOUND`, ``NO_SIGN_FOUND`` or ``CANNOT_TELL``.
        reasons: sentences.
    """

    word: str
    reasons: tuple[str, ...]


def decide(counts: Counts, test: SelfTest, gaps: Sequence[str] = ()) -> Verdict:
    """Copies found, no sign found, or cannot tell.

    Copies are found where one volume is a copy by itself (at most 0.05 of its kind expected by chance in the whole
    set, or half of the texture that its map leaves open is its scan's), or where more volumes are flagged than the
    false-positive rate allows, the 95 % interval of N_copies above 0. Nothing can be told where the self-test has
    missed copies, where there are fewer than 20 volumes, or where something is missing that would have to be known.

    Args:
        counts: counts of the volumes.
        test: planted copies.
        gaps: sentences on what is missing.
    """
    found = []
    if counts.sure:
        found.append(f"{counts.sure} of {counts.volumes} volumes are copies each by itself")
    if counts.copies.low >= 1:
        found.append(f"{counts.flagged} of {counts.volumes} volumes are flagged, {counts.by_chance:.1f} expected by "
                     f"chance: N_copies {counts.copies.text()}")  # fmt: skip
    if found:
        return Verdict(COPIES_FOUND, tuple(found))
    unsure = list(gaps)
    if not test.passed:
        unsure.append(f"the self-test found {test.recall:.0%} of the planted copies, {LEAST_RECALL:.0%} are needed")
    if counts.volumes < LEAST_VOLUMES:
        unsure.append(f"{counts.volumes} volumes are too few, {LEAST_VOLUMES} are needed")
    if unsure:
        return Verdict(CANNOT_TELL, tuple(unsure))
    return Verdict(NO_SIGN_FOUND, (
        f"{counts.flagged} of {counts.volumes} volumes are flagged, {counts.by_chance:.1f} expected by chance, and "
        f"none is a copy by itself; the self-test found {test.recall:.0%} of the planted copies",
    ))  # fmt: skip


def rules(rate: float) -> dict[str, Any]:
    """The thresholds, for ``audit.json``."""
    return {
        "false_positives": rate,
        "least_recall_of_self_test": LEAST_RECALL,
        "sure_expected_by_chance": SURE,
        "copied_texture": COPIED_TEXTURE,
        "least_volumes": LEAST_VOLUMES,
        "copies_found": "a sure copy, copied texture of its own map's scan, or N_copies of 1 or more at the lower end "
        "of its 95 % interval",
    }
