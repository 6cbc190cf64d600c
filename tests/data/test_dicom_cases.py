"""Data sets of DICOM folders, in every command that takes images: checked, named, prepared, cached as other files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import PATIENT, write_seg, write_series
from semsynth.data.entries import load_datalist, load_images
from semsynth.data.naming import case_name
from semsynth.data.raw import check_input, find_cases
from semsynth.data.transforms import LoadIntensityd
from semsynth.errors import InputError
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.maps import MapSettings, prepare_maps
from semsynth.training.cache import _sources

AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
SHAPE = (24, 22, 12)


def scan(seed):
    """An image and its cavity: stored values ``(columns, rows, slices)``."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    cavity = np.linalg.norm((grid - np.array([11 + seed, 10, 6])) / [1, 1, 0.7], axis=-1) < 5
    noise = np.random.default_rng(seed).integers(0, 60, SHAPE)
    return (100 + 300 * cavity + noise).astype(np.uint16), cavity


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three patients, as DICOM (an LGE series, another one, a SEG) and as NIfTI."""
    root = tmp_path_factory.mktemp("scans")
    for i in range(3):
        image, cavity = scan(i)
        study = root / "dicom" / f"P{i}" / "study"
        write_series(study / "0001", image, AFFINE, description="LGE 3D")
        write_series(study / "0002", image[:8, :8], AFFINE, description="scout", name="x{}")
        write_seg(study / "0003" / "IM", study / "0001", {"left atrium": cavity, "rest": ~cavity})
        (root / "nifti" / f"P{i}").mkdir(parents=True)
        for name, data in (("lge", image.astype(np.int16)), ("endo", cavity.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, AFFINE), root / "nifti" / f"P{i}" / f"{name}.nii.gz")
    return root


def test_the_series_of_a_folder_without_a_datalist_are_listed(folders):
    with pytest.raises(InputError, match="holds DICOM files") as caught:
        check_input(folders / "dicom")
    lines = caught.value.problems
    assert len(lines) == 9
    assert lines[0].startswith("'LGE 3D' (MR, 12 slices of 24 × 22, 1.5 × 1.5 × 2 mm) in P0/study/0001, UID 1.2.")
    assert lines[-1] == "SEG in P2/study/0003/IM with 'left atrium', 'rest'"
    with pytest.raises(InputError, match="no cases found"):
        check_input(folders / "nifti")


def test_dicom_and_nifti_of_one_scan_are_prepared_to_the_same_voxels(folders, tmp_path):
    settings = Settings(spacing=(2.0, 2.0, 2.0))
    shares = (0.67, 0.33)
    pattern = {"endo": f"{folders}/dicom/*#left atrium", "fractions": shares}
    report = check_input(f"{folders}/dicom/*#LGE 3D", endo=pattern["endo"])
    assert report.errors == [] and set(report.sound) == {"P0", "P1", "P2"}
    with pytest.raises(InputError, match=r"IM: several segments for one mask: found left atrium, rest.*IM#left atrium"):
        prepare(f"{folders}/dicom/*#LGE 3D", tmp_path / "c", settings, endo=f"{folders}/dicom/*/study/0003/IM")
    dicom = prepare(f"{folders}/dicom/*#LGE 3D", tmp_path / "a", settings, **pattern)
    nifti = prepare(f"{folders}/nifti/*/lge.nii.gz", tmp_path / "b", settings,
                    endo=f"{folders}/nifti/*/endo.nii.gz", fractions=shares)  # fmt: skip
    assert json.loads(dicom.read_text()) == json.loads(nifti.read_text())  # hashes of the raw voxels, too
    for case in ("P0", "P1", "P2"):
        for file in ("image.nii.gz", "label.nii.gz"):
            a, b = (nib.load(tmp_path / folder / case / file) for folder in "ab")
            assert np.array_equal(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj))
            assert np.allclose(a.affine, b.affine, atol=1e-6)
    made = (tmp_path / "a" / "P0" / "prepare.json").stat().st_mtime_ns
    prepare(f"{folders}/dicom/*#LGE 3D", tmp_path / "a", settings, **pattern)
    assert (tmp_path / "a" / "P0" / "prepare.json").stat().st_mtime_ns == made  # kept: from the same files
    text = "".join(path.read_text() for path in (tmp_path / "a").rglob("*.json"))
    assert PATIENT.split("^")[0] not in text and "123456" not in text


def test_a_seg_is_a_label_map_of_its_segments(folders, tmp_path):
    settings = MapSettings(classes=("left atrium", "rest"))
    listed = prepare_maps(f"{folders}/dicom/*#LGE 3D", tmp_path / "maps", settings,
                          label=f"{folders}/dicom/*/study/0003/IM", fractions=(0.67, 0.33))  # fmt: skip
    assert json.loads(listed.read_text())["num_classes"] == 3
    label = nib.load(tmp_path / "maps" / "P1" / "label.nii.gz")
    cavity = nib.as_closest_canonical(nib.Nifti1Image(scan(1)[1].astype(np.uint8), AFFINE))
    assert np.array_equal(np.asanyarray(label.dataobj), 2 - np.asanyarray(cavity.dataobj))


def test_a_datalist_may_name_folders(folders, tmp_path):
    entries = [{"image": f"dicom/P{i}#LGE 3D", "endo": f"dicom/P{i}/study/0003#left atrium"} for i in range(3)]
    path = folders / "list.json"
    path.write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    assert [case.name for case in find_cases(path)] == ["P0", "P1", "P2"]
    for check in (True, False):
        loaded = load_datalist(path, "training", needs=("image", "endo"), check=check)
        assert [entry["case"] for entry in loaded] == ["P0", "P1"]
    image = LoadIntensityd("image")(loaded[0])["image"]
    assert image.shape == (1, *SHAPE) and np.allclose(image.affine, AFFINE)
    path.write_text(json.dumps({"training": [{"image": "dicom/P9", "endo": "dicom/P0#left atrium"}]}))
    with pytest.raises(InputError, match=r"P9: missing: found no such file, expected a file, or a folder with a DICOM"):
        load_datalist(path, "training", needs=("image", "endo"))
    with pytest.raises(InputError, match="P9: no such file"):
        load_datalist(path, "training", needs=("image", "endo"), check=False)


def test_a_pattern_of_folders_names_images_to_segment(folders, tmp_path):
    found = load_images(tmp_path, f"{folders}/dicom/*#LGE 3D")
    assert [entry["case"] for entry in found] == ["P0", "P1", "P2"]
    with pytest.raises(InputError, match=r"several DICOM series: found 'LGE 3D'.*'scout'"):
        load_images(tmp_path, f"{folders}/dicom/*")


def test_a_folder_in_a_training_is_cached_until_it_changes(folders, monkeypatch):
    entry = {"case": "dicom", "image": f"{folders}/dicom/P0#LGE 3D"}
    monkeypatch.chdir(folders)  # where a folder is called as the case
    assert list(_sources(entry)) == [entry["image"]]
    before = _sources(entry)
    (folders / "dicom" / "P0" / "added").write_text("x")
    after = _sources(entry)
    (folders / "dicom" / "P0" / "added").unlink()
    assert before != after and before == _sources(entry)


def test_a_folder_names_its_case(tmp_path):
    names = {"P01": "P01", "P01/lge": "P01", "P01/series_3": "P01_series_3", "P01/LGE_series": "P01_series",
             "P01/study/LGE": "P01_study", "P02.2023": "P02.2023"}  # fmt: skip
    for folder, name in names.items():
        (tmp_path / "scans" / folder).mkdir(parents=True, exist_ok=True)
        assert case_name(tmp_path / "scans" / folder) == name
        assert case_name(Path(f"{tmp_path}/scans/{folder}#LGE 3D")) == name
