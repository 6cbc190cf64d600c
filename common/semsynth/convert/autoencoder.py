"""``SPADEAutoencoderKL`` as our autoencoder."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from ..errors import InputError
from ..networks.autoencoder import SPADEAutoencoder
from .common import (
    UNCHANGED,
    Conversion,
    Weights,
    check_classes,
    check_eps,
    copy_of,
    refuse_flat,
    shape_of,
    spade_options,
    spade_sizes,
    with_article,
)
from .pairing import Pairing

WHAT = "SPADEAutoencoderKL"
QUANT = ("quant_conv_mu", "quant_conv_log_sigma")  # our head gives the mean first
# by one of its keys: convolution, norm, residual block, attention, change of resolution (MONAI's second name: upwards)
_LAYERS = {
    "conv.weight": "C",
    "weight": "N",
    "conv1.conv.weight": "R",
    "norm.weight": "A",
    "conv.conv.weight": "S",
    "postconv.conv.weight": "S",
}


class Layout(NamedTuple):
    """How an autoencoder of theirs is built.

    Attributes:
        encoder, decoder: a letter of :data:`_LAYERS` per layer.
        levels: those of each level of the encoder, from fine to coarse, without the middle.
        middle: True where block, attention, block stand at the coarsest level.
    """

    encoder: str
    decoder: str
    levels: list[str]
    middle: bool


def convert_autoencoder(
    weights: Weights, *, groups: int = 32, eps: float = 1e-6, spade_eps: float | None = None
) -> Conversion[SPADEAutoencoder]:
    """MONAI's or monai-generative's ``SPADEAutoencoderKL`` as our ``SPADEAutoencoder``.

    Theirs takes intensities as they are, ours scales [0, 1] to [-1, 1] and back: with x in [-1, 1] and sizes that are
    multiples of the compression, ``theirs.encode(x)`` is ``ours.encode((x + 1) / 2)`` and ``theirs.decode(z, one_hot)``
    is ``2 * ours.decode(z, label) - 1``. (The same holds with x in [0, 1] for theirs trained on that.) Theirs returns
    mean and σ, ours mean and log σ², so that σ = exp(0.5 log σ²); ours cuts log σ² off at 4, σ = 7.4, theirs at 20.

    Widths, levels, blocks, attention and label channels are read from the weights. The 1³ convolutions behind the
    encoder become one with its last convolution.

    Args:
        weights: their weights, in 3D.
        groups: its norm_num_groups; 32 is the packages' default.
        eps: its norm_eps.
        spade_eps: epsilon of the norms under SPADE. None: ``eps`` for MONAI, and for monai-generative, which leaves
            them at PyTorch's default whatever norm_eps is, 1e-5. (Of one level and no attention the two have the same
            names: that is taken as MONAI's.)

    Raises:
        InputError: for weights in 2D; for an image or reconstruction of several channels; for non-local attention in
            the encoder only or in the decoder only; for one label channel; for groups that do not divide the widths;
            for anything but a ``SPADEAutoencoderKL``.

    Examples:
        >>> from monai.networks.nets import SPADEAutoencoderKL
        >>> theirs = SPADEAutoencoderKL(
        ...     3, 4, channels=(8, 8), attention_levels=(False, False), num_res_blocks=(1, 1), norm_num_groups=4,
        ...     latent_channels=2, spade_intermediate_channels=4,
        ... )
        >>> ours = convert_autoencoder(theirs.state_dict(), groups=4).module()
        >>> x = torch.rand(1, 1, 8, 8, 8) * 2 - 1
        >>> bool(torch.allclose(ours.encode((x + 1) / 2)[0], theirs.eval().encode(x)[0], atol=1e-4))
        True
    """
    refuse_flat(weights)
    layout = layout_of(weights)
    check_image(weights, layout)
    check_eps(eps)
    if spade_eps is None:
        spade_eps = 1e-5 if _of_monai_generative(weights) else eps
    arguments = _arguments(weights, layout, groups, eps, spade_eps)
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADEAutoencoder(**arguments).state_dict()
    pairing = pairing_of(weights, shapes, layout)
    own = pairing.converted(WHAT) | posterior_head(weights, layout)
    return Conversion("autoencoder", own, arguments, SPADEAutoencoder, pairing.skipped)


def check_image(weights: Weights, layout: Layout) -> None:
    """Raise for an autoencoder of more than one image channel.

    Raises:
        InputError: with the channels of image and reconstruction.
    """
    image = shape_of(weights, "encoder.blocks.0.conv.weight")[1]
    output = shape_of(weights, f"decoder.blocks.{len(layout.decoder) - 1}.conv.weight")[0]
    if (image, output) != (1, 1):
        raise InputError(
            f"an autoencoder of {image} channels in and {output} out; semsynth's has one image channel. Give weights "
            "trained with in_channels=1 and out_channels=1, or use these with MONAI's own class"
        )


def _arguments(weights: Weights, layout: Layout, groups: int, eps: float, spade_eps: float) -> dict[str, Any]:
    widths = widths_of(weights, layout)
    labels, _, hidden, kernel = spade_sizes(weights, f"decoder.blocks.{layout.decoder.find('R')}.norm1.")
    check_classes(labels)
    return {
        "num_classes": labels,
        "channels": widths,
        "strides": [1] + [2] * (len(widths) - 1),
        "latent_channels": shape_of(weights, "post_quant_conv.conv.weight")[0],
        "blocks": [level.count("R") for level in layout.levels],
        "spade": spade_options(hidden, kernel, groups, spade_eps, channels=widths),
        "labels": "nearest",
        "attention": ["A" in level for level in layout.levels],
        "middle": layout.middle,
        "last_norm": True,
        "norm_eps": eps,
        "resampling": "strided",
    }


def layout_of(weights: Weights, what: str = WHAT) -> Layout:
    """How it is built, from the names of its tensors.

    Args:
        weights: weights of an autoencoder of theirs, with SPADE or without.
        what: its class, for messages.

    Raises:
        InputError: for anything else; for non-local attention in one half only.
    """
    encoder, decoder = (_letters(weights, part) for part in ("encoder", "decoder"))
    match = re.fullmatch("C([RAS]*)NC", encoder)
    levels = match[1].split("S") if match else []
    # without a middle, the last level is blocks only, or ends with attention
    middle = bool(levels) and levels[-1].endswith("RAR")
    if middle:
        levels[-1] = levels[-1].removesuffix("RAR")
    backwards = f"{'S'.join(reversed(levels))}NC"
    if not levels or any(not re.fullmatch("R*|(RA)+", level) for level in levels) or not decoder.endswith(backwards):
        raise InputError(
            f"not {with_article(what)} {UNCHANGED}. Its layers (C convolution, R residual block, A attention, S "
            f"resampling, N norm) are {encoder or 'none'} in the encoder and {decoder or 'none'} in the decoder"
        )
    there = decoder.removesuffix(backwards) == "CRAR"
    if there != middle:
        has, lacks = ("decoder", "encoder") if there else ("encoder", "decoder")
        raise InputError(
            f"non-local attention in the {has} but not in the {lacks}; semsynth's autoencoder has it in both or in "
            "neither. Give weights trained with with_encoder_nonlocal_attn and with_decoder_nonlocal_attn alike"
        )
    return Layout(encoder, decoder, levels, middle)


def _letters(weights: Weights, part: str) -> str:
    """The layers of encoder or decoder, "" where their numbers are not 0, 1, 2 …"""
    found = {}
    for key in weights:
        match = re.fullmatch(rf"{part}\.blocks\.(\d+)\.(.+)", key)
        if match and match[2] in _LAYERS:
            found[int(match[1])] = _LAYERS[match[2]]
    numbers = sorted(found)
    return "".join(found[number] for number in numbers) if numbers == list(range(len(numbers))) else ""


def widths_of(weights: Weights, layout: Layout) -> list[int]:
    """Channels of each level, from fine to coarse."""
    width, widths, number = shape_of(weights, "encoder.blocks.0.conv.weight")[0], [], 1
    for level in layout.levels:
        if level:
            width = shape_of(weights, f"encoder.blocks.{number}.conv1.conv.weight")[0]
        widths.append(width)
        number += len(level) + 1
    return widths


def _of_monai_generative(weights: Weights) -> bool:
    own = r"(en|de)coder\.blocks\.\d+\.to_q\.weight|decoder\.blocks\.\d+\.conv\.conv\.weight"
    return any(re.fullmatch(own, key) for key in weights)


def pairing_of(weights: Weights, own: Weights, layout: Layout) -> Pairing:
    """Their layers and ours, all but the encoder's last convolution and the 1³ ones behind it.

    Args:
        weights: theirs.
        own: ours; names and shapes suffice.
        layout: their layout.
    """
    pairing = Pairing(weights, own)
    for part, letters in (("encoder", layout.encoder), ("decoder", layout.decoder)):
        pairing.layer(f"{part}.start", f"{part}.blocks.0.conv")
        for number, letter in enumerate(letters[1:-2]):
            ours, theirs = f"{part}.layers.{number}", f"{part}.blocks.{number + 1}"
            if letter == "R":
                pairing.block(ours, theirs, shortcut="nin_shortcut")
            elif letter == "A":
                pairing.attention(ours, theirs)
            else:
                pairing.upsampling(ours, theirs)  # downsampling has one of its names
        pairing.layer(f"{part}.norm", f"{part}.blocks.{len(letters) - 2}")
    pairing.layer("decoder.head", f"decoder.blocks.{len(layout.decoder) - 1}.conv")
    pairing.layer("decoder.rescale", "post_quant_conv.conv")
    channels, width, *kernel = own["encoder.head.weight"].shape
    latent = channels // 2
    last = last_of_encoder(layout)
    pairing.accepted |= {f"{last}.weight": (latent, width, *kernel), f"{last}.bias": (latent,)}
    for name in QUANT:
        pairing.accepted |= {f"{name}.conv.weight": (latent, latent, 1, 1, 1), f"{name}.conv.bias": (latent,)}
    return pairing


def last_of_encoder(layout: Layout) -> str:
    """The name of the encoder's last convolution."""
    return f"encoder.blocks.{len(layout.encoder) - 1}.conv"


def posterior_head(weights: Weights, layout: Layout) -> dict[str, torch.Tensor]:
    """The encoder's last convolution and the 1³ ones behind it as one: W = Q·W₀, b = Q·b₀ + q."""
    last = last_of_encoder(layout)
    weight, bias = (copy_of(weights[f"{last}.{part}"]) for part in ("weight", "bias"))
    kernels, shifts = [], []
    for name in QUANT:
        matrix, shift = (copy_of(weights[f"{name}.conv.{part}"]).double() for part in ("weight", "bias"))
        matrix = matrix[:, :, 0, 0, 0]
        kernels.append(torch.einsum("oz,zchwd->ochwd", matrix, weight.double()))
        shifts.append(matrix @ bias.double() + shift)
    return {
        "encoder.head.weight": torch.cat(kernels).to(weight.dtype),
        "encoder.head.bias": torch.cat(shifts).to(bias.dtype),
    }
