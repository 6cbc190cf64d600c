"""Figures of structures against those of shapes that are known."""

from __future__ import annotations

import numpy as np
import pytest
from semsynth.anatomy.shape import Topology, branches_of, shape_of, surface_of, topology_of
from semsynth.anatomy.shell import moved_outwards, openness_of, thickness_of
from tiny_anatomy import ball, heart, places


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (2.0, 1.5, 1.2)])
def test_a_ball_has_the_figures_of_a_ball(spacing):
    shape = tuple(round(56 / s) for s in spacing)
    mask = ball(18.0, 0.0, shape, spacing) == 1
    found = shape_of(mask, spacing, 0)
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 18**3 / 1000, rel=0.03)
    assert found.surface_cm2 == pytest.approx(4 * np.pi * 18**2 / 100, rel=0.04)
    assert found.elongation == pytest.approx(1, abs=0.06) and found.flatness == pytest.approx(1, abs=0.06)
    assert branches_of(mask, spacing) == []


def test_an_ellipsoid_has_its_axes():
    x, y, z = places((80, 50, 40), (1.0, 1.0, 1.0))
    found = shape_of((x / 30) ** 2 + (y / 20) ** 2 + (z / 12) ** 2 < 1, (1.0, 1.0, 1.0), 0)
    assert found.elongation == pytest.approx(1.5, abs=0.05) and found.flatness == pytest.approx(20 / 12, abs=0.08)


@pytest.mark.parametrize("length", [12.0, 20.0])
def test_a_vein_is_found_with_its_place_and_length(length):
    x, y, z = places((90, 50, 50), (1.0, 1.0, 1.0))
    body = np.linalg.norm([x + 15, y, z], axis=0) < 16
    vein = (np.hypot(y, z) < 4.5) & (x > -15) & (x < 1 + length)
    found = branches_of(body | vein, (1.0, 1.0, 1.0))
    assert len(found) == 1
    middle = np.array([44.5, 24.5, 24.5])
    assert np.abs(found[0].tip - middle - [length, 0, 0]).max() < 3
    assert found[0].length == pytest.approx(length - 1, abs=4) and found[0].radius == pytest.approx(4.5, abs=1.6)


def test_the_phantoms_atrium_has_veins():
    assert 2 <= len(branches_of(heart() == 1, (1.6, 1.6, 1.6))) <= 6


def test_topology_counts_parts_hollows_and_tunnels():
    solid = np.zeros((20, 20, 20), bool)
    solid[4:16, 4:16, 4:16] = True
    assert topology_of(solid) == Topology(1, 0, 0)
    hollow = solid.copy()
    hollow[9:11, 9:11, 9:11] = False
    assert topology_of(hollow) == Topology(1, 1, 0)
    pierced = solid.copy()
    pierced[9:11, 9:11] = False
    assert topology_of(pierced) == Topology(1, 0, 1)
    pierced[1:3, 1:3, 1:3] = True
    assert topology_of(pierced) == Topology(2, 0, 1)
    corner = np.zeros((6, 6, 6), bool)
    corner[:3, :3, :3] = corner[3:, 3:, 3:] = True
    assert topology_of(corner).parts == 1  # voxels that share a corner touch
    assert topology_of(np.zeros((4, 4, 4), bool)) == Topology(0, 0, 0)


@pytest.mark.parametrize("wall", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 1.6)])
def test_the_thickness_of_a_ball_s_wall(wall, spacing):
    shape = tuple(round(56 / s) for s in spacing)
    label = ball(16.0, wall, shape, spacing)
    assert openness_of(label == 1, label == 2, spacing) == 0
    assert thickness_of(label == 1, label == 2, spacing, 0.0) == pytest.approx(wall, rel=0.05)


def test_an_open_wall_is_as_thick_as_a_closed_one():
    label = ball(16.0, 3.0)
    label[:, :, 32:][label[:, :, 32:] == 2] = 3  # a cap without wall
    openness = openness_of(label == 1, label == 2, (1.0, 1.0, 1.0))
    assert 0.15 < openness < 0.35
    assert thickness_of(label == 1, label == 2, (1.0, 1.0, 1.0), openness) == pytest.approx(3.0, rel=0.12)


@pytest.mark.parametrize("change", [-1.0, -0.5, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5)])
def test_a_wall_moves_by_its_millimetres_where_it_is(change, spacing):
    shape = tuple(round(50 / s) for s in spacing)
    label = ball(15.0, 3.0, shape, spacing)
    z = places(shape, spacing)[2]
    wall = (label == 2) & (z < 14)
    rng = np.random.default_rng(0)
    ripple = change + 0.4 * min(spacing) * rng.standard_normal(shape)
    moved = moved_outwards(label == 1, wall, ripple, spacing)
    assert not (moved & (label == 1)).any()
    before, after = (thickness_of(label == 1, w, spacing, openness_of(label == 1, w, spacing)) for w in (wall, moved))
    assert after - before == pytest.approx(change, abs=0.25 + 0.1 * max(spacing))
    assert not moved[z > 17].any()  # the opening stays open


def test_a_wall_grows_alike_in_all_directions_of_flat_voxels():
    spacing = (0.7, 0.7, 2.5)
    shape = (70, 70, 20)
    label = ball(14.0, 3.0, shape, spacing)
    moved = moved_outwards(label == 1, label == 2, np.full(shape, 1.25), spacing)
    along = [np.count_nonzero(moved[:, 35, 10]) * 0.7 / 2, np.count_nonzero(moved[35, :, 10]) * 0.7 / 2]
    assert along == pytest.approx([4.2, 4.2], abs=0.71)
    poles = moved[33:37, 33:37, :].sum() * 2.5 / 16 / 2
    assert poles == pytest.approx(4.2, abs=1.3)


def test_openness_counts_areas():
    for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 2.5)):
        shape = tuple(round(48 / s) for s in spacing)
        label = ball(14.0, 3.0, shape, spacing)
        wall = (label == 2) & (places(shape, spacing)[2] < 7)
        assert openness_of(label == 1, wall, spacing) == pytest.approx(0.25, abs=0.05)


def test_a_wall_stays_between_one_and_six_millimetres():
    label = ball(12.0, 3.0)
    radius = np.linalg.norm(places(label.shape, (1.0, 1.0, 1.0)), axis=0)
    thick = moved_outwards(label == 1, label == 2, np.full(label.shape, 9.0), (1.0, 1.0, 1.0))
    assert radius[thick].max() <= 12 + 6.5
    thin = moved_outwards(label == 1, label == 2, np.full(label.shape, -9.0), (1.0, 1.0, 1.0))
    assert openness_of(label == 1, thin, (1.0,) * 3) == 0 and radius[thin].max() <= 12 + 1.75


def test_nothing_has_no_surface_and_no_thickness():
    empty = np.zeros((8, 8, 8), bool)
    assert surface_of(empty, (1.0, 1.0, 1.0)) == 0 and thickness_of(empty, empty, (1.0, 1.0, 1.0), 0.0) == 0
