"""A comparison as sentences, tables, files and a picture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..ownership import Outputs, is_marked_png, text_with
from ..report.pictures import AS_TYPED, save_figure
from ..report.tables import NOTHING, Cell, Column, Table, number
from ..texts import counted, in_csv, shown
from .compare import LEAST, Comparison, Paired, Values
from .scores import worst_tenth

TITLES = {"dice": "Dice", "jaccard": "Jaccard", "hd95": "HD95", "asd": "ASD"}
PAGE, TABLE, CASES, PICTURE = "comparison.md", "comparison.csv", "comparison_cases.csv", "comparison.png"
_MANY = 60  # cases whose names a picture has room for
_DRAWN = 4  # metrics of a picture
_SCORES = ("metric", "segmenter", "cases", "mean", "sd", "median", "worst", "worst tenth")
_DIFFERENCES = (
    "metric", "patients", "difference", "95 % interval", "better / worse", "p, two-sided", "p, better", "effect size",
    "could show",
)  # fmt: skip
_COLUMNS = (
    "metric", "patients", "cases", "left_out", "mean", "sd", "median", "worst", "baseline_mean", "baseline_sd",
    "baseline_median", "baseline_worst", "difference", "low", "high", "better", "worse", "p_two_sided", "p_better",
    "effect_size", "could_show",
)  # fmt: skip
_ABOUT_SCORES = (
    "mean, sample standard deviation (n - 1), median and worst over cases; worst tenth: mean of the worst 10 % of the "
    "cases, rounded up"
)
_PATIENTS = (
    "the patient is the unit: the scans of one patient are averaged, so that the difference is not that of the means "
    "above where patients have several scans"
)
_INTERVAL = (
    "interval: bootstrap over patients, {draws} draws, seed {seed}; it is about these two segmenters, and does not say "
    "how far two trainings of one recipe differ"
)
_TESTS = (
    "p: Wilcoxon signed-rank test, not corrected for several metrics; effect size: mean by standard deviation of the "
    "differences; could show: the smallest true difference that about 80 of 100 such comparisons would find (paired "
    "t-test, p = 0.05)"
)


def title(metric: str) -> str:
    """A metric's name as it is shown, with its unit where the name tells it."""
    name, _, rest = metric.partition(" ")
    plain = name.removesuffix("_mm")
    unit = " (mm)" if plain != name else ""
    return " ".join(part for part in (f"{TITLES.get(plain, plain)}{unit}", rest) if part)


def sentence(found: Comparison, paired: Paired) -> str:
    """What the interval says of one metric, in words."""
    n = len(paired.delta)
    places = _places(paired)
    size, difference = f"{abs(paired.difference):.{places}f}", f"{paired.difference:+.{places}f}"
    ends = f"95 % interval {_range(paired)}, {counted(n, 'patient')}"
    what = f"{title(paired.metric)}: "
    if paired.verdict == "unequal":
        ours, theirs = paired.lost
        return (
            f"{what}no verdict. {counted(ours, 'case')} without a value of {found.name}, {theirs} without one of "
            f"{found.baseline}: what is left favours the one that lacks more. Difference there: {difference}."
        )
    if paired.verdict == "no interval":
        why = f"fewer than {LEAST} patients" if n < LEAST else "all patients differ by the same amount"
        return f"{what}{found.name} less {found.baseline} is {difference}. There is no interval: {why}."
    if paired.verdict == "no evidence":
        could = "" if not paired.detectable else (
            f" With {counted(n, 'patient')}, a true difference of about {_rounded(paired.detectable)} or more would "
            "probably be found."
        )  # fmt: skip
        return f"{what}no evidence that {found.name} and {found.baseline} differ ({difference}, {ends}).{could}"
    if paired.verdict == "other":
        which = "higher" if paired.difference > 0 else "lower"
        return f"{what}{found.name} has {which} values than {found.baseline}, by {size} ({ends})."
    return f"{what}{found.name} is {paired.verdict} than {found.baseline} by {size} ({ends})."


def tables(found: Comparison) -> list[Table]:
    """Scores of both, and their differences."""
    scores = [
        [Cell(title(paired.metric)), Cell(name), Cell(str(len(values)), len(values)), *_summary(paired, values)]
        for paired in found.metrics
        for name, values in ((found.name, paired.scores), (found.baseline, paired.baseline))
    ]
    notes = [_ABOUT_SCORES, *(_left_out(found, p) for p in found.metrics if p.left_out), *found.unpaired]
    first = Table("Scores", [Column(text) for text in _SCORES], scores, notes)
    differences = [_difference(paired) for paired in found.metrics]
    notes = [_PATIENTS, _INTERVAL.format(draws=found.draws, seed=found.seed), _TESTS]
    heads = [Column(text) for text in _DIFFERENCES]
    return [first, Table(f"{found.name} less {found.baseline}", heads, differences, notes)]


def cases_table(found: Comparison) -> Table:
    """Values of every case, in the first metric's order from most lost to most gained; those left out come last."""
    first = found.metrics[0]
    sign = -1 if first.better == "lower" else 1
    place = {case: float(sign * (a - b)) for case, a, b in zip(first.cases, first.scores, first.baseline, strict=True)}
    owner = {case: who for p in found.metrics for case, who in zip(p.cases, p.patients, strict=True)}
    every = {case for p in found.metrics for case in (*p.cases, *p.left_out)}
    columns = [Column("case"), Column("patient")]
    for paired in found.metrics:
        name = title(paired.metric)
        columns += [Column(f"{name}, {found.name}"), Column(f"{name}, {found.baseline}"), Column(f"{name}, difference")]
    values = [
        {case: (float(a), float(b)) for case, a, b in zip(p.cases, p.scores, p.baseline, strict=True)}
        | dict(p.left_out)
        for p in found.metrics
    ]
    rows = []
    for case in sorted(every, key=lambda case: (place.get(case, math.inf), case)):
        row = [Cell(case), Cell(owner.get(case, NOTHING))]
        for of_metric in values:
            pair = of_metric.get(case)
            finite = pair is not None and all(map(math.isfinite, pair))
            row += [Cell(NOTHING)] * 2 if pair is None else [_number(pair[0]), _number(pair[1])]
            row.append(_number(pair[0] - pair[1]) if pair is not None and finite else Cell(NOTHING))
        rows.append(row)
    return Table("Cases", columns, rows)


def differences_csv(found: Comparison) -> str:
    """All numbers of both tables, one line per metric."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for paired in found.metrics:
        sides = [cell.value for values in (paired.scores, paired.baseline) for cell in _summary(paired, values)[:4]]
        numbers = [
            len(paired.delta), len(paired.cases), len(paired.left_out), *sides, paired.difference, paired.low,
            paired.high, *paired.gained(), paired.p, paired.p_better, paired.effect, paired.detectable,
        ]  # fmt: skip
        writer.writerow([in_csv(paired.metric), *("" if value is None else repr(value) for value in numbers)])
    return stream.getvalue()


def files(output: str | Path) -> Outputs:
    """The files of :func:`save`, to be checked before anything is computed."""
    known = {
        PAGE: text_with("# ", within=f"]({PICTURE})"),
        TABLE: text_with(",".join(_COLUMNS) + "\n"),
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
    cases = cases_table(found)
    drawn = [title(paired.metric) for paired in found.metrics[:_DRAWN]]
    parts = [
        f"# {shown(found.name)} against {shown(found.baseline)}\n",
        *(f"- {shown(sentence(found, paired))}" for paired in found.metrics),
        f"\n![difference of each case in {shown(', '.join(drawn))}]({PICTURE})\n",
        *(table.markdown() for table in (*tables(found), cases)),
    ]
    written.write_text(TABLE, differences_csv(found))
    written.write_text(CASES, cases.csv())
    save_figure(written.folder / PICTURE, draw(found), dpi=110)
    return written.write_text(PAGE, "\n".join(parts))


def draw(found: Comparison) -> Figure:
    """Both values of each case in the first four metrics, from most lost to most gained, with the mean difference."""
    metrics = found.metrics[:_DRAWN]
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
        names = [_short(shown(paired.cases[i])) for i in order] if len(order) <= _MANY else []
        axes.set_yticks(places[: len(names)], names, fontsize=7, **AS_TYPED)
        arrow = {"higher": " →", "lower": " ←", "": ""}[paired.better]
        ends = "" if paired.low is None else f" {_range(paired)}"
        heading = f"{shown(title(paired.metric))}{arrow}\n{paired.difference:+.{_places(paired)}f}{ends}"
        axes.set_title(heading, fontsize=10, **AS_TYPED)
        axes.grid(axis="x", alpha=0.3)
    for text in figure.axes[0].legend(fontsize=8).get_texts():
        text.update(AS_TYPED)
    return figure


def _summary(paired: Paired, values: Values) -> list[Cell]:
    """Mean, standard deviation, median, worst and worst tenth."""
    worst = values.max() if paired.better == "lower" else values.min()
    sd = _number(float(values.std(ddof=1))) if len(values) > 1 else Cell(NOTHING)
    bad = (
        [Cell(NOTHING)] * 2
        if not paired.better
        else [_number(float(worst)), _number(worst_tenth(values, paired.better))]
    )
    return [_number(float(values.mean())), sd, _number(float(np.median(values))), *bad]


def _difference(paired: Paired) -> list[Cell]:
    gained, lost = paired.gained()
    counts = f"{gained} / {lost}" if paired.better else f"{gained} higher, {lost} lower"
    effect = Cell(NOTHING) if paired.effect is None else Cell(f"{paired.effect:.2f}", paired.effect)
    could = Cell(NOTHING) if not paired.detectable else Cell(_rounded(paired.detectable), paired.detectable)
    return [
        Cell(title(paired.metric)), Cell(str(len(paired.delta)), len(paired.delta)),
        Cell(f"{paired.difference:+.{_places(paired)}f}", paired.difference), Cell(_range(paired)), Cell(counts),
        _p(paired.p), _p(paired.p_better), effect, could,
    ]  # fmt: skip


def _left_out(found: Comparison, paired: Paired) -> str:
    ours, theirs = paired.lost
    names = list(paired.left_out)
    return (
        f"{title(paired.metric)}: {counted(len(names), 'case')} left out on both sides ({ours} without a value of "
        f"{found.name}, {theirs} without one of {found.baseline}): {', '.join(names[:5])}{', …' if names[5:] else ''}"
    )


def _places(paired: Paired) -> int:
    """Decimals of a difference and its interval: two digits of the interval's width, or three of the difference."""
    wide = abs(paired.difference) / 10 if paired.low is None or paired.high is None else paired.high - paired.low
    return min(max(1 - math.floor(math.log10(wide)), 0), 9) if wide > 0 else 3


def _rounded(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.{max(1 - math.floor(math.log10(value)), 0)}f}"


def _range(paired: Paired) -> str:
    if paired.low is None or paired.high is None:
        return NOTHING
    return f"[{paired.low:+.{_places(paired)}f}, {paired.high:+.{_places(paired)}f}]"


def _p(value: float | None) -> Cell:
    if value is None:
        return Cell(NOTHING)
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", value)


def _short(name: str) -> str:
    """A long name without its middle: what differs often stands at the end."""
    return name if len(name) <= 14 else f"{name[:7]}…{name[-6:]}"


def _number(value: float) -> Cell:
    return Cell(number(value), value)
