"""Raw cases: found in datalists, folders of the challenge and patterns, read with masks of 0 and 1."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.raw import Case, binary_mask, check_input, find_cases, load_case
from semsynth.errors import InputError
from semsynth.prepare.maps import find_maps

SHAPE = (8, 7, 6)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.int16)


def mask(value: int = 1) -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[2:5, 2:5, 2:5] = value
    return data


def put(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def test_a_datalist_gives_names_splits_and_files(tmp_path: Path) -> None:
    entries = {
        "training": [
            {"image": "P1/lge.nii.gz", "endo": "P1/e.nii.gz"},
            {"case": 2, "image": "x.nii", "label": "y.nii"},
        ],
        "testing": [{"image": "P3/lge.nii.gz", "endo": "P3/e.nii.gz", "wall": "P3/w.nii.gz"}],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(entries))
    found = find_cases(tmp_path)
    assert found == find_cases(tmp_path / "datalist.json")
    assert [(case.name, case.split, sorted(case.files)) for case in found] == [
        ("P1", "training", ["endo", "image"]),
        ("2", "training", ["endo", "image"]),
        ("P3", "testing", ["endo", "image", "wall"]),
    ]
    assert found[1].endo == tmp_path / "y.nii"


def test_entries_without_their_files_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [{"image": "a.nii"}, {"case": "b", "endo": "e"}]}))
    with pytest.raises(InputError) as found:
        find_cases(tmp_path)
    assert found.value.problems == [
        "training[0] (a.nii): needs 'image' and 'endo'",
        "training[1] (b): needs 'image' and 'endo'",
    ]


def test_folders_of_the_challenge_are_cases_and_a_missing_mask_is_named_later(tmp_path: Path) -> None:
    put(tmp_path / "B" / "lgemri.nii.gz", image())
    put(tmp_path / "B" / "laendo.nii.gz", mask())
    put(tmp_path / "sub" / "A" / "lgemri.nii.gz", image())
    put(tmp_path / "none" / "other.nii.gz", image())
    found = {case.name: case for case in find_cases(tmp_path)}
    assert set(found) == {"A", "B"} and found["B"].wall is None and found["B"].split is None
    assert found["A"].endo == (tmp_path / "sub" / "A" / "laendo.nrrd").resolve()


def test_stars_of_a_mask_stand_for_what_they_matched_in_the_image(tmp_path: Path) -> None:
    for patient, visit in (("P1", "a"), ("P1", "b"), ("P2", "a")):
        put(tmp_path / patient / f"lge_{visit}.nii.gz", image())
    put(tmp_path / "masks" / "P1" / "wall_b.nii.gz", mask())
    pattern, endo, wall = (
        str(tmp_path / part) for part in ("*/lge_*.nii.gz", "masks/*/e_*.nii.gz", "masks/*/wall_*.nii.gz")
    )
    found = find_cases(pattern, endo=endo, wall=wall)
    assert [case.name for case in found] == ["P1_a", "P1_b", "P2_a"]
    assert found[1].endo == tmp_path / "masks" / "P1" / "e_b.nii.gz"
    assert [case.wall is not None for case in found] == [False, True, False]
    with pytest.raises(InputError, match="has more stars than"):
        find_cases(pattern, endo=str(tmp_path / "*/*/*.nii.gz"))
    with pytest.raises(InputError, match="a pattern of images needs --endo"):
        find_cases(pattern)
    with pytest.raises(InputError, match="has more stars than"):
        find_cases(str(tmp_path / "P?" / "lge_a.nii.gz"), endo=endo)
    found = find_cases(str(tmp_path / "P[12]" / "lge_?.nii.gz"), endo=str(tmp_path / "masks" / "P[12]" / "e_?.nii.gz"))
    assert found[2].endo == tmp_path / "masks" / "P2" / "e_a.nii.gz"


def test_two_stars_stand_for_folders_within_folders(tmp_path: Path) -> None:
    put(tmp_path / "A" / "visit" / "lge_1.nii.gz", image())
    put(tmp_path / "B" / "lge_2.nii.gz", image())
    found = find_cases(str(tmp_path / "**" / "lge_*.nii.gz"), endo=str(tmp_path / "**" / "endo_*.nii.gz"))
    assert {case.name: case.endo for case in found} == {
        "A_visit_1": tmp_path / "A" / "visit" / "endo_1.nii.gz",
        "B_2": tmp_path / "B" / "endo_2.nii.gz",
    }


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("nowhere", {}, "no such file or folder"),
        (".", {}, "no cases found; give a datalist, a folder of cases or a quoted pattern"),
        (".", {"endo": "x"}, "--endo and --wall go with a pattern of image files"),
        ("*.nii.gz", {"endo": "*.nii"}, "no such file or folder, and as a pattern it finds nothing"),
    ],
)
def test_what_holds_no_cases_is_refused(tmp_path: Path, source: str, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_cases(tmp_path / source, **arguments)


def test_the_folder_of_a_known_layout_says_which_patterns_to_give(tmp_path: Path) -> None:
    (tmp_path / "nnunet" / "imagesTr").mkdir(parents=True)
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    for read in (find_cases, check_input, find_maps):
        with pytest.raises(InputError, match=r"data set of nnU-Net: .* --endo '.*/labelsTr/\*.nii.gz#1'"):
            read(tmp_path / "nnunet")
        with pytest.raises(InputError, match=r"BIDS: .* --input '.*/bids/sub-\*/ses-\*/anat/\*_T1w.nii.gz' and --endo"):
            read(tmp_path / "bids")


def test_a_file_that_is_missing_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "P1" / "lgemri.nii.gz", image())
    put(tmp_path / "P1" / "laendo_manual.nii.gz", mask())
    (tmp_path / "P1" / "notes.txt").touch()
    (finding,) = check_input(tmp_path).errors
    assert finding.fix.endswith("; its folder holds laendo_manual.nii.gz, lgemri.nii.gz")
    bare = check_input(str(tmp_path / "P?" / "lgemri.nii.gz"), endo=str(tmp_path / "masks" / "P?.nii.gz")).errors
    assert bare[0].fix == "check the path in the datalist or pattern"


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_the_challenge_become_0_and_1(tmp_path: Path, value: int) -> None:
    case = Case("a", put(tmp_path / "i.nii.gz", image()), put(tmp_path / "e.nii.gz", mask(value)),
                put(tmp_path / "w.nii.gz", mask(0)))  # fmt: skip
    loaded = load_case(case)
    assert loaded.endo.dtype == np.uint8 and np.array_equal(loaded.endo, mask())
    assert loaded.wall is not None and not loaded.wall.any(), "a wall may be empty"


def test_a_case_that_cannot_be_used_lists_all_that_is_wrong(tmp_path: Path) -> None:
    case = Case("a", put(tmp_path / "i.nii.gz", np.ones(SHAPE, np.int16)), put(tmp_path / "e.nii.gz", mask(7)))
    with pytest.raises(InputError, match="case a") as found:
        load_case(case)
    assert len(found.value.problems) == 2 and "endo mask must hold only 0 and 1" in found.value.problems[1]
    empty = Case("b", put(tmp_path / "i2.nii.gz", image()), put(tmp_path / "e2.nii.gz", mask(0)))
    with pytest.raises(InputError, match="case b: endo mask is empty; leave the case out or give its mask"):
        load_case(empty)


def test_a_mask_alone_is_judged_by_its_role() -> None:
    assert np.array_equal(binary_mask(mask(255), "endo"), mask())
    assert not binary_mask(mask(0), "wall").any()
    with pytest.raises(InputError, match="endo mask is empty"):
        binary_mask(mask(0), "endo")
    with pytest.raises(InputError, match="wall mask must hold only 0 and 1"):
        binary_mask(mask(2), "wall")


def test_a_bundles_classes_are_compared_only_with_label_maps(tmp_path: Path) -> None:
    put(tmp_path / "A" / "lgemri.nii.gz", image())
    put(tmp_path / "A" / "laendo.nii.gz", mask())
    assert check_input(tmp_path).errors == []
    with pytest.raises(InputError, match="has no label maps to compare with"):
        check_input(tmp_path, bundle=tmp_path)
