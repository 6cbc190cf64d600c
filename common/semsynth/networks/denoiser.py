"""Diffusion U-Net with SPADE: what predicts the noise in a latent, given the label map and the time step.

The layout is that of Dhariwal & Nichol 2021 as MONAI's ``SPADEDiffusionModelUNet`` has it, whose weights can be
converted; SPADE stands in the decoder and, by default, in the middle (Al-Sanaani et al., fig. 1B and C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..limits import check_classes
from .autoencoder import LabelEncoding, encode_labels, label_channels
from .blocks.residual import (
    Attention,
    Downsample,
    Embedding,
    Norm,
    Resampling,
    ResBlock,
    Upsample,
    check_resampling,
    per_level,
)
from .blocks.spade import BlockModulation, Modulation, SPADEOptions


class LabelCondition(Protocol):
    """What a denoiser computes from a label map once, for all steps of a sampler; a batch."""

    def row(self, number: int) -> Self:
        """The condition of one item of the batch."""

    def window(self, first: int, last: int) -> Self:
        """The condition of a range of slices."""


class DenoiserModulation(NamedTuple):
    """All that the denoiser computes from a label map, whatever the time step, the style and the noisy latent.

    Attributes:
        middle: modulation of the two blocks in the middle; {} where they have no SPADE.
        up: one per block of the decoder, coarse to fine.
    """

    middle: list[BlockModulation]
    up: list[BlockModulation]

    def row(self, number: int) -> DenoiserModulation:
        """The modulation of one item of the batch; no copy."""
        return self._with(lambda modulation: Modulation(*(part[number : number + 1] for part in modulation)))

    def window(self, first: int, last: int) -> DenoiserModulation:
        """The modulation of a range of slices, for networks that do not downsample along D; no copy."""
        return self._with(lambda modulation: Modulation(*(part[..., first:last] for part in modulation)))

    def _with(self, change: Callable[[Modulation], Modulation]) -> DenoiserModulation:
        def blocks(made: list[BlockModulation]) -> list[BlockModulation]:
            return [{name: change(modulation) for name, modulation in block.items()} for block in made]

        return DenoiserModulation(blocks(self.middle), blocks(self.up))


class Denoiser(nn.Module):
    """What a :class:`~semsynth.networks.latent_diffusion.LatentDiffusion` denoises with: a network in three parts.

    :meth:`embed` depends on time step and style alone, :meth:`down_path` not on the label map, :meth:`up_path` on all:
    each is computed as rarely as can be.

    Args:
        style_channels: S, length of a style vector; 0 for none.
        predictions: number of predictions, each of the latent's channels.
    """

    num_classes: int
    latent_channels: int
    strides: list[int]
    windowed = False
    """Whether a range of slices can be denoised without the others."""
    slices_apart = False
    """Whether no slice knows of another one: windows then change speed and memory alone."""

    def __init__(self, *, style_channels: int, predictions: int) -> None:
        super().__init__()
        self.style_channels, self.predictions = style_channels, predictions

    def encode(self, label: torch.Tensor) -> dict[int, torch.Tensor]:
        """What the network is conditioned on, by stride in voxels, from class indices ``(B, 1, H, W, D)``."""
        raise NotImplementedError

    def null(self, levels: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """:meth:`encode` of no label at all, of the sizes of ``levels``."""
        raise NotImplementedError

    def modulation(self, levels: dict[int, torch.Tensor]) -> Any:
        """All that depends on the label map alone, from :meth:`encode`: a :class:`LabelCondition`."""
        raise NotImplementedError

    def embed(self, timestep: torch.Tensor, style: torch.Tensor | None = None) -> list[torch.Tensor]:
        """What the network makes of time step and style, ``(B, …)`` each.

        Args:
            timestep: ``(B,)``; of all steps of a sampler at once, say.
            style: ``(B or 1, S)``, as in :meth:`forward`.
        """
        raise NotImplementedError

    def down_path(self, x: torch.Tensor, embedded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What does not depend on the label map: its last features, and all that the decoder is given."""
        raise NotImplementedError

    def up_path(
        self, x: torch.Tensor, skips: Sequence[torch.Tensor], embedded: Sequence[torch.Tensor], condition: Any
    ) -> torch.Tensor:
        """The rest, from :meth:`down_path`; ``(B, predictions · Z, h, w, d)``, float32."""
        raise NotImplementedError

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        condition: dict[int, torch.Tensor] | LabelCondition,
        style: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One pass.

        Args:
            x: noisy latent ``(B, Z, h, w, d)``.
            timestep: ``(B,)``.
            condition: :meth:`encode` or :meth:`modulation` of the label map, of batch size B or 1.
            style: ``(B, S)``, standardised; a row of NaN is the null style. None is the null style for all.

        Returns:
            ``(B, predictions · Z, h, w, d)``, float32.
        """
        return self.denoise(x, self.embed(timestep, style), condition)

    def denoise(
        self,
        x: torch.Tensor,
        embedded: Sequence[torch.Tensor],
        condition: dict[int, torch.Tensor] | LabelCondition,
    ) -> torch.Tensor:
        """:meth:`forward` with what :meth:`embed` gives.

        Args:
            x: ``(B, Z, h, w, d)``.
            embedded: embedding of batch size B or 1.
            condition: condition of batch size B or 1; of another one where B is 1: several maps for one latent. What no
                label reaches then runs once for all of them.
        """
        features, skips = self.down_path(x, embedded)
        return self.up_path(features, skips, embedded, condition)


class LatentDenoiser(Denoiser):
    """A U-Net whose residual blocks are given time step and style as a vector.

    Args:
        width: width of the finest level.
        style_channels, predictions: see :class:`Denoiser`.
    """

    head: nn.Conv3d

    def __init__(self, width: int, *, style_channels: int, predictions: int) -> None:
        super().__init__(style_channels=style_channels, predictions=predictions)
        self.width, emb = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.style: nn.Module | None = None
        if style_channels:
            self.style = nn.Sequential(nn.Linear(style_channels, emb), nn.SiLU(), nn.Linear(emb, emb))

    @property
    def embedding_channels(self) -> int:
        """Length of the vector that time step and style become."""
        return 4 * self.width

    def _blocks(self) -> list[ResBlock]:
        """All that are given the vector, in the order in which they run."""
        raise NotImplementedError

    def embed(self, timestep: torch.Tensor, style: torch.Tensor | None = None) -> list[torch.Tensor]:
        """What every residual block, in the order in which they run, makes of time step and style.

        Args:
            timestep: ``(B,)``; of all steps of a sampler at once, say.
            style: ``(B or 1, S)``, as in :meth:`forward`.

        Returns:
            ``(B, 2·channels of the block)`` each, see :meth:`~semsynth.networks.blocks.residual.ResBlock.embed`.
        """
        dtype = self.head.weight.dtype
        vector: torch.Tensor = self.time(sinusoids(timestep, self.width).to(dtype))
        if self.style is not None and style is not None:
            known = torch.isfinite(style).all(dim=1, keepdim=True)
            vector = vector + self.style(torch.where(known, style, 0.0).to(dtype)) * known.to(dtype)
        return [block.embed(vector) for block in self._blocks()]


class SPADEUNet(LatentDenoiser):
    """Noisy latent, time step, label map and style → the prediction.

    Any latent size: each level has as many voxels as it takes to cover the one above.

    Args:
        num_classes: C, of the label map.
        latent_channels: Z, of input and output.
        channels: width of each level, from fine to coarse.
        stride: voxels of the label map per voxel of the latent, along each axis: the autoencoder's.
        blocks: residual blocks per level of the encoder, one number for all or one per level; the decoder has one more.
        attention: levels with self-attention after each block; None: the middle alone.
        head_channels: number of channels of each attention head, one number for all levels or one per level (the last
            one for the middle too); None for one head.
        spade: arguments of :class:`~semsynth.networks.blocks.spade.SPADEOptions`; norm, groups and eps hold for the
            norms without labels too.
        labels: way in which the map is brought to the latent's levels: ``"fractions"`` (thin walls stay),
            ``"nearest"``, or ``"subvoxels"`` (at the latent's own level nothing is lost), see
            :func:`~semsynth.networks.autoencoder.encode_labels`.
        middle_spade: SPADE in the middle too; False as in MONAI's.
        middle_attention: self-attention between the two blocks in the middle.
        style_channels: S, length of the style vector that is embedded beside the time step; 0 for none.
        predictions: number of predictions, each of the latent's channels: 2 where noise and latent are predicted apart
            (``prediction: "split"`` of :class:`~semsynth.networks.sampling.samplers.Schedule`).
        embedding: ``"scale_shift"`` or ``"add"``, see :class:`~semsynth.networks.blocks.residual.ResBlock`.
        dropout: in every residual block.
        resampling: ``"aligned"`` or ``"strided"``, see :class:`~semsynth.networks.blocks.residual.Downsample`.

    Attributes:
        windowed: True where a range of slices can be denoised without the others: not where D is downsampled.

    Raises:
        InputError: for numbers of levels that differ, or names that are unknown.

    Examples:
        >>> network = SPADEUNet(4, latent_channels=2, channels=(8, 8), stride=4, spade={"hidden": 4}).eval()
        >>> label = torch.zeros(1, 1, 16, 16, 8)
        >>> condition = network.modulation(network.encode(label))  # once per label map
        >>> network(torch.randn(1, 2, 4, 4, 2), torch.tensor([500]), condition).shape
        torch.Size([1, 2, 4, 4, 2])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        latent_channels: int = 8,
        channels: Sequence[int] = (64, 96, 128),
        stride: int = 4,
        blocks: int | Sequence[int] = 1,
        attention: Sequence[bool] | None = None,
        head_channels: int | Sequence[int] | None = None,
        spade: dict[str, Any] | None = None,
        labels: LabelEncoding = "fractions",
        middle_spade: bool = True,
        middle_attention: bool = True,
        style_channels: int = 0,
        predictions: int = 1,
        embedding: Embedding = "scale_shift",
        dropout: float = 0.0,
        resampling: Resampling = "aligned",
    ) -> None:
        widths, counts, attended, heads = per_level(
            channels=channels, blocks=blocks, attention=attention or False, head_channels=head_channels
        )
        if num_classes < 2 or stride < 1:
            raise InputError(f"needs 2 or more classes and a stride of 1 or more, got {num_classes} and {stride}")
        check_classes(num_classes)
        check_resampling(resampling)
        super().__init__(widths[0], style_channels=style_channels, predictions=predictions)
        options = SPADEOptions(**(spade or {}))
        self.num_classes, self.latent_channels = num_classes, latent_channels
        self.labels: LabelEncoding = labels
        self.strides = [stride * 2**level for level in range(len(widths))]
        self.spade_in_middle, emb = middle_spade, self.embedding_channels
        encoded = label_channels(num_classes, self.strides, labels)

        def block(a: int, b: int, *, of_labels: int = 0) -> ResBlock:
            return ResBlock(
                a, b, options, label_channels=of_labels, embedding_channels=emb,
                embedding=embedding, dropout=dropout, zero_last=True,
            )  # fmt: skip

        def level(i: int, channels: int, *, of_labels: int = 0) -> _Level:
            return _Level(
                block(channels, widths[i], of_labels=of_labels),
                Attention(widths[i], options, head_channels=heads[i]) if attended[i] else nn.Identity(),
            )

        self.start = nn.Conv3d(latent_channels, self.width, 3, padding=1)
        down, skips = _down(widths, counts, resampling, level)
        coarse, in_middle = widths[-1], encoded[self.strides[-1]] if middle_spade else 0
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList([
            block(coarse, coarse, of_labels=in_middle),
            Attention(coarse, options, head_channels=heads[-1]) if middle_attention else nn.Identity(),
            block(coarse, coarse, of_labels=in_middle),
        ])  # fmt: skip
        self.up = nn.ModuleList(_up(widths, counts, resampling, skips, [encoded[s] for s in self.strides], level))
        self.norm = Norm(self.width, options)
        self.head = nn.Conv3d(self.width, predictions * latent_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def encode(self, label: torch.Tensor) -> dict[int, torch.Tensor]:
        """Class indices ``(B, 1, H, W, D)`` → their encoding at each level, by stride; −1 becomes all zeros."""
        return encode_labels(label, self.num_classes, self.strides, mode=self.labels, dtype=self.head.weight.dtype)

    def null(self, levels: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """:meth:`encode` of the null map of the same size."""
        return {stride: torch.zeros_like(level) for stride, level in levels.items()}

    def modulation(self, levels: dict[int, torch.Tensor]) -> DenoiserModulation:
        """All that depends on the label map alone, for any number of passes.

        Args:
            levels: result of :meth:`encode`.
        """
        middle, up = self._conditions(levels)
        return DenoiserModulation(
            [block.modulation(x) for block, x in zip(self._middle_blocks(), middle, strict=True)],
            [block.modulation(x) for block, x in zip(self._up_blocks(), up, strict=True)],
        )

    def down_path(self, x: torch.Tensor, embedded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The encoder, which does not depend on the label map: its last features, and all that the decoder is given."""
        vectors = iter(embedded)
        x = self.start(x.to(self.head.weight.dtype))
        skips = [x]
        for layer in self.down:
            x = layer(x, None, next(vectors)) if isinstance(layer, _Level) else layer(x)
            skips.append(x)
        return x, skips

    def up_path(
        self,
        x: torch.Tensor,
        skips: Sequence[torch.Tensor],
        embedded: Sequence[torch.Tensor],
        condition: dict[int, torch.Tensor] | DenoiserModulation,
    ) -> torch.Tensor:
        """Middle, decoder and head, from :meth:`down_path`; ``(B, predictions · Z, h, w, d)``, float32."""
        if not isinstance(condition, DenoiserModulation):
            condition = DenoiserModulation(*self._conditions(condition))
        rows, left = max(rows_of(condition), x.shape[0]), list(skips)
        vectors, given = iter(embedded[len(self._down_blocks()) :]), iter(condition.up)
        if self.spade_in_middle:
            x = repeated(x, rows)
        x = self.middle[0](x, condition.middle[0], next(vectors))
        x = self.middle[2](self.middle[1](x), condition.middle[1], next(vectors))
        x = repeated(x, rows)
        for layer in self.up:
            if isinstance(layer, _Level):
                x = layer(torch.cat([x, repeated(left.pop(), rows)], dim=1), next(given), next(vectors))
            else:
                x = layer(x, left[-1].shape[2:])
        result: torch.Tensor = self.head(F.silu(self.norm(x)))
        return result.float()

    def _blocks(self) -> list[ResBlock]:
        """All, in the order in which they run."""
        return [*self._down_blocks(), *self._middle_blocks(), *self._up_blocks()]

    def _down_blocks(self) -> list[ResBlock]:
        return [layer.block for layer in self.down if isinstance(layer, _Level)]

    def _middle_blocks(self) -> list[ResBlock]:
        return [self.middle[0], self.middle[2]]  # type: ignore[list-item]

    def _up_blocks(self) -> list[ResBlock]:
        return [layer.block for layer in self.up if isinstance(layer, _Level)]

    def _conditions(self, levels: dict[int, torch.Tensor]) -> tuple[list[Any], list[Any]]:
        """The label encodings of the blocks in the middle and in the decoder."""
        strides = sorted(levels, reverse=True)
        middle, up = [levels[strides[0]]] * 2, []
        for layer in self.up:
            if isinstance(layer, _Level):
                up.append(levels[strides[0]])
            else:
                strides = strides[1:]
        return middle, up


class _Level(nn.Module):
    """A residual block and what follows it."""

    def __init__(self, block: ResBlock, attention: nn.Module) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: torch.Tensor, condition: Any, embedded: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.attention(self.block(x, condition, embedded))
        return result


def rows_of(condition: DenoiserModulation) -> int:
    """Batch size of a modulation, or of the label encodings in its place."""
    first = condition.up[0]
    return len(first if isinstance(first, torch.Tensor) else first["norm_0"].scale)


def repeated(x: torch.Tensor, rows: int) -> torch.Tensor:
    """The one item as often as there are maps for it; a batch of as many as it is."""
    return x if x.shape[0] == rows else torch.cat([x] * rows)  # not expanded: that would lose the memory format


def _down(
    widths: Sequence[int], counts: Sequence[int], resampling: Resampling, level: Callable[..., _Level]
) -> tuple[list[nn.Module], list[int]]:
    """The encoder's layers, and the widths of what they leave for the decoder."""
    layers: list[nn.Module] = []
    skips = [widths[0]]
    for i, wide in enumerate(widths):
        for _ in range(counts[i]):
            layers.append(level(i, skips[-1]))
            skips.append(wide)
        if i < len(widths) - 1:
            layers.append(Downsample(wide, wide, resampling, before=1))
            skips.append(wide)
    return layers, skips


def _up(
    widths: Sequence[int],
    counts: Sequence[int],
    resampling: Resampling,
    skips: Sequence[int],
    of_labels: Sequence[int],
    level: Callable[..., _Level],
) -> list[nn.Module]:
    """The decoder's layers, each block beside what the encoder left for it."""
    layers: list[nn.Module] = []
    left, width = list(skips), widths[-1]
    for i in reversed(range(len(widths))):
        for _ in range(counts[i] + 1):
            layers.append(level(i, width + left.pop(), of_labels=of_labels[i]))
            width = widths[i]
        if i:
            wide, width = width, widths[i - 1] if resampling == "aligned" else width
            layers.append(Upsample(wide, width, resampling))
    return layers


def sinusoids(timestep: torch.Tensor, width: int, longest: float = 10000.0) -> torch.Tensor:
    """Cosines and sines of a time step at ``width / 2`` frequencies (Ho et al. 2020, after Vaswani et al. 2017).

    Args:
        timestep: ``(B,)``.
        width: width of the result; the last value is 0 where it is odd.
        longest: period of the slowest over 2π.

    Returns:
        ``(B, width)``, float32, cosines first.
    """
    half = width // 2
    rates = torch.exp(-math.log(longest) * torch.arange(half, device=timestep.device, dtype=torch.float32) / half)
    angles = timestep.float()[:, None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))
