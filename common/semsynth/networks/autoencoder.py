"""Autoencoder with a KL-regularised latent and a SPADE decoder: the first stage of latent diffusion.

Rombach et al. 2022 (latent diffusion, section 3.1), with the label map in the decoder (Al-Sanaani et al., fig. 1A).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..labels import plain
from ..limits import check_classes
from .blocks.residual import Attention, Downsample, Norm, Resampling, ResBlock, Upsample, check_resampling, per_level
from .blocks.spade import SPADE, BlockModulation, Sampling, SPADEOptions, label_pyramid
from .spade_gan import Reconstruction

LabelEncoding: TypeAlias = Literal["subvoxels", "fractions", "nearest"]


class DecoderModulation(NamedTuple):
    """All that the decoder computes from a label map.

    Attributes:
        size: H, W, D of the label map.
        blocks: one per residual block, in the order in which the decoder runs them.
    """

    size: tuple[int, int, int]
    blocks: list[BlockModulation]


class SPADEAutoencoder(nn.Module):
    """Image → latent → image, the way back guided by the label map.

    Any volume size: each level has as many voxels as it takes to cover the volume.

    With ``norm="voxel"`` (the default here) and no attention the decoder is a local function of latent and label map:
    a crop trains what a whole volume uses, and overlapping tiles give the whole volume's voxels.

    Args:
        num_classes: C, of the label map.
        channels: width of each residual level, from fine to coarse (four levels in the paper).
        strides: factors by which each level is coarser than the one before, 1 or 2; of the first, than the image. Their
            product is the compression along each axis. A first level of stride 2 has 2³ voxels as channels of one, at
            the decoder's end too: at full resolution most of the time goes into memory, not arithmetic.
        latent_channels: number of channels of the latent (8 in the paper).
        blocks: residual blocks per level, one number for all or one per level; encoder and decoder alike.
        spade: arguments of :class:`~semsynth.networks.blocks.spade.SPADEOptions`; norm, groups and eps hold for the
            norms without labels too.
        labels: way in which the map is brought to the levels: ``"fractions"``, ``"nearest"`` or ``"subvoxels"``, see
            :func:`encode_labels`.
        attention: levels with self-attention after each block; None for no level.
        middle: one more block, self-attention and block at the coarsest level, in the encoder and in the decoder.
        last_norm: a norm before the last convolution of encoder and of decoder, as in MONAI's. With ``norm="voxel"`` it
            would take the intensity from each voxel just before it is to be told.
        norm_eps: epsilon of the norms without labels, for weights from elsewhere; None: that of ``spade``.
        resampling: ``"aligned"``, ``"strided"`` or ``"smooth"``, see
            :class:`~semsynth.networks.blocks.residual.Downsample` and ``Upsample``; with the last two the widths change
            in the residual blocks, as in MONAI's.
        noise: the decoder can be given white noise of the image's size, which enters at its finest level through one
            convolution (per voxel in Karras et al. 2019, section 3.2). A latent cannot hold the noise of a scan, and a
            decoder of the latent alone leaves it out. The convolution starts at zero, and weights from before there was
            one are those of such a zero.
        signed: intensities are brought to [-1, 1] inside. False leaves them in [0, 1], for weights from elsewhere that
            were trained so.

    Raises:
        InputError: for numbers of levels that differ, or strides that are neither 1 nor 2.

    Examples:
        >>> network = SPADEAutoencoder(4, channels=(8, 8), strides=(2, 2), latent_channels=2)
        >>> image, label = torch.rand(1, 1, 16, 16, 8), torch.zeros(1, 1, 16, 16, 8)
        >>> mean, log_variance = network.encode(image)
        >>> mean.shape, network.decode(mean, label).shape
        (torch.Size([1, 2, 4, 4, 2]), torch.Size([1, 1, 16, 16, 8]))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 32, 64, 64),
        strides: Sequence[int] = (2, 1, 2, 1),
        latent_channels: int = 8,
        blocks: int | Sequence[int] = 1,
        spade: dict[str, Any] | None = None,
        labels: LabelEncoding = "subvoxels",
        attention: Sequence[bool] | None = None,
        middle: bool = False,
        last_norm: bool = False,
        norm_eps: float | None = None,
        resampling: Resampling = "aligned",
        noise: bool = False,
        signed: bool = True,
    ) -> None:
        super().__init__()
        widths, steps, counts, attended = per_level(
            channels=channels, strides=strides, blocks=blocks, attention=attention or False
        )
        check_levels(steps, num_classes, latent_channels)
        check_resampling(resampling)
        options = SPADEOptions(**({"norm": "voxel"} | (spade or {})))
        self.num_classes, self.latent_channels, self.signed = num_classes, latent_channels, signed
        self.labels: LabelEncoding = labels
        self.strides: list[int] = [math.prod(steps[: i + 1]) for i in range(len(steps))]
        plan = _Plan(
            channels=widths,
            strides=steps,
            blocks=counts,
            attention=attended,
            options=options,
            unlabelled=options if norm_eps is None else replace(options, eps=norm_eps),
            latent_channels=latent_channels,
            label_channels=label_channels(num_classes, self.strides, labels),
            middle=middle,
            last_norm=last_norm,
            resampling=resampling,
            noise=noise,
        )
        self.encoder, self.decoder = _Encoder(plan), _Decoder(plan)

    @property
    def stride(self) -> int:
        """Voxels of the image per voxel of the latent, along each axis."""
        return self.strides[-1]

    @property
    def takes_noise(self) -> bool:
        """Whether :meth:`decode` makes use of noise."""
        return self.decoder.noise is not None

    def forward(self, image: torch.Tensor, real: torch.Tensor) -> Reconstruction:
        """Image → latent, drawn from its posterior in training and its mean otherwise → image.

        In training the noise that the decoder may add is drawn, too; otherwise there is none.

        Args:
            image: class indices ``(B, 1, H, W, D)``. (The name is what MONAI's tools call a network's input.)
            real: intensities in [0, 1], ``(B, 1, H, W, D)``.

        Returns:
            Reconstruction, about in [0, 1], with mean and log σ² ``(B, Z, h, w, d)``.
        """
        mean, log_variance = self.encode(real)
        if not self.training:
            return Reconstruction(self.decode(mean, image), mean, log_variance)
        latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        noise = torch.randn_like(plain(real)) if self.takes_noise else None
        return Reconstruction(self.decode(latent, image, noise), mean, log_variance)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior of the latent.

        Args:
            image: intensities in [0, 1], ``(B, 1, H, W, D)``.

        Returns:
            Mean and log σ² in [-30, 4], ``(B, Z, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)`` each, float32.
        """
        x = plain(image).to(self.encoder.head.weight.dtype)
        if self.signed:
            x = x * 2.0 - 1.0
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 4.0)

    def modulation(self, label: torch.Tensor) -> DecoderModulation:
        """All that depends on the label map alone, for any number of :meth:`decode`.

        Args:
            label: class indices ``(B, 1, H, W, D)``.
        """
        size, levels = self._encoded(label)
        return DecoderModulation(size, self.decoder.modulation(levels))

    def decode(
        self,
        latent: torch.Tensor,
        condition: torch.Tensor | DecoderModulation,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image of a latent.

        Args:
            latent: ``(B, Z, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)``.
            condition: label map, class indices ``(B or 1, 1, H, W, D)``, or :meth:`modulation` of it.
            noise: white noise of mean 0 and variance 1, ``(B, 1, H, W, D)``; None adds none.

        Returns:
            Intensities, about in [0, 1], ``(B, 1, H, W, D)``, float32.

        Raises:
            InputError: for a latent that does not cover the label map, or noise that the decoder does not take.
        """
        if isinstance(condition, DecoderModulation):
            size = condition.size
            given: list[Any] = condition.blocks
        else:
            size, levels = self._encoded(condition)
            given = self.decoder.conditions(levels)
        needed = cover(size, self.stride)
        if list(latent.shape[2:]) != needed:
            raise InputError(
                f"a label map of {size} voxels needs a latent of {tuple(needed)}, got {tuple(latent.shape[2:])}"
            )
        if noise is not None and not self.takes_noise:
            raise InputError("noise was given to a decoder that takes none; build the autoencoder with noise=True")
        dtype = self.decoder.head.weight.dtype
        x = self.decoder(plain(latent).to(dtype), given, size, self.strides, None if noise is None else noise.to(dtype))
        if self.strides[0] == 2:
            x = depth_to_space(x, size)
        image: torch.Tensor = x.float()
        return image * 0.5 + 0.5 if self.signed else image

    def reach(self) -> int | None:
        """How many voxels away, along each axis, latent and label map still have a say in a decoded voxel.

        A multiple of :attr:`stride`. None where the whole volume has a say: with group or instance norms (their
        statistics) or self-attention.
        """
        return self.decoder.reach(self.strides)

    def _encoded(self, label: torch.Tensor) -> tuple[tuple[int, int, int], dict[int, torch.Tensor]]:
        label = plain(label)
        size = (label.shape[2], label.shape[3], label.shape[4])
        return size, encode_labels(
            label, self.num_classes, self.strides, mode=self.labels, dtype=self.decoder.head.weight.dtype
        )


@dataclass(frozen=True)
class _Plan:
    """What encoder and decoder are built by; lists have one entry per level, from fine to coarse."""

    channels: list[int]
    strides: list[int]
    blocks: list[int]
    attention: list[bool]
    options: SPADEOptions
    unlabelled: SPADEOptions
    latent_channels: int
    label_channels: dict[int, int]
    middle: bool
    last_norm: bool
    resampling: Resampling
    noise: bool
    image_channels: int = 1

    def last(self, width: int) -> nn.Module:
        """The norm before the last convolution."""
        return Norm(width, self.unlabelled) if self.last_norm else nn.Identity()


class _Encoder(nn.Module):
    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        options = plan.unlabelled
        self.start = start_layer(plan.image_channels, plan.channels[0], plan.strides[0])
        layers: list[nn.Module] = []
        width = plan.channels[0]
        for i, wide in enumerate(plan.channels):
            if i and plan.strides[i] == 2:
                narrow, width = width, wide if plan.resampling == "aligned" else width
                layers.append(Downsample(narrow, width, plan.resampling))
            for _ in range(plan.blocks[i]):
                layers.append(ResBlock(width, wide, options, zero_last=True))
                width = wide
                if plan.attention[i]:
                    layers.append(Attention(width, options))
        if plan.middle:
            layers += [ResBlock(width, width, options), Attention(width, options), ResBlock(width, width, options)]
        self.layers = nn.ModuleList(layers)
        self.norm = plan.last(width)
        self.head = nn.Conv3d(width, 2 * plan.latent_channels, 3, padding=1)
        assert self.head.bias is not None
        # the map alone gives a fair image: of a latent that starts as mostly noise the decoder learns to make no use
        nn.init.constant_(self.head.bias[plan.latent_channels :], -4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.head(self.norm(x))
        return result


class _Decoder(nn.Module):
    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        stride = max(plan.label_channels)

        def block(a: int, b: int) -> ResBlock:
            return ResBlock(a, b, plan.options, label_channels=plan.label_channels[stride], zero_last=True)

        self.rescale = nn.Conv3d(plan.latent_channels, plan.latent_channels, 1)
        width = plan.channels[-1]
        self.start = nn.Conv3d(plan.latent_channels, width, 3, padding=1)
        layers: list[nn.Module] = []
        if plan.middle:
            layers += [block(width, width), Attention(width, plan.unlabelled), block(width, width)]
        finest = width  # where the image's resolution, or half of it, is reached
        for i in reversed(range(len(plan.channels))):
            for _ in range(plan.blocks[i]):
                layers.append(block(width, plan.channels[i]))
                width = plan.channels[i]
                if plan.attention[i]:
                    layers.append(Attention(width, plan.unlabelled))
            if i and plan.strides[i] == 2:
                stride //= 2
                wide, width = width, plan.channels[i - 1] if plan.resampling == "aligned" else width
                layers.append(Upsample(wide, width, plan.resampling))
                finest = width
        self.layers = nn.ModuleList(layers)
        self.norm = plan.last(width)
        self.head = nn.Conv3d(width, plan.image_channels * plan.strides[0] ** 3, 3, padding=1)
        self.noise: nn.Module | None = None
        if plan.noise:
            self.noise = start_layer(1, finest, plan.strides[0])
            for parameter in self.noise.parameters():
                nn.init.zeros_(parameter)
            self.register_load_state_dict_pre_hook(_no_noise)

    def modulation(self, levels: dict[int, torch.Tensor]) -> list[BlockModulation]:
        """Label encodings by stride → the modulation of each residual block."""
        encoded = zip(self._blocks(), self.conditions(levels), strict=True)
        return [block.modulation(level) for block, level in encoded]

    def conditions(self, levels: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """The label encoding of each residual block."""
        strides = sorted(levels, reverse=True)
        encoded = []
        for layer in self.layers:
            if isinstance(layer, Upsample):
                strides = strides[1:]
            elif isinstance(layer, ResBlock):
                encoded.append(levels[strides[0]])
        return encoded

    def forward(
        self,
        x: torch.Tensor,
        conditions: Sequence[Any],
        size: Sequence[int],
        strides: Sequence[int],
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        coarse_to_fine = sorted(set(strides), reverse=True)
        given = iter(conditions)
        x = self._with_noise(self.start(self.rescale(x)), noise, len(coarse_to_fine) == 1)
        for layer in self.layers:
            if isinstance(layer, ResBlock):
                x = layer(x, next(given))
            elif isinstance(layer, Upsample):
                coarse_to_fine = coarse_to_fine[1:]
                x = self._with_noise(layer(x, cover(size, coarse_to_fine[0])), noise, len(coarse_to_fine) == 1)
            else:
                x = layer(x)
        result: torch.Tensor = self.head(self.norm(x))
        return result

    def _with_noise(self, x: torch.Tensor, noise: torch.Tensor | None, finest: bool) -> torch.Tensor:
        if self.noise is None or noise is None or not finest:
            return x
        added: torch.Tensor = self.noise(noise)
        return x + added

    def reach(self, strides: Sequence[int]) -> int | None:
        """See :meth:`SPADEAutoencoder.reach`."""
        kinds = (Attention, Norm, SPADE)
        if any(isinstance(m, kinds) and not is_local(m) for m in self.modules()):
            return None
        fine_to_coarse = sorted(set(strides))
        of_latent = of_label = fine_to_coarse[0]  # the head's convolution
        for layer in reversed(self.layers):
            stride = fine_to_coarse[0]
            if isinstance(layer, Upsample):
                fine_to_coarse = fine_to_coarse[1:]
                of_latent += stride if layer.nearest or layer.smooth else 0  # a convolution
                of_latent += 0 if layer.nearest else fine_to_coarse[0]  # between two cells
            elif isinstance(layer, ResBlock):
                assert isinstance(layer.norm_0, SPADE)
                # two convolutions; of labels, two more before the first of them
                of_label = max(of_label, of_latent + stride * (2 + 2 * (layer.norm_0.options.kernel_size // 2)))
                of_latent += 2 * stride
        farthest, coarsest = max(of_label, of_latent + fine_to_coarse[-1]), fine_to_coarse[-1]
        return cover([farthest], coarsest)[0] * coarsest

    def _blocks(self) -> Iterator[ResBlock]:
        return (layer for layer in self.layers if isinstance(layer, ResBlock))


def _no_noise(decoder: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Weights of a decoder that knew no noise: zeros are what they amount to."""
    for name, parameter in decoder.noise.named_parameters():  # type: ignore[union-attr, operator]
        state.setdefault(f"{prefix}noise.{name}", torch.zeros_like(parameter))


def check_levels(strides: Sequence[int], num_classes: int, latent_channels: int) -> None:
    """Raise for what no autoencoder can have.

    Raises:
        InputError: for strides that are neither 1 nor 2, fewer than 2 classes or more than are possible, no latent.
    """
    if any(step not in (1, 2) for step in strides) or num_classes < 2 or latent_channels < 1:
        raise InputError(
            f"needs strides of 1 or 2, 2 or more classes and 1 or more latent channels, got {tuple(strides)}, "
            f"{num_classes} and {latent_channels}"
        )
    check_classes(num_classes)


def is_local(layer: nn.Module) -> bool:
    """Whether a norm, or whatever else, knows of no other voxel than those that convolutions bring."""
    if isinstance(layer, SPADE):
        return layer.groups == 0 and not layer.options.normalized_modulation
    return isinstance(layer, Norm) and layer.groups == 0


def start_layer(channels: int, width: int, stride: int) -> nn.Module:
    """A network's first convolution: 3³, or, for stride 2, one that has 2³ voxels as channels of one."""
    if stride == 1:
        return nn.Conv3d(channels, width, 3, padding=1)
    return Downsample(channels, width, "aligned")


def cover(size: Sequence[int], stride: int) -> list[int]:
    """Voxels of a level that it takes to cover the volume."""
    return [-(-length // stride) for length in size]


def encode_labels(
    label: torch.Tensor, num_classes: int, strides: Sequence[int], *, mode: LabelEncoding, dtype: torch.dtype
) -> dict[int, torch.Tensor]:
    """:func:`~semsynth.networks.blocks.spade.label_pyramid` of a volume of any size, each level as large as
    :func:`cover`.

    Args:
        label: class indices ``(B, 1, H, W, D)``.
        num_classes, dtype: as there.
        strides: strides of the levels.
        mode: as there, or ``"subvoxels"``: fractions, but at the finest level the stride³ voxels of each class as
            channels of their own, which loses nothing.

    Returns:
        Stride → ``(B, L, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)`` with L of :func:`label_channels`.
    """
    size, finest = label.shape[2:], min(strides)
    padding = [side for length in reversed(size) for side in (0, -length % max(strides))]
    padded = F.pad(label.to(torch.float32), padding, mode="replicate")
    whole = mode == "subvoxels" and finest > 1
    sampling: Sampling = "fractions" if mode == "subvoxels" else mode
    levels = label_pyramid(padded, num_classes, [1, *strides] if whole else strides, mode=sampling, dtype=dtype)
    if whole:
        levels[finest] = space_to_depth(levels[1], finest)
    cut = {}
    for stride in set(strides):
        h, w, d = cover(size, stride)
        cut[stride] = levels[stride][:, :, :h, :w, :d]
    return cut


def label_channels(num_classes: int, strides: Sequence[int], mode: LabelEncoding) -> dict[int, int]:
    """Channels of each level of :func:`encode_labels`, by stride."""
    finest = min(strides)
    return {s: num_classes * (s**3 if mode == "subvoxels" and s == finest else 1) for s in strides}


def space_to_depth(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Space to depth: ``(B, C, s·h, s·w, s·d)`` → ``(B, C·s³, h, w, d)``."""
    b, c, h, w, d = x.shape
    x = x.reshape(b, c, h // stride, stride, w // stride, stride, d // stride, stride)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * stride**3, h // stride, w // stride, d // stride)


def depth_to_space(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Depth to space (Shi et al. 2016): ``(B, 8·C, ⌈H/2⌉, ⌈W/2⌉, ⌈D/2⌉)`` → ``(B, C, H, W, D)``."""
    b, c, h, w, d = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, h, w, d).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, c // 8, 2 * h, 2 * w, 2 * d)
    return x[:, :, : size[0], : size[1], : size[2]]
