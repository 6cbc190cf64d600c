"""A study's report: one HTML page, the same as Markdown, and every number as CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import sha256, write_text
from ..json_files import read_object, read_object_or_none
from ..provenance.cards import versions
from ..report.html import CaseValues, Opening, write_html
from ..report.pictures import save_figure
from ..report.tables import NOTHING, Cell, Column, Table
from ..texts import counted
from . import figures
from .arms import CONTROL, REAL
from .layout import title
from .plan import ADOPTED, GUARD, OPENINGS, Plan
from .results import MAIN, METRICS, ArmScores, Findings, arms_csv, collect, contrasts_csv, scores_csv
from .scores import better
from .sentences import compared, if_linked, name, reasons, verdict
from .splits import read_split, sets_of
from .statistics import Contrast
from .times import measured

PAGE, MARKDOWN = "report.html", "report.md"
FOREST, CURVE, CASES = "forest.png", "curve.png", "cases.png"
_CONTRAST = ("contrast", "metric", "difference", "95 % interval", "better / worse", "p, two-sided", "p, better",
             "p, Holm", "effect size", "could show")  # fmt: skip
_INTERVAL = (
    "interval: bootstrap over patients and seeds (docs/study.md); p: Wilcoxon signed-rank test over patients, scans "
    "and seeds averaged; Holm: corrected for the number of secondary contrasts; effect size: mean by standard "
    "deviation of the patients' differences; could show: the smallest true difference that 80 of 100 such studies "
    "would find, about"
)


def write_report(plan: Plan) -> Path:
    """Compute and write everything in ``report/``.

    Returns:
        The page.
    """
    found, study = collect([plan]), plan.study
    drawn = _drawn([plan], found)
    split = read_split(plan.out)
    sizes = {count: len({split["patients"][case] for case in cases}) for count, cases in sets_of(study).items()}
    line = figures.curve(found, study.curve, sizes) if len(study.cases) > 1 else None
    drawn |= {} if line is None else {CURVE: ("How many labelled patients are needed", line)}
    cases = figures.cases_picture(plan, found)
    drawn |= {} if cases is None else {CASES: ("The cases that gained and lost most", cases)}
    opening = [*verdict(found), *if_linked(found), *reasons(found, study.arms)]
    return _write(plan.out / "report", study.name, found, opening, _alarms(plan), drawn, _tables([plan], found),
                  _about(plan))  # fmt: skip


def write_folds(plans: Sequence[Plan], folder: Path) -> Path:
    """The same for all folds of a cross-validation together, in a folder of its own.

    Returns:
        The page.
    """
    found, count = collect(plans), len(plans)
    heading = f"{plans[0].study.name}: cross-validation, {count} folds"
    opening = [
        f"This is a cross-validation inside the training patients, not the test: of {count} folds each tests patients "
        "whom no segmenter in it was trained on, and the positive control is another one in each.",
        *verdict(found), *if_linked(found), *reasons(found, plans[0].study.arms),
    ]  # fmt: skip
    about = [(f"fold {plan.study.fold[0] if plan.study.fold else ''}: {what}", text)
             for plan in plans for what, text in _about(plan)]  # fmt: skip
    alarms = list(dict.fromkeys(alarm for plan in plans for alarm in _alarms(plan)))
    return _write(folder, heading, found, opening, alarms, _drawn(plans, found), _tables(plans, found), about)


def _drawn(plans: Sequence[Plan], found: Findings) -> dict[str, tuple[str, Figure]]:
    """File → caption and figure."""
    abouts = {arm.name: arm.about for arm in plans[0].study.arms}
    return {FOREST: ("Each arm against R", figures.forest(found, abouts))}


def _write(
    folder: Path, heading: str, found: Findings, opening: Sequence[str], alarms: Sequence[str],
    drawn: Mapping[str, tuple[str, Figure]], tables: Sequence[Table], about: Sequence[tuple[str, str]],
) -> Path:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for file, (_, figure) in drawn.items():
        save_figure(folder / file, figure, dpi=110)
    for file, text in (("scores.csv", scores_csv), ("arms.csv", arms_csv), ("contrasts.csv", contrasts_csv)):
        write_text(folder / file, text(found))
    parts = [
        f"# {heading}\n",
        *(f"**{alarm}**\n" for alarm in alarms),
        *(f"{text}\n" for text in opening),
        *(f"![{caption}]({file})\n" for file, (caption, _) in drawn.items()),
        *(table.markdown() for table in tables),
        "### Where it comes from\n",
        "\n".join(f"- {what}:{_nested(text)}" for what, text in about) + "\n",
    ]
    write_text(folder / MARKDOWN, "\n".join(parts))
    pictures = [(caption, (folder / file).read_bytes()) for file, (caption, _) in drawn.items()]
    return write_html(
        folder / PAGE, title=heading, about=list(about), tables=list(tables),
        metrics={metric: Column(title(metric), better(metric)) for metric in METRICS}, cases=_case_values(found),
        pictures=(), opening=Opening(list(opening), list(alarms), pictures),
    )  # fmt: skip


def _nested(text: str) -> str:
    """A text behind its name; several lines as a list within the list."""
    return f" {text}" if "\n" not in text else "".join(f"\n  - {line}" for line in text.splitlines())


def _alarms(plan: Plan) -> list[str]:
    trusted = read_object(plan.out / GUARD)["trusted"]
    return [f"Weights with unknown training cases were trusted, and may have seen the test: {text}" for text in trusted]


def _tables(plans: Sequence[Plan], found: Findings) -> list[Table]:
    heads = [Column(text) for text in _CONTRAST]
    decisive = [_row(c) for c in (*found.primary, *found.control)]
    secondary = [_row(c) for c in found.others]
    return [
        _arms_table(plans[0], found),
        Table("Primary contrast and positive control", heads, decisive, [_INTERVAL]),
        Table("Secondary contrasts", heads, secondary, _about_secondary(found)),
        *_linked_table(plans[0], found, heads),
        *([_volumes_table(plans[0]), _times_table(plans[0])] if len(plans) == 1 else []),
    ]


def _linked_table(plan: Plan, found: Findings, heads: Sequence[Column]) -> list[Table]:
    if found.linked is None:
        return []
    again = found.linked
    rows = [_row(c) for c in (*again.primary, *again.control, *(c for c in again.others if c.metric == MAIN))]
    groups = "; ".join(", ".join(group) for group in plan.study.linked)
    notes = ["cases that may be of one patient, beyond what the data states, are taken for one patient's, and test "
             "cases that an arm has seen then are left out of its contrasts (weights from elsewhere are not looked "
             f"at): {groups}"]  # fmt: skip
    return [Table("If the linked cases are of one patient", list(heads), rows, notes)]


def _about_secondary(found: Findings) -> list[str]:
    """How many contrasts there are, and whether the correction leaves any of them a chance."""
    count, patients = (
        sum(c.metric == MAIN for c in found.others),
        max((len(c.patients) for c in found.others), default=0),
    )
    notes = [
        f"{count} contrasts in each metric, corrected within it (Holm); the intervals are not corrected: exploratory"
    ]
    least = count * 2.0 ** (1 - patients)  # of the test's smallest p-value: all patients differ in one direction
    if count and least >= 0.05:
        notes.append(f"with {patients} patients and {count} contrasts no p-value can be below {least:.2g} after the "
                     "correction, whatever the differences are: take more patients, or fewer arms")  # fmt: skip
    return notes


def _arms_table(plan: Plan, found: Findings) -> Table:
    heads = [Column(text) for text in ("arm", "what", "seeds", "Dice", "sd between seeds", "worst tenth", "HD95 (mm)",
                                       "ASD (mm)")]  # fmt: skip
    abouts = {arm.name: arm.about for arm in plan.study.arms}
    lines = {(line.cases, line.arm, line.metric): line for line in found.arms}
    rows = []
    for one in found.trained:
        dice, hd95, asd = (lines[one.cases, one.arm, metric] for metric in METRICS)
        is_control = (one.cases, one.arm) == ("all", REAL) and CONTROL in abouts
        rows.append([
            Cell(name((one.cases, one.arm))), Cell(abouts[CONTROL if is_control else one.arm]),
            Cell(str(dice.seeds), dice.seeds), Cell(f"{dice.mean:.4f} ± {dice.sd_patients:.4f}", dice.mean),
            _number(dice.sd_seeds, 4), _number(dice.worst_tenth, 4),
            _distance(hd95), _distance(asd),
        ])  # fmt: skip
    notes = ["mean ± sample standard deviation between patients, of the mean over seeds and scans; worst tenth: mean "
             f"Dice of the worst 10 % of the cases, rounded up; {len(set(found.people.values()))} patients, "
             f"{len(found.people)} scans; missing: how many distances (of a case with a seed each) there are not, "
             "since nothing was found; such cases are in no mean of distances"]  # fmt: skip
    return Table("Arms", heads, rows, notes)


def _row(c: Contrast) -> list[Cell]:
    places = 2 if c.metric.endswith("_mm") else 4
    ends = NOTHING if c.low is None or c.high is None else f"{c.low:+.{places}f} to {c.high:+.{places}f}"
    gained, lost = c.gained()
    return [
        Cell(f"{name(c.arm)} less {name(c.against)}", None, compared(c)), Cell(title(c.metric)),
        _number(c.difference, places, "+"), Cell(ends), Cell(f"{gained} / {lost}"),
        _number(c.p, 4), _number(c.p_better, 4), _number(c.p_holm, 4), _number(c.effect, 2),
        _number(c.detectable, places),
    ]  # fmt: skip


def _volumes_table(plan: Plan) -> Table:
    rows = []
    for job in plan.of("volumes"):
        told = read_object_or_none(plan.out / "volumes" / job.key[0] / job.key[1] / "augment.json") or {}
        limits = told.get("thresholds") or {}
        texts = [
            job.key[1],
            job.key[0],
            told.get("made", NOTHING),
            told.get("taken", NOTHING),
            _refused(dict(told.get("refused") or {})),
            *(NOTHING if limits.get(k) is None else limits[k] for k in ("min_dice", "max_hd95")),
        ]
        rows.append([Cell(f"{text:.3g}" if isinstance(text, float) else str(text)) for text in texts])
    heads = [Column(text) for text in ("arm", "labelled patients", "made", "taken", "refused by the gate", "least Dice",
                                       "largest HD95 (mm)")]  # fmt: skip
    return Table("Synthetic volumes", heads, rows, ["made counts those that were drawn again"])


def _refused(reasons: Mapping[str, int]) -> str:
    """Number of refused volumes, and of each reason."""
    each = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    return f"{sum(reasons.values())}" + (f" ({each})" if each else "")


def _times_table(plan: Plan) -> Table:
    rows = [[Cell(rule), Cell(str(len(seconds)), len(seconds)), Cell(f"{sum(seconds) / 60:.1f}", sum(seconds))]
            for rule, seconds in measured(plan.out).items()]  # fmt: skip
    heads = [Column(text) for text in ("stage", "jobs", "minutes in all")]
    return Table("Time of each stage", heads, rows, ["of the last run of each job; several ran at once"])


def _about(plan: Plan) -> list[tuple[str, str]]:
    study, split = plan.study, read_split(plan.out)
    opened = read_object(plan.out / OPENINGS)["openings"]
    guard = read_object(plan.out / GUARD)
    labelled = {count: len(cases) for count, cases in sets_of(plan.study).items()}
    return [
        ("primary contrast, named before anything was run", f"{study.primary} against R, {study.cases[0]} labelled "
                                                            f"patients, {title(MAIN)}"),
        ("test", f"{len(split['test'])} scans of {len({split['patients'][c] for c in split['test']})} patients, opened "
                 f"{counted(len(opened), 'time')}: " + ", ".join(o["at"] for o in opened)),
        ("fold", NOTHING if study.fold is None else f"{study.fold[0]} of {study.fold[1]}: this is a cross-validation, "
                                                    "not the test"),
        ("trainings taken over from the study", str(len(_adopted(plan)))),
        ("labelled scans", ", ".join(f"{count}: {n}" for count, n in labelled.items())),
        ("ratio of real to synthetic", " : ".join(f"{x:g}" for x in study.ratio)),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("steps of a segmenter", f"{study.segmenter.epochs} epochs of {study.segmenter.epoch_cases or 'all'} cases"),
        ("settings (SHA-256)", study.digest),
        ("data (SHA-256 of the prepared datalist)", split["data_sha256"]),
        ("leak guard", f"{len(guard['checked'])} weights and {guard['lists']} lists against {guard['scans']} scans"),
        ("versions", ", ".join(f"{key} {value}" for key, value in versions().items())),
        ("weights that were given, not trained here", _given(guard)),
        ("weights", "\n".join(f"{c['use']}: {c['file']} {c['sha256']}" for c in guard["checked"])),
        ("study.json (SHA-256)", sha256(plan.out / "study.json")),
    ]  # fmt: skip


def _adopted(plan: Plan) -> list[str]:
    return list((read_object_or_none(plan.out / ADOPTED) or {}).get("outputs") or [])


def _given(guard: Mapping[str, Any]) -> str:
    """What the guard cannot see in weights from elsewhere."""
    given = [f"{c['use']}: {c['file']}" for c in guard["checked"] if c.get("given")]
    if not given:
        return "none"
    return "\n".join([*given, "Their cards tell of scans by their voxels: a scan that they were trained on in another "
                              "form (resampled, cropped, in other numbers) is not recognised."])  # fmt: skip


def _case_values(found: Findings) -> list[CaseValues]:
    """Per case and arm, the mean over seeds."""
    rows = []
    for one in found.trained:
        for case in sorted(found.people):
            values = {metric: float(one.values(metric, [case]).mean()) for metric in METRICS}
            rows.append(CaseValues(case, name((one.cases, one.arm)), "test", values))
    return rows


def _distance(line: ArmScores) -> Cell:
    """Of the cases whose organ was found with every seed; how often it was not."""
    missing = f"; {line.missing} missing" if line.missing else ""
    return Cell(f"{line.mean:.2f} ± {line.sd_patients:.2f}{missing}", line.mean)


def _number(value: float | None, places: int, sign: str = "") -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(NOTHING)
    return Cell(f"{value:{sign}.{places}f}", value)
