"""The label vocabulary of composite maps: ids, names, one-hot encoding, range checks."""

from __future__ import annotations

import torch

from .errors import InputError

BACKGROUND, ENDO, WALL = 0, 1, 2
FIRST_TISSUE = 3
"""Tissue clusters are numbered from here, by rising mean intensity."""


def num_classes(k: int, *, background: bool = True) -> int:
    """Number of classes of a composite map with ``k`` clusters.

    ``max(k, 1) + 2`` where one of the clusters is set aside as background, ``k + 3`` where none is.
    """
    return max(k, 1) + 2 if background else k + 3


def class_names(count: int) -> dict[int, str]:
    """Names of the ``count`` classes of a composite map: background, endo, wall, tissue 1, tissue 2, …"""
    names = {BACKGROUND: "background", ENDO: "endo", WALL: "wall"}
    names |= {i: f"tissue {i - FIRST_TISSUE + 1}" for i in range(FIRST_TISSUE, count)}
    return {i: names[i] for i in range(count)}


def one_hot(label: torch.Tensor, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Class indices ``(B, 1, H, W, D)`` → one-hot ``(B, count, H, W, D)``.

    An index outside 0…count−1 (the null map of guidance, for example) becomes a voxel that is zero in every channel.
    Written as a comparison because that is exportable, needs no integer copy and keeps the memory format.
    """
    classes = torch.arange(count, device=label.device, dtype=label.dtype).view(1, -1, 1, 1, 1)
    return (label == classes).to(dtype)


def check_range(label: torch.Tensor, count: int, *, source: str = "label map") -> None:
    """Raise unless every class index of ``label`` is an integer in 0…count−1.

    Raises:
        InputError: naming ``source``, the values found and the range that the network was built for.
    """
    low, high = float(label.min()), float(label.max())
    if low < 0 or high >= count:
        raise InputError(
            f"{source}: class indices must lie in 0…{count - 1} (num_classes {count}), found {low:g}…{high:g}; "
            "set num_classes in the config to the datalist's, or prepare the maps with another --k"
        )
    if label.is_floating_point() and not torch.equal(label, label.round()):
        raise InputError(f"{source}: class indices must be integers, found fractions; resample label maps with nearest")
