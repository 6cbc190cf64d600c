"""Distribution metrics over draws, and the two floors beneath them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..metrics import fid
from ..networks.features.registry import FeatureExtractor
from .groups import UNSEEN
from .scores import DISTRIBUTION, FLOOR, FLOOR_TRAINING, Collected, Score
from .seen import Span
from .systems import System
from .uncertainty import Draw, Interval, by_patient, largest_n, make_draws, over_draws

logger = logging.getLogger(__name__)
SLICE_DRAWS = 20  # slice-wise FID has hundreds of rows a side: a tenth of a second each, in three planes and every row
ENOUGH = 8  # patients that a group needs to say how many the draws of all groups take


def feature_rows(found: Collected, row: str, extractor: str, plane: str | None) -> Callable[[str, int], Any]:
    """Feature matrix of a row's case and sample: one row per volume, or one per slice of a plane."""

    def matrix(case: str, sample: int) -> NDArray[np.floating]:
        samples = found.features[row][case]
        features = samples[sample % len(samples)][extractor]
        return features.volume[None] if plane is None else features.slices[plane]

    return matrix


@dataclass(frozen=True)
class Sides:
    """What a group's draws are made of.

    Attributes:
        draws: the draws themselves.
        patients: patients of the group's cases.
        training: number of a draw's references that a system was trained on; None where that is unknown.
        without: reason why there is no floor B; "" where there is one.
    """

    draws: Sequence[Draw]
    patients: int
    training: Span | None
    without: str = ""

    @property
    def n(self) -> int:
        """Cases on each side."""
        return len(self.draws[0].scored)

    def references_in(self, seen: Mapping[str, bool | None]) -> Span:
        """How many of a draw's references a network was trained on."""
        return Span.of(sum(bool(seen.get(case)) for case in draw.reference) for draw in self.draws)

    @staticmethod
    def of(draws: Sequence[Draw], found: Collected, group: str) -> Sides:
        """The sides of the draws of a group."""
        said = {name: case.training for name, case in found.cases.items()}
        counts = [[said.get(case) for case in draw.reference] for draw in draws]
        known = any(value is not None for row in counts for value in row)
        people = found.patients()
        without = ""
        if not draws[0].training:
            trained = len(by_patient([case for case, value in said.items() if value], people))
            without = (
                f"of {trained} patients with training scans some draws leave fewer than {len(draws[0].scored)} beside "
                "the references" if trained else "no training scans are known (--train-real)"
            )  # fmt: skip
        training = Span.of(sum(value is True for value in row) for row in counts) if known else None
        return Sides(draws, len(by_patient(found.groups[group], people)), training, without)


@dataclass(frozen=True)
class Distribution:
    """A distribution metric of every row of a group over the same draws."""

    group: str
    metric: str
    extractor: FeatureExtractor
    values: Mapping[str, NDArray[np.float64]]
    sides: Sides
    seen: int | None = None

    @property
    def n(self) -> int:
        """Cases on each side."""
        return self.sides.n

    def scores(self, systems: Sequence[System]) -> list[Score]:
        """One score per row."""
        in_loss = {s.name for s in systems if s.was_guided_by(self.extractor.name, self.extractor.sha256)}
        floors = [float(self.values[r].mean()) if r in self.values else None for r in (FLOOR, FLOOR_TRAINING)]
        trained = self.sides.training
        found = []
        for row, values in self.values.items():
            interval = Interval.of(values)
            found.append(Score(
                self.group, row, self.metric, interval.mean, self.n, low=interval.low, high=interval.high,
                draws=len(values), extractor=self.extractor.name, sha256=self.extractor.sha256, floor=floors[0],
                floor_training=floors[1], references_training=None if trained is None else trained.mean,
                in_loss=row in in_loss, seen=self.seen,
            ))  # fmt: skip
        return found


def distributions(found: Collected, group: str, sides: Sides, extractor: FeatureExtractor) -> list[Distribution]:
    """FID, KID and MMD² of volume features, and FID of slice features where the network has them."""
    cases, draws = found.groups[group], sides.draws
    rows = [row for row in found.features if all(case in found.features[row] for case in cases)]
    exposure = found.exposure(extractor.sha256, group)
    seen = None if exposure is None else exposure.certain

    def over(metric: Callable[..., Any], plane: str | None, few: Sequence[Draw]) -> dict[str, NDArray[np.float64]]:
        matrices = {row: feature_rows(found, row, extractor.name, plane) for row in rows}
        real = feature_rows(found, FLOOR, extractor.name, plane)
        values = over_draws(matrices, real, few, _on_arrays(metric))
        if few[0].training:  # against the same references
            trained = [replace(draw, scored=draw.training) for draw in few]
            values |= over_draws({FLOOR_TRAINING: real}, real, trained, _on_arrays(metric))
        return values

    results = [
        Distribution(group, name, extractor, over(function, None, draws), sides, seen)
        for name, (_, function) in DISTRIBUTION.items()
    ]
    example = found.features[FLOOR][cases[0]][0][extractor.name]
    for plane in example.slices:
        values = over(fid, plane, draws[:SLICE_DRAWS])
        results.append(Distribution(group, f"fid_{plane}", extractor, values, sides, seen))
    return results


def sizes(possible: Mapping[str, int], training: int) -> dict[str, int]:
    """How many patients the draws of each group take: one n for all that can have it, because FID depends on it.

    The unseen cases say how many, unless they are a few stray ones; a group that has fewer takes what it has. Where it
    costs at most half, n leaves as many training cases beside the references: without them there is no floor B.

    Args:
        possible: group → the largest n, from :func:`~semsynth.evaluation.uncertainty.largest_n`.
        training: patients with training cases.
    """
    enough = {group: n for group, n in possible.items() if n >= min(ENOUGH, max(possible.values()) / 2)}
    common = enough.get(UNSEEN, min(enough.values()))
    common = training // 2 if max(2, common / 2) <= training // 2 < common else common
    return {group: min(common, n) for group, n in possible.items()}


def check_n(found: Collected, cases: Sequence[str], n: int | None) -> None:
    """Raise, before hours of measurements, for an ``n`` that no group has enough cases for; errors as in draws.

    Args:
        found: groups and patients; nothing needs to be measured yet.
        cases: with real images.
        n: cases on each side of a draw; None: what there is.
    """
    people = found.patients()
    largest = max(found.groups.values(), key=lambda members: largest_n(members, cases, people))
    if n is not None and (n < 2 or n > largest_n(largest, cases, people)):
        make_draws(largest, cases, n, 1, 0, people)


def all_distributions(
    found: Collected,
    cases: Sequence[str],
    networks: Sequence[FeatureExtractor],
    draws: int,
    n: int | None,
    seed: int,
) -> tuple[list[Distribution], dict[str, str], dict[str, Sides]]:
    """Over the same draws for all systems of a group, see :func:`sizes` for how many cases those take.

    Returns:
        The metrics, for groups without them the reason, and for the others what their draws are made of.
    """
    people = found.patients()
    training = [name for name in cases if name in found.cases and found.cases[name].training]
    possible = {group: largest_n(members, cases, people) for group, members in found.groups.items()}
    size = sizes(possible, len(by_patient(training, people))) if n is None else dict.fromkeys(possible, n)
    result: list[Distribution] = []
    absent: dict[str, str] = {}
    sides: dict[str, Sides] = {}
    for group, members in found.groups.items():
        try:
            drawn = make_draws(members, cases, size[group], draws, seed, people, training)
        except InputError as error:
            absent[group] = str(error)
            if networks:
                logger.warning("%s: no distribution metrics: %s", group, error)
            continue
        sides[group] = Sides.of(drawn, found, group)
        result += [item for network in networks for item in distributions(found, group, sides[group], network)]
    return result, absent, sides


def _on_arrays(metric: Callable[..., Any]) -> Callable[..., float]:
    return lambda y_pred, y: float(metric(torch.from_numpy(y_pred), torch.from_numpy(y)))
