"""Several samples per label map, what their records say, and a bundle's own evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bundle_configs
import bundle_runs
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from semsynth.cli.main import main
from semsynth.data.entries import load_label_maps
from semsynth.data.volumes import read_volume
from semsynth.data.voxels import hash_file
from semsynth.errors import InputError
from semsynth.handlers import SynthesisProgress
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.synthesis.batches import PrepareMapBatch
from semsynth.synthesis.inferers import NoisyWindowInferer

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "pix2pix3d"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_dataset):
    """Random weights of the tiny network, with a card that names one case and a network in the loss."""
    parser = ConfigParser(bundle_runs.read(BUNDLE, "inference", "tiny"))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    seen = [{"voxels": {"label": hash_file(tiny_dataset / "phantom_000" / "label.nii.gz")}}]
    card = {"training_cases": seen, "unknown_parents": [], "in_loss": [{"name": "x", "sha256": "1"}]}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def synthesise(weights, dataset, output, names=("inference",), **options):
    paths = {"dataset_dir": dataset, "output_dir": output, "weights": weights}
    inference = bundle_runs.workflow(BUNDLE, list(names), "infer", paths, **options)
    inference.run()
    inference.finalize()
    return json.loads((output / "datalist.json").read_text())["training"]


def test_sample_i_is_what_seed_plus_i_gives_alone(weights, tiny_dataset, tmp_path):
    several = synthesise(weights, tiny_dataset, tmp_path / "several", num_samples=2, seed=5)
    alone = [synthesise(weights, tiny_dataset, tmp_path / f"seed{s}", seed=s)[0] for s in (5, 6)]
    case = alone[0]["case"]
    assert [(e["case"], e["source_case"], e["sample"]) for e in several] == [(f"{case}_s{i}", case, i) for i in (0, 1)]
    for i, entry in enumerate(several):
        one, other = (read_volume(tmp_path / d / e["image"]).data for d, e in
                      (("several", entry), (f"seed{5 + i}", alone[i])))  # fmt: skip
        assert np.array_equal(one, other)
        record = json.loads((tmp_path / "several" / f"{case}_s{i}_synthetic.json").read_text())
        assert (record["seed"], record["sample"], record["source_case"]) == (5 + i, i, case)
    volumes = [read_volume(tmp_path / "several" / e["image"]).data for e in several]
    assert not np.array_equal(*volumes)


def test_a_record_says_whether_the_weights_saw_the_case(weights, tiny_dataset, tmp_path):
    entries = synthesise(weights, tiny_dataset, tmp_path, split="all", num_samples=2)
    records = [json.loads((tmp_path / f"{e['case']}_synthetic.json").read_text()) for e in entries]
    assert {r["source_case"] for r in records if r["trained_on"]} == {"phantom_000"} and len(records) == 8
    assert {r["trained_on"] for r in records} == {True, False}
    assert all(r["in_loss"] == [{"name": "x", "sha256": "1"}] for r in records)
    weights.with_suffix(".json").rename(weights.with_suffix(".hidden"))
    try:
        synthesise(weights, tiny_dataset, tmp_path / "without")
    finally:
        weights.with_suffix(".hidden").rename(weights.with_suffix(".json"))
    record = json.loads(next((tmp_path / "without").glob("*_synthetic.json")).read_text())
    assert record["trained_on"] is None and record["in_loss"] == [] and "sample" not in record


def test_volumes_of_other_maps_under_the_same_name_are_never_overwritten(weights, tiny_dataset, tmp_path):
    for place, case in (("first", "phantom_000"), ("second", "phantom_001")):
        (tmp_path / place / "P1").mkdir(parents=True)
        shutil.copy(tiny_dataset / case / "label.nii.gz", tmp_path / place / "P1" / "label.nii.gz")
    out, first, second = tmp_path / "out", *(str(tmp_path / p / "P1" / "label.nii.gz") for p in ("first", "second"))
    (made,) = synthesise(weights, tiny_dataset, out, label_maps=first)
    assert made["image"] == "P1_synthetic.nii.gz" and made["patient"] == "P1"
    before = (out / made["image"]).read_bytes()
    with pytest.raises(RuntimeError) as error:
        synthesise(weights, tiny_dataset, out, label_maps=second)
    assert "was made from ../first/P1/label.nii.gz, not from ../second/P1" in bundle_configs.root_cause(error.value)
    assert (out / made["image"]).read_bytes() == before and (out / "datalist.json").is_file()
    shutil.copy(second, first)  # the same file, prepared anew
    synthesise(weights, tiny_dataset, out, label_maps=first, overwrite=True)
    assert (out / made["image"]).read_bytes() != before


def test_every_split_can_be_asked_for_at_once(tiny_dataset):
    assert len(load_label_maps(tiny_dataset, split="all")) == 4
    with pytest.raises(InputError, match="num_samples must be 1 or more, got 0"):
        load_label_maps(tiny_dataset, num_samples=0)


def test_the_network_is_told_seeds_and_style_and_whom_to_tell_of_its_steps():
    both = {"case": ["a_s0", "a_s1"], "source_case": ["a", "a"], "sample": torch.tensor([0, 1]), "image": torch.ones(2)}
    label, target, arguments, told = PrepareMapBatch(seed=5)(both)
    assert torch.equal(label, both["image"]) and target is None and arguments == ()
    assert told == {"noise_seeds": [5, 6]}
    progress = SynthesisProgress(batches=None)
    style = torch.zeros(1, 3)
    told = PrepareMapBatch(seed=5, style=lambda batch: style, progress=progress)(both)[3]
    assert told["style"] is style and told["on_step"] == progress.step
    assert "style" not in PrepareMapBatch(style=lambda batch: None)(both)[3], "the network draws"
    progress.step(0.5)  # in processes without a bar


def test_a_volume_follows_the_seeds_that_its_network_is_told():
    label, network = torch.randint(0, 4, (2, 1, 8, 8, 8)), Pix2PixGenerator(4, channels=(4, 4), noise=True).eval()
    seven = Pix2PixGenerator(4, channels=(4, 4), noise=True, noise_seed=7).eval()
    seven.load_state_dict(network.state_dict())
    assert torch.equal(network(label, [7]), seven(label)) and not torch.equal(network(label), seven(label))
    assert torch.equal(torch.jit.script(network)(label, [7]), seven(label))
    alone = torch.cat([network(label[:1], [5]), network(label[1:], [6])])
    assert torch.allclose(network(label, [5, 6]), alone, atol=1e-6)
    assert torch.allclose(torch.jit.script(network)(label, [5, 6]), alone, atol=1e-6)
    windows = NoisyWindowInferer(noise=True, roi_size=(8, 8, 8), overlap=0.0)
    assert torch.allclose(windows(label[:1], network, noise_seeds=[7]), seven(label[:1]), atol=1e-6)


def test_the_bundles_evaluation_is_the_commands(weights, tiny_dataset, tmp_path):
    names = ("inference", "evaluate")
    synthesise(weights, tiny_dataset, tmp_path, names, extractors=[], judge_weights=None, split="all")
    arguments = ["evaluate", "--synthetic", f"pix2pix3d={tmp_path}", "--real", str(tiny_dataset), "--output",
                 str(tmp_path / "again"), "--extractors", ""]  # fmt: skip
    assert main(arguments) == 0
    files = [tmp_path / folder / "evaluation.json" for folder in ("evaluation", "again")]
    scores = [json.loads(path.read_text())["scores"] for path in files]
    assert scores[0] == scores[1] and {s["group"] for s in scores[0]} == {"unseen", "training"}
