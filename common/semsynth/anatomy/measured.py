"""What is measured of a label map before and after morphing, and the limits that are learned from maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..errors import InputError
from .rules import MorphRules
from .shape import Branch, Mask, Topology, branches_of, shape_of, topology_of
from .shell import openness_of, thickness_of

OPENED = 0.05
"""A wall may leave so much more of the cavity's surface open than it did; slanted surfaces have more faces."""
LEAST_WIDENING = 0.1
"""Of the middle of a range, for few maps."""


@dataclass(frozen=True)
class Anatomy:
    """Figures of the classes that have a rule and are in the map, by name."""

    figures: Mapping[str, Mapping[str, float]]
    """``volume_ml``, ``surface_cm2``, ``elongation``, ``flatness``, ``branches``; of a wall ``thickness_mm`` and
    ``openness``; of patches ``share``."""
    topology: Mapping[str, Topology]
    branches: Mapping[str, Sequence[Branch]]


def anatomy_of(
    label: NDArray[np.integer], spacing: Sequence[float], index: Mapping[str, int], rules: MorphRules
) -> Anatomy:
    """Measure a map.

    Args:
        label: ``(H, W, D)`` class indices.
        spacing: mm per voxel.
        index: name → class, of those that have a rule.
        rules: rules whose classes are measured.

    Examples:
        >>> from semsynth.anatomy import MorphRules
        >>> label = np.zeros((24, 24, 24), np.uint8)
        >>> label[7:17, 7:17, 7:17] = 1
        >>> anatomy = anatomy_of(label, (2.0, 2.0, 2.0), {"organ": 1}, MorphRules.of({"classes": {"organ": {}}}))
        >>> anatomy.figures["organ"]["volume_ml"]
        8.0
    """
    figures: dict[str, Mapping[str, float]] = {}
    branches: dict[str, list[Branch]] = {}
    topology: dict[str, Topology] = {}
    for name, rule in rules.classes.items():
        if name not in index or not (mask := label == index[name]).any():
            continue
        if rule.topology:
            topology[name] = topology_of(mask)
        if rule.wall_of:
            if rule.wall_of in index:
                figures[name] = _wall_figures(label == index[rule.wall_of], with_patches(label, name, index, rules),
                                              spacing)  # fmt: skip
        elif rule.patches_on:
            under = int(np.count_nonzero(label == index[rule.patches_on])) if rule.patches_on in index else 0
            figures[name] = {"share": int(np.count_nonzero(mask)) / (under + int(np.count_nonzero(mask)))}
        else:
            branches[name] = branches_of(mask, spacing)
            figures[name] = shape_of(mask, spacing, len(branches[name]))._asdict()
    return Anatomy(figures, topology, branches)


def with_patches(label: NDArray[np.integer], name: str, index: Mapping[str, int], rules: MorphRules) -> Mask:
    """A class and the patches that lie on it: scarred wall is wall."""
    values = [index[name], *(index[n] for n, rule in rules.classes.items() if rule.patches_on == name and n in index)]
    return np.isin(label, values)


@dataclass(frozen=True)
class ShapeLimits:
    """Between which values a figure may lie: those of maps of real people, and somewhat beyond.

    Args:
        ranges: name of the class → figure → lowest and highest value.

    Examples:
        >>> from semsynth.anatomy import MorphRules
        >>> rules, anatomies = MorphRules.of({"classes": {"organ": {}}}), []
        >>> for size in (8, 10, 12):
        ...     label = np.zeros((24, 24, 24), np.uint8)
        ...     label[4 : 4 + size, 4 : 4 + size, 4 : 4 + size] = 1
        ...     anatomies.append(anatomy_of(label, (2.0, 2.0, 2.0), {"organ": 1}, rules))
        >>> low, high = ShapeLimits.learn(anatomies, widen=0.1).range_of("organ", "volume_ml")
        >>> low < 4.1 and high > 13.8  # somewhat beyond 8³ and 12³ voxels of 8 mm³
        True
    """

    ranges: Mapping[str, Mapping[str, tuple[float, float]]]

    @classmethod
    def learn(cls, anatomies: Iterable[Anatomy], widen: float) -> ShapeLimits:
        """Limits from maps.

        Args:
            anatomies: anatomies of training maps, and of no others.
            widen: share of each range by which it is widened at either end, by 10 % of its middle at least; where the
                95 % prediction interval of one more value reaches further, it counts.

        Raises:
            InputError: where there is no map.
        """
        values: dict[str, dict[str, list[float]]] = {}
        for anatomy in anatomies:
            for name, figures in anatomy.figures.items():
                for figure, value in figures.items():
                    if figure != "openness":  # held to that of the map itself
                        values.setdefault(name, {}).setdefault(figure, []).append(value)
        if not values:
            raise InputError("limits of morphing: no map has a class with a rule; give maps, or none of these limits")
        return cls({name: {f: widened(v, widen) for f, v in table.items()} for name, table in values.items()})

    def range_of(self, name: str, figure: str) -> tuple[float, float]:
        """Lowest and highest value; infinite where nothing was learned."""
        return self.ranges.get(name, {}).get(figure, (-math.inf, math.inf))

    def including(self, anatomy: Anatomy) -> ShapeLimits:
        """These limits, wide enough for one more map, such as the one that is morphed."""
        ranges = {name: dict(table) for name, table in self.ranges.items()}
        for name, table in ranges.items():
            for figure, (low, high) in table.items():
                value = anatomy.figures.get(name, {}).get(figure, low)
                table[figure] = (min(low, value), max(high, value))
        return ShapeLimits(ranges)

    def as_json(self) -> dict[str, dict[str, list[float]]]:
        """A table for a JSON file."""
        return {name: {f: [float(low), float(high)] for f, (low, high) in t.items()} for name, t in self.ranges.items()}

    @classmethod
    def from_json(cls, content: Any, source: str = "limits") -> ShapeLimits:
        """What :meth:`as_json` gave.

        Raises:
            InputError: for anything else.
        """
        try:
            ranges = {
                str(name): {str(f): (float(low), float(high)) for f, (low, high) in table.items()}
                for name, table in content.items()
            }
        except (AttributeError, TypeError, ValueError):
            raise InputError(
                f'{source}: limits of morphing must be such as {{"endo": {{"volume_ml": [30, 140]}}}}, found '
                f"{content!r}"
            ) from None
        return cls(ranges)


NO_LIMITS = ShapeLimits({})


def refusal(before: Anatomy, after: Anatomy, rules: MorphRules, limits: ShapeLimits) -> str:
    """The first reason why a morphed map is refused, such as ``endo: tunnels``; empty where there is none.

    Args:
        before, after: figures of the map and of what became of it.
        rules: rules of the classes.
        limits: limits that the figures after must keep.
    """
    for name in rules.classes:
        if (name in before.figures and name not in after.figures) or (
            name in before.topology and name not in after.topology
        ):
            return f"{name}: nothing left"
    for name, old in before.topology.items():
        new = after.topology[name]
        for what in Topology._fields:
            if getattr(new, what) > getattr(old, what):
                return f"{name}: {what}"
    for name, figures in after.figures.items():
        opened = before.figures.get(name, {}).get("openness", 1.0) + OPENED
        if figures.get("openness", 0.0) > opened:
            return f"{name}: openness"
        for figure, value in figures.items():
            low, high = limits.range_of(name, figure)
            if not low <= value <= high:
                return f"{name}: {figure}"
    return ""


def _wall_figures(cavity: Mask, wall: Mask, spacing: Sequence[float]) -> dict[str, float]:
    openness = openness_of(cavity, wall, spacing)
    return {"thickness_mm": thickness_of(cavity, wall, spacing, openness), "openness": openness}


def widened(values: Sequence[float], widen: float) -> tuple[float, float]:
    """The range and somewhat more, or where that is wider the 95 % prediction interval of one more value.

    The range of few values says little. The interval is that of a log-normal distribution (of a normal one where a
    value is 0): volumes of hearts are skewed. Neither goes beyond half the lowest and twice the highest value.
    """
    low, high, count = min(values), max(values), len(values)
    more = max(widen * (high - low), LEAST_WIDENING * abs(high + low) / 2)
    below, above = low - more, high + more
    if count > 1:
        scaled = np.log(values) if low > 0 else np.asarray(values)
        reach = stats.t.ppf(0.975, count - 1) * np.std(scaled, ddof=1) * math.sqrt(1 + 1 / count)
        ends = np.array([np.mean(scaled) - reach, np.mean(scaled) + reach])
        ends = np.exp(np.clip(ends, math.log(low / 2), math.log(2 * high))) if low > 0 else ends
        below, above = min(below, float(ends[0])), max(above, float(ends[1]))
    return max(below, low / 2), min(above, 2 * high)
