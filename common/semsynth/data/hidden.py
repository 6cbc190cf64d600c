"""Pseudonyms in place of the names of cases and patients: from a key file that stays inside, or from the voxels.

A key file is what ``--pseudonyms`` names: JSON with ``cases`` and ``patients``, name → pseudonym. Pseudonyms of new
names are random, so that nothing of a name can be computed from them; those that stand in the file stay. Without a file
(``--anonymous-names``) a case is called after the hash of its voxels, which the same case always has and nobody who
lacks its files can compute.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..distributed import rank
from ..errors import InputError
from ..files import atomic_path, real
from ..json_files import read_object
from ..paths import as_path
from ..texts import shown
from .naming import unusable_name

logger = logging.getLogger(__name__)
ABOUT = "pseudonyms of semsynth: whoever has this file can tell the patients; keep it inside"
CASES, PATIENTS = "cases", "patients"
MARK = {"names": "pseudonyms"}
"""What a datalist of cases under pseudonyms says of itself."""
KNOWN_AS = "known_as"
"""Key of a loaded entry that has a pseudonym: its name, by which weights' cards may know it; it is written nowhere."""
DIGITS = 12
"""Hexadecimal digits of a pseudonym: of a million cases two meet with a probability of 2 in 1000, and are told."""
SECONDS = 60.0
"""That a run waits for another one that extends the same key file."""


@dataclass(frozen=True)
class Person:
    """What a pseudonym is for.

    Attributes:
        name: name of the case.
        patient: patient whose scan it is; None where it is unknown.
        voxels: mark of the case, for names without a key file: the hash of its label map's voxels,
            or of its image's where it has none.
    """

    name: str
    patient: str | None = None
    voxels: str | None = None


@dataclass(frozen=True)
class Names:
    """Names of cases, and of patients, as their pseudonyms."""

    cases: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    def case(self, name: str) -> str:
        """The pseudonym of a case; a name that is unknown here stays: it is a pseudonym already, or another case."""
        return self.cases.get(name, name)

    def patient(self, name: str) -> str:
        """The pseudonym of a patient, in the same way."""
        return self.patients.get(name, name)


@dataclass(frozen=True)
class Hidden:
    """How names are hidden.

    Attributes:
        file: the key file; None: cases are called after their voxels.
    """

    file: Path | None = None

    @classmethod
    def of(cls, pseudonyms: str | Path | None, anonymous: bool, *leaving: str | Path | None) -> Hidden | None:
        """What the options ``--pseudonyms`` and ``--anonymous-names`` ask for; None where neither is given.

        Args:
            pseudonyms: the key file, there or not.
            anonymous: True where names are hidden without one.
            leaving: folders of results, in which the key must not lie; None is passed over.

        Raises:
            InputError: for both options, a key file in one of the folders, and one that is no key file.
        """
        if pseudonyms is None:
            return cls() if anonymous else None
        if anonymous:
            raise InputError("--pseudonyms and --anonymous-names exclude each other: give one of them")
        path = as_path(pseudonyms, "--pseudonyms")
        place = real(path.absolute())
        for folder in (given for given in leaving if given is not None):
            if place.is_relative_to(real(Path(folder).absolute())):
                raise InputError(
                    f"--pseudonyms {path}: lies in {folder}, which is to be given away, and would go with it; keep the "
                    "key file in another folder, to which others have no access"
                )
        if path.is_dir():
            raise InputError(f"--pseudonyms {path}: is a folder; give the file that the pseudonyms are kept in")
        if path.exists():
            _read(path)
        return cls(path)

    def names(self, people: Sequence[Person]) -> Names:
        """Pseudonyms of cases and their patients; a key file gets those that it does not have yet.

        Raises:
            InputError: for a key file that cannot be read or written, pseudonyms that cannot be told from names or
                from each other; without a key file, two cases of the same voxels.
        """
        return _by_voxels(people) if self.file is None else self._extended(self.file, people)

    def _extended(self, path: Path, people: Sequence[Person]) -> Names:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            found = _read(path) if path.exists() else {CASES: {}, PATIENTS: {}}
            before = json.dumps(found)
            _add(found[CASES], [person.name for person in people], "case")
            _add(found[PATIENTS], [person.patient for person in people if person.patient is not None], "patient")
            _check(found, path)
            if json.dumps(found) != before:
                _write(path, found)
        return Names(
            {p.name: found[CASES].get(p.name, p.name) for p in people},
            {p.patient: found[PATIENTS].get(p.patient, p.patient) for p in people if p.patient is not None},
        )


def has_pseudonyms(content: Mapping[str, Any]) -> bool:
    """Whether a datalist says that its names are pseudonyms, or those of phantoms."""
    return content.get("names") == MARK["names"] or isinstance(content.get("phantom"), Mapping)


@cache
def warn_of_names() -> None:
    """Say, once in a process, that results are called after the cases."""
    if rank() == 0:
        logger.warning(
            "results are called after the cases, and must stay inside; for results that leave, give --pseudonyms FILE, "
            "or take data that 'semsynth pseudonymise' has written (docs/privacy.md)"
        )


def under_pseudonyms(entries: Sequence[Mapping[str, Any]], hidden: Hidden) -> list[dict[str, Any]]:
    """Loaded entries called by pseudonyms, their patients too; their files stay where they are.

    Args:
        entries: with ``case``, and ``source_case`` and ``sample`` of one that is a certain volume of a case.
        hidden: source of the pseudonyms.

    Returns:
        The entries in the order of their pseudonyms, since another one would tell who is who, each with its case's own
        name under :data:`KNOWN_AS`.

    Raises:
        InputError: as :meth:`Hidden.names`.
    """
    people = {}
    for entry in entries:
        name = str(entry.get("source_case", entry["case"]))
        patient = entry.get("patient")
        people[name] = Person(name, None if patient is None else str(patient), voxels_of(entry.get("voxels") or {}))
    names = hidden.names(list(people.values()))
    result = []
    for entry in entries:
        name = str(entry.get("source_case", entry["case"]))
        new = {"case": names.case(name), KNOWN_AS: name}
        if "source_case" in entry:
            new |= {"case": f"{names.case(name)}_{entry.get('sample', 0)}", "source_case": names.case(name)}
        if entry.get("patient") is not None:
            new["patient"] = names.patient(str(entry["patient"]))
        result.append({**entry, **new})
    return sorted(result, key=lambda entry: (entry.get("source_case", entry["case"]), entry.get("sample", 0)))


def _add(table: dict[str, str], names: Sequence[str], word: str) -> None:
    taken = {*table, *table.values()}
    ours = {new for new in table.values() if re.fullmatch(rf"{word}_[0-9a-f]{{{DIGITS}}}", new)}
    for name in sorted(set(names) - table.keys() - ours):  # data that have our pseudonyms keep them
        while (new := f"{word}_{secrets.token_hex(DIGITS // 2)}") in taken:
            pass
        table[name] = new
        taken.add(new)


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The tables of a key file.

    Raises:
        InputError: for anything else than one.
    """
    fix = "give the key file that semsynth wrote, or a name that is free"
    content = read_object(path, damaged=fix)
    tables = {key: content.get(key) for key in (CASES, PATIENTS)}
    for key, table in tables.items():
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise InputError(f"{path}: is no key file (it has no table of pseudonyms under {key!r}); {fix}")
    found: dict[str, dict[str, str]] = tables  # type: ignore[assignment]
    _check(found, path)
    return found


def _check(tables: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Raise unless each pseudonym can be that of a file, and says which case is meant."""
    problems = []
    for key, table in tables.items():
        first: dict[str, str] = {}
        for name, new in table.items():
            reason = unusable_name(new)
            if reason is not None:
                problems.append(f"{key}: {shown(repr(new))}: {reason}")
            elif first.setdefault(new, name) != name:
                problems.append(f"{key}: {new} stands for two names")
            elif new in table:
                problems.append(f"{key}: {new} is a pseudonym and also a name")
    if problems:
        raise InputError(f"{path}: pseudonyms that cannot be used; correct the file", problems)


def _write(path: Path, tables: Mapping[str, Mapping[str, str]]) -> None:
    text = json.dumps({"about": ABOUT, **{key: dict(sorted(tables[key].items())) for key in tables}}, indent=1)
    with atomic_path(path) as temporary:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # the owner's alone from the beginning
        with os.fdopen(number, "wb") as stream:
            stream.write(f"{text}\n".encode("utf-8", "backslashreplace"))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other run extends the key file meanwhile."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
    try:
        lock.acquire(timeout=SECONDS)
    except Timeout as reason:
        raise InputError(
            f"--pseudonyms {path}: another run has been writing it for {SECONDS:g} s; start again"
        ) from reason
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: filelock sees that and asks anew
        lock.release()


def _by_voxels(people: Sequence[Person]) -> Names:
    unknown = [person.name for person in people if person.voxels is None]
    if unknown:
        raise InputError(
            f"--anonymous-names: cases whose voxels are not known: {', '.join(unknown[:5])}; give --pseudonyms FILE"
        )
    cases: dict[str, str] = {}
    first: dict[str, str] = {}
    for person in people:
        new = f"case_{hashlib.sha256(f'semsynth name:{person.voxels}'.encode()).hexdigest()[:DIGITS]}"
        if first.setdefault(new, person.name) != person.name:
            raise InputError(
                f"--anonymous-names: {first[new]} and {person.name} have the same label map, and would have one name; "
                "give --pseudonyms FILE"
            )
        cases[person.name] = new
    members: dict[str, list[str]] = {}
    for person in people:
        if person.patient is not None:
            members.setdefault(person.patient, []).append(cases[person.name])
    return Names(cases, {patient: min(own).replace("case_", "patient_", 1) for patient, own in members.items()})


def voxels_of(known: Mapping[str, Any], hashed: Callable[[str], str | None] = lambda role: None) -> str | None:
    """What a case is called after without a key file: the hash of its label map, else of its image.

    Args:
        known: role → hash, as far as it is known.
        hashed: role → hash of its file, where it has one.
    """
    for role in ("label", "endo", "image"):
        value = known.get(role) or hashed(role)
        if value is not None:
            return str(value)
    return None
