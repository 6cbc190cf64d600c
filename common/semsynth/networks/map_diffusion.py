"""Label maps from nothing: latent diffusion whose images are label maps, with figures of the anatomy as its style.

Rombach et al. 2022, over one-hot maps. What is known of a map takes the place that the label map has in image
synthesis: nothing (the null map), or the voxels of some classes, around which the others are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import InputError, is_out_of_memory
from ..labels import plain
from .blocks.noise import gaussian_noise, stream
from .denoiser import Denoiser
from .figure_limits import FigureLimits, Figures
from .label_autoencoder import LabelAutoencoder
from .latent_diffusion import Denoised, LatentDiffusion

UNKNOWN = -1
"""In place of a class: what is to be drawn."""


class MapDiffusion(LatentDiffusion):
    """What is known of a label map → the whole map; or, with a latent, one training step of the denoiser.

    The style of :class:`~semsynth.networks.latent_diffusion.LatentDiffusion` is here a vector of figures of the anatomy
    (volumes, counts …), any of which may be unknown (NaN).

    Args:
        autoencoder: autoencoder of stage 1.
        denoiser: to be trained here; its ``style_channels`` are twice the number of figures: each one's value, and
            whether it is known.
        figures: figures that are measured.
        spacing: mm per voxel of the maps that the weights are trained on, along H, W, D.
        checked: figures of which the weights keep between which values they lie, see
            :class:`~semsynth.networks.figure_limits.FigureLimits`.
        most_maps: largest number of maps that a training may have.
        figure_dropout: share of the figures that a training step does not tell, each on its own.
        label_dropout: share of the training steps that know nothing of the map; in the others the voxels of a random
            choice of the classes are known.
        kwargs: all else that :class:`~semsynth.networks.latent_diffusion.LatentDiffusion` takes.

    Raises:
        InputError: as there, and for another number of style channels.

    Examples:
        >>> from semsynth.anatomy import MapFigures
        >>> from semsynth.networks.denoiser import SPADEUNet
        >>> network = MapDiffusion(
        ...     LabelAutoencoder(3, channels=(8, 8), strides=(2, 2), latent_channels=2),
        ...     SPADEUNet(3, latent_channels=2, channels=(8, 8), stride=4, spade={"hidden": 4}, style_channels=2),
        ...     figures=MapFigures(["background", "endo", "wall"], ["endo.volume_ml"]),
        ...     spacing=(2.0, 2.0, 2.0),
        ...     sampling={"steps": 2},
        ... ).eval()
        >>> nothing = torch.full((1, 1, 16, 16, 8), -1.0)  # no voxel is known
        >>> network.synthesize(nothing, seeds=[0, 1]).shape
        torch.Size([2, 1, 16, 16, 8])
    """

    def __init__(
        self,
        autoencoder: LabelAutoencoder,
        denoiser: Denoiser,
        *,
        figures: Figures,
        spacing: Sequence[float],
        checked: Figures | None = None,
        most_maps: int = 256,
        figure_dropout: float = 0.3,
        label_dropout: float = 0.6,
        **kwargs: Any,
    ) -> None:
        if denoiser.style_channels != 2 * len(figures.names):
            raise InputError(
                f"the denoiser's style_channels must be twice the number of figures ({2 * len(figures.names)}), got "
                f"{denoiser.style_channels}"
            )
        if not 0 <= figure_dropout < 1:
            raise InputError(f"figure_dropout must be in [0, 1), got {figure_dropout}")
        super().__init__(autoencoder, denoiser, label_dropout=label_dropout, **kwargs)  # type: ignore[arg-type]
        self.figures, self.spacing = figures, tuple(float(s) for s in spacing)
        self.limits = FigureLimits(checked, most_maps)
        self.figure_dropout = figure_dropout

    @staticmethod
    def _style_length(denoiser: Denoiser) -> int:
        return denoiser.style_channels // 2

    @property
    def style_of(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """How the figures of maps are measured: map and map again, ``(B, 1, H, W, D)`` → ``(B, S)``."""
        return partial(figures_of, figures=self.figures, spacing=self.spacing)

    def field_of_view(self, seed: int) -> tuple[int, int, int]:
        """H, W, D of a random training map."""
        place = self.latent_scale.new_zeros([1, 1, 1, 1, 1], dtype=torch.float32)
        rank = float(torch.special.ndtr(gaussian_noise(place, stream(seed, 3 << 20))))
        return self.limits.field(int(rank * max(int(self.limits.count), 1)))

    def encode(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Figures of a map, and their log σ² (that of no spread); NaN stays."""
        style = self.style_of(image, label)
        return style, torch.full_like(style, -torch.inf)

    def standardized(self, style: torch.Tensor) -> torch.Tensor:
        """Figures ``(B, S)`` in units of the training set's spread, 0 where unknown, and which are known."""
        known = torch.isfinite(style)
        scaled = super().standardized(style)
        return torch.cat([torch.where(known, scaled, 0.0), known.to(scaled.dtype)], dim=1)

    def forward(self, image: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`~semsynth.networks.latent_diffusion.LatentDiffusion.forward`; maps are class indices, float32."""
        made = super().forward(image, *args, **kwargs)
        return made.float() if isinstance(made, torch.Tensor) else made

    def _denoised(
        self, label: torch.Tensor, latent: torch.Tensor, style: torch.Tensor | None, **given: torch.Tensor
    ) -> Denoised:
        if style is not None:
            style = torch.where(torch.rand_like(style) < self.figure_dropout, torch.nan, style)
        return super()._denoised(partly(label, self.num_classes), latent, style, **given)

    @torch.no_grad()
    def synthesize(
        self,
        label: torch.Tensor,
        seeds: Sequence[int],
        *,
        style: torch.Tensor | None = None,
        on_step: Callable[[float], None] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Label maps that hold what is known, one per seed.

        Args:
            label: class indices ``(1, 1, H, W, D)``; −1 for what is to be drawn. A class of which there is a voxel is
                known as a whole: no other voxel gets it.
            seeds: whole numbers.
            style: figures, ``(1, S)`` or ``(len(seeds), S)``, NaN for what the network is free to choose; None: all.
            on_step: see :meth:`~semsynth.networks.latent_diffusion.LatentDiffusion.forward`.
            options: in place of the network's own.

        Returns:
            Class indices ``(len(seeds), 1, H, W, D)``, uint8.

        Raises:
            InputError: out of memory, with what to do.
        """
        own = replace(self.sampling, **options)
        label = plain(label).float()
        if style is None and self.style_channels:
            style = self.style_mean.new_full((1, self.style_channels), torch.nan)
        try:
            given = self.conditioning(label, decoder=False, **options)
            latent = self.sample_latent(given, seeds, style=style, on_step=on_step, **options) / self._scale()
            with self._autocast(latent, own):
                decode: Any = self.autoencoder.decode
                logits = torch.cat([decode(row, label.shape[2:]) for row in latent.split(1)])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = " × ".join(str(length) for length in label.shape[2:])
            raise InputError(
                f"out of memory on {label.device} for a label map of {size} voxels; give a smaller --field_of_view, or "
                "--device cpu"
            ) from error
        return with_known(logits, label)


def partly(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Maps ``(B, 1, H, W, D)`` in which the voxels of a random choice of the classes are known, and −1 elsewhere."""
    known = torch.rand(len(label), num_classes, device=label.device) < 0.5
    index = label.long()
    chosen = known.gather(1, index.flatten(1)).view_as(index)
    return torch.where(chosen, label.float(), float(UNKNOWN))


def with_known(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The likeliest classes, where nothing is known, without those that are known as a whole.

    Args:
        logits: ``(B, C, H, W, D)``.
        label: known voxels, ``(1, 1, H, W, D)``, −1 elsewhere; all may be unknown.

    Returns:
        Class indices ``(B, 1, H, W, D)``, uint8.
    """
    known = [c for c in range(logits.shape[1]) if bool((label == c).any())]
    if len(known) == logits.shape[1]:
        known = []
    if known:
        logits = logits.index_fill(1, torch.tensor(known, device=logits.device), -torch.inf)
    drawn = logits.argmax(dim=1, keepdim=True)
    return torch.where(label >= 0, label.long(), drawn).to(torch.uint8)


def figures_of(image: torch.Tensor, label: torch.Tensor, *, figures: Figures, spacing: Sequence[float]) -> torch.Tensor:
    """Figures of maps.

    Args:
        image: class indices ``(B, 1, H, W, D)``.
        label: not used: what is measured of an image is given it.
        figures: figures that are measured.
        spacing: mm per voxel.

    Returns:
        ``(B, S)``, float32.
    """
    rows = [figures(item[0].cpu().numpy().astype(np.uint8), spacing) for item in plain(image)]
    return torch.tensor(rows, dtype=torch.float32, device=image.device)
