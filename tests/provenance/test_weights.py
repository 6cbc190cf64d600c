"""Weights are read only where they are what their card says; one flipped byte is enough to refuse them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.networks.blocks.spade_norm import SPADE
from semsynth.cli.main import main
from semsynth.convert import convert_file, convert_file_to_monai
from semsynth.errors import InputError
from semsynth.evaluation.judge import load_judge
from semsynth.files import sha256
from semsynth.handlers import InitWeights, LoadWeights
from semsynth.handlers.weights import serve
from semsynth.networks.segmentation import residual_unet, subvoxel_swin
from semsynth.provenance.frozen import load_features, load_segmenter
from semsynth.provenance.weights import read_weights
from semsynth.tensor_files import read_tensors
from semsynth.training.checkpoints import CheckpointFolder, newest_checkpoint
from semsynth.training.weights import extract_weights, save_weights
from torch import nn

CHANNELS = (2, 4)
OTHER = r"is not the file that its card \w+\.json describes .*Restore the file that belongs to it, or remove \w+\.json"


def network() -> nn.Module:
    return residual_unet(2, channels=CHANNELS)


def flip(path: Path) -> None:
    """One bit of a value in the middle of the file: torch reads it all the same."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def engine() -> Engine:
    made = Engine(lambda engine, batch: None)
    made.state.max_epochs = 1
    return made


def load_for_inference(path: Path) -> None:
    LoadWeights(path, load_dict={"network": network()})(engine())


def start_a_training(path: Path) -> None:
    trainer = engine()
    InitWeights(network(), path).attach(trainer)
    trainer.run([0])


USES: dict[str, Callable[[Path], object]] = {
    "inference": load_for_inference,
    "init_weights": start_a_training,
    "segmenter": lambda path: load_segmenter(network(), path, use="x"),
    "evaluate --judge": lambda path: load_judge(str(path), classes=[1], channels=CHANNELS),
    "weights": lambda path: extract_weights(path, path.with_name("small.pt"), mantissa_bits=8),
    "convert": lambda path: convert_file(path, path.with_name("converted.pt")),
    "convert --to monai": lambda path: convert_file_to_monai(path, path.with_name("converted.pt")),
}


@pytest.mark.parametrize("use", USES)
def test_one_flipped_byte_is_refused_by_every_use_and_nothing_is_written(use: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_weights(network(), path)
    if not use.startswith("convert"):  # which takes other networks
        USES[use](path)
        for made in tmp_path.glob("small.*"):
            made.unlink()
    flip(path)
    with pytest.raises(InputError, match=OTHER):
        USES[use](path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_the_judges_features_are_refused_too(tmp_path: Path) -> None:
    save_weights(subvoxel_swin(), tmp_path / "judge_1.pt")
    load_features("la_unet_judge", weights=tmp_path / "judge_1.pt")
    flip(tmp_path / "judge_1.pt")
    with pytest.raises(InputError, match=OTHER):
        load_features("la_unet_judge", weights=tmp_path / "judge_1.pt")


def test_weights_are_not_signed_anew_by_the_command_line(tmp_path, capsys):
    save_weights(network(), tmp_path / "model.pt")
    flip(tmp_path / "model.pt")
    assert main(["weights", "--checkpoint", str(tmp_path / "model.pt"), "--output", str(tmp_path / "new.pt")]) == 1
    assert "is not the file that its card model.json describes" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


def test_without_the_card_they_are_used_with_a_warning(tmp_path, caplog):
    save_weights(network(), tmp_path / "model.pt")
    read_weights(tmp_path / "model.pt")
    assert not caplog.records
    flip(tmp_path / "model.pt")
    (tmp_path / "model.json").unlink()
    with caplog.at_level(logging.WARNING):
        load_for_inference(tmp_path / "model.pt")
    assert "unknown, no card beside it says what it is" in caplog.text


def test_a_card_without_a_hash_vouches_for_nothing(tmp_path, caplog):
    save_weights(network(), tmp_path / "model.pt")
    card = tmp_path / "model.json"
    card.write_text(json.dumps({key: value for key, value in json.loads(card.read_text()).items() if key != "sha256"}))
    read_weights(tmp_path / "model.pt")
    assert "unknown, no card beside it" in caplog.text


def test_a_checkpoint_is_compared_with_the_list_beside_it(tmp_path):
    state = {"objects": {"network": network().state_dict()}, "epoch": 1, "iteration": 2}
    path = CheckpointFolder(tmp_path).save(state, epoch=1, iteration=2)
    start_a_training(path)
    newest_checkpoint(path)
    flip(path)
    for use in (start_a_training, newest_checkpoint, read_weights):
        with pytest.raises(InputError, match=r"is not the file that the list manifest.json beside it describes"):
            use(path)


def test_what_is_served_has_its_own_card_and_never_that_of_the_weights_before(tmp_path):
    (tmp_path / "models").mkdir()
    served, made = tmp_path / "models" / "model.pt", tmp_path / "best.pt"
    save_weights(network(), served)
    save_weights(network(), made)
    serve(made, served)
    for path in (served, served.with_name("model_as_shipped.pt")):
        load_for_inference(path)
    made.with_suffix(".json").unlink()
    made.write_bytes(served.with_name("model_as_shipped.pt").read_bytes())
    serve(made, served)
    assert not served.with_suffix(".json").exists()
    load_for_inference(served)


# ---- safetensors


def test_safetensors_are_written_and_read_wherever_weights_are(tmp_path):
    save_weights(network(), tmp_path / "model.pt")
    state = {"objects": {"network": torch.load(tmp_path / "model.pt")}, "epoch": 1, "iteration": 2}
    CheckpointFolder(tmp_path / "run").save(state, epoch=1, iteration=2)
    path = tmp_path / "new" / "model.safetensors"
    assert main(["weights", "--checkpoint", str(tmp_path / "run"), "--output", str(path)]) == 0
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == sha256(path)
    assert path.read_bytes()[8:9] == b"{", "a table, no pickle"
    for use in ("inference", "init_weights", "segmenter", "evaluate --judge"):
        USES[use](path)
    torch.save(SPADE(3, 4, 3, 3, 4).state_dict(), tmp_path / "theirs.pt")
    ours = convert_file(tmp_path / "theirs.pt", tmp_path / "ours.safetensors")
    back = read_weights(convert_file_to_monai(ours, tmp_path / "back.safetensors"))
    assert all(torch.equal(back[key], value) for key, value in torch.load(tmp_path / "theirs.pt").items())
    flip(path)
    with pytest.raises(InputError, match=OTHER):
        load_for_inference(path)


def test_safetensors_hold_tensors_alone_and_are_not_compressed(tmp_path):
    from semsynth.training.checkpoints import save_atomically

    with pytest.raises(InputError, match=r"safetensors hold tensors alone, and epoch is none; write a \.pt"):
        save_atomically({"epoch": 1}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="safetensors are never compressed; leave --mantissa-bits out"):
        extract_weights(tmp_path / "a.pt", tmp_path / "b.safetensors", mantissa_bits=8)
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match=r"cannot be read as weights \(it is damaged, cut short, or no file that"):
        read_weights(tmp_path / "c.safetensors")


def test_what_is_loaded_are_the_bytes_that_were_compared(tmp_path):
    """Another file that takes its place in between is not read."""
    path, other = tmp_path / "model.pt", tmp_path / "other.pt"
    torch.save({"w": torch.ones(2)}, path)
    torch.save({"w": torch.zeros(2)}, other)

    def exchange(stream):
        assert stream.read() == path.read_bytes()
        other.rename(path)

    assert read_tensors(path, check=exchange)["w"].tolist() == [1.0, 1.0]
    assert read_tensors(path)["w"].tolist() == [0.0, 0.0]


def test_weights_in_the_older_format_are_read_from_the_beginning(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "model.pt")["w"].tolist() == [1.0, 1.0]
