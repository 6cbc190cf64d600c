"""The tables of Med-LSDM ("Towards 3D Semantic Image Synthesis for Medical Imaging"), with its published figures.

Its table 2 asks whether a segmentation network that was trained on real scans does as well on synthetic ones; its
table 3 compares a 3D generator with one that works slice by slice (SegGuidedDiff, Konz et al. 2024).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..report.tables import NOTHING, Cell, Column, Table
from .groups import SAME_PATIENT, TRAINING, UNSEEN
from .notes import marks, which
from .scores import FLOOR, PAIRED

if TYPE_CHECKING:
    from .layout import Layout

SLICES, VOLUMES = "efficientnet_lite0", "medicalnet_resnet34"
"""Feature networks of the FID of axial slices, and of volumes."""
DICE = {
    "real scans, training set": 0.750,
    "real scans, test set": 0.715,
    "SegGuidedDiff, maps of the test set": 0.602,
    "Med-LSDM, maps of the test set": 0.710,
}
"""Table 2: Dice on the Duke Breast data, mean over classes."""
QUALITY = {
    ("SegGuidedDiff", "AutoPET"): (197.157, 0.0235, 0.19, 0.9300, 0.19, 15.14),
    ("SegGuidedDiff", "SynthRAD2023"): (196.780, 0.0362, 0.19, 0.9800, 0.28, 11.65),
    ("SegGuidedDiff", "Duke Breast"): (197.060, 0.0145, 0.24, 0.7090, 0.41, 7.74),
    ("Med-LSDM", "AutoPET"): (196.780, 0.0090, 0.19, 0.8374, 0.13, 17.75),
    ("Med-LSDM", "SynthRAD2023"): (198.030, 0.0061, 0.27, 0.6147, 0.36, 8.89),
    ("Med-LSDM", "Duke Breast"): (193.620, 0.0054, 0.29, 0.9390, 0.21, 14.87),
}
"""Table 3: FID, 3D-FID, LPIPS, SSIM, RMSE, PSNR."""
_DIGITS = (3, 4, 2, 4, 2, 2)
_PAIRED = ("lpips", "ssim", "rmse", "psnr")
FAULTS = (
    "published figures of table 3 are no targets: FID, about 197 for every system, comes from a wrong mean in "
    "the public code, 3D-FID from a padded array of features, and PSNR from a peak of 1 for intensities in [-1, 1], "
    "which makes it 6 dB lower"
)


def dice_table(layout: Layout) -> list[Table]:
    """Table 2 in its form: real scans of both splits, and each system's volumes; nothing without a judge.

    Args:
        layout: the scores.
    """
    there = [group for group in (TRAINING, UNSEEN, SAME_PATIENT) if group in layout.found.groups]
    if layout.facts.judge is None or not there:
        return []
    kinds = {TRAINING: "training set", UNSEEN: "unseen", SAME_PATIENT: "other scans of training patients"}
    rows = [[Cell(f"real scans, {kinds[group]}"), layout.mean(group, FLOOR, "dice"), Cell(NOTHING)] for group in there]
    for system in layout.systems():
        rows += [
            [Cell(f"{layout.title(group, system)}, maps: {kinds[group]}"), layout.mean(group, system, "dice"),
             Cell(NOTHING)]
            for group in reversed(there)
        ]  # fmt: skip
    rows += [[Cell(f"published: {name}"), Cell(NOTHING), Cell(f"{value:.3f}", value)] for name, value in DICE.items()]
    columns = [Column("data"), Column("Dice", "higher"), Column("Dice as published", "higher")]
    sizes = ", ".join(f"{kinds[group]}: n = {len(layout.found.groups[group])}" for group in there)
    notes = [
        "the form of Med-LSDM's table 2: a segmentation network that was trained on real scans alone, on real and on "
        f"synthetic ones; {sizes}",
        "published figures are of other data (Duke Breast, MR), by another network",
        f"judge: {layout.facts.judge.name}; figures of cases that it was trained on carry ‡",
        *marks(rows),
    ]
    return [Table("Table 2 of Med-LSDM", columns, rows, tuple(notes))]


def quality_table(layout: Layout, group: str) -> Table:
    """Table 3 in its form, of one group of cases.

    Args:
        layout: the scores.
        group: group of cases.
    """
    columns = [
        Column("method"), Column("data"), Column("FID", "lower", "axial slices are the samples, EfficientNet-Lite0"),
        Column("3D-FID", "lower", "volumes are the samples, MedicalNet ResNet-34"),
        *(Column(PAIRED[name].title, PAIRED[name].better, PAIRED[name].about) for name in _PAIRED),
    ]  # fmt: skip
    rows = [
        [Cell(layout.title(group, system)), Cell("these cases"), layout.spread(group, system, "fid_axial", SLICES),
         layout.spread(group, system, "fid", VOLUMES), *(layout.mean(group, system, name) for name in _PAIRED)]
        for system in layout.systems()
    ]  # fmt: skip
    for (method, data), values in QUALITY.items():
        told = [Cell(f"{value:.{digits}f}", value) for value, digits in zip(values, _DIGITS, strict=True)]
        rows.append([Cell(f"published: {method}"), Cell(data), *told])
    notes = ["the form of Med-LSDM's table 3", FAULTS, *_missing(layout), *marks(rows), which(layout.found, group)]
    return Table(f"Table 3 of Med-LSDM, {layout.group(group)}", columns, rows, tuple(notes))


def _missing(layout: Layout) -> list[str]:
    """Why a column has dashes."""
    facts = layout.facts
    why = {
        what: facts.unavailable.get(name, f"{name} was not asked for")
        for what, name in (("FID", SLICES), ("3D-FID", VOLUMES))
        if name not in facts.extractors
    }
    why |= {"LPIPS": facts.reasons["lpips"]} if "lpips" in facts.reasons else {}
    return [f"{what}: {NOTHING} because {reason}" for what, reason in why.items()]
