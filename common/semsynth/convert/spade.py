"""``SPADE``, its residual block and the blocks of ``SPADENet``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..networks.blocks.spade import SPADE, SPADEOptions, SPADEResBlock
from .common import (
    PARTS,
    Conversion,
    Weights,
    compare,
    copy_of,
    refuse_flat,
    shape_of,
    some,
    spade_options,
    spade_sizes,
)

_NET_BLOCK = re.compile(r"(decoder\.)?blocks\.(\d+)\.(.+)")
_FIXED_SIZE = re.compile(r"(decoder\.)?fc|encoder\.fc_(mu|var)")
_OTHER_LAYER = re.compile(r"(decoder\.)?(conv_init|last_conv)\..+|encoder\.blocks\.\d+\..+")


def convert_spade(weights: Weights, *, groups: int | None = None, eps: float = 1e-5) -> Conversion[SPADE]:
    """MONAI's or monai-generative's ``SPADE`` as our :class:`~semsynth.networks.blocks.spade.SPADE`.

    The result is the same for a label encoding at the features' resolution; theirs brings it there by ``nearest``.

    Args:
        weights: their weights, in 3D.
        groups: number of groups of its norm ``("GROUP", {"num_groups": …, "affine": False})``; without it
            ``"INSTANCE"``, their default.
        eps: epsilon of that norm.

    Raises:
        InputError: for weights in 2D, of a norm with parameters or running statistics, with a kernel that ours cannot
            have, or of anything but a ``SPADE``; for groups that do not divide the channels.

    Examples:
        >>> from monai.networks.blocks.spade_norm import SPADE as MonaiSPADE
        >>> theirs = MonaiSPADE(label_nc=4, norm_nc=8, spatial_dims=3)
        >>> ours = convert_spade(theirs.state_dict()).module()
        >>> x, label = torch.randn(1, 8, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)
        >>> bool(torch.allclose(ours(x, label), theirs(x, label), atol=1e-5))
        True
    """
    _refuse_what_cannot_be(weights)
    labels, channels, hidden, kernel = spade_sizes(weights, "")
    compare(weights, _spade_shapes("", labels, channels, hidden, kernel), "SPADE")
    arguments = {
        "label_channels": labels,
        "channels": channels,
        "options": spade_options(hidden, kernel, groups, eps, channels=[channels]),
    }
    return Conversion("spade", _spade_weights(weights, ""), arguments, _build_spade)


def convert_spade_block(
    weights: Weights, *, groups: int | None = None, eps: float = 1e-5, slope: float = 0.2
) -> Conversion[SPADEResBlock]:
    """MONAI's ``SPADENetResBlock`` or monai-generative's ``SPADEResNetBlock`` as our ``SPADEResBlock``.

    Args:
        weights: their weights, in 3D.
        groups, eps: as in :func:`convert_spade`.
        slope: negative slope of the activations, 0 or more (0.2 is their default, and all that monai-generative has).

    Raises:
        InputError: as in :func:`convert_spade`; for a negative slope.

    Examples:
        >>> from monai.networks.nets.spade_network import SPADENetResBlock
        >>> theirs = SPADENetResBlock(3, 8, 16, label_nc=4, spade_intermediate_channels=8)
        >>> ours = convert_spade_block(theirs.state_dict()).module()
        >>> ours(torch.randn(1, 8, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)).shape
        torch.Size([1, 16, 8, 8, 8])
    """
    if not (math.isfinite(slope) and slope >= 0):
        raise InputError(f"slope must be 0 or more, got {slope}")
    _refuse_what_cannot_be(weights)
    channels, out_channels = shape_of(weights, "conv_0.conv.weight")[1], shape_of(weights, "conv_1.conv.weight")[0]
    labels, _, hidden, kernel = spade_sizes(weights, "norm_0.")
    middle = min(channels, out_channels)
    norms, convolutions = {"norm_0": channels, "norm_1": middle}, ["conv_0", "conv_1"]
    shapes = _conv_shapes("conv_0", middle, channels, 3) | _conv_shapes("conv_1", out_channels, middle, 3)
    if channels != out_channels:
        norms["norm_s"], convolutions = channels, [*convolutions, "conv_s"]
        shapes |= _conv_shapes("conv_s", out_channels, channels, 1)
    for name, width in norms.items():
        shapes |= _spade_shapes(f"{name}.", labels, width, hidden, kernel)
    compare(weights, shapes, "SPADE residual block")
    own = {f"{name}.{part}": copy_of(weights[f"{name}.conv.{part}"]) for name in convolutions for part in PARTS}
    for name in norms:
        own |= _spade_weights(weights, f"{name}.")
    arguments = {
        "channels": channels,
        "out_channels": out_channels,
        "label_channels": labels,
        "slope": slope,
        "options": spade_options(hidden, kernel, groups, eps, channels=list(norms.values())),
    }
    return Conversion("spade_block", own, arguments, _build_block)


def convert_spade_net(
    weights: Weights, *, groups: int | None = None, eps: float = 1e-5, slope: float = 0.2, blocks_only: bool = False
) -> Conversion[nn.ModuleDict]:
    """The residual blocks of a ``SPADENet`` (or of its ``SPADEDecoder``) of either package.

    Args:
        weights: weights of the whole network.
        groups, eps, slope: as in :func:`convert_spade_block`, for all blocks.
        blocks_only: leave out everything else. Without it there is an error where there is anything else, as in every
            ``SPADENet``.

    Returns:
        A module of ``blocks``, coarse to fine, under the names that they have in
        :class:`~semsynth.networks.spade_gan.SPADEGenerator`.

    Raises:
        InputError: as in :func:`convert_spade_block`; naming the layers that have no counterpart, and why.

    Examples:
        >>> from monai.networks.nets import SPADENet
        >>> theirs = SPADENet(3, 1, 1, 4, [8, 8, 8], [4, 6], z_dim=5, spade_intermediate_channels=7)
        >>> list(convert_spade_net(theirs.state_dict(), blocks_only=True).module())
        ['blocks']
    """
    blocks, skipped = _split_net(weights)
    parts = []
    for number, block in enumerate(blocks):
        try:
            parts.append(convert_spade_block(block, groups=groups, eps=eps, slope=slope))
        except InputError as error:
            raise InputError(f"residual block {number}: {error}") from error
    shared = {key: parts[0].arguments[key] for key in ("label_channels", "slope", "options")}
    if any(part.arguments[key] != value for part in parts for key, value in shared.items()):
        raise InputError("the residual blocks differ in label channels, hidden width or kernel; convert each (--name)")
    if skipped and not blocks_only:
        raise InputError(
            f"{len(parts)} residual blocks can be converted, these layers cannot; leave them out with --blocks-only:",
            [f"{layer}: {reason}" for layer, reason in skipped.items()],
        )
    own = {f"blocks.{number}.{key}": value for number, part in enumerate(parts) for key, value in part.weights.items()}
    widths = [{key: part.arguments[key] for key in ("channels", "out_channels")} for part in parts]
    return Conversion("spade_net", own, {"blocks": widths, **shared}, _build_blocks, skipped)


def _split_net(weights: Weights) -> tuple[list[dict[str, torch.Tensor]], dict[str, str]]:
    """A network's residual blocks in order, and its other layers with the reason why they are left out."""
    blocks: dict[int, dict[str, torch.Tensor]] = {}
    skipped: dict[str, str] = {}
    unknown = []
    prefix = "decoder." if any(key.startswith("decoder.") for key in weights) else None
    for key, tensor in weights.items():
        layer = key.rpartition(".")[0]
        match = _NET_BLOCK.fullmatch(key)
        if match and match[1] == prefix:
            blocks.setdefault(int(match[2]), {})[match[3]] = tensor
        elif _FIXED_SIZE.fullmatch(layer):
            skipped[layer] = "a linear layer, tied to one input_shape; semsynth's networks take any, and pool instead"
        elif _OTHER_LAYER.fullmatch(key):
            skipped[layer] = "is in no residual block, and has no counterpart here"
        else:
            unknown.append(key)
    if unknown:
        raise InputError(
            f"not a SPADENet as MONAI and monai-generative have it, {some(unknown)} are unknown; convert its residual "
            "blocks one by one (--name decoder.blocks.0)"
        )
    if not blocks or sorted(blocks) != list(range(len(blocks))):
        raise InputError(f"residual blocks are missing, there are only {sorted(blocks)}; give the whole state dict")
    return [blocks[number] for number in sorted(blocks)], skipped


def _build_spade(label_channels: int, channels: int, options: Mapping[str, Any]) -> SPADE:
    return SPADE(label_channels, channels, SPADEOptions(**options))


def _build_block(
    channels: int, out_channels: int, label_channels: int, slope: float, options: Mapping[str, Any]
) -> SPADEResBlock:
    return SPADEResBlock(channels, out_channels, label_channels, SPADEOptions(**options), slope=slope)


def _build_blocks(blocks: Sequence[Mapping[str, Any]], **shared: Any) -> nn.ModuleDict:
    return nn.ModuleDict({"blocks": nn.ModuleList(_build_block(**widths, **shared) for widths in blocks)})


def _spade_weights(weights: Weights, prefix: str) -> dict[str, torch.Tensor]:
    """One normalisation's tensors under our names: γ and β come from one convolution, γ first."""
    own = {}
    for part in PARTS:
        own[f"{prefix}shared.{part}"] = copy_of(weights[f"{prefix}mlp_shared.conv.{part}"])
        gamma, beta = (copy_of(weights[f"{prefix}{name}.conv.{part}"]) for name in ("mlp_gamma", "mlp_beta"))
        own[f"{prefix}gamma_beta.{part}"] = torch.cat([gamma, beta])
    return own


def _spade_shapes(prefix: str, labels: int, channels: int, hidden: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of one normalisation's tensors in either package."""
    shapes = _conv_shapes(f"{prefix}mlp_shared", hidden, labels, kernel)
    for name in ("mlp_gamma", "mlp_beta"):
        shapes |= _conv_shapes(f"{prefix}{name}", channels, hidden, kernel)
    return shapes


def _conv_shapes(name: str, out_channels: int, channels: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv.weight": (out_channels, channels, *[kernel] * 3), f"{name}.conv.bias": (out_channels,)}


def _refuse_what_cannot_be(weights: Weights) -> None:
    """Raise for weights in 2D, and for those of a norm that is not parameter-free."""
    refuse_flat(weights)
    norm = [key for key in weights if "param_free_norm." in key]
    if any(".running_" in key for key in norm):
        raise InputError(
            f"a batch norm (or one that tracks statistics) under SPADE: {some(norm)}; it normalises by what it saw in "
            "training, semsynth's by each volume itself. Give weights trained with norm='INSTANCE'"
        )
    if norm:
        raise InputError(
            f"a norm with weights under SPADE: {some(norm)}; semsynth's has none, and γ and β, normalised themselves, "
            "cannot take them up. Give weights trained with norm='INSTANCE' or a norm with 'affine': False"
        )
