"""Intensities as DICOM pixels: Hounsfield units, or whole numbers of no unit, and the windows to show them with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.headers import fail
from ...data.intensity import HU, Intensity, no_air

STEPS = 32767
"""Stored value of the intensity 1; that of int16 files of [0, 1] too, whose numbers therefore stay as they are."""
SOFT_TISSUE = (40.0, 400.0)
"""Centre and width of the usual first window on CT, HU."""
BRIGHTEST = 99.5
"""Percentile of all voxels that an MR window ends at."""


@dataclass(frozen=True)
class Pixels:
    """Stored values of a volume.

    Attributes:
        data: as the volume's, uint16 or int16.
        windows: centre and width to show it with, the first is the usual one, and what each is called.
        rescaled: True where stored values are in a unit (HU), with Rescale Slope 1 and Rescale Intercept 0.
        real_world: slope and intercept from stored values to the file's; None where they are the file's own.
    """

    data: NDArray[Any]
    windows: tuple[tuple[float, float, str], ...]
    rescaled: bool = False
    real_world: tuple[float, float] | None = None


def pixels_of(path: Path, image: NDArray[Any], modality: str, held: Intensity) -> Pixels:
    """Intensities of a file → stored values.

    Args:
        path: path of the file, for messages.
        image: ``(H, W, D)``.
        modality: CT becomes Hounsfield units, everything else whole numbers of no unit.
        held: intensities of the file.

    Raises:
        FindingError: values that are not finite, all the same, no Hounsfield units (CT), or beyond 16 bits.
    """
    if not np.isfinite(image).all():
        fail(path, "NaN or infinite values", found=f"{int((~np.isfinite(image)).sum())} of them",
             expected="finite intensities", fix="make the volume again")  # fmt: skip
    if image.min() == image.max():
        fail(path, "image is constant", found=f"{image.min():g} everywhere", expected="intensities",
             fix="check that it is the right file")  # fmt: skip
    return _hounsfield(path, image, held) if modality == "CT" else _whole_numbers(image, held)


def _hounsfield(path: Path, image: NDArray[Any], held: Intensity) -> Pixels:
    values = image.astype(np.float64)
    if held.unit == HU and held.window is not None and held.unit_range is not None:
        (low, high), (least, most) = held.window, held.unit_range
        values = least + (values - low) * (most - least) / (high - low)
    elif no_air(image):
        fail(path, "no Hounsfield units", found=f"values from {image.min():g} to {image.max():g} and no record of what "
             "they are", expected="Hounsfield units, in which air is about -1000", fix="make the volume with weights "
             "whose preparation knew them (prepare-maps --hu-offset), or give --modality MR if it is no CT",
             )  # fmt: skip
    limits = np.iinfo(np.int16)
    if values.min() < limits.min or values.max() > limits.max:
        fail(path, "values beyond 16 bits", found=f"{values.min():g} to {values.max():g} HU",
             expected=f"{limits.min} to {limits.max}", fix="check that it is the right file")  # fmt: skip
    stored = np.rint(values).astype(np.int16)
    low, high = float(stored.min()), float(stored.max())
    everything = ((low + high) / 2, max(high - low, 1.0), "WHOLE RANGE")
    return Pixels(stored, ((*SOFT_TISSUE, "SOFT TISSUE"), everything), rescaled=True)


def _whole_numbers(image: NDArray[Any], held: Intensity) -> Pixels:
    least, most = float(image.min()), float(image.max())
    kind = np.uint16 if least >= 0 else np.int16
    limits = np.iinfo(kind)
    back: tuple[float, float] | None = None
    if most - least >= 100 and limits.min <= least and most <= limits.max and bool((image == np.rint(image)).all()):
        stored = image.astype(kind)
    else:
        low, high = held.window or (least, most)
        low, high = min(low, least), max(high, most)
        stored = np.rint((image.astype(np.float64) - low) * (STEPS / (high - low))).astype(np.uint16)
        back = ((high - low) / STEPS, low)
    low, high = float(stored.min()), float(np.percentile(stored, BRIGHTEST))
    return Pixels(stored, (((low + high) / 2, max(high - low, 1.0), "BRIGHTEST 0.5 % CUT"),), real_world=back)
