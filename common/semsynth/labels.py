"""Label maps as tensors: one-hot, range checks. Their classes' names are in :mod:`semsynth.vocabulary`."""

from __future__ import annotations

import torch

from .errors import InputError


def one_hot(label: torch.Tensor, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Class indices ``(B, 1, H, W, D)`` → one-hot ``(B, count, H, W, D)``.

    An index outside 0…count−1 (the null map of guidance, for example) becomes a voxel that is zero in every channel.
    Written as a comparison because that is exportable, needs no integer copy and keeps the memory format.
    """
    classes = torch.arange(count, device=label.device, dtype=label.dtype).view(1, -1, 1, 1, 1)
    return (label == classes).to(dtype)


def plain(x: torch.Tensor) -> torch.Tensor:
    """The bare tensor: MetaTensor's bookkeeping costs time in every operation, and stands in the way of some."""
    bare: torch.Tensor = x.as_tensor() if hasattr(x, "as_tensor") else x
    return bare


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
        broken = float(label[label != label.round()].flatten()[0])
        raise InputError(
            f"{source}: class indices must be integers, found fractions such as {broken:.9g}; resample label maps with "
            "nearest neighbours"
        )
