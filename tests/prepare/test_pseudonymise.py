"""A data set under pseudonyms: the same voxels, whole or not there, and nothing else of what it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.entries import load_datalist
from semsynth.data.hidden import Hidden
from semsynth.data.volumes import copy_clean, read_volume
from semsynth.data.voxels import hash_file
from semsynth.errors import InputError
from semsynth.prepare.pseudonymise import pseudonymise
from semsynth.training.loading import load_sources


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key.json"


def made(dataset: Path, output: Path, key: Path) -> Path:
    return pseudonymise(dataset, output, Hidden.of(key, False, output), progress=False)


def stated(path: Path) -> dict:
    return json.loads(path.read_text())


def with_patients(dataset: Path, folder: Path) -> Path:
    """A datalist elsewhere, whose pattern finds two cases of one patient in their names."""
    content = stated(dataset / "datalist.json")
    for split in ("training", "validation", "testing"):
        for entry in content[split]:
            entry |= {role: str(dataset / entry[role]) for role in ("image", "endo", "wall", "scar", "label")}
            entry["case"] = entry["case"].replace("phantom_001", "phantom_000b")
    path = folder / "list.json"
    path.write_text(json.dumps(content | {"patient_regex": r"phantom_(\d+)"}))
    return path


def test_voxels_splits_and_meaning_stay(tiny_dataset, tmp_path, key):
    before, path = stated(tiny_dataset / "datalist.json"), made(tiny_dataset, tmp_path / "out", key)
    after, names = stated(path), stated(key)["cases"]
    for split in ("training", "validation", "testing"):
        known = sorted(before[split], key=lambda entry: names[entry["case"]])
        assert [names[e["case"]] for e in known] == [e["case"] for e in after[split]]
        for old, new in zip(known, after[split], strict=True):
            for role in ("image", "endo", "wall", "label"):
                a, b = read_volume(tiny_dataset / old[role]), read_volume(path.parent / new[role])
                assert a.data.dtype == b.data.dtype and np.array_equal(a.data, b.data)
                assert np.allclose(a.affine, b.affine)
    assert {key: after[key] for key in ("num_classes", "classes")} == {
        key: before[key] for key in ("num_classes", "classes")
    }
    assert len(load_datalist(path, "training", num_classes=before["num_classes"])) == 2


def test_patients_who_were_found_in_names_are_stated(tiny_dataset, tmp_path, key):
    path = made(with_patients(tiny_dataset, tmp_path), tmp_path / "out", key)
    content = stated(path)
    assert "patient_regex" not in content
    patients = [entry["patient"] for entry in content["training"]]
    assert patients[0] == patients[1] and set(stated(key)["patients"]) == {"000", "002", "003"}


def test_the_order_of_the_cases_is_that_of_their_pseudonyms(tiny_dataset, tmp_path, key):
    """That of their names would tell who is who, and so would the order in which files were written."""
    key.write_text(json.dumps({"cases": {f"phantom_{i:03d}": f"p{9 - i}" for i in range(4)}, "patients": {}}))
    path = made(tiny_dataset, tmp_path / "out", key)
    for split in ("training", "validation", "testing"):
        listed = [entry["case"] for entry in stated(path)[split]]
        assert listed == sorted(listed)
    written = sorted((tmp_path / "out").glob("p*/image.nii.gz"), key=lambda file: file.stat().st_mtime_ns)
    assert [file.parent.name for file in written] == ["p6", "p7", "p8", "p9"]


def test_started_again_it_keeps_what_is_there(tiny_dataset, tmp_path, key):
    path = made(tiny_dataset, tmp_path / "out", key)
    before = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "out").rglob("*.nii.gz"))}
    (gone, changed), text = list(before)[:2], path.read_text()
    gone.unlink()
    made(tiny_dataset, tmp_path / "out", key)
    after = {p: p.stat().st_mtime_ns for p in sorted((tmp_path / "out").rglob("*.nii.gz"))}
    assert path.read_text() == text and set(after) == set(before)
    assert all(after[p] == before[p] for p in before if p.parent != gone.parent)
    label = nib.load(changed)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), changed)
    with pytest.raises(InputError, match="was changed since it was written"):
        made(tiny_dataset, tmp_path / "out", key)


def test_another_key_file_gives_no_second_copy(tiny_dataset, tmp_path, key):
    made(tiny_dataset, tmp_path / "out", key)
    with pytest.raises(InputError, match="of another key file; give the same --pseudonyms"):
        made(tiny_dataset, tmp_path / "out", tmp_path / "other.json")


def test_files_of_others_stay(tiny_dataset, tmp_path, key):
    key.write_text(json.dumps({"cases": {"phantom_000": "mine"}, "patients": {}}))
    (tmp_path / "out" / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="was not written by semsynth pseudonymise"):
        made(tiny_dataset, tmp_path / "out", key)
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_what_cannot_be_copied_is_refused(tiny_dataset, tmp_path, key, capsys):
    with pytest.raises(InputError, match="no datalist; prepare the scans"):
        made(tmp_path, tmp_path / "out", key)
    content = stated(tiny_dataset / "datalist.json")
    content["training"][0]["image"] = "scan.nrrd"
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"case phantom_000: scan\.nrrd is no NIfTI file; prepare"):
        made(tmp_path / "list.json", tmp_path / "out", key)
    content["training"][0] |= {"image": "a.nii.gz", "synthetic": True}
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="lists synthetic volumes as real ones: phantom_000"):
        made(tmp_path / "list.json", tmp_path / "out", key)
    assert main(["pseudonymise", "--input", str(tiny_dataset), "--output", str(tmp_path / "out")]) == 1
    assert "or give --anonymous-names, which needs none" in capsys.readouterr().err


def test_lists_with_names_and_with_pseudonyms_are_not_mixed(tiny_dataset, tmp_path, key):
    """A patient who is held out has another name there, and would be trained on."""
    hidden = made(tiny_dataset, tmp_path / "out", key)
    load_sources([hidden], validation=hidden)
    with pytest.raises(InputError, match="a patient who is held out cannot be recognised"):
        load_sources([hidden], validation=tiny_dataset / "datalist.json")
    content = stated(hidden)
    drawn = [{**e, "synthetic": True} for e in content["training"]]
    (hidden.parent / "drawn.json").write_text(json.dumps({"training": drawn}))  # volumes of maps that are nobody's
    assert len(load_sources([hidden, hidden.parent / "drawn.json"], validation=hidden)) == 4


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "int64"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_clean_copy_holds_the_same_voxels(tmp_path, dtype, scaled):
    data = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(dtype)
    affine = np.array([[0, -0.7, 0, 3], [0.9, 0, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    if scaled:
        image.header.set_slope_inter(0.25, -1000)
    image.header["descrip"] = "Jane Doe"
    nib.save(image, tmp_path / "a.nii.gz")
    copy_clean(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    a, b = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(a.get_fdata(), b.get_fdata()) and np.allclose(a.affine, b.affine)
    assert a.get_data_dtype() == b.get_data_dtype() and bytes(b.header["descrip"]).strip(b"\0") == b""
    assert hash_file(tmp_path / "a.nii.gz") == hash_file(tmp_path / "b.nii.gz")
