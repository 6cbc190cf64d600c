"""What a check of cases found: one finding per problem, and the report that lists them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from ..errors import InputError
from ..files import stamp
from ..texts import counted

Severity: TypeAlias = Literal["error", "warning"]
COLUMNS = ("case", "file", "finding", "found", "expected", "fix")
SHOWN_NAMES = 3


@dataclass(frozen=True)
class Finding:
    """One problem of one file.

    Attributes:
        case: name of the case; empty for what concerns the whole input.
        file: path of the file.
        finding: the kind of problem, the same words for every file that has it.
        found: content of the file that is wrong.
        expected: content that is needed.
        fix: remedy.
        severity: an ``error`` cannot be used; a ``warning`` is used in the way that ``expected`` or ``fix`` says.
    """

    case: str
    file: str
    finding: str
    found: str
    expected: str
    fix: str
    severity: Severity = "error"

    def __str__(self) -> str:
        where = f"case {self.case}: " if self.case else ""
        return f"{where}{self.file}: {self.finding}: found {self.found}, expected {self.expected}; {self.fix}"


class FindingError(InputError):
    """A file that cannot be used, with the finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def error(file: str | Path, finding: str, *, found: str, expected: str, fix: str) -> Finding:
    """A finding that makes the file unusable; the case's name is put in by whoever knows it."""
    return Finding("", str(file), finding, found, expected, fix)


def warning(file: str | Path, finding: str, *, found: str, expected: str, fix: str) -> Finding:
    """A finding that the file can be used with."""
    return Finding("", str(file), finding, found, expected, fix, "warning")


def of_case(case: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings with the name of their case."""
    return [replace(finding, case=case) for finding in findings]


@dataclass(frozen=True)
class Report:
    """All findings of one check.

    Attributes:
        findings: in the order of the cases.
        cases: number of cases that were checked.
        classes: class index → number of label maps that hold it (empty where there are no label maps).
        sound: case without an error → file → its size and time of change just before it was read.
        rules: rules that the cases were checked against.
        voxels: case → role → hash of the voxels, see :func:`semsynth.data.voxels.voxel_hash`.
        names: index → name of the classes, where all label maps name their segments, and in one order.
    """

    findings: tuple[Finding, ...]
    cases: int
    classes: Mapping[int, int] = field(default_factory=dict)
    sound: Mapping[str, Mapping[Path, tuple[int, int]]] = field(default_factory=dict, repr=False)
    rules: object = field(default=None, repr=False)
    voxels: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    names: Mapping[int, str] = field(default_factory=dict, repr=False)

    def vouches_for(self, case: str, files: Iterable[Path], rules: object) -> bool:
        """Whether the case was found without an error by these rules, and none of its files has changed since."""
        known = self.sound.get(case, {})
        try:
            return rules == self.rules and all(known.get(path) == stamp(path) for path in files)
        except OSError:  # a file that is gone: whoever reads it says so
            return False

    @property
    def errors(self) -> list[Finding]:
        """What cannot be used."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What can be used, but should be known."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    def summary(self) -> str:
        """One line: how many cases, errors and warnings."""
        bad = len({finding.case for finding in self.errors if finding.case})
        return (
            f"{counted(self.cases, 'case')} checked: {counted(len(self.errors), 'error')}"
            + (f" in {counted(bad, 'case')}" if bad else "")
            + f", {counted(len(self.warnings), 'warning')}"
        )

    def table(self) -> str:
        """Errors and warnings as two Markdown tables, then the summary; a warning that many cases share is one row."""
        parts = []
        for title, findings in (("Errors", self.errors), ("Warnings", _merged(self.warnings))):
            if findings:
                rows = [[getattr(finding, column) for column in COLUMNS] for finding in findings]
                parts.append("\n".join([f"{title}:", "", *_markdown(rows), ""]))
        return "\n".join([*parts, self.summary()])

    def json(self) -> str:
        """Everything, for machines: ``cases``, ``classes``, ``errors`` and ``warnings``."""
        content = {
            "cases": self.cases,
            "classes": {str(index): count for index, count in self.classes.items()},
            "errors": [asdict(finding) for finding in self.errors],
            "warnings": [asdict(finding) for finding in self.warnings],
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def raise_for_errors(self) -> None:
        """Raise if there are errors.

        Raises:
            InputError: listing every one of them.
        """
        errors = self.errors
        if errors:
            bad = len({finding.case for finding in errors if finding.case})
            which = f"{bad} of {self.cases} cases cannot be used:" if bad else "the cases cannot be used:"
            raise InputError(which, [str(finding) for finding in errors])

    def log_warnings(self, logger: logging.Logger) -> None:
        """Log each kind of warning once, with how many cases have it and the first of their names."""
        kinds: dict[str, list[Finding]] = {}
        for finding in self.warnings:
            kinds.setdefault(finding.finding, []).append(finding)
        for kind, same in kinds.items():
            cases = list(dict.fromkeys(finding.case for finding in same))
            logger.warning(
                "%s: %d of %d cases (%s), such as: found %s, expected %s; %s",
                kind, len(cases), self.cases, _some(cases), same[0].found, same[0].expected, same[0].fix,
            )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Findings of one kind become one row where they are of more than a few cases."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.finding, finding.expected, finding.fix), []).append(finding)
    result = []
    for same in groups.values():
        cases, files, found = (list(dict.fromkeys(texts)) for texts in zip(
            *((finding.case, Path(finding.file).name, finding.found) for finding in same), strict=True
        ))  # fmt: skip
        if len(cases) > SHOWN_NAMES:
            result.append(replace(same[0], case=f"{len(cases)} cases ({_some(cases)})", file=_some(files),
                                  found=_some(found)))  # fmt: skip
        else:
            result += same
    return result


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[" ".join(text.split()).replace("|", "\\|") for text in row] for row in (COLUMNS, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
