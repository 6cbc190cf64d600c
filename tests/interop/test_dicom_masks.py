"""A label map as a SEG: the same voxels on the series' grid, coded segments, and who drew them."""

from __future__ import annotations

import json

import highdicom
import numpy as np
import pydicom
import pytest
from semsynth.data.label_files import write_segmentation
from semsynth.data.volumes import read_label, read_volume, write_label
from semsynth.errors import InputError
from semsynth.interop.dicom import DicomSettings, write_dicom
from tiny_synthetic import SHAPE, affine_of, label_of, write_case, write_list


def write(image, tmp_path, **settings):
    (written,) = write_dicom(str(image), str(tmp_path / "dicom"), DicomSettings(**settings))
    return written.folder


def segments(folder):
    return {s.SegmentLabel: s for s in pydicom.dcmread(folder / "seg.dcm").SegmentSequence}


def code(item, sequence):
    return getattr(item, sequence)[0].CodeValue, getattr(item, sequence)[0].CodingSchemeDesignator


@pytest.mark.parametrize(
    "affine",
    [affine_of((0.3, -0.2, 0.4)), affine_of((0.3, -0.2, 0.4), flip=(-1, 1, 1)), affine_of(spacing=(0.8, 3.0, 1.1))],
    ids=["turned", "left-handed", "coronal"],
)
def test_the_map_comes_back_as_it_was(tmp_path, affine):
    image = write_case(tmp_path, affine=affine)
    write_list(tmp_path, {"case_1": {}})
    folder = write(image, tmp_path)
    ours = read_volume(folder / "seg.dcm").oriented_as(affine)
    assert np.array_equal(ours.data, label_of()) and np.allclose(ours.affine, affine, atol=1e-5)
    seg = highdicom.seg.segread(folder / "seg.dcm")
    theirs = seg.get_volume(combine_segments=True)
    assert sorted(np.unique(theirs.array)) == [0, 1, 2, 3]
    assert [np.count_nonzero(theirs.array == i) for i in range(1, 4)] == [
        np.count_nonzero(label_of() == i) for i in range(1, 4)
    ]


def test_our_preparation_takes_series_and_seg(tmp_path):
    from semsynth.cli.main import main

    image = write_case(tmp_path, shape=(24, 22, 20), affine=affine_of((0.2, 0.1, 0.3), spacing=(2.0, 2.0, 2.0)))
    write_list(tmp_path, {"case_1": {}})
    folder = write(image, tmp_path)
    assert main(["prepare-maps", "--input", f"{folder.parent}/*", "--label", f"{folder.parent}/*/seg.dcm",
                 "--classes", "endo,wall,tissue 1", "--output", str(tmp_path / "prepared"),
                 "--fractions", "1,0"]) == 0  # fmt: skip
    found = read_label(tmp_path / "prepared" / folder.name / "label.nii.gz")
    assert [np.count_nonzero(found.data == i) for i in range(4)] == [
        np.count_nonzero(label_of((24, 22, 20)) == i) for i in range(4)
    ]


def test_it_refers_to_the_series_and_shares_its_frame(tmp_path):
    folder = write(write_case(tmp_path), tmp_path)
    seg = pydicom.dcmread(folder / "seg.dcm")
    images = [pydicom.dcmread(file) for file in sorted((folder / "series").iterdir())]
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == {
        ds.SOPInstanceUID for ds in images
    }
    for name in ("FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
        assert seg[name].value == images[0][name].value
    assert seg.SyntheticData == "YES" and seg.Modality == "SEG" and seg.SeriesDescription.startswith("SYNTHETIC")
    purposes = [item.PurposeOfReferenceCodeSequence[0].CodeMeaning for item in seg.ContributingEquipmentSequence]
    assert purposes == ["Synthesizing Equipment", "Processing Equipment"]  # no scanner


def test_segments_are_coded(tmp_path):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    found = segments(write(image, tmp_path))
    kind, category = "SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence"
    assert code(found["endo"], kind) == ("82471001", "SCT") and code(found["endo"], category) == ("91723000", "SCT")
    assert code(found["wall"], kind) == ("272657006", "SCT")
    assert code(found["wall"], "AnatomicRegionSequence") == ("82471001", "SCT")
    assert code(found["tissue 1"], kind) == ("85756007", "SCT")
    assert [s.SegmentNumber for s in found.values()] == [1, 2, 3]


def test_classes_of_which_nobody_knows_a_code_are_said(tmp_path, caplog):
    image = write_case(tmp_path)
    folder = write(image, tmp_path, classes=("endo", "left gizmo", "zzz"))
    found = segments(folder)
    assert code(found["left gizmo"], "SegmentedPropertyTypeCodeSequence") == ("85756007", "SCT")
    assert "coded as Tissue, under their names: left gizmo, zzz" in caplog.text


def test_a_class_without_a_name_is_called_by_its_number(tmp_path):
    found = segments(write(write_case(tmp_path), tmp_path, classes=("endo", "wall")))
    assert list(found) == ["endo", "wall", "class 3"]


def test_named_classes_that_the_map_does_not_hold_are_segments_too(tmp_path):
    image = write_case(tmp_path, classes=2)
    write_list(tmp_path, {"case_1": {}})
    folder = write(image, tmp_path)
    assert list(segments(folder)) == ["endo", "wall", "tissue 1"]
    assert np.array_equal(read_volume(folder / "seg.dcm").oriented_as(affine_of()).data, label_of(classes=2))


def types(folder):
    return {name: s.SegmentAlgorithmType for name, s in segments(folder).items()}


def test_an_experts_map_is_manual_and_its_tissue_clusters_are_not(tmp_path, caplog):
    caplog.set_level("INFO")
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    found = segments(write(image, tmp_path))
    assert {name: s.SegmentAlgorithmType for name, s in found.items()} == {
        "endo": "MANUAL", "wall": "MANUAL", "tissue 1": "AUTOMATIC",
    }  # fmt: skip
    assert found["tissue 1"].SegmentAlgorithmName == "k-means of intensities"
    assert "written as drawn by an expert; if a program drew them, name it with --drawn-by" in caplog.text


def test_a_wall_that_the_preparation_derived_is_automatic(tmp_path):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    (tmp_path / "maps" / "case_1" / "prepare.json").write_text(json.dumps({"wall": "derived, 2.5 mm, axial plane"}))
    assert types(write(image, tmp_path)) == {"endo": "MANUAL", "wall": "AUTOMATIC", "tissue 1": "AUTOMATIC"}


def test_a_morphed_map_is_semiautomatic_but_for_what_was_derived(tmp_path):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "prepare.json").write_text(json.dumps({"wall": "derived, 2.5 mm, axial plane"}))
    about = {"morph": {"tries": 1}, "label": "../../own/label.nii.gz"}
    (tmp_path / "maps" / "case_1" / "label.json").write_text(json.dumps(about))
    assert types(write(image, tmp_path)) == {"endo": "SEMIAUTOMATIC", "wall": "AUTOMATIC", "tissue 1": "AUTOMATIC"}


def test_a_map_whose_morphing_was_given_up_is_the_case_s_own(tmp_path):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    (tmp_path / "maps" / "case_1" / "label.json").write_text(json.dumps({"morph": None, "reason": "limits"}))
    assert types(write(image, tmp_path))["endo"] == "MANUAL"


@pytest.mark.parametrize("where", ["entry", "record"])
def test_a_map_from_nothing_is_automatic(tmp_path, where):
    image = write_case(tmp_path)
    listed = write_list(tmp_path, {"case_1": {"drawn": True} if where == "entry" else {}})
    if where == "record":
        (tmp_path / "maps" / "case_1" / "label.json").write_text(json.dumps({"drawn": True}))
    folder = write(listed if where == "entry" else image, tmp_path)
    assert set(types(folder).values()) == {"AUTOMATIC"}
    assert segments(folder)["endo"].SegmentAlgorithmName == "label map generator"


def test_maps_of_a_program_name_it(tmp_path):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    found = segments(write(image, tmp_path, drawn_by="TotalSegmentator 2.4"))
    assert found["endo"].SegmentAlgorithmType == "AUTOMATIC"
    assert found["endo"].SegmentAlgorithmName == "TotalSegmentator 2.4"


def test_a_slicer_segmentation_brings_its_names(tmp_path):
    image = write_case(tmp_path)
    label = tmp_path / "mine.seg.nrrd"
    write_segmentation(label, label_of(), affine_of(), {1: "liver", 2: "left kidney", 3: "right kidney"})
    folder = write(image, tmp_path, label=str(label))
    found = segments(folder)
    assert list(found) == ["liver", "left kidney", "right kidney"]
    (side,) = found["left kidney"].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert side.CodeMeaning == "Left"
    assert np.array_equal(read_volume(folder / "seg.dcm").oriented_as(affine_of()).data, label_of())


def test_one_segment_of_ours_can_be_read_by_its_name(tmp_path):
    image = write_case(tmp_path)
    write_list(tmp_path, {"case_1": {}})
    folder = write(image, tmp_path)
    found = read_volume(f"{folder}/seg.dcm#wall").oriented_as(affine_of()).data
    assert np.array_equal(found, label_of() == 2)


@pytest.mark.parametrize(
    ("label", "affine", "message"),
    [
        (label_of(), affine_of(origin=(0, 0, 0)), "label map on another grid"),
        (np.zeros(SHAPE, np.uint8), affine_of(), "no label map: found values from 0 to 0"),
    ],
    ids=["grid", "empty"],
)
def test_a_map_that_does_not_belong_to_the_volume_is_refused(tmp_path, label, affine, message):
    image = write_case(tmp_path)
    write_label(tmp_path / "other.nii.gz", label, affine)
    with pytest.raises(InputError, match=message):
        write(image, tmp_path, label=str(tmp_path / "other.nii.gz"))
