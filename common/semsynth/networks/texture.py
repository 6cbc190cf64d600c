"""A segmentation network that, while it is trained, also has to tell the texture of a volume from its features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from monai.networks.nets import SwinUNETR
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from .segmentation import StandardizedSegmenter


def swin_of(segmenter: StandardizedSegmenter) -> SwinUNETR:
    """The ``SwinUNETR`` within :func:`~semsynth.networks.segmentation.subvoxel_swin`.

    Raises:
        InputError: for another network.
    """
    inner: Any = getattr(segmenter.network, "network", None)
    if not isinstance(inner, SwinUNETR):
        raise InputError(f"needs a network that subvoxel_swin made, got {type(inner or segmenter.network).__name__}")
    return inner


def encoder_length(segmenter: StandardizedSegmenter) -> int:
    """How many features :func:`embedding` gives of :func:`encoder_levels`: all levels' channels together."""
    width = int(swin_of(segmenter).swinViT.embed_dim)
    return width * (1 + 1 + 2 + 4 + 8)


def encoder_levels(swin: SwinUNETR, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the encoder hands to the decoder: maps at strides 1, 2, 4, 8 and 16 of ``x``, from shallow to deep."""
    yield swin.encoder1(x)
    states = swin.swinViT(x, swin.normalize)
    yield swin.encoder2(states[0])
    yield swin.encoder3(states[1])
    yield swin.encoder4(states[2])
    yield states[3]


def embedding(levels: Iterator[torch.Tensor] | list[torch.Tensor]) -> torch.Tensor:
    """Features of volumes from all levels of an encoder.

    Each voxel's vector is brought to length 1, averaged over the volume, and scaled so that all levels weigh alike and
    the whole vector's mean square is at most 1.

    Args:
        levels: ``(B, C, h, w, d)`` each.

    Returns:
        ``(B, F)``, F the sum of all C.
    """
    pooled = [F.normalize(x.float(), dim=1).flatten(2).mean(dim=2) for x in levels]
    joined = torch.cat(pooled, dim=1)
    return joined * math.sqrt(joined.shape[1] / len(pooled))


class TextureHead(nn.Module):
    """A segmentation network and one linear layer that reads texture off its :func:`embedding`.

    A network that only segments learns to pass texture over, and its features are then blind to what tells a blurred or
    noisy volume from a real one. The layer is needed in training alone, what is kept are the segmentation network's
    weights.

    Args:
        segmenter: as in :func:`~semsynth.networks.segmentation.subvoxel_swin`.
        outputs: numbers to tell, see :func:`semsynth.training.losses.texture.texture`.
    """

    def __init__(self, segmenter: StandardizedSegmenter, *, outputs: int = 8) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.texture = nn.Linear(encoder_length(segmenter), outputs)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Volume → logits and texture.

        Args:
            image: intensities on any scale, ``(B, 1, H, W, D)``.

        Returns:
            Logits ``(B, C, H, W, D)``; what the layer says, ``(B, outputs)``.
        """
        swin, found = swin_of(self.segmenter), dict[int, torch.Tensor]()
        # encoder_levels() again would cost the transformer twice
        layers = (swin.encoder1, swin.encoder2, swin.encoder3, swin.encoder4, swin.swinViT)
        hooks = [layer.register_forward_hook(partial(_keep, found, i)) for i, layer in enumerate(layers)]
        try:
            logits = self.segmenter(image)
        finally:
            for hook in hooks:
                hook.remove()
        return logits, self.texture(embedding([found[i] for i in range(len(layers))]))


def _keep(found: dict[int, torch.Tensor], i: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
    found[i] = output[3] if isinstance(output, list | tuple) else output
