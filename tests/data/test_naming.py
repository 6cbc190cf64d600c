"""One name, one case: the same from an image and from its label map, from one file and from many."""

from __future__ import annotations

from pathlib import Path

import pytest
from semsynth.data.datalists import named_files
from semsynth.data.naming import BIDS_PATIENT, case_name, entry_name, patients_of_bids, volumes_below, walk

NAMES = {
    "la_000": [
        "imagesTr/la_000_0000.nii.gz",
        "flat/la_000_0000.nii",
        "labelsTr/la_000.nii.gz",
        "out/la_000_synthetic.nii.gz",
    ],
    "anna": ["imagesTr/anna_0000.nii.gz", "labelsTr/anna.nii.gz", "maps/anna.nii"],
    "HEART_001_0001": ["imagesTr/HEART_001_0001.nii.gz"],
    "patient_0000": ["x/patient_0000.nii.gz", "x/patient_0000_seg.nrrd"],
    "batch1_7": ["batch1/volume-7.nii", "batch1/segmentation-7.nii"],
    "sub-01_ses-2": [
        "bids/sub-01/ses-2/anat/sub-01_ses-2_LGE.nii.gz",
        "bids/derivatives/seg/sub-01/ses-2/anat/sub-01_ses-2_desc-endo_mask.nii.gz",
        "bids/sub-01/ses-2/anat/lge.nii.gz",
    ],
    "sub-01_run-2": ["sub-01_run-2_LGE.nii.gz", "sub-01_run-2_space-orig_endo.nii.gz"],
    "P1": ["P1/lge.nii.gz", "P1/endo.nrrd", "all/P1_lge_3d.nii.gz", "all/lge-P1.nii.gz", "P1/images/image.nii"],
    "P1_post": ["P1/post/lge.nii.gz", "P1/post/laendo.nii.gz"],
    "07": ["maps/img07.nii", "labels/label07.nii.gz"],
    "clinic_anna": ["clinic/anna.nii.gz", "clinic/anna_mask.nii.gz"],
    "P1_a": ["P1/lge_a.nii.gz", "P1/endo_a.nii.gz"],
    "P1_visit_2": ["P1/visit/lge_2.nii.gz"],
    "y.v1": ["all/y.v1.nii"],
    "liver_12": ["all/liver_12.nii.gz", "all/liver_12_liver.nii.gz"],
    "P9": ["P9/heart.nii.gz", "P9/atrium.nii.gz", "x/P9_atrium.nii.gz"],
}


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in NAMES.items() for path in paths])
def test_a_name_follows_from_the_path_alone(name: str, path: str) -> None:
    assert case_name(Path("/data") / path) == name


def test_different_cases_of_all_layouts_have_different_names() -> None:
    names = [case_name(f"/data/{paths[0]}") for paths in NAMES.values()]
    assert len(set(names)) == len(names)


def test_an_entry_is_called_by_its_case_else_its_image_whichever_file_is_asked_for() -> None:
    root = Path("/data")
    entry = {"image": "imagesTr/la_000_0000.nii.gz", "label": "maps/other.nii.gz"}
    assert entry_name(entry, root) == "la_000" and entry_name({**entry, "case": 3}, root) == "3"
    assert entry_name({"label": "P1/endo.nii"}, root) == "P1" and entry_name({}, root) == ""


def test_one_file_per_call_has_the_name_that_all_at_once_have(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"maps/patient_{i}.nii.gz").parent.mkdir(exist_ok=True)
        (tmp_path / f"maps/patient_{i}.nii.gz").touch()
    together = named_files(f"{tmp_path}/maps/*.nii.gz", "label maps")
    assert together == [named_files(str(path), "label maps")[0] for _, path in together]
    assert [name for name, _ in together] == ["patient_0", "patient_1", "patient_2"]


def test_a_path_through_the_folder_above_is_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one" / "sub")
    assert case_name("../lge.nii.gz") == "one" and case_name("../anna.nii.gz") == "one_anna"


def test_linked_files_keep_their_names_and_linked_folders_are_entered(tmp_path: Path) -> None:
    store = tmp_path / "annex"
    (store / "ab").mkdir(parents=True)
    for key in ("MD5E-s1", "MD5E-s2"):
        (store / "ab" / f"{key}.nii.gz").touch()
    data = tmp_path / "set"
    (data / "P1").mkdir(parents=True)
    (data / "P1" / "lge.nii.gz").symlink_to(store / "ab" / "MD5E-s1.nii.gz")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lge.nii.gz").symlink_to(store / "ab" / "MD5E-s2.nii.gz")
    (data / "P2").symlink_to(tmp_path / "elsewhere")
    (data / "P1" / "back").symlink_to(data)  # leads back up: entered once
    assert volumes_below(data) == [data / "P1" / "lge.nii.gz", data / "P2" / "lge.nii.gz"]
    assert [name for name, _ in named_files(f"{data}/*/lge.nii.gz", "images")] == ["P1", "P2"]
    assert len(list(walk(data))) == 2


def test_names_of_bids_alone_tell_the_patient() -> None:
    assert patients_of_bids(["sub-01_ses-1_acq-lge", "sub-02", "sub-A3_run-2_LGE"]) == BIDS_PATIENT
    for others in ([], ["sub-01", "P2"], ["siteA_sub-01", "siteB_sub-01"], ["sub-01", ""]):
        assert patients_of_bids(others) is None
