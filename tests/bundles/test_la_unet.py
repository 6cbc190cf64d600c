"""The bundle la_unet as it is run: stopped and resumed, on several datalists, fine-tuned, on real scans."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_configs import isolated
from semsynth.provenance.seen import Seen
from semsynth.training.checkpoints import newest_checkpoint
from test_real_data import DATA, needs_data

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "la_unet"


def command(*configs: str, run: str = "training", **options: object) -> list[str]:
    files = str([f"configs/{name}.json" for name in configs])
    pairs = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", run, "--config_file", files, *pairs]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, cwd=BUNDLE, env=environment, **streams)


@pytest.mark.slow
def test_sigterm_ends_the_bundles_training_with_143_and_resume_goes_on(tiny_dataset, tmp_path):
    options = {"dataset_dir": tiny_dataset, "run_dir": tmp_path / "run", "val_interval": 100, "epoch_cases": 12}
    process = start(command("train", "tiny", max_epochs=50, **options))
    while not list((tmp_path / "run").glob("checkpoints/checkpoint_*.pt")):
        assert process.poll() is None, process.stdout.read()
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGTERM)
    log = process.communicate(timeout=300)[0]
    assert process.returncode == 143, log[-3000:]
    assert "SIGTERM: the step is finished and a checkpoint saved first" in log
    stopped = newest_checkpoint(tmp_path / "run")
    more = start(command("train", "tiny", max_epochs=stopped["epoch"] + 1, resume=True, **options))
    log = more.communicate(timeout=300)[0]
    assert more.returncode == 0, log[-3000:]
    assert re.search(rf"resumed from .*: epoch {stopped['epoch']}, iteration {stopped['iteration']}", log)
    assert newest_checkpoint(tmp_path / "run")["epoch"] == stopped["epoch"] + 1
    card = json.loads((tmp_path / "run" / "model_final.json").read_text())
    assert len(card["training_cases"]) == 2 and "--resume True" in card["command"]
    assert str(tmp_path) not in json.dumps(card)


def test_bad_input_ends_a_run_with_its_message_and_no_traceback(tmp_path):
    process = start(command("train", "tiny", dataset_dir=tmp_path, run_dir=tmp_path / "run"))
    log = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and "Traceback" not in log
    assert "datalist.json: no such file; make it with 'semsynth prepare'" in log


def train(names: list[str], folder: Path, dataset: Path, **options: object):
    folder.mkdir(exist_ok=True)
    paths = {"dataset_dir": dataset, "run_dir": folder / "run"}
    with isolated(folder):
        workflow = bundle_runs.workflow(BUNDLE, names, "train", paths, **options)
        workflow.run()
        workflow.finalize()
    return workflow


def test_real_and_synthetic_datalists_are_mixed_with_equal_iterations(tiny_dataset, tmp_path):
    datalist = str(tiny_dataset / "datalist.json")
    workflow = train(
        ["train", "tiny"], tmp_path, tiny_dataset, datalists=[datalist, datalist], mixing_ratio=[1, 3], epoch_cases=8
    )
    sampler = workflow.parser.get_parsed_content("train#sampler")
    sources = [sampler.dataset.data[index]["source"] for index in sampler.order(1)]
    assert sorted(sources) == [0] * 2 + [1] * 6
    assert workflow.parser.get_parsed_content("train#trainer").state.iteration == 8


def test_the_cavitys_weights_start_a_training_on_cavity_and_wall(tiny_dataset, tmp_path):
    train(["train", "tiny"], tmp_path / "cavity", tiny_dataset)
    weights = tmp_path / "cavity" / "run" / "model_final.pt"
    workflow = train(["train", "wall", "tiny"], tmp_path / "wall", tiny_dataset, init_weights=str(weights))
    handler = workflow.parser.get_parsed_content("train#handlers#0")
    assert str(handler.path) == str(weights)
    state = torch.load(tmp_path / "wall" / "run" / "model_final.pt", weights_only=True)
    assert state["network.model.2.1.conv.unit0.conv.bias"].shape == (3,)


@needs_data
@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").is_file(), reason="no weights")
def test_a_real_scan_is_segmented_the_same_whatever_the_order_of_its_axes(tmp_path):
    case = json.loads((DATA / "la2018" / "datalist.json").read_text())["validation"][0]
    scan, expert = (nib.load(DATA / "la2018" / case[key]) for key in ("image", "endo"))
    for codes in ("LPS", "PIR"):
        change = nib.orientations.ornt_transform(nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(codes))
        (tmp_path / codes).mkdir()
        nib.save(scan.as_reoriented(change), tmp_path / codes / "scan.nii.gz")
        with isolated(tmp_path):
            paths = {"output_dir": tmp_path / "out"}
            images = str(tmp_path / codes / "*.nii.gz")
            workflow = bundle_runs.ConfigWorkflow(
                config_file=str(BUNDLE / "configs" / "inference.json"), workflow_type="infer", bundle_root=str(BUNDLE),
                images=images, **{key: str(path) for key, path in paths.items()},
            )  # fmt: skip
            workflow.initialize()
            workflow.run()
        found = nib.load(tmp_path / "out" / f"{codes}_seg.nii.gz")
        assert found.shape == scan.as_reoriented(change).shape
        pred, truth = (nib.as_closest_canonical(x).get_fdata() > 0 for x in (found, expert))
        dice = 2 * np.count_nonzero(pred & truth) / (np.count_nonzero(pred) + np.count_nonzero(truth))
        assert dice > 0.85
        if codes == "LPS":
            first = pred
    assert np.array_equal(first, pred)


# ------------------------------------------------------------------------------------ trained by another program


def train_as_monai_label_does(
    tmp_path: Path, dataset: Path, served: Path, run: str, **more: object
) -> dict[str, object]:
    """Cases handed over as a list without names, ``CheckpointLoader`` put in front; the card of what is served then."""
    listed = json.loads((dataset / "datalist.json").read_text())
    entries = {
        split: [{"image": str(dataset / e["image"]), "label": str(dataset / e["label"])} for e in listed[split]]
        for split in ("training", "validation")
    }
    handlers = bundle_runs.read(BUNDLE, "train")["train"]["handlers"]
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(served),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    options = {"train#dataset#data": entries["training"], "validate#dataset#data": entries["validation"],
               "train#trainer#max_epochs": 1, "train#handlers": [loader, *handlers], "served_weights": str(served),
               "dataset_dir": str(tmp_path / "no_such_folder")}  # fmt: skip
    paths = {"run_dir": tmp_path / run}
    training = bundle_runs.workflow(BUNDLE, ("train", "tiny"), "train", paths, **options | more)
    training.run()
    training.finalize()
    return json.loads(served.with_suffix(".json").read_text())


@pytest.fixture
def served(tiny_dataset, tmp_path):
    """Weights with a card, where a program infers from them."""
    training = bundle_runs.workflow(
        BUNDLE, ("train", "tiny"), "train", {"dataset_dir": tiny_dataset, "run_dir": tmp_path / "first"}
    )
    training.run()
    training.finalize()
    folder = tmp_path / "models"
    folder.mkdir()
    for suffix in ("pt", "json"):
        (folder / f"model.{suffix}").write_bytes((tmp_path / "first" / f"model_final.{suffix}").read_bytes())
    return folder / "model.pt"


def test_cases_that_a_program_hands_over_train_the_weights_that_it_infers_with(tiny_dataset, served, tmp_path):
    before = served.read_bytes()
    card = train_as_monai_label_does(tmp_path, tiny_dataset, served, "second", val_interval=9)
    assert served.read_bytes() == (tmp_path / "second" / "model_final.pt").read_bytes() != before
    kept = served.with_name("model_as_shipped.pt")
    assert kept.read_bytes() == before and json.loads(kept.with_suffix(".json").read_text())["file"] == kept.name
    assert card["file"] == "model.pt" and card["datalist_sha256"] is None
    assert Seen.of(served).complete and Seen.of(kept).complete
    second = served.read_bytes()
    train_as_monai_label_does(tmp_path, tiny_dataset, served, "third", val_interval=1)  # with a validation: the best
    assert served.read_bytes() == (tmp_path / "third" / "model.pt").read_bytes() != second
    assert kept.read_bytes() == before, "what was shipped is kept, not what was trained last"


def test_the_card_of_weights_that_a_program_went_on_from_is_part_of_the_new_one(tiny_dataset, served, tmp_path):
    other = {"case": "somebody", "voxels": {"image": "0" * 64}}
    content = json.loads(served.with_suffix(".json").read_text())
    served.with_suffix(".json").write_text(json.dumps(content | {"training_cases": [other]}))
    card = train_as_monai_label_does(tmp_path, tiny_dataset, served, "second", val_interval=9)
    assert other in card["training_cases"] and len(card["training_cases"]) == 3 and card["unknown_parents"] == []
    served.with_suffix(".json").unlink()
    card = train_as_monai_label_does(tmp_path, tiny_dataset, served, "third", val_interval=9)
    assert card["unknown_parents"] == ["model.pt"]


def test_a_training_from_a_datalist_leaves_the_served_weights_alone(tiny_dataset, served, tmp_path):
    before = served.read_bytes()
    training = bundle_runs.workflow(
        BUNDLE, ("train", "tiny"), "train", {"dataset_dir": tiny_dataset, "run_dir": tmp_path / "second"},
        served_weights=str(served),
    )  # fmt: skip
    training.run()
    training.finalize()
    assert served.read_bytes() == before and not served.with_name("model_as_shipped.pt").exists()
