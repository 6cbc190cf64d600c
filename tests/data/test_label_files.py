"""Label maps for 3D Slicer and ITK-SNAP."""

from __future__ import annotations

from pathlib import Path

import nrrd
import numpy as np
import pytest
from semsynth.data.label_files import LABEL_COLOURS, colour_of, write_label_tables, write_labels, write_segmentation
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError

AFFINE = np.array([[0.0, -0.6, 0, 30], [0.5, 0, 0, -20], [0, 0, 1.5, 7], [0, 0, 0, 1]])


def label() -> np.ndarray:
    data = np.zeros((5, 6, 7), np.uint8)
    data[1:3, 2:5, 1:4], data[3, 3, 3] = 1, 4
    return data


def test_a_segmentation_is_read_back_with_names_values_and_grid(tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "x.seg.nrrd", label(), AFFINE, {0: "background", 1: "left  atrium", 2: "wall"})
    data, header = nrrd.read(str(path))
    assert np.array_equal(data, label())
    named = [(header[f"Segment{i}_Name"], header[f"Segment{i}_LabelValue"]) for i in range(3)]
    assert named == [("left atrium", "1"), ("wall", "2"), ("class 4", "4")] and "Segment3_Name" not in header
    assert header["Segment0_Extent"] == "0 4 0 5 0 6" and header["Segment0_Color"] == "0.839216 0.152941 0.156863"
    back = read_volume(path)  # classes in the order of the segments
    assert np.array_equal(back.data, np.where(label() == 4, 3, label())) and np.allclose(back.affine, AFFINE)


def test_labels_are_written_in_the_format_that_is_asked_for(tmp_path: Path) -> None:
    for label_format, name in (("nifti", "a_seg.nii.gz"), ("seg.nrrd", "a_seg.seg.nrrd")):
        path = write_labels(tmp_path / "a_seg", label(), AFFINE, {1: "endo", 4: "x"}, label_format)  # type: ignore[arg-type]
        assert path == tmp_path / name and np.allclose(read_volume(path).affine, AFFINE)
    with pytest.raises(InputError, match=r"label_format must be nifti or seg.nrrd, got 'nrrd'"):
        write_labels(tmp_path / "b", label(), AFFINE, {}, "nrrd")  # type: ignore[arg-type]


def test_tables_hold_names_and_the_colours_of_the_pictures(tmp_path: Path) -> None:
    write_label_tables(tmp_path / "new", {1: "endo", 3: 'tissue "1"', 117: "costal cartilages"})
    slicer = (tmp_path / "new" / "labels.ctbl").read_text().splitlines()
    assert slicer[1:4] == ["# 118 values", "0 background 0 0 0 0", "1 endo 214 39 40 255"]
    assert slicer[5].startswith("117 costal_cartilages ")
    snap = (tmp_path / "new" / "labels.label.txt").read_text().splitlines()
    assert snap[2].split() == ["1", "214", "39", "40", "1", "1", "1", '"endo"'] and snap[3].endswith("\"tissue '1'\"")


def test_colours_differ_also_beyond_those_of_the_pictures() -> None:
    colours = [colour_of(i) for i in range(118)]
    assert len(set(colours)) == 118 and all(0 <= part <= 255 for colour in colours for part in colour)
    assert colours[1] == tuple(int(LABEL_COLOURS[1][i : i + 2], 16) for i in (1, 3, 5))
