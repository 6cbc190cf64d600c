"""Nothing of a source patient is in any written byte: canaries in all headers, attributes, names and paths."""

from __future__ import annotations

import json
import re
import struct

import nibabel as nib
import pydicom
import pytest
from dicom_files import write_series
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from semsynth.files import sha256
from semsynth.interop.dicom import DicomSettings, write_dicom
from tiny_synthetic import affine_of, label_of, write_case, write_list

CANARY = "CANARY"
CANARY_UID = "1.2.826.0.1.8675309"
CANARY_DATE, CANARY_TIME = "18700919", "031415.926535"
NUMBERS = {"IS": 867530912, "DS": "8675.309125", "FD": 8675.309125, "FL": 8675.309125}
TEXTS = {"LO", "SH", "ST", "LT", "UT", "UC", "UR", "CS", "AE", "PN", "UN", "OB"}
KEPT = {
    "SOPClassUID", "Modality", "Rows", "Columns", "PixelData", "PixelSpacing", "ImagePositionPatient", "BitsAllocated",
    "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "SpecificCharacterSet", "NumberOfFrames",
    "TransferSyntaxUID", "ModalityLUTSequence", "PatientOrientation",
}  # fmt: skip
"""What a series needs to be one; all other attributes of the standard hold a canary."""


def poison(ds, number):
    """Put a canary into every text, number, UID, date and time of the standard's dictionary, and into a sequence."""
    for tag, (kind, _, _, retired, _) in DicomDictionary.items():
        name = keyword_for_tag(tag)
        if not name or name in KEPT or retired or (tag >> 16) in (0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFE):
            continue
        value = f"{CANARY_UID}.{number + 1}" if name == "SOPInstanceUID" else value_of(kind)
        if value is not None:
            ds.add_new(tag, kind, value)
    inner = Dataset()
    inner.PatientName, inner.StudyInstanceUID, inner.StudyDate = CANARY, CANARY_UID, CANARY_DATE
    ds.RequestAttributesSequence = ds.AnatomicRegionSequence = [inner]


def value_of(kind):
    if kind in TEXTS:
        return CANARY.encode() if kind in ("UN", "OB") else CANARY
    fixed = {"DA": CANARY_DATE, "TM": CANARY_TIME, "DT": f"{CANARY_DATE}{CANARY_TIME}", "AS": "087Y", "UI": CANARY_UID}
    return fixed.get(kind, NUMBERS.get(kind))


def poison_nifti(path):
    """A canary in every text of a NIfTI header, and in an extension."""
    image = nib.load(path)
    new = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine, image.header)
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        new.header[name] = CANARY
    new.header.set_slope_inter(*image.header.get_slope_inter())
    new.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
    nib.save(new, path)


def written_bytes(folder):
    for path in sorted(folder.rglob("*")):
        yield path, str(path.relative_to(folder)).encode()
        if path.is_file():
            yield path, path.read_bytes()


@pytest.fixture
def poisoned(tmp_path):
    """A volume, its map and a series, all of them full of a patient."""
    folder = tmp_path / f"{CANARY}_folder"
    case = f"{CANARY}_case"
    image = write_case(folder, case)
    label = folder / "maps" / case / "label.nii.gz"
    for path in (image, label):
        poison_nifti(path)
    path = image.with_name(f"{case}_synthetic.json")
    about = json.loads(path.read_text())
    about |= {"volume_sha256": sha256(image), "label_sha256": sha256(label), "source_case": CANARY,
              "style_from": f"{CANARY}.nii.gz", "weights": f"{CANARY}.pt", "label": f"{CANARY}.nii.gz"}  # fmt: skip
    path.write_text(json.dumps(about))
    (label.parent / "label.json").write_text(json.dumps({"case": CANARY, "morph": {"of": CANARY}, "label": "x"}))
    write_list(folder, {case: {"patient": CANARY, "source_case": CANARY, "note": CANARY}})
    write_series(folder / "like", label_of().astype("uint16"), affine_of(), change=poison)
    return image, folder / "like"


def test_the_canaries_are_there(poisoned):
    image, like = poisoned
    found = pydicom.dcmread(sorted(like.iterdir())[0])
    texts = [e for e in found.iterall() if str(e.value) == CANARY]
    assert len(texts) > 1300 and found.PatientName == CANARY and found.StudyInstanceUID == CANARY_UID
    header = nib.load(image).header
    assert bytes(header["descrip"]).startswith(CANARY.encode()) and len(header.extensions) == 1


@pytest.mark.parametrize("whole_list", [False, True], ids=["volume", "datalist"])
def test_nothing_of_a_patient_is_written(poisoned, tmp_path, whole_list):
    image, like = poisoned
    output = tmp_path / "dicom"
    given = image.parent if whole_list else image
    (written,) = write_dicom(str(given), str(output), DicomSettings(like=str(like)))
    assert written.segments == 3 and len(list(output.rglob("*.dcm"))) == 7
    wanted = [CANARY, CANARY_UID, CANARY_DATE, "031415.92", "867530912", "8675.309", "087Y", "Doe", str(tmp_path)]
    doubles = [struct.pack(f"<{kind}", NUMBERS["FD"]) for kind in "df"]
    for path, content in written_bytes(output):
        plain = content.replace(b"\0", b"")  # texts of two bytes a letter, too
        for canary in wanted:
            assert canary.lower().encode() not in content.lower() + plain.lower(), (path, canary)
        assert not any(double in content for double in doubles), path


def test_what_a_series_gives_are_words_of_the_standard_alone(poisoned, tmp_path):
    image, like = poisoned
    (written,) = write_dicom(str(image), str(tmp_path / "dicom"), DicomSettings(like=str(like)))
    first = pydicom.dcmread(written.folder / "series" / "IM0001.dcm")
    assert first.PatientPosition == "HFS" and first.BodyPartExamined == "HEART"  # by the classes, not the series
    theirs = {e.value for file in like.iterdir() for e in pydicom.dcmread(file).iterall() if e.VR == "UI"}
    ours = {e.value for file in written.folder.rglob("*.dcm") for e in pydicom.dcmread(file).iterall() if e.VR == "UI"}
    assert theirs & ours == {first.SOPClassUID}


def test_no_private_attribute_and_no_free_text_but_ours(tmp_path):
    image = write_case(tmp_path)
    (written,) = write_dicom(str(image), str(tmp_path / "dicom"), DicomSettings())
    for file in written.folder.rglob("*.dcm"):
        for element in pydicom.dcmread(file).iterall():
            assert not element.tag.is_private
            assert not re.search(r"case_1", str(element.value)), element
