"""Trained segmentation networks that judge or guide others and are themselves never trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import KeepLargestConnectedComponent, Orientation, ResampleToMatch, Spacing
from torch import nn


class FrozenSegmenter(nn.Module):
    """A segmentation network with fixed weights, and the way from any volume to its segmentation.

    Called with a tensor it is the network itself: gradients pass through to the input (for a loss), none reach the
    weights. :meth:`segment` brings a volume to the network's voxel size and the result back.

    Args:
        network: ``(B, 1, H, W, D)`` → logits ``(B, C, H, W, D)``; standardises its input itself.
        spacing: mm per voxel that it was trained at.
        name, sha256: name and SHA-256 of its file of weights, to stand beside the numbers that are made with it.
        largest_component: classes of which :meth:`segment` keeps the largest component only.
        classes: names of the classes that it segments, from 1 on; empty where they are unknown.
        source: file of the weights, beside which a card may say what the network was trained on; None if it is not
            known.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        name: str = "",
        sha256: str = "",
        largest_component: Sequence[int] = (1,),
        classes: Sequence[str] = (),
        source: Path | None = None,
    ) -> None:
        super().__init__()
        self.network, self.spacing = network.eval().requires_grad_(False), tuple(spacing)
        self.name, self.sha256, self.largest_component = name, sha256, list(largest_component)
        self.classes, self.source = list(classes), source

    def train(self, mode: bool = True) -> FrozenSegmenter:
        """Stays in evaluation mode, whatever it is a part of."""
        return super().train(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, 1, H, W, D)`` at :attr:`spacing` → logits ``(B, C, H, W, D)``."""
        logits: torch.Tensor = self.network(image)
        return logits

    @torch.no_grad()
    def segment(self, volume: MetaTensor) -> MetaTensor:
        """Class indices of one volume, on its own grid.

        Args:
            volume: intensities ``(1, H, W, D)`` with their affine.

        Returns:
            ``(1, H, W, D)``, the same affine.
        """
        turned: Any = Orientation("RAS", labels=None)(volume)
        if np.allclose(affine_to_spacing(turned.affine), self.spacing, atol=1e-3):  # resampling would change nothing
            found = self.network(turned.as_tensor().float()[None])[0].argmax(dim=0, keepdim=True)
            axes = "".join(nib.orientations.aff2axcodes(np.asarray(volume.affine.cpu())))
            back: Any = Orientation(axes, labels=None)(MetaTensor(found, affine=turned.affine))
            label = back.as_tensor()
        else:
            moved: Any = Spacing(pixdim=self.spacing, mode="bilinear", padding_mode="border")(turned)
            probability = self.network(moved.as_tensor().float()[None])[0].softmax(dim=0)
            match = ResampleToMatch(mode="bilinear", padding_mode="border")
            back = match(MetaTensor(probability, affine=moved.affine), img_dst=volume)
            label = back.as_tensor().argmax(dim=0, keepdim=True)
        if self.largest_component:
            largest: Any = KeepLargestConnectedComponent(applied_labels=self.largest_component)(label)
            label = largest.as_tensor()
        return MetaTensor(label, affine=volume.affine)
