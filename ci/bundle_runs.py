"""What a bundle does: its network, its weights, and a short training, evaluation and synthesis on phantoms."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from bundle_configs import (
    MIN_REASON,
    PROBE,
    WEIGHTS,
    bases,
    config_path,
    isolated,
    overlays,
    read,
    root_cause,
    stages,
    weights_path,
)
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load, verify_net_in_out
from monai.bundle.scripts import _get_fake_spatial_shape

# ------------------------------------------------------------------------------------------------ network and weights


def check_network(bundle: Path) -> list[str]:
    """``verify_net_in_out``: the network of both configs takes and gives what the metadata says.

    As the model zoo calls it, with the tool's own sizes (1 for ``*``, ``n`` and ``p``), and with larger ones.
    """
    found = []
    for name, (sizes, probe) in product(("train", "inference"), (("the tool's sizes", {}), ("larger sizes", PROBE))):
        with tempfile.TemporaryDirectory() as folder, isolated(Path(folder)):
            try:
                verify_net_in_out(
                    net_id="network_def",
                    meta_file=str(config_path(bundle, "metadata")),
                    config_file=str(config_path(bundle, name)),
                    device="cpu",
                    bundle_root=str(bundle),
                    **probe,
                )
            except Exception as error:  # whatever a network raises is the finding
                found.append(f"{name}.json: network_def, {sizes}: {root_cause(error)}")
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


TRAINED = "run/model.pt"  # where training leaves its best weights: never in the bundle, over those that it came with


def check_run(bundle: Path) -> list[str]:
    """One epoch of training, the evaluation and an inference with the trained weights, all tiny and on the phantom."""
    from semsynth.prepare.phantom import write_phantom_cases

    before = _snapshot(bundle)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "cwd").mkdir()
        k = max(int(read(bundle, "train").get("num_classes", 4)) - 2, 0)
        # a generator of label maps is compared with several patients
        cases = 12 if "load_requests" in str(read(bundle, "inference")["dataset"]["data"]) else 3
        dataset = write_phantom_cases(
            work / "data", cases, size=(32,) * 3, spacing=(1.5,) * 3, k=k, progress=False
        ).parent
        found: list[str] = []
        for step in (run_training, run_evaluation, run_inference, run_windows):
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
    tiny = [name for name in overlays(bundle) if name.startswith("tiny") and names[0] in bases(bundle, name)]
    names = [*names, *(name for name in tiny[:1] if name not in names)]
    config = read(bundle, *names)
    overrides = {key: str(value) for key, value in paths.items() if key in config}
    files = [str(config_path(bundle, name)) for name in names]
    result = ConfigWorkflow(config_file=files, workflow_type=kind, bundle_root=str(bundle), **overrides, **options)
    result.initialize()
    return result


def run_earlier_stages(bundle: Path, dataset: Path, work: Path) -> dict[str, Path]:
    """Train what train.json builds on (``train_<stage>.json``), and where it finds it: ``<stage>_weights`` → file."""
    made: dict[str, Path] = {}
    for stage in stages(bundle)[2:]:
        paths = {"dataset_dir": dataset, "run_dir": work / stage} | made  # a stage may build on those before it
        training = workflow(bundle, [stage], "train", paths)
        training.run()
        training.finalize()
        made[f"{stage.removeprefix('train_')}_weights"] = work / stage / "model_final.pt"
    return made


def run_training(bundle: Path, dataset: Path, work: Path) -> list[str]:
    """Train one epoch; the weights and whatever else it writes go to ``work``."""
    paths = {"dataset_dir": dataset, "run_dir": work / "run", "weights": work / "none.pt"}
    paths |= run_earlier_stages(bundle, dataset, work)
    training = workflow(bundle, ["train"], "train", paths)
    missing = training.check_properties() or []
    training.run()
    training.finalize()
    found = [f"train.json: check_properties finds fault with {name!r}" for name in missing]
    if not (work / TRAINED).is_file():
        return [*found, f"training left no {TRAINED}"]
    torch.load(work / TRAINED, map_location="cpu", weights_only=True)
    return found


def run_evaluation(bundle: Path, dataset: Path, work: Path) -> list[str]:
    """Evaluate the trained weights; something must be written."""
    base = bases(bundle, "evaluate")[0]
    paths = {"dataset_dir": dataset, "weights": work / TRAINED}
    paths |= dict.fromkeys(("run_dir", "output_dir"), work / "evaluation")
    evaluation = workflow(bundle, [base, "evaluate"], "train" if base == "train" else "infer", paths)
    evaluation.run()
    evaluation.finalize()
    written = [path for path in (work / "evaluation").rglob("*") if path.is_file()]
    return [] if written else ["evaluate.json wrote nothing"]


def run_windows(bundle: Path, dataset: Path, work: Path) -> list[str]:
    """Infer in overlapping windows, where the bundle has the overlay."""
    if "sliding_window" not in overlays(bundle):
        return []
    return run_inference(bundle, dataset, work, ["inference", "sliding_window"], roi_size=[24, 24, 24])


def run_inference(
    bundle: Path, dataset: Path, work: Path, names: Sequence[str] = ("inference",), **options: Any
) -> list[str]:
    """Infer with the trained weights; a generator's output is checked against its label maps."""
    output = work / "_".join(("output", *names))
    paths = {"dataset_dir": dataset, "output_dir": output, "weights": work / TRAINED}
    inference = workflow(bundle, names, "infer", paths, **options)
    found = [f"inference.json: check_properties finds fault with {n!r}" for n in inference.check_properties() or []]
    inference.run()
    inference.finalize()
    config = ConfigParser(read(bundle, "inference"))
    if str(config.get("writer#_target_")).endswith(".SyntheticWriter"):
        entries = inference.parser.get_parsed_content("dataset#data")
        return found + synthetic_findings(output, {str(e["case"]): Path(e["image"]) for e in entries})
    if str(config.get("writer#_target_")).endswith(".MapWriter"):
        entries = inference.parser.get_parsed_content("dataset#data")
        return found + map_findings(output, [str(e["case"]) for e in entries], int(config["num_classes"]))
    handlers = config.get("handlers", [])
    if any(str(handler.get("_target_")).endswith(".SegmentationWriter") for handler in handlers):
        entries = inference.parser.get_parsed_content("dataset#data")
        return found + segmentation_findings(output, {str(e["case"]): Path(e["image"]) for e in entries})
    written = [path for path in output.rglob("*") if path.is_file()]
    return found if written else [*found, "inference.json wrote nothing into output_dir"]


def map_findings(output: Path, cases: Sequence[str], num_classes: int) -> list[str]:
    """What is wrong with the output folder of a generator of label maps: each map, its record, and the datalist."""
    datalist = output / "datalist.json"
    if not datalist.is_file():
        return ["datalist.json was not written"]
    listed = {entry["case"]: entry for entry in json.loads(datalist.read_text(encoding="utf-8"))["testing"]}
    found = [f"datalist.json does not list {case}" for case in cases if case not in listed]
    for case in cases:
        path, about = output / f"{case}.nii.gz", output / f"{case}.json"
        if not path.is_file() or not about.is_file():
            found.append(f"{path.name} or {about.name} was not written")
            continue
        values = np.unique(np.asanyarray(nib.load(path).dataobj))
        if not np.isin(values, np.arange(num_classes)).all() or len(values) < 2:
            found.append(f"{path.name}: holds the values {values.tolist()}, needs classes of 0 to {num_classes - 1}")
        if json.loads(about.read_text(encoding="utf-8")).get("drawn") is not True:
            found.append(f"{about.name}: does not say that the map was drawn")
    return found


def segmentation_findings(output: Path, images: Mapping[str, Path]) -> list[str]:
    """What is wrong with a segmentation network's output folder: each case's label map on its image's grid."""
    found = []
    for case, image in images.items():
        path = output / f"{case}_seg.nii.gz"
        if not path.is_file():
            found.append(f"{path.name} was not written")
            continue
        label, source = nib.load(path), nib.load(image)
        if label.shape != source.shape or not np.allclose(label.affine, source.affine, atol=1e-3):
            found.append(f"{path.name}: shape or affine is not that of its image")
        values = np.unique(np.asanyarray(label.dataobj))
        if not np.array_equal(values, values.astype(np.uint8)):
            found.append(f"{path.name}: holds values that are no class indices")
    return found


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
