"""Scores, the threshold, and counts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from semsynth.errors import InputError
from semsynth.privacy.copies import Calibration, Count, Counts, Judged, Sides, count_copies, judge, score
from semsynth.privacy.planted import Planted, SelfTest
from semsynth.privacy.verdict import decide


def _levels(train: float, heldout: float) -> dict[str, Sides]:
    return {"image": Sides(train, heldout, 0, 9), "patch": Sides(train, heldout, 0, 9)}


def _real(count: int, seed: int = 0) -> list[dict[str, Sides]]:
    random = np.random.default_rng(seed)
    return [_levels(*random.normal(0.3, 0.05, 2)) for _ in range(count)]


def test_a_threshold_flags_the_stated_share_of_real_scans() -> None:
    calibration = Calibration.of(_real(200), 0.05)
    assert (calibration.null > calibration.threshold).mean() <= 0.05
    others = [calibration.margin(one) >= calibration.threshold for one in _real(2000, 1)]
    assert 0.01 < np.mean(others) < 0.1


def test_a_volume_that_is_like_everybody_is_not_flagged() -> None:
    calibration = Calibration.of(_real(100), 0.05)
    smooth, copied = _levels(0.7, 0.7), _levels(0.95, 0.3)
    assert score("image", smooth["image"]) == 0
    assert not judge(calibration, smooth, 100).flagged
    assert judge(calibration, copied, 100).sure


def test_a_rate_needs_a_real_scan_for_every_false_positive() -> None:
    with pytest.raises(InputError, match=r"10 real scans cannot carry a false-positive rate of 0\.05: give 20 or more"):
        Calibration.of(_real(10), 0.05)
    with pytest.raises(InputError, match=r"--false-positives must be above 0 and at most 0\.5, got 0"):
        Calibration.of(_real(10), 0.0)


def test_fewer_volumes_are_expected_by_chance_at_higher_margins() -> None:
    calibration = Calibration.of(_real(60), 0.05)
    expected = [calibration.expected(margin, 100) for margin in np.linspace(-5, 30, 50)]
    assert expected[0] == 100 and all(a >= b for a, b in pairwise(expected))
    assert expected[-1] < 0.05


def test_copies_are_counted_less_those_by_chance() -> None:
    calibration = Calibration.of(_real(100), 0.05)
    made = [_levels(0.9, 0.3)] * 10 + _real(90, 3)
    judged = [judge(calibration, one, 100) for one in made]
    counts = count_copies(judged, [str(i) for i in range(100)], calibration, [str(i) for i in range(100)])
    assert counts.sure == 10 and 9 <= counts.flagged <= 20
    assert counts.copies.low <= 10 <= counts.copies.high and counts.copies.low >= 1


@pytest.mark.parametrize(
    ("sure", "low", "recall", "volumes", "gaps", "word"),
    [
        (1, 0, 1.0, 100, [], "copies found"),
        (0, 2, 1.0, 100, [], "copies found"),
        (0, 0, 1.0, 100, [], "no sign found"),
        (0, 0, 0.9, 100, [], "cannot tell"),
        (0, 0, 1.0, 19, [], "cannot tell"),
        (0, 0, 1.0, 100, ["nobody knows"], "cannot tell"),
        (1, 0, 0.0, 1, ["nobody knows"], "copies found"),
    ],
)
def test_the_verdict_follows_its_rules(
    sure: int, low: float, recall: float, volumes: int, gaps: list[str], word: str
) -> None:
    counts = Counts(volumes, sure, 5.0, Count(low, low, low + 3), Count(0, 0, 1), sure)
    test = SelfTest({}, [Planted(0.05, recall, 0.05, 1.0)], 24, recall)
    assert decide(counts, test, gaps).word == word


def test_a_volume_without_any_level_is_not_flagged() -> None:
    calibration = Calibration.of(_real(100), 0.05)
    found = judge(calibration, {}, 10)
    assert isinstance(found, Judged) and not found.copy and found.scan == -1
