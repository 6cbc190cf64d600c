"""Nothing of a patient leaves at the end of long ways: a bundle that was used and is packed, and a study."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import bundle_runs
import pytest
import yaml
from bundle_configs import isolated
from canaries import CASE, FOLDER, HEADER, HOST, NOTE, PATIENT, PROGRAM, leaks, spoil
from pack_bundle import pack
from semsynth.cli.main import main
from semsynth.prepare.phantom import write_phantom_cases

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
pytestmark = pytest.mark.slow


def _patients(folder: Path, cases: int) -> Path:
    write_phantom_cases(folder, cases, size=(32,) * 3, spacing=(1.5,) * 3, k=2, progress=False)
    spoil(folder)
    return folder


# ---- packing


def test_a_packed_bundle_holds_nothing_of_what_it_was_used_on(tmp_path, monkeypatch):
    """Trained, run and evaluated in its own folder, as its README says, with the weights that came of it."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    bundle = _used_bundle(tmp_path)
    found = leaks(bundle)
    assert {Path(where).parts[0] for where, held in found.items() if CASE in held} == {"data", "eval"}
    path = pack(bundle, tmp_path / "dist")
    assert not leaks(path.parent)
    with zipfile.ZipFile(path) as archive:
        assert not archive.comment and not any(entry.comment or entry.extra for entry in archive.infolist())
        assert {entry.date_time for entry in archive.infolist()} == {(2020, 1, 1, 0, 0, 0)}
        assert f"{bundle.name}/models/model.pt" in archive.namelist()
    record = next((bundle / "eval").glob("*_synthetic.json"))
    events = next((bundle / "runs").rglob("events.out.*"))
    evaluation = next((bundle / "eval").rglob("evaluation.json"))
    strays = {record: "models", events: "models", evaluation: "docs", bundle / "eval" / "datalist.json": "configs/made"}
    for file, folder in strays.items():
        stray = bundle / folder / file.name
        stray.parent.mkdir(exist_ok=True)
        shutil.copy(file, stray)
        with pytest.raises(ValueError, match=f"1 files do not belong into a packed bundle.*\n  - {folder}/{file.name}"):
            pack(bundle, tmp_path / "dist")
        stray.unlink()


def _used_bundle(tmp_path: Path) -> Path:
    for name in ("pix2pix3d", "la_unet"):
        shutil.copytree(BUNDLES / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "eval"))
    bundle, data = tmp_path / "pix2pix3d", _patients(tmp_path / "pix2pix3d" / "data", 3)
    (tmp_path / "cwd").mkdir()
    (bundle / "models" / "model.json").unlink()
    with isolated(tmp_path / "cwd"):
        for names, kind in ((["train"], "train"), (["inference"], "infer"), (["inference", "evaluate"], "infer")):
            workflow = bundle_runs.workflow(bundle, names, kind, {"dataset_dir": data})
            workflow.run()
            workflow.finalize()
            if kind == "train":
                for ending in ("pt", "json"):
                    shutil.copy(bundle / "runs" / "train" / f"model.{ending}", bundle / "models")
    return bundle


# ---- a study


@pytest.mark.parametrize("names", ["their own", "pseudonyms"])
def test_a_study_names_nobody_but_where_the_page_says_so(tmp_path, names):
    raw = _patients(tmp_path / FOLDER / "raw", 9)
    path = _study(tmp_path, raw if names == "their own" else _hidden(raw))
    words = [sys.executable, "-m", "semsynth", "study", "--config", str(path), "--cores", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    _check(tmp_path / "out", pseudonyms=names == "pseudonyms")


def _check(out: Path, *, pseudonyms: bool) -> None:
    found = {Path(where): held for where, held in leaks(out).items()}
    assert not {where: held for where, held in found.items() if {HEADER, NOTE} & held}
    assert not {where: held for where, held in found.items() if _may_leave(where)}
    report = [held for where, held in found.items() if where.parts[0] == "report"]
    if pseudonyms:  # what stays inside says where the data and the program lie
        assert not report and all(held <= {FOLDER, PROGRAM} for held in found.values())
        assert {where.parts[0] for where in found} <= INSIDE
    else:
        assert set().union(*report) == {CASE, PATIENT}
    assert (out / "report" / "report.html").is_file()


INSIDE = {".snakemake", "data", "logs", "segmentations", "split", "study.json", "volumes"}
"""Of a study of data under pseudonyms, what docs/privacy.md says must stay."""


def _may_leave(where: Path) -> bool:
    """Weights, their cards, and TensorBoard's files, of data under names too."""
    return where.parts[0] in ("weights", "segmenters") and "checkpoints" not in where.parts


def _hidden(raw: Path) -> Path:
    """Prepared cases under pseudonyms, still in a folder that is called after a patient."""
    prepared, hidden, key = raw.with_name("prepared"), raw.with_name("hidden"), raw.parents[1] / "key.json"
    assert main(["prepare", "--input", str(raw), "--output", str(prepared), "--spacing", "1.5,1.5,1.5"]) == 0
    assert main(["pseudonymise", "--input", str(prepared), "--output", str(hidden), "--pseudonyms", str(key)]) == 0
    assert json.loads((hidden / "datalist.json").read_text())["names"] == "pseudonyms"
    return hidden


def _study(tmp_path: Path, data: Path) -> Path:
    """As ``examples/study_phantom.yaml``, and as small as it goes."""
    unet, generator = str(BUNDLES / "la_unet"), str(BUNDLES / "pix2pix3d")
    content = {
        "data": str(data),
        "output": "out",
        "test": 0.6,
        "cases": [2],
        "arms": ["R", "S"],
        "primary": "S",
        "seeds": [0, 1, 2],
        "segmenter": {"bundle": unet, "config": ["train.json", "tiny.json"], "epochs": 1, "epoch_cases": 2},
        "trainings": {"generator": {"bundle": generator, "config": ["train.json", "tiny.json"], "epochs": 1}},
        "generators": {
            "pix2pix3d": {
                "bundle": generator,
                "weights": "{generator}",
                "inference": {"network_def#channels": [8, 8, 16]},
            }
        },
        "volumes": {"per_case": 1},
    }
    if (data / f"{CASE}_000").is_dir():
        content["prepare"] = {"spacing": [1.5, 1.5, 1.5], "k": 2, "dtype": "uint8"}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
