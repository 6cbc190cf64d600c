"""med_lsdm's bundle: the paper's data sets in their form, and what its overlays train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import window_borders
from monai.bundle import ConfigParser, ConfigWorkflow
from semsynth.cli.main import main
from semsynth.evaluation.judge import targets_of
from semsynth.networks.frozen import FrozenSegmenter
from semsynth.prepare.composite import CompositeLabel
from semsynth.prepare.phantom import make_phantom
from semsynth.training.latents import _encoded
from tiny_diffusion import med_lsdm

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "med_lsdm"
# in-plane size and slices of the files, their voxels, and classes: small ones in the form of Med-LSDM's table 1
FORMS: dict[str, dict[str, Any]] = {
    "autopet": {"spacing": (2.0, 2.0, 3.0), "classes": 37, "split": "0.9,0.1", "image": "ct", "window": "-1000,1000"},
    "synthrad": {"spacing": (1.0, 1.0, 1.0), "classes": 31, "split": "0.9,0.1", "image": "mr", "window": None},
    "duke_breast": {"spacing": (2.0, 2.0, 3.0), "classes": 3, "split": "0.9,0.1", "image": "mr", "window": None},
}


def write(path: Path, data: np.ndarray, spacing: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([*spacing, 1.0])), path)


def raw_cases(folder: Path, name: str, *, cases: int = 10, unlabelled: int = 0) -> None:
    """``<folder>/<case>/{ct, mr}.nii.gz`` with ``map.nii.gz``, and images without maps in ``<folder>_more``."""
    form = FORMS[name]
    for i in range(cases + unlabelled):
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, form["classes"] + 1, (6, 6, 4)).astype(np.uint8)
        label = coarse.repeat(6, 0).repeat(6, 1).repeat(8, 2)
        image = (label * 20.0 - 500 + rng.normal(0, 30, label.shape)).astype(np.int16)
        root = folder if i < cases else folder.with_name(f"{folder.name}_more")
        write(root / f"case_{i:02d}" / f"{form['image']}.nii.gz", image, form["spacing"])
        if i < cases:
            write(root / f"case_{i:02d}" / "map.nii.gz", label, form["spacing"])


def prepared(tmp_path: Path, name: str) -> Path:
    """The data set as the docs' command prepares it, at a size for tests."""
    form, raw, out = FORMS[name], tmp_path / "raw", tmp_path / "data"
    more = 2 if name == "duke_breast" else 0
    raw_cases(raw, name, unlabelled=more)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"structure {i}" for i in range(1, form["classes"] + 1)))
    command = ["prepare-maps", "--input", f"{raw}/*/{form['image']}.nii.gz", "--label", f"{raw}/*/map.nii.gz",
               "--output", str(out), "--classes", str(names), "--size", "32,32,32", "--fractions", form["split"],
               "--spacing", ",".join(map(str, form["spacing"]))]  # fmt: skip
    command += ["--window", form["window"]] if form["window"] else []
    command += ["--unlabelled", f"{raw}_more/*/{form['image']}.nii.gz"] if more else []
    assert main(command) == 0
    return out


def run(names: list[str], kind: str = "train", **options: Any) -> ConfigWorkflow:
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    paths = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    made = ConfigWorkflow(config_file=files, workflow_type=kind, bundle_root=str(BUNDLE), **paths)
    made.initialize()
    made.run()
    made.finalize()
    return made


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i else []) for i, name in enumerate(FORMS)]
)
def test_the_papers_data_sets_are_prepared_and_trained_on(name: str, tmp_path: Path) -> None:
    data = prepared(tmp_path, name)
    content = json.loads((data / "datalist.json").read_text())
    assert content["num_classes"] == FORMS[name]["classes"] + 1
    assert [len(content[split]) for split in ("training", "validation")] == [9, 1]
    assert len(content.get("unlabelled", [])) == (2 if name == "duke_breast" else 0)
    common = {"dataset_dir": data, "epoch_cases": 2, "max_epochs": 1, "cache_rate": 0.0}
    first = run(["train_vqgan", f"{name}_vqgan", "tiny_vqgan"], run_dir=tmp_path / "vqgan", **common)
    seen = first.parser.get_parsed_content("train#dataset#data")
    assert len(seen) == (11 if name == "duke_breast" else 9)
    run(
        ["train", name, "tiny"], run_dir=tmp_path / "run", vqgan_weights=tmp_path / "vqgan" / "model_final.pt", **common
    )
    given = {"dataset_dir": data, "weights": tmp_path / "run" / "model.pt", "output_dir": tmp_path / "out"}
    run(["inference", name, "tiny"], "infer", **given)
    reconstructed = given | {"output_dir": tmp_path / "reconstructed"}
    made = run(["inference", name, "inference_vqgan", "tiny"], "infer", **reconstructed)
    autoencoder = made.parser.get_parsed_content("network_def").autoencoder
    case = content["validation"][0]["case"]
    image = torch.from_numpy(nib.load(data / case / "image.nii.gz").get_fdata()).float()[None, None]
    with torch.no_grad():
        wanted = autoencoder((image - image.min()) / (image.max() - image.min())).clamp(0, 1)[0, 0]
    found = nib.load(tmp_path / "reconstructed" / f"{case}_synthetic.nii.gz").get_fdata()
    assert np.allclose(found, wanted, atol=2e-2)
    volumes = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(volumes) == 1 and nib.load(volumes[0]).shape == (32, 32, 32)


def test_overlays_state_the_classes_and_sizes_of_table_1() -> None:
    for name, form in FORMS.items():
        overlay = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
        assert overlay["num_classes"] == form["classes"] + 1 and overlay["patch_size"] == [256, 256, 32]
        # left and right are classes of their own where there are many
        assert overlay["flip_prob"] == (0.5 if name == "duke_breast" else 0.0)


STAGES = [
    ((), ()), (("tiny",), ("tiny_vqgan",)), (("paper",), ("paper_vqgan",)), (("ct",), ("ct_vqgan",)),
    *(((name,), (f"{name}_vqgan",)) for name in FORMS),
    *((order, tuple(f"{part}_vqgan" for part in order)) for order in (("autopet", "paper"), ("paper", "autopet"))),
]  # fmt: skip


@pytest.mark.parametrize(("second", "first"), STAGES)
def test_both_stages_have_the_same_vqgan(second: tuple[str, ...], first: tuple[str, ...]) -> None:
    def config(*names: str) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
        return parser

    stage = config("train_vqgan", *first)
    for base in ("train", "inference"):
        whole = config(base, *second)
        assert whole.get("network_def#autoencoder") == stage.get("network_def")
        assert ("autopet" in second or "ct" in second) != whole.get("network_def#autoencoder#tanh")
    # and the second looks for it where the first puts it
    made, looked = (config(*names) for names in (("train_vqgan", *first), ("train", *second)))
    if "tiny" not in second and second != ("paper",) and second != ():
        run_dir = str(made.get("run_dir")).split("'")[1]
        assert str(looked.get("vqgan_weights")).split("'")[1] == f"{run_dir}/model_final.pt"
        assert str(looked.get("run_dir")).split("'")[1] not in ("/runs/train", run_dir)


def test_classes_above_127_reach_the_denoiser_as_what_they_are(tmp_path: Path) -> None:
    network = med_lsdm(of_denoiser={"num_classes": 201})
    label = torch.randint(120, 201, (1, 16, 16, 16)).float()
    made = _encoded(network, {"image": torch.rand(1, 16, 16, 16), "label": label})
    assert torch.equal(made["label"].float(), label)
    assert made["style"].numel() == 0


def test_the_papers_settings_make_the_papers_networks() -> None:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "autopet", "paper")])
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert sum(p.numel() for p in network.denoiser.parameters()) == pytest.approx(37.9e6, rel=0.03)
    assert sum(p.numel() for p in network.autoencoder.encoder.parameters()) == pytest.approx(441.5e3, rel=0.05)
    assert sum(p.numel() for p in network.autoencoder.decoder.parameters()) == pytest.approx(948.6e3, rel=0.05)
    assert network.schedule.prediction == "epsilon" and not network.standardize
    assert parser.get_parsed_content("accumulation_steps") == 2 and parser.get_parsed_content("learning_rate") == 3e-4


def test_a_vqgan_that_is_resumed_is_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    data = prepared(tmp_path, "duke_breast")
    common = {"dataset_dir": data, "epoch_cases": 2, "cache_rate": 0.0, "loss#adaptive_interval": 3, "val_interval": 4}
    names = ["train_vqgan", "duke_breast_vqgan", "tiny_vqgan"]
    run(names, run_dir=tmp_path / "once", max_epochs=4, checkpoint_interval=1, **common)
    stopped = run_dir = tmp_path / "twice"
    schedule = {"lr_scheduler#epochs": 4, "d_lr_scheduler#epochs": 4}
    run(names, run_dir=stopped, max_epochs=2, checkpoint_interval=1, **schedule, **common)
    run(names, run_dir=run_dir, max_epochs=4, checkpoint_interval=1, resume=True, **common)
    once, twice = (torch.load(tmp_path / n / "model_final.pt", weights_only=True) for n in ("once", "twice"))
    assert once.keys() == twice.keys()
    different = [name for name in once if not torch.equal(once[name], twice[name])]
    assert not different
    assert int(once["codebook.batches"]) == 8


@pytest.mark.slow
def test_the_example_of_totalsegmentators_maps_runs(tmp_path: Path) -> None:
    """With maps that are there already, and tiny networks; the commands are the example's."""
    for patient in range(4):
        for visit in range(2):
            random = np.random.default_rng([patient, visit])
            label = random.integers(0, 118, (6, 6, 6)).astype(np.uint8).repeat(8, 0).repeat(8, 1).repeat(4, 2)
            folder = tmp_path / "scans" / f"P{patient:03d}_{visit}"
            write(folder / "totalseg.nii.gz", label, (1.5, 1.5, 3.0))
            write(folder / "ct.nii.gz", (label * 10.0 - 600).astype(np.int16), (1.5, 1.5, 3.0))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, words in (("python", ""), ("semsynth", "-m semsynth ")):
        (bin_folder / name).write_text(f'#!/bin/bash\nexec {sys.executable} {words}"$@"\n')
        (bin_folder / name).chmod(0o755)
    told = {"SCANS": str(tmp_path / "scans"), "TINY": "1", "EXTRA": "--max_epochs 1 --epoch_cases 2"}
    script = BUNDLE.parents[1] / "examples" / "totalsegmentator_ct.sh"
    done = subprocess.run(["bash", str(script), str(tmp_path / "out")], capture_output=True, text=True,
                          env={**os.environ, **told, "PATH": f"{bin_folder}:{os.environ['PATH']}"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "out" / "data" / "datalist.json").read_text())
    assert content["num_classes"] == 118 and content["classes"]["51"] == "heart"
    assert len(list((tmp_path / "out" / "volumes").glob("*.nii.gz"))) == len(content["validation"]) == 2


def judge_of(*overlays: str) -> FrozenSegmenter:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{part}.json") for part in ("inference", "evaluate", *overlays)])
    parser["bundle_root"] = str(BUNDLE)
    return parser.get_parsed_content("judge")


def test_other_data_are_not_scored_by_the_judge_of_the_atrium(caplog: pytest.LogCaptureFixture) -> None:
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    atrium, organs = ({int(i): name for i, name in metadata[key].items()} for key in ("classes", "classes_ct"))
    judge = judge_of()
    assert judge.name == "la_unet_judge" and targets_of(judge, atrium) == {1: 1}
    assert targets_of(judge, {0: "background", 4: "Endo"}) == {1: 4}, "by name, wherever it stands"
    assert targets_of(judge, {}) == {1: 1}, "of a data set that does not name its classes"
    assert caplog.text == ""
    assert targets_of(judge, organs) == {}
    assert "la_unet_judge segments endo, and the label maps have background, brainstem" in caplog.text


def test_ct_is_scored_by_a_network_of_its_own_organs() -> None:
    judge = judge_of("ct", "evaluate_ct")
    assert judge.spacing == (4.0, 4.0, 2.5) and judge(torch.zeros(1, 1, 16, 16, 16)).shape[1] == 8
    classes = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["classes_ct"]
    trained = json.loads((BUNDLE.parent / "la_unet" / "configs" / "ct.json").read_text())
    assert judge.classes == [trained["class_names"][str(i)] for i in range(1, 8)]
    targets = targets_of(judge, {int(i): name for i, name in classes.items()})
    assert targets == dict(enumerate(trained["classes"], start=1))
    assert trained["spacing"] == list(judge.spacing)
    assert trained["flip_prob"] == trained["contrast_changes"] == 0


def borders(volumes: list[np.ndarray], overlap: float) -> dict[str, float]:
    series = [window_borders.differences(volume, 4) for volume in volumes]
    return window_borders.compare(series, [window_borders.window_borders(128, 32, overlap, 4)] * len(volumes))


@pytest.mark.slow
def test_a_volume_of_128_slices_from_the_trained_network_of_32_has_no_seams() -> None:
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    network.eval().progress = False
    maps = []
    for seed in range(2):
        phantom = make_phantom(seed, size=(64, 64, 128), spacing=(1.5, 1.5, 1.0))
        composite = CompositeLabel(k=2)(phantom.image, phantom.endo, phantom.wall)
        maps.append(torch.as_tensor(composite.astype(np.float32))[None, None])
    whole = [network.synthesize(label, seeds=[0])[0, 0].float().numpy() for label in maps]
    blended = borders(whole, 0.5)
    assert blended["borders"] == 14 and blended["p"] > 0.05
    assert blended["low"] < blended["ratio"] < blended["high"]
    # blending is exact (test_slice_unet); what keeps windows together as well is that they share noise and label map:
    # the same slices made one window after the other, each with noise of its own, show where they meet
    parts = [
        [network.synthesize(label[..., i : i + 32], seeds=[i])[0, 0].float().numpy() for i in range(0, 128, 32)]
        for label in maps
    ]
    stitched = borders([np.concatenate(part, axis=2) for part in parts], 0.0)
    assert stitched["p"] < 0.01 and stitched["ratio"] > 1.3
