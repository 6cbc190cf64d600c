"""Membership inference beside its control."""

from __future__ import annotations

import numpy as np
import pytest
from semsynth.errors import InputError
from semsynth.privacy.membership import Rate, attack, check_level, residual


def _signals(mean: float, count: int, seed: int, name: str) -> dict[str, float]:
    return {f"{name}{i}": float(v) for i, v in enumerate(np.random.default_rng(seed).normal(mean, 1, count))}


def _attack(mean: float):  # type: ignore[no-untyped-def]
    members, others = _signals(mean, 40, 0, "m"), _signals(0, 40, 1, "o")
    people = {name: name for name in (*members, *others)}
    return attack("test", members, others, people)


def test_members_that_stand_out_are_recognised() -> None:
    found = _attack(6.0)
    assert found.auc > 0.98 and found.auc_low > 0.9
    assert found.found.value > 0.9 and found.residual.low > 0.5
    assert found.control_low < 0.5 < found.control_high


def test_members_that_do_not_stand_out_are_not() -> None:
    found = _attack(0.0)
    assert found.auc_low < 0.5 < found.auc_high
    assert found.residual.low == 0


def test_levels_that_the_scans_cannot_carry_are_refused() -> None:
    found = _attack(1.0)
    assert found.level == 0.05 and found.refused == (0.01,)
    with pytest.raises(InputError, match=r"at 1% false positives needs 100 or more scans .* found 10"):
        check_level(0.01, 10)


def test_few_scans_are_not_attacked() -> None:
    signals = {str(i): 1.0 for i in range(4)}
    assert attack("test", signals, signals, {name: name for name in signals}) is None


def test_residual_risk_is_what_the_control_leaves() -> None:
    found = residual(Rate(0.6, 0.5, 0.7), Rate(0.2, 0.15, 0.25))
    assert found.value == pytest.approx(0.5)
    error = np.hypot(0.1 / 0.8, 0.4 / 0.64 * 0.05)
    assert (found.low, found.high) == (pytest.approx(0.5 - error), pytest.approx(0.5 + error))
    assert residual(Rate(0.1, 0, 0.2), Rate(0.2, 0.1, 0.3)).value == 0
