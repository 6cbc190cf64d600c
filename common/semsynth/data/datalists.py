"""Datalists in MONAI's form: what is read from one, and what its cases are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import relative_to
from ..json_files import read_json
from ..limits import check_classes
from ..paths import as_path, expanded
from ..vocabulary import ENDO, SPLITS, UNLABELLED, WALL, class_names
from .classes import class_table
from .entry_forms import FILES, brief, name_of, problems_of
from .identity import patient_in_name
from .layouts import hint
from .naming import entry_name, patients_of_bids
from .patterns import matches, names_of

LISTS = (*SPLITS, UNLABELLED)
NAMES = ("case", "source_case", "patient", "intensity")  # texts of an entry that are no paths


def read_datalist(path: str | Path) -> dict[str, Any]:
    """Read a datalist in MONAI's form.

    One whose cases all have names of BIDS, and that has no ``patient_regex``, gets the one that finds their subjects.

    Raises:
        InputError: missing file, not JSON, or no list of entries under training, validation or testing; entries whose
            files or names are something else than text, all listed; a ``num_classes`` that is no number of classes.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.prepare.phantom import write_phantom_cases
        >>> with TemporaryDirectory() as folder:
        ...     content = read_datalist(write_phantom_cases(folder, 3, size=(32, 32, 32), progress=False))
        >>> content["training"][0]["case"], content["num_classes"]
        ('phantom_000', 4)
    """
    path = as_path(path, "the datalist's path")
    content = read_json(path, missing="make it with 'semsynth prepare' or 'semsynth phantom'",
                        damaged="correct it, or make it again")  # fmt: skip
    stated = {key: content[key] for key in LISTS if content.get(key) is not None} if isinstance(content, dict) else {}
    if not stated:
        ways = hint(path)
        raise InputError(f"{path}: needs lists of cases under {', '.join(SPLITS)}" + (f"; {ways}" if ways else ""))
    bad = []
    for key, entries in stated.items():
        if not isinstance(entries, list):
            bad.append(f"{key}: needs to be a list of entries, found {brief(entries)}")
            continue
        for i, entry in enumerate(entries):
            bad += [f"{key}[{i}]{name_of(entry)}: {problem}" for problem in problems_of(entry)]
    if bad:
        raise InputError(f"{path}: entries that cannot be used", bad)
    # null says nothing, like a key that is not there
    content = {
        key: [_without_null(entry) for entry in value] if key in stated else value
        for key, value in content.items()
        if key not in LISTS or key in stated
    }
    pattern = content.get("patient_regex")
    if pattern is not None and not isinstance(pattern, str):
        raise InputError(f"{path}: patient_regex must be a text, found {brief(pattern)}")
    if pattern is None:
        names = (entry_name(entry, root_of(path)) for key in stated for entry in content[key])
        content |= {} if (of_bids := patients_of_bids(names)) is None else {"patient_regex": of_bids}
    count = content.get("num_classes")
    if count is not None and (not isinstance(count, int) or count < 2):
        raise InputError(f"{path}: num_classes must be a whole number from 2 on, found {brief(count)}")
    if count is not None:
        check_classes(count, f"{path}: num_classes")
    result: dict[str, Any] = content
    return result


def _without_null(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def datalist_path(source: str | Path) -> Path | None:
    """The datalist that ``source`` is (a ``.json``, there or not) or, as a folder, holds; None for anything else."""
    source = as_path(source)
    path = source
    path = path if path.suffix == ".json" else path / "datalist.json"
    return path if source.suffix == ".json" or path.is_file() else None


def stated_classes(path: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Index → name of the classes that a datalist states; empty where it states neither classes nor their number."""
    stated = content.get("num_classes")
    return class_table(content.get("classes"), path) or (class_names(int(stated)) if stated is not None else {})


def expert_classes(path: Path, content: Mapping[str, Any]) -> tuple[int, ...]:
    """The classes of which a composite map needs one: none where the datalist states that its classes are others."""
    names = class_table(content.get("classes"), path)
    drawn = {ENDO: "endo", WALL: "wall"}
    return tuple(index for index, name in drawn.items() if not names or names.get(index) == name)


def named_files(pattern: str, what: str) -> list[tuple[str, Path]]:
    """Case name and absolute path of the files that a pattern finds, by path.

    Args:
        pattern: see :func:`semsynth.data.patterns.matches`; names as in :func:`semsynth.data.patterns.names_of`.
        what: name of the files in question, for the message ("label maps").

    Raises:
        InputError: nothing found, or two cases of one name.
    """
    found = matches(str(as_path(pattern)))
    if not found:
        raise InputError(f"{pattern}: no {what} found; quote the pattern and check the folder")
    return [(name, match.path.absolute()) for name, match in zip(names_of(found, pattern), found, strict=True)]


def absolute(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """An entry with absolute paths, and its case's name (see :func:`semsynth.data.naming.entry_name`)."""
    paths = {k: str(root / expanded(v)) if isinstance(v, str) and k not in NAMES else v for k, v in entry.items()}
    return paths | {"case": entry_name(entry, root)}


def relocated(entry: Mapping[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """An entry of a datalist in ``root`` as one of a datalist in ``folder``, with its case's name; all else stays."""
    there = absolute(entry, root)
    paths = {key: relative_to(str(there[key]), folder) for key in FILES if isinstance(entry.get(key), str)}
    return {**entry, **paths, "case": there["case"]}


def root_of(path: str | Path) -> Path:
    """The folder that a datalist's paths start from: where it is found, also when it is a link to another file."""
    return as_path(path).absolute().parent


def patient_in(entry: Mapping[str, Any]) -> str | None:
    """The patient that an entry states, or None."""
    stated = entry.get("patient")
    return None if stated is None else str(stated)


def stated_patient(entry: Mapping[str, Any], pattern: str | None = None) -> str | None:
    """The patient that an entry states, else the one that the datalist's ``patient_regex`` finds in its ``case``.

    Raises:
        InputError: as :func:`semsynth.data.identity.patient_of`.
    """
    stated = patient_in(entry)
    return stated if stated is not None or pattern is None else patient_in_name(pattern, str(entry["case"]))
