"""The moving average of a network's weights, which is better than any of them."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler


class MovingAverage(EMAHandler):
    """Ignite's ``EMAHandler``, for a trainer whose weights are loaded when it starts.

    The average starts from the weights that the training starts from, so this comes behind the handlers that initialise
    them; and before :class:`~semsynth.handlers.TrainingCheckpoint`, which has ``ema_model`` among its objects and goes
    on with it, and which is to save it with the last step in it.

    It starts anew where somebody has replaced the weights between two runs of the trainer, as the rounds of federated
    learning do: an average with this client's weights of before would be of two networks.

    The warm-up of the momentum follows the iterations. (Ignite counts from where a training is resumed: it would
    begin anew and lose the average.)

    Args:
        args, kwargs: as ``ignite.handlers.EMAHandler``: model, momentum (one minus the decay), momentum_warmup and
            warmup_iters, handle_buffers.

    Examples:
        >>> import torch
        >>> network = torch.nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(network, momentum=0.5)
        >>> def step(engine, batch):
        ...     network.weight.data.fill_(batch)
        >>> trainer = Engine(step)
        >>> average.attach(trainer)
        >>> _ = network.weight.data.zero_()
        >>> _ = trainer.run([4.0, 4.0])
        >>> average.ema_model.weight.item()  # from 0 over 2 to 3
        3.0
    """

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)  # before the scheduler counts one on
        super().attach(engine, *args, **kwargs)
        engine.add_event_handler(Events.COMPLETED, self._remember)
        self.left: list[float] = []

    def _count(self, engine: Engine) -> None:
        scheduler = getattr(self, "momentum_scheduler", None)  # only with a warm-up
        if scheduler is not None:
            scheduler.event_index = engine.state.iteration - 1

    def _remember(self, engine: Engine) -> None:
        self.left = self._sums()

    def _start(self, engine: Engine) -> None:
        if engine.state.iteration == 0 or (self.left and self.left != self._sums()):
            self.ema_model.load_state_dict(self.model.state_dict())

    def _sums(self) -> list[float]:
        """By which weights that were replaced are recognised, without a copy of them."""
        return [float(tensor.double().sum()) for tensor in self.model.state_dict().values()]
