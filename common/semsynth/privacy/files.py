"""The files of an audit: what can be shared, and apart from it what shows patients."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..json_files import finite
from ..ownership import Outputs, any_of, beside, is_marked_png, is_plotted_png, object_with, text_with
from ..prepare.patients.scans import Scan
from ..prepare.patients.screening import registered
from ..provenance.audits import AUDIT, NO_SIGN_FOUND
from ..provenance.cards import versions
from ..provenance.command import run_command
from ..report.html import CaseValues, Opening, write_html
from ..report.pictures import AS_TYPED, SHOWN_PLANES, plane, save_figure
from ..report.tables import Column, Table
from ..texts import in_csv
from ..texts import shown as escaped
from .copies import DECISIVE
from .findings import Findings
from .layout import tables, volume_rows
from .likeness import Pair, mirrored, see
from .verdict import rules

TITLE = "Audit of synthetic volumes"
REPORT, PAGE, VOLUMES = "audit.md", "audit.html", "volumes.csv"
PAIRS, PAIRS_TABLE = "closest_pairs.png", "closest_pairs.csv"
SHOWS_PATIENTS = "THIS FILE SHOWS SCANS OF PATIENTS: do not share it with the audit"
CLOSEST = 8
METRICS = {
    "margin": Column("margin", "lower", "standard deviations above real scans of other patients"),
    "image": Column("image", "lower", "correlation with the nearest training scan"),
    "patch": Column("patch", "lower", "the same within cubes of 24 mm, the best twentieth"),
    "texture": Column("texture", "lower", "partial correlation given the volume's label map"),
}
LIMITS = (
    "The verdict is about copies of whole scans, of parts of about 24 mm, and of texture, in these volumes and for "
    "these training scans alone. It is no promise: what this audit does not look for, it does not find.",
    "Volumes without a sign of copies are still made from patients' data. Whether they may be shared is for those to "
    "decide who answer for these data.",
)
_HEAD = ("volume", "case of the volume", "scan", "case of the scan", "side", "likeness", "patch", "texture", "flagged")
_DPI = 100


def audit_files(output: str | Path) -> Outputs:
    """The files of an audit, to be checked before it begins."""
    audited = object_with("verdict", "volumes_sha256", "thresholds")
    pictures = any_of(is_marked_png, beside(AUDIT, audited, is_plotted_png))
    return Outputs(output, "semsynth audit", {
        AUDIT: audited, REPORT: text_with(f"# {TITLE}"), PAGE: text_with(within=TITLE),
        VOLUMES: text_with("volume,sha256,"), PAIRS: pictures, PAIRS_TABLE: text_with(f"# {SHOWS_PATIENTS}"),
    })  # fmt: skip


def write_audit(found: Findings, output: str | Path) -> list[Table]:
    """Write all files, and return the tables.

    Raises:
        InputError: for files that are not ours.
    """
    files = audit_files(output)
    files.check()
    shown = tables(found)
    command = run_command()
    _pairs(found, files)
    files.write_text(VOLUMES, volume_rows(found).csv())
    sentences = [headline(found), *found.verdict.reasons, *LIMITS]
    parts = [f"# {TITLE}\n", *(f"{sentence}\n" for sentence in sentences), *(table.markdown() for table in shown)]
    files.write_text(REPORT, "\n".join([*parts, f"Command: `{command}`\n"]))
    alarms = [] if found.verdict.word == NO_SIGN_FOUND else [headline(found), *found.verdict.reasons]
    with files.path(PAGE) as temporary:
        write_html(
            temporary, title=TITLE, about=[("command", command), *versions().items()], tables=shown, metrics=METRICS,
            cases=_cases(found), pictures=(), opening=Opening(sentences if not alarms else LIMITS, alarms),
        )  # fmt: skip
    files.write_text(AUDIT, json.dumps(content(found, command), indent=1, allow_nan=False) + "\n")
    return shown


def _cases(found: Findings) -> list[CaseValues]:
    """Every volume's margin and its likeness to its nearest training scan, for the page; by number, not by name."""
    rows = []
    parts = zip(found.volume_numbers, found.made, found.judged, found.compared.made, strict=True)
    for i, one, judged, compared in sorted(parts, key=lambda part: part[0]):
        values = {"margin": judged.margin} if math.isfinite(judged.margin) else {}
        values |= {level: compared.levels[level].train for level in DECISIVE if level in compared.levels}
        rows.append(CaseValues(f"V{i}", "synthetic", f"{one.origin} map", values))
    return rows


def headline(found: Findings) -> str:
    """The verdict in one sentence."""
    counts = found.counts
    return (f"Verdict: {found.verdict.word}, among {counts.volumes} synthetic volumes held against "
            f"{len(found.real.train)} training scans.")  # fmt: skip


def content(found: Findings, command: str) -> dict[str, Any]:
    """Of ``audit.json``."""
    plain: dict[str, Any] = finite({
        "verdict": found.verdict.word,
        "reasons": list(found.verdict.reasons),
        "thresholds": rules(found.calibration.rate) | {"margin": found.calibration.threshold},
        "counts": asdict(found.counts),
        "self_test": asdict(found.test),
        "leak_through_the_map": [asdict(leak) for leak in found.leaks],
        "membership": [asdict(one) for one in found.attacks],
        "training_scans": len(found.real.train),
        "heldout_scans": len(found.real.heldout),
        "volumes_sha256": sorted(one.sha256 for one in found.made),
        "weights_sha256": sorted({one.weights for one in found.made if one.weights}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions(),
    })  # fmt: skip
    return plain


def closest(found: Findings) -> list[tuple[int, Pair]]:
    """The most suspicious volumes and the scan that each is most like; copies of a map's own scan by their texture."""
    rows = []
    for i, (judged, compared) in enumerate(zip(found.judged, found.compared.made, strict=True)):
        pairs = [pair for pair in compared.pairs if found.compared.training[pair.scan]
                 and (judged.of_map or compared.source is None or pair.scan != compared.source.scan)]  # fmt: skip
        if pairs:
            best = max(pairs, key=lambda pair: pair.image)
            rows.append(
                (judged.of_map, judged.margin, i, compared.source if judged.of_map and compared.source else best)
            )
    rows.sort(key=lambda row: (-row[0], -row[1]))
    return [(i, pair) for _, _, i, pair in rows[:CLOSEST]]


def _pairs(found: Findings, files: Outputs) -> None:
    """The picture and the table that show who is who; they stand apart from what can be shared."""
    lines = io.StringIO()
    lines.write(f"# {SHOWS_PATIENTS}\n")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(_HEAD)
    for i, (one, judged, compared) in enumerate(zip(found.made, found.judged, found.compared.made, strict=True)):
        for pair in compared.pairs:
            side = "training" if found.compared.training[pair.scan] else "held out"
            scan = in_csv(found.compared.names[pair.scan])
            numbers = (f"{value:.4f}" for value in (pair.image, pair.patch, pair.texture))
            writer.writerow([f"V{found.volume_numbers[i]}", in_csv(one.name), f"T{found.scan_numbers[pair.scan]}", scan,
                             side, *numbers, judged.copy])  # fmt: skip
    files.write_text(PAIRS_TABLE, lines.getvalue())
    with files.path(PAIRS) as temporary:
        _draw(temporary, found, closest(found))


def _draw(path: Path, found: Findings, chosen: Sequence[tuple[int, Pair]]) -> None:
    """A line per volume: the volume, the scan laid over it, in three planes."""
    strips, titles = [], []
    for i, pair in chosen:
        image, label = found.made[i].read()
        own = see(found.made[i].name, image, label, found.compared.spacing).scan
        strips.append(_strip(mirrored(own) if pair.flipped else own, found.compared.gallery.scans[pair.scan], pair))
        titles.append(f"V{found.volume_numbers[i]} {found.made[i].name}  |  "
                      f"T{found.scan_numbers[pair.scan]} {found.compared.names[pair.scan]}:  "
                      f"likeness {pair.image:.2f}, texture beyond the map {pair.texture:.2f}")  # fmt: skip
    strips = strips or [np.zeros((20, 400), np.float32)]
    titles = titles or ["no volume could be compared"]
    scale = max(1, round(1200 / max(strip.shape[1] for strip in strips)))
    heights = [scale * strip.shape[0] + 26 for strip in strips]
    width = scale * max(strip.shape[1] for strip in strips) + 20
    total = sum(heights) + 40
    figure = Figure(figsize=(width / _DPI, total / _DPI), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 20 / total, SHOWS_PATIENTS, color="red", ha="center", va="center", fontsize=12, weight="bold")
    top = total - 40
    for strip, title, height in zip(strips, titles, heights, strict=True):
        top -= height
        axis = figure.add_axes((10 / width, (top + 2) / total, scale * strip.shape[1] / width,
                                scale * strip.shape[0] / total))  # fmt: skip
        axis.imshow(strip, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(escaped(title), **AS_TYPED, color="white", fontsize=8, loc="left", pad=3)
    save_figure(path, figure, dpi=_DPI, facecolor="black")


def _strip(own: Scan, other: Scan, pair: Pair) -> NDArray[np.float32]:
    laid, inside = registered(own, other.image, pair.pose)
    laid = np.where(inside, laid, 0.0).astype(np.float32)
    centre = [n // 2 for n in own.image.shape]
    panels = [plane(volume, name, centre) for name in SHOWN_PLANES for volume in (own.image, laid)]
    height = max(panel.shape[0] for panel in panels)
    return np.concatenate([np.pad(p, ((0, height - p.shape[0]), (0, 3))) for p in panels], axis=1).astype(np.float32)
