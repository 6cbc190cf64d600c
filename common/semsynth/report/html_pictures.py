"""The pictures of an HTML report: slices as 8-bit values in the page itself, histograms, windows."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..vocabulary import class_names
from .pictures import SHOWN_PLANES, plane

BINS = 64
_AUTO = (0.5, 99.5)  # percentiles of the foreground that the automatic window spans


@dataclass(frozen=True)
class CasePicture:
    """What one case of one system looks like: volumes on one grid, axes in RAS order.

    Attributes:
        case: its name, the same in :class:`CaseValues`.
        system: name of the system that made the synthetic volume.
        group: group of the cases, such as ``unseen`` or ``training``.
        synthetic: ``(H, W, D)`` intensities in [0, 1]; what lies outside is cut off, NaN is shown as 0.
        real: the same of the real scan.
        label: ``(H, W, D)`` class indices in 0…255, or None.
        spacing: voxel size in mm.
        centre: the voxel that the first slice of each plane goes through.
    """

    case: str
    system: str
    group: str
    synthetic: NDArray[np.floating]
    real: NDArray[np.floating]
    label: NDArray[np.integer] | None
    spacing: Sequence[float]
    centre: Sequence[int]


class PictureWriter:
    """Writes the voxels of one picture after the other into the page and keeps only what describes them.

    Args:
        stream: the page, where scripts may stand.
        slices: per plane.
    """

    def __init__(self, stream: TextIO, slices: int, names: Mapping[int, str] | None = None) -> None:
        self._stream = stream
        self._slices = slices
        self._blobs: dict[bytes, int] = {}  # the real scan of a case is the same for all systems, and stands there once
        self._classes = 0
        self._names = dict(names or {})
        self._totals: dict[tuple[str, str], dict[str, Any]] = {}
        self._described: list[dict[str, Any]] = []

    def content(self) -> dict[str, Any]:
        """Descriptions of the pictures, grey values per system and group, names of the classes."""
        totals = [
            {"system": system, "group": group, "cases": total["cases"]}
            | {mask: total[mask].tolist() for mask in ("foreground", "all") if total[mask].any()}
            for (system, group), total in self._totals.items()
        ]
        names = self._names or class_names(max(self._classes, 3))
        classes = [names.get(index, f"class {index}") for index in range(self._classes)]
        return {"pictures": self._described, "totals": totals, "classes": classes}

    def add(self, picture: CasePicture) -> None:
        """Encode one picture and forget it."""
        _check(picture)
        inside = None if picture.label is None else picture.label > 0
        views = [_positions(inside, picture, axis, self._slices) for axis in (2, 1, 0)]  # of axial, coronal, sagittal
        cut = partial(_slices, centre=picture.centre, positions=[positions for positions, _ in views])
        blobs = [self._blob(cut(volume, encode=_eight_bits)) for volume in (picture.synthetic, picture.real)]
        if picture.label is not None:
            blobs.append(self._blob(cut(picture.label, encode=_classes)))
            self._classes = max(self._classes, int(_classes(picture.label.max())) + 1)
        histograms = _histograms(picture, inside)
        self._count(picture, histograms)
        extent = [s * n for s, n in zip(picture.spacing, picture.real.shape, strict=True)]
        planes = [
            {"name": name, "width": picture.real.shape[a], "height": picture.real.shape[b], "axis": "xyz"[3 - a - b],
             "mm": [round(extent[a], 3), round(extent[b], 3)], "positions": positions, "first": first}
            for name, (a, b), (positions, first) in zip(SHOWN_PLANES, ((0, 1), (0, 2), (1, 2)), views, strict=True)
        ]  # fmt: skip
        self._described.append(
            {"case": picture.case, "system": picture.system, "group": picture.group, "planes": planes, "blobs": blobs,
             "auto": _window(picture, inside),
             "histograms": {name: counts.tolist() for name, counts in histograms.items()}}
        )  # fmt: skip

    def _count(self, picture: CasePicture, histograms: Mapping[str, NDArray[np.int64]]) -> None:
        empty = {"cases": 0, "all": np.zeros((2, BINS), np.int64), "foreground": np.zeros((2, BINS), np.int64)}
        total = self._totals.setdefault((picture.system, picture.group), empty)
        total["cases"] += 1
        for name, counts in histograms.items():
            total[name] += counts

    def _blob(self, stacks: Sequence[NDArray[np.uint8]]) -> int:
        """Number of the script element that holds these slices."""
        raw = b"".join(_residual(stack).tobytes() for stack in stacks)
        digest = hashlib.sha256(raw + repr([stack.shape for stack in stacks]).encode()).digest()
        if digest not in self._blobs:
            self._blobs[digest] = len(self._blobs)
            deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
            text = base64.b64encode(deflate.compress(raw) + deflate.flush()).decode()
            self._stream.write(f'<script type="text/plain" id="blob-{self._blobs[digest]}">{text}</script>\n')
        return self._blobs[digest]


def _check(picture: CasePicture) -> None:
    volumes = {"synthetic": picture.synthetic, "real": picture.real, "label": picture.label}
    shapes = {name: volume.shape for name, volume in volumes.items() if volume is not None}
    if len(set(shapes.values())) > 1 or len(picture.real.shape) != 3 or 0 in picture.real.shape:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(f"{picture.case} of {picture.system}: needs 3D volumes on one grid, found {found}")


def _positions(inside: NDArray[np.bool_] | None, picture: CasePicture, axis: int, slices: int) -> tuple[list[int], int]:
    """Indices of the slices along an axis, ascending, and which of them is the one through the centre."""
    size = picture.real.shape[axis]
    low, high = 0, size - 1
    if inside is not None and inside.any():
        filled = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = int(filled[0]), int(filled[-1])
    centre = min(max(int(picture.centre[axis]), 0), size - 1)
    below, above = (slices - 1) // 2, slices // 2
    # the outermost slices of the content show next to nothing: stay one step inside of them
    found = {centre}
    found |= {centre - round(max(centre - low, 0) * i / (below + 1)) for i in range(1, below + 1)}
    found |= {centre + round(max(high - centre, 0) * i / (above + 1)) for i in range(1, above + 1)}
    positions = sorted(found)
    return positions, positions.index(centre)


def _window(picture: CasePicture, inside: NDArray[np.bool_] | None) -> list[float]:
    """Low and high end of a window that shows both volumes: what is outside of it is rare in either."""
    where = inside if inside is not None and inside.any() else np.ones(picture.real.shape, bool)
    ends = [np.percentile(_unit(volume[where]), _AUTO) for volume in (picture.synthetic, picture.real)]
    low, high = (round(float(end), 3) for end in (min(e[0] for e in ends), max(e[1] for e in ends)))
    return [low, high] if low < high else [0.0, 1.0]


def _slices(
    volume: NDArray[Any],
    *,
    centre: Sequence[int],
    positions: Sequence[Sequence[int]],
    encode: Callable[[NDArray[Any]], NDArray[np.uint8]],
) -> list[NDArray[np.uint8]]:
    """Per plane the slices of a volume as they are looked at, ``(slices, rows, columns)``."""
    stacks = []
    for name, axis, indices in zip(SHOWN_PLANES, (2, 1, 0), positions, strict=True):
        cuts = [plane(volume, name, [*centre[:axis], index, *centre[axis + 1 :]]) for index in indices]
        stacks.append(encode(np.stack(cuts)))
    return stacks


def _unit(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0))


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(_unit(values) * 255), dtype=np.uint8)


def _classes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(values, 0, 255), dtype=np.uint8)


def _residual(stack: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the median edge detector (LOCO-I, ITU-T T.87) mispredicts, modulo 256: smaller than PNG's filters leave."""
    values = stack.astype(np.int16)
    padded = np.pad(values, ((0, 0), (1, 0), (1, 0)))
    left, up, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    low, high = np.minimum(left, up), np.maximum(left, up)
    predicted = np.where(corner >= high, low, np.where(corner <= low, high, left + up - corner))
    return ((values - predicted) & 255).astype(np.uint8)


def _histograms(picture: CasePicture, inside: NDArray[np.bool_] | None) -> dict[str, NDArray[np.int64]]:
    """Counts ``(2, BINS)`` of synthetic and real over [0, 1]: of all voxels, and of those in a class above 0."""
    bins = [np.minimum(_unit(v) * BINS, BINS - 1).astype(np.intp) for v in (picture.synthetic, picture.real)]
    found = {"all": np.stack([np.bincount(b.ravel(), minlength=BINS) for b in bins])}
    if inside is not None and inside.any():
        found["foreground"] = np.stack([np.bincount(b[inside], minlength=BINS) for b in bins])
    return found
