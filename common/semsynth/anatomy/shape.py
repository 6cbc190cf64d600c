"""What a structure of a label map looks like in figures, and how it hangs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import euler_number, marching_cubes, mesh_surface_area

MEASURED_AT_MM = 1.5
"""Voxels for figures: fine enough for a vein of 5 mm, and the same for all maps."""
BRANCH_SHARE = 0.45
"""Of the radius of the largest ball inside: the ball that opens. It takes veins away and leaves the body."""
LEAST_BRANCH_ML, LEAST_BRANCH_MM = 0.25, 4.0
"""Smaller parts are roughness."""
TOUCHING = np.ones((3, 3, 3), dtype=bool)

Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[slice, slice, slice]


class Branch(NamedTuple):
    """A part that stands out from the body of a structure, such as a pulmonary vein; mm from the first voxel."""

    root: NDArray[np.float64]
    tip: NDArray[np.float64]
    radius: float

    @property
    def length(self) -> float:
        """Length from root to tip, mm."""
        return float(np.linalg.norm(self.tip - self.root))


class Shape(NamedTuple):
    """Figures of a structure.

    Elongation is the spread of its voxels along the longest principal axis by that along the middle one, flatness that
    along the middle one by that along the shortest.
    """

    volume_ml: float
    surface_cm2: float
    elongation: float
    flatness: float
    branches: float


class Topology(NamedTuple):
    """How a structure hangs together: parts − tunnels + hollows is its Euler number.

    Its voxels touch where they share a corner, those of the outside where they share a face.
    """

    parts: int
    hollows: int
    tunnels: int


def box_of(mask: Mask, margin: Sequence[int] = (0, 0, 0)) -> Box:
    """The smallest box around a mask ``(H, W, D)``, with a margin as far as the volume reaches; all, if it is empty."""
    found = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, mask.shape[axis])
        found.append(slice(max(low - margin[axis], 0), min(high + margin[axis], mask.shape[axis])))
    return found[0], found[1], found[2]


def surface_of(mask: Mask, spacing: Sequence[float]) -> float:
    """Surface of a mask ``(H, W, D)`` in cm², by marching cubes on voxels of 1.5 mm; 0 where it is empty."""
    return _mesh_area(_isotropic(mask, spacing)[0])


def shape_of(mask: Mask, spacing: Sequence[float], branches: int) -> Shape:
    """Figures of a structure, measured on voxels of 1.5 mm (the volume: on its own).

    Args:
        mask: ``(H, W, D)``, not empty.
        spacing: mm per voxel.
        branches: number that :func:`branches_of` found.
    """
    share, _ = _isotropic(mask, spacing)
    places = np.argwhere(share > 0.5) * MEASURED_AT_MM
    spread = np.ones(3)
    if len(places) > 3:
        spread = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(places.T)), 1e-6))
    return Shape(
        volume_ml=int(np.count_nonzero(mask)) * math.prod(spacing) / 1000,
        surface_cm2=_mesh_area(share),
        elongation=float(spread[2] / spread[1]),
        flatness=float(spread[1] / spread[0]),
        branches=float(branches),
    )


def branches_of(mask: Mask, spacing: Sequence[float]) -> list[Branch]:
    """Parts of a structure that an opening takes away: of the left atrium, its pulmonary veins and its appendage.

    The ball that opens has 0.45 of the radius of the largest ball inside; parts count from 0.25 ml and 4 mm on.

    Args:
        mask: ``(H, W, D)``.
        spacing: mm per voxel.

    Returns:
        The longest first.
    """
    share, origin = _isotropic(mask, spacing)
    solid = share > 0.5
    if not solid.any():
        return []
    inside = ndimage.distance_transform_edt(solid, sampling=MEASURED_AT_MM)
    radius = BRANCH_SHARE * float(inside.max())
    body = ndimage.distance_transform_edt(inside <= radius, sampling=MEASURED_AT_MM) <= radius + MEASURED_AT_MM / 2
    parts, count = ndimage.label(solid & ~body, TOUCHING)
    found = []
    for index, box in enumerate(ndimage.find_objects(parts, count), 1):
        wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        part = parts[wide] == index
        mouth = np.argwhere(ndimage.binary_dilation(part, TOUCHING) & (body & solid)[wide])
        if not len(mouth) or np.count_nonzero(part) * MEASURED_AT_MM**3 < LEAST_BRANCH_ML * 1000:
            continue
        first = np.array([s.start for s in wide])
        root = (mouth.mean(axis=0) + first) * MEASURED_AT_MM + origin
        places = (np.argwhere(part) + first) * MEASURED_AT_MM + origin
        far = np.linalg.norm(places - root, axis=1)
        tip = places[far >= np.quantile(far, 0.9)].mean(axis=0)
        found.append(Branch(root, tip, float(inside[wide][part].max())))
    return sorted((b for b in found if b.length >= LEAST_BRANCH_MM), key=lambda branch: -branch.length)


def topology_of(mask: Mask) -> Topology:
    """How a structure ``(H, W, D)`` hangs together; all 0 where it is empty."""
    if not mask.any():
        return Topology(0, 0, 0)
    cut = np.pad(mask[box_of(mask)], 1)
    parts, hollows = int(ndimage.label(cut, TOUCHING)[1]), int(ndimage.label(~cut)[1]) - 1
    return Topology(parts, hollows, parts + hollows - int(euler_number(cut, connectivity=3)))


def _isotropic(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Share of a mask on voxels of 1.5 mm in a box around it, and the position of the first of these in mm."""
    box, sizes = box_of(mask), np.asarray(spacing, dtype=np.float64)
    around = np.ceil(3 * MEASURED_AT_MM / sizes).astype(int)
    cut = np.pad(mask[box].astype(np.float32), [(n, n) for n in around])
    smooth = ndimage.gaussian_filter(cut, np.maximum(MEASURED_AT_MM / sizes, 1.0) / 2)
    shape = np.floor((np.array(cut.shape) - 1) * sizes / MEASURED_AT_MM).astype(int) + 1
    share = ndimage.affine_transform(smooth, MEASURED_AT_MM / sizes, output_shape=tuple(shape), order=1)
    return share, (np.array([s.start for s in box]) - around) * sizes


def _mesh_area(share: NDArray[np.float32]) -> float:
    """Surface at half, cm²."""
    if share.size == 0 or float(share.max()) <= 0.5:
        return 0.0
    vertices, faces, _, _ = marching_cubes(share, 0.5, spacing=(MEASURED_AT_MM,) * 3)
    return float(mesh_surface_area(vertices, faces)) / 100
