from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from semsynth.prepare.composite import CompositeLabel
from semsynth.prepare.phantom import ANATOMY, Phantom, make_phantom, write_phantom_cases

TINY = (32, 32, 24)
IDS = {name: index for index, name in ANATOMY.items()}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    return write_phantom_cases(folder, 8, seed=5, size=TINY, spacing=(3.0, 3.0, 2.5), k=3, progress=False)


def endo_ml(phantom: Phantom) -> float:
    return float(phantom.endo.sum() * np.prod(np.diag(phantom.affine)[:3]) / 1000)


def test_same_seed_gives_identical_arrays() -> None:
    first, second = make_phantom(7, size=TINY, spacing=(3, 3, 3)), make_phantom(7, size=TINY, spacing=(3, 3, 3))
    for field in fields(Phantom):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def test_different_seeds_differ_in_shape_and_grey_levels() -> None:
    first, second = make_phantom(1, size=TINY, spacing=(3, 3, 3)), make_phantom(2, size=TINY, spacing=(3, 3, 3))
    assert np.any(first.endo != second.endo)
    assert np.any(first.image != second.image)


def test_arrays_have_the_promised_types_and_values(phantom: Phantom) -> None:
    assert phantom.image.dtype == np.float32
    assert phantom.affine.dtype == np.float64
    for mask in (phantom.endo, phantom.wall, phantom.scar):
        assert mask.dtype == np.uint8
        assert mask.shape == phantom.image.shape == (128, 96, 64)
        assert set(np.unique(mask)) == {0, 1}
    assert set(np.unique(phantom.anatomy)) <= set(ANATOMY)
    assert np.isfinite(phantom.image).all()
    np.testing.assert_array_equal(phantom.image, np.rint(phantom.image))


def test_air_and_only_air_is_exactly_zero(phantom: Phantom) -> None:
    np.testing.assert_array_equal(phantom.image == 0, phantom.anatomy == IDS["air"])
    assert 0.05 < np.mean(phantom.image == 0) < 0.5


def test_masks_nest_and_do_not_overlap(phantom: Phantom) -> None:
    assert not np.any(phantom.endo & phantom.wall)
    assert not np.any(phantom.scar & ~phantom.wall & 1)
    assert 0.1 < phantom.scar.sum() / phantom.wall.sum() < 0.4
    np.testing.assert_array_equal(phantom.endo == 1, phantom.anatomy == IDS["left atrium blood (endo)"])


def test_atrium_is_one_piece_in_the_centre_of_the_volume(phantom: Phantom) -> None:
    _, pieces = ndimage.label(phantom.endo)
    assert pieces == 1
    centre = nib.affines.apply_affine(phantom.affine, ndimage.center_of_mass(phantom.endo))
    assert np.linalg.norm(centre) < 10


def test_aorta_descends_behind_and_to_the_left_of_the_atrium(phantom: Phantom) -> None:
    aorta = np.argwhere(phantom.anatomy == IDS["aorta"])
    x, y, _ = nib.affines.apply_affine(phantom.affine, aorta[aorta[:, 1] < 30]).mean(axis=0)
    assert x < -5
    assert y < -15


@pytest.mark.parametrize("seed", [0, 1])
def test_wall_is_two_to_three_millimetres_thick(seed: int) -> None:
    phantom = make_phantom(seed, size=(104, 78, 56))
    shell = ndimage.binary_dilation(phantom.endo, iterations=4) & (phantom.endo == 0)
    depth = ndimage.distance_transform_edt(phantom.endo == 0)
    # From the centre of the last voxel inside to that of the last voxel of the wall: thickness plus half a voxel.
    assert 1.9 < depth[phantom.wall == 1].max() <= 3.5
    assert phantom.wall[shell & (depth < 2)].mean() > 0.75  # closed but for veins and mitral valve


def test_wall_leaves_the_cut_ends_of_the_veins_open(phantom: Phantom) -> None:
    touching = ndimage.binary_dilation(phantom.endo) & (phantom.anatomy == IDS["pulmonary vessel"])
    assert ndimage.label(touching, np.ones((3, 3, 3)))[1] >= 4


@pytest.mark.parametrize("seed", range(3))
def test_contrast_is_that_of_late_enhancement(seed: int) -> None:
    phantom = make_phantom(seed, size=(64, 48, 32), spacing=(2, 2, 2))

    def mean(name: str) -> float:
        return float(phantom.image[phantom.anatomy == IDS[name]].mean())

    blood = mean("left atrium blood (endo)")
    assert 0 < mean("lung") < mean("myocardium") < mean("left atrium wall") < blood < mean("left atrium scar")


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.25, 1.25, 2.5), (3.0, 3.0, 3.0)])
def test_one_seed_is_one_patient_on_any_grid(phantom: Phantom, spacing: tuple[float, float, float]) -> None:
    size = tuple(round(extent / s) for extent, s in zip((128, 96, 64), spacing, strict=True))
    coarse = make_phantom(3, size=size, spacing=spacing)
    np.testing.assert_allclose(nib.affines.voxel_sizes(coarse.affine), spacing)
    assert endo_ml(coarse) == pytest.approx(endo_ml(phantom), rel=0.05)
    assert 30 < endo_ml(coarse) < 75


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 24, 24), (32, 32, 32), (64, 16, 40)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 3.0, 3.0), (0.6, 0.6, 8.0)])
def test_any_field_of_view_holds_the_atrium_and_some_air(
    size: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    for seed in range(3):
        phantom = make_phantom(seed, size=size, spacing=spacing)
        assert phantom.endo.any()
        assert phantom.wall.any()
        assert phantom.scar.any()
        assert np.any(phantom.image == 0)


def test_written_files_return_the_phantom_with_its_spacing(written: Path) -> None:
    seed = int(np.random.SeedSequence([5, 0]).generate_state(1)[0])
    phantom = make_phantom(seed, size=TINY, spacing=(3.0, 3.0, 2.5))
    expected = {"image": phantom.image, "endo": phantom.endo, "wall": phantom.wall, "scar": phantom.scar}
    expected["label"] = CompositeLabel(k=3)(phantom.image, phantom.endo, phantom.wall)
    for role, array in expected.items():
        image: Any = nib.load(written.parent / "phantom_000" / f"{role}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)
        assert image.get_data_dtype() == (np.int16 if role == "image" else np.uint8)
        assert image.header.get_zooms() == (3.0, 3.0, 2.5)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), phantom.affine)
        np.testing.assert_allclose(image.get_sform(), phantom.affine)


def test_datalist_names_every_written_file_once(written: Path) -> None:
    content = json.loads(written.read_text())
    assert [len(content[split]) for split in ("training", "validation", "testing")] == [6, 1, 1]
    entries = content["training"] + content["validation"] + content["testing"]
    assert [entry["case"] for entry in entries] == [f"phantom_{index:03d}" for index in range(8)]
    named = {written.parent / path for entry in entries for role, path in entry.items() if role != "case"}
    assert named == set(written.parent.glob("*/[!.]*"))  # but for the ledger of what is ours
    assert content["num_classes"] == 5
    assert content["classes"] == {"0": "background", "1": "endo", "2": "wall", "3": "tissue 1", "4": "tissue 2"}
    assert content["phantom"] == {"seed": 5, "size": list(TINY), "spacing": [3.0, 3.0, 2.5], "k": 3}


def test_written_labels_stay_within_the_listed_classes(written: Path) -> None:
    labels: Any = nib.load(written.parent / "phantom_001" / "label.nii.gz")
    assert set(np.unique(np.asanyarray(labels.dataobj))) == {0, 1, 2, 3, 4}


def test_a_case_does_not_depend_on_how_many_there_are(written: Path, tmp_path: Path) -> None:
    write_phantom_cases(tmp_path, 3, seed=5, size=TINY, spacing=(3.0, 3.0, 2.5), k=0, progress=False)
    for role in ("image", "endo", "wall", "scar"):
        first: Any = nib.load(tmp_path / "phantom_002" / f"{role}.nii.gz")
        second: Any = nib.load(written.parent / "phantom_002" / f"{role}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(first.dataobj), np.asanyarray(second.dataobj))


def test_output_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="output must be a folder"):
        write_phantom_cases(tmp_path / "taken", 3, size=TINY, progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: make_phantom(0, size=(15, 32, 32)), r"size must be .* at least 16 voxels, got \(15, 32, 32\)"),
        (lambda path: make_phantom(0, size=(32, 32)), "size must be three"),
        (lambda path: make_phantom(0, spacing=(1, 0, 1)), "spacing must be three positive lengths"),
        (lambda path: make_phantom(0, spacing=(1, float("nan"), 1)), "spacing must be three positive lengths"),
        (lambda path: make_phantom(-1), "seed must be a whole number from 0 on, got -1"),
        (lambda path: write_phantom_cases(path, 2), "cases must be at least 3 .* got 2"),
        (lambda path: write_phantom_cases(path, 3, k=11), "k must be a whole number from 0 to 10, got 11"),
        (lambda path: write_phantom_cases(path, 3, k=-1), "k must be a whole number from 0 to 10, got -1"),
        (lambda path: write_phantom_cases(path, 3, size=(8, 64, 64)), "size must be three whole numbers"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    call: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
