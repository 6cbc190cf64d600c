"""Training from weights that are already there: other data, other classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..errors import InputError

logger = logging.getLogger(__name__)


class InitWeights:
    """Attached to a trainer: starts its network from a file of weights, with a warm-up of the learning rate.

    What fits is taken over; tensors of another shape (the last layer, where the number of classes differs) keep their
    fresh initialisation and are listed. A resumed training goes on from its own checkpoint instead, so this handler
    comes before :class:`semsynth.handlers.TrainingCheckpoint`.

    Args:
        network: to be initialised.
        path: a bare state dict (a bundle's ``model.pt``, also float16) or a training checkpoint; None does nothing.
        optimizers: whose learning rates are warmed up: their moments are empty, and a full first step would undo what
            was learned.
        warm_up: iterations in which the rates rise linearly to what their schedules say.
        name: which network of a training checkpoint.
        unless: a file of weights that bring this network's along: where it is given, nothing is done here.

    Raises:
        InputError: (at the start) no such file, no weights in it, or less than half of the parameters fit.
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
        self.path = None if path is None or unless is not None else Path(path)
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


def take_over(network: nn.Module, path: str | Path, *, name: str = "network") -> list[str]:
    """Load what fits of a file of weights into a network, and list what does not.

    Args:
        network: changed in place.
        path: a bare state dict or a training checkpoint.
        name: which network of a training checkpoint.

    Returns:
        One line per tensor that was not taken over (also logged as warnings).

    Raises:
        InputError: no such file, no weights in it, or less than half of the network's parameters fit.
    """
    state = load_weights(path, name=name)
    own = network.state_dict()
    fitting = {key: state[key] for key in own if key in state and state[key].shape == own[key].shape}
    left = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} here; initialised afresh"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    left += [f"{key}: not in the file; initialised afresh" for key in own if key not in state]
    left += [f"{key}: in the file, not in this network; not used" for key in state if key not in own]
    share = sum(own[key].numel() for key in fitting) / max(sum(tensor.numel() for tensor in own.values()), 1)
    if share < 0.5:
        raise InputError(
            f"{path}: only {share:.0%} of this network's values are in the file; it belongs to another architecture. "
            "Set network_def to the file's, or train without init_weights",
            left[:8] + ([f"… and {len(left) - 8} more"] if len(left) > 8 else []),
        )
    network.load_state_dict(own | fitting)
    logger.info("%s: %d tensors taken over, %.1f %% of the values", path, len(fitting), 100 * share)
    for line in left:
        logger.warning("%s: %s", Path(path).name, line)
    return left


def load_weights(path: str | Path, *, name: str = "network") -> dict[str, torch.Tensor]:
    """The tensors of a file of weights: a bare state dict, or one network of a training checkpoint.

    Raises:
        InputError: no such file, or no weights in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; train the bundle first, or give another path")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: cannot be read as weights ({type(error).__name__}); copy the file again") from error
    if isinstance(state, dict) and isinstance(state.get("objects"), dict):
        state = state["objects"].get(name, {})
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: holds no weights of a network ({name!r}); give a bundle's model.pt or a checkpoint")
    return state
