"""Membership inference on the diffusion loss, with a tiny latent diffusion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bundle_runs
import numpy as np
import pytest
import torch
from semsynth.errors import InputError
from semsynth.evaluation.measure import MeasurementStore
from semsynth.networks.latent_diffusion import LatentDiffusion
from semsynth.privacy.sides import load_sides
from semsynth.privacy.white_box import LEVELS, losses, white_box
from tiny_diffusion import diffusion
from tiny_patients import scans
from tiny_synthesis import random_weights

SPADE_LDM = Path(__file__).resolve().parents[2] / "bundles" / "spade_ldm"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latent diffusion's configs with the changes of its tiny overlay, and its random weights."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(bundle_runs.read(SPADE_LDM, "inference", "tiny")))
    shutil.copy(SPADE_LDM / "configs" / "metadata.json", folder / "configs")
    random_weights(SPADE_LDM, folder / "models" / "model.pt")
    return folder


def test_a_scan_always_has_the_same_loss(tmp_path: Path) -> None:
    sides = load_sides(str(scans(tmp_path / "t", range(2))), [str(scans(tmp_path / "h", range(10, 15), "validation"))])
    network = diffusion()
    assert isinstance(network, LatentDiffusion)
    found = losses(network, sides.train["P0"])
    assert found.shape == (LEVELS,) and np.isfinite(found).all() and (found > 0).all()
    torch.manual_seed(7)
    assert np.array_equal(found, losses(network, sides.train["P0"]))
    assert not np.array_equal(found, losses(network, sides.train["P1"]))


def test_weights_are_attacked_by_their_loss(bundle: Path, tmp_path: Path) -> None:
    sides = load_sides(str(scans(tmp_path / "t", range(6))), [str(scans(tmp_path / "h", range(10, 16), "validation"))])
    weights, store = bundle / "models" / "model.pt", MeasurementStore(tmp_path / "kept")
    found = white_box(bundle, weights, sides, store)
    assert found is not None and (found.members, found.others) == (6, 6)
    assert 0 <= found.auc_low <= found.auc <= found.auc_high <= 1
    assert found == white_box(bundle, weights, sides, store)
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 12


def test_scans_without_label_maps_are_refused(bundle: Path, tmp_path: Path) -> None:
    pattern = str(scans(tmp_path / "h", range(10, 16), "validation") / "*" / "image.nii.gz")
    sides = load_sides(str(scans(tmp_path / "t", range(6))), [pattern])
    with pytest.raises(InputError, match="--bundle needs label maps of the scans"):
        white_box(bundle, bundle / "models" / "model.pt", sides, MeasurementStore(None))
