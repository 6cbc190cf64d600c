"""How long a study's jobs take: as they were measured here, or else as they were elsewhere."""

from __future__ import annotations

import csv
from pathlib import Path

from .plan import Job, Plan
from .settings import Training

STEP, START = 0.45, 15.0
"""Seconds of a training step and of a job's start, on one core of a CPU with bfloat16 (crops of 128 × 96 × 64 voxels);
of other machines and bundles they are wrong by a factor, until the first job has been measured."""
VOLUME, CASE = 2.0, 6.0
"""Seconds of a synthetic volume with its gate, and of a case that is prepared or tested: guesses."""
MEGABYTES = {"training": 115.0, "segmenter": 95.0, "volumes": 1.0, "paint": 0.5}
"""Of a training's checkpoints and weights, as they were in the study of la2018, and, guessed, of each volume."""


def measured(out: Path) -> dict[str, list[float]]:
    """Seconds of the jobs that were run, by rule; Snakemake's benchmark files."""
    found: dict[str, list[float]] = {}
    for file in sorted((out / "times").glob("*/*.tsv")):
        seconds = seconds_of(file)
        if seconds is not None:
            found.setdefault(file.parent.name, []).append(seconds)
    return found


def seconds_of(file: Path) -> float | None:
    """What one benchmark file says; None where it says nothing."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return float(rows[-1]["s"])
    except (OSError, KeyError, IndexError, ValueError, csv.Error):
        return None


def estimate(plan: Plan, job: Job, cases: int = 50) -> float:
    """Seconds that a job takes, about: as others of its kind took here, else a guess.

    Args:
        plan: plan of the study.
        job: one of its jobs.
        cases: cases of the data.
    """
    own = seconds_of(plan.out / "times" / job.rule / f"{'_'.join(job.key) or 'all'}.tsv")
    if own is not None:
        return own
    alike = (
        measured(plan.out).get(job.rule, []) if job.rule in ("segmenter", "test", "volumes", "segmentations") else []
    )
    if alike:
        return sum(alike) / len(alike)
    return START + _work(plan, job, cases)


def _work(plan: Plan, job: Job, cases: int) -> float:
    study = plan.study
    if job.rule in ("training", "segmenter"):
        training = study.segmenter if job.rule == "segmenter" else study.trainings[job.key[1]]
        return STEP * steps_of(training, _labelled(job.key[0], cases))
    if job.rule == "volumes":
        return VOLUME * study.volumes.per_case * _labelled(job.key[0], cases)
    if job.rule == "paint":
        return 0.3 * study.volumes.per_case * _labelled(job.key[0], cases)
    return CASE * cases / (5 if job.rule in ("test", "segmentations") else 1) if job.rule in (
        "prepare", "test", "segmentations", "pseudo"
    ) else 5.0  # fmt: skip


def steps_of(training: Training, cases: int) -> int:
    """Steps of a training, as far as the study's file says them."""
    return (training.epochs or 50) * (training.epoch_cases or cases)


def disk(plan: Plan, cases: int = 50) -> float:
    """Megabytes that a study takes, about."""
    total = 3.0 * cases
    for job in plan.jobs.values():
        each = MEGABYTES.get(job.rule, 0.0)
        count = plan.study.volumes.per_case * _labelled(job.key[0], cases) if job.rule in ("volumes", "paint") else 1
        total += each * count
    return total


def _labelled(key: str, cases: int) -> int:
    digits = key.rstrip("u")
    return int(digits) if digits.isdigit() else cases
