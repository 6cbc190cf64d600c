"""Whole studies, really run: on the phantom, on a cluster's queue, and killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "study_phantom.yaml"
pytestmark = pytest.mark.slow
SBATCH = """
import re, subprocess, sys
script = sys.argv[-1]
process = subprocess.Popen(["bash", script], start_new_session=True, stdout=open(script + ".out", "ab"),
                           stderr=subprocess.STDOUT)
print(f"Submitted batch job {process.pid}")
open(__file__ + ".log", "a").write(script + chr(10))
"""


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "semsynth", "study", *words]


def _small(tmp_path: Path, *more: str) -> Path:
    """The example with fewer arms, and those that need unlabelled images."""
    content = yaml.safe_load(EXAMPLE.read_text())
    for name in ("segmenter", *content["trainings"], *content["generators"], "maps"):
        for place in (content, content["trainings"], content["generators"]):
            if isinstance(place.get(name), dict) and "bundle" in place[name]:
                place[name]["bundle"] = str((EXAMPLE.parent / place[name]["bundle"]).resolve())
    content |= {"arms": ["R", "C", "S", *more], "primary": "S", "output": "out", "unlabelled": bool(more)}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _checked(out: Path, segmenters: int) -> None:
    """A report with every arm, a passed guard, and a test that was opened once."""
    report = out / "report"
    rows = list(csv.DictReader((report / "contrasts.csv").open()))
    assert {row["role"] for row in rows} == {"primary", "control", "secondary"} or len(rows) == 6
    scores = list(csv.DictReader((report / "scores.csv").open()))
    assert len({(row["cases"], row["arm"], row["seed"]) for row in scores}) == segmenters
    assert len(json.loads((out / "opened.json").read_text())["openings"]) == 1
    page = (report / "report.html").read_text()
    assert page.index('class="opening"') < page.index('id="tables"') and "data:image/png;base64" in page
    for picture in ("forest.png", "cases.png"):
        assert (report / picture).stat().st_size > 10_000


def test_the_phantoms_study_goes_on_after_kill(tmp_path):
    """The example itself; the command and Snakemake are killed in the middle of the trainings."""
    words = _command("--config", str(EXAMPLE), "--output", str(tmp_path / "out"), "--cores", "2")
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list((tmp_path / "out").glob("segmenters/*/*/*/model_final.pt"))) < 4:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    trained = list((tmp_path / "out").glob("segmenters/*/*/*/model_final.pt"))
    before = {path: (path.stat().st_mtime, path.read_bytes()) for path in trained}
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report:" in done.stdout
    _checked(tmp_path / "out", segmenters=24)
    again = [path for path, (at, _) in before.items() if path.stat().st_mtime != at]
    assert len(again) <= 2 < len(before)  # those that ran when it was killed, which Snakemake did not see end
    assert all(path.read_bytes() == weights for path, (_, weights) in before.items())  # they went on from their end
    once_more = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert once_more.returncode == 0 and once_more.stdout == done.stdout


def test_a_seed_that_is_added_later_opens_the_test_again(tmp_path):
    """Nothing that was there is made anew; another number of labelled patients is added too."""
    path = _small(tmp_path)
    words = _command("--config", str(path), "--cores", "2")
    assert subprocess.run(words, capture_output=True, timeout=1800).returncode == 0
    files = [*(tmp_path / "out").glob("segmenters/*/*/*/model_final.pt"), *(tmp_path / "out").glob("test/*/*/*/*.csv")]
    before = {file: file.stat().st_mtime for file in files}
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"seeds": [0, 1, 2, 5], "cases": [6, 3]}))
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(file.stat().st_mtime == at for file, at in before.items())
    assert len(json.loads((tmp_path / "out" / "opened.json").read_text())["openings"]) == 2
    assert (tmp_path / "out" / "report" / "curve.png").is_file()
    assert "opened 2 times" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_folds_train_no_more_than_their_own_control(tmp_path):
    words = _command("--config", str(_small(tmp_path)), "--cores", "2")
    assert subprocess.run(words, capture_output=True, timeout=1800).returncode == 0
    done = subprocess.run([*words, "--fold", "all"], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    for fold in (out / "fold_1_of_2", out / "fold_2_of_2"):
        assert sorted(path.stem for path in (fold / "times" / "segmenter").iterdir()) == [
            f"all_R_{i}" for i in range(3)
        ]
        assert not (fold / "times" / "training").exists() and not (fold / "volumes").exists()
        _checked(fold, segmenters=9)
    assert "This is a cross-validation inside the training patients" in done.stdout
    scores = list(csv.DictReader((out / "folds_of_2" / "scores.csv").open()))
    assert len({row["patient"] for row in scores}) == 21 - 6
    assert "opened 1 time:" in (out / "report" / "report.md").read_text()  # the test is not touched


def test_a_study_runs_through_a_clusters_queue(tmp_path):
    """Snakemake's cluster-generic executor with an sbatch that runs jobs as processes."""
    sbatch, profile = tmp_path / "sbatch.py", tmp_path / "profile"
    sbatch.write_text(SBATCH)
    profile.mkdir()
    (profile / "config.yaml").write_text(yaml.safe_dump({
        "executor": "cluster-generic", "jobs": 2, "latency-wait": 60,
        "cluster-generic-submit-cmd": f"{sys.executable} {sbatch}",
    }))  # fmt: skip
    words = _command("--config", str(_small(tmp_path, "RU", "MU")), "--profile", str(profile))
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    submitted = Path(f"{sbatch}.log").read_text().splitlines()
    assert len(submitted) >= 15 + 15 + 2  # segmenters, tests, generators
    _checked(tmp_path / "out", segmenters=15)
    pseudo = json.loads((tmp_path / "out" / "split" / "6u" / "pseudo" / "datalist.json").read_text())["training"]
    labelled = json.loads((tmp_path / "out" / "split" / "6" / "datalist.json").read_text())["training"]
    assert len(pseudo) == 21 - 6 and not {e["case"] for e in pseudo} & {e["case"] for e in labelled}


def test_a_job_that_fails_is_named_with_its_error(tmp_path):
    path = _small(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["generators"]["pix2pix3d"]["inference"] = {"network_def#channels": [8, 8]}  # not what is trained
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run(_command("--config", str(path), "--cores", "2"), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 1
    assert "volumes 6 S: " in done.stderr and "the inference cannot be run" in done.stderr
    assert "Traceback" not in done.stderr and "start the same command again" in done.stderr
