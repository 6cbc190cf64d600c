"""The settings and the centres of data that were prepared before, for new cases that are to be like them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..data.classes import read_metadata, trained_on
from ..data.datalists import datalist_path, read_datalist
from ..data.intensity import Scaling, chosen_scaling
from ..errors import InputError
from ..paths import as_path

logger = logging.getLogger(__name__)
S = TypeVar("S")
NEEDED = "a folder of prepared data, with datalist.json, or a bundle's"
PREPARED_WITH = "prepared_with"
"""Key of a bundle's metadata, in ``trained_on`` of its weights: the settings that their data was prepared with."""
RULE = ("scale", "percentiles", "window", "hu_offset")
"""Settings that make one rule of intensities: those of the data and those that are given are not mixed."""


def before(name: str, settings: Mapping[str, Any]) -> Any:
    """What versions did that did not have a setting yet, where that is not its default of today; else MISSING."""
    return ("window" if settings.get("window") else "min-max") if name == "scale" else MISSING


def settings_like(kind: type[S], like: str | Path | None, typed: Collection[str], **values: Any) -> S:
    """Settings of a preparation: those of data prepared before, but for what is given beside.

    Args:
        kind: dataclass of the settings.
        like: folder (or datalist) of the data prepared before, or of a bundle whose weights were trained on such data;
            None takes ``values`` alone.
        typed: names of the settings that are given beside ``like``.
        values: values of all settings, as they are without ``like``.

    Raises:
        InputError: no prepared data there, settings that are not known, or centres for another k than the given one.
    """
    if like is None:
        return kind(**values)
    path, settings = _settings(like, "--like", NEEDED, _names(kind))
    stated = _stated(kind, path, settings)
    given = {name: value for name, value in values.items() if name in typed}
    centers = stated.get("centers")
    if centers is not None and "centers" not in given and given.get("k", len(centers)) != len(centers):
        raise InputError(
            f"--like {like}: its {len(centers)} centres do not go with --k {given['k']}; leave --k out, or give "
            "--centers too"
        )
    own_rule = RULE if given.keys() & {*RULE} else ()
    taken = {name: value for name, value in stated.items() if name not in given and name not in own_rule}
    logger.info("settings of %s: %s", path, ", ".join(f"{name} {_shown(value)}" for name, value in taken.items()))
    if given:
        logger.info("in place of its own: %s", ", ".join(f"{name} {_shown(value)}" for name, value in given.items()))
    return kind(**(taken | given))


def prepared_centers(source: str | Path, k: int, kind: type[Any]) -> tuple[float, ...]:
    """The cluster centres that data prepared before share.

    Args:
        source: folder (or datalist) of the prepared data, or of a bundle.
        k: number of centres that is needed.
        kind: dataclass of the settings of the new preparation.

    Raises:
        InputError: no prepared data there, none that share their centres, or another number of them.
    """
    needed = "'dataset', numbers such as 0.1,0.4, or a folder of prepared data or of a bundle"
    _, settings = _settings(source, "--centers", needed, _names(kind))
    centers = settings.get("centers")
    if centers is None:
        raise InputError(
            f"--centers {source}: its centres were fitted to each volume, so that it has none to share; prepare that "
            "data with --centers dataset, or leave --centers out for both"
        )
    if len(centers) != k:
        raise InputError(f"--centers {source}: has {len(centers)} centres, --k is {k}; give --k {len(centers)}")
    return tuple(map(float, centers))


def filled(kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a record, with what was done without those that it does not have yet."""
    own = {field.name: _before(field, settings) for field in fields(kind) if field.name not in settings}
    return dict(settings) | {name: value for name, value in own.items() if value is not MISSING}


def k_of(like: str | Path, otherwise: int, kind: type[Any]) -> int:
    """The number of clusters of data prepared before; ``otherwise`` where it states none."""
    return int(_settings(like, "--like", NEEDED, _names(kind))[1].get("k", otherwise))


def warn_of_rule(source: str | Path, settings: Any) -> None:
    """Log where centres come from data whose intensities were scaled by another rule than ``settings`` ask for."""
    _, stated = _settings(source, "--centers", NEEDED, _names(settings))
    scale = stated.get("scale", before("scale", stated))
    window, offset = _frozen(stated.get("window")), stated.get("hu_offset")
    theirs = chosen_scaling(scale, _frozen(stated.get("percentiles")), window) or Scaling()
    unit_range = None if window is None or offset is None else (window[0] + offset, window[1] + offset)
    ours = settings.scaling or Scaling()
    if theirs != ours and (unit_range is None or unit_range != settings.unit_range):
        logger.warning(
            "--centers %s: its intensities were scaled by another rule (%s) than those here (%s), in which the same "
            "tissue has another intensity; take all of its settings with --like", source, theirs, ours,
        )  # fmt: skip


def modality_of(like: str | Path, kind: type[Any]) -> str:
    """What data prepared before, or that of a bundle's weights, says of its images."""
    path, settings = _settings(like, "--like", NEEDED, _names(kind))
    stated = read_metadata(path).get("modality")
    if isinstance(stated, Mapping) and stated:
        return str(next(iter(stated.values())))
    return "MRI" if settings.get("hu_offset") is None else "CT"


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _settings(source: str | Path, option: str, needed: str, known: Collection[str]) -> tuple[Path, dict[str, Any]]:
    """The file that states settings, and them.

    Args:
        source: folder (or datalist) of prepared data, or of a bundle.
        option: option that named it, for the message.
        needed: kind of value that is needed, for the message.
        known: names of the settings of a preparation, by which one of several weights' is chosen.
    """
    folder = as_path(source, option)
    path, metadata = datalist_path(folder), folder / "configs" / "metadata.json"
    if metadata.is_file() and (path is None or not path.is_file()):
        weights = trained_on(metadata).values()
        found = [about[PREPARED_WITH] for about in weights if isinstance(about.get(PREPARED_WITH), dict)]
        fitting = [s for s in found if s.keys() <= {*known}]
        if fitting:
            return metadata, fitting[0]
        if found:
            raise InputError(
                f"{option} {source}: the data of its weights was prepared by the other one of 'semsynth prepare' and "
                "'prepare-maps'"
            )
    if path is None or not path.is_file():
        raise InputError(f"{option} {source}: there is no prepared data; needed is {needed}")
    settings = read_datalist(path).get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{path}: states no settings, so that 'semsynth prepare' or 'prepare-maps' did not make it; "
                         "give data that one of them made")  # fmt: skip
    return path, settings


def _stated(kind: type[Any], path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file states, and for those that it does not state what was done without them."""
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise InputError(
            f"{path}: states settings that this command does not have: {', '.join(unknown)}; prepare new cases with "
            "the command ('semsynth prepare' or 'prepare-maps') and the version of semsynth that made it"
        )
    missing = [name for name, field in known.items() if name not in settings and _before(field, settings) is MISSING]
    if missing:
        raise InputError(f"{path}: does not state {', '.join(missing)}; it was made by the other one of 'semsynth "
                         "prepare' and 'prepare-maps'")  # fmt: skip
    return {
        name: _frozen(settings[name]) if name in settings else _before(field, settings) for name, field in known.items()
    }


def _before(field: Field[Any], settings: Mapping[str, Any]) -> Any:
    known = before(field.name, settings)
    return field.default if known is MISSING else known


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
