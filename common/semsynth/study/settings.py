"""What a study is to do: its settings, which ``config.py`` reads from a YAML file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .arms import Arm

PATIENTS = ("stated", "group", "each")
PREPARE = ("endo", "wall", "spacing", "size", "k", "sigma", "background", "centers", "wall_mm", "wall_plane", "scale",
           "percentiles", "window", "dtype", "like", "patient_regex", "jobs")  # fmt: skip
"""Options of ``semsynth prepare`` that a study may give: those that do not divide the cases."""
PHANTOM = ("cases", "size", "spacing", "k", "seed")
"""Options of ``semsynth phantom`` that a study may give."""
LEAST_SEEDS = 3
FINAL = "model_final.pt"
"""What a training writes after its last step."""
WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")
"""Ends of the names of files of weights."""
BRACES = re.compile(r"\{([A-Za-z0-9][A-Za-z0-9_-]*)\}")
"""The name of a training, in place of its weights."""


@dataclass(frozen=True)
class Training:
    """A training of a bundle, on a study's training cases alone.

    Attributes:
        name: name of the training; ``{name}`` in other places of the file stands for its weights.
        bundle: its folder.
        configs: names of files in its ``configs``, in order.
        epochs, epoch_cases: length; None: as the configs say.
        options: further settings of the configs, name → value.
    """

    name: str
    bundle: Path
    configs: tuple[str, ...]
    epochs: int | None = None
    epoch_cases: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """The trainings whose weights it takes."""
        texts = [text for value in self.options.values() for text in texts_in(value)]
        return tuple(dict.fromkeys(name for text in texts for name in BRACES.findall(text)))


@dataclass(frozen=True)
class Source:
    """Weights of a bundle.

    Attributes:
        bundle: its folder.
        weights: ``{name}`` of a training, or the path of a file that is declared.
        inference: settings of the bundle's ``inference.json`` in place of its own.
    """

    bundle: Path
    weights: str
    inference: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """The training that it is the result of."""
        return tuple(BRACES.findall(self.weights))


@dataclass(frozen=True)
class Volumes:
    """How synthetic volumes are made, as in ``semsynth augment``.

    Attributes:
        per_case: volumes of each labelled case.
        tries: largest number of draws of a refused volume.
        style: ``drawn`` or ``own``.
        judge, second_judge: weights, as in :class:`Source`; empty: nothing is refused.
        min_dice, max_hd95: limits; None: learned.
    """

    per_case: int = 4
    tries: int = 3
    style: str = "drawn"
    judge: str = ""
    second_judge: str = ""
    min_dice: float | None = None
    max_hd95: float | None = None


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        name: its title.
        data: raw or prepared cases, as ``semsynth prepare --input`` takes them.
        output: folder of all that it writes.
        patients: ``stated`` in the data, ``group`` (found by registering images), or ``each`` case is one.
        prepare: options of ``semsynth prepare``.
        test: a list of the datalist, a share of the patients, or names of cases.
        fold: ``(number, of how many)`` of a cross-validation inside the training patients; None: the real test.
        cases: numbers of labelled patients, the primary contrast's first; :data:`ALL`: every training case.
        labelled: cases in the order in which they are labelled; empty: drawn by ``seed``.
        unlabelled: True where the other training cases may be used without their labels.
        arms: arms of the first of ``cases``.
        curve: names of the arms of the other ones.
        primary: the arm whose difference to R is the primary contrast.
        seeds: seeds of the segmenters.
        ratio: real to synthetic cases in a training.
        seed: seed of the split and of the volumes.
        trainings: trainings by name.
        segmenter: training of each arm's segmenter.
        generators: generators by name, the default first.
        maps: source of generated maps; None: there is none.
        volumes: settings by which volumes are made.
        trust: take weights whose training cases are unknown.
        phantom: options of ``semsynth phantom`` where the data is made, in ``data``; None: it is there.
        linked: groups of cases that may be of one patient, beyond what the data states: the report computes its
            contrasts a second time as if they were.
    """

    name: str
    data: Path
    output: Path
    patients: str
    prepare: Mapping[str, Any]
    test: str | float | tuple[str, ...]
    fold: tuple[int, int] | None
    cases: tuple[int | str, ...]
    labelled: tuple[str, ...]
    unlabelled: bool
    arms: tuple[Arm, ...]
    curve: tuple[str, ...]
    primary: str
    seeds: tuple[int, ...]
    ratio: tuple[float, float]
    seed: int
    trainings: Mapping[str, Training]
    segmenter: Training
    generators: Mapping[str, Source]
    maps: Source | None
    volumes: Volumes
    trust: bool = False
    phantom: Mapping[str, Any] | None = None
    linked: tuple[tuple[str, ...], ...] = ()

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """The seeds of an arm's segmenters."""
        return self.seeds if arm.seeds is None else arm.seeds

    def to_json(self) -> dict[str, Any]:
        """All settings, as the study's folder keeps them; paths are left as they are on this machine."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the results: all but paths, names, where it is written, and a second look at them."""
        told = {k: v for k, v in self.to_json().items() if k not in ("name", "output", "data", "trust", "linked")}
        return hashlib.sha256(json.dumps(_without_folders(told), sort_keys=True).encode()).hexdigest()


def is_weights(name: str, value: Any) -> bool:
    """Whether a setting of a config is a file of weights, by its own name or the file's ending."""
    own = name.split("#")[-1].endswith("weights")
    return isinstance(value, str) and bool(value) and (own or Path(value).suffix.lower() in WEIGHTS)


def weights_in(value: Any, name: str = "") -> list[str]:
    """All files of weights, and names of trainings in braces, that a setting of a config tells of."""
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in weights_in(item, str(key))]
    if isinstance(value, list):
        return [text for item in value for text in weights_in(item, name)]
    return [value] if is_weights(name, value) or (isinstance(value, str) and BRACES.search(value)) else []


def texts_in(value: Any) -> list[str]:
    """All texts in a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in texts_in(item)]
    return [text for item in value for text in texts_in(item)] if isinstance(value, list) else []


def _without_folders(value: Any) -> Any:
    """Absolute paths as their last part: the study is the same in another folder."""
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return [_without_folders(item) for item in value] if isinstance(value, list) else value
