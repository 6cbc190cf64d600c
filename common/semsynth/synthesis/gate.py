"""A judge's word on each synthetic volume: what is not faithful enough to its label map is not trained on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.volumes import read_label, read_volume
from ..distributed import gather, rank, together, world_size
from ..errors import InputError
from ..evaluation.judge import Panel, load_judge, targets_of
from ..evaluation.measure import MeasurementStore, Measurer
from ..evaluation.seen import judge_has_seen
from ..evaluation.sources import RealCase
from ..files import sha256
from ..limits import check_number
from ..provenance.seen import Seen

logger = logging.getLogger(__name__)
PERCENTILE = 5
LEAST_CASES = 5
"""Fewer real cases tell no percentile."""
MOST_MM = 1000.0


@dataclass(frozen=True)
class Thresholds:
    """What a volume has to reach.

    Attributes:
        min_dice: Dice of the judge's segmentation with the label map, at least.
        max_hd95: 95th percentile of their Hausdorff distance in mm, at most; None: any.
        learned_from: so many real cases; 0: given by the user.
    """

    min_dice: float
    max_hd95: float | None = None
    learned_from: int = 0

    def refusal(self, figures: Mapping[str, float]) -> str:
        """Why a volume is refused; empty where it is not. NaN is refused.

        Args:
            figures: ``dice`` and ``hd95``.
        """
        if not figures["dice"] >= self.min_dice:
            return f"Dice {figures['dice']:.3f}, needed {self.min_dice:.3f}"
        if self.max_hd95 is not None and not figures["hd95"] <= self.max_hd95:
            return f"HD95 {figures['hd95']:.1f} mm, at most {self.max_hd95:.1f}"
        return ""


@dataclass(frozen=True)
class GateOptions:
    """The gate that a user asks for.

    Attributes:
        judge, second: files of weights; None: no gate.
        min_dice: needed; None: learned from real scans.
        max_hd95: allowed in mm; None: learned, where ``min_dice`` is.
        tries: largest number of draws of a volume.
    """

    judge: str | None = None
    second: str | None = None
    min_dice: float | None = None
    max_hd95: float | None = None
    tries: int = 3

    def __post_init__(self) -> None:
        check_number("--tries", self.tries, 1, 1000)
        if self.min_dice is not None:
            check_number("--min-dice", self.min_dice, 0, 1)
        if self.max_hd95 is not None:
            check_number("--max-hd95", self.max_hd95, 0, MOST_MM, unit=" mm")

    def thresholds(self, gate: Gate) -> Thresholds:
        """What volumes have to reach."""
        if self.min_dice is not None:
            return Thresholds(self.min_dice, self.max_hd95)
        learned = gate.thresholds()
        return learned if self.max_hd95 is None else replace(learned, max_hd95=self.max_hd95)


class Gate:
    """Judges that say how faithful volumes are to their label maps.

    Args:
        cases: the real cases that label maps come from, by name.
        names: index → name of the maps' classes.
        judge: file of weights of la_unet's judge.
        second: file of the one of the other half, for cases whose patients the first was trained on.
        learns_from: names of the cases that thresholds may be learned from; None: of all.
        options: options by which the two files were given, for messages.
        store: folder of finished measurements; None keeps nothing.
        device: device of the judges.

    Raises:
        InputError: for files that are no such weights, or judges that segment none of the maps' classes.
    """

    def __init__(
        self,
        cases: Mapping[str, RealCase],
        names: Mapping[int, str],
        judge: str | Path,
        second: str | Path | None = None,
        *,
        learns_from: Collection[str] | None = None,
        options: tuple[str, str] = ("judge", "second-judge"),
        store: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.cases = dict(cases)
        self.learns_from = frozenset(cases if learns_from is None else learns_from)
        self.options = options
        first = load_judge(str(judge), device=device, option=options[0])
        other = load_judge(None if second is None else str(second), device=device, option=options[1])
        targets = targets_of(first, names)
        if first is None or not targets:
            known = ", ".join(first.classes) if first else "nothing"
            raise InputError(
                f"--{options[0]} {judge}: segments {known}, which these label maps do not have "
                f"({', '.join(names.values())}); leave --{options[0]} out"
            )
        seen = {
            one.sha256: judge_has_seen(self.cases, None if one.source is None else Seen.of(one.source))
            for one in (first, other)
            if one is not None
        }
        self.panel = Panel.of(first, other, self.cases, seen)
        self.saw = {name: self._saw(name, seen) for name in self.cases}
        self.measurer = Measurer([], self.panel, targets=targets, store=MeasurementStore(store), device=device)

    def _saw(self, case: str, seen: Mapping[str, Mapping[str, bool | None]]) -> bool | None:
        """Whether a case's judge was trained on its patient; None where that is unknown."""
        judge = self.panel.judge(case)
        known = {} if judge is None else seen[judge.sha256]
        if any(known.get(name) and other.person == self.cases[case].person for name, other in self.cases.items()):
            return True
        return known.get(case)

    def figures(self, case: str, image: str | Path, label: str | Path, *, padded: bool = True) -> dict[str, float]:
        """Agreement of a volume with its label map, padding aside.

        Args:
            case: the real case that the map comes from, which decides who judges.
            image: file of the volume; the judge standardises it, so that its unit does not matter.
            label: file of the map, on the same grid.
            padded: True where the map is padded as the case's own is; a drawn map is not.

        Returns:
            ``dice`` and ``hd95`` (mm), means over the judge's classes.
        """
        content = self.cases[case].content if padded else None
        volume, truth = (v.part(content).canonical() for v in (read_volume(image), read_label(label)))
        key = [sha256(image), sha256(label), content]
        found = self.measurer.faithfulness(case, key, volume, np.asarray(truth.data, dtype=np.int64))
        return {"dice": found["dice"], "hd95": found["hd95"]}

    def unseen(self) -> list[str]:
        """Real cases of patients on whom their judge was surely not trained."""
        return [name for name, saw in self.saw.items() if saw is False and self.cases[name].label is not None]

    def _teachers(self) -> list[str]:
        """Real cases that thresholds are learned from."""
        return [name for name in self.unseen() if name in self.learns_from]

    def check(self, *, learns: bool) -> None:
        """Before any work: whether thresholds can be learned, and a warning of cases whose judge knows the patient.

        Args:
            learns: True where the thresholds are to be learned.

        Raises:
            InputError: for too few real cases.
        """
        fresh = self.unseen()
        known = self._teachers()
        if learns and len(known) < LEAST_CASES:
            judge, other = self.options
            raise InputError(
                f"--{judge}: only {len(known)} of the {len(self.learns_from)} real training cases are known to be new "
                f"to their judge, {LEAST_CASES} are needed for a threshold; give --{other}, the other half's, or "
                "a Dice that volumes need"
            )
        lenient = [name for name in self.cases if name not in fresh]
        if lenient and rank() == 0:
            logger.warning(
                "the judge of %d of %d cases was trained on their patient, or this is unknown: it may be lenient there "
                "(%s); give --%s, the one of the other half", len(lenient), len(self.cases),
                ", ".join(lenient[:5]) + ("…" if len(lenient) > 5 else ""), self.options[1],
            )  # fmt: skip

    def thresholds(self) -> Thresholds:
        """What the worst of real scans reach that their judge did not see: 5th percentile of Dice, 95th of HD95."""
        scans = [(name, self.cases[name].image, Path(str(self.cases[name].label))) for name in self._teachers()]
        found = self.judge_all(scans, "judging real scans")
        dice = float(np.nanpercentile([figures["dice"] for figures in found], PERCENTILE))
        hd95 = float(np.nanpercentile([figures["hd95"] for figures in found], 100 - PERCENTILE))
        if rank() == 0:
            logger.info("gate: Dice at least %.3f, HD95 at most %.1f mm, from %d real scans", dice, hd95, len(found))
        return Thresholds(dice, hd95, len(found))

    def judge_all(
        self, volumes: Sequence[tuple[str, Path, Path]], title: str, unpadded: Collection[Path] = ()
    ) -> list[dict[str, float]]:
        """Figures of many volumes, shared among the processes.

        Args:
            volumes: per volume its case, and the files of volume and map.
            unpadded: maps that are not padded as their case's own is.
            title: title of the progress bar.
        """
        share = range(rank(), len(volumes), world_size())

        def judge() -> dict[int, dict[str, float]]:
            bar = tqdm(share, title, unit="volume", disable=rank() > 0)
            return {i: self.figures(*volumes[i], padded=volumes[i][2] not in unpadded) for i in bar}

        own = together(judge)  # an error in one process ends all, before they tell each other what they found
        found = {i: figures for part in gather(own) for i, figures in (part or {}).items()}
        return [found[i] for i in range(len(volumes))]

    def judged_by(self, case: str) -> dict[str, Any]:
        """Who judges a case, for records."""
        judge = self.panel.judge(case)
        if judge is None:
            return {}
        return {"judge": judge.name, "judge_sha256": judge.sha256, "judge_saw_patient": self.saw[case]}
