"""Nearest-neighbour shares: what they are for samples of one distribution, of two, and for a generator that repeats."""

from __future__ import annotations

import numpy as np
import pytest
from semsynth.errors import InputError
from semsynth.metrics.manifold import reach


def cloud(seed: int, count: int = 200, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return shift + spread * np.random.default_rng(seed).standard_normal((count, 4))


def test_samples_of_one_distribution_cannot_be_told():
    found = reach(cloud(0), cloud(1))
    assert min(found.precision, found.recall, found.coverage) > 0.8
    assert 0.4 < found.nearest < 0.6


def test_samples_from_elsewhere_reach_nothing():
    found = reach(cloud(0, shift=30.0), cloud(1))
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_a_generator_that_repeats_itself_is_precise_and_covers_little():
    same = cloud(1)[:1] + 0.05 * cloud(0)
    found = reach(same, cloud(1))
    assert found.precision > 0.9 and found.recall < 0.1 and found.coverage < 0.2


def test_copies_are_all_of_it():
    points = cloud(0)
    found = reach(points, points)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)


def test_a_hand_made_example():
    real, drawn = np.array([[0.0], [1.0], [2.0], [10.0]]), np.array([[0.5], [4.5], [30.0]])
    found = reach(drawn, real, k=1)  # reaches: real 1, 1, 1, 8; drawn 4, 4, 25.5
    assert found.precision == pytest.approx(2 / 3)  # 0.5, and 4.5 by the outlier at 10
    assert found.recall == 1.0  # 10 by the outlier at 30
    assert found.coverage == pytest.approx(3 / 4)  # nothing was drawn within 1 of 2


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="more than 3 samples of each kind, got 3 and 200"):
        reach(cloud(0, 3), cloud(1))
