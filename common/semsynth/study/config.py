"""A study's YAML file, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..seeds import checked_seed
from .arms import ALL, ARMS, CONTROL, MIXTURE, REAL, Arm
from .reading import Fields, read_fields
from .settings import BRACES, LEAST_SEEDS, PATIENTS, Source, Study, Training, Volumes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def read_study(
    config: str | Path, *, output: str | Path | None = None, fold: int | None = None, trust: bool = False
) -> Study:
    """Read and check a study's file.

    Args:
        config: the YAML file, see ``docs/study.md``.
        output: in place of the file's.
        fold: number of a fold (from 1) of the file's ``folds``: a cross-validation inside the training patients.
        trust: see :attr:`Study.trust`.

    Raises:
        InputError: for settings that are unknown, missing, of another kind, or that do not go together.
    """
    fields = read_fields(config)
    folds = fields.whole("folds", 2, 2)
    if fold is not None and not 1 <= fold <= folds:
        raise InputError(f"--fold must be of 1 to {folds}, the file's folds, got {fold}")
    folder = fields.path("output", Path()) if output is None else Path(output).absolute()
    fields.any("output")
    if folder == Path():
        raise InputError(f"{fields.where}: needs output, the folder to write; or give --output")
    trainings = {name: _training(_named(name, inner), inner) for name, inner in fields.tables("trainings").items()}
    ratio = _ratio(fields, (1.0, 1.0))
    seeds = _seeds(fields, (0, 1, 2))
    assert ratio is not None and seeds is not None
    generators = {
        name: _source(_named(name, inner), inner, trainings) for name, inner in fields.tables("generators").items()
    }
    maps = _source("maps", fields.inner("maps"), trainings) if fields.content.get("maps") is not None else None
    fields.any("maps")
    primary = fields.take("primary", str, MIXTURE)
    phantom = dict(fields.take("phantom", dict, {})) if fields.content.get("phantom") is not None else None
    arms = _arms(fields, generators, maps)
    study = Study(
        name=fields.take("name", str, Path(config).stem),
        data=fields.path("data") if phantom is None else folder / "phantom",
        output=folder if fold is None else folder / f"fold_{fold}_of_{folds}",
        patients=_one_of(fields, "patients", PATIENTS),
        prepare=dict(fields.take("prepare", dict, {})),
        test=_test(fields),
        fold=None if fold is None else (fold, folds),
        cases=_cases(fields),
        labelled=_names(fields, "labelled"),
        unlabelled=fields.take("unlabelled", bool, False),
        arms=arms,
        curve=_names(fields, "curve") or (REAL, primary),
        primary=primary,
        seeds=seeds,
        ratio=ratio,
        seed=checked_seed(fields.take("seed", int, 0), "seed"),
        trainings=trainings,
        segmenter=_training("segmenter", fields.inner("segmenter")),
        generators=generators,
        maps=maps,
        volumes=_volumes(fields.inner("volumes"), trainings),
        trust=trust,
        phantom=phantom,
    )
    fields.end()
    _check(study, fields.where)
    return study


def _training(name: str, fields: Fields) -> Training:
    configs = fields.any("config", "train.json")
    found = Training(
        name,
        _bundle(fields),
        tuple(map(str, configs)) if isinstance(configs, list) else (str(configs),),
        fields.whole("epochs", 1, 0) or None,
        fields.whole("epoch_cases", 1, 0) or None,
        {key: _absolute(value, fields) for key, value in fields.take("options", dict, {}).items()},
        fields.take("weights", str, "model_final.pt"),
    )
    fields.end()
    for config in found.configs:
        if not (found.bundle / "configs" / config).is_file():
            raise InputError(f"{fields.where}: {found.bundle} has no configs/{config}")
    return found


def _absolute(value: Any, fields: Fields) -> Any:
    """An option's value; ``./…`` and ``../…`` are paths from the file's folder on."""
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str(fields.resolved(value, "options"))
    return value


def _bundle(fields: Fields) -> Path:
    folder = fields.path("bundle")
    if not (folder / "configs").is_dir():
        raise InputError(f"{fields.where}: bundle {folder} has no folder configs; give the folder of a bundle")
    return folder


def _source(name: str, fields: Fields, trainings: Mapping[str, Training]) -> Source:
    found = Source(_bundle(fields), _weights(fields, "weights", trainings), dict(fields.take("inference", dict, {})))
    fields.end()
    return found


def _weights(fields: Fields, name: str, trainings: Mapping[str, Training], needed: bool = True) -> str:
    """``{training}``, or the absolute path of a file."""
    typed = fields.take(name, str) if needed else fields.take(name, str, "")
    inside = BRACES.findall(typed)
    if inside:
        _known(inside, trainings, f"{fields.where}: {name}")
        return typed
    if typed and not fields.resolved(typed, name).is_file():
        raise InputError(f"{fields.where}: {name} {typed}: no such file, and no training in braces")
    return str(fields.resolved(typed, name)) if typed else ""


def _known(names: Sequence[str], trainings: Mapping[str, Training], where: str) -> None:
    for name in names:
        if name not in trainings:
            raise InputError(f"{where}: {{{name}}} is none of the trainings ({', '.join(trainings) or 'none'})")


def _volumes(fields: Fields, trainings: Mapping[str, Training]) -> Volumes:
    found = Volumes(
        fields.whole("per_case", 1, 4),
        fields.whole("tries", 1, 3),
        _one_of(fields, "style", ("drawn", "own")),
        _weights(fields, "judge", trainings, needed=False),
        _weights(fields, "second_judge", trainings, needed=False),
        _limit(fields, "min_dice"),
        _limit(fields, "max_hd95"),
    )
    fields.end()
    return found


def _limit(fields: Fields, name: str) -> float | None:
    """A limit of the gate; None: it is learned."""
    return fields.take(name, float) if fields.content.get(name) is not None else fields.any(name)


def _arms(fields: Fields, generators: Mapping[str, Source], maps: Source | None) -> tuple[Arm, ...]:
    listed = fields.take("arms", list, [REAL, CONTROL, "P", "S", "M", "G", MIXTURE])
    found: dict[str, Arm] = {}
    for item in listed:
        arm = _arm(item, fields, found)
        if arm.name in found:
            raise InputError(f"{fields.where}: arms: {arm.name} is there twice")
        if arm.generator and arm.generator not in generators:
            raise InputError(f"{fields.where}: arms: {arm.name} has the generator {arm.generator!r}, which is none of "
                             f"{', '.join(generators) or '(no generators)'}")  # fmt: skip
        found[arm.name] = arm
    for arm in found.values():
        where = f"{fields.where}: arms: {arm.name}"
        if arm.like and (arm.like not in found or not found[arm.like].maps):
            raise InputError(f"{where} takes the volumes or maps of {arm.like}, which is no arm with maps of its own; "
                             "add it")  # fmt: skip
        if arm.maps and not generators:
            raise InputError(f"{where} needs a generator; add generators")
        if arm.maps.get("generated") and maps is None:
            raise InputError(f"{where} has generated maps; add maps: with the bundle that draws them")
    return tuple(found.values())


def _arm(item: Any, fields: Fields, found: Mapping[str, Arm]) -> Arm:
    known = {**ARMS, **found}
    if isinstance(item, str):
        if item not in ARMS:
            raise InputError(f"{fields.where}: arms: unknown arm {item!r}; known are {', '.join(ARMS)}, others are "
                             "tables with name and like")  # fmt: skip
        return ARMS[item]
    inner = Fields(item, f"{fields.where}: arms", fields.root)
    name = _named(inner.take("name", str), inner)
    base = inner.take("like", str, name)
    if base not in known:
        raise InputError(f"{inner.where}: {name} is like {base!r}, which is no arm; known are {', '.join(known)}")
    maps = inner.take("maps", dict, dict(known[base].maps))
    arm = replace(
        known[base], name=name, about=inner.take("about", str, known[base].about),
        generator=inner.take("generator", str, known[base].generator),
        maps={str(kind): float(share) for kind, share in maps.items()},
        ratio=_ratio(inner, known[base].ratio), seeds=_seeds(inner, known[base].seeds),
    )  # fmt: skip
    inner.end()
    unknown = arm.maps.keys() - {"given", "morphed", "generated"}
    if unknown or any(share <= 0 for share in arm.maps.values()):
        raise InputError(f"{inner.where}: {name}: maps are given, morphed, generated with shares above 0, "
                         f"got {maps}")  # fmt: skip
    return arm


def _ratio(fields: Fields, default: tuple[float, float] | None) -> tuple[float, float] | None:
    value = fields.any("ratio")
    if value is None:
        return default
    numbers = isinstance(value, list) and len(value) == 2 and all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e6 for x in value
    )  # fmt: skip
    if not numbers:
        raise InputError(f"{fields.where}: ratio must be two numbers above 0, real to synthetic, found {value!r}")
    return float(value[0]), float(value[1])


def _seeds(fields: Fields, default: tuple[int, ...] | None) -> tuple[int, ...] | None:
    value = fields.any("seeds")
    if value is None:
        return default
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise InputError(f"{fields.where}: seeds must be a list of different whole numbers, found {value!r}")
    return tuple(checked_seed(seed, "seeds") for seed in value)


def _cases(fields: Fields) -> tuple[int | str, ...]:
    value = fields.any("cases", [ALL])
    listed = value if isinstance(value, list) else [value]
    if not listed or any(not _is_count(item) for item in listed) or len(set(listed)) < len(listed):
        raise InputError(f"{fields.where}: cases must be numbers of labelled patients, or {ALL}, the primary "
                         f"contrast's first, found {value!r}")  # fmt: skip
    return tuple(listed)


def _is_count(item: Any) -> bool:
    return item == ALL or (isinstance(item, int) and not isinstance(item, bool) and item >= 1)


def _test(fields: Fields) -> str | float | tuple[str, ...]:
    value = fields.any("test", "testing")
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, str) and value in ("testing", "validation"):
        return value
    raise InputError(f"{fields.where}: test must be testing or validation (a list of the datalist), a share of the "
                     f"patients between 0 and 1, or a list of cases, found {value!r}")  # fmt: skip


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.take(name, list, [])
    if not all(isinstance(item, str) for item in value) or len(set(value)) < len(value):
        raise InputError(f"{fields.where}: {name} must be a list of different names, found {value!r}")
    return tuple(value)


def _one_of(fields: Fields, name: str, known: Sequence[str]) -> str:
    value = fields.take(name, str, known[0])
    if value not in known:
        raise InputError(f"{fields.where}: {name} must be of {', '.join(known)}, found {value!r}")
    return value


def _named(name: str, fields: Fields) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"{fields.where}: the name {name!r} must be of letters, digits, _ and -, 40 at most")
    return name


def _check(study: Study, where: str) -> None:
    """What has to go together."""
    names = [arm.name for arm in study.arms]
    if REAL not in names:
        raise InputError(f"{where}: arms needs R, the real cases that all others are compared with")
    if study.primary not in names or study.primary in (REAL, CONTROL):
        raise InputError(f"{where}: primary must be one of the arms but R and C, found {study.primary!r}; it is the "
                         f"one contrast that decides, named before anything is run")  # fmt: skip
    for name in study.curve:
        if name not in names:
            raise InputError(f"{where}: curve: {name!r} is none of the arms ({', '.join(names)})")
    if study.cases[0] == ALL and CONTROL in names:
        raise InputError(
            f"{where}: with cases: [{ALL}] the arms R and C are the same; leave C out, or give fewer cases"
        )
    if len(study.seeds) < LEAST_SEEDS:
        raise InputError(f"{where}: seeds must be {LEAST_SEEDS} or more, found {len(study.seeds)}: two trainings of "
                         "one recipe may differ more than two arms")  # fmt: skip
    for training in [*study.trainings.values(), study.segmenter]:
        _known(training.needs, study.trainings, f"{where}: {training.name}: options")
    if any(arm.pseudo or arm.unlabelled for arm in study.arms) and not study.unlabelled:
        raise InputError(f"{where}: arms RU and MU need images without labels; give unlabelled: true to take the other "
                         "training cases without theirs")  # fmt: skip
    _refuse_circles(study, where)


def _refuse_circles(study: Study, where: str) -> None:
    left = {name: set(training.needs) for name, training in study.trainings.items()}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            raise InputError(f"{where}: trainings {', '.join(left)} need each other's weights; one has to be first")
        for name in free:
            del left[name]
