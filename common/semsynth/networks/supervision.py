"""A residual U-Net that, while it is trained, also has to segment at the coarser levels of its decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from .segmentation import StandardizedSegmenter


class DeepSupervision(nn.Module):
    """A segmentation network with one linear layer per coarse level of its decoder (Lee et al. 2015).

    The layers are needed in training alone; what is kept are the segmentation network's weights.

    Args:
        segmenter: as in :func:`~semsynth.networks.segmentation.residual_unet`.
        levels: number of coarse levels, from the finest on.

    Raises:
        InputError: for another network, or more levels than it has.
    """

    def __init__(self, segmenter: StandardizedSegmenter, *, levels: int = 2) -> None:
        super().__init__()
        self.segmenter, self.levels = segmenter, int(levels)
        network = segmenter.network
        if not isinstance(network, UNet):
            raise InputError(f"deep supervision needs a network that residual_unet made, got {type(network).__name__}")
        if not 1 <= self.levels <= len(network.channels) - 2:
            raise InputError(f"levels must be from 1 to {len(network.channels) - 2}, got {levels}")
        self.heads = nn.ModuleList(
            nn.Conv3d(network.channels[i], network.out_channels, kernel_size=1) for i in range(self.levels)
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Volume → logits of all levels at full resolution.

        Args:
            image: intensities on any scale, ``(B, 1, H, W, D)``.

        Returns:
            The network's logits ``(B, C, H, W, D)``; those of the coarse levels, from fine to coarse, interpolated to
            the same shape.
        """
        found: dict[int, torch.Tensor] = {}
        layers = _decoder(self.segmenter.network)[: self.levels]
        hooks = [layer.register_forward_hook(partial(_keep, found, i)) for i, layer in enumerate(layers)]
        try:
            logits: torch.Tensor = self.segmenter(image)
        finally:
            for hook in hooks:
                hook.remove()
        coarse = []
        for i, head in enumerate(self.heads):
            stride = 2 ** (i + 1)
            size = [length * stride for length in found[i].shape[2:]]  # with the padding that the network adds
            x = F.interpolate(head(found[i]), size=size, mode="trilinear", align_corners=False)
            h, w, d = logits.shape[2:]
            coarse.append(x[:, :, :h, :w, :d])
        return logits, coarse


def _decoder(network: Any) -> list[nn.Module]:
    """MONAI's U-Net is nested: each level is (down, skip connection around the next level, up)."""
    found = []
    level = network.model
    while hasattr(level[1], "submodule") and isinstance(level[1].submodule, nn.Sequential):
        level = level[1].submodule
        found.append(level[2])
    return found


def _keep(found: dict[int, torch.Tensor], i: int, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
    found[i] = output
