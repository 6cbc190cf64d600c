"""DICOM: a folder of slices is one volume, or an error that says why not; SEG and RTSTRUCT are masks on its grid."""

from __future__ import annotations

import locale
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import LPS, PATIENT, write_rtstruct, write_seg, write_series
from semsynth.data.findings import FindingError
from semsynth.data.headers import read_header
from semsynth.data.segments import MASK
from semsynth.data.volumes import Volume, read_volume
from semsynth.data.voxels import hash_file
from semsynth.errors import InputError
from semsynth.files import sha256

AXIAL = np.array([[-0.7, 0, 0, 12.5], [0, -0.9, 0, -7], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


def turned(affine=AXIAL, angles=(0.3, -0.2, 0.4)):
    """The same voxels in an oblique patient."""
    from scipy.spatial.transform import Rotation

    oblique = affine.copy()
    oblique[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ affine[:3, :3]
    return oblique


def values(shape=(7, 6, 5), high=4000, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


@pytest.mark.parametrize(
    "affine", [AXIAL, turned(), turned(angles=(1.4, 0.1, 0.2))], ids=["axial", "oblique", "coronal"]
)
@pytest.mark.parametrize("order", [range(5), [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]], ids=["rising", "falling", "mixed"])
def test_a_folder_of_slices_is_the_volume_that_was_written(tmp_path, affine, order):
    write_series(tmp_path / "LGE", values(), affine, order=order)
    volume = read_volume(tmp_path / "LGE")
    header = read_header(tmp_path / "LGE")
    assert np.array_equal(volume.data, values())
    assert volume.data.dtype == np.int16
    assert np.allclose(volume.affine, affine, atol=1e-6)
    assert header.shape == (7, 6, 5) and header.spacing == pytest.approx((0.7, 0.9, 2.5), abs=1e-6)


def test_slices_are_taken_along_their_normal_as_simpleitk_does(tmp_path):
    import SimpleITK as sitk  # noqa: N813 - its usual name

    away = turned() @ np.diag([1, 1, -1, 1.0])  # slices stored against the normal of their plane
    write_series(tmp_path / "LGE", values(), away)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "LGE")))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "by_sitk.nii.gz"))
    ours, theirs = read_volume(tmp_path / "LGE"), read_volume(tmp_path / "by_sitk.nii.gz")
    assert np.array_equal(ours.data, theirs.data) and np.allclose(ours.affine, theirs.affine, atol=1e-5)
    same = Volume(values(), away).oriented_as(ours.affine)
    assert np.array_equal(ours.data, same.data) and np.allclose(ours.affine, same.affine, atol=1e-6)


def test_ct_comes_out_in_hounsfield_units(tmp_path):
    write_series(tmp_path / "CT", values(high=4096), AXIAL, modality="CT", intercept=-1024)
    found = read_volume(tmp_path / "CT").data
    assert found.dtype == np.int16 and np.array_equal(found, values(high=4096).astype(int) - 1024)


def test_each_slice_has_its_own_slope_as_in_pet(tmp_path):
    def rescale(ds, k):
        ds.RescaleSlope, ds.RescaleIntercept = f"{0.25 * (k + 1)}", f"{k}"

    write_series(tmp_path / "PET", values(), AXIAL, change=rescale)
    expected = values() * (0.25 * np.arange(1, 6)) + np.arange(5)
    found = read_volume(tmp_path / "PET").data
    assert found.dtype == np.float32 and np.allclose(found, expected)


def test_large_and_negative_stored_values_survive(tmp_path):
    write_series(tmp_path / "a", values(high=65535), AXIAL)
    assert np.array_equal(read_volume(tmp_path / "a").data, values(high=65535))
    signed = values().astype(np.int16) - 2000
    write_series(tmp_path / "b", signed, AXIAL)
    assert np.array_equal(read_volume(tmp_path / "b").data, signed)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "DeflatedExplicitVRLittleEndian"])
def test_compressed_files_are_read(tmp_path, syntax):
    import pydicom

    data = values((32, 30, 5))
    write_series(tmp_path / "s", data, AXIAL)
    for file in (tmp_path / "s").iterdir():
        ds = pydicom.dcmread(file)
        if syntax.startswith("Deflated"):
            ds.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        else:
            ds.compress(getattr(pydicom.uid, syntax))
        ds.save_as(file)
    assert np.array_equal(read_volume(tmp_path / "s").data, data)


@pytest.fixture
def same_locale():
    """SimpleITK's writer leaves the process in the locale "C", in which text files of other tests cannot be read."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


@pytest.mark.usefixtures("same_locale")
def test_slices_that_simpleitk_writes_are_read(tmp_path):
    import SimpleITK as sitk  # noqa: N813 - its usual name

    data = values((32, 30, 5))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(5):
        image = sitk.GetImageFromArray(data[:, :, k].T)
        image.SetSpacing((0.7, 0.9))
        tags = {"0008|0060": "MR", "0020|000e": "1.2.3", "0020|0032": f"0\\0\\{2.5 * k}", "0028|1052": "-10",
                "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1053": "1"}  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetUseCompression(k % 2 == 1)  # JPEG 2000
        writer.SetFileName(str(tmp_path / f"{k}.dcm"))
        writer.Execute(image)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.data, data) and volume.spacing == pytest.approx((0.7, 0.9, 2.5))


def test_real_series_of_a_scanner_are_told_apart():
    """A CT study that pydicom brings: a localiser of two directions, and five slices of a volume."""
    from pydicom.data import get_testdata_file

    disc = get_testdata_file("DICOMDIR")
    if disc is None:
        pytest.skip("pydicom brings no test files")
    study = Path(disc).parent / "98892001"
    with pytest.raises(FindingError, match=r"'Scout' \(CT, 2 images: slices of different dir.*5 slices of 16 × 16"):
        read_header(study)
    assert read_header(f"{study}#smartscore - gated 0.5 sec").spacing == pytest.approx((0.488281, 0.488281, 2.5))
    with pytest.raises(FindingError, match=r"gap between slices: found 202\.5 mm"):
        read_header(study.parent / "77654033" / "CT2")


def test_names_of_files_and_other_files_do_not_matter(tmp_path):
    folder = tmp_path / "patient"
    write_series(folder / "study" / "series", values(), AXIAL, name="{:08X}")
    (folder / "study" / "notes.txt").write_text("no DICOM")
    assert np.array_equal(read_volume(folder).data, values())


def test_a_dicomdir_stands_for_its_folder(tmp_path):
    from pydicom.fileset import FileSet

    write_series(tmp_path / "raw", values(), AXIAL, change=replaced(StudyDate="20240101", StudyTime="120000"))
    disc = FileSet()
    for file in sorted((tmp_path / "raw").iterdir()):
        disc.add(file)
    disc.write(tmp_path / "disc")
    for path in (tmp_path / "disc", tmp_path / "disc" / "DICOMDIR"):
        assert np.array_equal(read_volume(path).data, values())


def test_several_series_are_listed_and_one_is_chosen(tmp_path):
    folder = tmp_path / "patient"
    uid = write_series(folder, values(), AXIAL, description="LGE 3D", name="a{}")
    cine = write_series(folder, values((4, 4, 3)), AXIAL, description="cine", modality="CT", name="b{}")
    with pytest.raises(InputError, match="several DICOM series") as caught:
        read_volume(folder)
    text = str(caught.value)
    for told in ("'LGE 3D' (MR, 5 slices of 7 × 6, 0.7 × 0.9 × 2.5 mm)", "'cine' (CT, 3 slices of 4 × 4", uid, cine,
                 f"{folder}#LGE 3D"):  # fmt: skip
        assert told in text
    for part in ("LGE 3D", "lge 3d", uid):
        assert np.array_equal(read_volume(f"{folder}#{part}").data, values())
    with pytest.raises(InputError, match=r"no such DICOM series or segment: found 'LGE 3D'.*'t1 map'"):
        read_volume(f"{folder}#t1 map")
    assert len({sha256(f"{folder}#{part}") for part in ("LGE 3D", "cine")}) == 2


def test_two_series_of_one_description_are_chosen_by_uid(tmp_path):
    write_series(tmp_path / "p", values(), AXIAL, name="a{}")
    uid = write_series(tmp_path / "p", values() + 1, AXIAL, name="b{}")
    with pytest.raises(InputError, match=re.escape(f"such as {tmp_path / 'p'}#UID")):
        read_header(tmp_path / "p#LGE")
    assert np.array_equal(read_volume(f"{tmp_path / 'p'}#{uid}").data, values() + 1)


def replaced(**tags):
    def change(ds, k):
        for name, value in tags.items():
            given = value(k) if callable(value) else value
            if given is None:
                delattr(ds, name)
            else:
                setattr(ds, name, given)

    return change


def at(*heights):
    return replaced(ImagePositionPatient=lambda k: [0, 0, heights[k]])


UNUSABLE = {
    "gap between slices: found 5 mm between IM0001 and IM0002, 2.5 mm": at(0, 2.5, 7.5, 10, 12.5),
    r"several images at one position: found 2 images too many, .*TriggerTime 0.0 and 50.0": replaced(
        ImagePositionPatient=lambda k: [0, 0, 2.5 * (k // 2)], TriggerTime=lambda k: str(50.0 * (k % 2))
    ),
    r"several images at one position: .*EchoTime 1.0 and 2.0": replaced(
        ImagePositionPatient=lambda k: [0, 0, 2.5 * (k // 2)], EchoTime=lambda k: str(1.0 + k % 2)
    ),
    "slices of different direction: found 1 of 5 unlike IM0000.*localiser": replaced(
        ImageOrientationPatient=lambda k: [0, 1, 0, 0, 0, -1] if k == 3 else [1, 0, 0, 0, 1, 0]
    ),
    "slices of different size": replaced(
        Rows=lambda k: 3 if k == 2 else 6, PixelData=lambda k: b"\1\0" * (21 if k == 2 else 42)
    ),
    "slices of different voxel size": replaced(PixelSpacing=lambda k: [1, 1 + (k == 4)]),
    r"tilted slices \(gantry tilt\): found slices stacked 15.0° away": replaced(
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=lambda k: [0, 2.5 * k * np.tan(np.radians(15)), 2.5 * k],
    ),
    "no pixel data: found IM0000 without PixelData": replaced(PixelData=lambda k: None),
    r"Enhanced multi-frame DICOM: found 2 frames in IM0000": replaced(
        NumberOfFrames=2, PixelData=b"\1\0" * 84
    ),
    "no position of slices": replaced(ImagePositionPatient=None),
    "not real numbers: found colours": replaced(
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, PixelData=b"\1\0" * 126
    ),
    "MONOCHROME1": replaced(PhotometricInterpretation="MONOCHROME1"),
}  # fmt: skip


@pytest.mark.parametrize("message", UNUSABLE)
def test_a_series_that_is_no_volume_is_refused_with_the_reason(tmp_path, message):
    write_series(tmp_path / "s", values(), AXIAL, change=UNUSABLE[message], name="IM{:04d}")
    with pytest.raises(FindingError, match=message):
        read_header(tmp_path / "s")


def test_small_differences_of_distance_must_not_add_up(tmp_path):
    def wavy(step):
        return replaced(ImagePositionPatient=lambda k: [0, 0, 2.5 * k + step * min(k, 20 - k)])

    write_series(tmp_path / "fine", values((3, 3, 20)), AXIAL, change=wavy(0.01))
    assert read_header(tmp_path / "fine").shape == (3, 3, 20)
    write_series(tmp_path / "off", values((3, 3, 20)), AXIAL, change=wavy(0.05))
    with pytest.raises(FindingError, match=r"unevenly spaced slices: found up to 0.4"):
        read_header(tmp_path / "off")


def test_a_single_slice_and_a_file_of_a_series_are_refused(tmp_path):
    write_series(tmp_path / "s", values((7, 6, 1)), AXIAL)
    with pytest.raises(FindingError, match="single slice: found one image"):
        read_header(tmp_path / "s")
    write_series(tmp_path / "t", values(), AXIAL, name="{}.dcm")
    with pytest.raises(FindingError, match=rf"single slice: .*give the folder {re.escape(str(tmp_path / 't'))}"):
        read_header(tmp_path / "t" / "0.dcm")


def test_a_damaged_file_is_named(tmp_path):
    write_series(tmp_path / "s", values(), AXIAL)
    file = tmp_path / "s" / "IM0003"
    whole = file.read_bytes()
    for cut in (whole[:-20], whole[:600], whole[:400]):
        file.write_bytes(cut)
        with pytest.raises(FindingError, match=r"IM0003: truncated or damaged"):
            read_volume(tmp_path / "s")


def test_files_that_are_there_twice_are_taken_once(tmp_path):
    write_series(tmp_path / "s", values(), AXIAL)
    (tmp_path / "s" / "copy").write_bytes((tmp_path / "s" / "IM0002").read_bytes())
    header = read_header(tmp_path / "s")
    assert np.array_equal(read_volume(tmp_path / "s").data, values())
    assert [(note.finding, note.severity) for note in header.notes] == [("DICOM files twice", "warning")]


def test_what_holds_no_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FindingError, match="a folder without DICOM files"):
        read_header(tmp_path / "empty")
    with pytest.raises(FindingError, match="no such file"):
        read_header(tmp_path / "s#LGE")
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(FindingError, match="no DICOM file"):
        read_header(tmp_path / "text.dcm")
    write_series(tmp_path / "pr", values(), AXIAL, change=replaced(Modality="PR"))
    with pytest.raises(FindingError, match="DICOM files without an image or segments"):
        read_header(tmp_path / "pr")


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    write_series(tmp_path / "s", values(), AXIAL)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(FindingError, match=r"no package SimpleITK.*pip install 'semsynth\[dicom\]'"):
        read_header(tmp_path / "s")


def test_a_changed_file_is_read_again(tmp_path):
    write_series(tmp_path / "s", values(), AXIAL)
    before = hash_file(tmp_path / "s"), sha256(tmp_path / "s")
    assert before == (hash_file(tmp_path / "s"), sha256(tmp_path / "s")) and before[0] is not None
    write_series(tmp_path / "s", values()[::-1] + np.arange(7)[:, None, None].astype(np.uint16), AXIAL)
    assert hash_file(tmp_path / "s") != before[0] and sha256(tmp_path / "s") != before[1]


def test_a_series_and_its_nifti_are_one_scan(tmp_path):
    write_series(tmp_path / "s", values(), AXIAL)
    nib.save(nib.Nifti1Image(values().astype(np.int16), AXIAL), tmp_path / "s.nii.gz")
    assert hash_file(tmp_path / "s") == hash_file(tmp_path / "s.nii.gz")


# ---- segments and contours


def ball(shape=(20, 18, 8), centre=(9, 8, 4), radius=4.2):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.array(centre), axis=-1) < radius


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("affine", [AXIAL, turned() @ np.diag([1, 1, -1, 1.0])], ids=["axial", "oblique, falling"])
def test_a_segment_of_a_seg_is_a_mask_on_the_images_grid(tmp_path, affine, fractional):
    write_series(tmp_path / "p" / "LGE", values((20, 18, 8)), affine)
    grid = read_volume(tmp_path / "p" / "LGE")
    masks = {"left atrium": ball(radius=2.2), "wall": ball() & ~ball(radius=2.2)}
    write_seg(tmp_path / "p" / "seg" / "IM1", tmp_path / "p" / "LGE", masks, fractional=fractional)
    for path in (f"{tmp_path}/p/seg/IM1#left atrium", f"{tmp_path}/p/seg#Left Atrium", f"{tmp_path}/p#left atrium"):
        mask = read_volume(path)
        assert np.array_equal(mask.data, masks["left atrium"]) and set(np.unique(mask.data)) == {0, 1}
        assert np.allclose(mask.affine, grid.affine, atol=1e-5)
        assert np.allclose(read_header(path).affine, mask.affine) and read_header(path).shape == mask.data.shape
    with pytest.raises(FindingError, match=r"IM1: a segment is missing: found segments left atrium, wall, .* scar"):
        read_header(f"{tmp_path}/p/seg/IM1#scar")
    whole = read_volume(tmp_path / "p" / "seg" / "IM1").data
    assert np.array_equal(whole, masks["left atrium"] + 2 * masks["wall"])
    assert read_header(tmp_path / "p" / "seg" / "IM1").segments.names == ("left atrium", "wall")


def test_a_segment_in_few_slices_lies_where_it_was_drawn(tmp_path):
    write_series(tmp_path / "LGE", values((20, 18, 8)), AXIAL)
    mask = np.zeros((20, 18, 8), dtype=bool)
    mask[3:6, 2:9, 6] = True
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "LGE", {"a": mask})
    assert np.array_equal(read_volume(f"{seg}#a").data, mask)
    mask[1, 1, 1] = True
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "LGE", {"a": mask})
    assert np.array_equal(read_volume(seg).data, mask)


def square(low, high, level, affine):
    corners = np.array([[low, low], [high, low], [high, high], [low, high]], dtype=float)
    return (LPS @ affine @ np.c_[corners, np.full(4, level), np.ones(4)].T).T[:, :3]


def test_an_roi_is_filled_in_its_slices_and_a_contour_within_one_is_a_hole(tmp_path):
    affine = turned()
    write_series(tmp_path / "p" / "LGE", values((20, 18, 8)), affine)
    rt = write_rtstruct(tmp_path / "p" / "rt" / "RS1", tmp_path / "p" / "LGE", {
        "GTV": [square(2.5, 10.5, 3, affine), square(4.5, 6.5, 3, affine), square(3, 7, 5, affine),
                square(14, 14, 5, affine)[:1], square(12, 13, 5, affine)[:2]],
        "body": [square(-5, 40, 2, affine)],
        "nothing": [],
    })  # fmt: skip
    expected = np.zeros((20, 18, 8))
    expected[3:11, 3:11, 3], expected[5:7, 5:7, 3] = 1, 0
    expected[3:8, 3:8, 5] = 1  # on the contour counts as inside
    expected[14, 14, 5] = expected[12:14, 12, 5] = 1  # a contour of one point, and of two
    for path in (f"{rt}#gtv", f"{tmp_path}/p#GTV"):
        assert np.array_equal(read_volume(path).data, expected)
        assert np.allclose(read_volume(path).affine, affine, atol=1e-6)
        assert [note.finding for note in read_header(path).notes] == ["slices without a contour"]
    assert read_volume(f"{rt}#body").data.sum() == 20 * 18
    with pytest.raises(FindingError, match="no contours: found ROI 'nothing'"):
        read_header(f"{rt}#nothing")
    with pytest.raises(FindingError, match=r"several segments for one mask: found GTV, body, nothing.*RS1#GTV"):
        read_header(rt, MASK)


def test_contours_without_their_images_or_between_slices_are_refused(tmp_path):
    write_series(tmp_path / "p" / "LGE", values((20, 18, 8)), AXIAL)
    rois = {"a": [square(3, 7, 9, AXIAL)], "b": [square(3, 7, 2, AXIAL) + np.linspace(0, 6, 4)[:, None] * [0, 0, 1]]}
    rt = write_rtstruct(tmp_path / "p" / "rt.dcm", tmp_path / "p" / "LGE", rois)
    for name in rois:
        with pytest.raises(FindingError, match="contours do not lie in the slices: found a contour of ROI"):
            read_header(f"{rt}#{name}")
    far = tmp_path / "q" / "r" / "rt.dcm"
    far.parent.mkdir(parents=True)
    rt.rename(far)
    with pytest.raises(FindingError, match="no images to an RTSTRUCT"):
        read_header(f"{far}#a")


def test_no_patient_is_told(tmp_path):
    write_series(tmp_path / "p", values(), AXIAL)
    with pytest.raises(FindingError) as caught:
        read_header(tmp_path / "p#nothing")
    assert PATIENT.split("^")[0] not in str(caught.value) and "123456" not in str(caught.value)
