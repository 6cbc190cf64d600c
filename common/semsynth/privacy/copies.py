"""From likeness to copies: scores against held-out scans, a threshold of a stated false-positive rate, and counts.

A volume's score at a level is how much more alike it is to its nearest training scan than to its nearest held-out scan
(the distance-to-closest-record ratio, as a difference of transformed likenesses), so that a volume that is like
all scans, because it is smooth, is not more suspicious for that. Real scans of patients in neither list give the
score's distribution where nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .likeness import Pair

DECISIVE = ("image", "patch", "texture")
"""Levels that decide; all others are shown beside them."""
FALSE_POSITIVES = 0.05
SURE = 0.05
"""Volumes expected by chance, in the whole set, at a score from which one volume alone is a copy."""
COPIED_TEXTURE = 0.5
"""Partial correlation with the scan of its own map, given that map, from which a volume counts as a copy of it.

A quarter of the variance that the map leaves open; a scan has 1 with itself."""
TAIL = 0.25
DRAWS = 1000
_LEAST_SPREAD = 1e-3


class Sides(NamedTuple):
    """Likeness to the nearest training scan and to the nearest held-out scan, and which scans these are."""

    train: float
    heldout: float
    scan: int
    other: int


Levels = Mapping[str, Sides]


def sides_of(pairs: Sequence[Pair], training: NDArray[np.bool_], without: Sequence[int] = ()) -> dict[str, Sides]:
    """The nearest scan of each side, at each level of :data:`DECISIVE` that the pairs have.

    Args:
        pairs: pairs of one volume.
        training: True for scans that the generator was trained on.
        without: scans that do not count.
    """
    found = {}
    for level in DECISIVE:
        best: dict[bool, tuple[float, int]] = {}
        for pair in pairs:
            value = float(getattr(pair, level))
            side = bool(training[pair.scan])
            if pair.scan not in without and math.isfinite(value) and value > best.get(side, (-math.inf, 0))[0]:
                best[side] = (value, pair.scan)
        if len(best) == 2:
            found[level] = Sides(best[True][0], best[False][0], best[True][1], best[False][1])
    return found


def scaled(level: str, value: float) -> float:
    """A likeness on a scale whose differences mean the same everywhere.

    Fisher's z of correlations; for Dice and cosine similarity the negative logarithm of the distance, so that a
    difference is the logarithm of a ratio of distances.
    """
    if level in DECISIVE:
        return math.atanh(min(max(value, -0.99), 0.9995))
    return -math.log(max(1 - value, 1e-4))


def score(level: str, sides: Sides) -> float:
    """How much nearer the nearest training scan is than the nearest held-out scan."""
    return scaled(level, sides.train) - scaled(level, sides.heldout)


@dataclass(frozen=True)
class Calibration:
    """What real scans of other patients reach, and the threshold.

    Attributes:
        rate: share of real scans above the threshold, stated beforehand.
        centre: level → (median score, median likeness) of the real scans.
        spread: level → their robust standard deviations.
        null: margins of the real scans, in their order.
        threshold: margin from which a volume is flagged.

    Examples:
        >>> def found(train, heldout):  # likeness to the nearest training scan and to the nearest held-out scan
        ...     return {"image": Sides(train, heldout, 0, 1)}
        >>> random = np.random.default_rng(0)
        >>> calibration = Calibration.of([found(*random.normal(0.3, 0.05, 2)) for _ in range(40)], 0.05, ["image"])
        >>> [calibration.margin(found(train, 0.3)) > calibration.threshold for train in (0.9, 0.3)]
        [True, False]
    """

    rate: float
    centre: Mapping[str, tuple[float, float]]
    spread: Mapping[str, tuple[float, float]]
    null: NDArray[np.float64]
    threshold: float

    @staticmethod
    def of(real: Sequence[Levels], rate: float = FALSE_POSITIVES, levels: Sequence[str] = DECISIVE) -> Calibration:
        """Fit to real scans.

        Raises:
            InputError: where there are too few of them for the rate.
        """
        check_rate(len(real), rate)
        centre, spread = {}, {}
        for level in levels:
            values = [
                (score(level, found[level]), scaled(level, found[level].train)) for found in real if level in found
            ]
            if len(values) == len(real):
                table = np.array(values)
                middle = np.median(table, axis=0)
                wide = 1.4826 * np.median(np.abs(table - middle), axis=0)
                centre[level] = (float(middle[0]), float(middle[1]))
                spread[level] = (max(float(wide[0]), _LEAST_SPREAD), max(float(wide[1]), _LEAST_SPREAD))
        empty = Calibration(rate, centre, spread, np.zeros(0), math.nan)
        null = np.array([empty.margin(found) for found in real])
        return Calibration(rate, centre, spread, null, quantile(null, rate))

    def margin(self, found: Levels, levels: Sequence[str] | None = None) -> float:
        """How far a volume lies above real scans, in standard deviations: of its most suspicious level.

        At a level both count, the score and the likeness itself: the smaller one.
        """
        return max((self.at(level, found[level]) for level in levels or self.centre
                    if level in found and level in self.centre), default=-math.inf)  # fmt: skip

    def at(self, level: str, sides: Sides) -> float:
        """The margin at one level."""
        values = (score(level, sides), scaled(level, sides.train))
        return min((v - c) / s for v, c, s in zip(values, self.centre[level], self.spread[level], strict=True))

    def expected(self, margin: float, count: int) -> float:
        """Volumes expected by chance among ``count`` at such a margin or above.

        An exponential tail above the upper quarter of the real scans, whose rate is only known from those in it:
        heavier than an exponential, and the more so the fewer they are.
        """
        start = quantile(self.null, TAIL)
        above = self.null[self.null > start] - start
        if not len(above):
            return float(count) if margin <= start else math.nan
        if margin <= start:
            return float(count * (self.null >= margin).mean())
        beyond = (margin - start) / max(float(above.mean()), 1e-6)
        return float(count * TAIL * (1 + beyond / len(above)) ** -len(above))


def check_rate(count: int, rate: float) -> None:
    """Refuse a false-positive rate that so many real scans cannot carry.

    Raises:
        InputError: below 1 / ``count``, or no rate.

    Examples:
        >>> check_rate(40, 0.05)  # 40 real scans can carry a rate of one in twenty
    """
    if not 0 < rate <= 0.5:
        raise InputError(f"--false-positives must be above 0 and at most 0.5, got {rate:g}")
    if count * rate < 1:
        raise InputError(
            f"{count} real scans cannot carry a false-positive rate of {rate:g}: give {math.ceil(1 / rate)} or more in "
            f"--heldout and --train, or --false-positives {1 / max(count, 2):.2g} or more"
        )


def quantile(values: NDArray[np.float64], rate: float) -> float:
    """The value that a share of at most ``rate`` lies above."""
    return float(np.quantile(values, 1 - rate, method="higher"))


class Judged(NamedTuple):
    """What was decided of one volume.

    Attributes:
        margin: see :meth:`Calibration.margin`.
        expected: volumes of the set that are expected by chance at this margin.
        flagged: at or above the threshold.
        sure: so far above it that no such volume is expected in the whole set.
        of_map: True where it copies the texture of the scan whose map it was drawn of.
        scan: the training scan that it is nearest to, at its most suspicious level.
        level: the most suspicious level.
    """

    margin: float
    expected: float
    flagged: bool
    sure: bool
    of_map: bool
    scan: int
    level: str

    @property
    def copy(self) -> bool:
        """Whether it counts as a copy."""
        return self.flagged or self.of_map


def judge(calibration: Calibration, found: Levels, count: int, source: Pair | None = None) -> Judged:
    """Decide on one volume.

    Args:
        calibration: calibration of the real scans.
        found: the volume's likeness, without the scan of its own map.
        count: number of volumes in the set.
        source: the pair with the scan of its own map, where it was drawn of one.

    Examples:
        >>> def found(train, heldout):  # likeness to the nearest training scan and to the nearest held-out scan
        ...     return {"image": Sides(train, heldout, 0, 1)}
        >>> random = np.random.default_rng(0)
        >>> calibration = Calibration.of([found(*random.normal(0.3, 0.05, 2)) for _ in range(40)], 0.05, ["image"])
        >>> judge(calibration, found(0.95, 0.3), count=10).copy, judge(calibration, found(0.7, 0.7), count=10).copy
        (True, False)
    """
    margin = calibration.margin(found)
    levels = [level for level in calibration.centre if level in found]
    level = max(levels, key=lambda name: calibration.at(name, found[name]), default="")
    expected = calibration.expected(margin, count)
    flagged = margin >= calibration.threshold
    of_map = source is not None and source.texture >= COPIED_TEXTURE
    scan = source.scan if of_map and source is not None else found[level].scan if level else -1
    return Judged(margin, expected, flagged, flagged and expected <= SURE, of_map, scan, "texture" if of_map else level)


@dataclass(frozen=True)
class Count:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """``12 (8 to 17)``."""
        return f"{self.value:.0f} ({self.low:.0f} to {self.high:.0f})"


@dataclass(frozen=True)
class Counts:
    """How many copies there are.

    Attributes:
        volumes: number of them.
        flagged: volumes that count as copies, as they are.
        by_chance: volumes that would be flagged if there were no copy.
        copies: N_copies, the flagged ones less those expected by chance.
        copied: N_mem, training scans that a flagged volume is nearest to.
        sure: volumes each of which is a copy by itself.
    """

    volumes: int
    flagged: int
    by_chance: float
    copies: Count
    copied: Count
    sure: int


def count_copies(
    judged: Sequence[Judged], groups: Sequence[str], calibration: Calibration, people: Sequence[str], *, seed: int = 0
) -> Counts:
    """Count copies, with intervals over real patients and over groups of volumes.

    Args:
        judged: every volume.
        groups: groups of the volumes, such as the case that a map came from: they are drawn together.
        calibration: calibration of the real scans.
        people: patient of each real scan of the calibration.
        seed: seed of the bootstrap.

    Examples:
        >>> def found(train, heldout):  # likeness to the nearest training scan and to the nearest held-out scan
        ...     return {"image": Sides(train, heldout, 0, 1)}
        >>> random = np.random.default_rng(0)
        >>> calibration = Calibration.of([found(*random.normal(0.3, 0.05, 2)) for _ in range(40)], 0.05, ["image"])
        >>> copied, other = (judge(calibration, found(train, 0.3), count=10) for train in (0.95, 0.3))
        >>> judged = [copied] * 3 + [other] * 7
        >>> count_copies(judged, [str(i) for i in range(10)], calibration, [str(i) for i in range(40)]).flagged
        3
    """
    rate, n = calibration.rate, len(judged)
    margins = np.array([one.margin for one in judged])
    of_map = np.array([one.of_map for one in judged])
    scans = np.array([one.scan for one in judged])
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(np.array(groups) == name) for name in dict.fromkeys(groups)]
    patients = [np.flatnonzero(np.array(people) == name) for name in dict.fromkeys(people)]
    draws = []
    for _ in range(DRAWS):
        real = np.concatenate([patients[i] for i in random.integers(len(patients), size=len(patients))])
        own = np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
        hit = (margins[own] >= quantile(calibration.null[real], rate)) | of_map[own]
        draws.append((_corrected(hit.mean(), rate) * n, len(set(scans[own][hit].tolist()))))
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0).tolist()
    hit = np.array([one.copy for one in judged])
    copied = len(set(scans[hit].tolist()))
    return Counts(
        n, int(hit.sum()), rate * n, Count(_corrected(hit.mean(), rate) * n, low[0], high[0]),
        Count(copied, min(low[1], copied), max(high[1], copied)),
        sum(one.sure or one.of_map for one in judged),
    )  # fmt: skip


def _corrected(share: float, rate: float) -> float:
    """The share of copies, of which all are flagged, where of the others ``rate`` are."""
    return max(0.0, (float(share) - rate) / (1 - rate))
