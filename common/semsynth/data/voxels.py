"""What a volume's voxels are, whatever file they stand in: a hash by which a scan or a label map is recognised."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import stamp
from .headers import on_grid, read_header
from .label_values import rounded
from .segments import EVERYTHING, Selection
from .volumes import read_volume

MOST_RANKS = 1 << 16
"""Whole numbers in a range up to this are counted, not sorted."""


def voxel_hash(data: NDArray[Any]) -> str | None:
    """SHA-256 of what a volume shows, independent of its file: header, name, compression, type, scaling of intensities.

    Hashed are the ranks of the values (the lowest 0, the next 1, …), so that 0/1 and 0/255 are one mask and any rising
    rescaling is one image; axes are put in an order, and run in a direction, that follow from the voxels themselves, so
    that a volume stored the other way round is the same one.

    Args:
        data: ``(H, W, D)``, finite.

    Returns:
        64 hexadecimal digits, or None for a constant volume, which tells nothing.

    Examples:
        >>> scan = np.random.default_rng(0).random((6, 5, 4))
        >>> voxel_hash(scan) == voxel_hash(1000 * scan[::-1])  # stored the other way round, on another scale
        True
        >>> voxel_hash(scan) == voxel_hash(scan[:5])  # cropped
        False
    """
    ranks = _ranks(np.asarray(data))
    if ranks is None:
        return None
    oriented = _in_own_order(ranks)
    digest = hashlib.sha256(f"semsynth voxels 1 {oriented.shape}".encode())
    digest.update(oriented.data)
    return digest.hexdigest()


def hash_file(path: str | Path, selection: Selection = EVERYTHING, image: str | Path | None = None) -> str | None:
    """:func:`voxel_hash` of a file; read once as long as it does not change.

    Args:
        path: the file.
        selection: part of a file of labels that is read.
        image: on whose grid a file with named segments is put.

    Returns:
        None for a file that cannot be read as a volume, too: whoever checks it says why.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.data.volumes import write_image
        >>> scan = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
        >>> with TemporaryDirectory() as folder:
        ...     hash_file(write_image(f"{folder}/scan.nii.gz", scan, np.eye(4), "float32")) == voxel_hash(scan)
        True
    """
    path = Path(path)
    try:
        return _hash_file(path, stamp(path), selection, image and Path(image))
    except OSError:
        return None


@lru_cache(maxsize=1 << 14)
def _hash_file(path: Path, _stamp: tuple[int, int], selection: Selection, image: Path | None) -> str | None:
    try:
        header = read_header(path, selection)
        if header.segments is not None and image is not None:
            header = on_grid(header, read_header(image))
        data = read_volume(path, header).data
    except InputError:
        return None
    finite = data.dtype.kind != "f" or bool(np.isfinite(data).all())
    return voxel_hash(data) if finite else None


def _ranks(data: NDArray[Any]) -> NDArray[Any] | None:
    low, high = data.min(), data.max()
    if low == high:
        return None
    whole = rounded(data)
    if whole is not data and whole.min() < whole.max():  # a mask that a float file holds is the same mask
        data, low, high = whole, whole.min(), whole.max()
    if data.dtype.kind == "f" and float(high) - float(low) < MOST_RANKS and np.array_equal(data, np.rint(data)):
        data, low, high = data.astype(np.int64), int(low), int(high)
    if data.dtype.kind != "f" and int(high) - int(low) < MOST_RANKS:
        wide = np.int32 if data.dtype.itemsize <= 2 else np.int64  # in which nothing overflows
        places = data if data.dtype == np.uint8 else (data.astype(wide) - int(low)).astype(np.uint16)
        present = np.zeros(MOST_RANKS, dtype=bool)
        present[places.ravel(order="K")] = True
        count = int(np.count_nonzero(present))
        table = np.cumsum(present) - 1
        ranks = table.astype(np.uint8 if count <= 1 << 8 else np.uint16)[places]
    else:
        values, inverse = np.unique(data, return_inverse=True)
        ranks, count = inverse.reshape(data.shape), len(values)
    kind = np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.uint32
    return np.asarray(ranks, dtype=kind)


def _in_own_order(ranks: NDArray[Any]) -> NDArray[Any]:
    """Each axis run so that its sums over the planes across it come in the lesser order; axes by length, then sums."""
    sums = [ranks.sum(axis=tuple(a for a in range(ranks.ndim) if a != axis), dtype=np.uint64).tolist()
            for axis in range(ranks.ndim)]  # fmt: skip
    backwards = [axis for axis, line in enumerate(sums) if line[::-1] < line]
    order = sorted(range(ranks.ndim), key=lambda axis: (len(sums[axis]), min(sums[axis], sums[axis][::-1])))
    return np.ascontiguousarray(np.flip(ranks, tuple(backwards)).transpose(order))
