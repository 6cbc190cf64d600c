"""What is read from a datalist, and what its cases are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from semsynth.data.datalists import (
    absolute,
    datalist_path,
    expert_classes,
    named_files,
    read_datalist,
    stated_classes,
    stated_patient,
)
from semsynth.data.naming import check_names
from semsynth.errors import InputError


def written(folder: Path, content: object) -> Path:
    path = folder / "datalist.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"datalist\.json: not valid JSON"),
        ([], "needs lists of cases under training, validation, testing"),
        ({"training": {}}, "training: needs to be a list of entries, found an object of 0"),
        ({"training": ["a.nii", {"image": "b.nii"}, 3]}, "entries that cannot be used"),
        ({"training": [], "num_classes": 1}, "num_classes must be a whole number from 2 on, found 1"),
        ({"training": [], "num_classes": "4"}, "num_classes must be a whole number from 2 on, found '4'"),
    ],
)
def test_what_is_no_datalist_is_refused_with_what_was_found(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_datalist(written(tmp_path, content))


def test_all_bad_entries_are_listed_with_their_places(tmp_path: Path) -> None:
    with pytest.raises(InputError) as found:
        read_datalist(written(tmp_path, {"training": ["a.nii", {"image": "b.nii"}], "unlabelled": [None]}))
    assert [line.split(":")[0] for line in found.value.problems] == ["training[0]", "unlabelled[0]"]


def test_a_missing_datalist_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; make it with 'semsynth prepare' or 'semsynth phantom'"):
        read_datalist(tmp_path / "datalist.json")


@pytest.mark.parametrize("key", ["training", "validation", "testing", "unlabelled"])
def test_one_list_is_enough_and_the_rest_is_kept(tmp_path: Path, key: str) -> None:
    content = {key: [{"image": "a.nii"}], "patient_regex": "^(a)", "num_classes": 2}
    assert read_datalist(written(tmp_path, content)) == content


def test_a_datalist_of_bids_names_knows_its_patients_unless_it_says_otherwise(tmp_path: Path) -> None:
    entries = {"training": [{"image": "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"}], "testing": [{"case": "sub-2"}]}
    path = written(tmp_path, entries)
    first = read_datalist(path)
    assert stated_patient(absolute(first["training"][0], tmp_path), first["patient_regex"]) == "sub-1"
    assert read_datalist(written(tmp_path, entries | {"patient_regex": "ses-."}))["patient_regex"] == "ses-."
    other = entries | {"validation": [{"case": "P3"}]}
    assert "patient_regex" not in read_datalist(written(tmp_path, other))


@pytest.mark.parametrize("labels", [{"background": 0, "cavity": 1, "wall": 2}, {"background": 0, "atrium": [1, 2]}, 3])
def test_the_dataset_json_of_nnunet_says_which_patterns_to_give(tmp_path: Path, labels: object) -> None:
    (tmp_path / "imagesTr").mkdir()
    about = {"channel_names": {"0": "LGE"}, "labels": labels, "numTraining": 8, "file_ending": ".nrrd"}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"--input '.*/imagesTr/\*_0000.nrrd' --endo '.*/labelsTr/\*.nrrd#1'") as found:
        read_datalist(tmp_path / "dataset.json")
    names = "cavity,wall" if isinstance(labels, dict) and "wall" in labels else "NAMES"
    assert str(found.value).endswith(f"--classes {names}")


def test_names_that_are_no_file_names_or_stand_twice_are_refused() -> None:
    check_names(["a", "b.c", "d e"], "x.json")
    for name in ("", ".", "..", "a/b", "a\\b", "a\0b"):
        with pytest.raises(InputError, match="case names become folder and file names, cannot use"):
            check_names(["a", name], "x.json")
    with pytest.raises(InputError, match="found more than once: a, c; set 'case'"):
        check_names(["c", "a", "b", "a", "c", "a"], "x.json")


def test_files_of_a_pattern_come_by_path_with_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "map.nii.gz").touch()
    assert named_files(f"{tmp_path}/*/map.nii.gz", "label maps") == [
        (name, tmp_path / name / "map.nii.gz") for name in ("a", "b")
    ]
    with pytest.raises(InputError, match="no label maps found; quote the pattern and check the folder"):
        named_files(f"{tmp_path}/*.nii.gz", "label maps")


def test_a_datalist_is_a_json_or_what_a_folder_holds(tmp_path: Path) -> None:
    assert datalist_path(tmp_path / "none.json") == tmp_path / "none.json", "that it is missing is said when it is read"
    assert datalist_path(tmp_path) is None and datalist_path(tmp_path / "*" / "lge.nii.gz") is None
    assert datalist_path(str(tmp_path)) is None
    path = written(tmp_path, {"training": []})
    assert datalist_path(tmp_path) == path


def test_texts_that_are_no_paths_stay_as_they_are() -> None:
    entry = {"image": "a/i1.nii", "label": "a/l1.nii", "source_case": "s", "patient": "p/q", "sample": 2,
             "content": {"start": [0, 0, 0]}}  # fmt: skip
    found = absolute(entry, Path("/root"))
    assert found == entry | {"image": "/root/a/i1.nii", "label": "/root/a/l1.nii", "case": "i1"}
    assert absolute({"case": 7, "image": "i.nii"}, Path("/root"))["case"] == "7"
    assert absolute({"image": "/elsewhere/i.nii"}, Path("/root"))["image"] == "/elsewhere/i.nii"


def test_classes_are_those_that_are_stated_or_those_of_a_composite_map() -> None:
    path = Path("x.json")
    assert stated_classes(path, {}) == {}
    assert stated_classes(path, {"num_classes": 4}) == {0: "background", 1: "endo", 2: "wall", 3: "tissue 1"}
    stated = {"classes": {"10": "b", "0": "background", "2": "a"}, "num_classes": 4}
    assert list(stated_classes(path, stated).items()) == [(0, "background"), (2, "a"), (10, "b")]
    with pytest.raises(InputError, match='"classes" must be a table'):
        stated_classes(path, {"classes": ["background"]})


def test_only_composite_maps_need_a_class_that_an_expert_drew() -> None:
    path = Path("x.json")
    assert expert_classes(path, {}) == (1, 2)
    assert expert_classes(path, {"classes": {"0": "background", "1": "endo", "2": "scar"}}) == (1,)
    assert expert_classes(path, {"classes": {"0": "background", "1": "wall", "2": "endo"}}) == ()
