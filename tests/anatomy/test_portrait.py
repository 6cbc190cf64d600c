"""Figures of whole maps, and how different two of them are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from semsynth.anatomy import MapFigures, rules_for
from semsynth.anatomy.portrait import aligned_cells, difference, portrait_of
from semsynth.errors import InputError
from tiny_anatomy import ball

NAMES = {0: "background", 1: "endo", 2: "wall", 3: "tissue"}
RULES = rules_for(NAMES, None)


def test_a_ball_in_tissue():
    found = portrait_of(ball(radius=14.0, wall=3.0), (1.0, 1.0, 1.0), NAMES, RULES)
    assert found["endo.volume_ml"] == pytest.approx(4 / 3 * math.pi * 1.4**3, rel=0.02)
    assert (found["endo.parts"], found["endo.tunnels"], found["endo.hollows"]) == (1, 0, 0)
    assert found["endo|wall"] + found["wall|tissue"] == pytest.approx(1.0)
    assert found["wall|tissue"] / found["endo|wall"] == pytest.approx((17 / 14) ** 2, rel=0.05)
    assert found["endo|tissue"] == found["background|endo"] == 0
    assert sum(found[f"{name}.share"] for name in NAMES.values()) == pytest.approx(1.0)
    assert found["tissue.parts"] == pytest.approx(1 / (48**3 / 1e5))


def test_parts_of_a_tissue_count_from_a_tenth_of_a_millilitre_on():
    label = np.zeros((40, 40, 40), np.uint8)
    label[2:7, 2:7, 2:7] = 3  # 0.125 ml
    label[20:24, 20:24, 20:24] = 3  # 0.064 ml
    found = portrait_of(label, (1.0, 1.0, 1.0), NAMES, RULES)
    assert found["tissue.parts"] == pytest.approx(1 / (40**3 / 1e5))


def test_two_maps_are_compared_around_their_cavities():
    first = aligned_cells(ball(), (1.0, 1.0, 1.0), 1, (24, 24, 24))
    moved = aligned_cells(np.roll(ball(), 4, axis=0), (1.0, 1.0, 1.0), 1, (24, 24, 24))
    smaller = aligned_cells(ball(radius=10.0), (1.0, 1.0, 1.0), 1, (24, 24, 24))
    assert difference(first, first, (1, 2)) == 0
    assert difference(first, moved, (1, 2)) == 0
    assert difference(first, smaller, (1,)) == pytest.approx(1 - 2 * 10**3 / (10**3 + 14**3), abs=0.02)
    assert (aligned_cells(ball(), (1.0, 1.0, 1.0), 1, (40, 24, 24)) == -1).any()  # cells beyond the map


def test_figures_by_name():
    figures = MapFigures(
        list(NAMES.values()), ["endo.volume_ml", "endo.tunnels", "endo.branches_mm", "wall.thickness_mm"]
    )
    volume, tunnels, length, thickness = figures(ball(), (1.0, 1.0, 1.0))
    assert volume == pytest.approx(11.5, rel=0.02) and tunnels == 0 and length == 0
    assert thickness == pytest.approx(3.0, rel=0.05)
    assert all(math.isnan(value) for value in figures(np.zeros((8, 8, 8), np.uint8), (1.0, 1.0, 1.0)))
    with pytest.raises(InputError, match=r"figure 'tissue\.volume_ml'.*classes with a rule: endo, wall"):
        MapFigures(list(NAMES.values()), ["tissue.volume_ml"])


def test_limits_are_wider_than_the_maps_but_not_in_topology():
    figures = MapFigures(list(NAMES.values()), ["endo.volume_ml", "endo.tunnels", "wall.thickness_mm"])
    limits = figures.limits([[40.0, 0.0, 1.2], [60.0, 2.0, 5.5], [50.0, 1.0, math.nan]], widen=0.1)
    assert limits[0][0] < 40 and limits[0][1] > 60
    assert limits[1] == (0.0, 2.0)
    assert limits[2][0] >= 1.0 and limits[2][1] <= 6.0
    assert figures.limits([[math.nan, 0.0, 1.0]])[0] == (-math.inf, math.inf)
