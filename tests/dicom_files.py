"""DICOM series, SEG and RTSTRUCT files of small volumes, as a scanner or a workstation writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENT = "Doe^Jane"


def write_series(
    folder: Path,
    data: np.ndarray,
    affine: np.ndarray,
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    modality: str = "MR",
    description: str = "LGE",
    series: str | None = None,
    study: str | None = None,
    frame: str | None = None,
    name: str = "IM{:04d}",
    order: Sequence[int] | None = None,
    change: Callable[[Any, int], None] | None = None,
) -> str:
    """Write stored values ``(columns, rows, slices)`` with a RAS+ affine, one file per slice; gives the series' UID.

    ``order`` says which slice stands in which file; ``change`` gets the dataset of every slice before it is written.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = series or generate_uid(), study or generate_uid(), frame or generate_uid()
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = (lps[:3, :2] / spacing[:2]).T.ravel()
    for file, k in enumerate(range(data.shape[2]) if order is None else order):
        ds = Dataset()
        ds.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        ds.SOPInstanceUID = generate_uid()
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT, "123456", "19500101", "F"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", "", "", ""
        ds.Modality, ds.SeriesDescription, ds.SeriesNumber, ds.InstanceNumber = modality, description, 1, file + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
        ds.ImagePositionPatient = [f"{x:.9g}" for x in (lps @ [0, 0, k, 1])[:3]]
        ds.ImageOrientationPatient = [f"{x:.9g}" for x in directions]
        ds.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
        ds.SliceThickness = "99"  # not the distance between slices
        ds.Columns, ds.Rows = data.shape[:2]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.PixelRepresentation = int(data.dtype.kind == "i")
        ds.RescaleSlope, ds.RescaleIntercept = f"{slope:.9g}", f"{intercept:.9g}"
        ds.PixelData = np.ascontiguousarray(data[:, :, k].T).tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if change is not None:
            change(ds, k)
        ds.save_as(folder / name.format(file), enforce_file_format=True)
    return str(series)


def write_seg(path: Path, images: Path, masks: Mapping[str, np.ndarray], *, fractional: bool = False) -> Path:
    """A SEG of masks ``(columns, rows, slices)``, drawn on the series of a folder, as highdicom writes it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    source = in_order(images)
    described = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.AnatomicalStructure, codes.SCT.Heart, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in enumerate(masks, start=1)
    ]
    pixels = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    kind = hd.seg.SegmentationTypeValues.FRACTIONAL if fractional else hd.seg.SegmentationTypeValues.BINARY
    seg = hd.seg.Segmentation(
        source, pixels.astype(np.float32 if fractional else np.uint8), kind, described, hd.UID(), 100, hd.UID(), 1,
        "maker", "model", "1", "serial",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def write_rtstruct(path: Path, images: Path, rois: Mapping[str, Sequence[np.ndarray]]) -> Path:
    """An RTSTRUCT of contours ``(points, 3)`` in mm, LPS+, of a series' patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    source = in_order(images)[0]
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    ds.PatientName, ds.StudyInstanceUID, ds.SeriesInstanceUID = PATIENT, source.StudyInstanceUID, generate_uid()
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            item.ContourData = [f"{x:.9g}" for x in np.ravel(points)]
            drawn.ContourSequence.append(item)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def in_order(folder: Path) -> list[Any]:
    """The datasets of a folder of one series, by position along their normal."""
    import pydicom

    found = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    found = [ds for ds in found if "ImagePositionPatient" in ds]
    axes = np.array(found[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    return sorted(found, key=lambda ds: float(np.cross(*axes) @ np.array(ds.ImagePositionPatient, dtype=float)))
