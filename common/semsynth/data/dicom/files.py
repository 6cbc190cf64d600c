"""The DICOM files of a folder, by what their headers say; which series they are of, and what they hold."""

from __future__ import annotations

import importlib
import math
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...files import split_part, stamp, walk
from ..findings import Finding, FindingError, error
from ..headers import SUFFIXES, damaged, fail

MAGIC, MAGIC_AT = b"DICM", 128
PACKAGES = ("pydicom", "SimpleITK", "highdicom")
SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
NO_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "PR", "SR", "KO", "REG", "DOC", "RWV", "AU", "ECG"})
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "Rows", "Columns",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "TemporalPositionIdentifier", "TriggerTime", "EchoTime", "InversionTime", "DiffusionBValue", "ImageType",
    "AcquisitionNumber", "AcquisitionTime", "SegmentSequence", "StructureSetROISequence", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence", "PixelData",
)  # fmt: skip
PIXEL_DATA = 0x7FE00010
CHUNK = 1 << 20
MOST_DEFLATED = 1 << 30
"""Bytes of one deflated file when it is unpacked."""
_UNDEFINED = 0xFFFFFFFF
VARYING = (
    "TemporalPositionIdentifier", "TriggerTime", "EchoTime", "InversionTime", "DiffusionBValue", "ImageType",
    "AcquisitionNumber", "AcquisitionTime",
)  # fmt: skip
"""What tells images of one position apart, the first that differs."""


@dataclass(frozen=True)
class Instance:
    """One DICOM file: what of its header is needed.

    Attributes:
        path: path of the file.
        kind: its SOP class.
        uid: its own UID.
        shape: columns and rows; None without them.
        spacing: mm between columns and between rows.
        position: position of the first voxel, mm, LPS+.
        directions: directions of the columns' and of the rows' axis, six numbers, LPS+.
        slope, intercept: stored values → values.
        frames: number of images that it holds.
        samples: per pixel; 3 for colours.
        photometric: Photometric Interpretation: the way in which values are shown.
        table: True where a look-up table stands in the place of slope and intercept.
        pixels: True where it has pixel data.
        varying: attributes that may tell it from other images of its position.
        names: names of segments or ROIs.
        refers_to: UID of the series that segments or ROIs were drawn on.
    """

    path: Path
    kind: str
    uid: str
    series: str
    description: str
    modality: str
    shape: tuple[int, int] | None
    spacing: tuple[float, float] | None
    position: tuple[float, ...] | None
    directions: tuple[float, ...] | None
    slope: float
    intercept: float
    frames: int
    samples: int
    photometric: str
    table: bool
    pixels: bool
    varying: tuple[str, ...]
    names: tuple[str, ...] = ()
    refers_to: str | None = None

    @property
    def is_mask(self) -> bool:
        """Whether it holds segments or ROIs."""
        return self.kind == RTSTRUCT or self.kind in SEG

    @property
    def is_image(self) -> bool:
        """Whether it is an image, or meant to be one."""
        return self.shape is not None and not self.is_mask and self.modality not in NO_IMAGES


@dataclass(frozen=True)
class Contents:
    """The DICOM files below a folder, or one DICOM file alone.

    Attributes:
        series: UID → images.
        masks: files of segments or ROIs.
        damaged: faults of the files that cannot be read.
    """

    series: dict[str, tuple[Instance, ...]]
    masks: tuple[Instance, ...]
    damaged: tuple[Finding, ...] = ()


def needs(path: str | Path) -> None:
    """Raise where the packages that read DICOM are not installed.

    Raises:
        FindingError: naming the extra.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            fail(Path(path), "DICOM needs further packages", found=f"no package {package}",
                 expected="the extra 'dicom'", fix="pip install 'semsynth[dicom]'")  # fmt: skip


def is_dicom(path: str | Path) -> bool:
    """Whether a path is for DICOM: a file that begins as one, or a folder that holds such a file."""
    place, _ = split_part(path)
    if place.is_dir():
        return any(_begins_as_dicom(file) for file in walk(place))
    return not place.name.lower().endswith((*SUFFIXES, ".json")) and _begins_as_dicom(place)


def _begins_as_dicom(file: Path) -> bool:
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with file.open("rb") as stream:
            return stream.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def scan(place: Path) -> Contents:
    """The DICOM files below a folder, whatever their names; a ``DICOMDIR`` stands for the folder that it lies in.

    Read again only when a file has changed.
    """
    place = place.parent if place.name.upper() == "DICOMDIR" and place.is_file() else place
    return _scan(place, stamp(place))


@lru_cache(maxsize=256)
def _scan(place: Path, _stamp: tuple[int, int]) -> Contents:
    series: dict[str, list[Instance]] = defaultdict(list)
    masks, bad = [], []
    for file in [place] if place.is_file() else walk(place):
        if not _begins_as_dicom(file):
            continue
        try:
            instance = _instance(file)
        except FindingError as reason:
            bad.append(reason.finding)
        except Exception as reason:  # pydicom raises all kinds of errors on malformed bytes
            bad.append(damaged(file, f"{type(reason).__name__}: {reason}").finding)
        else:
            if instance.is_mask:
                masks.append(instance)
            elif instance.is_image:
                series[instance.series].append(instance)
    return Contents({uid: tuple(same) for uid, same in series.items()}, tuple(masks), tuple(bad))


def _instance(file: Path) -> Instance:
    import pydicom

    _check_deflated(file)
    tags = pydicom.dcmread(file, specific_tags=list(_TAGS), defer_size=4096)
    pixels: Any = tags.get_item(PIXEL_DATA, keep_deferred=True) if PIXEL_DATA in tags else None

    def get(name: str, kind: Callable[[Any], Any], default: Any = None) -> Any:
        value = tags.get(name)
        return default if value is None or value == "" else kind(value)

    def reals(value: Any) -> tuple[float, ...]:
        return tuple(float(v) for v in value)

    rows, columns = get("Rows", int), get("Columns", int)
    spacing = get("PixelSpacing", reals)
    instance = Instance(
        path=file,
        kind=str(tags.file_meta.get("MediaStorageSOPClassUID") or tags.get("SOPClassUID", "")),
        uid=str(tags.get("SOPInstanceUID", file)),
        series=str(tags.get("SeriesInstanceUID", "")),
        description=get("SeriesDescription", str, "").strip(),
        modality=get("Modality", str, "?"),
        shape=(columns, rows) if rows and columns else None,
        spacing=(spacing[1], spacing[0]) if spacing is not None and len(spacing) == 2 else None,
        position=get("ImagePositionPatient", reals),
        directions=get("ImageOrientationPatient", reals),
        slope=get("RescaleSlope", float, 1.0),
        intercept=get("RescaleIntercept", float, 0.0),
        frames=get("NumberOfFrames", int, 1),
        samples=get("SamplesPerPixel", int, 1),
        photometric=get("PhotometricInterpretation", str, ""),
        table=bool(tags.get("ModalityLUTSequence")),
        pixels=pixels is not None and getattr(pixels, "length", 1) != 0,
        varying=tuple(get(name, str, "") for name in VARYING),
        names=_names(tags),
        refers_to=_refers_to(tags),
    )
    if instance.is_image:
        _check_length(instance, pixels, get("BitsAllocated", int, 16), tags.file_meta.TransferSyntaxUID)
    elif instance.shape is None and pydicom.uid.UID(instance.kind).name.endswith("Image Storage"):
        raise damaged(file, "its header ends before the size of the image")
    return instance


def _check_deflated(file: Path) -> None:
    """Raise where a deflated file, which pydicom unpacks as a whole, would fill the memory."""
    from pydicom.filereader import _read_file_meta_info as read_meta
    from pydicom.filereader import read_preamble

    with file.open("rb") as stream:
        read_preamble(stream, force=False)
        syntax = read_meta(stream).get("TransferSyntaxUID")
        if syntax is None or not syntax.is_deflated:
            return
        member, unpacked = zlib.decompressobj(wbits=-zlib.MAX_WBITS), 0
        waiting = stream.read(CHUNK)
        while waiting and not member.eof:
            unpacked += len(member.decompress(waiting, CHUNK))
            if unpacked > MOST_DEFLATED:
                fail(file, "more data than a DICOM file has", found=f"more than {MOST_DEFLATED} bytes when unpacked",
                     expected="an image or its segments", fix="export it again")  # fmt: skip
            waiting = member.unconsumed_tail or stream.read(CHUNK)


def _check_length(image: Instance, pixels: Any, bits: int, syntax: Any) -> None:
    """Raise where the pixel data end early; compressed ones, of undefined length, pydicom has read to their end."""
    stored = getattr(pixels, "length", _UNDEFINED)
    if stored in (0, _UNDEFINED) or image.shape is None or "YBR_FULL_422" in image.photometric:
        return
    needed = math.prod(image.shape) * image.samples * image.frames * bits // 8
    # in a deflated file places are not those of the file
    there = stored if syntax.is_deflated else min(stored, image.path.stat().st_size - pixels.value_tell)
    if there < needed:
        raise damaged(image.path, f"{there} of {needed} bytes of pixel data")


def _names(tags: Any) -> tuple[str, ...]:
    segments = [str(item.get("SegmentLabel", "")) for item in tags.get("SegmentSequence") or []]
    return tuple(segments or [str(item.get("ROIName", "")) for item in tags.get("StructureSetROISequence") or []])


def _refers_to(tags: Any) -> str | None:
    listed = list(tags.get("ReferencedSeriesSequence") or [])
    for frame in tags.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            listed += study.get("RTReferencedSeriesSequence") or []
    return next((str(item.SeriesInstanceUID) for item in listed if "SeriesInstanceUID" in item), None)


def whole(contents: Contents) -> Contents:
    """The same contents where all files could be read.

    Raises:
        FindingError: for the first that could not.
    """
    if contents.damaged:
        raise FindingError(contents.damaged[0])
    return contents


def nothing_here(path: Path) -> FindingError:
    """The finding for a folder without DICOM images."""
    return FindingError(error(path, "not an image", found="DICOM files without an image or segments",
                              expected="the DICOM files of a series, a SEG or an RTSTRUCT",
                              fix="check the path in the datalist or pattern"))  # fmt: skip
