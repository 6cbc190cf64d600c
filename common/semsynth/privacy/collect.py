"""All comparisons of an audit: real scans with each other, planted copies, and the synthetic volumes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.headers import read_header
from ..data.volumes import Volume
from ..evaluation.measure import MeasurementStore
from ..files import sha256
from ..prepare.patients.registration import Pose
from ..prepare.patients.scans import FINEST_MM, MOST_VOXELS
from .copies import Levels, sides_of
from .levels import Extra
from .likeness import Gallery, Pair, Seen, see
from .planted import KINDS, plant
from .sides import RealSides
from .volumes import Made, read_real

MOST_REAL = 200
"""Real scans that are compared with the others, drawn by the seed where there are more."""
PLANTED_PER_KIND = 3
COMPARED_AS = 2
"""To be raised when a comparison comes to mean something else: results that were kept are then made again."""


@dataclass(frozen=True)
class Found:
    """One volume's comparisons.

    Attributes:
        levels: likeness to the nearest scan of each side, without the scan of its own map.
        source: the pair with that scan, where the volume was drawn of one that is in the lists.
        pairs: all that were registered.
        shifted: correlation at the best shift with every real scan, coarsely.
        map_shifted: the same of the painted map of a synthetic volume; None without a map.
    """

    levels: Levels
    source: Pair | None
    pairs: tuple[Pair, ...]
    shifted: NDArray[np.float64]
    map_shifted: NDArray[np.float64] | None = None


@dataclass
class Comparisons:
    """What an audit measured.

    Attributes:
        names: names of the real scans, training ones first.
        people: patient of each of them.
        training: True for those that the generator was trained on.
        null: the real scans that were compared, index → comparisons.
        planted: kind of change → comparisons of planted copies.
        made: the synthetic volumes' comparisons, in their order.
        gallery: the real scans.
        spacing: mm per voxel of the comparison.
    """

    names: Sequence[str]
    people: Sequence[str]
    training: NDArray[np.bool_]
    gallery: Gallery
    spacing: float
    null: dict[int, Found] = field(default_factory=dict)
    planted: dict[str, list[Found]] = field(default_factory=dict)
    made: list[Found] = field(default_factory=list)


def spacing_of(real: RealSides) -> float:
    """Mm per voxel at which scans are compared: 2, more where that would be more than 300 000 voxels."""
    headers = [read_header(case.image) for case in real.all.values()]
    sizes = [float(np.prod(np.array(header.shape) * np.array(header.spacing))) for header in headers]
    return max(FINEST_MM, float((np.median(sizes) / MOST_VOXELS) ** (1 / 3)))


def bar(items: Iterable, total: int, title: str, unit: str) -> tqdm:
    """A progress bar with the time that is left."""
    quiet = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(items, total=total, desc=title, unit=unit, leave=False, delay=2.0, mininterval=quiet)


def compare_all(
    made: Sequence[Made], real: RealSides, extras: Sequence[Extra], store: MeasurementStore, *, seed: int = 0
) -> Comparisons:
    """Measure everything.

    Args:
        made: the synthetic volumes.
        real: the real scans.
        extras: levels that do not decide.
        store: store of finished comparisons, so that an interrupted audit goes on where it was.
        seed: seed of the draws of real scans and of planted copies.

    Raises:
        InputError: for volumes that cannot be read, are constant, or too small.
    """
    cases, spacing = list(real.all.values()), spacing_of(real)
    seen: list[Seen] = []
    for case in bar(cases, len(cases), "reading scans", "scan"):
        image, label = read_real(case)
        seen.append(see(case.case, image, label, spacing))
        for extra in extras:
            extra.add(sha256(case.image), image, label)
    training = np.array([case.case in real.train for case in cases])
    people = [case.person for case in cases]
    gallery = Gallery([one.scan for one in seen], people, training.tolist())
    found = Comparisons([case.case for case in cases], people, training, gallery, spacing)
    work = _Work(found, extras, store, gallery.digest())
    random = np.random.default_rng(seed)
    chosen = sorted(random.permutation(len(cases))[:MOST_REAL].tolist())
    for i in bar(chosen, len(chosen), "real with real", "scan"):
        found.null[i] = work.compare(seen[i], [people[i]], None, partial(_row_of_scan, index=i))
    members = np.flatnonzero(training)
    jobs = [(kind, int(random.choice(members)), seed + n) for n in range(PLANTED_PER_KIND) for kind in KINDS]
    for kind, i, number in bar(jobs, len(jobs), "planted copies", "copy"):
        image, label = plant(kind, *read_real(cases[i]), number)
        found.planted.setdefault(kind, []).append(work.volume("planted copy", image, label, [], None))
    index = {name: i for i, name in enumerate(found.names)}
    for one in bar(made, len(made), "synthetic volumes", "volume"):
        image, label = one.read()
        source = None if one.source is None else index.get(one.source)
        without = [] if source is None else [people[source]]
        found.made.append(work.volume(one.name, image, label, without, source, with_map=True))
    return found


def _row_of_scan(extra: Extra, index: int) -> NDArray[np.float64] | None:
    return extra.row_of_scan(index)


@dataclass
class _Work:
    """Compares volumes with a gallery."""

    found: Comparisons
    extras: Sequence[Extra]
    store: MeasurementStore
    gallery: str

    def volume(
        self, name: str, image: Volume, label: Volume | None, without: Sequence[str], source: int | None,
        *, with_map: bool = False,
    ) -> Found:  # fmt: skip
        seen = see(name, image, label, self.found.spacing)
        found = self.compare(seen, without, source, lambda extra: extra.row(seen.digest(), image, label))
        if not with_map or seen.map_alone is None:
            return found
        alone = replace(seen.scan, image=seen.map_alone)
        kept = self.store.recall(["map alone", self.gallery, hashlib.sha256(seen.map_alone.tobytes()).hexdigest()],
                                 lambda: {"shifted": self.found.gallery.nearness(alone)})  # fmt: skip
        return replace(found, map_shifted=kept["shifted"])

    def compare(
        self, seen: Seen, without: Sequence[str], source: int | None,
        extra_of: Callable[[Extra], NDArray[np.float64] | None],
    ) -> Found:  # fmt: skip
        """Likeness to both sides, without some people, and to the scan of the volume's own map."""
        what = ["privacy", COMPARED_AS, self.gallery, seen.digest(), sorted(without), source]
        rows = self.store.recall(what, lambda: _as_arrays(*self.found.gallery.pairs(seen, without, source)))
        pairs = _as_pairs(rows)
        own = [] if source is None else [source]
        levels = sides_of(pairs, self.found.training, own)
        allowed = np.array([person not in without for person in self.found.people])
        for extra in self.extras:
            row = extra_of(extra)
            if row is not None:
                levels |= extra.sides(row, self.found.training, allowed)
        return Found(levels, next((pair for pair in pairs if pair.scan == source), None), tuple(pairs),
                     rows["shifted"])  # fmt: skip


def _as_arrays(pairs: Sequence[Pair], shifted: NDArray[np.float64]) -> dict[str, NDArray]:
    return {
        "shifted": shifted,
        "numbers": np.array([[p.scan, p.image, p.patch, p.texture, p.painted, p.flipped] for p in pairs], dtype=float),
        "rotation": np.array([p.pose.rotation for p in pairs]),
        "shift": np.array([p.pose.shift for p in pairs]),
        "inside": np.array([p.pose.inside for p in pairs]),
    }


def _as_pairs(rows: Mapping[str, NDArray]) -> list[Pair]:
    found = []
    for number, rotation, shift, inside in zip(
        rows["numbers"], rows["rotation"], rows["shift"], rows["inside"], strict=True
    ):
        scan, image, patch, texture, painted, flipped = (float(value) for value in number)
        pose = Pose(rotation, shift, image, float(inside))
        found.append(Pair(int(scan), image, patch, texture, painted, bool(flipped), pose))
    return found
