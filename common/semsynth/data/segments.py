"""Segments by their names, as 3D Slicer stores them in ``.seg.nrrd`` files, and what of a label file becomes a class.

DICOM SEG and RTSTRUCT go by the same rules (:mod:`semsynth.data.dicom.masks`).

The header keys are those of 3D Slicer's ``vtkMRMLSegmentationStorageNode``: ``Segment0_Name``, ``Segment0_LabelValue``,
``Segment0_Layer`` … A file whose segments overlap has several layers (4D, the axis of kind ``list``). A file may be
cropped to its segments; its origin is then that of the cropped grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .classes import plain_name
from .findings import Finding, FindingError, error, warning
from .label_values import listed, rounded

_KEY = re.compile(r"Segment(\d+)_(ID|Name|LabelValue|Layer)")
_LISTS = ("list", "vector")
# MONAI turns the # of a bundle's options into ::
_CHOSEN = re.compile(r"(.+\.(?:nrrd|nii|nii\.gz))(?:#|::)([^/]+)", re.IGNORECASE)
SAME_PLACE = 0.01
"""Grids whose voxels lie apart by less than this share of a voxel are one."""


@dataclass(frozen=True)
class Selection:
    """What is taken of a file of labels, and which class it becomes.

    Attributes:
        names: names of segments that become classes 1, 2, …; empty takes all of them in the file's order. Files without
            named segments are read by their values.
        values: values of voxels that become classes 1, 2, … in files without named segments; empty takes values as they
            are.
        mask: True where one structure is wanted: the only segment, or the one that is named; of a file without named
            segments the one value, all others being 0.
    """

    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    mask: bool = False


EVERYTHING, MASK = Selection(), Selection(mask=True)


@dataclass(frozen=True)
class Segment:
    """One segment: the voxels of a layer that have its value."""

    name: str
    value: int
    layer: int


@dataclass(frozen=True)
class Segmentation:
    """The segments of a file.

    Attributes:
        segments: all of them, in the file's order.
        chosen: those that become classes 1, 2, …
        list_axis: the axis of the array that counts the layers; None where there is one layer.
    """

    segments: tuple[Segment, ...]
    chosen: tuple[Segment, ...]
    list_axis: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments that become classes, from 1 on."""
        return tuple(segment.name for segment in self.chosen)

    def class_map(self, data: NDArray[Any], path: Path) -> tuple[NDArray[Any], tuple[Finding, ...]]:
        """The file's array → class indices ``(H, W, D)``, and what is to be known of them.

        Where segments overlap the later class wins, as where 3D Slicer exports segments in that order.

        Raises:
            FindingError: for voxels of a value that no segment has.
        """
        layers = data[np.newaxis] if self.list_axis is None else np.moveaxis(data, self.list_axis, 0)
        self._check_values(layers, path)
        result = np.zeros(layers.shape[1:], np.uint8 if len(self.chosen) < 256 else np.uint16, order="F")
        several = np.zeros(result.shape if len(layers) > 1 else (), bool, order="F")
        for number, layer in enumerate(layers):
            table = {s.value: index for index, s in enumerate(self.chosen, 1) if s.layer == number}
            classes = _mapped(layer, table, result.dtype)
            if len(layers) > 1:
                several |= (result > 0) & (classes > 0)
            np.maximum(result, classes, out=result)
        overlap = np.count_nonzero(several)
        if not overlap:
            return result, ()
        return result, (
            warning(path, "segments overlap", found=f"{overlap} voxels in several", expected="one segment per voxel",
                    fix=f"the later class wins, in the order {_listed(self.names)}; if that is wrong, undo the overlap "
                    "in 3D Slicer"),
        )  # fmt: skip

    def _check_values(self, layers: NDArray[Any], path: Path) -> None:
        for number, layer in enumerate(layers):
            known = {0, *(segment.value for segment in self.segments if segment.layer == number)}
            others = sorted(set(_values(layer)) - known)
            if others:
                raise FindingError(error(
                    path, "voxels without a segment", found=f"the values {_listed(f'{v:g}' for v in others)}",
                    expected=f"those of the segments ({_listed(f'{v:g}' for v in sorted(known))})",
                    fix="open the file in 3D Slicer, look at it and save it again",
                ))  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """Where a file's grid lies in a larger or smaller one with the same voxels.

    Attributes:
        stored: shape of the file's array.
        axes: nibabel's orientation transform from the file's axes to the other grid's.
        start: place of the first voxel, in voxels of the other grid; negative outside of it.
    """

    stored: tuple[int, ...]
    axes: tuple[tuple[float, float], ...]
    start: tuple[int, ...]

    def place(self, data: NDArray[Any], shape: Sequence[int], path: Path) -> NDArray[Any]:
        """The same voxels in an array of ``shape``, with 0 around.

        Raises:
            FindingError: where labelled voxels lie outside.
        """
        turned = nib.orientations.apply_orientation(data.reshape(self.stored, order="F"), np.asarray(self.axes))
        result = np.zeros(tuple(shape), turned.dtype, order="F")
        inner = tuple(slice(max(-s, 0), max(min(n - s, m), 0)) for s, n, m in zip(self.start, shape, turned.shape,
                                                                                strict=True))  # fmt: skip
        kept = turned[inner]
        lost = np.count_nonzero(turned) - np.count_nonzero(kept)
        if lost:
            raise FindingError(error(path, "labelled voxels outside of the image", found=f"{lost} of them",
                                     expected="all within the image's grid", fix="look whether it is the right image; "
                                     "if so, cut the segmentation to the image in 3D Slicer"))  # fmt: skip
        if kept.size:
            result[tuple(slice(max(s, 0), max(s, 0) + n) for s, n in zip(self.start, kept.shape, strict=True))] = kept
        return result


def split_segment(text: str | PurePath) -> tuple[str, str | None]:
    """``"a/seg.seg.nrrd#cavity"`` → the file and the segment that is meant; None where no segment is named.

    Of a label map without named segments it is a value: ``"labelsTr/la_001.nii.gz#1"``.
    """
    found = _CHOSEN.fullmatch(str(text))
    return (found[1], found[2]) if found else (str(text), None)


def mask_file(text: str | PurePath) -> tuple[Path, Selection]:
    """The file of a mask, and which of its segments is meant (see :func:`split_segment`)."""
    file, name = split_segment(text)
    return Path(file), Selection((name,), mask=True) if name else MASK


def layers_axis(header: Mapping[str, Any]) -> int | None:
    """The axis of an NRRD header that counts layers of segments, or None."""
    kinds = [str(kind).lower() for kind in header.get("kinds") or ()]
    return next((axis for axis, kind in enumerate(kinds) if kind in _LISTS), None) if len(kinds) == 4 else None


def segmentation_of(
    path: Path, header: Mapping[str, Any], selection: Selection
) -> tuple[Segmentation | None, tuple[Finding, ...]]:
    """The segments that an NRRD header names, None where it names none, and what is to be known of them.

    Raises:
        FindingError: for segments that are wanted and not there, or that a reader cannot tell apart.
    """
    axis = layers_axis(header)
    segments = _segments(path, header, axis)
    if not segments:
        return None, ()
    _check_kind(path, header)
    chosen, notes = choose(path, segments, selection)
    return Segmentation(segments, chosen, axis), notes


def by_value(path: Path, selection: Selection) -> Selection:
    """The selection for a file without named segments: what stands in the place of a segment's name is a value.

    Raises:
        FindingError: for a name, which such a file does not have.
    """
    if not (selection.mask and selection.names):
        return selection
    name = selection.names[0]
    if not re.fullmatch(r"[1-9]\d{0,8}", name):
        _fail(path, "no named segments", found="voxel values without names", expected=f"a segment {name!r}",
              fix=f"give the value of its voxels in place of the name, such as #1, or leave out #{name} where all else "
              "is 0")  # fmt: skip
    return replace(selection, values=(int(name),))


def _segments(path: Path, header: Mapping[str, Any], axis: int | None) -> tuple[Segment, ...]:
    fields: dict[int, dict[str, str]] = {}
    for key, value in header.items():
        if match := _KEY.fullmatch(str(key)):
            fields.setdefault(int(match[1]), {})[match[2]] = str(value).strip()
    layers = 1 if axis is None else int(header["sizes"][axis])
    result = []
    for number, found in sorted(fields.items()):
        # files of before 3D Slicer 4.11 hold one layer of 0 and 1 per segment
        value = found.get("LabelValue") or ("1" if axis is not None or len(fields) == 1 else "")
        layer = found.get("Layer") or (str(number) if axis is not None else "0")
        if not re.fullmatch(r"-?\d+", value) or not layer.isdigit() or int(layer) >= layers:
            _fail(path, "unusable segment", found=f"Segment{number} with LabelValue {value!r} and Layer {layer!r}",
                  expected=f"a whole number and a layer of {layers}", fix="open it in 3D Slicer and save it again",
                  )  # fmt: skip
        name = found.get("Name") or found.get("ID") or f"Segment_{number + 1}"
        result.append(Segment(name, int(value), int(layer)))
    return tuple(result)


def _check_kind(path: Path, header: Mapping[str, Any]) -> None:
    kind = next((str(header[key]) for key in ("Segmentation_SourceRepresentation", "Segmentation_MasterRepresentation")
                 if header.get(key)), "")  # fmt: skip
    if "fractional" in kind.lower():
        _fail(path, "no binary label map", found=kind, expected="Binary labelmap",
              fix="make 'Binary labelmap' the source representation in 3D Slicer and save it again")  # fmt: skip
    extent = str(header.get("Segmentation_Extent", "")).split()
    if any(start != "0" for start in extent[::2]):
        _fail(path, "cropped by an old 3D Slicer", found=f"Segmentation_Extent {' '.join(extent)}",
              expected="a file of 3D Slicer 4.11 or later", fix="open it in 3D Slicer and save it again")  # fmt: skip


def choose(
    path: Path, segments: tuple[Segment, ...], selection: Selection
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    """The segments that become classes 1, 2, …, and what is to be known of them.

    Raises:
        FindingError: for a name that no segment has, or several have; for several segments where one mask is wanted.
    """
    here = _listed(segment.name for segment in segments)
    if not selection.names:
        if selection.mask and len(segments) > 1:
            _fail(path, "several segments for one mask", found=here, expected="one",
                  fix=f"name the one that is meant, such as '{path.name}#{segments[0].name}'")  # fmt: skip
        return segments, ()
    by_name: dict[str, list[Segment]] = {}
    for segment in segments:
        by_name.setdefault(plain_name(segment.name), []).append(segment)
    missing = [name for name in selection.names if plain_name(name) not in by_name]
    if missing:
        _fail(path, "a segment is missing", found=f"segments {here}", expected=f"also {_listed(missing)}",
              fix="give the names as they are in the file, or name the segment in 3D Slicer")  # fmt: skip
    same = {name: _closest(name, by_name[plain_name(name)]) for name in selection.names}
    twice = [name for name, found in same.items() if len(found) > 1]
    if twice:
        _fail(path, "several segments of one name", found=here, expected=f"one {_listed(twice)}",
              fix="rename or remove one of them in 3D Slicer")  # fmt: skip
    chosen = tuple(same[name][0] for name in selection.names)
    return chosen, () if selection.mask else tuple(_told(path, segments, chosen))


def _closest(name: str, segments: list[Segment]) -> list[Segment]:
    """Of segments whose names differ in hyphens and the like alone, the one that is called exactly so."""
    exact = [segment for segment in segments if segment.name == name]
    return exact if len(exact) == 1 else segments


def _told(path: Path, segments: Sequence[Segment], chosen: Sequence[Segment]) -> Iterable[Finding]:
    left_out = [segment.name for segment in segments if segment not in chosen]
    if left_out:
        yield warning(path, "segments that no class names", found=_listed(left_out), expected="segments of the classes",
                      fix="nothing to do if they are to be background; else name them in --classes")  # fmt: skip
    order = [segment.name for segment in segments if segment in chosen]
    if order != [segment.name for segment in chosen]:
        yield warning(path, "segments in another order than the classes", found=_listed(order),
                      expected=_listed(s.name for s in chosen), fix="nothing to do: they go by their names",
                      )  # fmt: skip


def same_segments(named: Mapping[str, tuple[Path, tuple[str, ...]]], stated: Sequence[str] = ()) -> list[Finding]:
    """Files that are read in the order of their segments have to have the same ones in the same order.

    Args:
        named: case → its file and the segments' names.
        stated: the classes from 1 on that the data set states; empty compares with the first file.
    """
    first = next(iter(named), None)
    if first is None:
        return []
    wanted, source = (tuple(stated), "the classes") if stated else (named[first][1], f"case {first}")
    plain = [plain_name(name) for name in wanted]
    return [
        Finding(case, str(path), "segments differ", _listed(names), f"{_listed(wanted)}, as {source}",
                "give their names to 'semsynth prepare-maps --classes', or as \"classes\" of the raw datalist: then "
                "each file goes by its names")
        for case, (path, names) in named.items()
        if [plain_name(name) for name in names] != plain
    ]  # fmt: skip


def placement(
    shape: tuple[int, ...], affine: NDArray[np.float64], onto: tuple[int, ...], onto_affine: NDArray[np.float64]
) -> Placement | None:
    """Where a grid lies in another one, None where their voxels do not coincide."""
    change = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(onto_affine))
    turned = affine @ nib.orientations.inv_ornt_aff(change, shape)
    size = np.array([shape[int(axis)] for axis in np.argsort(change[:, 0])])
    corners = np.array([[0, 0, 0, 1], [*(size - 1), 1]], dtype=np.float64).T
    first, last = (np.linalg.solve(onto_affine, turned @ corners)[:3]).T
    start = np.rint(first)
    step = np.linalg.solve(onto_affine[:3, :3], turned[:3, :3])
    if max(np.abs(first - start).max(), np.abs(last - start - (size - 1)).max()) > SAME_PLACE:
        return None
    if np.abs(step - np.eye(3)).max() * max(size) > 1:  # turned about the diagonal: the corners alone do not tell
        return None
    return Placement(tuple(shape), tuple(tuple(row) for row in change.tolist()), tuple(int(s) for s in start))


def relabelled(data: NDArray[Any], values: Sequence[int], path: Path) -> NDArray[Any]:
    """Voxels of ``values`` → 1, 2, …, and 0 → 0; data of no whole numbers, which no check lets pass, as it is.

    Raises:
        FindingError: for voxels of other values: as they are, they would be counted among the classes 1, 2, …
    """
    whole = rounded(data)
    if whole.dtype.kind == "f":
        return data
    others = np.unique(whole[~np.isin(whole, [0, *values])])
    if others.size:
        raise FindingError(error(
            path, "label values without a class", found=f"the values {listed(others)}",
            expected=f"0 and those of the table ({_listed(map(str, values))})",
            fix="leave --like out, or prepare these cases and those of the table anew with one --relabel",
        ))  # fmt: skip
    classes = {value: index for index, value in enumerate(values, 1)}
    return _mapped(whole, classes, np.dtype(np.uint8 if len(values) < 256 else np.uint16))


def of_one_value(data: NDArray[Any], value: int) -> NDArray[Any]:
    """Voxels of ``value`` → 1, all others → 0; data of no whole numbers, which no check lets pass, as it is."""
    whole = rounded(data)
    return data if whole.dtype.kind == "f" else (whole == value).astype(np.uint8)


def _mapped(data: NDArray[Any], classes: Mapping[int, int], kind: np.dtype[Any]) -> NDArray[Any]:
    """Each value's class, 0 for all other values."""
    if data.dtype.kind != "f" and data.min() >= 0 and data.max() < 1 << 16:
        table = np.zeros(int(data.max()) + 1, kind)
        for value, index in classes.items():
            if 0 <= value < len(table):
                table[value] = index
        table[0] = 0
        looked_up: NDArray[Any] = table[data]
        return looked_up
    result: NDArray[Any] = np.zeros(data.shape, kind)
    for value, index in classes.items():
        if value != 0:
            result[data == value] = index
    return result


def _values(layer: NDArray[Any]) -> list[float]:
    flat = layer.ravel(order="K")
    if flat.dtype.kind == "f" or flat.min() < 0 or flat.max() > 1 << 16:
        return [float(v) for v in np.unique(flat) if not math.isnan(v)]
    return [float(v) for v in np.flatnonzero(np.bincount(flat))]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _fail(path: Path, finding: str, *, found: str, expected: str, fix: str) -> NoReturn:
    raise FindingError(error(path, finding, found=found, expected=expected, fix=fix))
