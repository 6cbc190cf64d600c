"""The SPADE VAE-GAN in 3D: label map and style vector → image (Park et al. 2019; Al-Sanaani et al., section II-C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..distributed import concatenate
from ..errors import InputError
from ..labels import plain
from ..limits import check_classes
from .blocks.noise import item_seeds, stream
from .blocks.spade import (
    SPADE,
    BlockModulation,
    Modulation,
    NoiseInjection,
    Sampling,
    SPADEOptions,
    SPADEResBlock,
    label_pyramid,
    noise_like,
)
from .blocks.style import StyleDistribution

STYLE_WEIGHT = 0.005
"""Of one image in the running mean and covariance of styles: they are those of the last few hundred images."""


class Reconstruction(NamedTuple):
    """What the generator gives in training.

    Attributes:
        pred: intensities in [0, 1], ``(B, 1, H, W, D)``, in the style of the image that it was given.
        mean, log_variance: mean and log variance of the style's posterior, ``(B, Z)``.
    """

    pred: torch.Tensor
    mean: torch.Tensor
    log_variance: torch.Tensor


class LabelModulation(NamedTuple):
    """All that the generator computes from a label map, whatever the style.

    Attributes:
        size: H, W, D of the label map.
        start: the encoding at the coarsest level, ``(B, C, h, w, d)``.
        blocks: one per residual block.
        head: modulation of the normalisation at full resolution.
    """

    size: tuple[int, int, int]
    start: torch.Tensor
    blocks: list[BlockModulation]
    head: Modulation


class StyleEncoder(nn.Module):
    """Image → mean and log σ² of its style, whatever its size.

    Strided convolutions without normalisation (it would remove brightness, contrast and noise level, which are what a
    style is), pooled to the mean and the standard deviation of every channel at every level.

    Args:
        style_channels: Z.
        channels: width of each level, at strides 2, 4, 8, …
    """

    def __init__(self, style_channels: int, channels: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        levels = [nn.Conv3d(a, b, 3, stride=2, padding=1) for a, b in pairwise([2, *channels])]
        for level in levels:
            nn.init.kaiming_normal_(level.weight, a=0.2, nonlinearity="leaky_relu")
            if level.bias is not None:
                nn.init.zeros_(level.bias)
        self.levels = nn.ModuleList(levels)
        self.posterior = nn.Linear(2 * sum(channels), 2 * style_channels)
        # means that tell images apart by more than their noise, so that the decoder has something to learn from; with
        # means near 0 and a variance near 1 it learnt to do without the style
        nn.init.normal_(self.posterior.weight[:style_channels], std=4.0 * (2 * sum(channels)) ** -0.5)
        nn.init.zeros_(self.posterior.weight[style_channels:])
        nn.init.zeros_(self.posterior.bias[:style_channels])
        nn.init.constant_(self.posterior.bias[style_channels:], -4.0)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Intensities in [0, 1], ``(B, 1, H, W, D)`` → mean and log σ², ``(B, Z)`` each, float32."""
        x = image.float() * 2.0 - 1.0
        detail = x - F.avg_pool3d(F.pad(x, [1] * 6, mode="replicate"), 3, stride=1)
        x = torch.cat([x, detail * 8.0], dim=1).to(self.posterior.weight.dtype)
        pooled = []
        for level in self.levels:
            x = F.leaky_relu(level(x), 0.2)
            values = x.float().flatten(2)
            pooled += [values.mean(dim=2), (values.var(dim=2, correction=0) + 1e-6).sqrt()]
        with torch.autocast(image.device.type, enabled=False):
            weight = self.posterior.weight.float()
            mean, log_variance = F.linear(torch.cat(pooled, dim=1), weight, self.posterior.bias.float()).chunk(2, dim=1)
        return mean, log_variance.clamp(-10.0, 10.0)


class SPADEGenerator(StyleDistribution):
    """VAE-GAN: a style (of an image, or drawn) and a label map → image.

    The decoder starts from the label map at the coarsest level and has one SPADE residual block per level, each
    followed by trilinear upsampling; a SPADE normalisation at full resolution precedes the last convolution (tanh). The
    style scales and shifts the features in every block. Any volume size: each level has as many voxels as it takes to
    cover the volume. (Padded as a whole to a multiple of the coarsest stride, a third of it can be padding, which moves
    the statistics of all normalisations: volumes came out brighter by 0.03 on average.)

    Args:
        num_classes: C, number of classes of the label map.
        channels: width of each residual block from coarse to fine, and of the head at full resolution; five numbers
            give the paper's four blocks, at strides 16, 8, 4 and 2.
        style_channels: Z (64 in the paper); 0 for a generator without style.
        encoder_channels: widths of the image encoder.
        spade: arguments of :class:`~semsynth.networks.blocks.spade.SPADEOptions`.
        head_hidden: width of the label branch at full resolution, which costs as much as all others together.
        labels: way in which the map is brought to the coarser levels: ``"fractions"`` or ``"nearest"``.
        noise: white noise in every block and in the head, from which texture can be made; a new field in every
            training step, outside training one per ``noise_seed``.
        noise_seed: seed of the noise, and of the style where no image gives one: any whole number.
        style_scale: 1 draws styles as they are in the training set, less draws them nearer to the typical one, which 0
            gives.

    Examples:
        >>> network = SPADEGenerator(4, channels=(8, 8), style_channels=4, encoder_channels=(4,)).eval()
        >>> label = torch.zeros(1, 1, 16, 16, 8)
        >>> network(label, style=torch.zeros(1, 4)).shape
        torch.Size([1, 1, 16, 16, 8])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (128, 128, 64, 32, 16),
        style_channels: int = 64,
        encoder_channels: Sequence[int] = (16, 32, 64, 128),
        spade: dict[str, Any] | None = None,
        head_hidden: int = 16,
        labels: Sampling = "fractions",
        noise: bool = True,
        noise_seed: int = 0,
        style_scale: float = 1.0,
    ) -> None:
        if num_classes < 2 or len(channels) < 2 or style_channels < 0 or style_scale < 0:
            raise InputError(
                f"needs 2 or more classes and widths and a style of 0 or more, got {num_classes} classes, widths "
                f"{tuple(channels)}, style_channels {style_channels} and style_scale {style_scale}"
            )
        super().__init__(style_channels, style_scale)
        options = SPADEOptions(**(spade or {}))
        check_classes(num_classes)
        self.num_classes, self.labels = num_classes, labels
        self.noise, self.noise_seed = noise, int(noise_seed)
        self.strides = [2**power for power in range(len(channels) - 1, -1, -1)]
        self.encoder = StyleEncoder(style_channels, encoder_channels) if style_channels else None
        self.start = nn.Conv3d(num_classes, channels[0], 3, padding=1)
        widths = [channels[0], *channels[:-1]]
        self.blocks = nn.ModuleList(
            SPADEResBlock(a, b, num_classes, options, embedding_channels=style_channels, noise=noise)
            for a, b in pairwise(widths)
        )
        self.reduce = nn.Conv3d(channels[-2], channels[-1], 1)  # before upsampling: the same at an eighth of the cost
        self.head_noise = NoiseInjection(channels[-1]) if noise else None
        self.head_norm = SPADE(num_classes, channels[-1], replace(options, hidden=head_hidden))
        self.head = nn.Conv3d(channels[-1], 1, 3, padding=1)
        self.register_load_state_dict_pre_hook(_default_styles)

    def forward(
        self,
        image: torch.Tensor,
        real: torch.Tensor | None = None,
        *,
        style: torch.Tensor | None = None,
        noise_seeds: Sequence[int] | None = None,
    ) -> Any:
        """Label map → image.

        Args:
            image: class indices ``(B, 1, H, W, D)``, any number type. (The name is what MONAI's tools call a network's
                input.) With a second channel, that is the noise at full resolution, and every s-th voxel of it the
                noise at stride s, in place of the network's own.
            real: intensities in [0, 1], ``(B, 1, H, W, D)``, whose style is to be taken, in training.
            style: ``(1, Z)`` or ``(B, Z)``; None draws one, of the seed.
            noise_seeds: one per item, or one for all; None takes the network's own. An item's noise, and its style
                where none is given, are those of its seed, wherever it stands in a batch.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``; with ``real`` a :class:`Reconstruction`.

        Raises:
            InputError: for another number of seeds.
        """
        seeds = item_seeds(noise_seeds, self.noise_seed, image.shape[0])
        modulation: Any = self._conditions(image[:, :1])
        field = plain(image)[:, 1:2] if image.shape[1] > 1 else None
        if real is None or self.encoder is None:
            return self.decode(modulation, self._style(image, style, seeds), field, noise_seed=seeds)
        mean, log_variance = self.encoder(plain(real))
        if self.training:
            self.count_styles(concatenate(mean), concatenate(log_variance))
        drawn = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return Reconstruction(self.decode(modulation, drawn, noise_seed=seeds), mean, log_variance)

    def modulation(self, label: torch.Tensor) -> LabelModulation:
        """All that depends on the label map alone, for any number of :meth:`decode`.

        Args:
            label: class indices ``(B, 1, H, W, D)``.
        """
        size, start, levels, head = self._conditions(label)
        blocks = [block.modulation(level) for block, level in zip(self.blocks, levels, strict=True)]  # type: ignore[operator]
        return LabelModulation(size, self.start(start), blocks, self.head_norm.modulation(head))

    def decode(
        self,
        modulation: Any,
        style: torch.Tensor | None,
        noise: torch.Tensor | None = None,
        *,
        noise_seed: int | list[int] | None = None,
    ) -> torch.Tensor:
        """Image from what was computed from the label map.

        Args:
            modulation: result of :meth:`modulation`.
            style: ``(B, Z)``, or None where ``style_channels`` is 0. With a modulation of one label map, B styles give
                B images.
            noise: ``(B, 1, H, W, D)`` in place of the network's own, see :meth:`forward`.
            noise_seed: seed of the network's own noise: one per image; or one, of which each image gets another part.
                None takes the attribute of this name, in each map's first image the same noise.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``.
        """
        size, x, blocks, head = modulation
        seed: int | list[int] = self.noise_seed if noise_seed is None else noise_seed
        if noise_seed is None and x.shape[0] > 1:
            seed = [self.noise_seed] * x.shape[0]  # of several maps; several images of one map get different parts
        style = None if style is None else style.to(self.start.weight.dtype)
        if not isinstance(modulation, LabelModulation):
            x = self.start(x)
        if style is not None and style.shape[0] > x.shape[0]:
            x = x.expand(style.shape[0], -1, -1, -1, -1)
        for level, (block, condition) in enumerate(zip(self.blocks, blocks, strict=True)):
            x = block(x, condition, style, self._noise(x, level, noise, seed) if self.noise else None)
            if block is self.blocks[-1]:
                x = self.reduce(x)
            x = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
            h, w, d = _level_size(size, self.strides[level + 1])
            x = x[:, :, :h, :w, :d]
        if self.head_noise is not None:
            x = self.head_noise(x, self._noise(x, len(self.blocks), noise, seed))
        x = self.head(F.leaky_relu(self.head_norm(x, head), 0.2, inplace=True))
        return torch.tanh(x.float()) * 0.5 + 0.5

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Style of an image: intensities in [0, 1], ``(B, 1, H, W, D)`` → mean and log σ², ``(B, Z)`` each.

        Raises:
            InputError: for a generator without style.
        """
        if self.encoder is None:
            raise InputError("this generator has no style (style_channels 0); train one that has")
        mean, log_variance = self.encoder(plain(image))
        return mean, log_variance

    @torch.no_grad()
    def count_styles(self, mean: torch.Tensor, log_variance: torch.Tensor, weight: float = STYLE_WEIGHT) -> None:
        """Take posteriors into the mean and covariance of the training set's styles, which styles are drawn from.

        The KL term leaves a gap between N(0, 1) and what the encoder gives over all images; a style from that gap was
        never trained on, see :class:`~semsynth.networks.blocks.style.StyleDistribution`.

        Args:
            mean, log_variance: ``(B, Z)``.
            weight: weight of this batch.
        """
        for centre, spread in zip(mean.float(), log_variance.float().exp(), strict=True):
            apart = centre - self.style_mean
            self.style_mean += weight * apart
            # not by sums of squares: mean and covariance also have to survive in float16
            self.style_covariance += weight * torch.outer(apart, apart)
            self.style_covariance.lerp_(torch.diag(spread), weight)

    def _noise(self, x: torch.Tensor, level: int, field: torch.Tensor | None, seed: int | list[int]) -> torch.Tensor:
        if field is not None:
            stride = self.strides[level]
            return field[:, :, ::stride, ::stride, ::stride]
        if self.training:
            return noise_like(x, None)
        if isinstance(seed, int):
            return noise_like(x, stream(seed, level + 1))
        return noise_like(x, [stream(one, level + 1) for one in seed])

    def _style(self, image: torch.Tensor, style: torch.Tensor | None, seeds: list[int]) -> torch.Tensor | None:
        if not self.style_channels:
            return None
        if style is None:
            return torch.cat([self.draw_style(seed) for seed in seeds])
        return style.to(image.device).expand(image.shape[0], -1)

    def _conditions(self, label: torch.Tensor) -> tuple[tuple[int, int, int], torch.Tensor, list[torch.Tensor], Any]:
        """Size, and the label encoding for start, blocks and head."""
        label = plain(label)
        size = (label.shape[2], label.shape[3], label.shape[4])
        padding = [side for length in reversed(size) for side in (0, -length % self.strides[0])]
        padded = F.pad(label.to(self.head.weight.dtype), padding, mode="replicate")
        levels = label_pyramid(padded, self.num_classes, self.strides, mode=self.labels, dtype=self.head.weight.dtype)
        encoded = []
        for stride in self.strides:
            h, w, d = _level_size(size, stride)
            encoded.append(levels[stride][:, :, :h, :w, :d])
        return size, encoded[0], encoded[:-1], encoded[-1]


def _level_size(size: Sequence[int], stride: int) -> list[int]:
    """Voxels of a level: no more than it takes to cover the volume, or padding would have a say in its statistics."""
    return [-(-length // stride) for length in size]


def _default_styles(module: SPADEGenerator, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights that were saved without mean and covariance of styles: those of N(0, 1)."""
    if f"{prefix}start.weight" in state:
        state.setdefault(f"{prefix}style_mean", torch.zeros_like(module.style_mean))
        state.setdefault(f"{prefix}style_covariance", torch.eye(len(module.style_mean)))
