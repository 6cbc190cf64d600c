"""Offline means offline: nothing here asks a network unless it is told to, and what is missing is said once."""

from __future__ import annotations

import importlib
import json
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.evaluation.run import open_extractors
from semsynth.networks.features.registry import FeaturesUnavailable
from semsynth.provenance.frozen import load_features, load_perceptual

NAMES = ("medicalnet_resnet34", "medicalnet_resnet50", "efficientnet_lite0")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked of a network; every try fails, and the hub's cache is empty."""
    tries: list[str] = []

    def refuse(*arguments, **kwargs):
        tries.append(str(arguments[-1:]))
        raise OSError(101, "Network is unreachable")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return tries


@pytest.mark.parametrize("name", NAMES)
def test_no_network_is_asked_for_feature_networks_unless_told_to(asked, name):
    try:
        load_features(name)
    except FeaturesUnavailable as error:
        text = str(error)
        assert "\n" not in text and (name == "efficientnet_lite0" or "--download" in text)
        assert name == "efficientnet_lite0" or f"--weights {name}=FILE" in text
    assert asked == []


def test_nor_for_a_loss(asked):
    with pytest.raises(FeaturesUnavailable, match="no network is asked without --download"):
        load_perceptual(["medicalnet_resnet50"])
    assert asked == []


def test_told_to_it_is_asked_and_one_line_says_that_it_is_not_there(asked):
    with pytest.raises(FeaturesUnavailable, match="the hub cannot be reached") as caught:
        load_features("medicalnet_resnet34", download=True)
    assert asked and "\n" not in str(caught.value)


@pytest.mark.parametrize("download", [True, False])
def test_with_the_hub_switched_off_the_line_is_as_short_and_nothing_is_asked(asked, monkeypatch, download):
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)  # what the variable of this name sets
    with pytest.raises(FeaturesUnavailable, match=r"resnet_34_23dataset\.pth is not in the Hugging Face hub's cache"):
        load_features("medicalnet_resnet34", download=download)
    assert asked == []


def test_what_is_missing_is_said_once_and_the_others_are_there(asked, caplog):
    there, absent = open_extractors(NAMES[:2])
    assert there == [] and set(absent) == set(NAMES[:2]) and asked == []
    assert [record.getMessage() for record in caplog.records] == list(absent.values())


def test_an_evaluation_asks_nothing_and_names_what_it_did_without(asked, tiny_dataset, tmp_path, capsys):
    data = json.loads((tiny_dataset / "datalist.json").read_text())
    made = tmp_path / "made"
    made.mkdir()
    for entry in data["training"] + data["validation"] + data["testing"]:
        volume = nib.load(tiny_dataset / entry["image"])
        voxels = np.asarray(volume.dataobj, dtype=np.float32)
        file = made / f"{entry['case']}_synthetic.nii.gz"
        nib.save(nib.Nifti1Image((voxels - voxels.min()) / np.ptp(voxels), volume.affine), file)
    arguments = ["evaluate", f"--synthetic=a={made}", f"--real={tiny_dataset}", f"--output={tmp_path / 'out'}",
                 "--extractors=medicalnet_resnet34", "--pictures=0"]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert asked == []
    assert "no network is asked without --download" in (tmp_path / "out" / "evaluation.md").read_text()


def test_the_bundles_ask_nothing_by_themselves(project_root):
    found = 0
    for path in sorted(Path(project_root / "bundles").glob("*/configs/*.json")):
        text = path.read_text(encoding="utf-8")
        assert '"download": true' not in text
        if "semsynth.evaluation.evaluate" in text:
            assert '"download": false' in text and '"download": "@download"' in text, path
            found += 1
    assert found >= 4
