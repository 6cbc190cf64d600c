"""The loss of an autoencoder of label maps."""

from __future__ import annotations

import torch
from torch import nn

from ...networks.label_autoencoder import LabelReconstruction
from .autoencoder import latent_kl
from .gan import _check_weights
from .segmentation import SegmentationLoss


class LabelAutoencoderLoss(nn.Module):
    """Dice and cross-entropy of the classes, and KL of the latent.

    Args:
        dice_weight, ce_weight: weights of :class:`~semsynth.training.losses.segmentation.SegmentationLoss`.
        kl_weight: weight of :func:`~semsynth.training.losses.autoencoder.latent_kl`.

    Raises:
        InputError: for negative weights.
    """

    def __init__(self, *, dice_weight: float = 0.5, ce_weight: float = 1.0, kl_weight: float = 5e-4) -> None:
        super().__init__()
        _check_weights(kl_weight=kl_weight)
        self.kl_weight = kl_weight
        self.segmentation = SegmentationLoss(dice_weight=dice_weight, ce_weight=ce_weight)

    def forward(self, made: LabelReconstruction, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted terms; their sum is the loss.

        Args:
            made: output of the autoencoder.
            label: class indices ``(B, 1, H, W, D)``.
        """
        terms: dict[str, torch.Tensor] = self.segmentation(made.logits, label)
        return terms | {"kl": self.kl_weight * latent_kl(made.mean, made.log_variance)}
