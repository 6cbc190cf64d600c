"""DICOM as volumes: a folder that holds a series of slices, a SEG's segments, an RTSTRUCT's contours.

A path names a folder, or a file of segments; behind a ``#`` stands which series (UID or description), segment or ROI
(name) is meant. Patients' names are never read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..findings import FindingError
from ..headers import Header
from ..segments import EVERYTHING, Selection
from .files import is_dicom, needs
from .masks import read_mask
from .series import chosen, listing, read_slices, stack_of

__all__ = ["is_dicom", "listing", "needs", "read_dicom_header", "read_dicom_voxels", "same_modality"]


def read_dicom_header(path: str | Path, selection: Selection = EVERYTHING) -> Header:
    """The grid of a DICOM series, without its voxels; of a SEG or RTSTRUCT also the segments that are meant.

    Args:
        path: a folder or file; the name behind a ``#`` says which segment or ROI is meant.
        selection: part of a SEG or RTSTRUCT that is read where no name stands behind a ``#``.

    Raises:
        FindingError: the extra ``dicom`` is not installed; no series, several ones, no such part; a series that is not
            one volume of evenly spaced slices; Enhanced multi-frame; missing or damaged files.
    """
    needs(path)
    item = chosen(path)
    if item.is_mask:
        return read_mask(Path(path), item, selection)[0]
    stack = stack_of(path, item)
    return Header(Path(path), stack.shape, stack.affine, notes=stack.notes, selection=selection)


def read_dicom_voxels(path: str | Path, selection: Selection = EVERYTHING) -> NDArray[Any]:
    """``(columns, rows, slices)`` of a series, after its rescale slope and intercept (CT: in HU).

    Of a SEG or RTSTRUCT the values that the header's ``segments`` say, with an axis of layers before the others where
    segments overlap.

    Raises:
        FindingError: as :func:`read_dicom_header`.
    """
    needs(path)
    item = chosen(path)
    if item.is_mask:
        return read_mask(Path(path), item, selection)[1]
    return read_slices(stack_of(path, item))


def same_modality(paths: Iterable[Path]) -> str | None:
    """The Modality of DICOM series, such as ``CT``; None where they have several, or where not all are DICOM."""
    found: set[str | None] = set()
    for path in paths:
        try:
            item = chosen(path) if is_dicom(path) else None
        except (FindingError, ImportError, OSError):  # the check of the files says it
            item = None
        found.add(item.images[0].modality if item is not None and item.images else None)
        if len(found) > 1 or None in found:
            return None
    return next(iter(found), None)
