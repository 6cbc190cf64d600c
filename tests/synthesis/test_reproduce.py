"""``semsynth reproduce``: a bundle gives here what it gave where it was shipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.synthesis.reproduce import ABOUT, VOLUME, reproduce, write_golden

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SHIPPED = sorted(path.parents[1].name for path in BUNDLES.glob(f"*/docs/{ABOUT}"))


def test_every_bundle_ships_a_golden_file():
    # la_maps makes no volume of a map: its maps follow from a seed, and have no golden file yet
    assert sorted(path.parents[1].name for path in BUNDLES.glob("*/models/model.pt")) == sorted([*SHIPPED, "la_maps"])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_weights_give_the_golden_volume(name):
    findings = reproduce(BUNDLES / name, device="cpu")
    assert [f.what for f in findings][:1] == ["weights"] and findings[-1].what == "volume"
    assert all(f.agrees for f in findings), findings


@pytest.fixture
def copied(tmp_path) -> Path:
    folder = tmp_path / "la_unet"
    shutil.copytree(BUNDLES / "la_unet", folder, ignore=shutil.ignore_patterns("runs", "eval", "data"))
    return folder


def test_other_weights_and_another_volume_are_told_and_end_with_1(copied, capsys):
    weights = torch.load(copied / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 0.5 for name, value in weights.items()}, copied / "models" / "model.pt")
    assert main(["reproduce", "--bundle", str(copied), "--device", "cpu"]) == 1
    assert "model.pt: is not the file that its card model.json describes" in capsys.readouterr().err
    (copied / "models" / "model.json").unlink()
    assert main(["reproduce", "--bundle", str(copied), "--device", "cpu"]) == 1
    shown = capsys.readouterr().out
    assert "NOT reproduced" in shown
    assert shown.count("DIFFERS") == 2 and "agrees  phantom's image" in shown, "weights and volume, not the phantom"


def test_a_volume_that_differs_by_a_little_more_than_the_tolerance_is_told(copied):
    image = nib.load(copied / "docs" / VOLUME)
    labels = np.asarray(image.dataobj).copy()
    tolerance = json.loads((copied / "docs" / ABOUT).read_text())["tolerance"]["differing"]
    labels.reshape(-1)[: int(labels.size * tolerance) + 1] ^= 1
    nib.save(nib.Nifti1Image(labels, image.affine), copied / "docs" / VOLUME)
    *others, volume = reproduce(copied, device="cpu")
    assert all(f.agrees for f in others) and not volume.agrees
    assert "tolerance 0.0005" in volume.found


def test_a_golden_file_made_anew_is_the_shipped_one(copied):
    kept = (copied / "docs" / VOLUME).read_bytes()
    write_golden(copied)
    assert np.array_equal(
        np.asarray(nib.load(copied / "docs" / VOLUME).dataobj),
        np.asarray(nib.load(BUNDLES / "la_unet" / "docs" / VOLUME).dataobj),
    )
    assert len(kept) > 0 and not list((copied / "docs").glob(".*")), "nothing half-written stays"


def test_a_config_that_cannot_be_run_is_named(copied):
    config = copied / "configs" / "inference.json"
    config.write_text(config.read_text().replace("residual_unet", "no_such_network"))
    with pytest.raises(InputError, match=r"is not run.*\n.*no_such_network' is no class or function"):
        reproduce(copied)
    text = config.read_text().replace("no_such_network", "residual_unet")
    config.write_text(text.replace('"dropout"', '"no_argument"'))
    with pytest.raises(InputError, match=r"inference\.json: the inference cannot be run \(.*take the bundle's own"):
        reproduce(copied)
    about = copied / "docs" / ABOUT
    about.write_text(about.read_text().replace('"differing"', '"other"'))
    with pytest.raises(InputError, match="tolerance is missing or of another form"):
        reproduce(copied)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (f"docs/{ABOUT}", "ships no golden file"),
        (f"docs/{VOLUME}", "is missing or of another form"),
        ("models/model.pt", "no such weights; copy the bundle whole"),
        ("configs/inference.json", "give the folder of a bundle"),
    ],
)
def test_what_is_missing_is_named(copied, remove, message):
    (copied / remove).unlink()
    with pytest.raises(InputError, match=message):
        reproduce(copied)
