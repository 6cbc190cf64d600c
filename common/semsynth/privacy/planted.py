"""Copies that are planted on purpose: what the audit finds of them says what its silence is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..data.volumes import Volume
from .copies import Calibration, Levels, quantile

SHARES = (0.05, 0.15, 0.30)
LEAST_RECALL = 0.95
_REPEATS = 200
Change = Callable[[NDArray[np.float32], tuple[float, ...], np.random.Generator], NDArray[np.float32]]


def _exact(data: NDArray[np.float32], _s: tuple[float, ...], _r: np.random.Generator) -> NDArray[np.float32]:
    return data


def _shifted(data: NDArray[np.float32], spacing: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """By up to 8 mm along each axis, and parts of voxels."""
    return np.asarray(ndimage.shift(data, random.uniform(-8, 8, 3) / spacing, order=1, mode="nearest"))


def _rotated(data: NDArray[np.float32], spacing: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """By 2° about an axis through the centre, of any direction."""
    axis = random.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(2) * axis / np.linalg.norm(axis)).as_matrix()
    matrix = np.diag(1 / np.array(spacing)) @ turn @ np.diag(spacing)
    centre = (np.array(data.shape) - 1) / 2
    return np.asarray(ndimage.affine_transform(data, matrix, centre - matrix @ centre, order=1, mode="nearest"))


def _noisy(data: NDArray[np.float32], _s: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """White noise of 5 % of the range between the 1st and the 99th percentile."""
    low, high = np.quantile(data, (0.01, 0.99))
    return np.asarray(data + random.normal(0, 0.05 * (high - low), data.shape), dtype=np.float32)


def _gamma(data: NDArray[np.float32], _s: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Intensities in [0, 1] to the power of 0.7 or 1.4."""
    low, high = float(data.min()), float(data.max())
    return np.asarray(((data - low) / max(high - low, 1e-6)) ** random.choice([0.7, 1.4]), dtype=np.float32)


def _contrast(data: NDArray[np.float32], _s: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """0.6 times the contrast, and clipped at its brightest twentieth."""
    return np.asarray(0.2 + 0.6 * np.minimum(data, np.quantile(data, 0.95)), dtype=np.float32)


def _mirrored(data: NDArray[np.float32], _s: tuple[float, ...], _r: np.random.Generator) -> NDArray[np.float32]:
    return np.ascontiguousarray(data[::-1])


def _smoothed(data: NDArray[np.float32], spacing: tuple[float, ...], _r: np.random.Generator) -> NDArray[np.float32]:
    """By a Gaussian of 1 mm standard deviation, as volumes of networks are smoother than scans."""
    return np.asarray(ndimage.gaussian_filter(data, 1.0 / np.array(spacing)))


KINDS: Mapping[str, Change] = {
    "exact": _exact, "shifted": _shifted, "rotated by 2°": _rotated, "noise": _noisy, "gamma": _gamma,
    "contrast": _contrast, "mirrored": _mirrored, "smoothed": _smoothed,
}  # fmt: skip
_GEOMETRIC = ("shifted", "rotated by 2°", "mirrored")


def plant(kind: str, image: Volume, label: Volume | None, seed: int) -> tuple[Volume, Volume | None]:
    """A copy of a scan with one change, and the label map that it would have been drawn of.

    Args:
        kind: kind of :data:`KINDS`.
        image: ``(H, W, D)`` in RAS order.
        label: class indices on its grid; it is changed along where the change is one of place.
        seed: seed of the change.
    """
    data = np.asarray(image.data, dtype=np.float32)
    made = Volume(KINDS[kind](data, image.spacing, np.random.default_rng(seed)), image.affine)
    if label is None or kind not in _GEOMETRIC:
        return made, label
    classes = np.unique(label.data)
    best = np.full(data.shape, -1.0, dtype=np.float32)
    moved = np.zeros(data.shape, dtype=np.int64)
    for index in classes:  # the class that has most of each voxel
        share = KINDS[kind]((label.data == index).astype(np.float32), image.spacing, np.random.default_rng(seed))
        moved, best = np.where(share > best, index, moved), np.maximum(share, best)
    return made, Volume(moved, label.affine)


@dataclass(frozen=True)
class Planted:
    """What was found of planted copies at one share of them.

    Attributes:
        share: share of copies in the set.
        recall: share of the copies that were flagged.
        false_positives: share of the real scans that were flagged, by a threshold of other patients' scans.
        found: estimated number of copies over the true one.
    """

    share: float
    recall: float
    false_positives: float
    found: float


@dataclass(frozen=True)
class SelfTest:
    """Planted copies of real training scans among real scans of other patients.

    Attributes:
        kinds: kind of change → level → recall; ``all`` is what the levels decide together.
        shares: per share of copies.
        copies: number of copies that were planted and compared.
        recall: share of all of them.
    """

    kinds: Mapping[str, Mapping[str, float]]
    shares: Sequence[Planted]
    copies: int
    recall: float

    @property
    def passed(self) -> bool:
        """Whether silence means anything: recall of 0.95 or more at every share."""
        return all(planted.recall >= LEAST_RECALL for planted in self.shares)


def self_test(
    calibration: Calibration, copies: Mapping[str, Sequence[Levels]], people: Sequence[str], *, seed: int = 0
) -> SelfTest:
    """Recall and false positives.

    Real scans are judged by the threshold of the other half of their patients, over 200 random halves.

    Args:
        calibration: calibration of the real scans.
        copies: kind of change → likenesses of planted copies.
        people: patient of each real scan of the calibration.
        seed: seed of the draws.
    """
    random = np.random.default_rng(seed)
    kinds = {}
    for kind, found in copies.items():
        row = {level: float(np.mean([calibration.at(level, one[level]) >= calibration.threshold for one in found]))
               for level in calibration.centre if all(level in one for one in found)}  # fmt: skip
        kinds[kind] = row | {"all": float(np.mean([calibration.margin(one) >= calibration.threshold for one in found]))}
    margins = np.array([calibration.margin(one) for found in copies.values() for one in found])
    shares = [_at_share(share, calibration, margins, np.array(people), random) for share in SHARES]
    return SelfTest(kinds, shares, len(margins), float((margins >= calibration.threshold).mean()))


def _at_share(
    share: float, calibration: Calibration, copies: NDArray[np.float64], people: NDArray[np.str_],
    random: np.random.Generator,
) -> Planted:  # fmt: skip
    names, rate = np.unique(people), calibration.rate
    rows = []
    for _ in range(_REPEATS):
        half = random.permutation(names)[: len(names) // 2]
        fitted = np.isin(people, half)
        if fitted.all() or not fitted.any():
            continue
        limit, honest = quantile(calibration.null[fitted], rate), calibration.null[~fitted]
        planted = random.choice(copies, max(1, round(share / (1 - share) * len(honest))))
        hits, wrong = planted >= limit, honest >= limit
        flagged = (hits.sum() + wrong.sum()) / (len(hits) + len(wrong))
        estimate = max(0.0, (flagged - rate) / (1 - rate)) * (len(hits) + len(wrong))
        rows.append((hits.mean(), wrong.mean(), estimate / len(hits)))
    recall, false, found = np.mean(rows, axis=0) if rows else (0.0, 1.0, 0.0)
    return Planted(share, float(recall), float(false), float(found))
