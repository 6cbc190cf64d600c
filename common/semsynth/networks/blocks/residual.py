"""What autoencoders and diffusion U-Nets are built from: residual blocks with and without SPADE, attention, resampling.

The layout is that of Rombach et al. 2022 (latent diffusion) as MONAI's and monai-generative's networks have it, so that
their weights can be converted; what differs by default is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from .normalization import affine_free_norm
from .spade import SPADE, BlockModulation, Condition, SPADEOptions

Embedding: TypeAlias = Literal["add", "scale_shift"]
Resampling: TypeAlias = Literal["aligned", "strided", "smooth", "overlapping"]


class Norm(nn.Module):
    """The norm of :class:`~semsynth.networks.blocks.spade.SPADEOptions`, with a weight and a bias per channel, without
    labels.

    Args:
        channels: number of channels of the features.
        options: their ``norm``, ``groups`` and ``eps``.
    """

    def __init__(self, channels: int, options: SPADEOptions) -> None:
        super().__init__()
        self.groups, self.eps = options.groups_of(channels), options.eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w, d)`` → the same shape and type."""
        weight, bias = (p.to(x.dtype).view(1, -1, 1, 1, 1) for p in (self.weight, self.bias))
        return torch.addcmul(bias, affine_free_norm(x, self.groups, self.eps), weight)


class ResBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, and a shortcut.

    Args:
        channels: number of channels of the input.
        out_channels: number of channels of the output; where they differ the shortcut is a 1³ convolution.
        options: options of the norms.
        label_channels: L, of the label encoding that SPADE norms are given; 0 for plain norms.
        embedding_channels: length of a vector (time step, style) that every block gets; 0 for none.
        embedding: place where it goes: ``"add"`` to the features after the first convolution (Ho et al. 2020), or
            ``"scale_shift"``, scale and shift after the second norm (Dhariwal & Nichol 2021, section 3).
        dropout: share of the features that is set to zero before the second convolution, in training.
        zero_last: the second convolution starts at zero, so that the block starts as its shortcut.
        kernel: kernel of both convolutions, odd, along H, W, D; ``(3, 3, 1)`` stays within axial slices.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        options: SPADEOptions,
        *,
        label_channels: int = 0,
        embedding_channels: int = 0,
        embedding: Embedding = "scale_shift",
        dropout: float = 0.0,
        zero_last: bool = False,
        kernel: tuple[int, int, int] = (3, 3, 3),
    ) -> None:
        super().__init__()
        if embedding not in ("add", "scale_shift"):
            raise InputError(f"embedding must be add or scale_shift, got {embedding!r}")

        def norm(width: int) -> nn.Module:
            return SPADE(label_channels, width, options) if label_channels else Norm(width, options)

        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.norm_0, self.conv_0 = norm(channels), nn.Conv3d(channels, out_channels, kernel, padding=padding)
        self.norm_1, self.conv_1 = norm(out_channels), nn.Conv3d(out_channels, out_channels, kernel, padding=padding)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv3d(channels, out_channels, 1)
        self.scale_shift = embedding == "scale_shift"
        self.embedding: nn.Linear | None = None
        if embedding_channels:
            self.embedding = nn.Linear(embedding_channels, out_channels * (2 if self.scale_shift else 1))
        if zero_last:
            nn.init.zeros_(self.conv_1.weight)
            assert self.conv_1.bias is not None
            nn.init.zeros_(self.conv_1.bias)

    def modulation(self, label: torch.Tensor) -> BlockModulation:
        """Label encoding ``(B, L, h, w, d)`` → what the SPADE norms make of it, by their names; {} without SPADE."""
        norms = {"norm_0": self.norm_0, "norm_1": self.norm_1}
        return {name: norm.modulation(label) for name, norm in norms.items() if isinstance(norm, SPADE)}

    def embed(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector ``(B, embedding_channels)``, without the activation, as :meth:`forward` takes it.

        ``(B, out_channels)`` for ``"add"``, ``(B, 2·out_channels)``, scale and shift, for ``"scale_shift"``.
        """
        assert self.embedding is not None, "a block without embedding_channels"
        made: torch.Tensor = self.embedding(F.silu(vector))
        return made

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor | BlockModulation | None = None,
        embedded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features → features.

        Args:
            x: ``(B, channels, h, w, d)``.
            condition: label encoding at that resolution or :meth:`modulation` of it; not used without SPADE.
            embedded: result of :meth:`embed`; None leaves it out.

        Returns:
            ``(B, out_channels, h, w, d)``.
        """
        y = self.conv_0(F.silu(_normalise(self.norm_0, x, condition, "norm_0")))
        vector = None if embedded is None else embedded[:, :, None, None, None].to(y.dtype)
        if vector is not None and not self.scale_shift:
            y = y + vector
        y = _normalise(self.norm_1, y, condition, "norm_1")
        if vector is not None and self.scale_shift:
            scale, shift = vector.chunk(2, dim=1)
            y = torch.addcmul(shift, y, 1 + scale)
        y = self.conv_1(self.dropout(F.silu(y)))
        result: torch.Tensor = self.shortcut(x) + y
        return result


def _normalise(
    norm: nn.Module, x: torch.Tensor, condition: torch.Tensor | BlockModulation | None, name: str
) -> torch.Tensor:
    if not isinstance(norm, SPADE):
        result: torch.Tensor = norm(x)
        return result
    if condition is None:
        raise InputError("a block with SPADE needs the label encoding or its modulation, got none")
    own: Condition = condition if isinstance(condition, torch.Tensor) else condition[name]
    modulated: torch.Tensor = norm(x, own)
    return modulated


class Attention(nn.Module):
    """Self-attention over all voxels, around a norm and a shortcut (Rombach et al. 2022).

    Computed by PyTorch's ``scaled_dot_product_attention``: memory grows with the number of voxels, not with its square.

    Args:
        channels: number of channels of the features.
        options: options of the norm, which is never SPADE.
        head_channels: number of channels of each head; None for one head.

    Raises:
        InputError: for heads that do not divide the channels.
    """

    def __init__(self, channels: int, options: SPADEOptions, *, head_channels: int | None = None) -> None:
        super().__init__()
        head_channels = head_channels or channels
        if channels % head_channels:
            raise InputError(f"head_channels must divide the {channels} channels of its level, got {head_channels}")
        self.heads = channels // head_channels
        self.norm = Norm(channels, options)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w, d)`` → the same shape."""
        b, c, *size = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, voxels, C)
        qkv = self.qkv(tokens).view(b, -1, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # (B, heads, voxels, C / heads)
        y = self.out(y.transpose(1, 2).reshape(b, -1, c))
        result: torch.Tensor = x + y.transpose(1, 2).reshape(b, c, *size)
        return result


class Downsample(nn.Module):
    """Half the resolution, sizes rounded up.

    Args:
        channels, out_channels: numbers of channels of input and output.
        resampling: ``"aligned"``: a 2³ convolution of stride 2, whose voxels are where the blocks of 2³ voxels are that
            label fractions are counted in. ``"strided"``, ``"smooth"``: a 3³ convolution of stride 2 as MONAI's.
            ``"overlapping"``: a 4³ convolution of stride 2, centred on those blocks (Ge et al. 2022; Khader et al.
            2023).
        before: for the 3³ convolution: padding on the near side; 0 in its autoencoders, 1 in its diffusion U-Nets.
    """

    def __init__(self, channels: int, out_channels: int, resampling: Resampling, *, before: int = 0) -> None:
        super().__init__()
        self.strided, self.overlapping = resampling in ("strided", "smooth"), resampling == "overlapping"
        self.before = before
        kernel = 3 if self.strided else 4 if self.overlapping else 2
        self.conv = nn.Conv3d(channels, out_channels, kernel, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, h, w, d)`` → ``(B, out_channels, ⌈h/2⌉, ⌈w/2⌉, ⌈d/2⌉)``."""
        odd = [side for length in x.shape[:1:-1] for side in (0, length % 2)]
        if any(odd):
            x = F.pad(x, odd, mode="replicate")
        if self.strided:
            x = F.pad(x, [self.before, 1 - self.before] * 3)
        if self.overlapping:
            x = F.pad(x, [1] * 6, mode="replicate")
        result: torch.Tensor = self.conv(x)
        return result


class Upsample(nn.Module):
    """Twice the resolution.

    Args:
        channels, out_channels: numbers of channels of input and output.
        resampling: ``"aligned"``: a 1³ convolution, then trilinear, which is the same as the other way round at an
            eighth of the cost. ``"strided"``: nearest neighbour, then a 3³ convolution, as MONAI's. ``"smooth"``:
            trilinear, then a 3³ convolution, as MONAI's MAISI autoencoder. ``"overlapping"``: a transposed 4³
            convolution of stride 2.
    """

    def __init__(self, channels: int, out_channels: int, resampling: Resampling) -> None:
        super().__init__()
        self.nearest, self.smooth = resampling == "strided", resampling == "smooth"
        self.transposed = resampling == "overlapping"
        self.conv: nn.Module
        if self.transposed:
            self.conv = nn.ConvTranspose3d(channels, out_channels, 4, stride=2, padding=1)
        else:
            kernel = 3 if self.nearest or self.smooth else 1
            self.conv = nn.Conv3d(channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """``(B, channels, ⌈h/2⌉, ⌈w/2⌉, ⌈d/2⌉)`` → ``(B, out_channels, h, w, d)``, the size asked for."""
        h, w, d = size
        if self.transposed:
            doubled: torch.Tensor = self.conv(x)
            return doubled[:, :, :h, :w, :d]
        if self.nearest:
            result: torch.Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, :h, :w, :d])
            return result
        wide = x if self.smooth else self.conv(x)
        wide = F.interpolate(wide, scale_factor=2.0, mode="trilinear", align_corners=False)[:, :, :h, :w, :d]
        return self.conv(wide) if self.smooth else wide


def per_level(**given: Any) -> list[list[Any]]:
    """Settings of a network's levels as lists of one length: one entry per level, or the same in all.

    Args:
        given: arguments by name, in the order of the result; the first is a list and says how many levels there are.

    Raises:
        InputError: naming the lists, where their lengths differ or there is no level.
    """
    levels = len(next(iter(given.values())))
    lists = [list(value) if isinstance(value, Sequence) else [value] * levels for value in given.values()]
    if not levels or any(len(entries) != levels for entries in lists):
        raise InputError(
            f"{', '.join(given)} must have one entry per level, got {', '.join(str(len(entries)) for entries in lists)}"
        )
    return lists


def check_resampling(resampling: str) -> None:
    """Raise for a name that is none of them.

    Raises:
        InputError: naming them.
    """
    if resampling not in ("aligned", "strided", "smooth", "overlapping"):
        raise InputError(f"resampling must be aligned, strided, smooth or overlapping, got {resampling!r}")
