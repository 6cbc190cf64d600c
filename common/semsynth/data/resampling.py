"""Label maps to the voxel size that weights were trained at, and volumes back onto the maps' own grid."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, Spacingd

from ..memory import check_size
from .geometry import TOLD, TrainedGrid, resampled_shape
from .grids import place
from .in_memory import ORIGINAL_AFFINE

logger = logging.getLogger(__name__)
CLASS_BYTES = 9
"""Per voxel: the share of a class, the largest so far, and the class."""
AS_GIVEN = "_as_given"
"""Ending of the key under which a resampled map's own is kept until the volume is back."""


class TrainedSpacingd(MapTransform):
    """A label map as the network knows its like: compared with what the weights were trained on, and resampled to it.

    A difference is logged once per kind and value, unless :func:`semsynth.data.entries.load_label_maps` has warned of
    the file. With ``grid.resample`` a map of another voxel size is resampled, class by class as fractions of which the
    largest wins; :class:`OwnGridd` takes the volume back. A map of the trained voxel size stays the very same tensor.

    Args:
        keys: keys of label maps ``(1, H, W, D)``, axes right, anterior, superior.
        grid: grid of the weights.
        images: keys of images on the same grid, resampled linearly with the map.
        allow_missing_keys: pass over keys that the data does not have.
    """

    def __init__(
        self, keys: KeysCollection, grid: TrainedGrid, images: Sequence[str] = (), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid, self.images = grid, tuple(images)
        self.told = TOLD  # a worker process that is not forked gets its content
        self._said: set[tuple[str, str]] = set()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        result = dict(data)
        for key in self.key_iterator(result):
            label = result[key]
            spacing = _spacing(label)
            self._compare(label, spacing)
            wanted = self.grid.target(spacing)
            if wanted is None:
                continue
            result[f"{key}{AS_GIVEN}"] = label
            shape = resampled_shape(label.shape[1:], spacing, wanted)
            check_size(shape, "a label map resampled to what the weights know,", "leave out --resample, or crop it",
                       voxel=CLASS_BYTES)  # fmt: skip
            result[key] = _on_grid(label, resampled_classes(label, shape, spacing, wanted), spacing, wanted)
            for other in self.images:
                moved = resampled(result[other].as_tensor(), shape, spacing, wanted)
                result[other] = _on_grid(result[other], moved, spacing, wanted)
        return result

    def _compare(self, label: MetaTensor, spacing: Sequence[float]) -> None:
        path = str(label.meta.get("filename_or_obj", "label map"))
        if (str(self.grid.weights), path) in self.told:
            return
        for finding in self.grid.compare(spacing, label.shape[1:], path):
            if (finding.finding, finding.found) not in self._said:
                self._said.add((finding.finding, finding.found))
                logger.warning("%s", finding)


class OwnGridd(MapTransform):
    """The way back: the volume on the label map's own grid, in the order of voxels of its file, and the map as it was.

    What :class:`TrainedSpacingd` has resampled comes back by linear interpolation, the edge repeated; what the loader
    or ``Orientationd`` has reordered, without loss. So other programs that write the volume with the file's affine,
    as MONAI Label and MONAI Deploy do, put it where it belongs.

    Args:
        keys: keys of the volumes, ``(C, H, W, D)``.
        source_key: key of the label map.
    """

    def __init__(self, keys: KeysCollection, source_key: str = "image") -> None:
        super().__init__(keys)
        self.source = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:  # noqa: D102
        kept = f"{self.source}{AS_GIVEN}"
        result = {key: value for key, value in data.items() if key != kept}
        seen = data[self.source]
        given = data.get(kept, seen)
        for key in self.key_iterator(result):
            volume = result[key]
            plain = (volume.as_tensor() if isinstance(volume, MetaTensor) else volume).float()
            back = resampled(plain, given.shape[1:], _spacing(seen), _spacing(given)) if kept in data else plain
            result[key] = _as_stored(back, given)
        return result | {self.source: given}


def _as_stored(volume: torch.Tensor, label: MetaTensor) -> MetaTensor:
    """A volume ``(C, H, W, D)`` on the grid of a label map, in the order of voxels that the map's file has."""
    stored = label.meta.get(ORIGINAL_AFFINE)
    affine = label.affine.double().cpu().numpy()
    if stored is None:
        return MetaTensor(volume, affine=torch.from_numpy(affine), meta=_facts(label))
    placed = place(affine, volume.shape[1:], np.asarray(stored, dtype=np.float64), volume.shape[1:])
    ordered = torch.stack([torch.as_tensor(np.ascontiguousarray(placed.apply(one))) for one in volume.cpu().numpy()])
    return MetaTensor(ordered.to(volume.device), affine=torch.from_numpy(placed.affine), meta=_facts(label))


class SpacingOfKeysd(Spacingd):
    """MONAI's ``Spacingd`` that sees nothing but its keys.

    MONAI 1.6.1 takes every entry whose name begins with that of a key and ``_`` for metadata, and updates it: what
    MONAI Label keeps under ``image_path`` is a text, and the inference ends with an error.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:  # noqa: D102
        return dict(data) | super().__call__({key: data[key] for key in self.key_iterator(dict(data))}, lazy)


def resampled(
    volume: torch.Tensor, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> torch.Tensor:
    """A volume linearly on another voxel size, the edge repeated; both grids have one centre.

    Args:
        volume: ``(C, H, W, D)``.
        shape: shape of the result.
        spacing, target: mm per voxel, along H, W, D.

    Returns:
        ``(C, *shape)``, float32.
    """
    x = volume.float()
    for axis, (n, own, new) in enumerate(zip(shape, spacing, target, strict=True), start=1):
        x = _along(x, axis, int(n), float(new) / float(own))
    return x


def resampled_classes(
    label: torch.Tensor, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> torch.Tensor:
    """A label map on another voxel size: of the classes' fractions at a voxel the largest, of equal ones the lowest
    index. One class after another, so that memory does not grow with their number.

    Args:
        label: ``(1, H, W, D)`` class indices.
        shape, spacing, target: as in :func:`resampled`.

    Returns:
        ``(1, *shape)``, of the map's type.
    """
    plain = label.as_tensor() if isinstance(label, MetaTensor) else label
    most = torch.zeros(1, *shape, device=plain.device)
    result = torch.zeros(1, *shape, dtype=plain.dtype, device=plain.device)
    for value in plain.unique():
        share = resampled(plain == value, shape, spacing, target)
        larger = share > most
        most[larger], result[larger] = share[larger], value
    return result


def on_voxels(label: MetaTensor, target: Sequence[float]) -> MetaTensor:
    """A label map on another voxel size over the same field of view; the very same tensor where it has it.

    Args:
        label: ``(1, H, W, D)`` class indices, with an affine.
        target: mm per voxel, along H, W, D.
    """
    spacing = _spacing(label)
    if all(abs(own / new - 1) < 1e-3 for own, new in zip(spacing, target, strict=True)):
        return label
    # as many as fill the field of view: voxels half as large would else lie between classes, and the lower one win
    sizes = zip(label.shape[1:], spacing, target, strict=True)
    shape = [max(1, round(n * own / new)) for n, own, new in sizes]
    return _on_grid(label, resampled_classes(label, shape, spacing, target), spacing, target)


def _along(x: torch.Tensor, axis: int, count: int, step: float) -> torch.Tensor:
    """``count`` linear samples along one axis, ``step`` voxels apart, around the same centre."""
    length = x.shape[axis]
    if count == length and abs(step - 1) < 1e-6:
        return x
    places = (torch.arange(count, dtype=torch.float64, device=x.device) - (count - 1) / 2) * step + (length - 1) / 2
    places = places.clamp(0, length - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=length - 1)
    along = [-1 if i == axis else 1 for i in range(x.ndim)]
    weight = (places - low).to(x.dtype).view(along)
    return x.index_select(axis, low).lerp(x.index_select(axis, high), weight)


def _on_grid(source: MetaTensor, data: torch.Tensor, spacing: Sequence[float], target: Sequence[float]) -> MetaTensor:
    """The data with the source's other facts, and the affine of the grid of ``target`` with the same centre."""
    affine = source.affine.clone().double()
    step = torch.tensor([new / own for new, own in zip(target, spacing, strict=True)], dtype=torch.float64)
    last_own, last_new = (torch.tensor(part.shape[1:], dtype=torch.float64) - 1 for part in (source, data))
    first = last_own / 2 - step * last_new / 2  # of the new grid, in voxels of the old one
    affine[:3, 3] += affine[:3, :3] @ first
    affine[:3, :3] *= step
    return MetaTensor(data, affine=affine, meta=_facts(source), applied_operations=list(source.applied_operations))


def _facts(volume: MetaTensor) -> dict[str, Any]:
    return {key: value for key, value in volume.meta.items() if key != "affine"}


def _spacing(volume: MetaTensor) -> tuple[float, ...]:
    return tuple(float(size) for size in affine_to_spacing(volume.affine.double(), r=3))
