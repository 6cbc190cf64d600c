"""A volume as a series of MR or CT images that say of themselves that they are synthetic."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import highdicom as hd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from ... import __version__
from ...provenance.audits import NOT_AUDITED
from ...texts import shown
from .pixels import Pixels
from .planes import Stack
from .settings import BODY_PARTS

MAKER = "semsynth"
NOTE = "SYNTHETIC: made by software, no scan of a patient, not for diagnosis."
LONGEST = 64
"""Characters of a text of the VR LO."""


def new_uid() -> str:
    """A UID of a random UUID (PS3.5 B.2): made of nothing, and of no organisation's root."""
    return str(generate_uid(prefix=None))


@dataclass(frozen=True)
class Study:
    """What all files of one volume share.

    Attributes:
        patient: Patient ID of a patient who is none.
        modality: MR or CT.
        generator: name and version of what made the volume.
        weights: SHA-256 of its weights; empty where no record says it.
        body_part: a key of :data:`BODY_PARTS`, or None.
        position: Patient Position.
        audit: result of the volume's audit.
        when: the moment of writing; a scan's is nowhere.
    """

    patient: str
    modality: str
    generator: tuple[str, str]
    weights: str = ""
    body_part: str | None = None
    position: str = "HFS"
    audit: str = NOT_AUDITED
    when: datetime = field(default_factory=lambda: datetime.now(UTC))
    study_uid: str = field(default_factory=new_uid)
    series_uid: str = field(default_factory=new_uid)
    frame_uid: str = field(default_factory=new_uid)

    @property
    def software(self) -> list[str]:
        """The text for Software Versions."""
        return [f"semsynth {__version__}", plain_text(" ".join(self.generator).strip() or "generator not recorded")]

    @property
    def derivation(self) -> str:
        """What was done, in words."""
        made = " ".join(self.generator).strip()
        by = f"by {made}" if made else "as its user says; no record of how it was made"
        weights = f", weights SHA-256 {self.weights}" if self.weights else ""
        written = f"written by semsynth {__version__}. Copies of training scans: {self.audit}."
        return plain_text(f"{NOTE} Made from a label map {by}{weights}; {written}", 1024)


def plain_text(text: str, longest: int = LONGEST) -> str:
    """A text of one line as DICOM takes it: no backslash, which separates values, and not too long."""
    return " ".join(shown(text).replace("\\", "/").split())[:longest]


def equipment(study: Study) -> Any:
    """The item of Contributing Equipment Sequence that names what made the volume."""
    name, _ = study.generator
    return hd.ContributingEquipment(
        MAKER, codes.DCM.SynthesizingEquipment, manufacturer_model_name=plain_text(name or MAKER),
        software_versions=study.software, contribution_datetime=study.when, contribution_description=study.derivation,
    )  # fmt: skip


def coded_item(code: Code) -> Dataset:
    """A code as an item of a sequence."""
    return hd.sr.CodedConcept.from_code(code)


def series_of(stack: Stack, pixels: Pixels, study: Study) -> list[Dataset]:
    """The images of a volume, in the order of their slices.

    Args:
        stack: the volume's grid; its data are stored values.
        pixels: rule by which stored values are to be read and shown; its data are not used.
        study: attributes that all files share.
    """
    base = _patient_and_study(study)
    for part in (_series(study), _equipment(study), _plane(stack), _values(pixels), _of_modality(study.modality)):
        base.update(part)
    return [_slice(base, stack, k) for k in range(stack.volume.data.shape[2])]


def _dataset(values: Mapping[str, Any]) -> Dataset:
    found = Dataset()
    for name, value in values.items():
        setattr(found, name, value)
    return found


def dates(study: Study) -> dict[str, str]:
    """The day and time of writing, by the names of the attributes that hold them."""
    day, time = study.when.strftime("%Y%m%d"), study.when.strftime("%H%M%S")
    kinds = ("InstanceCreation", "Study", "Series", "Content")
    return {f"{kind}Date": day for kind in kinds} | {f"{kind}Time": time for kind in kinds}


def _patient_and_study(study: Study) -> Dataset:
    return _dataset({
        "SpecificCharacterSet": "ISO_IR 192",
        "SyntheticData": "YES",
        "TimezoneOffsetFromUTC": "+0000",
        **dates(study),
        "PatientName": f"Synthetic^{study.patient}",
        "PatientID": study.patient,
        "IssuerOfPatientID": MAKER,
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientComments": NOTE,
        "StudyInstanceUID": study.study_uid,
        "StudyID": "1",
        "StudyDescription": "SYNTHETIC, no scan of a patient",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
    })  # fmt: skip


def _series(study: Study) -> Dataset:
    found = _dataset({
        "Modality": study.modality,
        "SeriesInstanceUID": study.series_uid,
        "SeriesNumber": 1,
        "SeriesDescription": plain_text(f"SYNTHETIC {study.modality} {' '.join(study.generator)}"),
        "PatientPosition": study.position,
        "FrameOfReferenceUID": study.frame_uid,
        "PositionReferenceIndicator": "",
    })  # fmt: skip
    if study.body_part is not None:
        found.BodyPartExamined = study.body_part
        found.AnatomicRegionSequence = [coded_item(getattr(codes.SCT, BODY_PARTS[study.body_part]))]
    return found


def _equipment(study: Study) -> Dataset:
    return _dataset({
        "Manufacturer": MAKER,
        "ManufacturerModelName": plain_text(study.generator[0] or MAKER),
        "SoftwareVersions": study.software,
        "ContributingEquipmentSequence": [equipment(study)],
        "DerivationDescription": study.derivation,
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    })  # fmt: skip


def _plane(stack: Stack) -> Dataset:
    columns, rows, slices = stack.spacing
    return _dataset({
        "ImageOrientationPatient": _decimals(stack.directions[:2].ravel()),
        "PixelSpacing": _decimals([rows, columns]),  # between rows first
        "SliceThickness": _decimals([slices])[0],
        "SpacingBetweenSlices": _decimals([slices])[0],
    })  # fmt: skip


def _values(pixels: Pixels) -> Dataset:
    found = _dataset({
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(pixels.data.dtype.kind == "i"),
        "WindowCenter": _decimals([centre for centre, _, _ in pixels.windows]),
        "WindowWidth": _decimals([width for _, width, _ in pixels.windows]),
        "WindowCenterWidthExplanation": [name for _, _, name in pixels.windows],
    })  # fmt: skip
    if pixels.rescaled:
        found.RescaleIntercept, found.RescaleSlope, found.RescaleType = "0", "1", "HU"
    if pixels.real_world is not None:
        slope, intercept = pixels.real_world
        low, high = int(pixels.data.min()), int(pixels.data.max())
        kind = "SS" if pixels.data.dtype.kind == "i" else "US"
        item = _dataset({
            "LUTExplanation": "Intensity of the synthetic volume's file",
            "LUTLabel": "INTENSITY",
            "RealWorldValueSlope": slope,
            "RealWorldValueIntercept": intercept,
            "MeasurementUnitsCodeSequence": [coded_item(codes.UCUM.NoUnits)],
        })  # fmt: skip
        item.add_new("RealWorldValueFirstValueMapped", kind, low)
        item.add_new("RealWorldValueLastValueMapped", kind, high)
        found.RealWorldValueMappingSequence = [item]
    return found


def _of_modality(modality: str) -> Dataset:
    """What MR and CT images must state of an acquisition, of which there was none."""
    if modality == "CT":
        return _dataset({
            "SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"], "KVP": None,
            "AcquisitionNumber": None,
        })  # fmt: skip
    return _dataset({
        "SOPClassUID": MRImageStorage, "ImageType": ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"],
        "ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "",
        "RepetitionTime": None, "EchoTime": None, "EchoTrainLength": None,
    })  # fmt: skip


def _slice(base: Dataset, stack: Stack, number: int) -> Dataset:
    found = copy.deepcopy(base)
    position = stack.position(number)
    found.SOPInstanceUID = new_uid()
    found.InstanceNumber = number + 1
    found.ImagePositionPatient = _decimals(position)
    found.SliceLocation = _decimals([float(position @ stack.directions[2])])[0]
    found.Columns, found.Rows = stack.volume.data.shape[:2]
    image = stack.volume.data[:, :, number].T
    found.PixelData = image.astype(image.dtype.newbyteorder("<")).tobytes()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    return found


def _decimals(values: Any) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]  # no minus zero
