"""Noise that depends on position and seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import InputError


def white_noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    """White noise of mean 0 and variance 1 (uniform), ``(B, 1, H, W, D)``: a hash of position and seed.

    Not drawn from a generator: it is the same on every device and in an exported graph, and a voxel's value does not
    depend on the volume's size. Items of a batch get different fields.

    Args:
        like: a tensor ``(B, C, H, W, D)`` whose size, device and type are taken.
        seed: any whole number.
    """
    h = torch.full([1, 1, 1, 1, 1], seed & 0x7FFFFFFFFFFFFFFF, device=like.device, dtype=torch.int64)
    for axis in (0, 2, 3, 4):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = like.shape[axis]
        h = h * 1000003 + torch.arange(like.shape[axis], device=like.device).view(shape)
        h = (h ^ (h >> 15)) * 2246822519 & 0xFFFFFFFF  # the mixing steps of xxHash's 32-bit avalanche
        h = (h ^ (h >> 13)) * 3266489917 & 0xFFFFFFFF
        h = h ^ (h >> 16)
    uniform = h.to(torch.float32) * (1.0 / 0xFFFFFFFF)
    noise: torch.Tensor = ((uniform - 0.5) * 12.0**0.5).to(like.dtype)
    return noise


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


def gaussian_noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    """:func:`white_noise` with a normal distribution, cut at 4.9 standard deviations: what ``torch.randn`` draws from.

    Args:
        like, seed: see there.
    """
    places = torch.empty(1, device=like.device).expand(like.shape)
    uniform = white_noise(places, seed) / 12.0**0.5  # in [-1/2, 1/2]
    normal: torch.Tensor = torch.erfinv((2.0 * uniform).clamp(-1 + 1e-6, 1 - 1e-6)) * 2.0**0.5
    return normal.to(like.dtype)


def one_seed(seeds: Sequence[int] | None, otherwise: int) -> int:
    """The one seed that all items of a batch share, ``otherwise`` where none are given.

    Raises:
        InputError: for seeds that differ: each field is one for the whole batch.
    """
    if seeds is None:
        return otherwise
    if len(set(seeds)) != 1:
        raise InputError(f"several samples in one batch would share a seed, got {list(seeds)}: set batch_size to 1")
    return int(seeds[0])
