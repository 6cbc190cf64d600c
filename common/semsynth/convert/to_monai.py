"""Our networks as MONAI's, with the same output, where an equal one can be built.

Each function says all of what MONAI's class cannot be told, part by part, before it converts anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets.spade_autoencoderkl import SPADEAutoencoderKL
from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet
from torch import nn

from ..errors import InputError
from ..networks.autoencoder import SPADEAutoencoder
from ..networks.blocks.residual import per_level
from ..networks.blocks.spade import SPADEOptions
from ..networks.denoiser import SPADEUNet
from .autoencoder import QUANT, last_of_encoder, layout_of, pairing_of
from .common import LABEL_SLOPE, Conversion, Weights, compare, copy_of
from .denoiser import levels_of
from .denoiser import pairing_of as unet_pairing_of

_RANK = 1e-5  # singular values below this share of the largest are rounding


def to_monai_autoencoder(
    weights: Weights, arguments: Mapping[str, Any], *, mean_only: bool = False
) -> Conversion[SPADEAutoencoderKL]:
    """Our ``SPADEAutoencoder`` as MONAI's ``SPADEAutoencoderKL``.

    Intensities are as :func:`~semsynth.convert.convert_autoencoder` says. MONAI's encoder has one Z-channel convolution
    that both mean and log σ² are linear in. Weights that came from MONAI are of that form; trained on here, they are
    not any more.

    Args:
        weights: our weights.
        arguments: our arguments.
        mean_only: let log σ² be -30, so that MONAI's encoder gives the mean alone.

    Raises:
        InputError: with all parts that MONAI's has no counterpart for; for weights that do not belong to the arguments.

    Examples:
        >>> from monai.networks.nets import SPADEAutoencoderKL
        >>> from semsynth.convert import convert_autoencoder
        >>> theirs = SPADEAutoencoderKL(
        ...     3, 4, channels=(8, 8), attention_levels=(False, False), num_res_blocks=(1, 1), norm_num_groups=4,
        ...     latent_channels=2, spade_intermediate_channels=4,
        ... )
        >>> ours = convert_autoencoder(theirs.state_dict(), groups=4)
        >>> back = to_monai_autoencoder(ours.weights, ours.arguments)
        >>> back.kind, back.weights.keys() == theirs.state_dict().keys()
        ('SPADEAutoencoderKL', True)
    """
    given = complete(SPADEAutoencoder, arguments)
    widths, strides, blocks, attention = per_level(
        channels=given["channels"], strides=given["strides"], blocks=given["blocks"],
        attention=given["attention"] or False,
    )  # fmt: skip
    options = SPADEOptions(**({"norm": "voxel"} | (given["spade"] or {})))
    _raise(_autoencoder_problems(given, options, widths, strides), "autoencoder", "SPADEAutoencoderKL")
    check_own(weights, SPADEAutoencoder, given)
    theirs = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "label_nc": given["num_classes"],
        "latent_channels": given["latent_channels"],
        "channels": widths,
        "num_res_blocks": blocks,
        "attention_levels": [bool(wanted) for wanted in attention],
        "norm_num_groups": options.groups_of(widths[0]),
        "norm_eps": options.eps,
        "with_encoder_nonlocal_attn": given["middle"],
        "with_decoder_nonlocal_attn": given["middle"],
        "spade_intermediate_channels": options.hidden,
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADEAutoencoderKL(**theirs).state_dict()
    layout = layout_of(shapes)
    made = pairing_of(shapes, weights, layout).returned(weights)
    made |= _split_head(weights, last_of_encoder(layout), given["latent_channels"], mean_only=mean_only)
    skipped = {"encoder.head (log σ²)": "left out as asked; MONAI's encoder gives -30"} if mean_only else {}
    return returned(SPADEAutoencoderKL, made, theirs, shapes, skipped)


def to_monai_denoiser(weights: Weights, arguments: Mapping[str, Any]) -> Conversion[SPADEDiffusionModelUNet]:
    """Our ``SPADEUNet`` as MONAI's ``SPADEDiffusionModelUNet``.

    Args:
        weights: our weights.
        arguments: our arguments.

    Raises:
        InputError: with all parts that MONAI's has no counterpart for; for weights that do not belong to the arguments.

    Examples:
        >>> from monai.networks.nets import SPADEDiffusionModelUNet
        >>> from semsynth.convert import convert_denoiser
        >>> theirs = SPADEDiffusionModelUNet(
        ...     3, 2, 2, 4, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4,
        ...     spade_intermediate_channels=4,
        ... )
        >>> ours = convert_denoiser(theirs.state_dict(), groups=4, stride=2)
        >>> back = to_monai_denoiser(ours.weights, ours.arguments)
        >>> back.kind, back.weights.keys() == theirs.state_dict().keys()
        ('SPADEDiffusionModelUNet', True)
    """
    given = complete(SPADEUNet, arguments)
    widths, blocks, attention, heads = per_level(
        channels=given["channels"], blocks=given["blocks"], attention=given["attention"] or False,
        head_channels=given["head_channels"],
    )  # fmt: skip
    options = SPADEOptions(**(given["spade"] or {}))
    _raise(_unet_problems(given, options, widths), "denoiser", "SPADEDiffusionModelUNet")
    check_own(weights, SPADEUNet, given)
    theirs = {
        "spatial_dims": 3,
        "in_channels": given["latent_channels"],
        "out_channels": given["latent_channels"],
        "label_nc": given["num_classes"],
        "channels": widths,
        "num_res_blocks": blocks,
        "attention_levels": [bool(wanted) for wanted in attention],
        "norm_num_groups": options.groups_of(widths[0]),
        "norm_eps": options.eps,
        "num_head_channels": [head or width for head, width in zip(heads, widths, strict=True)],
        "spade_intermediate_channels": options.hidden,
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADEDiffusionModelUNet(**theirs).state_dict()
    levels = levels_of(shapes)
    made = unet_pairing_of(shapes, weights, levels[0], levels[2]).returned(weights)
    if not options.affine:  # MONAI's always is: weight 1 and bias 0 are the same
        norms = {key: shapes[key] for key in shapes if ".param_free_norm." in key}
        made |= {key: torch.full(tuple(x.shape), float(key.endswith("weight"))) for key, x in norms.items()}
    return returned(SPADEDiffusionModelUNet, made, theirs, shapes)


def spade_problems(options: SPADEOptions, *, kernel: bool = True) -> list[str]:
    """What MONAI's ``SPADE`` cannot be told, of these options.

    Args:
        options: our options.
        kernel: True where its kernel is always 3³, as in MONAI's autoencoder and U-Net.
    """
    problems = []
    if not options.normalized_modulation:
        problems.append(
            "spade, normalized_modulation=False: γ and β as the label branch gives them; in MONAI's SPADE each passes "
            "an instance norm, which makes its mean 0 and its variance 1 in every volume, whatever the weights"
        )
    if options.label_slope != LABEL_SLOPE:
        problems.append(
            f"spade, label_slope={options.label_slope:g}: of the label branch's activation; MONAI's is {LABEL_SLOPE:g}"
        )
    if options.norm == "voxel":
        problems.append("spade, norm='voxel': a norm over the channels of each voxel, which MONAI does not have")
    if kernel and options.kernel_size != 3:
        problems.append(f"spade, kernel_size={options.kernel_size}: MONAI's is 3 there")
    return problems


def _shared_problems(given: Mapping[str, Any], options: SPADEOptions, widths: Sequence[int]) -> list[str]:
    problems = spade_problems(options)
    groups = {options.groups_of(width) for width in widths}
    if options.norm != "voxel" and len(groups) > 1:
        problems.append(
            f"spade, norm and groups: {', '.join(map(str, sorted(groups)))} groups in levels of different widths; "
            "MONAI's has one number of groups (norm_num_groups)"
        )
    if given["labels"] != "nearest":
        problems.append(
            f"labels={given['labels']!r}: shares of the classes in coarse voxels; MONAI's SPADE takes the nearest voxel"
        )
    if given["resampling"] != "strided":
        problems.append(
            f"resampling={given['resampling']!r}: other convolutions, or another interpolation, than MONAI's (3³; the "
            "nearest neighbour)"
        )
    return problems


def _autoencoder_problems(
    given: Mapping[str, Any], options: SPADEOptions, widths: Sequence[int], strides: Sequence[int]
) -> list[str]:
    problems = _shared_problems(given, options, widths)
    if list(strides) != [1] + [2] * (len(strides) - 1):
        problems.append(
            f"strides {list(strides)}: MONAI's has 1 at the first level and 2 at every further one (a first level of 2 "
            "has 2³ voxels as channels of one)"
        )
    if options.affine:
        problems.append("spade, affine=True: the norm under SPADE has weights; in MONAI's autoencoder it has none")
    if not given["last_norm"]:
        problems.append("last_norm=False: no norm before the last convolutions; MONAI's always has one")
    if given["norm_eps"] not in (None, options.eps):
        problems.append(
            f"norm_eps={given['norm_eps']:g} beside {options.eps:g} under SPADE: MONAI's has one for both (norm_eps)"
        )
    if given["noise"]:
        problems.append("noise: a decoder that is given white noise; MONAI's is given latent and label map alone")
    return problems


def _unet_problems(given: Mapping[str, Any], options: SPADEOptions, widths: Sequence[int]) -> list[str]:
    problems = _shared_problems(given, options, widths)
    if given["middle_spade"]:
        problems.append("middle_spade: SPADE in the middle; MONAI's has it in the decoder alone")
    if not given["middle_attention"]:
        problems.append("middle_attention=False: MONAI's always has self-attention in the middle")
    if given["embedding"] != "add":
        problems.append(
            f"embedding={given['embedding']!r}: the time step scales and shifts the features; in MONAI's it is added"
        )
    if given["style_channels"]:
        problems.append("style_channels: a style vector beside the time step, which MONAI's is not given")
    if given["predictions"] != 1:
        problems.append(
            f"predictions={given['predictions']}: noise and latent are predicted apart; MONAI's predicts one of them"
        )
    return problems


def _raise(problems: Sequence[str], ours: str, theirs: str) -> None:
    if problems:
        raise InputError(
            f"no {theirs} of MONAI's gives the output of this {ours}; use it with semsynth, or train one with the "
            f"arguments that 'semsynth convert' writes for a {theirs}. These parts have no counterpart:",
            problems,
        )


def complete(network: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the defaults of those that are not given.

    Raises:
        InputError: for arguments that the network does not take.
    """
    try:
        bound = inspect.signature(network).bind(**arguments)
    except TypeError as error:
        raise InputError(f"arguments that are not those of a {network.__name__}: {error}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def check_own(weights: Weights, network: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """Raise unless the weights are of that network of ours.

    Raises:
        InputError: with all that differs.
    """
    with torch.device("meta"):  # its names and shapes only
        own = network(**arguments).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
    compare(weights, shapes, network.__name__, "of the stated arguments; give weights and arguments of one network")


def _split_head(weights: Weights, last: str, latent: int, *, mean_only: bool) -> dict[str, torch.Tensor]:
    """Our encoder's last convolution as MONAI's and the 1³ ones behind it: the inverse of ``posterior_head``."""
    weight, bias = (copy_of(weights[f"encoder.head.{part}"]).double() for part in ("weight", "bias"))
    flat = weight.flatten(1)
    if mean_only:
        basis, mean = flat[:latent], torch.eye(latent, dtype=torch.float64)
        factors, shifts = [mean, torch.zeros_like(mean)], [bias[:latent], torch.full_like(bias[latent:], -30.0)]
    else:
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        if bool((values[latent:] > _RANK * values[0]).any()):
            raise InputError(
                f"the encoder's mean and log σ² are not made of {latent} common channels, as MONAI's are (its last "
                "convolution has as many as the latent): they were trained apart. Decoder and mean have counterparts; "
                "take those alone with --mean-only, or use it with semsynth"
            )
        basis = values[:latent, None] * right[:latent]
        factors, shifts = list(left[:, :latent].split(latent)), list(bias.split(latent))
    dtype = torch.float32
    made = {f"{last}.weight": basis.reshape(latent, *weight.shape[1:]).to(dtype), f"{last}.bias": torch.zeros(latent)}
    for name, factor, shift in zip(QUANT, factors, shifts, strict=True):
        made |= {f"{name}.conv.weight": factor[:, :, None, None, None].to(dtype).contiguous()}
        made |= {f"{name}.conv.bias": shift.to(dtype)}
    return made


def returned(
    network: type[Any],
    made: dict[str, torch.Tensor],
    arguments: dict[str, Any],
    shapes: Weights,
    skipped: dict[str, str] | None = None,
) -> Conversion[Any]:
    """Weights for a class of MONAI's, float32, in its order, and the arguments with its name.

    Args:
        network: MONAI's class.
        made: its weights.
        arguments: arguments of it.
        shapes: a state dict of it, for names and shapes alone.
        skipped: see :class:`~semsynth.convert.Conversion`.

    Raises:
        InputError: where the installed MONAI has other names or shapes.
    """
    compare(made, {key: tuple(tensor.shape) for key, tensor in shapes.items()}, network.__name__)
    weights = {key: made[key].float() for key in shapes}
    target = {"_target_": f"{network.__module__}.{network.__name__}"}
    return Conversion(network.__name__, weights, target | arguments, _without_target(network), skipped or {})


def _without_target(network: type[Any]) -> Callable[..., Any]:
    def build(_target_: str, **arguments: Any) -> Any:
        return network(**arguments)

    return build
