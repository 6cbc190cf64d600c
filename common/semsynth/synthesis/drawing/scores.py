"""How drawn maps compare with those of people: figures, coverage, and whether they are copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from ...anatomy.portrait import difference
from ...errors import InputError
from ...metrics.manifold import NEIGHBOURS, Reach, reach

PERCENTILES = (5, 50, 95)
LEAST_PATIENTS, LEAST_MAPS = 4, 2
BEYOND = 4.0
"""Standard deviations at which a figure is cut before maps are compared by all of them: one outlier is not all."""


@dataclass(frozen=True)
class Portrayed:
    """A map by its figures and its cells.

    Attributes:
        name: name of the case.
        patient: name by which maps of one patient belong together.
        figures: result of :func:`semsynth.anatomy.portrait.portrait_of`.
        cells: result of :func:`semsynth.anatomy.portrait.aligned_cells`.
        training: True where the weights were trained on it.
    """

    name: str
    patient: str
    figures: Mapping[str, float]
    cells: NDArray[np.integer]
    training: bool = False


@dataclass(frozen=True)
class FigureScore:
    """One figure: its distribution over drawn and over real maps.

    Attributes:
        name: name of the figure.
        real, drawn: mean and standard deviation.
        distance: Wasserstein distance of drawn and real maps, in standard deviations of the real ones.
        floor: distance of two halves of the patients, mean and 95th percentile over draws.
    """

    name: str
    real: tuple[float, float]
    drawn: tuple[float, float]
    distance: float
    floor: tuple[float, float]


@dataclass(frozen=True)
class MapScores:
    """What is found of drawn maps.

    Attributes:
        figures: one score per figure that differs among real maps.
        drawn, floor: nearest-neighbour shares of drawn maps and of one half of the patients, against the other half:
            name → mean, 2.5th and 97.5th percentile over draws.
        per_side: maps on either side of a draw.
        nearest: name → 5th, 50th and 95th percentile of the difference to the nearest map.
        copies: share of the drawn maps that are nearer to a training map than 95 of 100 real maps are to one of another
            patient.
        refused: reason → how often.
        tries: maps drawn in all.
    """

    figures: Sequence[FigureScore]
    drawn: Mapping[str, tuple[float, float, float]]
    floor: Mapping[str, tuple[float, float, float]]
    per_side: int
    nearest: Mapping[str, tuple[float, ...]]
    copies: float
    refused: Mapping[str, int] = field(default_factory=dict)
    tries: int = 0


def score(
    drawn: Sequence[Portrayed],
    real: Sequence[Portrayed],
    classes: Sequence[int],
    *,
    draws: int = 100,
    seed: int = 0,
    refused: Mapping[str, int] | None = None,
    tries: int = 0,
) -> MapScores:
    """Compare drawn maps with real ones.

    In each draw the patients are cut into two halves; drawn maps, as many, are held against the same half as the other
    half of the patients is: that one is the floor.

    Args:
        drawn: maps.
        real: maps, with patients.
        classes: classes whose voxels count for the difference of two maps.
        draws: number of draws of halves.
        seed: seed of the draws.
        refused, tries: numbers of refusals and tries of the drawing.

    Raises:
        InputError: for too few maps or patients.
    """
    people = sorted({one.patient for one in real})
    if len(people) < LEAST_PATIENTS or len(drawn) < LEAST_MAPS:
        raise InputError(
            f"maps are compared with those of {LEAST_PATIENTS} patients or more, and {LEAST_MAPS} are needed; got "
            f"{len(people)} patients and {len(drawn)} drawn maps"
        )
    names, x, y = _matrix(real, drawn)
    rng = np.random.default_rng(seed)
    halves = _halves([one.patient for one in real], draws, rng)
    floors, shares, side = _held_against_halves(x, y, halves, rng)
    spread = {
        kind: {name: _spread([getattr(one, name) for one in found]) for name in Reach._fields}
        for kind, found in shares.items()
    }
    nearest, copies = _nearest(drawn, real, classes)
    figures = _figure_scores(names, real, drawn, x, y, floors)
    return MapScores(figures, spread["drawn"], spread["floor"], side, nearest, copies, dict(refused or {}), tries)


def _halves(owners: Sequence[str], draws: int, rng: np.random.Generator) -> Iterator[NDArray[np.bool_]]:
    """Which maps are of a random half of the patients, once per draw."""
    people = sorted(set(owners))
    for _ in range(draws):
        half = set(rng.permutation(people)[: len(people) // 2])
        yield np.array([owner in half for owner in owners])


def _held_against_halves(
    x: NDArray[np.float64], y: NDArray[np.float64], halves: Iterable[NDArray[np.bool_]], rng: np.random.Generator
) -> tuple[NDArray[np.float64], dict[str, list[Reach]], int]:
    """Of each draw: distances of the figures between the halves, and shares of one half and of drawn maps in the other.

    Returns:
        ``(draws, figures)``; the shares of ``floor`` and ``drawn``; maps on either side.
    """
    floors: list[list[float]] = []
    shares: dict[str, list[Reach]] = {"drawn": [], "floor": []}
    side = 0
    for inside in halves:
        a, b = x[inside], x[~inside]
        side = min(len(a), len(b), len(y))
        a, b, c = (part[rng.permutation(len(part))[:side]] for part in (a, b, y))
        floors.append([wasserstein_distance(a[:, i], b[:, i]) for i in range(x.shape[1])])
        a, b, c = (np.clip(part, -BEYOND, BEYOND) for part in (a, b, c))
        neighbours = min(NEIGHBOURS, side - 1)
        shares["floor"].append(reach(a, b, neighbours))
        shares["drawn"].append(reach(c, b, neighbours))
    return np.array(floors), shares, side


def _matrix(
    real: Sequence[Portrayed], drawn: Sequence[Portrayed]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Figures that differ among real maps, in standard deviations from their mean; one that a map lacks is 0."""
    names = sorted(set.intersection(*(set(one.figures) for one in real)))
    x, y = (np.array([[one.figures.get(n, 0.0) for n in names] for one in maps]) for maps in (real, drawn))
    mean, spread = x.mean(axis=0), x.std(axis=0)
    kept = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    return (
        [name for name, keep in zip(names, kept, strict=True) if keep],
        (x[:, kept] - mean[kept]) / spread[kept],
        (y[:, kept] - mean[kept]) / spread[kept],
    )


def _figure_scores(
    names: Sequence[str], real: Sequence[Portrayed], drawn: Sequence[Portrayed], x: NDArray[np.float64],
    y: NDArray[np.float64], floors: NDArray[np.float64],
) -> list[FigureScore]:  # fmt: skip
    found = []
    for i, name in enumerate(names):
        sides = []
        for maps in (real, drawn):
            values = [one.figures.get(name, 0.0) for one in maps]
            sides.append((float(np.mean(values)), float(np.std(values))))
        floor = (float(floors[:, i].mean()), float(np.percentile(floors[:, i], 95)))
        found.append(FigureScore(name, sides[0], sides[1], float(wasserstein_distance(x[:, i], y[:, i])), floor))
    return found


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return float(np.mean(values)), float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def _nearest(
    drawn: Sequence[Portrayed], real: Sequence[Portrayed], classes: Sequence[int]
) -> tuple[dict[str, tuple[float, ...]], float]:
    known = [one for one in real if one.training] or list(real)
    between = [min(difference(a.cells, b.cells, classes) for b in real if b.patient != a.patient) for a in real]
    to_training = [min(difference(a.cells, b.cells, classes) for b in known) for a in drawn]
    among = [min(difference(a.cells, b.cells, classes) for b in drawn if b is not a) for a in drawn]
    table = {"real maps, to another patient's": between, "drawn maps, to a training map": to_training,
             "drawn maps, to another drawn one": among}  # fmt: skip
    near = float(np.percentile(between, 5))
    found = {name: tuple(float(np.percentile(v, p)) for p in PERCENTILES) for name, v in table.items()}
    return found, float(np.mean([value < near for value in to_training]))
