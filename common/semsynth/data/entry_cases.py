"""Entries of a datalist as cases that are checked: their files, their classes, and what stands in two splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..vocabulary import SPLITS
from .check import ROLES, Entry, Rules, check_cases
from .classes import bundle_classes, compare_classes
from .datalists import absolute, patient_in, root_of
from .findings import Finding, Report
from .identity import is_image, shared_files, shared_patients, use_of
from .intensity import INTENSITY, Intensity
from .segments import Selection, mask_file
from .voxels import hash_file

logger = logging.getLogger(__name__)
SOURCE_VOXELS = "source_voxels"
"""Key of a prepared entry: role → hash of the voxels of the raw file that it was made from."""
VOXELS = "voxels"
"""Key of a loaded entry: role → hash of its own voxels, and under ``source_<role>`` of those that it was made from."""


def roles_of(entry: Mapping[str, Any], needs: Sequence[str] = ROLES, also: Sequence[str] | None = None) -> list[str]:
    """The keys of an entry whose files are checked; arguments as in :func:`semsynth.data.entries.load_datalist`."""
    wanted = [*needs, *(also or ())]
    if also is None:
        if "image" in needs and not {"label", "endo"} & set(needs):
            wanted.append("label" if "label" in entry else "endo")
        wanted += ["wall"] if "endo" in wanted else []
    return [role for role in ROLES if role in wanted and isinstance(entry.get(role), str)]


def case_of(
    entry: Mapping[str, Any], roles: Sequence[str], split: str | None = None, names: Sequence[str] = ()
) -> Entry:
    """An entry with absolute paths as what :func:`semsynth.data.check.check_cases` takes.

    Args:
        entry: the entry.
        roles: the keys of its files.
        split: name of its split.
        names: names of the classes from 1 on, by which the segments of a label map are found; empty takes the file's
            order.
    """
    content = entry.get("content")
    shape = content.get("shape") if isinstance(content, Mapping) else None
    own = tuple(shape) if isinstance(shape, list) and len(shape) == 3 else None
    files, selections = {}, {"label": Selection(tuple(names))} if names else {}
    for role in roles:
        files[role], chosen = mask_file(entry[role])
        selections |= {role: chosen} if chosen.names else {}
    held = Intensity.from_json(entry[INTENSITY], entry["case"]) if entry.get(INTENSITY) is not None else None
    return Entry(str(entry["case"]), files, split, own, patient_in(entry), source_of(entry), selections, held)


def source_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """Role → hash of the voxels of the raw files that a prepared entry was made from, as ``prepare`` writes."""
    stated = entry.get(SOURCE_VOXELS)
    return {str(role): str(value) for role, value in stated.items()} if isinstance(stated, Mapping) else {}


def with_vocabulary(
    report: Report, maps: Mapping[int, str], bundle: str | Path, source: str | Path, *, key: str = "classes"
) -> Report:
    """The report with what :func:`semsynth.data.classes.compare_classes` finds.

    Args:
        report: with the classes that were found in the maps.
        maps: index → name as the datalist states it; classes that it does not state are added without a name.
        bundle: its folder, or its ``metadata.json``.
        source: the file that findings are about.
        key: key of the classes in the metadata.
    """
    maps = dict(maps) | {index: "" for index in report.classes if index not in maps}
    found = compare_classes(maps, bundle_classes(bundle, key=key), source=source, counts=report.classes)
    return replace(report, findings=(*report.findings, *found))


def check_volumes(
    entries: Sequence[Mapping[str, Any]],
    num_classes: int | None = None,
    label_key: str = "label",
    otherwise: Intensity | None = None,
) -> None:
    """Read every volume once, so that all bad files are known before any work starts.

    Args:
        entries: with ``case`` and file names under ``image`` and ``label_key``; absent keys are passed over.
        num_classes: label maps must hold integers in 0…num_classes−1; None allows all up to 254.
        label_key: key of the label map; with ``image`` the entries hold label maps alone.
        otherwise: intensities of the images whose entries do not state them under ``intensity``.

    Raises:
        InputError: listing every file that cannot be used.
    """
    keys = {"label": label_key} if label_key == "image" else {"image": "image", "label": label_key}
    cases = [
        Entry(
            str(entry["case"]),
            {role: Path(entry[key]) for role, key in keys.items() if key in entry},
            intensity=Intensity.from_json(entry[INTENSITY], entry["case"]) if INTENSITY in entry else None,
        )
        for entry in entries
    ]
    report = check_cases(cases, Rules(num_classes, intensity=otherwise))
    report.raise_for_errors()
    report.log_warnings(logger)


def leaks(path: Path, content: Mapping[str, Any]) -> list[Finding]:
    """Patients, and label maps by their files, that stand in two splits of a datalist."""
    named = _all_entries(path, content)
    return [*shared_patients(named, content.get("patient_regex")), *shared_files(named)]


def _all_entries(path: Path, content: Mapping[str, Any]) -> list[Entry]:
    """What all splits list that has a name, whether it is there or not."""
    listed = [(split, absolute(e, root_of(path))) for split in SPLITS for e in content.get(split) or []]
    return [
        case_of(entry, [role for role in ("image", "label", "endo") if isinstance(entry.get(role), str)], split)
        for split, entry in listed
        if entry["case"]
    ]


def held_out_scans(path: Path, content: Mapping[str, Any], split: str, report: Report) -> list[Finding]:
    """Scans of a training split that stand in another one as well, under another name or in another file."""
    if use_of(split) != SPLITS[0]:
        return []
    every = _all_entries(path, content)
    others = [e for e in every if e.split != split and "image" in e.files]
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda e: hash_file(e.files["image"]), others))
    known = {value: name for name, own in report.voxels.items() for role, value in own.items() if is_image(role)}
    found = []
    for entry, value in zip(others, hashes, strict=True):
        values = [v for v in (value, entry.source.get("image")) if v in known]
        if values:
            found.append(Finding(
                known[values[0]], str(entry.files["image"]), "one scan in two splits",
                f"the same voxels as {entry.name}, which is in {entry.split}", "a scan in one split alone",
                "take it out of one of the two",
            ))  # fmt: skip
    return found
