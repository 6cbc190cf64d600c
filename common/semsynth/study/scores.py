"""Scores per case, read from the files that segmenters and their evaluations write."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..data.datalists import LISTS, absolute, datalist_path, read_datalist, root_of, stated_patient
from ..data.headers import SUFFIXES
from ..data.hidden import Hidden, Person
from ..data.naming import case_name
from ..errors import InputError
from ..json_files import read_object
from ..paths import as_path, read_text

RAW, SUMMARY = "_raw.csv", "summary.json"
FORMS = (
    "give the folder that la_unet's evaluate.json wrote (with dice_raw.csv), a CSV whose first column names the cases "
    "and whose others are metrics, or nnU-Net's summary.json"
)
Better = Literal["higher", "lower", ""]
OVERLAP = ("dice", "jaccard", "nsd", "precision", "recall", "sensitivity", "specificity", "accuracy", "f1")
"""Metrics in [0, 1] of which more is better."""
DISTANCE = ("hd95", "hd", "asd", "assd", "masd", "msd", "hausdorff", "hausdorff_distance", "surface_distance")
"""Metrics of which less is better, in mm with ``_mm`` behind the name, else in a unit that is not known."""
MOST = 1e9
"""Larger numbers are no scores."""
_NAMES = {"iou": "jaccard", "dsc": "dice", "dice_score": "dice", "dice_coefficient": "dice", "surface_dice": "nsd"}
_NNUNET = ("Dice", "IoU")  # the others are counts of voxels
_NOTHING = ("", "na", "n/a", "nan", "-", "none", "null")
_NO_CASES = ("mean", "average", "avg", "median", "std", "sd", "stdev", "min", "max", "sum", "total", "overall", "all")


@dataclass(frozen=True)
class Scores:
    """Scores of one segmenter.

    Attributes:
        source: file or folder that they were read from.
        values: metric → case → value; NaN or infinity where there is none. Metrics are in lower case: ``dice``,
            ``jaccard``, ``hd95_mm``.
        classes: metric → class → case → value, of a segmenter of several classes; ``values`` has their mean.

    Examples:
        >>> scores = Scores(Path("scores.csv"), {"dice": {"P1": 0.8, "P2": 0.9}}, {})
        >>> scores.values["dice"]["P2"]
        0.9
    """

    source: Path
    values: Mapping[str, Mapping[str, float]]
    classes: Mapping[str, Mapping[str, Mapping[str, float]]]


def under_pseudonyms(
    hidden: Hidden, sides: Sequence[Scores], patients: Mapping[str, str] | None
) -> tuple[list[Scores], dict[str, str] | None]:
    """Scores and patients by pseudonyms.

    Args:
        hidden: the key file.
        sides: the scores of segmenters.
        patients: case → patient; None where it is unknown.

    Raises:
        InputError: as :meth:`semsynth.data.hidden.Hidden.names`.
    """
    cases = {case for side in sides for values in side.values.values() for case in values} | set(patients or {})
    names = hidden.names([Person(case, (patients or {}).get(case)) for case in sorted(cases)])

    def renamed(values: Mapping[str, float]) -> dict[str, float]:
        return {names.case(case): value for case, value in values.items()}

    found = [
        replace(
            side,
            values={metric: renamed(values) for metric, values in side.values.items()},
            classes={m: {c: renamed(values) for c, values in own.items()} for m, own in side.classes.items()},
        )
        for side in sides
    ]
    told = None if patients is None else {names.case(case): names.patient(own) for case, own in patients.items()}
    return found, told


def better(metric: str) -> Better:
    """Which values of a metric are good; ``""`` where its name does not tell."""
    name = metric.split(" ")[0].removesuffix("_mm")
    return "higher" if name in OVERLAP else "lower" if name in DISTANCE else ""


def worst_tenth(values: Iterable[float], good: Better) -> float:
    """Mean of the worst 10 % of the values, rounded up; NaN for none."""
    ordered = sorted((v for v in values if math.isfinite(v)), reverse=good == "lower")
    count = math.ceil(len(ordered) / 10)
    return sum(ordered[:count]) / count if count else math.nan


def read_scores(source: str | Path) -> Scores:
    """Scores per case.

    Args:
        source: folder with ``<metric>_raw.csv`` (of ``evaluate.json`` of the bundle la_unet, or of MONAI's
            ``MetricsSaver``) or nnU-Net's ``summary.json``; that file; or a table with one row per case, whose first
            column names it. Columns are separated by commas, semicolons (then decimal commas are understood) or tabs.

    Raises:
        InputError: for anything else, a case twice, a value that is no number, or an overlap above 1.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "scores.csv").write_text("case,Dice\\nP1,0.8\\nP2,0.9")
        ...     read_scores(f"{folder}/scores.csv").values
        {'dice': {'P1': 0.8, 'P2': 0.9}}
    """
    path = as_path(source, "the scores' path")
    raw = sorted(path.glob(f"*{RAW}")) if path.is_dir() else []
    if raw:
        scores = _from_raw(path, raw)
    else:
        path = path / SUMMARY if path.is_dir() else path
        if path.name == SUMMARY and not path.is_file():
            raise InputError(f"{source}: holds neither *{RAW} nor {SUMMARY}; {FORMS}")
        is_json = path.suffix.lower() == ".json"
        scores = _from_nnunet(path) if is_json else Scores(path, _table(path), {})
    _check_overlaps(scores)
    order = sorted(scores.values, key=lambda metric: [*OVERLAP, metric].index(metric))
    return Scores(scores.source, {metric: scores.values[metric] for metric in order}, scores.classes)


def read_patients(source: str | Path) -> dict[str, str]:
    """Case → patient, of every entry of a datalist (or of the one in a folder) that says whose scan it is.

    Raises:
        InputError: where there is no datalist, or it cannot be used.

    Examples:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     entries = [{"case": "P1_a", "image": "a.nii.gz", "patient": "P1"}]
        ...     _ = Path(folder, "datalist.json").write_text(json.dumps({"testing": entries}))
        ...     read_patients(folder)
        {'P1_a': 'P1'}
    """
    path = datalist_path(source)
    if path is None:
        raise InputError(f"{source}: is no datalist (.json) and holds no datalist.json; give the one of the cases")
    content = read_datalist(path)
    entries = [absolute(entry, root_of(path)) for key in LISTS for entry in content.get(key) or []]
    try:
        found = {entry["case"]: stated_patient(entry, content.get("patient_regex")) for entry in entries}
    except InputError as reason:
        raise InputError(f"{path}: its patient_regex: {reason}") from reason
    return {case: patient for case, patient in found.items() if patient is not None}


def only(scores: Scores, metrics: Sequence[str]) -> Scores:
    """The scores of some metrics alone, in the order asked for.

    Raises:
        InputError: for a metric that is not there, or none.
    """
    wanted = list(dict.fromkeys(_metric(metric) for metric in metrics))
    missing = [metric for metric in wanted if metric not in scores.values]
    if missing or not wanted:
        what = f"has no metric {missing[0]!r}" if missing else "no metric is asked for"
        raise InputError(f"{scores.source}: {what}; there are {', '.join(map(repr, scores.values))}")
    chosen = {metric: scores.values[metric] for metric in wanted}
    return Scores(scores.source, chosen, {metric: own for metric, own in scores.classes.items() if metric in wanted})


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], bool]:
    """Headings, rows with their line, and whether decimal commas may be meant."""
    try:
        text = read_text(path).lstrip("\ufeff")
    except FileNotFoundError as reason:
        raise InputError(f"{path}: no such file; {FORMS}") from reason
    except OSError as reason:
        raise InputError(f"{path}: cannot be read ({reason.strerror or reason}); {FORMS}") from reason
    except ValueError as reason:
        raise InputError(f"{path}: is no text ({reason}); {FORMS}") from reason
    try:
        first = text.split("\n", 1)[0]
        separator = max(",;\t", key=lambda sign: len(next(csv.reader([first], delimiter=sign), [])))
        reader = csv.reader(io.StringIO(text), delimiter=separator)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as reason:
        raise InputError(f"{path}: is no table ({reason}); {FORMS}") from reason
    if len(rows) < 2 or len(rows[0][1]) < 2:
        columns = len(rows[0][1]) if rows else 0
        raise InputError(
            f"{path}: needs a line of headings, a line per case, and two columns or more, separated by commas, "
            f"semicolons or tabs; found {len(rows)} lines and {columns} columns; {FORMS}"
        )
    return [cell.strip() for cell in rows[0][1]], rows[1:], separator == ";"


def _table(path: Path) -> dict[str, dict[str, float]]:
    """Column → case → value; columns without a heading are passed over."""
    header, rows, commas = _rows(path)
    metrics = [_metric(name) for name in header[1:]]
    twice = sorted({name for name in metrics if name and metrics.count(name) > 1})
    if twice:
        raise InputError(f"{path}: two columns are the metric {twice[0]!r}; remove one of them")
    values: dict[str, dict[str, float]] = {name: {} for name in metrics if name}
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: has {len(row)} columns, the headings are {len(header)}; correct it")
        case = _case(row[0])
        if not case or case.lower() in _NO_CASES:
            raise InputError(f"{path}, line {line}: {case!r} is no case's name; remove the line, or give it a name")
        for name, cell in zip(metrics, row[1:], strict=True):
            if name:
                _put(values[name], case, _number(path, case, name, cell, commas), path)
    return values


def _from_raw(folder: Path, files: Sequence[Path]) -> Scores:
    """MONAI's ``<metric>_raw.csv``: the mean over classes, and the classes where there are several."""
    values: dict[str, Mapping[str, float]] = {}
    classes: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for file in files:
        metric = _metric(file.name.removesuffix(RAW))
        if metric in values:
            raise InputError(f"{file}: another file of the folder is the metric {metric!r} as well; remove one of them")
        table = _table(file)
        if "mean" not in table:
            raise InputError(f"{file}: needs a column 'mean', found {', '.join(table)}; evaluate again")
        values[metric] = table.pop("mean")
        classes |= {metric: table} if len(table) > 1 else {}
    return Scores(folder, values, classes)


def _from_nnunet(path: Path) -> Scores:
    content = read_object(path, missing=FORMS, damaged=FORMS)
    listed = content.get("metric_per_case")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path}: needs a list 'metric_per_case', as nnU-Net writes it; {FORMS}")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for i, item in enumerate(listed):
        case, labels = _nnunet_case(path, i, item)
        for label, own in labels.items():
            for metric in (name for name in _NNUNET if name in own):
                by_case = found.setdefault(_metric(metric), {}).setdefault(f"label {label}", {})
                _put(by_case, case, _number(path, case, metric, own[metric]), path)
    if not found:
        raise InputError(f"{path}: holds neither {' nor '.join(_NNUNET)} of any case; {FORMS}")
    values = {metric: _means(labels) for metric, labels in found.items()}
    return Scores(path, values, {metric: labels for metric, labels in found.items() if len(labels) > 1})


def _nnunet_case(path: Path, i: int, item: Any) -> tuple[str, dict[str, dict[str, Any]]]:
    """Name and metrics by label; the background's (label 0) are in no mean of nnU-Net's either."""
    file = item.get("prediction_file") if isinstance(item, dict) else None
    metrics = item.get("metrics") if isinstance(item, dict) else None
    name = _without_suffix(file.replace("\\", "/").rsplit("/", 1)[-1]) if isinstance(file, str) else ""
    if not name or not isinstance(metrics, dict):
        raise InputError(f"{path}: metric_per_case[{i}] needs 'prediction_file' and 'metrics'; {FORMS}")
    return name, {str(label): own for label, own in metrics.items() if isinstance(own, dict) and str(label) != "0"}


def _means(classes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Case → mean over the classes that have a value."""
    cases = dict.fromkeys(case for own in classes.values() for case in own)
    return {case: mean_of(own[case] for own in classes.values() if case in own) for case in cases}


def mean_of(values: Any) -> float:
    """Mean of the finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _case(typed: str) -> str:
    """A case's name; of a file in a folder as in datalists, see :func:`semsynth.data.naming.case_name`."""
    name = typed.strip().replace("\\", "/").rstrip("/")
    return case_name(name) if "/" in name else _without_suffix(name)


def _without_suffix(name: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _metric(name: str) -> str:
    plain = re.sub(r"\W+", "_", name.strip().lower()).strip("_")
    return _NAMES.get(plain, plain)


def _number(path: Path, case: str, metric: str, cell: Any, commas: bool = False) -> float:
    text = "" if cell is None else str(cell).strip()
    try:
        value = math.nan if text.lower() in _NOTHING else float(text.replace(",", ".") if commas else text)
    except ValueError as reason:
        raise InputError(
            f"{path}: {case}: {metric} needs to be a number, found {text[:40]!r}; correct it, or remove the column"
        ) from reason
    if math.isfinite(value) and abs(value) > MOST:
        raise InputError(f"{path}: {case}: {metric} is {value:g}, and no score is above {MOST:g}; correct it")
    return value


def _check_overlaps(scores: Scores) -> None:
    """Per cent in one file and shares in another would differ by a factor of a hundred."""
    for metric, values in scores.values.items():
        for case, value in values.items() if metric in OVERLAP else ():
            if math.isfinite(value) and not -1e-6 <= value <= 1 + 1e-6:
                raise InputError(
                    f"{scores.source}: {case}: {metric} is {value:g} and needs to lie in [0, 1]; divide per cent by 100"
                )


def _put(values: dict[str, float], case: str, value: float, path: Path) -> None:
    if case in values:
        raise InputError(f"{path}: the case {case!r} appears twice; give each scan a name of its own")
    values[case] = value
