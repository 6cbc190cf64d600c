"""Yes and no: every boolean of the command line and of a bundle's is what was meant, or an error that names it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import get_type_hints

import fire
import pytest
from semsynth.booleans import misread, understood
from semsynth.cli.main import COMMANDS, _check_options, main
from semsynth.cli.options import as_typed
from semsynth.errors import InputError, say_plainly

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SWITCHES = [
    (command, name) for command, run in COMMANDS.items() for name, hint in get_type_hints(run).items() if hint is bool
]


def test_all_booleans_are_found() -> None:
    assert {name for _, name in SWITCHES} >= {"overwrite", "group_patients", "lpips", "same_patient", "json", "relabel"}


@pytest.mark.parametrize(("command", "name"), SWITCHES)
def test_a_boolean_that_is_neither_yes_nor_no_is_named(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--{name.replace('_', '-')}"
    needed = [p.name for p in inspect.signature(COMMANDS[command]).parameters.values() if p.default is p.empty]
    given = [part for other in needed for part in (f"--{other}", "1,1,1")]
    assert main([command, *given, option, "garbage"]) == 1
    assert f"error: {option} is yes or no, got 'garbage'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ([], False), (["--overwrite"], True), (["--nooverwrite"], False), (["--overwrite", "--k", "1"], True),
        *((["--overwrite", word], True) for word in ("yes", "TRUE", "on", "1", "True")),
        *((["--overwrite", word], False) for word in ("no", "False", "Off", "0", "false")),
        (["--overwrite=no"], False), (["--overwrite=Yes"], True),
    ],
)  # fmt: skip
def test_a_boolean_is_what_was_meant(typed: list[str], meant: bool) -> None:
    seen: list[bool] = []

    def command(*, overwrite: bool = False, k: int = 0) -> str:
        seen.append(overwrite)
        return ""

    fire.Fire(as_typed(command), command=typed, serialize=lambda result: None)
    assert seen == [meant] and isinstance(seen[0], bool)


def test_no_in_front_belongs_to_booleans_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # --nooutput would write to a folder called False
    for arguments, message in ((["phantom", "--nooutput"], "no option --nooutput"),
                               (["prepare", "--nooverwrite", "yes"], "--nooverwrite stands alone")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            _check_options(arguments)
    assert not list(tmp_path.iterdir())


def test_yes_and_no_in_any_case() -> None:
    assert [understood(word) for word in ("YES", " on ", "No", "0", "", "2", "none")] == [True, True, False, False,
                                                                                         None, None, None]  # fmt: skip


@pytest.mark.parametrize("bundle", sorted(path.name for path in BUNDLES.iterdir() if path.is_dir()))
@pytest.mark.parametrize("config", ["train", "inference", "evaluate"])
def test_every_boolean_of_a_bundle_refuses_texts(bundle: str, config: str) -> None:
    path = BUNDLES / bundle / "configs" / f"{config}.json"
    names = [name for name, value in json.loads(path.read_text()).items() if isinstance(value, bool)]
    assert names or config != "train"
    for name in names:
        for typed in ("no", "false", "TRUE", "off", "none", "garbage", "2"):
            said = misread(["run", "--config_file", str(path), f"--{name}", typed])
            assert said is not None and said.startswith(name)
        for typed in ("True", "False", "1", "0", "@amp"):
            assert misread(["run", "--config_file", str(path), f"--{name}={typed}"]) is None


def test_inner_keys_lists_of_configs_and_other_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = BUNDLES / "med_lsdm" / "configs"
    listed = ["--config_file", f"['{configs / 'train.json'}','{configs / 'paper.json'}']"]
    for typed in (["--network_def#standardize", "x"], ["--network_def::autoencoder::tanh", "x"], ["--resume=x"]):
        assert "must be True or False, got 'x'" in str(misread([*listed, *typed]))
    fine = ["--resume", "--seed", "0", "--output_dir", "x", "--network_def#standardize", "False", "--sampler", "ddim"]
    assert misread([*listed, *fine]) is None
    assert misread(["--config_file", str(tmp_path / "gone.json"), "--resume", "x"]) is None
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "--config_file", "gone.json", "--output_dir", "no"])
    say_plainly()  # a folder may be called no
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "--config_file", "gone.json", "--resume", "no"])
    with pytest.raises(InputError, match=r"resume: 'no' is no boolean here, but a text, .* write --resume False"):
        say_plainly()
