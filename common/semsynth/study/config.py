"""A study's YAML file, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.datalists import datalist_path
from ..data.patterns import is_pattern
from ..errors import InputError
from ..json_files import read_object
from ..seeds import checked_seed
from ..synthesis.augment.plan import is_prepared
from .arms import ALL, CONTROL, MIXTURE, REAL
from .config_arms import check_seeds, read_arms
from .config_trainings import OF_ARMS, OWN, check_options, known, read_source, read_training, read_volumes
from .reading import Fields, named, names, one_of, ratio, read_fields, seeds
from .settings import LEAST_SEEDS, PATIENTS, PHANTOM, PREPARE, Study


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
    study = replace(_study(fields, Path(config).stem, folder), trust=trust)
    fields.end()
    _check(study, fields.where)
    return study if fold is None else replace(study, output=folder / f"fold_{fold}_of_{folds}", fold=(fold, folds))


def _study(fields: Fields, name: str, folder: Path) -> Study:
    trainings = {
        named(name, inner.where): read_training(name, inner) for name, inner in fields.tables("trainings").items()
    }
    generators = {
        named(name, inner.where): read_source(inner, trainings) for name, inner in fields.tables("generators").items()
    }
    maps = read_source(fields.inner("maps"), trainings) if fields.content.get("maps") is not None else None
    fields.any("maps")
    data, phantom = _data(fields, folder)
    primary = fields.take("primary", str, MIXTURE)
    parts, trained = ratio(fields, (1.0, 1.0)), seeds(fields, (0, 1, 2))
    assert parts is not None and trained is not None
    return Study(
        name=fields.text("name", name),
        data=data,
        output=folder,
        patients=one_of(fields, "patients", PATIENTS),
        prepare=_prepare(fields),
        test=_test(fields),
        fold=None,
        cases=_cases(fields),
        labelled=names(fields, "labelled"),
        unlabelled=fields.take("unlabelled", bool, False),
        arms=read_arms(fields, generators, maps),
        curve=_curve(fields, primary),
        primary=primary,
        seeds=trained,
        ratio=parts,
        seed=checked_seed(fields.take("seed", int, 0), f"{fields.where}: seed"),
        trainings=trainings,
        segmenter=read_training("segmenter", fields.inner("segmenter")),
        generators=generators,
        maps=maps,
        volumes=read_volumes(fields.inner("volumes"), trainings),
        phantom=phantom,
        linked=_linked(fields),
    )


def _linked(fields: Fields) -> tuple[tuple[str, ...], ...]:
    """Groups of cases, as lists of names or as a file of ``semsynth check --same-patient``."""
    told: Any = fields.any("linked")
    if told is None:
        return ()
    if isinstance(told, str):
        path = fields.resolved(told, "linked")
        content = read_object(path, missing="write it with 'semsynth check --same-patient'", damaged="write it anew")
        groups: Any = content.get("groups")
        told = [group["cases"] for group in groups.values()] if _are_groups(groups) else groups
    wrong = [group for group in told if not _is_group(group)] if isinstance(told, list) else [told]
    if wrong:
        raise InputError(f"{fields.where}: linked must be lists of two or more names of cases, such as [[P1, P2]], or "
                         f"same_patient.json, found {wrong[0]!r}")  # fmt: skip
    return tuple(tuple(group) for group in told)


def _is_group(group: Any) -> bool:
    return isinstance(group, list) and all(isinstance(case, str) for case in group) and len(set(group)) > 1


def _are_groups(groups: Any) -> bool:
    return isinstance(groups, dict) and all(isinstance(group, dict) and "cases" in group for group in groups.values())


def _data(fields: Fields, folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """Where the cases are, and how phantoms are made where they are those."""
    if fields.content.get("phantom") is None:
        fields.any("phantom")
        return fields.path("data"), None
    told = dict(fields.inner("phantom").content)
    if fields.any("data") is not None:
        raise InputError(f"{fields.where}: has data and phantom; give one of the two")
    _refuse_unknown(told, PHANTOM, f"{fields.where}: phantom")
    return folder / "phantom", told


def _prepare(fields: Fields) -> dict[str, Any]:
    """Options of the preparation; files and patterns of files start from the file's folder."""
    told = fields.settings("prepare")
    _refuse_unknown(told, PREPARE, f"{fields.where}: prepare")
    for name in ("endo", "wall", "like"):
        if isinstance(told.get(name), str):
            told[name] = str(fields.resolved(told[name], f"prepare: {name}"))
    return told


def _refuse_unknown(told: Mapping[str, Any], possible: Sequence[str], where: str) -> None:
    unknown = sorted(told.keys() - set(possible))
    if unknown:
        raise InputError(f"{where}: unknown option {', '.join(unknown)}; possible are {', '.join(possible)}")


def _cases(fields: Fields) -> tuple[int | str, ...]:
    value = fields.any("cases", [ALL])
    listed = value if isinstance(value, list) else [value]
    if not listed or any(not _is_count(item) for item in listed) or len(set(listed)) < len(listed):
        raise InputError(f"{fields.where}: cases must be different numbers of labelled patients, or {ALL}, the primary "
                         f"contrast's first, found {value!r}")  # fmt: skip
    return tuple(listed)


def _curve(fields: Fields, primary: str) -> tuple[str, ...]:
    told = names(fields, "curve")
    if told and len(_cases(fields)) == 1:
        raise InputError(f"{fields.where}: curve would do nothing with one number of labelled patients; give further "
                         "cases, or leave it out")  # fmt: skip
    return tuple(dict.fromkeys((REAL, *(told or (primary,)))))


def _is_count(item: Any) -> bool:
    return item == ALL or (isinstance(item, int) and not isinstance(item, bool) and item >= 1)


def _test(fields: Fields) -> str | float | tuple[str, ...]:
    value = fields.any("test", "testing")
    if isinstance(value, list) and value:
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
        if name not in names or name == CONTROL:
            raise InputError(f"{where}: curve: {name!r} is none of the arms ({', '.join(names)}) that have several "
                             "numbers of labelled patients")  # fmt: skip
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
    for training in study.trainings.values():
        check_options(training, f"{where}: {training.name}", OWN)
    check_options(study.segmenter, f"{where}: segmenter", OWN | OF_ARMS)
    for training in [*study.trainings.values(), study.segmenter]:
        known(training.needs, study.trainings, f"{where}: {training.name}: options")
    if any(arm.pseudo or arm.unlabelled for arm in study.arms) and not study.unlabelled:
        raise InputError(f"{where}: arms RU and MU need images without labels; give unlabelled: true to take the other "
                         "training cases without theirs")  # fmt: skip
    _check_data(study, where)
    _refuse_circles(study, where)


def _check_data(study: Study, where: str) -> None:
    """What is asked of the data, as far as it is there to be asked."""
    if study.phantom is not None:
        return
    if not is_pattern(study.data) and not study.data.exists():
        raise InputError(f"{where}: data {study.data}: no such file or folder")
    if is_prepared(study.data) and (study.prepare or study.patients == "group"):
        raise InputError(f"{where}: {study.data} is prepared already; leave prepare and patients: group out, or give "
                         "the raw cases")  # fmt: skip
    place, output = _place(study.data), study.output.resolve()
    if output == place or output in place.parents:
        raise InputError(f"{where}: output {study.output} holds the data, {study.data}; give a folder of its own: what "
                         "is in it may be made anew")  # fmt: skip
    if place in output.parents and not is_pattern(study.data) and datalist_path(study.data) is None:
        raise InputError(f"{where}: output {study.output} lies within the data's folder, where it would be taken for "
                         "cases; give another one")  # fmt: skip


def _place(data: Path) -> Path:
    """The folder of the data; of a pattern, the last one without stars."""
    if is_pattern(data):
        return next(parent for parent in data.parents if not is_pattern(parent)).resolve()
    return (data if data.is_dir() else data.parent).resolve()


def _refuse_circles(study: Study, where: str) -> None:
    left = {name: set(training.needs) for name, training in study.trainings.items()}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            raise InputError(f"{where}: trainings {', '.join(left)} need each other's weights; one has to be first")
        for name in free:
            del left[name]
