"""What a user says of a DICOM export, and what came of it (free of DICOM packages)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...texts import counted

MODALITIES = ("MR", "CT")
BODY_PARTS = {
    "ABDOMEN": "Abdomen", "ABDOMENPELVIS": "AbdomenAndPelvis", "BRAIN": "Brain", "BREAST": "Breast", "CHEST": "Chest",
    "CHESTABDOMEN": "ChestAndAbdomen", "CHESTABDPELVIS": "ChestAbdomenAndPelvis", "CSPINE": "CervicalSpine",
    "HEAD": "Head", "HEADNECK": "HeadAndNeck", "HEART": "Heart", "HIP": "Hip", "KIDNEY": "Kidney", "KNEE": "Knee",
    "LIVER": "Liver", "LSPINE": "LumbarSpine", "LUNG": "Lung", "NECK": "Neck", "NECKCHEST": "NeckAndChest",
    "PANCREAS": "Pancreas", "PELVIS": "Pelvis", "PROSTATE": "Prostate", "SHOULDER": "Shoulder", "SPINE": "Spine",
    "TSPINE": "ThoracicSpine", "WHOLEBODY": "EntireBody",
}  # fmt: skip
"""Body Part Examined, as PS3.16 Annex L has it → the name of its code in pydicom's dictionary of SNOMED CT."""
EXPERT, NO_LABEL = "expert", "none"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True)
class DicomSettings:
    """What is said of volumes beside their records.

    Attributes:
        like: DICOM series whose modality, body part and plane are taken; None: none.
        label: file of the label map, where one volume is written; ``none`` writes no SEG; None: the record's.
        classes: names of the map's classes from 1 on; empty: those of the datalist beside it, or of its segments.
        drawn_by: ``expert``, or the name of the program that drew the maps of real cases.
        modality: ``MR`` or ``CT``; None: what record or series say.
        body_part: a key of :data:`BODY_PARTS`; None: what series or classes say.
        patient_id: Patient ID; None: made of the hash of the volume's file.
        synthetic: True where volumes without a record are synthetic all the same.
        audit: folder of ``semsynth audit`` of these volumes; None: they were not audited.
        despite_audit: write volumes although the audit found copies of scans.

    Raises:
        InputError: for values that DICOM does not have.
    """

    like: str | None = None
    label: str | None = None
    classes: tuple[str, ...] = ()
    drawn_by: str = EXPERT
    modality: str | None = None
    body_part: str | None = None
    patient_id: str | None = None
    synthetic: bool = False
    audit: str | None = None
    despite_audit: bool = False

    def __post_init__(self) -> None:
        if self.modality is not None and self.modality not in MODALITIES:
            raise InputError(f"--modality must be {' or '.join(MODALITIES)}, got {self.modality!r}")
        if self.body_part is not None and self.body_part not in BODY_PARTS:
            raise InputError(f"--body-part must be one of {', '.join(BODY_PARTS)}, got {self.body_part!r}")
        if self.patient_id is not None and not _ID.fullmatch(self.patient_id):
            raise InputError(
                f"--patient-id must be letters, digits, '.', '_' and '-', at most 48 of them, got {self.patient_id!r}"
            )
        if not self.drawn_by.strip() or not self.drawn_by.isprintable() or "\\" in self.drawn_by:
            raise InputError(f"--drawn-by must be expert or the name of a program, got {self.drawn_by!r}")


@dataclass(frozen=True)
class Written:
    """One volume as DICOM.

    Attributes:
        case: its name in its record; it stands in no DICOM file.
        folder: folder that holds the series and the SEG.
        slices: number of images.
        modality: MR or CT.
        segments: number of segments; None: no SEG.
    """

    case: str
    folder: Path
    slices: int
    modality: str
    segments: int | None

    def text(self) -> str:
        """The result in words."""
        seg = "no SEG" if self.segments is None else f"SEG of {counted(self.segments, 'segment')}"
        return f"{self.case}: {counted(self.slices, f'{self.modality} image')}, {seg}, in {self.folder}"
