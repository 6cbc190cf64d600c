"""Schedules over the rounds of a federated training, and after their end."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine
from semsynth.errors import InputError
from semsynth.handlers import LearningRate
from semsynth.training.schedules import Cosine, OneCycle


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(schedule: Cosine | OneCycle, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_a_schedule_over_rounds_is_that_of_one_training_of_all_epochs() -> None:
    assert rates(Cosine(optimizer(), 2, rounds=3), 6) == pytest.approx(rates(Cosine(optimizer(), 6), 6))
    several = OneCycle(optimizer(), 0.1, epochs=2, steps_per_epoch=4, rounds=3)
    assert rates(several, 24) == pytest.approx(rates(OneCycle(optimizer(), 0.1, epochs=6, steps_per_epoch=4), 24))


@pytest.mark.parametrize("schedule", [Cosine(optimizer(), 3), OneCycle(optimizer(), 0.1, epochs=1, steps_per_epoch=3)])
def test_after_its_end_the_rate_stays(schedule: Cosine | OneCycle) -> None:
    found = rates(schedule, 6)
    assert found[3] == found[4] == found[5] == min(found)


def test_rounds_have_to_be_one_or_more() -> None:
    with pytest.raises(InputError, match="rounds"):
        Cosine(optimizer(), 3, rounds=0)


@pytest.mark.parametrize("per_step", [False, True])
def test_a_training_that_is_run_after_its_end_begins_a_schedule_again_and_says_so(
    per_step: bool, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = OneCycle(optimizer(), 0.1, epochs=2, steps_per_epoch=3) if per_step else Cosine(optimizer(), 2)
    seen: list[float] = []

    def step(engine: Engine, batch: int) -> None:
        seen.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()

    trainer = Engine(step)
    LearningRate(schedule, epoch_level=not per_step).attach(trainer)
    trainer.run([0, 1, 2], max_epochs=2)
    with caplog.at_level(logging.WARNING):
        trainer.state.max_epochs = 4
        trainer.run([0, 1, 2])
    assert seen[:6] == pytest.approx(seen[6:]) and seen[0] != seen[5]
    assert "begins again: give --rounds" in caplog.text
