"""A comparison as sentences, tables, files and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..ownership import Outputs, is_marked_png, text_with
from ..report.pictures import AS_TYPED, save_figure
from ..report.tables import NOTHING, Cell, Column, Table, number
from ..texts import shown
from .compare import LEAST, Comparison, Paired

TITLES = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "HD95 (mm)", "asd_mm": "ASD (mm)"}
PAGE, TABLE, CASES, PICTURE = "comparison.md", "comparison.csv", "comparison_cases.csv", "comparison.png"
_MANY = 60  # cases whose names a picture has room for
_SCORES = ("metric", "segmenter", "cases", "mean", "sd", "median", "worst", "worst tenth")
_DIFFERENCES = (
    "metric", "patients", "difference", "95 % interval", "better / worse", "p, two-sided", "p, better", "effect size",
    "could show",
)  # fmt: skip
_PATIENTS = "the patient is the unit: the scans of one patient are averaged"
_INTERVAL = (
    "interval: studentised bootstrap over patients, {draws} draws, seed {seed}; it is about these two segmenters, and "
    "does not say how far two trainings of one recipe differ"
)
_TESTS = (
    "p: Wilcoxon signed-rank test; effect size: mean by standard deviation of the differences; could show: the "
    "smallest true difference that 80 of 100 such comparisons would find (paired t-test, p = 0.05)"
)


def title(metric: str) -> str:
    """A metric's name as it is shown."""
    name, comma, rest = metric.partition(",")
    return TITLES.get(name, name) + comma + rest


def sentence(found: Comparison, paired: Paired) -> str:
    """What the interval says of one metric, in words."""
    n = len(paired.delta)
    size = _signed(abs(paired.difference)).removeprefix("+")
    what = f"{title(paired.metric)}: {found.name}"
    if paired.verdict == "too few":
        return (
            f"{what} differs from {found.baseline} by {_signed(paired.difference)} in the mean. With {_count(n)} no "
            f"interval is given ({LEAST} are needed)."
        )
    ends = f"95 % interval {_range(paired)}, {_count(n)}"
    if paired.verdict == "no evidence":
        could = "" if not paired.detectable else f" {_count(n)} can show {paired.detectable:.2g} or more."
        return (
            f"{what} and {found.baseline}: no evidence of a difference ({_signed(paired.difference)}, {ends}).{could}"
        )
    if paired.verdict == "other":
        return f"{what} is {'higher' if paired.difference > 0 else 'lower'} than {found.baseline} by {size} ({ends})."
    return f"{what} is {paired.verdict} than {found.baseline} by {size} ({ends})."


def tables(found: Comparison) -> list[Table]:
    """Scores of both, and their differences."""
    scores = [
        [Cell(title(paired.metric)), Cell(name), Cell(str(len(values)), len(values)), *_summary(paired, values)]
        for paired in found.metrics
        for name, values in ((found.name, paired.scores), (found.baseline, paired.baseline))
    ]
    about = (
        "mean, sample standard deviation (n - 1), median and worst over cases; worst tenth: mean of the worst 10 % of "
        "the cases, one at least"
    )
    columns = [Column(text) for text in _SCORES]
    first = Table("Scores", columns, scores, [about, *_notes(found)])
    differences = [_difference(paired) for paired in found.metrics]
    notes = [_PATIENTS, _INTERVAL.format(draws=found.draws, seed=found.seed), _TESTS]
    heads = [Column(text) for text in _DIFFERENCES]
    return [first, Table(f"{found.name} less {found.baseline}", heads, differences, notes)]


def cases_table(found: Comparison) -> Table:
    """Values of every case, in the first metric's order from most lost to most gained."""
    first = found.metrics[0]
    sign = -1 if first.better == "lower" else 1
    place = {case: float(sign * (a - b)) for case, a, b in zip(first.cases, first.scores, first.baseline, strict=True)}
    every = {case: who for p in found.metrics for case, who in zip(p.cases, p.patients, strict=True)}
    columns = [Column("case"), Column("patient")]
    for paired in found.metrics:
        name = title(paired.metric)
        columns += [Column(f"{name}, {found.name}"), Column(f"{name}, {found.baseline}"), Column(f"{name}, difference")]
    at = {paired.metric: {case: i for i, case in enumerate(paired.cases)} for paired in found.metrics}
    rows = []
    for case in sorted(every, key=lambda case: (place.get(case, float("inf")), case)):
        row = [Cell(case), Cell(every[case])]
        for paired in found.metrics:
            i = at[paired.metric].get(case)
            values = [] if i is None else [paired.scores[i], paired.baseline[i], paired.scores[i] - paired.baseline[i]]
            row += [_number(float(value)) for value in values] or [Cell(NOTHING)] * 3
        rows.append(row)
    return Table("Cases", columns, rows)


def files(output: str | Path) -> Outputs:
    """The files of :func:`save`, to be checked before anything is computed."""
    known = {
        PAGE: text_with("# ", within="less"),
        TABLE: text_with("metric,patients,difference,"),
        CASES: text_with("case,patient,"),
        PICTURE: is_marked_png,
    }
    return Outputs(output, "semsynth compare", known)


def save(found: Comparison, output: str | Path) -> Path:
    """Write :data:`PAGE`, :data:`TABLE`, :data:`CASES` and :data:`PICTURE` into a folder.

    Returns:
        The page.

    Raises:
        InputError: for files of these names that are not ours.
    """
    written = files(output)
    written.check()
    both = tables(found)
    parts = [f"# {found.name} against {found.baseline}\n", *(f"- {sentence(found, p)}" for p in found.metrics), ""]
    parts += [table.markdown() for table in (*both, cases_table(found))]
    parts.append(f"![difference of each case]({PICTURE})\n")
    written.write_text(TABLE, both[1].csv())
    written.write_text(CASES, cases_table(found).csv())
    save_figure(written.folder / PICTURE, draw(found), dpi=110)
    return written.write_text(PAGE, "\n".join(parts))


def draw(found: Comparison) -> Figure:
    """Both values of each case, from most lost to most gained, and the mean difference with its interval."""
    metrics = found.metrics[:4]
    rows = max(len(paired.cases) for paired in metrics)
    figure = Figure(figsize=(4.2 * len(metrics), min(2.0 + 0.22 * rows, 14)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, paired in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics, strict=True):
        sign = -1 if paired.better == "lower" else 1
        order = np.argsort(sign * (paired.scores - paired.baseline), kind="stable")
        places = np.arange(len(order))
        ours, theirs = paired.scores[order], paired.baseline[order]
        gained = sign * (ours - theirs) >= 0
        for chosen, colour in ((gained, "#1b7837"), (~gained, "#b2182b")):
            axes.hlines(places[chosen], ours[chosen], theirs[chosen], color=colour, linewidth=2)
        axes.plot(theirs, places, "o", color="white", markeredgecolor="#444444", label=shown(found.baseline))
        axes.plot(ours, places, "o", color="#222222", label=shown(found.name))
        names = [shown(paired.cases[i])[:12] for i in order] if len(order) <= _MANY else []
        axes.set_yticks(places[: len(names)], names, fontsize=7, **AS_TYPED)
        ends = "" if paired.low is None else f" {_range(paired)}"
        arrow = {"higher": " →", "lower": " ←", "": ""}[paired.better]
        heading = f"{shown(title(paired.metric))}{arrow}\n{_signed(paired.difference)}{ends}"
        axes.set_title(heading, fontsize=10, **AS_TYPED)
        axes.grid(axis="x", alpha=0.3)
    for text in figure.axes[0].legend(fontsize=8).get_texts():
        text.update(AS_TYPED)
    return figure


def _summary(paired: Paired, values: np.ndarray) -> list[Cell]:
    worst = np.sort(values)[:: -1 if paired.better == "lower" else 1][: max(1, len(values) // 10)]
    sd = _number(float(values.std(ddof=1))) if len(values) > 1 else Cell(NOTHING)
    known = paired.better != ""
    return [
        _number(float(values.mean())), sd, _number(float(np.median(values))),
        _number(float(worst[0])) if known else Cell(NOTHING), _number(float(worst.mean())) if known else Cell(NOTHING),
    ]  # fmt: skip


def _difference(paired: Paired) -> list[Cell]:
    gained, lost = paired.gained()
    numbers = (paired.p, paired.p_better, paired.effect, paired.detectable)
    return [
        Cell(title(paired.metric)), Cell(str(len(paired.delta)), len(paired.delta)),
        Cell(_signed(paired.difference), paired.difference), Cell(_range(paired)), Cell(f"{gained} / {lost}"),
        *(Cell(NOTHING) if value is None else Cell(f"{value:.2g}", value) for value in numbers),
    ]  # fmt: skip


def _notes(found: Comparison) -> list[str]:
    notes = [
        f"{len(cases)} cases without scores of {other}: {_few(cases)}"
        for cases, other in zip(found.alone.values(), reversed(list(found.alone)), strict=True)
        if cases
    ]
    for paired in found.metrics:
        if paired.left_out:
            named = [f"{case} ({why})" for case, why in paired.left_out.items()]
            notes.append(f"{title(paired.metric)}: left out on both sides, without a finite value: {_few(named)}")
    if found.empty:
        notes.append(f"left out, without a case that has finite values in both: {', '.join(map(title, found.empty))}")
    total = len({case for paired in found.metrics for case in (*paired.cases, *paired.left_out)})
    if found.stated < total:
        notes.append(
            f"{total - found.stated} of {total} cases do not say whose scan they are, and count as patients of their "
            "own; give --patients DATALIST, with 'patient' in its entries"
        )
    return notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _count(patients: int) -> str:
    return f"{patients} patient{'' if patients == 1 else 's'}"


def _signed(value: float) -> str:
    """A difference, with its sign, to three significant digits."""
    if value == 0:
        return "0"
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:+.{min(max(places, 0), 9)}f}"


def _range(paired: Paired) -> str:
    if paired.low is None or paired.high is None:
        return NOTHING
    return f"[{_signed(paired.low)}, {_signed(paired.high)}]"


def _number(value: float) -> Cell:
    return Cell(number(value), value)
