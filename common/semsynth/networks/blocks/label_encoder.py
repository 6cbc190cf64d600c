"""The semantic map encoder: what of a label map stands in front of SPADE, at every resolution of a latent denoiser.

Med-LSDM (section 3.3) encodes the map before SPADE to lose less than by downsampling it. Its public code pads a depth
of 32 to 11 cells where the latent has 8, so that labels and latent are out of step; here every feature is computed from
the stride³ voxels of its own cell, and from cells beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...limits import check_classes


class LabelEncoder(nn.Module):
    """Class indices → features per level, the first at the latent's resolution, each next one at half of it in-plane.

    Classes are looked up in a table of vectors: memory does not grow with their number.

    Args:
        num_classes: C.
        stride: voxels of the map per cell of the latent, along each axis.
        channels: number of channels of the features at each level.
        vector: length of a class's vector.

    Examples:
        >>> network = LabelEncoder(4, stride=4, channels=(8, 16))
        >>> [features.shape for features in network(torch.zeros(1, 1, 16, 16, 8))]
        [torch.Size([1, 8, 4, 4, 2]), torch.Size([1, 16, 2, 2, 2])]
    """

    def __init__(self, num_classes: int, stride: int, channels: Sequence[int], *, vector: int = 8) -> None:
        super().__init__()
        if num_classes < 2 or stride < 1 or vector < 1:
            raise InputError(
                "a label encoder needs 2 or more classes, a stride and vectors of 1 or more, got "
                f"{num_classes}, {stride} and {vector}"
            )
        check_classes(num_classes)
        self.num_classes, self.stride = num_classes, stride
        self.vectors = nn.Embedding(num_classes + 1, vector)  # the last one stands for no label
        self.cells = nn.Conv3d(vector, channels[0], stride, stride=stride)
        self.beside = nn.Conv3d(channels[0], channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv3d(channels[i], channels[i + 1], (2, 2, 1), stride=(2, 2, 1)) for i in range(len(channels) - 1)
        )

    def forward(self, label: torch.Tensor) -> list[torch.Tensor]:
        """Features of each level.

        Args:
            label: class indices ``(B, 1, H, W, D)``; any other index than 0…C−1 is no label: the null map's −1.

        Returns:
            ``(B, channels, ⌈H/s⌉, ⌈W/s⌉, ⌈D/stride⌉)`` each, s = stride, 2 · stride, …
        """
        padding = [side for length in reversed(label.shape[2:]) for side in (0, -length % self.stride)]
        indices = F.pad(label.float(), padding, mode="replicate")[:, 0].long()
        indices = torch.where((indices < 0) | (indices >= self.num_classes), self.num_classes, indices)
        vectors = self.vectors(indices).movedim(-1, 1)  # (B, vector, H, W, D)
        x = F.silu(self.cells(vectors.to(self.cells.weight.dtype)))
        levels = [F.silu(x + self.beside(x))]
        for layer in self.down:
            levels.append(F.silu(layer(even(levels[-1]))))
        return levels


def even(x: torch.Tensor) -> torch.Tensor:
    """``(B, C, h, w, d)`` with h and w even: an odd border is repeated once."""
    odd = [x.shape[3] % 2, x.shape[2] % 2]
    return F.pad(x, [0, 0, 0, odd[0], 0, odd[1]], mode="replicate") if any(odd) else x
