"""Maps for the tests of morphing: balls with walls, and the phantom's heart."""

from __future__ import annotations

from functools import cache

import numpy as np
from semsynth.prepare.phantom import make_phantom

CLASSES = ("background", "endo", "wall", "tissue", "scar")
SPACING = (1.6, 1.6, 1.6)


def places(shape, spacing) -> np.ndarray:
    """Positions of the voxels in mm around the middle of the volume, ``(3, H, W, D)``."""
    middle = [(n - 1) / 2 for n in shape]
    return np.stack([(x - m) * s for x, m, s in zip(np.indices(shape), middle, spacing, strict=True)])


def ball(radius=14.0, wall=3.0, shape=(48, 48, 48), spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    """A cavity (1) with a wall (2) in tissue (3)."""
    distance = np.linalg.norm(places(shape, spacing), axis=0)
    label = np.full(shape, 3, np.uint8)
    label[distance < radius + wall] = 2
    label[distance < radius] = 1
    return label


@cache
def _heart(seed: int) -> np.ndarray:
    phantom = make_phantom(seed, size=(72, 52, 40), spacing=SPACING)
    label = np.where(phantom.image > np.median(phantom.image), 3, 0).astype(np.uint8)
    label[phantom.wall > 0] = 2
    label[phantom.scar > 0] = 4
    label[phantom.endo > 0] = 1
    return label


def heart(seed: int = 0) -> np.ndarray:
    """The phantom's left atrium on voxels of 1.6 mm: cavity, wall, bright tissue and scar."""
    return _heart(seed).copy()
