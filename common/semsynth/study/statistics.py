"""What a study's arms are worth: differences between arms, over patients and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from .compare import LEAST, POWER, Differences, p_values
from .scores import better

Values = NDArray[np.float64]
DRAWS = 10_000
_AT_ONCE = 2_000_000  # numbers that are drawn at once


@dataclass(frozen=True)
class Trained:
    """The segmenters of one arm, tested.

    Attributes:
        cases: number of labelled patients, as text, or ``all``.
        arm: name of the arm.
        scores: seed → metric → case → value; NaN or infinity where there is none.
    """

    cases: str
    arm: str
    scores: Mapping[int, Mapping[str, Mapping[str, float]]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order."""
        return tuple(sorted(self.scores))

    def values(self, metric: str, cases: Sequence[str]) -> Values:
        """``(seeds, cases)``."""
        return np.array(
            [[self.scores[seed].get(metric, {}).get(case, math.nan) for case in cases] for seed in self.seeds],
            dtype=np.float64,
        )

    def tested(self, metric: str) -> set[str]:
        """The cases that some seed has a value of, finite or not."""
        return {case for scores in self.scores.values() for case in scores.get(metric, {})}

    def cases_of(self, metric: str) -> set[str]:
        """The cases that all seeds have a finite value of."""
        return {case for case in self.tested(metric) if np.isfinite(self.values(metric, [case])).all()}

    def missing(self, metric: str, cases: Sequence[str]) -> int:
        """How many values of these cases, one for each seed, are not finite."""
        return int((~np.isfinite(self.values(metric, cases))).sum())


@dataclass(frozen=True)
class Contrast(Differences):
    """The difference of two arms in one metric.

    Attributes:
        arm, against: ``(cases, arm)`` each; the difference is of the first less the second.
        metric: its name.
        patients: in order.
        delta: mean difference of each patient, over scans and seeds ``(N,)``.
        low, high: 95 % interval of the mean difference, over patients and seeds (:func:`interval`); None: there is
            none.
        p, p_better: two-sided, and one-sided for better values of the first arm (Wilcoxon, over patients).
        p_holm: ``p`` corrected for all contrasts that are looked at together; None for the primary contrast.
        se_seeds: standard error of the difference that comes from the seeds; 0 where each arm has one.
        free: degrees of freedom of the interval.
        seeds: number of seeds of each arm.
        left_out: cases without a finite value with some seed of one of the two.
        lost: number of an arm's values (a case with a seed each) that are not finite, by the number of its seeds.
    """

    arm: tuple[str, str]
    against: tuple[str, str]
    metric: str
    patients: tuple[str, ...]
    delta: Values
    low: float | None
    high: float | None
    p: float | None
    p_better: float | None
    p_holm: float | None
    se_seeds: float
    free: float
    seeds: tuple[int, int]
    left_out: tuple[str, ...]
    lost: tuple[float, float]

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that 80 of 100 such studies would show, at p = 0.05.

        ``(t(0.975) + t(0.8)) · se`` with :attr:`free` degrees of freedom, where ``se² = sd²/n + se_seeds²``. Of few
        patients and seeds it is rough.
        """
        n = len(self.delta)
        if not self.sd:
            return None
        se = math.sqrt(self.sd**2 / n + self.se_seeds**2)
        return float((t.ppf(0.975, self.free) + t.ppf(POWER, self.free)) * se)

    @property
    def verdict(self) -> str:
        """What the interval says: ``better``, ``worse``, ``no evidence``, ``no interval`` or ``unequal``.

        ``unequal``: one of the two lacks more values than the other, so that what is left favours it.
        """
        if self.lost[0] != self.lost[1]:
            return "unequal"
        if self.low is None or self.high is None:
            return "no interval"
        if self.low <= 0 <= self.high:
            return "no evidence"
        return "better" if (self.difference > 0) == (self.better != "lower") else "worse"


def contrast(
    arm: Trained, against: Trained, metric: str, people: Mapping[str, str], *, draws: int = DRAWS, seed: int = 0
) -> Contrast:
    """Compare two arms in one metric.

    Cases that lack a finite value with any seed of either arm are left out. A patient with several scans counts once,
    with their mean.

    Args:
        arm, against: the two.
        metric: such as ``dice``.
        people: case → patient.
        draws, seed: number of draws, and seed, of the bootstrap.

    Examples:
        >>> cases = [f"P{i}" for i in range(12)]
        >>> def trained(arm, gain):  # two seeds of an arm, each tested on the same scans
        ...     scores = {"dice": {case: 0.7 + gain + 0.01 * i for i, case in enumerate(cases)}}
        ...     return Trained("16", arm, {0: scores, 1: scores})
        >>> found = contrast(trained("M", 0.05), trained("R", 0.0), "dice", {case: case for case in cases})
        >>> round(found.difference, 3), found.gained()
        (0.05, (12, 0))
    """
    every = sorted(arm.tested(metric) | against.tested(metric))
    both = sorted(arm.cases_of(metric) & against.cases_of(metric))
    lost = tuple(side.missing(metric, every) / len(side.seeds) for side in (arm, against))
    patients = tuple(dict.fromkeys(people.get(case, case) for case in both))
    first, second = (by_patient(side.values(metric, both), both, patients, people) for side in (arm, against))
    delta = first.mean(axis=0) - second.mean(axis=0)
    delta = np.round(delta, 12)
    paired = arm.seeds == against.seeds
    low, high = interval(first, second, paired=paired, draws=draws, seed=seed)
    p, p_better = p_values(delta, better(metric))
    free = _degrees(delta, _seed_means(first, second, paired))
    return Contrast(
        (arm.cases, arm.arm), (against.cases, against.arm), metric, patients, delta, low, high, p, p_better, None,
        _standard_error(first, second, paired), free, (len(first), len(second)),
        tuple(case for case in every if case not in set(both)), (lost[0], lost[1]),
    )  # fmt: skip


def interval(
    first: Values, second: Values, *, paired: bool = True, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean difference of two arms, by a bootstrap over patients and seeds.

    Each draw takes patients with replacement (the same ones of both arms, which were tested on the same scans), with
    the difference of the arms' means over seeds, and, independently, seeds, with their means over patients: what a seed
    does to single patients is part of the former already. Trainings of one seed begin with the same weights, so that
    arms of the same seeds are compared seed by seed. Draws of n values have a variance that is (n − 1)/n of the values'
    own; deviations are widened by √(n/(n − 1)) for that, those between patients as well as those between seeds.
    Percentiles are those of a t distribution (as in "expanded percentile intervals": Hesterberg, What Teachers Should
    Know About the Bootstrap, The American Statistician 69, 2015), whose degrees of freedom follow from both spreads by
    Welch's and Satterthwaite's formula. ``ci/interval_coverage.py`` measures how often it covers the truth. One seed of
    an arm says nothing of how far its trainings differ: the interval is then about this training alone.

    Args:
        first, second: ``(seeds, patients)``; the number of seeds may differ where they are not paired.
        paired: True where both arms have the same seeds, in the same order.
        draws: with replacement.
        seed: seed of the draws.

    Returns:
        Both ends; None for fewer than :data:`semsynth.study.compare.LEAST` patients, or without any spread.
    """
    n = first.shape[1]
    delta = first.mean(axis=0) - second.mean(axis=0)
    sides = _seed_means(first, second, paired)
    if n < LEAST or not max(np.ptp(delta), *map(np.ptp, sides)) > 1e-12:
        return None, None
    random = np.random.default_rng(seed)
    centre = float(delta.mean())
    wide = centre + _widened(n) * (delta - centre)
    means = []
    at_once = max(1, _AT_ONCE // max(n, len(first), len(second)))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        chosen = random.integers(n, size=(count, n))
        total = wide[chosen].mean(axis=1)
        for side in sides:  # (seeds,), the means over patients
            k = len(side)
            apart = _widened(k) * (side - side.mean())
            total = total + apart[random.integers(k, size=(count, k))].mean(axis=1)
        means.append(total)
    tail = float(norm.cdf(-t.ppf(0.975, _degrees(delta, sides))))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def corrected(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts with two-sided p-values corrected for their number (Holm, within each metric)."""
    found = list(contrasts)
    for metric in dict.fromkeys(c.metric for c in contrasts):
        places = [i for i, c in enumerate(found) if c.metric == metric and c.p is not None]
        if places:
            adjusted = multipletests([found[i].p for i in places], method="holm")[1]
            for i, p in zip(places, adjusted, strict=True):
                found[i] = replace(found[i], p_holm=float(p))
    return found


def by_patient(values: Values, cases: Sequence[str], patients: Sequence[str], people: Mapping[str, str]) -> Values:
    """``(seeds, cases)`` → ``(seeds, patients)``, the mean of each patient's scans."""
    owners = np.array([patients.index(people.get(case, case)) for case in cases], dtype=int)
    columns = [values[:, owners == i].mean(axis=1) for i in range(len(patients))]
    return np.stack(columns, axis=1) if columns else np.zeros((len(values), 0))


def _seed_means(first: Values, second: Values, paired: bool) -> list[Values]:
    """What differs between seeds: the arms' differences, or each arm's means where they have other seeds."""
    sides = [first.mean(axis=1), second.mean(axis=1)]
    return [sides[0] - sides[1]] if paired else sides


def _degrees(delta: Values, sides: Sequence[Values]) -> float:
    """Degrees of freedom of the sum of what differs between patients and between seeds (Welch, Satterthwaite)."""
    parts = [(side.var(ddof=1) / len(side), len(side) - 1) for side in (delta, *sides) if len(side) > 1]
    total, rest = sum(variance for variance, _ in parts), sum(variance**2 / free for variance, free in parts)
    return float(total**2 / rest) if rest > 0 else math.inf


def _standard_error(first: Values, second: Values, paired: bool) -> float:
    """Of the mean difference, as far as it comes from the seeds."""
    if not first.size or not second.size:
        return 0.0
    squares = [side.var(ddof=1) / len(side) for side in _seed_means(first, second, paired) if len(side) > 1]
    return math.sqrt(float(sum(squares)))


def _widened(n: int) -> float:
    return math.sqrt(n / (n - 1)) if n > 1 else 0.0
