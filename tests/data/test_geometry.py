"""What weights were trained on: measured, kept, compared with label maps, and told once."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.entries import load_label_maps
from semsynth.data.geometry import (
    FIELD_OF_VIEW,
    SCALING,
    VOXEL_SIZE,
    Geometry,
    TrainedGrid,
    bundle_grid,
    geometry_of,
    in_order,
    training_geometry,
)
from semsynth.data.headers import read_header
from semsynth.data.intensity import MIN_MAX, Intensity, Scaling
from semsynth.data.raw import check_input
from semsynth.errors import InputError

CLASSES = {"0": "background", "1": "endo", "2": "wall", "3": "tissue 1"}


def put(path: Path, spacing: Sequence[float], shape: Sequence[int] = (40, 36, 32), axes: str = "RAS") -> Path:
    """A label map of four classes whose axes point as ``axes`` says; spacing and shape in order R, A, S."""
    data = np.zeros(shape, np.uint8)
    data[4:-4, 4:-4, 4:-4], data[8:-8, 8:-8, 8:-8], data[12:-12, 12:-12, 12:-12] = 3, 2, 1
    image = nib.Nifti1Image(data, np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)
    return path


def geometry(spacing: Sequence[float] = (1.0, 1.0, 1.0), shape: Sequence[int] = (40, 36, 32)) -> Geometry:
    return Geometry.of_grids([(spacing, shape)])


def bundle(folder: Path, trained: dict[str, object] | None, card: dict[str, object] | None = None) -> Path:
    """A folder with what is read of a bundle: metadata, and a card beside weights."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    about = {"classes": CLASSES} | ({} if trained is None else {"trained_on": {"model.pt": trained}})
    (folder / "configs" / "metadata.json").write_text(json.dumps(about))
    (folder / "models" / "model.pt").write_bytes(b"weights")
    if card is not None:
        (folder / "models" / "model.json").write_text(json.dumps(card))
    return folder


def grid_of(folder: Path, *, resample: bool = False) -> TrainedGrid:
    return TrainedGrid(folder / "models" / "model.pt", folder / "configs" / "metadata.json", resample)


# ---- measured


def test_a_data_set_is_measured_in_the_order_of_the_network_s_axes(tmp_path: Path) -> None:
    entries = [
        {"image": str(put(tmp_path / "a.nii.gz", (1.0, 2.0, 4.0), (40, 36, 32)))},
        {"image": str(put(tmp_path / "b.nii.gz", (1.0, 2.0, 3.0), (50, 36, 32), axes="SPL"))},
        {"image": str(put(tmp_path / "c.nii.gz", (1.5, 2.0, 3.0), (60, 36, 32))), "content": {"shape": [30, 36, 32]}},
        {"image": str(tmp_path / "gone.nii.gz")},
    ]
    found = Geometry.of_entries(entries)
    assert found is not None
    assert (found.spacing, found.spacing_range) == ((1.0, 2.0, 3.0), ((1.0, 2.0, 3.0), (1.5, 2.0, 4.0)))
    assert found.field_of_view_range == ((40.0, 72.0, 96.0), (50.0, 72.0, 128.0))  # the padding of c is not counted
    assert found.shape_range == ((30, 36, 32), (50, 36, 32))
    assert Geometry.from_json(json.loads(json.dumps(found.to_json())), "card") == found
    assert Geometry.of_entries(entries[3:]) is None


def test_a_training_that_resamples_has_its_own_voxel_size_and_names_the_window(tmp_path: Path) -> None:
    entries = [{"image": str(put(tmp_path / "a.nii.gz", (0.5, 0.5, 2.0), (40, 36, 32)))}]
    listed = tmp_path / "datalist.json"
    listed.write_text(json.dumps({"training": [], "settings": {"window": [24, 2024], "dtype": "uint8"}}))
    found = training_geometry(entries, [listed], (1.0, 1.0, 1.0))
    assert found is not None and found["spacing_range"] == [[1.0] * 3] * 2
    assert found["field_of_view"] == [20.0, 18.0, 64.0] and found["shape_range"] == [[20, 18, 64]] * 2
    assert found["intensity"] == "24 to 0, 2024 to 1, clipped beyond"
    assert found["scaling"] == {"scale": "window", "window": [24.0, 2024.0]}
    assert training_geometry([], listed) is None


# ---- compared


@pytest.mark.parametrize(
    ("spacing", "shape", "kinds"),
    [
        ((1.0, 1.0, 1.0), (40, 36, 32), []),
        ((1.19, 0.81, 1.0), (40, 36, 32), []),
        ((1.21, 1.0, 1.0), (40, 36, 32), [VOXEL_SIZE]),
        ((1.0, 1.0, 0.79), (40, 36, 32), [VOXEL_SIZE]),
        ((1.0, 1.0, 1.0), (20, 36, 64), []),
        ((1.0, 1.0, 1.0), (19, 36, 32), [FIELD_OF_VIEW]),
        ((1.0, 1.0, 1.0), (40, 36, 66), [FIELD_OF_VIEW]),
        ((0.5, 0.5, 0.5), (19, 36, 32), [VOXEL_SIZE, FIELD_OF_VIEW]),
    ],
)
def test_a_difference_is_warned_of_from_a_fifth_or_a_factor_of_two_on(
    spacing: Sequence[float], shape: Sequence[int], kinds: list[str]
) -> None:
    found = geometry().compare(spacing, shape, "x.nii.gz")
    assert [(finding.finding, finding.severity) for finding in found] == [(kind, "warning") for kind in kinds]


def test_mixed_voxel_sizes_count_with_their_range(tmp_path: Path) -> None:
    mixed = Geometry.of_grids(
        [((3.5, 3.5, 2.0), (90,) * 3), ((4.0, 4.0, 2.5), (90,) * 3), ((5.0, 5.0, 3.0), (90,) * 3)]
    )
    assert mixed.target((4.3, 3.5, 2.9)) == (4.3, 3.5, 2.9)  # known as it is
    assert mixed.target((1.0, 3.5, 8.0)) == (4.0, 3.5, 2.5)
    inside = read_header(put(tmp_path / "a.nii.gz", (5.5, 3.0, 2.5), (80, 80, 80)))
    assert mixed.differences(inside) == []
    (text,) = mixed.differences(read_header(put(tmp_path / "b.nii.gz", (1.0, 3.5, 2.5), (300, 80, 80))))
    assert "found 1 × 3.5 × 2.5 mm, expected 3.5–5 × 3.5–5 × 2–3 mm" in text and "--spacing 4,4,2.5" in text


def test_a_limit_that_was_found_by_trial_takes_the_place_of_the_factor(tmp_path: Path) -> None:
    stated = geometry().to_json() | {"field_of_view_limit": [90.0, 72.0, 32.0]}
    found = grid_of(bundle(tmp_path / "b", stated, {"geometry": geometry().to_json()})).geometry
    assert found is not None and found.to_json() == stated  # the card does not speak of it
    kinds = [[f.finding for f in found.compare((1.0, 1.0, 1.0), shape, "x")] for shape in ((90, 36, 32), (40, 36, 33))]
    assert kinds == [[], [FIELD_OF_VIEW]]


def test_axes_are_put_in_order_before_they_are_compared(tmp_path: Path) -> None:
    header = read_header(put(tmp_path / "a.nii.gz", (1.0, 1.0, 3.0), (40, 36, 32), axes="SAR"))
    assert header.shape == (32, 36, 40) and in_order(header) == ((1.0, 1.0, 3.0), (40, 36, 32))
    assert geometry((1.0, 1.0, 3.0)).differences(header) == []


# ---- where it is stated


def test_the_card_wins_and_the_metadata_speaks_for_the_bundle_s_own_weights_alone(tmp_path: Path) -> None:
    stated, other = geometry().to_json(), geometry((2.0, 2.0, 2.0)).to_json()
    grid = grid_of(bundle(tmp_path / "old", stated, {"file": "model.pt"}))
    assert grid.geometry == geometry()
    assert grid_of(bundle(tmp_path / "new", stated, {"geometry": other})).geometry == geometry((2.0, 2.0, 2.0))
    elsewhere = tmp_path / "runs" / "model.pt"
    assert geometry_of(elsewhere, tmp_path / "old" / "configs" / "metadata.json") is None
    bad = bundle(tmp_path / "bad", {"spacing": [1, 1], "field_of_view": [1, 1, 1]})
    with pytest.raises(InputError, match="needs spacing and field_of_view, three positive numbers each"):
        _ = grid_of(bad).geometry
    short = grid_of(bundle(tmp_path / "short", {"spacing": [1, 1, 1], "field_of_view": [40, 36, 32]}))
    assert short.geometry == geometry()


def test_resampling_to_an_unknown_voxel_size_is_refused(tmp_path: Path) -> None:
    grid = grid_of(bundle(tmp_path / "b", None), resample=True)
    put(tmp_path / "label.nii.gz", (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="resample needs the voxel size that they were trained at"):
        load_label_maps(tmp_path, str(tmp_path / "label.nii.gz"), grid=grid)


@pytest.mark.parametrize("name", ["pix2pix3d", "spade_gan3d", "spade_ldm", "med_lsdm"])
def test_shipped_weights_state_what_they_were_trained_on(name: str, project_root: Path) -> None:
    grid = bundle_grid(project_root / "bundles" / name)
    assert grid is not None and grid.geometry is not None and grid.geometry.spacing == (1.0, 1.0, 1.0)
    if name == "med_lsdm":
        ct = bundle_grid(project_root / "bundles" / name, "classes_ct")
        assert ct is not None and ct.weights.name == "model_ct.pt"
        assert ct.geometry is not None and ct.geometry.spacing == (4.0, 4.0, 2.5)


# ---- told


def test_the_check_against_a_bundle_warns_of_images_that_were_scaled_by_another_rule(tmp_path: Path) -> None:
    trained = Geometry.of_grids([((1.0, 1.0, 1.0), (40, 36, 32))], trained=Intensity(scaling=MIN_MAX))
    folder = bundle(tmp_path / "b", trained.to_json())
    put(tmp_path / "data" / "label.nii.gz", (1.0, 1.0, 1.0))
    values = np.random.default_rng(0).random((40, 36, 32), np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "data" / "image.nii.gz")
    listed = {"num_classes": 4, "classes": CLASSES, "validation": [{"image": "image.nii.gz", "label": "label.nii.gz"}]}
    for rule, expected in ((Scaling("percentiles", (0.0, 99.9)), [SCALING]), (MIN_MAX, []), (None, [])):
        stated = {} if rule is None else {"intensity": Intensity((0.0, 1.0), scaling=rule).to_json()}
        (tmp_path / "data" / "datalist.json").write_text(json.dumps(listed | stated))
        found = check_input(tmp_path / "data", bundle=folder)
        assert [f.finding for f in found.warnings if f.finding == SCALING] == expected
        assert ("prepare them with --scale min-max" in found.table()) == bool(expected)


def test_the_check_against_a_bundle_lists_every_map_in_one_table(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", geometry().to_json())
    for i in range(5):
        put(tmp_path / "data" / str(i) / "label.nii.gz", (0.6, 0.6, 0.6) if i else (1.0, 1.0, 1.0))
    entries = [{"case": str(i), "label": f"{i}/label.nii.gz"} for i in range(5)]
    listed = {"num_classes": 4, "classes": CLASSES, "validation": entries}
    (tmp_path / "data" / "datalist.json").write_text(json.dumps(listed))
    report = check_input(tmp_path / "data", bundle=folder)
    assert [finding.case for finding in report.warnings if finding.finding == VOXEL_SIZE] == ["1", "2", "3", "4"]
    (row,) = [line for line in report.table().splitlines() if VOXEL_SIZE in line]
    assert "4 cases (1, 2, 3, …)" in row and "0.6 × 0.6 × 0.6 mm" in row and "1 × 1 × 1 mm" in row
    assert "semsynth prepare --spacing 1,1,1" in row and "--resample True" in row
    assert VOXEL_SIZE not in check_input(tmp_path / "data").table()


def test_a_synthesis_says_once_how_many_maps_are_of_another_voxel_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bundle(tmp_path / "b", geometry().to_json())
    for i in range(3):
        put(tmp_path / "maps" / f"{i}.nii.gz", (0.6, 0.6, 0.6) if i else (1.0, 1.0, 1.0))
    pattern = str(tmp_path / "maps" / "*.nii.gz")
    entries = load_label_maps(tmp_path, pattern, grid=grid_of(folder), num_samples=2)
    assert len(entries) == 6
    (text,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and VOXEL_SIZE in r.getMessage()]
    assert "2 of 3 cases (1, 2), such as: found 0.6 × 0.6 × 0.6 mm, expected 1 × 1 × 1 mm" in text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_label_maps(tmp_path, pattern, grid=grid_of(folder, resample=True))
    assert VOXEL_SIZE not in caplog.text and "2 of 3 label maps are resampled" in caplog.text


def test_where_neither_weights_nor_metadata_are_no_rule_of_intensities_is_guessed(tmp_path: Path) -> None:
    """MONAI Deploy runs a TorchScript file, whose bundle_root is '.', from anywhere."""
    with pytest.raises(
        InputError, match=r"neither .*model\.pt nor .*metadata\.json is there.*start in the bundle's folder"
    ):
        _ = grid_of(tmp_path).scaling
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"weights without a card")
    assert str(grid_of(tmp_path).scaling) == str(MIN_MAX)
