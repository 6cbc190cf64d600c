"""Losses of the generators, as named terms: what each is worth is seen while it trains."""

from __future__ import annotations

from typing import Literal

import torch
from monai.losses import PatchAdversarialLoss
from torch import nn
from torch.nn import functional as F

from .errors import InputError


class ConditionalGANLoss(nn.Module):
    """Adversarial loss on (label map, image) pairs plus voxel-wise L1 (Isola et al. 2017, eq. 4).

    For the discriminator "real" is (label, real image) and "fake" is (label, generated image).

    Args:
        adversarial: ``"least_squares"`` (LSGAN), ``"hinge"`` or ``"bce"``.
        adversarial_weight: weight of the generator's adversarial term; 0 switches it off.
        l1_weight: λ_L1, on intensities scaled to [-1, 1] (100 in pix2pix); 0 switches it off.

    Raises:
        InputError: for a name that is none of the three, or a negative weight.
    """

    def __init__(
        self,
        *,
        adversarial: Literal["least_squares", "hinge", "bce"] = "least_squares",
        adversarial_weight: float = 1.0,
        l1_weight: float = 100.0,
    ) -> None:
        super().__init__()
        if adversarial not in ("least_squares", "hinge", "bce"):
            raise InputError(f"adversarial must be least_squares, hinge or bce, got {adversarial!r}")
        if min(adversarial_weight, l1_weight) < 0:
            raise InputError(f"loss weights must be 0 or more, got {adversarial_weight} and {l1_weight}")
        self.adversarial_weight, self.l1_weight = adversarial_weight, l1_weight
        self.criterion = PatchAdversarialLoss(criterion=adversarial, no_activation_leastsq=True)

    def generator(
        self, discriminator: nn.Module, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Weighted terms of the generator; their sum is its loss. All tensors ``(B, 1, H, W, D)``, images in [0, 1]."""
        terms = {}
        if self.adversarial_weight > 0:
            judged = self._judge(discriminator, label, fake, target_is_real=True, for_discriminator=False)
            terms["g_adversarial"] = self.adversarial_weight * judged
        if self.l1_weight > 0:
            terms["g_l1"] = self.l1_weight * 2.0 * F.l1_loss(fake.float(), real.float())  # [0, 1] → [-1, 1]: twice
        return terms

    def discriminator(
        self, discriminator: nn.Module, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Terms of the discriminator, half each (pix2pix: it is to learn no faster than the generator)."""
        return {
            "d_real": 0.5 * self._judge(discriminator, label, real, target_is_real=True, for_discriminator=True),
            "d_fake": 0.5 * self._judge(discriminator, label, fake, target_is_real=False, for_discriminator=True),
        }

    def _judge(
        self,
        discriminator: nn.Module,
        label: torch.Tensor,
        image: torch.Tensor,
        *,
        target_is_real: bool,
        for_discriminator: bool,
    ) -> torch.Tensor:
        logits = discriminator(label, image)[-1].float()
        with torch.autocast(logits.device.type, enabled=False):  # binary cross-entropy refuses to run under autocast
            loss: torch.Tensor = self.criterion(logits, target_is_real, for_discriminator=for_discriminator)
        return loss
