"""Deterministic loading that bundles share; random augmentation stays visible in each bundle's config."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop

from .errors import InputError
from .labels import check_range
from .volumes import read_volume, same_affine, scale_intensity


class LoadIntensityd(MapTransform):
    """Image file → MetaTensor ``(1, H, W, D)``, float32, minimum scaled to 0 and maximum to 1.

    Raises:
        InputError: for a file that cannot be used (see :func:`semsynth.volumes.read_volume`), NaN, or a constant image.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        for key in self.key_iterator(result):
            path = result[key]
            volume = read_volume(path)
            if not np.isfinite(volume.data.sum(dtype=np.float64)):
                raise InputError(f"{path}: image must be finite, found NaN or infinite voxels; repair them")
            result[key] = _tensor(scale_intensity(volume.data), volume.affine, str(path))
        return result


class LoadLabelMapd(MapTransform):
    """Label map file → MetaTensor ``(1, H, W, D)``, uint8 class indices, checked against the network's classes.

    Args:
        keys: where the paths are.
        num_classes: the number of classes that the network was built for.
        allow_missing_keys: pass over keys that the data does not have.

    Raises:
        InputError: for a file that cannot be used, or class indices outside 0…num_classes−1.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        for key in self.key_iterator(result):
            path = result[key]
            volume = read_volume(path)
            check_range(torch.from_numpy(np.asarray(volume.data, dtype=np.float32)), self.num_classes, source=str(path))
            result[key] = _tensor(np.asarray(volume.data, dtype=np.uint8), volume.affine, str(path))
        return result


class SameGridd(MapTransform):
    """Raise unless all keys share one shape and one affine (tolerance 1e-3).

    Raises:
        InputError: naming both files, with what to do.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        volumes = [data[key] for key in self.key_iterator(dict(data))]
        for other in volumes[1:]:
            names = f"{volumes[0].meta['filename_or_obj']} and {other.meta['filename_or_obj']}"
            if other.shape != volumes[0].shape:
                raise InputError(
                    f"{names} must share one shape, got {tuple(volumes[0].shape[1:])} and {tuple(other.shape[1:])}; "
                    "prepare them with 'semsynth prepare'"
                )
            if not same_affine(other.affine.numpy(), volumes[0].affine.numpy()):
                raise InputError(
                    f"{names} must share one affine (tolerance 1e-3); prepare them with 'semsynth prepare'"
                )
        return dict(data)


class CropContentd(MapTransform):
    """Cut away the zeros that ``semsynth prepare --size`` has put around a smaller case.

    The datalist's entry says under ``content`` where the case stands in its files (``start`` and ``shape`` in voxels);
    entries without it are left as they are. Padding would make losses and metrics look better than they are.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        content = result.pop("content", None)
        if content is None:
            return result
        crop = SpatialCrop(roi_start=content["start"], roi_end=np.add(content["start"], content["shape"]).tolist())
        return result | {key: crop(result[key]) for key in self.key_iterator(result)}


def _tensor(array: np.ndarray, affine: np.ndarray, path: str) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine),
                      meta={"filename_or_obj": path})  # fmt: skip
