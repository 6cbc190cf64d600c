"""Drawn label maps against those of people: tables, figures per map, and a picture."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ...anatomy import MorphRules, rules_for
from ...anatomy.portrait import ALIGNED_MM, aligned_cells, portrait_of
from ...data.classes import plain_name
from ...data.datalists import datalist_path, read_datalist, stated_classes
from ...data.entries import load_datalist
from ...data.volumes import read_label
from ...errors import InputError
from ...json_files import read_object_or_none
from ...limits import check_number
from ...locks import one_at_a_time
from ...ownership import Outputs, marked_png
from ...paths import as_path
from ...provenance.seen import Seen
from ...report.pictures import centre_of, plane
from ...report.tables import Cell, Column, Table, number
from ...vocabulary import PLANES, SPLITS
from ..region import Region
from .scores import PERCENTILES, MapScores, Portrayed, score

logger = logging.getLogger(__name__)
MARKDOWN, NUMBERS, FIGURES, PICTURE = "maps.md", "maps.json", "maps.csv", "maps.png"
REACH = {
    "precision": "drawn maps within the reach of real ones",
    "recall": "real maps within the reach of drawn ones",
    "coverage": "real maps with a drawn one within their reach",
    "nearest": "maps whose nearest is of their own kind (0.5: none can be told)",
}


@one_at_a_time("the evaluation of drawn maps")
def evaluate_maps(
    drawn: str | Path,
    real: str | Path,
    output: str | Path,
    *,
    weights: str | Path | None = None,
    rules: str | Path | None = None,
    draws: int = 100,
    seed: int = 0,
    pictures: int = 12,
    show: bool = False,
    wait: bool = False,
) -> MapScores:
    """Compare drawn maps with all real ones of a prepared data set.

    Args:
        drawn: folder of an inference of la_maps.
        real: datalist (or its folder) of prepared cases; all of its lists count.
        output: folder for ``maps.md``, ``maps.json``, ``maps.csv`` (figures of each map) and ``maps.png``.
        weights: weights that drew the maps: the card beside them says which real maps they were trained on.
        rules: rules of morphing, which say what has a shape of its own; None: the built-in ones.
        draws: number of draws of halves of the patients.
        seed: seed of the draws.
        pictures: maps of either kind in the picture.
        show: log the tables.
        wait: wait until another evaluation that writes into ``output`` has ended; without it such an evaluation is an
            error.

    Raises:
        InputError: for folders without label maps, other classes, too few maps.
    """
    check_number("draws", draws, 20, 100_000)
    check_number("pictures", pictures, 0, 100)
    output = as_path(output, "evaluation_dir")
    files = Outputs(output, "semsynth's evaluation of maps", {}, instead="evaluation_dir")
    files.check([MARKDOWN, NUMBERS, FIGURES, PICTURE])
    made, about = _entries(drawn)
    people, content = _entries(real)
    names = stated_classes(Path(real), content) or stated_classes(Path(drawn), about)
    if len(names) < 2:
        raise InputError(f'{real}: its datalist must name the classes of the maps, such as "classes": {{"1": "endo"}}')
    names = {index: plain_name(name) for index, name in names.items()}
    found_rules = rules_for(names, rules)
    seen = Seen() if weights is None else Seen.of(weights)
    theirs = [_portrayed(e, names, found_rules, bool(seen.of_entry(e))) for e in tqdm(people, "measuring real maps")]
    ours = [_portrayed(e, names, found_rules, False) for e in tqdm(made, "measuring drawn maps")]
    refused, tries = _refused(Path(drawn), made)
    classes = [index for index in names if index and not _is_wall(names[index], found_rules)]
    scores = score(ours, theirs, classes, draws=draws, seed=seed, refused=refused, tries=tries)
    tables = tables_of(scores, len(ours), len(theirs), sum(one.training for one in theirs))
    files.write_text(MARKDOWN, "\n".join(table.markdown() for table in tables))
    files.write_text(NUMBERS, json.dumps(asdict(scores), indent=1))
    files.write_text(FIGURES, _csv([*theirs, *ours]))
    if pictures:
        with files.path(PICTURE) as temporary:
            _picture(people[:: max(len(people) // pictures, 1)][:pictures], made[:pictures], temporary)
    if show:
        logger.info("\n%s", _Shown(tables))
    return scores


@dataclass(frozen=True)
class _Shown:
    """Tables for a log, which keeps the lines of what is no text."""

    tables: Sequence[Table]

    def __str__(self) -> str:
        return "\n\n".join(table.text() for table in self.tables)


def _entries(source: str | Path) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    path = datalist_path(source)
    if path is None or not path.is_file():
        raise InputError(f"{source}: no datalist.json there; give the folder of an inference, or of prepared cases")
    content = read_datalist(path)
    found: list[dict[str, Any]] = []
    for split in SPLITS:
        if content.get(split):
            found += load_datalist(path, split, needs=("label",), also=())
    return found, content


def _portrayed(entry: Mapping[str, Any], names: Mapping[int, str], rules: MorphRules, training: bool) -> Portrayed:
    region = Region.read(str(entry["label"]), entry.get("content"))
    centre = next((i for i, name in names.items() if name in rules.classes), max(names))
    size = [48] * 3
    return Portrayed(
        str(entry["case"]), str(entry.get("patient", entry["case"])),
        portrait_of(region.label, region.spacing, names, rules),
        aligned_cells(region.label, region.spacing, centre, size), training,
    )  # fmt: skip


def _is_wall(name: str, rules: MorphRules) -> bool:
    return name in rules.classes and bool(rules.classes[name].wall_of)


def _refused(folder: Path, made: Sequence[Mapping[str, Any]]) -> tuple[Counter[str], int]:
    refused: Counter[str] = Counter()
    tries = 0
    for entry in made:
        record = read_object_or_none(folder / f"{entry['case']}.json") or {}
        refused.update(dict(record.get("refused") or {}))
        tries += int(record.get("tries") or 1)
    return refused, tries


def tables_of(scores: MapScores, drawn: int, real: int, training: int) -> list[Table]:
    """The tables of an evaluation."""
    columns = [Column("figure"), Column("real"), Column("drawn"), Column("distance", "lower"), Column("floor")]
    rows = [
        [Cell(f.name), Cell(_pm(f.real)), Cell(_pm(f.drawn)), Cell(f"{f.distance:.2f}", f.distance),
         Cell(f"{f.floor[0]:.2f} (to {f.floor[1]:.2f})", f.floor[0])]
        for f in scores.figures
    ]  # fmt: skip
    notes = (
        f"{drawn} drawn maps, {real} real ones; mean ± standard deviation",
        "distance: Wasserstein's, in standard deviations of the real maps; floor: that of two halves of the patients "
        "(mean and 95th percentile over draws)",
    )
    near = [
        [Cell(about), *(Cell(_range(part[name]), part[name][0]) for part in (scores.drawn, scores.floor))]
        for name, about in REACH.items()
    ]
    distances = [[Cell(what), *(Cell(f"{v:.3f}", v) for v in values)] for what, values in scores.nearest.items()]
    sides = f"{scores.per_side} maps on either side, 3 neighbours; mean and 95 % range over draws"
    reasons = ", ".join(f"{why} {count}" for why, count in sorted(scores.refused.items(), key=lambda x: -x[1]))
    return [
        Table("Figures of label maps", columns, rows, notes),
        Table("Nearest neighbours by all figures",
              [Column("share"), Column("drawn maps"), Column("half of the patients")], near, (sides,)),
        Table("Difference to the nearest map", [Column("maps"), *(Column(f"{p}th percentile") for p in PERCENTILES)],
              distances, (
            f"one minus mean Dice of the classes without walls, on cells of {ALIGNED_MM:g} mm around the middle of the "
            f"first class with a shape; {training} of the real maps are training maps",
            f"{100 * scores.copies:.0f} % of the drawn maps are nearer to a training map than the nearest 5 % of real "
            "maps are to another patient's",
            f"{scores.tries} maps were drawn, {sum(scores.refused.values())} of them refused"
            + (f" ({reasons})" if reasons else ""),
        )),
    ]  # fmt: skip


def _pm(values: tuple[float, float]) -> str:
    return f"{number(values[0])} ± {number(values[1])}"


def _range(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def _csv(maps: Sequence[Portrayed]) -> str:
    names = sorted(set().union(*(one.figures for one in maps)))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["case", "patient", "training", *names])
    for one in maps:
        writer.writerow([one.name, one.patient, one.training, *(one.figures.get(name, "") for name in names)])
    return stream.getvalue()


def _picture(real: Sequence[Mapping[str, Any]], drawn: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Real maps in the upper rows, drawn ones in the lower ones: an axial and a coronal plane of each."""
    columns = max(len(real), len(drawn))
    figure = Figure(figsize=(1.5 * columns, 5.2), layout="constrained")
    axes = np.asarray(figure.subplots(4, columns, squeeze=False))
    for axis in axes.flat:
        axis.axis("off")
    for first, title, entries in ((0, "real", real), (2, "drawn", drawn)):
        for column, entry in enumerate(entries):
            label = read_label(str(entry["label"])).canonical()
            centre = centre_of(label.data.astype(int))
            for row, name in enumerate((PLANES[2], PLANES[1])):
                axes[first + row, column].imshow(
                    plane(label.data.astype(int), name, centre), vmin=0, vmax=max(3, int(label.data.max())),
                    cmap="viridis", interpolation="nearest",
                )  # fmt: skip
            axes[first, column].set_title(title, fontsize=8)
    drawn_png = io.BytesIO()
    figure.savefig(drawn_png, format="png", dpi=100)
    path.write_bytes(marked_png(drawn_png.getvalue()))
