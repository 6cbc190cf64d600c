"""The leak guard: no test patient may have been seen by anything that a study's segmenters come from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..data.datalists import LISTS, absolute, read_datalist, root_of
from ..errors import InputError
from ..files import sha256, write_text
from ..json_files import read_object_or_none
from ..networks.features.registry import EXTRACTORS, JUDGE
from ..provenance.seen import Seen, read_card
from ..synthesis.augment.run import SUMMARY
from ..training.loading import marks_of
from .plan import DATA, GUARD, Plan
from .settings import is_weights, weights_in
from .splits import read_split

logger = logging.getLogger(__name__)
PUBLIC = tuple(name for name in EXTRACTORS if name != JUDGE)
"""Feature networks of other data sets, which are the same everywhere."""


def check_leaks(plan: Plan) -> Path:
    """Check all weights and all training lists against the test's patients.

    Weights are those that the study trained and those that it was given, whatever they are for: generators and their
    first stages (codebooks, latent scales), judges, generators of label maps, networks in a loss, segmenters (and with
    them their class weights). Their cards say what they have seen, their parents' cases included. A patient is
    recognised by any scan of his in the data.

    Returns:
        ``guard.json``: what was checked.

    Raises:
        InputError: naming every weight or list that has seen a test patient; for weights of which it is unknown what
            they have seen, unless the study trusts them.
    """
    out = plan.out
    scans, files = test_scans(out), dict[Path, str]()
    for path, use in _weights(plan):
        files.setdefault(path, use)
    known = {sha256(path): path for path in files}
    leaks, gaps = _of_all(files, scans, known)
    checked = [
        {"file": path.name, "use": use, "sha256": sha256(path), "cases": len(Seen.of(path).cases),
         "given": out not in path.parents}
        for path, use in files.items()
    ]  # fmt: skip
    lists = sorted({*(out / "split").glob("*/datalist.json"), *out.glob("volumes/*/*/*/datalist.json"),
                    *out.glob("painted/*/*/datalist.json")})  # fmt: skip
    for file in lists:
        leaks += [] if file.parent.name == "test" else _of_list(file, scans, known, gaps)
    gaps += [*_centers(plan), *_generators(plan, known)]
    _refuse(plan, leaks, gaps)
    for gap in sorted(set(gaps)):
        logger.warning("trusted: %s", gap)
    said = {"checked": checked, "lists": len(lists), "scans": len(scans), "trusted": sorted(set(gaps))}
    return write_text(out / GUARD, json.dumps(said, indent=1))


def check_given(plan: Plan) -> None:
    """Check the weights that the study was given, before anything is trained: :func:`check_leaks` comes last.

    Raises:
        InputError: as there.
    """
    files = {path: use for path, use in _weights(plan) if path.is_file() and plan.out not in path.parents}
    leaks, gaps = _of_all(files, test_scans(plan.out), None)
    _refuse(plan, leaks, [*gaps, *_centers(plan)])


def _refuse(plan: Plan, leaks: Sequence[str], gaps: Sequence[str]) -> None:
    if leaks:
        raise InputError(
            f"{plan.study.name}: test patients were seen in training, so that the test would look too good; take other "
            "weights, or train them in this study (trainings)",
            list(leaks),
        )
    if gaps and not plan.study.trust:
        raise InputError(
            f"{plan.study.name}: whether these have seen test patients is unknown; give weights with their cards, or "
            "--trust-unknown-weights (the report then says so in red)",
            sorted(set(gaps)),
        )


def _of_all(
    files: Mapping[Path, str], scans: Sequence[Mapping[str, Any]], known: Mapping[str, Path] | None
) -> tuple[list[str], list[str]]:
    leaks, gaps = list[str](), list[str]()
    for path, use in files.items():
        found, unknown = _of_weights(path, use, scans, known)
        leaks += found
        gaps += unknown
    return leaks, gaps


def test_scans(out: Path) -> list[dict[str, Any]]:
    """Every scan that the data has of a test patient, also those that are not tested, as entries."""
    split = read_split(out)
    held = {split["patients"][case] for case in split["test"]}
    file = out / DATA
    content = read_datalist(file)
    entries = [absolute(entry, root_of(file)) for name in LISTS for entry in content.get(name) or []]
    return [entry | {"patient": split["patients"][entry["case"]]} for entry in entries
            if split["patients"][entry["case"]] in held]  # fmt: skip


def _weights(plan: Plan) -> Iterator[tuple[Path, str]]:
    """Every file of weights, and what it is for."""
    for job in plan.jobs.values():
        if job.rule in ("training", "segmenter"):
            yield plan.out / job.output, f"{job.rule} {' '.join(job.key)}"
        for folder, words in job.commands:
            for name, value in pairwise(words):
                path = folder / value
                if name.startswith("--") and is_weights(name, value) and path.is_file():
                    yield path, f"{name.removeprefix('--')} of {job.rule} {' '.join(job.key)}"
    for training in (*plan.study.trainings.values(), plan.study.segmenter):
        for text in weights_in(training.options):  # also those within tables and lists
            if (training.bundle / text).is_file():
                yield training.bundle / text, f"options of {training.name}"


def _of_weights(
    path: Path, use: str, scans: Sequence[Mapping[str, Any]], known: Mapping[str, Path] | None
) -> tuple[list[str], list[str]]:
    """What weights have seen of the test, and what is unknown of them; ``known``: SHA-256 of all weights."""
    seen = Seen.of(path)
    what = f"{path.parent.name}/{path.name} ({use})"
    leaks = [
        f"{what}: scan {entry['case']} of test patient {entry['patient']}, by its {' and '.join(reasons)}"
        for entry in scans
        if (reasons := seen.of_entry(entry))
    ]
    gaps = [f"{what}: the training cases of {gap} are unknown" for gap in seen.gaps]
    card = path.with_suffix(".json")
    content = read_card(card) if card.is_file() else {}
    if content and not content.get("sha256"):
        gaps.append(f"{what}: its card does not say of which file it is (no sha256)")
    if any(not case.get("voxels") for case in seen.cases):
        gaps.append(f"{what}: its card names cases without the voxels by which they could be recognised")
    for network in content.get("in_loss") or []:
        name, value = (network, "") if isinstance(network, str) else (network.get("name", "?"), network.get("sha256"))
        if name not in PUBLIC and known is not None and value not in known:
            gaps.append(f"{what}: {name} in its loss ({str(value)[:12]}) is no file of this study; name it in the "
                        "training's options")  # fmt: skip
    return leaks, gaps


def _centers(plan: Plan) -> list[str]:
    """Intensity centres of the label maps that may have been learned from test patients."""
    centers = dict(read_datalist(plan.out / DATA).get("settings") or {}).get("centers")
    told, study = plan.study.prepare.get("centers"), plan.study
    apart = isinstance(study.test, str) and study.fold is None  # "dataset" learns from the training list alone
    if centers is None or isinstance(told, list) or (told == "dataset" and apart):
        return []
    return [f"the intensity centres of the label maps ({told or 'of the data as it was prepared'}): it is unknown "
            "whether they were learned from test patients; give prepare centers as numbers, or none"]  # fmt: skip


def _generators(plan: Plan, known: Mapping[str, Path]) -> list[str]:
    """Volumes that were made with other weights than those that are checked."""
    gaps = []
    for job in plan.of("volumes"):
        folder = (plan.out / job.output).parent.parent
        made = (read_object_or_none(folder / SUMMARY) or {}).get("weights_sha256")
        if made is not None and made not in known:
            gaps.append(f"{folder.parent.name}/{folder.name}: its volumes are of weights {made[:12]}, which are no "
                        "file of this study any more; remove the folder, and they are made anew")  # fmt: skip
    return gaps


def _of_list(file: Path, scans: Sequence[Mapping[str, Any]], known: Mapping[str, Path], gaps: list[str]) -> list[str]:
    """Training cases that are a test patient's, or whose map is."""
    held = {mark: entry["case"] for entry in scans for mark in marks_of(entry)}
    content, root = read_datalist(file), root_of(file)
    leaks = []
    for told in (entry for name in LISTS for entry in content.get(name) or []):
        entry = absolute(told, root)
        same = [(kind, held[kind, value]) for kind, value in marks_of(entry) if (kind, value) in held]
        if same:
            leaks.append(f"{file.parent.parent.name}/{file.parent.name}: {entry['case']} has the {same[0][0]} of test "
                         f"scan {same[0][1]}")  # fmt: skip
        drawn = told.get("map_weights_sha256")
        if drawn is not None and drawn not in known:
            gaps.append(
                f"{file.parent.parent.name}: label maps of weights {drawn[:12]}, which are no file of this study"
            )
    return leaks
