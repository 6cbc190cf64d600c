"""A packed bundle works where semsynth is not installed, and the installed project takes no name but semsynth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pack_bundle
import pytest
from bundle_configs import PROBE, config_path, read, stages, walk
from bundle_contents import collect, relocate
from bundle_packages import kept_out, modules_beyond
from bundle_runs import synthetic_findings
from pack_bundle import pack
from selection import name_of, slow_but_for
from semsynth.prepare.phantom import write_phantom_cases
from verify_bundles import find_bundles

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = find_bundles(ROOT / "bundles")

# what MONAI's command line does, in one process because each start costs seconds
USE = f"""
import sys
from monai.bundle import run, verify_net_in_out

dataset, output, weights = sys.argv[1:]
verify_net_in_out(
    "network_def", meta_file="configs/metadata.json", config_file="configs/inference.json", device="cpu", **{PROBE}
)
configs = ["configs/inference.json", "configs/tiny.json"]
run(config_file=configs, dataset_dir=dataset, output_dir=output, weights=weights)
assert "scripts.semsynth" in sys.modules and "semsynth" not in sys.modules
"""


@pytest.fixture(scope="module", params=BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder, packed and unpacked elsewhere."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(pack(request.param, folder / "dist")) as archive:
        archive.extractall(folder)
    return folder / request.param.name


def python(arguments: list[str], cwd: Path, without: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    environment |= without or {}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of 32³ voxels; four of six are for training, since a model of shapes needs three maps."""
    folder = tmp_path_factory.mktemp("cases")
    write_phantom_cases(folder, 6, size=(32, 32, 32), spacing=(1.5, 1.5, 1.5), k=2, progress=False)
    return folder


@pytest.mark.parametrize("unpacked", slow_but_for(BUNDLES, "la_unet"), indirect=True, ids=name_of)
def test_unpacked_bundle_trains_and_infers_without_semsynth_with_what_its_metadata_names(
    unpacked: Path, cases: Path, tmp_path: Path
) -> None:
    weights, output = tmp_path / "run" / "model.pt", tmp_path / "output"
    without = kept_out({"semsynth", *modules_beyond(read(unpacked, "metadata"))}, tmp_path / "kept_out")
    refused = [python(["-c", f"import {name}"], unpacked, without).stderr for name in ("semsynth", "sklearn")]
    assert all("No module named" in text for text in refused), "the test would prove nothing"

    made: dict[str, Path] = {}
    for stage in (*stages(unpacked)[2:], "train"):
        name = stage.removeprefix("train").removeprefix("_")
        tiny = f"tiny_{name}" if name else "tiny"
        settings = json.loads(config_path(unpacked, stage).read_text())
        options: list[str] = []
        for of, path in made.items():
            options += [f"--{of}_weights", str(path)] if f"{of}_weights" in settings else []
        folder = tmp_path / name if name else weights.parent
        train(f"['configs/{stage}.json','configs/{tiny}.json']", cases, folder, unpacked, without, *options)
        made[name] = folder / "model.pt"

    used = python(["-c", USE, str(cases), str(output), str(weights)], unpacked, without)
    assert used.returncode == 0, used.stderr[-4000:]
    if "SyntheticWriter" in config_path(unpacked, "inference").read_text():
        case = json.loads((cases / "datalist.json").read_text())["testing"][0]
        assert synthetic_findings(output, {case["case"]: cases / case["label"]}) == []
    else:
        assert any(output.rglob("*"))


def train(configs: str, dataset: Path, output: Path, bundle: Path, without: dict[str, str], *options: str) -> None:
    arguments = ["-m", "monai.bundle", "run", "training", "--config_file", configs, "--dataset_dir", str(dataset)]
    trained = python([*arguments, "--run_dir", str(output), *options], bundle, without)
    assert trained.returncode == 0, trained.stderr[-4000:]
    assert (output / "model.pt").is_file()


def test_no_target_is_left_where_it_was(unpacked: Path) -> None:
    for path in unpacked.glob("configs/*.json"):
        targets = [value["_target_"] for _, value in walk(json.loads(path.read_text())) if "_target_" in _keys(value)]
        assert not [target for target in targets if str(target).startswith("semsynth")]


def _keys(value: object) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def test_zip_holds_one_folder_without_caches_or_what_runs_leave(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLES[0], tmp_path / BUNDLES[0].name))
    (bundle / "LICENSE").unlink(missing_ok=True)
    for name in ("runs/a.pt", "eval/a.nii.gz", "data/a.nii.gz", "docs/__pycache__/a.pyc", "models/.DS_Store"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("x")
    with zipfile.ZipFile(pack(bundle, tmp_path / "dist")) as archive:
        names = archive.namelist()
        assert archive.read(f"{bundle.name}/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert {name.split("/")[0] for name in names} == {bundle.name}
    assert not [name for name in names if re.search(rf"^{bundle.name}/(runs|eval|data)/|/__pycache__/|/\.", name)]
    assert {f"{bundle.name}/scripts/__init__.py", f"{bundle.name}/scripts/semsynth/__init__.py"} <= set(names)


def test_same_files_give_the_same_zip(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUNDLES[0], tmp_path / BUNDLES[0].name, copy_function=shutil.copy))  # other times
    (copy / "LICENSE").is_file() or shutil.copy(ROOT / "LICENSE", copy)
    first, second = pack(BUNDLES[0], tmp_path / "a"), pack(copy, tmp_path / "b")
    version = json.loads(config_path(copy, "metadata").read_text())["version"]
    assert first.name == second.name == f"{copy.name}_v{version}.zip"
    assert first.read_bytes() == second.read_bytes()
    assert list(first.parent.iterdir()) == [first]


def test_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLES[0], tmp_path / BUNDLES[0].name))
    (bundle / "models" / "huge.pt").touch()
    os.truncate(bundle / "models" / "huge.pt", 26_000_000)
    with pytest.raises(ValueError, match=r"files over 25 MB, remove them: models/huge\.pt"):
        pack(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    "name",
    ["out/a_synthetic.nii.gz", "out/datalist.json", "notes.txt", "docs/patients.csv", "docs/deep/a.md", "models/a.json",
     "models/.model.pt.123", "models/checkpoints/a.pt", "configs/.train.json.swp", "scripts/semsynth/own.py", "a.json"],
)  # fmt: skip
def test_everything_that_does_not_belong_is_named_and_nothing_packed(name: str, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLES[0], tmp_path / BUNDLES[0].name))
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_text("x")
    with pytest.raises(ValueError, match=rf"1 files do not belong .*:\n  - {re.escape(name)}$"):
        pack(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("name", ["LICENSE", "configs/more.json", "docs/pictures", "models/a.pt", "extra"])
def test_links_are_named_and_not_followed(name: str, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLES[0], tmp_path / BUNDLES[0].name))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "patient.md").write_text("Jane Doe")
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).symlink_to(tmp_path / "secret" / ("" if "." not in name else "patient.md"))
    with pytest.raises(ValueError, match=rf"1 files are links, (.|\n)*{name}$"):
        pack(bundle, tmp_path / "dist")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / bundle.name).symlink_to(BUNDLES[0])
    with pytest.raises(ValueError, match="are links"):
        pack(tmp_path / "link" / bundle.name, tmp_path / "dist")


def test_a_zip_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    path = pack(BUNDLES[0], tmp_path)
    assert pack(BUNDLES[0], tmp_path) == path  # our own is
    path.write_text("somebody's")
    with pytest.raises(ValueError, match="is there and is no packed"):
        pack(BUNDLES[0], tmp_path)
    assert path.read_text() == "somebody's"


def test_command_prints_the_path_last_and_names_a_bundle_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pack_bundle.py", BUNDLES[0].name, "--output", str(tmp_path)])
    assert pack_bundle.main() == 0
    assert Path(capsys.readouterr().out.splitlines()[-1]).is_file()
    monkeypatch.setattr(sys, "argv", ["pack_bundle.py", "absent", "--output", str(tmp_path)])
    assert pack_bundle.main() == 1
    assert "no bundle there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("semsynth.training.losses.gan.ConditionalGANLoss", "scripts.semsynth.training.losses.gan.ConditionalGANLoss"),
        ("semsynth.handlers.ProgressHandler", "scripts.semsynth.handlers.ProgressHandler"),
        (
            "$semsynth.training.losses.gan.Loss(@x).to(@device)",
            "$scripts.semsynth.training.losses.gan.Loss(@x).to(@device)",
        ),
        ("$import semsynth", "$import scripts.semsynth"),
        ("$from semsynth.training.losses.gan import Loss", "$from scripts.semsynth.training.losses.gan import Loss"),
        ("$from semsynth import training", "$from scripts.semsynth import training"),
        ("$@root + '/semsynth.losses'", "$@root + '/semsynth.losses'"),
        ("$@semsynth.training.losses.gan", "$@semsynth.training.losses.gan"),
        ("$my_semsynth.losses()", "$my_semsynth.losses()"),
        ("semsynth.no_such_module", "semsynth.no_such_module"),
        ("made by semsynth.prepare, or 'semsynth prepare'", "made by semsynth.prepare, or 'semsynth prepare'"),
        ("The semsynth authors", "The semsynth authors"),
        ("scripts.semsynth.losses.Loss", "scripts.semsynth.losses.Loss"),
    ],
)
def test_only_module_paths_are_relocated(before: str, after: str) -> None:
    text = '{\n  "key" :  [1.50, %s],\n  "text": "a \\" b \\u00b5 $"\n}'
    assert relocate(text % json.dumps(before)) == text % json.dumps(after)


def test_installed_project_takes_no_name_but_semsynth(tmp_path: Path) -> None:
    program = (
        "import importlib.metadata as m, importlib.util as u; print(u.find_spec('common'), u.find_spec('ci'), "
        "u.find_spec('semsynth') is not None, m.distribution('semsynth').read_text('top_level.txt').split())"
    )
    done = python(["-c", program], tmp_path)
    assert done.stdout.strip() == "None None True ['semsynth']", done.stderr


def test_other_bundles_weights_come_along_and_absent_ones_are_named(tmp_path, capsys):
    bundle, other = tmp_path / "here", tmp_path / "la_unet" / "models"
    (bundle / "configs").mkdir(parents=True)
    other.mkdir(parents=True)
    (other / "judge_1.pt").write_bytes(b"weights")
    (other / "judge_1.json").write_text("{}")
    paths = {"judge_weights": "$@bundle_root + '/../la_unet/models/judge_1.pt'",
             "segmenter_weights": "$@bundle_root + '/../la_unet/models/model.pt'"}  # fmt: skip
    (bundle / "configs" / "evaluate.json").write_text(json.dumps(paths))
    (bundle / "configs" / "metadata.json").write_text("{}")
    contents = collect(bundle)
    assert contents["models/la_unet_judge_1.pt"] == b"weights" and "models/la_unet_judge_1.json" in contents
    assert json.loads(contents["configs/evaluate.json"]) == {
        "judge_weights": "$@bundle_root + '/models/la_unet_judge_1.pt'",
        "segmenter_weights": "$@bundle_root + '/models/la_unet_model.pt'",
    }
    assert "la_unet/models/model.pt is not there" in capsys.readouterr().err
