"""The denoiser of Med-LSDM: a U-Net over slices, with attention within and across them and SPADE in its decoder.

Its public code builds on Medical Diffusion (Khader et al. 2023), that on video diffusion (Ho et al. 2022): (3, 3, 1)
convolutions and resampling within slices; slices know of each other by attention alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .blocks.label_encoder import LabelEncoder, even
from .blocks.residual import Norm, ResBlock
from .blocks.slice_attention import SliceAttention
from .blocks.spade import SPADEOptions
from .denoiser import DenoiserModulation, LatentDenoiser, repeated, rows_of

IN_PLANE = (3, 3, 1)


class SliceUNet(LatentDenoiser):
    """Noisy latent, time step, label map and style → the prediction, by slices.

    Takes the place of :class:`~semsynth.networks.denoiser.SPADEUNet` in a
    :class:`~semsynth.networks.latent_diffusion.LatentDiffusion`. Nothing is downsampled along D, so that any range of
    slices can be denoised alone (``windowed``). With the defaults, 8 latent channels and 37 classes it has 37.7 M
    parameters (the paper's: 37.9 M).

    Args:
        num_classes: C, of the label map.
        latent_channels: Z, of input and output.
        channels: width of each level, from fine to coarse.
        stride: voxels of the label map per cell of the latent, along each axis: the autoencoder's.
        blocks: residual blocks per level, of encoder and of decoder.
        heads, head_channels: heads, and channels of each head, of all attention.
        spade: arguments of :class:`~semsynth.networks.blocks.spade.SPADEOptions`; norm, groups and eps hold for the
            norms without labels too.
        label_channels: number of channels of the semantic map encoder's features, at every level.
        label_vector: length of a class's vector in it.
        style_channels: S, length of the style vector that is embedded beside the time step; 0 for none.
        predictions: number of predictions, each of the latent's channels, see
            :class:`~semsynth.networks.denoiser.SPADEUNet`.
        dropout: in every residual block.
        recompute: levels are computed again in the backward pass, not stored.

    Attributes:
        windowed: True where a range of slices can be denoised without the others.

    Raises:
        InputError: for values out of range.

    Examples:
        >>> network = SliceUNet(4, latent_channels=2, channels=(8, 8), heads=2, head_channels=4).eval()
        >>> condition = network.modulation(network.encode(torch.zeros(1, 1, 16, 16, 8)))  # once per label map
        >>> network(torch.randn(1, 2, 4, 4, 2), torch.tensor([500]), condition).shape
        torch.Size([1, 2, 4, 4, 2])
    """

    windowed = True

    def __init__(
        self,
        num_classes: int,
        *,
        latent_channels: int = 8,
        channels: Sequence[int] = (64, 128, 256, 512),
        stride: int = 4,
        blocks: int = 2,
        heads: int = 8,
        head_channels: int = 32,
        spade: dict[str, Any] | None = None,
        label_channels: int = 128,
        label_vector: int = 16,
        style_channels: int = 0,
        predictions: int = 1,
        dropout: float = 0.0,
        recompute: bool = False,
    ) -> None:
        if not channels or blocks < 1:
            raise InputError(f"needs channels of 1 or more levels and 1 or more blocks, got {list(channels)}, {blocks}")
        widths = list(channels)
        super().__init__(widths[0], style_channels=style_channels, predictions=predictions)
        options = SPADEOptions(**({"hidden": 128, "kernel_size": 1} | (spade or {})))
        self.num_classes, self.latent_channels = num_classes, latent_channels
        self.strides = [stride * 2**level for level in range(len(widths))]
        self.recompute, emb = recompute, self.embedding_channels
        self.labels = LabelEncoder(num_classes, stride, [label_channels] * len(widths), vector=label_vector)

        def block(a: int, b: int, *, of_labels: int = 0) -> ResBlock:
            return ResBlock(
                a, b, options, label_channels=of_labels, embedding_channels=emb, dropout=dropout, zero_last=True,
                kernel=IN_PLANE,
            )  # fmt: skip

        def attention(width: int, over: Any) -> SliceAttention:
            return SliceAttention(width, over, heads=heads, head_channels=head_channels)

        def level(a: int, b: int, *, of_labels: int = 0) -> _Level:
            made = [block(a if i == 0 else b, b, of_labels=of_labels) for i in range(blocks)]
            return _Level(made, attention(b, "slice_linear"), attention(b, "depth"))

        self.start = nn.Conv3d(latent_channels, widths[0], (7, 7, 1), padding=(3, 3, 0))
        self.start_attention = attention(widths[0], "depth")
        inputs = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(level(a, b) for a, b in zip(inputs, widths, strict=True))
        self.halving = nn.ModuleList(
            nn.Conv3d(w, w, (4, 4, 1), stride=(2, 2, 1), padding=(1, 1, 0)) for w in widths[:-1]
        )
        coarse = widths[-1]
        self.middle = nn.ModuleList([
            block(coarse, coarse), attention(coarse, "slice"), attention(coarse, "depth"), block(coarse, coarse),
        ])  # fmt: skip
        up = list(zip(reversed(widths), reversed(inputs), strict=True))
        self.up = nn.ModuleList(level(2 * wide, narrow, of_labels=label_channels) for wide, narrow in up)
        self.doubling = nn.ModuleList(
            nn.ConvTranspose3d(narrow, narrow, (4, 4, 1), stride=(2, 2, 1), padding=(1, 1, 0)) for _, narrow in up[:-1]
        )
        self.last = block(2 * self.width, self.width)
        self.norm = Norm(self.width, options)
        self.head = nn.Conv3d(self.width, predictions * latent_channels, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    # ---- the label map

    def encode(self, label: torch.Tensor) -> dict[int, torch.Tensor]:
        """Class indices ``(B, 1, H, W, D)`` → the encoder's features at each level, by stride; −1 is no label."""
        return dict(zip(self.strides, self.labels(label), strict=True))

    def null(self, levels: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """:meth:`encode` of the null map of the same size."""
        finest = levels[self.strides[0]]
        size = [length * self.strides[0] for length in finest.shape[2:]]
        return self.encode(finest.new_full([finest.shape[0], 1, *size], -1.0, dtype=torch.float32))

    def modulation(self, levels: dict[int, torch.Tensor]) -> DenoiserModulation:
        """All that depends on the label map alone, for any number of passes.

        Args:
            levels: result of :meth:`encode`.
        """
        blocks = zip(self._up_blocks(), self._conditions(levels), strict=True)
        return DenoiserModulation([{}, {}], [block.modulation(x) for block, x in blocks])

    # ---- a pass

    def down_path(self, x: torch.Tensor, embedded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encoder and middle, which no label reaches: the last features, and all that the decoder is given."""
        vectors = iter(embedded)
        x = self.start_attention(self.start(x.to(self.head.weight.dtype)))
        skips = [x]
        for i, layer in enumerate(self.down):
            own = [next(vectors) for _ in layer.blocks]  # type: ignore[union-attr]
            x = self._level(layer, x, None, own)
            skips.append(x)
            if i < len(self.halving):
                x = self.halving[i](even(x))
        first, in_slice, across, second = self.middle
        x = first(x, None, next(vectors))
        return second(across(in_slice(x)), None, next(vectors)), skips

    def up_path(
        self,
        x: torch.Tensor,
        skips: Sequence[torch.Tensor],
        embedded: Sequence[torch.Tensor],
        condition: dict[int, torch.Tensor] | DenoiserModulation,
    ) -> torch.Tensor:
        """Decoder and head, from :meth:`down_path`; ``(B, predictions · Z, h, w, d)``, float32."""
        if not isinstance(condition, DenoiserModulation):
            condition = DenoiserModulation([], self._conditions(condition))  # type: ignore[arg-type]
        rows, left = max(rows_of(condition), x.shape[0]), list(skips)
        vectors = iter(embedded[len(self._down_blocks()) + 2 :])
        given = iter(condition.up)
        x = repeated(x, rows)
        for i, layer in enumerate(self.up):
            own = [next(vectors) for _ in layer.blocks]  # type: ignore[union-attr]
            conditions = [next(given) for _ in own]
            x = self._level(layer, torch.cat([x, repeated(left.pop(), rows)], dim=1), conditions, own)
            if i < len(self.doubling):
                h, w = left[-1].shape[2:4]
                x = self.doubling[i](x)[:, :, :h, :w]
        x = self.last(torch.cat([x, repeated(left.pop(), rows)], dim=1), None, next(vectors))
        result: torch.Tensor = self.head(F.silu(self.norm(x)))
        return result.float()

    def _level(self, layer: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
        if self.recompute and torch.is_grad_enabled():
            result: torch.Tensor = checkpoint(layer, *given, use_reentrant=False)
            return result
        return layer(*given)

    def _blocks(self) -> list[ResBlock]:
        """All, in the order in which they run."""
        return [*self._down_blocks(), self.middle[0], self.middle[3], *self._up_blocks(), self.last]  # type: ignore[list-item]

    def _down_blocks(self) -> list[ResBlock]:
        return [block for layer in self.down for block in layer.blocks]  # type: ignore[union-attr]

    def _up_blocks(self) -> list[ResBlock]:
        return [block for layer in self.up for block in layer.blocks]  # type: ignore[union-attr]

    def _conditions(self, levels: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """The label features of each block of the decoder."""
        coarse_to_fine = sorted(levels, reverse=True)
        return [levels[s] for s, layer in zip(coarse_to_fine, self.up, strict=True) for _ in layer.blocks]  # type: ignore[union-attr]


class _Level(nn.Module):
    """Residual blocks, then attention within slices and across them."""

    def __init__(self, blocks: Sequence[ResBlock], in_slice: SliceAttention, across: SliceAttention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.in_slice, self.across = in_slice, across

    def forward(
        self, x: torch.Tensor, conditions: Sequence[Any] | None, embedded: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, None if conditions is None else conditions[i], embedded[i])
        result: torch.Tensor = self.across(self.in_slice(x))
        return result
