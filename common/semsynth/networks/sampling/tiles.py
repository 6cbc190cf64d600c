"""Decoding a latent in overlapping tiles, with the voxels that decoding it whole gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple, TypeAlias

import torch

from ...errors import InputError
from ..autoencoder import SPADEAutoencoder
from ..blocks.noise import VolumeNoise
from ..vqgan import VQGAN

Ranges = tuple[slice, slice, slice]
Autoencoder: TypeAlias = SPADEAutoencoder | VQGAN


class Tile(NamedTuple):
    """A part of a volume; voxels along H, W, D.

    Attributes:
        outer: part that is decoded.
        inner: part of the volume that it is decoded for; the tiles' inner parts fill the volume without overlap.
    """

    outer: Ranges
    inner: Ranges


def tiles(size: Sequence[int], tile: Sequence[int], halo: int, stride: int) -> Iterator[Tile]:
    """The tiles of a volume, the same number of cells in each as far as that goes.

    Args:
        size: size of the volume.
        tile: the largest inner part, 0 for a whole axis; rounded down to multiples of ``stride``, at least one.
        halo: voxels around the inner part, a multiple of ``stride``; none beyond the volume.
        stride: voxels per cell of the latent; tiles begin and, but for the last, end between cells.
    """
    axes = []
    for length, wanted in zip(size, tile, strict=True):
        cells, most = -(-length // stride), max((wanted or length) // stride, 1)
        count = -(-cells // most) if wanted else 1
        borders = [min(round(i * cells / count) * stride, length) for i in range(count + 1)]
        axes.append([
            (slice(max(a - halo, 0), min(b + halo, length)), slice(a, b))
            for a, b in pairwise(borders)
        ])  # fmt: skip
    for h, w, d in product(*axes):
        yield Tile((h[0], w[0], d[0]), (h[1], w[1], d[1]))


@torch.no_grad()
def decode_in_tiles(
    autoencoder: Autoencoder,
    latent: torch.Tensor,
    label: torch.Tensor,
    tile: Sequence[int],
    *,
    batch_size: int = 1,
    noise: VolumeNoise | None = None,
) -> torch.Tensor:
    """Images of latents of one label map, part by part: memory is that of a part.

    A voxel of the image depends on latent and label map no further away than the decoder's convolutions reach
    (:meth:`~semsynth.networks.autoencoder.SPADEAutoencoder.reach`): a tile is decoded with that much around it, which
    is then cut off. Nothing is blended, and what is left is what decoding the whole gives but for rounding.

    Normalisation statistics would spoil it: a group or instance norm has other ones in each tile, which shows as steps
    in brightness between tiles. The autoencoder's norm of each voxel over its channels (``norm="voxel"``) has none. A
    decoder with another norm, or with self-attention, is refused: it can only be decoded whole.

    Args:
        autoencoder: its decoder, and what it makes of label maps.
        latent: ``(B, Z, ⌈H/s⌉, ⌈W/s⌉, ⌈D/s⌉)``, in the autoencoder's units.
        label: class indices ``(1, 1, H, W, D)``.
        tile: voxels along H, W, D of a part, without what lies around it; 0 for the whole axis.
        batch_size: latents that are decoded at once.
        noise: noise that the decoder adds, of as many volumes as there are latents; None adds none.

    Returns:
        Intensities, about in [0, 1], ``(B, 1, H, W, D)``, float32.

    Raises:
        InputError: for a decoder that is not local.
    """
    reach, stride = check_local(autoencoder), autoencoder.stride
    size = label.shape[2:]
    image = torch.empty(len(latent), 1, *size, device=latent.device)
    for part in tiles(size, tile, reach, stride):
        h, w, d = (slice(axis.start // stride, -(-axis.stop // stride)) for axis in part.outer)
        own = label[:, :, part.outer[0], part.outer[1], part.outer[2]]
        condition = autoencoder.modulation(own) if len(latent) > batch_size else own
        kept = [
            slice(inner.start - outer.start, inner.stop - outer.start)
            for inner, outer in zip(part.inner, part.outer, strict=True)
        ]
        place = image[:, :, part.inner[0], part.inner[1], part.inner[2]]
        origin = [axis.start for axis in part.outer]
        for first in range(0, len(latent), batch_size):
            rows = slice(first, first + batch_size)
            added = () if noise is None else (noise.part(rows, own.shape[2:], origin, device=latent.device),)
            decoded = autoencoder.decode(latent[rows, :, h, w, d], condition, *added)
            place[rows].copy_(decoded[:, :, kept[0], kept[1], kept[2]])
            del decoded, added
        del condition  # before the next part's is made
    return image


def check_local(autoencoder: Autoencoder) -> int:
    """How far a decoded voxel depends on latent and map.

    Raises:
        InputError: for a decoder whose voxels depend on the whole volume.
    """
    reach = autoencoder.reach()
    if reach is None:
        raise InputError(
            "tile: this decoder has norms with statistics of the whole volume, or self-attention: tiles would differ "
            "in brightness; decode whole (leave tile out), or train an autoencoder with norm voxel"
        )
    return reach


def tile_size(size: Sequence[int], tile: Sequence[int] | None, reach: int | None) -> list[int]:
    """Voxels of the largest part that is decoded, with what lies around it."""
    if tile is None:
        return list(size)
    return [min(length, (wanted or length) + 2 * (reach or 0)) for length, wanted in zip(size, tile, strict=True)]
