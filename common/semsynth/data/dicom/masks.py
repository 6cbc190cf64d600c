"""DICOM segmentations on the grid of the series that they were drawn on: SEG by highdicom, RTSTRUCT by own means.

Contours become voxels in a few lines here: ``rt-utils`` needs OpenCV for what scikit-image does, ``platipy`` needs
pydicom 2, and ``dcmrtstruct2nii`` calls what pydicom 3 no longer has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import grid_points_in_poly

from ...files import stamp
from ..findings import Finding, FindingError, error, warning
from ..headers import Header, fail
from .files import RTSTRUCT, Instance, scan, whole
from .series import Item, Stack, called, stack_of

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GRID_TOLERANCE = 1e-3
PLANE_VOXELS = 0.5
"""How far a contour may lie from the middle of its slice, in slices, and from being parallel to it."""
EDGE_DIGITS = 3
"""Contours are compared with voxel centres in thousandths of a voxel: files round their coordinates."""
Mask = tuple[Header, NDArray[np.uint8]]


def read_mask(path: Path, item: Item) -> Mask:
    """The header and ``(columns, rows, slices)`` voxels of a segment or ROI; of a SEG without a name all segments.

    On the grid of the series that it refers to where that lies in the file's folder or the one above; of a SEG else on
    its own.

    Raises:
        FindingError: no such name or several, segments that overlap where all are asked for, an RTSTRUCT whose images
            are not found or do not fit it.
    """
    assert item.mask is not None
    images = _images_of(item.mask)
    stamps = tuple(stamp(image.path) for image in images.slices) if images else ()
    header, data = _read(path, item.mask, item.name, stamp(item.mask.path), stamps)
    return header, data.copy()  # the kept one is for the next who asks


@lru_cache(maxsize=4)
def _read(path: Path, mask: Instance, name: str | None, _own: tuple[int, int], _images: tuple[Any, ...]) -> Mask:
    images = _images_of(mask)
    try:
        data, affine, notes = (_contours if mask.kind == RTSTRUCT else _segments)(path, mask, name, images)
    except FindingError:
        raise
    except Exception as reason:  # highdicom and pydicom raise all kinds of errors on what they do not take
        fail(path, f"{mask.modality} cannot be read", found=f"{type(reason).__name__}: {reason}",
             expected=f"a {mask.modality} as highdicom and pydicom read it",
             fix="export it again, or convert it to NIfTI or .seg.nrrd with 3D Slicer")  # fmt: skip
    return Header(path, data.shape, affine, notes=notes), data  # type: ignore[arg-type]


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


def _numbers(path: Path, mask: Instance, names: dict[int, str], wanted: str | None, *, one: bool) -> list[int]:
    """The numbers of the segments of a name; without one all, or the only one."""
    same = [
        number for number, name in names.items()
        if wanted is None or called(name) == called(wanted)
    ]  # fmt: skip
    if len(same) == 1 or (wanted is None and same and not one):
        return same
    listed = ", ".join(repr(name) for name in names.values()) or "none"
    first = next(iter(names.values()), "NAME")
    fail(path, "which segment" if same else "no such segment", found=f"{mask.modality} with {listed}",
         expected="the name of one" if wanted is None else f"one that is called {wanted!r}",
         fix=f"name it behind a #: {mask.path.name}#{first}")  # fmt: skip


def _segments(
    path: Path, mask: Instance, name: str | None, images: Stack | None
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[Finding, ...]]:
    """Segments of a SEG: one as 0/1, several by their numbers."""
    import highdicom

    seg: Any = highdicom.seg.segread(mask.path)
    names = {int(n): str(seg.get_segment_description(n).segment_label) for n in seg.segment_numbers}
    numbers = _numbers(path, mask, names, name, one=False)
    fractional = str(seg.segmentation_type.value) == "FRACTIONAL"
    if fractional and len(numbers) > 1:
        numbers = _numbers(path, mask, names, name, one=True)
    try:
        volume = seg.get_volume(segment_numbers=numbers, combine_segments=not fractional)
    except RuntimeError as reason:
        if "overlap" not in str(reason):
            raise
        listed = ", ".join(names.values())
        fail(path, "segments overlap", found=listed, expected="one class per voxel",
             fix=f"name one of them behind a #: {mask.path.name}#{names[numbers[0]]}")  # fmt: skip
    if fractional:
        volume = volume.with_array((volume.array[..., 0] >= 0.5).astype(np.uint8))
    if images is not None:
        volume = _on_grid(path, volume, images)
    affine = np.asarray(_LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]], dtype=np.float64)
    data = np.array(volume.array, dtype=np.uint8).transpose(2, 1, 0)
    several = len(numbers) > 1
    note = warning(path, "several segments", found=", ".join(f"{n} {names[n]}" for n in numbers),
                   expected="a label map, or the name of one segment",
                   fix=f"used as a label map by these numbers; name one for a mask: {mask.path.name}#"
                   f"{names[numbers[0]]}")  # fmt: skip
    return data if several else (data > 0).astype(np.uint8), affine, (note,) if several else ()


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


def _contours(
    path: Path, mask: Instance, name: str | None, images: Stack | None
) -> tuple[NDArray[np.uint8], NDArray[np.float64], tuple[Finding, ...]]:
    """One ROI of an RTSTRUCT: voxels whose centres lie within its contours or on them."""
    import pydicom

    if images is None:
        fail(path, "no images to an RTSTRUCT", found=f"not the series {mask.refers_to} in its folder or the one above",
             expected="the series that its contours were drawn on",
             fix="put the folder of that series beside the RTSTRUCT")  # fmt: skip
    tags: Any = pydicom.dcmread(mask.path)
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in tags.StructureSetROISequence}
    (number,) = _numbers(path, mask, names, name, one=True)
    contours = [
        np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        for roi in tags.get("ROIContourSequence") or []
        if int(roi.ReferencedROINumber) == number
        for contour in roi.get("ContourSequence") or []
        if str(contour.get("ContourGeometricType", "")).startswith("CLOSED_PLANAR") and len(contour.ContourData) >= 3
    ]
    if not contours:
        fail(path, "no contours", found=f"ROI {names[number]!r} without closed contours", expected="some",
             fix="choose another ROI, or leave the case out")  # fmt: skip
    to_voxels = np.linalg.inv(_LPS_TO_RAS @ images.affine)
    flat = defaultdict(list)
    for contour in contours:
        points = contour @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        level = round(float(points[:, 2].mean()))
        if np.abs(points[:, 2] - level).max() > PLANE_VOXELS or not 0 <= level < images.shape[2]:
            raise FindingError(_beside(path, names[number], points, images))
        flat[level].append(points[:, :2].round(EDGE_DIGITS))
    data = np.zeros(images.shape, dtype=np.uint8)
    for level, polygons in flat.items():
        data[:, :, level] = _filled(polygons, images.shape[:2])
    return data, images.affine, _missing_levels(path, names[number], flat)


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
    missing = max(levels) - min(levels) + 1 - len(levels)
    note = warning(path, "slices without a contour", found=f"{missing} between the first and the last of ROI {name!r}",
                   expected="a contour in each", fix="used as it is: nothing is filled in between")  # fmt: skip
    return (note,) if missing else ()
