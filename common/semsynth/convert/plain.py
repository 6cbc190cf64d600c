"""Autoencoders and diffusion U-Nets without label maps, as the published bundles have them, as ours with SPADE.

A norm with weight w and bias b is a SPADE whose 1 + γ and β are w and b in every voxel. So the result gives their
output for any label map, and a training can start from it: it finds out what to make of the labels.

The published ones: ``autoencoder.pt`` and ``model.pt`` of the bundle brain_image_synthesis_latent_diffusion_model, and
those of the bundle maisi_ct_generative (Project-MONAI/model-zoo, configs/inference.json of each).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..errors import InputError
from ..networks.autoencoder import SPADEAutoencoder
from ..networks.blocks.spade import SPADEOptions
from ..networks.denoiser import SPADEUNet
from .autoencoder import Layout, check_image, layout_of, pairing_of, posterior_head, widths_of
from .common import Conversion, Weights, check_eps, check_groups, refuse_flat, shape_of
from .denoiser import heads_of, levels_of
from .denoiser import pairing_of as unet_pairing_of
from .pairing import Pairing
from .parts import refuse_missing_parts

_UNET = "DiffusionModelUNet"
_SPLIT = re.compile(r"^((?:en|de)coder\.blocks\.\d+\..*\bconv)\.conv\.(weight|bias)$")
_TRANSPOSED = re.compile(r"decoder\.blocks\.\d+\.deconv\..+")


def convert_plain_autoencoder(
    weights: Weights,
    *,
    num_classes: int | None = None,
    groups: int = 32,
    eps: float = 1e-6,
    signed: bool = False,
) -> Conversion[SPADEAutoencoder]:
    """MONAI's or monai-generative's ``AutoencoderKL``, or MONAI's ``AutoencoderKlMaisi``, as our ``SPADEAutoencoder``.

    With sizes that are multiples of the compression, ``theirs.encode(x)`` is ``ours.encode(x)`` and
    ``theirs.decode(z)`` is ``ours.decode(z, label)`` for any label map. Theirs returns mean and σ, ours mean and
    log σ², which it cuts off at 4, theirs at 20.

    ``AutoencoderKlMaisi`` computes its convolutions in parts (num_splits) and, with norm_float16, rounds its norms;
    ours does neither.

    Args:
        weights: their weights, in 3D; of ``AutoencoderKlMaisi`` those with use_convtranspose=False, which leaves no
            trace in them.
        num_classes: number of classes of the label maps that it is to be trained on.
        groups: its norm_num_groups; 32 is the default.
        eps: its norm_eps.
        signed: it was trained on intensities in [-1, 1]; the published ones were on [0, 1]. Then
            ``theirs.encode(x)`` is ``ours.encode((x + 1) / 2)`` and ``theirs.decode(z)`` is
            ``2 * ours.decode(z, label) - 1``.

    Raises:
        InputError: without ``num_classes``; for weights in 2D; for an image or reconstruction of several channels; for
            transposed convolutions; for non-local attention in one half only; for groups that do not divide the widths;
            for anything but such an autoencoder.

    Examples:
        >>> from monai.networks.nets import AutoencoderKL
        >>> theirs = AutoencoderKL(
        ...     3, channels=(8, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4,
        ...     latent_channels=2, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
        ... )
        >>> ours = convert_plain_autoencoder(theirs.state_dict(), num_classes=4, groups=4).module()
        >>> z, label = torch.randn(1, 2, 4, 4, 4), torch.randint(0, 4, (1, 1, 8, 8, 8))
        >>> bool(torch.allclose(ours.decode(z, label), theirs.eval().decode(z), atol=1e-4))
        True
    """
    refuse_flat(weights)
    maisi = "encoder.blocks.0.conv.conv.weight" in weights
    what = "AutoencoderKlMaisi" if maisi else "AutoencoderKL"
    bare = _unsplit(weights) if maisi else weights
    _refuse_transposed(bare)
    layout = layout_of(bare, what)
    check_image(bare, layout)
    arguments = _arguments(bare, layout, groups, eps) | {
        "num_classes": _checked_classes(num_classes),
        "resampling": "smooth" if maisi else "strided",
        "signed": signed,
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADEAutoencoder(**arguments).state_dict()
    pairing = pairing_of(bare, shapes, layout)
    own = pairing.converted(what) | posterior_head(bare, layout)
    return Conversion("autoencoder", own, arguments, SPADEAutoencoder, pairing.skipped, _initial(pairing))


def convert_plain_denoiser(
    weights: Weights,
    *,
    num_classes: int | None = None,
    groups: int = 32,
    eps: float = 1e-6,
    head_channels: int | Sequence[int] | None = 8,
    stride: int = 8,
) -> Conversion[SPADEUNet]:
    """MONAI's or monai-generative's ``DiffusionModelUNet``, or ``DiffusionModelUNetMaisi``, as our ``SPADEUNet``.

    With sizes of the latent that are multiples of 2^(levels - 1), ``theirs(x, timesteps)`` is
    ``ours(x, timesteps, ours.encode(label))`` for any label map ``stride`` times as large.

    Args:
        weights: their weights, in 3D.
        num_classes: number of classes of the label maps that it is to be trained on.
        groups, eps, head_channels, stride: as in :func:`~semsynth.convert.convert_denoiser`.

    Raises:
        InputError: without ``num_classes``; for parts that have no counterpart, with all that have one and all that
            have none; as in :func:`~semsynth.convert.convert_denoiser`.

    Examples:
        >>> from monai.networks.nets import DiffusionModelUNet
        >>> theirs = DiffusionModelUNet(
        ...     3, 2, 2, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4,
        ...     num_head_channels=8,
        ... ).eval()
        >>> ours = convert_plain_denoiser(theirs.state_dict(), num_classes=4, groups=4, stride=2).module()
        >>> x, timestep, label = torch.randn(1, 2, 4, 4, 4), torch.tensor([9]), torch.randint(0, 4, (1, 1, 8, 8, 8))
        >>> bool(torch.allclose(ours(x, timestep, ours.encode(label)), theirs(x, timestep), atol=1e-4))
        True
    """
    refuse_flat(weights)
    refuse_missing_parts(weights, _UNET)
    blocks, widths, attention = levels_of(weights)
    arguments: dict[str, Any] = {
        "num_classes": _checked_classes(num_classes),
        "latent_channels": shape_of(weights, "conv_in.conv.weight")[1],
        "channels": widths,
        "stride": stride,
        "blocks": blocks,
        "attention": attention,
        "head_channels": heads_of(head_channels, attention),
        "spade": _spade(groups, eps, widths),
        "labels": "fractions",
        "middle_spade": True,
        "middle_attention": True,
        "embedding": "add",
        "resampling": "strided",
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADEUNet(**arguments).state_dict()
    pairing = unet_pairing_of(weights, shapes, blocks, attention)
    own = pairing.converted(_UNET)
    return Conversion("denoiser", own, arguments, SPADEUNet, pairing.skipped, _initial(pairing))


def _arguments(weights: Weights, layout: Layout, groups: int, eps: float) -> dict[str, Any]:
    widths = widths_of(weights, layout)
    return {
        "channels": widths,
        "strides": [1] + [2] * (len(widths) - 1),
        "latent_channels": shape_of(weights, "post_quant_conv.conv.weight")[0],
        "blocks": [level.count("R") for level in layout.levels],
        "spade": _spade(groups, eps, widths),
        "labels": "fractions",
        "attention": ["A" in level for level in layout.levels],
        "middle": layout.middle,
        "last_norm": True,
    }


def _refuse_transposed(weights: Weights) -> None:
    transposed = [key for key in weights if _TRANSPOSED.fullmatch(key)]
    if transposed:
        raise InputError(
            f"{transposed[0]}: transposed convolutions, which semsynth's autoencoder does not have. Give weights "
            "trained with use_convtranspose=False, or use these with MONAI's own class"
        )


def _unsplit(weights: Weights) -> dict[str, torch.Tensor]:
    """The names of ``AutoencoderKlMaisi``, which wraps each convolution once more, as ``AutoencoderKL`` has them."""
    return {_SPLIT.sub(r"\1.\2", key): tensor for key, tensor in weights.items()}


def _checked_classes(num_classes: int | None) -> int:
    if num_classes is None:
        raise InputError(
            "weights of a network without label maps do not tell how many classes yours have; give --num-classes, the "
            "background one of them"
        )
    return num_classes


def _spade(groups: int, eps: float, widths: Sequence[int]) -> dict[str, Any]:
    check_eps(eps)
    check_groups(groups, widths)
    return asdict(SPADEOptions(norm="group", groups=groups, eps=eps))


def _initial(pairing: Pairing) -> dict[str, str]:
    reason = (
        "the label branch, of which theirs has none: drawn anew, and without effect (gamma_beta.weight is 0) until it "
        "is trained"
    )
    return {f"{norm}.shared": reason for norm in pairing.plain}
