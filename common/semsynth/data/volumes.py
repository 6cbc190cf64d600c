"""Reading and writing one volume: NIfTI, NRRD and DICOM in, NIfTI out, header traps refused with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import atomic_path, split_part
from ..memory import IMAGE_BYTES
from .dicom import is_dicom, read_dicom_voxels
from .findings import Finding
from .grids import place, same_affine
from .headers import SUFFIXES, Header, check_memory, damaged, read_header, unreadable
from .inflate import GZIP, cannot_hold, inflate
from .label_values import rounded
from .nrrd_files import read_nrrd
from .segments import of_one_value, relabelled

StorageType: TypeAlias = Literal["uint8", "int16", "float32"]


@dataclass(frozen=True)
class Volume:
    """One volume on its grid.

    Attributes:
        data: ``(H, W, D)`` intensities or class indices, in the file's own type where it has no scaling.
        affine: ``(4, 4)`` voxel indices → mm, RAS+.
        notes: warnings on what had to be decided of its voxels.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    notes: tuple[Finding, ...] = ()

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, one value per axis of ``data``."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))  # type: ignore[return-value]

    def canonical(self) -> Volume:
        """The same voxels with the axes closest to right, anterior, superior in this order (lossless)."""
        image = nib.as_closest_canonical(nib.Nifti1Image(self.data, self.affine, dtype=self.data.dtype))
        return Volume(np.asanyarray(image.dataobj), image.affine)

    def part(self, content: Mapping[str, Sequence[int]] | None) -> Volume:
        """The part in which a case stands in its padding: ``{"start", "shape"}`` in voxels; None: all of it."""
        if content is None:
            return self
        start, shape = content["start"], content["shape"]
        data = self.data[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
        affine = self.affine.copy()
        affine[:3, 3] = self.affine[:3, :3] @ np.asarray(start, dtype=np.float64) + self.affine[:3, 3]
        return Volume(data, affine)

    def oriented_as(self, affine: NDArray[np.float64]) -> Volume:
        """The same voxels with the order and direction of axes that ``affine`` has (lossless)."""
        placed = place(self.affine, self.data.shape, affine, self.data.shape)
        return Volume(placed.apply(self.data), placed.affine)

    def on_grid(self, affine: NDArray[np.float64], shape: Sequence[int]) -> Volume | None:
        """The same voxels in the order of another volume, and with its affine (lossless).

        Returns:
            None where the other volume lies on another grid, see :mod:`semsynth.data.grids`.
        """
        placed = place(self.affine, self.data.shape, affine, shape)
        return Volume(placed.apply(self.data), affine) if placed.one_grid else None


def read_volume(path: str | Path, header: Header | None = None) -> Volume:
    """Read a ``.nii``, ``.nii.gz`` or ``.nrrd`` file, one with named segments as class indices, or DICOM.

    What may be DICOM: see :mod:`semsynth.data.dicom`.

    Where qform and sform disagree the sform is taken, and where a file has neither, nibabel's default (LAS);
    :func:`semsynth.data.check.check_cases` warns of both.

    Args:
        path: the file, or the folder of a DICOM series, with the part that is meant behind a ``#``.
        header: result of :func:`semsynth.data.headers.read_header`, where it has been read already.

    Raises:
        InputError: missing, empty, truncated or of another format; not one 3D volume of real numbers; no usable
            voxel-to-mm transform (a voxel size of 0, a singular or non-finite matrix); segments that are missing; more
            voxels than the file, or the memory that is free, can hold.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     affine = np.diag([2.0, 2.0, 3.0, 1.0])
        ...     path = write_image(f"{folder}/scan.nii.gz", np.full((4, 4, 2), 0.5), affine, "float32")
        ...     volume = read_volume(path)
        >>> volume.data.shape, volume.spacing
        ((4, 4, 2), (2.0, 2.0, 3.0))
    """
    header = header or read_header(path)
    notes: tuple[Finding, ...] = ()
    try:
        _check_bounds(header)
        data = _voxels(header)
        if header.segments is not None:
            data, notes = header.segments.class_map(data, header.path)
        elif header.selection.mask and header.selection.values:
            data = of_one_value(data, header.selection.values[0])
        elif header.selection.values:
            data = relabelled(data, header.selection.values, header.path)
        if header.placement is not None:
            data = header.placement.place(data, header.shape, header.path)
    except Exception as reason:  # the libraries raise all kinds of errors on malformed bytes
        raise unreadable(header.path, reason) from reason
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    return Volume(native.reshape(header.shape, order="F"), header.affine, notes)


def _voxels(header: Header) -> NDArray[Any]:
    if is_dicom(header.path):
        return read_dicom_voxels(header.path, header.selection)
    return read_nrrd(header.path) if header.path.name.lower().endswith(".nrrd") else _nifti_voxels(header)


def read_label(path: str | Path, header: Header | None = None) -> Volume:
    """As :func:`read_volume`, for a label map or mask: values within 1e-3 of whole numbers become whole numbers.

    :func:`semsynth.data.check.check_cases` warns of them.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = write_label(f"{folder}/label.nii.gz", np.ones((4, 4, 2), np.uint8), np.eye(4))
        ...     volume = read_label(path)
        >>> np.unique(volume.data).tolist()
        [1]
    """
    volume = read_volume(path, header)
    return Volume(rounded(volume.data), volume.affine)


def _check_bounds(header: Header) -> None:
    """Raise before anything is read that no file of this size, or no memory of this machine, can hold."""
    path, size, name = header.path, header.size, header.path.name.lower()
    if size is not None and name.endswith((".nii", ".nii.gz")):
        stored, packing = path.stat().st_size, (GZIP if name.endswith(".gz") else None)
        if cannot_hold(stored, size, packing):
            raise damaged(path, f"{stored} {'packed ones ' if packing else ''}of {size} bytes")
    voxels = math.prod(header.shape)
    # as they are stored, and as they are worked with
    check_memory(path, header.shape, (size or voxels) + IMAGE_BYTES * voxels)


def _nifti_voxels(header: Header) -> NDArray[Any]:
    return np.asanyarray(_nifti(header).dataobj)


def _nifti(header: Header) -> Any:
    """The image of nibabel, whose voxels are in memory as they are stored."""
    with header.path.open("rb") as stream:
        if header.size is None or header.path.name.lower().endswith(".gz"):
            raw = stream.read()
        else:
            raw = stream.read(header.size)
    if raw[:2] == b"\x1f\x8b":
        raw = inflate(raw, header.size or 0, header.path)
    if header.size is not None and len(raw) < header.size:
        raise damaged(header.path, f"{len(raw)} of {header.size} bytes")
    kind = nib.Nifti1Image if nib.Nifti1Header.may_contain_header(raw[:348]) else nib.Nifti2Image
    return kind.from_bytes(raw)


def scale_intensity(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Minimum to 0 and maximum to 1.

    Raises:
        InputError: for a constant image.
    """
    low, high = float(image.min()), float(image.max())
    if high <= low:
        raise InputError(f"image is constant ({low:g}); check that it is the right file")
    return ((image - low) / (high - low)).astype(np.float32)


def stem(path: str | Path) -> str:
    """The file's name without folders and without ``.nii.gz`` or another suffix; the whole name of a folder."""
    place, _ = split_part(path)
    name = place.name
    if place.is_dir():
        return name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def _write(path: str | Path, image: Any) -> Path:
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    if not same_affine(image.get_qform(), image.affine, image.shape):
        image.set_qform(None, code=0)  # a qform cannot hold shear: better none than one that disagrees
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def copy_clean(source: str | Path, path: str | Path) -> Path:
    """A volume's file written anew as NIfTI: its voxels, their type and scaling, where they lie, and nothing else.

    Texts and extensions of its header, and the file's name in gzip's own header, stay behind.

    Args:
        source: a volume, of NIfTI or of another format.
        path: the file to write.

    Raises:
        InputError: as :func:`read_volume`.
    """
    header = read_header(source)
    scaling: tuple[float | None, float | None] = (None, None)
    if header.path.name.lower().endswith((".nii", ".nii.gz")) and not header.selection.values:
        try:
            _check_bounds(header)
            stored = _nifti(header)
            data = np.asanyarray(stored.dataobj.get_unscaled())
            scaling = stored.dataobj.slope, stored.dataobj.inter
        except Exception as reason:  # the libraries raise all kinds of errors on malformed bytes
            raise unreadable(header.path, reason) from reason
    else:
        data = read_volume(source, header).data
    native = data.astype(data.dtype.newbyteorder("="), copy=False).reshape(header.shape, order="F")
    image = nib.Nifti1Image(native, header.affine, dtype=native.dtype)
    if scaling not in ((None, None), (1.0, 0.0)):
        image.header.set_slope_inter(*scaling)
    return _write(path, image)


def write_image(
    path: str | Path,
    data: NDArray[np.floating],
    affine: NDArray[np.float64],
    dtype: StorageType,
    window: tuple[float, float] | None = None,
) -> Path:
    """Write intensities in [0, 1] as NIfTI, whole or not at all.

    Args:
        path: the file.
        data: ``(H, W, D)``.
        affine: voxel indices → mm, RAS+.
        dtype: type of the stored values. Without ``window`` integer types have a scale factor, so that readers get
            [0, 1] back (to within half a step: 1/510 for uint8, 1/65534 for int16).
        window: values of the file for 0 and 1, such as -1000 and 1000 HU; integer types are rounded to whole numbers.

    Raises:
        InputError: another type, or a window that the type cannot hold.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> image = np.linspace(0, 1, 32).reshape(4, 4, 2)
        >>> with TemporaryDirectory() as folder:
        ...     path = write_image(f"{folder}/ct.nii.gz", image, np.eye(4), "int16", window=(-1000, 1000))
        ...     volume = read_volume(path)
        >>> int(volume.data.min()), int(volume.data.max())
        (-1000, 1000)
    """
    check_storage(dtype, window)
    if window is not None:
        low, high = window
        values = low + np.clip(data, 0.0, 1.0).astype(np.float64) * (high - low)
        return _write(path, nib.Nifti1Image((values if dtype == "float32" else np.rint(values)).astype(dtype), affine))
    if dtype == "float32":
        return _write(path, nib.Nifti1Image(np.asarray(data, dtype=np.float32), affine))
    steps = {"uint8": 255, "int16": 32767}
    # with a slope in the header nibabel writes the array as it is: it has to be in steps already
    raw = np.rint(np.clip(data, 0.0, 1.0) * steps[dtype]).astype(dtype)
    image = nib.Nifti1Image(raw, affine)
    image.header.set_slope_inter(1.0 / steps[dtype], 0.0)
    return _write(path, image)


def check_storage(dtype: str, window: tuple[float, float] | None = None) -> None:
    """Raise unless intensities can be stored in this way.

    Raises:
        InputError: for another type than uint8, int16 and float32, or a window that an integer type cannot hold, or of
            which it would keep fewer than 100 steps.
    """
    if dtype not in ("uint8", "int16", "float32"):
        raise InputError(f"dtype must be uint8, int16 or float32, got {dtype!r}")
    if window is None or dtype == "float32":
        return
    low, high = window
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max or high - low < 100:
        raise InputError(
            f"intensities from {low:g} to {high:g} cannot be stored as {dtype}, which holds whole numbers from "
            f"{limits.min} to {limits.max} (at least 100 steps are needed); use dtype float32, or another range"
        )


def write_label(path: str | Path, data: NDArray[np.integer], affine: NDArray[np.float64]) -> Path:
    """Write class indices (0…255) as uint8 NIfTI, whole or not at all.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_label(f"{folder}/label.nii.gz", np.ones((4, 4, 2), np.int64), np.eye(4)).name
        'label.nii.gz'
    """
    return _write(path, nib.Nifti1Image(np.asarray(data, dtype=np.uint8), affine))
