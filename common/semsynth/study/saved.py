"""A study's settings in its own folder: written once, and read by every job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from ..json_files import read_object, read_object_or_none
from .arms import Arm
from .settings import Source, Study, Training, Volumes

STUDY = "study.json"
FREE = ("name", "data", "output", "trust", "seeds", "arms", "cases", "curve")
"""What may change after a study was begun; of the last four, something may be added."""


def save_study(study: Study) -> Path:
    """Write the settings; those that are there already have to be the same, but for more seeds, arms and cases.

    Returns:
        The file.

    Raises:
        InputError: naming what differs.
    """
    path = study.output / STUDY
    before = read_object_or_none(path)
    now = study.to_json()
    if before is None and path.exists():
        raise InputError(f"{path}: cannot be read; remove it if nothing of this study was run, or give another output")
    if before is not None:
        differ = [name for name in now if name not in FREE and before.get(name) != now[name]]
        differ += [name for name in ("seeds", "cases", "curve") if set(before[name]) - set(now[name])]
        differ += [] if before["cases"][0] == now["cases"][0] else ["the first of cases"]
        differ += [] if all(arm in now["arms"] for arm in before["arms"]) else ["arms"]
        if differ:
            raise InputError(
                f"{study.output}: was begun with another {', '.join(dict.fromkeys(differ))}; what decides a study is "
                "named before it is run: give the same as before (seeds, arms and cases may be added), or another "
                "output"
            )
    return write_text(path, json.dumps(now, indent=1))


def load_study(folder: str | Path) -> Study:
    """The settings of a study's folder, where it is now.

    Raises:
        InputError: for a folder that holds none.
    """
    path = Path(folder) / STUDY
    told = read_object(path, missing="run 'semsynth study --config FILE' first", damaged="start the study anew")
    try:
        return _study(told | {"output": str(Path(folder).absolute())})
    except (KeyError, TypeError) as error:
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
    )  # fmt: skip


def _arm(told: Mapping[str, Any]) -> Arm:
    ratio, seeds = told["ratio"], told["seeds"]
    return Arm(**{**told, "ratio": None if ratio is None else (ratio[0], ratio[1]),
                  "seeds": None if seeds is None else tuple(seeds)})  # fmt: skip


def _training(told: Mapping[str, Any]) -> Training:
    return Training(**{**told, "bundle": Path(told["bundle"]), "configs": tuple(told["configs"])})


def _source(told: Mapping[str, Any]) -> Source:
    return Source(Path(told["bundle"]), told["weights"], told["inference"])
