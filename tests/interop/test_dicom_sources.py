"""Which volumes are written as DICOM, which are refused and why, and what is never replaced."""

from __future__ import annotations

import json
import shutil
import sys

import pydicom
import pytest
from dicom_files import write_series
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.interop.dicom import DicomSettings, write_dicom
from semsynth.locks import locked
from tiny_synthetic import CT, affine_of, intensities, label_of, write_case, write_list


def write(volume, tmp_path, *, overwrite=False, **settings):
    return write_dicom(str(volume), str(tmp_path / "dicom"), DicomSettings(**settings), overwrite=overwrite)


def test_all_synthetic_volumes_of_a_datalist_are_written_and_real_ones_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    for number in (1, 2, 3):
        write_case(tmp_path, f"case_{number}")
    listed = write_list(tmp_path, {f"case_{number}": {"synthetic": number < 3} for number in (1, 2, 3)})
    found = write(listed.parent, tmp_path)
    assert [one.case for one in found] == ["case_1", "case_2"]
    assert "1 volume left out, as they are real" in caplog.text
    assert sorted(p.name for p in (tmp_path / "dicom").iterdir()) == sorted(one.folder.name for one in found)


def test_volumes_of_a_given_patient_id_are_numbered(tmp_path):
    for number in (1, 2):
        write_case(tmp_path, f"case_{number}")
    found = write(write_list(tmp_path, {"case_1": {}, "case_2": {}}), tmp_path, patient_id="trial")
    assert [one.folder.name for one in found] == ["trial-0001", "trial-0002"]


def test_two_equal_volumes_are_two_patients(tmp_path):
    image = write_case(tmp_path)
    for end in (".nii.gz", ".json"):
        shutil.copy(image.with_name(f"case_1_synthetic{end}"), image.with_name(f"case_2_synthetic{end}"))
    shutil.copytree(tmp_path / "maps" / "case_1", tmp_path / "maps" / "case_2")
    found = write(write_list(tmp_path, {"case_1": {}, "case_2": {}}), tmp_path)
    assert found[1].folder.name == f"{found[0].folder.name}-2"


def test_a_real_volume_is_never_written_as_synthetic(tmp_path):
    image = write_case(tmp_path)
    image.with_name("case_1_synthetic.json").unlink()
    wanted = r"case case_1_synthetic: .*case_1_synthetic.nii.gz: needs a record beside it, case_1_synthetic.json, that "
    with pytest.raises(InputError, match=wanted + "says that it is synthetic, found none; .* say so with --synthetic"):
        write(image, tmp_path)
    assert not (tmp_path / "dicom").exists()


@pytest.mark.parametrize("record", [{"synthetic": False}, {"synthetic": "no"}, {"case": "x"}, []])
def test_a_record_that_does_not_say_synthetic_is_none(tmp_path, record):
    image = write_case(tmp_path)
    image.with_name("case_1_synthetic.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="needs a record beside it"):
        write(image, tmp_path)


def test_a_prepared_scan_is_named_as_one(tmp_path):
    image = write_case(tmp_path)
    scan = tmp_path / "case" / "image.nii.gz"
    scan.parent.mkdir()
    shutil.copy(image, scan)
    (scan.parent / "prepare.json").write_text("{}")
    with pytest.raises(InputError, match=r"found prepare\.json, which says that it was prepared from a scan"):
        write(scan, tmp_path)


def test_a_volume_that_was_replaced_by_another_is_refused(tmp_path):
    image = write_case(tmp_path)
    other = write_case(tmp_path / "other", data=intensities() ** 2)
    shutil.copy(other, image)
    with pytest.raises(InputError, match="has changed since its record was written: what it holds is unknown"):
        write(image, tmp_path)
    with pytest.raises(InputError, match="its record names no label map; give it with --label"):
        write(image, tmp_path, synthetic=True, modality="MR")


def test_a_volume_that_the_user_says_is_synthetic_is_written(tmp_path):
    image = write_case(tmp_path)
    image.with_name("case_1_synthetic.json").unlink()
    label = tmp_path / "maps" / "case_1" / "label.nii.gz"
    (found,) = write(image, tmp_path, synthetic=True, modality="MR", label=str(label), classes=("endo",))
    assert found.segments == 3 and found.case == "case_1_synthetic"
    first = pydicom.dcmread(found.folder / "series" / "IM0001.dcm")
    assert "as its user says" in first.DerivationDescription
    assert first.SoftwareVersions[1] == "generator not recorded"


def test_a_map_that_is_missing_or_another_one_is_refused(tmp_path):
    image = write_case(tmp_path)
    label = tmp_path / "maps" / "case_1" / "label.nii.gz"
    other = write_case(tmp_path / "other", classes=2)
    shutil.copy(tmp_path / "other" / "maps" / "case_1" / "label.nii.gz", label)
    with pytest.raises(InputError, match=r"was made from another label map than .*label.nii.gz holds now"):
        write(image, tmp_path)
    label.unlink()
    with pytest.raises(
        InputError, match=r"its label map .*label.nii.gz is not there; give it with --label, or --label"
    ):
        write(image, tmp_path)
    (found,) = write(image, tmp_path, label="none")
    assert found.segments is None and not (found.folder / "seg.dcm").exists() and other.is_file()


def test_all_problems_are_listed_at_once(tmp_path):
    for number in (1, 2, 3):
        write_case(tmp_path, f"case_{number}")
    (tmp_path / "made" / "case_1_synthetic.nii.gz").unlink()
    (tmp_path / "made" / "case_2_synthetic.nii.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "made" / "case_3_synthetic.json").unlink()
    with pytest.raises(InputError, match="volumes that are not written as DICOM") as caught:
        write(write_list(tmp_path, {f"case_{n}": {} for n in (1, 2, 3)}), tmp_path)
    ends = ("is not there", "is damaged", "needs a record")
    assert all(end in line for end, line in zip(ends, caught.value.problems, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nothing.nii.gz", "is no file; give a synthetic volume"),
        (lambda folder: (folder / "a.txt").write_text("x") and folder / "a.txt", "is no NIfTI or NRRD file"),
        (lambda folder: folder, "holds no datalist.json; give a synthetic volume, or the folder of an inference"),
        (lambda folder: write_list(folder, {"case_1": {"synthetic": False}}), "none of its 1 entry is synthetic"),
    ],
    ids=["missing", "text", "folder", "real"],
)
def test_what_is_no_synthetic_volume_is_said(tmp_path, make, message):
    write_case(tmp_path)
    with pytest.raises(InputError, match=message):
        write(make(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--modality", "PET"], "--modality must be MR or CT, got 'PET'"),
        (["--body-part", "SOUL"], "--body-part must be one of ABDOMEN"),
        (["--patient-id", "Doe^Jane"], "--patient-id must be letters, digits"),
        (["--patient-id", "../up"], "--patient-id must be letters, digits"),
        (["--drawn-by", " "], "--drawn-by must be expert or the name of a program"),
        (["b.nii.gz"], "the word 'b.nii.gz' belongs to no option"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, capsys, option, message):
    image = write_case(tmp_path)
    assert main(["dicom", str(image), *option, "--output", str(tmp_path / "dicom")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "dicom").exists()


def test_the_command_takes_the_volume_as_a_word_or_an_option(tmp_path, capsys):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    assert main(["dicom", str(image), "--output", str(tmp_path / "a"), "--body-part", "chest"]) == 0
    assert "case_1: 6 MR images, SEG of 3 segments, in " in capsys.readouterr().out
    assert main(["dicom", "--volume", str(image), "--output", str(tmp_path / "b")]) == 0
    parts = [pydicom.dcmread(next((tmp_path / n).rglob("IM0001.dcm"))).BodyPartExamined for n in ("a", "b")]
    assert parts == ["CHEST", "HEART"]


def test_an_earlier_run_is_replaced_only_when_asked(tmp_path):
    image = write_case(tmp_path)
    (first,) = write(image, tmp_path)
    before = pydicom.dcmread(first.folder / "seg.dcm").SOPInstanceUID
    with pytest.raises(InputError, match=r"holds SYN-\w+ of an earlier run; give another --output, or --overwrite"):
        write(image, tmp_path)
    (again,) = write(image, tmp_path, overwrite=True, label="none")
    assert again.folder == first.folder and not (again.folder / "seg.dcm").exists() and before


@pytest.mark.parametrize("what", ["file", "folder", "changed", "added"])
def test_what_we_did_not_write_is_never_replaced(tmp_path, what):
    image = write_case(tmp_path)
    output = tmp_path / "dicom"
    (first,) = write(image, tmp_path)
    if what == "file":
        (output / "notes.txt").write_text("mine")
    elif what == "folder":
        write_series(output / "P1", label_of().astype("uint16"), affine_of())
    elif what == "changed":
        (first.folder / "series" / "IM0002.dcm").write_bytes(b"mine")
    else:
        (first.folder / "series" / "mine.dcm").write_bytes(b"mine")
    before = sorted(path for path in output.rglob("*"))
    with pytest.raises(InputError, match="files that are not ours to replace stand where results go"):
        write(image, tmp_path, overwrite=True)
    assert sorted(path for path in output.rglob("*")) == before


def test_a_failure_leaves_nothing_behind(tmp_path):
    good, bad = write_case(tmp_path, "case_1"), write_case(tmp_path, "case_2")
    label = tmp_path / "maps" / "case_2" / "label.nii.gz"
    write_case(tmp_path / "other", "case_2", affine=affine_of(origin=(0, 0, 0)))
    shutil.copy(tmp_path / "other" / "maps" / "case_2" / "label.nii.gz", label)  # the same voxels elsewhere
    record = json.loads(bad.with_name("case_2_synthetic.json").read_text())
    record.pop("label_sha256")
    bad.with_name("case_2_synthetic.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="label map on another grid"):
        write(bad, tmp_path)
    assert not (tmp_path / "dicom").exists() and good.is_file()


def test_the_output_is_no_folder_of_the_input(tmp_path):
    image = write_case(tmp_path)
    with pytest.raises(InputError, match=r"holds case_1_synthetic\.nii\.gz, which is an input"):
        write_dicom(str(image), str(image.parent), DicomSettings())


def test_another_run_that_writes_there_is_named(tmp_path):
    image = write_case(tmp_path)
    with (
        locked(tmp_path / "dicom", "the first run"),
        pytest.raises(InputError, match=r"the first run \(process"),
    ):
        write(image, tmp_path)


def test_without_the_packages_the_extra_is_named(tmp_path, monkeypatch):
    image = write_case(tmp_path)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"no package highdicom, expected the extra 'dicom'; pip install"):
        write(image, tmp_path)


# ---- --like


def test_a_series_gives_its_plane_body_part_and_modality(tmp_path):
    def change(ds, _):
        ds.BodyPartExamined, ds.PatientPosition = "CHEST", "FFS"

    coronal = affine_of(spacing=(1.0, 1.0, 1.0))[:, [0, 2, 1, 3]] @ [
        [-1, 0, 0, 8],
        [0, -1, 0, 5],
        [0, 0, -1, 7],
        [0, 0, 0, 1],
    ]
    write_series(tmp_path / "like", label_of().transpose(0, 2, 1).astype("uint16"), coronal, change=change)
    (found,) = write(write_case(tmp_path), tmp_path, like=str(tmp_path / "like"))
    first = pydicom.dcmread(found.folder / "series" / "IM0001.dcm")
    assert list(first.ImageOrientationPatient) == [1, 0, 0, 0, 0, -1] and found.slices == 8
    assert (first.BodyPartExamined, first.PatientPosition, first.Modality) == ("CHEST", "FFS", "MR")


@pytest.mark.parametrize(
    ("modality", "settings", "held", "message"),
    [
        ("PT", {}, None, "another modality: found PT, expected MR or CT"),
        ("CT", {"modality": "MR"}, None, "--modality MR: --like .* is CT; give one"),
        ("MR", {}, CT, "its record says Hounsfield units, which is CT, but MR is asked for"),
    ],
)
def test_a_series_that_does_not_fit_is_refused(tmp_path, modality, settings, held, message):
    write_series(tmp_path / "like", label_of().astype("uint16"), affine_of(), modality=modality)
    image = write_case(tmp_path, **({} if held is None else {"held": held}))
    with pytest.raises(InputError, match=message):
        write(image, tmp_path, like=str(tmp_path / "like"), **settings)
