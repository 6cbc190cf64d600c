"""What the intensities of an image give away: defective voxels, padding, CT without a window, lost grey levels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, of_case, warning
from .intensity import PADDING, PERCENTILES, Ends, Intensity

FAR = 4.0
"""A maximum so many times as far above the minimum as percentile 99.9 is an outlier (la2018: 2.4 at most)."""
FAR_BELOW = 3.0
"""A minimum so many times the range of percentiles 0.1 to 99.9 below percentile 0.1 is an outlier (la2018: 0.05)."""
BELOW_AIR = 0.1
"""The same for a minimum below air."""
LOWEST = 0.1
FEW = 1e-3
"""Share of the voxels below which a value is a defect, or a window leaves nothing of an image."""
FAR_FROM_OTHERS = 20.0
"""A range so many times the median of the data set's, or so small a part of it, is an outlier."""
FEWEST_OTHERS = 4
WINDOW_MISFIT = "the window does not fit"
FEWEST_LEVELS = 20
"""An image of fewer grey levels was scaled badly before (la2018 as published has 38 or more)."""
SAMPLE = 1 << 20


def check_histogram(path: str | Path, data: NDArray[Any], stated: Intensity | None = None) -> list[Finding]:
    """Warnings on the intensities of one finite image with more than one value.

    Args:
        path: its file.
        data: its voxels.
        stated: statement of its datalist on its values: of a window only its fit and the count of
            grey levels are looked at.
    """
    least, most = float(data.min()), float(data.max())
    part = _sample(data)
    if stated is not None and stated.window is not None:
        found = _of_window(path, part, (least, most), stated.window)
        return found or _of_levels(path, np.clip(part, *stated.window))
    body = part[part != 0]
    low, usual = map(float, np.percentile(body, (LOWEST, PERCENTILES[1]))) if body.size else (least, most)
    found = _of_minimum(path, part, least, (low, usual))
    floor = low if found else least
    if usual > floor and most - floor > FAR * (usual - floor):
        found.append(warning(
            path, "maximum far above all else", found=f"{most:.6g}, with 99.9 % of the voxels below {usual:.6g}",
            expected="a maximum that belongs to the tissue",
            fix="look at the brightest voxels; 'semsynth prepare' clips them unless --scale min-max is given",
        ))  # fmt: skip
    else:
        usual = most
    found += _of_ct(path, part, least, most)
    return found + _of_levels(path, part[(part >= floor) & (part <= usual)])


def _of_window(path: str | Path, part: NDArray[Any], ends: Ends, window: Ends) -> list[Finding]:
    """A window that leaves nothing of an image but 0 and 1."""
    beyond = ends[0] < window[0] or ends[1] > window[1]
    if not beyond or np.mean((part > window[0]) & (part < window[1])) >= FEW:
        return []
    return [warning(
        path, WINDOW_MISFIT, found=f"intensities from {ends[0]:g} to {ends[1]:g}, nearly none between the "
        "window's ends", expected=f"intensities within the window, {window[0]:g} to {window[1]:g}",
        fix='give a --window in the values of the file; where the datalist states it as "intensity", correct it there',
    )]  # fmt: skip


def _of_levels(path: str | Path, inside: NDArray[Any]) -> list[Finding]:
    """Too few grey levels."""
    levels = len(np.unique(inside))
    if levels >= FEWEST_LEVELS:
        return []
    return [warning(
        path, "few grey levels", found=f"{levels} distinct intensities below the brightest voxels",
        expected=f"{FEWEST_LEVELS} or more",
        fix="convert the source again without scaling it to its maximum, or prepare it without --scale min-max",
    )]  # fmt: skip


def _of_minimum(path: str | Path, part: NDArray[Any], least: float, usual: Ends) -> list[Finding]:
    """A minimum that is no tissue's, in so few voxels that it is not padding either."""
    far = (FAR_BELOW if least >= PADDING else BELOW_AIR) * (usual[1] - usual[0])
    if far <= 0 or usual[0] - least <= far or np.mean(part < usual[0] - far) >= FEW:
        return []
    return [warning(
        path, "minimum far below all else", found=f"{least:.6g}, with 99.9 % of the voxels above {usual[0]:.6g}",
        expected="a minimum that belongs to the tissue or to air",
        fix="look at the darkest voxels; 'semsynth prepare' and 'prepare-maps' clip them with --percentiles 0.1,99.9 "
        "(or with the --window of CT)",
    )]  # fmt: skip


def _of_ct(path: str | Path, part: NDArray[Any], least: float, most: float) -> list[Finding]:
    """Padding, and values that look like Hounsfield units without a window."""
    found = []
    if least < PADDING and most > 0 and np.mean(part < PADDING) >= FEW:
        found.append(warning(
            path, "padding below air", found=f"{least:g} in {np.mean(part == least):.1%} of the voxels",
            expected=f"no intensity below {PADDING:g} (CT)",
            fix="give 'semsynth prepare-maps' a --window such as -1000,1000: what lies below becomes 0",
        ))  # fmt: skip
    air = -1500 < float(np.percentile(part[part >= PADDING], 1)) < -500 if (part >= PADDING).any() else False
    if air and most > 200:
        found.append(warning(
            path, "looks like CT without a window", found=f"intensities from {least:g} to {most:g}",
            expected="a window, the same for all cases",
            fix="prepare it with --modality CT --window -1000,1000 (prepare-maps), so that units are kept",
        ))  # fmt: skip
    return found


def check_modality(path: str | Path, content: Mapping[str, Any], stated: Intensity | None) -> list[Finding]:
    """A warning on a datalist that says that its images are CT, and not which intensities are 0 and 1.

    Args:
        path: the datalist.
        content: its content.
        stated: statement of the datalist on its files.
    """
    modality = content.get("modality")
    said = [str(name).strip().upper() for name in modality.values()] if isinstance(modality, Mapping) else []
    if "CT" not in said or (stated is not None and stated.unit_range is not None):
        return []
    windowed = stated is not None and stated.scaling is not None and stated.scaling.scale == "window"
    kind, found = ("unit", "a window without a unit") if windowed else ("window", "modality CT, and no window")
    return [warning(
        path, f"CT without a {kind}", found=found, expected="a window in Hounsfield units, the same for all cases",
        fix="prepare it with 'semsynth prepare-maps --modality CT --window -1000,1000', with --hu-offset where the "
        'files hold something else, or state "intensity": {"window": [-1000, 1000], "unit": "HU"}',
    )]  # fmt: skip


def check_ranges(ranges: Mapping[str, tuple[str, float]]) -> list[Finding]:
    """Warnings on cases whose range of intensities is far from that of the data set's other cases.

    Args:
        ranges: case → file, and what :func:`span` gives of it.
    """
    if len(ranges) < FEWEST_OTHERS:
        return []
    middle = float(np.median([value for _, value in ranges.values()]))
    return [
        finding
        for case, (path, value) in ranges.items()
        if middle > 0 and not middle / FAR_FROM_OTHERS <= value <= middle * FAR_FROM_OTHERS
        for finding in of_case(case, [warning(
            path, "another range of intensities than the other cases", found=f"{value:.4g} from percentile 0.1 to 99.9",
            expected=f"about {middle:.4g}, the median of the data set",
            fix="check its unit, its rescale slope and its file",
        )])
    ]  # fmt: skip


def _sample(data: NDArray[Any]) -> NDArray[Any]:
    """Up to about a million voxels, evenly from the whole volume."""
    flat: NDArray[Any] = data.ravel(order="K")
    return flat[:: max(flat.size // SAMPLE, 1)]


def span(data: NDArray[Any]) -> float:
    """The range from percentile 0.1 to 99.9 of the non-zero voxels, which one defective voxel does not change."""
    part = _sample(data)
    body = part[part != 0]
    low, high = np.percentile(body, (LOWEST, PERCENTILES[1])) if body.size else (data.min(), data.max())
    return float(high) - float(low)
