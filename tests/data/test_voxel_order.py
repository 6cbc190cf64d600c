"""Masks of the image's very voxels that are stored in another order: every way in takes them, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.check import Entry, check_cases
from semsynth.data.raw import find_cases, load_case
from semsynth.data.transforms import LoadIntensityd, LoadLabelMapd, LoadTargetd, SameGridd
from semsynth.data.volumes import read_volume, write_image, write_label
from semsynth.errors import InputError
from semsynth.evaluation.sources import RealCase
from semsynth.evaluation.systems import System, check_grids
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.maps import MapSettings, prepare_maps

SHAPE = (24, 20, 16)
AFFINE = np.array([[1.2, 0, 0, -30], [0, 1.2, 0, -20], [0, 0, 2.5, 40], [0, 0, 0, 1.0]])
TURNED = np.array([[2, -1], [0, -1], [1, 1]])
"""Axes in another order, two of them the other way round."""


def save(path: Path, array: np.ndarray, *, turned: bool = False, jitter: float = 0.0) -> Path:
    affine = AFFINE
    if turned:
        affine = AFFINE @ nib.orientations.inv_ornt_aff(TURNED, array.shape)
        array = nib.orientations.apply_orientation(array, TURNED)
    affine = affine.copy()
    affine[:3, 3] += jitter
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def volumes() -> tuple[np.ndarray, np.ndarray]:
    x, y, z = np.indices(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    for value, radius in ((2, 7), (1, 5)):
        label[((x - 9) ** 2 + (y - 12) ** 2 + (2 * (z - 7)) ** 2) < radius**2] = value
    image = np.array([20, 600, 400])[label] + np.random.default_rng(0).normal(0, 20, SHAPE)
    return image.clip(1).astype(np.int16), label


@pytest.fixture
def raw(tmp_path):
    """One case twice: as its image is stored, and turned with a jitter of 0.004 mm."""
    image, label = volumes()
    for name, turned, jitter in (("plain", False, 0.0), ("turned", True, 0.004)):
        folder = tmp_path / name / "case"
        save(folder / "lgemri.nii.gz", image)
        for role, mask in (("laendo", label == 1), ("lawall", label == 2)):
            save(folder / f"{role}.nii.gz", mask.astype(np.uint8), turned=turned, jitter=jitter)
        save(folder / "label.nii.gz", label, turned=turned, jitter=jitter)
    return tmp_path


def test_a_preparation_gives_the_same_maps_and_says_what_it_reordered(raw):
    labels = {}
    for name in ("plain", "turned"):
        prepare(raw / name, raw / "out" / name, Settings(), fractions=(1.0, 0.0))
        labels[name] = read_volume(raw / "out" / name / "case" / "label.nii.gz")
        record = json.loads((raw / "out" / name / "case" / "prepare.json").read_text())
        expected = {"endo": "PSL to RAS", "wall": "PSL to RAS"} if name == "turned" else None
        assert record.get("reordered") == expected
    assert np.array_equal(labels["plain"].data, labels["turned"].data)
    assert np.array_equal(labels["plain"].affine, labels["turned"].affine), "the image's affine is what counts"


def test_a_preparation_of_maps_does_too(raw):
    labels = {}
    for name in ("plain", "turned"):
        folder = raw / name / "case"
        entry = {"image": str(folder / "lgemri.nii.gz"), "label": str(folder / "label.nii.gz"), "case": "case"}
        (raw / f"{name}.json").write_text(json.dumps({"training": [entry]}))
        prepare_maps(raw / f"{name}.json", raw / "maps" / name, MapSettings(("a", "b")))
        labels[name] = read_volume(raw / "maps" / name / "case" / "label.nii.gz").data
    assert np.array_equal(labels["plain"], labels["turned"]) and labels["plain"].any()
    record = json.loads((raw / "maps" / "turned" / "case" / "prepare.json").read_text())
    assert record["reordered"] == {"label": "PSL to RAS"}


def test_the_check_names_it_and_vouches_for_it(raw):
    (case,) = find_cases(raw / "turned")
    report = check_cases([case])
    assert not report.errors
    assert [(f.finding, f.found, f.expected) for f in report.warnings] == [
        ("voxel order differs from the image's", "PSL", "RAS")
    ] * 2
    _, label = volumes()
    for vouched in (None, report):
        loaded = load_case(case, vouched)
        assert np.array_equal(loaded.endo, label == 1) and np.array_equal(loaded.wall, label == 2)


def test_trainings_load_maps_and_masks_in_the_images_order(raw):
    folder, (_, label) = raw / "turned" / "case", volumes()
    files = {"image": "lgemri", "label": "label", "endo": "laendo", "wall": "lawall"}
    data = {key: str(folder / f"{name}.nii.gz") for key, name in files.items()}
    same = SameGridd(["image", "label"])
    found = same(LoadLabelMapd("label", 3)(LoadIntensityd("image")(data)))
    assert np.array_equal(found["label"][0], label) and np.array_equal(found["label"].affine, found["image"].affine)
    masks = {key: value for key, value in data.items() if key != "label"}
    found = same(LoadTargetd([1, 2])(LoadIntensityd("image")(masks)))
    assert np.array_equal(found["label"][0], label)
    mixed = masks | {"wall": str(raw / "plain" / "case" / "lawall.nii.gz")}
    assert np.array_equal(same(LoadTargetd([1, 2])(LoadIntensityd("image")(mixed)))["label"][0], label)
    elsewhere = save(raw / "elsewhere.nii.gz", (label == 2).astype(np.uint8), jitter=0.4)
    with pytest.raises(InputError, match="must share one grid; semsynth check says how they differ"):
        LoadTargetd([1, 2])(masks | {"wall": str(elsewhere)})


def test_an_evaluation_compares_voxels_where_they_lie(raw):
    image, label = volumes()
    folder = raw / "turned" / "case"
    content = {"start": [2, 3, 1], "shape": [18, 15, 12]}
    box = tuple(slice(a, a + n) for a, n in zip(content["start"], content["shape"], strict=True))
    for part, inside in ((None, (slice(None),) * 3), (content, box)):
        case = RealCase("case", folder / "lgemri.nii.gz", folder / "label.nii.gz", content=part)
        real, classes = case.read()
        assert np.array_equal(classes, label[inside])
        made = save(raw / f"made_{part is None}.nii.gz", (image / 1000).astype(np.float32), turned=True, jitter=0.004)
        check_grids([System("a", {"case": (made,)})], {"case": case}, ["case"])
        volume = case.read_synthetic(made, real)
        assert np.allclose(volume.data, (image / 1000)[inside], atol=1e-6) and volume.affine is real.affine
    far = save(raw / "far.nii.gz", (image / 1000).astype(np.float32), jitter=0.5)
    with pytest.raises(InputError, match=r"another affine \(corners up to 0.866 mm apart\)"):
        check_grids([System("a", {"case": (far,)})], {"case": case}, ["case"])


def test_a_file_without_orientation_is_not_put_onto_one_that_has_it(tmp_path):
    image, label = volumes()
    bare = nib.Nifti1Image(image, None)
    bare.header.set_zooms((1.2, 1.2, 2.5))
    nib.save(bare, tmp_path / "image.nii.gz")
    mask = save(tmp_path / "endo.nii.gz", (label == 1).astype(np.uint8))
    report = check_cases([Entry("a", {"image": tmp_path / "image.nii.gz", "endo": mask})])
    (error,) = report.errors
    assert error.file.endswith("image.nii.gz") and "do not resample" in error.fix and "endo.nii.gz" in error.fix
    # after the advice has been followed it fits
    write_image(tmp_path / "image.nii.gz", image / 1000, read_volume(mask).affine, "float32")
    assert not check_cases([Entry("a", {"image": tmp_path / "image.nii.gz", "endo": mask})]).errors
    write_label(tmp_path / "label.nii.gz", label, AFFINE)
