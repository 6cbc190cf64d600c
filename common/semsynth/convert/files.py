"""Weights of any known kind: recognised by their names, in whatever entries and prefixes, converted, written."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import InputError
from ..files import sha256
from ..provenance.cards import record_of
from ..provenance.replacing import check_replaced_weights
from ..provenance.weights import read_weights
from ..training.checkpoints import not_finite
from ..training.weights import write_weights
from .autoencoder import convert_autoencoder
from .common import Conversion, Weights, some
from .denoiser import convert_denoiser
from .plain import convert_plain_autoencoder, convert_plain_denoiser
from .spade import convert_spade, convert_spade_block, convert_spade_net

logger = logging.getLogger(__name__)

# entries of a checkpoint that holds more than weights; data parallelism, torch.compile
_PREFIXES = (
    *("state_dict.", "model_state_dict.", "unet_state_dict.", "controlnet_state_dict."),
    *("model.", "network.", "module.", "_orig_mod."),
)


class Kind(NamedTuple):
    """A kind of network whose weights can be converted.

    Attributes:
        title: for messages.
        recognises: function: bare state dict → True where it is one.
        convert: state dict → :class:`Conversion`; its keyword arguments are what a user can say about the weights.
    """

    title: str
    recognises: Callable[[Weights], bool]
    convert: Callable[..., Conversion[Any]]


def _has_key(pattern: str) -> Callable[[Weights], bool]:
    return lambda weights: any(re.fullmatch(pattern, key) for key in weights)


KINDS: dict[str, Kind] = {
    "spade": Kind("SPADE", _has_key(r"mlp_shared\.conv\.weight"), convert_spade),
    "spade_block": Kind(
        "SPADENetResBlock, SPADEResNetBlock", _has_key(r"norm_0\.mlp_shared\.conv\.weight"), convert_spade_block
    ),
    "spade_net": Kind(
        "SPADENet, SPADEDecoder",
        _has_key(r"(decoder\.)?blocks\.\d+\.norm_0\.mlp_shared\.conv\.weight"),
        convert_spade_net,
    ),
    "autoencoder": Kind(
        "SPADEAutoencoderKL",
        _has_key(r"decoder\.blocks\.\d+\.norm1\.mlp_shared\.conv\.weight"),
        convert_autoencoder,
    ),
    "denoiser": Kind(
        "SPADEDiffusionModelUNet",
        _has_key(r"up_blocks\.\d+\.resnets\.\d+\.norm1\.mlp_shared\.conv\.weight"),
        convert_denoiser,
    ),
    "plain_autoencoder": Kind(
        "AutoencoderKL, AutoencoderKlMaisi",
        _has_key(r"decoder\.blocks\.\d+\.norm1\.weight"),
        convert_plain_autoencoder,
    ),
    "plain_denoiser": Kind(
        "DiffusionModelUNet, DiffusionModelUNetMaisi",
        _has_key(r"(up|down)_blocks\.\d+\.resnets\.\d+\.norm1\.weight"),
        convert_plain_denoiser,
    ),
}


def convert(content: Any, *, name: str | None = None, **settings: Any) -> Conversion[Any]:
    """Weights of any kind that is known, recognised by their names.

    Args:
        content: a state dict, or a checkpoint that holds one (under "state_dict", "model" …, with prefixes such as
            "module.").
        name: another place of it: an entry of the checkpoint, or the prefix of its keys, "a.b" for b in a.
        settings: keyword arguments of that kind's function, such as :func:`convert_spade_net`.

    Raises:
        InputError: for weights of no known kind, or that cannot be converted; for a setting that is none of that kind.

    Examples:
        >>> from monai.networks.blocks.spade_norm import SPADE as MonaiSPADE
        >>> theirs = MonaiSPADE(label_nc=4, norm_nc=8, spatial_dims=3)
        >>> conversion = convert({"state_dict": theirs.state_dict(prefix="module.")})
        >>> conversion.kind, conversion.arguments["channels"]
        ('spade', 8)
    """
    weights = bare_weights(content, name=name)
    found = next((kind for kind in KINDS.values() if kind.recognises(weights)), None)
    if found is None:
        known = "; ".join(kind.title for kind in KINDS.values())
        raise InputError(
            f"no weights that can be converted, which are those of MONAI's and monai-generative's {known}. It has "
            f"{some(weights)}; where the network is a part of another, say with --name what stands before its keys"
        )
    taken = [*inspect.signature(found.convert).parameters][1:]
    for setting in settings:
        if setting not in taken:
            option = setting.replace("_", "-")
            raise InputError(f"--{option} says nothing about weights of {found.title}; leave it out")
    return found.convert(weights, **settings)


def bare_weights(content: Any, *, name: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict in what a file holds, without the entries and prefixes around it.

    Args:
        content, name: as in :func:`convert`.

    Raises:
        InputError: when there are no tensors, or none of that name.

    Examples:
        >>> checkpoint = {"epoch": 7, "state_dict": {"module.conv.weight": torch.zeros(8, 1, 3, 3, 3)}}
        >>> list(bare_weights(checkpoint))
        ['conv.weight']
    """
    weights = _tensors(content)
    if not weights:
        raise InputError("holds no tensors; give what torch.save(network.state_dict(), …) wrote")
    named = [] if name is None else [f"{name}."]
    while prefix := next((p for p in (*named, *_PREFIXES) if any(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        named = [] if prefix in named else named
    if named:
        raise InputError(f"has nothing under {name!r}; there are {some(weights)}")
    return weights


def _tensors(content: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of nested dictionaries, with dots between the keys."""
    if isinstance(content, torch.Tensor) and prefix:
        return {prefix: content}
    pairs = content.items() if isinstance(content, Mapping) else ()
    return {
        name: tensor
        for key, value in pairs
        for name, tensor in _tensors(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def convert_file(
    weights: str | Path, output: str | Path, *, name: str | None = None, overwrite: bool = False, **settings: Any
) -> Path:
    """Convert a file of weights, and write a card beside the result that says what it is and from what it came.

    Args:
        weights: the file; nothing in it is executed.
        output: the file to write, such as ``model.pt``; its card, ``model.json``, holds kind, SHA-256 of the source,
            what the source has seen by its own card (or that this is unknown), arguments of the module that the
            weights belong to, and the layers that were left out.
        name, settings: as in :func:`convert`.
        overwrite: replace what is there, if it is ours.

    Raises:
        InputError: as in :func:`convert`; a file that is missing, cannot be read, or would be overwritten; weights that
            are NaN or infinite.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from monai.networks.blocks.spade_norm import SPADE as MonaiSPADE
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(MonaiSPADE(label_nc=4, norm_nc=8, spatial_dims=3).state_dict(), f"{folder}/theirs.pt")
        ...     written = convert_file(f"{folder}/theirs.pt", f"{folder}/model.pt")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['model.json', 'model.pt', 'theirs.pt']
    """
    source, output = Path(weights), Path(output)
    check_paths(source, output, overwrite=overwrite)
    content: Any = read_weights(source, fix="give what torch.save(network.state_dict(), …) wrote")
    try:
        conversion = convert(content, name=name, **settings)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return write_conversion(conversion, source, output)


def write_conversion(conversion: Conversion[Any], source: Path, output: Path) -> Path:
    """Write the weights, and the card that says what they are, from what, and what that has seen.

    Args:
        conversion: conversion to be written.
        source: the file that it was made of.
        output: the file of weights.

    Raises:
        InputError: for weights that are NaN or infinite; for a file that cannot be written.
    """
    broken = not_finite(conversion.weights)
    if broken:
        raise InputError(f"{source}: NaN or infinite weights in {some(broken)}; nothing is written, give good weights")
    for layer, reason in conversion.skipped.items():
        logger.warning("%s: left out %s: %s", source.name, layer, reason)
    if conversion.initial:
        reason = next(iter(conversion.initial.values()))
        logger.warning("%s: nothing to be had for %s: %s", source.name, some(conversion.initial, 2), reason)
    past = record_of(source)
    write_weights(
        conversion.weights,
        output,
        **past,
        kind=conversion.kind,
        source={"file": source.name, "sha256": sha256(source)},
        arguments=conversion.arguments,
        skipped=conversion.skipped,
        initial=conversion.initial,
    )
    logger.info("%s: %d tensors of kind %s", output, len(conversion.weights), conversion.kind)
    return output


def check_paths(source: Path, output: Path, *, overwrite: bool) -> None:
    """Raise for a source that is missing, or an output that must not be written.

    Raises:
        InputError: naming it.
    """
    if not source.is_file():
        raise InputError(f"{source}: no such file of weights; check --weights")
    check_replaced_weights(output, source=source)
    there = [str(path) for path in (output, output.with_suffix(".json")) if path.exists()]
    if there and not overwrite:
        raise InputError(f"{' and '.join(there)}: already there; give another --output, or --overwrite")
