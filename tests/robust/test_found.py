"""What the property test has found and no other module of this folder holds, in its smallest form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from semsynth.cli.main import main
from semsynth.data.patterns import matches_path
from semsynth.training.checkpoints import CheckpointFolder


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("[]*", "[]x"), ("[!]*", "[!]x"), ("a[]b*", "a[]bx"), ("[z-a]*", None), ("[^]*", "^x"), ("[!!]*", "ax")],
)
def test_odd_brackets_are_taken_as_glob_takes_them(pattern: str, name: str | None, tmp_path: Path) -> None:
    assert not matches_path(f"{tmp_path}/{pattern}", tmp_path / "other" / "x")
    if name is not None:
        assert matches_path(f"{tmp_path}/{pattern}", tmp_path / name)
        (tmp_path / name).touch()
        assert list(tmp_path.glob(pattern)) == [tmp_path / name]


def test_a_class_of_characters_stands_for_no_slash(tmp_path: Path) -> None:
    assert not matches_path(f"{tmp_path}/a[!x]b", tmp_path / "a" / "b")
    assert matches_path(f"{tmp_path}/a[!x]b", tmp_path / "ayb")


@pytest.mark.parametrize("link", ["weights.pt", "run"])
def test_weights_that_are_a_link_to_itself_are_named(
    link: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / link).symlink_to(link)
    assert main(["weights", f"--checkpoint={tmp_path / link}", f"--output={tmp_path / 'out' / 'model.pt'}"]) == 1
    assert str(tmp_path / link) in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoilt", [True, None, 3, [], "../elsewhere.pt", "x" * 300, {"file": 1}])
@pytest.mark.parametrize("key", ["file", "sha256", "entry", "checkpoints"])
def test_a_manifest_with_other_values_is_a_lost_one(spoilt: Any, key: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    state = {"objects": {"network": {"w": torch.ones(2)}}, "epoch": 1, "iteration": 2}
    path = folder.save(state, epoch=1, iteration=2)
    entry = json.loads((tmp_path / "manifest.json").read_text())["checkpoints"][0]
    changed: Any = [spoilt] if key == "entry" else spoilt if key == "checkpoints" else [entry | {key: spoilt}]
    (tmp_path / "manifest.json").write_text(json.dumps({"checkpoints": changed}))
    if key == "sha256" and isinstance(spoilt, str):
        return  # another file than what was written: that is damaged, see tests/training/test_checkpoints.py
    found = folder.load_newest()
    assert found is not None and found[1] == path


@pytest.mark.parametrize("device", ["\xb2\xe2", "cpu:x", "meta", "nonsense", "vulkan", "cuda:99"])
def test_a_device_that_is_none_is_named(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--synthetic=x", "--real=y", f"--output={tmp_path / 'out'}", f"--device={device}"]
    assert main(arguments) == 1
    assert f"--device {device}: " in capsys.readouterr().err


def test_a_picture_of_no_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["picture", "--synthetic=", f"--output={tmp_path / 'p.png'}"]) == 1
    assert "give --synthetic FOLDER" in capsys.readouterr().err
