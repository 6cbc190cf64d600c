"""Volumes that another program has read already: MONAI Deploy's operators hand over arrays, not paths."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils.enums import PostFix

from ..errors import InputError
from .label_values import rounded
from .volumes import Volume, read_label, read_volume

ORIGINAL_AFFINE, SPATIAL_SHAPE = "original_affine", "spatial_shape"
"""What MONAI's ``LoadImaged`` says of a volume: affine and shape as they were read."""
_CHANNEL = "original_channel_dim"


def volume_of(data: Mapping[Hashable, Any], key: Hashable, *, label: bool = False) -> tuple[Volume, str]:
    """The volume under a key, from its file or as it stands there, and what to call it in messages.

    An array has the shape ``(H, W, D)``, or ``(1, H, W, D)`` or ``(H, W, D, 1)``. Its affine is that of a
    ``MetaTensor``, or of the metadata beside it (``<key>_meta_dict``); where both are missing, voxels are 1 mm.

    Args:
        data: data of one case.
        key: key of the path or array.
        label: True for a label map, whose values within 1e-3 of whole numbers become whole numbers.

    Raises:
        InputError: for a file that cannot be used (see :func:`semsynth.data.volumes.read_volume`), or an array of more
            channels, or of another number of axes.
    """
    value = data[key]
    if isinstance(value, str | Path):
        return (read_label(value) if label else read_volume(value)), str(value)
    about: dict[str, Any] = dict(data.get(f"{key}_{PostFix.meta()}") or {})
    if isinstance(value, MetaTensor):
        about = dict(value.meta)  # with its affine
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    name = str(about.get("filename_or_obj") or key)
    voxels = _one_channel(array, about.get(_CHANNEL), name)
    affine = about.get("affine")
    where = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    return Volume(rounded(voxels) if label else voxels, where), name


def _one_channel(array: np.ndarray, stated: Any, name: str) -> np.ndarray:
    """``(H, W, D)`` of an array with or without an axis of channels."""
    if array.ndim == 4:
        axes = [stated] if stated in (0, 3, -1) else [axis for axis in (0, 3) if array.shape[axis] == 1]
        if axes and array.shape[axes[0]] == 1:
            return np.asarray(np.take(array, 0, axis=axes[0]))
    if array.ndim != 3:
        raise InputError(
            f"{name}: needs one volume of one channel, (H, W, D), (1, H, W, D) or (H, W, D, 1), got an array of the "
            f"shape {tuple(array.shape)}; hand over one channel"
        )
    return array
