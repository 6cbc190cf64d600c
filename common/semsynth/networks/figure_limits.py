"""Between which values the figures of a drawn label map must lie: kept with the weights that draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import InputError

MOST = 60000.0
"""In place of infinity, which weights in half precision cannot hold and checkpoints refuse."""


class Figures(Protocol):
    """What is measured of a label map, such as the volume of a class."""

    names: Sequence[str]
    index: Mapping[str, int]

    def __call__(self, label: NDArray[np.integer], spacing: Sequence[float]) -> Sequence[float]:
        """One value per name of a map ``(H, W, D)``, spacing in mm; NaN for what the map does not have."""


class FigureLimits(nn.Module):
    """Lowest and highest value of each figure, and the sizes of the training maps, as buffers.

    Args:
        figures: figures that are measured; None for no limits.
        most_maps: largest number of maps whose sizes are kept.

    Attributes:
        count: maps whose sizes are known.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, figures: Figures | None, most_maps: int = 256) -> None:
        super().__init__()
        self.figures = figures
        count = 0 if figures is None else len(figures.names)
        self.register_buffer("low", torch.full((count,), -MOST))
        self.register_buffer("high", torch.full((count,), MOST))
        self.register_buffer("fields", torch.zeros(most_maps, 3))
        self.register_buffer("count", torch.zeros([], dtype=torch.int64))

    fields: torch.Tensor
    count: torch.Tensor

    def set_fields(self, sizes: Sequence[Sequence[int]]) -> None:
        """Take the sizes H, W, D of the training maps, in voxels.

        Raises:
            InputError: for more maps than are kept.
        """
        if len(sizes) > len(self.fields):
            raise InputError(f"{len(sizes)} maps, but most_maps is {len(self.fields)}; give a larger --most_maps")
        self.count.fill_(len(sizes))
        self.fields.zero_()[: len(sizes)] = torch.tensor([[float(n) for n in size] for size in sizes])

    def field(self, number: int) -> tuple[int, int, int]:
        """The size of a training map.

        Raises:
            InputError: for weights that do not know any.
        """
        if not int(self.count):
            raise InputError("these weights do not know the fields of view of their training maps; give field_of_view")
        h, w, d = (int(n) for n in self.fields[number % int(self.count)].round())
        return h, w, d

    def set(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Take the limits, in the order of the figures; infinite ones are none."""
        bounds = torch.tensor([[max(low, -MOST), min(high, MOST)] for low, high in ranges]).view(-1, 2)
        self.low.copy_(bounds[:, 0])
        self.high.copy_(bounds[:, 1])

    def refusal(
        self, label: NDArray[np.integer], spacing: Sequence[float], ruled: Sequence[int] = ()
    ) -> tuple[str, dict[str, float]]:
        """The first figure that lies outside, "" where none does; and all figures of a map ``(H, W, D)``.

        A figure that the map does not have (of a class that is not there) lies outside.

        Args:
            label: class indices.
            spacing: mm per voxel.
            ruled: classes that follow from the others by a rule: theirs are not held against them.
        """
        if self.figures is None:
            return "", {}
        values = dict(zip(self.figures.names, self.figures(label, spacing), strict=True))
        for (name, value), low, high in zip(values.items(), self.low.tolist(), self.high.tolist(), strict=True):
            free = self.figures.index.get(name.rpartition(".")[0]) in ruled
            limited = (low > -MOST or high < MOST) and not free
            # limits in half precision: a whole number at the limit is within it
            if limited and not low - 1e-3 * abs(low) <= value <= high + 1e-3 * abs(high):
                return f"{name} {value:.4g}, allowed {low:.4g} to {high:.4g}" if math.isfinite(value) else name, values
        return "", values
