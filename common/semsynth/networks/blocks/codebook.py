"""Vector quantisation with a codebook that follows the latents by moving averages (van den Oord et al. 2017).

Codes begin as latents of the first batch, and codes that nothing is near to begin anew as latents of the current one
(Dhariwal et al. 2020, Jukebox, section 3.1, "random restarts").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...distributed import concatenate
from ...errors import InputError

AT_ONCE = 2**22
"""Distances that are computed at a time: 16 MiB, which stay in a processor's cache."""


class Quantized(NamedTuple):
    """Latents and the codes nearest to them.

    Attributes:
        codes: ``(B, Z, h, w, d)``, float32; its gradient goes to the latents as if they were the codes
            ("straight-through").
        commitment: mean squared distance of the latents from their codes, a scalar; a gradient reaches the latents
            alone (van den Oord et al. 2017, eq. 3, third term, without its weight).
        indices: indices of the codes, ``(B, h, w, d)``.
    """

    codes: torch.Tensor
    commitment: torch.Tensor
    indices: torch.Tensor


class Codebook(nn.Module):
    """K codes of Z values; each latent is replaced by the nearest.

    In training mode codes are the moving average of the latents that they are nearest to, over all processes. The state
    is the codes, the share of the latents that each had of late (``seen``), and the same with what begun-anew codes are
    given in advance (``usage``), by which they are averaged and restarted.

    Args:
        codes: K.
        channels: Z.
        decay: decay of the moving averages, per batch.
        restart_below: a code is dead when its share of the latents is below this part of 1 / K, and becomes a latent
            of the current batch then; 0 leaves codes dead.
        restart_interval: batches from one look for dead codes to the next.

    Raises:
        InputError: for values out of range.

    Examples:
        >>> codebook = Codebook(codes=16, channels=2)
        >>> found = codebook(torch.randn(1, 2, 4, 4, 4))  # in training mode, the codes begin as latents of this batch
        >>> found.codes.shape, found.indices.shape
        (torch.Size([1, 2, 4, 4, 4]), torch.Size([1, 4, 4, 4]))
    """

    table: torch.Tensor
    usage: torch.Tensor
    seen: torch.Tensor
    batches: torch.Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        *,
        decay: float = 0.99,
        restart_below: float = 0.05,
        restart_interval: int = 10,
    ) -> None:
        super().__init__()
        if codes < 2 or not 0 <= decay < 1 or restart_below < 0 or restart_interval < 1:
            raise InputError(
                "a codebook needs 2 or more codes, a decay in [0, 1), restart_below of 0 or more and a "
                f"restart_interval of 1 or more, got {codes}, {decay}, {restart_below} and {restart_interval}"
            )
        self.decay, self.restart_below, self.restart_interval = decay, restart_below, int(restart_interval)
        self.register_buffer("table", torch.randn(codes, channels))
        self.register_buffer("usage", torch.full([codes], 1.0 / codes))
        self.register_buffer("seen", torch.full([codes], 1.0 / codes))
        self.register_buffer("batches", torch.zeros([], dtype=torch.long))

    def forward(self, latent: torch.Tensor) -> Quantized:
        """Latents ``(B, Z, h, w, d)`` → codes; in training mode the codebook learns from them."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            vectors = latent.detach().movedim(1, -1).flatten(0, -2)  # (N, Z)
            if self.training and int(self.batches) == 0:
                self._begin(vectors)
            indices = self._search(vectors)
            if self.training:
                self._learn(vectors, indices)
            b, _, *size = latent.shape
            codes = self._placed(indices, b, size)
            commitment = F.mse_loss(latent, codes)
            return Quantized(latent + (codes - latent).detach(), commitment, indices.view(b, *size))

    def nearest(self, latent: torch.Tensor) -> torch.Tensor:
        """The codes nearest to latents ``(B, Z, h, w, d)``, float32; nothing is learned and no gradient kept."""
        with torch.no_grad(), torch.autocast(latent.device.type, enabled=False):
            vectors = latent.float().movedim(1, -1).flatten(0, -2)
            return self._placed(self._search(vectors), latent.shape[0], latent.shape[2:])

    def span(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest value of all codes, by which latents are scaled to [-1, 1]; float32 scalars."""
        table = self.table.float()
        return table.min(), table.max()

    def perplexity(self) -> torch.Tensor:
        """How many codes are in use: the exponential of the entropy of their shares; K where all are used alike."""
        shares = self._shares()
        return torch.exp(-(shares * torch.log(shares.clamp(min=1e-30))).sum())

    def dead(self) -> torch.Tensor:
        """Share of the codes, in [0, 1], that had less than ``restart_below`` of 1 / K of the latents of late."""
        return (self._shares() * len(self.table) < self.restart_below).float().mean()

    def _shares(self) -> torch.Tensor:
        seen = self.seen.float()
        return seen / seen.sum()

    def _placed(self, indices: torch.Tensor, b: int, size: torch.Size | list[int]) -> torch.Tensor:
        return F.embedding(indices, self.table.float()).view(b, *size, -1).movedim(-1, 1)

    def _search(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code of each vector, ``(N,)``."""
        table = self.table.float()
        half = table.square().sum(dim=1) / 2.0
        rows = max(AT_ONCE // len(table), 1)
        nearness = vectors.new_empty(rows, len(table))
        found = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
        for part, place in zip(vectors.split(rows), found.split(rows), strict=True):
            here = nearness[: len(part)]
            # |v - c|² = |v|² - 2 (v·c - |c|²/2)
            torch.addmm(half[None], part, table.T, beta=-1.0, out=here)
            torch.argmax(here, dim=1, out=place)
        return found

    @torch.no_grad()
    def _begin(self, vectors: torch.Tensor) -> None:
        everything = concatenate(vectors)
        picked = everything[self._draw(len(everything), len(self.table), vectors.device)]
        spread = everything.std(dim=0) if len(everything) > 1 else torch.zeros_like(everything[0])
        if len(everything) < len(self.table):  # a latent that stands for several codes: a little apart from each other
            picked = picked + 0.01 * spread * self._noise(picked)
        self.table.copy_(picked)

    @torch.no_grad()
    def _learn(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        vectors, indices = concatenate(vectors), concatenate(indices)
        codes = len(self.table)
        count = torch.bincount(indices, minlength=codes).float()
        total = torch.zeros_like(self.table).index_add_(0, indices, vectors)
        kept, came = self.decay * self.usage, (1.0 - self.decay) * count / len(vectors)
        mean = total / count.clamp(min=1.0)[:, None]
        share = (came / (kept + came).clamp(min=1e-30))[:, None]
        self.table.lerp_(mean, share)
        self.usage.copy_(kept + came)
        self.seen.mul_(self.decay).add_((1.0 - self.decay) * count / len(vectors))
        self.batches += 1
        if self.restart_below > 0 and int(self.batches) % self.restart_interval == 0:
            dead = (self.usage * codes < self.restart_below * self.usage.sum()).nonzero()[:, 0]
            dead = dead[: len(vectors)]  # no latent for two codes
            if len(dead):
                self.table[dead] = vectors[self._draw(len(vectors), len(dead), vectors.device)]
                self.usage[dead] = 1.0 / codes

    def _draw(self, available: int, wanted: int, device: torch.device) -> torch.Tensor:
        """Which of the vectors: each once before any comes twice; the same in all processes."""
        generator = torch.Generator().manual_seed(int(self.batches))
        rounds = -(-wanted // available)
        drawn = torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])
        return drawn[:wanted].to(device)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(like.shape, generator=generator).to(like)
