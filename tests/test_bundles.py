"""Every bundle passes the checks of ci/verify_bundles.py, these find what is broken, and two processes can train."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_configs
import bundle_runs
import nibabel as nib
import numpy as np
import pytest
import torch
import verify_bundles
from bundle_configs import WEIGHTS, config_path, isolated, read
from bundle_runs import synthetic_findings
from ignite.engine import Events
from selection import name_of, slow_but_for
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.training.checkpoints import newest_checkpoint
from verify_bundles import CHECKS

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = verify_bundles.find_bundles(ROOT / "bundles")
STATIC = [name for name in CHECKS if name != "run"]


@pytest.fixture(params=BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.mark.parametrize("check", CHECKS)
def test_bundle(bundle: Path, check: str) -> None:
    try:
        found = CHECKS[check](bundle)
    except bundle_configs.WeightsMissingError:
        pytest.skip("weights not there yet")
    assert found == []


# ------------------------------------------------------------------------------------------- broken bundles are caught


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bundle with everything that it may still lack, and random weights."""
    source = ROOT / "bundles" / "la_unet"
    copy = tmp_path_factory.mktemp("healthy") / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("runs", "eval", "data"))
    for name in ("LICENSE", "docs/data_license.txt"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("text")
    (copy / WEIGHTS).parent.mkdir(exist_ok=True)
    state = bundle_runs.network_of(copy).state_dict()
    torch.save({key: value.half() for key, value in state.items()}, copy / WEIGHTS)
    (copy / WEIGHTS).with_suffix(".json").unlink(missing_ok=True)  # of the shipped ones
    return copy


@pytest.fixture
def broken(healthy: Path, tmp_path: Path) -> Path:
    """A copy of the healthy bundle to break."""
    return Path(shutil.copytree(healthy, tmp_path / healthy.name))


@pytest.mark.parametrize("check", STATIC)
def test_healthy_copy_passes(healthy: Path, check: str) -> None:
    assert CHECKS[check](healthy) == []


def change(name: str, key: str, value: Any) -> Callable[[Path], None]:
    """Set ``key`` (nested by #) of ``configs/<name>.json``; a function of the old value computes the new one."""

    def apply(bundle: Path) -> None:
        content, keys = parent(bundle, name, key)
        keys[0][keys[1]] = value(keys[0][keys[1]]) if callable(value) else value
        config_path(bundle, name).write_text(json.dumps(content))

    return apply


def remove(name: str, key: str) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        content, keys = parent(bundle, name, key)
        del keys[0][keys[1]]
        config_path(bundle, name).write_text(json.dumps(content))

    return apply


def parent(bundle: Path, name: str, key: str) -> tuple[dict[str, Any], tuple[Any, Any]]:
    content = json.loads(config_path(bundle, name).read_text())
    holder, parts = content, [int(part) if part.isdigit() else part for part in key.split("#")]
    for part in parts[:-1]:
        holder = holder[part]
    return content, (holder, parts[-1])


def add(name: str, key: str, value: Any) -> Callable[[Path], None]:
    """Add a top-level key as it is written, with its #."""

    def apply(bundle: Path) -> None:
        content = json.loads(config_path(bundle, name).read_text())
        config_path(bundle, name).write_text(json.dumps(content | {key: value}))

    return apply


def reweigh(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        state = torch.load(bundle / WEIGHTS, weights_only=True)
        edit(state)
        torch.save(state, bundle / WEIGHTS)

    return apply


def rename_first(state: dict[str, torch.Tensor]) -> None:
    state["renamed"] = state.pop(next(iter(state)))


def flatten_first(state: dict[str, torch.Tensor]) -> None:
    key = next(iter(state))
    state[key] = state[key].flatten()


def without_network(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"_target_": "semsynth.networks.NoSuchNetwork"}


def rewrite(old: str, new: str) -> Callable[[Path], None]:
    """Replace a text of the README."""

    def apply(bundle: Path) -> None:
        page = bundle / "docs" / "README.md"
        text = page.read_text()
        assert old in text
        page.write_text(text.replace(old, new))

    return apply


def swap_last_headings(bundle: Path) -> None:
    rewrite("## License", "## Last")(bundle)
    rewrite("## References", "## License")(bundle)
    rewrite("## Last", "## References")(bundle)


def with_rules_but_no_yaml(bundle: Path) -> None:
    add("tiny", "rules", {"_target_": "semsynth.anatomy.rules.rules_for"})(bundle)
    remove("metadata", "required_packages_version#pyyaml")(bundle)


BREAKAGES = {
    "file_missing": ("files", lambda b: (b / "LICENSE").unlink(), "LICENSE: no such file"),
    "file_empty": ("files", lambda b: (b / "docs/README.md").write_text(""), "README.md: is empty"),
    "weights_heavy": ("weights_file", lambda b: os.truncate(b / WEIGHTS, 13_000_000), "needs to be under 12 MB"),
    "changelog": ("metadata", change("metadata", "changelog", {"0.0.0": "other"}), "has no entry for version"),
    "local_version": ("metadata", change("metadata", "pytorch_version", "2.13.0+cpu"), "exact version, got"),
    "range": ("metadata", change("metadata", "required_packages_version", {"scipy": ">=1.0"}), "scipy: must be"),
    "no_fire": ("packages", remove("metadata", "required_packages_version#fire"), "No module named 'fire'"),
    "no_yaml": ("packages", with_rules_but_no_yaml, "No module named 'yaml'"),
    "readme_heading": ("readme", rewrite("## Performance", "## Results"), "needs a heading 'Performance'"),
    "readme_order": ("readme", swap_last_headings, "must stand in this order: Model Overview"),
    "readme_long": ("readme", rewrite("## License", "word " * 1300 + "\n\n## License"), "needs to be at most 1250"),
    "readme_reference": ("readme", rewrite("STACOM 2018", "2018"), "References: lacks .Kerfoot"),
    "exemption": ("exemption", change("metadata", "export_exemption", "a loop is no graph"), "must say 'Torch"),
    "bundle": ("metadata", change("metadata", "bundle", "other"), "must be the folder's name"),
    "name": ("metadata", change("metadata", "name", "la_unet"), "must be a name to show"),
    "schema_field": ("metadata", remove("metadata", "task"), "'task' is a required property"),
    "schema_type": ("metadata", change("metadata", "references", "a text"), "is not of type 'array'"),
    "own_field": ("metadata", remove("metadata", "intended_use"), "intended_use: must be there"),
    "no_pred": ("metadata", remove("metadata", "network_data_format#outputs#pred"), "needs 'pred'"),
    "empty_exemption": ("metadata", change("metadata", "export_exemption", ""), "must give the reason"),
    "train_id": ("properties", remove("train", "train#inferer"), "train.json: required id 'train#inferer'"),
    "inference_id": ("properties", remove("inference", "output_dir"), "inference.json: required id 'output_dir'"),
    "optional_id": ("properties", change("train", "train#trainer#train_handlers", []), "must be '@train#handlers'"),
    "network_differs": ("repeated_keys", change("inference", "network_def#extra", 1), "network_def: train.json has"),
    "seldom_differs": ("repeated_keys", change("inference", "num_classes", 9), "num_classes: train.json has"),
    "not_repeated": ("repeated_keys", remove("inference", "device"), "device: must be in train.json and"),
    "preprocessing": ("repeated_keys", change("inference", "preprocessing#transforms#0#extra", 1), "step that"),
    "unknown_id": ("overlays", add("tiny", "no_such#thing", 1), "does not merge"),
    "unknown_item": ("overlays", add("tiny", "train#handlers#99#interval", 1), "does not merge"),
    "unread": ("overlays", add("tiny", "forgotten", 1), "nothing reads its 'forgotten'"),
    "dangling": ("overlays", change("train", "train#trainer#max_epochs", "@epochs"), "refers to '@epochs'"),
    "no_target": ("targets", change("train", "network_def", without_network), "NoSuchNetwork cannot be found"),
    "no_argument": ("targets", change("train", "network_def#chanels", 3), "unexpected keyword argument 'chanels'"),
    "overlay_argument": ("targets", add("tiny", "network_def#chanels", 3), "tiny.json: network_def: .*'chanels'"),
    "argument_lacks": ("targets", remove("train", "validate#dataset#data#path"), "missing a required argument: 'path'"),
    "initialize": ("targets", change("train", "initialize", ["$semsynth.start()"]), "initialize: .* belongs into"),
    "channels": ("network", change("metadata", "network_data_format#outputs#pred#num_channels", 7), "channel number"),
    "no_forward": ("export", change("inference", "network_def", {"_target_": "torch.nn.Module"}), "Unexpected"),
    "weight_renamed": ("load", reweigh(rename_first), "renamed of models/model.pt is not in the network"),
    "weight_lacks": ("load", reweigh(rename_first), "has no weights in models/model.pt"),
    "weight_shape": ("load", reweigh(flatten_first), r"models/model.pt has \(\d+,\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_bundle_is_caught(broken: Path, name: str) -> None:
    check, break_it, message = BREAKAGES[name]
    break_it(broken)
    assert re.search(message, "\n".join(CHECKS[check](broken)))


class DriftingNetwork(torch.nn.Module):
    """Computes something else once it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image) + 0.01 if torch.jit.is_scripting() else self.conv(image)


def test_export_that_computes_something_else_is_caught_unless_exempt(broken: Path) -> None:
    (broken / WEIGHTS).unlink()
    change("inference", "network_def", {"_target_": f"{__name__}.DriftingNetwork"})(broken)
    assert bundle_runs.check_export(broken) == [
        "ckpt_export: the exported module's output differs from the network's by more than 1e-4"
    ]
    change("metadata", "export_exemption", "TorchScript cannot hold the sampling loop")(broken)
    assert bundle_runs.check_export(broken) == []


def test_overlay_is_read_with_those_that_it_goes_after(broken: Path) -> None:
    first = {"_desc_": "Overlay on train.json.", "train#trainer#max_epochs": "@count", "count": 1}
    config_path(broken, "first").write_text(json.dumps(first))
    for about, unread in (("", ["second.json: nothing reads its 'count'"]), (", after first.json", [])):
        second = {"_desc_": f"Overlay on train.json{about}.", "count": 2}
        config_path(broken, "second").write_text(json.dumps(second))
        assert CHECKS["overlays"](broken) == unread
    config_path(broken, "second").write_text(
        json.dumps({"_desc_": "Overlay on train.json, After frist.json.", "seed": 2})
    )
    assert CHECKS["overlays"](broken) == ["second.json: goes after frist.json, which is no overlay of this bundle"]
    assert CHECKS["targets"](broken) == []


def test_run_that_writes_into_the_bundle_is_caught(broken: Path) -> None:
    stray = ["$open(@bundle_root + '/stray.txt', 'w').close()", "$open('other.txt', 'w').close()"]
    change("inference", "run", lambda steps: [*steps, *stray])(broken)
    found = bundle_runs.check_run(broken)
    assert found == ["wrote other.txt into the working directory", "wrote stray.txt inside the bundle"]


def test_weights_that_are_missing_are_found_once_or_allowed(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (broken / WEIGHTS).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_bundles, "CHECKS", {name: CHECKS[name] for name in ("weights_file", "load")})
        assert verify_bundles.verify(broken, allow_missing_weights=True) == []
        assert len(verify_bundles.verify(broken)) == 1
    assert "skipped (models/model.pt: weights not there yet)" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "message"), [([], "no bundle found"), (["absent"], "no bundle absent")])
def test_command_fails_without_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["verify_bundles.py", *names, "--bundles", str(tmp_path)])
    assert verify_bundles.main() == 1
    assert message in capsys.readouterr().err


def test_command_lists_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hollow" / "configs").mkdir(parents=True)
    config_path(tmp_path / "hollow", "metadata").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["verify_bundles.py", "--bundles", str(tmp_path)])
    assert verify_bundles.main() == 1
    output = capsys.readouterr().out
    assert "hollow: files: configs/train.json: no such file" in output
    assert "hollow: run: the check cannot be made, FileNotFoundError" in output


# ------------------------------------------------------------------------------------------------- a generator's output


@pytest.fixture
def synthetic(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """An output folder as it should be, with its label maps."""
    label_map, output = tmp_path / "label.nii.gz", tmp_path / "output"
    output.mkdir()
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine), label_map)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), affine), output / "a_synthetic.nii.gz")
    (output / "a_synthetic.json").write_text('{"synthetic": true}')
    entry = {"case": "a", "image": "a_synthetic.nii.gz", "label": "../label.nii.gz", "synthetic": True}
    (output / "datalist.json").write_text(json.dumps({"training": [entry]}))
    return output, {"a": label_map}


def shift_affine(output: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), output / "a_synthetic.nii.gz")


def crop(output: Path) -> None:
    image = nib.load(output / "a_synthetic.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 5), np.float32), image.affine), output / "a_synthetic.nii.gz")


def test_good_synthetic_output_passes(synthetic: tuple[Path, dict[str, Path]]) -> None:
    assert synthetic_findings(*synthetic) == []


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shift_affine, "shape or affine is not that of its label map"),
        (crop, "shape or affine is not that of its label map"),
        (lambda o: (o / "a_synthetic.nii.gz").unlink(), "was not written"),
        (lambda o: (o / "a_synthetic.json").write_text('{"synthetic": false}'), "does not say that"),
        (lambda o: (o / "datalist.json").write_text('{"training": []}'), "does not list a_synthetic.nii.gz"),
        (lambda o: (o / "datalist.json").unlink(), "datalist.json was not written"),
    ],
)
def test_bad_synthetic_output_is_caught(
    synthetic: tuple[Path, dict[str, Path]], break_it: Callable[[Path], None], message: str
) -> None:
    break_it(synthetic[0])
    assert message in "\n".join(synthetic_findings(*synthetic))


# ---------------------------------------------------------------------------------------------------- several processes


def three_cases_each(folder: Path) -> Path:
    """Three phantoms to train on and three to validate on: two processes cannot share them evenly."""
    path = write_phantom_cases(folder, 6, size=(32, 32, 32), spacing=(3.0, 3.0, 3.0), k=2, progress=False)
    content = json.loads(path.read_text())
    cases = [case for split in ("training", "validation", "testing") for case in content.pop(split, [])]
    path.write_text(json.dumps(content | {"training": cases[:3], "validation": cases[3:]}))
    return folder


def train_in_two_processes(bundle: Path, paths: dict[str, Path], folder: Path) -> str:
    """One epoch of train.json + multi_gpu_train.json + tiny.json under torchrun; each process leaves its weights."""
    config = read(bundle, "train", "multi_gpu_train")
    steps, key = config["training"], "trained" if "trained" in config else "network"  # what is distributed
    save = f"$torch.save(@{key}.module.state_dict(), @run_dir + '/rank' + str(torch.distributed.get_rank()) + '.pt')"
    overlay = folder / "overlay.json"
    overlay.write_text(json.dumps({"training": [*steps[:-1], save, steps[-1]]}))  # the last one ends the process group
    configs = [str(config_path(bundle, name)) for name in ("train", "multi_gpu_train", "tiny")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", str([*configs, str(overlay)])]
    for key, path in {"bundle_root": bundle, **paths}.items():
        command += [f"--{key}", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    done = subprocess.run(command, cwd=folder, env=environment, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


DISTRIBUTED = [b for b in BUNDLES if "semsynth.distributed.distribute" in config_path(b, "multi_gpu_train").read_text()]


@pytest.mark.parametrize("bundle", slow_but_for(DISTRIBUTED, "spade_gan3d"), indirect=True, ids=name_of)
def test_two_processes_train_one_network_that_one_process_resumes(bundle: Path, tmp_path: Path) -> None:
    paths = {"dataset_dir": three_cases_each(tmp_path / "data")}
    paths |= {"run_dir": tmp_path / "run"}
    with isolated(tmp_path):
        paths |= bundle_runs.run_earlier_stages(bundle, paths["dataset_dir"], tmp_path)

    log = train_in_two_processes(bundle, paths, tmp_path)

    ranks = [torch.load(paths["run_dir"] / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert bundle_runs.compare_weights(ranks[0], ranks[1]) == []
    checkpoint = newest_checkpoint(paths["run_dir"])
    assert checkpoint["epoch"] == 1 and checkpoint["processes"] == len(checkpoint["random"]) == 2
    assert bundle_runs.compare_weights(checkpoint["objects"]["network"], ranks[0]) == []
    assert (paths["run_dir"] / "model.pt").is_file()
    assert log.count("training: 100%") == 1
    writers = {path.name.split(".")[-2] for path in (paths["run_dir"] / "tensorboard").glob("events.*")}
    assert len(writers) == 1, "TensorBoard files come from more than one process"

    seen: list[int] = []
    with isolated(tmp_path):
        training = bundle_runs.workflow(bundle, ["train"], "train", paths, resume=True, max_epochs=2)
        trainer = training.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(engine.state.epoch))
        training.run()
    assert seen == [2]
    assert newest_checkpoint(paths["run_dir"])["epoch"] == 2
