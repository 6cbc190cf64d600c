"""New cases that are prepared like others: all settings, or the centres alone, of data prepared before."""

from __future__ import annotations

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
from semsynth.cli.main import main
from semsynth.data.intensity import Scaling
from semsynth.errors import InputError
from semsynth.prepare import like as module
from semsynth.prepare.atrium import Settings
from semsynth.prepare.like import prepared_centers, settings_like
from semsynth.prepare.maps import MapSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, the same as test cases alone, and the phantoms prepared with settings of their own."""
    root = tmp_path_factory.mktemp("like")
    assert main(["phantom", "--output", str(root / "raw"), "--cases=5", "--size=24,24,24", "--spacing=4,4,4"]) == 0
    content = json.loads((root / "raw" / "datalist.json").read_text())
    entries = [entry for split in ("training", "validation", "testing") for entry in content[split]][:1]
    (root / "raw" / "new.json").write_text(json.dumps({"testing": entries, "num_classes": 4,
                                                       "classes": content["classes"]}))  # fmt: skip
    assert main(["prepare", "--input", str(root / "raw"), "--output", str(root / "old"), "--k", "3", "--spacing",
                 "5,5,5", "--wall-mm", "3", "--dtype", "uint8", "--centers", "dataset"]) == 0  # fmt: skip
    return root


def stated(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "datalist.json").read_text())["settings"]
    return settings


def new(data: Path, output: Path, *arguments: str, command: str = "prepare") -> int:
    return main([command, "--input", str(data / "raw" / "new.json"), "--output", str(output), *arguments])


def test_all_settings_are_taken_but_those_that_are_given(data: Path, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        assert new(data, tmp_path / "same", "--like", str(data / "old")) == 0
    assert "k 3" in caplog.text and "wall_mm 3.0" in caplog.text
    assert stated(tmp_path / "same") == stated(data / "old")
    # an option counts as given also where it is the command's default
    assert new(data, tmp_path / "other", "--like", str(data / "old"), "--dtype", "int16", "--wall-mm=2.5") == 0
    assert stated(tmp_path / "other") == stated(data / "old") | {"dtype": "int16", "wall_mm": 2.5}


def test_a_case_prepared_like_others_is_what_it_was_among_them(data: Path, tmp_path: Path) -> None:
    assert new(data, tmp_path / "out", "--like", str(data / "old")) == 0
    (image,) = tmp_path.glob("out/*/label.nii.gz")
    assert image.read_bytes() == (data / "old" / image.parent.name / "label.nii.gz").read_bytes()


def test_the_centres_alone_can_be_taken(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = str(data / "old")
    assert new(data, tmp_path / "out", "--centers", old, "--k", "3") == 0
    assert stated(tmp_path / "out")["centers"] == stated(data / "old")["centers"]
    assert stated(tmp_path / "out")["spacing"] == [1.0, 1.0, 1.0]
    assert new(data, tmp_path / "maps", "--centers", old, "--k", "3", "--classes", "a,b,c", command="prepare-maps") == 0
    assert stated(tmp_path / "maps")["centers"] == stated(data / "old")["centers"]
    assert new(data, tmp_path / "own", "--spacing", "4,4,4") == 0
    capsys.readouterr()
    for arguments, message in [
        (["--centers", old], "has 3 centres, --k is 2; give --k 3"),
        (["--centers", str(tmp_path / "own")], "its centres were fitted to each volume"),
        (["--centers", "2024_11"], "--centers 2024_11: there is no prepared data; needed is 'dataset', numbers"),
        (["--centers", "dataset"], "the input has no training cases to fit the centres to; give --centers FOLDER"),
        (["--like", old, "--k", "2"], "its 3 centres do not go with --k 2; leave --k out, or give --centers too"),
        (["--like", "nowhere"], "--like nowhere: there is no prepared data"),
        (["--like", str(data / "raw")], "states no settings"),
    ]:
        assert new(data, tmp_path / "bad", *arguments) == 1
        assert message in capsys.readouterr().err


def test_the_other_commands_data_and_other_classes_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(data, tmp_path / "a", "--like", str(data / "old"), command="prepare-maps") == 1
    assert "states settings that this command does not have: background, wall_mm" in capsys.readouterr().err
    assert new(data, tmp_path / "maps", "--classes", "a,b,c", "--sigma", "2", command="prepare-maps") == 0
    assert new(data, tmp_path / "b", "--like", str(tmp_path / "maps"), command="prepare-maps") == 1
    assert "its classes are a, b, c, those of" in capsys.readouterr().err
    assert (
        new(data, tmp_path / "c", "--like", str(tmp_path / "maps"), "--classes", "x,y,z", command="prepare-maps") == 0
    )
    assert stated(tmp_path / "c") == stated(tmp_path / "maps") | {"classes": ["x", "y", "z"]}
    assert new(data, tmp_path / "d", "--like", str(tmp_path / "maps")) == 1
    assert "states settings that this command does not have" in capsys.readouterr().err


def test_settings_of_an_older_version_are_what_it_did(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    content = json.loads((data / "old" / "datalist.json").read_text())
    del content["settings"]["wall_mm"]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    assert settings_like(Settings, path, ()).wall_mm == Settings().wall_mm
    # as if the width were new and no walls had been derived
    monkeypatch.setattr(module, "before", lambda name, settings: 0.0 if name == "wall_mm" else MISSING)
    assert settings_like(Settings, tmp_path, ()).wall_mm == 0.0
    content["settings"] |= {"shininess": 3}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"does not have: shininess; prepare new cases with the command"):
        settings_like(Settings, path, ())
    content["settings"] = {"spacing": None, "k": 0}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="does not state classes"):
        settings_like(MapSettings, path, ())


@pytest.mark.parametrize(
    ("name", "scale"),
    [("pix2pix3d", "min-max"), ("spade_gan3d", "min-max"), ("spade_ldm", "percentiles"), ("med_lsdm", "min-max")],
)
def test_a_bundle_says_how_the_data_of_its_weights_was_prepared(name: str, scale: str, project_root: Path) -> None:
    found = settings_like(Settings, project_root / "bundles" / name, [])
    assert (found.k, found.scale, found.spacing, found.dtype) == (2, scale, (1.0, 1.0, 1.0), "uint8")


def test_the_settings_that_fit_the_command_are_taken_of_a_bundle_with_several_weights(project_root: Path) -> None:
    found = settings_like(MapSettings, project_root / "bundles" / "med_lsdm", ["classes"], classes=("organ",))
    assert found.classes == ("organ",) and found.unit_range == (-1000.0, 1000.0)
    assert found.centers == prepared_centers(project_root / "bundles" / "med_lsdm", 3, MapSettings)
    with pytest.raises(InputError, match=r"there is no prepared data; needed is .*or a bundle's"):
        settings_like(Settings, project_root / "bundles", [])


def test_a_rule_of_intensities_that_is_given_replaces_the_whole_rule(data: Path) -> None:
    found = settings_like(Settings, data / "old", ["window"], window=(0.0, 500.0))
    assert found.scaling == Scaling("window", (0.0, 500.0))
