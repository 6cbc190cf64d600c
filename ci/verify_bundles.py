"""Check that bundles are what MONAI and this project expect of them; no network is needed.

    python ci/verify_bundles.py [NAME ...] [--bundles DIR] [--allow-missing-weights]

Prints one line per bundle and check, and exits with 1 if anything was found. Each check is a function that takes the
bundle's folder and returns findings, one sentence each; ``CHECKS`` lists them.

A network that TorchScript cannot hold (a sampling loop, for example) is let off the export by its ``metadata.json``::

    "export_exemption": "the reason, in a sentence that the bundle's README repeats"
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import pydoc
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow, ckpt_export, load, verify_net_in_out
from monai.bundle.config_item import ComponentLocator
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.scripts import _get_fake_spatial_shape
from monai.utils import BundleProperty, BundlePropertyConfig, set_determinism

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = Path(__file__).resolve().parent / "schema"
MAX_WEIGHTS = 12_000_000

FILES = (
    "LICENSE",
    "docs/README.md",
    "docs/data_license.txt",
    "configs/logging.conf",
    *(f"configs/{n}.json" for n in ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "tiny")),
)
WEIGHTS = "models/model.pt"
METADATA_FIELDS = ("name", "changelog", "intended_use", "references", "data_source", "data_type")
PINS = ("monai_version", "pytorch_version", "numpy_version")
PIN = re.compile(r"\d+(\.\d+)+([a-z]+\d+)?")
MIN_REASON = 20

# beyond what MONAI itself requires: what other tools of its (federated learning, Label) and this project reach for
TRAIN_IDS = (
    "run_dir", "weights", "train#dataset#data", "train#handlers", "validate#evaluator", "validate#dataset",
    "validate#dataset#data", "validate#handlers", "val_interval", "network_def", "network", "training", "run",
)  # fmt: skip
INFERENCE_IDS = ("output_dir", "weights", "network", "preprocessing", "postprocessing", "run")
ENTRY_POINTS = {"_desc_", "_meta_", "imports", "initialize", "run", "training", "finalize"}

REPEATED = ("bundle_root", "dataset_dir", "device", "network", "network_def", "weights")
MAY_DIFFER = {
    "_desc_": "each file describes itself",
    "imports": "each imports what it uses",
    "initialize": "each has its own steps",
    "run": "each has its own steps",
    "num_workers": "training prepares batches in the background, inference takes one case at a time",
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


def overlays(bundle: Path) -> list[str]:
    """Names of the configs that are merged onto train.json or inference.json."""
    return [p.stem for p in sorted(bundle.glob("configs/*.json")) if p.stem not in ("metadata", "train", "inference")]


def bases(bundle: Path, overlay: str) -> list[str]:
    """What an overlay goes onto: train and inference as far as its ``_desc_`` names them, else the first that fits."""
    about = str(json.loads(config_path(bundle, overlay).read_text(encoding="utf-8")).get("_desc_", ""))
    named = [base for base in ("train", "inference") if re.search(rf"(?<![\w.]){base}\.json", about)]
    if named:
        return named
    for base in ("train", "inference"):
        try:
            read(bundle, base, overlay)
        except (KeyError, IndexError, ValueError):
            continue
        return [base]
    return []


def combinations(bundle: Path) -> Iterator[tuple[str, ...]]:
    """train, inference, and every overlay on each of its bases."""
    yield ("train",)
    yield ("inference",)
    for overlay in overlays(bundle):
        yield from ((base, overlay) for base in bases(bundle, overlay))


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


# ------------------------------------------------------------------------------------------- files and what they say


def check_files(bundle: Path) -> list[str]:
    """The files that every bundle has are there and not empty."""
    missing = [f"{name}: no such file" for name in FILES if not (bundle / name).is_file()]
    return missing + [f"{n}: is empty" for n in FILES if (bundle / n).is_file() and not (bundle / n).stat().st_size]


def check_weights_file(bundle: Path) -> list[str]:
    """``models/model.pt`` is there, and light enough for the tree."""
    size = weights_path(bundle).stat().st_size
    return [f"{WEIGHTS}: {size / 1e6:.1f} MB, needs to be under {MAX_WEIGHTS / 1e6:g} MB"] if size > MAX_WEIGHTS else []


def weights_path(bundle: Path) -> Path:
    """The bundle's weights.

    Raises:
        WeightsMissingError: when there are none.
    """
    if not (bundle / WEIGHTS).is_file():
        raise WeightsMissingError(f"{WEIGHTS}: weights not there yet")
    return bundle / WEIGHTS


def check_metadata(bundle: Path) -> list[str]:
    """``metadata.json`` follows MONAI's schema, has the further fields of this project, and pins versions exactly."""
    metadata = json.loads(config_path(bundle, "metadata").read_text(encoding="utf-8"))
    schema = SCHEMAS / Path(str(metadata.get("schema", "none"))).name
    if not schema.is_file():
        return [f"metadata.json: schema must be one of {sorted(p.name for p in SCHEMAS.iterdir())}, got {schema.name}"]
    validator = jsonschema.Draft201909Validator(json.loads(schema.read_text(encoding="utf-8")))
    errors = validator.iter_errors(metadata)
    found = [f"{'#'.join(map(str, e.absolute_path)) or 'top level'}: {e.message}" for e in errors]
    found += [f"{field}: must be there and not empty" for field in METADATA_FIELDS if not metadata.get(field)]
    version = metadata.get("version")
    if version not in (metadata.get("changelog") or {}):
        found.append(f"changelog: has no entry for version {version}")
    if metadata.get("name") != bundle.name:
        found.append(f"name: must be the folder's, {bundle.name}, got {metadata.get('name')}")
    pins = {name: metadata.get(name) for name in PINS} | (metadata.get("required_packages_version") or {})
    found += [f"{n}: must be an exact version, got {v!r}" for n, v in pins.items() if not PIN.fullmatch(str(v))]
    tensors = metadata.get("network_data_format", {})
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        tensor = tensors.get(side, {}).get(name)
        if tensor is None:
            found.append(f"network_data_format#{side}: needs {name!r}, the name that MONAI's tools look for")
        elif len(tensor.get("channel_def", {})) != tensor.get("num_channels"):
            found.append(f"network_data_format#{side}#{name}: channel_def must name each of its num_channels channels")
    if "export_exemption" in metadata and len(str(metadata["export_exemption"])) < MIN_REASON:
        found.append("export_exemption: must give the reason in a sentence")
    return [f"metadata.json: {text}" for text in found]


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
        if str(handler.get("_target_")).endswith("ValidationHandler")
    ]


def check_repeated_keys(bundle: Path) -> list[str]:
    """What train.json and inference.json both state is the same in both, and inference prepares as validation does."""
    train, inference = read(bundle, "train"), read(bundle, "inference")
    missing = [key for key in REPEATED if key not in train or key not in inference]
    found = [f"{key}: must be in train.json and in inference.json" for key in missing]
    for key in sorted(set(train) & set(inference) - set(MAY_DIFFER)):
        if train[key] != inference[key]:
            found.append(f"{key}: train.json has {_short(train[key])}, inference.json has {_short(inference[key])}")
    known = [_step(t) for t in ConfigParser(train).get("validate#preprocessing#transforms", [])]
    for transform in ConfigParser(inference).get("preprocessing#transforms", []):
        if known and _step(transform) not in known:
            found.append(f"preprocessing: inference.json has a step that validation lacks, {_short(transform)}")
    return found


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
            found.append(f"{overlay}.json: fits neither onto train.json nor onto inference.json")
    unread: dict[str, list[set[str]]] = {}
    for names in combinations(bundle):
        label = " + ".join(f"{name}.json" for name in names)
        try:
            parser = ConfigParser(read(bundle, *names))
            parser.read_meta(str(config_path(bundle, "metadata")))
            parser.resolve_macro_and_relative_ids()
        except (KeyError, IndexError, ValueError, TypeError) as error:
            found.append(f"{label}: does not merge, {root_cause(error)}")
            continue
        reached, dangling = _follow(parser)
        found += [f"{label}: {where} refers to '@{key}', which is not there" for where, key in dangling]
        own = json.loads(config_path(bundle, names[-1]).read_text(encoding="utf-8"))
        keys = {key.lstrip("+") for key in own if "#" not in key and "::" not in key}
        unread.setdefault(names[-1], []).append(keys - reached)
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


# ------------------------------------------------------------------------------------------------ network and weights


def check_network(bundle: Path) -> list[str]:
    """``verify_net_in_out``: the network of both configs takes and gives what the metadata says."""
    found = []
    for name in ("train", "inference"):
        with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)):
            try:
                verify_net_in_out(
                    net_id="network_def",
                    meta_file=str(config_path(bundle, "metadata")),
                    config_file=str(config_path(bundle, name)),
                    device="cpu",
                    **PROBE,
                )
            except Exception as error:  # whatever a network raises is the finding
                found.append(f"{name}.json: network_def: {root_cause(error)}")
    return found


def network_of(bundle: Path, name: str = "inference") -> torch.nn.Module:
    """``network_def`` as the config builds it, without weights."""
    parser = ConfigParser()
    parser.read_config(str(config_path(bundle, name)))
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network.eval()


def probe_input(bundle: Path) -> torch.Tensor:
    """A random input of the network as its metadata describes it; class indices where that calls it a segmentation."""
    about = read(bundle, "metadata")["network_data_format"]["inputs"]["image"]
    shape = (1, about["num_channels"], *_get_fake_spatial_shape(about["spatial_shape"], **PROBE))
    low, high = about["value_range"] or (0, 1)
    generator = torch.Generator().manual_seed(0)
    if about["format"] in ("segmentation", "labels"):
        return torch.randint(int(low), int(high) + 1, shape, generator=generator).float()
    return torch.rand(shape, generator=generator) * (high - low) + low


def check_export(bundle: Path) -> list[str]:
    """``ckpt_export`` makes a TorchScript module that computes what the network does (on random weights if need be)."""
    if len(str(read(bundle, "metadata").get("export_exemption", ""))) >= MIN_REASON:
        return []
    with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)), torch.no_grad():
        torch.manual_seed(0)
        network = network_of(bundle)
        checkpoint, exported = bundle / WEIGHTS, Path(folder) / "model.ts"
        if not checkpoint.is_file():
            checkpoint = Path(folder) / "random.pt"
            torch.save(network.state_dict(), checkpoint)
        try:
            network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
            ckpt_export(
                net_id="network_def",
                filepath=str(exported),
                ckpt_file=str(checkpoint),
                meta_file=str(config_path(bundle, "metadata")),
                config_file=str(config_path(bundle, "inference")),
            )
            image = probe_input(bundle)
            ours, theirs = network(image), torch.jit.load(str(exported), map_location="cpu").eval()(image)
        except Exception as error:  # TorchScript's errors have no common class
            return [f"ckpt_export: {root_cause(error)}; mend it or give metadata.json an 'export_exemption'"]
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-4, rtol=0):
        return ["ckpt_export: the exported module's output differs from the network's by more than 1e-4"]
    return []


def check_load(bundle: Path) -> list[str]:
    """``monai.bundle.load`` gives the network with every weight of ``models/model.pt``.

    ``load`` copies what fits and passes over the rest, so each tensor is compared. It goes to the network only where
    the weights' file is missing.
    """
    stored = torch.load(weights_path(bundle), map_location="cpu", weights_only=True)
    found = []
    for name in ("train", "inference"):
        with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)):
            try:
                where = {"bundle_dir": str(bundle.parent), "source": "github", "device": "cpu"}
                network = load(bundle.name, workflow_type=name, **where)
            except Exception as error:  # whatever load stumbles over is the finding
                found.append(f"load(workflow_type={name!r}): {root_cause(error)}")
                continue
        if not isinstance(network, torch.nn.Module):
            found.append(f"load(workflow_type={name!r}): gives a {type(network).__name__}, not the network")
            continue
        found += [f"load(workflow_type={name!r}): {text}" for text in compare_weights(network.state_dict(), stored)]
    return found


def compare_weights(loaded: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> list[str]:
    """Findings where a network's tensors are not the stored ones, cast to the network's types."""
    found = [f"{key} has no weights in {WEIGHTS}" for key in loaded if key not in stored]
    found += [f"{key} of {WEIGHTS} is not in the network" for key in stored if key not in loaded]
    for key in loaded:
        if key in stored and loaded[key].shape != stored[key].shape:
            found.append(f"{key} is {tuple(loaded[key].shape)}, {WEIGHTS} has {tuple(stored[key].shape)}")
        elif key in stored and not torch.equal(loaded[key].cpu(), stored[key].to(loaded[key].dtype)):
            found.append(f"{key} does not hold the values of {WEIGHTS}")
    return found


# ---------------------------------------------------------------------------------------------------------- real runs


def check_run(bundle: Path) -> list[str]:
    """One epoch of training, the evaluation and an inference with the trained weights, all tiny and on the phantom."""
    from semsynth.phantom import write_phantom_cases

    before = _snapshot(bundle)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "cwd").mkdir()
        k = max(int(read(bundle, "train").get("num_classes", 4)) - 2, 0)
        dataset = write_phantom_cases(work / "data", 3, size=(32,) * 3, spacing=(3.0,) * 3, k=k, progress=False).parent
        found: list[str] = []
        for step in (run_training, run_evaluation, run_inference):
            with isolated(work / "cwd"):
                try:
                    found += step(bundle, dataset, work)
                except Exception as error:  # a run may fail anywhere, and the next ones need what it was to write
                    found.append(f"{step.__name__}: {root_cause(error)}")
            if found:
                break
        found += [f"wrote {p.name} into the working directory" for p in sorted((work / "cwd").iterdir())]
    after = _snapshot(bundle)
    return found + [f"wrote {name} inside the bundle" for name in sorted(after) if after[name] != before.get(name)]


def _snapshot(bundle: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in bundle.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(bundle)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def workflow(bundle: Path, names: Sequence[str], kind: str, paths: Mapping[str, Any], **options: Any) -> ConfigWorkflow:
    """A workflow of merged configs, initialised, with those ``paths`` set that the configs have."""
    if "tiny" not in names and names[0] in bases(bundle, "tiny"):
        names = [*names, "tiny"]
    config = read(bundle, *names)
    overrides = {key: str(value) for key, value in paths.items() if key in config}
    files = [str(config_path(bundle, name)) for name in names]
    result = ConfigWorkflow(config_file=files, workflow_type=kind, bundle_root=str(bundle), **overrides, **options)
    result.initialize()
    return result


def run_training(bundle: Path, dataset: Path, work: Path) -> list[str]:
    """Train one epoch; the weights and whatever else it writes go to ``work``."""
    paths = {"dataset_dir": dataset, "run_dir": work / "run", "weights": work / "weights" / "model.pt"}
    training = workflow(bundle, ["train"], "train", paths)
    missing = training.check_properties() or []
    training.run()
    training.finalize()
    found = [f"train.json: check_properties finds fault with {name!r}" for name in missing]
    if not paths["weights"].is_file():
        return [*found, "training left no file at 'weights'"]
    torch.load(paths["weights"], map_location="cpu", weights_only=True)
    return found


def run_evaluation(bundle: Path, dataset: Path, work: Path) -> list[str]:
    """Evaluate the trained weights; something must be written."""
    base = bases(bundle, "evaluate")[0]
    paths = {"dataset_dir": dataset, "weights": work / "weights" / "model.pt"}
    paths |= dict.fromkeys(("run_dir", "output_dir"), work / "evaluation")
    evaluation = workflow(bundle, [base, "evaluate"], "train" if base == "train" else "infer", paths)
    evaluation.run()
    evaluation.finalize()
    written = [path for path in (work / "evaluation").rglob("*") if path.is_file()]
    return [] if written else ["evaluate.json wrote nothing"]


def run_inference(bundle: Path, dataset: Path, work: Path) -> list[str]:
    """Infer with the trained weights; a generator's output is checked against its label maps."""
    output = work / "output"
    paths = {"dataset_dir": dataset, "output_dir": output, "weights": work / "weights" / "model.pt"}
    inference = workflow(bundle, ["inference"], "infer", paths)
    found = [f"inference.json: check_properties finds fault with {n!r}" for n in inference.check_properties() or []]
    inference.run()
    inference.finalize()
    handlers = ConfigParser(read(bundle, "inference")).get("handlers", [])
    if any(str(handler.get("_target_")).endswith(".SyntheticWriter") for handler in handlers):
        entries = inference.parser.get_parsed_content("dataset#data")
        return found + synthetic_findings(output, {str(e["case"]): Path(e["image"]) for e in entries})
    written = [path for path in output.rglob("*") if path.is_file()]
    return found if written else [*found, "inference.json wrote nothing into output_dir"]


def synthetic_findings(output: Path, label_maps: Mapping[str, Path]) -> list[str]:
    """What is wrong with a generator's output folder: each case's volume, the JSON beside it, and the datalist."""
    datalist = output / "datalist.json"
    if not datalist.is_file():
        return ["datalist.json was not written"]
    entries = {entry["case"]: entry for entry in json.loads(datalist.read_text(encoding="utf-8"))["training"]}
    found = [f"datalist.json lists {case}, which was not asked for" for case in sorted(set(entries) - set(label_maps))]
    for case, label_map in label_maps.items():
        path = output / f"{case}_synthetic.nii.gz"
        about = output / f"{case}_synthetic.json"
        if not path.is_file() or not about.is_file():
            found.append(f"{path.name} or {about.name} was not written")
            continue
        image, label = nib.load(path), nib.load(label_map)
        if image.shape != label.shape or not np.allclose(image.affine, label.affine, atol=1e-3):
            found.append(f"{path.name}: shape or affine is not that of its label map")
        if not np.isfinite(np.asanyarray(image.dataobj)).all():
            found.append(f"{path.name}: holds values that are not finite")
        if json.loads(about.read_text(encoding="utf-8")).get("synthetic") is not True:
            found.append(f"{about.name}: does not say that the image is synthetic")
        entry = entries.get(case, {})
        if entry.get("image") != path.name or entry.get("synthetic") is not True:
            found.append(f"datalist.json: does not list {path.name} as synthetic")
        elif not (output / entry["label"]).resolve().samefile(label_map):
            found.append(f"datalist.json: {case} has another label map than it was made from")
    return found


# ------------------------------------------------------------------------------------------------------------ command

CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "files": check_files,
    "weights_file": check_weights_file,
    "metadata": check_metadata,
    "properties": check_properties,
    "repeated_keys": check_repeated_keys,
    "overlays": check_overlays,
    "targets": check_targets,
    "network": check_network,
    "export": check_export,
    "load": check_load,
    "run": check_run,
}


def find_bundles(folder: Path) -> list[Path]:
    """The bundles in a folder: those that have metadata."""
    return sorted(path.parents[1] for path in folder.glob("*/configs/metadata.json"))


def verify(bundle: Path, *, allow_missing_weights: bool = False) -> list[str]:
    """Make every check on one bundle, print a line for each, and return all findings."""
    everything = []
    for name, check in CHECKS.items():
        state = "ok"
        try:
            found = check(bundle)
        except WeightsMissingError as error:
            # one finding is enough: the checks that need the weights are left out
            found = [] if allow_missing_weights or name != "weights_file" else [str(error)]
            state = f"skipped ({error})"
        except Exception as error:  # a bundle so broken that the check cannot be made
            found = [f"the check cannot be made, {root_cause(error)}"]
        print(f"{bundle.name:14} {name:14} {f'{len(found)} finding(s)' if found else state}", flush=True)
        everything += [f"{bundle.name}: {name}: {text}" for text in found]
    return everything


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bundles to check; all if none is named")
    parser.add_argument("--bundles", type=Path, default=ROOT / "bundles", metavar="DIR", help="where they are")
    parser.add_argument("--allow-missing-weights", action="store_true", help=f"do not mind a bundle without {WEIGHTS}")
    options = parser.parse_args()
    root = options.bundles.resolve()
    chosen = [root / name for name in options.names] or find_bundles(root)
    unknown = [path.name for path in chosen if not config_path(path, "metadata").is_file()]
    if unknown or not chosen:
        print(f"{root}: no bundle {', '.join(unknown) or 'found'}; a bundle has configs/metadata.json", file=sys.stderr)
        return 1
    found = [text for bundle in chosen for text in verify(bundle, allow_missing_weights=options.allow_missing_weights)]
    print("\n".join(["", f"{len(found)} finding(s)", *(f"  - {text}" for text in found)]) if found else "\nno findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
