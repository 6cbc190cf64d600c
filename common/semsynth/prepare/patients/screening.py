"""All pairs of a data set: compared, judged against the pairs of different patients, and those that stand out."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...data.check import Checkable
from ...errors import InputError
from .null import SAME_SCAN, Null, fit_null, similarities
from .registration import Pose, register, sample
from .scans import Scan, common_spacing, oriented, read_scan
from .shifts import AS_STORED, Orientation, OtherStorage, Shifts, shift_turned

ALL_PAIRS = 12_000
"""Up to so many pairs (155 cases) are all registered; of more, the likeliest and a random sample."""
LIKELIEST, RANDOM = 15, 15
"""Pairs per case that are registered where not all are."""
TURNED = 10
"""Pairs per case that are registered with one scan turned over."""


@dataclass(frozen=True)
class Link:
    """Two scans that are more alike than different patients are.

    Attributes:
        first, second: names of the cases, ``first`` the smaller scan.
        kind: ``same scan`` or ``same patient``.
        sureness: ``sure``, ``likely`` or ``weak``.
        expected: false links expected in the whole data set among pairs at least so similar; NaN where stated
            correlations were taken.
        similarity: similarity that this is read from.
        correlation: correlation of the locally normalised images after registration.
        intensity: correlation of the grey levels after registration.
        dice: Dice of the masks after registration, where both scans reach.
        orientation: orientation in which the second scan has to be stored to match, as :mod:`nibabel.orientations` has
            it.
        pose: place of the first in the second.
    """

    first: str
    second: str
    kind: str
    sureness: str
    expected: float
    similarity: float
    correlation: float
    intensity: float
    dice: float
    orientation: Orientation
    pose: Pose

    @property
    def turned(self) -> bool:
        """Whether one of the two is stored mirrored or with its axes in another order."""
        return self.orientation != AS_STORED


@dataclass(frozen=True)
class Screening:
    """What a search found.

    Attributes:
        links: the likeliest first; weak ones too.
        null: distribution that they were judged by.
        scans: name → scan, of all that were compared.
        spacing: mm per voxel of the comparison.
        compared: pairs that were registered.
        seconds: seconds of processor time.
    """

    links: tuple[Link, ...]
    null: Null
    scans: dict[str, Scan] = field(repr=False)
    spacing: float
    compared: int
    seconds: float


@dataclass
class _Pair:
    first: int
    second: int
    weight: float
    pose: Pose
    orientation: Orientation = AS_STORED


def screen(cases: Sequence[Checkable]) -> Screening:
    """Search a data set for scans of one patient.

    Scans that state the same ``patient`` are not compared with each other.

    Raises:
        InputError: listing the cases that cannot be read; fewer than two cases.
    """
    if len(cases) < 2:
        raise InputError(f"{len(cases)} case: scans of one patient can be found among two or more")
    start = time.process_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the arrays are so small that threads only wait for each other
    try:
        return _screen(cases, start)
    finally:
        torch.set_num_threads(threads)


def _screen(cases: Sequence[Checkable], start: float) -> Screening:
    bare = [f"case {case.name}: has no image" for case in cases if "image" not in case.files]
    if bare:
        raise InputError("scans of one patient are found by their images:", bare)
    spacing = common_spacing(cases)
    scans = _read(cases, spacing)
    stated = [getattr(case, "patient", None) for case in cases]
    pairs = [
        (a, b) for a, b in itertools.combinations(range(len(scans)), 2) if stated[a] is None or stated[a] != stated[b]
    ]
    pairs = [(a, b) if scans[a].normal.size <= scans[b].normal.size else (b, a) for a, b in pairs]
    compared = _register(scans, pairs)
    first, second = (np.array([getattr(p, side) for p in compared], dtype=np.intp) for side in ("first", "second"))
    values = similarities(first, second, np.array([p.pose.correlation for p in compared]), len(scans))
    null = fit_null(values, np.array([p.weight for p in compared]), len(pairs), len(scans))
    turned = {(p.first, p.second): p for p in _turned(scans, pairs)}
    links = []
    for pair, value in zip(compared, values, strict=True):
        other = turned.get((pair.first, pair.second))
        if other is not None and other.pose.correlation > pair.pose.correlation:
            before, after = (np.arctanh(np.clip(p.pose.correlation, -0.99, 0.999)) for p in (pair, other))
            pair, value = other, value + after - before
        links += _link(scans, pair, float(value), null)
    links.sort(key=lambda link: -link.similarity if null.rate else -link.correlation)
    return Screening(tuple(links), null, {scan.name: scan for scan in scans}, spacing, len(compared),
                     time.process_time() - start)  # fmt: skip


def _bar(items: Iterable, total: int, title: str, unit: str) -> tqdm:
    quiet = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(items, total=total, desc=title, unit=unit, leave=False, delay=2.0, mininterval=quiet)


def _read(cases: Sequence[Checkable], spacing: float) -> list[Scan]:
    scans, problems = [], []
    for case in _bar(cases, len(cases), "reading scans", "case"):
        try:
            scans.append(read_scan(case, spacing))
        except InputError as error:
            problems.append(str(error) if case.name in str(error) else f"case {case.name}: {error}")
    if problems:
        raise InputError(f"{len(problems)} of {len(cases)} cases cannot be compared:", problems)
    return scans


def _register(scans: Sequence[Scan], pairs: Sequence[tuple[int, int]]) -> list[_Pair]:
    """Register all pairs, or of very many the likeliest and a random sample that stands for the rest."""
    shifts = Shifts(scans)
    if len(pairs) <= ALL_PAIRS:
        chosen = [(a, b, 1.0, shifts.between(a, b)) for a, b in _bar(pairs, len(pairs), "shifting", "pair")]
        found = _bar(chosen, len(chosen), "registering", "pair")
        return [_Pair(a, b, w, register(scans[a], scans[b].normal, Pose(np.eye(3), s.mm))) for a, b, w, s in found]
    every = [shifts.between(a, b) for a, b in _bar(pairs, len(pairs), "shifting", "pair")]
    order = np.argsort([-shift.score for shift in every])
    top, rest = order[: LIKELIEST * len(scans)], order[LIKELIEST * len(scans) :]
    drawn = np.random.default_rng(0).choice(rest, min(RANDOM * len(scans), len(rest)), replace=False)
    weight = len(rest) / max(len(drawn), 1)
    some = [(int(i), 1.0) for i in top] + [(int(i), weight) for i in drawn]
    result = []
    for i, w in _bar(some, len(some), "registering", "pair"):
        (a, b), shift = pairs[i], every[i]
        result.append(_Pair(a, b, w, register(scans[a], scans[b].normal, Pose(np.eye(3), shift.mm))))
    return result


def _turned(scans: Sequence[Scan], pairs: Sequence[tuple[int, int]]) -> list[_Pair]:
    """Register the pairs that match best with one scan turned over."""
    storage = OtherStorage(scans)
    partners: dict[int, list[int]] = {}
    for a, b in pairs:
        partners.setdefault(b, []).append(a)
    found = []
    for b in _bar(sorted(partners), len(partners), "turning over", "case"):
        best = storage.best(b, partners[b])
        found += [(score, a, b, o) for a, (score, o) in zip(partners[b], best, strict=True)]
    first, second = (np.array([item[side] for item in found], dtype=np.intp) for side in (1, 2))
    scores = similarities(first, second, np.array([item[0] for item in found]), len(scans))
    result = []
    for i in np.argsort(-scores)[: min(TURNED * len(scans), len(scans) + len(pairs) // 4)]:
        _, a, b, orientation = found[i]
        mm = shift_turned(scans[a], scans[b], orientation).mm
        moving = oriented(scans[b].normal, orientation)
        result.append(_Pair(a, b, 1.0, register(scans[a], moving, Pose(np.eye(3), mm)), orientation))
    return result


def _link(scans: Sequence[Scan], pair: _Pair, similarity: float, null: Null) -> list[Link]:
    expected, correlation = float(null.expected(np.array(similarity))), pair.pose.correlation
    sureness = null.sureness(expected, correlation)
    if not sureness:
        return []
    fixed, moving = scans[pair.first], scans[pair.second]
    kind = "same scan" if correlation >= SAME_SCAN else "same patient"
    image, inside = registered(fixed, oriented(moving.image, pair.orientation), pair.pose)
    mask, _ = registered(fixed, oriented(moving.mask, pair.orientation).astype(np.float32), pair.pose)
    own, other = fixed.mask & inside, (mask > 0.5) & inside
    both = int(own.sum()) + int(other.sum())
    dice = 2 * int((own & other).sum()) / both if both else float("nan")
    intensity = float(np.corrcoef(fixed.image[inside], image[inside])[0, 1]) if inside.sum() > 1 else float("nan")
    return [Link(fixed.name, moving.name, kind, sureness, expected, similarity, correlation, intensity, dice,
                 pair.orientation, pair.pose)]  # fmt: skip


def registered(fixed: Scan, moving: NDArray[np.float32], pose: Pose) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A moving array, in the orientation that fits, on the fixed scan's grid, and where it reaches."""
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * fixed.spacing for n in fixed.normal.shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    rotation, shift = (torch.from_numpy(part.astype(np.float32)) for part in (pose.rotation, pose.shift))
    half = torch.from_numpy(((np.array(moving.shape) - 1) / 2 * fixed.spacing).astype(np.float32))
    volume = torch.from_numpy(np.ascontiguousarray(moving, dtype=np.float32))[None, None]
    values, inside = sample(volume, half, places @ rotation.T + shift)
    return values.view(fixed.normal.shape).numpy(), inside.view(fixed.normal.shape).numpy()
