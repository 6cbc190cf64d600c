"""Checkpoints written whole or not at all, and training that goes on from them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..distributed import rank
from ..errors import InputError
from ..volumes import atomic_path

logger = logging.getLogger(__name__)


def save_atomically(state: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save`` to a file beside ``path``, then rename: a kill leaves the old file whole."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


class TrainingCheckpoint:
    """Attached to a trainer: saves the whole state every few epochs, and goes on from it.

    Args:
        path: the checkpoint file (one, overwritten).
        objects: name → anything with ``state_dict`` and ``load_state_dict`` (networks, optimizers, then schedulers). A
            cosine schedule may have another length than the checkpoint's: it goes on as if it had always had it.
        interval: epochs between saves; the last epoch is always saved.
        resume: load ``path`` at the start where it exists.

    Raises:
        InputError: (at the start) when the file cannot be read or lacks one of ``objects``; (at a save) when a network
            holds NaN or infinite values: the file keeps the last good state.
    """

    def __init__(
        self, path: str | Path, objects: Mapping[str, Any], *, interval: int = 1, resume: bool = False
    ) -> None:
        # the bare networks: a checkpoint of two processes can be resumed by one, and the other way round
        self.objects = {name: getattr(obj, "module", obj) for name, obj in objects.items()}
        self.path, self.interval, self.resume = Path(path), interval, resume

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _load(self, engine: Engine) -> None:
        if not self.resume:
            return
        if not self.path.is_file():
            logger.info("nothing to resume at %s: starting afresh", self.path)
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"{self.path}: cannot be read as a checkpoint ({type(error).__name__}); delete it to start afresh"
            ) from error
        missing = sorted((set(self.objects) | {"epoch"}) - set(state))
        if missing:
            raise InputError(f"{self.path}: has no state for {', '.join(missing)}; it belongs to another training")
        for name, obj in self.objects.items():
            if getattr(obj, "T_max", None) == state[name].get("T_max"):
                obj.load_state_dict(state[name])
            else:
                _replay(obj, int(state[name]["last_epoch"]))
        epoch = int(state["epoch"])
        engine.state.epoch = epoch
        engine.state.iteration = epoch * (engine.state.epoch_length or 0)
        if epoch >= (engine.state.max_epochs or 0):
            logger.warning("%s is at epoch %d of %s: nothing left to train", self.path, epoch, engine.state.max_epochs)
        logger.info("resumed from %s at epoch %d", self.path, epoch)

    def _save(self, engine: Engine) -> None:
        last = engine.state.epoch == engine.state.max_epochs
        if rank() == 0 and (last or engine.state.epoch % self.interval == 0):
            state = {name: obj.state_dict() for name, obj in self.objects.items()}
            broken = [name for name, part in state.items() if not _is_finite(part)]
            if broken:
                raise InputError(
                    f"epoch {engine.state.epoch}: {', '.join(broken)} hold NaN or infinite values, training has "
                    f"diverged; {self.path} keeps the last good state: "
                    "resume with a lower learning rate or with clip_norm"
                )
            save_atomically(state | {"epoch": engine.state.epoch}, self.path)


def _is_finite(state: Mapping[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values() if isinstance(value, torch.Tensor))


def _replay(scheduler: Any, epochs: int) -> None:
    """Bring a schedule of another length than the checkpoint's to where it would be now.

    Loading the old state would bring the old length back with it, and the learning rate would rise again after its end.
    """
    for group in scheduler.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped in between
        for _ in range(epochs):
            scheduler.step()


class SaveBestWeights:
    """Attached to a validation engine: writes the network's bare state dict when the key metric is the best so far.

    Args:
        network: whose weights to save.
        path: the file, for example ``models/model.pt``.
        lower_is_better: direction of the key metric; the engine's ``metric_cmp_fn`` must agree.
        half: store floating-point tensors as float16 (half the size; loading casts them back).
    """

    def __init__(
        self, network: torch.nn.Module, path: str | Path, *, lower_is_better: bool, half: bool = False
    ) -> None:
        self.network, self.path, self.lower, self.half = network, Path(path), lower_is_better, half
        self.best = float("inf") if lower_is_better else float("-inf")

    def state_dict(self) -> dict[str, float]:
        """The best value so far, for a checkpoint: a resumed training must not replace better weights."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the best value of a checkpoint."""
        self.best = float(state["best"])

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        value = float(engine.state.metrics[engine.state.key_metric_name])  # type: ignore[attr-defined]
        better = value < self.best if self.lower else value > self.best
        if better and rank() == 0:
            self.best = value
            module = getattr(self.network, "module", self.network)
            save_atomically(weights_of(module, half=self.half), self.path)
            logger.info("best %s so far, %.5f: %s", engine.state.key_metric_name, value, self.path)  # type: ignore[attr-defined]


def weights_of(module: torch.nn.Module, *, half: bool = False) -> dict[str, torch.Tensor]:
    """The state dict on the CPU, floating-point tensors as float16 if ``half``."""
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    return {name: t.half() if half and t.is_floating_point() else t for name, t in state.items()}


def extract_weights(checkpoint: str | Path, output: str | Path, *, name: str = "network") -> Path:
    """Take one network's weights out of a :class:`TrainingCheckpoint` file and write them as a float16 state dict.

    Raises:
        InputError: when the file cannot be read or holds no network of that name.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{checkpoint}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if name not in state:
        raise InputError(f"{checkpoint}: holds no {name!r}, only {', '.join(sorted(state))}")
    save_atomically({key: t.half() if t.is_floating_point() else t for key, t in state[name].items()}, output)
    return Path(output)
