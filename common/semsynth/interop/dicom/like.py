"""What an existing series gives a synthetic one: modality, body part and plane, and nothing of its patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...data.dicom.series import chosen
from ...data.headers import fail
from .planes import axes_of
from .settings import BODY_PARTS, MODALITIES

_POSITIONS = ("HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS")
POSITION = "HFS"


@dataclass(frozen=True)
class Like:
    """What is taken of a series: a few words of the standard, and directions along axes of the body.

    Attributes:
        modality: MR or CT; None without a series.
        body_part: a key of :data:`BODY_PARTS`; None where the series says none of them.
        axes: directions of columns, rows and slices; None without a series.
        position: Patient Position.
    """

    modality: str | None = None
    body_part: str | None = None
    axes: tuple[str, str, str] | None = None
    position: str = POSITION


def read_like(path: str | None) -> Like:
    """What is taken of a series; nothing without one.

    Args:
        path: folder of the series, with its description or UID behind a ``#`` where it holds several.

    Raises:
        FindingError: no such series or several, segments, another modality than MR or CT, no orientation.
    """
    if path is None:
        return Like()
    import pydicom

    place = Path(path)
    item = chosen(place)
    if item.is_mask:
        fail(place, "segments in place of images", found="a SEG or RTSTRUCT", expected="a series of images",
             fix="give --like the folder of the series")  # fmt: skip
    first = item.images[0]
    if first.modality not in MODALITIES:
        fail(place, "another modality", found=first.modality, expected=" or ".join(MODALITIES),
             fix="leave --like out, or give another series")  # fmt: skip
    if first.directions is None or len(first.directions) != 6:
        fail(place, "no orientation of slices", found="no ImageOrientationPatient", expected="it",
             fix="leave --like out, or give another series")  # fmt: skip
    wanted = ["BodyPartExamined", "PatientPosition"]
    tags = pydicom.dcmread(first.path, specific_tags=wanted, stop_before_pixels=True)
    part, position = (str(tags.get(name) or "").strip().upper() for name in wanted)
    return Like(
        first.modality,
        part if part in BODY_PARTS else None,
        axes_of(first.directions),
        position if position in _POSITIONS else POSITION,
    )
