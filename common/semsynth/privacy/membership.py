"""Membership inference: can it be told from samples, or from the weights, which scans a generator was trained on?

Every figure stands beside the same attack on members against members, in random halves of their patients: where a split
has a bias (another scanner, other years), that alone lets an attack succeed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from ..errors import InputError

LEVELS = (0.01, 0.05, 0.1, 0.2)
"""False-positive rates of an attack; only those are reported that the scans carry."""
DRAWS = 500
LEAST_CASES = 5


@dataclass(frozen=True)
class Rate:
    """A share of successes with its Wilson interval (Wilson, 1927) of 95 %."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(hits: int, count: int) -> Rate:
        """Of so many successes."""
        if not count:
            return Rate(math.nan, math.nan, math.nan)
        interval = binomtest(hits, count).proportion_ci(method="wilson")
        return Rate(hits / count, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Attack:
    """How well members are told from others by one signal.

    Attributes:
        name: name of what the attack sees.
        members, others: numbers of scans.
        auc: area under the ROC curve, with its interval of 95 % over patients; 0.5 is chance.
        auc_low, auc_high: ends of that interval.
        control: the same of members against members, mean and range of 95 % over random halves.
        control_low, control_high: ends of that range.
        level: false-positive rate of the attack, the lowest that the other scans and half of the members carry.
        found: share of the members that are recognised at that level.
        control_found: the same share in the control.
        residual: (attack - control) / (1 - control) with its interval.
        refused: levels that so few scans cannot carry.
    """

    name: str
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    control: float
    control_low: float
    control_high: float
    level: float
    found: Rate
    control_found: Rate
    residual: Rate
    refused: tuple[float, ...]


def carried(level: float, count: int) -> bool:
    """Whether so many scans that are no members carry a false-positive rate: one of them has to be below it."""
    return count * level >= 1


def check_level(level: float, count: int) -> None:
    """Refuse a level that the scans cannot carry.

    Raises:
        InputError: saying how many are needed.
    """
    if not carried(level, count):
        raise InputError(f"a true-positive rate at {level:.0%} false positives needs {math.ceil(1 / level)} or more "
                         f"scans that were not trained on, found {count}")  # fmt: skip


def attack(
    name: str, members: Mapping[str, float], others: Mapping[str, float], people: Mapping[str, str], *, seed: int = 0
) -> Attack | None:
    """Tell members from others by a signal that is higher for members.

    Args:
        name: name of the attack.
        members, others: scan → signal.
        people: scan → patient.
        seed: seed of halves and of the bootstrap.

    Returns:
        The attack; None where one side has fewer than 5 scans.
    """
    if min(len(members), len(others)) < LEAST_CASES:
        return None
    random = np.random.default_rng(seed)
    ours, theirs = _by_person(members, people), _by_person(others, people)
    draws = [_auc(_drawn(ours, random), _drawn(theirs, random)) for _ in range(DRAWS)]
    fewest = min(len(others), len(members) // 2)  # the control has halves of the members
    level = next((one for one in LEVELS if carried(one, fewest)), 1 / fewest)
    limit = _limit(np.array(list(others.values())), level)
    hits = sum(value > limit for value in members.values())
    halves, control_hits, control_count = _control(ours, level, random)
    found, control = Rate.of(hits, len(members)), Rate.of(round(control_hits), round(control_count))
    low, high = np.quantile(draws, [0.025, 0.975])
    spread = np.quantile(halves, [0.025, 0.975]) if halves else (math.nan, math.nan)
    return Attack(
        name, len(members), len(others), _auc(list(members.values()), list(others.values())), float(low), float(high),
        float(np.mean(halves)) if halves else math.nan, float(spread[0]), float(spread[1]), level, found, control,
        residual(found, control), tuple(one for one in LEVELS if not carried(one, fewest)),
    )  # fmt: skip


def residual(attacked: Rate, control: Rate) -> Rate:
    """What an attack tells beyond its control: (attack - control) / (1 - control).

    Giomi et al. (2023), Anonymeter, eq. 3; the errors of both, half their Wilson intervals, are propagated.
    """
    if not math.isfinite(control.value) or control.value >= 1:
        return Rate(math.nan, math.nan, math.nan)
    rest = 1 - control.value
    value = (attacked.value - control.value) / rest
    ours, theirs = ((rate.high - rate.low) / 2 for rate in (attacked, control))
    error = math.hypot(ours / rest, (1 - attacked.value) / rest**2 * theirs)
    return Rate(max(value, 0.0), max(value - error, 0.0), min(max(value + error, 0.0), 1.0))


def _control(
    members: Mapping[str, Sequence[float]], level: float, random: np.random.Generator
) -> tuple[list[float], float, float]:
    """Members against members: AUC per random half, and hits among how many, as in one half."""
    names, halves, shares = list(members), [], []
    for _ in range(DRAWS if len(names) >= 4 else 0):
        order = random.permutation(len(names))
        sides = [[v for i in part for v in members[names[i]]] for part in np.array_split(order, 2)]
        halves.append(_auc(sides[0], sides[1]))
        limit = _limit(np.array(sides[1]), level)
        shares.append(np.mean(np.array(sides[0]) > limit))
    count = sum(len(values) for values in members.values()) / 2
    return halves, float(np.mean(shares)) * count if shares else 0.0, count if shares else 0.0


def _limit(values: NDArray[np.float64], level: float) -> float:
    """The signal that at most a share ``level`` of the values lies above."""
    return float(np.quantile(values, 1 - level, method="higher"))


def _auc(members: Sequence[float], others: Sequence[float]) -> float:
    return float(roc_auc_score([1] * len(members) + [0] * len(others), [*members, *others]))


def _by_person(values: Mapping[str, float], people: Mapping[str, str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for scan, value in values.items():
        found.setdefault(people[scan], []).append(value)
    return found


def _drawn(values: Mapping[str, Sequence[float]], random: np.random.Generator) -> list[float]:
    names = list(values)
    return [v for i in random.integers(len(names), size=len(names)) for v in values[names[i]]]
