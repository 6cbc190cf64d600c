"""Named figures of label maps, such as ``endo.volume_ml``: what a generator of maps is told and can be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.classes import plain_name
from ..errors import InputError
from .measured import anatomy_of, widened
from .rules import MorphRules, rules_for
from .shape import Topology
from .shell import LEAST_MM, MOST_MM

LENGTH = "branches_mm"
"""Sum of the lengths of a class's branches, beside the figures of :class:`~semsynth.anatomy.measured.Anatomy`."""


class MapFigures:
    """Figures of a map's classes by name: ``<class>.<figure>``.

    Args:
        classes: names of the classes, from class 0 on, or index → name.
        names: names of the figures: ``volume_ml``, ``surface_cm2``, ``elongation``, ``flatness``, ``branches``,
            ``branches_mm``, ``parts``, ``hollows``, ``tunnels`` of a class with a rule; ``thickness_mm`` and
            ``openness`` of a wall; ``share`` of patches.
        rules: rules that say which class is a wall of which; as in :class:`~semsynth.prepare.morph.MorphLabel`.

    Raises:
        InputError: for a name of a class that there is not, or has no rule.

    Examples:
        >>> import numpy as np
        >>> figures = MapFigures(["background", "endo"], ["endo.volume_ml", "endo.parts"], {"classes": {"endo": {}}})
        >>> label = np.zeros((24, 24, 24), np.uint8)
        >>> label[7:17, 7:17, 7:17] = 1  # 20 mm along each axis
        >>> figures(label, (2.0, 2.0, 2.0))
        [8.0, 1.0]
    """

    def __init__(
        self,
        classes: Sequence[str] | Mapping[int, str] | Mapping[str, str],
        names: Sequence[str],
        rules: str | Path | Mapping[str, Any] | MorphRules | None = None,
    ) -> None:
        table = classes if isinstance(classes, Mapping) else dict(enumerate(classes))
        found = {int(index): str(name) for index, name in table.items()}
        self.rules = rules_for(found, rules)
        self.index = {plain_name(name): index for index, name in found.items()}
        self.names = [str(name) for name in names]
        for name in self.names:
            owner, _, figure = name.rpartition(".")
            if owner not in self.index or owner not in self.rules.classes or not figure:
                raise InputError(
                    f"figure {name!r}: must be a class with a rule, a point and a figure, such as endo.volume_ml; "
                    f"classes with a rule: {', '.join(c for c in self.rules.classes if c in self.index) or 'none'}"
                )

    def limits(self, rows: Sequence[Sequence[float]], widen: float | None = None) -> list[tuple[float, float]]:
        """Between which values the figures of maps may lie: those of given maps, and somewhat beyond.

        Topology is not widened, and a class may have one part where the given maps have at least one; a wall's mean
        thickness is 1 to 6 mm in any case.

        Args:
            rows: the figures of maps; a map without one does not count for it.
            widen: as in :meth:`~semsynth.anatomy.ShapeLimits.learn`; None: that of the rules.
        """
        found = []
        for number, name in enumerate(self.names):
            values = [row[number] for row in rows if math.isfinite(row[number])]
            figure = name.rpartition(".")[2]
            if not values:
                found.append((-math.inf, math.inf))
            elif figure in Topology._fields:
                found.append((1.0 if figure == "parts" else 0.0, max(values)))
            else:
                low, high = widened(values, self.rules.widen if widen is None else widen)
                if figure == "thickness_mm":
                    low, high = max(low, LEAST_MM), min(high, MOST_MM)
                found.append((low, high))
        return found

    def __call__(self, label: NDArray[np.integer], spacing: Sequence[float]) -> list[float]:
        """One value per name of a map ``(H, W, D)`` of class indices; NaN for what it does not have."""
        anatomy = anatomy_of(label, spacing, self.index, self.rules)
        values = []
        for name in self.names:
            owner, _, figure = name.rpartition(".")
            if figure == LENGTH:
                there = owner in anatomy.branches
                values.append(float(sum(b.length for b in anatomy.branches[owner])) if there else math.nan)
            elif figure in Topology._fields:
                topology = anatomy.topology.get(owner)
                values.append(math.nan if topology is None else float(getattr(topology, figure)))
            else:
                values.append(float(anatomy.figures.get(owner, {}).get(figure, math.nan)))
        return values
