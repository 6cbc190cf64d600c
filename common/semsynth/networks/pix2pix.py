"""The pix2pix generator in 3D: a U-Net from label map to image (Isola et al. 2017; Al-Sanaani et al., section II-C)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from monai.networks.layers.utils import get_norm_layer
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..labels import one_hot
from ..limits import check_classes
from .blocks.noise import item_seeds, white_noises
from .blocks.normalization import VolumeInstanceNorm

Norm: TypeAlias = str | tuple[str, dict[str, Any]]


class Pix2PixGenerator(nn.Module):
    """U-Net with five downsampling and five upsampling levels, skips, and linear upsampling + convolution.

    Each level down is a strided and a plain convolution; each level up brings the deeper features to the level's width
    with a 1×1×1 convolution, upsamples them trilinearly (no transposed convolution: its checkerboard is what the paper
    avoids) and joins them with the skip. Any volume size goes in: it is padded to a multiple of 2^levels by repeating
    its border and cropped back.

    Args:
        num_classes: number of classes of the label map.
        channels: width at full resolution and at each level below; six numbers give the paper's five levels.
        label_encoding: ``"one_hot"`` (``num_classes`` input channels) or ``"scalar"`` (one channel, class index scaled
            to [-1, 1], as in the paper).
        norm: ``"volume_instance"`` (:class:`~semsynth.networks.blocks.normalization.VolumeInstanceNorm`; at batch 1
            what batch norm is in training, without running statistics that do not fit it), or MONAI's norm name or
            (name, arguments).
        dropout: in the deepest two levels up, in training only.
        noise: one more input channel of white noise, from which the network can make texture: inside a uniform region
            of the map it has nothing else to make it from. (Isola et al., section 2.1, use dropout for the same end.)
            A new field in every training step; outside training a fixed one per ``noise_seed``, a function of the
            voxel's position alone, so that one map and one seed always give one volume.
        noise_seed: seed of the field, any whole number.

    Examples:
        >>> network = Pix2PixGenerator(num_classes=4, channels=(4, 8, 8))
        >>> network(torch.zeros(1, 1, 20, 18, 10)).shape
        torch.Size([1, 1, 20, 18, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (16, 32, 64, 128, 128, 128),
        label_encoding: Literal["one_hot", "scalar"] = "one_hot",
        norm: Norm = "volume_instance",
        dropout: float = 0.0,
        noise: bool = False,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        if label_encoding not in ("one_hot", "scalar"):
            raise InputError(f"label_encoding must be one_hot or scalar, got {label_encoding!r}")
        if num_classes < 2 or len(channels) < 2:
            raise InputError(f"needs 2 or more classes and 2 or more widths, got {num_classes} and {tuple(channels)}")
        check_classes(num_classes)
        self.num_classes = num_classes
        self.scalar = label_encoding == "scalar"
        self.multiple = 2 ** (len(channels) - 1)
        self.noise, self.noise_seed = noise, int(noise_seed)
        self.stem = _unit((1 if self.scalar else num_classes) + int(noise), channels[0], norm)
        self.downs = nn.ModuleList(
            nn.Sequential(_unit(a, b, norm, stride=2), _unit(b, b, norm)) for a, b in pairwise(channels)
        )
        self.ups = nn.ModuleList(
            _Up(deep, skip, norm, dropout if level < 2 else 0.0)
            for level, (deep, skip) in enumerate(zip(channels[:0:-1], channels[-2::-1], strict=True))
        )
        self.head = nn.Conv3d(channels[0], 1, kernel_size=3, padding=1)

    def forward(self, image: torch.Tensor, noise_seeds: list[int] | None = None) -> torch.Tensor:
        """Label map → image.

        Args:
            image: class indices ``(B, 1, H, W, D)``, any number type. (The name is what MONAI's tools call a network's
                input.) With a second channel, that is the noise to use in place of the network's own field.
            noise_seeds: one per item, or one for all; None takes the network's own. An item's noise is that of its
                seed, wherever it stands in a batch.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``, of the weights' type.

        Raises:
            InputError: for another number of seeds.
        """
        h, w, d = image.shape[2], image.shape[3], image.shape[4]
        m = self.multiple
        x = self._encode(image[:, :1])
        if self.noise and image.shape[1] > 1:
            x = torch.cat([x, image[:, 1:2].to(x.dtype)], dim=1)
        elif self.noise:
            x = torch.cat([x, white_noises(x, self._seeds(noise_seeds, x.shape[0]))], dim=1)
        x = F.pad(x, [0, -d % m, 0, -w % m, 0, -h % m], mode="replicate")
        x = self.stem(x)
        skips = [x]
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for i, up in enumerate(self.ups):
            x = up(x, skips[len(skips) - 2 - i])
        x = self.head(x)[:, :, :h, :w, :d]
        return torch.tanh(x) * 0.5 + 0.5

    def _seeds(self, noise_seeds: list[int] | None, count: int) -> list[int]:
        """The seed of each item's noise."""
        if self.training:
            drawn: list[int] = torch.randint(2147483647, [count]).tolist()
            return drawn
        if not torch.jit.is_scripting():
            return item_seeds(noise_seeds, self.noise_seed, count)
        seeds = [self.noise_seed] if noise_seeds is None else noise_seeds
        return seeds * count if len(seeds) == 1 else seeds

    def _encode(self, label: torch.Tensor) -> torch.Tensor:
        dtype = self.head.weight.dtype
        if self.scalar:
            return label.to(dtype) * (2.0 / (self.num_classes - 1)) - 1.0
        return one_hot(label, self.num_classes, dtype)


class _Up(nn.Module):
    """Deeper features ``(B, deep, h, w, d)`` and a skip ``(B, skip, 2h, 2w, 2d)`` → ``(B, skip, 2h, 2w, 2d)``."""

    def __init__(self, deep: int, skip: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(deep, skip, kernel_size=1)  # before upsampling: the same sum at an eighth of the cost
        self.unit = _unit(2 * skip, skip, norm)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(self.reduce(x), scale_factor=2.0, mode="trilinear", align_corners=False)
        x = self.unit(torch.cat([x, skip], dim=1))
        y: torch.Tensor = self.dropout(x)
        return y


def _unit(inputs: int, outputs: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        VolumeInstanceNorm(outputs)
        if norm == "volume_instance"
        else get_norm_layer(norm, spatial_dims=3, channels=outputs),
        nn.LeakyReLU(0.2, inplace=True),
    )
