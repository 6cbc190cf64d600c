"""Which parts of a diffusion U-Net of theirs have a counterpart in ours, and which have none."""

from __future__ import annotations

import re

from ..errors import InputError
from .common import Weights, some

_NONE = {
    r".+\.transformer_blocks\..+": "cross-attention; semsynth's U-Net is told the label map and the time step alone. "
    "Give weights trained with with_conditioning=False",
    r"class_embedding\..+": "class embeddings, which semsynth's U-Net does not have. Give weights trained without "
    "num_class_embeds",
    r"(spacing|(top|bottom)_region_index)_layer\..+": "inputs for voxel size and body region, which semsynth's U-Net "
    "does not have. Give weights trained without include_spacing_input and include_…_region_index_input",
    r".+\.(down|up)sampler\.conv1\..+": "residual blocks that change the resolution; semsynth's U-Net does it by a "
    "convolution. Give weights trained with resblock_updown=False",
    r"controlnet_.+": "a ControlNet, which adds to the features of another U-Net; semsynth's is told the label map by "
    "SPADE",
}
_SOME = {
    "first convolution": r"conv_in\..+",
    "time embedding": r"time_embed\..+",
    "residual blocks": r".+\.(resnets\.\d+|resnet_\d)\..+",
    "self-attention": r".+\.attentions?\.(\d+\.)?(to_.|qkv|attn)\b.+",
    "resampling convolutions": r".+\.(downsampler\.op|upsampler\.(conv|postconv))\..+",
    "last norm and convolution": r"out\..+",
}


def refuse_missing_parts(weights: Weights, what: str) -> None:
    """Raise for a U-Net that ours cannot be, with all parts that have no counterpart, and those that have one.

    Args:
        weights: theirs.
        what: its class, for the message.

    Raises:
        InputError: naming the tensors of each such part, why it has none, and what to do.
    """
    problems = []
    for pattern, reason in _NONE.items():
        found = [key for key in weights if re.fullmatch(pattern, key)]
        if found:
            problems.append(f"{some(found, 2)}: {reason}")
    first, last = weights.get("conv_in.conv.weight"), weights.get("out.2.conv.weight")
    channels = None if first is None or last is None else (first.shape[1], last.shape[0])
    if channels and channels[0] != channels[1]:
        problems.append(
            f"conv_in.conv.weight: {channels[0]} channels in and {channels[1]} out; semsynth's predicts as many "
            "channels as it gets, and is given no conditions as channels. Give weights trained with in_channels and "
            "out_channels alike"
        )
    if not problems:
        return
    theirs = [name for name, pattern in _SOME.items() if any(re.fullmatch(pattern, key) for key in weights)]
    if channels and channels[0] != channels[1] and "first convolution" in theirs:
        theirs.remove("first convolution")
    raise InputError(
        f"semsynth's U-Net has no counterpart for parts of this {what}. What was trained with them works with them "
        "alone, so nothing is taken over; use these weights with MONAI's own class. Counterparts there are for "
        f"{', '.join(theirs) or 'nothing'}; none for:",
        problems,
    )
