"""What an audit found: everything that its tables and files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..files import sha256
from .collect import Comparisons
from .copies import COPIED_TEXTURE, Calibration, Counts, Judged, count_copies, judge
from .membership import Attack, attack
from .planted import SelfTest, self_test
from .sides import RealSides
from .verdict import Verdict, decide
from .volumes import ORIGINS, Made


@dataclass(frozen=True)
class Leak:
    """How like volumes are to the scan whose map they were drawn of.

    Attributes:
        origin: origin of the maps.
        trained_on: True where the generator was trained on those scans.
        volumes: number of volumes.
        image: median correlation with that scan.
        painted: median correlation of the painted map with it.
        texture: median partial correlation, given the map.
        most: the highest one.
        copies: volumes with copied texture.
    """

    origin: str
    trained_on: bool
    volumes: int
    image: float
    painted: float
    texture: float
    most: float
    copies: int


@dataclass(frozen=True)
class Findings:
    """All results.

    Attributes:
        made: the synthetic volumes.
        real: the real scans.
        compared: all comparisons.
        calibration: calibration of the real scans.
        judged: per volume.
        counts: counts of copies.
        test: planted copies.
        leaks: leaks by origin of the map.
        attacks: membership inference.
        verdict: the word and why.
    """

    made: Sequence[Made]
    real: RealSides
    compared: Comparisons
    calibration: Calibration
    judged: Sequence[Judged]
    counts: Counts
    test: SelfTest
    leaks: Sequence[Leak]
    attacks: Sequence[Attack]
    verdict: Verdict

    @cached_property
    def volume_numbers(self) -> list[int]:
        """Number of each synthetic volume in what is written: V1 …"""
        return _numbers([one.sha256 for one in self.made])

    @cached_property
    def scan_numbers(self) -> list[int]:
        """Number of each real scan in what is written: T1 …"""
        return _numbers([sha256(case.image) for case in self.real.all.values()])

    @property
    def people(self) -> list[str]:
        """Whose each real scan of the calibration is."""
        return [self.compared.people[i] for i in self.compared.null]


def _numbers(hashes: Sequence[str]) -> list[int]:
    """Numbers from 1 on in the order of hashes: that of the files is mostly that of names, and would tell them."""
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    number_of = {place: number for number, place in enumerate(order, 1)}
    return [number_of[place] for place in range(len(hashes))]


def conclude(
    made: Sequence[Made], real: RealSides, compared: Comparisons, rate: float, *, seed: int = 0,
    white_box: Sequence[Attack] = (), gaps: Sequence[str] = (),
) -> Findings:  # fmt: skip
    """From comparisons to a verdict.

    Args:
        made, real, compared: volumes, scans and their comparisons.
        rate: false-positive rate.
        seed: seed of bootstrap and halves.
        white_box: attacks on weights.
        gaps: sentences on what is missing.

    Raises:
        InputError: where the real scans cannot carry the rate.
    """
    people = [compared.people[i] for i in compared.null]
    calibration = Calibration.of([found.levels for found in compared.null.values()], rate)
    judged = [judge(calibration, found.levels, len(made), found.source) for found in compared.made]
    counts = count_copies(judged, [one.source or one.name for one in made], calibration, people, seed=seed)
    copies = {kind: [found.levels for found in each] for kind, each in compared.planted.items()}
    test = self_test(calibration, copies, people, seed=seed)
    missing = [*real.gaps, *gaps, *_unjudged(compared)]
    attacks = [one for one in (*black_box(made, compared, seed=seed), *white_box) if one is not None]
    return Findings(made, real, compared, calibration, judged, counts, test, leaks(made, compared), attacks,
                    decide(counts, test, missing))  # fmt: skip


def _unjudged(compared: Comparisons) -> list[str]:
    """What could not be compared with the scan of its own map."""
    bare = sum(found.source is not None and not np.isfinite(found.source.texture) for found in compared.made)
    said = []
    if bare:
        said.append(f"{bare} volumes were drawn of a case's own or morphed map, and their maps are not beside them: "
                    "what they copy of that scan beyond the map cannot be told")  # fmt: skip
    return said


def leaks(made: Sequence[Made], compared: Comparisons) -> list[Leak]:
    """Likeness to the scan of a volume's own map, by the map's origin and whether that scan was trained on."""
    found = []
    for origin in ORIGINS:
        for side in (True, False):
            pairs = [
                c.source
                for one, c in zip(made, compared.made, strict=True)
                if one.origin == origin and c.source is not None and compared.training[c.source.scan] == side
                and np.isfinite(c.source.texture)
            ]  # fmt: skip
            if pairs:
                image, painted, texture = (
                    np.array([getattr(pair, name) for pair in pairs]) for name in ("image", "painted", "texture")
                )
                copies = int((texture >= COPIED_TEXTURE).sum())
                found.append(Leak(origin, side, len(pairs), float(np.median(image)), float(np.median(painted)),
                                  float(np.median(texture)), float(texture.max()), copies))  # fmt: skip
    return found


def black_box(made: Sequence[Made], compared: Comparisons, *, seed: int = 0) -> list[Attack | None]:
    """Tell training scans from held-out ones by the volumes alone.

    The first attack takes a scan's likeness to the most similar volume, of those that were not drawn of a map of its
    patient; the second does the same with the painted maps of these volumes alone, which is the floor of the first. The
    third takes volumes of scans' own maps, and how much of the texture beyond the map is the scan's.
    """
    people = dict(zip(compared.names, compared.people, strict=True))
    nearest, nearest_map = (np.full(len(compared.names), -np.inf) for _ in range(2))
    own: dict[int, float] = {}
    for found in compared.made:
        source = found.source
        person = None if source is None else compared.people[source.scan]
        others = np.array([one != person for one in compared.people])
        nearest = np.maximum(nearest, np.where(others, found.shifted, -np.inf))
        if found.map_shifted is not None:
            nearest_map = np.maximum(nearest_map, np.where(others, found.map_shifted, -np.inf))
        if source is not None and np.isfinite(source.texture):
            own[source.scan] = max(own.get(source.scan, -np.inf), source.texture)
    signals: Mapping[str, dict[int, float]] = {
        "samples: likeness to the most similar volume": _finite(nearest),
        "their painted maps alone: likeness to the most similar map": _finite(nearest_map),
        "samples of a scan's own map: texture beyond the map": own,
    }
    result = []
    for name, signal in signals.items():
        sides = [
            {compared.names[i]: v for i, v in signal.items() if compared.training[i] == side} for side in (True, False)
        ]
        result.append(attack(name, sides[0], sides[1], people, seed=seed))
    return result


def _finite(values: np.ndarray) -> dict[int, float]:
    return {i: float(value) for i, value in enumerate(values) if np.isfinite(value)}
