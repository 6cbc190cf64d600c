"""Tables of results: one content, shown as text, Markdown, CSV or (by :mod:`semsynth.report.html`) HTML."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..texts import in_csv, shown

NOTHING = "—"


@dataclass(frozen=True)
class Column:
    """Heading of a column.

    Attributes:
        title: name of the quantity, with its unit.
        better: direction of good values, for an arrow behind the title.
        about: one sentence of explanation.
    """

    title: str
    better: Literal["higher", "lower", ""] = ""
    about: str = ""

    @property
    def heading(self) -> str:
        """Title with its arrow."""
        return self.title + {"higher": " ↑", "lower": " ↓", "": ""}[self.better]


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: as it is shown.
        value: the number to sort by; None sorts last.
        about: one sentence more, such as why there is no value.
    """

    text: str
    value: float | None = None
    about: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; every row has one cell per column.

    Attributes:
        title: heading.
        columns: the columns, the first one names the rows.
        rows: cells.
        notes: sentences under it: how it was measured, reasons of dashes.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default_factory=tuple)

    def text(self) -> str:
        """The table for a terminal: aligned columns."""
        lines = [
            [column.heading for column in self.columns],
            *([shown(cell.text) for cell in row] for row in self.rows),
        ]
        widths = [max(_width(line[i]) for line in lines) for i in range(len(self.columns))]
        aligned = ["  ".join(_pad(text, width, i > 0) for i, (text, width) in enumerate(zip(line, widths, strict=True)))
                 for line in lines]  # fmt: skip
        rule = "  ".join("─" * width for width in widths)
        body = [self.title, "", aligned[0].rstrip(), rule, *(line.rstrip() for line in aligned[1:])]
        return "\n".join([*body, *(f"  {note}" for note in self.notes)])

    def markdown(self) -> str:
        """GitHub's Markdown."""
        heads = [column.heading for column in self.columns]
        rule = ["---", *["---:"] * (len(heads) - 1)]
        lines = [heads, rule, *([shown(cell.text) for cell in row] for row in self.rows)]
        table = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"### {self.title}\n\n{table}\n" + (notes + "\n" if notes else "")

    def csv(self) -> str:
        """Comma-separated, numbers as they are where a cell has one."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        for row in self.rows:
            writer.writerow([in_csv(cell.text) if cell.value is None else repr(cell.value) for cell in row])
        return stream.getvalue()


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: combining marks none, wide characters two."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def number(value: float) -> str:
    """Four significant digits, without an exponent where it can be read without."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    places = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}" if -4 < math.log10(abs(value)) < 7 else f"{value:.3e}"
