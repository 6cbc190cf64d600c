"""``SPADEDiffusionModelUNet`` as our U-Net."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..networks.denoiser import SPADEUNet
from .common import Conversion, Weights, check_classes, refuse_flat, shape_of, spade_options, spade_sizes
from .pairing import Pairing
from .parts import refuse_missing_parts

WHAT = "SPADEDiffusionModelUNet"
_UP = re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\..+")
_FIXED = {
    "labels": "nearest",
    "middle_spade": False,
    "middle_attention": True,
    "embedding": "add",
    "resampling": "strided",
}


def convert_denoiser(
    weights: Weights,
    *,
    groups: int = 32,
    eps: float = 1e-6,
    head_channels: int | Sequence[int] | None = 8,
    stride: int = 8,
) -> Conversion[SPADEUNet]:
    """MONAI's or monai-generative's ``SPADEDiffusionModelUNet`` as our ``SPADEUNet``.

    With sizes of the latent that are multiples of 2^(levels - 1), and a label map ``stride`` times as large,
    ``theirs(x, timesteps, one_hot)`` is ``ours(x, timesteps, ours.encode(label))``.

    Widths, levels, blocks, attention and label channels are read from the weights.

    Args:
        weights: their weights, in 3D.
        groups: its norm_num_groups; 32 is the packages' default.
        eps: its norm_eps.
        head_channels: its num_head_channels, one number or one per level; 8 is the packages' default, None one head.
        stride: voxels of the label map per voxel of the latent, along each axis; 8 is that of the packages' default
            autoencoder, 1 for a U-Net of images.

    Raises:
        InputError: for weights in 2D, cross-attention, class embeddings or residual blocks that change the resolution;
            for other channels out than in; for one label channel; for groups or head_channels that do not divide the
            widths; for anything but a ``SPADEDiffusionModelUNet``.

    Examples:
        >>> from monai.networks.nets import SPADEDiffusionModelUNet
        >>> theirs = SPADEDiffusionModelUNet(
        ...     3, 2, 2, 4, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4,
        ...     spade_intermediate_channels=4,
        ... )
        >>> ours = convert_denoiser(theirs.state_dict(), groups=4, stride=2).module()
        >>> ours(torch.randn(1, 2, 4, 4, 4), torch.tensor([9]), ours.encode(torch.zeros(1, 1, 8, 8, 8))).shape
        torch.Size([1, 2, 4, 4, 4])
    """
    refuse_flat(weights)
    refuse_missing_parts(weights, WHAT)
    labels, _, hidden, kernel = spade_sizes(weights, "up_blocks.0.resnets.0.norm1.")
    check_classes(labels)
    blocks, widths, attention = levels_of(weights)
    arguments: dict[str, Any] = {
        "num_classes": labels,
        "latent_channels": shape_of(weights, "conv_in.conv.weight")[1],
        "channels": widths,
        "stride": stride,
        "blocks": blocks,
        "attention": attention,
        "head_channels": heads_of(head_channels, attention),
        "spade": spade_options(hidden, kernel, groups, eps, channels=widths, affine=True),
        **_FIXED,
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADEUNet(**arguments).state_dict()
    pairing = pairing_of(weights, shapes, blocks, attention)
    return Conversion("denoiser", pairing.converted(WHAT), arguments, SPADEUNet, pairing.skipped)


def levels_of(weights: Weights) -> tuple[list[int], list[int], list[bool]]:
    """Residual blocks, channels and attention of each level, from fine to coarse.

    They are read from the decoder, which has one block more per level than the encoder, and so at least one.
    """
    found: dict[int, set[int]] = {}
    for match in filter(None, map(_UP.fullmatch, weights)):
        found.setdefault(int(match[1]), set()).add(int(match[2]))
    fine_to_coarse = list(reversed(range(len(found))))
    blocks = [len(found.get(level, ())) - 1 for level in fine_to_coarse]
    widths = [shape_of(weights, f"up_blocks.{level}.resnets.0.conv1.conv.weight")[0] for level in fine_to_coarse]
    attention = [f"up_blocks.{level}.attentions.0.norm.weight" in weights for level in fine_to_coarse]
    return blocks, widths, attention


def heads_of(head_channels: int | Sequence[int] | None, attention: Sequence[bool]) -> int | list[int] | None:
    """The same, checked, as JSON can hold it.

    Raises:
        InputError: for another number of levels, or a number below 1 where there is attention.
    """
    if head_channels is None:
        return None
    heads = [head_channels] * len(attention) if isinstance(head_channels, int) else list(head_channels)
    # the middle takes the last one; of a level without attention it says nothing, and is often 0
    used = [number for number, wanted in zip(heads, [*attention[:-1], True], strict=False) if wanted]
    if len(heads) != len(attention) or any(number < 1 for number in used):
        raise InputError(
            f"head_channels must be 1 or more, one number or one for each of the {len(attention)} levels, got "
            f"{head_channels}"
        )
    return head_channels if isinstance(head_channels, int) else heads


def pairing_of(weights: Weights, own: Weights, blocks: Sequence[int], attention: Sequence[bool]) -> Pairing:
    """Their layers and ours.

    Args:
        weights: theirs.
        own: ours; names and shapes suffice.
        blocks, attention: blocks and attention of each level, see :func:`levels_of`.
    """
    pairing = Pairing(weights, own)
    for ours, theirs in {
        "time.0": "time_embed.0",
        "time.2": "time_embed.2",
        "start": "conv_in.conv",
        "norm": "out.0",
        "head": "out.2.conv",
    }.items():
        pairing.layer(ours, theirs)
    pairing.block("middle.0", "middle_block.resnet_1", shortcut="skip_connection")
    pairing.attention("middle.1", "middle_block.attention")
    pairing.block("middle.2", "middle_block.resnet_2", shortcut="skip_connection")
    last = len(blocks) - 1
    number = 0
    for level, count in enumerate(blocks):
        number = _level(pairing, f"down_blocks.{level}", "down", number, count, attention[level])
        if level < last:
            pairing.layer(f"down.{number}.conv", f"down_blocks.{level}.downsampler.op.conv")
            number += 1
    number = 0
    for level in reversed(range(len(blocks))):
        theirs = f"up_blocks.{last - level}"
        number = _level(pairing, theirs, "up", number, blocks[level] + 1, attention[level])
        if level:
            pairing.upsampling(f"up.{number}", f"{theirs}.upsampler")
            number += 1
    return pairing


def _level(pairing: Pairing, theirs: str, ours: str, number: int, count: int, attention: bool) -> int:
    """The blocks of one level, and our next number."""
    for i in range(count):
        pairing.block(f"{ours}.{number + i}.block", f"{theirs}.resnets.{i}", shortcut="skip_connection")
        if attention:
            pairing.attention(f"{ours}.{number + i}.attention", f"{theirs}.attentions.{i}")
    return number + count
