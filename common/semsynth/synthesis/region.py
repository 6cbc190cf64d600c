"""The part of a padded label map in which the case stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.volumes import Volume, read_label

Content = Mapping[str, Sequence[int]]
"""``start`` and ``shape`` in voxels, as prepared entries state them."""


@dataclass(frozen=True)
class Region:
    """A label map without its padding, and the way back.

    Attributes:
        source: the file.
        label: ``(H, W, D)`` class indices, as small whole numbers.
        spacing: mm per voxel.
        affine: of the whole file.
        content: where the part stands; None: it is all of the file.
        padded: class indices of the whole file.
    """

    source: str
    label: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    content: Content | None
    padded: NDArray[np.uint8]

    @classmethod
    def read(cls, source: str | Path, content: Content | None = None) -> Region:
        """A label map's file, which was checked before, and the part that its entry states."""
        volume = read_label(source)
        whole = np.ascontiguousarray(volume.data.astype(np.uint8))
        part = np.ascontiguousarray(part_of(whole, content))
        return cls(str(source), part, volume.spacing, volume.affine, content, whole)

    def whole(self, label: NDArray[np.integer]) -> NDArray[np.uint8]:
        """A map of the part, ``(H, W, D)``, within the padding of the file."""
        result = self.padded.copy()
        part_of(result, self.content)[...] = label
        return result


def part_of(array: NDArray[Any], content: Content | None) -> NDArray[Any]:
    """The part of an array ``(H, W, D)`` in which the case stands, as a view."""
    if content is None:
        return array
    return array[tuple(slice(a, a + n) for a, n in zip(content["start"], content["shape"], strict=True))]


def part_of_volume(volume: Volume, content: Content | None) -> Volume:
    """As :func:`part_of`, with the affine of the part."""
    if content is None:
        return volume
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ np.array([*content["start"], 1.0]))[:3]
    return Volume(part_of(volume.data, content), affine)
