"""What the conversion of every kind of network shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import nn

from ..errors import InputError
from ..networks.blocks.spade import SPADEOptions

Weights: TypeAlias = Mapping[str, torch.Tensor]
"""A bare state dict."""
_Module = TypeVar("_Module", bound=nn.Module)

LABEL_SLOPE = 0.01  # both: Convolution(act="LEAKYRELU") with PyTorch's default slope
PARTS = ("weight", "bias")
UNCHANGED = "as MONAI and monai-generative have it; give an unchanged one's weights"


@dataclass(frozen=True)
class Conversion(Generic[_Module]):
    """What weights of another package became, or ours for MONAI.

    Attributes:
        kind: kind of network that the weights are of now: one of :data:`~semsynth.convert.KINDS`, or a class of
            MONAI's.
        weights: state dict of ours, or of MONAI's network.
        arguments: arguments of the module that it belongs to, as JSON can hold them; ``options`` or ``spade`` are those
            of :class:`~semsynth.networks.blocks.spade.SPADEOptions`.
        build: makes that module of them.
        skipped: layers that were left out, and why.
        initial: layers that the weights say nothing about, and what they are now.

    Examples:
        >>> from monai.networks.blocks.spade_norm import SPADE as MonaiSPADE
        >>> from semsynth.convert import convert
        >>> conversion = convert(MonaiSPADE(label_nc=4, norm_nc=8, spatial_dims=3).state_dict())
        >>> conversion.kind, conversion.arguments["label_channels"], type(conversion.module()).__name__
        ('spade', 4, 'SPADE')
    """

    kind: str
    weights: dict[str, torch.Tensor]
    arguments: dict[str, Any]
    build: Callable[..., _Module]
    skipped: dict[str, str] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)

    def module(self) -> _Module:
        """The module with the weights in it, float32, on the CPU."""
        module = self.build(**self.arguments)
        module.load_state_dict(self.weights)
        return module


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, on the CPU, without gradients."""
    return tensor.detach().cpu().clone()  # not a view: what is saved must not carry the rest along


def spade_options(
    hidden: int, kernel: int, groups: int | None, eps: float, *, channels: Sequence[int], affine: bool = False
) -> dict[str, Any]:
    """Arguments of ``SPADEOptions`` with which ours computes what theirs does.

    Args:
        hidden, kernel: width and kernel of the label branch.
        groups: number of groups of the group norm; None for instance norm.
        eps: epsilon of that norm.
        channels: number of channels that it has to divide.
        affine: True where that norm has weights.

    Raises:
        InputError: for groups that do not divide the channels, or an eps that is not above 0.
    """
    check_eps(eps)
    if groups is not None:
        check_groups(groups, channels)
    norm: Any = {"norm": "instance"} if groups is None else {"norm": "group", "groups": groups}
    options = SPADEOptions(
        hidden=hidden,
        kernel_size=kernel,
        eps=eps,
        label_slope=LABEL_SLOPE,
        normalized_modulation=True,
        affine=affine,
        **norm,
    )
    return asdict(options)


def check_groups(groups: int, channels: Sequence[int]) -> None:
    """Raise unless the groups divide all of the channels.

    Raises:
        InputError: naming both.
    """
    if groups < 1 or any(width % groups for width in channels):
        raise InputError(
            f"groups must be the num_groups that it was trained with and divide the channels "
            f"({', '.join(map(str, channels))}), got {groups}"
        )


def check_eps(eps: float) -> None:
    """Raise unless it can be added to a variance.

    Raises:
        InputError: naming it.
    """
    if not (math.isfinite(eps) and eps > 0):
        raise InputError(f"eps must be above 0, got {eps}")


def spade_sizes(weights: Weights, prefix: str) -> tuple[int, int, int, int]:
    """Label channels, channels, hidden width and kernel size of one normalisation.

    Raises:
        InputError: for a kernel that is not k × k × k with an odd k.
    """
    hidden, labels, *kernel = shape_of(weights, f"{prefix}mlp_shared.conv.weight")
    if len(set(kernel)) > 1 or kernel[0] % 2 == 0:
        raise InputError(
            f"{prefix}mlp_shared.conv.weight has a kernel of {' × '.join(map(str, kernel))}; semsynth's is odd and the "
            "same along all axes. Give weights trained with such a kernel_size"
        )
    return labels, shape_of(weights, f"{prefix}mlp_gamma.conv.weight")[0], hidden, kernel[0]


def check_classes(labels: int) -> None:
    """Raise for a label map of one channel, which our networks of label maps do not take.

    Raises:
        InputError: saying what to do.
    """
    if labels < 2:
        raise InputError(
            f"trained with label_nc={labels}; semsynth takes maps of 2 or more classes, the background one of them. "
            "Give weights trained on the one-hot map of all classes"
        )


def shape_of(weights: Weights, key: str) -> tuple[int, ...]:
    """The shape of one of them.

    Raises:
        InputError: where it is missing.
    """
    if key not in weights:
        raise InputError(f"{key} is missing; there are {some(weights)}. Give a whole state dict")
    return tuple(weights[key].shape)


def refuse_flat(weights: Weights) -> None:
    """Raise for weights in 2D.

    Raises:
        InputError: naming one of them.
    """
    flat = {key: tensor for key, tensor in weights.items() if key.endswith("conv.weight") and tensor.dim() != 5}
    if flat:
        key, tensor = next(iter(flat.items()))
        raise InputError(
            f"not a 3D network: {key} has the shape {tuple(tensor.shape)}, and a 2D kernel does not say what it would "
            "be along the third axis. Give weights trained with spatial_dims=3"
        )


def compare(weights: Weights, shapes: Mapping[str, tuple[int, ...]], what: str, how: str = UNCHANGED) -> None:
    """Raise unless the weights have these names and shapes, no more and no fewer.

    Args:
        weights, shapes: weights and shapes by name.
        what: the network.
        how: its kind, and the remedy, for the message.

    Raises:
        InputError: with all that differs.
    """
    problems = [f"{key} is missing" for key in shapes if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in shapes]
    problems += [
        f"{key} has the shape {tuple(weights[key].shape)}, needs {shape}"
        for key, shape in shapes.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    if problems:
        raise InputError(f"not {with_article(what)} {how}:", problems)


def with_article(what: str) -> str:
    """A class with "a" or "an" before it."""
    return f"{'an' if what[0] in 'AEIO' else 'a'} {what}"


def some(keys: Sequence[str] | Mapping[str, Any], most: int = 4) -> str:
    """The first of many names, and how many more there are."""
    names = list(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
