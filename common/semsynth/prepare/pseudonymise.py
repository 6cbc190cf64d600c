"""A data set under pseudonyms: the same voxels, and nothing by which a patient could be told."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..data.datalists import LISTS, absolute, datalist_path, read_datalist, root_of, stated_patient
from ..data.entry_cases import SOURCE_VOXELS
from ..data.entry_forms import FILES
from ..data.headers import SUFFIXES
from ..data.hidden import MARK, Hidden, Names, Person, voxels_of
from ..data.intensity import INTENSITY
from ..data.kept import state_of
from ..data.naming import check_names
from ..data.nesting import refuse_among
from ..data.volumes import copy_clean
from ..data.voxels import hash_file
from ..errors import InputError
from ..files import atomic_folder, sha256, split_part, write_text
from ..json_files import read_object_or_none
from ..locks import one_at_a_time
from ..ownership import Outputs, object_with
from ..paths import as_path
from ..vocabulary import PREPARED

logger = logging.getLogger(__name__)
NAME = "pseudonymised by semsynth"
DATALIST = "datalist.json"
KEPT = ("modality", "num_classes", "classes", INTENSITY, "settings", "phantom")
"""Of a datalist. All else, such as descriptions, may be about patients and stays behind."""
KEPT_OF_CASES = ("content", SOURCE_VOXELS, INTENSITY)
KEPT_OF_RECORDS = (*KEPT_OF_CASES, "semsynth", "settings", "wall", "centers")
"""Of what a preparation says of a case. Names of the raw files stay behind."""
RECORD = "pseudonymised.json"
COPIED, WRITTEN = "copied", "written"
"""Keys of a case's record: role → SHA-256 of the file that was copied; file name → SHA-256 of what was written."""


@dataclass(frozen=True)
class _Case:
    entry: Mapping[str, Any]
    name: str
    patient: str | None

    @property
    def files(self) -> dict[str, Path]:
        return {role: Path(str(self.entry[role])) for role in FILES if isinstance(self.entry.get(role), str)}

    def person(self, by_voxels: bool) -> Person:
        files, known = self.files, dict(self.entry.get("voxels") or {})
        found = voxels_of(known, lambda role: hash_file(files[role]) if role in files else None) if by_voxels else None
        return Person(self.name, self.patient, found)


@one_at_a_time("semsynth pseudonymise")
def pseudonymise(
    source: str | Path, output: str | Path, hidden: Hidden, *, wait: bool = False, progress: bool = True
) -> Path:
    """Copy a data set so that its folders, files, headers and datalist name no patient.

    Volumes are written anew as NIfTI, ``<output>/<pseudonym>/{image,label,endo,wall}.nii.gz``. The datalist keeps
    splits, patients (as pseudonyms), classes and what intensities mean. Cases are copied and listed in the order of
    their pseudonyms, since another one would tell who is who. Cases that are there already are kept.

    Args:
        source: a datalist, or its folder, of NIfTI files.
        output: folder, made if needed.
        hidden: source of the pseudonyms.
        wait: wait until another run that writes into ``output`` has ended; without it such a run is an error.
        progress: show a progress bar.

    Returns:
        The new datalist.

    Raises:
        InputError: for anything but a datalist of real cases in NIfTI files; files in ``output`` that are not ours or
            were changed since; as :class:`semsynth.data.hidden.Hidden`.
    """
    output = as_path(output, "output")
    path = datalist_path(source)
    if path is None or not path.is_file():
        raise InputError(
            f"--input {source}: no datalist; prepare the scans with 'semsynth prepare' or 'prepare-maps', and give the "
            "folder that it writes"
        )
    content = read_datalist(path)
    splits = {split: _cases(path, content, split) for split in LISTS if content.get(split)}
    cases = [case for split in splits.values() for case in split]
    check_names([case.name for case in cases], path)
    refuse_among(output, [file for case in cases for file in case.files.values()], path.parent)
    listing = Outputs(output, "semsynth pseudonymise", {DATALIST: object_with(name=NAME)})
    listing.check()
    by_voxels = hidden.file is None
    names = hidden.names([case.person(by_voxels) for case in tqdm(cases, "hashing", disable=not by_voxels)])
    splits = {split: _in_order(own, names) for split, own in splits.items()}
    _refuse_other_names(output, {names.case(case.name): case.files for case in cases})
    for case in tqdm(_in_order(cases, names), "copying", unit="case", disable=not progress):
        copy_case(case.files, output / names.case(case.name))
    about = {"name": NAME, **MARK, **{key: content[key] for key in KEPT if key in content}}
    about |= {split: [_listed(case, names) for case in own] for split, own in splits.items()}
    return listing.write_text(DATALIST, json.dumps(about, indent=1))


def _in_order(cases: Sequence[_Case], names: Names) -> list[_Case]:
    """By pseudonyms: that of the names, in a list or in the dates of files, would tell who is who."""
    return sorted(cases, key=lambda case: names.case(case.name))


def _cases(path: Path, content: Mapping[str, Any], split: str) -> list[_Case]:
    found = []
    for entry in content[split]:
        there = absolute(entry, root_of(path))
        if entry.get("synthetic"):
            raise InputError(f"{path}: lists synthetic volumes as real ones: {there['case']}; give the real cases")
        case = _Case(there, str(there["case"]), stated_patient(there, content.get("patient_regex")))
        other = [file for file in case.files.values() if not _is_nifti(file)]
        if other:
            raise InputError(
                f"{path}: case {case.name}: {other[0].name} is no NIfTI file; prepare the scans with 'semsynth "
                "prepare' or 'prepare-maps', and give the folder that it writes"
            )
        found.append(case)
    return found


def _is_nifti(file: Path) -> bool:
    return split_part(file)[1] is None and file.name.lower().endswith(SUFFIXES[:2])


def _listed(case: _Case, names: Names) -> dict[str, Any]:
    new = names.case(case.name)
    return {
        "case": new,
        **{role: f"{new}/{role}.nii.gz" for role in case.files},
        **({} if case.patient is None else {"patient": names.patient(case.patient)}),
        **{key: case.entry[key] for key in KEPT_OF_CASES if key in case.entry},
    }


def _refuse_other_names(output: Path, cases: Mapping[str, Mapping[str, Path]]) -> None:
    """Raise where a case stands there under another pseudonym: of another key file, or an earlier one."""
    there = {path.parent.name: (read_object_or_none(path) or {}).get(COPIED) for path in output.glob(f"*/{RECORD}")}
    for name, files in cases.items() if there else ():
        own = _hashes(files)
        other = next((folder for folder, copied in there.items() if copied == own and folder != name), None)
        if other is not None:
            raise InputError(
                f"{output}: holds the case {name} as {other}, of another key file; give the same --pseudonyms as "
                "before, or another --output"
            )


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    return {role: sha256(file) for role, file in files.items()}


def copy_case(files: Mapping[str, Path], folder: Path) -> None:
    """Write a case's folder whole, ``<role>.nii.gz`` each, where it does not stand there yet.

    Args:
        files: role → volume.
        folder: folder of the case, called after its pseudonym.

    Raises:
        InputError: for a folder that is not ours, or whose volumes were changed since.
    """
    copied = _hashes(files)
    if folder.exists():
        record = read_object_or_none(folder / RECORD) or {}
        written = record.get(WRITTEN)
        if COPIED not in record or not isinstance(written, dict):
            raise InputError(f"{folder}: was not written by semsynth pseudonymise; give another --output")
        states = {name: state_of(folder / name, str(digest)) for name, digest in written.items()}
        changed = [name for name, state in states.items() if state == "changed"]
        if changed:
            raise InputError(f"{folder}: {changed[0]} was changed since it was written; give another --output")
        if record[COPIED] == copied and all(state == "kept" for state in states.values()):
            return
    with atomic_folder(folder) as new:
        for role, file in files.items():
            copy_clean(file, new / f"{role}.nii.gz")
        written = {path.name: sha256(path) for path in sorted(new.iterdir())}
        write_text(new / RECORD, json.dumps({"semsynth": __version__, COPIED: copied, WRITTEN: written}, indent=1))
        prepared = next((read_object_or_none(file.with_name(PREPARED)) for file in files.values()), None)
        if prepared is not None:
            kept = {key: prepared[key] for key in KEPT_OF_RECORDS if key in prepared}
            write_text(new / PREPARED, json.dumps(kept, indent=1))
