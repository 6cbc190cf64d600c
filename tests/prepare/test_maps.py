"""prepare-maps: label maps of any classes, tissues behind them, windows of intensity, images without maps."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.entries import load_datalist, load_training_images
from semsynth.data.volumes import Volume
from semsynth.errors import InputError
from semsynth.prepare.maps import MapSettings, find_maps, largest_part, prepare_maps, redirected

SHAPE = (24, 20, 16)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def ct(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body (1050) in air (0) with bone (2000), two organs, and a couch that is not part of it."""
    rng = np.random.default_rng(seed)
    image = np.zeros(SHAPE)
    image[4:20, 4:16, 2:14] = 1050
    image[4:20, 4:6, 2:14] = 2000
    image[2:22, 18, :] = 900
    label = np.zeros(SHAPE)
    label[8:12, 8:12, 4:10] = 1
    label[13:16, 8:12, 4:10] = 2
    label[10, 10, 4:10][:seed] = 0  # every case has a map of its own
    return (image + rng.integers(0, 20, SHAPE)).astype(np.int16), label.astype(np.uint8)


def write(folder: Path, name: str, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), folder / name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases with maps, and two images without."""
    root = tmp_path_factory.mktemp("ct")
    listed: dict[str, Any] = {"training": [], "validation": [], "unlabelled": []}
    for i in range(6):
        image, label = ct(i)
        write(root / f"p{i}", "ct.nii.gz", image)
        entry = {"image": f"p{i}/ct.nii.gz"}
        if i < 4:
            write(root / f"p{i}", "map.nii.gz", label)
            entry["label"] = f"p{i}/map.nii.gz"
        listed["unlabelled" if i >= 4 else "validation" if i == 3 else "training"].append(entry)
    listed["classes"] = {"0": "background", "1": "cord", "2": "jaw"}
    (root / "datalist.json").write_text(json.dumps(listed))
    return root


def settings(**kwargs: Any) -> MapSettings:
    return MapSettings(**({"classes": ("cord", "jaw"), "window": (24.0, 2024.0), "k": 3, "sigma": 0.0} | kwargs))


def read(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
    image = nib.load(path)
    return np.asarray(image.dataobj), image


def test_command_prepares_maps_tissues_and_unlabelled_images(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["prepare-maps", "--input", str(source), "--output", str(out), "--window", "24,2024", "--k", "3"]
    assert main([*command, "--centers", "dataset", "--sigma", "0", "--modality", "CT"]) == 0
    content = json.loads((out / "datalist.json").read_text())
    assert content["num_classes"] == 5 and content["modality"] == {"0": "CT"}
    assert list(content["classes"].values()) == ["background", "cord", "jaw", "tissue 1", "tissue 2"]
    assert [len(content[key]) for key in ("training", "validation", "unlabelled")] == [3, 1, 2]
    label, _ = read(out / "p0" / "label.nii.gz")
    given = ct(0)[1]
    assert np.array_equal(np.where(label <= 2, label, 0), given)
    assert label[10, 14, 8] == 3 and label[10, 4, 8] == 4 and label[0, 0, 0] == 0
    assert not label[:, 18].any()  # the couch
    assert not (out / "p4" / "label.nii.gz").exists() and (out / "p4" / "qc.png").is_file()
    assert len(load_datalist(out / "datalist.json", num_classes=5)) == 3
    assert [e["case"] for e in load_training_images(out / "datalist.json")] == ["p0", "p1", "p2", "p4", "p5"]
    assert all("label" not in entry for entry in load_training_images(out / "datalist.json"))


def test_a_window_makes_the_same_of_a_value_in_every_case(source: Path, tmp_path: Path) -> None:
    prepare_maps(source, tmp_path / "out", settings(dtype="float32"))
    for case in ("p0", "p1"):
        image, _ = read(tmp_path / "out" / case / "image.nii.gz")
        raw = ct(int(case[1]))[0].astype(float)
        assert np.allclose(image, np.clip((raw - 24) / 2000, 0, 1), atol=1e-6)
    prepare_maps(source, tmp_path / "own", settings(window=None, dtype="float32"))
    image, _ = read(tmp_path / "own" / "p0" / "image.nii.gz")
    assert image.min() == 0.0 and image.max() == 1.0


def test_cropping_keeps_the_body_with_a_margin_and_where_it_is(source: Path, tmp_path: Path) -> None:
    prepare_maps(source, tmp_path / "out", settings(margin=2.0))
    image, header = read(tmp_path / "out" / "p0" / "image.nii.gz")
    assert image.shape == (18, 14, 14)  # 2 mm are one voxel, or less than one along the third axis
    assert np.allclose(header.affine[:3, 3], [6.0, 6.0, 3.0])


def test_size_crops_and_pads_around_the_classes(source: Path, tmp_path: Path) -> None:
    path = prepare_maps(source, tmp_path / "out", settings(size=(12, 24, 16)))
    label, _ = read(tmp_path / "out" / "p0" / "label.nii.gz")
    assert label.shape == (12, 24, 16)
    assert np.count_nonzero(label == 1) == 4 * 4 * 6 and np.count_nonzero(label == 2) == 3 * 4 * 6
    assert json.loads(path.read_text())["training"][0]["content"] == {"start": [0, 2, 0], "shape": [12, 20, 16]}


def test_spacing_resamples_image_and_map(source: Path, tmp_path: Path) -> None:
    prepare_maps(source, tmp_path / "out", settings(spacing=(4.0, 4.0, 3.0)))
    label, header = read(tmp_path / "out" / "p0" / "label.nii.gz")
    assert np.allclose(header.header.get_zooms(), (4, 4, 3)) and set(np.unique(label)) == {0, 1, 2, 3, 4}


def test_axes_correct_a_header_that_is_wrong(source: Path, tmp_path: Path) -> None:
    prepare_maps(source, tmp_path / "out", settings(axes="PLI"))
    label, header = read(tmp_path / "out" / "p0" / "label.nii.gz")
    # the first axis runs to posterior: it becomes the second, turned around
    given = ct(0)[1]
    assert nib.aff2axcodes(header.affine) == ("R", "A", "S")
    expected = given.transpose(1, 0, 2)[::-1, ::-1, ::-1]
    assert np.array_equal(np.where(label <= 2, label, 0), expected)


CODES = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]


@pytest.mark.parametrize("axes", CODES)
def test_any_axes_can_be_stated(axes: str) -> None:
    volume = Volume(np.zeros((4, 5, 6)), np.diag([2.0, 3.0, 4.0, 1.0]))
    turned = redirected(volume, axes)
    assert nib.aff2axcodes(turned.affine) == tuple(axes) and np.allclose(turned.spacing, (2, 3, 4))


def test_images_without_maps_keep_their_patients_in_training(source: Path, tmp_path: Path) -> None:
    # p4 and p5 have no maps; p0 to p3 are to be split, and p2 is the patient of p4's scan
    content = json.loads((source / "datalist.json").read_text())
    for key in ("training", "validation", "unlabelled"):
        for entry in content[key]:
            name = entry["image"].split("/")[0]
            entry["case"] = {"p4": "p2_later"}.get(name, name)
            entry |= {role: str(source / entry[role]) for role in ("image", "label") if role in entry}
    content["training"] += content.pop("validation")
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    for seed in range(4):
        path = prepare_maps(tmp_path / "datalist.json", tmp_path / f"out{seed}", settings(), seed=seed,
                            fractions=(0.5, 0.5), patient_regex=r"^(p\d)")  # fmt: skip
        assert "p2" in [entry["case"] for entry in json.loads(path.read_text())["training"]]


def test_what_is_prepared_is_kept_and_other_settings_are_refused(source: Path, tmp_path: Path) -> None:
    prepare_maps(source, tmp_path / "out", settings())
    record = tmp_path / "out" / "p0" / "prepare.json"
    before = record.stat().st_mtime_ns
    prepare_maps(source, tmp_path / "out", settings())
    assert record.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="was prepared with other settings"):
        prepare_maps(source, tmp_path / "out", settings(k=2))
    prepare_maps(source, tmp_path / "out", settings(k=2), overwrite=True)
    assert read(tmp_path / "out" / "p0" / "label.nii.gz")[0].max() == 3


def test_a_pattern_finds_maps_and_unlabelled_images(source: Path, tmp_path: Path) -> None:
    found = find_maps(f"{source}/p*/ct.nii.gz", label=f"{source}/p*/map.nii.gz")
    assert len(found) == 6  # two of them without the map's file: the check names them
    with pytest.raises(InputError, match=r"map\.nii\.gz"):
        prepare_maps(f"{source}/p*/ct.nii.gz", tmp_path / "out", settings(), label=f"{source}/p*/map.nii.gz")
    assert not (tmp_path / "out").exists()


def test_unlabelled_images_of_held_out_patients_are_refused(source: Path, tmp_path: Path) -> None:
    path = prepare_maps(source, tmp_path / "out", settings(), patient_regex=r"^(p\d)")
    content = json.loads(path.read_text())
    content["patient_regex"] = "^(p)"
    content["training"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="patient p in"):
        load_training_images(path)


def test_a_held_out_scan_under_another_name_is_refused(source: Path, tmp_path: Path) -> None:
    path = prepare_maps(source, tmp_path / "out", settings())
    content = json.loads(path.read_text())
    content["unlabelled"].append({"case": "another", "image": content["validation"][0]["image"]})
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the same voxels as"):
        load_training_images(path)
    content["training"], content["validation"] = [], []
    content["unlabelled"].pop()
    path.write_text(json.dumps(content))
    assert len(load_training_images(path)) == 2


def test_classes_beyond_those_named_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class"):
        prepare_maps(source, tmp_path / "out", settings(classes=("cord",)))
    assert not (tmp_path / "out").exists()


def test_names_come_from_a_file(source: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("spinal cord\nmandible\n")
    out = tmp_path / "out"
    assert main(["prepare-maps", "--input", str(source), "--output", str(out), "--classes", str(names)]) == 0
    content = json.loads((out / "datalist.json").read_text())
    assert content["classes"] == {"0": "background", "1": "spinal cord", "2": "mandible"}


def test_largest_part_is_the_largest() -> None:
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[0, 0, :2] = True
    mask[3:5, 3:5, 3:5] = True
    assert np.argwhere(largest_part(mask)).min() == 3 and largest_part(mask).sum() == 8
    assert not largest_part(np.zeros((3, 3, 3), dtype=bool)).any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"window": (5.0, 5.0)}, "window must be two rising"),
        ({"spacing": (1.0, 0.0, 1.0)}, "--spacing must be three numbers of mm above 0"),
        ({"size": (4, 32, 32)}, "--size must be three numbers"),
        ({"k": -1}, "--k, --sigma and --margin"),
        ({"classes": ("a", "a")}, "different names"),
        ({"classes": ()}, "names of the classes are needed"),
        ({"classes": tuple(map(str, range(255)))}, "needs 1 to 254 classes"),
        ({"centers": (0.5, 0.1, 0.9)}, "rising intensities"),
        ({"axes": "RRS"}, "--axes must be three of"),
        ({"dtype": "int8"}, "--dtype must be"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**bad)
