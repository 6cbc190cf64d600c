"""The wall that is derived: where it lies, how thick it is, and what is said where voxels are too coarse for it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation
from semsynth.data.volumes import Volume, read_volume
from semsynth.errors import InputError
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.wall import derive_wall, thickness, wall_axes

RADIUS = 14.0


def ball(spacing, turn=None, radius: float = RADIUS) -> Volume:
    """A ball around the origin on voxels of this size, the stack turned around it."""
    size = np.asarray(spacing, float)
    shape = np.ceil(44 / size).astype(int)
    matrix = (np.eye(3) if turn is None else turn) @ np.diag(size)
    affine = nib.affines.from_matvec(matrix, -matrix @ ((shape - 1) / 2))
    places = nib.affines.apply_affine(affine, np.indices(tuple(shape)).reshape(3, -1).T)
    inside = (np.linalg.norm(places, axis=1) < radius).reshape(tuple(shape))
    return Volume(inside.astype(np.uint8), affine)


def measured(endo: Volume, **options) -> dict[str, float]:
    """How far the derived wall reaches from the ball's centre, in mm along directions of the patient."""
    outer = derive_wall(endo, 2.5, **options)
    line = np.linspace(0, 21, 420)
    directions = {"right": [1, 0, 0], "anterior": [0, 1, 0], "superior": [0, 0, 1]}
    result = {}
    for name, direction in directions.items():
        voxels = nib.affines.apply_affine(np.linalg.inv(outer.affine), line[:, None] * np.array(direction))
        found = ndimage.map_coordinates(outer.data, voxels.T, order=0, mode="grid-constant")
        result[name] = float(line[found > 0].max())
    return result


def test_on_fine_axial_voxels_it_is_a_ring_on_the_source_s_own_grid():
    endo = np.zeros((21, 21, 3), dtype=np.uint8)
    endo[8:13, 8:13, 1] = 1
    cavity = Volume(endo, np.diag([1.0, 0.5, 3.0, 1.0]))
    outer = derive_wall(cavity, 2.5)
    assert outer.affine is cavity.affine
    wall = outer.data * (endo == 0)
    assert not wall[:, :, 0].any() and (outer.data >= endo).all()
    assert wall[:, 10, 1].nonzero()[0].tolist() == [6, 7, 13, 14]  # 2.5 mm at 1 mm
    assert wall[10, :, 1].nonzero()[0].tolist() == [3, 4, 5, 6, 7, 13, 14, 15, 16, 17]  # 2.5 mm at 0.5 mm
    assert np.array_equal(derive_wall(cavity, 0).data, endo)


STACKS = {
    "coronal": ball((1.0, 3.0, 1.0)),
    "sagittal": ball((3.0, 1.0, 1.0)),
    "isotropic 3 mm": ball((3.0, 3.0, 3.0)),
    "thick axial": ball((1.5, 1.5, 5.0)),
    "oblique": ball((1.0, 1.0, 3.0), Rotation.from_euler("x", 40, degrees=True).as_matrix()),
}


@pytest.mark.parametrize("name", STACKS)
def test_in_every_stack_the_axial_ring_is_as_wide_as_stated_within_the_axial_plane(name):
    found = measured(STACKS[name])
    assert found["right"] == pytest.approx(RADIUS + 2.5, abs=0.9)
    assert found["anterior"] == pytest.approx(RADIUS + 2.5, abs=0.9)
    half = derive_wall(STACKS[name], 0).spacing[2] / 2  # a slice shows the cavity up to there
    assert found["superior"] == pytest.approx(RADIUS, abs=max(half, 1.1)), "nothing above and below the cavity"


@pytest.mark.parametrize("name", STACKS)
def test_a_shell_in_3d_is_as_wide_as_stated_everywhere(name):
    half = max(STACKS[name].spacing) / 2  # a slice shows the cavity up to there
    for found in measured(STACKS[name], plane="3d").values():
        assert found == pytest.approx(RADIUS + 2.5, abs=max(half, 1.1))


def test_in_the_plane_of_the_stack_nothing_leaves_its_slices():
    found = measured(STACKS["coronal"], plane="acquisition")
    assert found["right"] == pytest.approx(RADIUS + 2.5, abs=0.8) == found["superior"]
    assert found["anterior"] < RADIUS + 1.6, "the last slice is half a slice thick"
    assert wall_axes(STACKS["coronal"], "acquisition") == (0, 2)
    assert wall_axes(STACKS["sagittal"], "acquisition") == (1, 2)
    assert wall_axes(ball((1.0, 1.005, 1.0)), "acquisition") == (0, 1), "of equal voxel sizes, the axial plane"


def test_a_cavity_up_to_the_border_of_the_volume_and_an_empty_one():
    full = Volume(np.ones((4, 4, 4), np.uint8), np.diag([3.0, 3.0, 3.0, 1.0]))
    for plane in ("axial", "acquisition", "3d"):
        assert derive_wall(full, 2.5, plane).data.any()
        assert not derive_wall(Volume(full.data * 0, full.affine), 2.5, plane).data.any()


def test_thickness_is_that_of_the_thinnest_direction():
    cavity = np.zeros((12, 12, 5), np.uint8)
    cavity[4:8, 4:8, 1:4] = 1
    wall = np.zeros_like(cavity)
    wall[1:11, 3:9, 1:4] = 1
    wall *= cavity == 0
    assert thickness(cavity, wall, (0,)) == 3 and thickness(cavity, wall, (0, 1)) == 1
    wall[:, 8] = 0
    assert thickness(cavity, wall, (0, 1)) == 0.5 and thickness(cavity, wall, (0, 1, 2)) == 0
    cavity[:, :, :] = 1
    assert thickness(cavity, wall * 0, (0, 1)) == 0


@pytest.fixture
def coronal(tmp_path):
    """One case of a coronal stack of 3 mm."""
    endo = STACKS["coronal"]
    rng = np.random.default_rng(0)
    image = (200 * ndimage.gaussian_filter(endo.data.astype(float), 1) + rng.normal(50, 4, endo.data.shape)).clip(1)
    image[:2] = 0
    (tmp_path / "raw" / "a").mkdir(parents=True)
    for name, data in (("lgemri", image.astype(np.int16)), ("laendo", endo.data)):
        nib.save(nib.Nifti1Image(data, endo.affine), tmp_path / "raw" / "a" / f"{name}.nii.gz")
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("plane", "words"), [("axial", "axial plane"), ("acquisition", "plane of the stack"), ("3d", "in 3D")]
)
def test_the_record_says_what_was_made(coronal, tmp_path, plane, words, caplog):
    prepare(coronal, tmp_path / "out", Settings(wall_plane=plane), fractions=(1.0, 0.0))
    record = json.loads((tmp_path / "out" / "a" / "prepare.json").read_text())
    assert record["wall"] == f"derived, 2.5 mm, {words}" and record["settings"]["wall_plane"] == plane
    assert record["wall_thickness_voxels"] > 1.5 and "thick" not in caplog.text
    label = read_volume(tmp_path / "out" / "a" / "label.nii.gz").data
    assert np.count_nonzero(label == 2) > 0.3 * np.count_nonzero(label == 1) > 1000


def test_a_wall_thinner_than_a_voxel_is_warned_of_and_none_at_all_is_an_error(coronal, tmp_path, caplog):
    prepare(coronal, tmp_path / "thin", Settings(spacing=(4, 4, 4)), fractions=(1.0, 0.0))
    assert "case a: the wall (derived, 2.5 mm, axial plane) is 0." in caplog.text
    assert "voxels thick at 4 × 4 × 4 mm, less than one, and may have holes; use a smaller --spacing" in caplog.text
    prepare(coronal, tmp_path / "without", Settings(wall_mm=0), fractions=(1.0, 0.0))
    endo = read_volume(coronal / "a" / "laendo.nii.gz")
    nib.save(nib.Nifti1Image(endo.data * 0 + 1, endo.affine), coronal / "a" / "laendo.nii.gz")  # nothing is around it
    with pytest.raises(InputError, match=r"case a: the wall \(derived, 2.5 mm, axial plane\) has no voxel") as raised:
        prepare(coronal, tmp_path / "none", Settings(), fractions=(1.0, 0.0))
    assert "--wall-mm 0 makes maps without a wall" in str(raised.value)
    assert json.loads((tmp_path / "without" / "a" / "prepare.json").read_text())["wall"] == "none"


def test_another_plane_is_refused():
    with pytest.raises(InputError, match="--wall-plane must be one of axial, acquisition, 3d, got 'coronal'"):
        Settings(wall_plane="coronal")
