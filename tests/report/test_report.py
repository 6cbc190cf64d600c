"""Pictures: planes are looked at the right way round, files are whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread
from semsynth.data.volumes import write_image, write_label
from semsynth.errors import InputError
from semsynth.report.pictures import Panel, Row, centre_of, comparison_rows, plane, save_comparison, save_planes


def test_planes_are_in_radiological_order():
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1  # right, anterior, superior
    assert plane(volume, "axial", (3, 4, 5))[0, 0] == 1  # right on the left, anterior up
    assert plane(volume, "coronal", (3, 4, 5))[0, 0] == 1  # right on the left, head up
    assert plane(volume, "sagittal", (3, 4, 5))[0, 0] == 1  # anterior on the left, head up


def test_the_centre_is_the_cavitys_else_any_classs_else_the_volumes():
    label = np.zeros((9, 9, 9), dtype=int)
    assert centre_of(label) == (4, 4, 4)
    label[0, 0, 0] = 3
    assert centre_of(label) == (0, 0, 0)
    label[6:9, 2, 2] = 1
    assert centre_of(label) == (7, 2, 2)


def test_each_line_is_as_high_as_its_plane(tmp_path):
    flat = Row("a", [Panel("x", np.zeros((40, 40, 10)))], (1, 1, 1), (20, 20, 5))
    tall = Row("a", [Panel("x", np.zeros((40, 40, 40)))], (1, 1, 1), (20, 20, 20))
    heights = [imread(save_planes(tmp_path / f"{i}.png", [row])).shape[0] for i, row in enumerate((flat, tall))]
    assert heights[0] < 0.6 * heights[1]


def test_label_maps_have_colours_and_images_have_none(tmp_path):
    label = np.ones((8, 8, 8), dtype=int)
    picture = imread(save_planes(tmp_path / "a.png", [Row("a", [Panel("x", label, True)], (1, 1, 1), (4, 4, 4))]))
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 2, :3]
    assert middle[0] > 0.7 and middle[1] < 0.3  # endo is red


def synthetic_folder(folder):
    folder.mkdir()
    affine = np.diag([2.0, 2, 2, 1])
    write_image(folder / "a_synthetic.nii.gz", np.random.default_rng(0).random((8, 8, 8)), affine, "int16")
    write_label(folder / "a.nii.gz", np.ones((8, 8, 8), dtype=int), affine)
    entry = {"case": "a", "image": "a_synthetic.nii.gz", "label": "a.nii.gz"}
    (folder / "datalist.json").write_text(json.dumps({"num_classes": 4, "training": [entry]}))


def test_synthetic_and_real_stand_side_by_side(tmp_path):
    synthetic_folder(tmp_path / "synthetic")
    assert save_comparison(tmp_path / "synthetic", tmp_path / "a.png").stat().st_size > 1000
    with_real = save_comparison(tmp_path / "synthetic", tmp_path / "b.png", real=tmp_path / "synthetic")
    assert imread(with_real).shape[1] > 1.3 * imread(tmp_path / "a.png").shape[1]


def test_a_case_without_its_real_image_is_named(tmp_path):
    synthetic_folder(tmp_path / "s")
    (tmp_path / "other.json").write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match="has no image for a"):
        save_comparison(tmp_path / "s", tmp_path / "a.png", real=tmp_path / "other.json")


def sampled_data_set(folder, label, seed):
    """Two samples of one label map, as a bundle's inference writes them."""
    folder.mkdir()
    write_label(folder / "label.nii.gz", label, np.eye(4))
    entries = []
    for i in range(2):
        image = np.random.default_rng(seed + i).random(label.shape).astype(np.float32)
        write_image(folder / f"c_s{i}.nii.gz", image, np.eye(4), "float32")
        entries.append({"case": f"c_s{i}", "source_case": "c", "sample": i, "image": f"c_s{i}.nii.gz",
                        "label": "label.nii.gz"})  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps({"training": entries[::-1]}))
    return folder


def test_several_systems_and_samples_stand_side_by_side_with_each_others_label_map(tmp_path):
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:5, 2:5, 2:5] = 1
    a, same, other = (sampled_data_set(tmp_path / name, values, seed) for name, values, seed in
                      (("a", label, 0), ("b", label, 5), ("c", label * 2, 9)))  # fmt: skip
    systems = {"one": a, "two": same, "three": other}
    (row,) = comparison_rows(systems, samples=2)
    titles = ["label map", "one 1", "one 2", "two 1", "two 2", "label map", "three 1", "three 2"]
    assert [panel.title for panel in row.panels] == titles and row.name == "c"
    first = np.random.default_rng(0).random((8, 8, 8))
    assert np.allclose(row.panels[1].volume, first, atol=1e-3), "samples stand in their order"
    assert row.panels[5].volume.max() == 2
    heights = [
        imread(save_comparison(systems, tmp_path / "x.png", samples=2, planes=planes)).shape[0]
        for planes in (["axial"], ["axial", "coronal"])
    ]
    assert heights[0] < heights[1], "only the planes that are asked for"


def test_pictures_of_nothing_and_of_unknown_planes_are_refused(tmp_path):
    a = sampled_data_set(tmp_path / "a", np.ones((8, 8, 8), np.uint8), 0)
    b = sampled_data_set(tmp_path / "b", np.ones((8, 8, 8), np.uint8), 0)
    (b / "datalist.json").write_text((b / "datalist.json").read_text().replace('"c"', '"d"'))
    with pytest.raises(InputError, match="no case in common"):
        save_comparison({"a": a, "b": b}, tmp_path / "x.png")
    with pytest.raises(InputError, match="planes must be of axial, coronal, sagittal, got oblique"):
        save_comparison(a, tmp_path / "x.png", planes=["oblique"])
