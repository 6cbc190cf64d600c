"""Spatially adaptive (de)normalisation in 3D (SPADE): Park et al. 2019, "Semantic Image Synthesis with SPADE".

What SPADE computes from a label map, a scale 1 + γ and a shift β for every voxel and channel, depends on neither the
features nor the time step nor the style. Here it is a value of its own, :class:`Modulation`: computed once per label
map, it serves any number of forward passes, with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...errors import InputError
from ...labels import one_hot
from .noise import gaussian_noise, gaussian_noises
from .normalization import affine_free_norm, leaky_relu_, memory_format, modulate, modulate_jointly

Sampling: TypeAlias = Literal["fractions", "nearest"]


class Modulation(NamedTuple):
    """What one SPADE normalisation makes of a label map: ``normalised · scale + shift``.

    Attributes:
        scale: 1 + γ, ``(B, C, h, w, d)``.
        shift: β, the same shape.
    """

    scale: torch.Tensor
    shift: torch.Tensor


Condition: TypeAlias = torch.Tensor | Modulation
"""A label encoding ``(B, L, h, w, d)`` at the features' resolution, or what was computed from it before."""
BlockModulation: TypeAlias = dict[str, Modulation]


@dataclass(frozen=True)
class SPADEOptions:
    """How the SPADE normalisations of a network are built.

    Attributes:
        hidden: width of the label branch between label map and γ, β (128 in the paper).
        kernel_size: kernel size of the label branch's two convolutions, odd.
        norm: ``"group"``, ``"instance"`` or ``"voxel"``, parameter-free. The last one normalises each voxel over its
            channels (:func:`~semsynth.networks.blocks.normalization.voxel_norm`): it knows nothing of the rest of the
            volume.
        groups: number of groups of the group norm; fewer where the channels cannot be divided by it.
        eps: added to the variance.
        label_slope: negative slope of the label branch's activation (0: ReLU, as in the paper; 0.01: MONAI's).
        normalized_modulation: γ and β each go through an instance norm, as in MONAI's and monai-generative's ``SPADE``,
            whose convolutions inherit it. Then γ has mean 0 and variance 1 in every volume, whatever the weights: an
            option for weights from there, not a recommendation.
        affine: the norm has a weight and a bias per channel of its own, as in MONAI's ``SPADEDiffusionModelUNet``. They
            become part of scale and shift, and so cost nothing where those are kept.
        recompute: part that is computed again in the backward pass, not stored: None, ``"labels"`` (the label branch up
            to γ and β; they are stored) or ``"all"`` (γ, β and the normalisation too, so that a normalisation keeps its
            input only).

    Raises:
        InputError: for a value that is none of these.

    Examples:
        >>> options = SPADEOptions(hidden=8, norm="voxel")
        >>> spade = SPADE(label_channels=4, channels=8, options=options)
        >>> spade(torch.randn(1, 8, 6, 6, 6), torch.rand(1, 4, 6, 6, 6)).shape
        torch.Size([1, 8, 6, 6, 6])
    """

    hidden: int = 16
    kernel_size: int = 3
    norm: Literal["group", "instance", "voxel"] = "group"
    groups: int = 8
    eps: float = 1e-5
    label_slope: float = 0.0
    normalized_modulation: bool = False
    affine: bool = False
    recompute: Literal["labels", "all"] | None = None

    def __post_init__(self) -> None:
        if self.norm not in ("group", "instance", "voxel"):
            raise InputError(f"SPADE's norm must be group, instance or voxel, got {self.norm!r}")
        if self.recompute not in (None, "labels", "all"):
            raise InputError(f"recompute must be null, labels or all, got {self.recompute!r}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise InputError(f"SPADE's kernel_size must be odd, got {self.kernel_size}")
        if self.label_slope < 0:
            raise InputError(f"SPADE's label_slope must be 0 or more, got {self.label_slope}")
        if self.hidden < 1 or self.groups < 1:
            raise InputError(f"SPADE needs hidden and groups of 1 or more, got {self.hidden} and {self.groups}")

    def groups_of(self, channels: int) -> int:
        """Into how many groups the norm takes these channels; 0 for a norm of each voxel."""
        return {"instance": channels, "voxel": 0}.get(self.norm, _groups(channels, self.groups))


class SPADE(nn.Module):
    """Normalisation whose scale and shift come from a label map, voxel by voxel (Park et al. 2019, eq. 1 and 2).

    Args:
        label_channels: L, channels of the label encoding.
        channels: C, of the features.
        options: all else.

    Examples:
        >>> spade = SPADE(label_channels=4, channels=8)
        >>> x, label = torch.randn(2, 8, 8, 8, 8), torch.rand(2, 4, 8, 8, 8)
        >>> modulation = spade.modulation(label)  # once per label map
        >>> bool(torch.equal(spade(x, modulation), spade(x, label)))
        True
    """

    def __init__(self, label_channels: int, channels: int, options: SPADEOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or SPADEOptions()
        self.label_channels, self.channels = label_channels, channels
        self.groups = options.groups_of(channels)
        padding = options.kernel_size // 2
        self.shared = nn.Conv3d(label_channels, options.hidden, options.kernel_size, padding=padding)
        self.gamma_beta = nn.Conv3d(options.hidden, 2 * channels, options.kernel_size, padding=padding)
        offset = torch.cat([torch.ones(channels), torch.zeros(channels)])
        self.register_buffer("offset", offset, persistent=False)
        self.weight = nn.Parameter(torch.ones(channels)) if options.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if options.affine else None

    offset: torch.Tensor

    def modulation(self, label: torch.Tensor) -> Modulation:
        """Label encoding ``(B, L, h, w, d)`` → scale 1 + γ and shift β, ``(B, C, h, w, d)`` each."""
        return Modulation(*self._scale_shift(label).chunk(2, dim=1))

    def _scale_shift(self, label: torch.Tensor) -> torch.Tensor:
        y = self._one_plus_gamma_beta(label)
        if self.weight is None or self.bias is None:
            return y
        # (n · weight + bias) (1 + γ) + β = n · weight (1 + γ) + (bias (1 + γ) + β)
        scale, shift = y.chunk(2, dim=1)
        weight, bias = (p.to(y.dtype).view(1, -1, 1, 1, 1) for p in (self.weight, self.bias))
        return torch.cat([scale * weight, torch.addcmul(shift, scale, bias)], dim=1)

    def _one_plus_gamma_beta(self, label: torch.Tensor) -> torch.Tensor:
        x = self.shared(label)
        if memory_format(self.gamma_beta.weight) == torch.channels_last_3d:
            x = x.contiguous(memory_format=torch.channels_last_3d)  # not what float32 kernels give for small volumes
        x = leaky_relu_(x, self.options.label_slope)
        if self.options.normalized_modulation:
            y = self.gamma_beta(x)
            if y.dtype in (torch.float32, torch.float64):
                # one pass more, and ten times fewer lost digits where the mean is far above the spread
                y = y - y.mean(dim=(2, 3, 4), keepdim=True)
            return affine_free_norm(y, 2 * self.channels, 1e-5, offset=self.offset)
        convolution = self.gamma_beta
        bias = None if convolution.bias is None else convolution.bias + self.offset  # 1 + γ without a pass of its own
        return F.conv3d(x, convolution.weight, bias, padding=convolution.padding)

    def forward(self, x: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Normalise and modulate.

        Args:
            x: features ``(B, C, h, w, d)``.
            condition: the label encoding at the features' resolution, ``(B, L, h, w, d)``, or :meth:`modulation` of it;
                of batch size B or 1.

        Returns:
            ``(B, C, h, w, d)`` of the features' type.

        Raises:
            InputError: when label encoding or modulation has another resolution.
        """
        given = condition.scale if isinstance(condition, Modulation) else condition
        if given.shape[2:] != x.shape[2:]:
            raise InputError(
                f"SPADE got features of {tuple(x.shape[2:])} voxels and a label encoding, or modulation, of "
                f"{tuple(given.shape[2:])}; bring the labels to their resolution first "
                "(semsynth.networks.blocks.spade.label_pyramid)"
            )
        if isinstance(condition, Modulation):
            return modulate(x, *condition, groups=self.groups, eps=self.options.eps)
        recompute = self.options.recompute if torch.is_grad_enabled() else None
        if recompute == "all":
            result: torch.Tensor = _again(self._from_label, x, condition)
            return result
        if recompute == "labels":
            return self._modulate(x, _again(self._scale_shift, condition))
        return self._from_label(x, condition)

    def _from_label(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self._modulate(x, self._scale_shift(label))

    def _modulate(self, x: torch.Tensor, scale_shift: torch.Tensor) -> torch.Tensor:
        return modulate_jointly(x, scale_shift, groups=self.groups, eps=self.options.eps)


class SPADEResBlock(nn.Module):
    """Residual block with SPADE in front of each convolution (Park et al. 2019, fig. 4).

    Where the number of channels changes, the shortcut is a SPADE normalisation and a 1×1×1 convolution, as there.

    Args:
        channels: number of channels of the input.
        out_channels: number of channels of the output.
        label_channels: L, of the label encoding.
        options: options of the three normalisations.
        embedding_channels: length of a vector (style, time step) that scales and shifts the features after the second
            normalisation (Dhariwal & Nichol 2021, section 3, AdaGN); after it, because a normalisation would take away
            what is the same in all voxels. 0 for none.
        noise: white noise with a learned strength per channel is added after the first convolution (Karras et al. 2019,
            section 3.2): what texture is made from.
        slope: negative slope of the activations.

    Examples:
        >>> block = SPADEResBlock(8, 16, label_channels=4)
        >>> block(torch.randn(1, 8, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)).shape
        torch.Size([1, 16, 8, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        label_channels: int,
        options: SPADEOptions | None = None,
        *,
        embedding_channels: int = 0,
        noise: bool = False,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        middle = min(channels, out_channels)
        self.slope = slope
        self.norm_0 = SPADE(label_channels, channels, options)
        self.conv_0 = nn.Conv3d(channels, middle, 3, padding=1)
        self.norm_1 = SPADE(label_channels, middle, options)
        self.conv_1 = nn.Conv3d(middle, out_channels, 3, padding=1)
        self.norm_s: SPADE | None = None
        self.conv_s: nn.Conv3d | None = None
        if channels != out_channels:
            self.norm_s = SPADE(label_channels, channels, options)
            self.conv_s = nn.Conv3d(channels, out_channels, 1)
        self.embedding = nn.Linear(embedding_channels, 2 * middle) if embedding_channels else None
        if self.embedding is not None:
            nn.init.zeros_(self.embedding.bias)
        self.noise = NoiseInjection(middle) if noise else None

    def modulation(self, label: torch.Tensor) -> BlockModulation:
        """Label encoding ``(B, L, h, w, d)`` → what its normalisations make of it, by their names."""
        return {name: norm.modulation(label) for name, norm in self._norms().items()}

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor | BlockModulation,
        embedding: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features → features.

        Args:
            x: ``(B, channels, h, w, d)``.
            condition: label encoding at that resolution, or :meth:`modulation` of it.
            embedding: ``(B, embedding_channels)``.
            noise: ``(B, 1, h, w, d)``, mean 0 and variance 1.

        Returns:
            ``(B, out_channels, h, w, d)``.
        """
        own: dict[str, Condition] = (
            dict.fromkeys(self._norms(), condition) if isinstance(condition, torch.Tensor) else {**condition}
        )
        shortcut = x
        if self.norm_s is not None and self.conv_s is not None:
            shortcut = self.conv_s(self.norm_s(x, own["norm_s"]))
        y = self.conv_0(leaky_relu_(self.norm_0(x, own["norm_0"]), self.slope))
        if self.noise is not None and noise is not None:
            y = self.noise(y, noise)
        y = self.norm_1(y, own["norm_1"])
        if self.embedding is not None and embedding is not None:
            scale, shift = self.embedding(embedding)[:, :, None, None, None].chunk(2, dim=1)
            y = torch.addcmul(shift.to(y.dtype), y, (1 + scale).to(y.dtype))
        y = self.conv_1(leaky_relu_(y, self.slope))
        result: torch.Tensor = shortcut + y
        return result

    def _norms(self) -> dict[str, SPADE]:
        norms = {"norm_0": self.norm_0, "norm_1": self.norm_1}
        return norms if self.norm_s is None else norms | {"norm_s": self.norm_s}


class NoiseInjection(nn.Module):
    """Adds white noise, with a learned strength per channel (Karras et al. 2019, section 3.2).

    Args:
        channels: number of channels of the features.
        strength: at the start.

    Examples:
        >>> x = torch.zeros(1, 8, 6, 6, 6)
        >>> NoiseInjection(8, strength=0.5)(x, torch.ones(1, 1, 6, 6, 6)).mean().item()
        0.5
    """

    def __init__(self, channels: int, strength: float = 0.1) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full([channels], strength))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Features ``(B, C, h, w, d)`` and noise ``(B, 1, h, w, d)`` → their sum, weighted."""
        return torch.addcmul(x, noise.to(x.dtype), self.strength.view(1, -1, 1, 1, 1).to(x.dtype))


def label_pyramid(
    label: torch.Tensor,
    num_classes: int,
    strides: Sequence[int],
    *,
    mode: Sampling = "fractions",
    dtype: torch.dtype = torch.float32,
) -> dict[int, torch.Tensor]:
    """A label map's one-hot encoding at several resolutions.

    Args:
        label: class indices ``(B, 1, H, W, D)``; an index outside 0…num_classes−1 is zero in every channel.
        num_classes: C.
        strides: voxels of the map per voxel of each level, along each axis.
        mode: ``"fractions"``: the share of each class in each block of stride³ voxels (at the far border of what there
            is of it): thin structures stay. ``"nearest"``: the class of one of the voxels, as ``F.interpolate`` picks.
        dtype: dtype of the result.

    Returns:
        Stride → ``(B, C, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)``, values in [0, 1].

    Raises:
        InputError: for an unknown mode or a stride below 1.

    Examples:
        >>> label = torch.zeros(1, 1, 4, 4, 4)
        >>> label[..., 3] = 1  # one slice of four
        >>> levels = label_pyramid(label, num_classes=2, strides=(1, 4))
        >>> levels[1].shape, levels[4].flatten()
        (torch.Size([1, 2, 4, 4, 4]), tensor([0.7500, 0.2500]))
    """
    if mode not in ("fractions", "nearest"):
        raise InputError(f"labels are downsampled by fractions or nearest, got {mode!r}")
    if min(strides, default=1) < 1:
        raise InputError(f"strides must be 1 or more, got {tuple(strides)}")
    levels: dict[int, torch.Tensor] = {}
    # half precision is not pooled on every device
    full = dtype if dtype == torch.float64 else torch.float32
    encoded = one_hot(label, num_classes, full) if mode == "fractions" or 1 in strides else None
    for stride in sorted(set(strides)):
        if stride == 1:
            assert encoded is not None
            levels[1] = encoded.to(dtype)
        elif mode == "nearest":
            size = [-(-length // stride) for length in label.shape[2:]]
            levels[stride] = one_hot(F.interpolate(label.float(), size=size, mode="nearest"), num_classes, dtype)
        else:
            assert encoded is not None
            levels[stride] = _fractions(encoded, stride).to(dtype)
    return levels


def _fractions(encoded: torch.Tensor, stride: int) -> torch.Tensor:
    # the windows at the far border are smaller, and averaged over what lies inside: exactly the fractions there
    kernel = [min(stride, length) for length in encoded.shape[2:]]
    return F.avg_pool3d(encoded, kernel, kernel, ceil_mode=True, count_include_pad=False)


def noise_like(x: torch.Tensor, seed: int | list[int] | None) -> torch.Tensor:
    """Normal white noise ``(B, 1, h, w, d)`` for features ``(B, C, h, w, d)``.

    Args:
        x: features.
        seed: one per item; or one, of which each item gets another part; None draws anew.
    """
    if seed is not None:
        return gaussian_noise(x, seed) if isinstance(seed, int) else gaussian_noises(x, seed)
    return torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device, dtype=x.dtype)


def _groups(channels: int, groups: int) -> int:
    """The largest number of groups up to ``groups`` that divides the channels."""
    return next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)


def _again(function: Any, *arguments: torch.Tensor) -> Any:
    # no random numbers in here: nothing of the generator's state has to be kept
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
