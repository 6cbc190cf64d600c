"""Velocity fields: what flows back comes back, nothing folds, nothing comes from outside of the volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.networks.blocks import DVF2DDF, Warp
from scipy import linalg
from semsynth.fields import ControlGrid, looked_up, sampled
from semsynth.prepare.morph.deform import LEAST_JACOBIAN
from semsynth.prepare.morph.velocities import affine, along, outwards, random_field, sliding
from tiny_anatomy import ball, places

GRIDS = st.sampled_from(
    [((40, 32, 24), (1.0, 1.0, 1.0)), ((30, 44, 9), (1.5, 0.8, 5.0)), ((24, 24, 1), (2.0, 2.0, 8.0))]
)


def at(grid: ControlGrid, displacement: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Displacement in mm, interpolated at points ``(3, …)`` in mm."""
    size = torch.tensor(grid.extent).clamp(min=1e-6).view(3, 1, 1, 1)
    where = (2 * points / size - 1).permute(1, 2, 3, 0).flip(-1)
    return torch.nn.functional.grid_sample(displacement[None], where[None], padding_mode="border", align_corners=True)[
        0
    ]


@settings(max_examples=25, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 10**6), amplitude=st.floats(0.5, 2.0))
def test_a_random_flow_that_is_not_refused_is_undone_by_its_negative(grid, seed, amplitude):
    grid = ControlGrid(*grid)
    generator = torch.Generator().manual_seed(seed)
    velocity = sliding(grid, amplitude * random_field(grid, 40.0, generator))
    there, back = grid.exponential(velocity), grid.exponential(-velocity)
    assume(float(torch.stack([grid.jacobian(there), grid.jacobian(back)]).min()) > LEAST_JACOBIAN)
    points = grid.points()
    left = there + at(grid, back, points + there)
    size = left.square().sum(dim=0).sqrt()  # mm; control points are 2.5 mm apart
    assert float(size.max()) < 1.5 * amplitude and float(size.mean()) < 0.1 * amplitude
    assert float(there.abs().max()) > 0.2 * amplitude


@settings(max_examples=20, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 10**6))
def test_the_flow_maps_the_volume_onto_itself(grid, seed):
    grid = ControlGrid(*grid)
    velocity = sliding(grid, 4.0 * random_field(grid, 30.0, torch.Generator().manual_seed(seed)))
    moved = grid.points() + grid.exponential(velocity)
    for axis, extent in enumerate(grid.extent):
        assert float(moved[axis].min()) >= -1e-3 and float(moved[axis].max()) <= extent + 1e-3


def test_the_random_field_has_the_same_spread_on_every_grid_and_everywhere():
    for shape, spacing in (((60, 60, 40), (1.0, 1.0, 1.0)), ((30, 60, 16), (2.0, 1.0, 2.5))):
        grid = ControlGrid(shape, spacing)
        fields = torch.stack([random_field(grid, 30.0, torch.Generator().manual_seed(i)) for i in range(400)])
        spread = fields.std(dim=(0, 1))
        assert abs(float(spread.mean()) - 1) < 0.05
        assert float(spread.min()) > 0.8 and float(spread.max()) < 1.2


def test_integration_and_lookup_agree_with_monai():
    grid = ControlGrid((30, 26, 20), (2.5, 2.5, 2.5))
    velocity = 3.0 * random_field(grid, 40.0, torch.Generator().manual_seed(0))
    theirs = DVF2DDF(num_steps=6, padding_mode="border")(velocity[None] / 2.5)[0] * 2.5
    ours = grid.exponential(velocity)
    assert torch.allclose(ours, theirs, atol=1e-3)
    image = torch.rand(1, 30, 26, 20)
    for mode in ("bilinear", "nearest"):
        expected = Warp(mode=mode)(image[None], theirs[None] / 2.5)[0]
        found = sampled(image, grid.places(theirs), nearest=mode == "nearest")  # a control point in each voxel
        assert float((found - expected).abs().gt(1e-3).float().mean()) < 1e-3  # a nearest voxel may tip


@pytest.mark.parametrize(("shape", "spacing"), [((40, 33, 24), (1.0, 0.7, 2.0)), ((24, 31, 1), (2.0, 1.0, 8.0))])
def test_values_of_voxels_are_those_of_interpolation_and_places_those_of_the_displacement(shape, spacing):
    grid = ControlGrid(shape, spacing)
    displacement = 3.0 * random_field(grid, 20.0, torch.Generator().manual_seed(0))
    dense = torch.nn.functional.interpolate(displacement[None], shape, mode="trilinear", align_corners=True)[0]
    assert torch.allclose(grid.dense(displacement), dense, atol=1e-4)
    volume = torch.rand(2, *shape)
    voxels = dense / torch.tensor(spacing).view(3, 1, 1, 1)
    assert torch.allclose(sampled(volume, grid.places(displacement)), looked_up(volume, voxels), atol=1e-3)


def test_the_affine_flow_is_the_affine_map():
    grid = ControlGrid((40, 40, 40), (1.0, 1.0, 1.0))
    matrix = linalg.expm(np.array([[0.05, 0.08, 0], [-0.08, -0.03, 0.02], [0, 0.01, 0.04]]))
    centre = [20.0, 18.0, 21.0]
    points = grid.points()
    found = points + grid.exponential(affine(grid, matrix, centre))
    offset = points - torch.tensor(centre).view(3, 1, 1, 1)
    expected = torch.einsum("ij,jhwd->ihwd", torch.tensor(matrix).float(), offset) + (points - offset)
    inner = (slice(None), *[slice(5, -5)] * 3)
    assert float((found - expected)[inner].abs().max()) < 0.1


def test_the_jacobian_is_that_of_a_known_map_and_shows_a_fold():
    grid = ControlGrid((21, 21, 21), (1.0, 1.0, 1.0))
    stretched = grid.points() * torch.tensor([0.5, -0.2, 0.1]).view(3, 1, 1, 1)
    assert torch.allclose(grid.jacobian(stretched), torch.tensor(1.5 * 0.8 * 1.1), atol=1e-4)
    folded = torch.zeros(3, *grid.size)
    folded[0, 3, 4, 4] = -2 * grid.steps[0]
    assert float(grid.jacobian(folded).min()) < 0
    flat = ControlGrid((21, 21, 1), (1.0, 1.0, 8.0))
    assert torch.allclose(flat.jacobian(torch.zeros(3, *flat.size)), torch.ones(1))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.25, 2.5)])
@pytest.mark.parametrize("distance", [-1.5, 1.0, 2.0])
def test_outwards_moves_a_surface_by_its_millimetres(spacing, distance):
    shape = tuple(round(60 / s) for s in spacing)
    label = ball(14.0, 3.0, shape, spacing)
    grid = ControlGrid(shape, spacing)
    displacement = grid.exponential(-distance * outwards(grid, label == 1))
    share = sampled(torch.from_numpy(label == 1)[None], grid.places(displacement))[0]
    radius = (float(share.sum()) * np.prod(spacing) * 0.75 / np.pi) ** (1 / 3)
    assert abs(radius - 14.0 - distance) < 0.35


def test_along_moves_the_tip_of_a_vein_and_leaves_its_root():
    grid = ControlGrid((60, 40, 40), (1.0, 1.0, 1.0))
    root, tip = [15.0, 20.0, 20.0], [40.0, 20.0, 20.0]
    displacement = grid.exponential(6.0 * along(grid, root, tip, 4.0))
    points = torch.tensor([[root, tip, [40.0, 2.0, 20.0]]]).permute(2, 0, 1)[..., None]
    found = at(grid, displacement, points)[0, 0, :, 0]
    assert abs(float(found[0])) < 0.1 and 4.0 < float(found[1]) < 8.0 and abs(float(found[2])) < 0.3


def test_an_empty_or_full_structure_has_no_surface_to_move():
    grid = ControlGrid((20, 20, 20), (1.0, 1.0, 1.0))
    for mask in (np.zeros((20, 20, 20), bool), np.ones((20, 20, 20), bool)):
        assert not outwards(grid, mask).any()


def test_places_are_in_mm():
    assert np.ptp(places((5, 4, 3), (2.0, 1.0, 3.0)), axis=(1, 2, 3)).tolist() == [8.0, 3.0, 6.0]
