"""DICOM as volumes: a folder that holds a series of slices, a SEG's segments, an RTSTRUCT's contours.

A path names a folder, or a file of segments; behind a ``#`` stands which series (UID or description), segment or ROI
(name) is meant. Patients' names are never read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..headers import Header
from .files import is_dicom, needs
from .masks import read_mask
from .series import chosen, listing, read_slices, stack_of

__all__ = ["is_dicom", "listing", "needs", "read_dicom_header", "read_dicom_voxels"]


def read_dicom_header(path: str | Path) -> Header:
    """The grid of a DICOM series, segment or ROI; of a series without its voxels.

    Raises:
        FindingError: the extra ``dicom`` is not installed; no series, several ones, no such part; a series that is not
            one volume of evenly spaced slices; Enhanced multi-frame; missing or damaged files.
    """
    needs(path)
    item = chosen(path)
    if item.is_mask:
        return read_mask(Path(path), item)[0]
    stack = stack_of(path, item)
    return Header(Path(path), stack.shape, stack.affine, notes=stack.notes)


def read_dicom_voxels(path: str | Path) -> NDArray[Any]:
    """``(columns, rows, slices)`` of a series (after its rescale slope and intercept: CT in HU) or 0/1 of a mask.

    Raises:
        FindingError: as :func:`read_dicom_header`.
    """
    needs(path)
    item = chosen(path)
    if item.is_mask:
        return read_mask(Path(path), item)[1]
    return read_slices(stack_of(path, item))
