"""A synthetic volume as a DICOM series: voxels where they were, the values that they had, and what it says it is."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from pydicom import config
from semsynth.data.volumes import Volume, read_volume
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.interop.dicom import DicomSettings, write_dicom
from tiny_synthetic import CT, MRI, SHAPE, affine_of, intensities, write_case

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINES = {
    "straight": affine_of(),
    "turned": affine_of((0.3, -0.2, 0.4)),
    "far turned": affine_of((1.4, 0.1, 2.8)),
    "left-handed": affine_of((0.3, -0.2, 0.4), flip=(-1, 1, 1)),
    "turned upside down": affine_of((0.1, 3.0, 0.2), flip=(1, 1, -1)),
    "thick coronal": affine_of((-0.2, 0.1, 0.1), spacing=(0.8, 3.0, 1.1)),
    "thick sagittal, left-handed": affine_of((0.1, 0.2, 0.3), spacing=(4.0, 0.6, 0.9), flip=(-1, -1, -1)),
    "isotropic": affine_of((0.5, 0.5, 0.5), spacing=(1.0, 1.0, 1.0)),
}


def series(written):
    return [pydicom.dcmread(file) for file in sorted((written.folder / "series").iterdir())]


def by_sitk(folder):
    """A series as SimpleITK reads it, ``(columns, rows, slices)`` with a RAS+ affine."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS @ lps)


def write(tmp_path, image, **settings):
    (written,) = write_dicom(str(image), str(tmp_path / "dicom"), DicomSettings(label="none", **settings))
    return written


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_simpleitk_and_our_reader_find_every_voxel_where_it_was(tmp_path, affine):
    image = write_case(tmp_path, affine=affine)
    written = write(tmp_path, image)
    wanted = np.rint(intensities() * 32767)
    for found in (by_sitk(written.folder / "series"), read_volume(written.folder / "series")):
        back = found.oriented_as(affine)
        assert np.array_equal(back.data, wanted)
        assert np.allclose(back.affine, affine, atol=1e-5)


def test_highdicom_reads_the_same_volume(tmp_path):
    affine = affine_of((0.3, -0.2, 0.4), flip=(-1, 1, 1))
    written = write(tmp_path, write_case(tmp_path, affine=affine))
    volume = highdicom.get_volume_from_series(series(written))
    back = Volume(volume.array.transpose(2, 1, 0), LPS @ volume.affine[:, [2, 1, 0, 3]]).oriented_as(affine)
    assert np.abs(back.data - intensities()).max() < 2e-5  # it applies the real world mapping
    assert np.allclose(back.affine, affine, atol=1e-5)
    assert highdicom.imread(written.folder / "series" / "IM0001.dcm").get_frame(1).shape == (8, 9)


@pytest.mark.parametrize(
    ("spacing", "orientation", "count"),
    [
        ((0.7, 0.9, 2.5), [1, 0, 0, 0, 1, 0], 6),
        ((1.0, 1.0, 1.0), [1, 0, 0, 0, 1, 0], 6),
        ((0.7, 2.5, 0.9), [1, 0, 0, 0, 0, -1], 8),
        ((2.5, 0.7, 0.9), [0, 1, 0, 0, 0, -1], 9),
    ],
    ids=["axial", "isotropic", "coronal", "sagittal"],
)
def test_slices_lie_across_the_largest_voxel_size_as_scanners_store_them(tmp_path, spacing, orientation, count):
    found = series(write(tmp_path, write_case(tmp_path, affine=affine_of(spacing=spacing))))
    assert len(found) == count and list(found[0].ImageOrientationPatient) == orientation


def test_the_plane_is_said_in_the_attributes_that_readers_use(tmp_path):
    first, second, *_ = series(write(tmp_path, write_case(tmp_path)))
    assert list(first.PixelSpacing) == pytest.approx([0.9, 0.7])  # between rows, between columns
    assert first.SliceThickness == first.SpacingBetweenSlices == 2.5
    assert (first.Rows, first.Columns) == (8, 9)
    assert list(first.ImagePositionPatient) == pytest.approx([-12.5 - 8 * 0.7, 7 - 7 * 0.9, 30], abs=1e-5)
    assert second.SliceLocation - first.SliceLocation == pytest.approx(2.5)
    assert second.InstanceNumber == 2


def test_it_says_that_it_is_synthetic_in_every_file(tmp_path):
    for ds in series(write(tmp_path, write_case(tmp_path))):
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
        assert ds.SyntheticData == "YES" and ds.BurnedInAnnotation == "NO"
        assert ds.SeriesDescription == "SYNTHETIC MR tiny 0.1" and "SYNTHETIC" in ds.StudyDescription
        assert ds.PatientComments.startswith("SYNTHETIC") and "ab" * 32 in ds.DerivationDescription
        (maker,) = ds.ContributingEquipmentSequence
        assert maker.PurposeOfReferenceCodeSequence[0].CodeValue == "109100"  # Synthesizing Equipment
        assert maker.ManufacturerModelName == "tiny" and maker.SoftwareVersions[1] == "tiny 0.1"


def test_all_uids_are_new_in_every_run_and_shared_where_they_must_be(tmp_path):
    image = write_case(tmp_path)
    runs = []
    for name in ("a", "b"):
        (written,) = write_dicom(str(image), str(tmp_path / name), DicomSettings())
        runs.append([*series(written), pydicom.dcmread(written.folder / "seg.dcm")])
    for kind in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert [len({ds[kind].value for ds in run}) for run in runs] == [1, 1]
    assert len({ds.SOPInstanceUID for run in runs for ds in run}) == 14
    assert len({ds.SeriesInstanceUID for run in runs for ds in run}) == 4
    assert not set(uids(runs[0])) & set(uids(runs[1]))


def uids(datasets):
    """All that are no names of the standard's own."""
    for ds in datasets:
        found = [element.value for element in ds.iterall() if element.VR == "UI"]
        yield from (uid for uid in found if not uid.startswith("1.2.840.10008"))


def test_patient_and_dates_are_placeholders(tmp_path):
    image = write_case(tmp_path, "Doe_Jane_1950")
    record = json.loads(image.with_name("Doe_Jane_1950_synthetic.json").read_text())
    written = write(tmp_path, image)
    first = series(written)[0]
    assert first.PatientID == f"SYN-{record['volume_sha256'][:12]}" == written.folder.name
    assert str(first.PatientName) == f"Synthetic^{first.PatientID}"
    assert (first.PatientBirthDate, first.PatientSex, first.AccessionNumber) == ("", "", "")
    assert first.StudyDate == first.ContentDate == first.InstanceCreationDate
    assert "AcquisitionDate" not in first and "AcquisitionDateTime" not in first


def test_a_patient_id_can_be_given(tmp_path):
    written = write(tmp_path, write_case(tmp_path), patient_id="trial-7")
    assert series(written)[0].PatientID == "trial-7" and written.folder.name == "trial-7"


def test_ct_is_stored_in_hounsfield_units(tmp_path):
    hu = np.linspace(-1000, 1000, int(np.prod(SHAPE))).reshape(SHAPE)
    written = write(tmp_path, write_case(tmp_path, held=CT, data=(hu + 1000) / 2000))
    first = series(written)[0]
    assert written.modality == first.Modality == "CT" and first.SOPClassUID.name == "CT Image Storage"
    assert (first.RescaleSlope, first.RescaleIntercept, first.RescaleType) == (1, 0, "HU")
    assert list(first.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"]
    assert list(first.WindowCenter) == [40, 0] and list(first.WindowWidth) == [400, 2000]
    found = by_sitk(written.folder / "series").oriented_as(affine_of()).data
    assert np.array_equal(found, np.rint(hu))


def test_ct_in_unit_intensities_becomes_hounsfield_units(tmp_path):
    held = {"window": [0.0, 1.0], "unit": "HU", "unit_range": [-1000, 1000]}
    image = write_case(tmp_path)
    path = image.with_name("case_1_synthetic.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intensity": held}))
    found = read_volume(write(tmp_path, image).folder / "series").oriented_as(affine_of()).data
    assert np.abs(found - (intensities() * 2000 - 1000)).max() <= 0.55


def test_mr_values_can_be_had_back(tmp_path):
    written = write(tmp_path, write_case(tmp_path))
    first = series(written)[0]
    (mapped,) = first.RealWorldValueMappingSequence
    stored = read_volume(written.folder / "series").oriented_as(affine_of()).data
    back = stored * mapped.RealWorldValueSlope + mapped.RealWorldValueIntercept
    assert np.abs(back - intensities()).max() < 2e-5
    assert "RescaleSlope" not in first and first.PixelRepresentation == 0
    assert 0 < first.WindowWidth <= 32767


def test_whole_numbers_stay_as_they_are(tmp_path):
    data = np.rint(intensities() * 1000) - 200
    image = write_case(tmp_path)
    nib.save(nib.Nifti1Image(data.astype(np.int16), affine_of()), image)
    written = write(tmp_path, image, synthetic=True, modality="MR")
    first = series(written)[0]
    assert first.PixelRepresentation == 1 and "RealWorldValueMappingSequence" not in first
    assert np.array_equal(read_volume(written.folder / "series").oriented_as(affine_of()).data, data)
    assert "no record of how it was made" in first.DerivationDescription  # nothing of the record of another file


@pytest.mark.parametrize("held", [MRI, CT], ids=["MR", "CT"])
def test_every_value_has_the_form_that_the_standard_asks_for(tmp_path, monkeypatch, held):
    (written,) = write_dicom(str(write_case(tmp_path, held=held)), str(tmp_path / "dicom"), DicomSettings())
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.RAISE)
    files = sorted(written.folder.rglob("*.dcm"))
    assert len(files) == 7
    for file in files:
        ds = pydicom.dcmread(file)
        assert all(element.value is not ... for element in ds.iterall())  # decodes every one
        ds.save_as(tmp_path / "again.dcm", enforce_file_format=True)
        assert (tmp_path / "again.dcm").read_bytes() == file.read_bytes()


def test_texts_that_dicom_cannot_hold_are_made_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    image = write_case(tmp_path, record={"bundle": "a\\b\n" + "x" * 200, "version": "ü"})
    first = series(write(tmp_path, image))[0]
    assert first.ManufacturerModelName.startswith("a/b") and len(first.SeriesDescription) == 64


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    affine = affine_of()
    affine[0, 2] = 0.3
    with pytest.raises(InputError, match="axes that are not at right angles: found an affine with shear"):
        write(tmp_path, write_case(tmp_path, affine=affine))
    assert not list((tmp_path / "dicom").glob("*"))


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (np.full(SHAPE, 0.5, np.float32), {"modality": "MR"}, "image is constant: found 0.5 everywhere"),
        (np.full(SHAPE, np.nan, np.float32), {"modality": "MR"}, "NaN or infinite values"),
        (np.linspace(0, 1, 432, dtype=np.float32).reshape(SHAPE), {"modality": "CT"}, "no Hounsfield units: found"),
        (np.linspace(-9e4, 1, 432, dtype=np.float32).reshape(SHAPE), {"modality": "CT"}, "values beyond 16 bits"),
        (np.linspace(0, 1, 432, dtype=np.float32).reshape(SHAPE), {}, "does not say whether it is MR or CT"),
    ],
    ids=["constant", "nan", "no HU", "too large", "no modality"],
)  # fmt: skip
def test_intensities_that_dicom_cannot_say_are_refused(tmp_path, data, settings, message):
    path = tmp_path / "v.nii.gz"
    nib.save(nib.Nifti1Image(data, affine_of()), path)
    with pytest.raises(InputError, match=message):
        write(tmp_path, path, synthetic=True, **settings)
    assert not (tmp_path / "dicom").exists() or not list((tmp_path / "dicom").iterdir())


def test_a_modality_that_the_record_contradicts_is_refused(tmp_path):
    with pytest.raises(InputError, match="its record says Hounsfield units, which is CT, but MR is asked for"):
        write(tmp_path, write_case(tmp_path, held=CT), modality="MR")


def test_files_are_written_in_the_order_of_their_slices(tmp_path):
    written = write(tmp_path, write_case(tmp_path))
    assert [path.name for path in sorted((written.folder / "series").iterdir())] == [
        f"IM{number:04d}.dcm" for number in range(1, 7)
    ]
    along = [float(ds.SliceLocation) for ds in series(written)]
    assert along == sorted(along) and Path(written.folder / "series").is_dir()


def audited(folder: Path, volumes: list[Path], verdict: str) -> str:
    """An audit of these volumes, as ``semsynth audit`` writes it."""
    folder.mkdir(exist_ok=True)
    content = {"verdict": verdict, "reasons": ["1 of 1 volumes are copies each by itself"], "weights_sha256": [],
               "volumes_sha256": [sha256(path) for path in volumes]}  # fmt: skip
    (folder / "audit.json").write_text(json.dumps(content))
    return str(folder)


def test_every_file_says_what_the_audit_said(tmp_path, caplog):
    image = write_case(tmp_path)
    plain = write(tmp_path, image)
    assert "these volumes were not audited" in caplog.text
    assert all("Copies of training scans: not audited." in one.DerivationDescription for one in series(plain))
    audit = audited(tmp_path / "audit", [image], "no sign found")
    (written,) = write_dicom(str(image), str(tmp_path / "other"), DicomSettings(label="none", audit=audit))
    assert all("Copies of training scans: no sign found." in one.DerivationDescription for one in series(written))


def test_copies_that_an_audit_found_stop_the_export_unless_they_are_asked_for(tmp_path):
    image = write_case(tmp_path)
    audit = audited(tmp_path / "audit", [image], "copies found")
    with pytest.raises(InputError, match="copies of training scans were found in these volumes"):
        write(tmp_path, image, audit=audit)
    assert not list((tmp_path / "dicom").glob("SYN-*"))
    written = write(tmp_path, image, audit=audit, despite_audit=True)
    assert "copies found, written despite it." in series(written)[0].DerivationDescription


def test_an_audit_of_other_volumes_is_none_of_these(tmp_path):
    image = write_case(tmp_path)
    other = write_case(tmp_path / "other", data=intensities() ** 2)
    with pytest.raises(InputError, match="does not cover 1 of the volumes"):
        write(tmp_path, image, audit=audited(tmp_path / "audit", [other], "no sign found"))
