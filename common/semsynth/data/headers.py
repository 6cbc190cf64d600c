"""What a volume's file says of itself, read and judged before its voxels: shape, type and voxel-to-mm transform."""

from __future__ import annotations

import gzip
import math
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import nrrd
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ..errors import is_out_of_memory
from ..files import split_part
from ..memory import too_much
from .findings import Finding, FindingError, error, warning
from .nrrd_files import read_nrrd_header, voxel_bytes
from .segments import (
    EVERYTHING,
    Placement,
    Segmentation,
    Selection,
    by_value,
    layers_axis,
    mask_file,
    placement,
    segmentation_of,
)

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
_DAMAGE = (ImageFileError, HeaderDataError, nrrd.NRRDError, gzip.BadGzipFile, EOFError, ValueError, zlib.error)
HEAD_BYTES = 1 << 16
BESIDE = 3
"""Files that a message names where one is missing."""
FLATNESS = 1e-6
"""A transform whose voxel has less than this share of the volume of a right-angled one is singular."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Header:
    """The header of one 3D volume.

    Attributes:
        path: the file, or the folder of a DICOM series, with the part that is meant behind a ``#``.
        shape: voxels along the three axes.
        affine: ``(4, 4)`` voxel indices → mm, RAS+ (NIfTI: the sform, without one the qform).
        size: bytes that its voxels need when they are unpacked, of NIfTI those of the header with them; None where the
            format checks that itself.
        notes: warnings on what had to be decided to read it.
        segments: segments of a file that names them (``.seg.nrrd``, SEG, RTSTRUCT); its voxels are read as classes
            then.
        selection: part of a file of labels that is read.
        placement: place of the file's own grid in this one, where they are not the same.
        oriented: True where the file says how the axes are directed (NIfTI: qform or sform).
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    size: int | None = None
    notes: tuple[Finding, ...] = ()
    segments: Segmentation | None = None
    selection: Selection = EVERYTHING
    placement: Placement | None = None
    oriented: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, one value per axis."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))  # type: ignore[return-value]

    @property
    def axes(self) -> str:
        """Where the axes point, such as ``RAS``."""
        return "".join(nib.aff2axcodes(self.affine))


def fail(path: Path, finding: str, *, found: str, expected: str, fix: str) -> NoReturn:
    """Raise the finding as a :class:`~semsynth.data.findings.FindingError`."""
    raise FindingError(error(path, finding, found=found, expected=expected, fix=fix))


def damaged(path: Path, reason: object) -> FindingError:
    """The finding for a file that ends early or whose bytes do not fit together."""
    return FindingError(error(path, "truncated or damaged", found=str(reason) or type(reason).__name__,
                              expected="a whole file", fix="copy it again"))  # fmt: skip


def check_memory(path: Path, shape: Sequence[int], needed: float) -> None:
    """Raise for a volume that the memory that is free does not hold.

    Args:
        path: its file.
        shape: its voxels along the axes.
        needed: bytes that it takes at least.

    Raises:
        FindingError: naming both figures.
    """
    excess = too_much(needed)
    if excess is not None:
        voxels = " × ".join(map(str, shape))
        fail(path, "more voxels than memory", found=f"{voxels} voxels, which need at least {excess}",
             expected="a volume that fits", fix="crop or resample it, or use a larger machine")  # fmt: skip


def unreadable(path: str | Path, reason: Exception) -> FindingError:
    """The finding for whatever nibabel, pynrrd, gzip, zlib or the system raised while reading a file."""
    if isinstance(reason, FindingError):
        return reason
    if is_out_of_memory(reason):
        return FindingError(error(path, "out of memory", found=str(reason).splitlines()[0] or "no memory left",
                                  expected="memory for its voxels", fix="give fewer --jobs, or end other programs",
                                  ))  # fmt: skip
    if isinstance(reason, _DAMAGE):
        return damaged(Path(path), reason)
    text = (reason.strerror if isinstance(reason, OSError) else None) or f"{type(reason).__name__}: {reason}"
    return FindingError(error(path, f"cannot be read ({text})", found=text, expected="a file that can be read",
                              fix="check its permissions, copy it again, or convert the source again"))  # fmt: skip


def read_header(path: str | Path, selection: Selection = EVERYTHING) -> Header:
    """Read the header of a ``.nii``, ``.nii.gz`` or ``.nrrd`` file or of DICOM, and nothing of an image's voxels.

    Args:
        path: the file; ``seg.seg.nrrd#cavity`` and ``seg.dcm#cavity`` mean one of its segments, ``map.nii.gz#1`` the
            voxels of one value.
        selection: part of a file of labels that is read.

    Raises:
        FindingError: missing, empty, truncated, of another format; not one 3D volume; colour, structured or complex
            voxels; a voxel size of 0; a transform that is singular or not finite; segments that are wanted and missing.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.data.volumes import write_label
        >>> with TemporaryDirectory() as folder:
        ...     affine = np.diag([2.0, 2.0, 3.0, 1.0])
        ...     path = write_label(f"{folder}/label.nii.gz", np.ones((4, 4, 2), np.uint8), affine)
        ...     header = read_header(path)
        >>> header.shape, header.spacing, header.axes
        ((4, 4, 2), (2.0, 2.0, 3.0), 'RAS')
    """
    from .dicom import is_dicom, read_dicom_header  # which builds on this module

    path = Path(path)
    try:
        dicom = is_dicom(path)
        header = read_dicom_header(path, selection) if dicom else None
    except Exception as reason:  # as below
        raise unreadable(path, reason) from reason
    if header is not None:
        _check_transform(path, header.affine)
        return header
    try:
        file, named = mask_file(path)
        path, selection = file, named if named.names else selection
        _check_file(path)
        header = _nrrd_header(path, selection) if path.name.lower().endswith(".nrrd") else _nifti_header(path)
    except Exception as reason:  # the libraries raise all kinds of errors on malformed bytes
        raise unreadable(path, reason) from reason
    _check_transform(path, header.affine)
    return replace(header, selection=selection if header.segments is not None else by_value(path, selection))


def on_grid(header: Header, image: Header | None) -> Header:
    """A file with named segments on the grid of its image, which 3D Slicer may have cropped away; others as they are.

    Where the voxels of the two grids do not coincide the header stays as it is.
    """
    if image is None or header.segments is None:
        return header
    found = placement(header.shape, header.affine, image.shape, image.affine)
    return header if found is None else replace(header, shape=image.shape, affine=image.affine, placement=found)


def named_segments(maps: Mapping[str, Path]) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Case → file and names of its segments, of those label maps that name them; what cannot be read is passed over."""
    found = {}
    for case, path in maps.items():
        try:
            header = read_header(path)
        except FindingError:
            continue
        if header.segments is not None:
            found[case] = (header.path, header.segments.names)
    return found


def _check_file(path: Path) -> None:
    if not stat.S_ISREG(_mode(path)):
        found = "a folder without DICOM files" if split_part(path)[0].is_dir() else "no such file"
        fail(path, "missing", found=found, expected="a file, or a folder with a DICOM series",
             fix=f"check the path in the datalist or pattern{_beside(path)}")  # fmt: skip
    if path.name.lower().endswith((".dcm", ".dicom", ".ima")):
        fail(path, "not an image", found="no DICOM file (DICM behind the first 128 bytes)",
             expected="what the name says", fix="copy it again, or export it as a DICOM file")  # fmt: skip
    if not path.name.lower().endswith(SUFFIXES):
        fail(path, "not an image", found=f"the name {path.name}", expected=f"one that ends in {', '.join(SUFFIXES)}",
             fix="convert it: it is not a format that is read here")  # fmt: skip
    if path.stat().st_size == 0:
        fail(path, "empty file", found="0 bytes", expected="a whole file", fix="copy it again")


def _beside(path: Path) -> str:
    """The volumes in a missing file's folder whose names begin most like its own."""
    try:
        names = sorted(other.name for other in path.parent.iterdir() if other.name.lower().endswith(SUFFIXES))
    except OSError:
        return ""
    pairs = {name: zip(name, path.name, strict=False) for name in names}
    alike = {name: next((i for i, (a, b) in enumerate(pair) if a != b), len(name)) for name, pair in pairs.items()}
    names.sort(key=lambda name: -alike[name])
    return f"; its folder holds {', '.join(names[:BESIDE])}{', …' if len(names) > BESIDE else ''}" if names else ""


def _mode(path: Path) -> int:
    """What kind of file it is, 0 for none.

    Raises:
        OSError: where it is not known: a folder that may not be read, links in a circle, a name too long.
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _nifti_head(path: Path) -> bytes:
    """The first bytes of a NIfTI file, uncompressed."""
    with path.open("rb") as stream:
        raw = stream.read(HEAD_BYTES)
    zipped, named = raw[:2] == b"\x1f\x8b", path.name.lower().endswith(".gz")
    if zipped and not named:
        fail(path, "not an image", found="gzip data under the name .nii", expected="what the name says",
             fix="rename it to .nii.gz")  # fmt: skip
    if named and not zipped:
        fail(path, "not an image", found="no gzip data under the name .nii.gz", expected="what the name says",
             fix="rename it to .nii if it is one, otherwise copy it again")  # fmt: skip
    return zlib.decompressobj(wbits=31).decompress(raw, 4096) if zipped else raw


def _nifti_header(path: Path) -> Header:
    head = _nifti_head(path)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(head)), None)
    if kind is None and len(head) < nib.Nifti1Header.sizeof_hdr:
        raise damaged(path, f"{len(head)} bytes, less than a NIfTI header")
    if kind is None:
        fail(path, "not an image", found="no NIfTI header", expected="what the name says", fix="copy it again")
    block = head[: kind.sizeof_hdr]
    stored = kind(block, check=False)  # nibabel's check turns sizes of 0 into 1 without a word
    shape = _volume_shape(path, stored.get_data_shape())
    dtype = stored.get_data_dtype()
    if dtype.kind not in "iuf":
        names = {"c": "complex numbers", "V": "colours (RGB) or another structured type"}
        fail(path, "not real numbers", found=names.get(dtype.kind, str(dtype)), expected="one real number per voxel",
             fix="write one channel, or the magnitude, as integers or floats")  # fmt: skip
    sizes = tuple(float(size) for size in stored["pixdim"][1:4])
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        fail(path, "unusable voxel size", found=f"pixdim {_numbers(sizes)}", expected="positive mm",
             fix="repair the header, or convert the source again")  # fmt: skip
    header = kind(block, check=True)
    notes = _transforms(path, header, shape)
    size = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize
    oriented = int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0
    return Header(path, shape, np.asarray(header.get_best_affine(), dtype=np.float64), size, notes, oriented=oriented)


def _volume_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Three axes, more only where they have length 1."""
    kept = tuple(int(n) for n in shape)
    kept = kept[:3] if all(n == 1 for n in kept[3:]) else kept
    if len(kept) != 3 or min(kept) < 1:
        fail(path, "not one 3D volume", found=f"{len(kept)}D, shape {kept}", expected="three axes",
             fix="extract the volume that is meant" if len(kept) > 3 else "give the whole volume, not a slice of it",
             )  # fmt: skip
    return kept  # type: ignore[return-value]


def _transforms(path: Path, header: Any, shape: tuple[int, int, int]) -> tuple[Finding, ...]:
    """Judge qform and sform of a NIfTI header.

    Raises:
        FindingError: for an sform that cannot be inverted.
    """
    qcode, scode = int(header["qform_code"]), int(header["sform_code"])
    if scode > 0:
        _check_transform(path, header.get_sform(), "sform")
    if qcode <= 0 and scode <= 0:
        return (warning(path, "no orientation", found="qform and sform codes both 0", expected="one of them set",
                        fix="left and right are unknown, LAS is assumed; set an orientation if that is wrong"),
                )  # fmt: skip
    if qcode <= 0 or scode <= 0:
        return ()
    try:
        # a qform stores a rotation and zooms in float32: compare what they do to the far corner
        apart = float(np.abs((header.get_qform() - header.get_sform()) @ np.array([*shape, 1.0]))[:3].max())
    except (HeaderDataError, ValueError):
        apart = math.inf  # a quaternion that is none
    if apart <= 0.1 * float(min(header["pixdim"][1:4])):
        return ()
    return (warning(path, "qform and sform disagree", found=f"{apart:.3g} mm apart at the far corner",
                    expected="one transform", fix="the sform is used; correct the header if the qform is right"),
            )  # fmt: skip


def _check_transform(path: Path, affine: NDArray[np.floating], name: str = "voxel-to-mm transform") -> None:
    """Raise unless the transform is finite and can be inverted."""
    matrix = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(matrix).all():
        fail(path, f"unusable {name}", found="NaN or infinite entries", expected="finite numbers",
             fix="repair the header, or convert the source again")  # fmt: skip
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if min(lengths) <= 0 or abs(np.linalg.det(matrix[:3, :3] / lengths)) < FLATNESS:
        fail(path, f"unusable {name}", found=f"a singular matrix, rows {matrix[:3, :3].round(4).tolist()}",
             expected="three independent axes", fix="repair the header, or convert the source again")  # fmt: skip


def _nrrd_header(path: Path, selection: Selection) -> Header:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"NRRD":
        fail(path, "not an image", found="no NRRD header", expected="what the name says", fix="copy it again")
    header = read_nrrd_header(path)
    segments, notes = segmentation_of(path, header, selection)
    layers = layers_axis(header) if segments is not None else None
    shape = _volume_shape(path, tuple(int(n) for axis, n in enumerate(header["sizes"]) if axis != layers))
    directions = header.get("space directions")
    if directions is None:
        fail(path, "no voxel size", found="no 'space directions' in the NRRD header", expected="them",
             fix="add them, or convert the source again")  # fmt: skip
    affine = np.eye(4)
    rows = np.asarray(directions, dtype=float)
    rows = rows if layers is None or len(rows) != 4 else np.delete(rows, layers, axis=0)
    if rows.shape != (3, 3):  # pynrrd gives a bare NaN for an axis without numbers
        fail(path, "unusable voxel-to-mm transform", found=f"space directions {directions}",
             expected="three finite vectors", fix="repair the header, or convert the source again")  # fmt: skip
    affine[:3, :3] = rows.T
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), dtype=float)
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space in ("left-posterior-superior", "lps"):
        affine = LPS_TO_RAS @ affine
    elif space not in ("right-anterior-superior", "ras"):
        fail(path, "unknown NRRD space", found=space, expected="left-posterior-superior or right-anterior-superior",
             fix="write it as left-posterior-superior")  # fmt: skip
    return Header(path, shape, affine, voxel_bytes(header), notes, segments=segments)


def _numbers(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:g}" for value in values)
