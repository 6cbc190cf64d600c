"""Two segmenters on the same cases: what the difference is, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm, t, wilcoxon

from ..errors import InputError
from ..limits import check_number
from ..seeds import checked_seed
from ..texts import counted
from .scores import Better, Scores, better, mean_of

Values = NDArray[np.float64]
Verdict = Literal["better", "worse", "other", "no evidence", "unequal", "no interval"]
LEAST = 5
"""Patients for an interval: of fewer a bootstrap has too few different draws."""
POWER = 0.8
_AT_ONCE = 1_000_000  # numbers that are drawn at once
_SAME = 1e-9  # of the largest value: smaller differences come from rounding


class Differences:
    """What follows from the patients' differences alone.

    Attributes:
        metric: its name.
        delta: difference of each patient ``(N,)``.
    """

    metric: str
    delta: Values

    @property
    def better(self) -> Better:
        """Which values are good."""
        return better(self.metric)

    @property
    def difference(self) -> float:
        """Mean over patients."""
        return float(self.delta.mean()) if len(self.delta) else math.nan

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1) of the patients' differences; None for one patient."""
        if len(self.delta) < 2:
            return None
        return float(self.delta.std(ddof=1)) if np.ptp(self.delta) else 0.0

    @property
    def effect(self) -> float | None:
        """Effect size: mean by standard deviation of the differences (Cohen's d_z); None without spread."""
        return self.difference / self.sd if self.sd else None

    def gained(self) -> tuple[int, int]:
        """How many patients have better scores than with the baseline, and how many worse (or higher, and lower)."""
        sign = -1 if self.better == "lower" else 1
        return int((sign * self.delta > 0).sum()), int((sign * self.delta < 0).sum())


@dataclass(frozen=True)
class Paired(Differences):
    """One metric of two segmenters on the same cases.

    Attributes:
        metric: its name.
        cases: in order, each with values of both.
        patients: patients of the cases; a patient with several scans counts once, with their mean.
        scores, baseline: values of the cases.
        left_out: case → its two values, one of which is not finite: such a case is left out on both sides.
        lost: number of cases without a value (or a class) in the scores, and in the baseline, where the other has it.
        delta: difference (scores less baseline) of each patient.
        low, high: 95 % interval of the mean difference, see :func:`interval`; None where there is none.
        p: two-sided p-value, see :func:`p_values`; None for fewer than two patients.
        p_better: one-sided, for better scores than the baseline's; None where it is not known which are better.
    """

    metric: str
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    scores: Values
    baseline: Values
    left_out: Mapping[str, tuple[float, float]]
    lost: tuple[int, int]
    delta: Values
    low: float | None
    high: float | None
    p: float | None
    p_better: float | None

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that so many patients show in 80 of 100 such comparisons, at p = 0.05.

        For a paired t-test, from the spread of the differences that were found; a usual approximation:
        (t(0.975) + t(0.8)) sd / √n. Of few patients it is rough, as their spread is.
        """
        n = len(self.delta)
        return None if not self.sd else float((t.ppf(0.975, n - 1) + t.ppf(POWER, n - 1)) * self.sd / math.sqrt(n))

    @property
    def verdict(self) -> Verdict:
        """What the interval says.

        ``unequal`` where one of the two lacks more values than the other, so that what is left favours it; ``other``
        where the two differ, and it is not known which is better.
        """
        if self.lost[0] != self.lost[1]:
            return "unequal"
        if self.low is None or self.high is None:
            return "no interval"
        if self.low <= 0 <= self.high:
            return "no evidence"
        if not self.better:
            return "other"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Comparison:
    """All metrics of two segmenters.

    Attributes:
        name, baseline: names of the two.
        metrics: each compared.
        unpaired: quantities that are not compared, with the reason, one sentence each.
        draws, seed: number of draws, and seed, of the bootstrap.
    """

    name: str
    baseline: str
    metrics: Sequence[Paired]
    unpaired: Sequence[str]
    draws: int
    seed: int


def compare(
    scores: Scores,
    baseline: Scores,
    patients: Mapping[str, str] | None = None,
    *,
    names: tuple[str, str] = ("new", "baseline"),
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two segmenters on the cases that both have, in every metric that both have.

    The patient is the unit, not the scan: scans of one patient are no independent cases. A case without a finite value
    on one side (a distance to a structure that was not found) is left out of that metric on both sides; where the two
    have several classes, those that both have a value of are averaged.

    Args:
        scores: scores of the segmenter in question.
        baseline: scores that it is compared with.
        patients: case → patient; a case that is not in it is a patient of its own.
        names: names of the two.
        draws: number of draws of the bootstrap, 1000 or more.
        seed: seed of the bootstrap.

    Raises:
        InputError: where they share no metric, no case, or no case with values; for patients of other cases.

    Examples:
        >>> from pathlib import Path
        >>> old = {f"P{i}": 0.70 + 0.010 * i for i in range(12)}
        >>> new = {f"P{i}": 0.74 + 0.012 * i for i in range(12)}
        >>> sides = [Scores(Path(f"{name}.csv"), {"dice": side}, {}) for name, side in (("new", new), ("old", old))]
        >>> dice = compare(*sides).metrics[0]
        >>> round(dice.difference, 3), dice.gained(), dice.verdict
        (0.051, (12, 0), 'better')
    """
    check_number("draws", draws, 1000, 10_000_000)
    checked_seed(seed, "seed")
    metrics = [metric for metric in scores.values if metric in baseline.values]
    if not metrics:
        raise InputError(
            f"{scores.source} has {_few(scores.values)}, {baseline.source} has {_few(baseline.values)}: no metric is "
            "in both; give files of one kind, or rename the columns"
        )
    shared = _cases(scores) & _cases(baseline)
    if not shared:
        raise InputError(
            f"{scores.source} has the cases {_few(_cases(scores))}, {baseline.source} has {_few(_cases(baseline))}: no "
            "case is in both; give scores of the same cases, or rename them"
        )
    if patients is not None and not shared & patients.keys():
        raise InputError(
            f"none of the {len(shared)} cases ({_few(shared)}) is among those whose patient is known "
            f"({_few(patients) or 'none'}); give the datalist of these cases, with 'patient' in its entries"
        )
    known = patients or {}
    whose = {case: ("patient", known[case]) if case in known else ("case", case) for case in shared}
    every = [p for metric in metrics for p in _of_metric(metric, scores, baseline, whose, draws, seed)]
    found = [paired for paired in every if paired.cases]
    if not found:
        raise InputError(f"{scores.source} and {baseline.source}: no case has finite values in both; check the scores")
    unknown = sum(kind == "case" for kind, _ in whose.values())
    notes = _unpaired(scores, baseline, names, [p.metric for p in every if not p.cases], unknown, len(whose))
    return Comparison(*names, found, notes, draws, seed)


def _of_metric(
    metric: str, scores: Scores, baseline: Scores, whose: Mapping[str, tuple[str, str]], draws: int, seed: int
) -> list[Paired]:
    """The comparison of a metric, and of its classes where both have the same."""
    ours, theirs = scores.classes.get(metric, {}), baseline.classes.get(metric, {})
    classes = [name for name in ours if name in theirs]
    if not classes:
        sides = {case: ([a], [b]) for case, a, b in _both(scores.values[metric], baseline.values[metric], whose)}
        return [_paired(metric, sides, whose, draws, seed)]
    together: dict[str, tuple[list[float], list[float]]] = {}
    single = []
    for name in classes:
        both = _both(ours[name], theirs[name], whose)
        for case, a, b in both:
            listed = together.setdefault(case, ([], []))
            listed[0].append(a)
            listed[1].append(b)
        single.append(_paired(f"{metric} {name}", {c: ([a], [b]) for c, a, b in both}, whose, draws, seed))
    return [_paired(metric, together, whose, draws, seed), *single]


def _both(
    ours: Mapping[str, float], theirs: Mapping[str, float], whose: Mapping[str, object]
) -> list[tuple[str, float, float]]:
    return [(case, ours[case], theirs[case]) for case in sorted(whose) if case in ours and case in theirs]


def _paired(
    metric: str, sides: Mapping[str, tuple[list[float], list[float]]], whose: Mapping[str, tuple[str, str]],
    draws: int, seed: int,
) -> Paired:  # fmt: skip
    """Of each case the values of the classes on both sides."""
    values: dict[str, tuple[float, float]] = {}
    left_out: dict[str, tuple[float, float]] = {}
    lost = [0, 0]
    for case, (ours, theirs) in sides.items():
        has = [(math.isfinite(a), math.isfinite(b)) for a, b in zip(ours, theirs, strict=True)]
        lost[0] += any(b and not a for a, b in has)
        lost[1] += any(a and not b for a, b in has)
        finite = [i for i, (a, b) in enumerate(has) if a and b]
        means = mean_of(ours[i] for i in finite), mean_of(theirs[i] for i in finite)
        if finite:
            values[case] = means
        else:
            left_out[case] = ours[0], theirs[0]
    scores, baseline = (np.array([pair[i] for pair in values.values()], dtype=np.float64) for i in (0, 1))
    owners = [whose[case] for case in values]
    delta = _by_patient(scores, baseline, owners)
    low, high = interval(delta, draws=draws, seed=seed)
    p, p_better = p_values(delta, better(metric))
    return Paired(
        metric, tuple(values), tuple(name for _, name in owners), scores, baseline, left_out, (lost[0], lost[1]), delta,
        low, high, p, p_better,
    )  # fmt: skip


def _by_patient(scores: Values, baseline: Values, owners: Sequence[tuple[str, str]]) -> Values:
    """Mean difference of each patient, without the last digits that floating point makes up."""
    scans: dict[tuple[str, str], list[float]] = {}
    for owner, difference in zip(owners, scores - baseline, strict=True):
        scans.setdefault(owner, []).append(float(difference))
    delta = np.array([np.mean(own) for own in scans.values()], dtype=np.float64)
    quantum = _SAME * max(1.0, float(np.abs([*scores, *baseline]).max(initial=0.0)))
    rounded: Values = np.round(delta / quantum) * quantum
    return rounded


def interval(delta: Values, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of a mean, by a bootstrap whose percentiles are those of few values.

    The 2.5 and 97.5 % of the draws' means make an interval that is too narrow for few values, for the draws have the
    spread of n values and not of n - 1, and a normal instead of a t distribution. Percentiles further out make up for
    both (Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, "expanded
    percentile interval"). No end lies beyond the values themselves.

    Args:
        delta: ``(N,)``, one per patient.
        draws: with replacement.
        seed: seed of the draws.

    Returns:
        Both ends; None for fewer than :data:`LEAST` values, and for values that are all the same.

    Examples:
        >>> low, high = interval(np.linspace(0.01, 0.05, 12))
        >>> bool(0.01 < low < 0.03 < high < 0.05)
        True
    """
    n = len(delta)
    if n < LEAST or np.ptp(delta) == 0:
        return None, None
    tail = float(norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))
    found = bootstrap(
        (delta,), np.mean, n_resamples=draws, batch=max(1, _AT_ONCE // n), confidence_level=1 - 2 * tail,
        method="percentile", random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def p_values(delta: Values, good: Better = "") -> tuple[float | None, float | None]:
    """Wilcoxon signed-rank test: two-sided, and one-sided for ``good`` values.

    Zeros are left out first: with them SciPy takes a normal approximation, which is too small for few differences.

    Args:
        delta: ``(N,)``, one per patient.
        good: direction of the better differences; ``""``: no one-sided test.

    Returns:
        Both p-values; None for fewer than two values, and the second one without ``good``.

    Examples:
        >>> two_sided, one_sided = p_values(np.linspace(0.01, 0.05, 12), "higher")
        >>> two_sided < 0.001, one_sided < two_sided
        (True, True)
    """
    if len(delta) < 2:
        return None, None
    used = delta[delta != 0]
    if not len(used):
        return 1.0, 1.0 if good else None
    greater, less = (float(wilcoxon(used, alternative=side).pvalue) for side in ("greater", "less"))
    return min(1.0, 2 * min(greater, less)), {"higher": greater, "lower": less, "": None}[good]


def _unpaired(
    scores: Scores, baseline: Scores, names: tuple[str, str], empty: Sequence[str], unknown: int, total: int
) -> list[str]:
    notes = []
    first, second = names
    for own, other, name, against in ((scores, baseline, first, second), (baseline, scores, second, first)):
        alone = [metric for metric in own.values if metric not in other.values]
        notes += [f"only {name} has the metrics {', '.join(alone)}"] if alone else []
        for metric in (metric for metric in own.values if metric in other.values):
            cases = sorted(own.values[metric].keys() - other.values[metric].keys())
            if cases:
                notes.append(
                    f"{metric}: {counted(len(cases), 'case')} not scored in {against}, and left out: {_few(cases)}"
                )
    notes += [f"{metric}: no case has a finite value in both" for metric in empty]
    if unknown:
        notes.append(
            f"{counted(unknown, 'case')} of {total} counted as patients of their own: their patients are unknown "
            "(give --patients DATALIST, with 'patient' in its entries)"
        )
    return notes


def _cases(scores: Scores) -> set[str]:
    return {case for values in scores.values.values() for case in values}


def _few(names: Mapping[str, object] | Sequence[str] | set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")
