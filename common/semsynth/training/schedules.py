"""Schedules of the learning rate that know how often a training is run: federated learning runs it round by round."""

from __future__ import annotations

import logging
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from ..limits import check_number

logger = logging.getLogger(__name__)
MOST_ROUNDS = 100_000


class Cosine(CosineAnnealingLR):
    """``torch.optim.lr_scheduler.CosineAnnealingLR`` over all rounds, one step per epoch.

    Args:
        optimizer: optimizer whose rates are set.
        epochs: number of epochs of one round.
        rounds: number of times that the training is run for so many epochs (1: it is run once).
        kwargs: all else that ``CosineAnnealingLR`` takes.

    Raises:
        InputError: for numbers below 1.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, *, rounds: int = 1, **kwargs: Any) -> None:
        check_number("rounds", rounds, 1, MOST_ROUNDS)
        super().__init__(optimizer, T_max=int(epochs) * int(rounds), **kwargs)

    @property
    def length(self) -> int:
        """Steps until its end."""
        return int(self.T_max)

    def step(self, epoch: int | None = None) -> None:
        """One step; at its end the rates stay as they are, where torch would let them rise."""
        if self.last_epoch < self.length:
            super().step(epoch)


class OneCycle(OneCycleLR):
    """``torch.optim.lr_scheduler.OneCycleLR`` over all rounds, one step per iteration.

    Args:
        optimizer: optimizer whose rates are set.
        max_lr: highest rate.
        epochs: number of epochs of one round.
        steps_per_epoch: iterations of an epoch.
        rounds: number of times that the training is run for so many epochs (1: it is run once).
        kwargs: all else that ``OneCycleLR`` takes.

    Raises:
        InputError: for numbers below 1.
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: float, *, epochs: int, steps_per_epoch: int, rounds: int = 1, **kwargs: Any
    ) -> None:
        check_number("rounds", rounds, 1, MOST_ROUNDS)
        super().__init__(
            optimizer, max_lr, epochs=int(epochs) * int(rounds), steps_per_epoch=int(steps_per_epoch), **kwargs
        )

    @property
    def length(self) -> int:
        """Steps until its end."""
        return int(self.total_steps)

    def step(self, epoch: int | None = None) -> None:
        """One step; at its end the rates stay as they are, where torch lets them rise once, then raises an error."""
        if self.last_epoch < self.length - 1:
            super().step(epoch)
        elif self.last_epoch < self.length:
            self.last_epoch += 1


def begin_again(schedule: Cosine | OneCycle) -> None:
    """Put a schedule back to its beginning: a training that was run to its end goes on.

    Args:
        schedule: changed in place, with its optimizer's rates.
    """
    logger.warning(
        "the schedule of the learning rate is at its end after %d steps, and begins again: give --rounds, the number "
        "of rounds of a federated training, for one schedule over all of them", schedule.length,
    )  # fmt: skip
    for group in schedule.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    schedule.last_epoch = 0
    if isinstance(schedule, OneCycle):  # its first rate is not the initial one where its rise is shorter than a step
        schedule.last_epoch = -1
        schedule.step()
