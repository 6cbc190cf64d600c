"""What is done to every drawn map: crumbs and holes of a structure go, and a wall that is derived is laid anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...anatomy.shape import TOUCHING
from ...errors import InputError
from ...limits import check_number
from ...prepare.wall import WALL_PLANES, WallPlane, wall_of_map

THINNEST, THICKEST = 1.0, 6.0


@dataclass(frozen=True)
class DerivedWall:
    """A wall that is all within a distance of its cavity, as ``semsynth prepare`` derives it.

    Args:
        wall: its class.
        of: class of the cavity.
        mm: its thickness.
        plane: plane in which distances are measured: axial slices, or in space (3d).

    Raises:
        InputError: for a thickness outside 1…6 mm, or another plane.
    """

    wall: int
    of: int
    mm: float = 2.5
    plane: WallPlane = "axial"

    def __post_init__(self) -> None:
        if isinstance(self.mm, bool) or not isinstance(self.mm, int | float):
            raise InputError(f"wall_mm must be a number of mm, got {self.mm!r}")
        check_number("wall_mm", self.mm, THINNEST, THICKEST, unit=" mm")
        if self.plane not in WALL_PLANES or self.plane == "acquisition":
            raise InputError(f"wall_plane must be axial or 3d, got {self.plane!r}")

    def mask(self, cavity: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
        """Cavity and wall, ``(H, W, D)``, see :func:`semsynth.prepare.wall.wall_of_map`.

        Raises:
            InputError: for voxels that are too large for such a wall.
        """
        largest = max(spacing) if self.plane == "3d" else max(spacing[:2])
        if largest > self.mm:
            raise InputError(
                f"wall_mm {self.mm:g}: the wall would be thinner than a voxel of {largest:.3g} mm and have holes; draw "
                "on finer voxels, or give a thicker wall"
            )
        return wall_of_map(cavity, spacing, self.mm, self.plane)


@dataclass(frozen=True)
class Finishing:
    """The last touch to a drawn map.

    Args:
        whole: classes that are of one part, without hollows: of several parts the largest stays, the others become as
            what is next to them, and hollows are filled.
        wall: a wall that is laid anew; None leaves the drawn one.
    """

    whole: tuple[int, ...] = ()
    wall: DerivedWall | None = None

    @classmethod
    def of(
        cls, whole: Sequence[int], wall: Mapping[str, object] | None = None, wall_mm: float | None = None
    ) -> Finishing:
        """The last steps by the values of a config; ``wall_mm`` replaces the wall's own thickness."""
        if wall is None:
            if wall_mm is not None:
                raise InputError("wall_mm: these maps have no derived wall; leave it out")
            return cls(tuple(whole))
        table = dict(wall) | ({} if wall_mm is None else {"mm": wall_mm})
        return cls(tuple(whole), DerivedWall(**table))  # type: ignore[arg-type]

    def __call__(
        self, label: NDArray[np.uint8], spacing: Sequence[float], known: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, int]]:
        """Finish a map.

        Args:
            label: ``(H, W, D)`` class indices.
            spacing: mm per voxel.
            known: voxels that stay as they are; None: there are none. A class of which one is known stays as it is as a
                whole.

        Returns:
            The map, and of how many voxels ``crumbs`` were, ``hollows`` were, and all that were ``changed``.
        """
        given = set() if known is None else set(np.unique(label[known]).tolist())
        whole = [index for index in self.whole if index not in given]
        made = label.copy()
        crumbs = np.zeros(label.shape, dtype=bool)
        for index in whole:
            parts, count = ndimage.label(made == index, TOUCHING)
            if count > 1:
                largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
                crumbs |= (parts > 0) & (parts != largest)
        made = _filled(made, crumbs, self.whole, spacing)
        hollows = 0
        for index in whole:
            hollow = ndimage.binary_fill_holes(made == index) & (made != index)
            hollows += int(hollow.sum())
            made[hollow] = index
        if self.wall is not None and self.wall.wall not in given:
            cavity = made == self.wall.of
            outer = self.wall.mask(cavity, spacing)
            bare = _filled(made, (made == self.wall.wall) & ~outer, (self.wall.wall, self.wall.of), spacing)
            bare[outer & ~cavity] = self.wall.wall
            made = bare
        if known is not None:
            made = np.where(known, label, made)
        about = {"crumbs": int(crumbs.sum()), "hollows": hollows, "changed": int((made != label).sum())}
        return made, about


def _filled(
    label: NDArray[np.uint8], lacking: NDArray[np.bool_], not_with: Sequence[int], spacing: Sequence[float]
) -> NDArray[np.uint8]:
    """A map whose lacking voxels are as the nearest of other classes than some."""
    usable = ~lacking & ~np.isin(label, not_with)
    if not lacking.any() or not usable.any():
        return label
    places = ndimage.distance_transform_edt(~usable, sampling=spacing, return_distances=False, return_indices=True)
    found: NDArray[np.uint8] = np.where(lacking, label[tuple(places)], label)
    return found
