"""The part of a padded label map in which the case stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        affine: affine of the whole file.
        content: place of the part; None: it is all of the file.
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
        whole = Volume(np.ascontiguousarray(volume.data.astype(np.uint8)), volume.affine)
        part = np.ascontiguousarray(whole.part(content).data)
        return cls(str(source), part, volume.spacing, volume.affine, content, whole.data)

    def whole(self, label: NDArray[np.integer]) -> NDArray[np.uint8]:
        """A map of the part, ``(H, W, D)``, within the padding of the file."""
        result = self.padded.copy()
        Volume(result, self.affine).part(self.content).data[...] = label  # a view
        return result
