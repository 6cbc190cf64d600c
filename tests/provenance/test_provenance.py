"""What weights came from: cases recognised without names, commands without absolute paths, configurations compared."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
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
from semsynth.data.entries import load_datalist
from semsynth.errors import InputError
from semsynth.provenance.cards import (
    TrainingRecord,
    case_hashes,
    datalist_hash,
    refuse_seen_cases,
    versions,
    write_model_card,
)
from semsynth.provenance.command import run_command
from semsynth.provenance.config import changed_keys, config_digest


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


# ---- cases


def test_cases_are_fingerprinted_by_name_and_bytes_in_an_order_that_tells_nothing(entries):
    hashes = case_hashes(entries)
    assert len(hashes) == len(entries) == 2 and hashes == case_hashes(entries[::-1])
    expected = {
        hashlib.sha256(f"semsynth:{e['case']}".encode()).hexdigest()[:16]:
        hashlib.sha256(Path(e["image"]).read_bytes()).hexdigest() for e in entries
    }  # fmt: skip
    assert {h["name"]: h["image"] for h in hashes} == expected
    assert all(set(h) == {"name", "image"} and len(h["name"]) == 16 for h in hashes)
    assert case_hashes([{**e, "other": e["image"]} for e in entries], image_key="other") == hashes


def test_many_cases_keep_their_own_hashes(tmp_path):
    entries = []
    for n in range(40):
        path = tmp_path / f"{n}.nii.gz"
        path.write_bytes(bytes([n]) * random.Random(n).randrange(1, 10**5))
        entries.append({"case": f"{n}", "image": path})
    pairs = {(h["name"], h["image"]) for h in case_hashes(entries)}
    assert pairs == {tuple(case_hashes([e])[0].values()) for e in entries}


def test_a_case_without_a_name_has_the_one_a_datalist_gives(tmp_path):
    (tmp_path / "patient_7").mkdir()
    image = tmp_path / "patient_7" / "lge.nii.gz"
    image.write_bytes(b"x")
    assert case_hashes([{"image": str(image)}]) == case_hashes([{"case": "patient_7", "image": str(image)}])


def test_cases_without_image_files_are_all_listed(entries):
    bad = [entries[0], {"case": "gone", "image": "gone.nii.gz"}, {"case": "none"}]
    with pytest.raises(InputError, match=r"(?s)^every case needs its image file.*- gone: .*- none: no file") as error:
        case_hashes(bad)
    assert len(error.value.problems) == 2


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
        (["--dataset_dir", "/home/me/LA data/"], "--dataset_dir '…/LA data'"),
        (["--dataset_dir={here}"], "--dataset_dir=."),
        (["--dataset_dir", "{here}/../LA"], "--dataset_dir …/LA"),
        (["--dataset_dir", "{here}_other/LA"], "--dataset_dir …/LA"),
        (["--net", "%/home/me/other.json#net"], "--net %…/other.json#net"),
        (["--uri", "sqlite:////home/me/runs.db"], "--uri sqlite:…/runs.db"),
        (["--uri", "https://host.org/a/b"], "--uri https://host.org/a/b"),
        (["--x", r"C:\Users\me\LA"], "--x …/LA"),
        (["--w", "$@run_dir + '/models/m.pt'"], "--w '$@run_dir + '\"'\"'/models/m.pt'\"'\"''"),
        (["--w", "$'/tmp/me/' + @x"], "--w '$'\"'\"'…/me'\"'\"' + @x'"),
        (["--lr", "1e-4", "--ratio", "1/2", "--up", "../data", "--train#trainer#max_epochs", "3"],
         "--lr 1e-4 --ratio 1/2 --up ../data --train#trainer#max_epochs 3"),
    ],
)  # fmt: skip
def test_commands_hold_no_absolute_paths(monkeypatch, tmp_path, typed, expected):
    monkeypatch.chdir(tmp_path)
    bundle(monkeypatch, "run", *[argument.replace("{here}", str(tmp_path)) for argument in typed])
    assert run_command() == f"python -m monai.bundle run {expected}"


def test_under_the_root_of_the_file_system_nothing_is_relative(monkeypatch):
    monkeypatch.chdir("/")
    bundle(monkeypatch, "run", "--dataset_dir", "/home/me/LA")
    assert run_command() == "python -m monai.bundle run --dataset_dir …/LA"


def test_a_working_directory_behind_a_link_is_recognised(monkeypatch, tmp_path):
    (tmp_path / "real" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "link")
    bundle(monkeypatch, "run", "--dataset_dir", str(tmp_path / "link" / "data"))
    assert run_command() == "python -m monai.bundle run --dataset_dir data"


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
    hashes = case_hashes(entries)
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


def test_seen_cases_are_refused_by_name_or_by_image(weights, entries, tmp_path, caplog):
    card = write_model_card(weights, training_cases=case_hashes(entries))
    copy = shutil.copy(entries[0]["image"], tmp_path / "copy.nii.gz")
    fresh = tmp_path / "fresh.nii.gz"
    fresh.write_bytes(b"new")
    unseen = {"case": "unseen", "image": str(fresh)}
    renamed = {"case": "renamed", "image": str(copy)}
    converted = {"case": entries[1]["case"], "image": str(fresh)}
    no_image = {"case": entries[1]["case"]}
    refuse_seen_cases(card, [unseen, {"case": "label map only"}])
    with pytest.raises(InputError, match="5 of 6 cases were used to train") as error:
        refuse_seen_cases(card, [unseen, renamed, converted, no_image, *entries])
    assert [problem.partition(": ")[0::2] for problem in error.value.problems] == [
        ("renamed", "same image as a training case"),
        (entries[1]["case"], "same name as a training case"),
        (entries[1]["case"], "same name as a training case"),
        *[(entry["case"], "same name and image as a training case") for entry in entries],
    ]
    assert not caplog.records


def test_a_card_that_cannot_tell_says_so(weights, entries, tmp_path, caplog):
    with pytest.raises(InputError, match="no such model card"):
        refuse_seen_cases(tmp_path / "gone.json", entries)
    for text in ("{", "[]", '{"training_cases": 1}', '{"training_cases": [{"name": "a"}]}', "{}"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="not a model card"):
            refuse_seen_cases(tmp_path / "bad.json", entries)
    refuse_seen_cases(write_model_card(weights), entries)
    assert "names no training cases" in caplog.text


def test_what_weights_were_built_on_stands_in_their_record(tmp_path, caplog):
    listed = tmp_path / "datalist.json"
    image = tmp_path / "a.nii.gz"
    image.write_bytes(b"a")
    listed.write_text(json.dumps({"training": [{"case": "a", "image": str(image)}]}))
    earlier = tmp_path / "autoencoder.pt"
    own, first = {"name": "la_unet", "sha256": "1"}, {"name": "efficientnet_lite0", "sha256": "2"}
    seen = {"name": "b", "image": "3"}
    earlier.with_suffix(".json").write_text(json.dumps({"in_loss": [first, own], "training_cases": [seen]}))
    dataset = SimpleNamespace(data=[{"case": "a", "image": str(image)}])
    facts = TrainingRecord(
        dataset, listed, in_loss=[own], builds_on=[None, earlier, tmp_path / "passed_over.pt"]
    ).facts()
    assert facts["in_loss"] == [own, first]
    assert facts["training_cases"][1:] == [seen] and len(facts["training_cases"]) == 2
    TrainingRecord(dataset, listed, builds_on=[tmp_path / "bare.pt"]).facts()
    assert "no card beside these weights" in caplog.text


def test_the_record_states_the_geometry_of_the_training_cases(tiny_dataset):
    path = tiny_dataset / "datalist.json"
    dataset = SimpleNamespace(data=load_datalist(path))
    stated = TrainingRecord(dataset, path).facts(for_card=True)["geometry"]
    assert stated["spacing"] == [3.0] * 3 and stated["field_of_view_range"] == [[96.0] * 3] * 2
    resampled = TrainingRecord(dataset, path, spacing=(1.5, 1.5, 3.0)).facts(for_card=True)["geometry"]
    assert resampled["spacing"] == [1.5, 1.5, 3.0] and resampled["shape_range"] == [[64, 64, 32]] * 2
