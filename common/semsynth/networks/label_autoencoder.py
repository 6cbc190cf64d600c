"""Autoencoder of label maps: what a generator of label maps draws its latents for.

The layers are those of :class:`~semsynth.networks.autoencoder.SPADEAutoencoder`, without a condition: class
probabilities take the place of intensities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import InputError
from ..labels import one_hot, plain
from .autoencoder import _Decoder, _Encoder, _Plan, check_levels, cover, depth_to_space
from .blocks.residual import per_level
from .blocks.spade import SPADEOptions


class LabelReconstruction(NamedTuple):
    """What an autoencoder of label maps makes of one.

    Attributes:
        logits: logits of the classes, ``(B, C, H, W, D)``.
        mean, log_variance: posterior of the latent, ``(B, Z, h, w, d)``.
    """

    logits: torch.Tensor
    mean: torch.Tensor
    log_variance: torch.Tensor


class LabelAutoencoder(nn.Module):
    """Label map → latent → label map.

    Any volume size: each level has as many voxels as it takes to cover the volume.

    Args:
        num_classes: C, of the label map.
        channels: width of each residual level, from fine to coarse.
        strides: factors by which each level is coarser than the one before, 1 or 2; of the first, than the map.
        latent_channels: Z.
        blocks: residual blocks per level, one number for all or one per level; encoder and decoder alike.
        norm: arguments ``norm``, ``groups`` and ``eps`` of :class:`~semsynth.networks.blocks.spade.SPADEOptions`.

    Raises:
        InputError: for numbers of levels that differ, or strides that are neither 1 nor 2.

    Examples:
        >>> network = LabelAutoencoder(4, channels=(8, 8), strides=(2, 2), latent_channels=2).eval()
        >>> network(torch.zeros(1, 1, 16, 16, 8)).logits.shape
        torch.Size([1, 4, 16, 16, 8])
    """

    takes_noise = False

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 32, 64, 64),
        strides: Sequence[int] = (2, 1, 2, 1),
        latent_channels: int = 8,
        blocks: int | Sequence[int] = 1,
        norm: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        widths, steps, counts = per_level(channels=channels, strides=strides, blocks=blocks)
        check_levels(steps, num_classes, latent_channels)
        options = SPADEOptions(**({"norm": "voxel"} | (norm or {})))
        self.num_classes, self.latent_channels = num_classes, latent_channels
        self.strides: list[int] = [math.prod(steps[: i + 1]) for i in range(len(steps))]
        plan = _Plan(
            channels=widths, strides=steps, blocks=counts, attention=[False] * len(widths), options=options,
            unlabelled=options, latent_channels=latent_channels, label_channels=dict.fromkeys(self.strides, 0),
            middle=False, last_norm=False, resampling="aligned", noise=False, image_channels=num_classes,
        )  # fmt: skip
        self.encoder, self.decoder = _Encoder(plan), _Decoder(plan)

    @property
    def stride(self) -> int:
        """Voxels of the map per voxel of the latent, along each axis."""
        return self.strides[-1]

    def forward(self, image: torch.Tensor) -> LabelReconstruction:
        """Label map → latent, drawn from its posterior in training and its mean otherwise → label map.

        Args:
            image: class indices ``(B, 1, H, W, D)``. (The name is what MONAI's tools call a network's input.)
        """
        mean, log_variance = self.encode(image)
        latent = mean
        if self.training:
            latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return LabelReconstruction(self.decode(latent, image.shape[2:]), mean, log_variance)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior of the latent.

        Args:
            image: class indices ``(B, 1, H, W, D)``.

        Returns:
            Mean and log σ² in [-30, 4], ``(B, Z, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)`` each, float32.
        """
        x = one_hot(plain(image), self.num_classes, self.encoder.head.weight.dtype) * 2.0 - 1.0
        mean, log_variance = self.encoder(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 4.0)

    def decode(self, latent: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Logits of the classes of a latent.

        Args:
            latent: ``(B, Z, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)``.
            size: H, W, D of the map.

        Returns:
            ``(B, C, H, W, D)``, float32.

        Raises:
            InputError: for a latent that does not cover the map.
        """
        needed = cover(size, self.stride)
        if list(latent.shape[2:]) != needed:
            raise InputError(
                f"a label map of {tuple(size)} voxels needs a latent of {tuple(needed)}, got {tuple(latent.shape[2:])}"
            )
        x = plain(latent).to(self.decoder.head.weight.dtype)
        x = self.decoder(x, [None] * len(list(self.decoder._blocks())), size, self.strides)
        if self.strides[0] == 2:
            x = depth_to_space(x, size)
        logits: torch.Tensor = x.float()
        return logits
