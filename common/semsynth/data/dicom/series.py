"""One DICOM series as one volume: which one is meant, in which order its slices lie, whether they are a volume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...files import split_part
from ..findings import Finding, FindingError, warning
from ..headers import check_memory, damaged, fail
from .files import VARYING, Contents, Instance, nothing_here, scan, whole

MOST_LISTED = 20
GAP_SHARE = 0.05
"""Share of the distance between slices by which a single distance may differ from the usual one."""
DRIFT_SHARE = 0.1
"""The same for a slice's place against evenly spaced ones, which small differences of one sign add up to."""
TILT_VOXELS = 0.5
"""How far the last slice may be shifted within its plane, in voxels, before the volume counts as sheared."""
DIRECTION_TOLERANCE = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Item:
    """What a path is for: the images of a series, or one file of segments or ROIs with the name that is meant."""

    images: tuple[Instance, ...] = ()
    mask: Instance | None = None
    name: str | None = None

    @property
    def is_mask(self) -> bool:
        """Whether it is segments or ROIs."""
        return self.mask is not None


@dataclass(frozen=True)
class Stack:
    """A series in the order of its slices.

    Attributes:
        slices: along the normal of the plane, so that columns, rows and slices are right-handed.
        shape: columns, rows, slices.
        affine: ``(4, 4)`` voxel indices → mm, RAS+; the slices' step from their positions.
        notes: warnings.
    """

    slices: tuple[Instance, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    notes: tuple[Finding, ...] = ()


def chosen(path: str | Path) -> Item:
    """What a path is for; see :func:`semsynth.data.dicom.read_dicom_header`.

    Raises:
        FindingError: nothing, or more than one thing, that it can be for, or a damaged file.
    """
    place, part = split_part(path)
    found = scan(place)
    alone = place.is_file() and place.name.upper() != "DICOMDIR"
    if not found.series and not found.masks:
        whole(found)
        raise nothing_here(Path(path))
    if alone and found.series:
        _refuse_single_file(Path(path), next(iter(found.series.values()))[0])
    images = [same for uid, same in found.series.items() if part in (None, uid)]
    images = images or [same for same in found.series.values() if _same(part, same[0].description)]
    masks = [mask for mask in found.masks if part is None or any(_same(part, name) for name in mask.names)]
    if len(images) == 1:
        whole(found)
        return Item(images[0])
    if not images and len(masks) == 1:
        return Item(mask=masks[0], name=part)
    if not images and not masks and alone:
        return Item(mask=found.masks[0], name=part)  # whose names its reader lists
    whole(found)
    _refuse_choice(Path(path), found, images, masks)


def _refuse_choice(
    path: Path, found: Contents, images: Sequence[Sequence[Instance]], masks: Sequence[Instance]
) -> NoReturn:
    """Say what there is, where a path is for none of it (no ``images``, no ``masks``) or for more than one."""
    place, part = split_part(path)
    expected = "one" if part is None else f"one that is called {part!r}"
    if masks and not images:
        fail(path, "several segmentations", found="; ".join(_lines([], masks, place)), expected=expected,
             fix=f"name the file that is meant: {masks[0].path}#{part or masks[0].names[0]}")  # fmt: skip
    groups = list(images or found.series.values())
    lines = _lines(groups, () if images else found.masks, place)
    names = [group[0].description for group in groups]
    example = names[0] if names and names[0] and names.count(names[0]) == 1 else "UID"
    fail(path, "several DICOM series" if images else "no such DICOM series or segment", found="; ".join(lines),
         expected=expected, fix=f"put its description or UID behind a #, such as {place}#{example}")  # fmt: skip


def _same(part: str | None, name: str) -> bool:
    return part is not None and called(part) == called(name)


def called(name: str) -> str:
    """A name as it is compared: upper and lower case are the same, and so is ``#`` with what MONAI makes of it."""
    return name.strip().casefold().replace("::", "#")


def _refuse_single_file(path: Path, image: Instance) -> NoReturn:
    if image.frames > 1:
        _refuse_frames(path, image)
    fail(path, "single slice", found=f"one DICOM image {image.shape[0]} × {image.shape[1]}" if image.shape else "one",
         expected="the folder that holds all slices of its series", fix=f"give the folder {path.parent}")  # fmt: skip


def _refuse_frames(path: Path, image: Instance) -> NoReturn:
    fail(path, "Enhanced multi-frame DICOM", found=f"{image.frames} frames in {image.path.name}",
         expected="one file per slice", fix="convert it to NIfTI, with dcm2niix")  # fmt: skip


def listing(folder: str | Path) -> list[str]:
    """One line per series, SEG and RTSTRUCT below a folder: folder, description, modality, size, UID."""
    contents = scan(Path(folder))
    return _lines(contents.series.values(), contents.masks, Path(folder))


def _lines(series: Iterable[Sequence[Instance]], masks: Iterable[Instance], root: Path) -> list[str]:
    lines = [_line(images, root) for images in series]
    for mask in masks:
        where = "" if mask.path == root else f" in {mask.path.relative_to(root)}"
        lines.append(f"{mask.modality}{where} with {', '.join(repr(name) for name in mask.names) or 'no segment'}")
    more = [f"and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return lines[:MOST_LISTED] + more


def _line(images: Sequence[Instance], root: Path) -> str:
    first = images[0]
    try:
        stack = stack_of(root, Item(tuple(images)))
    except FindingError as reason:
        size = f"{len(images)} image{'s' * (len(images) > 1)}: {reason.finding.finding}"
    else:
        mm = np.linalg.norm(stack.affine[:3, :3], axis=0)
        size = f"{stack.shape[2]} slices of {stack.shape[0]} × {stack.shape[1]}, {_mm(mm)} mm"
    where = first.path.parent.relative_to(root) if first.path != root else Path()
    place = f" in {where}" if where.parts else ""
    return f"{first.description or 'without description'!r} ({first.modality}, {size}){place}, UID {first.series}"


def stack_of(path: str | Path, item: Item) -> Stack:
    """The slices of a series in order, and their grid.

    Raises:
        FindingError: colours, several frames per file, no positions or pixels, a single slice, slices of different
            size, spacing or direction, several images at one position, gaps, tilted slices.
    """
    path = Path(path)
    images, notes = _without_copies(path, item.images)
    _check_images(path, images)
    directions = np.array(images[0].directions, dtype=float).reshape(2, 3)
    normal = np.cross(*directions)
    positions = np.array([image.position for image in images], dtype=float)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    images, positions, along = tuple(images[i] for i in order), positions[order], along[order]
    spacing = images[0].spacing
    assert spacing is not None and images[0].shape is not None
    _check_distances(path, images, along)
    step = (positions[-1] - positions[0]) / (len(images) - 1)
    _check_tilt(path, step, normal, directions, spacing, len(images))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = directions[0] * spacing[0], directions[1] * spacing[1]
    lps[:3, 2], lps[:3, 3] = step, positions[0]
    return Stack(images, (*images[0].shape, len(images)), _LPS_TO_RAS @ lps, notes)


def _without_copies(path: Path, images: Sequence[Instance]) -> tuple[tuple[Instance, ...], tuple[Finding, ...]]:
    """The images without those of which another file has the same UID."""
    first = {image.uid: image for image in reversed(images)}
    copies = len(images) - len(first)
    kept = tuple(image for image in images if first[image.uid] is image)
    note = warning(path, "DICOM files twice", found=f"{copies} files with the UID of another one",
                   expected="every image once", fix="nothing to do: each is taken once")  # fmt: skip
    return kept, (note,) if copies else ()


def _check_images(path: Path, images: Sequence[Instance]) -> None:
    """Each image alone, then what all of them must share."""
    first = images[0]
    for image in images:
        if image.frames > 1:
            _refuse_frames(path, image)
        if image.samples != 1:
            fail(path, "not real numbers", found=f"colours ({image.photometric}) in {image.path.name}",
                 expected="one number per voxel", fix="give the scanner's own series, not a picture of it")  # fmt: skip
        if image.position is None or image.directions is None or image.spacing is None:
            fail(path, "no position of slices", found=f"{image.path.name} without ImagePositionPatient, "
                 "ImageOrientationPatient or PixelSpacing", expected="them in every file",
                 fix="export the scanner's own series again")  # fmt: skip
        if not image.pixels:
            fail(path, "no pixel data", found=f"{image.path.name} without PixelData", expected="an image in every file",
                 fix="export the series again")  # fmt: skip
        if image.table or image.photometric == "MONOCHROME1":
            kind = "a table of values" if image.table else "inverted grey levels (MONOCHROME1)"
            fail(path, "unusual DICOM values", found=f"{kind} in {image.path.name}",
                 expected="RescaleSlope and RescaleIntercept, MONOCHROME2",
                 fix="convert the series to NIfTI, with dcm2niix")  # fmt: skip
        _check_numbers(image)
    if len(images) == 1:
        fail(path, "single slice", found=f"one image, {first.path.name}", expected="a volume",
             fix="give the folder that holds all slices of the series")  # fmt: skip
    for what, name in (("directions", "direction"), ("shape", "size"), ("spacing", "voxel size")):
        values = np.array([getattr(image, what) for image in images], dtype=float)
        far = np.abs(values - values[0]).max(axis=1) > DIRECTION_TOLERANCE
        if far.any():
            where = images[int(np.argmax(far))]
            fail(path, f"slices of different {name}",
                 found=f"{int(far.sum())} of {len(images)} unlike {first.path.name} ({getattr(first, what)}), such as "
                 f"{where.path.name} ({getattr(where, what)})", expected=f"one {name} (a localiser has several)",
                 fix="give another series, or leave out the files that do not belong to the volume")  # fmt: skip


def _check_numbers(image: Instance) -> None:
    """Positions, directions and scaling are finite, and the directions unit vectors at a right angle."""
    assert image.position is not None and image.directions is not None and image.spacing is not None
    numbers = [*image.position, *image.directions, *image.spacing, image.slope, image.intercept]
    right = len(image.position) == 3 and len(image.directions) == 6 and bool(np.isfinite(numbers).all())
    if right:
        axes = np.array(image.directions).reshape(2, 3)
        right = bool(np.abs(axes @ axes.T - np.eye(2)).max() < 1e-2) and min(image.spacing) > 0 and image.slope != 0
    if not right:
        raise damaged(image.path, f"position {image.position}, orientation {image.directions}, spacing "
                      f"{image.spacing}, slope {image.slope}")  # fmt: skip


def _check_distances(path: Path, images: Sequence[Instance], along: NDArray[np.float64]) -> None:
    """One image per position, and no gap between them."""
    distances = np.diff(along)
    usual = float(np.median(distances))
    same = distances < max(GAP_SHARE * usual, 1e-3)
    if same.any():
        i = int(np.argmax(same))
        pairs = zip(VARYING, images[i].varying, images[i + 1].varying, strict=True)
        why = next((f"{name} {a} and {b}" for name, a, b in pairs if a != b), "no difference in their headers")
        fail(path, "several images at one position",
             found=f"{int(same.sum())} images too many, such as {images[i].path.name} and {images[i + 1].path.name} "
             f"({why})", expected="one 3D volume, not a 4D, multi-echo or cine series",
             fix="copy the files of the one volume that is meant into a folder of their own")  # fmt: skip
    off = np.abs(distances - usual) > GAP_SHARE * usual
    if off.any():
        i = int(np.argmax(off))
        fail(path, "gap between slices",
             found=f"{distances[i]:.4g} mm between {images[i].path.name} and {images[i + 1].path.name}, {usual:.4g} mm "
             f"between most ({int(off.sum())} of {len(distances)} distances differ)",
             expected="evenly spaced slices", fix="export the series again: slices may be missing")  # fmt: skip
    even = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / (len(along) - 1)
    drift = float(np.abs(along - even).max())
    if drift > DRIFT_SHARE * usual:
        fail(path, "unevenly spaced slices", found=f"up to {drift:.3g} mm from evenly spaced ones of {usual:.4g} mm",
             expected=f"at most {DRIFT_SHARE:.0%} of that",
             fix="resample it to even slices, with dcm2niix")  # fmt: skip


def _check_tilt(
    path: Path, step: NDArray[Any], normal: NDArray[Any], directions: NDArray[Any], spacing: Sequence[float], count: int
) -> None:
    """Slices stacked along their normal: no shear, as a tilted gantry makes it."""
    aside = np.abs(directions @ step) * (count - 1) / np.array(spacing)
    if aside.max() > TILT_VOXELS:
        angle = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
        fail(path, "tilted slices (gantry tilt)", found=f"slices stacked {angle:.1f}° away from their normal",
             expected="slices stacked along their normal", fix="convert it with dcm2niix, which corrects the tilt",
             )  # fmt: skip


def read_slices(stack: Stack) -> NDArray[Any]:
    """``(columns, rows, slices)`` after slope and intercept: int16 or int32 where all values are whole, else float32.

    Raises:
        FindingError: for a file whose pixels cannot be read.
    """
    import SimpleITK as sitk  # noqa: N813 - its usual name

    whole_numbers = all(float(s.slope).is_integer() and float(s.intercept).is_integer() for s in stack.slices)
    columns, rows, count = stack.shape
    result_type = np.dtype(np.int32 if whole_numbers else np.float32)
    check_memory(stack.slices[0].path.parent, stack.shape, math.prod(stack.shape) * result_type.itemsize)
    result = np.empty((count, rows, columns), dtype=result_type)
    for i, image in enumerate(stack.slices):
        try:  # SimpleITK applies slope and intercept of every file by itself, and knows all usual compressions
            result[i] = sitk.GetArrayFromImage(sitk.ReadImage(str(image.path))).reshape(rows, columns)
        except (RuntimeError, ValueError) as reason:
            raise damaged(image.path, str(reason).strip().splitlines()[-1]) from reason
    if whole_numbers and result.min() >= np.iinfo(np.int16).min and result.max() <= np.iinfo(np.int16).max:
        result = result.astype(np.int16)
    return result.transpose(2, 1, 0)


def _mm(values: Sequence[float] | NDArray[Any]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
