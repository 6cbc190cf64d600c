"""The files of an evaluation: Markdown, CSV, JSON and one HTML page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..json_files import finite
from ..ownership import Outputs, any_of, beside, is_marked_png, object_with, text_with
from ..provenance.cards import versions
from ..provenance.command import run_command
from ..report.html import CaseValues, Opening, write_html
from ..report.html_pictures import CasePicture
from ..report.pictures import DPI, centre_of, png
from ..report.tables import Cell, Column, Table
from .layout import Facts
from .scores import CONSISTENT, FAITHFUL, PAIRED, ROWS, Collected, Difference, Score
from .sources import RealCase
from .summary import SUMMARY_PICTURES, Summary
from .uncertainty import by_patient

TITLE = "Evaluation of synthetic volumes"
CONTENTS = ("evaluation.json", "evaluation.csv", "cases.csv", "evaluation.md", "evaluation.html")
_EVALUATED = object_with("scores", "differences", "systems", "versions")


@dataclass(frozen=True)
class Results:
    """What an evaluation found and where it was written."""

    tables: Sequence[Table]
    scores: Sequence[Score]
    differences: Sequence[Difference]
    output: Path

    def text(self) -> str:
        """All tables for a terminal."""
        return "\n\n".join(table.text() for table in self.tables)

    def __str__(self) -> str:
        return self.text()


def write_results(
    results: Results, found: Collected, facts: Facts, pictures: Iterable[CasePicture], summary: Summary
) -> None:
    """Write all files into the results' folder, each whole or not at all.

    Args:
        results: tables and numbers.
        found: the measurements, for the values per case.
        facts: facts of feature networks.
        pictures: for the HTML page, taken one at a time.
        summary: summary with which page and Markdown open.

    Raises:
        InputError: for files that are not ours.
    """
    output = result_files(results.output)
    output.check()
    rows = [row for row in ROWS if any(map(bool, found.values.get(row, {}).values()))]
    rows += [system.name for system in found.systems]
    values = [
        CaseValues(case, row, group, found.mean(row, case))
        for group, members in found.groups.items()
        for row in rows
        for case in members
    ]
    values = [value for value in values if value.values]
    about = _about(found, facts)
    content = about | {
        "scores": [asdict(score) for score in results.scores],
        "differences": [asdict(difference) for difference in results.differences],
        "cases": [asdict(value) for value in values],
    }
    output.write_text("evaluation.json", json.dumps(finite(content), indent=1, allow_nan=False) + "\n")
    output.write_text("evaluation.csv", _score_table(results.scores).csv())
    output.write_text("cases.csv", _case_table(values).csv())
    drawn = {name: png(figure, dpi=DPI) for name, (_, figure) in summary.pictures.items()}
    for name, content_of in drawn.items():
        with output.path(name) as picture:
            picture.write_bytes(content_of)
    output.remove_others([*CONTENTS, *drawn])
    output.write_text("evaluation.md", _markdown(summary, results.tables))
    metrics = PAIRED | FAITHFUL | {k: Column(f"{c.title} slices", about=c.about) for k, c in CONSISTENT.items()}
    measured = {name for value in values for name in value.values}
    with output.path("evaluation.html") as page:
        write_html(
            page, title=TITLE, about=_shown(about),
            tables=results.tables, metrics={key: column for key, column in metrics.items() if key in measured},
            cases=values, pictures=pictures, class_names=facts.class_names,
            opening=Opening(summary.sentences, (), [(summary.pictures[name][0], drawn[name]) for name in drawn]),
        )  # fmt: skip


def _markdown(summary: Summary, tables: Sequence[Table]) -> str:
    parts = [f"# {TITLE}\n", *(f"{text}\n" for text in summary.sentences)]
    parts += [f"![{caption}]({name})\n" for name, (caption, _) in summary.pictures.items()]
    return "\n".join([*parts, *(table.markdown() for table in tables)])


def result_files(output: str | Path) -> Outputs:
    """The files of :func:`write_results`, to be checked before anything is measured."""
    known = {
        "evaluation.json": _EVALUATED,
        "evaluation.csv": text_with(",".join(field.name for field in fields(Score)) + "\n"),
        "cases.csv": any_of(text_with("group,system,case,"), text_with("group,system,case\n")),
        "evaluation.md": beside("evaluation.json", _EVALUATED, any_of(text_with("### "), text_with(f"# {TITLE}\n"))),
        "evaluation.html": text_with("<!doctype html>\n", within=f"<title>{TITLE}</title>"),
    } | dict.fromkeys(SUMMARY_PICTURES, is_marked_png)
    return Outputs(output, "semsynth evaluate", known)


def _about(found: Collected, facts: Facts) -> dict[str, Any]:
    judges = {about["sha256"]: about["name"] for about in facts.extractors.values() if about["sha256"] in found.seen}
    if facts.judge is not None:
        judges |= {sha256: facts.judge.name for sha256 in (facts.judge.sha256, facts.judge.second) if sha256}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": run_command(),
        "versions": versions(),
        "extractors": [dict(about) for about in facts.extractors.values()],
        "unavailable": dict(facts.unavailable),
        "judge": None
        if facts.judge is None
        else {"name": facts.judge.name, "sha256": facts.judge.sha256, "spacing": list(facts.judge.spacing)}
        | ({"second_sha256": facts.judge.second} if facts.judge.second else {}),
        "groups": {group: _group(found, facts, group, judges) for group in found.groups},
        "systems": [
            {
                "name": system.name,
                "samples": {group: system.samples(cases) for group, cases in found.groups.items()},
                "in_loss": list(system.in_loss),
                "weights_sha256": system.weights,
            }
            for system in found.systems
        ],
    }


def _group(found: Collected, facts: Facts, group: str, judges: Mapping[str, str]) -> dict[str, Any]:
    """What the tables' notes say of a group: cases, draws, references, and what judges have seen of both."""
    members, sides = found.groups[group], facts.sides.get(group)
    drawn: dict[str, Any] = {}
    if sides is not None:
        drawn = {"n": sides.n, "draws": len(sides.draws), "no_floor_training": sides.without or None,
                 "references_training": None if sides.training is None else asdict(sides.training)}  # fmt: skip
    saw: dict[str, Any] = {}
    for sha256, name in judges.items():
        exposure = found.exposure(sha256, group)
        if exposure is not None:
            saw[sha256] = {"name": name} | asdict(exposure)
            saw[sha256] |= {} if sides is None else {"references": asdict(sides.references_in(found.seen[sha256]))}
    return {
        "cases": len(members),
        "patients": len(by_patient(members, found.patients())),
        "splits": dict(Counter(found.cases[case].split or "" for case in members if case in found.cases)),
        "drawn": drawn or None,
        "judges": saw,
        "second_judge": 0 if facts.judge is None else len(facts.judge.seconded & set(members)),
    }


def _shown(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people: one line per fact."""
    lines = [("created", about["created"]), ("command", about["command"])]
    lines += [("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items()))]
    for system in about["systems"]:
        samples = ", ".join(
            f"{most if fewest == most else f'{fewest} to {most}'} of each map ({group})"
            for group, (fewest, most) in system["samples"].items()
        )
        weights = f"; weights {system['weights_sha256']}" if system["weights_sha256"] else ""
        lines.append((f"system {system['name']}", f"samples: {samples}{weights}"))
    for network in about["extractors"]:
        lines.append((f"features {network['name']}", f"SHA-256 {network['sha256']}"))
    if about["judge"]:
        lines.append((f"judge {about['judge']['name']}", f"SHA-256 {about['judge']['sha256']}"))
        if "second_sha256" in about["judge"]:
            lines.append((f"second judge {about['judge']['name']}", f"SHA-256 {about['judge']['second_sha256']}"))
    lines += [(f"no features {name}", why) for name, why in about["unavailable"].items()]
    return lines


def worst_pictures(found: Collected, cases: Mapping[str, RealCase], limit: int) -> Iterator[CasePicture]:
    """The cases of lowest PSNR of every group and system, first samples, read again one at a time.

    Args:
        found: the measurements.
        cases: real cases, with their files.
        limit: cases per group and system.
    """
    for group, members in found.groups.items():
        for system in found.systems:
            psnr = {case: found.mean(system.name, case).get("psnr", math.inf) for case in members}
            for case in sorted(members, key=psnr.__getitem__)[:limit]:
                image, label = cases[case].read()
                path = system.volumes[case][0]
                synthetic = cases[case].read_synthetic(path, image, system.held.get(path))
                centre = centre_of(label) if label is not None else tuple(size // 2 for size in image.data.shape)
                yield CasePicture(
                    case=case, system=system.name, group=group, synthetic=synthetic.data, real=image.data, label=label,
                    spacing=image.spacing, centre=centre,
                )  # fmt: skip


def _score_table(scores: Sequence[Score]) -> Table:
    names = [field.name for field in fields(Score)]
    rows = [[_plain(getattr(score, name)) for name in names] for score in scores]
    return Table("scores", [Column(name) for name in names], rows)


def _case_table(values: Sequence[CaseValues]) -> Table:
    metrics = list(dict.fromkeys(name for value in values for name in value.values))
    rows = [
        [Cell(v.group), Cell(v.system), Cell(v.case), *(_plain(v.values.get(name)) for name in metrics)] for v in values
    ]
    return Table("cases", [Column(name) for name in ("group", "system", "case", *metrics)], rows)


def _plain(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(str(value), value)
    return Cell("" if value is None else str(value))
