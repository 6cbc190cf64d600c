"""The picture on which a person decides: pairs of scans, one laid over the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...report.pictures import AS_TYPED, SHOWN_PLANES, plane, save_figure
from ...texts import shown as escaped
from .scans import oriented
from .screening import Link, Screening, registered

MOST_ROWS = 40
STRONGEST = 4
SQUARE = 8
"""Edge of a square of the checkerboard, in voxels."""
GAP = 3
DPI = 100


def shown(links: Sequence[Link]) -> list[Link]:
    """What is drawn: all links, or of very many the strongest few and the least sure ones."""
    return list(links) if len(links) <= MOST_ROWS else [*links[:STRONGEST], *links[STRONGEST - MOST_ROWS :]]


def save_sheet(path: str | Path, screening: Screening) -> Path:
    """Write a PNG: a line per pair, in three planes the first scan, the second laid over it, and squares of both.

    Returns:
        The path.
    """
    links = shown(screening.links)
    strips = [_strip(screening, link) for link in links] or [np.zeros((20, 400), np.float32)]
    scale = max(1, round(1600 / max(strip.shape[1] for strip in strips)))
    titles = [_title(link) for link in links] or ["no pair of scans is more alike than different patients are"]
    heights = [scale * strip.shape[0] + 26 for strip in strips]
    width = scale * max(strip.shape[1] for strip in strips) + 20
    figure = Figure(figsize=(width / DPI, sum(heights) / DPI), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    top = sum(heights)
    for strip, title, height in zip(strips, titles, heights, strict=True):
        top -= height
        place = (10 / width, (top + 2) / sum(heights), scale * strip.shape[1] / width,
                 scale * strip.shape[0] / sum(heights))  # fmt: skip
        axis = figure.add_axes(place)
        axis.imshow(strip, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(escaped(title), **AS_TYPED, color="white", fontsize=8, loc="left", pad=3)
    return save_figure(path, figure, dpi=DPI, facecolor="black")


def _title(link: Link) -> str:
    expected = "" if math.isnan(link.expected) else f", {link.expected:.2g} false links expected"
    stored = ", turned over" if link.turned else ""
    return (
        f"{link.first}  |  {link.second}:  {link.kind}, {link.sureness}{expected}, correlation {link.correlation:.2f}, "
        f"masks' Dice {link.dice:.2f}{stored}"
    )


def _strip(screening: Screening, link: Link) -> NDArray[np.float32]:
    """One line: per plane the first scan, the second on its grid, and squares of the one and the other in turn."""
    fixed, moving = screening.scans[link.first], screening.scans[link.second]
    laid, inside = registered(fixed, oriented(moving.image, link.orientation), link.pose)
    laid = np.where(inside, laid, 0.0).astype(np.float32)
    squares = sum(np.indices(fixed.image.shape) // SQUARE) % 2 == 0
    mixed = np.where(squares & inside, _as_bright(laid, fixed.image, inside), fixed.image).astype(np.float32)
    where = np.argwhere(fixed.mask & inside) if (fixed.mask & inside).any() else np.argwhere(inside)
    centre = [round(float(c)) for c in where.mean(axis=0)]
    panels = [plane(volume, name, centre) for name in SHOWN_PLANES for volume in (fixed.image, laid, mixed)]
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP))) for p in panels]
    return np.concatenate(padded, axis=1).astype(np.float32)


def _as_bright(
    image: NDArray[np.float32], other: NDArray[np.float32], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """An image with the mean and the contrast of another, so that edges show on a checkerboard and not the squares."""
    if not inside.any():
        return image
    mean, deviation = float(image[inside].mean()), max(float(image[inside].std()), 1e-6)
    scaled = (image - mean) / deviation * float(other[inside].std()) + float(other[inside].mean())
    return np.asarray(np.clip(scaled, 0.0, 1.0), dtype=np.float32)
