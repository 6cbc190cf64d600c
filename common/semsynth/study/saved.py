"""A study's settings in its own folder: written once, and read by every job."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from ..json_files import read_object, read_object_or_none
from .arms import Arm
from .settings import Source, Study, Training, Volumes

logger = logging.getLogger(__name__)
STUDY = "study.json"
FREE = ("name", "data", "output", "trust", "linked", "unlabelled", "seeds", "arms", "cases", "curve")
"""What may change after trainings were begun; of the last four, something may be added."""
VOLUMES = ("volumes", "generators", "maps")
"""What may change as long as there are no volumes, but for the weights in it."""
PREPARED = ("prepare", "patients", "phantom", "data")
"""What decides the prepared cases."""
WRITTEN = ("data", "phantom", "split", "guard.json", "opened.json", "weights", "volumes", "painted", "segmenters",
           "pseudo", "test", "segmentations", "report")  # fmt: skip
"""What a study writes in its folder, beside logs."""


def save_study(study: Study) -> Path:
    """Write the settings.

    Before anything was trained all may change: cases that were prepared or divided in another way are removed. After
    that only seeds, arms and numbers of cases may be added, and how volumes are made may change until they are there.

    Returns:
        The file.

    Raises:
        InputError: naming what differs, and what has to be removed to begin anew.
    """
    path = study.output / STUDY
    before, now = read_object_or_none(path), study.to_json()
    if before is None and path.exists():
        raise InputError(f"{path}: cannot be read; remove it if nothing of this study was run, or give another output")
    others = [name for name in WRITTEN if (study.output / name).exists()] if before is None else []
    if others:
        raise InputError(f"{study.output}: holds {', '.join(others)}, and no study was begun there; give an output of "
                         "its own: a study makes anew, and removes, what is in its folder")  # fmt: skip
    before = None if before is None else _read(before, path).to_json()  # settings that are new have their defaults
    if before is not None and before != now:
        if any(study.output.glob("*/*/*/**/*.pt")):
            _refuse_changes(study, before, now)
            if before["data"] != now["data"]:
                logger.warning(
                    "data: %s is not read any more: the cases were prepared from %s", now["data"], before["data"]
                )
        else:
            _remove(study, [name for name in now if before.get(name) != now[name]])
    return write_text(path, json.dumps(now, indent=1))


def _refuse_changes(study: Study, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differ = [name for name in now if name not in FREE and before.get(name) != now[name]]
    if not any(study.output.glob("volumes/*/*/*/datalist.json")) and _same_weights(before, now):
        differ = [name for name in differ if name not in VOLUMES]
    differ += [] if now["seeds"][: len(before["seeds"])] == before["seeds"] else ["seeds"]
    differ += [name for name in ("cases", "curve") if set(before[name]) - set(now[name])]
    differ += [] if before["cases"][0] == now["cases"][0] else ["the first of cases"]
    differ += [] if all(arm in now["arms"] for arm in before["arms"]) else ["arms"]
    if differ:
        raise InputError(
            f"{study.output}: was begun with another {', '.join(dict.fromkeys(differ))}, and trainings were begun; "
            "what decides a study is named before it is run: give the same as before (seeds, arms and cases may be "
            "added at the end of their lists), or another output"
        )


def _same_weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    def weights(told: Mapping[str, Any]) -> list[Any]:
        sources = [*told["generators"].values(), *([told["maps"]] if told["maps"] else [])]
        return [(source["bundle"], source["weights"]) for source in sources]

    return weights(before) == weights(now)


def _remove(study: Study, changed: Sequence[str]) -> None:
    """What was made in another way, before any training: the cases' division, and with it the cases."""
    stale = ["split", "guard.json"] + (["data", "phantom"] if set(changed) & set(PREPARED) else [])
    for name in stale:
        place = study.output / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def load_study(folder: str | Path) -> Study:
    """The settings of a study's folder, where it is now.

    Raises:
        InputError: for a folder that holds none.
    """
    path = Path(folder) / STUDY
    told = read_object(path, missing="run 'semsynth study --config FILE' first", damaged="start the study anew")
    return _read(told | {"output": str(Path(folder).absolute())}, path)


def _read(told: Mapping[str, Any], path: Path) -> Study:
    try:
        return _study(told)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: of another version of semsynth, or damaged ({error}); start the study anew"
        ) from error


def _study(told: Mapping[str, Any]) -> Study:
    generators = {name: _source(value) for name, value in told["generators"].items()}
    test = told["test"]
    as_they_are = ("name", "patients", "prepare", "unlabelled", "primary", "seed", "trust", "phantom")
    return Study(
        **{key: told[key] for key in as_they_are},
        data=Path(told["data"]), output=Path(told["output"]),
        test=tuple(test) if isinstance(test, list) else test,
        fold=None if told["fold"] is None else (told["fold"][0], told["fold"][1]),
        cases=tuple(told["cases"]), labelled=tuple(told["labelled"]), arms=tuple(map(_arm, told["arms"])),
        curve=tuple(told["curve"]), seeds=tuple(told["seeds"]), ratio=(told["ratio"][0], told["ratio"][1]),
        trainings={name: _training(value) for name, value in told["trainings"].items()},
        segmenter=_training(told["segmenter"]), generators=generators,
        maps=None if told["maps"] is None else _source(told["maps"]), volumes=Volumes(**told["volumes"]),
        linked=tuple(map(tuple, told.get("linked", ()))),
    )  # fmt: skip


def _arm(told: Mapping[str, Any]) -> Arm:
    ratio, seeds = told["ratio"], told["seeds"]
    return Arm(**{**told, "ratio": None if ratio is None else (ratio[0], ratio[1]),
                  "seeds": None if seeds is None else tuple(seeds)})  # fmt: skip


def _training(told: Mapping[str, Any]) -> Training:
    return Training(**{**told, "bundle": Path(told["bundle"]), "configs": tuple(told["configs"])})


def _source(told: Mapping[str, Any]) -> Source:
    return Source(Path(told["bundle"]), told["weights"], told["inference"])
