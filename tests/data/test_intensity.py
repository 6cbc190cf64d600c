"""How intensities become [0, 1], and what data sets state of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.entries import load_datalist, load_images
from semsynth.data.geometry import TrainedGrid, training_geometry
from semsynth.data.histograms import check_histogram, check_ranges, span
from semsynth.data.intensity import (
    MIN_MAX,
    Intensity,
    Scaling,
    Stored,
    chosen_scaling,
    entry_intensity,
    intensity_beside,
    one_rule,
    stated_intensity,
)
from semsynth.data.raw import check_input
from semsynth.data.transforms import CropContentd, LoadIntensityd
from semsynth.data.volumes import read_volume, write_image
from semsynth.errors import InputError
from semsynth.training.loading import load_sources


def tissue(shape: tuple[int, ...] = (24, 20, 16)) -> np.ndarray:
    return np.random.default_rng(0).normal(400, 60, shape).clip(0, 800).astype(np.float32)


def save(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def test_one_hot_voxel_does_not_set_the_scale():
    image = tissue()
    hot = image.copy()
    hot[1, 1, 1] = 1e6
    plain, robust = Scaling()(image), Scaling()(hot)
    assert np.abs(np.delete(plain - robust, 1, axis=0)).max() < 0.01
    assert robust.max() == 1.0 and robust[1, 1, 1] == 1.0
    assert np.median(MIN_MAX(hot)) < 0.001 < 0.3 < np.median(robust)


def test_the_upper_end_is_a_percentile_of_the_non_zero_voxels_and_the_lower_one_the_minimum():
    image = np.zeros((20, 20, 20), np.float32)
    image[:4] = np.arange(1, 1601, dtype=np.float32).reshape(4, 20, 20)
    low, high = Scaling("percentiles", (0.0, 99.0)).window(image)
    assert low == 0.0
    assert high == pytest.approx(np.percentile(np.arange(1, 1601), 99))
    low, _ = Scaling("percentiles", (10.0, 99.0)).window(image - 0)
    assert low == pytest.approx(np.percentile(np.arange(1, 1601), 10))
    assert Scaling("percentiles", (0.0, 100.0)).window(image)[1] == 1600


def test_every_rule_and_statement_comes_back_from_json():
    for rule in (Scaling(), MIN_MAX, Scaling("window", (-1000.0, 1000.0)), Scaling("percentiles", (1.0, 99.0))):
        assert Scaling.from_json(json.loads(json.dumps(rule.to_json())), "x") == rule
        for held in (
            Intensity(None, rule),
            Intensity((0.0, 255.0), rule),
            Intensity((-1.0, 1.0), rule, "HU", (-5.0, 5.0)),
        ):
            assert Intensity.from_json(json.loads(json.dumps(held.to_json())), "x") == held
            assert Intensity.from_json(json.dumps(held.to_json()), "x") == held
    assert Intensity.from_json({"window": [-1000, 1000], "unit": "HU"}, "x").unit_range == (-1000.0, 1000.0)


@pytest.mark.parametrize(
    "content", [[0, 1], {"window": [1, 0]}, {"window": [0, 1, 2]}, {"window": "wide"}, {"scaling": {}}, 3]
)
def test_a_statement_of_another_form_is_an_error_that_names_its_source(content: Any):
    with pytest.raises(InputError, match=r"data\.json"):
        Intensity.from_json(content, "data.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("window", None, None), "--scale window needs --window"),
        (("min-max", None, (0.0, 1.0)), "--window goes with --scale window"),
        ((None, (0.0, 99.0), (0.0, 1.0)), "two rules"),
        (("robust", None, None), "must be one of percentiles, min-max, window"),
        ((None, (50.0, 120.0), None), "0…100"),
        ((None, None, (5.0, 5.0)), "two rising numbers"),
    ],
)
def test_options_that_make_no_rule_are_refused(options: Any, message: str):
    with pytest.raises(InputError, match=message):
        chosen_scaling(*options)


def test_options_make_the_rule_they_name():
    assert chosen_scaling(None, None, None) is None
    assert chosen_scaling(None, None, (-1.0, 1.0)) == Scaling("window", (-1.0, 1.0))
    assert chosen_scaling("percentiles", None, None) == Scaling()
    assert chosen_scaling(None, (1.0, 99.0), None) == Scaling("percentiles", (1.0, 99.0))
    assert chosen_scaling("min-max", None, None) == MIN_MAX


def test_a_constant_image_and_one_of_hardly_any_content_are_errors():
    with pytest.raises(InputError, match="constant"):
        Scaling()(np.ones((4, 4, 4)))
    image = np.zeros((20, 20, 20))
    image[:10] = 5
    image[0, 0, 0] = 7
    image[image == 0] = 5  # one value but for a single voxel
    with pytest.raises(InputError, match="one intensity"):
        Scaling("percentiles", (0.0, 99.0))(image)


# ---- data sets


def listed(folder: Path, image: np.ndarray, **content: Any) -> Path:
    save(folder / "a.nii.gz", image)
    label = np.zeros(image.shape, np.uint8)
    label[4:8, 4:8, 4:8] = 1
    save(folder / "l.nii.gz", label)
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": [{"case": "a", "image": "a.nii.gz", "label": "l.nii.gz"}], **content}))
    return path


def test_a_ct_that_does_not_fill_its_window_keeps_its_units(tmp_path):
    """40 HU read as 96 where each volume was stretched from its own minimum to its own maximum."""
    hounsfield = np.random.default_rng(0).uniform(-900, 700, (12, 12, 12)).astype(np.float32)
    hounsfield[0, 0, 0] = 40
    write_image(tmp_path / "a.nii.gz", (hounsfield + 1000) / 2000, np.eye(4), "int16")
    data = read_volume(tmp_path / "a.nii.gz").data
    path = listed(tmp_path, data, intensity={"window": [0, 1], "unit": "HU", "unit_range": [-1000, 1000]})
    (entry,) = load_datalist(path)
    loaded = LoadIntensityd("image")(entry)
    assert "intensity" not in loaded  # it is no input of a network
    assert float(loaded["image"][0, 0, 0, 0]) * 2000 - 1000 == pytest.approx(40, abs=0.1)


def test_a_raw_datalist_can_state_the_window_of_its_files(tmp_path):
    image = np.linspace(-3024, 3000, 12**3).reshape(12, 12, 12).astype(np.int16)
    (entry,) = load_datalist(listed(tmp_path, image, intensity={"window": [-1000, 1000], "unit": "HU"}))
    loaded = LoadIntensityd("image")(entry)["image"].numpy()[0]
    np.testing.assert_allclose(loaded, np.clip((image + 1000.0) / 2000, 0, 1), atol=1e-6)


def test_an_entry_may_say_otherwise_than_its_datalist(tmp_path):
    path = listed(tmp_path, tissue(), intensity={"window": [0, 1000]})
    content = json.loads(path.read_text())
    content["training"][0]["intensity"] = {"window": [0, 2000]}
    path.write_text(json.dumps(content))
    (entry,) = load_datalist(path)
    assert float(LoadIntensityd("image")(entry)["image"].max()) == pytest.approx(tissue().max() / 2000, abs=1e-6)


def test_data_prepared_by_version_0_1_0_is_not_stretched():
    old = {"settings": {"dtype": "int16", "spacing": [1, 1, 1]}}
    assert stated_intensity(old, "x") == Intensity((0.0, 1.0), MIN_MAX)
    windowed = {"settings": {"dtype": "int16", "window": [24, 2024]}}
    assert stated_intensity(windowed, "x") == Intensity((0.0, 1.0), Scaling("window", (24.0, 2024.0)))
    assert stated_intensity({"training": []}, "x") is None


def test_synthetic_volumes_of_which_nothing_is_said_are_taken_as_they_are():
    assert entry_intensity({"synthetic": True}, None, "x") == Intensity((0.0, 1.0))
    assert entry_intensity({}, None, "x") is None


def test_real_and_synthetic_volumes_are_on_one_scale_when_trained_on_together(tmp_path):
    dim = np.random.default_rng(0).uniform(0, 0.77, (12, 12, 12))
    write_image(tmp_path / "s.nii.gz", dim, np.eye(4), "int16")
    path = listed(tmp_path, read_volume(tmp_path / "s.nii.gz").data)
    content = json.loads(path.read_text())
    content["training"][0]["synthetic"] = True
    path.write_text(json.dumps(content))
    (entry,) = load_datalist(path)
    assert float(LoadIntensityd("image")(entry)["image"].max()) == pytest.approx(dim.max(), abs=1e-4)


def test_crop_content_takes_the_statement_of_an_image_that_is_not_loaded():
    assert CropContentd("x", allow_missing_keys=True)({"case": "a", "intensity": "{}"}) == {"case": "a"}


def test_the_record_beside_an_image_says_what_it_holds(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "prepare.json").write_text(
        json.dumps({"intensity": {"window": [0, 1], "unit": "HU", "unit_range": [-1, 1]}})
    )
    assert intensity_beside(tmp_path / "c" / "image.nii.gz") == Intensity((0.0, 1.0), None, "HU", (-1.0, 1.0))
    assert intensity_beside(tmp_path / "c" / "other.nii.gz") is None
    (tmp_path / "x_synthetic.json").write_text(json.dumps({"synthetic": True, "intensity": {"window": [-1000, 1000]}}))
    assert intensity_beside(tmp_path / "x_synthetic.nii.gz") == Intensity((-1000.0, 1000.0))
    (tmp_path / "y.json").write_text("[]")
    assert intensity_beside(tmp_path / "y.nii.gz") is None


# ---- weights


def weights(folder: Path, geometry: dict[str, Any] | None) -> TrainedGrid:
    file = folder / "w.pt"
    file.write_bytes(b"")
    if geometry is not None:
        field = {"spacing": [1, 1, 1], "field_of_view": [10, 10, 10]}
        file.with_suffix(".json").write_text(json.dumps({"geometry": field | geometry}))
    return TrainedGrid(file, folder / "metadata.json")


def test_images_of_which_nothing_is_said_are_scaled_as_the_weights_know_them(tmp_path):
    image = tissue()
    image[1, 1, 1] = 1e6
    path = str(save(tmp_path / "raw.nii.gz", image))
    old = LoadIntensityd("image", weights(tmp_path, {"intensity": "each volume's minimum to 0, its maximum to 1"}))
    assert float(old({"image": path})["image"].median()) < 0.001
    new = LoadIntensityd("image", weights(tmp_path, {"scaling": Scaling().to_json()}))
    np.testing.assert_array_equal(new({"image": path})["image"].numpy()[0], Scaling()(image))
    np.testing.assert_array_equal(LoadIntensityd("image")({"image": path})["image"].numpy()[0], Scaling()(image))
    (tmp_path / "none").mkdir()
    unknown = LoadIntensityd("image", weights(tmp_path / "none", None))
    assert float(unknown({"image": path})["image"].median()) < 0.001


def test_weights_of_ct_take_hounsfield_units_and_refuse_what_is_none(tmp_path):
    grid = weights(
        tmp_path, {"scaling": {"scale": "window", "window": [24, 2024]}, "unit": "HU", "unit_range": [-1000, 1000]}
    )
    load = LoadIntensityd("image", grid)
    hounsfield = np.random.default_rng(0).uniform(-1000, 900, (8, 8, 8)).astype(np.float32)
    found = load({"image": str(save(tmp_path / "hu.nii.gz", hounsfield))})["image"].numpy()[0]
    np.testing.assert_allclose(found, (hounsfield + 1000) / 2000, atol=1e-6)
    for data in (hounsfield + 1024, (hounsfield + 1000) / 2000):
        with pytest.raises(InputError, match="need Hounsfield units"):
            load({"image": str(save(tmp_path / "no.nii.gz", data))})


def test_a_data_set_scaled_by_another_rule_than_the_weights_is_warned_of(tmp_path, caplog):
    path = listed(tmp_path, tissue() / 1000, intensity={"window": [0, 1], "scaling": Scaling().to_json()})
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"validation": content["training"], "training": []}))
    load_images(tmp_path, grid=weights(tmp_path, {"scaling": Scaling().to_json()}))
    assert not [r for r in caplog.records if "another rule" in r.getMessage()]
    load_images(tmp_path, grid=weights(tmp_path, {"scaling": MIN_MAX.to_json()}))
    (said,) = [r.getMessage() for r in caplog.records if "another rule" in r.getMessage()]
    assert "--scale min-max" in said


def test_one_range_of_one_unit_is_one_rule_whatever_the_files_held():
    offset, plain = (Scaling("window", ends) for ends in ((24.0, 2024.0), (-1000.0, 1000.0)))
    ct = Intensity((0.0, 1.0), offset, "HU", (-1000.0, 1000.0))
    assert one_rule(ct, Intensity((0.0, 1.0), plain, "HU", (-1000.0, 1000.0)))
    assert not one_rule(ct, Intensity((0.0, 1.0), offset, "HU", (-160.0, 240.0)))
    assert not one_rule(ct, Intensity((0.0, 1.0), offset, "SUV", (-1000.0, 1000.0)))
    assert one_rule(ct, Intensity((0.0, 1.0), offset)) and not one_rule(ct, Intensity((0.0, 1.0), plain))
    assert one_rule(Intensity(), ct)  # nobody says the rule


def test_prepared_images_given_by_a_pattern_are_not_stretched(tmp_path):
    save(tmp_path / "c" / "image.nii.gz", tissue() / 1000)
    (tmp_path / "c" / "prepare.json").write_text(json.dumps({"intensity": {"window": [0, 1]}}))
    (entry,) = load_images(tmp_path, str(tmp_path / "c" / "image.nii.gz"))
    assert float(LoadIntensityd("image")(entry)["image"].max()) == pytest.approx(tissue().max() / 1000, abs=1e-6)


def test_a_training_card_states_the_rule_and_the_unit(tmp_path):
    stated = {
        "window": [0, 1],
        "scaling": {"scale": "window", "window": [24, 2024]},
        "unit": "HU",
        "unit_range": [-1000, 1000],
    }
    path = listed(tmp_path, tissue(), intensity=stated)
    card = training_geometry(load_datalist(path), path)
    assert card is not None
    assert card["scaling"] == stated["scaling"] and card["unit_range"] == [-1000.0, 1000.0]
    assert card["intensity"] == "24 to 0, 2024 to 1, clipped beyond"
    raw = training_geometry(load_datalist(listed(tmp_path, tissue())), path)
    assert raw is not None and raw["scaling"] == {"scale": "percentiles", "percentiles": [0.0, 99.9]}
    assert "unit" not in raw


# ---- what is written


def test_synthetic_intensities_are_written_in_the_unit_of_the_weights_or_the_range_asked_for(tmp_path):
    trained = Intensity(None, Scaling("window", (24.0, 2024.0)), "HU", (-1000.0, 1000.0))
    stored = Stored.of(trained, None)
    assert stored.window == (-1000.0, 1000.0) and stored.about.unit == "HU"
    write_image(tmp_path / "a.nii.gz", np.array([[[0.0, 0.5, 1.0, 0.52]]]), np.eye(4), "int16", stored.window)
    raw = nib.load(tmp_path / "a.nii.gz")
    assert raw.get_data_dtype() == np.int16
    assert np.asarray(raw.dataobj).ravel().tolist() == [-1000, 0, 1000, 40]
    assert stored.about.read(read_volume(tmp_path / "a.nii.gz").data).ravel().tolist() == pytest.approx(
        [0, 0.5, 1, 0.52]
    )
    asked = Stored.of(Intensity(None, Scaling()), [0, 255])
    assert asked.window == (0.0, 255.0) and asked.about == Intensity((0.0, 255.0), Scaling())
    other = Stored.of(trained, [24, 2024])  # HU + 1024: the unit is known all the same
    assert other.window == (24.0, 2024.0) and other.about.in_range("HU", (-160.0, 240.0)).window == (864.0, 1264.0)
    assert Stored.of(None, None).window is None and Stored.of(None, None).about == Intensity((0.0, 1.0))
    with pytest.raises(InputError, match="intensity_range"):
        Stored.of(None, [255])
    for dtype, window in (("uint8", (-1000.0, 1000.0)), ("int16", (0.0, 1.0)), ("int16", (0.0, 70000.0))):
        with pytest.raises(InputError, match="cannot be stored"):
            write_image(tmp_path / "b.nii.gz", np.zeros((2, 2, 2)), np.eye(4), dtype, window)
    assert not (tmp_path / "b.nii.gz").exists()


# ---- what a check finds


def kinds(data: np.ndarray, stated: Intensity | None = None) -> list[str]:
    return [finding.finding for finding in check_histogram("x.nii.gz", data, stated)]


def test_a_check_names_hot_voxels_padding_ct_and_lost_grey_levels():
    image = tissue()
    assert kinds(image) == []
    hot = image.copy()
    hot[1, 1, 1] = 1e6
    assert kinds(hot) == ["maximum far above all else"]
    assert kinds(hot, Intensity((0.0, 1000.0))) == []
    assert kinds(np.rint(MIN_MAX(hot) * 255)) == ["few grey levels"]
    body = np.where(np.indices(image.shape)[0] < 6, -1000.0, 50.0) + np.random.default_rng(0).normal(0, 15, image.shape)
    body[10:12] = 900
    assert kinds(body) == ["looks like CT without a window"]
    padded = body.copy()
    padded[:, :2] = -3024
    assert kinds(padded) == ["padding below air", "looks like CT without a window"]
    assert kinds(padded, Intensity((-1000.0, 1000.0))) == []
    standardised = (image - image.mean()) / image.std()
    assert kinds(standardised) == []


def test_a_check_tells_a_dark_voxel_from_padding():
    image = tissue()
    for value in (-32768.0, -1000.0 * image.max()):
        dark = image.copy()
        dark[1, 1, 1] = value
        (found,) = check_histogram("x.nii.gz", dark)
        assert found.finding == "minimum far below all else" and "--percentiles 0.1,99.9" in found.fix
        dark[2, 2, 2] = 1e6
        assert kinds(dark) == ["minimum far below all else", "maximum far above all else"]
    small = image / image.max()  # a minimum that is above what is padding in CT
    small[1, 1, 1] = -50
    assert kinds(small) == ["minimum far below all else"]
    small[:2] = -50  # too many to be defects
    assert kinds(small) == []
    shifted = image + 10 * image.max()  # nothing is 0 but what lies outside of a mask
    shifted[:2] = 0
    assert kinds(shifted) == []
    ct = np.random.default_rng(0).normal(50, 15, image.shape) - 1050 * (np.indices(image.shape)[0] < 6)
    ct[10:12] = 900
    ct[1, 1, 1] = -1150  # noise in the air
    assert kinds(ct) == ["looks like CT without a window"]
    ct[1, 1, 1] = -3024
    assert kinds(ct) == ["minimum far below all else", "looks like CT without a window"]


@pytest.mark.parametrize("window", [(-1000.0, -500.0), (5000.0, 6000.0), (0.0, 1e-6)])
def test_a_check_names_a_window_that_leaves_nothing_of_the_image(window):
    image = tissue()
    (found,) = check_histogram("x.nii.gz", image, Intensity(window))
    assert found.finding == "the window does not fit" and "--window" in found.fix
    assert f"intensities from {image.min():g} to {image.max():g}" in found.found
    assert kinds((image > 300).astype(float), Intensity((0.0, 1.0))) == ["few grey levels"]


def test_a_check_names_a_list_of_ct_that_states_no_unit(tmp_path):
    image = tissue()
    path = listed(tmp_path, image, modality={"0": "CT"})
    assert [f.finding for f in check_input(path).warnings] == ["CT without a window"]
    assert check_input(path).cases == 1
    path = listed(tmp_path, image, modality={"0": "CT"}, intensity={"window": [-1000, 1000], "unit": "HU"})
    assert check_input(path).findings == ()


def test_a_check_names_cases_of_another_range_than_the_others():
    cases = {f"c{i}": (f"{i}.nii.gz", 500.0 + i) for i in range(5)}
    assert check_ranges(cases) == []
    (found,) = check_ranges(cases | {"odd": ("o.nii.gz", 60000.0)})
    assert found.case == "odd" and "rescale slope" in found.fix
    hot, cold = np.random.default_rng(0).normal(400, 60, (2, 24, 20, 16))
    usual = span(hot)
    hot[1, 1, 1], cold[1, 1, 1] = 1e6, -32768
    assert span(hot) == pytest.approx(usual, rel=0.01) and span(cold) == pytest.approx(usual, rel=0.1)
    assert check_ranges(dict(list(cases.items())[:2]) | {"odd": ("o.nii.gz", 60000.0)}) == []  # too few to say


def test_training_lists_of_one_unit_are_read_in_one_range_and_other_rules_are_warned_of(tmp_path, caplog):
    """Real volumes of -160 to 240 HU and synthetic ones of -1000 to 1000 HU: 40 HU is one intensity."""
    lists = []
    for name, ends in (("real", (-160.0, 240.0)), ("made", (-1000.0, 1000.0))):
        hounsfield = np.random.default_rng(1 if name == "real" else 2).uniform(-150, 200, (12, 12, 12))
        hounsfield[0, 0, 0] = 40
        held = Intensity(ends, Scaling("window", ends), "HU", ends)
        content = listed(tmp_path / name, hounsfield.astype(np.float32), intensity=held.to_json())
        entries = json.loads(content.read_text())
        entries["training"][0]["case"] = name
        content.write_text(json.dumps(entries))
        label = np.zeros((12, 12, 12), np.uint8)
        label[4:8, 4:8, 4 : 8 if name == "real" else 9] = 1
        save(tmp_path / name / "l.nii.gz", label)
        lists.append(content)
    loaded = load_sources(lists)
    values = [float(LoadIntensityd("image")(entry)["image"][0, 0, 0, 0]) for entry in loaded]
    assert values == pytest.approx([0.5, 0.5], abs=1e-6)
    assert not [r for r in caplog.records if "another rule" in r.getMessage()]
    content = json.loads(lists[1].read_text())
    lists[1].write_text(json.dumps(content | {"intensity": {"window": [0, 1], "scaling": MIN_MAX.to_json()}}))
    load_sources(lists)
    (said,) = [r.getMessage() for r in caplog.records if "another rule" in r.getMessage()]
    assert str(lists[1]) in said and str(lists[0]) not in said


def test_an_entry_is_checked_by_what_it_says_of_itself(tmp_path):
    path = listed(tmp_path, tissue() / 1000, intensity={"window": [0, 1]})
    save(tmp_path / "b.nii.gz", np.random.default_rng(3).uniform(-1000, 1000, (24, 20, 16)).astype(np.float32))
    content = json.loads(path.read_text())
    content["training"] *= 5
    content["training"][0] = {"case": "b", "image": "b.nii.gz", "intensity": {"window": [-1000, 1000], "unit": "HU"}}
    path.write_text(json.dumps(content))
    assert "few grey levels" not in check_input(path).table() and "another range" not in check_input(path).table()
