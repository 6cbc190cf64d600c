"""Two segmenters on the same cases: what the difference is, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, wilcoxon

from ..errors import InputError
from ..limits import check_number
from ..seeds import checked_seed
from .scores import Scores

Better = Literal["higher", "lower", ""]
Values = NDArray[np.float64]
HIGHER = ("dice", "jaccard", "precision", "recall", "sensitivity", "specificity", "nsd")
LOWER = ("hd", "hd95", "asd", "assd", "masd", "msd", "hausdorff", "distance", "error", "rve")
OVERLAP = ("dice", "jaccard")
"""Metrics that come first."""
LEAST = 5
"""Patients for an interval: of fewer a bootstrap has too few different draws."""
POWER = 0.8
_AT_ONCE = 1_000_000  # numbers that are drawn at once


@dataclass(frozen=True)
class Paired:
    """One metric of two segmenters on the same cases.

    Attributes:
        metric: its name.
        better: which values are good; ``""`` where the name does not tell.
        cases: in order, each with values of both.
        patients: of the cases; a patient with several scans counts once, with their mean.
        scores, baseline: values of the cases.
        left_out: case → why it has no value.
        delta: difference (scores less baseline) of each patient.
        low, high: 95 % interval of the mean difference, by a studentised bootstrap over patients (Efron and Tibshirani,
            An Introduction to the Bootstrap, 1993, section 12.5); None for fewer than :data:`LEAST` patients.
        p: two-sided Wilcoxon signed-rank test over patients; None for one patient.
        p_better: the same, one-sided, for better scores than the baseline's; None where ``better`` is not known.
    """

    metric: str
    better: Better
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    scores: Values
    baseline: Values
    left_out: Mapping[str, str]
    delta: Values
    low: float | None
    high: float | None
    p: float | None
    p_better: float | None

    @property
    def difference(self) -> float:
        """Mean over patients."""
        return float(self.delta.mean())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1) of the patients' differences; None for one patient."""
        return float(self.delta.std(ddof=1)) if len(self.delta) > 1 else None

    @property
    def effect(self) -> float | None:
        """Effect size: mean by standard deviation of the differences (Cohen's d_z); None where that is 0."""
        return self.difference / self.sd if self.sd else None

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that so many patients show in 80 of 100 such comparisons, at p = 0.05.

        For a paired t-test, from the spread of the differences that were found; a usual approximation:
        (t(0.975) + t(0.8)) sd / √n.
        """
        n = len(self.delta)
        return None if not self.sd else float((t.ppf(0.975, n - 1) + t.ppf(POWER, n - 1)) * self.sd / math.sqrt(n))

    @property
    def verdict(self) -> Literal["better", "worse", "other", "no evidence", "too few"]:
        """What the interval says; ``other`` where it is known that they differ, and not which is better."""
        if self.low is None or self.high is None:
            return "too few"
        if self.low <= 0 <= self.high:
            return "no evidence"
        if not self.better:
            return "other"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"

    def gained(self) -> tuple[int, int]:
        """How many patients have better scores than with the baseline, and how many worse (or higher, and lower)."""
        sign = -1 if self.better == "lower" else 1
        return int((sign * self.delta > 0).sum()), int((sign * self.delta < 0).sum())


@dataclass(frozen=True)
class Comparison:
    """All metrics of two segmenters.

    Attributes:
        name, baseline: what the two are called.
        metrics: each compared.
        alone: cases that only one of the two has scores of, by its name.
        empty: metrics without a case that has finite values of both.
        stated: how many of the compared cases say whose scan they are; the others are patients of their own.
        draws, seed: of the bootstrap.
    """

    name: str
    baseline: str
    metrics: Sequence[Paired]
    alone: Mapping[str, Sequence[str]]
    empty: Sequence[str]
    stated: int
    draws: int
    seed: int


def compare(
    scores: Scores,
    baseline: Scores,
    patients: Mapping[str, str] | None = None,
    *,
    names: tuple[str, str] = ("scores", "baseline"),
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two segmenters on the cases that both have, in every metric that both have.

    The patient is the unit, not the scan: scans of one patient are no independent cases. A case without a finite value
    on one side (a distance to a structure that was not found) is left out of that metric on both sides, and named.

    Args:
        scores: of the segmenter in question.
        baseline: what it is compared with.
        patients: case → patient; a case that is not in it is a patient of its own.
        names: what the two are called.
        draws: of the bootstrap, 1000 or more.
        seed: of the bootstrap.

    Raises:
        InputError: where they share no metric, no case, or no case with values.
    """
    check_number("draws", draws, 1000, 10_000_000)
    checked_seed(seed, "seed")
    metrics = sorted((m for m in scores.values if m in baseline.values), key=lambda m: m.split(",")[0] not in OVERLAP)
    if not metrics:
        raise InputError(
            f"{scores.source} has {_few(scores.values)}, {baseline.source} has {_few(baseline.values)}: no metric is "
            "in both; give files of one kind, or rename the columns"
        )
    ours, theirs = (_cases(side) for side in (scores, baseline))
    if not ours & theirs:
        raise InputError(
            f"{scores.source} has the cases {_few(ours)}, {baseline.source} has {_few(theirs)}: no case is in both; "
            "give scores of the same cases, or rename them"
        )
    known = dict(patients or {})
    every = [_paired(metric, scores, baseline, known, draws, seed) for metric in metrics]
    found = [paired for paired in every if paired.cases]
    if not found:
        raise InputError(f"{scores.source} and {baseline.source}: no case has finite values in both; check the scores")
    alone = {names[0]: sorted(ours - theirs), names[1]: sorted(theirs - ours)}
    empty = [paired.metric for paired in every if not paired.cases]
    return Comparison(*names, found, alone, empty, len((ours & theirs) & known.keys()), draws, seed)


def _paired(
    metric: str, scores: Scores, baseline: Scores, patients: Mapping[str, str], draws: int, seed: int
) -> Paired:
    ours, theirs = scores.values[metric], baseline.values[metric]
    shared = sorted(ours.keys() & theirs.keys())
    left_out: dict[str, str] = {}
    for case in shared:
        bad = [f"{side[case]:g} in {source}" for side, source in ((ours, scores.source), (theirs, baseline.source))
               if not math.isfinite(side[case])]  # fmt: skip
        left_out |= {case: " and ".join(bad)} if bad else {}
    cases = [case for case in shared if case not in left_out]
    values, against = (np.array([side[case] for case in cases], dtype=np.float64) for side in (ours, theirs))
    whose = [patients.get(case, case) for case in cases]
    scans: dict[str, list[float]] = {}
    for patient, difference in zip(whose, values - against, strict=True):
        scans.setdefault(patient, []).append(float(difference))
    delta = np.array([np.mean(own) for own in scans.values()], dtype=np.float64)
    better = _better(metric)
    low, high = interval(delta, draws=draws, seed=seed)
    side = {"higher": "greater", "lower": "less"}.get(better)
    return Paired(
        metric, better, tuple(cases), tuple(whose), values, against, left_out, delta, low, high,
        _p_value(delta, "two-sided"), None if side is None else _p_value(delta, side),
    )  # fmt: skip


def interval(delta: Values, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of a mean, by a studentised bootstrap.

    Every draw's mean is divided by its own standard error. With few cases this holds the truth as often as it says; an
    interval of the draws' means alone is too narrow (8 normal values: 88 % instead of 95 %).

    Args:
        delta: ``(N,)``, one per patient.
        draws: with replacement.
        seed: same seed, same interval.

    Returns:
        Both ends; None for fewer than :data:`LEAST` values.
    """
    n = len(delta)
    if n < LEAST:
        return None, None
    mean, error = float(delta.mean()), float(delta.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return mean, mean
    random = np.random.default_rng(seed)
    found: list[Values] = []
    left = draws
    while left:
        count = min(left, max(1, _AT_ONCE // n))
        drawn = delta[random.integers(0, n, (count, n))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        usable = errors > 1e-9 * error  # one patient n times has no spread
        found.append((drawn.mean(axis=1)[usable] - mean) / errors[usable])
        left -= count
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return mean - float(high) * error, mean - float(low) * error


def _p_value(delta: Values, side: str) -> float | None:
    if len(delta) < 2:
        return None
    return float(wilcoxon(delta, alternative=side).pvalue) if delta.any() else 1.0


def _better(metric: str) -> Better:
    words = metric.split(",")[0].split("_")
    if any(word in HIGHER for word in words):
        return "higher"
    return "lower" if any(word in LOWER for word in words) else ""


def _cases(scores: Scores) -> set[str]:
    return {case for values in scores.values.values() for case in values}


def _few(names: Mapping[str, object] | set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")
