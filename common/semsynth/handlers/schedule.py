"""The learning rate along a training that may be run several times."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LRScheduler

from ..training.schedules import Cosine, OneCycle, begin_again


class LearningRate(LrScheduleHandler):
    """MONAI's ``LrScheduleHandler``, whose schedule begins again where a training is run after its end.

    Attached before :class:`semsynth.handlers.TrainingCheckpoint`, which brings the schedule of a resumed training to
    where it was.

    Args:
        lr_scheduler: a :class:`semsynth.training.schedules.Cosine` or
            :class:`~semsynth.training.schedules.OneCycle`, or one of torch's that has no end.
        kwargs: all else that ``monai.handlers.LrScheduleHandler`` takes.

    Examples:
        >>> import torch
        >>> from semsynth.training.schedules import Cosine
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
        >>> trainer = Engine(lambda engine, batch: None)
        >>> LearningRate(Cosine(optimizer, epochs=4), print_lr=False).attach(trainer)
        >>> _ = trainer.run([0], max_epochs=2)
        >>> round(optimizer.param_groups[0]["lr"], 3)  # halfway
        0.05
    """

    def __init__(self, lr_scheduler: LRScheduler, **kwargs: Any) -> None:
        super().__init__(lr_scheduler, **{"print_lr": False} | kwargs)  # type: ignore[arg-type]
        self.schedule = lr_scheduler

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        if isinstance(self.schedule, Cosine | OneCycle) and self.schedule.last_epoch >= self.schedule.length:
            begin_again(self.schedule)
