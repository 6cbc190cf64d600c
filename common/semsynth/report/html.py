"""One HTML page of an evaluation that needs nothing but itself: tables, values, distributions, pictures to look into.

The page is ``report.html`` beside this module with its placeholders filled. Grey values travel as 8 bits in the page
itself (predicted, then deflated, then base64) and are windowed by the page's script; nothing is loaded from elsewhere,
and a Content-Security-Policy that allows the page's own script and style by their hashes alone keeps it so.

Pictures take Chrome or Edge 80, Firefox 113, Safari 16.4 or newer. What is looked at stands behind the ``#`` of the
address (``sort``, ``dir``, ``system``, ``group``, ``plane``, ``slice``, ``window``, ``diff``, ``outline``, ``voxels``,
``picture``), so that a view can be passed on: ``report.html#sort=ssim&plane=coronal&window=0.2,0.8&slice=2``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ..data.label_files import LABEL_COLOURS
from ..errors import InputError
from ..files import atomic_path
from .html_pictures import CasePicture, PictureWriter
from .tables import NOTHING, Column, Table

_LONG = 110  # characters of a fact beyond which it is folded
_DIGITS = 4  # significant ones, of the largest value of a metric


@dataclass(frozen=True)
class CaseValues:
    """Metric key → value of one case of one system; values may be NaN or infinite, keys may be missing."""

    case: str
    system: str
    group: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Opening:
    """What a page says before all else.

    Attributes:
        sentences: a paragraph each.
        alarms: the same, in red.
        pictures: caption and PNG.
    """

    sentences: Sequence[str]
    alarms: Sequence[str] = ()
    pictures: Sequence[tuple[str, bytes]] = ()

    def html(self) -> str:
        """The case as a section of the page."""
        lines = [f'<p class="alarm">{escape(text)}</p>' for text in self.alarms]
        lines += [f"<p>{escape(text)}</p>" for text in self.sentences]
        for caption, png in self.pictures:
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            text = escape(caption)
            lines.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')
        return f'<section class="opening">{"".join(lines)}</section>\n'


def write_html(
    path: str | Path,
    *,
    title: str,
    about: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    metrics: Mapping[str, Column],
    cases: Sequence[CaseValues],
    pictures: Iterable[CasePicture],
    slices: int = 5,
    class_names: Mapping[int, str] | None = None,
    opening: Opening | None = None,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the ``.html`` file.
        title: heading of the page.
        about: facts on top, name and value: command, versions, extractors with their SHA-256, data.
        tables: results, in the order in which they are shown.
        metrics: key of :attr:`CaseValues.values` → its column. Keys that are not in it are not shown. The page starts
            with the worst case of the first one.
        cases: values per case and system.
        pictures: taken one at a time, and only one is held at once.
        slices: number of slices per plane, spread over the content; fewer where there is less of it.
        class_names: names of the classes of the label maps; None or {}: those of composite maps.
        opening: content that stands above all else.

    Returns:
        The path.

    Raises:
        InputError: fewer than one slice, or volumes of a case that are not on one 3D grid.
    """
    if slices < 1:
        raise InputError(f"slices must be at least 1, got {slices}")
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    before, after = template.split("{{pictures}}\n")
    digits = {key: _decimals(key, cases) for key in metrics}
    rows = _worst_first(cases, metrics)
    texts = {
        "title": escape(title),
        "lead": escape(_lead(cases)),
        "opening": "" if opening is None else opening.html(),
        "style_hash": _source_hash(template, "style"),
        "script_hash": _source_hash(template, "script"),
        "about": "\n".join(_fact(name, value) for name, value in about),
        "tables": "\n".join(_table(table, f"table-{i}") for i, table in enumerate(tables)),
        "cases": _case_table(rows, metrics, digits),
    }
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream,
    ):
        stream.write(_fill(before, texts))
        shown = PictureWriter(stream, slices, class_names)
        for picture in pictures:
            shown.add(picture)
            del picture  # or it would live until the next one has been read
        stream.write(_fill(after, {"data": _embedded(_content(title, rows, metrics, digits) | shown.content())}))
    return Path(path)


def _content(
    title: str, rows: Sequence[CaseValues], metrics: Mapping[str, Column], digits: Mapping[str, int]
) -> dict[str, Any]:
    """What the script needs to sort, filter and draw the values."""
    columns = [
        {"key": key, "title": column.title, "better": column.better, "about": column.about, "digits": digits[key]}
        for key, column in metrics.items()
    ]
    values = [
        {"case": row.case, "system": row.system, "group": row.group}
        | {"values": [_number(row.values.get(key)) for key in metrics]}
        for row in rows
    ]
    return {"title": title, "metrics": columns, "rows": values, "colours": LABEL_COLOURS}


# ---- text ------------------------------------------------------------------------------------------------------------


def _fill(template: str, texts: Mapping[str, str]) -> str:
    """Placeholders replaced in one pass, so that braces in the data stay what they are."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: texts[match[1]], template)


def _source_hash(template: str, tag: str) -> str:
    """The hash by which a Content-Security-Policy knows the page's own script or style."""
    found = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    if found is None:
        raise ValueError(f"report.html has no <{tag}>")
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


def _embedded(content: Any) -> str:
    """JSON that can stand in a script element: no character in it begins a tag, a comment or an entity."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _lead(cases: Sequence[CaseValues]) -> str:
    """One line that says what the page is about."""
    systems, groups = (
        ", ".join(dict.fromkeys(names)) for names in ((c.system for c in cases), (c.group for c in cases))
    )
    return f"cases: {len({c.case for c in cases})} · systems: {systems} · groups: {groups}" if cases else ""


def _fact(name: str, value: str) -> str:
    text = escape(value)
    if len(value) > _LONG or "\n" in value:
        first = escape(value.split("\n")[0][:_LONG].rstrip())
        text = f"<details><summary>{first} …</summary><pre>{text}</pre></details>"
    return f"<div><dt>{escape(name)}</dt><dd>{text}</dd></div>"


def _table(table: Table, anchor: str) -> str:
    """A table with its notes; what single cells have to say stands in footnotes and in their tooltips."""
    footnotes: dict[str, int] = {}
    lines = []
    for row in table.rows:
        cells = []
        for i, cell in enumerate(row):
            tag = "th scope=row" if i == 0 else "td"
            kind = ' class="dash"' if cell.text == NOTHING else ""
            text, tip = escape(cell.text), ""
            if cell.about:
                number = footnotes.setdefault(cell.about, len(footnotes) + 1)
                tip = f' title="{escape(cell.about)}"'
                text += f'<sup><a href="#{anchor}-{number}" aria-label="footnote {number}">{number}</a></sup>'
            cells.append(f"<{tag}{kind}{tip}>{text}</{tag.split()[0]}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th scope=col{_tip(column)}>{escape(column.heading)}</th>" for column in table.columns)
    body = f"<thead><tr>{heads}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    marks = "".join(f'<li id="{anchor}-{n}">{escape(text)}</li>' for text, n in footnotes.items())
    return (
        f'<article id="{anchor}"><h3>{escape(table.title)}</h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>{body}</table></div>'
        + (f'<ol class="notes">{marks}</ol>' if marks else "")
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + _meanings(table.columns)
        + "</article>"
    )


def _tip(column: Column) -> str:
    words = [column.about, f"{column.better} is better" if column.better else ""]
    text = " — ".join(word for word in words if word)
    return f' title="{escape(text)}"' if text else ""


def _meanings(columns: Iterable[Column]) -> str:
    """What the tooltips of the headings say, for paper and for fingers."""
    items = [f"<dt>{escape(c.title)}</dt><dd>{escape(c.about)}</dd>" for c in columns if c.about]
    body = f'<dl class="meanings">{"".join(items)}</dl>'
    return f"<details><summary>What the columns mean</summary>{body}</details>" if items else ""


# ---- values ----------------------------------------------------------------------------------------------------------


def _number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: they travel as words, what is missing as null."""
    if value is None:
        return None
    return float(value) if math.isfinite(value) else str(float(value))


def _decimals(key: str, cases: Sequence[CaseValues]) -> int:
    """Digits behind the point for all values of a metric, so that they stand under each other."""
    finite = [abs(case.values[key]) for case in cases if math.isfinite(case.values.get(key, math.nan))]
    largest = max(finite, default=1.0) or 1.0
    return min(max(_DIGITS - 1 - math.floor(math.log10(largest)), 0), 9)


def _worst_first(cases: Sequence[CaseValues], metrics: Mapping[str, Column]) -> list[CaseValues]:
    """Rows by the first metric, worst on top, those without a value at the end."""
    first = next(iter(metrics), None)
    if first is None:
        return list(cases)
    sign = -1 if metrics[first].better == "lower" else 1

    def order(case: CaseValues) -> tuple[bool, float]:
        value = case.values.get(first, math.nan)
        return (True, 0.0) if math.isnan(value) else (False, sign * value)

    return sorted(cases, key=order)


def _case_table(rows: Sequence[CaseValues], metrics: Mapping[str, Column], digits: Mapping[str, int]) -> str:
    """The table of all cases as it is without a script: worst first."""
    heads = {"case": Column("Case"), "system": Column("System"), "group": Column("Group")} | dict(metrics)
    line = "".join(
        f'<th scope=col aria-sort="none"{_tip(column)}>'
        f'<button type="button" data-sort="{escape(key)}">{escape(column.heading)}</button></th>'
        for key, column in heads.items()
    )
    body = []
    for row in rows:
        cells = [f"<th scope=row>{escape(row.case)}</th>", f"<td class=word>{escape(row.system)}</td>"]
        cells.append(f"<td class=word>{escape(row.group)}</td>")
        cells += [_value_cell(row.values.get(key), digits[key]) for key in metrics]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<thead><tr>{line}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody>"


def _value_cell(value: float | None, digits: int) -> str:
    if value is None:
        return f'<td class="dash" title="no value">{NOTHING}</td>'
    if math.isnan(value):
        return '<td class="dash" title="not a number">NaN</td>'
    if math.isinf(value):
        return f"<td>{'∞' if value > 0 else '−∞'}</td>"
    return f'<td title="{float(value)!r}">{value:.{digits}f}</td>'
