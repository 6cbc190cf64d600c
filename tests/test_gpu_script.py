"""``ci/gpu/run.sh``, dry on the CPU: the same commands as on a GPU, with tiny networks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from semsynth.prepare.phantom import write_phantom_cases

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "ci" / "gpu" / "run.sh"), *map(str, arguments)]
    own = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=own, check=False)


@pytest.mark.slow
def test_a_training_stops_after_its_minutes_and_goes_on(tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    write_phantom_cases(data, 4, size=(32, 32, 32), spacing=(3.0, 3.0, 3.0), progress=False)
    configs = "['configs/train.json','configs/tiny.json']"
    options = ["--spacing", "[3.0,3.0,3.0]", "--num_workers", "0"]
    first = run("train", "la_unet", data, work, 0.4, "--max_epochs", 100000, *options, CONFIGS=configs)
    assert first.returncode == 0, first.stderr[-2000:]
    assert f"the same command goes on from {work}" in first.stdout and list((work / "checkpoints").glob("*.pt"))
    reached = max(int(path.stem.split("_e")[1][:4]) for path in (work / "checkpoints").glob("checkpoint_e*.pt"))
    second = run("train", "la_unet", data, work, 5, "--max_epochs", reached + 2, *options, CONFIGS=configs)
    assert second.returncode == 0, second.stderr[-2000:]
    assert f"done: {work}" in second.stdout and (work / "model_final.pt").is_file()
    went_on = re.search(r"resumed from .*: epoch (\d+), iteration (\d+)", second.stdout + second.stderr)
    assert went_on and int(went_on[1]) >= reached and int(went_on[2]) > 0, "it went on, not anew"


@pytest.mark.slow
def test_the_checks_run_on_a_cpu_in_small():
    done = run("check", "--small")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for name in ("float16_scaler", "cuda_random_state", "nccl_of_one", "memory_estimate", "batches"):
        assert name in done.stdout
    assert "FAILED" not in done.stdout
    assert run("check").returncode == 1, "without a GPU nothing is checked, and that is no success"


def test_what_is_wrong_is_said():
    assert run().returncode == 2 and "bash ci/gpu/run.sh train BUNDLE DATA WORK MINUTES" in run().stdout
    unknown = run("train", "none", ".", "x", 1)
    assert unknown.returncode == 2 and "no bundle none; there are: la_maps la_unet med_lsdm" in unknown.stdout
