"""Pictures of volumes: three planes per case, label maps in fixed colours."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .datalists import SPLITS, load_datalist, read_datalist
from .errors import InputError
from .labels import ENDO
from .volumes import atomic_path, read_volume

PLANES = ("axial", "coronal", "sagittal")
_AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
# background, endo, wall, then tissue from dark to bright
LABEL_COLOURS = ("#000000", "#d62728", "#ffd92f", "#7f9fbf", "#b8cbe0", "#dce6f0", "#4c7a5a", "#8cb89a", "#c5dccb",
                 "#8f6fae", "#bfa8d4", "#e2d7ec", "#a0764a")  # fmt: skip
_lock = threading.Lock()  # matplotlib's font and text caches are shared by all threads


@dataclass(frozen=True)
class Panel:
    """One column of a picture: an ``(H, W, D)`` volume in RAS order, intensities in [0, 1] or class indices.

    ``outlines`` are label maps on the same grid with a colour each, drawn as contours, the last one on top.
    """

    title: str
    volume: NDArray[Any]
    is_label: bool = False
    outlines: Sequence[tuple[NDArray[Any], str]] = ()


@dataclass(frozen=True)
class Row:
    """One case of a picture: its panels, the voxel size in mm and the voxel that the planes go through."""

    name: str
    panels: Sequence[Panel]
    spacing: Sequence[float]
    centre: Sequence[int]


def centre_of(label: NDArray[Any]) -> tuple[int, int, int]:
    """The voxel nearest to the centre of gravity of the cavity (class 1), of any class, or of the volume."""
    for mask in (label == ENDO, label > 0):
        if mask.any():
            return tuple(round(c) for c in np.argwhere(mask).mean(axis=0))  # type: ignore[return-value]
    return tuple(s // 2 for s in label.shape)  # type: ignore[return-value]


def plane(volume: NDArray[Any], name: str, centre: Sequence[int]) -> NDArray[Any]:
    """A 2D cut of an ``(H, W, D)`` RAS volume as it is looked at: patient's right on the left, anterior or head up."""
    x, y, z = centre
    cut = {"axial": volume[:, :, z], "coronal": volume[:, y, :], "sagittal": volume[x, :, :]}[name]
    return np.asarray(cut[::-1, ::-1].T)


def save_planes(path: str | Path, rows: Sequence[Row], *, title: str = "", planes: Sequence[str] = PLANES) -> Path:
    """Write a PNG: cases × planes downwards, panels across; whole or not at all.

    Returns:
        The path.
    """
    with _lock:
        columns = max(len(row.panels) for row in rows)
        # each line as high as its plane is, at one width for all
        ratios = [_extent(row, name)[1] / _extent(row, name)[0] for row in rows for name in planes]
        figure = Figure(figsize=(3.0 * columns, 3.0 * sum(ratios) + 0.6), facecolor="black", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(ratios), columns, squeeze=False, height_ratios=ratios)
        for axis in axes.flat:
            axis.set_axis_off()
        for r, row in enumerate(rows):
            for p, name in enumerate(planes):
                _draw_line(axes[r * len(planes) + p], row, name, titles=p == 0)
        if title:
            figure.suptitle(title, color="white", fontsize=11)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=90, format="png")
    return Path(path)


def _extent(row: Row, name: str) -> tuple[float, float]:
    """Width and height of a plane in mm."""
    horizontal, vertical = (row.panels[0].volume.shape[axis] * row.spacing[axis] for axis in _AXES[name])
    return horizontal, vertical


def _draw_line(axes: Sequence[Any], row: Row, name: str, *, titles: bool) -> None:
    horizontal, vertical = _AXES[name]
    aspect = row.spacing[vertical] / row.spacing[horizontal]
    for axis, panel in zip(axes, row.panels, strict=False):
        cut = plane(panel.volume, name, row.centre)
        if panel.is_label:
            cmap = ListedColormap(LABEL_COLOURS)
            axis.imshow(cut, cmap=cmap, vmin=0, vmax=len(LABEL_COLOURS) - 1, aspect=aspect, interpolation="nearest")
        else:
            axis.imshow(cut, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="bilinear")
        for mask, colour in panel.outlines:
            outline = plane(mask, name, row.centre)
            levels = [c - 0.5 for c in np.unique(outline) if c > 0]
            if levels and outline.min() != outline.max():
                axis.contour(outline, levels=levels, colors=[colour], linewidths=0.8)
        if titles:
            axis.set_title(panel.title, color="white", fontsize=9)
    axes[0].text(-0.02, 0.5, name, color="white", fontsize=8, rotation=90, va="center", ha="right",
                 transform=axes[0].transAxes)  # fmt: skip
    if titles and row.name:
        axes[0].set_title(f"{row.name}: {row.panels[0].title}", color="white", fontsize=8)


def overlay_edges(image: NDArray[np.floating], label: NDArray[np.integer]) -> NDArray[np.floating]:
    """The image with the outline of classes 1 and 2 at full brightness, for checking that mask and image agree."""
    result = np.array(image, copy=True)
    expert = (label == 1) | (label == 2)
    inner = expert.copy()
    for axis in range(2):
        inner &= np.roll(expert, 1, axis) & np.roll(expert, -1, axis)
    result[expert & ~inner] = 1.0
    return result


def save_comparison(
    synthetic: str | Path, output: str | Path, *, real: str | Path | None = None, cases: int = 3
) -> Path:
    """Draw label map, synthetic and real volume of the first cases of a synthetic data set.

    Args:
        synthetic: folder with the ``datalist.json`` that :class:`semsynth.handlers.SyntheticWriter` wrote.
        output: the PNG.
        real: datalist (or its folder) with an ``image`` for each case name; None leaves the real column out.
        cases: how many.

    Raises:
        InputError: nothing to draw, or a case without its real image.
    """
    entries = load_datalist(Path(synthetic) / "datalist.json")[:cases]
    images = _real_images(real) if real is not None else {}
    missing = [entry["case"] for entry in entries if real is not None and entry["case"] not in images]
    if missing:
        raise InputError(f"{real}: has no image for {', '.join(missing)}")
    rows = []
    for entry in entries:
        label = read_volume(entry["label"]).canonical()
        panels = [Panel("label map", label.data, is_label=True)]
        panels.append(Panel("synthetic", read_volume(entry["image"]).canonical().data))
        if real is not None:
            image = read_volume(images[entry["case"]]).canonical().data
            panels.append(Panel("real", (image - image.min()) / max(float(np.ptp(image)), 1e-6)))
        rows.append(Row(entry["case"], panels, label.spacing, centre_of(label.data)))
    return save_planes(output, rows)


def _real_images(source: str | Path) -> dict[str, str]:
    path = Path(source) if str(source).endswith(".json") else Path(source) / "datalist.json"
    content = read_datalist(path)
    found = [entry for split in SPLITS if content.get(split) for entry in load_datalist(path, split, needs=("image",))]
    return {entry["case"]: entry["image"] for entry in found}
