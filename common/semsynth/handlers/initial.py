"""Training from weights that are already there: other data, other classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..paths import as_path
from ..training.weights import take_over

logger = logging.getLogger(__name__)


class InitWeights:
    """Attached to a trainer: starts its network from a file of weights, with a warm-up of the learning rate.

    What fits is taken over; tensors of another shape (the last layer, where the number of classes differs) keep their
    fresh initialisation and are listed. A resumed training goes on from its own checkpoint instead, so this handler
    comes before :class:`semsynth.handlers.TrainingCheckpoint`.

    Args:
        network: to be initialised.
        path: a bare state dict (a bundle's ``model.pt``, also float16) or a training checkpoint; None does nothing.
        optimizers: optimizers whose learning rates are warmed up: their moments are empty, and a full first step would
            undo what was learned.
        warm_up: iterations in which the rates rise linearly to what their schedules say.
        name: name of the network in a training checkpoint.
        unless: a file of weights that bring this network's along: where it is given, nothing is done here.

    Raises:
        InputError: (at the start) no such file, no weights in it, or less than half of the parameters fit.

    Examples:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> there, network = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(there.state_dict(), f"{folder}/model.pt")
        ...     InitWeights(network, f"{folder}/model.pt").attach(trainer)
        ...     _ = trainer.run([0])
        >>> bool(torch.equal(network.weight, there.weight))
        True
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path | None,
        *,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        warm_up: int = 100,
        name: str = "network",
        unless: str | Path | None = None,
    ) -> None:
        self.network, self.name = network, name
        self.path = None if path is None or unless is not None else as_path(path, "init_weights")
        self.optimizers, self.warm_up = list(optimizers), warm_up
        self.rates: list[list[float]] = []

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        if self.path is not None:
            engine.add_event_handler(Events.STARTED, self._load)
            engine.add_event_handler(Events.ITERATION_STARTED, self._lower)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._restore)

    def _load(self, engine: Engine) -> None:
        assert self.path is not None
        if engine.state.iteration:
            return  # the trainer is run again, by a round of federated learning: the weights are the server's
        take_over(getattr(self.network, "module", self.network), self.path, name=self.name)

    def _lower(self, engine: Engine) -> None:
        if engine.state.iteration > self.warm_up:
            return
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * engine.state.iteration / (self.warm_up + 1)

    def _restore(self, engine: Engine) -> None:
        # schedules compute the next rate from this one: they must not see the lowered one
        for optimizer, rates in zip(self.optimizers, self.rates, strict=False):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.rates = []
