"""Scores as tables: one form for terminal, Markdown, CSV and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..report.tables import NOTHING, Cell, Column, Table, number
from ..vocabulary import PLANES
from .distributions import Sides
from .groups import ALL, MIXED, SAME_PATIENT, TRAINING, UNSEEN
from .judge import JudgeFacts
from .notes import (
    DAGGER,
    DAGGER_NOTE,
    DOUBLE,
    OVER_CASES,
    conditional_means,
    exposures,
    how_drawn,
    marks,
    network_note,
    references,
    which,
)
from .published import dice_table, quality_table
from .scores import (
    CONDITIONAL,
    CONSISTENT,
    DIGITS,
    DISTRIBUTION,
    DIVERSE,
    FAITHFUL,
    FLOOR,
    FLOOR_TRAINING,
    IN_UNIT,
    PAINTING_OWN,
    PAINTING_TRAINING,
    PAIRED,
    Collected,
    Difference,
    Score,
)

FLOORS = {FLOOR: f"{FLOOR} (floor A)", FLOOR_TRAINING: f"{FLOOR_TRAINING} (floor B)"}
PAPER_EXTRACTOR = "medicalnet_resnet34"
TITLES = {
    UNSEEN: "unseen label maps",
    SAME_PATIENT: "label maps of unseen scans of patients that were trained on",
    TRAINING: "label maps of training cases",
    MIXED: "label maps that some of the systems were trained on",
    ALL: "label maps whose training status is unknown",
}


@dataclass(frozen=True)
class Facts:
    """What tables say beside scores.

    Attributes:
        extractors: description of each network (``about()``), by name.
        unavailable: network → why it is not there.
        reasons: metric → why it was not measured.
        without: group → why it has no distribution metrics.
        judge: the network behind faithfulness, or None.
        class_names: names of the classes of the label maps, where the data set states them.
        sides: group → what its draws are made of.
        other_maps: systems that were made from other label maps than those that they are scored with.
    """

    extractors: Mapping[str, Mapping[str, Any]]
    unavailable: Mapping[str, str]
    reasons: Mapping[str, str]
    without: Mapping[str, str]
    judge: JudgeFacts | None
    other_maps: Sequence[str] = ()
    class_names: Mapping[int, str] = field(default_factory=dict)
    sides: Mapping[str, Sides] = field(default_factory=dict)


class Layout:
    """Arranges scores.

    Args:
        found: the measurements, for which rows there are.
        scores: all of them.
        facts: facts to stand beside them.
    """

    def __init__(self, found: Collected, scores: Sequence[Score], facts: Facts) -> None:
        self.found, self.facts = found, facts
        self.index = {(s.group, s.row, s.metric, s.extractor): s for s in scores}

    def tables(self, differences: Sequence[Difference]) -> list[Table]:
        """All tables, the unseen cases first."""
        result = []
        for group in self.found.groups:
            result += [self.paper_table(group), quality_table(self, group), self.paired(group)]
            result += [self.distribution(group, name) for name in self.facts.extractors]
            result += [self.absent(group, name, why) for name, why in self.facts.unavailable.items()]
            result += [self.faithfulness(group), self.consistency(group), *self.diversity(group)]
            result += self.differences(group, [d for d in differences if d.group == group])
        return result + dice_table(self)

    # ---- rows

    @staticmethod
    def painters() -> list[str]:
        """The painting rows, measured or not."""
        return [PAINTING_TRAINING, PAINTING_OWN]

    def systems(self) -> list[str]:
        """Rows of single samples."""
        return [system.name for system in self.found.systems]

    def title(self, group: str, row: str) -> str:
        """A system with several samples says so."""
        members = self.found.groups[group]
        samples = {system.name: system.samples(members) for system in self.found.systems}
        fewest, most = samples.get(row, (1, 1))
        count = f"{most}" if fewest == most else f"{fewest} to {most}"
        return f"{row}, single samples ({count} per map)" if most > 1 else row

    def group(self, group: str) -> str:
        """A group's title, with its size."""
        return f"{TITLES[group]} (n = {len(self.found.groups[group])})"

    # ---- tables

    def paper_table(self, group: str) -> Table:
        """Table 1 of Al-Sanaani et al., in its form and with its extractor."""
        reason = self.facts.unavailable.get(PAPER_EXTRACTOR, f"{PAPER_EXTRACTOR} was not asked for")
        notes = [] if PAPER_EXTRACTOR in self.facts.extractors else [f"FID, MMD: {NOTHING} because {reason}"]
        rows = []
        for row in [*self.painters(), *self.systems()]:
            spread = [self.spread(group, row, metric, PAPER_EXTRACTOR, short=True) for metric in ("fid", "mmd2")]
            pair = [self.mean(group, row, metric, short=True) for metric in ("ms_ssim", "psnr")]
            rows.append([Cell(self.title(group, row)), *spread, *pair])
        columns = [Column("Model"), Column("FID", "lower"), Column("MMD", "lower"), Column("MS-SSIM", "higher"),
                   Column("PSNR (dB)", "higher")]  # fmt: skip
        notes += ["the form of Table 1 of Al-Sanaani et al.: MedicalNet ResNet-34, means alone"]
        notes += self._floors(group) + marks(rows) + [which(self.found, group)]
        return Table(f"Table 1, {self.group(group)}", columns, rows, tuple(notes))

    def _floors(self, group: str) -> list[str]:
        """Both floors of Table 1's FID, and its references."""
        score = self.index.get((group, FLOOR, "fid", PAPER_EXTRACTOR))
        if score is None or group not in self.facts.sides:
            return []
        b = NOTHING if score.floor_training is None else number(score.floor_training)
        return [f"FID of floor A {number(score.value)}, of floor B {b} (see the distribution table); "
                f"{references(self.facts.sides[group])}"]  # fmt: skip

    def paired(self, group: str) -> Table:
        """Paired metrics, painting first."""
        rows = []
        has_unit = any(metric == IN_UNIT for _, _, metric, _ in self.index)
        columns = {name: column for name, column in PAIRED.items() if has_unit or name != IN_UNIT}
        for row in [*self.painters(), *self.systems()]:
            rows.append([Cell(self.title(group, row)), *(self.mean(group, row, metric) for metric in columns)])
            if (group, f"{row}, {CONDITIONAL}", "mse", "") in self.index:
                name = f"{row}, {CONDITIONAL}"
                rows.append([Cell(name), *(self.mean(group, name, metric) for metric in columns)])
        notes = [
            f"{OVER_CASES}; what a system adds to the painting rows is what counts",
            "painting: every class filled with one value, its mean over the training cases, or its mean in the very "
            "volume that is imitated (which no generator knows)",
            *self._missing_paintings(group),
            *conditional_means(self.found, group),
        ]
        means = [s for (g, r, m, _), s in self.index.items() if g == group and r.endswith(CONDITIONAL) and m == "mse"]
        notes += [f"{s.row}: PSNR, RMSE: {NOTHING} because the mean MSE is not above 0" for s in means if s.value <= 0]
        if not any((group, row, "ms_ssim", "") in self.index for row in self.systems()):
            notes.append(f"MS-SSIM: {NOTHING} because it needs 44 voxels along each axis")
        notes += [f"{PAIRED[metric].title}: {NOTHING} because {why}" for metric, why in self.facts.reasons.items()
                  if metric in PAIRED]  # fmt: skip
        notes.append(which(self.found, group))
        return Table(f"Similarity to the real image, {self.group(group)}", [Column("system"), *columns.values()], rows,
                     tuple(notes))  # fmt: skip

    def _missing_paintings(self, group: str) -> list[str]:
        """Why a painting row has no values, or not for all cases, and which systems it is not to be held against."""
        notes = []
        members = set(self.found.groups[group])
        labelled = members & set(self.found.values.get(PAINTING_OWN, {}))
        if labelled != members:
            notes.append(
                f"painting: {len(members) - len(labelled)} of {len(members)} cases have no label map (--labels)"
            )
        elif PAINTING_TRAINING not in self.found.values:
            notes.append(
                f"{PAINTING_TRAINING}: {NOTHING} because no training cases with label maps are known (--train-real)"
            )
        what = (
            "was made from other label maps: the painting rows lack what those maps hold, and faithfulness is measured "
            "against another map"
        )
        notes += [f"{name} {what}" for name in self.facts.other_maps]
        return notes

    def distribution(self, group: str, extractor: str) -> Table:
        """Distribution metrics with both floors and interval."""
        about = self.facts.extractors[extractor]
        planes = [plane for plane in PLANES if (group, FLOOR, f"fid_{plane}", extractor) in self.index]
        columns = [
            Column("system"), DISTRIBUTION["fid"][0],
            Column("FID / floor A", "lower", "1: as near to the references as the real images of the same cases"),
            Column("FID / floor B", "", "1: as near to the references as other training scans; below it imitates them"),
            DISTRIBUTION["kid"][0], DISTRIBUTION["mmd2"][0],
            *(Column(f"slice FID, {p}", "lower", f"{p} slices are the samples") for p in planes),
        ]  # fmt: skip
        metrics = ["kid", "mmd2", *(f"fid_{plane}" for plane in planes)]
        rows = []
        for row in [*FLOORS, *self.painters(), *self.systems()]:
            name = FLOORS.get(row) or self.title(group, row)
            fid = self.spread(group, row, "fid", extractor)
            rows.append([Cell(name), fid, *self._ratios(group, row, extractor),
                         *(self.spread(group, row, metric, extractor) for metric in metrics)])  # fmt: skip
        sides = self.facts.sides.get(group)
        why = self.facts.without.get(group, "nothing was measured")
        few = next((self.index[group, FLOOR, f"fid_{plane}", extractor].draws for plane in planes), 0)
        notes = [*how_drawn(sides, why, few), *marks(rows),
                 *exposures(self.found, group, about["sha256"], extractor, sides), network_note(about),
                 which(self.found, group)]  # fmt: skip
        return Table(f"Distribution, {extractor}, {self.group(group)}", columns, rows, tuple(notes))

    def absent(self, group: str, extractor: str, why: str) -> Table:
        """A network that is not there: dashes and the reason, never another network's numbers."""
        columns = [Column("system"), *(column for column, _ in DISTRIBUTION.values())]
        names = [*FLOORS.values(), *self.painters(), *(self.title(group, row) for row in self.systems())]
        rows = [[Cell(name), *(Cell(NOTHING) for _ in DISTRIBUTION)] for name in names]
        return Table(f"Distribution, {extractor}, {self.group(group)}", columns, rows, (f"{NOTHING} because {why}",))

    def faithfulness(self, group: str) -> Table:
        """What a segmentation network finds in synthetic and in real volumes, against the label map."""
        metrics = dict(FAITHFUL)
        for g, _, metric, _ in self.index:
            if g == group and metric.startswith("dice of class"):
                number = metric.removeprefix("dice of class ")
                name = self.facts.class_names.get(int(number), f"class {number}")
                metrics[metric] = Column(f"Dice of {name}", "higher")
        rows = [
            [Cell(self.title(group, row)), *(self.mean(group, row, metric) for metric in metrics)]
            for row in [FLOOR, *self.painters(), *self.systems()]
        ]
        notes = ["the judge's segmentation against the label map that a volume was made from (real images: their own "
                 "map); higher than on real images is no merit, only easier to find"]  # fmt: skip
        if self.facts.judge is None:
            notes = [f"{NOTHING} because {self.facts.reasons.get('judge', 'no judge was given')}"]
        else:
            spacing = " × ".join(f"{size:g}" for size in self.facts.judge.spacing)
            members = self.found.groups[group]
            notes.append(f"judge: {self.facts.judge.name}, at {spacing} mm, {_whose(self.facts.judge, members)}")
            exposure = self.found.judged_exposure(group)
            notes += [] if exposure is None else [exposure.text(self.facts.judge.name)]
        notes += [OVER_CASES, *self._missing_paintings(group), *marks(rows), which(self.found, group)]
        return Table(f"Faithfulness, {self.group(group)}", [Column("system"), *metrics.values()], rows, tuple(notes))

    def consistency(self, group: str) -> Table:
        """Differences of adjacent slices against the real ones, in three planes."""
        rows = [
            [Cell(self.title(group, row)), *(self.mean(group, row, metric) for metric in CONSISTENT)]
            for row in [*self.painters(), *self.systems()]
        ]
        notes = (f"mean absolute difference of adjacent slices, synthetic / real, {OVER_CASES}: 1 is ideal, below is "
                 "smoother than the real image, above rougher", which(self.found, group))  # fmt: skip
        return Table(f"Inter-slice consistency, {self.group(group)}", [Column("system"), *CONSISTENT.values()], rows,
                     notes)  # fmt: skip

    def diversity(self, group: str) -> list[Table]:
        """How far apart the samples of one label map are, where there are several."""
        systems = [row for row in self.systems() if row in self.found.diversity]
        rows = [[Cell(self.title(group, row)), *(self.mean(group, row, m) for m in DIVERSE)] for row in systems]
        notes = (f"{OVER_CASES}; a distance is no merit of its own: white noise has a large one, but hardly any of "
                 "averages over cubes", which(self.found, group))  # fmt: skip
        table = Table(f"Diversity, {self.group(group)}", [Column("system"), *DIVERSE.values()], rows, notes)
        return [table] if rows else []

    def differences(self, group: str, found: Sequence[Difference]) -> list[Table]:
        """Systems against painting and against each other: a row per metric, a column per pair."""
        pairs = list(dict.fromkeys((d.first, d.second) for d in found))
        kinds = list(dict.fromkeys((d.metric, d.extractor) for d in found))
        if not pairs:
            return []
        index = {(d.first, d.second, d.metric, d.extractor): d for d in found}
        rows = [
            [Cell(_heading(*kind).heading), *(self._difference(group, index.get((*pair, *kind))) for pair in pairs)]
            for kind in kinds
        ]
        columns = [Column("metric"), *(Column(f"{first} − {second}") for first, second in pairs)]
        notes = (
            "paired: the same cases (mean ± sample standard deviation, n − 1; p of a two-sided Wilcoxon signed-rank "
            "test), or the same draws (mean [2.5 %, 97.5 %]); nothing is corrected for the number of comparisons",
            f"{NOTHING}: not measured, or by a network that was in the loss of one of the two; a conditional mean has "
            "no PSNR of a case: its MSE is compared",
            which(self.found, group),
        )
        return [Table(f"Differences, {self.group(group)}", columns, rows, notes)]

    # ---- cells

    def mean(self, group: str, row: str, metric: str, *, short: bool = False) -> Cell:
        """A metric of cases, its mean over them with the standard deviation (``short``: without)."""
        score = self.index.get((group, row, metric, ""))
        if score is None:
            return Cell(NOTHING)
        digits = DIGITS.get(metric.split(" of class ")[0], 3)
        spread = "" if short or score.sd is None else f" ± {score.sd:.{digits}f}"
        few = "" if score.n == len(self.found.groups[group]) else f" (n = {score.n})"
        return Cell(f"{score.value:.{digits}f}{spread}{few}{_signs(score)}", score.value, _about(score))

    def spread(self, group: str, row: str, metric: str, extractor: str, *, short: bool = False) -> Cell:
        """A distribution metric, its mean over draws with their range (``short``: without)."""
        score = self.index.get((group, row, metric, extractor))
        if score is None or score.low is None or score.high is None:
            return Cell(NOTHING)
        interval = "" if short else f" [{number(score.low)}, {number(score.high)}]"
        return Cell(f"{number(score.value)}{interval}{_signs(score)}", score.value, _about(score))

    def _ratios(self, group: str, row: str, extractor: str) -> list[Cell]:
        score = self.index.get((group, row, "fid", extractor))
        floors = (None, None) if score is None else (score.floor, score.floor_training)
        if score is None:
            return [Cell(NOTHING) for _ in floors]
        return [Cell(f"{score.value / floor:.2f}{_signs(score)}", score.value / floor) if floor else Cell(NOTHING)
                for floor in floors]  # fmt: skip

    def _difference(self, group: str, item: Difference | None) -> Cell:
        if item is None:
            return Cell(NOTHING)
        if item.low is not None and item.high is not None:
            return Cell(f"{number(item.value)} [{number(item.low)}, {number(item.high)}]", item.value)
        digits = DIGITS.get(item.metric, 3)
        p = "p < 0.001" if (item.p or 0) < 0.001 else f"p = {item.p:.3f}"
        few = "" if item.n == len(self.found.groups[group]) else f", n = {item.n}"
        return Cell(f"{item.value:+.{digits}f} ± {item.sd:.{digits}f} ({p}{few})", item.value)


def _signs(score: Score) -> str:
    return (DAGGER if score.in_loss else "") + (DOUBLE if score.seen else "")


def _about(score: Score) -> str:
    return DAGGER_NOTE if score.in_loss else ""


def _heading(metric: str, extractor: str) -> Column:
    if not extractor:
        column = (PAIRED | FAITHFUL)[metric]
        return Column(column.title, column.better)
    name = DISTRIBUTION[metric][0].title if metric in DISTRIBUTION else f"FID of {metric.removeprefix('fid_')} slices"
    return Column(f"{name}, {extractor}", "lower")


def _whose(judge: JudgeFacts, cases: Sequence[str]) -> str:
    """The judges' files, and which cases each of them judges."""
    second = len(judge.seconded & set(cases))
    if not second:
        return f"SHA-256 {judge.sha256}"
    if second == len(cases):
        return f"SHA-256 {judge.second}, because the first judge was trained on the patients of these cases"
    return (
        f"SHA-256 {judge.sha256}; for {second} of the {len(cases)} cases, on whose patients it was trained, the second "
        f"judge, SHA-256 {judge.second}"
    )
