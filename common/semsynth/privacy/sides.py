"""The real scans of an audit: those that the generator was trained on, and held-out ones of other patients."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..evaluation.sources import RealCase, load_real, scans_of
from ..provenance.seen import Seen
from ..texts import counted

logger = logging.getLogger(__name__)
LEAST_HELD_OUT = 5


@dataclass(frozen=True)
class RealSides:
    """Real scans by name.

    Attributes:
        train: those that the generator was trained on.
        heldout: held-out scans of patients that are not among those of ``train``.
        left_out: held-out scans that were left out, because their patient is in ``train``.
        gaps: sentences on what is unknown of the training.
    """

    train: Mapping[str, RealCase]
    heldout: Mapping[str, RealCase]
    left_out: int
    gaps: tuple[str, ...] = ()

    @property
    def all(self) -> dict[str, RealCase]:
        """Training scans first."""
        return {**self.train, **self.heldout}


def load_sides(train: str, heldout: Sequence[str], weights: Sequence[str] = ()) -> RealSides:
    """Read both lists, keep patients apart, and hold the lists against the cards of weights.

    Args:
        train: as in :func:`semsynth.evaluation.sources.load_real`; of a datalist with several splits the training one.
        heldout: the same; of a datalist with several splits all but the training one.
        weights: files of weights whose cards say what they have seen.

    Raises:
        InputError: for a scan in both lists, too few held-out scans, or held-out scans that the weights have seen.
    """
    members = {name: case for name, case in load_real(train).items() if case.training is not False}
    others: dict[str, RealCase] = {}
    for source in heldout:
        others |= {name: case for name, case in load_real(source).items() if case.training is not True}
    if not members:
        raise InputError(f"{train}: has no training scans; give a datalist with a training split, or images")
    hashes = {value: name for name, case in members.items() for value in scans_of(case)}
    both = [
        f"{name} is {hashes[value]}" for name, case in others.items() for value in scans_of(case) if value in hashes
    ]
    both += [f"{name} is {name}" for name in others if name in members]
    if both:
        raise InputError(
            "scans of --heldout that are in --train as well; leave them out of one of the two", sorted(set(both))
        )
    people = {case.person for case in members.values()}
    apart = {name: case for name, case in others.items() if case.person not in people}
    if len(apart) < LEAST_HELD_OUT:
        raise InputError(
            f"--heldout has {counted(len(apart), 'scan')} of patients that are not in --train, {LEAST_HELD_OUT} or "
            "more are needed; give more scans that the generator has not seen"
        )
    left = len(others) - len(apart)
    if left:
        logger.warning("--heldout: %d of %d scans are of patients in --train, and were left out", left, len(others))
    gaps = [gap for file in weights for gap in _card_gaps(file, members, apart)]
    return RealSides(members, apart, left, tuple(gaps))


def _card_gaps(file: str, train: Mapping[str, RealCase], heldout: Mapping[str, RealCase]) -> list[str]:
    """What the card beside weights says otherwise than the lists.

    Raises:
        InputError: for held-out scans that the weights have seen.
    """
    if not Path(file).is_file():
        raise InputError(f"--weights {file}: no such file; give the weights that the volumes were drawn with")
    seen = Seen.of(file)
    if not seen.known:
        return [f"no card beside {Path(file).name} says which cases it was trained on"]

    def found(cases: Mapping[str, RealCase]) -> list[str]:
        files = {n: {"image": c.image} | ({} if c.label is None else {"label": c.label}) for n, c in cases.items()}
        return [name for name, case in cases.items() if seen.reasons(name, files[name], case.source)]

    wrong = found(heldout)
    if wrong:
        raise InputError(f"{file}: was trained on {len(wrong)} of the scans in --heldout; move them to --train", wrong)
    known, gaps = len(found(train)), []
    if known < seen.scans:
        gaps.append(f"{Path(file).name} was trained on {seen.scans} scans, and --train has {known} of them")
    if known < len(train):
        gaps.append(f"{len(train) - known} of the {len(train)} scans in --train were not seen by {Path(file).name}")
    if not seen.complete:
        gaps.append(f"the training cases of {', '.join(seen.gaps)} are unknown")
    return gaps
