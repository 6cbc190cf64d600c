"""The tables of an audit. No name of a case stands in them: volumes and scans have numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..report.tables import NOTHING, Cell, Column, Table, number
from .copies import COPIED_TEXTURE, DECISIVE, SURE
from .findings import Findings
from .membership import Attack
from .planted import LEAST_RECALL
from .volumes import ORIGINS

MAP_SENTENCES = (
    "A volume that was drawn of a case's own label map, or of a morphed one, resembles that case's scan by",
    "construction: the map shows the patient's anatomy. A copy is told from that by the texture that the map leaves",
    "open. Who shares such volumes shares the anatomy of the maps.",
)


def tables(found: Findings) -> list[Table]:
    """All tables, the decisive ones first."""
    return [
        _copies(found), _levels(found), _self_test(found), _shares(found), *_leaks(found), *_attacks(found.attacks),
        _about(found),
    ]  # fmt: skip


def _cell(value: float, text: str | None = None, about: str = "") -> Cell:
    return Cell(NOTHING, None, about) if not math.isfinite(value) else Cell(text or number(value), value, about)


def _share(value: float) -> Cell:
    return _cell(value, f"{value:.0%}" if math.isfinite(value) else NOTHING)


def _copies(found: Findings) -> Table:
    counts = found.counts
    origins = Counter(one.origin for one in found.made)
    rows = [
        [Cell("synthetic volumes"), Cell(str(counts.volumes), counts.volumes)],
        [Cell("flagged"), Cell(str(counts.flagged), counts.flagged)],
        [Cell("flagged by chance, if there were no copy"), _cell(counts.by_chance, f"{counts.by_chance:.1f}")],
        [Cell("N_copies: copies among the volumes"), Cell(counts.copies.text(), counts.copies.value)],
        [Cell("N_mem: training scans that are copied"), Cell(counts.copied.text(), counts.copied.value)],
        [Cell("volumes that are copies each by itself"), Cell(str(counts.sure), counts.sure)],
    ]
    real = len(found.people)
    return Table("Copies", [Column("count"), Column("value")], rows, [
        f"threshold: the margin that {found.calibration.rate:.0%} of real scans lie above; it is fixed on {real} real "
        f"scans of {len(set(found.people))} patients, each compared with scans of other patients alone (training scans "
        "are left out patient by patient)",
        "margin: at the most suspicious of the levels image, patch and texture, how far a volume's likeness to its "
        "nearest training scan, and its lead over the nearest held-out scan, lie above those of real scans; the "
        "smaller one counts, in robust standard deviations",
        f"a copy by itself: at most {SURE:g} volumes of such a margin are expected by chance in the whole set, or "
        f"{COPIED_TEXTURE:g} or more partial correlation with the scan of its own map, given that map",
        "intervals: 95 %, bootstrap over patients of real scans and over maps' sources; volumes by origin of map: "
        + ", ".join(f"{origins[name]} {name}" for name in ORIGINS if origins[name]),
    ])  # fmt: skip


def _levels(found: Findings) -> Table:
    """Nearest training and held-out scans, of synthetic volumes and of real scans, at every level."""
    real = [one.levels for one in found.compared.null.values()]
    made = [one.levels for one in found.compared.made]
    names = list(dict.fromkeys(level for levels in (*real, *made) for level in levels))
    rows = []
    for level in names:
        for what, group in (("synthetic volumes", made), ("real scans", real)):
            sides = [levels[level] for levels in group if level in levels]
            if not sides:
                continue
            train, heldout = (np.array([getattr(side, name) for side in sides]) for name in ("train", "heldout"))
            decides = "" if level in DECISIVE else " (does not decide)"
            rows.append([
                Cell(f"{level}{decides}: {what}"), Cell(str(len(sides)), len(sides)), _cell(float(np.median(train))),
                _cell(float(np.quantile(train, 0.95))), _cell(float(train.max())), _cell(float(np.median(heldout))),
                _cell(float(np.quantile(heldout, 0.95))), _share(float((train > heldout).mean())),
            ])  # fmt: skip
    heads = [
        Column("level"), Column("n"), Column("nearest training scan, median"), Column("95 %"), Column("highest"),
        Column("nearest held-out scan, median"), Column("95 % "),
        Column("nearer to training", about="share of volumes whose nearest training scan is nearer than their nearest "
                                           "held-out one; without copies what the numbers of scans let expect"),
    ]  # fmt: skip
    training = int(found.compared.training.sum())
    return Table("Likeness to the nearest scan", heads, rows, [
        f"{training} training scans, {len(found.compared.names) - training} held-out scans of other patients; higher "
        f"is more alike; all registered at {found.compared.spacing:g} mm, mirrored left to right too",
        "image: correlation of locally normalised volumes; patch: the same within cubes of 24 mm, of the best "
        "twentieth; texture: partial correlation given the volume's own label map; shape: Dice of the cavities at the "
        "best shift; features: cosine similarity, less what all scans have in common",
        "the scan of a volume's own map, and others of its patient, are left out here: see Leak through the map",
    ])  # fmt: skip


def _self_test(found: Findings) -> Table:
    levels = [*found.calibration.centre]
    rows = [
        [Cell(kind), *(_share(row.get(level, math.nan)) for level in levels), _share(row["all"])]
        for kind, row in found.test.kinds.items()
    ]
    heads = [Column("planted copy"), *(Column(level) for level in levels), Column("together", "higher")]
    return Table("Self-test: recall of planted copies", heads, rows, [
        f"{found.test.copies} copies of real training scans with one change each, judged as the synthetic volumes are: "
        f"recall {found.test.recall:.1%}, {LEAST_RECALL:.0%} are needed",
    ])  # fmt: skip


def _shares(found: Findings) -> Table:
    rows = [[_share(one.share), _share(one.recall), _cell(one.false_positives, f"{one.false_positives:.1%}"),
             _cell(one.found, f"{one.found:.2f}")] for one in found.test.shares]  # fmt: skip
    heads = [Column("copies in the set"), Column("recall", "higher"), Column("false positives", "lower"),
             Column("estimated over true number")]  # fmt: skip
    return Table("Self-test: sets with planted copies", heads, rows, [
        "planted copies among real scans of other patients; the threshold is fixed on one half of these patients and "
        "used on the other, over 200 random halves",
    ])  # fmt: skip


def _leaks(found: Findings) -> list[Table]:
    if not found.leaks:
        return []
    rows = [[
        Cell(f"{leak.origin} maps of {'training' if leak.trained_on else 'held-out'} scans"),
        Cell(str(leak.volumes), leak.volumes), _cell(leak.image), _cell(leak.painted), _cell(leak.texture),
        _cell(leak.most), Cell(str(leak.copies), leak.copies),
    ] for leak in found.leaks]  # fmt: skip
    heads = [
        Column("volumes of"), Column("n"), Column("likeness to that scan"), Column("of the painted map"),
        Column("texture beyond the map", "lower"), Column("highest"), Column("copies", "lower"),
    ]  # fmt: skip
    return [Table("Leak through the map", heads, rows, [
        " ".join(MAP_SENTENCES),
        "medians; of the painted map: likeness of the map itself, each class at its mean, to the same scan: what "
        "anybody who has the map has; texture beyond the map: partial correlation of volume and scan, given that map",
    ])]  # fmt: skip


def _attacks(attacks: Sequence[Attack]) -> list[Table]:
    if not attacks:
        return []
    rows = [[
        Cell(one.name), Cell(f"{one.members} / {one.others}"),
        _cell(one.auc, f"{one.auc:.2f} ({one.auc_low:.2f} to {one.auc_high:.2f})"),
        _cell(one.control, f"{one.control:.2f} ({one.control_low:.2f} to {one.control_high:.2f})"),
        _cell(one.found.value, f"{one.found.value:.0%} at {one.level:.0%}"), _share(one.control_found.value),
        _cell(one.residual.value, f"{one.residual.value:.2f} ({one.residual.low:.2f} to {one.residual.high:.2f})"),
    ] for one in attacks]  # fmt: skip
    refused = sorted({level for one in attacks for level in one.refused})
    heads = [
        Column("attack sees"), Column("members / others"), Column("AUC", "lower"), Column("AUC, members with members"),
        Column("members recognised, at false positives"), Column("the same, members with members"),
        Column("residual risk", "lower"),
    ]  # fmt: skip
    notes = [
        "AUC: 0.5 is chance, interval of 95 % over patients; members with members: random halves of the members' "
        "patients, which a split's own bias does not enter; an attack that does no better than that shows nothing",
        "residual risk: (attack - control) / (1 - control), Wilson intervals of both propagated",
    ]
    if refused:
        notes.append("not reported, because so few scans cannot carry it: recognition at false-positive rates of "
                     + ", ".join(f"{level:.0%}" for level in refused))  # fmt: skip
    return [Table("Membership inference", heads, rows, notes)]


def _about(found: Findings) -> Table:
    compared, calibration = found.compared, found.calibration
    likest = [i for i, one in compared.null.items() if "image" in one.levels and one.levels["image"].train >= 0.5]
    rows = [
        [Cell("training scans / patients"), Cell(f"{len(found.real.train)} / "
                                                 f"{len({c.person for c in found.real.train.values()})}")],
        [Cell("held-out scans / patients"), Cell(f"{len(found.real.heldout)} / "
                                                 f"{len({c.person for c in found.real.heldout.values()})}")],
        [Cell("held-out scans left out (patients of --train)"), Cell(str(found.real.left_out), found.real.left_out)],
        [Cell("threshold of the margin"), _cell(calibration.threshold)],
        [Cell("real scans whose likeness to a training scan is 0.5 or more"), Cell(str(len(likest)), len(likest))],
    ]  # fmt: skip
    return Table("What was compared", [Column("fact"), Column("value")], rows, [
        "real scans that are so alike may be of one patient under two names (semsynth check --same-patient): they "
        "raise the threshold",
    ])  # fmt: skip


def volume_rows(found: Findings) -> Table:
    """One row per synthetic volume, by number and hash."""
    heads = ["volume", "sha256", "map", "margin", "flagged", "sure", "copied_texture", "level", "training_scan",
             *(f"{level}_{side}" for level in DECISIVE for side in ("train", "heldout")),
             "own_map_image", "own_map_painted", "own_map_texture"]  # fmt: skip
    rows = []
    parts = zip(found.volume_numbers, found.made, found.judged, found.compared.made, strict=True)
    for i, one, judged, compared in sorted(parts, key=lambda part: part[0]):
        scan = f"T{found.scan_numbers[judged.scan]}" if judged.copy and judged.scan >= 0 else ""
        sides = [getattr(compared.levels[level], side) if level in compared.levels else math.nan
                 for level in DECISIVE for side in ("train", "heldout")]  # fmt: skip
        own = [math.nan] * 3 if compared.source is None else [compared.source.image, compared.source.painted,
                                                              compared.source.texture]  # fmt: skip
        rows.append([
            Cell(f"V{i}"), Cell(one.sha256), Cell(one.origin), _cell(judged.margin), Cell(_word(judged.flagged)),
            Cell(_word(judged.sure)), Cell(_word(judged.of_map)), Cell(judged.level or NOTHING),
            Cell(scan), *(_cell(v) for v in (*sides, *own)),
        ])  # fmt: skip
    return Table("volumes", [Column(head) for head in heads], rows)


def _word(yes: bool) -> str:
    return "yes" if yes else "no"
