"""Volumes as DICOM: one folder each, with a series of slices and a SEG, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from ...data.headers import fail
from ...data.intensity import HU
from ...data.nesting import refuse_among
from ...data.volumes import Volume, read_label, read_volume
from ...errors import InputError
from ...files import TEMPORARY, atomic_folder, sha256, walk
from ...locks import LOCK, locked
from ...ownership import LEDGER, Outputs, refuse
from ...paths import as_path
from ...provenance.audits import passed
from .images import Study, series_of
from .like import Like, read_like
from .masks import segmentation_of, segments_of, uncoded
from .pixels import pixels_of
from .planes import Stack, stacked
from .settings import EXPERT, DicomSettings, Written
from .sources import Source, find_sources

logger = logging.getLogger(__name__)
MAKER = "semsynth dicom"
SERIES, SEG = "series", "seg.dcm"
DIGITS = 12
"""Of a file's hash in a Patient ID: two volumes of a million share it with a chance of 1 in 500."""


def write_all(
    volume: str, *, output: str, settings: DicomSettings, overwrite: bool = False, wait: bool = False
) -> list[Written]:
    """Write synthetic volumes as DICOM, each into ``<output>/<Patient ID>``.

    There: ``series/IM0001.dcm`` … and, with a label map, ``seg.dcm``. All UIDs are new in every run; the Patient ID is
    ``SYN-`` and the first digits of the SHA-256 of the volume's file, or what the settings give, numbered where there
    are several volumes.

    Args:
        volume: one file, a datalist or its folder.
        output: folder to write; made if it is not there.
        settings: statements on the volumes.
        overwrite: replace folders that an earlier run wrote.
        wait: wait until another run that writes there has ended; without it such a run is an error.

    Raises:
        InputError: before anything is written: see :func:`find_sources`; files in the output that are not ours; folders
            of an earlier run unless ``overwrite``; an audit that does not cover all volumes, or found copies in them.
            Per volume: no modality that is known, a label map of another grid, axes that are not at right angles,
            unusable intensities.
    """
    folder = as_path(output, "output")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every module that it copies
    with locked(folder, MAKER, wait=wait):
        like = read_like(settings.like)
        if None not in (settings.modality, like.modality) and settings.modality != like.modality:
            raise InputError(f"--modality {settings.modality}: --like {settings.like} is {like.modality}; give one")
        sources = find_sources(volume, settings)
        inputs = [str(path) for s in sources for path in (s.image, s.label) if path is not None]
        refuse_among(folder, [*inputs, *([] if settings.like is None else [settings.like])])
        if any(s.label is not None and s.origin != "generated" for s in sources) and settings.drawn_by == EXPERT:
            logger.info("label maps of scans are written as drawn by an expert; if a program drew them, name it with "
                        "--drawn-by")  # fmt: skip
        said = passed(settings.audit, [source.image for source in sources], despite=settings.despite_audit)
        audited = f"{said['verdict']}{', written despite it' if said.get('despite') else ''}"
        modalities = [modality_of(source, settings, like) for source in sources]
        patients = _patients(sources, settings)
        _check_output(folder, patients, overwrite=overwrite)
        written = []
        rows = zip(sources, patients, modalities, strict=True)
        for source, patient, modality in tqdm(rows, "DICOM", len(sources), unit="volume", disable=len(sources) < 2):
            written.append(_write(source, folder / patient, _study(source, patient, modality, settings, like, audited),
                                  settings, like))  # fmt: skip
        return written


def modality_of(source: Source, settings: DicomSettings, like: Like) -> str:
    """MR or CT: as the user or the series says; else CT where the file is in HU, MR where it was scaled on its own.

    Raises:
        InputError: where these contradict each other, or nothing says it.
    """
    stated = settings.modality or like.modality
    in_hu = source.held.unit == HU
    if in_hu and stated == "MR":
        raise InputError(
            f"case {source.case}: {source.image}: its record says Hounsfield units, which is CT, but MR is asked for; "
            "give --modality CT, or a CT series as --like"
        )
    if stated is not None or in_hu:
        return stated or "CT"
    if source.held.scaling is not None and source.held.scaling.scale != "window":
        return "MR"
    raise InputError(
        f"case {source.case}: {source.image}: its record does not say whether it is MR or CT; say so with --modality"
    )


def _patients(sources: Sequence[Source], settings: DicomSettings) -> list[str]:
    """A Patient ID for each volume, which is the name of its folder too."""
    given = settings.patient_id
    if given is not None:
        return [given] if len(sources) == 1 else [f"{given}-{number:04d}" for number in range(1, len(sources) + 1)]
    found: list[str] = []
    for source in sources:
        name = f"SYN-{sha256(source.image)[:DIGITS]}"
        same = sum(other == name or other.startswith(f"{name}-") for other in found)
        found.append(f"{name}-{same + 1}" if same else name)
    return found


def _check_output(folder: Path, patients: Sequence[str], *, overwrite: bool) -> None:
    """Raise where the output holds anything that an earlier export did not write there, or what would be replaced."""
    foreign, ours = [], []
    for place in sorted(folder.iterdir()):
        if place.name.startswith(LOCK):
            continue
        names = [] if place.is_symlink() or not place.is_dir() else [str(f.relative_to(place)) for f in walk(place)]
        if LEDGER not in names:
            foreign.append(f"{place}: was not written by {MAKER}")
            continue
        foreign += Outputs(place, MAKER, {}).foreign(name for name in names if name != LEDGER)
        ours += [place.name] if place.name in patients else []
    refuse(foreign)
    if ours and not overwrite:
        raise InputError(
            f"{folder}: holds {', '.join(ours[:3])}{' …' if ours[3:] else ''} of an earlier run; give another "
            "--output, or --overwrite to replace it by one with new UIDs"
        )


def _study(source: Source, patient: str, modality: str, settings: DicomSettings, like: Like, audited: str) -> Study:
    from .codes import body_part_of

    record = source.record
    generator = (str(record.get("bundle", "")), str(record.get("version", "")))
    part = settings.body_part or like.body_part or body_part_of(source.names.values())
    return Study(patient, modality, generator, str(record.get("weights_sha256", "")), part, like.position, audited)


def _write(source: Source, place: Path, study: Study, settings: DicomSettings, like: Like) -> Written:
    volume = read_volume(source.image)
    pixels = pixels_of(source.image, volume.data, study.modality, source.held)
    stack = stacked(source.image, Volume(pixels.data, volume.affine), like.axes)
    label = None if source.label is None else _label_on(source, source.label, volume, like)
    images = series_of(stack, pixels, study)
    files: dict[str, Any] = {f"{SERIES}/IM{number:04d}.dcm": image for number, image in enumerate(images, 1)}
    count = None
    if label is not None:
        names = segments_of(source, label.volume.data)
        count = len(names)
        if unknown := uncoded(names):
            logger.warning("case %s: classes without codes of their own are coded as Tissue, under their names: %s",
                           source.case, ", ".join(unknown))  # fmt: skip
        files[SEG] = segmentation_of(images, label.volume.data, source, study, settings)
    _save(place, files)
    return Written(source.case, place, len(images), study.modality, count)


def _label_on(source: Source, path: Path, volume: Volume, like: Like) -> Stack:
    """The label map in the order of the series.

    Raises:
        FindingError: for another grid, no whole numbers from 0 on, or a map of background alone.
    """
    label = read_label(path).on_grid(volume.affine, volume.data.shape)
    if label is None:
        fail(path, "label map on another grid", found="voxels elsewhere than the volume's", expected=f"the grid of "
             f"{source.image}", fix="give the map that the volume was made from with --label")  # fmt: skip
    if label.data.dtype.kind == "f" or label.data.min() < 0 or not 0 < label.data.max() < 1 << 16:
        fail(path, "no label map", found=f"values from {label.data.min():g} to {label.data.max():g}",
             expected="whole numbers from 0 on, and some above 0",
             fix="give the map that the volume was made from with --label")  # fmt: skip
    return stacked(path, Volume(label.data, label.affine), like.axes)


def _save(place: Path, files: dict[str, Any]) -> None:
    """A folder of DICOM files with its ledger, whole or not at all."""
    with (
        atomic_folder(place) as folder,
        TemporaryDirectory(prefix=TEMPORARY[0], suffix=TEMPORARY[1], dir=folder.parent) as staged,
    ):
        made = {}
        for number, (name, dataset) in enumerate(files.items()):
            made[name] = Path(staged) / f"{number}.dcm"
            dataset.save_as(made[name], enforce_file_format=True)
        (folder / SERIES).mkdir()
        Outputs(folder, MAKER, {}).replace(made)
