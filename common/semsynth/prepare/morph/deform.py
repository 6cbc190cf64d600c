"""One label map made into another: amounts are drawn, added up to a velocity field, and what comes out is checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ...anatomy.measured import Anatomy, ShapeLimits, anatomy_of, refusal, with_patches
from ...anatomy.rules import MorphRules
from ...anatomy.shape import box_of
from ...anatomy.shell import moved_outwards
from ...errors import InputError
from ...fields import ControlGrid, sampled
from .velocities import affine, along, outwards, random_field, sliding

LEAST_JACOBIAN = 0.05
"""At the corners of each cell; somewhat above 0, as between the corners it may be less."""
RIPPLE = 0.4
"""Standard deviation of a changed wall's thickness, in voxels: without it, a change of half a voxel would be none."""
RIPPLE_MM = 15.0
SHORTEST = 0.5
"""Of a branch's length that is left, at least."""


class Morphed(NamedTuple):
    """A new label map and how it came about."""

    label: NDArray[np.integer]
    record: dict[str, Any]
    """For a JSON file: ``seed``, ``tries``, ``refused`` (reason → how often), ``strength``, ``amounts``, ``before`` and
    ``after``."""


@dataclass(frozen=True)
class Source:
    """A label map that is to be morphed, and what is measured of it once.

    Args:
        label: ``(H, W, D)`` class indices.
        spacing: mm per voxel.
        index: name → class, of the classes in the map that have a rule.
        rules: rules of what may change.
        anatomy: its figures.
    """

    label: NDArray[np.integer]
    spacing: tuple[float, float, float]
    index: Mapping[str, int]
    rules: MorphRules
    anatomy: Anatomy

    @classmethod
    def of(
        cls, label: NDArray[np.integer], spacing: Sequence[float], index: Mapping[str, int], rules: MorphRules
    ) -> Source:
        """Measure a map; arguments as above, ``index`` of all classes."""
        there = set(np.flatnonzero(np.bincount(label.ravel())).tolist())
        index = {name: index[name] for name in rules.classes if index.get(name) in there}
        spacing = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        return cls(label, spacing, index, rules, anatomy_of(label, spacing, index, rules))


def morph(source: Source, limits: ShapeLimits, seed: int, *, tries: int = 20) -> Morphed:
    """Draw a map from a map until one is within the limits.

    In the second half of the tries the amounts become smaller and smaller: a heart at the edge of what is allowed still
    has morphs, close to it.

    Args:
        source: the map.
        limits: those of :class:`ShapeLimits`; the map itself is always within them.
        seed: seed of all that is drawn.
        tries: largest number of draws.

    Raises:
        InputError: where none is within the limits, with the reasons.
    """
    limits = limits.including(source.anatomy)
    refused: Counter[str] = Counter()
    for number in range(tries):
        rng = np.random.default_rng([seed, number])
        strength = min(1.0, 2 * (1 - number / tries))
        amounts = draw_amounts(source, limits, rng, strength)
        label = deformed(source, amounts)
        reason = "folded"
        if label is not None:
            after = anatomy_of(label, source.spacing, source.index, source.rules)
            reason = refusal(source.anatomy, after, source.rules, limits)
        if label is not None and not reason:
            figures = {"before": source.anatomy.figures, "after": after.figures}
            about = {"seed": seed, "tries": number + 1, "refused": dict(refused), "strength": strength}
            record = about | {"amounts": amounts, **figures}
            return Morphed(label, record)
        refused[reason] += 1
    reasons = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
    raise InputError(
        f"no morphed map within the limits in {tries} tries ({reasons}); give smaller amounts in the rules of "
        "morphing, or limits from more maps"
    )


def draw_amounts(
    source: Source, limits: ShapeLimits, rng: np.random.Generator, strength: float = 1.0
) -> dict[str, Any]:
    """How much is changed: uniform within what rules and limits allow; lengths in mm.

    Args:
        source: the map.
        limits: within which volume, thickness and share are drawn.
        rng: generator of random numbers.
        strength: factor on the amounts of the rules.

    Returns:
        ``rotation`` (degrees), ``scale`` (factors), ``shear`` (radians), ``amplitude`` and ``noise`` (seed) of the
        random field, and ``classes``: for each ``outwards_mm`` (by which its surface moves), ``branches_mm``,
        ``thickness_mm`` or ``share`` (those that it will have).
    """
    rules = source.rules.scaled(strength)
    scale = np.exp(rng.uniform(-1, 1, 3) * np.log1p(rules.scale))
    amounts: dict[str, Any] = {
        "rotation": rng.uniform(-rules.rotation, rules.rotation, 3).tolist(),
        "scale": scale.tolist(),
        "shear": rng.uniform(-rules.shear, rules.shear, 3).tolist(),
        "amplitude": rules.amplitude,
        "noise": int(rng.integers(1 << 31)),
        "classes": {},
    }
    for name in source.index:
        rule, figures = rules.classes[name], source.anatomy.figures.get(name, {})
        own: dict[str, Any] = {}
        if "volume_ml" in figures:
            if rule.volume:
                low, high = limits.range_of(name, "volume_ml")
                now = figures["volume_ml"]
                wanted = _between(rng, max(low, now * (1 - rule.volume)), min(high, now * (1 + rule.volume)))
                own["outwards_mm"] = 10 * (wanted - now * float(scale.prod())) / max(figures["surface_cm2"], 1e-3)
            if rule.branches:
                drawn = rng.uniform(-rule.branches, rule.branches, len(source.anatomy.branches[name]))
                own["branches_mm"] = [
                    max(float(d), -SHORTEST * b.length)
                    for d, b in zip(drawn, source.anatomy.branches[name], strict=True)
                ]
        for figure, most in (("thickness_mm", rule.thickness), ("share", rule.share)):
            if most and figure in figures:
                low, high = limits.range_of(name, figure)
                own[figure] = _between(rng, max(low, figures[figure] - most, 0), min(high, figures[figure] + most))
        if own:
            amounts["classes"][name] = own
    return amounts


def deformed(source: Source, amounts: Mapping[str, Any]) -> NDArray[np.integer] | None:
    """The map after a change by given amounts.

    Args:
        source: the map.
        amounts: as in :func:`draw_amounts`.

    Returns:
        ``(H, W, D)`` class indices; None where the deformation would fold.
    """
    grid = ControlGrid(source.label.shape, source.spacing)
    generator = torch.Generator().manual_seed(amounts["noise"])
    displacement = grid.exponential(-sliding(grid, _velocity(source, grid, amounts, generator)))
    if not float(grid.jacobian(displacement).min()) > LEAST_JACOBIAN:  # NaN too
        return None
    label = _warped(source, grid.places(displacement), _voxels(displacement, source.spacing))

    def field(wavelength: float) -> NDArray[Any]:
        return np.asarray(grid.dense(random_field(grid, wavelength, generator, 1))[0].numpy())

    for name, own in amounts["classes"].items():
        if "thickness_mm" in own:
            _thicken(label, name, own["thickness_mm"], source, field(RIPPLE_MM))
    for name, own in amounts["classes"].items():  # patches lie on finished walls
        if "share" in own:
            _patch(label, name, own["share"], source, field(2 * source.rules.classes[name].patch))
    return label


def _velocity(
    source: Source, grid: ControlGrid, amounts: Mapping[str, Any], generator: torch.Generator
) -> torch.Tensor:
    """All changes as one velocity ``(3, h, w, d)``, mm."""
    turn = Rotation.from_euler("xyz", amounts["rotation"], degrees=True).as_matrix()
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = amounts["shear"]
    ruled = np.isin(source.label, list(source.index.values())) if source.index else source.label > 0
    middle = ndimage.center_of_mass(ruled) if ruled.any() else [(n - 1) / 2 for n in source.label.shape]
    velocity = affine(grid, turn @ np.diag(amounts["scale"]) @ shear, np.multiply(middle, source.spacing).tolist())
    velocity += amounts["amplitude"] * random_field(grid, source.rules.wavelength, generator)
    for name, own in amounts["classes"].items():
        if "outwards_mm" in own:
            velocity += own["outwards_mm"] * outwards(grid, source.label == source.index[name])
        for change, branch in zip(own.get("branches_mm", []), source.anatomy.branches.get(name, []), strict=False):
            velocity += change * along(grid, branch.root.tolist(), branch.tip.tolist(), branch.radius)
    return velocity


def _voxels(displacement: torch.Tensor, spacing: Sequence[float]) -> list[int]:
    """How far anything moves along each axis, in voxels and rounded up."""
    farthest = displacement.abs().amax(dim=(1, 2, 3)).tolist()
    return [math.ceil(mm / size) + 1 for mm, size in zip(farthest, spacing, strict=True)]


def _warped(source: Source, places: torch.Tensor, reach: Sequence[int]) -> NDArray[np.integer]:
    """The map at given places: classes with a rule by their interpolated shares, all else by the nearest voxel.

    Nearest voxels alone would leave thin walls full of gaps; interpolating all of many classes would cost too much.

    Args:
        source: the map.
        places: places of each voxel, see :meth:`~semsynth.fields.ControlGrid.places`.
        reach: distance of these from the voxels, in voxels along each axis.
    """
    whole = sampled(torch.from_numpy(source.label)[None], places, nearest=True)[0]
    label: NDArray[np.integer] = whole.numpy().astype(source.label.dtype)
    if not source.index:
        return label
    classes = np.array(list(source.index.values()), dtype=source.label.dtype)
    box = box_of(np.isin(source.label, classes), reach)
    new = label[box]
    # class by class: the masks of all at once would take several times the memory of the map
    masks = (torch.from_numpy(source.label == value)[None] for value in classes)
    shares = np.concatenate([sampled(mask, places[box]).numpy() for mask in masks])
    solid = shares.sum(axis=0) > 0.5
    _fill(new, np.isin(new, classes) & ~solid, ~np.isin(new, classes))
    new[solid] = classes[shares.argmax(axis=0)[solid]]
    return label


def _thicken(label: NDArray[np.integer], name: str, wanted: float, source: Source, field: NDArray[Any]) -> None:
    """Give the wall ``name`` of a map, in place, a mean thickness of ``wanted`` mm, that varies as a smooth field."""
    value, cavity = source.index[name], source.index[source.rules.classes[name].wall_of]
    found = anatomy_of(label, source.spacing, source.index, _only(source.rules, name)).figures.get(name)
    if found is None:
        return
    wall = with_patches(label, name, source.index, source.rules)
    change = wanted - found["thickness_mm"] + RIPPLE * min(source.spacing) * field
    room = max(float(change.max()), 0.0) + min(source.spacing)
    box = box_of(wall | (label == cavity), [int(np.ceil(room / s)) + 1 for s in source.spacing])
    part, wall = label[box], wall[box]
    inner = part == cavity
    made = moved_outwards(inner, wall, change[box], source.spacing)
    part[made & ~wall] = value
    _fill(part, wall & ~made, ~(inner | wall | made))


def _patch(label: NDArray[np.integer], name: str, wanted: float, source: Source, field: NDArray[Any]) -> None:
    """Lay the patches ``name`` of a map, in place, anew: on a share ``wanted``, where a smooth field is highest."""
    value, under = source.index[name], source.index.get(source.rules.classes[name].patches_on)
    if under is None:
        return
    both = (label == value) | (label == under)
    if both.any():
        label[both] = np.where(field[both] > np.quantile(field[both], 1 - wanted), value, under)


def _fill(label: NDArray[np.integer], where: NDArray[np.bool_], source: NDArray[np.bool_]) -> None:
    """Give voxels, in place, the class of the nearest voxel of ``source``."""
    if where.any() and source.any():
        nearest = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
        label[where] = label[tuple(nearest)][where]


def _only(rules: MorphRules, name: str) -> MorphRules:
    """The rules of a wall, its cavity's left out: nothing else is measured."""
    kept = {n: rule for n, rule in rules.classes.items() if n == name or rule.patches_on == name}
    return MorphRules(classes=kept)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high)) if low < high else float((low + high) / 2)
