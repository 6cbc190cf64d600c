"""Cross-validation inside the training patients: what a fold takes over from its study, and all folds together.

The labelled patients are the same in every fold, and so are the trainings of all arms but C: a fold that is run beside
its study copies their weights, and trains no more than its own positive control.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..data.datalists import absolute, read_datalist, root_of
from ..files import atomic_path, write_text
from ..json_files import read_object
from .arms import ALL
from .plan import ADOPTED, WITH_UNLABELLED, Job, Plan
from .report import write_folds
from .saved import STUDY, load_study

logger = logging.getLogger(__name__)
MAKERS = ("training", "volumes", "paint", "segmenter", "pseudo")
"""Rules whose outputs a training may rest on, beside its cases."""
ENDS = (".json", ".pt")
"""Of a card and its weights; these last, since they say that it is done."""


def adopt(plan: Plan) -> list[str]:
    """Copy the weights that the study of a fold has trained already, of the same cases by the same command.

    Not those of the positive control, which has other cases in every fold, nor those of arms with unlabelled images,
    among which the fold's test patients were.

    Args:
        plan: plan of the fold, whose cases are divided.

    Returns:
        The outputs that were copied, now or before.
    """
    whole = plan.out.parent
    if not (whole / STUDY).is_file():
        return []
    other = Plan(load_study(whole))
    file = plan.out / ADOPTED
    found: list[str] = list(read_object(file)["outputs"]) if file.is_file() else []
    for job in _of_the_study(plan, other):
        for end in ENDS:
            target = (plan.out / job.output).with_suffix(end)
            with atomic_path(target) as part:
                shutil.copyfile((whole / job.output).with_suffix(end), part)  # younger than the fold's cases
        found.append(job.output)
    if found:
        logger.info("%d trainings are those of the study in %s", len(found), whole)
        write_text(file, json.dumps({"outputs": found}, indent=1))
    return found


def to_be_adopted(plan: Plan) -> list[Job]:
    """What :func:`adopt` would copy, as far as it can be said before the cases are divided."""
    whole = plan.out.parent
    return _of_the_study(plan, Plan(load_study(whole)), divided=False) if (whole / STUDY).is_file() else []


def _of_the_study(plan: Plan, other: Plan, divided: bool = True) -> list[Job]:
    """Trainings of a fold that its study has done."""
    found = []
    for key, job in plan.jobs.items():
        made = other.jobs.get(key)
        if made is None or job.rule not in ("training", "segmenter") or (plan.out / job.output).exists():
            continue
        done = all((other.out / made.output).with_suffix(end).is_file() for end in ENDS)
        if done and _same(plan, job, other, made, divided):
            found.append(job)
    return found


def pool(plans: Sequence[Plan]) -> Path:
    """Write the report of all folds together: every patient who is not labelled is tested once.

    Args:
        plans: plans of the folds, each done.

    Returns:
        The page.
    """
    return write_folds(plans, plans[0].out.parent / f"folds_of_{len(plans)}")


def _same(plan: Plan, job: Job, other: Plan, made: Job, divided: bool) -> bool:
    """Whether two jobs make the same: of the same cases, by the same command, and so all that they need."""
    cases = job.key[0]
    arm = plan.study.arm(job.key[1]) if job.rule == "segmenter" else None
    apart = cases == ALL or cases.endswith(WITH_UNLABELLED) or (arm is not None and (arm.pseudo or arm.unlabelled))
    if apart or job.shell.replace(str(plan.out), str(other.out)) != made.shell:
        return False
    prepared = [(one.study.data, one.study.prepare, one.study.phantom) for one in (plan, other)]
    listed = [_listed(one.out, one.out / "split" / cases / "datalist.json") for one in (plan, other)]
    if prepared[0] != prepared[1] or (divided and (listed[0] != listed[1] or not listed[0])):
        return False
    makers = {made.output: made for made in other.jobs.values()}
    return all(
        needed.output in makers and _same(plan, needed, other, makers[needed.output], divided)
        for needed in plan.jobs.values()
        if needed.output in job.inputs and needed.rule in MAKERS
    )


def _listed(out: Path, datalist: Path) -> list[tuple[str, ...]]:
    """Case and files of each entry, those in the study's folder as if that were anywhere."""
    if not datalist.is_file():
        return []
    entries = [absolute(entry, root_of(datalist)) for entry in read_datalist(datalist)["training"]]
    place = str(out.resolve())
    return [(entry["case"], *(str(Path(entry[role]).resolve()).replace(place, "") for role in ("image", "label")
                              if role in entry)) for entry in entries]  # fmt: skip
