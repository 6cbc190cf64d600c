"""DICOM segmentations on the grid of the series that they were drawn on: SEG by highdicom, RTSTRUCT by own means.

Segments and ROIs go by their names, as those of 3D Slicer do (:mod:`semsynth.data.segments`).

Contours become voxels in a few lines here: ``rt-utils`` needs OpenCV for what scikit-image does, ``platipy`` needs
pydicom 2, and ``dcmrtstruct2nii`` calls what pydicom 3 no longer has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import grid_points_in_poly

from ...files import stamp
from ..findings import Finding, FindingError, error, warning
from ..headers import Header, check_memory, fail
from ..segments import EVERYTHING, Segment, Segmentation, Selection, choose
from .files import RTSTRUCT, Instance, scan, whole
from .series import Item, Stack, called, stack_of

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GRID_TOLERANCE = 1e-3
PLANE_VOXELS = 0.5
"""How far a contour may lie from the middle of its slice, in slices, and from being parallel to it."""
EDGE_DIGITS = 3
"""Contours are compared with voxel centres in thousandths of a voxel: files round their coordinates."""
Found = tuple[Segmentation, NDArray[Any], NDArray[np.float64], tuple[Finding, ...]]


def read_mask(path: Path, item: Item, selection: Selection = EVERYTHING) -> tuple[Header, NDArray[Any]]:
    """The header of segments or ROIs, and their voxels by the values and layers that its ``segments`` say.

    Voxels are ``(columns, rows, slices)``, or ``(layers, columns, rows, slices)`` where segments overlap. Their grid is
    that of the series that the file refers to, in the file's folder or the one above; of a SEG without it its own.

    Raises:
        FindingError: no such name or several, several segments where one mask is wanted, an RTSTRUCT whose images are
            not found or do not fit it.
    """
    assert item.mask is not None
    if item.name is not None:
        same = [name for name in item.mask.names if called(name) == called(item.name)]
        selection = Selection((same[0] if same else item.name,), mask=True)
    images = _images_of(item.mask)
    stamps = tuple(stamp(image.path) for image in images.slices) if images else ()
    header, data = _read(path, item.mask, selection, stamp(item.mask.path), stamps)
    return header, data.copy()  # the kept one is for the next who asks


@lru_cache(maxsize=4)
def _read(
    path: Path, mask: Instance, selection: Selection, _own: tuple[int, int], _images: tuple[Any, ...]
) -> tuple[Header, NDArray[Any]]:
    images = _images_of(mask)
    try:
        found = (_contours if mask.kind == RTSTRUCT else _segments)(path, mask, selection, images)
    except FindingError:
        raise
    except Exception as reason:  # highdicom and pydicom raise all kinds of errors on what they do not take
        fail(path, f"{mask.modality} cannot be read", found=f"{type(reason).__name__}: {reason}",
             expected=f"a {mask.modality} as highdicom and pydicom read it",
             fix="export it again, or convert it to NIfTI or .seg.nrrd with 3D Slicer")  # fmt: skip
    segments, data, affine, notes = found
    shape: Any = data.shape[-3:]
    return Header(path, shape, affine, notes=notes, segments=segments, selection=selection), data


def _images_of(mask: Instance) -> Stack | None:
    """The series that a file of segments refers to, from its folder or the one above."""
    folder = mask.path.absolute().parent
    for place in (folder, folder.parent) if mask.refers_to else ():
        found = scan(place)
        images = found.series.get(str(mask.refers_to))
        if images:
            whole(found)
            return stack_of(images[0].path.parent, Item(images))
    return None


def _choose(
    path: Path, mask: Instance, segments: tuple[Segment, ...], selection: Selection
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    if not segments:
        fail(path, "no segments", found=f"{mask.modality} without any", expected="one, or more",
             fix="export it again, or leave the case out")  # fmt: skip
    return choose(mask.path, segments, selection)


def _stacked(
    path: Path, segments: tuple[Segment, ...], parts: Iterable[tuple[Segment, NDArray[np.bool_]]]
) -> tuple[Segmentation, NDArray[Any]]:
    """Segments as values, each in the first layer in which it meets no other."""
    kind = _smallest(segments)
    layers: list[NDArray[Any]] = []
    placed: dict[int, Segment] = {}
    for segment, mask in parts:
        level = next((i for i, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if level == len(layers):
            check_memory(path, mask.shape, mask.size)
            layers.append(np.zeros(mask.shape, kind))
        layers[level][mask] = segment.value
        placed[segment.value] = replace(segment, layer=level)
    whole = tuple(placed.get(segment.value, segment) for segment in segments)
    several = len(layers) > 1
    segmentation = Segmentation(whole, tuple(placed.values()), 0 if several else None)
    return segmentation, np.stack(layers) if several else layers[0]


def _smallest(segments: tuple[Segment, ...]) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if max(segment.value for segment in segments) < 256 else np.uint16


def _segments(path: Path, mask: Instance, selection: Selection, images: Stack | None) -> Found:
    """Segments of a SEG by their numbers."""
    import highdicom

    claimed = (*(mask.shape or (1, 1)), mask.frames)
    check_memory(path, claimed, math.prod(claimed))
    seg: Any = highdicom.seg.segread(mask.path)
    labels = {int(n): str(seg.get_segment_description(n).segment_label) for n in seg.segment_numbers}
    segments = tuple(Segment(name or f"Segment_{number}", number, 0) for number, name in labels.items())
    chosen, notes = _choose(path, mask, segments, selection)
    fractional = str(seg.segmentation_type.value) == "FRACTIONAL"

    def volume_of(numbers: list[int]) -> Any:
        volume = seg.get_volume(segment_numbers=numbers, combine_segments=not fractional)
        if fractional:
            volume = volume.with_array((volume.array[..., 0] >= 0.5).astype(np.uint8))
        return volume if images is None else _on_grid(path, volume, images)

    volume = None if fractional else _unless_overlapping(volume_of, chosen)
    if volume is not None:
        segmentation = Segmentation(segments, chosen)
        data = volume.array.astype(_smallest(segments)).transpose(2, 1, 0)
    else:
        volume = volume_of([chosen[0].value])  # for its grid, which all share
        parts = ((s, volume_of([s.value]).array.transpose(2, 1, 0) > 0) for s in chosen)
        segmentation, data = _stacked(path, segments, parts)
    affine = np.asarray(_LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]], dtype=np.float64)
    return segmentation, data, affine, notes


def _unless_overlapping(volume_of: Callable[[list[int]], Any], chosen: tuple[Segment, ...]) -> Any:
    """All segments in one volume; None where they overlap."""
    try:
        return volume_of(sorted(segment.value for segment in chosen))
    except RuntimeError as reason:
        if "overlap" not in str(reason):
            raise
        return None


def _on_grid(path: Path, volume: Any, images: Stack) -> Any:
    """A SEG holds the slices that have segments: the same voxels with the others around them."""
    import highdicom

    lps = _LPS_TO_RAS @ images.affine
    grid = highdicom.VolumeGeometry(
        lps[:, [2, 1, 0, 3]], images.shape[::-1], "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid
    )
    try:
        moved = volume.match_geometry(grid, tol=GRID_TOLERANCE)
    except RuntimeError:
        return volume  # another grid: whoever compares it with the image says so
    if np.count_nonzero(moved.array) != np.count_nonzero(volume.array):
        fail(path, "segment outside of its images", found="voxels beyond the series that it refers to",
             expected="a segment within them", fix="check that all slices of the series are there")  # fmt: skip
    return moved


def _contours(path: Path, mask: Instance, selection: Selection, images: Stack | None) -> Found:
    """ROIs of an RTSTRUCT, from 1 on in the file's order: voxels whose centres lie within contours or on them."""
    import pydicom

    if images is None:
        fail(path, "no images to an RTSTRUCT", found=f"not the series {mask.refers_to} in its folder or the one above",
             expected="the series that its contours were drawn on",
             fix="put the folder of that series beside the RTSTRUCT")  # fmt: skip
    tags: Any = pydicom.dcmread(mask.path)
    rois = list(tags.get("StructureSetROISequence") or [])
    segments = tuple(Segment(str(roi.get("ROIName", "")) or f"ROI_{i}", i, 0) for i, roi in enumerate(rois, 1))
    chosen, notes = _choose(path, mask, segments, selection)
    told = list(notes)

    def parts() -> Iterator[tuple[Segment, NDArray[np.bool_]]]:
        for segment in chosen:
            contours = _contours_of(tags, int(rois[segment.value - 1].ROINumber))
            if not contours:
                about = {"found": f"ROI {segment.name!r} without closed contours", "expected": "some"}
                if selection.mask:
                    fail(path, "no contours", **about, fix="choose another ROI, or leave the case out")
                told.append(warning(path, "no contours", **about, fix="nothing to do: no voxel has its class"))
            levels = _levels(path, segment.name, contours, images)
            told.extend(_missing_levels(path, segment.name, levels))
            data = np.zeros(images.shape, dtype=bool)
            for level, polygons in levels.items():
                data[:, :, level] = _filled(polygons, images.shape[:2])
            yield segment, data

    segmentation, data = _stacked(path, segments, parts())
    return segmentation, data, images.affine, tuple(told)


def _contours_of(tags: Any, number: int) -> list[NDArray[np.float64]]:
    """The closed contours of an ROI, ``(points, 3)`` each, mm, LPS+."""
    return [
        np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        for roi in tags.get("ROIContourSequence") or []
        if int(roi.ReferencedROINumber) == number
        for contour in roi.get("ContourSequence") or []
        if str(contour.get("ContourGeometricType", "")).startswith("CLOSED_PLANAR") and len(contour.ContourData) >= 3
    ]


def _levels(
    path: Path, name: str, contours: list[NDArray[np.float64]], images: Stack
) -> dict[int, list[NDArray[np.float64]]]:
    """Slice → its contours, ``(points, 2)`` each, in voxels.

    Raises:
        FindingError: for contours that do not lie in slices.
    """
    to_voxels = np.linalg.inv(_LPS_TO_RAS @ images.affine)
    flat = defaultdict(list)
    for contour in contours:
        points = contour @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        level = round(float(points[:, 2].mean()))
        if np.abs(points[:, 2] - level).max() > PLANE_VOXELS or not 0 <= level < images.shape[2]:
            raise FindingError(_beside(path, name, points, images))
        flat[level].append(points[:, :2].round(EDGE_DIGITS))
    return flat


def _filled(polygons: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Inside of an odd number of the polygons (one within another is a hole), or on an edge of any."""
    inside, edge = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for polygon in polygons:
        _mark_outline(edge, polygon)
        low = np.clip(np.floor(polygon.min(axis=0)).astype(int), 0, shape)
        high = np.clip(np.ceil(polygon.max(axis=0)).astype(int) + 1, 0, shape)
        if len(polygon) < 3 or (high <= low).any():
            continue
        box = (slice(low[0], high[0]), slice(low[1], high[1]))
        kind = grid_points_in_poly(tuple(high - low), polygon - low, binarize=False)
        inside[box] ^= kind == 1
        edge[box] |= kind > 1
    return inside | edge


def _mark_outline(edge: NDArray[np.bool_], polygon: NDArray[np.float64]) -> None:
    """Mark voxels along sides that go from centre to centre, as programs write that turn masks into contours.

    Those may be single voxels or lines there and back, which have no inside.
    """
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (start % 1).any() or (end % 1).any():
            continue
        first, way = start.astype(int), (end - start).astype(int)
        count = max(math.gcd(*map(int, way)), 1)
        points = first + np.arange(count + 1)[:, None] * (way // count)
        edge[tuple(points[((points >= 0) & (points < edge.shape)).all(axis=1)].T)] = True


def _beside(path: Path, name: str, points: NDArray[np.float64], images: Stack) -> Finding:
    return error(path, "contours do not lie in the slices",
                 found=f"a contour of ROI {name!r} at slices {points[:, 2].min():.2f} to {points[:, 2].max():.2f}",
                 expected=f"flat contours in the middle of slices 0 to {images.shape[2] - 1}",
                 fix="check that all slices of the series are there, and that it is the one drawn on")  # fmt: skip


def _missing_levels(path: Path, name: str, levels: dict[int, Any]) -> tuple[Finding, ...]:
    missing = max(levels) - min(levels) + 1 - len(levels) if levels else 0
    note = warning(path, "slices without a contour", found=f"{missing} between the first and the last of ROI {name!r}",
                   expected="a contour in each", fix="used as it is: nothing is filled in between")  # fmt: skip
    return (note,) if missing else ()
