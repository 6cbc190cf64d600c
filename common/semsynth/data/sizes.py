"""Whether volumes fit into memory on another voxel size, from their headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..memory import too_much
from .findings import FindingError
from .geometry import in_order
from .headers import read_header

RESAMPLING_BYTES = 28
"""Per voxel of the result, measured: what MONAI's Spacing holds at its peak, for float32."""
PADDING_BYTES = 12
"""Per voxel: an image and its map before and after zeros were put around them."""


def check_resampling(
    files: Mapping[str, Path],
    spacing: Sequence[float] | None,
    *,
    fix: str,
    size: Sequence[int] | None = None,
    at_once: int = 1,
) -> None:
    """Raise where cases cannot be resampled, or zeros put around them, in the memory that is free.

    Args:
        files: case → image; headers that cannot be read are passed over.
        spacing: mm per voxel along right, anterior, superior; None keeps each case's own.
        fix: remedy, for the message.
        size: voxels that cases are padded to; None does not.
        at_once: cases at the same time.

    Raises:
        InputError: naming the largest case, what it needs and what there is.
    """
    needed: list[tuple[float, str, tuple[float, ...]]] = []
    padded = 0.0 if size is None else math.prod(float(n) for n in size) * PADDING_BYTES
    for case, path in files.items():
        try:
            own, shape = in_order(read_header(path))
        except FindingError:
            continue
        found: tuple[float, ...] = tuple(shape)
        if spacing is not None:
            found = tuple(max(n * mm / new, 1.0) for n, mm, new in zip(shape, own, spacing, strict=True))
        resampled = 0.0 if spacing is None else math.prod(found) * RESAMPLING_BYTES
        if padded > resampled and size is not None:
            found = tuple(map(float, size))
        needed.append((max(resampled, padded), case, found))
    largest = sorted(needed, reverse=True)[:at_once]
    excess = too_much(sum(count for count, _, _ in largest))
    if excess is not None:
        voxels = " × ".join(f"{n:.3g}" if n >= 1e5 else f"{n:.0f}" for n in largest[0][2])
        together = f" ({len(largest)} at once)" if len(largest) > 1 else ""
        raise InputError(f"case {largest[0][1]}: {voxels} voxels{together} would need at least {excess}; {fix}")
