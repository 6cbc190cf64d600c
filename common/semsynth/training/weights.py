"""A network's weights as files of their own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..files import sha256, write_text
from ..paths import as_path
from ..provenance.cards import TrainingRecord, write_model_card
from ..provenance.replacing import check_replaced_weights
from ..provenance.seen import UNKNOWN_PARENTS, read_card
from ..provenance.weights import read_weights
from ..tensor_files import SAFETENSORS
from .checkpoints import newest_checkpoint, not_finite, rounded, save_atomically

logger = logging.getLogger(__name__)


def take_over(network: nn.Module, path: str | Path, *, name: str = "network") -> list[str]:
    """Load what fits of a file of weights into a network, and list what does not.

    Args:
        network: changed in place.
        path: a bare state dict or a training checkpoint.
        name: name of the network in a training checkpoint.

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

    MONAI's ``CheckpointSaver`` and servers of federated learning (NVFlare) keep the state dict under ``model``.

    Raises:
        InputError: no such file, no weights in it, or another file than its card describes.
    """
    path = as_path(path, "weights")
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; train the bundle first, or give another path")
    state: Any = read_weights(path)
    if isinstance(state, dict) and isinstance(state.get("objects"), dict):
        state = state["objects"].get(name, {})
    elif isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
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
    facts: dict[str, Any] = {} if record is None else record.facts(for_card=True)
    if metric:
        facts["metric"] = dict(metric)
    write_weights(state, path, **facts)


def write_weights(
    state: Mapping[str, torch.Tensor],
    path: str | Path,
    *,
    compressed: bool = False,
    card: Callable[[Path], str] | None = None,
    **facts: Any,
) -> None:
    """Write a state dict and its card, both whole, at one moment: a kill hardly parts them.

    Args:
        state: the weights.
        path: file; see :func:`semsynth.provenance.replacing.check_replaced_weights`, which is asked again.
        compressed: see :func:`semsynth.training.checkpoints.save_atomically`.
        card: finished file of weights → text of its card; None makes one of ``facts``.
        facts: arguments of :func:`semsynth.provenance.cards.write_model_card`.

    Raises:
        InputError: for a file that is not ours, or that cannot be written.
    """
    path = Path(path)
    check_replaced_weights(path)

    def describe(written: Path) -> None:
        if card is None:
            write_model_card(path, written=written, **facts)
        else:
            write_text(path.with_suffix(".json"), card(written))

    save_atomically(state, path, compressed=compressed, describe=describe)


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
            smaller, a file of weights, whose card is carried over; or a file of weights without a card, such as the
            global model of a server of federated learning: what these were trained on is unknown.
        output: the file to write; one that ends in ``.safetensors`` gets that format.
        name: name of the network in a checkpoint.
        mantissa_bits: write a compressed file, with mantissas of so many bits (see
            :func:`semsynth.training.checkpoints.rounded`; 10 changes nothing, 8 makes it about a fifth smaller); None
            writes a plain one.

    Raises:
        InputError: when nothing good is there, or it holds no network of that name; for files that are not ours where
            the weights or their card go; for a file that is not the one that its card, or its folder's list, describes.
    """
    check_replaced_weights(output, source=checkpoint)
    if mantissa_bits is not None and Path(output).suffix == SAFETENSORS:
        raise InputError(f"{output}: safetensors are never compressed; leave --mantissa-bits out, or write a .pt")
    if Path(checkpoint).is_file() and Path(checkpoint).with_suffix(".json").is_file():
        return _smaller(Path(checkpoint), Path(output), mantissa_bits)
    found, record, metric = _tensors_of(checkpoint, name)
    weights = {key: t.half() if t.is_floating_point() else t for key, t in found.items()}
    broken = not_finite(weights)
    if broken:
        raise InputError(f"{output}: not written, values that float16 cannot hold in {', '.join(broken[:4])}")
    facts = {key: value for key, value in record.items() if key != "config"}
    for own in ("command", "versions"):  # the card's own are those of this extraction
        facts[f"training_{own}"] = facts.pop(own, None)
    stored, compressed = _stored(weights, mantissa_bits)
    write_weights(stored, output, compressed=compressed, **facts, metric=metric)
    return Path(output)


def _tensors_of(checkpoint: str | Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors of a network, what they were trained on, and the epoch, where it is known."""
    unknown = {UNKNOWN_PARENTS: [Path(checkpoint).name]}
    if Path(checkpoint).is_file():
        content: Any = read_weights(Path(checkpoint))
        if isinstance(content, dict) and "objects" not in content:  # of a server of federated learning, or of MONAI's
            return load_weights(checkpoint, name=name), unknown, {}
    state = newest_checkpoint(checkpoint)
    if name not in state["objects"]:
        raise InputError(f"{checkpoint}: holds no {name!r}, only {', '.join(sorted(state['objects']))}")
    found = state["objects"][name]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{checkpoint}: {name!r} is no network's weights; give another --name")
    return found, state.get("record") or unknown, {"epoch": int(state["epoch"])}


def _stored(weights: Mapping[str, torch.Tensor], mantissa_bits: int | None) -> tuple[Mapping[str, torch.Tensor], bool]:
    """The weights as they are written, and whether compressed."""
    if mantissa_bits is None:
        return weights, False
    return {key: rounded(tensor, mantissa_bits) for key, tensor in weights.items()}, True


def _smaller(source: Path, output: Path, mantissa_bits: int | None) -> Path:
    """A file of weights once more, compressed, with its card."""
    weights = load_weights(source)
    card = read_card(source.with_suffix(".json"))
    if card.get("sha256") is None:  # maybe of another file: then what it says of cases is not of these weights
        card |= {"training_cases": [], UNKNOWN_PARENTS: [source.name]}
    half = {key: t.half() if t.is_floating_point() else t for key, t in weights.items()}
    broken = not_finite(half)
    if broken:
        raise InputError(f"{output}: not written, values that float16 cannot hold in {', '.join(broken[:4])}")
    stored, compressed = _stored(half, mantissa_bits)
    bits = 10 if mantissa_bits is None else mantissa_bits
    how = f"float16, mantissas of {bits} bits{', compressed' if compressed else ''}"

    def text(written: Path) -> str:
        about = card | {"file": output.name, "sha256": sha256(written), "stored": how}
        return json.dumps(about, indent=2, ensure_ascii=False) + "\n"

    write_weights(stored, output, compressed=compressed, card=text)
    return output
