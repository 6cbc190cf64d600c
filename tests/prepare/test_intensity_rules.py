"""Preparing: one defective voxel sets no scale, CT keeps its units, and what was stated is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.entries import load_datalist
from semsynth.data.transforms import LoadIntensityd
from semsynth.errors import InputError
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.maps import MapSettings, prepare_maps

SHAPE = (24, 20, 16)
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def save(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, each once more with a voxel of a thousand times the rest."""
    root = tmp_path_factory.mktemp("scans")
    x, y, z = np.indices(SHAPE)
    for i in range(4):
        rng = np.random.default_rng(i % 2)
        r = np.sqrt(((x - 12) * 1.5) ** 2 + ((y - 10) * 1.5) ** 2 + ((z - 8) * 2.0) ** 2)
        label = np.select([r < 6 + i % 2, r < 9, r < 14], [1, 2, 3], 0)
        image = (np.array([20, 600, 400, 250])[label] + rng.normal(0, 20, SHAPE)).astype(np.float32)
        if i >= 2:
            image[1, 1, 1] = 1e6
        save(root / f"P{i}" / "lge.nii.gz", image)
        save(root / f"P{i}" / "endo.nii.gz", (label == 1).astype(np.uint8) * (1 if i < 2 else 255))
    return root


def run(scans: Path, output: Path, **settings: Any) -> Path:
    pattern = {"endo": str(scans / "*" / "endo.nii.gz"), "fractions": (0.5, 0.5)}
    return prepare(str(scans / "*" / "lge.nii.gz"), output, Settings(**settings), **pattern)


def read(output: Path, case: str, what: str = "image") -> np.ndarray:
    return np.asarray(nib.load(output / case / f"{what}.nii.gz").dataobj)


def test_a_hot_voxel_changes_neither_image_nor_map(scans: Path, tmp_path: Path) -> None:
    run(scans, tmp_path / "out")
    for plain, hot in (("P0", "P2"), ("P1", "P3")):
        assert np.abs(read(tmp_path / "out", plain) - read(tmp_path / "out", hot)).max(initial=0, where=far()) < 0.01
        same = read(tmp_path / "out", plain, "label") == read(tmp_path / "out", hot, "label")
        assert same[far()].mean() > 0.999
    run(scans, tmp_path / "minmax", scale="min-max")
    assert np.median(read(tmp_path / "minmax", "P2")) < 0.001
    record = json.loads((tmp_path / "out" / "P2" / "prepare.json").read_text())
    assert record["intensity_range"][1] < 800
    assert record["intensity"] == {
        "window": [0.0, 1.0],
        "scaling": {"scale": "percentiles", "percentiles": [0.0, 99.9]},
    }


def far() -> np.ndarray:
    """All but the neighbourhood of the hot voxel, on the grid of 1 mm."""
    kept = np.ones((36, 30, 31), bool)
    kept[:6, :6, :7] = False
    return kept


def test_a_check_and_a_preparation_name_the_cases(scans: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    pattern = ["--input", str(scans / "*" / "lge.nii.gz"), "--endo", str(scans / "*" / "endo.nii.gz")]
    assert main(["check", *pattern]) == 0
    said = capsys.readouterr().out
    assert "maximum far above all else" in said and "P2" in said and "P3" in said
    assert main(["prepare", *pattern, "--output", str(tmp_path / "o")]) == 0
    assert any("maximum far above all else: 2 of 4 cases" in r.getMessage() for r in caplog.records)


def test_the_scale_depends_neither_on_the_voxel_size_nor_on_a_crop(scans: Path, tmp_path: Path) -> None:
    ends = []
    for name, more in (("a", {}), ("b", {"spacing": (2.0, 2.0, 2.0)}), ("c", {"size": (16, 16, 16)})):
        run(scans, tmp_path / name, **more)
        ends.append(json.loads((tmp_path / name / "P0" / "prepare.json").read_text())["intensity_range"])
    assert ends[0] == ends[1] == ends[2]


def test_what_was_prepared_is_not_stretched_again(scans: Path, tmp_path: Path) -> None:
    """A crop that holds no bright tissue stays dark, in a second preparation and in a training."""
    first = run(scans, tmp_path / "a", window=(0.0, 2000.0), k=0, dtype="float32")
    assert read(tmp_path / "a", "P0").max() < 0.4
    content = json.loads(first.read_text())
    for entry in content["training"] + content["validation"]:  # masks, as a raw datalist has them
        entry["endo"] = str(scans / entry["case"] / "endo.nii.gz")
        label = np.asarray(nib.load(tmp_path / "a" / entry["label"]).dataobj)
        save_like(tmp_path / "a" / entry["image"], tmp_path / "a" / entry["case"] / "endo.nii.gz", label == 1)
        entry["endo"] = f"{entry['case']}/endo.nii.gz"
        del entry["label"]
    (tmp_path / "a" / "raw.json").write_text(json.dumps(content))
    again = prepare(tmp_path / "a" / "raw.json", tmp_path / "b", Settings(k=0, dtype="float32"))
    np.testing.assert_allclose(read(tmp_path / "b", "P0"), read(tmp_path / "a", "P0"), atol=1e-6)
    stated = json.loads(again.read_text())["intensity"]
    assert stated == {"window": [0.0, 1.0], "scaling": {"scale": "window", "window": [0.0, 2000.0]}}
    (entry,) = (e for split in ("training", "validation") for e in load_datalist(again, split) if e["case"] == "P0")
    assert float(LoadIntensityd("image")(entry)["image"].max()) < 0.4


def save_like(image: Path, path: Path, mask: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), nib.load(image).affine), path)


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CTs stored as HU + 1024 that do not fill the window of -1000 to 1000 HU, and their maps."""
    root = tmp_path_factory.mktemp("ct")
    listed: dict[str, Any] = {"training": [], "classes": {"0": "background", "1": "organ"}}
    for i in range(2):
        hounsfield = np.random.default_rng(i).normal(40, 12, SHAPE)
        hounsfield[:6] = -900 + i
        hounsfield[12, 10, 8] = 40
        label = np.zeros(SHAPE, np.uint8)
        label[10:14, 8:12, 6 : 10 - i] = 1
        save(root / f"c{i}" / "ct.nii.gz", np.rint(hounsfield + 1024).astype(np.int16))
        save(root / f"c{i}" / "map.nii.gz", label)
        listed["training"].append({"case": f"c{i}", "image": f"c{i}/ct.nii.gz", "label": f"c{i}/map.nii.gz"})
    (root / "datalist.json").write_text(json.dumps(listed))
    return root


def test_ct_numbers_are_the_same_in_every_case_and_the_offset_makes_hounsfield_units(ct: Path, tmp_path: Path) -> None:
    command = ["prepare-maps", "--input", str(ct), "--output", str(tmp_path / "o"), "--modality", "CT"]
    assert main([*command, "--window", "24,2024", "--hu-offset", "-1024"]) == 0
    stated = json.loads((tmp_path / "o" / "datalist.json").read_text())["intensity"]
    assert stated == {
        "window": [0.0, 1.0],
        "scaling": {"scale": "window", "window": [24.0, 2024.0]},
        "unit": "HU",
        "unit_range": [-1000.0, 1000.0],
    }
    for entry in load_datalist(tmp_path / "o" / "datalist.json"):
        loaded = LoadIntensityd("image")(entry)["image"]
        assert float(loaded[0, 12, 10, 8]) * 2000 - 1000 == pytest.approx(40, abs=0.1)
        assert float(loaded.min()) > 0.04 and float(loaded.max()) < 0.6


def test_ct_in_hounsfield_units_needs_no_offset(ct: Path, tmp_path: Path) -> None:
    command = ["prepare-maps", "--input", str(ct), "--output", str(tmp_path / "o"), "--modality", "CT"]
    assert main([*command, "--window", "-1000,1000"]) == 0
    stated = json.loads((tmp_path / "o" / "datalist.json").read_text())["intensity"]
    assert stated["unit_range"] == [-1000.0, 1000.0] and stated["unit"] == "HU"


def test_ct_without_a_window_and_an_offset_without_one_are_refused(ct: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CT needs the window"):
        prepare_maps(ct, tmp_path / "o", MapSettings(("organ",)), modality="CT")
    with pytest.raises(InputError, match="--hu-offset goes with --window"):
        prepare_maps(ct, tmp_path / "o", MapSettings(("organ",), hu_offset=-1024.0), modality="CT")
    assert not (tmp_path / "o").exists()
    prepare_maps(ct, tmp_path / "p", MapSettings(("organ",), scale="percentiles"), modality="CT")
    assert "unit" not in json.loads((tmp_path / "p" / "datalist.json").read_text())["intensity"]


def test_a_raw_datalist_that_states_its_window_needs_no_option(ct: Path, tmp_path: Path) -> None:
    content = json.loads((ct / "datalist.json").read_text())
    stated = {"window": [24, 2024], "unit": "HU", "unit_range": [-1000, 1000]}
    (ct / "stated.json").write_text(json.dumps(content | {"intensity": stated}))
    path = prepare_maps(ct / "stated.json", tmp_path / "o", MapSettings(("organ",)), modality="CT")
    found = json.loads(path.read_text())["intensity"]
    assert found["unit_range"] == [-1000.0, 1000.0] and found["scaling"] == {
        "scale": "window",
        "window": [24.0, 2024.0],
    }
    content["training"][0]["intensity"] = {"window": [0, 1]}
    (ct / "mixed.json").write_text(json.dumps(content | {"intensity": stated}))
    with pytest.raises(InputError, match=r"mixed\.json: its entries hold different intensities.*\n.*c1"):
        prepare_maps(ct / "mixed.json", tmp_path / "m", MapSettings(("organ",)), modality="CT")


def test_options_of_the_rule_are_named_when_they_are_wrong(scans: Path, tmp_path: Path, capsys: Any) -> None:
    pattern = ["--input", str(scans / "*" / "lge.nii.gz"), "--endo", str(scans / "*" / "endo.nii.gz")]
    for option, message in (
        (["--window", "5"], "--window must be two numbers"),
        (["--percentiles", "99,1"], "two rising numbers"),
        (["--scale", "robust"], "must be one of percentiles, min-max, window"),
        (["--scale", "min-max", "--window", "0,1"], "--window goes with --scale window"),
    ):
        assert main(["prepare", *pattern, "--output", str(tmp_path / "o"), *option]) == 1
        assert message in capsys.readouterr().err


STATED = {"window": [24, 2024], "unit": "HU", "unit_range": [-1000, 1000]}
HOUNSFIELD = {"window": (-1000.0, 1000.0), "hu_offset": 0.0}


def stated(ct: Path, held: dict[str, Any], name: str) -> Path:
    content = json.loads((ct / "datalist.json").read_text())
    (ct / name).write_text(json.dumps(content | {"intensity": held}))
    return ct / name


def at_40(output: Path) -> list[float]:
    return [float(read(output, case)[12, 10, 8]) for case in ("c0", "c1")]


def test_what_a_source_states_is_not_overruled_by_settings_of_other_data(ct: Path, tmp_path: Path) -> None:
    first = prepare_maps(
        ct, tmp_path / "a", MapSettings(("organ",), window=(24.0, 2024.0), hu_offset=-1024.0), modality="CT"
    )
    for name, source, settings in (
        ("same", first, {"window": (24.0, 2024.0), "hu_offset": -1024.0}),  # prepared before, by the same rule
        ("unit", first, HOUNSFIELD),  # the same range of the same unit, in other files
        ("raw", stated(ct, STATED, "raw.json"), HOUNSFIELD),
        ("none", stated(ct, STATED, "raw.json"), {}),
    ):
        path = prepare_maps(
            source, tmp_path / name, MapSettings(("organ",), dtype="float32", **settings), modality="CT"
        )
        np.testing.assert_allclose(at_40(tmp_path / name), 0.52, atol=1e-4, err_msg=name)
        held = json.loads(path.read_text())["intensity"]
        assert (held["unit"], held["unit_range"]) == ("HU", [-1000.0, 1000.0]), name


def test_another_range_of_the_unit_is_looked_up_in_the_files(ct: Path, tmp_path: Path) -> None:
    narrow = MapSettings(("organ",), dtype="float32", window=(-160.0, 240.0), hu_offset=0.0)
    path = prepare_maps(stated(ct, STATED, "raw.json"), tmp_path / "o", narrow, modality="CT")
    np.testing.assert_allclose(at_40(tmp_path / "o"), 0.5, atol=1e-6)
    assert json.loads(path.read_text())["intensity"]["unit_range"] == [-160.0, 240.0]


def test_an_offset_gives_a_stated_window_its_unit(ct: Path, tmp_path: Path) -> None:
    source = stated(ct, {"window": [24, 2024]}, "bare.json")
    path = prepare_maps(source, tmp_path / "o", MapSettings(("organ",), hu_offset=-1024.0), modality="CT")
    held = json.loads(path.read_text())["intensity"]
    assert held["unit"] == "HU" and held["unit_range"] == [-1000.0, 1000.0]
    with pytest.raises(InputError, match="--hu-offset 5 does not go with"):
        prepare_maps(
            stated(ct, STATED, "raw.json"), tmp_path / "p", MapSettings(("organ",), hu_offset=5.0), modality="CT"
        )


def test_files_that_were_scaled_are_not_scaled_by_another_rule(ct: Path, tmp_path: Path) -> None:
    first = prepare_maps(ct, tmp_path / "a", MapSettings(("organ",), window=(24.0, 2024.0)))
    for other in ({"scale": "min-max"}, {"window": (0.0, 100.0)}, {"percentiles": (0.0, 99.0)}):
        with pytest.raises(
            InputError, match="says that its files hold 0 for 0 and 1 for 1; they were made by: 24 to 0"
        ):
            prepare_maps(first, tmp_path / "b", MapSettings(("organ",), **other))
    assert not (tmp_path / "b").exists()


def test_a_unit_that_is_new_is_no_reason_to_keep_a_case_without_it(ct: Path, tmp_path: Path) -> None:
    rule = {"window": (24.0, 2024.0)}
    prepare_maps(stated(ct, {"window": [24, 2024]}, "bare.json"), tmp_path / "o", MapSettings(("organ",), **rule))
    with pytest.raises(InputError, match="was prepared with other intensity"):
        prepare_maps(stated(ct, STATED, "raw.json"), tmp_path / "o", MapSettings(("organ",), **rule))
    with pytest.raises(InputError, match=r"other settings .*\(spacing None, now"):
        prepare_maps(ct / "bare.json", tmp_path / "o", MapSettings(("organ",), spacing=(2.0, 2.0, 2.0)))


def test_values_that_are_no_hounsfield_units_are_warned_of(ct: Path, tmp_path: Path, caplog: Any) -> None:
    prepare_maps(ct, tmp_path / "o", MapSettings(("organ",), **HOUNSFIELD), modality="CT")
    assert any("no air in Hounsfield units" in record.getMessage() for record in caplog.records)
    caplog.clear()
    prepare_maps(ct, tmp_path / "p", MapSettings(("organ",), window=(24.0, 2024.0), hu_offset=-1024.0), modality="CT")
    assert not any("no air in Hounsfield units" in record.getMessage() for record in caplog.records)
    prepare_maps(ct, tmp_path / "q", MapSettings(("organ",), window=(-1000.0, 1000.0)))
    assert any("looks like Hounsfield units" in record.getMessage() for record in caplog.records)


def test_synthetic_volumes_of_before_can_be_prepared(ct: Path, tmp_path: Path) -> None:
    content = json.loads((ct / "datalist.json").read_text())
    for i, entry in enumerate(content["training"]):
        save(tmp_path / f"s{i}.nii.gz", np.random.default_rng(i).uniform(0, 0.8, SHAPE).astype(np.float32))
        entry |= {"synthetic": True, "image": str(tmp_path / f"s{i}.nii.gz")}
    (ct / "synthetic.json").write_text(json.dumps(content))
    path = prepare_maps(ct / "synthetic.json", tmp_path / "o", MapSettings(("organ",)))
    assert json.loads(path.read_text())["intensity"]["window"] == [0.0, 1.0]


def test_a_window_that_is_given_is_compared_with_the_files_before_the_work(scans, tmp_path, caplog):
    with pytest.raises(InputError, match=r"4 of 4 cases cannot be used:\n.*the window does not fit.*--window"):
        run(scans, tmp_path / "A", spacing=(1.5, 1.5, 2.0), window=(-3000, -2000))
    assert not (tmp_path / "A").exists()
    run(scans, tmp_path / "B", spacing=(1.5, 1.5, 2.0), window=(0, 1000))
    assert "window" not in caplog.text
