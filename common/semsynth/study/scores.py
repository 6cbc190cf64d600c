"""Scores per case, read from the files that segmenters and their evaluations write."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.datalists import LISTS, absolute, datalist_path, read_datalist, root_of, stated_patient
from ..data.headers import SUFFIXES
from ..errors import InputError
from ..json_files import read_object
from ..paths import as_path, read_text

RAW, SUMMARY = "_raw.csv", "summary.json"
_NNUNET = ("Dice", "IoU")  # the others are counts of voxels
_NAMES = {"iou": "jaccard", "hd95": "hd95_mm", "asd": "asd_mm"}
MOST = 1e9
"""Larger numbers are no scores."""
FORMS = (
    "give the folder that la_unet's evaluate.json wrote (with dice_raw.csv), a CSV whose first column names the cases "
    "and whose others are metrics, or nnU-Net's summary.json"
)


@dataclass(frozen=True)
class Scores:
    """Scores of one segmenter.

    Attributes:
        source: where they were read.
        values: metric → case → value; NaN or infinity where there is none. Metrics are in lower case, ``dice``,
            ``jaccard``, ``hd95_mm``; of a segmenter of several classes their mean, and ``dice, class 1`` and so on.
    """

    source: Path
    values: Mapping[str, Mapping[str, float]]


def read_scores(source: str | Path) -> Scores:
    """Scores per case.

    Args:
        source: folder with ``<metric>_raw.csv`` (of ``evaluate.json`` of the bundle la_unet, or of MONAI's
            ``MetricsSaver``) or nnU-Net's ``summary.json``; that file; or a CSV with one row per case, whose first
            column names it. Where columns are separated by semicolons, decimal commas are understood.

    Raises:
        InputError: for anything else, a case twice, or a value that is no number.
    """
    path = as_path(source, "the scores' path")
    if path.is_dir():
        raw = sorted(path.glob(f"*{RAW}"))
        if raw:
            return Scores(path, {k: v for file in raw for k, v in _from_raw(file).items()})
        path = path / SUMMARY
        if not path.is_file():
            raise InputError(f"{source}: holds neither *{RAW} nor {SUMMARY}; {FORMS}")
    if path.suffix.lower() == ".json":
        return Scores(path, _from_nnunet(path))
    return Scores(path, _from_table(path))


def read_patients(source: str | Path) -> dict[str, str]:
    """Case → patient, of every entry of a datalist (or of the one in a folder) that says whose scan it is.

    Raises:
        InputError: where there is no datalist, or it cannot be used.
    """
    path = datalist_path(source)
    if path is None:
        raise InputError(f"{source}: is no datalist (.json) and holds no datalist.json; give the one of the cases")
    content = read_datalist(path)
    entries = [absolute(entry, root_of(path)) for key in LISTS for entry in content.get(key) or []]
    found = {entry["case"]: stated_patient(entry, content.get("patient_regex")) for entry in entries}
    return {case: patient for case, patient in found.items() if patient is not None}


def _rows(path: Path) -> tuple[list[str], list[list[str]], bool]:
    """Header, rows, and whether decimal commas may be meant."""
    try:
        text = read_text(path)
    except FileNotFoundError as reason:
        raise InputError(f"{path}: no such file; {FORMS}") from reason
    except OSError as reason:
        raise InputError(f"{path}: cannot be read ({reason.strerror or reason}); {FORMS}") from reason
    except ValueError as reason:
        raise InputError(f"{path}: is no text ({reason}); {FORMS}") from reason
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    semicolons = ";" in first and "," not in first
    try:
        rows = [row for row in csv.reader(io.StringIO(text.lstrip("\ufeff")), delimiter=";" if semicolons else ",")
                if any(cell.strip() for cell in row)]  # fmt: skip
    except csv.Error as reason:
        raise InputError(f"{path}: is no CSV ({reason}); {FORMS}") from reason
    if len(rows) < 2 or len(rows[0]) < 2:
        raise InputError(f"{path}: needs a line of headings and a line per case, found {len(rows)} lines; {FORMS}")
    return [cell.strip() for cell in rows[0]], rows[1:], semicolons


def _from_table(path: Path) -> dict[str, dict[str, float]]:
    header, rows, commas = _rows(path)
    metrics = [_metric(name) for name in header[1:]]
    twice = sorted({name for name in metrics if metrics.count(name) > 1})
    if twice:
        raise InputError(f"{path}: two columns are the metric {twice[0]!r}; leave one")
    values: dict[str, dict[str, float]] = {name: {} for name in metrics}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(
                f"{path}, row {number}: has {len(row)} columns, the headings are {len(header)}; correct it"
            )
        case = _case(row[0])
        for name, cell in zip(metrics, row[1:], strict=True):
            _put(values[name], case, _number(path, case, name, cell, commas), path)
    return values


def _from_raw(path: Path) -> dict[str, dict[str, float]]:
    """MONAI's ``<metric>_raw.csv``: the mean over classes, and each class where there are several."""
    metric = _metric(path.name.removesuffix(RAW))
    table = _from_table(path)
    classes = [name for name in table if re.fullmatch(r"class\d+", name)]
    if "mean" not in table:
        raise InputError(f"{path}: needs a column 'mean', found {', '.join(table)}; evaluate again")
    # MONAI counts from the first class that is evaluated, which is not the background
    single = {f"{metric}, class {int(name.removeprefix('class')) + 1}": table[name] for name in classes}
    return {metric: table["mean"]} | (single if len(single) > 1 else {})


def _from_nnunet(path: Path) -> dict[str, dict[str, float]]:
    content = read_object(path, missing=FORMS, damaged=FORMS)
    listed = content.get("metric_per_case")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path}: needs a list 'metric_per_case', as nnU-Net writes it; {FORMS}")
    values: dict[str, dict[str, float]] = {}
    for i, item in enumerate(listed):
        case, metrics = _nnunet_case(path, i, item)
        for metric in _NNUNET:
            each = {label: _number(path, case, metric, own[metric]) for label, own in metrics.items() if metric in own}
            name = _metric(metric)
            if each:
                _put(values.setdefault(name, {}), case, _mean(each.values()), path)
            for label, value in each.items() if len(metrics) > 1 else ():
                _put(values.setdefault(f"{name}, class {label}", {}), case, value, path)
    if not values:
        raise InputError(f"{path}: holds neither {' nor '.join(_NNUNET)} of any case; {FORMS}")
    return values


def _nnunet_case(path: Path, i: int, item: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    file = item.get("prediction_file") if isinstance(item, dict) else None
    metrics = item.get("metrics") if isinstance(item, dict) else None
    if not isinstance(file, str) or not isinstance(metrics, dict):
        raise InputError(f"{path}: metric_per_case[{i}] needs 'prediction_file' and 'metrics'; {FORMS}")
    return _case(file), {str(label): own for label, own in metrics.items() if isinstance(own, dict)}


def _mean(values: Iterable[float]) -> float:
    """Over the classes that have a value."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _case(typed: str) -> str:
    """A case's name: a file's without its folder and its suffix. (Of another name nothing after a dot is taken off.)"""
    name = typed.strip().replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _metric(name: str) -> str:
    plain = re.sub(r"\W+", "_", name.strip().lower()).strip("_")
    return _NAMES.get(plain, plain)


def _number(path: Path, case: str, metric: str, cell: Any, commas: bool = False) -> float:
    text = "" if cell is None else str(cell).strip()
    try:
        value = float(text.replace(",", ".") if commas else text) if text else math.nan
    except ValueError:
        value = MOST * 10
    if math.isfinite(value) and abs(value) > MOST:
        raise InputError(
            f"{path}: {case}: {metric} needs to be a number, found {text[:40]!r}; correct it, or leave the column out"
        )
    return value


def _put(values: dict[str, float], case: str, value: float, path: Path) -> None:
    if case in values:
        raise InputError(f"{path}: the case {case!r} stands there twice; leave one of them")
    values[case] = value


def only(scores: Scores, metrics: Sequence[str]) -> Scores:
    """The scores of some metrics alone, in the order asked for.

    Raises:
        InputError: for a metric that is not there.
    """
    missing = [metric for metric in metrics if metric not in scores.values]
    if missing:
        raise InputError(f"{scores.source}: has no metric {missing[0]!r}; there are {', '.join(scores.values)}")
    return Scores(scores.source, {metric: scores.values[metric] for metric in metrics})
