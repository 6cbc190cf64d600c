"""SEG and RTSTRUCT files as label maps: classes go by the names of segments and ROIs, as those of 3D Slicer do."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import LPS, write_rtstruct, write_seg, write_series
from semsynth.cli.main import main
from semsynth.data.findings import FindingError
from semsynth.data.headers import on_grid, read_header
from semsynth.data.raw import check_input
from semsynth.data.segments import MASK, Selection
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.prepare.maps import find_maps
from semsynth.prepare.relabel import classes_of

AFFINE = np.array([[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
SHAPE = (20, 18, 8)
BOXES = {"brainstem": (3, 7, 4, 9), "cord": (10, 14, 6, 11), "body": (1, 18, 1, 16)}  # first and last, both axes
LEVELS = range(2, 6)


def box(name: str, move: int = 0) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    a, b, c, d = BOXES[name]
    mask[a + move : b + move + 1, c : d + 1, LEVELS.start : LEVELS.stop] = True
    return mask


def outline(name: str, move: int = 0) -> list[np.ndarray]:
    """Contours around the voxels of a box, mm, LPS+."""
    a, b, c, d = np.add(BOXES[name], (move - 0.4, move + 0.4, -0.4, 0.4))
    flat = [[a, c], [b, c], [b, d], [a, d]]
    return [(LPS @ AFFINE @ np.array([[*p, k, 1] for p in flat]).T).T[:, :3] for k in LEVELS]


def patient(
    folder: Path, order: tuple[str, ...], kind: str = "SEG", seed: int = 0, modality: str = "CT", *, fractional=False
) -> Path:
    """A series in ``ct``, and a SEG or RTSTRUCT of boxes beside it."""
    noise = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.uint16)
    intercept = -1024 if modality == "CT" else 0
    write_series(folder / "ct", noise, AFFINE, modality=modality, description="scan", intercept=intercept)
    if kind == "SEG":
        masks = {name: box(name, seed) for name in order}
        return write_seg(folder / "seg.dcm", folder / "ct", masks, fractional=fractional)
    return write_rtstruct(folder / "seg.dcm", folder / "ct", {name: outline(name, seed) for name in order})


KINDS = pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])


@KINDS
def test_classes_go_by_names_in_whatever_order_files_have_them(tmp_path, kind, caplog):
    patient(tmp_path / "d" / "p0", ("brainstem", "cord"), kind)
    patient(tmp_path / "d" / "p1", ("cord", "brainstem"), kind, seed=1)
    paths = ["--input", f"{tmp_path}/d/*/ct", "--label", f"{tmp_path}/d/*/seg.dcm", "--output", str(tmp_path / "out")]
    window = ["--window", "-1000,1000", "--fractions", "0.5,0.5"]
    assert main(["prepare-maps", *paths, "--classes", "BRAINSTEM,cord", *window]) == 0
    for seed in (0, 1):
        label = nib.load(tmp_path / "out" / f"p{seed}" / "label.nii.gz")
        raw = nib.Nifti1Image((box("brainstem", seed) + 2 * box("cord", seed)).astype(np.uint8), AFFINE)
        assert np.array_equal(np.asarray(label.dataobj), np.asarray(nib.as_closest_canonical(raw).dataobj))
    assert "segments in another order than the classes: 1 of 2 cases (p1), such as: found cord, brai" in caplog.text
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert content["modality"] == {"0": "CT"} and content["intensity"]["unit"] == "HU"  # as the files say
    cases = find_maps(f"{tmp_path}/d/*/ct", label=f"{tmp_path}/d/*/seg.dcm")
    with pytest.raises(InputError, match=r"p1.*segments differ") as caught:  # without names the files have to agree
        classes_of(f"{tmp_path}/d/*/ct", cases, None)
    assert "found cord, brainstem" in str(caught.value)
    with pytest.raises(InputError, match=r"names its segments \(brainstem, cord\), so that it needs no --relabel"):
        classes_of(f"{tmp_path}/d/*/ct", cases, None, relabel=True)
    differ = check_input(f"{tmp_path}/d/*/ct", label=f"{tmp_path}/d/*/seg.dcm").errors
    assert [(f.case, f.finding) for f in differ] == [("p1", "segments differ")]


@KINDS
def test_without_names_the_segments_of_all_files_are_the_classes(tmp_path, kind):
    for i in range(2):
        patient(tmp_path / "d" / f"p{i}", ("cord", "brainstem"), kind, seed=i)
    cases = find_maps(f"{tmp_path}/d/*/ct", label=f"{tmp_path}/d/*/seg.dcm")
    assert classes_of(f"{tmp_path}/d/*/ct", cases, None) == (("cord", "brainstem"), ())
    report = check_input(f"{tmp_path}/d/*/ct", label=f"{tmp_path}/d/*/seg.dcm")
    assert report.errors == [] and report.names == {0: "background", 1: "cord", 2: "brainstem"}


@KINDS
def test_missing_names_are_an_error_and_others_become_background(tmp_path, kind):
    seg = patient(tmp_path, ("cord", "brainstem"), kind)
    with pytest.raises(FindingError, match="a segment is missing: found segments cord, brainstem, expected also heart"):
        read_header(seg, Selection(("cord", "heart")))
    header = read_header(seg, Selection(("brainstem",)))
    assert np.array_equal(read_volume(seg, header).data, box("brainstem"))
    assert [(n.finding, n.found) for n in header.notes] == [("segments that no class names", "cord")]
    with pytest.raises(FindingError, match=r"several segments for one mask: found cord, brainstem.*seg\.dcm#cord"):
        read_header(seg, MASK)
    for path in (f"{seg}#brainstem", f"{seg}::BRAINSTEM"):
        assert np.array_equal(read_volume(path).data, box("brainstem"))


@pytest.mark.parametrize(("kind", "fractional"), [("SEG", False), ("SEG", True), ("RTSTRUCT", False)])
def test_where_segments_overlap_the_later_class_wins_with_a_warning(tmp_path, kind, fractional):
    seg = patient(tmp_path, ("cord", "body", "brainstem"), kind, fractional=fractional)
    body, cord, stem = (box(name) for name in ("body", "cord", "brainstem"))
    header = read_header(seg, Selection(("body", "cord", "brainstem")))
    volume = read_volume(seg, header)
    assert volume.data.shape == SHAPE
    assert np.array_equal(volume.data, np.where(stem, 3, np.where(cord, 2, body)))
    assert [(note.finding, note.found) for note in volume.notes] == [
        ("segments overlap", f"{np.count_nonzero(body & (cord | stem))} voxels in several")
    ]
    other = read_volume(seg, read_header(seg, Selection(("cord", "body"))))
    assert np.array_equal(other.data, 2 * body) and len(other.notes) == 1
    apart = read_volume(seg, read_header(seg, Selection(("cord", "brainstem"))))
    assert np.array_equal(apart.data, cord + 2 * stem) and apart.notes == ()


def test_a_segment_or_roi_without_voxels_is_an_empty_class(tmp_path):
    patient(tmp_path, ("cord",))
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "ct", {"heart": np.zeros(SHAPE, bool), "cord": box("cord")})
    assert np.array_equal(read_volume(seg).data, 2 * box("cord"))
    rt = write_rtstruct(tmp_path / "rt.dcm", tmp_path / "ct", {"heart": [], "cord": outline("cord")})
    assert np.array_equal(read_volume(rt).data, 2 * box("cord"))
    assert [(n.finding, n.severity) for n in read_header(rt).notes] == [("no contours", "warning")]


def test_names_that_differ_in_a_hyphen_are_told_apart_where_they_are_given_exactly(tmp_path):
    patient(tmp_path, ("cord",))
    seg = write_seg(tmp_path / "seg.dcm", tmp_path / "ct", {"GTV 1": box("cord"), "GTV_1": box("brainstem")})
    assert np.array_equal(read_volume(f"{seg}#GTV_1").data, box("brainstem"))
    with pytest.raises(FindingError, match="several segments of one name: found GTV 1, GTV_1"):
        read_header(seg, Selection(("gtv-1",)))


def test_a_seg_without_its_series_is_put_on_the_grid_of_the_image(tmp_path):
    patient(tmp_path / "a", ("cord", "brainstem"))
    far = tmp_path / "b" / "c" / "seg.dcm"
    far.parent.mkdir(parents=True)
    (tmp_path / "a" / "seg.dcm").rename(far)
    image = read_header(tmp_path / "a" / "ct")
    alone = read_header(far)
    assert alone.shape != image.shape  # the slices that have segments
    volume = read_volume(far, on_grid(alone, image))
    assert np.array_equal(volume.data, box("cord") + 2 * box("brainstem"))
    assert np.array_equal(volume.affine, image.affine)


def test_images_as_label_maps_look_like_images(tmp_path):
    patient(tmp_path / "d" / "p0", ("cord",))
    report = check_input(f"{tmp_path}/d/*/ct", label=f"{tmp_path}/d/*/ct")
    (found,) = (f for f in report.errors if f.finding == "label values out of range")
    assert found.fix.startswith("it looks like an image: ") and "--relabel" in found.fix.split("If it is one, ")[1]


def test_other_modalities_than_ct_and_what_is_typed_are_kept(tmp_path):
    patient(tmp_path / "d" / "p0", ("cord",), modality="MR")
    patient(tmp_path / "d" / "p1", ("cord",), seed=1, modality="MR")
    paths = ["--input", f"{tmp_path}/d/*/ct", "--label", f"{tmp_path}/d/*/seg.dcm"]
    for out, more, said in (("a", [], "MRI"), ("b", ["--modality", "T1"], "T1")):
        assert main(["prepare-maps", *paths, "--output", str(tmp_path / out), *more]) == 0
        assert json.loads((tmp_path / out / "datalist.json").read_text())["modality"] == {"0": said}
