"""Styles: how those of a training set are distributed, and draws from that distribution."""

from __future__ import annotations

import torch
from torch import nn

from .noise import gaussian_noise, stream


class StyleDistribution(nn.Module):
    """Base of a generator with styles: mean and covariance of the training set's, as buffers of the network itself.

    A style from where the training set has none was never trained on, so styles are drawn from one Gaussian over it
    (Ghosh et al. 2020, section 4, ex-post density estimation).

    Args:
        style_channels: S, length of a style; 0 for a network without styles.
        style_scale: spread of drawn styles: 1 is that of the training set, 0 gives the typical style alone.

    Attributes:
        style_mean: ``(S,)``.
        style_covariance: ``(S, S)``.
    """

    style_mean: torch.Tensor
    style_covariance: torch.Tensor

    def __init__(self, style_channels: int, style_scale: float = 1.0) -> None:
        super().__init__()
        self.style_channels, self.style_scale = style_channels, style_scale
        self.register_buffer("style_mean", torch.zeros(style_channels))
        self.register_buffer("style_covariance", torch.eye(style_channels))

    def draw_style(self, seed: int) -> torch.Tensor:
        """The style ``(1, S)`` of a seed (any whole number), distributed as styles are in the training set."""
        places = self.style_mean.new_zeros([1, 1, max(self.style_channels, 1), 1, 1], dtype=torch.float32)
        normal = gaussian_noise(places, stream(seed, 0))[:, 0, : self.style_channels, 0, 0]
        with torch.autocast(places.device.type, enabled=False):
            style: torch.Tensor = self.style_mean.float() + normal @ self.drawn_root()
        return style

    def drawn_root(self) -> torch.Tensor:
        """``(S, S)``: white noise ``(1, S)`` times it, and the mean added, is distributed as drawn styles are."""
        return self.style_scale * self._root()

    def _root(self) -> torch.Tensor:
        """``(S, S)``: the one root of the covariance whose signs are not arbitrary."""
        values, vectors = torch.linalg.eigh(self.style_covariance.float())
        root: torch.Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
        return root
