"""Which cases are unseen, and whose label maps are whose."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ..files import sha256
from .sources import RealCase
from .systems import System

logger = logging.getLogger(__name__)
UNSEEN, TRAINING, MIXED, ALL = "unseen", "training", "mixed", "all"


def group_cases(
    scored: Sequence[str], cases: Mapping[str, RealCase], systems: Sequence[System]
) -> dict[str, list[str]]:
    """Cases by who was trained on them: what a system's own record says goes before the split that a case is in."""
    groups: dict[str, list[str]] = {UNSEEN: [], TRAINING: [], MIXED: [], ALL: []}
    other = []
    for case in scored:
        records = [system.trained_on(case) for system in systems]
        said = {cases[case].training if record is None else record for record in records}
        group = UNSEEN if said == {False} else TRAINING if said == {True} else MIXED if True in said else ALL
        groups[group].append(case)
        split = cases[case].training
        other += [case] if split is not None and any(r is not None and r != split for r in records) else []
    if other:
        logger.warning("%d cases are grouped by what the systems' records say of their training, not by the datalist's "
                       "splits: %s…", len(other), ", ".join(other[:3]))  # fmt: skip
    if groups[ALL]:
        logger.warning("nobody says whether the systems were trained on %d of these cases; give --train-real",
                       len(groups[ALL]))  # fmt: skip
    return {group: members for group, members in groups.items() if members}


def other_maps(cases: Mapping[str, RealCase], systems: Sequence[System], scored: Sequence[str]) -> list[str]:
    """Systems whose volumes were made from other label maps than those that they are scored with."""
    found = []
    hashes = {case: sha256(label) for case in scored if (label := cases[case].label) is not None}
    for system in systems:
        stated = {case: system.records.get(case, {}).get("label_sha256") for case in hashes}
        different = [case for case, value in stated.items() if value is not None and value != hashes[case]]
        if different:
            found.append(system.name)
            logger.warning("%s: %d of %d cases were made from other label maps than --real has: painting does not know "
                           "what it knows, and faithfulness is to another map", system.name, len(different),
                           len(hashes))  # fmt: skip
    return found
