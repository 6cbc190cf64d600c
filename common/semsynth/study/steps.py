"""What jobs of a study run of this package: ``python -m semsynth.study.steps STEP --study FOLDER``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256 as hash_of
from pathlib import Path

from ..data.datalists import LISTS, datalist_path, read_datalist, relocated, root_of
from ..errors import InputError
from ..files import sha256, write_text
from ..json_files import read_object_or_none
from ..synthesis.painting import paint_all
from .guard import check_given, check_leaks
from .plan import DATA, OPENED, OPENINGS, SPLIT, SYNTHETIC, Plan
from .pseudo import pseudo_masks, pseudo_set
from .report import write_report
from .saved import load_study
from .splits import divide, write_cases, write_rest, write_split


def link(plan: Plan) -> None:
    """Prepared data: a datalist that names its files where they are."""
    path = datalist_path(plan.study.data)
    assert path is not None
    _copy_datalist(path, plan.out / DATA, keep=lambda entry: True)


def split(plan: Plan) -> None:
    """Divide the cases, and look at what was given before anything is trained."""
    prepared = plan.out / DATA
    write_split(plan.study, divide(plan.study, prepared), prepared)
    try:
        check_given(plan)
    except InputError:
        (plan.out / SPLIT).unlink()  # not done
        raise


def cases(plan: Plan, cases: str) -> None:
    """The labelled cases."""
    prepared = plan.out / DATA
    write_cases(plan.study, divide(plan.study, prepared), prepared, cases)


def rest(plan: Plan, cases: str) -> None:
    """The images that are left."""
    prepared = plan.out / DATA
    write_rest(plan.study, divide(plan.study, prepared), prepared, cases)


def paint(plan: Plan, maps: str, real: str, output: str) -> None:
    """Paint label maps."""
    paint_all(maps, real, output, seed=plan.study.seed)


def synthetic(plan: Plan, folder: str) -> None:
    """The synthetic volumes of an augmentation's folder, in a datalist of their own.

    Raises:
        InputError: where there is none.
    """
    source = Path(folder) / "datalist.json"
    made = _copy_datalist(source, Path(folder) / SYNTHETIC, keep=lambda entry: bool(entry.get("synthetic")),
                          lists=("training",))  # fmt: skip
    if not made:
        (Path(folder) / SYNTHETIC).unlink()
        raise InputError(f"{folder}: the gate refused every volume, look at sheet.png there; train generator or judge "
                         "for longer, or give volumes: min_dice")  # fmt: skip


def guard(plan: Plan) -> None:
    """The leak guard."""
    check_leaks(plan)


def open_test(plan: Plan) -> None:
    """Note that the test is looked at, once for each set of segmenters."""
    weights = {job.output: sha256(plan.out / job.output) for job in plan.of("segmenter")}
    digest = hash_of(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    openings = list((read_object_or_none(plan.out / OPENINGS) or {}).get("openings") or [])
    if not openings or openings[-1]["weights"] != digest:
        openings.append({"at": datetime.now(UTC).isoformat(timespec="seconds"), "segmenters": len(weights),
                         "weights": digest, "settings": plan.study.digest})  # fmt: skip
    write_text(plan.out / OPENINGS, json.dumps({"openings": openings}, indent=1))
    write_text(plan.out / OPENED, f"{digest}\n")


def report(plan: Plan) -> None:
    """Statistics and report."""
    write_report(plan)


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (link, split, cases, rest, paint, synthetic, guard, open_test, report, pseudo_masks, pseudo_set)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step; an error that is the input's is one line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="semsynth.study.steps")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--study", required=True)
    for option in ("maps", "real", "output", "folder", "cases"):
        parser.add_argument(f"--{option}")
    given = vars(parser.parse_args(argv))
    step, folder = given.pop("step"), given.pop("study")
    try:
        STEPS[step](Plan(load_study(folder)), **{key: value for key, value in given.items() if value is not None})
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _copy_datalist(
    source: Path, target: Path, *, keep: Callable[[dict[str, object]], bool], lists: Sequence[str] = LISTS
) -> int:
    """Write a datalist with some entries of another, paths from its own folder on; how many there are."""
    content, root = read_datalist(source), root_of(source)
    told = {key: value for key, value in content.items() if key not in LISTS}
    count = 0
    for name in (name for name in lists if name in content):
        entries = [relocated(entry, root, target.parent) for entry in content[name] if keep(entry)]
        told[name] = entries
        count += len(entries)
    write_text(target, json.dumps(told, indent=1))
    return count


if __name__ == "__main__":
    sys.exit(main())
