"""The perceptual loss: how far two volumes are apart in a feature network's eyes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from torch import nn

from ...errors import InputError
from ...vocabulary import PLANES
from .registry import FeatureExtractor, SlicewiseEfficientNet

logger = logging.getLogger(__name__)
SMALLEST = 1e-3
"""Mean absolute value below which a feature map is not scaled up any further; EfficientNet-Lite0's have 0.2 to 7."""


class PerceptualLoss(nn.Module):
    """L1 between the feature maps of two volumes, mean over depths (Johnson et al. 2016; Park et al. 2019).

    Each map is divided by its mean absolute value over the real volume, so that all depths weigh alike although
    activations differ between them (by a factor of 30 in EfficientNet-Lite0): a term of 0.1 says "a tenth off". LPIPS
    brings each position's channels to length 1 instead; the empty air around a patient, where features are faint, would
    weigh as much as the patient. Real volumes are scaled one by one: a volume's loss does not depend on its batch.

    3D networks see the whole volume, the slice-wise one a few random slices of each plane (from PyTorch's global
    generator, whose state a resumed training takes up again), new ones in every call, the same for both volumes.

    No gradient reaches the network, which is no submodule: it has no share in parameters or checkpoints, but moves with
    ``.to(…)``. Under autocast the maps are in its type and their differences in float32; but the slice-wise network
    stays in float32 on a CPU, where bfloat16 makes it slower, not faster (by 1.2 to 1.6 times).

    Args:
        extractor: the feature network.
        slices: number of slices of each plane; at most all of them. 3D networks do not use it.
        depths: take the first ones only, from the shallowest; what lies deeper is not computed. None takes all.

    Raises:
        InputError: for less than one slice or depth.
    """

    def __init__(self, extractor: FeatureExtractor, *, slices: int = 2, depths: int | None = None) -> None:
        super().__init__()
        if slices < 1 or (depths is not None and depths < 1):
            raise InputError(f"slices and depths of a perceptual loss must be 1 or more, got {slices} and {depths}")
        self._held = (extractor,)  # in a tuple: PyTorch would register a bare module as a submodule
        self.slices, self.depths = int(slices), depths

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature network."""
        return self._held[0]

    @property
    def in_loss(self) -> list[dict[str, str]]:
        """Name and SHA-256 of the network, for the training's record: its scores are no longer independent."""
        return [{"name": self.extractor.name, "sha256": self.extractor.sha256}]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PerceptualLoss:
        super()._apply(fn, recurse)
        self.extractor._apply(fn, recurse)  # .to() reaches submodules only
        return self

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Loss, a scalar in float32; 0 for equal volumes.

        Args:
            fake, real: intensities in [0, 1], ``(B, 1, H, W, D)`` at the network's spacing. Only ``fake`` gets a
                gradient.

        Raises:
            InputError: for volumes of different shapes.
        """
        if fake.shape != real.shape:
            raise InputError(f"a perceptual loss compares volumes of one shape, got {fake.shape} and {real.shape}")
        fake, real = fake.float(), real.float()
        slow = fake.device.type == "cpu" and isinstance(self.extractor, SlicewiseEfficientNet)
        with torch.autocast("cpu", enabled=False) if slow else nullcontext():
            terms = [term for view in self._views(real.shape) for term in self._compare(view, fake, real)]
        return torch.stack(terms).mean()

    def _views(self, shape: torch.Size) -> list[Callable[[torch.Tensor], Iterator[torch.Tensor]]]:
        """Ways from a volume to its maps: one for 3D networks, one per plane with its slices for the slice-wise one."""
        network = self.extractor
        if not isinstance(network, SlicewiseEfficientNet):
            return [network.levels]
        chosen = {plane: torch.randperm(shape[2 + axis])[: self.slices].tolist() for axis, plane in enumerate(PLANES)}

        def view(plane: str) -> Callable[[torch.Tensor], Iterator[torch.Tensor]]:
            return lambda volume: network.slice_levels(network.slices(volume, plane, chosen[plane]))

        return [view(plane) for plane in PLANES]

    def _compare(
        self, view: Callable[[torch.Tensor], Iterator[torch.Tensor]], fake: torch.Tensor, real: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        with torch.no_grad():
            targets = list(islice(view(real), self.depths))
        for ours, theirs in zip(islice(view(fake), self.depths), targets, strict=True):
            b = fake.shape[0]  # slices of a volume lie one after another
            target = theirs.float().reshape(b, -1)
            size = target.abs().mean(dim=1).clamp(min=SMALLEST)
            yield ((ours.float().reshape(b, -1) - target).abs().mean(dim=1) / size).mean()
