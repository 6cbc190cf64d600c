"""What weights have seen stands in every bundle's cards, whichever way a training begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundle_configs
import pytest
import torch
from monai.bundle import ConfigParser
from semsynth.data.entries import load_datalist
from semsynth.provenance.cards import write_model_card
from semsynth.provenance.seen import Seen, training_cases
from verify_bundles import find_bundles

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    (bundle, path.stem)
    for bundle in find_bundles(ROOT / "bundles")
    for path in sorted((bundle / "configs").glob("train*.json"))
    if "init_weights" in json.loads(path.read_text(encoding="utf-8"))  # a shape model starts from nothing
]
every_training = pytest.mark.parametrize(("bundle", "stage"), STAGES, ids=[f"{b.name}-{s}" for b, s in STAGES])


@every_training
def test_all_weights_that_a_training_starts_from_are_in_its_record(bundle: Path, stage: str) -> None:
    content = bundle_configs.read(bundle, stage)
    starts = {
        value["path"]
        for _, value in bundle_configs.walk(content)
        if isinstance(value, dict) and str(value.get("_target_", "")).endswith("InitWeights")
    }
    assert starts and starts == set(content["record"]["builds_on"]), f"{bundle.name}/{stage}.json"


@every_training
def test_fine_tuning_has_seen_what_its_start_saw(bundle: Path, stage: str, tiny_dataset: Path, tmp_path: Path) -> None:
    seen_before = load_datalist(tiny_dataset / "datalist.json", "validation")
    start = tmp_path / "start.pt"
    torch.save({"w": torch.ones(1)}, start)
    write_model_card(start, training_cases=training_cases(seen_before), unknown_parents=[])

    def facts(**options: Any) -> dict[str, Any]:
        parser = ConfigParser()
        overlay = bundle_configs.config_path(bundle, stage.replace("train", "tiny"))
        parser.read_config([str(bundle_configs.config_path(bundle, stage)), str(overlay)])
        parser.update({"bundle_root": str(bundle), "dataset_dir": str(tiny_dataset), "run_dir": str(tmp_path),
                       "cache_rate": 0.0, "num_workers": 0, "init_weights": None, **options})  # fmt: skip
        return json.loads(json.dumps(parser.get_parsed_content("record").facts()))

    missing = {key: str(tmp_path / "nowhere.pt") for key in ("autoencoder_weights", "vqgan_weights")}
    own = Seen.from_card(facts(init_weights=str(start), **missing), "child.pt")
    training = load_datalist(tiny_dataset / "datalist.json", "training")
    assert own.complete and all("image" in own.of_entry(entry) for entry in (*training, *seen_before))
    other = tmp_path / "bare.pt"
    torch.save({"w": torch.zeros(1)}, other)
    unknown = Seen.from_card(facts(init_weights=str(other), **missing), "child.pt")
    assert unknown.gaps == ("bare.pt",) and not any(unknown.of_entry(entry) for entry in seen_before)
    content = bundle_configs.read(bundle, stage)
    for key in missing.keys() & content.keys():  # stage 1 in stage 2
        second = Seen.from_card(facts(**{key: str(start)}), "child.pt")
        assert second.complete and all("image" in second.of_entry(entry) for entry in seen_before)
