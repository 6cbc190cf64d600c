"""What a judge or feature network has seen of the cases that it is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .sources import RealCase


class SeenCases(Protocol):
    """What is known of the cases that a file of weights was trained on."""

    @property
    def known(self) -> bool:
        """Whether there is a card at all."""

    @property
    def complete(self) -> bool:
        """Whether the card and those of the weights that these started from name all cases."""

    def reasons(self, name: str, files: Mapping[str, Path], voxels: Mapping[str, str]) -> list[str]:
        """Why a case counts as seen; empty if it does not."""


def judge_has_seen(cases: Mapping[str, RealCase], seen: SeenCases | None) -> dict[str, bool | None]:
    """Per case whether a network was trained on it; None where that is unknown.

    Args:
        cases: cases by name.
        seen: cases that the card beside the network's weights names; None without weights.
    """
    if seen is None or not seen.known:
        return dict.fromkeys(cases)
    result: dict[str, bool | None] = {}
    for name, case in cases.items():
        files = {"image": case.image} | ({} if case.label is None else {"label": case.label})
        result[name] = (
            True if seen.reasons(case.known_as or name, files, case.source) else False if seen.complete else None
        )
    return result


@dataclass(frozen=True)
class Exposure:
    """What a network was trained on of some cases.

    Attributes:
        of: number of cases.
        cases: number of them that it was trained on.
        patients: number of further ones whose patient has another scan that it was trained on.
        unknown: number of those whose status is unknown.
    """

    of: int
    cases: int
    patients: int
    unknown: int

    @staticmethod
    def among(members: Sequence[str], cases: Mapping[str, RealCase], seen: Mapping[str, bool | None]) -> Exposure:
        """The exposure of ``members``, with the patients of all ``cases``."""
        people = {case.person for name, case in cases.items() if seen.get(name)}
        missed = [name for name in members if not seen.get(name)]
        others = [name for name in missed if cases[name].person in people]
        unknown = [name for name in missed if name not in others and seen.get(name) is None]
        return Exposure(len(members), len(members) - len(missed), len(others), len(unknown))

    @property
    def certain(self) -> int | None:
        """Number of cases that it has surely seen; None where there is none and the status of some is unknown."""
        return self.cases if self.cases or not self.unknown else None

    def text(self, name: str) -> str:
        """One sentence for a table."""
        if self.unknown == self.of:
            return f"whether {name} was trained on these {self.of} cases is not known: no card beside its weights says"
        more = f", and on another scan of the patient of {self.patients} more" if self.patients else ""
        rest = f"; of {self.unknown} it is unknown" if self.unknown else ""
        none = "none" if not self.cases else f"{self.cases}"
        return f"{name} was trained on {none} of these {self.of} cases{more}{rest}"


@dataclass(frozen=True)
class Span:
    """A count over draws: mean, fewest, most."""

    mean: float
    fewest: int
    most: int

    @staticmethod
    def of(counts: Iterable[int]) -> Span:
        """The mean and range of one count per draw."""
        found = list(counts)
        return Span(sum(found) / len(found), min(found), max(found))

    def text(self) -> str:
        """``10``, or ``9.1 (8 to 10)``."""
        return f"{self.most}" if self.fewest == self.most else f"{self.mean:.1f} ({self.fewest} to {self.most})"
