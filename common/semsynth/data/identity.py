"""Who a case is: its patient, and whether another case holds the same scan or the same label map."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from ..errors import InputError
from ..vocabulary import SPLITS, UNLABELLED
from .findings import Finding, error, of_case, warning
from .naming import unusable_name

if TYPE_CHECKING:
    from .check import Checkable

SOURCE = "source_"
"""Before the role of a raw file that a prepared one was made from."""
_MAPS = ("label", "endo")
SECONDS = 1.0
"""That a pattern may take on one name; a usual one takes microseconds."""
MOST_PATTERN = 1000
"""Characters of a pattern."""

Voxels = Mapping[str, Mapping[str, str]]
"""Case → role (``image``, ``label``, ``source_image`` …) → hash of the voxels, see :mod:`semsynth.data.voxels`."""


def is_map(role: str) -> bool:
    """Whether a role's file says where structures are; a wall alone is no anatomy of its own."""
    return role.removeprefix(SOURCE) in _MAPS


def is_image(role: str) -> bool:
    """Whether a role's file is a scan."""
    return role.removeprefix(SOURCE) == "image"


def patient_of(case: Checkable, pattern: str | None = None) -> str:
    """Whose scan a case is: what it states; else what the pattern finds in its name; else the name itself.

    Args:
        case: the case.
        pattern: its first group that matches, or its whole match, is the patient.

    Raises:
        InputError: for a pattern that is not valid, does not match, or takes longer than a second.
    """
    if case.patient is not None or pattern is None:
        return case.name if case.patient is None else case.patient
    return patient_in_name(pattern, case.name)


def patient_in_name(pattern: str, name: str) -> str:
    """What a pattern finds in a case's name: its first group that matches, or its whole match.

    Raises:
        InputError: as :func:`patient_of`.
    """
    match = _found(str(pattern), name)
    if match is None:
        raise InputError(f"--patient-regex {pattern!r} does not match the case name {name!r}")
    return next((str(group) for group in match.groups() if group is not None), str(match.group(0)))


def _found(pattern: str, name: str) -> Any:
    """The first match, by an engine that gives up: a pattern may stand in a datalist from elsewhere."""
    try:
        if len(pattern) > MOST_PATTERN:
            raise InputError(f"--patient-regex of {len(pattern)} characters; at most {MOST_PATTERN} are taken")
        with warnings.catch_warnings(action="ignore"):  # of sets within sets, which mean what they do in Python's re
            compiled = regex.compile(pattern)
        return compiled.search(name, timeout=SECONDS)
    except (regex.error, RecursionError) as reason:
        raise InputError(f"--patient-regex {pattern!r} is not a valid pattern: {reason}") from reason
    except TimeoutError as reason:
        raise InputError(
            f"--patient-regex {pattern!r} takes more than {SECONDS:g} s on the case name {name!r}; write it without "
            "one repetition inside another, such as ^([^_]+) in place of ^(([^_]+)+)"
        ) from reason


def use_of(split: str | None) -> str | None:
    """A split, or training for images without label maps, which trainings take as well."""
    return SPLITS[0] if split == UNLABELLED else split


def same_names(cases: Sequence[Checkable]) -> list[Finding]:
    """Cases of one name: one would overwrite the other."""
    first: dict[str, Checkable] = {}
    return [
        Finding(case.name, _file(case), "duplicate case", f"the name {case.name!r} again",
                "another name for every case", "set 'case' in the datalist, or leave one out")
        for case in cases
        if first.setdefault(case.name, case) is not case
    ]  # fmt: skip


def unusable_names(cases: Sequence[Checkable]) -> list[Finding]:
    """Cases whose names cannot be those of folders and files."""
    return [
        Finding(case.name, _file(case), "unusable case name", f"{case.name!r}: {why}", "a plain file name",
                "set 'case' in the datalist")
        for case in cases
        if (why := unusable_name(case.name)) is not None
    ]  # fmt: skip


def shared_patients(cases: Sequence[Checkable], pattern: str | None) -> list[Finding]:
    """Patients in two splits; cases without a split are passed over.

    Raises:
        InputError: as :func:`patient_of`.
    """
    first: dict[str, Checkable] = {}
    result = []
    for case in cases:
        patient = patient_of(case, pattern)
        if case.split is None:
            continue
        other = first.setdefault(patient, case)
        if use_of(other.split) != use_of(case.split):
            result.append(Finding(
                case.name, _file(case), "patient in two splits",
                f"patient {patient} in {other.split} (case {other.name}) and {case.split}", "one split per patient",
                "correct the datalist, or give the cases without splits",
            ))  # fmt: skip
    return result


def shared_files(cases: Sequence[Checkable]) -> list[Finding]:
    """Label maps that stand in two splits, by their paths alone: no file is read."""
    maps = ((case, realpath(path), path) for case in cases for role, path in case.files.items() if is_map(role))
    return [_one_map(a, b, path) for a, b, path in _again(maps) if use_of(a.split) != use_of(b.split)]


def shared_voxels(cases: Sequence[Checkable], voxels: Voxels) -> list[Finding]:
    """The same scan in two cases, and one label map in two cases: in one split with a warning, in two as an error.

    Args:
        cases: in their order.
        voxels: the hashes that are known.
    """
    known = [(case, role, value) for case in cases for role, value in voxels.get(case.name, {}).items()]
    images = ((case, value, _path(case, role)) for case, role, value in known if is_image(role))
    maps = ((case, value, _path(case, role)) for case, role, value in known if is_map(role))
    result, twice = [], set()
    for case, other, path in _again(images):
        twice.add((case.name, other.name))
        where = f" ({other.split})" if other.split else ""
        result += of_case(case.name, [error(
            path, "duplicate case", found=f"the same voxels as {other.name}{where}, by their hash",
            expected="another image in every case", fix="leave one of the two out",
        )])  # fmt: skip
    # of one stated patient in one split no message is needed: such cases stay together anyway
    return result + [
        _one_map(a, b, path)
        for a, b, path in _again(maps)
        if (a.name, b.name) not in twice
        and not (a.patient is not None and a.patient == b.patient and a.split == b.split)
    ]


def joined(cases: Sequence[Checkable], pattern: str | None, voxels: Voxels) -> dict[str, str]:
    """Case → what it belongs to in a draw: its patient, and with that all cases of its label map.

    Two images of one map (two channels, two sequences) are of one anatomy, whatever they are called.
    """
    groups = {case.name: patient_of(case, pattern) for case in cases}
    maps = [
        (case, value, "") for case in cases for role, value in voxels.get(case.name, {}).items() if is_map(role)
    ]  # fmt: skip
    for case, other, _ in _again(maps):
        old, new = groups[case.name], groups[other.name]
        groups = {name: new if group == old else group for name, group in groups.items()}
    return groups


def _again(items: Iterable[tuple[Checkable, object, object]]) -> Iterator[tuple[Checkable, Checkable, str]]:
    """(case, the first one with the same value, file) for what comes a second time, each pair once."""
    first: dict[object, Checkable] = {}
    pairs = set()
    for case, value, path in items:
        other = first.setdefault(value, case)
        if other.name != case.name and (case.name, other.name) not in pairs:
            pairs.add((case.name, other.name))
            yield case, other, str(path)


def _one_map(case: Checkable, other: Checkable, path: str) -> Finding:
    apart = None not in (case.split, other.split) and use_of(case.split) != use_of(other.split)
    found = f"that of case {other.name}" + (
        f", which is in {other.split}; this one is in {case.split}" if apart else ""
    )
    if apart:
        kind = error(path, "one label map in two splits", found=found, expected="one split per label map",
                     fix="put the cases into one split, or leave one out")  # fmt: skip
    else:
        kind = warning(path, "two cases with one label map", found=found, expected="a label map for every image",
                       fix="nothing to do for two images of one anatomy: draws keep them together")  # fmt: skip
    return of_case(case.name, [kind])[0]


def _path(case: Checkable, role: str) -> str:
    files = case.files
    return str(files.get(role.removeprefix(SOURCE), next(iter(files.values()), Path())))


def _file(case: Checkable) -> str:
    return str(next(iter(case.files.values()), ""))
