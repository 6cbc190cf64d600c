"""Which volumes are meant, what their records say of them, and which label map each was made from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ...data.datalists import LISTS, absolute, datalist_path, read_datalist, root_of, stated_classes
from ...data.headers import SUFFIXES, read_header
from ...data.intensity import Intensity, entry_intensity, intensity_beside, stated_intensity
from ...data.kept import state_of
from ...data.volumes import stem
from ...data.voxels import hash_file
from ...errors import InputError
from ...files import sha256
from ...json_files import read_object_or_none
from ...paths import as_path
from ...texts import counted
from ...vocabulary import PREPARED
from .settings import EXPERT, NO_LABEL, DicomSettings

logger = logging.getLogger(__name__)
VOLUME_HASH = "volume_sha256"
"""Key of a record: SHA-256 of the volume's file as it was written."""
Origin: TypeAlias = Literal["case", "morphed", "generated"]


@dataclass(frozen=True)
class Source:
    """A synthetic volume that is to be written.

    Attributes:
        case: its name, for messages; it goes into no DICOM file.
        image: its file.
        label: file of the label map that it was made from; None: no SEG is wanted.
        names: classes of the map, index → name.
        record: record that its inference wrote beside it; empty where the user says that it is synthetic.
        held: intensities of the file.
        origin: origin of the map: a real case, a morph of a real case's map, or from nothing.
        derived_wall: True where software made the wall of a case's map around its cavity.
    """

    case: str
    image: Path
    label: Path | None
    names: Mapping[int, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    held: Intensity = field(default_factory=Intensity)
    origin: Origin = "case"
    derived_wall: bool = False


def find_sources(volume: str, settings: DicomSettings) -> list[Source]:
    """The volumes that a path is for.

    Args:
        volume: one file; a datalist or its folder, of which the synthetic entries are taken.
        settings: settings of the export.

    Raises:
        InputError: for nothing that is synthetic, volumes without a record that says so, ones that were changed since,
            and label maps that are missing or others; all volumes at once.
    """
    path = as_path(volume, "volume")
    listed = datalist_path(path)
    if listed is not None:
        found = _of_datalist(listed, settings)
    elif path.is_dir():
        raise InputError(
            f"{path}: holds no datalist.json; give a synthetic volume, or the folder of an inference or an augmentation"
        )
    elif not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        what = "is no file" if not path.is_file() else "is no NIfTI or NRRD file"
        raise InputError(f"{path}: {what}; give a synthetic volume ({', '.join(SUFFIXES)}), a datalist or its folder")
    else:
        found = [_of_file(path, settings)]
    if settings.label not in (None, NO_LABEL) and len(found) > 1:
        raise InputError(
            f"--label is for one volume, and {volume} lists {len(found)}; leave it out, or give one volume"
        )
    problems = [problem for source in found for problem in _problems(source, settings)]
    if problems:
        raise InputError(f"{volume}: volumes that are not written as DICOM", problems)
    return found


def _of_datalist(path: Path, settings: DicomSettings) -> list[Source]:
    content = read_datalist(path)
    root = root_of(path)
    entries = [entry for name in LISTS for entry in content.get(name, []) if "image" in entry]
    wanted = [absolute(entry, root) for entry in entries if entry.get("synthetic")]
    if not wanted:
        raise InputError(
            f"{path}: none of its {counted(len(entries), 'entry').replace('entrys', 'entries')} is synthetic; give the "
            "datalist of an inference or an augmentation"
        )
    if len(wanted) < len(entries):
        logger.info("%s: %s left out, as they are real", path, counted(len(entries) - len(wanted), "volume"))
    stated, names = stated_intensity(content, path), _names(settings) or stated_classes(path, content)
    found = []
    for entry in wanted:
        image = Path(str(entry["image"]))
        record = _record(image, settings)
        held = entry_intensity(record or entry, stated, path) or Intensity()
        label = _label(settings, image, record, entry.get("label"))
        found.append(_with_map(str(entry["case"]), image, label, names, record, held, entry))
    return found


def _of_file(path: Path, settings: DicomSettings) -> Source:
    record = _record(path, settings)
    label = _label(settings, path, record, None)
    names = _names(settings)
    listed = datalist_path(path.parent)
    if not names and listed is not None:
        names = stated_classes(listed, read_datalist(listed))
    held = (intensity_beside(path) if record else None) or Intensity(None)
    return _with_map(str(record.get("case", stem(path))), path, label, names, record, held, {})


def _names(settings: DicomSettings) -> dict[int, str]:
    return dict(enumerate(settings.classes, 1))


def _record(image: Path, settings: DicomSettings) -> dict[str, Any]:
    """The record beside a volume where it says that the volume is synthetic, else nothing.

    Nothing either of a volume that has changed since, which the user says is synthetic all the same.
    """
    found = read_object_or_none(image.with_name(f"{stem(image)}.json"))
    if found is None or found.get("synthetic") is not True:
        return {}
    return {} if settings.synthetic and state_of(image, found.get(VOLUME_HASH)) == "changed" else found


def _label(settings: DicomSettings, image: Path, record: Mapping[str, Any], listed: Any) -> Path | None:
    """The file of the label map; None where no SEG is wanted."""
    if settings.label is not None:
        return None if settings.label == NO_LABEL else as_path(settings.label, "label")
    if listed is not None:
        return Path(str(listed))
    told = record.get("label_from")
    return image.parent / told if isinstance(told, str) else Path()


def _with_map(
    case: str, image: Path, label: Path | None, names: Mapping[int, str], record: Mapping[str, Any], held: Intensity,
    entry: Mapping[str, Any],
) -> Source:  # fmt: skip
    """A source with what is known of its label map."""
    origin: Origin = "case"
    derived = False
    if label is not None and label.is_file():
        beside = read_object_or_none(label.with_name(f"{stem(label)}.json")) or {}
        if entry.get("drawn") is True or beside.get("drawn") is True:
            origin = "generated"
        elif isinstance(beside.get("morph"), dict):
            origin = "morphed"
        own = label.parent / str(beside.get("label")) if origin == "morphed" else label
        prepared = read_object_or_none(own.with_name(PREPARED)) or {}
        derived = str(prepared.get("wall", "")).startswith("derived")
        segments = read_header(label).segments
        if segments is not None:  # the file's own names, in whose order it is read
            names = dict(enumerate(segments.names, 1))
    return Source(case, image, label, names, record, held, origin, derived)


def _problems(source: Source, settings: DicomSettings) -> list[str]:
    """Why a volume is not written; empty where it is."""
    where = f"case {source.case}: {source.image}"
    state = state_of(source.image, source.record.get(VOLUME_HASH))
    if state == "missing":
        return [f"{where}: is not there; make it again, or leave it out of the datalist"]
    if state == "damaged":
        return [f"{where}: is damaged; make it again"]
    if not source.record and not settings.synthetic:
        real = source.image.with_name(PREPARED).is_file() and stem(source.image) == "image"
        found = f"{PREPARED}, which says that it was prepared from a scan" if real else "none"
        return [
            f"{where}: needs a record beside it, {stem(source.image)}.json, that says that it is synthetic, found "
            f"{found}; a scan is never written as synthetic: if it was made by a network, say so with --synthetic"
        ]
    if state == "changed":
        return [
            f"{where}: has changed since its record was written: what it holds is unknown; make it again, or "
            "say with --synthetic that it is synthetic: then nothing of the record is taken"
        ]
    return _map_problems(source, where, settings)


def _map_problems(source: Source, where: str, settings: DicomSettings) -> list[str]:
    if source.label is None:
        return []
    fix = f"give it with --label, or --label {NO_LABEL} to write no SEG"
    if source.label == Path():
        return [f"{where}: its record names no label map; {fix}"]
    if not source.label.is_file():
        return [f"{where}: its label map {source.label} is not there; {fix}"]
    record = source.record
    if settings.label is None and record.get("label_sha256") not in (None, sha256(source.label)):
        voxels = record.get("label_voxels")
        if voxels is None or hash_file(source.label) != voxels:
            return [f"{where}: was made from another label map than {source.label} holds now; {fix}"]
    return []


def drawn_by_expert(source: Source, settings: DicomSettings) -> bool:
    """Whether a person drew the structures of a map, before anything was done to it."""
    return source.origin != "generated" and settings.drawn_by == EXPERT
