"""Prepared cases on disk: written whole, kept where they are what is asked for, and nothing else in their folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..data.check import Checkable
from ..data.intensity import INTENSITY, Intensity
from ..data.kept import state_of
from ..data.volumes import StorageType, write_image, write_label
from ..errors import InputError
from ..files import atomic_folder, real, sha256, write_text
from ..json_files import read_object_or_none
from ..report.pictures import Row, save_planes
from ..vocabulary import PREPARED
from .job import Prepared, fingerprints, run_all
from .like import filled

logger = logging.getLogger(__name__)
IMAGE_FILE, LABEL_FILE, PICTURE_FILE = "image.nii.gz", "label.nii.gz", "qc.png"
WRITTEN = "written"
"""Key of a case's record: file name → SHA-256 of all files beside it."""
_DEBRIS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})  # of file managers
T = TypeVar("T", bound=Checkable)


def commit_case(
    folder: Path, made: Prepared, record: Mapping[str, Any], dtype: StorageType, picture: Row, *, title: str
) -> None:
    """Write a prepared case beside, then rename it: image, label map where there is one, picture and record.

    The record holds the SHA-256 of each, by which a later run knows that they are whole.

    Raises:
        InputError: for files that no preparation wrote, in a folder that would be replaced.
    """
    with atomic_folder(folder) as partial:
        write_image(partial / IMAGE_FILE, made.image, made.affine, dtype)
        if made.label is not None:
            write_label(partial / LABEL_FILE, made.label, made.affine)
        save_planes(partial / PICTURE_FILE, [picture], title=title)
        written = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        write_text(partial / PREPARED, json.dumps({**record, WRITTEN: written}, indent=1))
        if folder.exists():  # something may have come into it since the check
            _refuse_foreign(folder, read_record(folder) or {})


def check_output(output: Path, cases: Sequence[Checkable]) -> None:
    """A case's folder is replaced as a whole, so none may hold source files or anything else that is not ours.

    Raises:
        InputError: naming all that would be lost.
    """
    if output.is_file():
        raise InputError(f"{output}: is a file; --output needs a folder")
    folders = {real(output / case.name): case.name for case in cases}
    problems = []
    for case in cases:
        inside = [path for path in case.files.values() if folders.keys() & set(real(path).parents)]
        problems += [f"case {case.name}: {path} lies in a folder that would be replaced" for path in inside]
    for folder, name in folders.items():
        if folder.is_dir() and (folder / PREPARED).is_file():
            continue
        if folder.exists() and not problems and not (folder.is_dir() and not any(folder.iterdir())):
            problems.append(f"case {name}: {folder} exists and holds no {PREPARED}, so it is not a prepared case")
    if problems:
        raise InputError("--output would overwrite what is not its own; give another folder:", problems)


def already_prepared(
    case: Checkable, settings: Any, folder: Path, overwrite: bool, intensity: Intensity | None = None
) -> bool:
    """Whether ``folder`` already holds this case, whole, made from the same files with the same settings.

    A case of which a file is missing or damaged is made again, with a warning.

    Args:
        case: case.
        settings: settings of the preparation.
        folder: folder that may hold it.
        overwrite: replace another one, and files that were changed since they were written.
        intensity: intensities that the prepared image would have; None, or a record of before: not compared.

    Raises:
        InputError: when it holds the case made otherwise, or changed since, and ``overwrite`` is not set; when it would
            be replaced and holds files that no preparation wrote.
    """
    if not (folder / PREPARED).is_file():
        return False
    record = read_record(folder)
    if record is None:
        logger.warning("case %s: %s is damaged; the case is made again", case.name, folder / PREPARED)
        _refuse_foreign(folder, {})
        return False
    wanted = json.loads(json.dumps({"settings": asdict(settings), "sources": fingerprints(case)}))
    record["settings"] = filled(type(settings), record.get("settings", {}))  # of a version before
    if intensity is not None and INTENSITY in record:
        wanted[INTENSITY] = json.loads(json.dumps(intensity.to_json()))
    different = [key for key, value in wanted.items() if record.get(key) != value]
    if different and not overwrite:
        raise InputError(
            f"{folder}: was prepared with other {' and '.join(different)}{_changed(record, wanted)}; give another "
            "--output or --overwrite"
        )
    if not different and _is_whole(case, folder, record, overwrite):
        return True
    _refuse_foreign(folder, record)
    return False


def read_record(folder: Path) -> dict[str, Any] | None:
    """A prepared case's record; None where it is damaged."""
    found = read_object_or_none(folder / PREPARED)
    if found is None or "content" not in found:
        return None
    return found if all(isinstance(found.get(key, {}), dict) for key in ("settings", WRITTEN)) else None


def _is_whole(case: Checkable, folder: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether all files are as they were written; says which are not."""
    files = _written(record)
    if not files:  # of version 0.1.0, which wrote no hashes
        labelled = "label" in case.files or "endo" in case.files
        files = dict.fromkeys([IMAGE_FILE, PICTURE_FILE, *([LABEL_FILE] if labelled else [])])
    states = {name: state_of(folder / name, digest) for name, digest in files.items()}
    changed = [name for name, state in states.items() if state == "changed"]
    if changed and not overwrite:
        raise InputError(
            f"{folder}: {' and '.join(changed)} changed since the preparation wrote it; move the folder away to keep "
            "the changes, or give --overwrite to make the case again"
        )
    other = [f"{name} is {state}" for name, state in states.items() if state != "kept"]
    if other:
        logger.warning("case %s: %s; the case is made again", case.name, ", ".join(other))
    return not other


def _refuse_foreign(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise for files in a case's folder that no preparation wrote: they would go with it."""
    own = {IMAGE_FILE, LABEL_FILE, PICTURE_FILE, PREPARED} | set(_written(record)) | _DEBRIS
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if foreign:
        raise InputError(
            f"{folder}: would be replaced, but holds {', '.join(foreign[:3])}{' …' if foreign[3:] else ''}, which no "
            "preparation wrote; move it away, or give another --output"
        )


def _written(record: Mapping[str, Any]) -> dict[str, str | None]:
    return {str(name): str(digest) for name, digest in dict(record.get(WRITTEN, {})).items()}


def _changed(record: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The settings that are other ones now, in brackets; empty where there are none."""
    old, new = record["settings"], wanted["settings"]
    names = [name for name in new if old.get(name) != new[name]]
    return f" ({', '.join(f'{name} {old.get(name)}, now {new[name]}' for name in names)})" if names else ""


def prepare_missing(
    cases: Sequence[T],
    settings: Any,
    output: Path,
    work: Callable[[T, Any, Path], Any],
    *,
    jobs: int,
    overwrite: bool,
    intensity: Intensity | None = None,
) -> None:
    """Run ``work(case, settings, folder)`` for all cases that are not prepared yet from their files with ``settings``.

    Raises:
        InputError: for cases that are prepared otherwise, unless ``overwrite``, and whatever is wrong with a case.
    """

    def is_open(case: T) -> bool:
        return not already_prepared(case, settings, output / case.name, overwrite, intensity)

    def prepare_one(case: T) -> Any:
        return work(case, settings, output / case.name)

    todo = run_all(cases, is_open, jobs=jobs, title="comparing", name=lambda case: case.name)
    left = [case for case in cases if todo[case.name]]
    if len(left) < len(cases):
        logger.info("%d of %d cases are already prepared and kept", len(cases) - len(left), len(cases))
    output.mkdir(parents=True, exist_ok=True)
    run_all(left, prepare_one, jobs=jobs, title="preparing", name=lambda case: case.name)
