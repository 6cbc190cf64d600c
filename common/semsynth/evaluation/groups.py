"""Which cases are unseen, and whose label maps are whose."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..data.voxels import hash_file
from ..files import sha256
from .sources import RealCase
from .systems import System

logger = logging.getLogger(__name__)
UNSEEN, SAME_PATIENT, TRAINING, MIXED, ALL = "unseen", "same patient", "training", "mixed", "all"


def as_trained(cases: Mapping[str, RealCase], systems: Sequence[System]) -> dict[str, RealCase]:
    """The cases with ``training`` as the systems' own records say it, which go before the split that a case is in.

    A case that any system was trained on is a training case; for systems without a record of it the split stands.
    """
    result = {}
    for name, case in cases.items():
        said = _said(case, systems)
        result[name] = replace(case, training=True if True in said else False if False in said else None)
    return result


def _said(case: RealCase, systems: Sequence[System]) -> set[bool | None]:
    """What the systems' records, or the split for those that have none, say of a case."""
    return {system.says(case.case, case.training) for system in systems}


def group_cases(
    scored: Sequence[str], cases: Mapping[str, RealCase], systems: Sequence[System]
) -> dict[str, list[str]]:
    """Cases by who was trained on them: what a system's own record says goes before the split that a case is in.

    An unseen case of a patient of whom another scan was trained on is not among the unseen ones, but in a group of its
    own (:data:`SAME_PATIENT`).
    """
    groups: dict[str, list[str]] = {UNSEEN: [], SAME_PATIENT: [], TRAINING: [], MIXED: [], ALL: []}
    other = []
    trained = as_trained(cases, systems)
    known = {case.person for case in trained.values() if case.training}
    for case in scored:
        records = [system.trained_on(case) for system in systems]
        said = _said(cases[case], systems)
        group = UNSEEN if said == {False} else TRAINING if said == {True} else MIXED if True in said else ALL
        groups[SAME_PATIENT if group == UNSEEN and cases[case].person in known else group].append(case)
        split = cases[case].training
        other += [case] if split is not None and any(r is not None and r != split for r in records) else []
    if other:
        logger.warning("%d cases are grouped by what the systems' records say of their training, not by the datalist's "
                       "splits: %s…", len(other), ", ".join(other[:3]))  # fmt: skip
    if groups[SAME_PATIENT]:
        logger.warning("%d of %d unseen cases are scans of patients of whom another scan was trained on; they stand "
                       "apart: %s…", len(groups[SAME_PATIENT]), len(groups[SAME_PATIENT]) + len(groups[UNSEEN]),
                       ", ".join(groups[SAME_PATIENT][:3]))  # fmt: skip
    if groups[ALL]:
        logger.warning("it is unknown whether the systems were trained on %d of these cases; give --train-real",
                       len(groups[ALL]))  # fmt: skip
    return {group: members for group, members in groups.items() if members}


def other_maps(cases: Mapping[str, RealCase], systems: Sequence[System], scored: Sequence[str]) -> list[str]:
    """Systems whose volumes were made from other label maps than those that they are scored with."""
    found = []
    files = {case: label for case in scored if (label := cases[case].label) is not None}
    hashes = {case: (sha256(label), hash_file(label)) for case, label in files.items()}
    for system in systems:
        different = [case for case, own in hashes.items() if _other_map(system.records.get(case, {}), *own)]
        if different:
            found.append(system.name)
            logger.warning("%s: %d of %d cases were made from other label maps than --real has: the painting rows lack "
                           "what those maps hold, and faithfulness is measured against another map",
                           system.name, len(different), len(hashes))  # fmt: skip
    return found


def _other_map(record: Mapping[str, Any], file: str, voxels: str | None) -> bool:
    """Whether a record speaks of another map than this one: by its voxels, or by its file where it has no more."""
    if record.get("label_voxels") is not None:
        return bool(record["label_voxels"] != voxels)
    return record.get("label_sha256") is not None and bool(record["label_sha256"] != file)
