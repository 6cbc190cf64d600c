"""How high the similarity of two different patients gets in a data set, and so how sure a link is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_PAIRS = 150
"""Pairs (18 cases) below which a data set says too little about its own different patients."""
SURE, LIKELY, WEAK = 0.05, 1.0, 10.0
"""False links expected in the whole data set at this similarity or above."""
SAME_SCAN = 0.93
STATED = {"sure": 0.93, "likely": 0.9, "weak": 0.6}
"""Correlations that are taken where there are too few pairs.

Different patients reach 0.5 in crops of a heart and 0.86 in CTs of head and neck; copies with one change were all above
0.95."""
TAIL = 0.9


@dataclass(frozen=True)
class Null:
    """The similarity of different patients.

    Attributes:
        pairs: number of pairs in the data set, compared or not.
        start: similarity above which a tenth of the pairs lie.
        rate: the tail falls by a factor e per 1 / rate of similarity; None where there were too few pairs.
        values: number of independent values that this is known from.
    """

    pairs: int
    start: float = 0.0
    rate: float | None = None
    values: int = 1

    def expected(self, similarity: NDArray[np.float64]) -> NDArray[np.float64]:
        """False links expected in the whole data set among pairs at least so similar.

        Predicted from an exponential tail whose rate is only known from so many values: heavier than that tail, and
        the more so the fewer they are.
        """
        if self.rate is None:
            return np.full(np.shape(similarity), np.nan)
        beyond = np.maximum(self.rate * (np.asarray(similarity) - self.start), -math.log(1 / (1 - TAIL)))
        share = (1 - TAIL) * np.maximum(1 + beyond / self.values, 1e-9) ** -self.values
        return np.asarray(self.pairs * np.minimum(share, 1.0))

    def sureness(self, expected: float, correlation: float) -> str:
        """``sure``, ``likely``, ``weak`` (to be looked at, not grouped), or nothing."""
        if correlation >= SAME_SCAN:
            return "sure"
        if self.rate is None:
            return next((word for word, least in STATED.items() if correlation >= least), "")
        return next((w for w, most in (("sure", SURE), ("likely", LIKELY), ("weak", WEAK)) if expected <= most), "")

    @property
    def basis(self) -> str:
        """What the thresholds come from, in words."""
        if self.rate is None:
            return f"stated correlations ({self.pairs} pairs are too few for a distribution of their own)"
        return f"the {self.pairs} pairs of the data set itself"


def similarities(
    first: NDArray[np.intp], second: NDArray[np.intp], correlations: NDArray[np.float64], cases: int
) -> NDArray[np.float64]:
    """Fisher's z of correlations, less what each of the two scans has with all others.

    Some scans are like everybody (sharp, of the common build), others like nobody; what counts is how much more alike
    two scans are than each of them is with the rest.

    Args:
        first, second: the scans of each pair, from 0 on.
        correlations: correlations of each pair.
        cases: number of scans.
    """
    z = np.arctanh(np.clip(correlations, -0.99, 0.999))
    middle = float(np.median(z)) if len(z) else 0.0
    usual = np.full(cases, middle)
    for case in range(cases):
        own = z[(first == case) | (second == case)]
        usual[case] = np.median(own) if len(own) >= 5 else middle
    return np.asarray(z - usual[first] - usual[second] + middle)


def fit_null(similarity: NDArray[np.float64], weights: NDArray[np.float64], pairs: int, cases: int) -> Null:
    """Fit the tail of different patients to a data set that holds some pairs of one patient, too.

    An exponential above the highest tenth, which a normal and other lighter tails lie below (so that too few links
    are made rather than too many). Pairs that are linked by one fit are left out of the next.

    Args:
        similarity: similarity of the compared pairs.
        weights: number of pairs that each of them stands for.
        pairs: number of pairs in the data set.
        cases: number of scans; their pairs are not independent, so that no more values than that are counted.
    """
    if pairs < LEAST_PAIRS:
        return Null(pairs)
    low, high = _quantiles(similarity, weights, (0.75, 0.95))
    null = Null(pairs, _quantiles(similarity, weights, (TAIL,))[0], float(np.log(5) / max(high - low, 1e-6)), cases)
    for _ in range(10):
        rest = null.expected(similarity) > LIKELY
        start = _quantiles(similarity[rest], weights[rest], (TAIL,))[0]
        above = rest & (similarity > start)
        excess = float(np.average(similarity[above] - start, weights=weights[above])) if above.any() else 1.0
        again = Null(pairs, start, 1 / max(excess, 1e-6), max(min(int(above.sum()), cases), 1))
        if again == null:
            break
        null = again
    return null


def _quantiles(values: NDArray[np.float64], weights: NDArray[np.float64], shares: tuple[float, ...]) -> list[float]:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return [float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)]) for share in shares]
