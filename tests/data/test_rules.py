"""Each rule of a usable volume, label map or mask, at its borders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.headers import Header, read_header
from semsynth.data.rules import (
    check_axes,
    check_grid,
    check_intensities,
    check_label,
    check_mask,
    check_masks_together,
    check_patch,
    check_same_grid,
    looks_swapped,
    suggest_mapping,
    values_of,
)
from semsynth.data.volumes import Volume


def header(
    folder: Path, shape: tuple[int, int, int] = (8, 7, 6), affine: np.ndarray | None = None, n: str = "a"
) -> Header:
    path = folder / f"{n}.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4) if affine is None else affine), path)
    return read_header(path)


def kinds(findings: list) -> list[tuple[str, str]]:
    return [(finding.severity, finding.finding) for finding in findings]


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((8, 7, 6), 1.0, []),
        ((8, 7, 1), 1.0, ["single slice"]),
        ((8, 7, 6), 0.05, []),
        ((8, 7, 6), 0.049, ["implausible voxel size"]),
        ((8, 7, 6), 20.0, []),
        ((8, 7, 6), 20.1, ["implausible voxel size"]),
    ],
)
def test_slices_and_voxel_sizes(tmp_path, shape, size, expected):
    found = check_grid(header(tmp_path, shape, np.diag([size, 1.0, 1.0, 1.0])))
    assert kinds(found) == [("error", kind) for kind in expected]


def test_other_axes_than_ras_are_worth_a_warning(tmp_path):
    assert check_axes(header(tmp_path)) == []
    (found,) = check_axes(header(tmp_path, affine=np.diag([-1.0, -1.0, 1.0, 1.0])))
    assert (found.severity, found.found) == ("warning", "LPS")


def test_the_patch_is_compared_along_the_patients_axes(tmp_path):
    turned = np.array([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])  # axes A, S, R
    seen = header(tmp_path, (8, 7, 6), turned)
    assert check_patch(seen, [6, 8, 7]) == []
    (found,) = check_patch(seen, [7, 8, 7])
    assert found.severity == "warning" and found.found == "6 × 8 × 7 voxels" and found.expected == "at least 7 × 8 × 7"
    assert check_patch(seen, [24, 16, 14], spacing=[0.5, 0.5, 0.5]) == [], "6 voxels of 2 mm are 24 of 0.5 mm"
    (found,) = check_patch(seen, [25, 16, 14], spacing=[0.5, 0.5, 0.5])
    assert found.found == "24 × 16 × 14 voxels" and found.fix.startswith("nothing to do: used whole, or padded")
    assert check_patch(seen, [6, 8, 7], shape=[5, 8, 7]), "the case's own shape, not the padded file's"


def test_shape_then_voxel_size_then_the_rest_of_the_affine(tmp_path):
    image = header(tmp_path, affine=np.diag([0.5, 1.0, 2.5, 1.0]))

    def moved(**entries):
        affine = image.affine.copy()
        for entry, value in entries.items():
            affine[int(entry[1]), int(entry[2])] += value
        return affine

    # 1 % of a voxel: 0.005 mm along the first axis, 0.025 mm along the third; sizes count at the far corner
    for near in (moved(a03=0.0049), moved(a23=0.0249), moved(a22=0.0049)):
        assert check_same_grid(header(tmp_path, affine=near, n="b"), image) == []
    for shape, affine, kind in (
        ((8, 7, 5), image.affine, "shape differs from the image's"),
        ((8, 7, 6), moved(a22=0.0051), "voxel size differs from the image's"),
        ((8, 7, 6), moved(a03=0.0051), "affine differs from the image's"),
        ((8, 7, 6), moved(a01=0.001), "affine differs from the image's"),
    ):
        assert kinds(check_same_grid(header(tmp_path, shape, affine, n="b"), image)) == [("error", kind)]
    (found,) = check_same_grid(header(tmp_path, affine=moved(a22=0.0051), n="b"), image)
    assert found.found == "0.5 × 1 × 2.5051 mm", "as many digits as show the difference"
    assert "if both show the same voxels, copy the image's header" in found.fix


def test_another_voxel_order_on_the_images_grid_is_a_warning(tmp_path):
    image = header(tmp_path, affine=np.diag([0.5, 1.0, 2.5, 1.0]))
    flipped = image.affine @ np.array([[-1.0, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    (found,) = check_same_grid(header(tmp_path, affine=flipped, n="b"), image)
    assert (found.severity, found.found, found.expected) == ("warning", "LAS", "RAS")
    turned = image.affine @ np.eye(4)[[1, 2, 0, 3]].T  # its axes are the image's third, first and second
    assert kinds(
        check_same_grid(header(tmp_path, (6, 8, 7), image.affine @ np.eye(4)[:, [2, 0, 1, 3]], n="b"), image)
    ) == [("warning", "voxel order differs from the image's")]
    assert kinds(check_same_grid(header(tmp_path, (8, 7, 6), turned, n="b"), image)) == [
        ("error", "shape differs from the image's")
    ]


def test_where_one_file_says_nothing_of_orientation_it_is_never_to_be_resampled(tmp_path):
    image, mask = header(tmp_path), header(tmp_path, affine=np.diag([-1.0, 1, 1, 1]), n="b")
    bare = replace(image, oriented=False)
    for pair in ((mask, bare), (replace(mask, oriented=False), image)):
        (found,) = check_same_grid(*pair)
        assert found.severity == "error" and found.finding == "no orientation, but the other file has one"
        assert "copy the header of" in found.fix and "do not resample" in found.fix
    assert found.file.endswith("b.nii.gz") and "header of a.nii.gz" in found.fix
    assert check_same_grid(replace(image, oriented=False), bare) == []


def test_an_image_is_finite_and_not_constant():
    assert check_intensities("a", np.array([0.0, 1.0])) == []
    assert kinds(check_intensities("a", np.zeros(4))) == [("error", "image is constant")]
    (found,) = check_intensities("a", np.array([np.nan, 1.0, np.inf]))
    assert found.finding == "NaN or infinite voxels in the image" and found.found == "2 of 3"
    (found,) = check_intensities("a", np.array([3e38, 3e38, 1.0], np.float32))
    assert found.finding == "intensities beyond all measure", "their sum overflows, they are finite"


@pytest.mark.parametrize(
    ("values", "count", "finding"),
    [
        ([0, 1, 2, 3], 4, None),
        ([0, 1, 2, 4], 4, "label values out of range"),
        ([0, 1, -1], 4, "label values out of range"),
        ([0, 1, 254], None, None),
        ([0, 1, 255], None, "label values out of range"),
        ([0.0, 1.0], 4, None),
        ([0.0, 0.5], 4, "label values are not whole numbers"),
        ([0.0, np.nan], 4, "NaN or infinite voxels in the label map"),
        ([0, 0], 4, "label map is empty"),
        ([0, 3], 4, "tissue clusters, but neither endo nor wall"),
        ([0, 0.9995, 2.9999999], 4, "label values are not quite whole numbers"),
        (np.float32([0, 1.0000001]), 4, "label values are not quite whole numbers"),
        ([0, 0.99], 4, "label values are not whole numbers"),
        ([0, 2, 3], 4, None),
        ([0, 2], 4, None),
    ],
)
def test_label_maps(tmp_path, values, count, finding):
    found = [f.finding for f in check_label(header(tmp_path), np.array(values), count)]
    assert found == ([] if finding is None else [finding])
    if finding == "tissue clusters, but neither endo nor wall":
        assert check_label(header(tmp_path), np.array(values), count, experts=()) == []


@pytest.mark.parametrize(
    ("values", "last", "advice"),
    [
        ([0, 255], 3, "map 255 → 1"),
        ([0, 1, 2, 255], 3, "map 255 → 0 if it marks voxels to ignore, otherwise to its class in 0…3"),
        (
            [0, 1, 2, 5],
            3,
            "set num_classes to 6 (for prepare-maps: 5 names in --classes); or 'semsynth prepare-maps --relabel'",
        ),
        ([0, 1, 2, 3], 2, "set num_classes to 4, or prepare the maps with another --k"),
        ([0, 1, 5], 3, "set num_classes to 6"),
        ([0, 1, 254], 3, "set num_classes to 255"),
        ([-1, 0, 1], 3, "map every value to its class in 0…3"),
        ([0, 100, 200], 3, "map every value to its class in 0…3"),
        ([0, 1, 300], 3, "map every value to its class in 0…3"),
    ],
)
def test_what_to_do_about_values_out_of_range(values, last, advice):
    assert suggest_mapping(np.array(values), last).startswith(advice)


def test_masks():
    for values in ([0, 1], [0, 255], [1, 1], [0.0, 1.0]):
        assert check_mask("a", np.array(values), "endo") == []
    assert kinds(check_mask("a", np.zeros(3), "wall")) == [("warning", "wall mask is empty")]
    for values in ([0, 0.9999], [1e-4, 1], [0, 255.0001]):
        assert kinds(check_mask("a", np.array(values), "endo")) == [
            ("warning", "label values are not quite whole numbers")
        ]
    for values in ([0, 1, 255], [0, 2], [0, 0.5], [-1, 0]):
        assert kinds(check_mask("a", np.array(values), "endo")) == [("error", "endo mask must hold only 0 and 1")]
    assert kinds(check_mask("a", np.array([np.inf]), "endo")) == [("error", "NaN or infinite voxels in the endo mask")]


def test_an_image_in_the_label_maps_place_is_recognised():
    many, few = np.arange(1000), np.arange(1000) % 3
    assert looks_swapped(image=few, label=many) and looks_swapped(image=few, label=many + 0.5)
    assert not looks_swapped(image=many, label=few) and not looks_swapped(image=many, label=many)
    assert not looks_swapped(image=np.arange(1000) % 32, label=np.arange(1000) % 32)
    assert looks_swapped(image=np.arange(1000) % 32, label=np.arange(1000) % 33), "at the border"
    assert not looks_swapped(image=few, label=np.arange(1000) % 32), "as many classes as a label map may have"
    assert not looks_swapped(image=np.arange(1000) % 33, label=many), "an image of few intensities"
    fractions = np.array([0.5, 1.5, 2.5])
    assert looks_swapped(image=np.array([0, 1]), label=fractions), "fractions are no classes, however few"
    assert not looks_swapped(image=fractions[:2], label=many) and not looks_swapped(np.array([0, 1, 2]), fractions)


def shell(open_sides: int) -> tuple[Volume, Volume]:
    """A cavity in a wall that is open on some sides of the axial plane."""
    endo, wall = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)
    endo[3:6, 3:6] = 1
    wall[2:7, 2:7] = 1
    wall[3:6, 3:6] = 0
    for side in ((slice(6, 7), slice(2, 7)), (slice(2, 3), slice(2, 7)), (slice(2, 7), slice(6, 7)))[:open_sides]:
        wall[side] = 0
    return Volume(endo, np.eye(4)), Volume(wall, np.eye(4))


@pytest.mark.parametrize(("open_sides", "outside"), [(0, False), (1, False), (2, False), (3, True)])
def test_a_wall_may_be_open_at_veins_and_valve(tmp_path, open_sides, outside):
    found = check_masks_together(header(tmp_path), *shell(open_sides))
    assert [f.finding for f in found] == (["endo outside the wall's outer border"] if outside else [])


def test_voxels_of_both_masks_are_named(tmp_path):
    endo, wall = shell(0)
    wall.data[3, 3] = 1
    (found,) = check_masks_together(header(tmp_path), endo, wall)
    assert (found.finding, found.found) == ("endo and wall overlap", "3 voxels in both")
    assert check_masks_together(header(tmp_path), endo, Volume(np.zeros((9, 9, 3)), np.eye(4))) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_distinct_values_are_those_of_numpy(dtype):
    for values in ([3, 1, 1, 7], [0], [100, 3]):
        assert np.array_equal(values_of(np.array(values, dtype)), np.unique(values))
    wide = np.array([0, 1 << 20]).astype(np.int64)
    assert np.array_equal(values_of(wide), wide)
    assert np.array_equal(values_of(np.array([-3.0, 2.5])), [-3.0, 2.5])
