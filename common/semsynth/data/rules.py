"""What a usable volume, label map or mask is: one function per rule, each giving the findings of one file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from ..vocabulary import ENDO, FIRST_TISSUE, WALL
from .findings import Finding, error, warning
from .grids import VOXEL_SHARE, apart, place
from .headers import SUFFIXES, Header
from .label_values import WHOLE, listed, off_whole, rounded
from .volumes import Volume

SMALLEST_MM, LARGEST_MM = 0.05, 20.0
CHALLENGE_MASK = 255
"""How the 2018 challenge writes 1 in its masks."""
EXPERTS = (ENDO, WALL)
MOST_CLASSES = 32
LARGEST = 1e30
"""Intensities beyond it are no measurement, and single precision (up to 3e38) cannot compute with them."""
"""A file of more distinct values is no label map, one of fewer is hardly an image."""
OUTSIDE_SHARE = 0.03
"""Share of the cavity that may lie outside the wall, which is open at veins and valve; experts' masks have 0 to 2 %."""


def check_grid(header: Header) -> list[Finding]:
    """Single slices and voxel sizes that are no mm."""
    found = []
    if min(header.shape) == 1:
        found.append(error(header.path, "single slice", found=f"shape {header.shape}", expected="a volume",
                           fix="give the whole volume, not a slice of it"))  # fmt: skip
    if min(header.spacing) < SMALLEST_MM or max(header.spacing) > LARGEST_MM:
        found.append(error(header.path, "implausible voxel size", found=f"{_mm(header.spacing)} mm",
                           expected=f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm",
                           fix="the header may count in metres or micrometres; write it in mm"))  # fmt: skip
    return found


def check_axes(header: Header) -> list[Finding]:
    """Voxel order other than right, anterior, superior."""
    if header.axes == "RAS":
        return []
    return [warning(header.path, "orientation is not RAS", found=header.axes, expected="RAS",
                    fix="nothing to do: reoriented for the work, restored in outputs")]  # fmt: skip


def check_patch(
    header: Header,
    patch: Sequence[int],
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
) -> list[Finding]:
    """A volume smaller than the training patch.

    Args:
        header: header of the image.
        patch: voxels along right, anterior, superior.
        shape: shape of the case itself in the same order, where its file was padded.
        spacing: mm per voxel, in the same order, that training resamples to; None takes voxels as they are.
    """
    axes = _world_axes(header.affine)
    if shape is None:
        shape = [header.shape[axis] for axis in axes]
    if spacing is not None:
        own = [header.spacing[axis] for axis in axes]
        shape = [round(n * mm / to) for n, mm, to in zip(shape, own, spacing, strict=True)]
    if all(n >= p for n, p in zip(shape, patch, strict=True)):
        return []
    return [warning(header.path, "smaller than the patch", found=f"{_voxels(shape)} voxels",
                    expected=f"at least {_voxels(patch)}",
                    fix="nothing to do: used whole, or padded; or train with a smaller patch",
                    )]  # fmt: skip


def check_same_grid(header: Header, image: Header) -> list[Finding]:
    """Label map or mask against the image: orientation, shape, then voxel size, then the rest of the affine.

    Voxels that are stored in another order are compared where they lie, and are worth a warning.
    """
    fix = "resample it to the image's grid, with nearest neighbours"
    if header.segments is not None:
        fix += "; if it was only cropped, 'semsynth prepare-maps' puts it back where it was"
    if header.oriented != image.oriented:
        return [_without_orientation(header, image)]
    placed = place(header.affine, header.shape, image.affine, image.shape)
    if placed.shape != image.shape:
        return [error(header.path, "shape differs from the image's", found=str(header.shape),
                      expected=str(image.shape), fix=fix)]  # fmt: skip
    if placed.one_grid:
        if not placed.reordered:
            return []
        return [warning(header.path, "voxel order differs from the image's", found=header.axes, expected=image.axes,
                        fix="nothing to do: its voxels are put into the image's order, without loss")]  # fmt: skip
    fix = f"if both show the same voxels, copy the image's header into it; otherwise {fix}"
    spacing = _spacing(placed.affine)
    limit = f"(tolerance {VOXEL_SHARE:.0%} of a voxel at the volume's corners)"
    if apart(np.diag([*spacing, 1.0]), np.diag([*image.spacing, 1.0]), image.shape)[0] > VOXEL_SHARE:
        return [error(header.path, "voxel size differs from the image's", found=f"{_mm(spacing, 7)} mm",
                      expected=f"{_mm(image.spacing, 7)} mm {limit}", fix=fix)]  # fmt: skip
    found = f"a corner {placed.mm:.3g} mm ({placed.voxels:.2g} voxels) apart"
    return [error(header.path, "affine differs from the image's", found=found, expected=f"the image's affine {limit}",
                  fix=fix)]  # fmt: skip


def _without_orientation(header: Header, image: Header) -> Finding:
    """Of two files that belong together one says where its axes point and one does not."""
    bare, other = (image, header) if header.oriented else (header, image)
    return error(bare.path, "no orientation, but the other file has one", found="qform and sform codes both 0",
                 expected=f"the orientation of {other.path.name}",
                 fix=f"look at both, voxel on voxel: where they fit, copy the header of {other.path.name} into it; do "
                 "not resample, as its place in the patient is unknown")  # fmt: skip


def check_intensities(path: str | Path, data: NDArray[Any]) -> list[Finding]:
    """An image is finite and has more than one value."""
    bad = _not_finite(data)
    if bad:
        return [error(path, "NaN or infinite voxels in the image", found=f"{bad} of {data.size}",
                      expected="finite intensities", fix="repair them, or convert the source again")]  # fmt: skip
    least, most = float(data.min()), float(data.max())
    if max(abs(least), abs(most)) > LARGEST:
        return [error(path, "intensities beyond all measure", found=f"{least:g} to {most:g}",
                      expected=f"at most {LARGEST:g}", fix="repair them, or convert the source again")]  # fmt: skip
    if np.float32(least) == np.float32(most):  # what all further steps compute with
        found = f"{least:g} everywhere" if least == most else f"{least:.9g} to {most:.9g}, one in single precision"
        return [error(path, "image is constant", found=found, expected="more than one intensity",
                      fix="check that it is the right file")]  # fmt: skip
    return []


def check_label(
    header: Header, data: NDArray[Any], num_classes: int | None = None, experts: Collection[int] = EXPERTS
) -> list[Finding]:
    """A label map holds class indices from 0 on and at least one class that an expert drew.

    Args:
        header: header of the map.
        data: its voxels.
        num_classes: the largest index is one less; None allows all up to 254.
        experts: the classes that experts draw; empty where the classes are not those of a composite map.
    """
    bad = _not_finite(data)
    if bad:
        return [error(header.path, "NaN or infinite voxels in the label map", found=f"{bad} of {data.size}",
                      expected="class indices", fix="resample label maps with nearest neighbours")]  # fmt: skip
    whole = rounded(data)
    found = values_of(whole)
    if found.dtype.kind == "f":
        broken = found[found != np.rint(found)]
        return [error(header.path, "label values are not whole numbers", found=listed(broken), expected="class indices",
                      fix="resample label maps with nearest neighbours")]  # fmt: skip
    return [*_check_rounding(header.path, data), *_check_indices(header, found, num_classes, experts)]


def _check_rounding(path: str | Path, data: NDArray[Any]) -> list[Finding]:
    """Values that are whole numbers up to what floats and scale factors lose: rounded wherever they are read."""
    off = off_whole(data)
    if not len(off):
        return []
    return [warning(path, "label values are not quite whole numbers", found=listed(off), expected="whole numbers",
                    fix=f"nothing to do: rounded, as all are within {WHOLE:g} of one")]  # fmt: skip


def _check_indices(
    header: Header, found: NDArray[Any], num_classes: int | None, experts: Collection[int]
) -> list[Finding]:
    last = 254 if num_classes is None else num_classes - 1
    outside = found[(found < 0) | (found > last)]
    if len(outside):
        fix = suggest_mapping(found, last, composite=bool(experts))
        if len(found) > MOST_CLASSES:
            fix = f"it looks like an image: {len(found)} different values; give its label map. If it is one, {fix}"
        return [error(header.path, "label values out of range", found=listed(outside), expected=f"0…{last}",
                      fix=fix)]  # fmt: skip
    if found[-1] == 0:
        return [warning(header.path, "label map is empty", found="0 everywhere", expected="labelled voxels",
                        fix="leave the case out or give its label map")]  # fmt: skip
    if experts and found[-1] >= FIRST_TISSUE and not set(experts) & set(found.tolist()):
        return [error(header.path, "tissue clusters, but neither endo nor wall", found=f"classes {listed(found)}",
                      expected=f"class {' or '.join(map(str, experts))} (endo, wall) as well",
                      fix="make the map from the image and its masks, with 'semsynth prepare'")]  # fmt: skip
    return []


def suggest_mapping(values: NDArray[Any], last: int, *, composite: bool = True) -> str:
    """What to do about the class indices ``values`` of which some are larger than ``last`` or negative.

    Args:
        values: values that were found.
        last: the largest index.
        composite: True for a map of ``semsynth prepare``, with tissues behind the classes of experts.
    """
    kept = values[(values > 0) & (values <= last)]
    if set(values.tolist()) <= {0, CHALLENGE_MASK}:
        return "map 255 → 1 (8-bit masks write 1 as 255)"
    if set(values[(values < 0) | (values > last)].tolist()) == {CHALLENGE_MASK}:
        return f"map 255 → 0 if it marks voxels to ignore, otherwise to its class in 0…{last}"
    relabel = "'semsynth prepare-maps --relabel' makes 1, 2, … of the values that there are"
    if len(kept) == 0 or values[0] < 0 or values[-1] > 254:
        return f"map every value to its class in 0…{last}; {relabel}"
    count, present = int(values[-1]) + 1, int((values > 0).sum())
    if composite and present == count - 1:
        return f"set num_classes to {count}, or prepare the maps with another --k"
    return f"set num_classes to {count} (for prepare-maps: {count - 1} names in --classes); or {relabel}"


def check_mask(path: str | Path, data: NDArray[Any], role: str) -> list[Finding]:
    """A mask holds 0 and 1, or 0 and 255 as the 2018 challenge writes them."""
    bad = _not_finite(data)
    if bad:
        return [error(path, f"NaN or infinite voxels in the {role} mask", found=f"{bad} of {data.size}",
                      expected="0 and 1", fix="resample masks with nearest neighbours")]  # fmt: skip
    found = set(values_of(rounded(data)).tolist())
    if found == {0}:
        return [warning(path, f"{role} mask is empty", found="no voxel of it", expected="some",
                        fix="leave the case out or give its mask")]  # fmt: skip
    if found <= {0, 1} or found <= {0, CHALLENGE_MASK}:
        return _check_rounding(path, data)
    fix = "write the structure as 1 and all else as 0"
    is_map = len(found) <= MOST_CLASSES and min(found) >= 0 and all(value == int(value) for value in found)
    if is_map and str(path).lower().endswith(SUFFIXES):
        least = min(int(value) for value in found if value)
        fix = f"of a label map name the value of the structure, such as '{Path(path).name}#{least}', or {fix}"
    return [error(path, f"{role} mask must hold only 0 and 1", found=listed(sorted(found)),
                  expected="0 and 1 (or 0 and 255)", fix=fix)]  # fmt: skip


def looks_swapped(image: NDArray[Any], label: NDArray[Any]) -> bool:
    """Whether the file given as label map or mask looks like an image and the other one like a label map."""
    values = values_of(label)
    if values.dtype.kind != "f" and len(values) <= MOST_CLASSES:
        return False
    other = values_of(image)
    return other.dtype.kind != "f" and len(other) <= MOST_CLASSES and len(other) < len(values)


def swapped(header: Header, role: str) -> Finding:
    """The finding for an image and a label map of which each stands in the other's place."""
    return error(header.path, "image and label swapped", found=f"many values in the {role}, few in the image",
                 expected="the reverse", fix=f"exchange the files of image and {role}")  # fmt: skip


def check_masks_together(header: Header, endo: Volume, wall: Volume) -> list[Finding]:
    """Cavity and wall share no voxel, and the cavity lies within the wall.

    Outside are cavity voxels that see the wall in at most one of the four directions of the axial plane: inside, one or
    two may be open, at a vein or the mitral valve.
    """
    inside, shell = endo.data > 0, wall.data > 0
    size = np.count_nonzero(inside)
    if not size or not shell.any():
        return []
    result = []
    both = np.count_nonzero(inside & shell)
    if both:
        result.append(warning(header.path, "endo and wall overlap", found=f"{both} voxels in both",
                              expected="none", fix="nothing to do: endo wins in composite maps"))  # fmt: skip
    seen = sum(_sees(shell, axis).astype(np.uint8) for axis in _plane(endo.affine))
    outside = np.count_nonzero(inside & ~shell & (np.asarray(seen) < 2))
    if outside > OUTSIDE_SHARE * size:
        result.append(warning(header.path, "endo outside the wall's outer border",
                              found=f"{outside} of {size} voxels ({outside / size:.0%})", expected="none, or a few",
                              fix="look at the masks: one may be shifted, or another case's"))  # fmt: skip
    return result


def _sees(shell: NDArray[np.bool_], axis: int) -> NDArray[np.uint8]:
    """Per voxel, in how many of the two directions along ``axis`` the shell comes."""
    below = np.maximum.accumulate(shell, axis=axis)
    above = np.flip(np.maximum.accumulate(np.flip(shell, axis), axis=axis), axis)
    return below.astype(np.uint8) + above


def values_of(data: NDArray[Any]) -> NDArray[Any]:
    """The distinct values in rising order: integers where all are whole numbers, else floats (finite data only)."""
    flat = data.ravel(order="K")
    low, high = flat.min(), flat.max()
    if flat.dtype.kind == "f":
        if max(abs(low), abs(high)) >= 2**31 or not np.array_equal(flat, np.rint(flat)):
            return np.unique(flat)
        flat = flat.astype(np.int32)
    if int(high) - int(low) >= 1 << 16:
        return np.unique(flat)
    offset = int(low)
    return np.flatnonzero(np.bincount(flat.astype(np.intp) - offset)) + offset  # a few times faster than sorting


def _not_finite(data: NDArray[Any]) -> int:
    with np.errstate(over="ignore", invalid="ignore"):  # a sum that overflows is looked at voxel by voxel
        if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):
            return 0
    return int(np.count_nonzero(~np.isfinite(data)))


def _world_axes(affine: NDArray[np.float64]) -> list[int]:
    """Which axis of the array is closest to right, anterior and superior."""
    return [int(axis) for axis in np.argsort(io_orientation(affine)[:, 0])]


def _plane(affine: NDArray[np.float64]) -> list[int]:
    return _world_axes(affine)[:2]


def _mm(spacing: Sequence[float], places: int = 4) -> str:
    return " × ".join(f"{size:.{places}g}" for size in spacing)


def _spacing(affine: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(size) for size in voxel_sizes(affine))


def _voxels(shape: Sequence[int]) -> str:
    return " × ".join(str(n) for n in shape)
