"""The loss of segmentation networks."""

from __future__ import annotations

from typing import Any

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from ...errors import InputError


class SegmentationLoss(nn.Module):
    """Soft Dice of the foreground classes plus class-weighted cross-entropy (Al-Sanaani et al., section II-D).

    Args:
        class_weights: one weight per class for the cross-entropy, as in :func:`class_weights`; None weighs all alike.
        dice_weight, ce_weight: weights of the two terms.

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
        dataset: a :class:`semsynth.training.loading.TrainingDataset`; counted before augmentation.
        num_classes: number of classes; a class that no case has gets weight 0.
        power: 1 for inverse frequency, 0.5 for its square root (less of a bias towards the rare class), 0 for none.
        key: key of the target.

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
