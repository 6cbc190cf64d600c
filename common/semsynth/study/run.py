"""Running a study: Snakemake does the work, and this says what it will be and how far it is."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.datalists import LISTS, datalist_path, read_datalist
from ..data.identity import patient_in_name
from ..data.raw import patient_pattern
from ..errors import InputError
from ..limits import check_number
from ..locks import locked
from ..synthesis.augment.plan import is_prepared
from ..texts import counted
from .arms import ALL
from .plan import DATA, REPORT, SPLIT, Job, Plan
from .saved import save_study
from .settings import Study
from .splits import divide, raw_cases
from .times import disk, estimate, measured
from .trusted import refuse_bundles

logger = logging.getLogger(__name__)
SNAKEFILE = Path(__file__).with_name("workflow.smk")
LOOK = 2.0
"""Seconds between two looks at what is done."""
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_MOST = 1500  # characters of what a job said last
SNAKEMAKE = (9, 17)
"""Older ones of version 9 start more jobs than there are cores: https://github.com/snakemake/snakemake/issues/3913."""
EXTRA = "a study needs the extra 'study' (Snakemake, statsmodels): pip install 'semsynth[study]'"


def run_study(
    study: Study, *, cores: int = 1, profile: str | Path | None = None, dry_run: bool = False, wait: bool = False
) -> str:
    """Run a study, or go on with it.

    Args:
        study: study to be done.
        cores: jobs at the same time, one core each.
        profile: folder of a Snakemake profile, for a cluster.
        dry_run: only say what would be done.
        wait: wait until another run of the same study has ended.

    Returns:
        What was found, or, with ``dry_run``, what would be done.

    Raises:
        InputError: for a missing extra, a bundle that would do more than it needs to, settings that changed since the
            study was begun, or a job that failed.
    """
    check_number("--cores", cores, 1, 4096)
    if find_spec("snakemake") is None or find_spec("statsmodels") is None:
        raise InputError(EXTRA)
    check_snakemake(version("snakemake"))
    if profile is not None and not (Path(profile) / "config.yaml").is_file():
        raise InputError(f"--profile {profile}: holds no config.yaml; give the folder of a Snakemake profile")
    profile = None if profile is None else Path(profile).absolute()  # Snakemake runs in the study's folder
    refuse_bundles(study)
    plan = Plan(study)
    data = look_at_data(study)
    if dry_run:
        from .folds import to_be_adopted  # with what the report needs

        taken = [] if study.fold is None else [job.output for job in to_be_adopted(plan)]
        return "\n".join([*data, describe(plan, cores, taken)])
    study.output.mkdir(parents=True, exist_ok=True)
    with locked(study.output, "semsynth study", wait=wait):
        save_study(study)
        taken = []
        if study.fold is not None:
            from .folds import adopt

            divided = [job for job in plan.jobs.values() if job.rule in ("prepare", "split", "cases")]
            _snakemake(plan, cores, profile, divided, alone=True)
            taken = adopt(plan)
        for line in describe(plan, cores, taken).splitlines():
            logger.info("%s", line)
        _snakemake(plan, cores, profile, _needed(plan, taken))
    return _said(study.output / REPORT)


def run_folds(studies: Sequence[Study], **options: Any) -> str:
    """Run the folds of a cross-validation one after the other, and write a report of all together.

    Args:
        studies: one per fold.
        options: as in :func:`run_study`.

    Returns:
        What was found in all, or, with ``dry_run``, what would be done.

    Raises:
        InputError: as :func:`run_study`.
    """
    said = [run_study(study, **options) for study in studies]
    if options.get("dry_run"):
        return "\n\n".join(said)
    from .folds import pool

    return _said(pool([Plan(study) for study in studies]))


def _said(page: Path) -> str:
    """What a report opens with."""
    said = page.with_suffix(".md").read_text(encoding="utf-8").split("![")[0].strip().splitlines()
    return "\n".join([*(line for line in said[1:] if line), f"report: {page}"])


def look_at_data(study: Study) -> list[str]:
    """What there is, as far as it can be said before it is prepared: wrong names and numbers are found at once.

    Returns:
        Lines: how many cases, and whose.

    Raises:
        InputError: as :func:`semsynth.study.splits.divide`; for names that are none of the raw cases.
    """
    if study.phantom is not None or (study.output / SPLIT).is_file():
        return []
    path = datalist_path(study.data)
    if path is not None and is_prepared(study.data):
        split = divide(study, path)
        first = str(study.cases[0])
        said = {"data": split.people, "test": split.test, f"labelled, {first}": split.sets[first]}
        return [f"{name}: {counted(len(cases), 'case')} of {counted(len({split.people[c] for c in cases}), 'patient')}"
                for name, cases in said.items()]  # fmt: skip
    found = raw_cases(study)
    cases = {case.name: case.patient for case in found}
    wanted = {"labelled": study.labelled, "test": study.test if isinstance(study.test, tuple) else ()}
    for setting, listed in wanted.items():
        unknown = [name for name in listed if name not in cases]
        if unknown:
            raise InputError(f"{setting}: {study.data} has no cases of these names", unknown)
    pattern = study.prepare.get("patient_regex") or patient_pattern(study.data, found)
    whose = [own or (patient_in_name(pattern, name) if pattern else None) for name, own in cases.items()]
    shown = ", ".join(f"{name} ({'patient unknown' if own is None else f'patient {own}'})"
                      for name, own in list(zip(cases, whose, strict=True))[:3])  # fmt: skip
    return [f"data: {counted(len(cases), 'case')}, such as {shown}"]


def check_snakemake(found: str) -> None:
    """Raise for a version of Snakemake that is too old.

    Raises:
        InputError: naming both versions.
    """
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < SNAKEMAKE:
        needed = ".".join(map(str, SNAKEMAKE))
        raise InputError(f"a study needs Snakemake {needed} or newer, found {found}, which starts more jobs than there "
                         f"are cores: pip install 'snakemake>={needed}'")  # fmt: skip


def describe(plan: Plan, cores: int, taken: Sequence[str] = ()) -> str:
    """The plan: what is compared, jobs of each stage, and about how long and how much disk.

    Args:
        plan: all jobs.
        cores: jobs at the same time.
        taken: outputs of a fold that its study has made.
    """
    study, total, jobs = plan.study, _cases(plan), _needed(plan, taken)
    left = [job for job in jobs if not _done(plan, job) and job.output not in taken]
    every, todo = Counter(job.rule for job in jobs), Counter(job.rule for job in left)
    times = {rule: sum(estimate(plan, job, total) for job in left if job.rule == rule) for rule in every}
    longest = _longest(plan, left, total)
    wall = max(sum(times.values()) / cores, longest)
    lines = [
        f"study: {study.name}, in {study.output}",
        f"primary contrast: {study.primary} against R, {_labelled(study)}, seeds {', '.join(map(str, study.seeds))}",
        "arms: " + ", ".join(f"{arm.name} ({arm.about})" for arm in study.arms),
        f"cases: {', '.join(map(str, study.cases))}" + (f"; other than the first: {', '.join(study.curve)}"
                                                        if len(study.cases) > 1 else ""),
        "test: " + (f"fold {study.fold[0]} of {study.fold[1]} of the training patients" if study.fold
                    else str(study.test)),
        *(f"  {rule}: {counted(count, 'job')}, {count - todo[rule]} done" + (
            f", about {_duration(times[rule])} of one core left" if todo[rule] else "")
          for rule, count in every.items()),
        f"about {_duration(wall)} with {counted(cores, 'core')}, and {disk(plan, total) / 1000:.1f} GB of disk in all"
        + (f"; {counted(len(taken), 'training')} of the study are taken over" if taken else "")
        + ("" if measured(plan.out) else " (a guess for networks of usual size, until the first jobs are done)"),
    ]  # fmt: skip
    return "\n".join(lines)


def _snakemake(plan: Plan, cores: int, profile: str | Path | None, jobs: Sequence[Job], *, alone: bool = False) -> None:
    """Run what is missing.

    Args:
        plan: all jobs.
        cores, profile: see :func:`run_study`.
        jobs: number of jobs that are waited for, for the progress bar.
        alone: run these and no others.

    Raises:
        InputError: naming the jobs that failed, and what they said last.
    """
    words = [
        sys.executable, "-m", "snakemake", *(job.output for job in jobs if alone),
        "--snakefile", str(SNAKEFILE), "--directory", str(plan.out),
        "--rerun-incomplete", "--rerun-triggers", "mtime", "input", "--nolock", "--keep-going",
        *([] if alone else ["--prioritize", *(job.output for job in plan.first())]),
        *(["--cores", str(cores), *_gpus()] if profile is None else ["--profile", str(profile)]),
    ]  # fmt: skip
    log = plan.out / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with log.open("ab") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, cwd=plan.out, start_new_session=True,
                                   preexec_fn=_end_with_parent)  # fmt: skip
        watch = _Progress(plan, cores, jobs)
        try:
            while process.poll() is None:
                watch.look()
                time.sleep(LOOK)
        except BaseException:
            _end(process)
            raise
        finally:
            watch.close()
    if process.returncode:
        failed = _failures(plan, started)
        raise InputError(
            f"{plan.study.name}: not all jobs were done; put right what is wrong, and start the same command again: it "
            f"goes on from here (all of Snakemake's words: {log})",
            failed or [_last_line(log)],
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Snakemake and its jobs: trainings save a checkpoint first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=120)
            return
        except subprocess.TimeoutExpired:
            continue


def _end_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that is: two Snakemakes would be in each
    other's way. Trainings that run go on to their end, and the next Snakemake waits for them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Progress:
    """A bar over the estimated time of the jobs that are waited for."""

    def __init__(self, plan: Plan, cores: int, jobs: Sequence[Job]) -> None:
        self.plan, self.cores, self.cases = plan, cores, _cases(plan)
        self.seconds = {job: estimate(plan, job, self.cases) for job in jobs}
        self.done = {job for job in self.seconds if _done(plan, job)}
        self.bar = tqdm(total=len(self.seconds), initial=len(self.done), desc="study", unit="job",
                        bar_format="{desc}: {n_fmt} of {total_fmt} jobs {bar} {postfix}",
                        disable=None if sys.stderr.isatty() else True)  # fmt: skip

    def look(self) -> None:
        """Count what is done."""
        new = [job for job in self.seconds if job not in self.done and _done(self.plan, job)]
        self.seconds |= {job: estimate(self.plan, job, self.cases) for job in self.seconds} if new else {}
        for job in new:
            self.done.add(job)
            self.bar.update()
            if self.bar.disable:
                logger.info("%d of %d jobs are done: %s %s; about %s left", len(self.done), len(self.seconds), job.rule,
                            " ".join(job.key), _duration(self.left()))  # fmt: skip
        self.bar.set_postfix_str(f"about {_duration(self.left())} left")

    def left(self) -> float:
        """Seconds, as long as jobs of a kind took here."""
        return sum(seconds for job, seconds in self.seconds.items() if job not in self.done) / self.cores

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


def _failures(plan: Plan, since: float) -> list[str]:
    """What the logs of the jobs that were tried, and are not done, say last."""
    found = []
    for job in plan.jobs.values():
        log = plan.out / "logs" / (f"{job.rule}/{'_'.join(job.key)}.log" if job.key else f"{job.rule}.log")
        if not _done(plan, job) and log.is_file() and log.stat().st_mtime >= since:
            found.append(f"{job.rule} {' '.join(job.key)}: {_last_line(log)} ({log})")
    return found


def _last_line(log: Path) -> str:
    """The error that a log ends with."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = [i for i, line in enumerate(lines) if "rror:" in line]
    if not places:
        return (lines or ["nothing was written"])[-1][:_MOST]
    rest = [line for line in lines[places[-1] + 1 : places[-1] + 6] if line.startswith("- ")]
    return "; ".join([lines[places[-1]].removeprefix("error: "), *(line[2:] for line in rest)])[:_MOST]


def _done(plan: Plan, job: Job) -> bool:
    return (plan.out / job.output).is_file()


def _needed(plan: Plan, taken: Sequence[str]) -> list[Job]:
    """All jobs, but those that only serve what is taken over; these are not run."""
    makers, wanted, found = {job.output: job for job in plan.jobs.values()}, [REPORT], set[str]()
    while wanted:
        output = wanted.pop()
        if output in makers and output not in found:
            found.add(output)
            wanted += makers[output].inputs if output not in taken else ()
    return [job for job in plan.jobs.values() if job.output in found]


def _longest(plan: Plan, left: Sequence[Job], cases: int) -> float:
    """Seconds of the longest chain of jobs that wait for each other."""
    makers, known = {job.output: job for job in left}, dict[str, float]()

    def chain(job: Job) -> float:
        if job.output not in known:
            before = max((chain(makers[file]) for file in job.inputs if file in makers), default=0.0)
            known[job.output] = before + estimate(plan, job, cases)
        return known[job.output]

    return max(map(chain, left), default=0.0)


def _cases(plan: Plan) -> int:
    """How many cases the data has; a guess where it says that nowhere yet."""
    path = plan.out / DATA
    path = path if path.is_file() else datalist_path(plan.study.data) or path
    content = read_datalist(path) if path.is_file() else {}
    counts = [count for count in plan.study.cases if count != ALL]
    return sum(len(content.get(name) or []) for name in LISTS) or max([50, *(int(count) for count in counts)])


def _gpus() -> list[str]:
    """With a GPU one job at a time: each takes the whole of it."""
    import torch

    return ["--resources", "gpu=1"] if torch.cuda.is_available() else []


def _labelled(study: Study) -> str:
    first = study.cases[0]
    return "all training cases" if isinstance(first, str) else counted(first, "labelled patient")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
