"""The trainings, weights and volumes of a study's YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..json_files import read_object
from .reading import Fields, one_of
from .settings import BRACES, Source, Training, Volumes, texts_in, weights_in

OWN = {
    "max_epochs": "epochs", "epoch_cases": "epoch_cases", "dataset_dir": "", "run_dir": "", "best_weights": "",
    "final_weights": "", "resume": "", "wait": "", "val_interval": "",
}  # fmt: skip
"""Settings of a training's config that the study gives → what to say in their place."""
OF_ARMS = {"seed": "seeds", "datalists": "", "mixing_ratio": "ratio", "validation_datalist": ""}
"""The same of the segmenters' training alone."""
OF_VOLUMES = {
    "dataset_dir": "", "output_dir": "", "label_maps": "", "split": "", "seed": "seed", "num_samples": "per_case",
    "style_from": "style", "style_map": "style",
}  # fmt: skip
"""The same of the inference of a generator, or of what draws label maps."""


def read_training(name: str, fields: Fields) -> Training:
    """A training.

    Raises:
        InputError: for a bundle or a config that is not there.
    """
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


def check_options(training: Training, where: str, own: Mapping[str, str]) -> None:
    """Refuse options that would do nothing, that the study gives itself, or whose weights are not there.

    Args:
        training: training whose options are checked.
        where: place in the file, for messages.
        own: settings that the study gives.

    Raises:
        InputError: naming the option.
    """
    _check_settings(training.options, training.bundle, training.configs, f"{where}: options", own)
    for text in weights_in(training.options):
        if not BRACES.search(text) and not (training.bundle / text).is_file():
            raise InputError(f"{where}: options: {text}: no such file of weights, from {training.bundle} on; give "
                             "a path that begins with ./ (from the file's folder on), or {{training}}")  # fmt: skip


def read_source(fields: Fields, trainings: Mapping[str, Training]) -> Source:
    """Weights of a bundle.

    Raises:
        InputError: for a bundle or weights that are not there, and settings that cannot be given.
    """
    found = Source(_bundle(fields), _weights(fields, "weights", trainings), fields.settings("inference"))
    fields.end()
    where = f"{fields.where}: inference"
    for text in weights_in(found.inference):
        raise InputError(f"{where}: {text} is a file of weights; give it as weights")
    _check_settings(found.inference, found.bundle, ("inference.json",), where, OF_VOLUMES)
    return found


def read_volumes(fields: Fields, trainings: Mapping[str, Training]) -> Volumes:
    """How volumes are made.

    Raises:
        InputError: for limits without a judge.
    """
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


def known(names: Sequence[str], trainings: Mapping[str, Training], where: str) -> None:
    """Raise for a name in braces that is none of the trainings."""
    for name in names:
        if name not in trainings:
            raise InputError(f"{where}: {{{name}}} is none of the trainings ({', '.join(trainings) or 'none'})")


def _bundle(fields: Fields) -> Path:
    folder = fields.path("bundle")
    if not (folder / "configs").is_dir():
        raise InputError(f"{fields.where}: bundle {folder} has no folder configs; give the folder of a bundle")
    return folder


def _check_settings(
    settings: Mapping[str, Any], bundle: Path, configs: Sequence[str], where: str, own: Mapping[str, str]
) -> None:
    """MONAI takes any name without a word, so that a misspelt one would do nothing for days."""
    names = {key.split("#")[0]: config for config in configs
             for key in read_object(bundle / "configs" / config, damaged="take the bundle's own")}  # fmt: skip
    for key, value in settings.items():
        first = key.split("#")[0]
        if key in own:
            instead = f"; give {own[key]} instead" if own[key] else "; leave it out"
            raise InputError(f"{where}: {key} is given by the study{instead}")
        if first not in names:
            near = difflib.get_close_matches(first, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{where}: {bundle}/configs/{' and '.join(configs)} have no setting {first}{hint}")
        for text in texts_in(value):
            if text.startswith("$"):
                raise InputError(f"{where}: {key}: {text} is an expression, and it cannot be said which files it "
                                 "reads; give a value")  # fmt: skip


def _weights(fields: Fields, name: str, trainings: Mapping[str, Training], needed: bool = True) -> str:
    """``{training}``, or the absolute path of a file."""
    typed = fields.take(name, str) if needed else fields.take(name, str, "")
    inside = BRACES.findall(typed)
    if inside:
        known(inside, trainings, f"{fields.where}: {name}")
        return typed
    if typed and not fields.resolved(typed, name).is_file():
        raise InputError(f"{fields.where}: {name} {typed}: no such file, and no training in braces")
    return str(fields.resolved(typed, name)) if typed else ""


def _limit(fields: Fields, name: str) -> float | None:
    """A limit of the gate; None: it is learned."""
    return fields.take(name, float) if fields.content.get(name) is not None else fields.any(name)
