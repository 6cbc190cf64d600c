"""What weights came from: cases recognised without names, commands without absolute paths, configurations compared."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import monai
import numpy as np
import pytest
import semsynth
import torch
from semsynth.cli.main import COMMANDS
from semsynth.cli.options import texts_of
from semsynth.data.entries import load_datalist
from semsynth.errors import InputError
from semsynth.provenance.cards import datalist_hash, versions, write_model_card
from semsynth.provenance.command import DATA_OPTIONS, run_command
from semsynth.provenance.config import changed_keys, config_digest, settings_digest
from semsynth.provenance.seen import training_cases


@pytest.fixture
def entries(tiny_dataset):
    return load_datalist(tiny_dataset / "datalist.json", "training")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path)
    return path


def started(monkeypatch, *argv: str, module: str | None = None) -> None:
    """As if the process had been started like this."""
    monkeypatch.setattr(sys, "argv", list(argv))
    main = SimpleNamespace(__spec__=SimpleNamespace(name=module) if module else None)
    monkeypatch.setitem(sys.modules, "__main__", main)


def bundle(monkeypatch, *arguments: str) -> None:
    started(monkeypatch, "monai/bundle/__main__.py", *arguments, module="monai.bundle.__main__")


def test_datalists_are_compared_by_what_they_say(tiny_dataset, tmp_path):
    path = tiny_dataset / "datalist.json"
    content = json.loads(path.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert datalist_hash(path) == datalist_hash(str(other)) == datalist_hash([other]) and len(datalist_hash(path)) == 64
    content["training"] = content["training"][::-1]
    other.write_text(json.dumps(content))
    assert datalist_hash(path) != datalist_hash(other)
    assert datalist_hash([path, other]) != datalist_hash([other, path])
    with pytest.raises(InputError, match="no such file"):
        datalist_hash(tmp_path / "gone.json")


# ---- the command


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--config_file", "{here}/configs/train.json"], "--config_file configs/train.json"),
        (["--config_file={here}/configs/train.json"], "--config_file=configs/train.json"),
        (["--config_file", "['{here}/a.json','b.json']"], '--config_file "[\'a.json\',\'b.json\']"'),
        (["--config_file", "[{here}/a.json,/home/me/b.json]"], "--config_file '[a.json,…/b.json]'"),
        (["--from", "/home/me/LA data/"], "--from '…/LA data'"),
        (["--from={here}"], "--from=."),
        (["--from", "{here}/../LA"], "--from …/LA"),
        (["--from", "{here}_other/LA"], "--from …/LA"),
        (["--net", "%/home/me/other.json#net"], "--net %…/other.json#net"),
        (["--uri", "sqlite:////home/me/runs.db"], "--uri sqlite:…/runs.db"),
        (["--uri", "https://host.org/a/b"], "--uri https://host.org/a/b"),
        (["--x", r"C:\Users\me\LA"], "--x …/LA"),
        (["--w", "$@run_dir + '/models/m.pt'"], "--w '$@run_dir + '\"'\"'/models/m.pt'\"'\"''"),
        (["--w", "$'/tmp/me/' + @x"], "--w '$'\"'\"'…/me'\"'\"' + @x'"),
        (["--lr", "1e-4", "--ratio", "1/2", "--up", "../data", "--train#trainer#max_epochs", "3"],
         "--lr 1e-4 --ratio 1/2 --up …/data --train#trainer#max_epochs 3"),
        (["--from", "../clinic/Jane Doe/LA"], "--from …/LA"),
        (["--from={here}/Jane_Doe/LA"], "--from=…/LA"),
        (["--lists", "['Jane Doe/a.json','{here}/Jane/b.json', 'c.json']"],
         "--lists \"['…/a.json','…/b.json', 'c.json']\""),
        (["--weights", "a=out/Jane/a", "b=/home/Jane/b", "c"], "--weights a=…/a b=…/b c"),
        # of data, whose files are called after patients, nothing
        (["--label_maps", "data/*/Jane.nii.gz", "--seed", "1"], "--label_maps … --seed 1"),
        (["--images", "scans/Jane#LGE 3D"], "--images …"),
        (["--dataset_dir={here}/Jane"], "--dataset_dir=…"),
        (["--train-real", "Jane", "--real=Jane.json"], "--train-real … --real=…"),
        (["--datalists", "['Jane.json','b.json']"], "--datalists …"),
        (["--synthetic", "a=out/Jane", "b=Jane", "Jane/c=d"], "--synthetic a=… b=… …"),
        (["--train", "lists/Jane", "--heldout", "Jane/a", "Jane/b"], "--train … --heldout … …"),
        (["--validate#dataset#data#path", "lists/Jane.json"], "--validate#dataset#data#path …"),
        (["--w", "$'Jane/Doe/' + @x"], "--w '$'\"'\"'…/Doe'\"'\"' + @x'"),
        (["--up", "data/", "--here", "./data"], "--up data/ --here …/data"),
        (["--config_file", "configs/train.json", "--run_dir", "runs/Jane/1"],
         "--config_file configs/train.json --run_dir …/1"),
    ],
)  # fmt: skip
def test_commands_hold_no_folders(monkeypatch, tmp_path, typed, expected):
    monkeypatch.chdir(tmp_path)
    bundle(monkeypatch, "run", *[argument.replace("{here}", str(tmp_path)) for argument in typed])
    assert run_command() == f"python -m monai.bundle run {expected}"


def test_every_option_that_names_a_file_is_decided_upon():
    """Nothing stays of those of data; of others the last part, which is a bundle's, a file's of weights, a result's."""
    others = {
        "audit", "bundle", "checkpoint", "config", "judge", "key", "map_bundle", "map_weights", "output", "profile",
        "public_key", "rules", "second_judge", "signature", "weights",
    }  # fmt: skip
    paths = {name for command in COMMANDS.values() for name, is_path in texts_of(command).items() if is_path}
    assert paths - others <= DATA_OPTIONS and not others & DATA_OPTIONS


def test_under_the_root_of_the_file_system_nothing_is_relative(monkeypatch):
    monkeypatch.chdir("/")
    bundle(monkeypatch, "run", "--from", "/home/me/LA")
    assert run_command() == "python -m monai.bundle run --from …/LA"


def test_a_working_directory_behind_a_link_is_recognised(monkeypatch, tmp_path):
    (tmp_path / "real" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "link")
    bundle(monkeypatch, "run", "--from", str(tmp_path / "link" / "data"))
    assert run_command() == "python -m monai.bundle run --from data"


def test_commands_and_scripts_are_written_as_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    started(monkeypatch, str(Path(sys.executable).parent / "semsynth"), "phantom", str(tmp_path / "out"))
    assert run_command() == "semsynth phantom out"
    started(monkeypatch, str(tmp_path / "ci" / "demo.py"), "--fast")
    assert run_command() == "python ci/demo.py --fast"
    started(monkeypatch, "/elsewhere/demo.py")
    assert run_command() == "python …/demo.py"
    started(monkeypatch, "-c", "1")
    assert run_command() == "python -c 1"
    started(monkeypatch, "/x/semsynth/cli.py", "demo", module="semsynth.cli.main")
    assert run_command() == "python -m semsynth.cli.main demo"


# ---- the configuration

BASE = {
    "_desc_": "a comment",
    "max_epochs": 3,
    "lr": 0.1,
    "train": {"trainer": {"_target_": "T", "max_epochs": "@max_epochs"}, "handlers": [{"a": 1}, {"a": 2}], "none": []},
}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    (tmp_path / "base.json").write_text(json.dumps(BASE))
    (tmp_path / "over.json").write_text(json.dumps({"lr": 0.2, "+train#handlers": [{"a": 3}]}))
    (tmp_path / "args.json").write_text(json.dumps({"config_file": "base.json", "lr": 0.3, "run_id": "training"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest(monkeypatch, *arguments: str) -> dict[str, str] | None:
    bundle(monkeypatch, "run", *arguments)
    return config_digest()


def short(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def test_a_configuration_has_a_hash_per_value(configs, monkeypatch):
    assert digest(monkeypatch, "--config_file", "base.json") == {
        "max_epochs": short(3),
        "lr": short(0.1),
        "train#trainer#_target_": short("T"),
        "train#trainer#max_epochs": short("@max_epochs"),
        "train#handlers#0#a": short(1),
        "train#handlers#1#a": short(2),
        "train#none": short([]),
    }


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--config_file", "['base.json','over.json']"], ["lr", "train#handlers#2#a"]),
        (["--config_file", "base.json,over.json"], ["lr", "train#handlers#2#a"]),
        (["--config_file=base.json", "--lr=0.5"], ["lr"]),
        (["training", "--config_file", "base.json", "--lr", "0.5"], ["lr"]),
        (["--config_file", "base.json", "--train#trainer#seed", "1"], ["train#trainer#seed"]),
        (["--config_file", "base.json", "--train#none", "[1]"], ["train#none", "train#none#0"]),
        (["--config_file", "base.json", "--lr", "%over.json#lr"], ["lr"]),
        (["--config_file", "base.json", "--lr", "0.1"], []),
        (["--config_file", "base.json", "--max_epochs", "9", "--resume", "--train#trainer#num_workers", "4"], []),
        (["--args_file", "args.json"], ["lr"]),
        (["--args_file", "args.json", "--lr", "0.1"], []),
    ],
)
def test_changes_of_a_configuration_are_found(configs, monkeypatch, arguments, changed):
    old = digest(monkeypatch, "--config_file", "base.json")
    assert changed_keys(old, digest(monkeypatch, *arguments)) == changed
    assert changed_keys(digest(monkeypatch, *arguments), old) == changed


def test_what_does_not_count_can_be_chosen():
    old, new = {"a": "1", "b#c": "1", "max_epochs": "1"}, {"a": "2", "b#c": "2", "max_epochs": "2"}
    assert changed_keys(old, new) == ["a", "b#c"]
    assert changed_keys(old, new, ignore=["b"]) == ["a", "max_epochs"]


def test_the_digest_in_cards_follows_from_no_path(configs, monkeypatch):
    """Whoever knows the bundle could find a patient's folder by trying names."""
    files = ["--config_file", "base.json"]
    told = ["--dataset_dir", "a", "--run_dir", "b", "--init_weights", "c.pt", "--datalists", "['d.json']"]
    plain, elsewhere = digest(monkeypatch, *files), digest(monkeypatch, *files, *told)
    assert plain != elsewhere and settings_digest(plain) == settings_digest(elsewhere)
    assert settings_digest(plain) != settings_digest(digest(monkeypatch, *files, "--lr", "9"))
    assert settings_digest(None) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--config_file"],
        ["run", "--config_file", "gone.json"],
        ["run", "--config_file", "bad.json"],
        ["run", "--config_file", "base.json", "--lr", "%gone.json#x"],
        ["run", "--help"],
        ["run", "--config_file", "base.json", "-", "more"],  # of the result, which python-fire refuses
        ["ckpt_export", "--config_file", "base.json"],
        [],
    ],
)
def test_without_a_readable_configuration_there_is_no_digest_and_no_error(configs, monkeypatch, capfd, arguments):
    (configs / "bad.json").write_text("{")
    bundle(monkeypatch, *arguments)
    assert config_digest() is None
    assert capfd.readouterr() == ("", "")
    started(monkeypatch, "pytest", "run", "--config_file", "base.json")
    assert config_digest() is None


def test_a_process_started_by_monai_knows_its_command_and_configuration(tmp_path):
    script = "import json; from semsynth.provenance.cards import *; "
    script += "open('seen.json', 'w').write(json.dumps([run_command(), config_digest()]))"
    config = BASE | {"work": f"$exec({script!r})", "run": ["$@work"]}
    text = json.dumps(config)
    (tmp_path / "base.json").write_text(text)
    (tmp_path / "over.json").write_text('{"lr": 5}')
    files = f"['{tmp_path}/base.json','over.json']"
    command = [sys.executable, "-u", "-m", "monai.bundle", "run", "--config_file", files, "--lr", "7", "--n=[1,2]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    line, seen = json.loads((tmp_path / "seen.json").read_text())
    assert line == "python -m monai.bundle run --config_file \"['base.json','over.json']\" --lr 7 '--n=[1,2]'"
    assert shlex.split(line)[5:] == ["['base.json','over.json']", "--lr", "7", "--n=[1,2]"]
    assert seen["lr"] == short(7) and seen["n#1"] == short(2) and seen["max_epochs"] == short(3)


# ---- the card


def test_a_card_states_what_the_weights_came_from(weights, entries, monkeypatch, tmp_path):
    bundle(monkeypatch, "run", "--config_file", "c.json")
    hashes = training_cases(entries)
    facts = {"epoch": 3, "best": np.float32(0.5), "loss": float("nan"), "values": torch.tensor([1, 2]), "none": None,
             "device": torch.device("cpu"), "path": tmp_path / "x" / "run", "inner": {"a": (1, np.inf)}}  # fmt: skip
    path = write_model_card(weights, training_cases=hashes, datalist_sha256="ab", **facts)
    assert path == tmp_path / "model.json" and {p.name for p in tmp_path.iterdir()} == {"model.pt", "model.json"}
    card = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    created = datetime.fromisoformat(card.pop("created"))
    assert created.utcoffset().total_seconds() == 0 and abs((datetime.now(UTC) - created).total_seconds()) < 60
    assert card == {
        "file": "model.pt", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "command": "python -m monai.bundle run --config_file c.json", "versions": versions(),
        "training_cases": hashes, "datalist_sha256": "ab", "epoch": 3, "best": 0.5, "loss": None, "values": [1, 2],
        "none": None, "device": "cpu", "path": "…/run", "inner": {"a": [1, None]},
    }  # fmt: skip
    assert not any(entry["case"] in path.read_text() for entry in entries)


def test_versions_are_those_that_run():
    assert versions()["monai"] == monai.__version__ and versions()["semsynth"] == semsynth.__version__
    assert set(versions()) == {"python", "torch", "monai", "numpy", "ignite", "semsynth", "nibabel"}
    assert all(value and isinstance(value, str) for value in versions().values())


def test_a_card_replaces_the_one_before_and_no_weights_give_none(weights):
    write_model_card(weights, epoch=1)
    assert json.loads(write_model_card(weights, epoch=2).read_text())["epoch"] == 2
    with pytest.raises(ValueError, match=r"must not replace .* got command, sha256; rename"):
        write_model_card(weights, command="x", sha256="y")
    with pytest.raises(InputError, match="no such file of weights"):
        write_model_card(weights.with_name("gone.pt"))
