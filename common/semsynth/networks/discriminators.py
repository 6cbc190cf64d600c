"""Discriminators of (label map, image) pairs, around MONAI's PatchGAN."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..labels import one_hot


class ConditionalPatchDiscriminator(nn.Module):
    """3D PatchGAN on a label map and an image: one judgement per patch (Isola et al. 2017, section 3.2.2).

    Args:
        num_classes: number of classes of the label map.
        channels: width of the first layer; doubled by each further one.
        num_layers: strided layers before the last (3: a judgement sees 70 voxels per axis; 2: 34).
        norm: MONAI's norm name or (name, arguments), or None. Batch norm as in the paper; at batch size 1 it is
            instance norm. (The one training tried without any norm, at learning rate 4e-4, blew up within 400 steps.)
        detail: one more input channel, the image minus its local mean over 3³ voxels, times 8. Noise is a small part of
            an image's variance, and a filter that sees it has to be found first; the channel hands it over.
        label_encoding: ``"scalar"`` (paper: two input channels in all) or ``"one_hot"``.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 32,
        num_layers: int = 3,
        norm: str | tuple[str, dict[str, Any]] | None = "BATCH",
        detail: bool = False,
        label_encoding: Literal["one_hot", "scalar"] = "scalar",
    ) -> None:
        super().__init__()
        if label_encoding not in ("one_hot", "scalar"):
            raise InputError(f"label_encoding must be one_hot or scalar, got {label_encoding!r}")
        self.num_classes = num_classes
        self.scalar = label_encoding == "scalar"
        self.smallest = 3 * 2**num_layers  # voxels per axis below which the last layer's kernel would not fit
        self.detail = detail
        inputs = 1 + int(detail) + (1 if self.scalar else num_classes)
        self.net = PatchDiscriminator(
            spatial_dims=3,
            channels=channels,
            in_channels=inputs,
            num_layers_d=num_layers,
            norm=norm,  # type: ignore[arg-type]  # MONAI takes None, its annotation does not say so
        )
        convolutions = [module for module in self.net.modules() if isinstance(module, nn.Conv3d)]
        for layer in convolutions:
            # MONAI's N(0, 0.02) is meant for 2D: with 4³ kernels it starts with logits all over the place
            nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity="leaky_relu")
        last = convolutions[-1].weight
        nn.init.normal_(last, std=0.3 * last[0].numel() ** -0.5)  # first judgements near 0, none favoured

    def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        """Judge pairs.

        Args:
            label: class indices ``(B, 1, H, W, D)``.
            image: intensities in [0, 1], ``(B, 1, H, W, D)``; scaled to [-1, 1] inside.

        Returns:
            The features of each layer and, last, the logits ``(B, 1, h, w, d)``.
        """
        if self.scalar:
            condition = label.to(image.dtype) * (2.0 / (self.num_classes - 1)) - 1.0
        else:
            condition = one_hot(label, self.num_classes, dtype=image.dtype)
        scaled = image * 2.0 - 1.0
        inputs = [condition, scaled]
        if self.detail:
            mean = F.avg_pool3d(scaled, 3, stride=1, padding=1, count_include_pad=False)
            inputs.append((scaled - mean) * 8.0)
        x = torch.cat(inputs, dim=1)
        missing = [max(self.smallest - size, 0) for size in x.shape[:1:-1]]  # last axis first, as pad takes them
        if any(missing):  # a thin stack of slices
            x = F.pad(x, [p for m in missing for p in (m // 2, m - m // 2)], mode="replicate")
        features: list[torch.Tensor] = self.net(x)
        return features
