"""The signed distances that tell a label map, of which a shape model takes means and modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import InputError

FAR = 100.0
"""More than any distance, mm."""
REACH_MM = 6.0
"""Beyond it, signed distances hardly differ: they are r · tanh(d / r)."""


@dataclass(frozen=True)
class Surfaces:
    """Which signed distances tell the classes of a map.

    Attributes:
        num_classes: C.
        walls: class of a wall that is drawn → class that it is the wall of.
        walled: classes that have a wall.
        filling: all other classes: they fill what walls and what they hold leave, by the largest distance.
    """

    num_classes: int
    walls: Mapping[int, int]
    walled: tuple[int, ...]
    filling: tuple[int, ...]

    @classmethod
    def of(
        cls, num_classes: int, walls: Mapping[int, int] | Mapping[str, int], derived: Sequence[int] = ()
    ) -> Surfaces:
        """The surfaces of a number of classes and their walls.

        Args:
            num_classes: C.
            walls: class of a wall → class that it is the wall of.
            derived: walls that are not drawn.

        Raises:
            InputError: for a wall or its class that there is not, class 0, or a wall of a wall.
        """
        found = {int(wall): int(inside) for wall, inside in walls.items()}
        classes = range(1, num_classes)
        if any(w not in classes or c not in classes or c in found or w == c for w, c in found.items()):
            raise InputError(
                f"walls must be class of a wall → class within it, of 1…{num_classes - 1}, none a wall of a wall; got "
                f"{dict(walls)}"
            )
        if not set(derived) <= set(found):
            raise InputError(f"derived must name walls of {sorted(found)}, got {list(derived)}")
        walled = tuple(sorted(set(found.values())))
        filling = tuple(c for c in range(num_classes) if c not in found and c not in walled)
        drawn = {wall: inside for wall, inside in found.items() if wall not in derived}
        return cls(num_classes, drawn, walled, filling)

    @property
    def channels(self) -> int:
        """How many distances: of two filling classes one tells both."""
        return len(self.walled) + len(self.walls) + (1 if len(self.filling) == 2 else len(self.filling))

    def logits(self, distances: torch.Tensor) -> torch.Tensor:
        """Distances ``(B, channels, H, W, D)`` → ``(B, C, H, W, D)`` of which a class's own is the largest."""
        b, _, *size = distances.shape
        made = distances.new_full((b, self.num_classes, *size), -FAR)
        walls = dict(zip(self.walls, distances.unbind(1)[len(self.walled) :], strict=False))
        fills = distances[:, len(self.walled) + len(self.walls) :]
        if len(self.filling) == 2:
            fills = torch.cat([-fills, fills], dim=1)
        for channel, index in enumerate(self.filling):
            made[:, index] = fills[:, channel]
        for index, distance in walls.items():
            made[:, index] = torch.where(distance > 0, FAR, -FAR)
        for channel, index in enumerate(self.walled):
            made[:, index] = torch.where(distances[:, channel] > 0, 2 * FAR, -FAR)
        return made


def signed_distances(label: NDArray[np.integer], surfaces: Surfaces, spacing: Sequence[float]) -> NDArray[np.float32]:
    """r · tanh(d / r) of the signed distances d in mm that tell a map, positive inside.

    Args:
        label: class indices ``(H, W, D)``; −1 where the map shows nothing: the nearest voxel's class counts.
        surfaces: structures: classes with walls, these together with their walls, and classes that fill the rest,
            which go on in all that is not theirs as they are next to it.
        spacing: mm per voxel.

    Returns:
        ``(channels, H, W, D)``.
    """
    whole = _nearest(label, label < 0, spacing)
    masks = [whole == index for index in surfaces.walled]
    masks += [np.isin(whole, [wall, inside]) for wall, inside in surfaces.walls.items()]
    filled = _nearest(whole, ~np.isin(whole, surfaces.filling), spacing)
    shown = surfaces.filling[1:] if len(surfaces.filling) == 2 else surfaces.filling
    masks += [filled == index for index in shown]
    return np.stack([_signed(mask, spacing) for mask in masks])


def _nearest(label: NDArray[np.integer], lacking: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.integer]:
    """A map whose lacking voxels are as the nearest others."""
    if not lacking.any() or lacking.all():
        return label
    places = ndimage.distance_transform_edt(lacking, sampling=spacing, return_distances=False, return_indices=True)
    found: NDArray[np.integer] = label[tuple(places)]
    return found


def _signed(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
    if mask.all() or not mask.any():
        return np.full(mask.shape, REACH_MM if mask.any() else -REACH_MM, dtype=np.float32)
    half = min(spacing) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    signed = np.where(mask, inside - half, half - outside)
    result: NDArray[np.float32] = (REACH_MM * np.tanh(signed / REACH_MM)).astype(np.float32)
    return result
