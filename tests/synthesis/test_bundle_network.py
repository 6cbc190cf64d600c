"""The network of a file of weights: weights of an overlay bring the overlay's settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from semsynth.errors import InputError
from semsynth.synthesis.bundle_network import configs_of, facts_of, label_classes, network_of

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
CT = BUNDLES / "med_lsdm" / "models" / "model_ct.pt"


def test_weights_of_an_overlay_bring_its_network_and_its_classes() -> None:
    bundle = BUNDLES / "med_lsdm"
    assert configs_of(bundle, CT) == ["inference.json", "ct.json"]
    assert network_of(bundle, CT).num_classes == label_classes(bundle, CT) == 13
    assert facts_of(bundle, CT)["classes"]["7"] == "mandible"
    assert network_of(bundle).num_classes == label_classes(bundle) == 4
    assert facts_of(bundle)["classes"]["1"] == "endo"


def test_weights_of_another_architecture_are_built_too() -> None:
    bundle = BUNDLES / "la_unet"
    judge = network_of(bundle, bundle / "models" / "judge_1.pt")
    assert judge.state_dict().keys() != network_of(bundle).state_dict().keys()
    organs = facts_of(bundle, bundle / "models" / "model_ct.pt")["classes"]
    assert organs["1"] == "brainstem" and len(organs) == 8


def test_other_weights_are_those_of_inference(tmp_path: Path) -> None:
    assert configs_of(BUNDLES / "med_lsdm", tmp_path / "model_final.pt") == ["inference.json"]


def test_a_name_that_two_overlays_take_is_asked_for(tmp_path: Path) -> None:
    bundle = tmp_path / "med_lsdm"
    shutil.copytree(BUNDLES / "med_lsdm" / "configs", bundle / "configs")
    (bundle / "configs" / "other.json").write_text(json.dumps({"weights": "$@bundle_root + '/models/model_ct.pt'"}))
    with pytest.raises(InputError, match=r"ct\.json and other\.json of .* take weights of this name"):
        network_of(bundle, CT)
