"""Pictures of a study: the forest plot, the curve over labelled cases, the cases that gained and lost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from skimage.measure import find_contours

from ..data.datalists import absolute, read_datalist, root_of
from ..data.volumes import Volume, read_label, read_volume
from ..report.pictures import AS_TYPED
from ..texts import shown
from .arms import ALL, REAL
from .layout import title
from .plan import Plan
from .results import MAIN, Findings
from .sentences import name
from .statistics import Contrast

COLOURS, OTHER = {"better": "#1b7837", "worse": "#b2182b"}, "#444444"
SHOWN = 2
"""Cases that gained most, and that lost most."""
EXPERT, FIRST, SECOND = "#4daf4a", "#377eb8", "#ff7f00"


def forest(found: Findings, abouts: Mapping[str, str]) -> Figure:
    """Difference of each arm to R, with its 95 % interval: the primary contrast first, the positive control last.

    Args:
        found: the findings.
        abouts: arm → what it is.
    """
    main = [c for c in found.primary if c.metric == MAIN]
    control = [c for c in found.control if c.metric == MAIN]
    others = [c for c in found.others if c.metric == MAIN and c.against[1] == REAL]
    rows = [*main, *others, *control]
    figure = Figure(figsize=(12, 1.5 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(0, color="#888888", linewidth=1)
    for place, c in enumerate(rows):
        colour = OTHER if c in others else COLOURS.get(c.verdict, OTHER)  # exploratory ones have no verdict
        if c.low is not None and c.high is not None:
            axes.hlines(place, c.low, c.high, color=colour, linewidth=5 if c in main else 2.5)
        axes.plot(c.difference, place, "D" if c in main else "o", color=colour, markersize=9 if c in main else 6)
    labels = [_label(c, abouts, "primary: " if c in main else "control: " if c in control else "") for c in rows]
    axes.set_yticks(range(len(rows)), labels, **AS_TYPED)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [_figures(c) for c in rows])
    axes.set_xlabel(f"difference in {title(MAIN)} to R, 95 % interval over patients and seeds; right of 0 is better")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    for tick, c in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if c in main else "normal")
    return figure


def curve(found: Findings, arms: Sequence[str], sizes: Mapping[str, int]) -> Figure | None:
    """Dice against the number of labelled patients, a line per arm; None where there is only one number.

    Args:
        found: the findings.
        arms: names, in order.
        sizes: number of labelled patients as text → how many they are.
    """
    counts = sorted({one.cases for one in found.trained}, key=lambda cases: sizes[cases])
    if len(counts) < 2:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for arm in arms:
        lines = [
            line for cases in counts for line in found.arms if (line.cases, line.arm, line.metric) == (cases, arm, MAIN)
        ]
        if lines:
            places, means = [sizes[line.cases] for line in lines], [line.mean for line in lines]
            bars = [np.nan_to_num(line.sd_seeds) for line in lines]
            axes.errorbar(places, means, yerr=bars, marker="o", capsize=3, label=arm)
    axes.set_xscale("log", base=2)
    axes.set_xticks([sizes[cases] for cases in counts], [f"all ({sizes[c]})" if c == ALL else c for c in counts])
    axes.set_xlabel("labelled patients")
    axes.set_ylabel(title(MAIN))
    axes.set_title("mean over patients and seeds; bars: standard deviation between seeds", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend()
    return figure


def cases_picture(plan: Plan, found: Findings) -> Figure | None:
    """The cases that gained and lost most by the primary arm: expert, R and the primary arm, first seed of each."""
    order = gains(found)
    chosen = list(dict.fromkeys([*order[:SHOWN], *order[::-1][:SHOWN]]))
    file = plan.out / "split" / "test" / "datalist.json"
    entries = {e["case"]: e for e in (absolute(e, root_of(file)) for e in read_datalist(file)["validation"])}
    figure = Figure(figsize=(10.5, 3.4 * len(chosen)), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    rows = np.atleast_2d(figure.subplots(len(chosen), 3))
    changes = dict(zip(order, _changes(found, order), strict=True))
    for axes, case in zip(rows, chosen, strict=True):
        entry = entries[case]
        masks = [_canonical(read_label(entry[key])) == 1 for key in ("endo", "label") if key in entry][:1]
        masks += [_segmented(_pictured(plan, arm), case) for arm in (REAL, plan.study.primary)]
        _draw(axes, _canonical(read_volume(entry["image"])), masks)
        axes[0].set_title(f"{shown(case)}: {changes[case]:+.3f}", **AS_TYPED, color="white", fontsize=10, loc="left")
    figure.suptitle(f"expert (green), R (blue), {plan.study.primary} (orange); change of {title(MAIN)} by "
                    f"{plan.study.primary}, mean over seeds", color="white", fontsize=11)  # fmt: skip
    return figure


def gains(found: Findings) -> list[str]:
    """Cases by how much the primary arm changes their Dice, most gained first."""
    main = next(c for c in found.primary if c.metric == MAIN)
    first, second = found.find(*main.arm), found.find(*main.against)
    assert first is not None and second is not None
    cases = sorted(first.cases_of(MAIN) & second.cases_of(MAIN))
    changes = _changes(found, cases)
    return [cases[i] for i in np.argsort(-changes, kind="stable")]


def _changes(found: Findings, cases: Sequence[str]) -> NDArray[np.float64]:
    main = next(c for c in found.primary if c.metric == MAIN)
    first, second = found.find(*main.arm), found.find(*main.against)
    assert first is not None and second is not None
    changes: NDArray[np.float64] = first.values(MAIN, cases).mean(axis=0) - second.values(MAIN, cases).mean(axis=0)
    return changes


def _label(c: Contrast, abouts: Mapping[str, str], role: str) -> str:
    about = abouts.get("C" if role.startswith("control") else c.arm[1], "")
    lines = [f"{role}{name(c.arm)}", *wrap(about, 44)]
    return shown("\n".join(lines), lines=True)


def _figures(c: Contrast) -> str:
    ends = "" if c.low is None or c.high is None else f" [{c.low:+.4f}, {c.high:+.4f}]"
    return f"{c.difference:+.4f}{ends}"


def _canonical(volume: Volume) -> NDArray[np.float32]:
    """Voxels with axes from the patient's right to left, front to back, feet to head, as pictures show them."""
    data, codes = np.asarray(volume.data, np.float32), aff2axcodes(volume.affine)
    order = [next(i for i, code in enumerate(codes) if code in pair) for pair in ("LR", "AP", "SI")]
    flips = [slice(None, None, 1 if codes[i] in "LPS" else -1) for i in order]
    turned: NDArray[np.float32] = data.transpose(order)[tuple(flips)]
    return turned


def _pictured(plan: Plan, arm: str) -> Path:
    return plan.out / "segmentations" / arm / str(plan.study.seeds_of(plan.study.arm(arm))[0])


def _segmented(folder: Path, case: str) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = _canonical(read_label(folder / f"{case}_seg.nii.gz")) == 1
    return inside


def _draw(axes: Sequence[Any], image: NDArray[np.float32], masks: Sequence[NDArray[np.bool_]]) -> None:
    low, high = np.percentile(image, [0.5, 99.5])
    inside = np.argwhere(masks[0]) if masks[0].any() else np.array([[n // 2 for n in image.shape]])
    centre = np.median(inside, axis=0).astype(int)
    for axis, place in zip((2, 1, 0), axes, strict=True):
        place.imshow(_plane(image, axis, centre), cmap="gray", vmin=low, vmax=high)
        for mask, colour in zip(masks, (EXPERT, FIRST, SECOND), strict=True):
            for line in find_contours(_plane(mask.astype(np.float32), axis, centre), 0.5):
                place.plot(line[:, 1], line[:, 0], color=colour, linewidth=1.2)
        place.set_axis_off()


def _plane(values: NDArray[np.float32], axis: int, centre: NDArray[np.intp]) -> NDArray[np.float32]:
    """Rows from the front (axial) or the head down."""
    flat: NDArray[np.float32] = np.take(values, int(centre[axis]), axis=axis).T
    return flat if axis == 2 else flat[::-1]
