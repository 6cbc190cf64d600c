"""Reading and writing one volume: NIfTI and NRRD in, NIfTI out, header traps refused with a reason."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nibabel as nib
import nrrd
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from .errors import InputError

StorageType: TypeAlias = Literal["uint8", "int16", "float32"]
AFFINE_TOLERANCE = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SUFFIXES = (".nii.gz", ".nii", ".nrrd")


@dataclass(frozen=True)
class Volume:
    """One volume on its grid.

    Attributes:
        data: ``(H, W, D)`` intensities or class indices, in the file's own type where it has no scaling.
        affine: ``(4, 4)`` voxel indices → mm, RAS+.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, one value per axis of ``data``."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))  # type: ignore[return-value]

    def canonical(self) -> Volume:
        """The same voxels with the axes closest to right, anterior, superior in this order (lossless)."""
        image = nib.as_closest_canonical(nib.Nifti1Image(self.data, self.affine, dtype=self.data.dtype))
        return Volume(np.asanyarray(image.dataobj), image.affine)


def read_volume(path: str | Path) -> Volume:
    """Read a ``.nii``, ``.nii.gz`` or ``.nrrd`` file.

    Raises:
        InputError: missing, empty, truncated or of another format; not 3D; no usable voxel-to-mm transform (pixel size
            0, qform and sform codes both 0, or the two in disagreement).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path in the datalist or pattern")
    if not path.name.lower().endswith(_SUFFIXES):
        raise InputError(f"{path}: not a format that is read here; convert it to one of {', '.join(_SUFFIXES)}")
    reader = _read_nrrd if path.name.lower().endswith(".nrrd") else _read_nifti
    try:
        volume = reader(path)
    except InputError:
        raise
    except (ImageFileError, nrrd.NRRDError, EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read, truncated or not what its name says ({error}); copy it again"
        ) from error
    if volume.data.ndim != 3:
        raise InputError(
            f"{path}: needs one 3D volume, found shape {volume.data.shape}; extract the volume that is meant"
        )
    if not np.isfinite(volume.affine).all() or min(volume.spacing) <= 0:
        raise InputError(f"{path}: voxel size must be positive, found {volume.spacing} mm; repair the header")
    return volume


def _read_nifti(path: Path) -> Volume:
    image: Any = nib.load(path)
    header = image.header
    with image.file_map["image"].get_prepare_fileobj("rb") as stream:
        stored = type(header).from_fileobj(stream, check=False)  # loading has turned sizes of 0 into 1 without a word
    zooms = stored["pixdim"][1:4]
    if min(zooms) <= 0 or not np.isfinite(zooms).all():
        raise InputError(f"{path}: voxel size must be positive, found {tuple(map(float, zooms))} mm; repair the header")
    qform, qcode = header.get_qform(coded=True)
    sform, scode = header.get_sform(coded=True)
    if qcode == 0 and scode == 0:
        raise InputError(f"{path}: qform and sform codes are both 0, so left and right are unknown; set an orientation")
    # a qform stores a rotation and zooms in float32: compare what they do to the far corner, in voxels
    if qcode > 0 and scode > 0:
        corner = np.append(np.array(image.shape[:3], dtype=float), 1.0)
        apart = np.abs((qform - sform) @ corner)[:3].max()
        if apart > 0.1 * float(min(zooms)):
            raise InputError(f"{path}: qform and sform disagree by {apart:.3g} mm; keep the one that is right")
    data = np.asanyarray(image.dataobj)  # reads all: a truncated file fails here
    squeezed = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    return Volume(squeezed, np.asarray(image.affine, dtype=np.float64))


def _read_nrrd(path: Path) -> Volume:
    data, header = nrrd.read(str(path))
    if data.ndim != 3:
        raise InputError(f"{path}: needs one 3D volume, found shape {data.shape}; extract the volume that is meant")
    directions = header.get("space directions")
    if directions is None:
        raise InputError(f"{path}: the NRRD header has no 'space directions', so its voxel size is unknown; add them")
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=float).T
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), dtype=float)
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space in ("left-posterior-superior", "lps"):
        affine = _LPS_TO_RAS @ affine
    elif space not in ("right-anterior-superior", "ras"):
        raise InputError(f"{path}: NRRD space {space!r} is not supported; write it as left-posterior-superior")
    return Volume(data, affine)


def scale_intensity(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Minimum to 0 and maximum to 1.

    Raises:
        InputError: for a constant image.
    """
    low, high = float(image.min()), float(image.max())
    if high <= low:
        raise InputError(f"image is constant ({low:g}); check that it is the right file")
    return ((image - low) / (high - low)).astype(np.float32)


def same_affine(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Whether two affines agree within 1e-3 mm per entry."""
    return bool(np.abs(a - b).max() <= AFFINE_TOLERANCE)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stem(path: str | Path) -> str:
    """The file's name without folders and without ``.nii.gz`` or another suffix."""
    name = Path(path).name
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` (same suffixes), renamed to it when the block ends well, removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def _write(path: str | Path, image: Any) -> Path:
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    if not same_affine(image.get_qform(), image.affine):
        image.set_qform(None, code=0)  # a qform cannot hold shear: better none than one that disagrees
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def write_image(path: str | Path, data: NDArray[np.floating], affine: NDArray[np.float64], dtype: StorageType) -> Path:
    """Write intensities in [0, 1] as NIfTI, whole or not at all; integer types store a scale factor, so that readers
    get [0, 1] back (to within half a step: 1/510 for uint8, 1/65534 for int16)."""
    steps = {"uint8": 255, "int16": 32767}
    if dtype == "float32":
        return _write(path, nib.Nifti1Image(np.asarray(data, dtype=np.float32), affine))
    if dtype not in steps:
        raise InputError(f"dtype must be uint8, int16 or float32, got {dtype!r}")
    # with a slope in the header nibabel writes the array as it is: it has to be in steps already
    raw = np.rint(np.clip(data, 0.0, 1.0) * steps[dtype]).astype(dtype)
    image = nib.Nifti1Image(raw, affine)
    image.header.set_slope_inter(1.0 / steps[dtype], 0.0)
    return _write(path, image)


def write_label(path: str | Path, data: NDArray[np.integer], affine: NDArray[np.float64]) -> Path:
    """Write class indices (0…255) as uint8 NIfTI, whole or not at all."""
    return _write(path, nib.Nifti1Image(np.asarray(data, dtype=np.uint8), affine))
