"""Weights of MONAI's and monai-generative's SPADE networks as ours, with the same output.

Both packages name and shape their tensors alike. Their activations, their parameter-free norm and its ε leave no trace
in a state dict: what is not the packages' default is an argument here.

A further kind of network is one more function that returns a :class:`Conversion`, and one more line of :data:`KINDS`.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn

from .checkpoints import not_finite, save_atomically
from .errors import InputError
from .networks.spade import SPADE, SPADEOptions, SPADEResBlock
from .provenance import write_model_card
from .volumes import sha256

logger = logging.getLogger(__name__)
Weights: TypeAlias = Mapping[str, torch.Tensor]
"""A bare state dict."""
_Module = TypeVar("_Module", bound=nn.Module)

LABEL_SLOPE = 0.01  # both: Convolution(act="LEAKYRELU") with PyTorch's default slope
# entries of a checkpoint that holds more than weights; data parallelism, torch.compile
_PREFIXES = ("state_dict.", "model_state_dict.", "model.", "network.", "module.", "_orig_mod.")
_NET_BLOCK = re.compile(r"(decoder\.)?blocks\.(\d+)\.(.+)")
_FIXED_SIZE = re.compile(r"(decoder\.)?fc|encoder\.fc_(mu|var)")
_OTHER_LAYER = re.compile(r"(decoder\.)?(conv_init|last_conv)\..+|encoder\.blocks\.\d+\..+")


@dataclass(frozen=True)
class Conversion(Generic[_Module]):
    """What weights of another package became.

    Attributes:
        kind: one of :data:`KINDS`.
        weights: state dict of ours.
        arguments: of the module that it belongs to, as JSON can hold them; ``options`` are those of
            :class:`~semsynth.networks.spade.SPADEOptions`.
        build: makes that module of them.
        skipped: layers that were left out, and why.
    """

    kind: str
    weights: dict[str, torch.Tensor]
    arguments: dict[str, Any]
    build: Callable[..., _Module]
    skipped: dict[str, str] = field(default_factory=dict)

    def module(self) -> _Module:
        """The module with the weights in it, float32, on the CPU."""
        module = self.build(**self.arguments)
        module.load_state_dict(self.weights)
        return module


# ---- SPADE


def convert_spade(weights: Weights, *, groups: int | None = None, eps: float = 1e-5) -> Conversion[SPADE]:
    """MONAI's or monai-generative's ``SPADE`` as our :class:`~semsynth.networks.spade.SPADE`.

    The result is the same for a label encoding at the features' resolution; theirs brings it there by ``nearest``.

    Args:
        weights: of theirs, in 3D.
        groups: of its norm ``("GROUP", {"num_groups": …, "affine": False})``; without it ``"INSTANCE"``, their default.
        eps: of that norm.

    Raises:
        InputError: for weights in 2D, of a norm with parameters or running statistics, with a kernel that ours cannot
            have, or of anything but a ``SPADE``; for groups that do not divide the channels.
    """
    _refuse_what_cannot_be(weights)
    labels, channels, hidden, kernel = _spade_sizes(weights, "")
    _compare(weights, _spade_shapes("", labels, channels, hidden, kernel), "SPADE")
    arguments = {
        "label_channels": labels,
        "channels": channels,
        "options": _options(hidden, kernel, groups, eps, channels=[channels]),
    }
    return Conversion("spade", _spade_weights(weights, ""), arguments, _build_spade)


def convert_spade_block(
    weights: Weights, *, groups: int | None = None, eps: float = 1e-5, slope: float = 0.2
) -> Conversion[SPADEResBlock]:
    """MONAI's ``SPADENetResBlock`` or monai-generative's ``SPADEResNetBlock`` as our ``SPADEResBlock``.

    Args:
        weights: of theirs, in 3D.
        groups, eps: as of :func:`convert_spade`.
        slope: negative slope of the activations, 0 or more (0.2 is their default, and all that monai-generative has).

    Raises:
        InputError: as of :func:`convert_spade`; for a negative slope.
    """
    if not (math.isfinite(slope) and slope >= 0):
        raise InputError(f"slope must be 0 or more, got {slope}")
    _refuse_what_cannot_be(weights)
    channels, out_channels = _shape(weights, "conv_0.conv.weight")[1], _shape(weights, "conv_1.conv.weight")[0]
    labels, _, hidden, kernel = _spade_sizes(weights, "norm_0.")
    middle = min(channels, out_channels)
    norms, convolutions = {"norm_0": channels, "norm_1": middle}, ["conv_0", "conv_1"]
    shapes = _conv_shapes("conv_0", middle, channels, 3) | _conv_shapes("conv_1", out_channels, middle, 3)
    if channels != out_channels:
        norms["norm_s"], convolutions = channels, [*convolutions, "conv_s"]
        shapes |= _conv_shapes("conv_s", out_channels, channels, 1)
    for name, width in norms.items():
        shapes |= _spade_shapes(f"{name}.", labels, width, hidden, kernel)
    _compare(weights, shapes, "SPADE residual block")
    own = {f"{name}.{part}": _copy(weights[f"{name}.conv.{part}"]) for name in convolutions for part in _PARTS}
    for name in norms:
        own |= _spade_weights(weights, f"{name}.")
    arguments = {
        "channels": channels,
        "out_channels": out_channels,
        "label_channels": labels,
        "slope": slope,
        "options": _options(hidden, kernel, groups, eps, channels=list(norms.values())),
    }
    return Conversion("spade_block", own, arguments, _build_block)


def convert_spade_net(
    weights: Weights, *, groups: int | None = None, eps: float = 1e-5, slope: float = 0.2, blocks_only: bool = False
) -> Conversion[nn.ModuleDict]:
    """The residual blocks of a ``SPADENet`` (or of its ``SPADEDecoder``) of either package.

    Args:
        weights: of the whole network.
        groups, eps, slope: as of :func:`convert_spade_block`, for all blocks.
        blocks_only: leave out everything else. Without it there is an error where there is anything else, as in every
            ``SPADENet``.

    Returns:
        A module of ``blocks``, coarse to fine, under the names that they have in
        :class:`~semsynth.networks.spade_gan.SPADEGenerator`.

    Raises:
        InputError: as of :func:`convert_spade_block`; naming the layers that have no counterpart, and why.
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
            f"not a SPADENet as MONAI and monai-generative have it, {_some(unknown)} are unknown; convert its residual "
            "blocks one by one (--name decoder.blocks.0)"
        )
    if not blocks or sorted(blocks) != list(range(len(blocks))):
        raise InputError(f"residual blocks are missing, there are only {sorted(blocks)}; give the whole state dict")
    return [blocks[number] for number in sorted(blocks)], skipped


# ---- the parts


_PARTS = ("weight", "bias")


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
    for part in _PARTS:
        own[f"{prefix}shared.{part}"] = _copy(weights[f"{prefix}mlp_shared.conv.{part}"])
        gamma, beta = (_copy(weights[f"{prefix}{name}.conv.{part}"]) for name in ("mlp_gamma", "mlp_beta"))
        own[f"{prefix}gamma_beta.{part}"] = torch.cat([gamma, beta])
    return own


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone()  # not a view: what is saved must not carry the rest along


def _options(hidden: int, kernel: int, groups: int | None, eps: float, *, channels: Sequence[int]) -> dict[str, Any]:
    """Arguments of ``SPADEOptions`` with which ours computes what theirs does."""
    if not (math.isfinite(eps) and eps > 0):
        raise InputError(f"eps must be above 0, got {eps}")
    if groups is not None and (groups < 1 or any(width % groups for width in channels)):
        raise InputError(
            f"groups must be the num_groups that it was trained with and divide the channels "
            f"({', '.join(map(str, channels))}), got {groups}"
        )
    norm: Any = {"norm": "instance"} if groups is None else {"norm": "group", "groups": groups}
    options = SPADEOptions(
        hidden=hidden, kernel_size=kernel, eps=eps, label_slope=LABEL_SLOPE, normalized_modulation=True, **norm
    )
    return asdict(options)


def _spade_sizes(weights: Weights, prefix: str) -> tuple[int, int, int, int]:
    """Label channels, channels, hidden width and kernel size of one normalisation.

    Raises:
        InputError: for a kernel that is not k × k × k with an odd k.
    """
    hidden, labels, *kernel = _shape(weights, f"{prefix}mlp_shared.conv.weight")
    if len(set(kernel)) > 1 or kernel[0] % 2 == 0:
        raise InputError(
            f"{prefix}mlp_shared.conv.weight has a kernel of {' × '.join(map(str, kernel))}; semsynth's is odd and the "
            "same along all axes. Give weights trained with such a kernel_size"
        )
    return labels, _shape(weights, f"{prefix}mlp_gamma.conv.weight")[0], hidden, kernel[0]


def _spade_shapes(prefix: str, labels: int, channels: int, hidden: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of one normalisation's tensors in either package."""
    shapes = _conv_shapes(f"{prefix}mlp_shared", hidden, labels, kernel)
    for name in ("mlp_gamma", "mlp_beta"):
        shapes |= _conv_shapes(f"{prefix}{name}", channels, hidden, kernel)
    return shapes


def _conv_shapes(name: str, out_channels: int, channels: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.conv.weight": (out_channels, channels, *[kernel] * 3), f"{name}.conv.bias": (out_channels,)}


def _shape(weights: Weights, key: str) -> tuple[int, ...]:
    if key not in weights:
        raise InputError(f"{key} is missing; there are {_some(weights)}. Give a whole state dict")
    return tuple(weights[key].shape)


def _refuse_what_cannot_be(weights: Weights) -> None:
    """Raise for weights in 2D, and for those of a norm that is not parameter-free."""
    flat = {key: tensor for key, tensor in weights.items() if key.endswith("conv.weight") and tensor.dim() != 5}
    if flat:
        key, tensor = next(iter(flat.items()))
        raise InputError(
            f"not a 3D network: {key} has the shape {tuple(tensor.shape)}, and a 2D kernel does not say what it would "
            "be along the third axis. Give weights trained with spatial_dims=3"
        )
    norm = [key for key in weights if "param_free_norm." in key]
    if any(".running_" in key for key in norm):
        raise InputError(
            f"a batch norm (or one that tracks statistics) under SPADE: {_some(norm)}; it normalises by what it saw in "
            "training, semsynth's by each volume itself. Give weights trained with norm='INSTANCE'"
        )
    if norm:
        raise InputError(
            f"a norm with weights under SPADE: {_some(norm)}; semsynth's has none, and γ and β, normalised themselves, "
            "cannot take them up. Give weights trained with norm='INSTANCE' or a norm with 'affine': False"
        )


def _compare(weights: Weights, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise unless the weights have these names and shapes, no more and no fewer."""
    problems = [f"{key} is missing" for key in shapes if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in shapes]
    problems += [
        f"{key} has the shape {tuple(weights[key].shape)}, needs {shape}"
        for key, shape in shapes.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    if problems:
        raise InputError(
            f"not a {what} as MONAI and monai-generative have it; give an unchanged one's weights:", problems
        )


def _some(keys: Sequence[str] | Mapping[str, Any], most: int = 4) -> str:
    names = list(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- any kind, and files


class Kind(NamedTuple):
    """A kind of network whose weights can be converted.

    Attributes:
        title: for messages.
        recognises: whether a bare state dict is one.
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
}


def convert(content: Any, *, name: str | None = None, **settings: Any) -> Conversion[Any]:
    """Weights of any kind that is known, recognised by their names.

    Args:
        content: a state dict, or a checkpoint that holds one (under "state_dict", "model" …, with prefixes such as
            "module.").
        name: where else it is: an entry of the checkpoint, or what stands before its keys, "a.b" for b in a.
        settings: keyword arguments of that kind's function, such as :func:`convert_spade_net`.

    Raises:
        InputError: for weights of no known kind, or that cannot be converted; for a setting that is none of that kind.
    """
    weights = bare_weights(content, name=name)
    found = next((kind for kind in KINDS.values() if kind.recognises(weights)), None)
    if found is None:
        known = "; ".join(kind.title for kind in KINDS.values())
        raise InputError(
            f"no weights that can be converted, which are those of MONAI's and monai-generative's {known}. It has "
            f"{_some(weights)}; where the network is a part of another, say with --name what stands before its keys"
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
        content, name: as of :func:`convert`.

    Raises:
        InputError: when there are no tensors, or none of that name.
    """
    weights = _tensors(content)
    if not weights:
        raise InputError("holds no tensors; give what torch.save(network.state_dict(), …) wrote")
    named = [] if name is None else [f"{name}."]
    while prefix := next((p for p in (*named, *_PREFIXES) if any(key.startswith(p) for key in weights)), None):
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        named = [] if prefix in named else named
    if named:
        raise InputError(f"has nothing under {name!r}; there are {_some(weights)}")
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
            arguments of the module that the weights belong to, and the layers that were left out.
        name, settings: as of :func:`convert`.
        overwrite: replace what is there.

    Raises:
        InputError: as of :func:`convert`; a file that is missing, cannot be read, or would be overwritten; weights that
            are NaN or infinite.
    """
    source, output = Path(weights), Path(output)
    _check_paths(source, output, overwrite=overwrite)
    try:
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{source}: cannot be read as weights ({type(error).__name__}); give what "
            "torch.save(network.state_dict(), …) wrote"
        ) from error
    try:
        conversion = convert(content, name=name, **settings)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    broken = not_finite(conversion.weights)
    if broken:
        raise InputError(f"{source}: NaN or infinite weights in {_some(broken)}; nothing is written, give good weights")
    for layer, reason in conversion.skipped.items():
        logger.warning("%s: left out %s: %s", source.name, layer, reason)
    save_atomically(conversion.weights, output)
    write_model_card(
        output,
        kind=conversion.kind,
        source={"file": source.name, "sha256": sha256(source)},
        arguments=conversion.arguments,
        skipped=conversion.skipped,
    )
    logger.info("%s: %d tensors of kind %s", output, len(conversion.weights), conversion.kind)
    return output


def _check_paths(source: Path, output: Path, *, overwrite: bool) -> None:
    if not source.is_file():
        raise InputError(f"{source}: no such file of weights; check --weights")
    if output.is_dir() or output.suffix == ".json":
        raise InputError(
            f"{output}: is {'a folder' if output.is_dir() else 'the name of a card'}; give a file such as model.pt"
        )
    card = output.with_suffix(".json")
    if source.resolve() in (output.resolve(), card.resolve()):
        raise InputError(f"{output}: would overwrite the weights that are to be converted; give another --output")
    there = [str(path) for path in (output, card) if path.exists()]
    if there and not overwrite:
        raise InputError(f"{' and '.join(there)}: already there; give another --output, or --overwrite")
