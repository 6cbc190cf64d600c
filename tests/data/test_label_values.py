"""Whole numbers that files hold as floats, from reading to every use."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.check import Entry, check_cases, read_case
from semsynth.data.label_values import digits, listed, off_whole, rounded
from semsynth.data.raw import Case, binary_mask, load_case
from semsynth.data.transforms import LoadLabelMapd, LoadTargetd
from semsynth.data.voxels import hash_file
from semsynth.prepare.composite import CompositeLabel

LABEL = np.array([[[0, 1], [2, 3]]] * 3, np.uint8).repeat(2, 2).repeat(2, 1)


def test_values_within_a_thousandth_become_whole_numbers_and_nothing_else_does():
    for kind in (np.float32, np.float64):
        found = rounded(np.array([0.9999, 1.00000012, -1e-5, 2.001], kind))
        assert found.dtype == np.int32 and found.tolist() == [1, 1, 0, 2], "astype alone would make 0 of 0.9999"
    for values in ([0.0, 1.0015], [0.5, 1], [np.nan, 1], [np.inf, 0], [0, 2.0**31], []):
        data = np.array(values, np.float64)
        assert rounded(data) is data
    data = np.array([0, 1], np.int64)
    assert rounded(data) is data


def test_digits_show_that_a_number_is_not_whole():
    assert [digits(v) for v in (1, 0.5, 1.00000006, 0.9999999, np.float32(0.1), 1e6, -3.0, 1 + 2**-52)] == [
        "1", "0.5", "1.00000006", "0.9999999", "0.1", "1000000", "-3", "1.0000000000000002",
    ]  # fmt: skip
    assert listed(off_whole(np.array([0, 1.00000006, 1.00000006, 2]))) == "1.00000006"
    assert listed(np.arange(8)) == "0, 1, 2, 3, 4, 5, …" and listed([np.nan, 1]) == "nan, 1"


@pytest.fixture
def scaled(tmp_path):
    """A label map and a mask as SPM writes them: small integers and a scale factor that float32 rounds."""
    image = np.random.default_rng(0).integers(0, 900, LABEL.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "image.nii.gz")
    for name, steps, slope in (("label", LABEL * 85, 3 / 255), ("endo", (LABEL == 1) * np.uint8(255), 0.0039215)):
        file = nib.Nifti1Image(steps, np.eye(4))
        file.header.set_slope_inter(slope, 0)
        nib.save(file, tmp_path / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(LABEL, np.eye(4)), tmp_path / "plain.nii.gz")
    assert not np.array_equal(nib.load(tmp_path / "label.nii.gz").get_fdata(), LABEL)
    return tmp_path


def test_every_reader_rounds_and_the_check_says_so(scaled):
    files = {role: scaled / f"{role}.nii.gz" for role in ("image", "label", "endo")}
    case = Entry("a", files)
    report = check_cases([case])
    assert [(f.severity, f.finding) for f in report.findings] == [
        ("warning", "label values are not quite whole numbers")
    ] * 2
    assert report.findings[0].found.startswith("1.0000000") and report.findings[1].found.startswith("0.99998")
    assert report.classes == {0: 1, 1: 1, 2: 1, 3: 1}
    for vouched in (None, report):
        volumes = read_case(case, report=vouched)
        assert np.array_equal(volumes["label"].data, LABEL) and volumes["label"].data.dtype == np.int32
        assert np.array_equal(volumes["endo"].data > 0, LABEL == 1)
    path = str(files["label"])
    assert np.array_equal(LoadLabelMapd("label", 4)({"label": path})["label"][0], LABEL)
    assert np.array_equal(LoadTargetd([2])({"label": path})["label"][0], LABEL == 2)
    assert np.array_equal(LoadTargetd()({"endo": str(files["endo"])})["label"][0], LABEL == 1)
    assert np.array_equal(load_case(Case("a", files["image"], files["endo"])).endo, LABEL == 1)
    assert hash_file(path) == hash_file(scaled / "plain.nii.gz"), "one map, however it is written"


def test_masks_with_noise_below_a_thousandth_are_masks():
    mask = np.where(LABEL == 1, 0.9999, 1e-5)
    assert np.array_equal(binary_mask(mask, "endo"), LABEL == 1)
    image = np.random.default_rng(0).random(LABEL.shape)
    assert np.array_equal(CompositeLabel(0)(image, mask), LABEL == 1)


def test_a_report_for_machines_names_the_digits(scaled):
    half = np.where(LABEL == 1, 1.5, LABEL)
    nib.save(nib.Nifti1Image(half.astype(np.float32), np.eye(4)), scaled / "label.nii.gz")
    report = check_cases([Entry("a", {"label": scaled / "label.nii.gz"})])
    assert json.loads(report.json())["errors"][0]["found"] == "1.5"
