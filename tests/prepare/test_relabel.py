"""Label values that skip numbers: the same class for a value in every case, names, and the table back."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.totalsegmentator import CLASSES
from semsynth.errors import InputError
from semsynth.prepare.maps import find_maps
from semsynth.prepare.relabel import classes_of

SHAPE = (16, 14, 12)
PRESENT = ((1, 2, 51), (1, 51), (2, 117))


def data_set(folder: Path, present: tuple[tuple[int, ...], ...] = PRESENT) -> dict[str, str]:
    for i, values in enumerate(present):
        (folder / f"P{i}").mkdir(parents=True)
        label = np.zeros(SHAPE, np.int16)
        for place, value in enumerate(values):
            label[2 + 4 * place : 5 + 4 * place, 2 + i : 8, 3:9] = value
        image = np.random.default_rng(i).integers(0, 500, SHAPE).astype(np.int16)
        for name, data in (("ct", image), ("seg", label)):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"P{i}" / f"{name}.nii.gz")
    return {"input": f"{folder}/*/ct.nii.gz", "label": f"{folder}/*/seg.nii.gz"}


def command(paths: dict[str, str], *more: str) -> list[str]:
    return ["prepare-maps", "--input", paths["input"], "--label", paths["label"], *more]


def test_a_value_has_one_class_in_all_cases_and_the_datalist_a_table_back(tmp_path: Path) -> None:
    paths, out = data_set(tmp_path / "raw"), tmp_path / "out"
    arguments = ["--output", str(out), "--relabel", "--classes", "totalsegmentator", "--fractions", "0.67,0.33"]
    assert main(command(paths, *arguments)) == 0
    content = json.loads((out / "datalist.json").read_text())
    assert content["classes"] == {
        "0": "background", "1": "spleen", "2": "kidney_right", "3": "heart", "4": "costal_cartilages"
    }  # fmt: skip
    assert content["original_values"] == {"1": 1, "2": 2, "3": 51, "4": 117} and content["num_classes"] == 5
    for i, values in enumerate(PRESENT):
        label = np.asarray(nib.load(out / f"P{i}" / "label.nii.gz").dataobj)
        source = np.asarray(nib.load(tmp_path / "raw" / f"P{i}" / "seg.nii.gz").dataobj)
        table = np.zeros(118, int)
        table[[1, 2, 51, 117]] = 1, 2, 3, 4
        assert np.array_equal(label, table[source]) and set(np.unique(label)) == {0, *table[list(values)]}
        record = json.loads((out / f"P{i}" / "prepare.json").read_text())
        assert record["original_values"] == content["original_values"]
    assert (out / "labels.ctbl").read_text().splitlines()[-1].startswith("4 costal_cartilages ")


def test_cases_that_were_prepared_before_there_was_relabel_are_kept(tmp_path: Path) -> None:
    paths, out = data_set(tmp_path / "raw", ((1, 2), (1,), (2,))), tmp_path / "out"
    arguments = command(paths, "--output", str(out), "--classes", "a,b")
    assert main(arguments) == 0
    for record in out.glob("*/prepare.json"):
        content = json.loads(record.read_text())
        del content["settings"]["original_values"]
        record.write_text(json.dumps(content))
    before = (out / "P0" / "label.nii.gz").stat().st_mtime_ns
    assert main(arguments) == 0 and (out / "P0" / "label.nii.gz").stat().st_mtime_ns == before
    assert main([*arguments, "--relabel"]) == 1  # other settings


def test_names_are_given_by_rising_value(tmp_path: Path) -> None:
    paths = data_set(tmp_path)
    cases = find_maps(paths["input"], label=paths["label"])
    found = classes_of(paths["input"], cases, ["a", "b", "c", "d"], relabel=True)
    assert found == (("a", "b", "c", "d"), (1, 2, 51, 117))
    with pytest.raises(InputError, match=r"found 4 values in the label maps \(1, 2, 51, 117\), and 3 names are given"):
        classes_of(paths["input"], cases, ["a", "b", "c"], relabel=True)
    with pytest.raises(InputError, match="--relabel found the values 1, 2, 51, 117"):
        classes_of(paths["input"], cases, None, relabel=True)


def test_a_datalist_names_the_values_themselves(tmp_path: Path) -> None:
    data_set(tmp_path)
    content = {
        "training": [{"image": f"P{i}/ct.nii.gz", "label": f"P{i}/seg.nii.gz"} for i in range(3)],
        "classes": {"0": "background", "1": "a", "2": "b", "51": "c", "60": "not there", "117": "d"},
    }
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    cases = find_maps(tmp_path)
    assert classes_of(tmp_path, cases, None, relabel=True) == (("a", "b", "c", "d"), (1, 2, 51, 117))
    with pytest.raises(InputError, match=r"without gaps.*--relabel makes 1, 2, "):
        classes_of(tmp_path, cases, None)
    del content["classes"]["51"]  # type: ignore[attr-defined]
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'values that "classes" of .* does not know: 51'):
        classes_of(tmp_path, cases, None, relabel=True)


def test_without_relabel_the_error_advises_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = data_set(tmp_path / "raw")
    assert main(command(paths, "--output", str(tmp_path / "out"), "--classes", "a,b,c,d")) == 1
    error = capsys.readouterr().err
    assert "'semsynth prepare-maps --relabel' makes 1, 2, …" in error and "--k" not in error


def test_like_keeps_the_table_and_refuses_values_that_it_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, like = data_set(tmp_path / "before", ((1, 2, 51), (1, 51))), ["--like", str(tmp_path / "out")]
    assert main(command(before, "--output", like[1], "--relabel", "--classes", "a,b,c", "--fractions", "0.5,0.5")) == 0
    known = data_set(tmp_path / "known", ((1, 51), (51,)))
    assert main(command(known, "--output", str(tmp_path / "A"), *like, "--fractions", "0.5,0.5")) == 0
    assert set(np.unique(nib.load(tmp_path / "A" / "P0" / "label.nii.gz").dataobj)) == {0, 1, 3}
    capsys.readouterr()
    new = data_set(tmp_path / "new", ((1, 2, 3), (1, 2)))
    assert main(command(new, "--output", str(tmp_path / "B"), *like)) == 1
    error = capsys.readouterr().err
    assert "case P0: " in error and "label values without a class: found the values 3, expected 0 and those" in error
    assert "(1, 2, 51); leave --like out, or" in error and "P1" not in error and not (tmp_path / "B").exists()


def test_names_of_totalsegmentator_keep_its_own_numbers_without_relabel(tmp_path: Path) -> None:
    paths = data_set(tmp_path / "raw")
    assert len(CLASSES) == 117 and (CLASSES[0], CLASSES[50], CLASSES[116]) == ("spleen", "heart", "costal_cartilages")
    arguments = ["--output", str(tmp_path / "out"), "--classes", "totalsegmentator"]
    assert main(command(paths, *arguments)) == 0
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert content["num_classes"] == 118 and content["classes"]["51"] == "heart" and "original_values" not in content
