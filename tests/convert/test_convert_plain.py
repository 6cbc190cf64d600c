"""Networks without label maps, as the published bundles have them, become ours with the same output for any map."""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from semsynth.cli.main import main
from semsynth.convert import convert, convert_plain_autoencoder, convert_plain_denoiser
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.autoencoder import SPADEAutoencoder
from semsynth.networks.denoiser import SPADEUNet
from semsynth.training.weights import take_over
from torch import nn

pytest.importorskip("einops", reason="MONAI's attention needs it: pip install einops")

CLASSES, GROUPS = 3, 4
SAID = {"num_classes": CLASSES, "groups": GROUPS}
# configs/inference.json of the bundles in Project-MONAI/model-zoo, with narrow levels and GROUPS in place of 32
BRAIN_AUTOENCODER = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "latent_channels": 3, "channels": [8, 16, 16, 16],
    "num_res_blocks": 2, "norm_num_groups": GROUPS, "norm_eps": 1e-6, "attention_levels": [False] * 4,
    "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False,
}  # fmt: skip
BRAIN_UNET = {
    "spatial_dims": 3, "in_channels": 7, "out_channels": 3, "channels": [8, 16, 16], "num_res_blocks": 2,
    "attention_levels": [False, True, True], "norm_num_groups": GROUPS, "norm_eps": 1e-6, "resblock_updown": True,
    "num_head_channels": [0, 16, 16], "with_conditioning": True, "transformer_num_layers": 1, "cross_attention_dim": 4,
    "upcast_attention": True, "use_flash_attention": False,
}  # fmt: skip
MAISI_AUTOENCODER = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "latent_channels": 4, "num_channels": [8, 16, 16],
    "num_res_blocks": [2, 2, 2], "norm_num_groups": GROUPS, "norm_eps": 1e-6, "attention_levels": [False] * 3,
    "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False, "use_checkpointing": False,
    "use_convtranspose": False, "norm_float16": False, "num_splits": 2, "dim_split": 1,
}  # fmt: skip
MAISI_MASKS = MAISI_AUTOENCODER | {"in_channels": 8, "out_channels": 12, "use_convtranspose": True}
_MAISI = {
    "spatial_dims": 3, "in_channels": 4, "num_channels": [8, 16, 16, 16], "num_res_blocks": 2,
    "attention_levels": [False, False, True, True], "num_head_channels": [0, 0, 8, 8], "norm_num_groups": GROUPS,
    "num_class_embeds": 6, "resblock_updown": True, "include_fc": True,
}  # fmt: skip
MAISI_UNET = _MAISI | {"out_channels": 4, "include_spacing_input": True}
MAISI_CONTROLNET = _MAISI | {
    "conditioning_embedding_in_channels": 8, "conditioning_embedding_num_channels": [8, 8],
}  # fmt: skip
MASK_UNET = {
    "spatial_dims": 3, "in_channels": 4, "out_channels": 4, "channels": [8, 16, 16, 16], "num_res_blocks": 2,
    "attention_levels": [False, False, True, True], "num_head_channels": [0, 0, 8, 8], "norm_num_groups": GROUPS,
    "with_conditioning": True, "upcast_attention": True, "cross_attention_dim": 10,
}  # fmt: skip


def drawn(network: nn.Module) -> nn.Module:
    """Weights that keep the size of what goes through, norms away from 1 and 0, attention that chooses."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = max(parameter[0].numel(), 2)
            scale = 3.0 if re.search(r"\.(to_q|to_k)\.", name) else 1.0
            parameter.normal_(0, scale * fan_in**-0.5 if parameter.dim() > 1 else 0.3, generator=generator)
            if re.search(r"norm\d?\.weight|blocks\.\d+\.weight|out\.0\.weight", name):
                parameter.add_(1)
    return network.eval()


def maps(size: tuple[int, ...]) -> list[torch.Tensor]:
    """Two label maps, and one of nothing but background."""
    generator = torch.Generator().manual_seed(2)
    several = [torch.randint(0, CLASSES, (1, 1, *size), generator=generator) for _ in range(2)]
    return [*several, torch.zeros_like(several[0])]


def largest(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The largest difference, over the largest output."""
    assert all(expected.std() > 0.05 for expected, _ in pairs)
    return max(float((found - expected).abs().max() / expected.abs().max()) for expected, found in pairs)


def of_autoencoder(theirs: nn.Module, ours: SPADEAutoencoder, size=(16, 8, 24)) -> float:
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(3))
    shape = (1, ours.latent_channels, *(n // ours.stride for n in size))
    latent = torch.randn(*shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        inner = image * 2 - 1 if ours.signed else image
        mean, log_variance = ours.eval().encode(image)
        pairs = list(zip(theirs.encode(inner), (mean, torch.exp(0.5 * log_variance)), strict=True))
        decoded = theirs.decode(latent)
        for label in maps(size):
            found = ours.decode(latent, label)
            pairs.append((decoded, found * 2 - 1 if ours.signed else found))
    return largest(pairs)


def of_unet(theirs: nn.Module, ours: SPADEUNet, size=(8, 4, 8)) -> float:
    noisy = torch.randn(2, ours.latent_channels, *size, generator=torch.Generator().manual_seed(3))
    steps = torch.tensor([3, 711])
    with torch.no_grad():
        expected = theirs(noisy, steps)
        conditions = [ours.encode(label) for label in maps(tuple(2 * n for n in size))]
        found = [ours.eval()(noisy, steps, condition) for condition in conditions]
    return largest([(expected, prediction) for prediction in found])


def old_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As monai-generative, which the published brain weights come from, names them (load_old_state_dict)."""
    return {key.replace(".postconv.", ".conv."): tensor for key, tensor in weights.items()}


# ---- the same output


def test_the_published_brain_autoencoder_becomes_ours_under_old_and_new_names():
    theirs = drawn(AutoencoderKL(**BRAIN_AUTOENCODER))
    for weights in (theirs.state_dict(), old_names(theirs.state_dict())):
        conversion = convert(weights, **SAID)
        assert conversion.kind == "autoencoder" and conversion.skipped == {}
        ours = conversion.module()
        assert isinstance(ours, SPADEAutoencoder) and ours.stride == 8 and not ours.signed
        assert of_autoencoder(theirs, ours) < 1e-5


@pytest.mark.parametrize("splits", [1, 2])
def test_the_published_maisi_autoencoder_becomes_ours(splits):
    theirs = drawn(AutoencoderKlMaisi(**MAISI_AUTOENCODER | {"num_splits": splits}))
    conversion = convert({"epoch": 3, "unet_state_dict": theirs.state_dict()}, **SAID)
    assert conversion.arguments["resampling"] == "smooth" and conversion.arguments["channels"] == [8, 16, 16]
    assert of_autoencoder(theirs, conversion.module(), (8, 32, 8)) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True, "num_res_blocks": [1, 2, 1, 1]},
        {"attention_levels": [False, False, True, True]},
        {"norm_eps": 0.5},
        {"channels": [16, 8], "num_res_blocks": 1, "attention_levels": [False, True]},
    ],
)
def test_other_autoencoders_without_labels_become_ours_too(arguments):
    theirs = drawn(AutoencoderKL(**BRAIN_AUTOENCODER | arguments))
    said = SAID | ({"eps": 0.5} if "norm_eps" in arguments else {})
    assert of_autoencoder(theirs, convert(theirs.state_dict(), **said).module()) < 1e-5


def test_an_autoencoder_of_monai_generative_becomes_ours():
    pytest.importorskip("generative", reason="pip install 'semsynth[generative]'")
    network = importlib.import_module("generative.networks.nets.autoencoderkl").AutoencoderKL
    said = BRAIN_AUTOENCODER | {"attention_levels": [False, False, True, False]}
    theirs = drawn(
        network(**{key: value for key, value in said.items() if key != "channels"}, num_channels=(8, 16, 16, 16))
    )
    conversion = convert(theirs.state_dict(), **SAID)
    assert conversion.skipped and all("never applies it" in reason for reason in conversion.skipped.values())
    assert of_autoencoder(theirs, conversion.module()) < 1e-5


def test_a_maisi_autoencoder_with_attention_becomes_ours():
    both = dict.fromkeys(("with_encoder_nonlocal_attn", "with_decoder_nonlocal_attn"), True)
    theirs = drawn(AutoencoderKlMaisi(**MAISI_AUTOENCODER | both | {"num_splits": 1, "num_res_blocks": [1, 1, 1]}))
    assert of_autoencoder(theirs, convert(theirs.state_dict(), **SAID).module()) < 1e-5


def test_intensities_of_the_training_can_be_said():
    theirs = drawn(AutoencoderKL(**BRAIN_AUTOENCODER))
    ours = convert(theirs.state_dict(), **SAID, signed=True).module()
    assert ours.signed and of_autoencoder(theirs, ours) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_levels": [False, False]},
        {"attention_levels": [False, True], "num_head_channels": 4, "num_res_blocks": [2, 1]},
        {"attention_levels": [True, True], "norm_eps": 0.5},
    ],
)
@pytest.mark.parametrize("package", ["monai", "generative", "maisi"])
def test_a_unet_without_conditions_becomes_ours(package: str, arguments: dict[str, Any]):
    if package == "generative":
        pytest.importorskip("generative", reason="pip install 'semsynth[generative]'")
        network = importlib.import_module("generative.networks.nets.diffusion_model_unet").DiffusionModelUNet
    else:
        network = DiffusionModelUNet if package == "monai" else DiffusionModelUNetMaisi
    widths = {"channels" if package == "monai" else "num_channels": [8, 16]}
    shared = {"spatial_dims": 3, "in_channels": 4, "out_channels": 4, "num_res_blocks": 1, "norm_num_groups": GROUPS}
    theirs = drawn(network(**shared | {"num_head_channels": 8} | widths | arguments))
    said = SAID | {"stride": 2, "head_channels": arguments.get("num_head_channels", 8)}
    said |= {"eps": 0.5} if "norm_eps" in arguments else {}
    conversion = convert({"unet_state_dict": theirs.state_dict(), "scale_factor": torch.tensor(1.2)}, **said)
    ours = conversion.module()
    assert conversion.kind == "denoiser" and isinstance(ours, SPADEUNet)
    assert of_unet(theirs, ours) < 1e-5


@pytest.mark.parametrize("change", ["weight", "bias", "resampling", "label branch", "posterior"])
def test_the_comparison_notices_what_could_be_wrong(change: str):
    theirs = drawn(AutoencoderKlMaisi(**MAISI_AUTOENCODER | {"num_splits": 1}))
    conversion = convert_plain_autoencoder(theirs.state_dict(), **SAID)
    weights, norm = conversion.weights, "decoder.layers.0.norm_0.gamma_beta"
    half = len(weights[f"{norm}.bias"]) // 2
    if change == "weight":
        weights[f"{norm}.bias"][:half] += 1
    elif change == "bias":
        weights[f"{norm}.bias"][half:] = 0
    elif change == "resampling":
        conversion.arguments["resampling"] = "strided"
    elif change == "label branch":
        weights[f"{norm}.weight"].fill_(0.1)
    else:
        weights["encoder.head.bias"] = weights["encoder.head.bias"].roll(4)
    assert of_autoencoder(theirs, conversion.module()) > 1e-3


# ---- a training can start from it


def test_the_label_branch_is_without_effect_at_first_and_learns(tmp_path):
    theirs = drawn(AutoencoderKL(**BRAIN_AUTOENCODER))
    conversion = convert(theirs.state_dict(), **SAID)
    branches = {key.rpartition(".")[0] for key in conversion.weights if ".shared." in key}
    assert conversion.initial.keys() == branches and all(key.startswith("decoder.") for key in branches)
    torch.save(conversion.weights, tmp_path / "init.pt")
    network = SPADEAutoencoder(**json.loads(json.dumps(conversion.arguments)))
    assert take_over(network, tmp_path / "init.pt") == [], "all of it serves as init_weights"

    latent, (one, other, _) = torch.randn(1, 3, 1, 1, 1), maps((8, 8, 8))
    assert torch.equal(network.decode(latent, one), network.decode(latent, other))
    network.decode(latent, one).square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    assert (network.decode(latent, one) - network.decode(latent, other)).abs().max() > 1e-5


def test_a_conversion_is_the_same_every_time_and_leaves_the_random_state_alone():
    weights = drawn(AutoencoderKL(**BRAIN_AUTOENCODER)).state_dict()
    torch.manual_seed(5)
    first = convert(weights, **SAID).weights
    following = torch.rand(1)
    torch.manual_seed(6)
    second = convert(weights, **SAID).weights
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), following)


# ---- what has no counterpart


CROSS = r"transformer_blocks\S+ and \d+ more: cross-attention"
UPDOWN = r"(down|up)sampler\.conv1\S+.*: residual blocks that change the resolution"


@pytest.mark.parametrize(
    ("build", "lacks", "has"),
    [
        (
            lambda: DiffusionModelUNet(**BRAIN_UNET),
            [CROSS, UPDOWN, r"conv_in\.conv\.weight: 7 channels in and 3 out; .*no conditions as channels"],
            "time embedding, residual blocks, last norm and convolution",
        ),
        (
            lambda: DiffusionModelUNetMaisi(**MAISI_UNET),
            [
                r"class_embedding\.weight: class embeddings",
                r"spacing_layer\.0\.weight, .*: inputs for voxel size",
                UPDOWN,
            ],
            "first convolution, time embedding, residual blocks, self-attention, last norm and convolution",
        ),
        (
            lambda: DiffusionModelUNet(**MASK_UNET),
            [CROSS],
            "first convolution, time embedding, residual blocks, resampling convolutions, last norm and convolution",
        ),
        (
            lambda: ControlNetMaisi(**MAISI_CONTROLNET),
            [r"controlnet_cond_embedding\S+ and \d+ more: a ControlNet", r"class_embedding", UPDOWN],
            "first convolution, time embedding, residual blocks, self-attention",
        ),
    ],
)
def test_a_unet_with_other_conditions_is_refused_with_all_its_parts(
    build: Callable[[], nn.Module], lacks: list[str], has: str
):
    weights = build().state_dict()
    entry = "controlnet_state_dict" if any(key.startswith("controlnet") for key in weights) else "unet_state_dict"
    with pytest.raises(InputError, match=r"use these weights with MONAI's own class") as e:
        convert({entry: weights, "scale_factor": torch.tensor(1.0), "epoch": 3, "loss": 0.5}, **SAID)
    assert f"Counterparts there are for {has}; none for:" in str(e.value)
    assert len(e.value.problems) == len(lacks)
    for pattern in lacks:
        assert any(re.search(pattern, line) for line in e.value.problems), (pattern, e.value.problems)


def test_an_autoencoder_that_ours_cannot_be_is_refused_with_the_reason():
    masks = AutoencoderKlMaisi(**MAISI_MASKS).state_dict()
    with pytest.raises(InputError, match=r"an autoencoder of 8 channels in and 12 out; .*MONAI's own class"):
        convert(masks, **SAID)
    transposed = AutoencoderKL(**BRAIN_AUTOENCODER | {"use_convtranspose": True}).state_dict()
    with pytest.raises(InputError, match=r"decoder\.blocks\.\d+\.deconv\.weight: transposed .*use_convtranspose=False"):
        convert(transposed, **SAID)
    flat = AutoencoderKL(**BRAIN_AUTOENCODER | {"spatial_dims": 2}).state_dict()
    with pytest.raises(InputError, match=r"not a 3D network"):
        convert(flat, **SAID)
    weights = AutoencoderKlMaisi(**MAISI_AUTOENCODER).state_dict()
    del weights["encoder.blocks.4.conv1.conv.conv.bias"]
    with pytest.raises(
        InputError, match=r"(?s)not an AutoencoderKlMaisi .*encoder\.blocks\.4\.conv1\.conv\.bias is missing"
    ):
        convert(weights, **SAID)


def test_settings_that_cannot_be_are_refused():
    autoencoder = AutoencoderKL(**BRAIN_AUTOENCODER).state_dict()
    unet = DiffusionModelUNet(3, 4, 4, (1, 1), (8, 16), (False, True), GROUPS, num_head_channels=8).state_dict()
    for weights in (autoencoder, unet):
        with pytest.raises(InputError, match=r"how many classes yours have; give --num-classes"):
            convert(weights, groups=GROUPS)
        with pytest.raises(InputError, match=r"num_groups .*divide the channels \(8, 16.*got 32"):
            convert(weights, num_classes=CLASSES)
        with pytest.raises(InputError, match=r"2 or more classes"):
            convert(weights, num_classes=1, groups=GROUPS)
        with pytest.raises(InputError, match=r"eps must be above 0"):
            convert(weights, **SAID, eps=0.0)
    with pytest.raises(InputError, match=r"--signed says nothing about weights of DiffusionModelUNet"):
        convert(unet, **SAID, signed=True)
    with pytest.raises(InputError, match=r"head_channels must divide the 16 channels of its level, got 5"):
        convert_plain_denoiser(unet, **SAID, head_channels=5)


# ---- files


def test_a_published_file_is_converted_by_the_command_line_and_its_card_rebuilds_the_network(tmp_path, capsys, caplog):
    theirs = drawn(AutoencoderKlMaisi(**MAISI_AUTOENCODER | {"num_splits": 1}))
    source, output = tmp_path / "autoencoder_epoch273.pt", tmp_path / "model.pt"
    torch.save(theirs.state_dict(), source)
    arguments = ["convert", "--weights", str(source), "--output", str(output), f"--groups={GROUPS}"]
    assert main(arguments) == 1 and "--num-classes" in capsys.readouterr().err
    with caplog.at_level(logging.WARNING, logger="semsynth.convert"):
        assert main([*arguments, f"--num-classes={CLASSES}"]) == 0
    told = [record.getMessage() for record in caplog.records if "nothing to be had" in record.getMessage()]
    assert len(told) == 1 and "until it is trained" in told[0]
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["kind"] == "autoencoder" and card["source"] == {"file": source.name, "sha256": sha256(source)}
    assert card["unknown_parents"] == [source.name] and "decoder.layers.0.norm_0.shared" in card["initial"]
    ours = SPADEAutoencoder(**card["arguments"])
    ours.load_state_dict(torch.load(output, weights_only=True))
    assert of_autoencoder(theirs, ours) < 1e-5
