"""One grid or two, whatever order the voxels are stored in."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from semsynth.data.grids import place, same_affine
from semsynth.data.volumes import Volume

SHAPE = (5, 6, 7)
OBLIQUE = nib.affines.from_matvec(Rotation.from_euler("xyz", [44.9, 3, -45.2], degrees=True).as_matrix()
                                  @ np.diag([0.6, 0.6, 2.5]), [10, -20, 30])  # fmt: skip


def stored(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels in another order of axes and directions."""
    change = np.array([order, signs]).T
    data = nib.orientations.apply_orientation(volume.data, change)
    return Volume(data, volume.affine @ nib.orientations.inv_ornt_aff(change, volume.data.shape))


@pytest.mark.parametrize("affine", [np.diag([-1.0, -1.0, 2.0, 1.0]), OBLIQUE])
def test_all_48_orders_come_back_without_loss(affine):
    image = Volume(np.random.default_rng(0).integers(0, 99, SHAPE), affine)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        other = stored(image, order, signs)
        back = other.on_grid(affine, SHAPE)
        assert back is not None and np.array_equal(back.data, image.data) and back.affine is affine
        placed = place(other.affine, other.data.shape, affine, SHAPE)
        assert placed.reordered == ((order, signs) != ((0, 1, 2), (1, 1, 1)))
        assert np.array_equal(other.oriented_as(affine).data, image.data)


def test_a_hair_does_not_turn_an_oblique_volume():
    hair = OBLIQUE.copy()
    hair[:3, :3] = Rotation.from_euler("x", 0.01, degrees=True).as_matrix() @ hair[:3, :3]
    placed = place(hair, SHAPE, OBLIQUE, SHAPE)
    assert not placed.reordered and placed.one_grid


@pytest.mark.parametrize(("shift", "one"), [(0.0059, True), (0.0061, False)])
def test_a_hundredth_of_a_voxel_is_the_limit_along_each_axis(shift, one):
    moved = OBLIQUE.copy()
    moved[:3, 3] += OBLIQUE[:3, 0] / 0.6 * shift
    assert same_affine(moved, OBLIQUE, SHAPE) is one
    assert (Volume(np.zeros(SHAPE), moved).on_grid(OBLIQUE, SHAPE) is not None) is one
    assert place(moved, SHAPE, OBLIQUE, SHAPE).mm == pytest.approx(shift)


def test_what_is_turned_by_a_small_angle_is_off_at_the_corners_of_a_large_volume_alone():
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 1e-4).as_matrix()
    assert same_affine(turned, np.eye(4), (90, 90, 40)) and not same_affine(turned, np.eye(4), (110, 110, 40))


def test_another_shape_is_another_grid():
    assert Volume(np.zeros((5, 6, 8)), np.eye(4)).on_grid(np.eye(4), SHAPE) is None
    assert place(np.eye(4), (5, 6, 8), np.eye(4), SHAPE).mm == float("inf")
