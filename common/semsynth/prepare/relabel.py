"""What the classes of label maps are called, and which values of the files they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..data.check import LABEL, Entry
from ..data.classes import class_table
from ..data.datalists import datalist_path, read_datalist
from ..data.headers import named_segments, read_header
from ..data.label_values import rounded
from ..data.rules import values_of
from ..data.segments import same_segments
from ..data.totalsegmentator import CLASSES as TOTALSEGMENTATOR
from ..data.totalsegmentator import NAME
from ..data.volumes import read_volume
from ..errors import InputError

MOST_VALUES = 254


def classes_of(
    source: str | Path, cases: Sequence[Entry], classes: Sequence[str] | None, *, relabel: bool = False, jobs: int = 1
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of the classes from 1 on, and the files' values that become them (empty: values are the classes).

    Args:
        source: the data set; its datalist may state the classes.
        cases: cases of it.
        classes: names from class 1 on, ``["totalsegmentator"]`` for the names of that tool, or None: those that the
            datalist states, or else those of the segments, which all files must have in one order.
        relabel: True where the values that there are become 1, 2, …
        jobs: files at the same time.

    Raises:
        InputError: for names that are missing or do not fit the values; with ``relabel``, for files that name their
            segments.
    """
    maps = {case.name: case.files[LABEL] for case in cases if LABEL in case.files}
    if not relabel:
        if classes is None:
            return tuple(_stated(source) or _segment_names(maps)), ()
        return TOTALSEGMENTATOR if list(classes) == [NAME] else tuple(classes), ()
    values = _values(maps, jobs)
    names = _names_of(source, values, classes)
    return tuple(names[value] for value in values), values


def _names_of(source: str | Path, values: tuple[int, ...], classes: Sequence[str] | None) -> Mapping[int, str]:
    """Value → name of the class, for all ``values``."""
    found = ", ".join(map(str, values))
    if classes is not None and list(classes) != [NAME]:
        if len(classes) != len(values):
            raise InputError(
                f"--classes: --relabel found {len(values)} values in the label maps ({found}), and {len(classes)} "
                f"names are given ({', '.join(classes)}); give one name for each value, in this order"
            )
        return dict(zip(values, classes, strict=True))
    if classes is None:
        path = datalist_path(source)
        names = class_table(read_datalist(path).get("classes"), path) if path is not None else {}
        whose = f'"classes" of {path}'
    else:
        names, whose = dict(enumerate(TOTALSEGMENTATOR, 1)), "TotalSegmentator (task total, version 2)"
    if not names:
        raise InputError(
            f"names of the classes are needed: --relabel found the values {found} in the label maps; give --classes, "
            "one name for each value, in this order"
        )
    unknown = [value for value in values if value not in names]
    if unknown:
        raise InputError(
            f"--relabel: the label maps hold values that {whose} does not know: {', '.join(map(str, unknown))}; found "
            f"{found}; give --classes, one name for each value found"
        )
    return names


def _values(maps: Mapping[str, Path], jobs: int) -> tuple[int, ...]:
    """All values but 0 of all label maps; files that cannot be read, or hold no whole numbers, are the check's."""

    def one(path: Path) -> set[int]:
        try:
            header = read_header(path)
            named = header.segments
            data = read_volume(path, header).data if named is None else np.zeros(1)
        except InputError:
            return set()
        if named is not None:
            raise InputError(
                f"{path}: names its segments ({', '.join(named.names)}), so that it needs no --relabel; give the names "
                "to --classes"
            )
        if not np.isfinite(data.sum(dtype=np.float64)):
            return set()
        found = values_of(rounded(data))
        return set() if found.dtype.kind == "f" else {int(value) for value in found} - {0}

    with ThreadPoolExecutor(jobs) as pool:
        values = sorted(set().union(*pool.map(one, maps.values())))
    if not 0 < len(values) <= MOST_VALUES:
        raise InputError(
            f"--relabel: the label maps hold {len(values)} values beside 0, possible are 1 to {MOST_VALUES}; check "
            "that --label names label maps, not images"
        )
    return tuple(values)


def _segment_names(maps: Mapping[str, Path]) -> list[str]:
    """The names of the segments of all files, in their order; none where a file names none.

    Raises:
        InputError: for files that differ.
    """
    named = named_segments(maps)
    differ = same_segments(named)
    if differ:
        raise InputError("the label maps name different segments, or have them in another order:", [
            str(finding) for finding in differ
        ])  # fmt: skip
    return list(next(iter(named.values()))[1]) if named else []


def _stated(source: str | Path) -> list[str]:
    """The classes from 1 on that a datalist states, in order; empty where it states none.

    Raises:
        InputError: for indices that leave one out.
    """
    path = datalist_path(source)
    if path is None or not path.is_file():
        return []
    table = class_table(read_datalist(path).get("classes"), path)
    if table and sorted(table) != list(range(len(table))):
        raise InputError(
            f"{path}: classes must be numbered from 0 without gaps, found {sorted(table)}; --relabel makes 1, 2, … of "
            "the values that there are"
        )
    return [table[i] for i in range(1, len(table))]
