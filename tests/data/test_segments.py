"""Files with named segments: classes by name, layers, cropped grids, values that skip numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
from semsynth.data.check import Entry, Rules, check_cases
from semsynth.data.entries import load_datalist, load_label_maps
from semsynth.data.findings import FindingError
from semsynth.data.headers import on_grid, read_header
from semsynth.data.raw import check_input, find_cases, load_case
from semsynth.data.segments import Selection, relabelled, split_segment
from semsynth.data.transforms import LoadTargetd
from semsynth.data.volumes import copy_clean, read_volume
from semsynth.data.voxels import voxel_hash
from semsynth.errors import InputError
from semsynth.evaluation.sources import load_real
from semsynth.prepare.atrium import Settings, prepare

SHAPE = (12, 10, 8)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = LPS @ np.array([[0.5, 0, 0, -3.0], [0, 0.5, 0, 7.0], [0, 0, 2.0, 11.5], [0, 0, 0, 1]])


def masks() -> dict[str, np.ndarray]:
    cavity, wall = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    wall[3:9, 3:8, 2:6] = True
    cavity[4:8, 4:7, 2:6] = True
    return {"cavity": cavity, "wall": wall & ~cavity}


def plain_map() -> np.ndarray:
    parts = masks()
    return (parts["cavity"] + 2 * parts["wall"]).astype(np.uint8)


def grid(start: tuple[int, ...] = (0, 0, 0), affine: np.ndarray = AFFINE) -> dict[str, Any]:
    lps = LPS @ affine
    return {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": (lps @ [*start, 1])[:3],
        "kinds": ["domain"] * 3,
    }


def keys(number: int, name: str, value: int, layer: int = 0) -> dict[str, str]:
    found = {"ID": f"Segment_{number + 1}", "Name": name, "LabelValue": str(value), "Layer": str(layer)}
    return {f"Segment{number}_{key}": text for key, text in found.items()}


def slicer_file(path: Path, order: tuple[str, ...] = ("cavity", "wall"), *, crop: bool = False) -> Path:
    """As 3D Slicer saves it: one layer, segments numbered in their order, cropped on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts, header, data = masks(), {}, np.zeros(SHAPE, np.uint8)
    for number, name in enumerate(order):
        data[parts.get(name, np.zeros(SHAPE, bool))] = number + 1
        header |= keys(number, name, number + 1)
    start = (3, 3, 2) if crop else (0, 0, 0)
    data = data[3:9, 3:8, 2:6] if crop else data
    nrrd.write(str(path), data, grid(start) | header | {"Segmentation_ReferenceImageExtentOffset": "3 3 2"})
    return path


def layered_file(path: Path) -> Path:
    """Wall and cavity overlap: two layers, each with the value 1; a third segment shares the first layer."""
    parts = masks()
    first = np.where(parts["cavity"], 1, 0)
    first[0, 0, 0] = 2
    data = np.stack([first, parts["wall"] | parts["cavity"]]).astype(np.uint8)
    header = grid() | {"kinds": ["list", *["domain"] * 3]}
    header["space directions"] = np.vstack([[np.nan] * 3, header["space directions"]])
    segments = keys(0, "Cavity", 1, 0) | keys(1, "marker", 2, 0) | keys(2, "left_Wall", 1, 1)
    nrrd.write(str(path), data, header | segments)
    return path


def image_file(path: Path, seed: int = 0, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).integers(0, 99, shape).astype(np.int16), affine), path)
    return path


@pytest.mark.parametrize("order", [("cavity", "wall"), ("wall", "cavity"), ("scar", "wall", "cavity")])
def test_classes_go_by_names_in_whatever_order_segments_stand(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = slicer_file(tmp_path / "x.seg.nrrd", order)
    header = read_header(path, Selection(("CAVITY", "Wall")))
    assert np.array_equal(read_volume(path, header).data, plain_map())
    kinds = {note.finding: note.found for note in header.notes}
    assert kinds.get("segments in another order than the classes") == (None if order[0] == "cavity" else "wall, cavity")
    assert kinds.get("segments that no class names") == ("scar" if "scar" in order else None)


def test_without_names_classes_are_segments_in_the_files_order_whatever_their_values(tmp_path: Path) -> None:
    data = np.where(plain_map() == 2, 7, plain_map() * 3).astype(np.int16)
    nrrd.write(str(tmp_path / "x.seg.nrrd"), data, grid() | keys(0, "cavity", 3) | keys(1, "wall", 7))
    assert np.array_equal(read_volume(tmp_path / "x.seg.nrrd").data, plain_map())


def test_layers_are_read_and_the_later_class_wins_with_a_warning(tmp_path: Path) -> None:
    path, parts = layered_file(tmp_path / "x.seg.nrrd"), masks()
    volume = read_volume(path, read_header(path, Selection(("left wall", "cavity"))))
    assert volume.data.shape == SHAPE and np.allclose(volume.affine, AFFINE)
    assert np.array_equal(volume.data == 2, parts["cavity"]) and np.array_equal(volume.data == 1, parts["wall"])
    assert [(note.finding, note.found) for note in volume.notes] == [
        ("segments overlap", f"{parts['cavity'].sum()} voxels in several")
    ]
    other = read_volume(path, read_header(path, Selection(("cavity", "left-wall"))))
    assert not (other.data == 1).any() and np.array_equal(other.data == 2, parts["cavity"] | parts["wall"])
    assert np.array_equal(read_volume(f"{path}#cavity").data, parts["cavity"])


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAL"])
def test_a_cropped_file_comes_back_to_the_images_grid_without_loss(tmp_path: Path, axes: str) -> None:
    whole = nib.Nifti1Image(plain_map(), AFFINE)
    change = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes))
    turned = whole.as_reoriented(change)
    image = read_header(image_file(tmp_path / "image.nii.gz", affine=turned.affine, shape=turned.shape))
    header = read_header(slicer_file(tmp_path / "x.seg.nrrd", crop=True))
    assert header.shape == (6, 5, 4)
    volume = read_volume(header.path, on_grid(header, image))
    assert np.array_equal(volume.data, np.asarray(turned.dataobj)) and np.array_equal(volume.affine, image.affine)


def test_grids_that_do_not_coincide_are_left_to_the_check(tmp_path: Path) -> None:
    slicer_file(tmp_path / "x.seg.nrrd", crop=True)
    shifted = AFFINE.copy()
    shifted[0, 3] += 0.1  # a fifth of a voxel
    image = image_file(tmp_path / "image.nii.gz", affine=shifted)
    report = check_cases([Entry("a", {"image": image, "label": tmp_path / "x.seg.nrrd"})])
    assert [finding.finding for finding in report.errors] == ["shape differs from the image's"]


def test_labelled_voxels_outside_of_the_image_are_an_error_and_background_there_is_cut(tmp_path: Path) -> None:
    path = slicer_file(tmp_path / "x.seg.nrrd")
    small = AFFINE.copy()
    small[:3, 3] = (AFFINE @ [3, 3, 2, 1])[:3]
    image = read_header(image_file(tmp_path / "a.nii.gz", affine=small, shape=(6, 5, 4)))
    assert np.array_equal(read_volume(path, on_grid(read_header(path), image)).data, plain_map()[3:9, 3:8, 2:6])
    image = read_header(image_file(tmp_path / "b.nii.gz", affine=small, shape=(5, 5, 4)))
    with pytest.raises(InputError, match="labelled voxels outside of the image: found 20 of them"):
        read_volume(path, on_grid(read_header(path), image))


@pytest.mark.parametrize(
    ("header", "names", "message"),
    [
        (keys(0, "cavity", 1) | keys(1, "wall", 2), ("cavity", "scar"), "segments cavity, wall, expected also scar"),
        (keys(0, "A b", 1) | keys(1, "a-B", 2), ("a_b",), "several segments of one name"),
        (keys(0, "cavity", 1) | keys(1, "wall", 2, layer=1), (), "unusable segment: found Segment1 with .* Layer '1'"),
        (keys(0, "cavity", 1), (), "voxels without a segment: found the values 2"),
        (keys(0, "a", 1) | {"Segmentation_MasterRepresentation": "Fractional labelmap"}, (), "no binary label map"),
        (keys(0, "a", 1) | {"Segmentation_Extent": "3 8 3 7 2 5"}, (), "cropped by an old 3D Slicer"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_one_clear_error(
    tmp_path: Path, header: dict[str, str], names: tuple[str, ...], message: str
) -> None:
    nrrd.write(str(tmp_path / "x.seg.nrrd"), plain_map(), grid() | header)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / "x.seg.nrrd", read_header(tmp_path / "x.seg.nrrd", Selection(names)))


def test_an_old_file_has_a_layer_per_segment_without_saying_so(tmp_path: Path) -> None:
    data = np.stack(list(masks().values()), axis=-1).astype(np.uint8)
    header = grid() | {"kinds": [*["domain"] * 3, "list"], "Segment0_Name": "cavity", "Segment1_Name": "wall"}
    header["space directions"] = np.vstack([header["space directions"], [np.nan] * 3])
    nrrd.write(str(tmp_path / "x.seg.nrrd"), data, header)
    assert np.array_equal(read_volume(tmp_path / "x.seg.nrrd").data, plain_map())


def test_masks_name_their_segment_after_a_hash(tmp_path: Path) -> None:
    for i in range(2):
        image_file(tmp_path / f"P{i}" / "lge.nii.gz", i)
        slicer_file(tmp_path / f"P{i}" / "s.seg.nrrd", ("wall", "cavity")[:: 1 - 2 * i], crop=True)
    (case, _) = find_cases(
        f"{tmp_path}/P*/lge.nii.gz", endo=f"{tmp_path}/P*/s.seg.nrrd#Cavity", wall=f"{tmp_path}/P*/s.seg.nrrd#wall"
    )
    loaded = load_case(case)
    assert np.array_equal(loaded.endo, masks()["cavity"])
    assert loaded.wall is not None and np.array_equal(loaded.wall, masks()["wall"])
    entry = {"image": "P1/lge.nii.gz", "endo": "P1/s.seg.nrrd#cavity"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry]}))
    assert np.array_equal(load_case(find_cases(tmp_path)[0]).endo, masks()["cavity"])
    assert not check_input(tmp_path).errors
    with pytest.raises(InputError, match=r"several segments for one mask: .* such as 's.seg.nrrd#wall'"):
        load_case(find_cases(f"{tmp_path}/P0/lge.nii.g*", endo=f"{tmp_path}/P0/s.seg.nrrd")[0])
    assert split_segment("a#b/s.seg.nrrd#left atrium") == ("a#b/s.seg.nrrd", "left atrium")
    assert split_segment("a#1/s.nrrd") == ("a#1/s.nrrd", None)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_a_mask_is_a_value_of_a_label_map_without_named_segments(tmp_path: Path, ending: str) -> None:
    image_file(tmp_path / "imagesTr" / "la_1_0000.nii.gz")
    path = tmp_path / "labelsTr" / f"la_1{ending}"
    path.parent.mkdir()
    if ending == ".nrrd":
        nrrd.write(str(path), plain_map(), grid())
    else:
        nib.save(nib.Nifti1Image(plain_map().astype(np.float32), AFFINE), path)
    images, labels = f"{tmp_path}/imagesTr/*_0000.nii.gz", f"{tmp_path}/labelsTr/*{ending}"
    (case,) = find_cases(images, endo=f"{labels}#1", wall=f"{labels}#2")
    loaded = load_case(case)
    assert np.array_equal(loaded.endo, masks()["cavity"])
    assert loaded.wall is not None and np.array_equal(loaded.wall, masks()["wall"])
    target = LoadTargetd([1, 2])({"endo": f"{path}#1", "wall": f"{path}#2"})
    assert np.array_equal(target["label"][0].numpy(), plain_map())
    entry = {"image": "imagesTr/la_1_0000.nii.gz", "endo": f"labelsTr/la_1{ending}#1"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry]}))
    assert not check_input(tmp_path).errors
    assert check_input(tmp_path).voxels["la_1"]["endo"] == voxel_hash(masks()["cavity"])
    copy = read_volume(copy_clean(f"{path}#2", tmp_path / "copy.nii.gz"))
    assert np.array_equal(copy.data, masks()["wall"])


def test_a_mask_of_a_label_map_that_is_not_told_or_not_there_says_what_to_give(tmp_path: Path) -> None:
    image_file(tmp_path / "i" / "la_1.nii.gz")
    (tmp_path / "l").mkdir()
    nib.save(nib.Nifti1Image(plain_map(), AFFINE), tmp_path / "l" / "la_1.nii.gz")
    for named, message in (
        ("", r"must hold only 0 and 1: found 0, 1, 2, .* of the structure, such as 'la_1.nii.gz#1'"),
        ("#cavity", r"no named segments: .* expected a segment 'cavity'; give the value .*, such as #1"),
        ("#0", r"no named segments"),
        ("#3", r"la_1.nii.gz#3: endo mask is empty"),
    ):
        images, labels = f"{tmp_path}/i/*.nii.gz", f"{tmp_path}/l/*.nii.gz{named}"
        with pytest.raises(InputError, match=message):
            prepare(images, tmp_path / "out", Settings(), endo=labels)
        said = check_input(images, endo=labels)
        assert re.search(message, "\n".join(map(str, said.findings)))


def test_trainings_read_masks_by_the_name_of_their_segment(tmp_path: Path) -> None:
    path = slicer_file(tmp_path / "s.seg.nrrd", ("wall", "cavity"))
    loaded = LoadTargetd([1, 2])({"endo": f"{path}#cavity", "wall": f"{path}#wall"})
    assert np.array_equal(loaded["label"][0].numpy(), plain_map())


def data_set(folder: Path, orders: list[tuple[str, ...]], classes: list[str] | None = None) -> Path:
    entries = []
    for i, order in enumerate(orders):
        image_file(folder / f"P{i}" / "lge.nii.gz", i)
        slicer_file(folder / f"P{i}" / "seg.seg.nrrd", order)
        entries.append({"image": f"P{i}/lge.nii.gz", "label": f"P{i}/seg.seg.nrrd", "patient": "one"})
    content: dict[str, Any] = {"training": entries}
    if classes:
        content["classes"] = {str(i): name for i, name in enumerate(["background", *classes])}
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


def test_check_names_the_file_whose_segments_stand_in_another_order(tmp_path: Path) -> None:
    report = check_input(data_set(tmp_path, [("cavity", "wall"), ("wall", "cavity")]))
    assert [(f.case, f.finding, f.found) for f in report.errors] == [("P1", "segments differ", "wall, cavity")]
    report = check_input(data_set(tmp_path, [("cavity", "wall"), ("wall", "cavity")], ["cavity", "wall"]))
    assert not report.errors  # by name, as prepare-maps reads them
    assert [f.case for f in report.warnings if "another order" in f.finding] == ["P1"]


def test_trainings_take_segments_in_the_order_of_the_classes_alone(tmp_path: Path) -> None:
    data_set(tmp_path, [("cavity", "wall")] * 2, ["cavity", "wall"])
    assert len(load_datalist(tmp_path / "datalist.json")) == 2
    data_set(tmp_path, [("cavity", "wall")] * 2, ["wall", "cavity"])
    with pytest.raises(InputError, match="segments differ: found cavity, wall, expected wall, cavity, as the classes"):
        load_datalist(tmp_path / "datalist.json")
    with pytest.raises(InputError, match="whose segments are not its classes"):
        load_real(tmp_path)
    slicer_file(tmp_path / "P0" / "seg.seg.nrrd", ("wall", "cavity"), crop=True)
    with pytest.raises(InputError, match=r"shape differs .*if it was only cropped, 'semsynth prepare-maps'"):
        load_datalist(tmp_path / "datalist.json")


def test_weights_of_other_classes_know_segments_by_their_names(tmp_path: Path) -> None:
    slicer_file(tmp_path / "P0" / "seg.seg.nrrd", ("wall", "cavity"))
    metadata = tmp_path / "configs" / "metadata.json"
    metadata.parent.mkdir()
    metadata.write_text(json.dumps({"classes": {"0": "background", "1": "cavity", "2": "wall"}}))
    with pytest.raises(InputError, match="remap 1 → 2 "):
        load_label_maps(tmp_path, f"{tmp_path}/P*/seg.seg.nrrd", metadata=metadata)


def test_relabelled_makes_consecutive_classes_and_refuses_values_without_one() -> None:
    data, path = np.array([0, 51, 2, 1, 51], dtype=np.int16), Path("seg.nii.gz")
    assert relabelled(data, (1, 2, 51), path).tolist() == [0, 3, 2, 1, 3]
    assert relabelled(np.array([0, 70000, -3]), (-3, 70000), path).tolist() == [0, 2, 1]
    assert relabelled(np.array([0.0, 51.0002, 1.9999]), (2, 51), path).tolist() == [0, 2, 1]
    assert relabelled(np.array([0.0, 51.0, 2.5]), (51,), path).tolist() == [0.0, 51.0, 2.5]
    for other in (data, data.astype(float)):
        with pytest.raises(FindingError, match=r"seg.nii.gz: .*found the values 2, expected 0 and those of the table"):
            relabelled(other, (1, 51), path)


def test_voxels_of_one_anatomy_are_known_whatever_the_order_and_crop(tmp_path: Path) -> None:
    cases = []
    for i, (order, crop) in enumerate(((("cavity", "wall"), False), (("wall", "cavity"), True))):
        files = {"image": image_file(tmp_path / f"{i}.nii.gz", i), "label": tmp_path / f"{i}.seg.nrrd"}
        slicer_file(files["label"], order, crop=crop)
        cases.append(Entry(f"P{i}", files, selections={"label": Selection(("cavity", "wall"))}))
    report = check_cases(cases, Rules(3, experts=()))
    assert [f.finding for f in report.warnings if f.finding.startswith("two")] == ["two cases with one label map"]
