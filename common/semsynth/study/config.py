"""A study's YAML file, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.patterns import is_pattern
from ..errors import InputError
from ..seeds import checked_seed
from ..synthesis.augment.plan import is_prepared
from .arms import ALL, CONTROL, MIXTURE, REAL
from .config_arms import check_seeds, read_arms
from .reading import Fields, named, names, one_of, ratio, read_fields, seeds
from .settings import BRACES, LEAST_SEEDS, PATIENTS, PREPARE, WEIGHTS, Source, Study, Training, Volumes, texts_in


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
    trainings = {name: _training(named(name, inner.where), inner) for name, inner in fields.tables("trainings").items()}
    parts, trained = ratio(fields, (1.0, 1.0)), seeds(fields, (0, 1, 2))
    assert parts is not None and trained is not None
    generators = {
        name: _source(named(name, inner.where), inner, trainings) for name, inner in fields.tables("generators").items()
    }
    maps = _source("maps", fields.inner("maps"), trainings) if fields.content.get("maps") is not None else None
    fields.any("maps")
    primary = fields.take("primary", str, MIXTURE)
    phantom = dict(fields.take("phantom", dict, {})) if fields.content.get("phantom") is not None else None
    arms = read_arms(fields, generators, maps)
    study = Study(
        name=fields.take("name", str, Path(config).stem),
        data=fields.path("data") if phantom is None else folder / "phantom",
        output=folder if fold is None else folder / f"fold_{fold}_of_{folds}",
        patients=one_of(fields, "patients", PATIENTS),
        prepare=fields.settings("prepare"),
        test=_test(fields),
        fold=None if fold is None else (fold, folds),
        cases=_cases(fields),
        labelled=names(fields, "labelled"),
        unlabelled=fields.take("unlabelled", bool, False),
        arms=arms,
        curve=tuple(dict.fromkeys((REAL, *(names(fields, "curve") or (primary,))))),
        primary=primary,
        seeds=trained,
        ratio=parts,
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
        fields.settings("options"),
    )
    fields.end()
    if not found.configs:
        raise InputError(f"{fields.where}: config must name one file of the bundle's configs or more")
    for config in found.configs:
        if not (found.bundle / "configs" / config).is_file():
            raise InputError(f"{fields.where}: {found.bundle} has no configs/{config}")
    return found


def _bundle(fields: Fields) -> Path:
    folder = fields.path("bundle")
    if not (folder / "configs").is_dir():
        raise InputError(f"{fields.where}: bundle {folder} has no folder configs; give the folder of a bundle")
    return folder


def _source(name: str, fields: Fields, trainings: Mapping[str, Training]) -> Source:
    found = Source(_bundle(fields), _weights(fields, "weights", trainings), fields.settings("inference"))
    fields.end()
    _refuse_weights(found.inference, f"{fields.where}: inference")
    return found


def _refuse_weights(settings: Any, where: str) -> None:
    """Weights in other places than ``weights`` would not be what the study says that it uses."""
    for text in texts_in(settings):
        if Path(text).suffix in WEIGHTS or BRACES.search(text):
            raise InputError(f"{where}: {text} is a file of weights; give it as weights")


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
        one_of(fields, "style", ("drawn", "own")),
        _weights(fields, "judge", trainings, needed=False),
        _weights(fields, "second_judge", trainings, needed=False),
        _limit(fields, "min_dice"),
        _limit(fields, "max_hd95"),
    )
    fields.end()
    if not found.judge and (found.second_judge or found.min_dice is not None or found.max_hd95 is not None):
        raise InputError(f"{fields.where}: second_judge, min_dice and max_hd95 go with judge, the weights of a judge")
    return found


def _limit(fields: Fields, name: str) -> float | None:
    """A limit of the gate; None: it is learned."""
    return fields.take(name, float) if fields.content.get(name) is not None else fields.any(name)


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
        return names(fields, "test")
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, str) and value in ("testing", "validation"):
        return value
    raise InputError(f"{fields.where}: test must be testing or validation (a list of the datalist), a share of the "
                     f"patients between 0 and 1, or a list of cases, found {value!r}")  # fmt: skip


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
    check_seeds(study.arms, study.primary, where)
    if study.segmenter.epochs is None or study.segmenter.epoch_cases is None:
        raise InputError(f"{where}: segmenter needs epochs and epoch_cases, the same number of steps for every arm "
                         "(without them arms of more cases would be trained for longer)")  # fmt: skip
    if ALL in study.cases[:1] and any(arm.pseudo or arm.unlabelled for arm in study.arms):
        raise InputError(f"{where}: with cases: [{ALL}] no images are left for the arms RU and MU")
    if len(study.seeds) < LEAST_SEEDS:
        raise InputError(f"{where}: seeds must be {LEAST_SEEDS} or more, found {len(study.seeds)}: two trainings of "
                         "one recipe may differ more than two arms")  # fmt: skip
    for training in [*study.trainings.values(), study.segmenter]:
        _known(training.needs, study.trainings, f"{where}: {training.name}: options")
    if any(arm.pseudo or arm.unlabelled for arm in study.arms) and not study.unlabelled:
        raise InputError(f"{where}: arms RU and MU need images without labels; give unlabelled: true to take the other "
                         "training cases without theirs")  # fmt: skip
    _check_data(study, where)
    _refuse_circles(study, where)


def _check_data(study: Study, where: str) -> None:
    """What is asked of the data, as far as it is there to be asked."""
    if study.phantom is not None:
        return
    unknown = sorted(study.prepare.keys() - set(PREPARE))
    if unknown:
        raise InputError(f"{where}: prepare: unknown option {', '.join(unknown)}; possible are {', '.join(PREPARE)}")
    if not is_pattern(study.data) and not study.data.exists():
        raise InputError(f"{where}: data {study.data}: no such file or folder")
    if is_prepared(study.data) and (study.prepare or study.patients == "group"):
        raise InputError(f"{where}: {study.data} is prepared already; leave prepare and patients: group out, or give "
                         "the raw cases")  # fmt: skip


def _refuse_circles(study: Study, where: str) -> None:
    left = {name: set(training.needs) for name, training in study.trainings.items()}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            raise InputError(f"{where}: trainings {', '.join(left)} need each other's weights; one has to be first")
        for name in free:
            del left[name]
