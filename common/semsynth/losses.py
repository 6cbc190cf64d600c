"""Losses of the generators, as named terms: what each is worth is seen while it trains."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.losses import DiceLoss, PatchAdversarialLoss
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


class SegmentationLoss(nn.Module):
    """Soft Dice of the foreground classes plus class-weighted cross-entropy (Al-Sanaani et al., section II-D).

    Args:
        class_weights: one weight per class for the cross-entropy, as of :func:`class_weights`; None weighs all alike.
        dice_weight, ce_weight: of the two terms.

    Raises:
        InputError: for negative weights, or two of 0.
    """

    weights: torch.Tensor | None

    def __init__(
        self, *, class_weights: torch.Tensor | None = None, dice_weight: float = 1.0, ce_weight: float = 1.0
    ) -> None:
        super().__init__()
        if min(dice_weight, ce_weight) < 0 or dice_weight + ce_weight == 0:
            raise InputError(f"loss weights must be 0 or more and not both 0, got {dice_weight} and {ce_weight}")
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.register_buffer("weights", class_weights)
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named terms whose sum is the loss.

        Args:
            logits: ``(B, C, H, W, D)``.
            target: class indices ``(B, 1, H, W, D)``.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            weights = None if self.weights is None else self.weights.to(logits.device)
            ce = F.cross_entropy(logits, target[:, 0].long(), weight=weights)
            return {"dice": self.dice_weight * self.dice(logits, target), "cross_entropy": self.ce_weight * ce}


def class_weights(dataset: Any, num_classes: int, *, power: float = 1.0, key: str = "label") -> torch.Tensor:
    """Weights inverse to the classes' voxel counts in the training data, ``(num_classes,)``, of mean 1 over voxels.

    Args:
        dataset: a :class:`semsynth.data.TrainingDataset`; counted before augmentation.
        num_classes: how many; a class that no case has gets weight 0.
        power: 1 for inverse frequency, 0.5 for its square root (less of a bias towards the rare class), 0 for none.
        key: where the target is.

    Raises:
        InputError: when none but one class is there.
    """
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for i in range(len(dataset)):
        label = torch.as_tensor(dataset.before_augmentation(i)[key]).as_subclass(torch.Tensor)
        counts += torch.bincount(label.flatten().long(), minlength=num_classes)
    if int((counts > 0).sum()) < 2:
        raise InputError(f"the training targets hold one class only (voxels per class: {counts.tolist()}); check {key}")
    frequency = counts / counts.sum()
    weights = torch.where(counts > 0, frequency.clamp(min=1e-12) ** -power, 0.0)
    return (weights / (weights * frequency).sum()).float()
