"""What is typed arrives as it was typed: names that look like numbers, the home folder, brackets; and closed pipes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from semsynth.cli.main import main
from semsynth.cli.options import numbers_or_text
from semsynth.errors import InputError

SMALL = ["--cases=3", "--size=24,24,24", "--spacing=4,4,4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("name", ["2024_11_28", "1e3", "3.10", "0x10", "a,b", "None", "[x]", "True", "'q'", "a=b"])
def test_a_folder_is_called_as_it_was_typed(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["phantom", "--output", name, *SMALL]) == 0
    assert {path.name for path in here.iterdir()} - {"home"} == {name}  # where matplotlib keeps its list of fonts
    assert main(["check", f"--input={name}"]) == 0
    assert "3 cases checked: 0 errors" in capsys.readouterr().out


def test_a_missing_folder_is_named_as_it_was_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--input", "2024_01", "--output", "3.10"]) == 1
    assert "error: 2024_01: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["phantom", "--output"], ["check", "--input", "--json"], ["check", "--input="]])
def test_a_text_without_a_value_is_named(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 1
    assert "needs a value" in capsys.readouterr().err and not (here / "True").exists()


def test_the_home_folder_is_understood_behind_an_equals_sign(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "--output=~/made", *SMALL]) == 0
    assert main(["check", "--input=~/made/*/image.nii.gz", "--endo=~/made/*/endo.nii.gz"]) == 0
    assert not (here / "~").exists() and (here / "home" / "made" / "datalist.json").is_file()
    listed = {"training": [{"case": "x", "image": "~/made/phantom_000/image.nii.gz",
                            "label": "~/made/phantom_000/label.nii.gz"}]}  # fmt: skip
    (here / "datalist.json").write_text(json.dumps(listed))
    capsys.readouterr()
    assert main(["check", "--input", "datalist.json"]) == 0
    assert "1 case checked: 0 errors" in capsys.readouterr().out


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "br [v2]"
    assert main(["phantom", "--output", str(folder), *SMALL]) == 0
    return folder


def test_a_folder_with_brackets_is_checked_prepared_measured_and_drawn(
    phantoms: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantoms, "br [v2]")
    assert main(["check", "--input", "br [v2]"]) == 0
    assert main(["prepare", "--input", "br [v2]", "--output", "out [1]", "--spacing", "4,4,4"]) == 0
    assert main(["check", "--input", "out [1]"]) == 0
    pattern = ["--input", "br [v2]/*_00[01]/image.nii.gz"]
    assert main(["check", *pattern, "--endo", "br [v2]/*_00[01]/endo.nii.gz"]) == 0
    assert "2 cases checked" in capsys.readouterr().out
    assert main(["choose-k", *pattern, "--endo", "br [v2]/*_00[01]/endo.nii.gz", "--k-max", "2"]) == 0
    assert main(["prepare-maps", *pattern, "--label", "br [v2]/*_00[01]/label.nii.gz", "--classes", "a,b,c",
                 "--output", "maps [1]"]) == 0  # fmt: skip
    assert main(["picture", "--synthetic", "out [1]", "--output", "p [1].png", "--cases", "1"]) == 0
    assert (here / "p [1].png").is_file()


def test_raw_label_maps_are_checked_by_a_pattern(phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps = f"{phantoms}/*/label.nii.gz"
    for arguments in (["--input", f"{phantoms}/*/image.nii.gz", "--label", maps], ["--label", maps]):
        assert main(["check", *arguments]) == 0
        assert "3 cases checked: 0 errors" in capsys.readouterr().out
        assert main(["check", *arguments, "--num-classes", "3"]) == 1
        assert "set num_classes to 4" in capsys.readouterr().out
    assert main(["check"]) == 1
    assert "give --input, a data set, or --label" in capsys.readouterr().err
    assert main(["check", "--label", maps, "--endo", maps]) == 1
    assert "give one or the other" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1])
def test_a_closed_pipe_is_no_error(phantoms: Path, tmp_path: Path, status: int) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    if status:
        (data / "phantom_000" / "image.nii.gz").write_bytes(b"no volume")
    program = "import sys; from semsynth.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "check", "--input", str(data)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()  # as head does when it has its lines
    errors = running.stderr.read()
    running.stderr.close()
    assert running.wait() == status and "Broken" not in errors and "Traceback" not in errors


def test_numbers_are_told_from_folders() -> None:
    assert numbers_or_text("centers", "0.1, .4,1e-1") == (0.1, 0.4, 0.1) and numbers_or_text("centers", "[1]") == (1.0,)
    for text in ("2024_11_28", "out", "0.1,x", "1/2"):
        assert numbers_or_text("centers", text) == text
    with pytest.raises(InputError, match="--centers must be numbers with commas"):
        numbers_or_text("centers", [None])
