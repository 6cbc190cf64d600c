"""A network's weights as files of their own, read, and written with a card that says what they are: best, final."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader

from ..distributed import rank
from ..errors import InputError, is_out_of_memory
from ..paths import as_path
from ..provenance.cards import TrainingRecord
from ..provenance.replacing import check_replaced_weights
from ..tensor_files import read_tensors
from ..training.checkpoints import not_finite
from ..training.weights import save_weights

logger = logging.getLogger(__name__)


class LoadWeights(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` for a file that somebody typed.

    Args:
        load_path: file of weights.
        kwargs: all else that ``monai.handlers.CheckpointLoader`` takes.

    Raises:
        InputError: for a path that is no text; (when it loads) for a file that cannot be read as weights of the
            network, or whose weights hold NaN or infinite values.
    """

    def __init__(self, load_path: str | Path, **kwargs: Any) -> None:
        super().__init__(str(as_path(load_path, "weights")), **kwargs)

    def __call__(self, engine: Engine) -> None:
        """Load the file.

        Raises:
            InputError: in one line, for a file that is missing, cannot be read or does not fit.
        """
        content = read_tensors(self.load_path)
        if not isinstance(content, dict):
            raise InputError(f"{self.load_path}: holds no weights of a network, but {type(content).__name__}; give a "
                             "bundle's model.pt")  # fmt: skip
        try:
            super().__call__(engine)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise InputError(
                f"{self.load_path}: does not fit the network ({' '.join(lines[:2])[:300]}); give weights that this "
                "config has trained, or the config that they were trained with"
            ) from error
        broken = not_finite({name: dict(part.state_dict()) for name, part in self.load_dict.items()})
        if broken:
            raise InputError(
                f"{self.load_path}: NaN or infinite values in {', '.join(broken[:3])}{' …' if broken[3:] else ''}: the "
                "weights of a training that diverged; give other weights"
            )


class SaveBestWeights:
    """Attached to a validation engine: writes the network's bare state dict when the key metric is the best so far.

    Beside it a card of the same name with ``.json`` says what it was trained on, by which command, and its SHA-256.

    Args:
        network: whose weights to save.
        path: the file, for example ``runs/train/model.pt``.
        lower_is_better: direction of the key metric; the engine's ``metric_cmp_fn`` must agree.
        half: store floating-point tensors as float16 (half the size; loading casts them back).
        record: goes into the card.

    Raises:
        InputError: (when it is attached) where the file, or a card of that name, is there and is none of ours.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | Path,
        *,
        lower_is_better: bool,
        half: bool = False,
        record: TrainingRecord | None = None,
    ) -> None:
        self.network, self.path, self.lower, self.half = network, as_path(path, "best_weights"), lower_is_better, half
        self.record = record
        self.best = float("inf") if lower_is_better else float("-inf")

    def state_dict(self) -> dict[str, float]:
        """The best value so far, for a checkpoint: a resumed training must not replace better weights."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the best value of a checkpoint."""
        self.best = float(state["best"])

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        check_replaced_weights(self.path, instead="best_weights")
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        name = engine.state.key_metric_name  # type: ignore[attr-defined]
        value = float(engine.state.metrics[name])
        better = value < self.best if self.lower else value > self.best
        if better and rank() == 0:
            save_weights(
                self.network, self.path, half=self.half, record=self.record,
                metric={"name": name, "value": round(value, 6), "epoch": engine.state.epoch},
            )  # fmt: skip
            self.best = value
            logger.info("best %s so far, %.5f: %s", name, value, self.path)


class SaveFinalWeights:
    """Attached to a trainer: writes the network's bare state dict, and its card, when the training is done.

    Args:
        network, path, half, record: as in :class:`SaveBestWeights`.

    Raises:
        InputError: as :class:`SaveBestWeights`.
    """

    def __init__(
        self, network: torch.nn.Module, path: str | Path, *, half: bool = False, record: TrainingRecord | None = None
    ) -> None:
        self.network, self.path, self.half, self.record = network, as_path(path, "final_weights"), half, record

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        check_replaced_weights(self.path, instead="final_weights")
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        if rank() == 0 and engine.state.epoch == engine.state.max_epochs:
            save_weights(
                self.network, self.path, half=self.half, record=self.record, metric={"epoch": engine.state.epoch}
            )
