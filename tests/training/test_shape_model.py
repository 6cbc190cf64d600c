"""A shape model of eggs: it knows how they differ, draws others, and draws them as they are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from semsynth.data.transforms import Chain, LoadLabelMapd
from semsynth.errors import InputError
from semsynth.handlers import LearnLimits, TrainingCheckpoint
from semsynth.labels import plain
from semsynth.networks.signed_distances import signed_distances
from semsynth.training.engines.shape_model import ExplainedMapInferer, ShapeModelTrainer, case_modes
from semsynth.training.loading import CaseSampler, TrainingDataset, TrainingLoader, load_sources
from tiny_maps import CLASSES, SPACING, blank, egg, model, write_eggs


def trainer(folder, network, *handlers, sigmas=(3.0, 2.0), steps=12, **more) -> ShapeModelTrainer:
    entries = load_sources(folder / "datalist.json", needs=("label",))
    dataset = TrainingDataset(entries, Chain([LoadLabelMapd("label", 4)]), num_workers=0, progress=False)
    loader = TrainingLoader(dataset, sampler=CaseSampler(dataset, seed=0), batch_size=1, num_workers=0)
    limits = LearnLimits(dataset, network)
    return ShapeModelTrainer(
        device="cpu", network=network, train_data_loader=loader, max_epochs=len(sigmas), sigmas=sigmas, steps=steps,
        train_handlers=[limits, *handlers], **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_eggs(tmp_path_factory.mktemp("eggs"))


@pytest.fixture(scope="module")
def made(folder):
    network = model()
    found = trainer(folder, network)
    found.run()
    return network


def volumes(maps: torch.Tensor) -> np.ndarray:
    return (maps == 1).sum(dim=(1, 2, 3, 4)).numpy() * np.prod(SPACING) / 1000


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_the_training_maps_come_back_from_their_numbers(folder, made):
    for number in range(8):
        numbers = torch.cat([made.shapes[number], made.contents[number]])
        found = made.decoded(numbers, blank())[0, 0].numpy()
        wanted = plain(LoadLabelMapd("label", 4)({"label": folder / f"egg{number}_label.nii.gz"})["label"])[0].numpy()
        assert dice(found == 1, wanted == 1) > 0.95
        assert dice(found == 2, wanted == 2) > 0.8  # a wall of two voxels
        assert dice(found == 3, wanted == 3) > 0.9


def test_drawn_maps_differ_as_the_training_maps_do(folder, made):
    real = volumes(torch.stack([torch.from_numpy(egg_map(folder, i)) for i in range(8)]))
    drawn = volumes(made.synthesize(blank(), list(range(40))))
    assert abs(drawn.mean() - real.mean()) < 0.6 * real.std()
    assert 0.5 < drawn.std() / real.std() < 1.6
    assert len({round(float(v), 2) for v in drawn}) > 30  # not the eight of the training set
    again = made.synthesize(blank(), [3])
    assert torch.equal(again, made.synthesize(blank(), [5, 3])[1:])


def egg_map(folder, number: int) -> np.ndarray:
    return plain(LoadLabelMapd("label", 4)({"label": folder / f"egg{number}_label.nii.gz"})["label"]).numpy()


@pytest.mark.parametrize("volume", [14.0, 19.0, 24.0])
def test_a_volume_that_is_asked_for_is_met(made, volume):
    style = torch.tensor([[volume, torch.nan, torch.nan, torch.nan]])
    found = volumes(made.synthesize(blank(), [0, 1, 2], style=style))
    assert np.abs(found / volume - 1).max() < 0.08
    assert len(set(found.tolist())) == 3


def test_a_known_cavity_stays_and_its_surroundings_are_drawn(made):
    known = torch.from_numpy(egg(14.5, 1.2)).float()[None, None]
    given = torch.where(known == 1, known, -1.0)
    found = made.synthesize(given, [0, 1])
    for one in found:
        assert torch.equal(one[0] == 1, known[0, 0] == 1)
        assert (one == 3).any() and (one == 0).any()
        assert dice((one[0] == 2).numpy(), (known[0, 0] == 2).numpy()) > 0.6
    assert not torch.equal(found[0], found[1])
    wider = torch.nn.functional.pad(given, [0, 0, 0, 0, 4, 4], value=-1.0)  # beyond the frame
    assert torch.equal(made.synthesize(wider, [0])[:, :, 4:40] == 1, known == 1)


def test_a_smaller_field_of_view_is_the_middle_of_a_larger_one_and_a_larger_one_goes_on(made):
    whole, part = made.synthesize(blank(), [4]), made.synthesize(blank((24, 20, 20)), [4])
    assert torch.equal(part, whole[:, :, 6:30, 6:26, 4:24])
    larger = made.synthesize(blank((40, 33, 28)), [4])
    assert torch.equal(larger[:, :, 2:38, :32], whole)
    assert torch.equal(larger[:, :, 0, :32], whole[:, :, 0]) and torch.equal(larger[:, :, 39, :32], whole[:, :, 35])
    with pytest.raises(InputError, match=r"much larger than any that the model was made of .*smaller field of view"):
        made.synthesize(blank((46, 32, 28)), [0])
    assert made.field_of_view(0) == (36, 32, 28)


def test_a_derived_wall_is_not_drawn(folder):
    network = model(derived=[2])
    found = trainer(folder, network, sigmas=(3.0,), steps=4)
    found.run()
    assert network.distance_mean.shape[0] == 2  # the cavity, and one of two tissues
    drawn = network.synthesize(blank(), [0])
    assert not (drawn == 2).any() and (drawn == 1).any() and (drawn == 3).any()


def test_the_limits_are_those_of_the_training_maps(made):
    low, high = made.limits.low.tolist(), made.limits.high.tolist()
    names = list(made.limits.figures.names)
    assert names[0] == "endo.volume_ml" and 3 < low[0] < 12 and 25 < high[0] < 80
    assert (low[1], high[1]) == (1.0, 1.0) and (low[2], high[2]) == (0.0, 0.0)
    label = egg(14.0, 1.2)
    assert made.limits.refusal(label, SPACING)[0] == ""
    label[2:4, 2:4, 2:4] = 1
    assert made.limits.refusal(label, SPACING)[0].startswith("endo.parts 2")


def test_a_training_goes_on_to_the_same_model(folder, tmp_path, made):
    def run(resume: bool, sigmas) -> ShapeModelTrainer:
        network = model()
        kept = TrainingCheckpoint(tmp_path / "run" / "checkpoints", {"network": network}, resume=resume)
        found = trainer(folder, network, kept, sigmas=sigmas)
        found.run()
        return found

    run(False, (3.0,))
    resumed = run(True, (3.0, 2.0)).model
    for name, value in made.state_dict().items():
        assert torch.allclose(value.float(), resumed.state_dict()[name].float(), atol=1e-4), name


def test_it_stays_on_the_cpu_in_the_type_that_is_asked_for():
    network = model().to(torch.device("cpu"), torch.float64)
    assert network.template.dtype == torch.float64 and network.template.device.type == "cpu"
    assert network.distance_modes.dtype == torch.int8


@pytest.mark.slow
def test_two_processes_make_the_model_that_one_makes(folder, tmp_path):
    """Each registers its own maps in both rounds; what another one has of them from the round before is not taken."""
    bundle = Path(__file__).resolve().parents[2] / "bundles" / "la_maps"
    small = {"spacing": list(SPACING), "frame": [36, 32, 28], "sigmas": [3.0, 2.0], "steps": 6, "num_workers": 0,
             "modes": 4, "shape_modes": 4, "most_maps": 16}  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(small))
    made = {}
    for count in (1, 2):
        overlays = [str(bundle / "configs" / "multi_gpu_train.json")] if count > 1 else []
        files = [str(bundle / "configs" / "train.json"), *overlays, str(tmp_path / "small.json")]
        started = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if count > 1 else []
        command = [sys.executable, *started, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
        command += [
            "--bundle_root",
            str(bundle),
            "--dataset_dir",
            str(folder),
            "--run_dir",
            str(tmp_path / f"run{count}"),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        made[count] = torch.load(tmp_path / f"run{count}" / "model.pt", weights_only=True)
    for name, value in made[1].items():
        assert torch.allclose(value.float(), made[2][name].float(), atol=2e-2), name


def test_a_model_that_is_not_made_draws_nothing_and_wrong_numbers_are_refused(folder):
    with pytest.raises(InputError, match="not made yet"):
        model().field_of_view(0)
    with pytest.raises(InputError, match=r"max_epochs must be the number of sigmas \(1\)"):
        ShapeModelTrainer(device="cpu", network=model(), train_data_loader=[], max_epochs=2, sigmas=(1.0,))
    with pytest.raises(InputError, match=r"case egg\d: its voxels are 2,2,2 mm, and the network's 1,1,1 mm"):
        trainer(folder, model(spacing=(1.0, 1.0, 1.0))).run()
    with pytest.raises(InputError, match="8 maps, but most_maps is 4"):
        trainer(folder, model(most_maps=4)).run()
    with pytest.raises(InputError, match=r"its map has \(36, 32, 28\) voxels.*larger --frame"):
        trainer(folder, model(frame=(32, 32, 28))).run()
    with pytest.raises(InputError, match="blur must be two numbers"):
        model(blur=(0.5, 1.5))
    with pytest.raises(InputError, match="none a wall of a wall"):
        model(walls={2: 1, 3: 2})
    with pytest.raises(InputError, match="derived must name walls"):
        model(derived=[3])
    with pytest.raises(InputError, match="class_weights must be one per class"):
        trainer(folder, model(), class_weights=[1.0])
    assert CLASSES[1] == "endo"


def test_modes_are_principal_components():
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 5, 6)[:, None]
    rows = rows - rows.mean(dim=0)
    found = case_modes(rows, 10)
    assert found.shape == (5, 6) and torch.allclose(found @ found.T, torch.eye(5), atol=1e-4)
    spread = (found @ rows).norm(dim=1)
    assert torch.all(spread[:-1] >= spread[1:])
    assert torch.allclose(found.T @ (found @ rows), rows, atol=1e-3)  # five tell all of six that are centred


def test_signed_distances_are_zero_at_surfaces_and_walls_do_not_bend_tissues():
    label = egg(14.0, 1.0)
    signed = signed_distances(label.astype(np.int16), model().surfaces, SPACING)
    assert signed.shape == (3, 36, 32, 28)
    assert np.array_equal(signed[0] > 0, label == 1) and np.array_equal(signed[1] > 0, np.isin(label, (1, 2)))
    outside = np.isin(label, (0, 3))
    assert np.array_equal((signed[2] > 0)[outside], (label == 3)[outside])
    assert np.abs(signed).max() <= 6.0


def test_a_map_of_nobody_it_was_made_of_is_told_well(folder, made):
    held_out = torch.from_numpy(egg_map(folder, 9)).float()[None]
    found = ExplainedMapInferer(steps=40)(held_out, made)
    assert found.shape == held_out.shape
    assert dice((found == 1).numpy(), (held_out == 1).numpy()) > 0.93
    assert dice((found == 3).numpy(), (held_out == 3).numpy()) > 0.85
    finished = ExplainedMapInferer(steps=10, finishing=lambda label, spacing: (label * 0, {}))(held_out, made)
    assert not finished.any()
