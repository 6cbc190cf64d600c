"""A study as jobs: what each one runs, of what, and what it leaves behind. Snakemake runs them (``workflow.smk``)."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..json_files import read_object
from ..synthesis.augment.plan import is_prepared
from .arms import ALL, REAL, Arm
from .settings import BRACES, FINAL, Source, Study, Training, weights_in

SPLIT, GUARD, REPORT = "split/split.json", "guard.json", "report/report.html"
OPENED, OPENINGS = "opened", "opened.json"
"""That the test may be looked at, and how often it was: a history, which is no output of a job, so that it stays."""
DATA = "data/datalist.json"
ADOPTED = "adopted.json"
"""Which weights of a fold are those of its study."""
SYNTHETIC = "synthetic/datalist.json"
"""Of a folder of volumes: the synthetic ones alone."""
TESTED = "dice_raw.csv"
"""Of a test's folder."""
_SHARED = ("num_classes", "classes", "spacing", "window_size", "largest_component")
"""Settings of a training that evaluation and inference must have as well, beside those of the network."""
WITH_UNLABELLED = "u"
"""Behind a number of labelled patients: with the unlabelled images."""


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        rule: rule of the Snakefile.
        key: values of the rule's wildcards, in order.
        output: the file that says that it is done, from the study's folder on.
        inputs: files that it needs, the same way.
        commands: programs with their arguments, run one after the other, each with the folder that it runs in.
    """

    rule: str
    key: tuple[str, ...]
    output: str
    inputs: tuple[str, ...]
    commands: tuple[tuple[Path, tuple[str, ...]], ...]

    @property
    def shell(self) -> str:
        """The commands as one line of a shell, each in its folder; the first that fails is the last."""
        return " && ".join(f"(cd {shlex.quote(str(folder))} && {shlex.join(words)})" for folder, words in self.commands)


class Plan:
    """All jobs of a study.

    Args:
        study: study to be done.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.out = study, study.output
        self.jobs: dict[tuple[str, tuple[str, ...]], Job] = {}
        self._add("prepare", (), DATA, (), *self._phantom(), self._prepare())
        self._step("split", SPLIT, DATA)
        for count in dict.fromkeys([*study.cases, ALL]):
            self._add("cases", (str(count),), self._cases_file(str(count)), (SPLIT,),
                      self._own("cases", "--cases", str(count)))  # fmt: skip
        for cases, arm in self.arms():
            self._arm(cases, arm)
        tests = [self._segmenter(cases, arm, seed) for cases, arm in self.arms() for seed in study.seeds_of(arm)]
        weights = tuple(job.output for job in self.jobs.values() if job.rule in ("training", "segmenter"))
        self._step("guard", GUARD, SPLIT, *dict.fromkeys(weights))
        self._step("open_test", OPENED, GUARD)
        done = [self._test(*key) for key in dict.fromkeys(tests)]
        self._pictures()
        self._step("report", REPORT, *done, *(job.output for job in self.of("segmentations")))

    def __getitem__(self, key: tuple[str, ...]) -> Job:
        return self.jobs[key[0], tuple(key[1:])]

    def of(self, rule: str) -> list[Job]:
        """The jobs of a rule."""
        return [job for job in self.jobs.values() if job.rule == rule]

    def arms(self) -> Iterator[tuple[str, Arm]]:
        """Number of labelled patients and arm, of all that is trained; the positive control is R of all cases."""
        first, *others = self.study.cases
        for arm in self.study.arms:
            yield (ALL, self.study.arm(REAL)) if arm.everything else (str(first), arm)
        for count in others:
            for name in self.study.curve:
                if not self.study.arm(name).everything:
                    yield str(count), self.study.arm(name)

    def first(self) -> list[Job]:
        """The segmenters of the primary contrast and of the positive control, which go before all others."""
        cases = str(self.study.cases[0])
        pairs = [(cases, self.study.primary), (cases, REAL), (ALL, REAL)]
        return [job for job in self.of("segmenter") if job.key[:2] in pairs]

    def tests(self) -> list[tuple[str, str, int]]:
        """Number of labelled patients, arm and seed of each segmenter that is tested."""
        keys = [(cases, arm.name, seed) for cases, arm in self.arms() for seed in self.study.seeds_of(arm)]
        return list(dict.fromkeys(keys))

    # ---- stages --------------------------------------------------------------------------------------------------

    def _add(
        self, rule: str, key: Sequence[str], output: str, inputs: Sequence[str], *commands: tuple[Path, Sequence[str]]
    ) -> str:
        made = Job(rule, tuple(key), output, tuple(dict.fromkeys(inputs)), tuple((f, tuple(w)) for f, w in commands))
        self.jobs.setdefault((rule, tuple(key)), made)
        return output

    def _step(self, name: str, output: str, *inputs: str) -> str:
        return self._add(name, (), output, inputs, self._own(name))

    def _own(self, step: str, *words: str) -> tuple[Path, Sequence[str]]:
        """A step of this package."""
        return self.out, (sys.executable, "-m", "semsynth.study.steps", step, "--study", str(self.out), *words)

    def _semsynth(self, *words: str) -> tuple[Path, Sequence[str]]:
        return self.out, (sys.executable, "-m", "semsynth", *words)

    def _phantom(self) -> list[tuple[Path, Sequence[str]]]:
        """What makes the data where it is the phantom's."""
        told = self.study.phantom
        if told is None:
            return []
        return [self._semsynth("phantom", "--output", str(self.study.data), *_options(dict(told) | {"wait": "yes"}))]

    def _prepare(self) -> tuple[Path, Sequence[str]]:
        if self.study.phantom is None and is_prepared(self.study.data):
            return self._own("link")
        options = dict(self.study.prepare) | {"wait": "yes"}
        options |= {"group_patients": "yes"} if self.study.patients == "group" else {}
        return self._semsynth(
            "prepare", "--input", str(self.study.data), "--output", str(self.out / "data"), *_options(options)
        )

    def _arm(self, cases: str, arm: Arm) -> None:
        """What an arm's segmenters need."""
        if arm.pseudo or arm.unlabelled:
            self._pseudo(cases)
        if arm.maps:
            self._volumes(cases, arm)
        if arm.painted:
            base = self.study.arm(arm.like)
            maps = self._volumes(cases, base)
            output = _painted(cases, arm)
            words = ("--maps", str(self.out / maps), "--real", str(self._list(cases)), "--output",
                     str((self.out / output).parent))  # fmt: skip
            self._add("paint", (cases, arm.name), output, (maps, self._cases_file(cases)), self._own("paint", *words))

    def _training(self, cases: str, name: str) -> str:
        """Weights of a training on a set of cases."""
        training = self.study.trainings[name]
        before = {needed: self._training(cases, needed) for needed in training.needs}
        folder = f"weights/{cases}/{name}"
        output = f"{folder}/{FINAL}"
        inputs = (self._cases_file(cases), *before.values(), *_declared(training.options, training.bundle))
        options = _filled(dict(training.options), {key: str(self.out / path) for key, path in before.items()})
        words = self._train(training, folder, self.out / "split" / cases, options)
        return self._add("training", (cases, name), output, inputs, (training.bundle, words))

    def _train(self, training: Training, run_dir: str, data: Path, options: Mapping[str, Any]) -> list[str]:
        """A training that goes on where it was, without validation: the last step's weights are taken."""
        config = read_object(training.bundle / "configs" / training.configs[0], damaged="take the bundle's own")
        told: dict[str, Any] = {
            "dataset_dir": data, "run_dir": self.out / run_dir, "resume": True, "wait": True, "num_workers": 1,
            "val_interval": 1_000_000, "validate#dataset#data#path": data / "datalist.json",
            "validate#dataset#data#key": "training", "validate#dataset#cache_rate": 0.0,
        }  # fmt: skip
        length = {"max_epochs": training.epochs, "epoch_cases": training.epoch_cases}
        length = {key: value for key, value in length.items() if value is not None}
        missing = [key for key in length if not _has(config, key)]
        if missing:
            raise InputError(f"{training.name}: {training.bundle}/configs/{training.configs[0]} has no "
                             f"{' and '.join(missing)}; leave it out, or take a config that has it")  # fmt: skip
        told = {key: value for key, value in told.items() if _has(config, key)} | length | dict(options)
        return [*_monai("training"), "--config_file", _configs(training.configs), *_settings(told)]

    def _weights(self, cases: str, source: Source) -> tuple[str, tuple[str, ...]]:
        """The absolute path of weights, and the jobs' outputs that they are."""
        made = {name: self._training(cases, name) for name in source.needs}
        path = str(_filled(source.weights, {name: str(self.out / output) for name, output in made.items()}))
        return path, tuple(made.values()) or (path,)

    def _volumes(self, cases: str, arm: Arm) -> str:
        """The datalist of an arm's synthetic volumes."""
        study, made = self.study, self.study.volumes
        data = cases + WITH_UNLABELLED if arm.unlabelled else cases
        generator = study.generators[arm.generator or next(iter(study.generators))]
        weights, inputs = self._weights(data, generator)
        folder = self.out / "volumes" / cases / arm.name
        maps = ",".join(f"{kind}={share:g}" for kind, share in arm.maps.items())
        options: dict[str, Any] = {
            "input": self._list(data).parent, "bundle": generator.bundle, "weights": weights, "output": folder,
            "per_case": made.per_case, "maps": maps, "seed": study.seed, "wait": "yes",
            "style": None if made.style == "drawn" else made.style, "inference": generator.inference or None,
        }  # fmt: skip
        if arm.maps.get("generated"):
            assert study.maps is not None
            path, more = self._weights(data, study.maps)
            options |= {"map_bundle": study.maps.bundle, "map_weights": path,
                        "map_inference": study.maps.inference or None}  # fmt: skip
            inputs += more
        for option, typed in (("judge", made.judge), ("second_judge", made.second_judge)):
            if typed:
                path, more = self._weights(data, Source(generator.bundle, typed))
                options[option] = path
                inputs += more
        if made.judge:
            options |= {"tries": made.tries, "min_dice": made.min_dice, "max_hd95": made.max_hd95}
        output = f"volumes/{cases}/{arm.name}/{SYNTHETIC}"
        inputs = (self._cases_file(data), *inputs)
        return self._add(
            "volumes", (cases, arm.name), output, inputs, self._semsynth("augment", *_options(options)),
            self._own("synthetic", "--folder", str(folder)),
        )  # fmt: skip

    def _segmenter(self, cases: str, arm: Arm, seed: int) -> tuple[str, str, int]:
        """An arm's training, in two parts where the arm ends on real cases alone."""
        own, folder = self.study.segmenter, f"segmenters/{cases}/{arm.name}/{seed}"
        lists, inputs = self._lists(cases, arm)
        real = self._list(cases)
        mixed: dict[str, Any] = {
            "seed": seed,
            "datalists": [str(path) for path in lists],
            **({"mixing_ratio": list(arm.ratio or self.study.ratio)} if arm.two_sources else {}),
            "validation_datalist": self.out / "split" / "test" / "datalist.json",
            "validate#dataset#data#path": real,
        }
        told, weights = self._segmenter_inputs(cases, dict(own.options) | mixed)
        assert own.epochs is not None
        last = round(arm.real_end * own.epochs)
        parts = [(folder, own.epochs, told)]
        if last:
            only = {key: value for key, value in told.items() if key != "mixing_ratio"}
            only |= {"datalists": [str(real)], "init_weights": self.out / folder / "mixed" / FINAL}
            parts = [(f"{folder}/mixed", own.epochs - last, told), (folder, last, only)]
        commands = [
            (own.bundle, self._train(replace(own, epochs=epochs), place, real.parent, options))
            for place, epochs, options in parts
        ]
        self._add("segmenter", (cases, arm.name, str(seed)), f"{folder}/{FINAL}",
                  [*inputs, *weights, *_declared(own.options, own.bundle)], *commands)  # fmt: skip
        return cases, arm.name, seed

    def _lists(self, cases: str, arm: Arm) -> tuple[list[Path], list[str]]:
        """An arm's training lists, the labelled real cases' first, and the jobs' outputs that they need."""
        lists, inputs = [self._list(cases)] if arm.real else [], [self._cases_file(cases)]
        if arm.pseudo:
            lists.append(self.out / "split" / (cases + WITH_UNLABELLED) / "pseudo" / "datalist.json")
            inputs.append(self._cases_file(cases + WITH_UNLABELLED))
        if arm.synthetic:
            owner = arm.name if arm.maps else arm.like
            file = _painted(cases, arm) if arm.painted else f"volumes/{cases}/{owner}/{SYNTHETIC}"
            lists.append(self.out / file)
            inputs.append(file)
        return lists, inputs

    def _segmenter_inputs(self, cases: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        made = {name: self._training(cases, name) for name in self.study.segmenter.needs}
        filled = _filled(dict(options), {name: str(self.out / output) for name, output in made.items()})
        return dict(filled), tuple(made.values())

    def _test(self, cases: str, arm: str, seed: int) -> str:
        """Scores of one segmenter on the test."""
        segmenter = self["segmenter", cases, arm, str(seed)]
        own = self.study.segmenter
        folder = f"test/{cases}/{arm}/{seed}"
        first, *overlays = own.configs
        options = {
            "dataset_dir": self.out / "split" / "test",
            "validation_datalist": self.out / "split" / "test" / "datalist.json",
            "weights": self.out / segmenter.output, "evaluation_dir": self.out / folder,
            "run_dir": (self.out / segmenter.output).parent, "num_workers": 1,
        }  # fmt: skip
        options |= self._network(first)
        words = [*_monai(), "--config_file", _configs((first, "evaluate.json", *overlays)), *_settings(options)]
        return self._add("test", (cases, arm, str(seed)), f"{folder}/{TESTED}", (OPENED, segmenter.output),
                         (own.bundle, words))  # fmt: skip

    def _network(self, config: str) -> dict[str, Any]:
        """What the segmenter's training is told of the network and its data, for another config that has it too."""
        own = self.study.segmenter
        content = read_object(own.bundle / "configs" / config, damaged="take the bundle's own")
        return {key: value for key, value in own.options.items()
                if key.startswith("network_def") or (key in _SHARED and key in content)}  # fmt: skip

    def _pictures(self) -> None:
        """Segmentations of the test by R and by the primary arm, for the report's pictures."""
        own, cases = self.study.segmenter, str(self.study.cases[0])
        for name in (REAL, self.study.primary):
            seed = self.study.seeds_of(self.study.arm(name))[0]
            segmenter = self["segmenter", cases, name, str(seed)].output
            folder = f"segmentations/{name}/{seed}"
            options = {"dataset_dir": self.out / "split" / "test", "weights": self.out / segmenter, "wait": True,
                       "output_dir": self.out / folder, **self._network("inference.json")}  # fmt: skip
            configs = ("inference.json", *own.configs[1:])
            words = [*_monai(), "--config_file", _configs(configs), *_settings(options)]
            self._add("segmentations", (name, str(seed)), f"{folder}/done", (OPENED, segmenter), (own.bundle, words),
                      (self.out, ("touch", f"{folder}/done")))  # fmt: skip

    def _pseudo(self, cases: str) -> str:
        """The set of cases with the unlabelled images, which a segmenter of the arm R labels."""
        data = cases + WITH_UNLABELLED
        seed = self.study.seeds_of(self.study.arm(REAL))[0]
        self._segmenter(cases, self.study.arm(REAL), seed)
        segmenter = self["segmenter", cases, REAL, str(seed)].output
        own, folder = self.study.segmenter, self.out / "pseudo" / cases
        options = {"dataset_dir": self.out / "split" / cases / "rest", "weights": self.out / segmenter, "wait": True,
                   "output_dir": folder / "masks", **self._network("inference.json")}  # fmt: skip
        infer = [*_monai(), "--config_file", _configs(("inference.json", *own.configs[1:])), *_settings(options)]
        words = ("prepare", "--input", str(folder / "datalist.json"), "--output", str(folder / "data"), "--like",
                 str((self.out / DATA).parent), "--wait", "yes")  # fmt: skip
        return self._add(
            "pseudo", (cases,), self._cases_file(data), (self._cases_file(cases), segmenter),
            self._own("rest", "--cases", cases), (own.bundle, infer),
            self._own("pseudo_masks", "--cases", cases), self._semsynth(*words),
            self._own("pseudo_set", "--cases", cases),
        )  # fmt: skip

    def _list(self, cases: str) -> Path:
        return self.out / "split" / cases / "datalist.json"

    def _cases_file(self, cases: str) -> str:
        return f"split/{cases}/datalist.json"


def _painted(cases: str, arm: Arm) -> str:
    return f"painted/{cases}/{arm.name}/datalist.json"


def _monai(*words: str) -> list[str]:
    return [sys.executable, "-m", "monai.bundle", "run", *words]


def _configs(names: Sequence[str]) -> str:
    return str([f"configs/{name}" for name in names]) if len(names) > 1 else f"configs/{names[0]}"


def _options(options: Mapping[str, Any]) -> list[str]:
    """Options of a command of this package, as they are typed; None leaves one out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        text = json.dumps(value) if isinstance(value, Mapping) else str(value)
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else text
        words += [f"--{name}", text]
    return words


def _settings(settings: Mapping[str, Any]) -> list[str]:
    """Settings of a config, as MONAI's command line reads them: Python's literals, and texts as they are."""
    words: list[str] = []
    for name, value in settings.items():
        if value is None:
            words += [f"--{name}", "$None"]  # MONAI's command line leaves out None
        else:
            words += [f"--{name}", str(value) if isinstance(value, str | Path) else repr(value)]
    return words


def _declared(settings: Any, folder: Path) -> list[str]:
    """Files of weights that settings name, from the folder that a bundle runs in."""
    texts = [text for text in weights_in(settings) if not BRACES.search(text)]
    return [str(path) for path in (folder / text for text in texts) if path.is_file()]


def _has(config: Mapping[str, Any], key: str) -> bool:
    """Whether a config has a setting, such as ``validate#dataset#data#key``."""
    found: Any = config
    for part in key.split("#"):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def _filled(value: Any, weights: Mapping[str, str]) -> Any:
    """The value with the paths of weights in place of the names in braces."""
    if isinstance(value, str):
        for name, path in weights.items():
            value = value.replace(f"{{{name}}}", path)
        return value
    if isinstance(value, Mapping):
        return {key: _filled(item, weights) for key, item in value.items()}
    return [_filled(item, weights) for item in value] if isinstance(value, list) else value
