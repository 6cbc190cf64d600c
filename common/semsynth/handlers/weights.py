"""A network's weights as files of their own, read, and written with a card that says what they are: best, final."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader

from ..distributed import rank
from ..errors import InputError, is_out_of_memory
from ..files import atomic_path, write_text
from ..paths import as_path
from ..provenance.cards import TrainingRecord
from ..provenance.replacing import check_replaced_weights
from ..provenance.seen import read_card
from ..provenance.weights import read_weights
from ..training.checkpoints import not_finite
from ..training.weights import save_weights

logger = logging.getLogger(__name__)


class _Checked(BytesIO):
    """Tensors as ``torch.save`` writes them, in memory, called by the file that they come from."""

    name = ""

    @staticmethod
    def of(content: Any, name: str) -> _Checked:
        stream = _Checked()
        torch.save(content, stream)
        stream.seek(0)
        stream.name = name
        return stream

    def __str__(self) -> str:
        return self.name


class LoadWeights(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` for a file that somebody typed.

    Args:
        load_path: file of weights.
        kwargs: all else that ``monai.handlers.CheckpointLoader`` takes.

    Raises:
        InputError: for a path that is no text; (when it loads) for a file that cannot be read as weights of the
            network, or whose weights hold NaN or infinite values.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> there, network = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(there.state_dict(), f"{folder}/model.pt")
        ...     LoadWeights(f"{folder}/model.pt", load_dict={"network": network}).attach(engine)
        ...     _ = engine.run([0])
        >>> bool(torch.equal(network.weight, there.weight))
        True
    """

    def __init__(self, load_path: str | Path, **kwargs: Any) -> None:
        super().__init__(str(as_path(load_path, "weights")), **kwargs)

    def __call__(self, engine: Engine) -> None:
        """Load the file.

        Raises:
            InputError: in one line, for a file that is missing, cannot be read, is not the one that its card describes
                or does not fit.
        """
        content = read_weights(self.load_path)
        if not isinstance(content, dict):
            raise InputError(f"{self.load_path}: holds no weights of a network, but {type(content).__name__}; give a "
                             "bundle's model.pt")  # fmt: skip
        path = self.load_path
        try:
            self.load_path = cast(str, _Checked.of(content, path))  # MONAI loads what was checked, whatever its format
            super().__call__(engine)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise InputError(
                f"{path}: does not fit the network ({' '.join(lines[:2])[:300]}); give weights that this "
                "config has trained, or the config that they were trained with"
            ) from error
        finally:
            self.load_path = path
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
        network: network whose weights to save.
        path: the file, for example ``runs/train/model.pt``.
        lower_is_better: direction of the key metric; the engine's ``metric_cmp_fn`` must agree.
        half: store floating-point tensors as float16 (half the size; loading casts them back).
        record: goes into the card.

    Raises:
        InputError: (when it is attached) where the file, or a card of that name, is there and is none of ours.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> network = torch.nn.Linear(1, 1, bias=False)
        >>> def validate(engine, batch):  # in place of MONAI's evaluator
        ...     network.weight.data.fill_(batch)
        ...     engine.state.metrics, engine.state.key_metric_name = {"dice": batch}, "dice"
        >>> with TemporaryDirectory() as run:
        ...     validation = Engine(validate)
        ...     SaveBestWeights(network, f"{run}/model.pt", lower_is_better=False).attach(validation)
        ...     for dice in (0.5, 0.875, 0.75):
        ...         _ = validation.run([dice])
        ...     torch.load(f"{run}/model.pt", weights_only=True)["weight"].item()
        0.875
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

    Where another program has handed the cases over (MONAI Label), it also serves the result: the weights that had the
    best metric on the validation cases, or the final ones where none was measured, take the place of ``served``. What
    stood there before the first such training is kept beside it, as ``<name>_as_shipped.pt``.

    Args:
        network, path, half, record: as in :class:`SaveBestWeights`.
        best: the file of the best weights; None takes the final ones.
        served: the file of weights that such a program infers with; None leaves it as it is.

    Raises:
        InputError: as :class:`SaveBestWeights`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as run:
        ...     SaveFinalWeights(torch.nn.Linear(2, 1), f"{run}/model.pt").attach(trainer)
        ...     _ = trainer.run([0])
        ...     sorted(path.name for path in Path(run).iterdir())
        ['model.json', 'model.pt']
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | Path,
        *,
        half: bool = False,
        record: TrainingRecord | None = None,
        best: str | Path | None = None,
        served: str | Path | None = None,
    ) -> None:
        self.network, self.path, self.half, self.record = network, as_path(path, "final_weights"), half, record
        self.best = None if best is None else Path(best)
        handed_over = getattr(getattr(record, "dataset", None), "handed_over", False)
        self.served = Path(served) if served is not None and handed_over else None
        self.since = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        check_replaced_weights(self.path, instead="final_weights")
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _start(self, engine: Engine) -> None:
        self.since = time.time()
        for weights in loaded_by_others(engine):
            if self.record is not None:
                self.record.begins_with(weights)

    def _save(self, engine: Engine) -> None:
        if rank() == 0 and engine.state.epoch == engine.state.max_epochs:
            save_weights(
                self.network, self.path, half=self.half, record=self.record, metric={"epoch": engine.state.epoch}
            )
            if self.served is not None:
                made = self.best if self.best is not None and self._is_of_now(self.best) else self.path
                serve(made, self.served)

    def _is_of_now(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_mtime >= self.since


def loaded_by_others(engine: Engine) -> list[Path]:
    """Files that MONAI's own ``CheckpointLoader``, attached by another program, loads when an engine starts."""
    handlers = [
        handler for handler, _, _ in engine._event_handlers.get(Events.STARTED, [])
    ]  # ignite tells no other way
    owners = [getattr(handler, "__self__", handler) for handler in handlers]
    return [Path(owner.load_path) for owner in owners if type(owner) is CheckpointLoader]


def serve(made: Path, served: Path) -> None:
    """Put weights and their card where they are served from; the first ones there are kept as ``*_as_shipped.pt``.

    Args:
        made: weights with a card.
        served: the file whose place they take.
    """
    kept = served.with_name(f"{served.stem}_as_shipped.pt")
    if served.is_file() and not kept.exists():
        _copy(served, kept)
    _copy(made, served)
    logger.info("%s serves the weights of this training now; those of before the first one are %s", served, kept)


def _copy(weights: Path, place: Path) -> None:
    """Weights and their card under another name, each whole or not at all."""
    card = weights.with_suffix(".json")
    with atomic_path(place) as new:
        shutil.copyfile(weights, new)
        if card.is_file():
            write_text(place.with_suffix(".json"), json.dumps(read_card(card) | {"file": place.name}, indent=2) + "\n")
        else:
            place.with_suffix(".json").unlink(missing_ok=True)  # of the weights before, and no longer beside them
