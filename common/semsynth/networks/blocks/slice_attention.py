"""Attention over volumes that are stacks of slices: within each slice, and across slices (Med-LSDM, section 3.3).

The layout is that of video diffusion (Ho et al. 2022) with slices in place of frames.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from .residual import Norm
from .spade import SPADEOptions

LONGEST = 10000.0
"""Period of the slowest rotation over 2π, in slices (Su et al. 2021)."""


class SliceAttention(nn.Module):
    """Self-attention around a norm of each voxel and a shortcut.

    Args:
        channels: number of channels of the features.
        over: ``"depth"``: each voxel of a slice attends to the voxels at its place in the other slices, with rotary
            positions (Su et al. 2021), so that only how far slices are apart counts. ``"slice"``: to all voxels of its
            slice. ``"slice_linear"``: the same with softmaxes over queries and keys apart (Shen et al. 2021), which
            needs neither time nor memory for pairs of voxels.
        heads, head_channels: number of heads, and of the channels of each.

    Raises:
        InputError: for an unknown ``over``, or an odd ``head_channels`` for rotary positions.
    """

    def __init__(
        self, channels: int, over: Literal["depth", "slice", "slice_linear"], *, heads: int = 8, head_channels: int = 32
    ) -> None:
        super().__init__()
        if over not in ("depth", "slice", "slice_linear"):
            raise InputError(f"attention must be over depth, slice or slice_linear, got {over!r}")
        if heads < 1 or head_channels < 2 or head_channels % 2:
            raise InputError(f"heads must be 1 or more and head_channels even, got {heads} and {head_channels}")
        self.over, self.heads = over, heads
        inner = heads * head_channels
        self.norm = Norm(channels, SPADEOptions(norm="voxel"))
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.out = nn.Linear(inner, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w, d)`` → the same shape."""
        b, c, h, w, d = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1)  # (B, h, w, d, C)
        if self.over == "depth":
            y = self._attended(tokens.reshape(b * h * w, d, c)).view(b, h, w, d, c)
        else:
            slices = tokens.permute(0, 3, 1, 2, 4).reshape(b * d, h * w, c)
            y = self._attended(slices).view(b, d, h, w, c).permute(0, 2, 3, 1, 4)
        result: torch.Tensor = x + y.permute(0, 4, 1, 2, 3)
        return result

    def _attended(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(N, tokens, C)`` → the same shape."""
        n, count, _ = tokens.shape
        qkv = self.qkv(tokens).view(n, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # (N, heads, tokens, head_channels)
        if self.over == "slice_linear":
            y = linear_attention(q, k, v)
        else:
            if self.over == "depth":
                q, k = rotated(q), rotated(k)
            y = F.scaled_dot_product_attention(q, k, v)
        attended: torch.Tensor = self.out(y.transpose(1, 2).reshape(n, count, -1))
        return attended


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Efficient attention (Shen et al. 2021, eq. 4): softmax(q) · (softmax(k)ᵀ · v), linear in the tokens.

    Args:
        q, k, v: ``(N, heads, tokens, head_channels)``; q's softmax is over channels, k's over tokens.

    Returns:
        The same shape.
    """
    q = q.softmax(dim=-1) * q.shape[-1] ** -0.5
    context = k.softmax(dim=-2).transpose(-1, -2) @ v  # (N, heads, head_channels, head_channels)
    return q @ context.to(q.dtype)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Each pair of channels turned by an angle that grows with the token's place (Su et al. 2021, eq. 34).

    The product of two such vectors depends on their places by the distance alone.

    Args:
        x: ``(N, heads, tokens, head_channels)``.
    """
    count, channels = x.shape[-2:]
    places = torch.arange(count, device=x.device, dtype=torch.float32)
    rates = LONGEST ** (-torch.arange(0, channels, 2, device=x.device, dtype=torch.float32) / channels)
    angles = places[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
