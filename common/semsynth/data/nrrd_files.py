"""NRRD files, no more of them than their header says: pynrrd reads and unpacks whatever follows."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np
from nrrd.reader import _determine_datatype
from numpy.typing import NDArray

from .findings import FindingError, error
from .inflate import Packing, cannot_hold, inflate

MOST_HEADER = 1 << 23
"""Bytes of a header; a segmentation of some hundred segments has 100 000."""
_PACKINGS: dict[str, Packing] = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_ELSEWHERE = ("data file", "datafile", "byteskip", "byte skip", "lineskip", "line skip")
_TEXTS = ("ascii", "ASCII", "text", "txt")


def read_nrrd_header(path: Path) -> dict[str, Any]:
    """The header of a file.

    Raises:
        FindingError: for one without an end.
        NRRDError: as pynrrd.
    """
    with path.open("rb") as stream:
        return dict(nrrd.read_header(_lines(stream, path)))


def _lines(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a header; the stream then stands behind it."""
    while line := stream.readline(MOST_HEADER):
        if stream.tell() >= MOST_HEADER:
            raise _damaged(path, f"a header without an end in {MOST_HEADER} bytes")
        yield line


def voxel_bytes(header: Mapping[str, Any]) -> int:
    """Bytes that the voxels of a header take in memory."""
    kind: np.dtype[Any] = np.dtype(_determine_datatype(dict(header)))
    return math.prod(int(n) for n in header["sizes"]) * kind.itemsize


def read_nrrd(path: Path) -> NDArray[Any]:
    """The array of a file, with its axes in the header's order.

    Raises:
        FindingError: for another number of bytes than the header says; for voxels in another file that is none.
        NRRDError, EOFError, OSError, zlib.error: for damaged data.
    """
    with path.open("rb") as stream:
        header = dict(nrrd.read_header(_lines(stream, path)))
        start = stream.tell()
    if header.get("encoding") in _TEXTS:
        return np.asarray(nrrd.read(str(path))[0])
    named = header.get("data file", header.get("datafile"))
    place, start = (path, start) if named is None else (path.parent / str(named), 0)
    if not place.is_file():
        raise _damaged(path, f"its voxels in {named}, which is no file")
    needed, skip = voxel_bytes(header), _whole(header, "byteskip", "byte skip")
    packing = _PACKINGS.get(str(header.get("encoding")))
    there = place.stat().st_size - start
    if cannot_hold(there, needed, packing):
        raise _damaged(
            place, f"{there} bytes, which hold less than {needed}" if packing else f"{there} of {needed} bytes"
        )
    with place.open("rb") as stream:
        stream.seek(start)
        for _ in range(_whole(header, "lineskip", "line skip")):
            if not stream.readline(MOST_HEADER):
                break
        if packing is None:
            stream.seek(*((-needed, os.SEEK_END) if skip == -1 else (skip, os.SEEK_CUR)))
            content = stream.read(needed + 1)
        else:
            content = inflate(stream.read(), needed + max(skip, 0), place, packing)
            content = content[-needed:] if skip == -1 else content[skip:]
    if len(content) != needed:
        raise _damaged(place, f"{'more than ' if len(content) > needed else f'{len(content)} of '}{needed} bytes")
    attached = {key: value for key, value in header.items() if key not in _ELSEWHERE}
    return np.asarray(nrrd.read_data(attached | {"encoding": "raw"}, io.BytesIO(content)))


def _whole(header: Mapping[str, Any], *names: str) -> int:
    return next((int(header[name]) for name in names if name in header), 0)


def _damaged(path: Path, found: str) -> FindingError:
    return FindingError(error(path, "truncated or damaged", found=found, expected="a whole file that holds what its "
                              "header says", fix="copy it again, or convert the source again"))  # fmt: skip
