"""Our SPADE, its residual block and rows of such blocks as MONAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.blocks import spade_norm
from monai.networks.nets.spade_network import SPADENetResBlock
from torch import nn

from ..errors import InputError
from ..networks.blocks.spade import SPADE, SPADEOptions, SPADEResBlock
from .common import PARTS, Conversion, Weights, copy_of
from .to_monai import check_own, complete, returned, spade_problems

_BLOCK = "SPADENetResBlock"


def to_monai_spade(weights: Weights, arguments: Mapping[str, Any]) -> Conversion[spade_norm.SPADE]:
    """Our ``SPADE`` as MONAI's. Label encodings at the features' resolution give the same output.

    Args:
        weights: our weights.
        arguments: our arguments, ``options`` as a mapping.

    Raises:
        InputError: with all options that MONAI's has no counterpart for; for weights that do not belong to the
            arguments.

    Examples:
        >>> options = {"norm": "instance", "label_slope": 0.01, "normalized_modulation": True}  # as MONAI's
        >>> ours = SPADE(4, 8, SPADEOptions(**options))
        >>> given = {"label_channels": 4, "channels": 8, "options": options}
        >>> theirs = to_monai_spade(ours.state_dict(), given).module()
        >>> x, label = torch.randn(1, 8, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)
        >>> bool(torch.allclose(theirs(x, label), ours(x, label), atol=1e-4))
        True
    """
    given = complete(SPADE, arguments)
    options = _options(given, "SPADE")
    check_own(weights, SPADE, given | {"options": options})
    norm, parameters = _norm(options, given["channels"])
    theirs = {
        "label_nc": given["label_channels"],
        "norm_nc": given["channels"],
        "kernel_size": options.kernel_size,
        "spatial_dims": 3,
        "hidden_channels": options.hidden,
        "norm": norm,
        "norm_params": parameters,
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = spade_norm.SPADE(**theirs).state_dict()
    return returned(spade_norm.SPADE, _spade_weights(weights, ""), theirs, shapes)


def to_monai_spade_block(weights: Weights, arguments: Mapping[str, Any]) -> Conversion[SPADENetResBlock]:
    """Our ``SPADEResBlock`` as MONAI's ``SPADENetResBlock``.

    Args:
        weights: our weights.
        arguments: our arguments, ``options`` as a mapping.

    Raises:
        InputError: as in :func:`to_monai_spade`; for a block that is given a style or noise.

    Examples:
        >>> options = {"norm": "instance", "label_slope": 0.01, "normalized_modulation": True}  # as MONAI's
        >>> ours = SPADEResBlock(8, 16, 4, SPADEOptions(**options))
        >>> given = {"channels": 8, "out_channels": 16, "label_channels": 4, "options": options}
        >>> theirs = to_monai_spade_block(ours.state_dict(), given).module()
        >>> x, label = torch.randn(1, 8, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)
        >>> bool(torch.allclose(theirs(x, label), ours(x, label), atol=1e-4))
        True
    """
    given = complete(SPADEResBlock, arguments)
    extra = [
        f"{key}: a block that is given {what}; MONAI's is given features and label map alone"
        for key, what in {"embedding_channels": "a style", "noise": "noise"}.items()
        if given[key]
    ]
    options = _options(given, _BLOCK, extra)
    check_own(weights, SPADEResBlock, given | {"options": options})
    widths = {min(given["channels"], given["out_channels"]), given["channels"]}
    norms = [_norm(options, width) for width in sorted(widths)]
    if any(norm != norms[0] for norm in norms):
        raise InputError(
            f"groups: {options.groups} do not divide all of {sorted(widths)} channels, so that its norms differ; those "
            f"of a {_BLOCK} are alike. Use it with semsynth"
        )
    theirs = {
        "spatial_dims": 3,
        "in_channels": given["channels"],
        "out_channels": given["out_channels"],
        "label_nc": given["label_channels"],
        "spade_intermediate_channels": options.hidden,
        "norm": list(norms[0]),
        "act": ["LEAKYRELU", {"negative_slope": given["slope"]}],
        "kernel_size": options.kernel_size,
    }
    with torch.device("meta"):  # its names and shapes only
        shapes = SPADENetResBlock(**theirs).state_dict()
    made: dict[str, torch.Tensor] = {}
    for norm in ("norm_0", "norm_1", "norm_s"):
        if f"{norm}.shared.weight" in weights:
            made |= _spade_weights(weights, f"{norm}.")
    for name in ("conv_0", "conv_1", "conv_s"):
        if f"{name}.weight" in weights:
            made |= {f"{name}.conv.{part}": copy_of(weights[f"{name}.{part}"]) for part in PARTS}
    return returned(SPADENetResBlock, made, theirs, shapes)


def to_monai_spade_net(weights: Weights, arguments: Mapping[str, Any]) -> Conversion[nn.ModuleDict]:
    """The residual blocks that :func:`~semsynth.convert.convert_spade_net` took out of a ``SPADENet``, back.

    Args:
        weights: our weights.
        arguments: our arguments.

    Returns:
        A module of ``blocks``, under the names that they have in MONAI's ``SPADEDecoder``; the arguments of each stand
        in a list.

    Raises:
        InputError: as in :func:`to_monai_spade_block`.

    Examples:
        >>> from monai.networks.nets import SPADENet
        >>> from semsynth.convert import convert_spade_net
        >>> theirs = SPADENet(3, 1, 1, 4, [8, 8, 8], [4, 6], z_dim=5, spade_intermediate_channels=7)
        >>> ours = convert_spade_net(theirs.state_dict(), blocks_only=True)
        >>> back = to_monai_spade_net(ours.weights, ours.arguments)
        >>> all(torch.equal(tensor, theirs.decoder.state_dict()[key]) for key, tensor in back.weights.items())
        True
    """
    shared = {key: value for key, value in arguments.items() if key != "blocks"}
    parts = []
    for number, widths in enumerate(arguments["blocks"]):
        own = {
            key.removeprefix(f"blocks.{number}."): tensor
            for key, tensor in weights.items()
            if key.startswith(f"blocks.{number}.")
        }
        parts.append(to_monai_spade_block(own, {**widths, **shared}))
    made = {f"blocks.{n}.{key}": tensor for n, part in enumerate(parts) for key, tensor in part.weights.items()}
    return Conversion("SPADEDecoder's blocks", made, {"blocks": [part.arguments for part in parts]}, _build_blocks)


def _build_blocks(blocks: list[dict[str, Any]]) -> nn.ModuleDict:
    bare = [{key: value for key, value in block.items() if key != "_target_"} for block in blocks]
    return nn.ModuleDict({"blocks": nn.ModuleList(SPADENetResBlock(**block) for block in bare)})


def _options(given: Mapping[str, Any], theirs: str, extra: list[str] | None = None) -> SPADEOptions:
    options = SPADEOptions(**(given["options"] or {}))
    problems = [*spade_problems(options, kernel=False), *(extra or [])]
    if problems:
        raise InputError(
            f"no {theirs} of MONAI's gives its output; use it with semsynth. These parts have no counterpart:", problems
        )
    return options


def _norm(options: SPADEOptions, channels: int) -> tuple[str, dict[str, Any]]:
    shared = {"eps": options.eps, "affine": options.affine}
    if options.norm == "instance":
        return "INSTANCE", shared
    return "GROUP", {"num_groups": options.groups_of(channels), **shared}


def _spade_weights(weights: Weights, prefix: str) -> dict[str, torch.Tensor]:
    made = {}
    for part in PARTS:
        made[f"{prefix}mlp_shared.conv.{part}"] = copy_of(weights[f"{prefix}shared.{part}"])
        gamma, beta = copy_of(weights[f"{prefix}gamma_beta.{part}"]).chunk(2)
        made |= {f"{prefix}mlp_gamma.conv.{part}": gamma.clone(), f"{prefix}mlp_beta.conv.{part}": beta.clone()}
        if f"{prefix}{part}" in weights:
            made[f"{prefix}param_free_norm.{part}"] = copy_of(weights[f"{prefix}{part}"])
    return made
