"""From links between scans to patients: groups, findings, and the files that a person looks at."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ...data.check import Checkable
from ...data.findings import Finding, Report
from ...data.identity import patient_of, shared_patients
from ...ownership import Outputs, any_of, beside, is_marked_png, is_plotted_png, object_with, text_with
from ...texts import in_csv
from ...vocabulary import UNLABELLED
from .null import LIKELY, STATED, SURE, WEAK
from .screening import Link, Screening, screen
from .sheet import save_sheet

logger = logging.getLogger(__name__)
AnyCase = TypeVar("AnyCase", bound=Checkable)
PAIRS, SUMMARY, SHEET = "pairs.csv", "same_patient.json", "pairs.png"
COLUMNS = ("first", "second", "first_split", "second_split", "kind", "sureness", "expected_false_links", "similarity",
           "correlation", "intensity_correlation", "mask_dice", "degrees", "mm", "stored", "patient")  # fmt: skip
_SUMMED_UP = object_with("judged_by", "registered", "groups", "not_grouped")
_KNOWN = {
    PAIRS: text_with(",".join(COLUMNS) + "\n"),
    SUMMARY: _SUMMED_UP,
    SHEET: any_of(is_marked_png, beside(SUMMARY, _SUMMED_UP, is_plotted_png)),
}


def patient_files(output: str | Path) -> Outputs:
    """The files of a search for scans of one patient, to be checked before the search."""
    return Outputs(output, "semsynth's search for scans of one patient", _KNOWN)


@dataclass(frozen=True)
class Group:
    """Cases of one patient.

    Attributes:
        patient: the name: what the data set states, or ``patient_of_`` and the first case.
        cases: their names.
        links: links by which they were brought together.
    """

    patient: str
    cases: tuple[str, ...]
    links: tuple[Link, ...]


def grouped(cases: Sequence[Checkable], links: Sequence[Link]) -> tuple[list[Group], list[Link]]:
    """Groups of two or more cases by sure and likely links, the surest first, and by what the cases state.

    Returns:
        The groups, and the links between cases that are stated to be of two patients, which are not followed.
    """
    member = {case.name: [case.name] for case in cases}
    name = {case.name: case.patient for case in cases}
    used: dict[str, list[Link]] = {case.name: [] for case in cases}
    first: dict[str, str] = {}

    def join(a: str, b: str, link: Link | None) -> bool:
        if member[a] is not member[b]:
            if None not in (name[a], name[b]) and name[a] != name[b]:
                return False
            patient, together = name[a] or name[b], [*member[a], *member[b]]
            followed = [*used[a], *used[b]]
            for case in together:
                member[case], name[case], used[case] = together, patient, followed
        if link is not None:
            used[a].append(link)
        return True

    for case, patient in name.copy().items():
        if patient is not None:
            join(first.setdefault(patient, case), case, None)
    refused = [link for link in links if link.sureness != "weak" and not join(link.first, link.second, link)]
    result = []
    for together in {id(cases): cases for cases in member.values()}.values():
        if len(together) > 1:
            ordered = sorted(together)
            patient = name[ordered[0]] or f"patient_of_{ordered[0]}"
            result.append(Group(patient, tuple(ordered), tuple(used[ordered[0]])))
    return sorted(result, key=lambda group: group.cases), refused


def with_patients(cases: Sequence[AnyCase], groups: Sequence[Group]) -> list[AnyCase]:
    """The cases with ``patient`` set where they are in a group; the others as they are."""
    patient = {case: group.patient for group in groups for case in group.cases}
    return [replace(case, patient=patient[case.name]) if case.name in patient else case for case in cases]  # type: ignore[type-var]


def told_by_names(cases: Sequence[AnyCase], pattern: str | None) -> list[AnyCase]:
    """The cases with the patients that a pattern finds in their names, where they state none themselves."""
    if pattern is None:
        return list(cases)
    told = [patient_of(case, pattern) for case in cases]
    return [replace(case, patient=patient) for case, patient in zip(cases, told, strict=True)]  # type: ignore[type-var]


def group_patients(cases: Sequence[AnyCase], output: str | Path, patient_regex: str | None = None) -> list[AnyCase]:
    """Search a data set for scans of one patient, write what was found, and set ``patient`` of the cases.

    Args:
        cases: data classes with ``name``, ``files``, ``split`` and ``patient``; those that state a patient keep it.
        output: folder for ``pairs.csv``, ``pairs.png`` and ``same_patient.json``.
        patient_regex: pattern whose first group in a case's name is the patient.

    Returns:
        The same cases, in the same order.

    Raises:
        InputError: as :func:`semsynth.prepare.patients.screening.screen`; for a patient in two of the splits that the
            cases have; for files in ``output`` that are not ours.
    """
    patient_files(output).check()
    cases = told_by_names(cases, patient_regex)
    screening = screen(cases)
    groups, refused = grouped(cases, screening.links)
    save(screening, cases, groups, refused, output)
    marked = with_patients(cases, groups)
    Report(tuple(shared_patients(marked, None)), len(marked)).raise_for_errors()
    found = findings(screening, cases, refused, output)
    for finding in found:
        if finding.finding in (TWICE, TWO_NAMES, TO_LOOK_AT):
            logger.warning("%s", finding)
    count = sum(len(group.cases) for group in groups)
    logger.info("%d of %d cases are of %d patients with two or more scans: see %s", count, len(cases), len(groups),
                Path(output) / SHEET)  # fmt: skip
    return marked


def check_patients(
    cases: Sequence[Checkable], patient_regex: str | None = None, *, output: str | Path
) -> list[Finding]:
    """Search a data set for scans of one patient, write what was found, and say it as findings.

    Args:
        cases: cases of the data set; those without an image are passed over.
        patient_regex: pattern whose first group in a case's name is the patient.
        output: folder for ``pairs.csv``, ``pairs.png`` and ``same_patient.json``.

    Raises:
        InputError: as :func:`semsynth.prepare.patients.screening.screen`; for files in ``output`` that are not ours.
    """
    cases = told_by_names([case for case in cases if "image" in case.files], patient_regex)
    if len(cases) < 2:
        return []
    patient_files(output).check()
    screening = screen(cases)
    groups, refused = grouped(cases, screening.links)
    save(screening, cases, groups, refused, output)
    return findings(screening, cases, refused, output)


TWICE, TWO_SPLITS, TWO_NAMES = "the same scan twice", "same patient in two splits", "one patient under two names"
ONE_PATIENT, TO_LOOK_AT = "scans of one patient", "pairs to look at"


def findings(
    screening: Screening, cases: Sequence[Checkable], refused: Sequence[Link], output: str | Path
) -> list[Finding]:
    """One finding per sure or likely link, and one for all weak ones together."""
    by_name = {case.name: case for case in cases}
    found = [_finding(link, by_name[link.first], by_name[link.second], link in refused, Path(output) / SHEET)
             for link in screening.links if link.sureness != "weak"]  # fmt: skip
    weak = [link for link in screening.links if link.sureness == "weak"]
    if weak:
        names = ", ".join(f"{link.first} with {link.second}" for link in weak[:3]) + (", …" if len(weak) > 3 else "")
        found.append(Finding("", str(Path(output) / SHEET), TO_LOOK_AT, f"{len(weak)} perhaps of one patient: {names}",
                             "a decision by eye", "state the same 'patient' in the datalist where they are",
                             "warning"))  # fmt: skip
    return found


def _finding(link: Link, first: Checkable, second: Checkable, refused: bool, sheet: Path) -> Finding:
    splits = [_split(case) for case in (first, second)]
    apart = None not in splits and splits[0] != splits[1]
    stored = f", stored {_stored(link)}" if link.turned else ""
    sure = "" if math.isnan(link.expected) else f", {link.expected:.1g} false links expected"
    pair = f"{link.second} with {link.first}{_in(splits)}"
    found = f"{pair}: {link.sureness}, correlation {link.correlation:.3f}{stored}{sure}"
    if link.kind == "same scan":
        kind, severity = TWICE, "error"
    elif apart:
        kind, severity = TWO_SPLITS, "error"
    else:
        kind, severity = (TWO_NAMES if refused else ONE_PATIENT), "warning"
    fixes = {
        TWICE: "leave one of the two out",
        TWO_SPLITS: "put them into one split, or state another 'patient' where the picture shows two",
        TWO_NAMES: "state one 'patient' for both, or leave it where the picture shows two",
        ONE_PATIENT: "state one 'patient' for both, or use --group-patients, before splits are drawn",
    }
    return Finding(link.second, str(second.files["image"]), kind, found, f"different patients (see {sheet})",
                   fixes[kind], severity)  # type: ignore[arg-type]  # fmt: skip


def _in(splits: Sequence[str | None]) -> str:
    return "" if None in splits else f" ({splits[1]}, {splits[0]})"


def _split(case: Checkable) -> str | None:
    return "training" if case.split == UNLABELLED else case.split


def _stored(link: Link) -> str:
    axes = [int(axis) for axis, _ in link.orientation]
    turned = "".join("RAS"[i] for i, (_, way) in enumerate(link.orientation) if way < 0)
    order = "" if axes == [0, 1, 2] else f"axes in the order {','.join(map(str, axes))}"
    return " and ".join(part for part in (order, f"mirrored along {turned}" if turned else "") if part) or "as it is"


def save(
    screening: Screening,
    cases: Sequence[Checkable],
    groups: Sequence[Group],
    refused: Sequence[Link],
    output: str | Path,
) -> None:
    """Write ``pairs.csv`` (all links), ``same_patient.json`` (groups and how they were found) and ``pairs.png``."""
    files = patient_files(output)
    files.check()
    patient = {case: group.patient for group in groups for case in group.cases}
    splits = {case.name: case.split or "" for case in cases}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for link in screening.links:
        shared = patient.get(link.first) if patient.get(link.first) == patient.get(link.second) else None
        mm = float((link.pose.shift**2).sum() ** 0.5)
        numbers = (link.similarity, link.correlation, link.intensity, link.dice, link.pose.degrees, mm)
        writer.writerow([in_csv(link.first), in_csv(link.second), splits[link.first], splits[link.second], link.kind,
                         link.sureness, f"{link.expected:.3g}", *(f"{number:.4f}" for number in numbers), _stored(link),
                         in_csv(shared or "")])  # fmt: skip
    files.write_text(PAIRS, text.getvalue())
    files.write_text(SUMMARY, json.dumps(_summary(screening, groups, refused), indent=1, ensure_ascii=False))
    save_sheet(files.folder / SHEET, screening)


def _summary(screening: Screening, groups: Sequence[Group], refused: Sequence[Link]) -> dict[str, Any]:
    null = screening.null
    limits: Mapping[str, float] = STATED if null.rate is None else {"sure": SURE, "likely": LIKELY, "weak": WEAK}
    weak = [link for link in screening.links if link.sureness == "weak"]
    return {
        "cases": len(screening.scans),
        "pairs": null.pairs,
        "registered": screening.compared,
        "spacing_mm": round(screening.spacing, 3),
        "processor_seconds": round(screening.seconds, 1),
        "judged_by": null.basis,
        "limits": {"of": "correlation" if null.rate is None else "expected false links", **limits},
        "groups": {group.patient: _group(group) for group in groups},
        "not_grouped": [_brief(link) for link in weak],
        "stated_as_two_patients": [_brief(link) for link in refused],
    }


def _group(group: Group) -> dict[str, Any]:
    words = [word for word in ("sure", "likely") if any(link.sureness == word for link in group.links)]
    return {"cases": list(group.cases), "least_sure": words[-1] if words else "stated",
            "links": [_brief(link) for link in group.links]}  # fmt: skip


def _brief(link: Link) -> dict[str, Any]:
    expected = None if math.isnan(link.expected) else float(f"{link.expected:.3g}")
    return {"cases": [link.first, link.second], "kind": link.kind, "sureness": link.sureness,
            "expected_false_links": expected, "correlation": round(link.correlation, 4)}  # fmt: skip
