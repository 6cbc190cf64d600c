"""Pictures of an augmentation: what was made and what was refused, to look at before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...data.intensity import INTENSITY, Intensity
from ...data.label_files import LABEL_COLOURS
from ...data.volumes import read_label, read_volume
from ...report.pictures import AS_TYPED, centre_of, plane, save_figure
from ...texts import shown
from .rounds import Made

SHEET = "sheet.png"
MOST = 24
"""Volumes on a sheet: what fits onto a screen, and can be looked at in two minutes."""
COLUMNS = 4
"""Volumes side by side; each is three planes in a column."""


def save_sheet(made: Sequence[Made], path: Path, *, seed: int = 0) -> Path:
    """A sheet of volumes with their maps' outlines: those that were refused first, then those that were taken.

    Args:
        made: all volumes.
        path: the PNG.
        seed: seed of the choice, where there are more than fit on it; a third of the places at most goes to refused
            ones.
    """
    rng = np.random.default_rng(seed)
    refused, taken = [m for m in made if m.refused], [m for m in made if not m.refused]
    first = _some(refused, MOST // 3, rng)
    chosen = first + _some(taken, MOST - len(first), rng)
    lines = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 4.6 * lines), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subfigures(lines, COLUMNS, squeeze=False)
    for cell in cells.flat:
        cell.set_facecolor("black")
    for cell, one in zip(cells.flat, chosen, strict=False):
        _draw(cell, one)
    return save_figure(path, figure, dpi=70)


def _draw(cell: Figure, one: Made) -> None:
    label = read_label(one.label).canonical()
    held = Intensity.from_json(one.record().get(INTENSITY, {}), one.image)
    image = held.read(read_volume(one.image).canonical().data)
    centre = centre_of(label.data)
    axes = cell.subplots(3, 1)
    for axis, name in zip(axes, ("axial", "coronal", "sagittal"), strict=True):
        across, up = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[name]
        axis.imshow(
            plane(image, name, centre), cmap="gray", vmin=0, vmax=1, aspect=label.spacing[up] / label.spacing[across]
        )
        outline = plane(label.data, name, centre)
        if (outline == 1).any():
            axis.contour(outline == 1, levels=[0.5], colors=[LABEL_COLOURS[1]], linewidths=0.8)
        axis.set_axis_off()
    reason = shown(one.refused).replace(", ", ",\n")  # what a cell is wide enough for
    what = f"refused: {reason}" if one.refused else f"Dice {one.figures['dice']:.3f}" if one.figures else ""
    colour = LABEL_COLOURS[1] if one.refused else "white"
    axes[0].set_title(f"{shown(one.draw.name)}\n{what}", **AS_TYPED, color=colour, fontsize=8)


def _some(made: Sequence[Made], count: int, rng: np.random.Generator) -> list[Made]:
    if len(made) <= count:
        return list(made)
    return [made[i] for i in sorted(rng.choice(len(made), count, replace=False))]
