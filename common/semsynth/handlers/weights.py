"""A network's weights as files of their own, each with a card that says what it is: best, final, of a checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..checkpoints import newest_checkpoint, not_finite, rounded, save_atomically
from ..distributed import rank
from ..errors import InputError
from ..provenance import TrainingRecord, write_model_card
from ..volumes import sha256, write_text
from .initial import load_weights

logger = logging.getLogger(__name__)


class SaveBestWeights:
    """Attached to a validation engine: writes the network's bare state dict when the key metric is the best so far.

    Beside it a card of the same name with ``.json`` says what it was trained on, by which command, and its SHA-256.

    Args:
        network: whose weights to save.
        path: the file, for example ``runs/train/model.pt``.
        lower_is_better: direction of the key metric; the engine's ``metric_cmp_fn`` must agree.
        half: store floating-point tensors as float16 (half the size; loading casts them back).
        record: goes into the card.
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
        self.network, self.path, self.lower, self.half = network, Path(path), lower_is_better, half
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
    """

    def __init__(
        self, network: torch.nn.Module, path: str | Path, *, half: bool = False, record: TrainingRecord | None = None
    ) -> None:
        self.network, self.path, self.half, self.record = network, Path(path), half, record

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        if rank() == 0 and engine.state.epoch == engine.state.max_epochs:
            save_weights(
                self.network, self.path, half=self.half, record=self.record, metric={"epoch": engine.state.epoch}
            )


def save_weights(
    network: torch.nn.Module,
    path: str | Path,
    *,
    half: bool = False,
    record: TrainingRecord | None = None,
    metric: Mapping[str, Any] | None = None,
) -> None:
    """Write a network's bare state dict, whole or not at all, and the card that says what it is.

    Raises:
        InputError: for NaN or infinite weights (nothing is written), also those that float16 cannot hold.
    """
    state = weights_of(getattr(network, "module", network), half=half)
    broken = not_finite(state)
    if broken:
        raise InputError(f"{path}: not written, NaN or infinite weights in {', '.join(broken[:4])}")
    save_atomically(state, path)
    facts: dict[str, Any] = {} if record is None else record.facts(for_card=True)
    if metric:
        facts["metric"] = dict(metric)
    try:
        write_model_card(path, **facts)
    except OSError as error:
        raise InputError(f"{path}: its card cannot be written ({error.strerror}); free disk space") from error


def weights_of(module: torch.nn.Module, *, half: bool = False) -> dict[str, torch.Tensor]:
    """The state dict on the CPU, floating-point tensors as float16 if ``half``."""
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    return {name: t.half() if half and t.is_floating_point() else t for name, t in state.items()}


def extract_weights(
    checkpoint: str | Path, output: str | Path, *, name: str = "network", mantissa_bits: int | None = None
) -> Path:
    """Take one network's weights out of a checkpoint and write them as a float16 state dict with their card.

    Args:
        checkpoint: a checkpoint file, its folder, or the run's folder (then the newest good one); or, to be made
            smaller, a file of weights, whose card is carried over.
        output: the file to write.
        name: which network of a checkpoint.
        mantissa_bits: write a compressed file, with mantissas of so many bits (see
            :func:`semsynth.checkpoints.rounded`; 10 changes nothing, 8 makes it about a fifth smaller); None writes a
            plain one.

    Raises:
        InputError: when nothing good is there, or it holds no network of that name.
    """
    if Path(checkpoint).is_file() and Path(checkpoint).with_suffix(".json").is_file():
        return _smaller(Path(checkpoint), Path(output), mantissa_bits)
    state = newest_checkpoint(checkpoint)
    if name not in state["objects"]:
        raise InputError(f"{checkpoint}: holds no {name!r}, only {', '.join(sorted(state['objects']))}")
    weights = {key: t.half() if t.is_floating_point() else t for key, t in state["objects"][name].items()}
    broken = not_finite(weights)
    if broken:
        raise InputError(f"{output}: not written, values that float16 cannot hold in {', '.join(broken[:4])}")
    _write(weights, Path(output), mantissa_bits)
    facts = {key: value for key, value in state.get("record", {}).items() if key != "config"}
    for own in ("command", "versions"):  # the card's own are those of this extraction
        facts[f"training_{own}"] = facts.pop(own, None)
    write_model_card(output, **facts, metric={"epoch": int(state["epoch"])})
    return Path(output)


def _write(weights: Mapping[str, torch.Tensor], path: Path, mantissa_bits: int | None) -> None:
    if mantissa_bits is None:
        save_atomically(weights, path)
    else:
        save_atomically({key: rounded(t, mantissa_bits) for key, t in weights.items()}, path, compressed=True)


def _smaller(source: Path, output: Path, mantissa_bits: int | None) -> Path:
    """A file of weights once more, compressed, with its card."""
    weights = load_weights(source)
    card = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
    half = {key: t.half() if t.is_floating_point() else t for key, t in weights.items()}
    broken = not_finite(half)
    if broken:
        raise InputError(f"{output}: not written, values that float16 cannot hold in {', '.join(broken[:4])}")
    _write(half, output, mantissa_bits)
    bits = 10 if mantissa_bits is None else mantissa_bits
    stored = "" if mantissa_bits is None else ", compressed"
    card |= {"file": output.name, "sha256": sha256(output), "stored": f"float16, mantissas of {bits} bits{stored}"}
    write_text(output.with_suffix(".json"), json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return output
