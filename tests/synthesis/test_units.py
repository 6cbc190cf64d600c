"""Synthetic volumes come out in the unit, or the range, that their data set has; evaluations compare in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from semsynth.data.geometry import Geometry, TrainedGrid
from semsynth.data.intensity import Intensity, Scaling
from semsynth.data.volumes import read_volume, write_image, write_label
from semsynth.errors import InputError
from semsynth.evaluation import evaluate
from semsynth.evaluation.files import Results
from semsynth.evaluation.sources import load_real
from semsynth.report.pictures import comparison_rows
from semsynth.synthesis.style import StyleSource
from tiny_synthesis import random_weights, synthesise

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "pix2pix3d"
HOUNSFIELD = Intensity(None, Scaling("window", (24.0, 2024.0)), "HU", (-1000.0, 1000.0))


@pytest.fixture
def ct_weights(tmp_path: Path) -> Path:
    weights = random_weights(BUNDLE, tmp_path / "model.pt")
    geometry = Geometry.of_grids([((3.0, 3.0, 3.0), (32, 32, 32))], trained=HOUNSFIELD)
    weights.with_suffix(".json").write_text(json.dumps({"training_cases": [], "geometry": geometry.to_json()}))
    return weights


def test_synthetic_ct_is_written_in_hounsfield_units(tiny_dataset: Path, tmp_path: Path, ct_weights: Path) -> None:
    (volume,) = synthesise(BUNDLE, ct_weights, tiny_dataset, tmp_path / "hu", split="validation")
    path = next((tmp_path / "hu").glob("*_synthetic.nii.gz"))
    image = nib.load(path)
    assert image.get_data_dtype() == np.int16 and image.dataobj.slope == 1
    assert -1000 <= volume.min() < -200 < 200 < volume.max() <= 1000
    listed = json.loads((tmp_path / "hu" / "datalist.json").read_text())
    record = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    for stated in (listed["intensity"], listed["training"][0]["intensity"], record["intensity"]):
        assert Intensity.from_json(stated, "x") == Intensity(
            (-1000.0, 1000.0), HOUNSFIELD.scaling, "HU", (-1000.0, 1000.0)
        )
    # the same network without the unit: the same volume, in [0, 1]
    plain = random_weights(BUNDLE, tmp_path / "plain.pt")
    (other,) = synthesise(BUNDLE, plain, tiny_dataset, tmp_path / "plain", split="validation")
    np.testing.assert_allclose(volume, other * 2000 - 1000, atol=0.6)
    assert json.loads((tmp_path / "plain" / "datalist.json").read_text())["intensity"] == {"window": [0.0, 1.0]}


def test_mr_can_be_written_in_the_range_of_its_source(tiny_dataset: Path, tmp_path: Path, ct_weights: Path) -> None:
    weights = random_weights(BUNDLE, tmp_path / "mr.pt")
    (volume,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "mr", split="validation", intensity_range=[0, 255])
    assert np.array_equal(volume, np.rint(volume)) and 1 < volume.max() <= 255
    stated = json.loads((tmp_path / "mr" / "datalist.json").read_text())["intensity"]
    assert stated == {"window": [0.0, 255.0]}
    for wrong, message in (([0], "intensity_range must be two rising numbers"), ([0, 1], "at least 100 steps")):
        with pytest.raises(RuntimeError) as found:  # MONAI's, around ours
            synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "no", split="validation", intensity_range=wrong)
        assert isinstance(found.value.__cause__, InputError) and message in str(found.value.__cause__)
        assert not list((tmp_path / "no").glob("*.nii.gz"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prepared CTs that do not fill their window, with maps."""
    root = tmp_path_factory.mktemp("prepared")
    stated = Intensity((0.0, 1.0), HOUNSFIELD.scaling, "HU", (-1000.0, 1000.0)).to_json()
    content: dict[str, Any] = {"intensity": stated, "training": [], "validation": []}
    for i in range(4):
        hounsfield = np.random.default_rng(i).normal(40, 30, (32, 32, 32))
        hounsfield[:8] = -700
        label = np.zeros((32, 32, 32), np.uint8)
        label[10:20, 10:20, 10 : 20 + i] = 1
        write_image(root / f"c{i}.nii.gz", (hounsfield + 1000) / 2000, np.eye(4), "int16")
        write_label(root / f"l{i}.nii.gz", label, np.eye(4))
        entry = {"case": f"c{i}", "image": f"c{i}.nii.gz", "label": f"l{i}.nii.gz"}
        content["training" if i < 2 else "validation"].append(entry)
    (root / "datalist.json").write_text(json.dumps(content))
    return root


def system(folder: Path, prepared: Path, error: float, *, told: bool) -> Path:
    """Volumes that are ``error`` HU too bright everywhere."""
    folder.mkdir()
    for case in ("c2", "c3"):
        real = read_volume(prepared / f"{case}.nii.gz").data * 2000 - 1000
        write_image(
            folder / f"{case}_synthetic.nii.gz", (real + error + 1000) / 2000, np.eye(4), "int16", (-1000.0, 1000.0)
        )
        record = {"synthetic": True, "case": case} | (
            {"intensity": {"window": [-1000, 1000], "unit": "HU"}} if told else {}
        )
        (folder / f"{case}_synthetic.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("told", [True, False])
def test_evaluation_compares_in_hounsfield_units(prepared: Path, tmp_path: Path, told: bool) -> None:
    folder = system(tmp_path / "s", prepared, 25.0, told=told)
    results = evaluate({"ours": str(folder)}, prepared, tmp_path / "out", extractors=[], draws=20, pictures=1)
    found = {s.metric: s.value for s in results.scores if s.row == "ours" and s.group == "unseen cases"}
    found = found or {s.metric: s.value for s in results.scores if s.row == "ours"}
    assert found["mae_hu"] == pytest.approx(25, abs=0.6)
    assert found["mae"] == pytest.approx(25 / 2000, abs=3e-4)
    assert found["psnr"] == pytest.approx(-20 * np.log10(25 / 2000), abs=0.1)
    assert "MAE (HU)" in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


def test_real_ct_is_read_by_its_window(prepared: Path) -> None:
    image, _ = load_real(prepared)["c2"].read()
    assert image.data[0, 0, 0] * 2000 - 1000 == pytest.approx(-700, abs=0.1)


def test_a_generator_trained_by_another_rule_is_warned_of(prepared: Path, tmp_path: Path, caplog: Any) -> None:
    folder = system(tmp_path / "s", prepared, 0.0, told=True)
    evaluate({"ours": str(folder)}, prepared, tmp_path / "out", extractors=[], draws=20, pictures=0)
    assert not any("scaled in another way" in record.getMessage() for record in caplog.records)  # one unit
    content = json.loads((prepared / "datalist.json").read_text())
    content["intensity"] = {"window": [0, 1], "scaling": Scaling().to_json()}
    (prepared / "other.json").write_text(json.dumps(content))
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        record["intensity"] = {"window": [-1000, 1000], "scaling": {"scale": "min-max"}}
        path.write_text(json.dumps(record))
    evaluate({"ours": str(folder)}, prepared / "other.json", tmp_path / "out", extractors=[], draws=20, pictures=0)
    assert any("was trained on images scaled in another way" in record.getMessage() for record in caplog.records)


def test_pictures_show_units_and_ranges_as_they_are(prepared: Path, tmp_path: Path) -> None:
    folder = system(tmp_path / "s", prepared, 0.0, told=True)
    entries = [
        {
            "case": case,
            "image": f"{case}_synthetic.nii.gz",
            "label": str(prepared / f"l{case[1]}.nii.gz"),
            "synthetic": True,
        }
        for case in ("c2", "c3")
    ]
    stated = {"window": [-1000, 1000], "unit": "HU"}
    (folder / "datalist.json").write_text(json.dumps({"training": entries, "intensity": stated}))
    for row in comparison_rows(folder, real=prepared):
        made, real = (panel.volume for panel in row.panels if not panel.is_label)
        np.testing.assert_allclose(made, real, atol=1e-3)
        assert real.min() > 0.1 and real.max() < 0.7  # 40 ± 30 HU and -700 HU of -1000 to 1000


def compare(folder: Path, real: Path, output: Path) -> Results:
    return evaluate({"ours": str(folder)}, real, output, extractors=[], draws=20, pictures=0)


def test_volumes_of_another_window_are_compared_in_that_of_the_real_ones(prepared: Path, tmp_path: Path) -> None:
    """Real images prepared at -160 to 240 HU, volumes written from -1000 to 1000 HU."""
    folder = system(tmp_path / "s", prepared, 0.0, told=True)
    content = json.loads((prepared / "datalist.json").read_text())
    narrow = Intensity((0.0, 1.0), Scaling("window", (-160.0, 240.0)), "HU", (-160.0, 240.0))
    for entry in content["training"] + content["validation"]:
        hounsfield = read_volume(prepared / entry["image"]).data * 2000 - 1000
        write_image(tmp_path / entry["image"], (hounsfield + 160) / 400, np.eye(4), "float32")
        entry["image"], entry["label"] = str(tmp_path / entry["image"]), str(prepared / entry["label"])
    (tmp_path / "narrow.json").write_text(json.dumps(content | {"intensity": narrow.to_json()}))
    results = evaluate(
        {"ours": str(folder)}, tmp_path / "narrow.json", tmp_path / "out", extractors=[], draws=20, pictures=0
    )
    assert max(s.value for s in results.scores if s.row == "ours" and s.metric == "mae_hu") < 0.6


def test_raw_ct_is_compared_in_the_unit_of_the_volumes(prepared: Path, tmp_path: Path) -> None:
    folder = system(tmp_path / "s", prepared, 0.0, told=True)
    (tmp_path / "raw").mkdir()
    for case in ("c2", "c3"):
        hounsfield = read_volume(prepared / f"{case}.nii.gz").data * 2000 - 1000
        write_image(
            tmp_path / "raw" / f"{case}.nii.gz", (hounsfield + 1000) / 2000, np.eye(4), "int16", (-1000.0, 1000.0)
        )
    results = compare(folder, tmp_path / "raw", tmp_path / "out")
    assert max(s.value for s in results.scores if s.row == "ours" and s.metric == "mae_hu") < 0.6
    for case in ("c2", "c3"):  # HU + 1024
        write_image(
            tmp_path / "raw" / f"{case}.nii.gz",
            np.roll(np.eye(32)[None] * np.ones((32, 1, 1)), case == "c2", 1),
            np.eye(4),
            "int16",
            (24.0, 2024.0),
        )
    with pytest.raises(InputError, match="has no air"):
        compare(folder, tmp_path / "raw", tmp_path / "no")


def test_another_unit_than_hounsfield_has_no_column_of_them(prepared: Path, tmp_path: Path) -> None:
    content = json.loads((prepared / "datalist.json").read_text())
    content["intensity"] |= {"unit": "SUV", "unit_range": [0, 20]}
    (prepared / "suv.json").write_text(json.dumps(content))
    (tmp_path / "s").mkdir()
    for case in ("c2", "c3"):
        write_image(
            tmp_path / "s" / f"{case}.nii.gz", read_volume(prepared / f"{case}.nii.gz").data, np.eye(4), "int16"
        )
    results = evaluate(
        {"ours": str(tmp_path / "s")}, prepared / "suv.json", tmp_path / "out", extractors=[], draws=20, pictures=0
    )
    assert not [s for s in results.scores if s.metric == "mae_hu"]
    assert "HU" not in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


def test_a_style_image_is_read_in_the_unit_of_the_weights(prepared: Path, tmp_path: Path, ct_weights: Path) -> None:
    class Network(torch.nn.Linear):
        """Style: the image's mean intensity."""

        def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, None]:
            return image.mean(dim=(1, 2, 3, 4))[None], None

    grid = TrainedGrid(ct_weights, tmp_path / "metadata.json")
    hounsfield = read_volume(prepared / "c2.nii.gz").data * 2000 - 1000
    expected = float(((hounsfield + 1000) / 2000).mean())
    spacing = {"spacing": (1.0, 1.0, 1.0), "grid": grid}
    raw, offset, narrow = (tmp_path / f"{name}.nii.gz" for name in ("raw", "offset", "narrow"))
    write_image(raw, (hounsfield + 1000) / 2000, np.eye(4), "float32", (-1000.0, 1000.0))
    assert float(StyleSource(Network(1, 1), raw, **spacing)({})) == pytest.approx(expected, abs=1e-3)
    write_image(offset, (hounsfield + 1000) / 2000, np.eye(4), "float32", (24.0, 2024.0))
    with pytest.raises(InputError, match="need Hounsfield units"):
        StyleSource(Network(1, 1), offset, **spacing)({})
    write_image(narrow, (hounsfield + 800) / 1000, np.eye(4), "float32")  # a record says that 0 to 1 are -800 to 200 HU
    held = Intensity((0.0, 1.0), None, "HU", (-800.0, 200.0)).to_json()
    (tmp_path / "narrow.json").write_text(json.dumps({"synthetic": True, "intensity": held}))
    assert float(StyleSource(Network(1, 1), narrow, **spacing)({})) == pytest.approx(expected, abs=1e-3)
