"""A label map as a DICOM SEG with coded segments, which refers to the series that was made from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ... import __version__
from ...data.classes import plain_name
from ...data.label_files import colour_of
from .codes import Coded, coded
from .images import MAKER, Study, coded_item, dates, equipment, new_uid, plain_text
from .settings import DicomSettings
from .sources import Source, drawn_by_expert

_TYPES = hd.seg.SegmentAlgorithmTypeValues
_ABOUT = {
    "case": "label map of a scan; the series was made from it",
    "morphed": "label map of a scan, deformed; the series was made from it",
    "generated": "label map from nothing; the series was made from it",
}
"""Content Description, of at most 64 characters."""


def segments_of(source: Source, data: NDArray[np.integer]) -> dict[int, str]:
    """The classes that become segments, index → name: those that are named, and those that the map holds."""
    held = np.flatnonzero(np.bincount(data.ravel())).tolist()
    return {index: source.names.get(index) or f"class {index}" for index in sorted({*source.names, *held} - {0})}


def uncoded(names: Mapping[int, str]) -> list[str]:
    """Names of classes that have no codes of their own, and are coded as "Tissue"."""
    return [name for name in names.values() if not coded(name).known]


def segmentation_of(
    images: Sequence[Dataset], data: NDArray[np.integer], source: Source, study: Study, settings: DicomSettings
) -> Any:
    """A binary SEG of the classes of a label map.

    Args:
        images: images of the series, in the order of slices.
        data: class indices ``(columns, rows, slices)`` on their grid.
        source: volume whose map it is, with what is known of it.
        study: attributes that all files of the volume share.
        settings: settings, with the author of the maps of real cases.
    """
    names = segments_of(source, data)
    numbers = np.zeros(int(data.max()) + 1, dtype=np.uint16 if len(names) > 255 else np.uint8)
    for number, index in enumerate(names, 1):
        if index < len(numbers):
            numbers[index] = number
    described = [_segment(number, index, name, source, settings)
                 for number, (index, name) in enumerate(names.items(), 1)]  # fmt: skip
    make: Any = hd.seg.Segmentation  # it takes several versions, which its annotations do not say
    seg = make(
        images, np.ascontiguousarray(numbers[data].transpose(2, 1, 0)), hd.seg.SegmentationTypeValues.BINARY, described,
        new_uid(), 2, new_uid(), 1, MAKER, plain_text(study.generator[0] or MAKER), study.software, "none",
        content_label="LABEL_MAP", content_description=_ABOUT[source.origin],
        series_description=plain_text(f"SYNTHETIC label map of {' '.join(study.generator)}"),
    )  # fmt: skip
    seg.SyntheticData = "YES"
    seg.TimezoneOffsetFromUTC = "+0000"
    for name, value in dates(study).items():
        setattr(seg, name, value)
    written_by = seg.ContributingEquipmentSequence[-1]  # highdicom; the first claims that the series was acquired
    written_by.ContributionDateTime = study.when.strftime("%Y%m%d%H%M%S")
    seg.ContributingEquipmentSequence = [equipment(study), written_by]
    return seg


def _segment(number: int, index: int, name: str, source: Source, settings: DicomSettings) -> Any:
    found: Coded = coded(name)
    kind, algorithm = _algorithm(name, source, settings)
    segment: Any = hd.seg.SegmentDescription(
        number, plain_text(name) or f"class {index}", found.category, found.kind, kind,
        algorithm_identification=algorithm,
        anatomic_regions=None if found.region is None else [found.region],
        display_color=hd.color.CIELabColor.from_rgb(*colour_of(index)),
    )  # fmt: skip
    if found.side is not None:
        modified = segment.AnatomicRegionSequence[0] if found.region is not None else None
        if modified is None:
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                coded_item(found.side)
            ]
        else:
            modified.AnatomicRegionModifierSequence = [coded_item(found.side)]
    return segment


def _algorithm(name: str, source: Source, settings: DicomSettings) -> tuple[Any, Any]:
    """How a segment came to be: Segment Algorithm Type, and the algorithm where there was one."""
    plain = plain_name(name)
    expert = drawn_by_expert(source, settings)
    if source.origin == "generated":
        return _TYPES.AUTOMATIC, _identified("label map generator", codes.cid7162.ArtificialIntelligence)
    if re.fullmatch(r"tissue( \d+)?", plain):
        return _TYPES.AUTOMATIC, _identified("k-means of intensities", codes.cid7162.ClusterAnalysis)
    if not expert:
        return _TYPES.AUTOMATIC, _identified(settings.drawn_by, codes.cid7162.ArtificialIntelligence, "not recorded")
    if plain == "wall" and source.derived_wall:
        return _TYPES.AUTOMATIC, _identified("wall around the cavity", codes.cid7162.MorphologicalOperations)
    if source.origin == "morphed":
        return _TYPES.SEMIAUTOMATIC, _identified("deformation of an expert's map", codes.cid7162.DeformableModels)
    return _TYPES.MANUAL, None


def _identified(name: str, family: Code, version: str = f"semsynth {__version__}") -> Any:
    return hd.AlgorithmIdentificationSequence(plain_text(name), family, version)
