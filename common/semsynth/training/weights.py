"""A network's weights as files of their own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..files import sha256, write_text
from ..paths import as_path
from ..provenance.cards import TrainingRecord, write_model_card
from ..provenance.seen import UNKNOWN_PARENTS, Seen, read_card
from ..weight_files import read_tensors
from .checkpoints import newest_checkpoint, not_finite, rounded, save_atomically

logger = logging.getLogger(__name__)


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
    path = as_path(path, "weights")
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; train the bundle first, or give another path")
    state: Any = read_tensors(path)
    if isinstance(state, dict) and isinstance(state.get("objects"), dict):
        state = state["objects"].get(name, {})
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: holds no weights of a network ({name!r}); give a bundle's model.pt or a checkpoint")
    return state


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
            :func:`semsynth.training.checkpoints.rounded`; 10 changes nothing, 8 makes it about a fifth smaller); None
            writes a plain one.

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
    record = state.get("record") or {UNKNOWN_PARENTS: [Path(checkpoint).name]}
    facts = {key: value for key, value in record.items() if key != "config"}
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
    card = read_card(source.with_suffix(".json"))
    if not Seen.of(source).known:  # the card of another file: what it says of cases is not of these weights
        card |= {"training_cases": [], UNKNOWN_PARENTS: [source.name]}
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
