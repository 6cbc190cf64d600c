"""The command line: help, exit status, mistakes without traceback and before any work."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from semsynth import __version__
from semsynth.cli.main import COMMANDS, main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"semsynth {__version__}"


def test_help_lists_the_commands(capsys):
    assert main([]) == 0 and main(["--help"]) == 0
    shown = capsys.readouterr()
    assert all(command in shown.out + shown.err for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_argument_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    for name in inspect.signature(COMMANDS[command]).parameters:
        described = text.split(f"--{name}=")[1]
        assert len(described.split("--")[0].split()) > 6, f"--{name} is not explained"


def test_the_phantom_is_written_and_its_datalist_printed(tmp_path, capsys):
    arguments = ["phantom", "--output", str(tmp_path / "p"), "--cases=3", "--size=24,24,24", "--spacing=4,4,4"]
    assert main(arguments) == 0
    path = capsys.readouterr().out.strip()
    assert json.loads(Path(path).read_text())["num_classes"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phantom", "--output", "OUT", "--case=3"], "no option --case; did you mean cases?"),
        (["phantom", "--output", "OUT", "--cases=three"], "--cases must be a whole number, got 'three'"),
        (["phantom", "--output", "OUT", "--size=a,b"], "--size must be numbers with commas"),
        (["phantm"], "no command 'phantm'; did you mean phantom?"),
        (["prepare", "--input", "nowhere", "--output", "OUT"], "nowhere: no such file or folder"),
        (["prepare", "--input", "x", "--output", "OUT", "--dtype=int8"], "--dtype must be uint8, int16 or float32"),
        (["prepare", "--input", "x", "--output", "OUT", "--k=12"], "--k must lie in 0…10, got 12"),
        (["prepare", "--input", "x", "--output", "OUT", "--sigma=-1"], "--sigma must lie in 0…20 voxels"),
        (["picture", "--synthetic", "PHANTOM", "--output", "FILE/a.png"], "check the path and its permissions"),
        (["choose-k", "--input", "nowhere"], "nowhere: no such file or folder"),
        (["picture", "--synthetic", "nowhere", "--output", "OUT/a.png"], "no such file"),
        (["weights", "--checkpoint", "nowhere", "--output", "OUT"], "nowhere: "),
    ],
)
def test_a_mistake_is_one_clear_error_and_nothing_is_written(arguments, message, tiny_dataset, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "file").write_text("a file, not a folder")
    places = {"OUT": out, "PHANTOM": tiny_dataset, "FILE": tmp_path / "file"}
    for word, place in places.items():
        arguments = [a.replace(word, str(place)) for a in arguments]
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not out.exists()


def test_a_missing_option_is_wrong_usage(capsys):
    assert main(["phantom"]) == 2
    assert "output" in capsys.readouterr().err


def test_the_installed_command_returns_the_exit_status(tmp_path):
    command = [sys.executable, "-c", "import sys; from semsynth.cli.main import main; sys.exit(main())", "prepare"]
    done = subprocess.run([*command, "--input=no", f"--output={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_study_compare_is_compare(tmp_path, capsys):
    for name, gain in (("a", 0.02), ("b", 0.0)):
        rows = "".join(f"P{i},{0.8 + 0.01 * i + gain + 0.001 * (i % 3)}\n" for i in range(8))
        (tmp_path / f"{name}.csv").write_text(f"case,Dice\n{rows}")
    paths = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert main(["study", "compare", *paths, "--draws", "1000"]) == 0
    ours = capsys.readouterr().out
    assert main(["compare", "--scores", paths[0], "--baseline", paths[1], "--draws", "1000"]) == 0
    assert capsys.readouterr().out == ours
    assert main(["study", "compare", paths[0]]) == 1
    assert "takes two files or folders of scores, got 1" in capsys.readouterr().err
