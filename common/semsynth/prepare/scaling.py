"""By which rule the intensities of a source become [0, 1] in a preparation, and what the prepared images then hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..data.datalists import datalist_path, read_datalist
from ..data.intensity import HU, UNIT, Ends, Intensity, Scaling, entry_intensity, stated_intensity
from ..errors import InputError
from ..vocabulary import SPLITS, UNLABELLED

S = TypeVar("S", bound=Any)


def source_intensity(source: str | Path) -> Intensity | None:
    """What the datalist that is to be prepared says of its image files; None where it, or another source, says nothing.

    Raises:
        InputError: where its entries say different things.
    """
    path = datalist_path(source)
    if path is None or not path.is_file():
        return None
    content = read_datalist(path)
    stated = stated_intensity(content, path)
    entries = [entry for split in (*SPLITS, UNLABELLED) for entry in content.get(split) or []]
    held = {str(e.get("case", i)): entry_intensity(e, stated, path) for i, e in enumerate(entries)}
    if len(set(held.values())) > 1:
        first = next(iter(held.values()))
        raise InputError(
            f"{path}: its entries hold different intensities (\"intensity\" of the entry, or of the datalist); prepare "
            "those that differ from a datalist of their own", [case for case, found in held.items() if found != first],
        )  # fmt: skip
    return next(iter(held.values()), stated)


def with_source_scaling(settings: S, stated: Intensity | None) -> tuple[S, Intensity]:
    """The settings with the rule of intensities that is in force, and what the prepared images will hold by it.

    In force is the rule that the settings ask for; without one the window that the source states; and without that the
    default. What a source states is never stretched again: a window that is asked for in its unit is looked up in its
    files, and any other rule for files that were scaled before is an error.

    Args:
        settings: settings of a preparation, with ``scale``, ``percentiles`` and ``window``, and ``scaling``,
            ``unit_range``.
        stated: statement of the source's datalist on its files.

    Raises:
        InputError: for a rule or an offset that contradicts what the source states.
    """
    rule: Scaling | None = settings.scaling
    span: Ends | None = settings.unit_range
    if stated is None or stated.window is None:
        return _as_asked(settings, rule or Scaling(), span)
    own = Scaling("window", stated.window)
    before = stated.scaling or own
    asked_in_unit = span is not None and stated.unit_range is not None
    if rule is None or rule == own or (rule == before and span in (None, stated.unit_range)):
        unit = _unit(settings, stated)
        return replace(settings, scale="window", percentiles=None, window=stated.window), Intensity(UNIT, before, *unit)
    if asked_in_unit and stated.unit == HU:
        placed = stated.in_range(HU, span)
        found = replace(settings, scale="window", percentiles=None, window=placed.window, hu_offset=None)
        return found, Intensity(UNIT, Scaling("window", placed.window), HU, span)
    if stated.scaling is None and stated.unit_range is None:  # values of the source as they are: the option wins
        return _as_asked(settings, rule, span)
    raise InputError(
        f"the source's datalist says that its files hold {_words(stated)}, and the rule that is asked for is another "
        f"one ({rule}); leave out --scale, --percentiles, --window and --like, or prepare the raw files"
    )


def _as_asked(settings: S, rule: Scaling, span: Ends | None) -> tuple[S, Intensity]:
    resolved = replace(settings, scale=rule.scale, **({} if rule.ends is None else {rule.scale: rule.ends}))
    return resolved, Intensity(UNIT, rule, "" if span is None else HU, span)


def _unit(settings: Any, stated: Intensity) -> tuple[str, Ends | None]:
    """The unit of files whose window is stated: theirs, or by an offset to Hounsfield units."""
    offset = getattr(settings, "hu_offset", None)
    if offset is None or stated.window is None:
        return stated.unit, stated.unit_range
    span = stated.window[0] + offset, stated.window[1] + offset
    if stated.unit_range is None and stated.scaling is None:
        return HU, span
    if stated.unit == HU and stated.unit_range in (span, settings.unit_range):
        return stated.unit, stated.unit_range
    raise InputError(
        f"--hu-offset {offset:g} does not go with a source whose datalist says that its files hold {_words(stated)}; "
        "leave it out, or prepare the raw files"
    )


def _words(held: Intensity) -> str:
    low, high = held.window or UNIT
    unit = (
        "" if held.unit_range is None else f", which are {held.unit_range[0]:g} and {held.unit_range[1]:g} {held.unit}"
    )
    rule = "" if held.scaling is None else f"; they were made by: {held.scaling}"
    return f"{low:g} for 0 and {high:g} for 1{unit}{rule}"
