"""Synthetic volumes as DICOM: a series of slices, and the label map as a SEG that refers to it.

Reading DICOM is in :mod:`semsynth.data.dicom`. The packages of the extra ``dicom`` are imported when something is
written, so that the command can say which one is missing.
"""

from __future__ import annotations

from ...data.dicom import needs
from .settings import DicomSettings, Written

__all__ = ["DicomSettings", "Written", "write_dicom"]


def write_dicom(
    volume: str, output: str, settings: DicomSettings, *, overwrite: bool = False, wait: bool = False
) -> list[Written]:
    """Write synthetic volumes as DICOM; see :func:`semsynth.interop.dicom.run.write_all`.

    Raises:
        InputError: also where a package of the extra ``dicom`` is missing.
    """
    needs(volume)
    from .run import write_all

    return write_all(volume, output=output, settings=settings, overwrite=overwrite, wait=wait)
