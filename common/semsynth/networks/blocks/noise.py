"""Noise that depends on position and seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import InputError


def white_noise(like: torch.Tensor, seed: int, origin: list[int] | None = None) -> torch.Tensor:
    """White noise of mean 0 and variance 1 (uniform), ``(B, 1, H, W, D)``: a hash of position and seed.

    Not drawn from a generator: it is the same on every device and in an exported graph, and a voxel's value does not
    depend on the volume's size. Items of a batch get different fields; see :func:`white_noises`.

    Args:
        like: a tensor ``(B, C, H, W, D)`` whose size, device and type are taken.
        seed: any whole number.
        origin: first voxel of a part of a volume along H, W, D: it gets the noise that the whole has there. None: at 0.
    """
    bits = torch.full([1, 1, 1, 1, 1], seed & 0x7FFFFFFFFFFFFFFF, dtype=torch.int64, device=like.device)
    places = torch.arange(like.shape[0], device=like.device).view(-1, 1, 1, 1, 1)
    return _field(like, bits * 1000003 + places, origin)


def white_noises(like: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """:func:`white_noise` of each item's own seed: what the item would get alone, wherever it stands in a batch.

    Args:
        like: see there.
        seeds: one per item.
    """
    bits = torch.tensor([seed & 0x7FFFFFFFFFFFFFFF for seed in seeds], dtype=torch.int64, device=like.device)
    return _field(like, bits.view(-1, 1, 1, 1, 1) * 1000003)


def _field(like: torch.Tensor, h: torch.Tensor, origin: list[int] | None = None) -> torch.Tensor:
    """The noise of the items' numbers ``(B, 1, 1, 1, 1)``, int64."""
    h = _mixed(h)
    for axis in (2, 3, 4):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = like.shape[axis]
        first = 0 if origin is None else origin[axis - 2]
        places = first + torch.arange(like.shape[axis], device=like.device)
        h = _mixed(h * 1000003 + places.view(shape))
    uniform = h.to(torch.float32) * (1.0 / 0xFFFFFFFF)
    noise: torch.Tensor = ((uniform - 0.5) * 12.0**0.5).to(like.dtype)
    return noise


def _mixed(h: torch.Tensor) -> torch.Tensor:
    h = (h ^ (h >> 15)) * 2246822519 & 0xFFFFFFFF  # the mixing steps of xxHash's 32-bit avalanche
    h = (h ^ (h >> 13)) * 3266489917 & 0xFFFFFFFF
    return h ^ (h >> 16)


def stream(seed: int, number: int) -> int:
    """The seed of the ``number``-th noise field of a sample: for its style, its start, each step or level.

    The low 64 bits of ``seed`` are mixed into 32: two of n fields are the same about as often as two of n random
    numbers of 32 bits. All numbers stay below 2^63: TorchScript has no larger ones.

    Args:
        seed: any whole number.
        number: 0 or more.

    Returns:
        From 1 to 2^32.
    """
    h = 0
    for part in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, number):
        h = h ^ part
        h = ((h ^ (h >> 16)) * 0x45D9F3B + 0x3C6EF372) & 0xFFFFFFFF
        h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        h = h ^ (h >> 16)
    return h + 1  # 0 would hash the first voxel to 0


def gaussian_noise(like: torch.Tensor, seed: int, origin: list[int] | None = None) -> torch.Tensor:
    """:func:`white_noise` with a normal distribution, cut at 4.9 standard deviations: what ``torch.randn`` draws from.

    Args:
        like, seed, origin: see there.
    """
    return _normal(white_noise(_float32(like), seed, origin)).to(like.dtype)


def gaussian_noises(like: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """:func:`white_noises` with a normal distribution, see :func:`gaussian_noise`."""
    return _normal(white_noises(_float32(like), seeds)).to(like.dtype)


class VolumeNoise:
    """:func:`gaussian_noise` of several volumes of one size, any part of them.

    Args:
        seeds: one per volume.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)

    def part(
        self, rows: slice, size: Sequence[int], origin: Sequence[int] = (0, 0, 0), *, device: torch.device
    ) -> torch.Tensor:
        """The noise of some of the volumes in one part of them, float32.

        Args:
            rows: rows of the volumes.
            size: H, W, D of the part.
            origin: first voxel along H, W, D.
            device: device of the result.

        Returns:
            ``(rows, 1, H, W, D)``.
        """
        place = torch.empty(1, device=device).expand(1, 1, *size)
        return torch.cat([gaussian_noise(place, seed, list(origin)) for seed in self.seeds[rows]])


def _float32(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(1, device=like.device).expand(like.shape)


def _normal(noise: torch.Tensor) -> torch.Tensor:
    uniform = noise / 12.0**0.5  # in [-1/2, 1/2]
    normal: torch.Tensor = torch.erfinv((2.0 * uniform).clamp(-1 + 1e-6, 1 - 1e-6)) * 2.0**0.5
    return normal


def item_seeds(seeds: Sequence[int] | None, otherwise: int, count: int) -> list[int]:
    """The seed of each item of a batch: so that a volume depends on its map and seed alone.

    Args:
        seeds: one per item, or one for all; None for none.
        otherwise: seed of all items where none are given.
        count: number of items.

    Raises:
        InputError: for another number of seeds.
    """
    given = [otherwise] if seeds is None else [int(seed) for seed in seeds]
    if len(given) not in (1, count):
        raise InputError(f"{count} label maps need as many seeds, or one for all, got {list(given)}")
    return given * count if len(given) == 1 else given
