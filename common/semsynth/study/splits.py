"""Who trains and who tests: a study's cases, divided by patient."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.datalists import LISTS, absolute, read_datalist, relocated, root_of, stated_patient
from ..data.entry_cases import case_of, source_of
from ..data.entry_forms import FILES
from ..data.identity import SOURCE, joined
from ..data.raw import Case, find_cases
from ..errors import InputError
from ..files import relative_to, write_text
from ..provenance.cards import datalist_hash
from ..synthesis.augment.plan import is_prepared
from ..vocabulary import UNLABELLED
from .arms import ALL
from .plan import DATA, SPLIT
from .settings import Study

logger = logging.getLogger(__name__)
LEAST_TEST = 5
"""Patients: of fewer there is no interval."""


@dataclass(frozen=True)
class Split:
    """A study's cases.

    Attributes:
        people: case → patient, of every case of the data.
        sets: number of labelled patients, as text, or ``all`` → cases.
        rest: the same → the other training cases, whose labels are not used, and those without labels.
        test: cases of the test.
        unused: cases that neither train nor test.
    """

    people: Mapping[str, str]
    sets: Mapping[str, tuple[str, ...]]
    rest: Mapping[str, tuple[str, ...]]
    test: tuple[str, ...]
    unused: tuple[str, ...]


def divide(study: Study, prepared: Path) -> Split:
    """Divide the prepared cases.

    Test patients train nothing: whatever scans of theirs stand in other lists are not used. Cases without a label map
    are neither tested nor labelled. Labelled are the cases that the study names, in their order, or one scan each (the
    first) of patients in an order that follows from the seed; fewer labelled patients are always the first ones of
    more.

    Args:
        study: study whose split is wanted.
        prepared: the prepared datalist.

    Raises:
        InputError: where no patients are stated, a case is not there, or there are too few patients.
    """
    content = read_datalist(prepared)
    entries = {
        entry["case"]: (name, entry)
        for name in LISTS
        for entry in (absolute(entry, root_of(prepared)) for entry in content.get(name) or [])
    }
    where = {case: name for case, (name, entry) in entries.items() if name != UNLABELLED and _has_labels(entry)}
    bare = [case for case in entries if case not in where]
    people = _people(study, prepared, content)
    test = _test_cases(study, where, people)
    held = {people[case] for case in test}
    pool = [case for case, split in where.items() if _trains(split, study.test) and people[case] not in held]
    named = _named_cases(study, pool, people, prepared)
    check_linked(study.linked, people)
    order = _labelled(study, pool, people, named)
    if study.fold is not None:
        test, pool, order = _fold(study, pool, people, order)
        held |= {people[case] for case in test}
    counts = dict.fromkeys([*study.cases, ALL])
    sets = {str(count): tuple(pool) if count == ALL else _first(order, count) for count in counts}
    free = [case for case in bare if people[case] not in held and _trains(entries[case][0], study.test)]
    rest = {name: (*(case for case in pool if case not in set(cases)), *free) for name, cases in sets.items()}
    _check_sizes(study, prepared, sets, rest, len(order))
    tested = len({people[case] for case in test})
    if tested < (LEAST_TEST if study.fold is None else 1):  # a fold is read together with the others
        raise InputError(f"the test has too few patients ({tested}: {', '.join(test)}); {LEAST_TEST} are needed for an "
                         "interval (1 in a fold): give a larger test, or fewer folds")  # fmt: skip
    unused = tuple(case for case in entries if case not in {*pool, *test, *free})
    return Split(people, sets, rest, tuple(test), unused)


def _has_labels(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(entry.get(role), str) for role in ("label", "endo"))


def _check_sizes(
    study: Study, prepared: Path, sets: Mapping[str, Sequence[str]], rest: Mapping[str, Sequence[str]], patients: int
) -> None:
    """Raise for sets that could not be compared."""
    for count, cases in sets.items():
        if not cases:
            raise InputError(f"cases: {count} labelled patients are wanted, {prepared} has {patients} training "
                             "patients with labels apart from the test's; give fewer")  # fmt: skip
    first = str(study.cases[0])
    if first != ALL and set(sets[first]) == set(sets[ALL]) and any(arm.everything for arm in study.arms):
        raise InputError(f"cases: {first} labelled patients are all that there are, so that the arms R and C are the "
                         "same; give fewer, or leave C out")  # fmt: skip
    if any(arm.pseudo or arm.unlabelled for arm in study.arms) and not rest[first]:
        raise InputError(f"cases: with {first} labelled patients no images are left for the arms RU and MU; give fewer")


def write_split(study: Study, split: Split, prepared: Path) -> Path:
    """Write the datalist of the test, and who is whose.

    Returns:
        ``split/split.json``.
    """
    folder = study.output / "split"
    head = {key: value for key, value in read_datalist(prepared).items() if key not in LISTS}
    _write_held(study, folder / "test", split.test, split, cases_of(prepared), head)
    about = {
        "fold": study.fold,
        "patients": dict(split.people),
        "test": list(split.test),
        "unused": list(split.unused),
        "data_sha256": datalist_hash(prepared),
    }
    return write_text(study.output / SPLIT, json.dumps(about, indent=1))


def write_cases(study: Study, split: Split, prepared: Path, name: str) -> Path:
    """Write the datalist of a number of labelled patients.

    Returns:
        The datalist.
    """
    folder, entries = study.output / "split" / name, cases_of(prepared)
    head = {key: value for key, value in read_datalist(prepared).items() if key not in LISTS}
    listed = [case for case in entries if case in set(split.sets[name])]  # in the data's order
    own = [_entry(entries[case], prepared, folder, split.people[case]) for case in listed]
    return write_text(folder / "datalist.json", json.dumps({**head, "training": own}, indent=1))


def write_rest(study: Study, split: Split, prepared: Path, name: str) -> None:
    """Write the datalist of the training images that are left, without their labels.

    Raises:
        InputError: where none are left.
    """
    if not split.rest[name]:
        raise InputError(f"unlabelled: with {name} labelled patients no training images are left; give fewer")
    head = {key: value for key, value in read_datalist(prepared).items() if key not in LISTS}
    folder = study.output / "split" / name / "rest"
    _write_held(study, folder, split.rest[name], split, cases_of(prepared), head, images=True)


def sets_of(study: Study) -> dict[str, list[str]]:
    """Number of labelled patients, as text → their cases, as they are written; no ``all`` where no arm needs it."""
    names = dict.fromkeys(map(str, [*study.cases, ALL]))
    files = {name: study.output / "split" / name / "datalist.json" for name in names}
    return {name: list(cases_of(file)) for name, file in files.items() if name != ALL or file.is_file()}


def raw_cases(study: Study) -> list[Case]:
    """The cases of data that is not prepared yet."""
    return find_cases(study.data, endo=study.prepare.get("endo"), wall=study.prepare.get("wall"))


def read_split(folder: Path) -> dict[str, Any]:
    """What :func:`write_split` noted."""
    found: dict[str, Any] = json.loads((folder / SPLIT).read_text(encoding="utf-8"))
    return found


def _people(study: Study, prepared: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Case → patient; cases of one label map are of one."""
    pattern, root = content.get("patient_regex"), root_of(prepared)
    cases, silent, voxels, stated = [], [], {}, dict[str, list[str]]()
    for name in LISTS:
        for entry in (absolute(entry, root) for entry in content.get(name) or []):
            own = stated_patient(entry, pattern)
            if own is not None and study.patients == "each":
                stated.setdefault(own, []).append(entry["case"])
                own = None
            if own is None and study.patients != "each":
                silent.append(entry["case"])
            cases.append(case_of(entry | {"patient": own or entry["case"]}, [], name))
            voxels[entry["case"]] = {f"{SOURCE}{role}": value for role, value in source_of(entry).items()}
    alike: dict[str, set[str]] = {}
    for case in cases:
        alike.setdefault("".join(str(case.patient).split()).casefold(), set()).add(str(case.patient))
    doubtful = [" and ".join(map(repr, sorted(names))) for names in alike.values() if len(names) > 1]
    if doubtful:
        raise InputError(
            f"{study.data}: names of patients that differ in capitals or spaces alone may be one patient's; write each "
            "patient's name in one way, or give names that differ in more",
            doubtful,
        )
    several = [f"{patient}: {', '.join(names)}" for patient, names in stated.items() if len(names) > 1]
    if several:
        raise InputError(f"{study.data}: patients: each takes every case for another patient's, but the data states "
                         "otherwise; give patients: stated", several)  # fmt: skip
    if silent:
        raise InputError(
            f"{study.data}: it is unknown whose scans {len(silent)} cases are, and the patient is the unit of a study; "
            "give 'patient' in the entries or patient_regex, or in the study's file patients: group (found by "
            "registering the images) or patients: each (every case is another patient's)",
            silent[:20],
        )
    return joined(cases, None, voxels)


def _test_cases(study: Study, where: Mapping[str, str], people: Mapping[str, str]) -> list[str]:
    if isinstance(study.test, str):
        found = [case for case, split in where.items() if split == study.test]
        if not found:
            raise InputError(f"test: {study.test}: {study.data} has no such cases; give another list, a share of the "
                             "patients, or names of cases")  # fmt: skip
        return found
    if isinstance(study.test, float):
        order = _in_order({people[case] for case in where}, study.seed, "test")
        chosen = set(order[: max(1, round(study.test * len(order)))])
        return [case for case in where if people[case] in chosen]
    unknown = [name for name in study.test if name not in where]
    if unknown:
        raise InputError(f"test: {study.data} has no labelled cases of these names", unknown)
    return list(study.test)


def _trains(split: str, test: object) -> bool:
    """Whether cases of a list may train: those of another held-out list stay unused where the test is a list."""
    return split in ("training", UNLABELLED) or not isinstance(test, str)


def _named_cases(study: Study, pool: Sequence[str], people: Mapping[str, str], prepared: Path) -> list[str]:
    missing = [name for name in study.labelled if name not in people]
    if missing:
        raise InputError(f"labelled: {prepared} has no cases of these names", missing)
    tested = [name for name in study.labelled if name not in pool]
    if tested:
        raise InputError("labelled: cases of test patients, of lists that do not train, or without a label map cannot "
                         "be labelled", tested)  # fmt: skip
    return list(study.labelled)


def check_linked(linked: Sequence[Sequence[str]], people: Mapping[str, str]) -> None:
    """Raise for linked cases that the data does not have.

    Raises:
        InputError: naming them.
    """
    missing = [case for group in linked for case in group if case not in people]
    if missing:
        raise InputError("linked: the data has no cases of these names", missing)


def _labelled(study: Study, pool: Sequence[str], people: Mapping[str, str], named: Sequence[str]) -> list[list[str]]:
    """Per patient, in order, the cases that are labelled of him."""
    own: dict[str, list[str]] = {}
    for case in named:
        own.setdefault(people[case], []).append(case)
    for patient in _in_order({people[case] for case in pool} - own.keys(), study.seed, "labelled"):
        own[patient] = [next(case for case in pool if people[case] == patient)]
    return list(own.values())


def _fold(
    study: Study, pool: Sequence[str], people: Mapping[str, str], order: Sequence[Sequence[str]]
) -> tuple[list[str], list[str], list[list[str]]]:
    """Test and training of a fold: patients who are not labelled take turns, so that all arms keep their cases."""
    assert study.fold is not None
    number, of = study.fold
    first = study.cases[0]  # the primary contrast's: the folds stay the same when other numbers are added
    free = [people[cases[0]] for cases in order[first if isinstance(first, int) else 0 :]]
    held = set(_in_order(set(free), study.seed, "folds")[number - 1 :: of])
    test = [case for case in pool if people[case] in held]
    left = [case for case in pool if people[case] not in held]
    return test, left, [list(cases) for cases in order if people[cases[0]] not in held]


def _first(order: Sequence[Sequence[str]], count: int | str) -> tuple[str, ...]:
    assert isinstance(count, int)
    return tuple(case for cases in order[:count] for case in cases) if len(order) >= count else ()


def _in_order(patients: set[str], seed: int, use: str) -> list[str]:
    """An order that follows from seed, use and names alone, whoever else is there."""
    return sorted(patients, key=lambda name: hashlib.sha256(f"semsynth {use} {seed} {name}".encode()).hexdigest())


def cases_of(datalist: Path) -> dict[str, dict[str, Any]]:
    """The entries of all lists, as they stand there, by case."""
    content, root = read_datalist(datalist), root_of(datalist)
    return {absolute(entry, root)["case"]: dict(entry) for name in LISTS for entry in content.get(name) or []}


def _entry(entry: Mapping[str, Any], datalist: Path, folder: Path, patient: str) -> dict[str, Any]:
    return {**relocated(entry, root_of(datalist), folder), "patient": patient}


def _write_held(
    study: Study, folder: Path, cases: Sequence[str], split: Split, entries: Mapping[str, Mapping[str, Any]],
    head: Mapping[str, Any], *, images: bool = False,
) -> None:  # fmt: skip
    """Cases on the scans' own grids: raw files where the data is raw, else what was prepared; or their images alone."""
    raw = {} if is_prepared(study.data) else {case.name: case for case in raw_cases(study)}
    found = []
    for name in cases:
        case = raw.get(name)
        if case is None or case.selections or not case.image.is_file():  # a segment, or a series: what was made of it
            entry = _entry(entries[name], study.output / DATA, folder, split.people[name])
        else:
            files = {role: relative_to(path, folder) for role, path in case.files.items()}
            entry = {"case": name, "patient": split.people[name], **files}
        left_out = FILES[1:] if images else ()
        found.append({key: value for key, value in entry.items() if key not in left_out})
    told = {"name": f"{folder.name} of {study.name}"} if raw else dict(head)
    write_text(folder / "datalist.json", json.dumps({**told, "validation": found}, indent=1))
