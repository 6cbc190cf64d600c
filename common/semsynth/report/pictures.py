"""Pictures of volumes: three planes per case, label maps in fixed colours."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..data.datalists import read_datalist
from ..data.entries import load_datalist
from ..data.hidden import Hidden, Person
from ..data.intensity import INTENSITY, Intensity
from ..data.label_files import LABEL_COLOURS
from ..data.volumes import read_label, read_volume
from ..errors import InputError
from ..files import atomic_path
from ..ownership import MAKER, is_plotted_png, marked_png, nobody, refuse_picture
from ..texts import shown
from ..vocabulary import ENDO, PLANES, SPLITS

SHOWN_PLANES = PLANES[::-1]
"""In the order in which they are read: axial first."""
_AXES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
# background, endo, wall, then tissue from dark to bright
_NAMED_BY_US = re.compile(r"epoch_\d{4}\.png|(qc|ranked|pairs|choose_k)\.png")
DPI = 90
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


AS_TYPED: dict[str, Any] = {"parse_math": False, "usetex": False}
"""For texts with names in them: what stands between two ``$`` is no formula."""


def save_planes(
    path: str | Path, rows: Sequence[Row], *, title: str = "", planes: Sequence[str] = SHOWN_PLANES
) -> Path:
    """Write a PNG: cases × planes downwards, panels across; whole or not at all.

    Returns:
        The path.

    Raises:
        InputError: as in :func:`check_picture`.
    """
    figure = planes_figure(rows, title=title, planes=planes)
    with _lock:
        return save_figure(path, figure, dpi=DPI)


def planes_figure(rows: Sequence[Row], *, title: str = "", planes: Sequence[str] = SHOWN_PLANES) -> Figure:
    """Cases × planes downwards, panels across."""
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
            figure.suptitle(shown(title), **AS_TYPED, color="white", fontsize=11)
        return figure


def png(figure: Figure, **options: Any) -> bytes:
    """A figure as the content of a PNG that says who drew it.

    Args:
        figure: the figure.
        options: options of ``Figure.savefig``.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": MAKER}, **options)
    return marked_png(drawn.getvalue())


def save_figure(path: str | Path, figure: Figure, **options: Any) -> Path:
    """Write a figure as a PNG that says who drew it, whole or not at all.

    Args:
        path: the PNG; one of ours that stands there is replaced.
        figure: the figure.
        options: options of ``Figure.savefig``.

    Returns:
        The path.

    Raises:
        InputError: as in :func:`check_picture`.
    """
    check_picture(path)
    drawn = png(figure, **options)
    with atomic_path(path) as temporary:
        temporary.write_bytes(drawn)
    return Path(path)


def check_picture(path: str | Path) -> None:
    """Raise where a picture cannot be written, or would replace a file that is not ours; before it is drawn.

    Pictures of version 0.1.0 have no mark. Where the name is one that we give, that Matplotlib drew it is enough.

    Raises:
        InputError: naming the file and what to do.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are PNG files; give a name that ends in .png")
    refuse_picture(path, also=is_plotted_png if _NAMED_BY_US.fullmatch(path.name) else nobody)


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
            axis.set_title(shown(panel.title), **AS_TYPED, color="white", fontsize=9)
    axes[0].text(-0.02, 0.5, name, color="white", fontsize=8, rotation=90, va="center", ha="right",
                 transform=axes[0].transAxes)  # fmt: skip
    if titles and row.name:
        axes[0].set_title(shown(f"{row.name}: {row.panels[0].title}"), **AS_TYPED, color="white", fontsize=8)


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
    synthetic: str | Path | Mapping[str, str | Path],
    output: str | Path,
    *,
    real: str | Path | None = None,
    cases: int = 3,
    samples: int = 1,
    planes: Sequence[str] = SHOWN_PLANES,
    hidden: Hidden | None = None,
) -> Path:
    """Draw label map, synthetic and real volume of the first cases of one or several synthetic data sets.

    Args:
        synthetic: folder with the ``datalist.json`` that :class:`semsynth.handlers.SyntheticWriter` wrote, or name →
            such folders, whose volumes stand side by side; a label map that is another than the column before has is
            drawn in front of its volume.
        output: the PNG.
        real: datalist (or its folder) with an ``image`` for each case name; None leaves the real column out.
        cases: number of cases, of those that all folders have.
        samples: number of volumes of each map, of each folder.
        planes: planes, some of axial, coronal, sagittal.
        hidden: the key file by whose pseudonyms cases are found and called; None: by their names.

    Raises:
        InputError: nothing to draw, a case without its real image, an unknown plane, a file that is not ours.
    """
    unknown = [name for name in planes if name not in PLANES]
    if unknown or not planes:
        raise InputError(f"planes must be of {', '.join(SHOWN_PLANES)}, got {', '.join(planes) or 'none'}")
    check_picture(output)
    rows = comparison_rows(synthetic, real=real, cases=cases, samples=samples, hidden=hidden)
    return save_planes(output, rows, planes=planes)


def comparison_rows(
    synthetic: str | Path | Mapping[str, str | Path],
    *,
    real: str | Path | None = None,
    cases: int = 3,
    samples: int = 1,
    hidden: Hidden | None = None,
) -> list[Row]:
    """What :func:`save_comparison` draws, one row per case; arguments and errors as there."""
    folders = synthetic if isinstance(synthetic, Mapping) else {"synthetic": synthetic}
    if not folders:
        raise InputError("no folder of synthetic volumes to draw; give --synthetic FOLDER")
    systems = {name: _by_case(Path(folder)) for name, folder in folders.items()}
    images = _real_images(real) if real is not None else {}
    if hidden is not None:
        systems, images = _under_pseudonyms(hidden, systems, images)
    shared = [case for case in next(iter(systems.values())) if all(case in system for system in systems.values())]
    if not shared or min(cases, samples) < 1:
        names = ", ".join(map(str, folders.values()))
        raise InputError(f"{names}: have no case in common to draw {cases} of, {samples} sample(s) each; give folders "
                         "that were made from the same cases")  # fmt: skip
    missing = [case for case in shared[:cases] if real is not None and case not in images]
    if missing:
        raise InputError(f"{real}: has no image for {', '.join(missing)}")
    chosen = [{name: system[case][:samples] for name, system in systems.items()} for case in shared[:cases]]
    return [_comparison(case, made, images.get(case)) for case, made in zip(shared, chosen, strict=False)]


def _under_pseudonyms(
    hidden: Hidden, systems: Mapping[str, Mapping[str, Any]], images: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The same by pseudonyms, in their order; what has them already stays."""
    known = {case for system in systems.values() for case in system} | set(images)
    names = hidden.names([Person(case) for case in sorted(known)])
    twice = [case for side in (*systems.values(), images) for case in side if case != names.case(case) in side]
    if twice:
        raise InputError(f"{len(twice)} case(s) under their names and under their pseudonyms; give folders of one kind")
    renamed = {
        name: {names.case(case): system[case] for case in sorted(system, key=names.case)}
        for name, system in systems.items()
    }
    return renamed, {names.case(case): entry for case, entry in images.items()}


def _by_case(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Entries of a synthetic data set by the case that they were made from, samples in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in load_datalist(folder / "datalist.json"):
        found.setdefault(entry.get("source_case", entry["case"]), []).append(entry)
    return {case: sorted(entries, key=lambda entry: entry.get("sample", 0)) for case, entries in found.items()}


def _comparison(case: str, made: Mapping[str, Sequence[Mapping[str, Any]]], image: Mapping[str, Any] | None) -> Row:
    panels: list[Panel] = []
    first = shown = None
    for name, entries in made.items():
        label = read_label(entries[0]["label"]).canonical()
        first = first or label
        if shown is None or not np.array_equal(shown, label.data):
            panels.append(Panel("label map", label.data, is_label=True))
            shown = label.data
        for i, entry in enumerate(entries):
            title = f"{name} {i + 1}" if len(entries) > 1 else name
            panels.append(Panel(title, _scaled(entry, Intensity())))
    if image is not None:
        panels.append(Panel("real", _scaled(image, Intensity(None))))
    assert first is not None
    return Row(case, panels, first.spacing, centre_of(first.data))


def _scaled(entry: Mapping[str, Any], otherwise: Intensity) -> NDArray[np.float32]:
    """An entry's image in [0, 1], by what is stated of its file; else by ``otherwise``."""
    stated = entry.get(INTENSITY)
    held = otherwise if stated is None else Intensity.from_json(stated, entry["image"])
    return held.read(read_volume(entry["image"]).canonical().data)


def _real_images(source: str | Path) -> dict[str, dict[str, Any]]:
    path = Path(source) if str(source).endswith(".json") else Path(source) / "datalist.json"
    content = read_datalist(path)
    found = [entry for split in SPLITS if content.get(split) for entry in load_datalist(path, split, needs=("image",))]
    return {entry["case"]: entry for entry in found}
