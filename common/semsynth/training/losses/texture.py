"""How much fine and coarse texture a volume has, and the loss of a network that has to say it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...limits import check_number
from ...networks.segmentation import standardize

BANDS = 4
FEWEST_VOXELS = 64


def texture(image: torch.Tensor, target: torch.Tensor, *, bands: int = BANDS) -> tuple[torch.Tensor, torch.Tensor]:
    """Strength of each band of texture in what is segmented and outside of it, and of which regions there are enough.

    The volume is brought to mean 0 and variance 1. The first band is what averages over blocks of 2³ voxels lose, the
    next what those averages lose when they are averaged again, and so on (a Haar pyramid: Mallat 1989): noise and fine
    grain are in the first, mottle of some voxels in the later ones. A band's strength is the natural logarithm of its
    root mean square in a region.

    Args:
        image: intensities on any scale, ``(B, 1, H, W, D)``; what is left over of blocks of 2 to the power of ``bands``
            voxels does not count.
        target: class indices ``(B, 1, H, W, D)``; 0 is outside.
        bands: number of bands.

    Returns:
        Strengths ``(B, 2·bands)``, of all bands inside, then outside; whether the region of each has at least
        64 voxels, ``(B, 2·bands)``.
    """
    x = standardize(image)
    regions = torch.cat([target > 0, target <= 0], dim=1).float()
    there = (regions.sum(dim=(2, 3, 4)) >= FEWEST_VOXELS)[:, :, None].expand(-1, -1, bands)
    found = []
    for _ in range(bands):
        mean, regions = F.avg_pool3d(x, 2), F.avg_pool3d(regions, 2)
        lost = (F.avg_pool3d(x.square(), 2) - mean.square()).clamp(min=0)
        energy = (lost * regions).sum(dim=(2, 3, 4)) / regions.sum(dim=(2, 3, 4)).clamp(min=1e-6)
        found.append(0.5 * torch.log(energy + 1e-8))
        x = mean
    return torch.stack(found, dim=2).flatten(1), there.flatten(1)


class TextureLoss(nn.Module):
    """Smooth L1 distance between the :func:`texture` that a network says a volume has and the one that it has.

    Args:
        weight: weight of the term.

    Raises:
        InputError: for a weight that is not from 0 to 1000.
    """

    def __init__(self, *, weight: float = 0.3) -> None:
        super().__init__()
        if not weight >= 0:
            raise InputError(f"the weight of the texture loss must be 0 or more, got {weight}")
        check_number("the weight of the texture loss", weight, 0, 1000)
        self.weight = weight

    def forward(self, said: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The weighted mean over what is there to be said, a scalar; 0 where nothing is.

        Args:
            said: output of the network, ``(B, 2·bands)``.
            image, target: as in :func:`texture`.
        """
        with torch.autocast(said.device.type, enabled=False):
            found, there = texture(image.float(), target)
            distance = F.smooth_l1_loss(said.float(), found, reduction="none")
            return self.weight * (distance * there).sum() / there.sum().clamp(min=1)
