"""How alike two volumes are after registration: whole, in patches, and beyond what the label map explains."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.fft import next_fast_len

from ..data.volumes import Volume
from ..evaluation.painting import class_means, paint
from ..prepare.patients.registration import Pose, register, sample
from ..prepare.patients.scans import Scan, content_box, locally_normal, make_scan, resized
from ..prepare.patients.screening import registered
from ..prepare.patients.shifts import COARSE, Shift, best_shift, coarse, spectra_of

CANDIDATES = 3
"""Scans per side that are registered, the ones with the best shifts."""
PATCH_MM = 24.0
PATCH_SHARE = 0.95
"""The quantile over patches that stands for a pair: the best twentieth of a volume has to be copied to be seen."""
FLIPS = (False, True)
"""As stored, and mirrored left to right, as trainings mirror volumes."""
_SMOOTH = (1.0, 2.0)
_LEAST_POINTS = 200


@dataclass(frozen=True)
class Seen:
    """A volume as the audit sees it.

    Attributes:
        scan: on the common grid, see :class:`semsynth.prepare.patients.scans.Scan`.
        painted: ``(N, 4)`` at the scan's points: what the label map alone explains (the painted map, also smoothed, and
            1); None without a label map.
        map_alone: the painted map ``(H, W, D)`` in place of the scan's image, in [0, 1]; None without a label map.
    """

    scan: Scan
    painted: NDArray[np.float64] | None = None
    map_alone: NDArray[np.float32] | None = None

    def digest(self) -> str:
        """SHA-256 of all that likeness is measured on."""
        parts = [self.scan.normal, self.scan.mask, *([] if self.painted is None else [self.painted])]
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


class Pair(NamedTuple):
    """Likeness of a volume and a real scan.

    Attributes:
        scan: index of the real scan.
        image: correlation of the locally normalised volumes after registration, -1 to 1.
        patch: the same within cubes of 24 mm, of the best twentieth of them.
        texture: correlation of what the volume's label map does not explain; NaN without a map.
        painted: correlation of the painted map with the scan, in the same place; NaN without a map.
        flipped: True where the volume is mirrored.
        pose: its place in the scan.
    """

    scan: int
    image: float
    patch: float
    texture: float
    painted: float
    flipped: bool
    pose: Pose


def see(name: str, image: Volume, label: Volume | None, spacing: float) -> Seen:
    """A volume on the common grid, with what its label map explains.

    Args:
        name: for messages.
        image: ``(H, W, D)`` in RAS order.
        label: class indices on the same grid.
        spacing: mm per voxel of the common grid.

    Raises:
        InputError: for a constant volume, or one that is too small.
    """
    data = np.asarray(image.data, dtype=np.float32)
    box = content_box(data)
    part = Volume(data[box], image.affine)
    inner = None if label is None else Volume(np.asarray(label.data)[box].astype(np.int64), image.affine)
    scan = make_scan(name, part, inner, spacing)
    if inner is None:
        return Seen(scan)
    means = class_means(part.data, inner.data, int(inner.data.max()) + 1)
    small = resized(paint(inner.data, means), np.array(image.spacing), spacing)
    versions = [small, *(ndimage.gaussian_filter(small, sigma) for sigma in _SMOOTH)]
    index = _indices(scan)
    columns = [locally_normal(version)[0][index] if np.ptp(version) > 0 else np.zeros(len(index[0]))
               for version in versions]  # fmt: skip
    return Seen(scan, np.stack([*columns, np.ones(len(index[0]))], axis=1).astype(np.float64),
                (small - small.min()) / max(float(np.ptp(small)), 1e-6))  # fmt: skip


def _indices(scan: Scan) -> tuple[NDArray[np.intp], ...]:
    """The voxels of a scan's points."""
    middle = (np.array(scan.normal.shape) - 1) / 2
    return tuple(np.rint(scan.points.numpy() / scan.spacing + middle).astype(np.intp).T)


def mirrored(scan: Scan) -> Scan:
    """A scan turned left to right, its points with it."""
    image, normal = (np.ascontiguousarray(array[::-1]) for array in (scan.image, scan.normal))
    mask = np.ascontiguousarray(scan.mask[::-1])
    turn, slopes = torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    return replace(scan, image=image, normal=normal, mask=mask, points=scan.points * turn, slopes=scan.slopes * slopes)


class Gallery:
    """Real scans that volumes are compared with.

    Args:
        scans: all of one spacing.
        people: patient of each one.
        training: True for those that the generator was trained on.
    """

    def __init__(self, scans: Sequence[Scan], people: Sequence[str], training: Sequence[bool]) -> None:
        self.scans, self.people, self.training = list(scans), list(people), np.asarray(training, dtype=bool)
        self._arrays = [coarse(scan, COARSE) for scan in scans]
        self._spectra: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def digest(self) -> str:
        """SHA-256 of what volumes are compared with."""
        parts = [scan.normal.tobytes() for scan in self.scans]
        parts += [repr((self.people, self.training.tolist())).encode()]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def pairs(
        self, volume: Seen, without: Collection[str] = (), also: int | None = None
    ) -> tuple[list[Pair], NDArray[np.float64]]:
        """The likeliest pairs of a volume with scans of each side.

        Args:
            volume: volume that is compared.
            without: people whose scans are left out.
            also: a scan that is compared in any case, of whomever it is.

        Returns:
            Up to three pairs with training scans, three with others, and the one that was asked for; and the
            correlation at the best shift, at 5 mm per voxel, with every scan ``(N,)``.
        """
        allowed = np.array([person not in without for person in self.people])
        shifts, score = self._all_shifts(volume.scan)
        best = score.max(axis=0)
        wanted = [] if also is None else [also]
        for side in (True, False):
            index = np.flatnonzero(allowed & (self.training == side))
            wanted += [int(i) for i in index[np.argsort(-best[index])][:CANDIDATES] if i not in wanted]
        ways = score.argmax(axis=0)
        return [self._pair(volume, i, shifts[ways[i]][i], FLIPS[ways[i]]) for i in wanted], best

    def nearness(self, scan: Scan) -> NDArray[np.float64]:
        """Correlation of a volume's image at the best shift, at 5 mm per voxel, with every scan ``(N,)``."""
        return np.asarray(self._all_shifts(scan)[1].max(axis=0))

    def _all_shifts(self, scan: Scan) -> tuple[list[list[Shift]], NDArray[np.float64]]:
        """The best shifts over every scan, as stored and mirrored, and their scores ``(2, N)``."""
        shifts = [self._shifts(mirrored(scan) if flip else scan) for flip in FLIPS]
        return shifts, np.array([[shift.score for shift in row] for row in shifts])

    def _shifts(self, scan: Scan) -> list[Shift]:
        array = coarse(scan, COARSE)
        longest = np.max([a.shape for a in self._arrays], axis=0)
        size = tuple(next_fast_len(int(n + max(n, m)), real=True) for n, m in zip(longest, array.shape, strict=True))
        if size not in self._spectra:
            self._spectra = {size: [spectra_of(a, size) for a in self._arrays]}
        own, spacing = spectra_of(array, size), COARSE * scan.spacing
        return [best_shift(own, other, size, array.shape, a.shape, spacing)
                for other, a in zip(self._spectra[size], self._arrays, strict=True)]  # fmt: skip

    def _pair(self, volume: Seen, index: int, shift: Shift, flip: bool) -> Pair:
        fixed, moving = mirrored(volume.scan) if flip else volume.scan, self.scans[index]
        pose = register(fixed, moving.normal, Pose(np.eye(3), shift.mm))
        if pose.correlation <= -1:
            return Pair(index, shift.score, shift.score, np.nan, np.nan, flip, Pose(np.eye(3), shift.mm))
        texture, painted = _beyond(fixed, moving, pose, volume.painted)
        return Pair(index, pose.correlation, patch_likeness(fixed, moving, pose), texture, painted, flip, pose)


def _beyond(fixed: Scan, moving: Scan, pose: Pose, painted: NDArray[np.float64] | None) -> tuple[float, float]:
    """Partial correlation of two scans given the first one's painted map, and that map's with the second."""
    if painted is None:
        return np.nan, np.nan
    rotation, shift = (torch.from_numpy(part.astype(np.float32)) for part in (pose.rotation, pose.shift))
    half = torch.from_numpy(((np.array(moving.normal.shape) - 1) / 2 * moving.spacing).astype(np.float32))
    values, within = sample(torch.from_numpy(moving.normal)[None, None], half, fixed.points @ rotation.T + shift)
    inside = within.numpy()
    if inside.sum() < _LEAST_POINTS:
        return np.nan, np.nan
    given, own, other = painted[inside], fixed.values.numpy()[inside], values.numpy()[inside]
    rests = [side - given @ np.linalg.lstsq(given, side, rcond=None)[0] for side in (own, other)]
    return _correlation(*rests), _correlation(given[:, 0], other)


def _correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-9 else 0.0


def patch_likeness(fixed: Scan, moving: Scan, pose: Pose) -> float:
    """Correlation within cubes of 24 mm after registration: the 95 % quantile over cubes, -1 to 1."""
    laid, inside = registered(fixed, moving.normal, pose)
    a, b = (np.where(inside, part, 0.0).astype(np.float32) for part in (fixed.normal, laid))
    width = max(3, round(PATCH_MM / fixed.spacing))
    share, *means = (ndimage.uniform_filter(part, width, mode="constant")[::3, ::3, ::3]
                     for part in (inside.astype(np.float32), a, b, a * a, b * b, a * b))  # fmt: skip
    full = share > 0.75
    if not full.any():
        return -1.0
    ma, mb, aa, bb, ab = (mean[full] / share[full] for mean in means)
    spread = (aa - ma * ma).clip(min=0) * (bb - mb * mb).clip(min=0)
    seen = spread > 0.05**2
    if not seen.any():
        return -1.0
    values = (ab - ma * mb)[seen] / np.sqrt(spread[seen])
    return float(np.quantile(values.clip(-1, 1), PATCH_SHARE))
