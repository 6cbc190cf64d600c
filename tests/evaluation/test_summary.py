"""The sentences with which an evaluation opens follow from the intervals."""

from __future__ import annotations

import pytest
from semsynth.evaluation.scores import Difference, Score
from semsynth.evaluation.summary import between_systems, distances

NETWORK = "net"


def fid(row: str, value: float, low: float, high: float, *, floor: float | None = 10.0) -> Score:
    return Score("unseen", row, "fid", value, 8, low=low, high=high, draws=100, extractor=NETWORK, floor=floor)


def less(first: str, second: str, low: float, high: float) -> Difference:
    return Difference("unseen", first, second, "fid", NETWORK, (low + high) / 2, 8, low=low, high=high)


def index(*scores: Score) -> dict[tuple[str, str, str], Score]:
    return {(s.row, s.metric, s.extractor): s for s in scores}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (12.0, 20.0, "a is 1.50 times as far away [1.20, 2.00]"),
        (8.0, 20.0, "a cannot be told apart from them (1.50 times as far [0.80, 2.00])"),
        (5.0, 9.0, "a is nearer (1.50 times as far [0.50, 0.90]), as imitations of training scans are"),
    ],
)
def test_a_system_is_farther_or_nearer_only_where_its_whole_interval_is(low: float, high: float, said: str) -> None:
    assert said in distances(["a"], index(fid("a", 15.0, low, high)), NETWORK)[0]


def test_without_a_floor_nothing_is_said() -> None:
    assert distances(["a"], index(fid("a", 15.0, 12.0, 20.0, floor=None)), NETWORK) == []


@pytest.mark.parametrize("turned", [False, True])
def test_the_others_are_farther_only_where_the_interval_of_the_difference_says_so(turned: bool) -> None:
    there = index(fid("a", 10.0, 9.0, 11.0), fid("b", 12.0, 9.0, 14.0), fid("c", 20.0, 18.0, 22.0))
    found = [less("b", "a", -1.0, 5.0), less("c", "a", 8.0, 12.0)]
    if turned:
        found = [less("a", "b", -5.0, 1.0), less("a", "c", -12.0, -8.0)]
    assert between_systems(["c", "b", "a"], there, found, NETWORK) == [
        "a is the nearest of them by it; c is farther; b cannot be told apart from it."
    ]


def test_two_that_differ_by_less_than_the_interval_cannot_be_told_apart() -> None:
    there = index(fid("a", 10.0, 9.0, 11.0), fid("b", 12.0, 9.0, 14.0))
    said = between_systems(["a", "b"], there, [less("b", "a", -1.0, 5.0)], NETWORK)
    assert said == ["a and b cannot be told apart from each other by it."]
