"""What a number is worth: draws of cases, floors, conditional means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True)
class Draw:
    """One comparison of equally many synthetic and real cases, no patient of which is on both sides.

    Attributes:
        scored: cases whose synthetic volumes are scored, of as many patients.
        reference: cases of other patients, one of each, whose real images they are held against.
        sample: number of the sample of each, modulo their number.
        training: training cases in the same number, of patients that are not in the reference; empty where there are
            too few.
    """

    scored: tuple[str, ...]
    reference: tuple[str, ...]
    sample: int
    training: tuple[str, ...] = ()


VARIETY = 1.5
"""Patients to choose from for each that is drawn: were all taken every time, every draw would be the same."""


def by_patient(cases: Iterable[str], patients: Mapping[str, str] | None) -> dict[str, list[str]]:
    """Patient → cases, both sorted; a case that ``patients`` does not have is a patient of its own."""
    found: dict[str, list[str]] = {}
    for case in sorted(set(cases)):
        found.setdefault((patients or {}).get(case, case), []).append(case)
    return {patient: found[patient] for patient in sorted(found)}


def largest_n(scored: Sequence[str], pool: Sequence[str], patients: Mapping[str, str] | None = None) -> int:
    """How many patients a draw can have on each side with references to choose from (:data:`VARIETY`)."""
    ours, theirs = by_patient(scored, patients).keys(), by_patient(pool, patients).keys()
    common, alone, other = len(ours & theirs), len(ours - theirs), len(theirs - ours)
    # of the common ones x are scored and the rest is left for the reference
    return max(min(x + alone, int((other + common - x) / VARIETY)) for x in range(common + 1))


def make_draws(
    scored: Sequence[str], pool: Sequence[str], n: int, count: int, seed: int,
    patients: Mapping[str, str] | None = None, training: Iterable[str] = (),
) -> list[Draw]:  # fmt: skip
    """Draw ``n`` scored and ``n`` reference cases, without replacement, no patient twice, ``count`` times.

    Patients are drawn, and of each one scan: scans of one patient are no independent samples, and on the two sides they
    would be alike. FID grows as n falls and a bootstrap's duplicates bias it upwards, so every draw has the same n and
    no duplicates.

    Args:
        scored: cases with synthetic volumes; if they are of ``n`` patients, each draw takes one of each.
        pool: cases with real images; those of patients that are drawn as scored are left out.
        n: cases on each side.
        count: number of draws.
        seed: seed of the draws.
        patients: case → patient; a case that is not in it is a patient of its own.
        training: cases of :attr:`Draw.training`, which stays empty where any draw leaves too few.

    Raises:
        InputError: when there are not that many patients.
    """
    ours, theirs = by_patient(scored, patients), by_patient(pool, patients)
    if n < 2 or n > largest_n(scored, pool, patients):
        raise InputError(
            f"distribution metrics need 2 or more synthetic cases and {VARIETY:g} times as many real images of other "
            f"cases to draw from, each of another patient, found {len(ours)} and {len(theirs.keys() - ours.keys())} "
            f"others (n = {n}); give more real images (--real, --train-real) or a smaller --n"
        )
    random = np.random.default_rng(seed)
    outside = [patient for patient in ours if patient not in theirs]
    inside = [patient for patient in ours if patient in theirs]
    # how many may be taken out of the pool without leaving too few
    most = min(len(inside), len(theirs) - math.ceil(VARIETY * n))
    draws = []
    for number in range(count):
        taken = int(np.clip(round(n * len(inside) / len(ours)), max(0, n - len(outside)), min(most, n)))
        chosen = [*_choose(random, inside, taken), *_choose(random, outside, n - taken)]
        side = tuple(_scan(random, ours[patient]) for patient in chosen)
        rest = _choose(random, [patient for patient in theirs if patient not in set(chosen)], n)
        draws.append(Draw(side, tuple(_scan(random, theirs[patient]) for patient in rest), number))
    return _with_training(draws, by_patient(training, patients), patients or {}, seed)


def _with_training(
    draws: Sequence[Draw], training: Mapping[str, list[str]], patients: Mapping[str, str], seed: int
) -> list[Draw]:
    """The draws with as many training cases each, of patients that are not in its reference."""
    random = np.random.default_rng([seed, 1])  # of its own: the other sides are the same with and without
    found = []
    for draw in draws:
        taken = {patients.get(case, case) for case in draw.reference}
        free = [patient for patient in training if patient not in taken]
        if len(free) < len(draw.scored):
            return list(draws)
        chosen = _choose(random, free, len(draw.scored))
        found.append(replace(draw, training=tuple(_scan(random, training[patient]) for patient in chosen)))
    return found


def _choose(random: np.random.Generator, names: Sequence[str], n: int) -> list[str]:
    return [names[i] for i in sorted(random.choice(len(names), size=n, replace=False))] if n else []


def _scan(random: np.random.Generator, scans: Sequence[str]) -> str:
    return scans[int(random.integers(len(scans)))] if len(scans) > 1 else scans[0]


@dataclass(frozen=True)
class Interval:
    """Mean over draws and the range that 95 % of them lie in."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: NDArray[np.float64] | Sequence[float]) -> Interval:
        """Mean, 2.5 % and 97.5 % quantile."""
        low, high = np.quantile(np.asarray(values, dtype=np.float64), [0.025, 0.975])
        return Interval(float(np.mean(values)), float(low), float(high))


Matrix = Callable[[str, int], NDArray[np.floating]]
"""Case and sample → feature rows ``(S, F)``, one row for a 3D network."""


def over_draws(
    rows: Mapping[str, Matrix], real: Matrix, draws: Sequence[Draw], metric: Callable[..., float]
) -> dict[str, NDArray[np.float64]]:
    """A distribution metric of several systems over the same draws.

    Args:
        rows: per system its features; the floor is the real images under a name of their own.
        real: features of real images.
        draws: draws from :func:`make_draws`.
        metric: ``(y_pred, y)`` feature matrices → number.

    Returns:
        Per system one value per draw, in their order: differences between systems are paired.
    """
    values: dict[str, list[float]] = {name: [] for name in rows}
    for draw in draws:
        reference = np.concatenate([real(case, 0) for case in draw.reference])
        for name, features in rows.items():
            scored = np.concatenate([features(case, draw.sample) for case in draw.scored])
            values[name].append(float(metric(scored, reference)))
    return {name: np.asarray(found) for name, found in values.items()}


def conditional_mse(samples: NDArray[np.floating], real: NDArray[np.floating]) -> tuple[float, float]:
    """Mean squared error of the mean of infinitely many samples, from a few of them.

    The error of the mean of n samples is a + b/n: a is that of the conditional mean, b the variance of single samples.
    With all subsets of n of the S samples averaged, the points over 1/n lie on a line, so the fit has a closed form: b
    is the mean unbiased variance, and a = error of the mean of all S - b/S.

    Args:
        samples: ``(S, H, W, D)``, S of 2 or more.
        real: ``(H, W, D)``.

    Returns:
        a and b. With few samples a can come out negative where it is close to 0.
    """
    count = len(samples)
    if count < 2:
        raise InputError(f"a conditional mean needs 2 or more samples per label map, got {count}")
    total, squares = np.zeros(real.shape), np.zeros(real.shape)
    for sample in samples:  # one copy in float64 at a time
        total += sample
        squares += np.square(sample, dtype=np.float64)
    mean = total / count
    b = float(np.maximum(squares / count - np.square(mean), 0).mean()) * count / (count - 1)
    return float(np.square(mean - real).mean()) - b / count, b


def pairwise_distance(samples: NDArray[np.floating], *, block: int = 1) -> float:
    """Root mean square difference of two samples of one label map, over all pairs and voxels.

    Twice the unbiased variance over samples is the mean squared difference of a pair, so no pair has to be formed.

    Args:
        samples: ``(S, H, W, D)``, S of 2 or more.
        block: samples are first averaged over cubes of this many voxels along each axis (as many as an axis has): noise
            averages out, brightness and contrast do not.

    Raises:
        InputError: for fewer than 2 samples.
    """
    if len(samples) < 2:
        raise InputError(f"a distance between samples needs 2 or more per label map, got {len(samples)}")
    sizes = [min(block, length) for length in samples.shape[1:]]
    cut = [slice(None, length // size * size) for length, size in zip(samples.shape[1:], sizes, strict=True)]
    split = [part for length, size in zip(samples.shape[1:], sizes, strict=True) for part in (length // size, size)]
    total = squares = np.zeros(split[::2])
    for sample in samples:  # one copy in float64 at a time
        mean = sample[tuple(cut)].astype(np.float64).reshape(split).mean(axis=(1, 3, 5))
        total, squares = total + mean, squares + mean**2
    count = len(samples)
    variance = np.maximum(squares / count - (total / count) ** 2, 0).mean() * count / (count - 1)
    return float(np.sqrt(2 * variance))
