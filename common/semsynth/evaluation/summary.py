"""What an evaluation opens with: a few cases, two plots, and sentences that follow from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import wilcoxon

from ..report.pictures import AS_TYPED, Panel, Row, centre_of, planes_figure
from ..texts import counted, shown
from .groups import MIXED, TRAINING
from .layout import TITLES, Facts
from .scores import FLOOR, Collected, Difference, Score
from .sources import RealCase
from .uncertainty import by_patient

CASES = 3
_PICTURED, _PLOTTED = SUMMARY_PICTURES = ("summary_cases.png", "summary_scores.png")
LEVEL = 0.05
"""Of the tests behind the sentences."""
_MARKERS = "osD^v"
_PLANES = ("axial", "sagittal")


@dataclass(frozen=True)
class Summary:
    """What stands above all tables.

    Attributes:
        sentences: a paragraph each.
        pictures: name of a file → caption and figure.
    """

    sentences: Sequence[str] = ()
    pictures: Mapping[str, tuple[str, Figure]] = field(default_factory=dict)


def summarise(
    found: Collected, scores: Sequence[Score], differences: Sequence[Difference], facts: Facts,
    cases: Mapping[str, RealCase], *, pictured: bool = True,
) -> Summary:  # fmt: skip
    """The summary of the first group of cases, the unseen ones where there are any.

    Args:
        found: the measurements.
        scores: all of them.
        differences: differences of systems on the same cases or draws.
        facts: facts that tables have beside scores.
        cases: the real cases, whose files are read again for the picture.
        pictured: True where cases are shown.
    """
    group = next(iter(found.groups))
    index = {(s.row, s.metric, s.extractor): s for s in scores if s.group == group}
    names = [system.name for system in found.systems]
    networks = [name for name in facts.extractors if any((row, "fid", name) in index for row in names)]
    sentences = [_about(found, group)]
    for network in networks:
        compared = [row for row in names if (row, "fid", network) in index and not index[row, "fid", network].in_loss]
        sentences += distances(compared, index, network)
        sentences += between_systems(compared, index, [d for d in differences if d.group == group], network)
    if facts.judge is not None:
        sentences += [_faithful(found, group, row, index) for row in names if (row, "dice", "") in index]
    pictures: dict[str, tuple[str, Figure]] = {}
    if pictured:
        caption = "The first cases by name: label map, synthetic volumes (the first sample of each), real scan"
        pictures[_PICTURED] = (caption, _cases(found, found.groups[group][:CASES], cases))
    drawn = _plots(names, index, networks)
    if drawn is not None:
        caption = ("Left: distance to other real scans (FID) as a multiple of that of the real scans of the same "
                   "cases, with 95 % of the draws; hollow: the network was in that system's loss. Right: Dice of the "
                   "judge, mean and standard deviation over cases; band: in the real scans")  # fmt: skip
        pictures[_PLOTTED] = (caption, drawn)
    return Summary(sentences, pictures)


# ---- sentences


def _about(found: Collected, group: str) -> str:
    members = found.groups[group]
    people = len(by_patient(members, found.patients()))
    start = (
        f"{counted(len(found.systems), 'system')} on {counted(len(members), 'case')} of {counted(people, 'patient')}"
    )
    trained = group in (TRAINING, MIXED)
    return f"{start}: {TITLES[group]}." + (" Figures of such cases say little about new ones." if trained else "")


def distances(names: Sequence[str], index: Mapping[tuple[str, str, str], Score], network: str) -> list[str]:
    """Each system against the real scans of the same cases, in one sentence; none where there is no floor.

    Args:
        names: names of the systems.
        index: scores by row, metric and network.
        network: name of the feature network.
    """
    said = []
    for row in names:
        score = index.get((row, "fid", network))
        if score is None or not score.floor or score.low is None or score.high is None:
            continue
        ratio, low, high = (value / score.floor for value in (score.value, score.low, score.high))
        if low > 1:
            verdict = f"is {ratio:.2f} times as far away [{low:.2f}, {high:.2f}]"
        elif high < 1:
            verdict = (
                f"is nearer ({ratio:.2f} times as far [{low:.2f}, {high:.2f}]), as imitations of training scans are"
            )
        else:
            verdict = f"cannot be told apart from them ({ratio:.2f} times as far [{low:.2f}, {high:.2f}])"
        said.append(f"{row} {verdict}")
    if not said:
        return []
    return [f"Held against the real scans of the same cases by their distance to other scans (FID, {network}): "
            f"{'; '.join(said)}."]  # fmt: skip


def between_systems(
    names: Sequence[str], index: Mapping[tuple[str, str, str], Score], differences: Sequence[Difference], network: str
) -> list[str]:
    """The nearest system, and which of the others are surely farther, in one sentence; none of one system.

    Args:
        names: names of the systems, none of which had the network in its loss.
        index: scores by row, metric and network.
        differences: differences of systems.
        network: name of the feature network.
    """
    there = sorted(names, key=lambda row: index[row, "fid", network].value)
    pairs = {(d.first, d.second): d for d in differences if d.metric == "fid" and d.extractor == network}
    farther: list[str] = []
    alike: list[str] = []
    for row in there[1:]:
        found = pairs.get((row, there[0]))
        turned = pairs.get((there[0], row))
        low = found.low if found is not None else None if turned is None or turned.high is None else -turned.high
        if low is not None:
            (farther if low > 0 else alike).append(row)
    if not farther:
        return [f"{there[0]} and {' and '.join(alike)} cannot be told apart from each other by it."] if alike else []
    worse = f"{', '.join(farther)} {'is' if len(farther) == 1 else 'are'} farther"
    rest = f"; {', '.join(alike)} cannot be told apart from it" if alike else ""
    return [f"{there[0]} is the nearest of them by it; {worse}{rest}."]


def _faithful(found: Collected, group: str, row: str, index: Mapping[tuple[str, str, str], Score]) -> str:
    """What the judge finds in a system's volumes, against the real scans of the same cases."""
    score = index[row, "dice", ""]
    delta = found.per_case(row, group, "dice") - found.per_case(FLOOR, group, "dice")
    delta = delta[np.isfinite(delta)]
    start = f"The judge finds the structures of the label map in {row} with Dice {score.value:.3f}"
    if score.in_loss:
        return f"{start}; it was in that system's loss, so that this says nothing."
    if len(delta) < 2:
        return f"{start}."
    p = float(wilcoxon(delta).pvalue) if delta.any() else 1.0
    verdict = "cannot be told apart"
    if p < LEVEL and not math.isclose(float(delta.mean()), 0.0):
        verdict = "easier to find" if delta.mean() > 0 else "harder to find"
    return (f"{start}, in the real scans with {index[FLOOR, 'dice', ''].value:.3f}: {verdict} (difference "
            f"{delta.mean():+.3f}, Wilcoxon p = {p:.2g}, n = {len(delta)}).")  # fmt: skip


# ---- figures


def _cases(found: Collected, members: Sequence[str], cases: Mapping[str, RealCase]) -> Figure:
    rows = []
    for case in members:
        image, label = cases[case].read()
        panels = [] if label is None else [Panel("label map", label, is_label=True)]
        for system in found.systems:
            path = system.volumes[case][0]
            made = cases[case].read_synthetic(path, image, system.held.get(path))
            panels.append(Panel(system.name, made.data))
        panels.append(Panel("real", image.data))
        centre = centre_of(label) if label is not None else tuple(size // 2 for size in image.data.shape)
        rows.append(Row(case, panels, image.spacing, centre))
    return planes_figure(rows, planes=_PLANES)


def _plots(names: Sequence[str], index: Mapping[tuple[str, str, str], Score], networks: Sequence[str]) -> Figure | None:
    """Distances as multiples of the floor, and the judge's Dice, one line per system; None where neither is there."""
    judged = [row for row in names if (row, "dice", "") in index]
    if not networks and not judged:
        return None
    figure = Figure(figsize=(11, 1.6 + 0.45 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for k, network in enumerate(networks):
        _dots(
            left, names, index, network, offset=0.16 * (k - (len(networks) - 1) / 2), marker=_MARKERS[k % len(_MARKERS)]
        )
    left.axvline(1.0, color="0.4", linewidth=1)
    left.set_xlabel("FID / FID of the real scans of the same cases")
    if networks:
        left.legend(fontsize=8, loc="best")
    for y, row in enumerate(names):
        score = index.get((row, "dice", ""))
        if score is not None:
            right.errorbar(score.value, y, xerr=score.sd, fmt="o", color="C0", capsize=3)
    real = index.get((FLOOR, "dice", ""))
    if real is not None:
        right.axvline(real.value, color="0.4", linewidth=1)
        right.axvspan(real.value - (real.sd or 0.0), real.value + (real.sd or 0.0), color="0.4", alpha=0.12)
    right.set_xlabel("Dice of the judge against the label map")
    left.set_yticks(range(len(names)), [shown(name) for name in names], **AS_TYPED)
    left.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _dots(
    axis: Any,
    names: Sequence[str],
    index: Mapping[tuple[str, str, str], Score],
    network: str,
    *,
    offset: float,
    marker: str,
) -> None:
    label: str | None = network
    for y, row in enumerate(names):
        score = index.get((row, "fid", network))
        if score is None or not score.floor or score.low is None or score.high is None:
            continue
        ratio = score.value / score.floor
        ends = [[max(ratio - score.low / score.floor, 0.0)], [max(score.high / score.floor - ratio, 0.0)]]
        face = "none" if score.in_loss else None
        axis.errorbar(
            ratio,
            y + offset,
            xerr=ends,
            fmt=marker,
            color=f"C{_MARKERS.index(marker)}",
            mfc=face,
            capsize=3,
            label=label,
        )
        label = None
