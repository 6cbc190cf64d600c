"""Several samples per label map, what their records say, and a bundle's own evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import bundle_runs
import numpy as np
import pytest
import torch
from ignite.engine import Engine, State
from monai.bundle import ConfigParser
from semsynth.cli.main import main
from semsynth.data.entries import load_label_maps
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.handlers import SampleSeeds
from semsynth.provenance.cards import case_hash
from tiny_diffusion import diffusion

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "pix2pix3d"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the tiny network, with a card that names one case and a network in the loss."""
    parser = ConfigParser(bundle_runs.read(BUNDLE, "inference", "tiny"))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    seen = [{"name": case_hash("phantom_000"), "image": "0"}]
    card = {"training_cases": seen, "in_loss": [{"name": "x", "sha256": "1"}]}
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
    assert all(r["in_loss"] == [{"name": "x", "sha256": "1"}] for r in records)
    weights.with_suffix(".json").rename(weights.with_suffix(".hidden"))
    try:
        synthesise(weights, tiny_dataset, tmp_path / "without")
    finally:
        weights.with_suffix(".hidden").rename(weights.with_suffix(".json"))
    record = json.loads(next((tmp_path / "without").glob("*_synthetic.json")).read_text())
    assert record["trained_on"] is None and record["in_loss"] == [] and "sample" not in record


def test_every_split_can_be_asked_for_at_once(tiny_dataset):
    assert len(load_label_maps(tiny_dataset, split="all")) == 4
    with pytest.raises(InputError, match="num_samples must be 1 or more, got 0"):
        load_label_maps(tiny_dataset, num_samples=0)


def test_samples_of_one_batch_have_seeds_of_their_own_or_are_refused():
    def after(thing, **batch):
        engine = Engine(lambda e, b: None)
        engine.state = State(batch=batch)
        SampleSeeds([thing], seed=5)._set(engine)
        return thing

    both = {"case": ["a_s0", "a_s1"], "source_case": ["a", "a"], "sample": torch.tensor([0, 1])}
    network = diffusion()
    assert after(network, **both).noise_seeds == [5, 6]
    assert after(network, case=["a"]).noise_seeds == [5]
    engine = Engine(lambda e, b: None)
    SampleSeeds([network], seed=5).attach(engine)
    engine.run([both])
    assert network.noise_seeds is None
    single = SimpleNamespace(noise_seed=0)
    with pytest.raises(InputError, match="several samples in one batch would share a seed: set batch_size to 1"):
        after(single, **both)
    assert after(single, case=["a"], sample=torch.tensor([3])).noise_seed == 8


def test_the_bundles_evaluation_is_the_commands(weights, tiny_dataset, tmp_path):
    names = ("inference", "evaluate")
    synthesise(weights, tiny_dataset, tmp_path, names, extractors=[], judge_weights=None, split="all")
    arguments = ["evaluate", "--synthetic", f"pix2pix3d={tmp_path}", "--real", str(tiny_dataset), "--output",
                 str(tmp_path / "again"), "--extractors", ""]  # fmt: skip
    assert main(arguments) == 0
    files = [tmp_path / folder / "evaluation.json" for folder in ("evaluation", "again")]
    scores = [json.loads(path.read_text())["scores"] for path in files]
    assert scores[0] == scores[1] and {s["group"] for s in scores[0]} == {"unseen", "training"}
