"""Two generators of label maps in a row: one draws a structure, the other what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..labels import plain
from .map_diffusion import UNKNOWN, MapDiffusion
from .shape_model import ShapeModel


class MapCascade(nn.Module):
    """What is known of a label map → the whole map: a shape model draws some classes, a diffusion model the others.

    Anatomy has a shape that few maps suffice to learn; tissues around it have none, and a mean of them is smooth.

    Args:
        shape: draws the structures; says figures, limits and field of view.
        surroundings: draws all else around them.
        kept: classes of the first that stay.

    Raises:
        InputError: for two generators of other classes or voxel sizes, or classes that there are not.
    """

    def __init__(self, shape: ShapeModel, surroundings: MapDiffusion, *, kept: Sequence[int] = (1,)) -> None:
        super().__init__()
        ours, theirs = (shape.num_classes, shape.spacing), (surroundings.num_classes, surroundings.spacing)
        if ours != theirs:
            raise InputError(f"both generators must have the same classes and voxel size, got {ours} and {theirs}")
        if not kept or not set(kept) <= set(range(shape.num_classes)):
            raise InputError(f"kept must name classes of 0…{shape.num_classes - 1}, got {list(kept)}")
        self.shape, self.surroundings, self.kept = shape, surroundings, [int(c) for c in kept]

    @property
    def num_classes(self) -> int:
        """C, of the label maps."""
        return self.shape.num_classes

    @property
    def figures(self) -> Any:
        """What can be asked for: the shape model's figures."""
        return self.shape.figures

    @property
    def limits(self) -> Any:
        """The limits of the shape model."""
        return self.shape.limits

    @property
    def spacing(self) -> tuple[float, ...]:
        """Mm per voxel of the maps."""
        return self.shape.spacing

    def field_of_view(self, seed: int) -> tuple[int, int, int]:
        """See :meth:`semsynth.networks.shape_model.ShapeModel.field_of_view`."""
        return self.shape.field_of_view(seed)

    def forward(self, image: torch.Tensor, style: torch.Tensor | None = None, **told: Any) -> torch.Tensor:
        """The same as :meth:`semsynth.networks.shape_model.ShapeModel.forward`."""
        seeds = told.get("noise_seeds") or [self.shape.noise_seed] * len(image)
        rows = zip(plain(image).split(1), seeds, strict=True)
        return torch.cat([self.synthesize(one, [int(seed)], style=style) for one, seed in rows]).float()

    def synthesize(
        self, label: torch.Tensor, seeds: Sequence[int], *, style: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Label maps that hold what is known, one per seed.

        Args:
            label: class indices ``(1, 1, H, W, D)``; −1 for what is to be drawn. Where classes are known, the shape
                model draws nothing.
            seeds: whole numbers.
            style: as in :meth:`semsynth.networks.shape_model.ShapeModel.synthesize`.
            options: options of the sampler.

        Returns:
            Class indices ``(len(seeds), 1, H, W, D)``, uint8.
        """
        if bool((label >= 0).any()):
            return self.surroundings.synthesize(label, seeds, **options)
        made = []
        for number, seed in enumerate(seeds):
            own = None if style is None else style[number % len(style)][None]
            drawn = self.shape.synthesize(label, [seed], style=own).float()
            inside = torch.isin(drawn, torch.tensor([float(c) for c in self.kept], device=drawn.device))
            given = torch.where(inside, drawn, float(UNKNOWN))
            made.append(self.surroundings.synthesize(given, [seed], **options))
        return torch.cat(made)
