"""A study's results: scores of all segmenters, contrasts of arms, and the sentence that follows from them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..texts import in_csv
from .arms import ALL, CONTROL, REAL
from .linked import joined_patients, seen_by_links, without
from .plan import Plan
from .scores import better, read_scores, worst_tenth
from .settings import Study
from .splits import check_linked, read_split
from .statistics import Contrast, Trained, by_patient, contrast, corrected

METRICS = ("dice", "hd95_mm", "asd_mm")
MAIN = METRICS[0]


@dataclass(frozen=True)
class ArmScores:
    """One line of the table of arms, in one metric.

    Attributes:
        cases, arm: its place in the study.
        metric: its name.
        seeds: number of seeds.
        mean: over patients, of the mean over seeds and scans.
        sd_patients: sample standard deviation between patients.
        sd_seeds: between seeds, of the mean over patients; NaN for one.
        worst_tenth: mean of the worst 10 % of the cases, rounded up, averaged over seeds.
        missing: number of values, of a case with a seed each, that are not finite; such cases are in none of the means.
    """

    cases: str
    arm: str
    metric: str
    seeds: int
    mean: float
    sd_patients: float
    sd_seeds: float
    worst_tenth: float
    missing: int


@dataclass(frozen=True)
class Linked:
    """All contrasts again, if linked cases are of one patient.

    Attributes:
        primary, control, others: as of :class:`Findings`.
        left_out: arm → test cases whose patient it has seen then; contrasts of this arm do not have them.
    """

    primary: Sequence[Contrast]
    control: Sequence[Contrast]
    others: Sequence[Contrast]
    left_out: Mapping[tuple[str, str], tuple[str, ...]]


@dataclass(frozen=True)
class Findings:
    """All that a study found.

    Attributes:
        trained: every arm's segmenters with their scores.
        people: case → patient, of the test.
        arms: lines of the table of arms.
        primary: the primary contrast, by metric.
        control: the positive control against R; empty without one.
        others: all other contrasts, corrected for their number.
        linked: the contrasts if linked cases are of one patient; None where the study names none.
    """

    trained: Sequence[Trained]
    people: dict[str, str]
    arms: Sequence[ArmScores]
    primary: Sequence[Contrast]
    control: Sequence[Contrast]
    others: Sequence[Contrast]
    linked: Linked | None = None

    def find(self, cases: str, arm: str) -> Trained | None:
        """The segmenters of an arm."""
        return next((t for t in self.trained if (t.cases, t.arm) == (cases, arm)), None)


def collect(plans: Sequence[Plan]) -> Findings:
    """Read the scores of all segmenters and compare the arms; of several folds, all their cases together.

    The primary contrast stands alone. Secondary are each other arm against R, the primary arm against the painted maps
    and against the other arms with volumes, and the arms of the curve against R of as many cases; their p-values are
    corrected for their number (Holm).
    """
    people: dict[str, str] = {}
    scores: dict[tuple[str, str], dict[int, dict[str, dict[str, float]]]] = {}
    for plan in plans:
        split = read_split(plan.out)
        people |= {case: split["patients"][case] for case in split["test"]}
        for cases, arm, seed in plan.tests():
            values = read_scores(plan.out / "test" / cases / arm / str(seed)).values
            found = scores.setdefault((cases, arm), {}).setdefault(seed, {metric: {} for metric in METRICS})
            for metric in METRICS:
                found[metric] |= {str(case): value for case, value in values[metric].items()}
    study = plans[0].study
    trained = [Trained(cases, arm, of_seeds) for (cases, arm), of_seeds in scores.items()]
    arms = [_line(one, metric, people) for one in trained for metric in METRICS]
    return Findings(trained, people, arms, *_contrasts(study, trained, people), _linked(plans, trained))


def _contrasts(
    study: Study, trained: Sequence[Trained], people: Mapping[str, str],
    left_out: Mapping[tuple[str, str], tuple[str, ...]] | None = None,
) -> tuple[list[Contrast], list[Contrast], list[Contrast]]:  # fmt: skip
    """Primary contrast, positive control and all others; ``left_out``: arm → cases that its contrasts leave out."""
    by_name, out = {(one.cases, one.arm): one for one in trained}, left_out or {}
    first, main = str(study.cases[0]), study.primary

    def contrasts(pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> list[Contrast]:
        found = []
        for metric in METRICS:
            for a, b in pairs:
                cases = {*out.get(a, ()), *out.get(b, ())}
                found.append(contrast(without(by_name[a], cases), without(by_name[b], cases), metric, people))
        return found

    primary = contrasts([((first, main), (first, REAL))])
    has_control = any(arm.name == CONTROL for arm in study.arms)
    control = contrasts([((ALL, REAL), (first, REAL))]) if has_control else []
    return primary, control, corrected(contrasts(_secondary(list(by_name), first, main)))


def _linked(plans: Sequence[Plan], trained: Sequence[Trained]) -> Linked | None:
    study = plans[0].study
    if not study.linked:
        return None
    stated = read_split(plans[0].out)["patients"]
    check_linked(study.linked, stated)  # they may have been named after the data was divided
    people, left_out = joined_patients(stated, study.linked), seen_by_links(plans)
    return Linked(*_contrasts(study, trained, people, left_out), left_out)


def _secondary(
    trained: Sequence[tuple[str, str]], first: str, main: str
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    pairs = [((cases, arm), (cases, REAL)) for cases, arm in trained if arm != REAL and (cases, arm) != (first, main)]
    return pairs + [((first, main), (cases, arm)) for cases, arm in trained
                    if cases == first and arm not in (REAL, main)]  # fmt: skip


def _line(one: Trained, metric: str, people: dict[str, str]) -> ArmScores:
    cases = sorted(one.cases_of(metric))
    values, patients = one.values(metric, cases), tuple(dict.fromkeys(people.get(case, case) for case in cases))
    missing = one.missing(metric, sorted(one.tested(metric)))
    if not cases:
        return ArmScores(one.cases, one.arm, metric, len(values), math.nan, math.nan, math.nan, math.nan, missing)
    own = by_patient(values, cases, patients, people)
    means, of_seeds = own.mean(axis=0), own.mean(axis=1)
    worst = float(np.mean([worst_tenth(row, better(metric)) for row in values]))
    spread, apart = (float(x.std(ddof=1)) if len(x) > 1 else math.nan for x in (means, of_seeds))
    return ArmScores(one.cases, one.arm, metric, len(values), float(means.mean()), spread, apart, worst, missing)


def scores_csv(found: Findings) -> str:
    """Every value: one line per segmenter and case."""
    rows = [
        [one.cases, one.arm, str(seed), in_csv(case), in_csv(found.people.get(case, case)),
         *(repr(one.scores[seed][metric].get(case, math.nan)) for metric in METRICS)]
        for one in found.trained for seed in one.seeds for case in sorted(one.scores[seed][MAIN])
    ]  # fmt: skip
    return _csv(["cases", "arm", "seed", "case", "patient", *METRICS], rows)


def arms_csv(found: Findings) -> str:
    """The table of arms."""
    names = ["cases", "arm", "metric", "seeds", "mean", "sd_patients", "sd_seeds", "worst_tenth", "missing"]
    return _csv(names, [[str(getattr(line, name)) for name in names] for line in found.arms])


def contrasts_csv(found: Findings) -> str:
    """All contrasts."""
    heads = ["role", "cases", "arm", "against_cases", "against", "metric", "patients", "difference", "low", "high",
             "better", "worse", "p_two_sided", "p_better", "p_holm", "effect_size", "se_seeds", "could_show",
             "left_out"]  # fmt: skip
    rows = []
    roles = [("primary", found.primary), ("control", found.control), ("secondary", found.others)]
    if found.linked is not None:
        again = found.linked
        roles += [("linked primary", again.primary), ("linked control", again.control),
                  ("linked secondary", again.others)]  # fmt: skip
    for role, listed in roles:
        for c in listed:
            numbers = [c.difference, c.low, c.high, *c.gained(), c.p, c.p_better, c.p_holm, c.effect, c.se_seeds,
                       c.detectable]  # fmt: skip
            rows.append([role, *c.arm, *c.against, c.metric, str(len(c.patients)),
                         *("" if value is None else repr(value) for value in numbers),
                         in_csv(" ".join(c.left_out))])  # fmt: skip
    return _csv(heads, rows)


def _csv(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return stream.getvalue()
