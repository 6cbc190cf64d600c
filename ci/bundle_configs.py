"""What a bundle's configs say: reading and merging them as MONAI does, and the checks that need no run."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import pydoc
import random
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigComponent, ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils import BundleProperty, BundlePropertyConfig, set_determinism

ROOT = Path(__file__).resolve().parents[1]

WEIGHTS = "models/model.pt"
MIN_REASON = 20  # letters of a reason for letting a network off the export
# beyond what MONAI itself requires: what other tools of its (federated learning, Label) and this project reach for
TRAIN_IDS = (
    "run_dir", "best_weights", "train#dataset#data", "train#handlers", "validate#evaluator", "validate#dataset",
    "validate#dataset#data", "validate#handlers", "val_interval", "network_def", "network", "training", "run",
)  # fmt: skip
INFERENCE_IDS = ("output_dir", "weights", "network", "preprocessing", "postprocessing", "run")
ENTRY_POINTS = {"_desc_", "_meta_", "imports", "initialize", "run", "training", "finalize"}

REPEATED = ("bundle_root", "dataset_dir", "device", "network", "network_def")
MAY_DIFFER = {
    "_desc_": "each file describes itself",
    "imports": "each imports what it uses",
    "initialize": "each has its own steps",
    "run": "each has its own steps",
    "num_workers": "training prepares batches in the background, inference takes one case at a time",
    "grid": "a training has no weights yet whose rule of intensities would hold",
}

ONLY_INFERENCE = {
    "semsynth.synthesis.drawing.RequestedMapd": "a map is asked for where a training loads one",
    "semsynth.data.resampling.TrainedSpacingd": "what a training sees is of the trained voxel size by definition",
}

# sizes that stand for the "*", "n" and "p" of a metadata's spatial_shape: small, and no power of two for "*"
PROBE = {"any": 40, "n": 2, "p": 5}


class WeightsMissingError(Exception):
    """A check that needs ``models/model.pt`` cannot be made, because it is not there."""


# ---------------------------------------------------------------------------------------------------------- helpers


def read(bundle: Path, *names: str) -> dict[str, Any]:
    """The content of ``configs/<name>.json``, of several merged as MONAI merges them."""
    content: dict[str, Any] = ConfigParser.load_config_files([str(config_path(bundle, name)) for name in names])
    return content


def config_path(bundle: Path, name: str) -> Path:
    """``configs/<name>.json`` of a bundle."""
    return bundle / "configs" / f"{name}.json"


def stages(bundle: Path) -> list[str]:
    """train, inference and whatever else stands alone (the training of an earlier stage): what has ``imports``."""
    further = [
        p.stem
        for p in sorted(bundle.glob("configs/*.json"))
        if p.stem not in ("metadata", "train", "inference") and "imports" in json.loads(p.read_text(encoding="utf-8"))
    ]
    return ["train", "inference", *further]


def overlays(bundle: Path) -> list[str]:
    """Names of the configs that are merged onto train.json, inference.json or another that stands alone."""
    alone = ("metadata", *stages(bundle))
    return [p.stem for p in sorted(bundle.glob("configs/*.json")) if p.stem not in alone]


def bases(bundle: Path, overlay: str) -> list[str]:
    """What an overlay goes onto: of :func:`stages` those that its ``_desc_`` names, else the first that fits."""
    about = str(json.loads(config_path(bundle, overlay).read_text(encoding="utf-8")).get("_desc_", ""))
    named = [base for base in stages(bundle) if re.search(rf"(?<![\w.]){base}\.json", about)]
    if named:
        return named
    for base in stages(bundle):
        try:
            read(bundle, base, overlay)
        except (KeyError, IndexError, ValueError):
            continue
        return [base]
    return []


def overlays_before(bundle: Path, overlay: str) -> list[str]:
    """The overlays that go before an overlay: those that its ``_desc_`` names as ``after one.json and other.json``."""
    about = str(json.loads(config_path(bundle, overlay).read_text(encoding="utf-8")).get("_desc_", ""))
    found = re.search(r"\bafter\s+((?:\w+\.json(?:,\s+|\s+and\s+)?)+)", about, re.IGNORECASE)
    return re.findall(r"(\w+)\.json", found[1]) if found else []


def combinations(bundle: Path) -> Iterator[tuple[str, ...]]:
    """What stands alone, and every overlay on each of its bases (and on the overlays that go before it)."""
    for name in stages(bundle):
        yield (name,)
    known = overlays(bundle)
    for overlay in known:
        before = [name for name in overlays_before(bundle, overlay) if name in known]  # check_overlays names the others
        yield from ((base, *before, overlay) for base in bases(bundle, overlay))


def with_tiny(bundle: Path, stage: str) -> list[str]:
    """The configs of a stage's dry run: its own, and the first overlay ``tiny…`` that goes onto it."""
    tiny = [name for name in overlays(bundle) if name.startswith("tiny") and stage in bases(bundle, name)]
    return [stage, *tiny[:1]]


def known_settings(bundle: Path, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that the merged configs have; not ``max_epochs`` where it follows from other settings."""
    config = read(bundle, *names)
    fixed = "max_epochs" in config and not isinstance(config["max_epochs"], int)
    return {key: value for key, value in settings.items() if key in config and not (key == "max_epochs" and fixed)}


def weights_path(bundle: Path) -> Path:
    """The bundle's weights.

    Raises:
        WeightsMissingError: when there are none.
    """
    if not (bundle / WEIGHTS).is_file():
        raise WeightsMissingError(f"{WEIGHTS}: weights not there yet")
    return bundle / WEIGHTS


def walk(config: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested config with its id, from the outside in."""
    yield where, config
    if isinstance(config, Mapping | list):
        items = config.items() if isinstance(config, Mapping) else enumerate(config)
        for key, value in items:
            yield from walk(value, f"{where}#{key}" if where else str(key))


def root_cause(error: BaseException) -> str:
    """The first error of a chain in one line: MONAI wraps what went wrong in the whole config item."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


@contextmanager
def isolated(folder: Path) -> Iterator[None]:
    """Work in ``folder``, quietly; afterwards the global state that a bundle's run changes is as it was."""
    logger, cwd, path = logging.getLogger(), Path.cwd(), sys.path[:]
    handlers, level = logger.handlers[:], logger.level
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        logging.disable()
        try:
            yield
        finally:
            os.chdir(cwd)
            logging.disable(logging.NOTSET)
            sys.path[:] = path
            logger.handlers[:] = handlers
            logger.setLevel(level)
            set_determinism(seed=None)
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.random.set_rng_state(states[2])


# ------------------------------------------------------------------------------------------------------------ configs


def check_properties(bundle: Path) -> list[str]:
    """train.json and inference.json, each alone, have the required ids, and refer to MONAI's optional ones exactly."""
    found = []
    sides = (("train", TrainProperties, TRAIN_IDS), ("inference", InferProperties, INFERENCE_IDS))
    for name, properties, further in sides:
        parser = ConfigParser()
        parser.read_config(str(config_path(bundle, name)))
        parser.read_meta(str(config_path(bundle, "metadata")))
        entries = {**properties, **MetaProperties}
        required = [p[BundlePropertyConfig.ID] for p in entries.values() if p[BundleProperty.REQUIRED]]
        wanted = dict.fromkeys(key.replace("::", "#") for key in (*required, *further))
        found += [f"{name}.json: required id {key!r} is not there" for key in wanted if key not in parser]
        for prop in entries.values():
            key, reference = (str(prop.get(k) or "") for k in (BundlePropertyConfig.ID, BundlePropertyConfig.REF_ID))
            for where, value in _references(parser, reference):
                exact = isinstance(value, str) and (value.startswith("$") or value.replace("#", "::") == f"@{key}")
                if value is not None and not exact:
                    found.append(f"{name}.json: {where} must be '@{key.replace('::', '#')}', got {str(value)[:80]!r}")
    return found


def _references(parser: ConfigParser, reference: str) -> list[tuple[str, Any]]:
    """Where an optional property is referred to: an id, or an argument of the validation handler."""
    if reference not in ("validator", "interval"):
        return [(reference.replace("::", "#"), parser.get(reference))] if reference else []
    handlers = parser.get("train::handlers") or []
    return [
        (f"train#handlers#{i}#{reference}", handler.get(reference))
        for i, handler in enumerate(handlers)
        if isinstance(handler, dict) and str(handler.get("_target_")).endswith("ValidationHandler")
    ]


def check_repeated_keys(bundle: Path) -> list[str]:
    """What train.json and inference.json both state is the same in both, and inference prepares as validation does."""
    train, inference = read(bundle, "train"), read(bundle, "inference")
    missing = [key for key in REPEATED if key not in train or key not in inference]
    found = [f"{key}: must be in train.json and in inference.json" for key in missing]
    for key in sorted(set(train) & set(inference) - set(MAY_DIFFER)):
        if train[key] != inference[key]:
            found.append(f"{key}: train.json has {_short(train[key])}, inference.json has {_short(inference[key])}")
    known = [_step(t) for t in steps(train, "validate#preprocessing")]
    for transform in steps(inference, "preprocessing"):
        if known and _step(transform) not in known and transform.get("_target_") not in ONLY_INFERENCE:
            found.append(f"preprocessing: inference.json has a step that validation lacks, {_short(transform)}")
    return found


def steps(config: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The transforms of a chain, macros put in and lists within it taken apart."""
    parser = ConfigParser(copy.deepcopy(config))
    parser.resolve_macro_and_relative_ids()
    parts = [part if isinstance(part, list) else [part] for part in parser.get(f"{where}#transforms", [])]
    return [step for part in parts for step in part]


def _step(transform: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in transform.items() if key not in ("keys", "_desc_")}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 120 else text[:120] + "…"


def check_overlays(bundle: Path) -> list[str]:
    """Every overlay fits onto what it says it is for; no config has references to nothing, or settings nobody reads."""
    found: list[str] = []
    for overlay in overlays(bundle):
        if not bases(bundle, overlay):
            found.append(f"{overlay}.json: fits onto none of the configs that stand alone")
        missing = [name for name in overlays_before(bundle, overlay) if name not in overlays(bundle)]
        found += [f"{overlay}.json: goes after {name}.json, which is no overlay of this bundle" for name in missing]
    unread: dict[str, list[set[str]]] = {}
    for names in combinations(bundle):
        label = " + ".join(f"{name}.json" for name in names)
        try:
            parser = ConfigParser(read(bundle, *names))
            parser.read_meta(str(config_path(bundle, "metadata")))
            macros = {value[1:].split("#")[0] for _, value in walk(parser.get()) if str(value).startswith("%")}
            parser.resolve_macro_and_relative_ids()
        except (KeyError, IndexError, ValueError, TypeError) as error:
            found.append(f"{label}: does not merge, {root_cause(error)}")
            continue
        reached, dangling = _follow(parser)
        found += [f"{label}: {where} refers to '@{key}', which is not there" for where, key in dangling]
        own = json.loads(config_path(bundle, names[-1]).read_text(encoding="utf-8"))
        keys = {key.lstrip("+") for key in own if "#" not in key and "::" not in key}
        unread.setdefault(names[-1], []).append(keys - reached - macros)
    for name, sets in unread.items():
        found += [f"{name}.json: nothing reads its {key!r}" for key in sorted(set.intersection(*sets))]
    return found


def _follow(parser: ConfigParser) -> tuple[set[str], list[tuple[str, str]]]:
    """Top-level keys that can be reached by reference from where tools start, and references to nothing among them."""
    properties = {**TrainProperties, **InferProperties}.values()
    reached = ENTRY_POINTS | {p[BundlePropertyConfig.ID].split("::")[0] for p in properties}
    queue, dangling = sorted(reached), []
    while queue:
        key = queue.pop()
        for where, value in walk(parser.get(key), key):
            for target in ReferenceResolver.match_refs_pattern(value) if isinstance(value, str) else ():
                if target not in parser:
                    dangling.append((where, target.replace("::", "#")))
                top = target.split("::")[0]
                if top not in reached:
                    reached.add(top)
                    queue.append(top)
    return reached, dangling


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()


@cache
def _locate(target: str) -> Any:
    """The class or function that a ``_target_`` stands for; None if there is none."""
    try:
        return pydoc.locate(str(ConfigComponent({"_target_": target}, locator=_locator()).resolve_module_name()))
    except pydoc.ErrorDuringImport:
        return None


def check_targets(bundle: Path) -> list[str]:
    """Every ``_target_`` exists and takes the arguments that it is given; ``initialize`` does without the package."""
    found: dict[str, None] = {}
    for names in combinations(bundle):
        try:
            config = read(bundle, *names)
        except (KeyError, IndexError, ValueError):
            continue  # check_overlays says so
        found |= dict.fromkeys(_in_initialize(names[-1], config))
        for where, value in walk(config):
            target = value.get("_target_") if isinstance(value, Mapping) else None
            if not isinstance(target, str) or target.startswith("$"):
                continue
            problem = _bad_call(target, value)
            if problem:
                found.setdefault(f"{' + '.join(f'{name}.json' for name in names)}: {where}: {target} {problem}")
    return list(found)


def _in_initialize(name: str, config: Mapping[str, Any]) -> list[str]:
    """Uses of the package in ``initialize``: a shipped bundle's own copy can be found only from ``run`` on."""
    texts = [value for _, value in walk(config.get("initialize", [])) if isinstance(value, str)]
    return [f"{name}.json: initialize: {text!r} belongs into the run ids" for text in texts if "semsynth." in text]


def _bad_call(target: str, config: Mapping[str, Any]) -> str | None:
    """What is wrong with a component's target or its arguments' names, or None."""
    component = _locate(target)
    if component is None:
        return "cannot be found"
    arguments = {key: None for key in config if key not in ConfigComponent.non_arg_keys}
    try:
        signature = inspect.signature(component)
        complete = config.get("_mode_", "default") == "default"
        (signature.bind if complete else signature.bind_partial)(**arguments)
    except TypeError as error:
        return str(error)
    except ValueError:
        return None  # a builtin that tells no signature
    return None
