"""Converted autoencoders and diffusion U-Nets give the output of the networks that they come from."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from semsynth.cli.main import main
from semsynth.convert import KINDS, convert, convert_autoencoder, convert_denoiser
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.autoencoder import SPADEAutoencoder
from semsynth.networks.blocks.residual import Attention, Downsample
from semsynth.networks.denoiser import SPADEUNet
from torch import nn

LABELS, LATENT, GROUPS = 4, 3, 4
SIZE = (8, 4, 12)


class Package:
    """The networks of one of the two packages, tiny, with weights drawn at random."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._networks = [
            getattr(importlib.import_module(f"{name}.networks.nets.spade_{file}"), network)
            for file, network in {
                "autoencoderkl": "SPADEAutoencoderKL",
                "diffusion_model_unet": "SPADEDiffusionModelUNet",
            }.items()
        ]

    def _built(self, kind: int, **arguments) -> nn.Module:
        channels = {"channels" if self.name == "monai" else "num_channels": arguments.pop("channels")}
        arguments = {"spatial_dims": 3, "label_nc": LABELS, "norm_num_groups": GROUPS} | arguments | channels
        return drawn(self._networks[kind](spade_intermediate_channels=5, **arguments))

    def autoencoder(self, *, channels=(8, 16), blocks=1, attention=None, middle=True, **arguments) -> nn.Module:
        both = dict.fromkeys(("with_encoder_nonlocal_attn", "with_decoder_nonlocal_attn"), middle)
        levels = attention or [False] * len(channels)
        arguments = {"latent_channels": LATENT, "num_res_blocks": blocks, "attention_levels": levels} | both | arguments
        return self._built(0, channels=channels, **arguments)

    def unet(self, *, channels=(8, 16), blocks=1, attention=None, heads=8, **arguments) -> nn.Module:
        levels = attention or [False] * len(channels)
        arguments = {"num_res_blocks": blocks, "attention_levels": levels, "num_head_channels": heads} | arguments
        return self._built(1, channels=channels, **{"in_channels": LATENT, "out_channels": LATENT} | arguments)


@pytest.fixture(scope="module", params=["monai", "generative"])
def package(request) -> Package:
    if request.param == "generative":
        pytest.importorskip("generative", reason="pip install 'semsynth[generative]'")
    else:
        pytest.importorskip("einops", reason="MONAI's attention needs it: pip install einops")
    return Package(request.param)


@pytest.fixture
def monai() -> Package:
    pytest.importorskip("einops", reason="MONAI's attention needs it: pip install einops")
    return Package("monai")


def drawn(network: nn.Module) -> nn.Module:
    """Weights that keep the size of what goes through, those that start at zero too, and biases that are seen.

    Attention is made to choose: where it is about the same for all voxels, queries and keys hardly matter.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = max(parameter[0].numel(), 2)
            scale = 3.0 if re.search(r"\.(to_q|to_k|qkv)\.", name) else 1.0
            parameter.normal_(0, scale * fan_in**-0.5 if parameter.dim() > 1 else 0.3, generator=generator)
    return network.eval()


def volumes(channels: int, size: tuple[int, ...], stride: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, and a label map ``stride`` times as large with its one-hot encoding; two of each."""
    generator = torch.Generator().manual_seed(2)
    label = torch.randint(0, LABELS, (2, 1, *(stride * length for length in size)), generator=generator)
    one_hot = nn.functional.one_hot(label[:, 0], LABELS).movedim(-1, 1).float()
    return torch.randn(2, channels, *size, generator=generator), label, one_hot


Outputs = list[tuple[torch.Tensor, torch.Tensor]]


def largest(
    outputs: Callable[[nn.Module, nn.Module, torch.dtype], Outputs], theirs: nn.Module, ours: nn.Module
) -> float:
    """The largest difference, over the largest output.

    Below 1e-5 it is rounding only if double precision brings it to that of our float32 outputs; else it is infinite.
    """
    single = _largest(outputs, theirs, ours, torch.float32)
    if single > 1e-5:
        return single
    return single if _largest(outputs, theirs, ours, torch.float64) < 4e-7 else float("inf")


def _largest(
    outputs: Callable[[nn.Module, nn.Module, torch.dtype], Outputs],
    theirs: nn.Module,
    ours: nn.Module,
    dtype: torch.dtype,
) -> float:
    with torch.no_grad():
        pairs = outputs(deepcopy(theirs).to(dtype), deepcopy(ours).to(dtype).eval(), dtype)
    assert all(expected.std() > 0.05 for expected, _ in pairs)
    return max(float((y.to(dtype) - x).abs().max() / x.abs().max()) for x, y in pairs)


def of_autoencoder(theirs: nn.Module, ours: SPADEAutoencoder, dtype: torch.dtype) -> Outputs:
    """Posterior of an image, and the image of a latent."""
    image, label, one_hot = volumes(1, SIZE, 1)
    image = image.clamp(-2, 2).to(dtype) / 2  # in [-1, 1]
    latent = torch.randn(2, LATENT, *(n // ours.stride for n in SIZE), generator=torch.Generator().manual_seed(3))
    mean, log_variance = ours.encode((image + 1) / 2)
    expected = [*theirs.encode(image), *[theirs.decode(latent.to(dtype), one_hot.to(dtype))] * 2]
    decoded = [ours.decode(latent, given) * 2 - 1 for given in (label, ours.modulation(label))]
    return list(zip(expected, [mean, torch.exp(0.5 * log_variance), *decoded], strict=True))


def of_unet(theirs: nn.Module, ours: SPADEUNet, dtype: torch.dtype) -> Outputs:
    noisy, label, one_hot = volumes(LATENT, (8, 8, 4), 2)
    steps, levels = torch.tensor([3, 711]), ours.encode(label)
    expected = theirs(noisy.to(dtype), steps, one_hot.to(dtype))
    return [(expected, ours(noisy, steps, given)) for given in (levels, ours.modulation(levels))]


def difference(theirs: nn.Module, ours: nn.Module) -> float:
    return largest(of_autoencoder if isinstance(ours, SPADEAutoencoder) else of_unet, theirs, ours)


# ---- the same output


AUTOENCODERS = {
    "plain": {"middle": False},
    "middle": {"blocks": 2},
    "attention": {"channels": (8, 8, 16), "blocks": (2, 1, 1), "attention": (False, True, True)},
    "attention, no middle": {"attention": (True, True), "blocks": (1, 2), "middle": False},
    "narrow": {"channels": (16, 8, 4), "blocks": (1, 1, 2), "attention": (False, False, True)},
}


@pytest.mark.parametrize("case", AUTOENCODERS)
def test_a_converted_autoencoder_gives_the_same_posterior_and_the_same_image(package, case):
    said = AUTOENCODERS[case]
    theirs = package.autoencoder(**said)
    conversion = convert_autoencoder(theirs.state_dict(), groups=GROUPS)
    arguments, channels = conversion.arguments, said.get("channels", (8, 16))
    blocks = said.get("blocks", 1)
    assert arguments["channels"] == list(channels) and arguments["latent_channels"] == LATENT
    assert arguments["num_classes"] == LABELS and arguments["spade"]["hidden"] == 5
    assert arguments["blocks"] == ([blocks] * len(channels) if isinstance(blocks, int) else list(blocks))
    assert arguments["attention"] == list(said.get("attention", [False] * len(channels)))
    assert arguments["middle"] == said.get("middle", True)
    ours = conversion.module()
    assert isinstance(ours, SPADEAutoencoder) and ours.stride == 2 ** (len(channels) - 1)
    assert difference(theirs, ours) < 1e-5


UNETS = {
    "middle only": {"heads": 16},
    "several heads": {"blocks": 2, "attention": (False, True), "heads": 4},
    "all levels": {"attention": (True, True), "heads": 8},
    "as a list": {
        "channels": (8, 16, 16),
        "blocks": (2, 1, 1),
        "attention": (False, True, False),
        "heads": (0, 4, 8),
    },
    "one level": {"channels": (8,), "blocks": 2, "attention": (True,)},
    "odd width": {"channels": (9, 6), "blocks": (1, 2), "heads": 3, "norm_num_groups": 3},
}


@pytest.mark.parametrize("case", UNETS)
def test_a_converted_unet_gives_the_same_prediction(package, case):
    said = UNETS[case]
    theirs = package.unet(**said)
    settings = {"groups": said.get("norm_num_groups", GROUPS), "head_channels": said.get("heads", 8), "stride": 2}
    conversion = convert_denoiser(theirs.state_dict(), **settings)
    arguments, channels = conversion.arguments, said.get("channels", (8, 16))
    blocks = said.get("blocks", 1)
    assert arguments["channels"] == list(channels) and arguments["latent_channels"] == LATENT
    assert arguments["blocks"] == ([blocks] * len(channels) if isinstance(blocks, int) else list(blocks))
    assert arguments["attention"] == list(said.get("attention", [False] * len(channels)))
    ours = conversion.module()
    assert isinstance(ours, SPADEUNet) and isinstance(ours.middle[1], Attention)
    assert difference(theirs, ours) < 1e-5


def test_attention_as_monai_can_have_it_otherwise(monai):
    for other in ({"include_fc": False}, {"use_combined_linear": True}):
        theirs = monai.autoencoder(attention=(False, True), **other)
        assert difference(theirs, convert_autoencoder(theirs.state_dict(), groups=GROUPS).module()) < 1e-5
        unet = monai.unet(attention=(True, True), heads=4, **other)
        settings = {"groups": GROUPS, "head_channels": 4, "stride": 2}
        assert difference(unet, convert_denoiser(unet.state_dict(), **settings).module()) < 1e-5


def test_a_projection_that_is_never_applied_is_left_out_and_named():
    pytest.importorskip("generative", reason="pip install 'semsynth[generative]'")
    theirs = Package("generative").autoencoder()
    skipped = convert_autoencoder(theirs.state_dict(), groups=GROUPS).skipped
    assert [*skipped] == ["encoder.blocks.5.proj_attn", "decoder.blocks.2.proj_attn"]
    assert "never applies it" in skipped["decoder.blocks.2.proj_attn"]


def test_what_the_weights_of_an_autoencoder_do_not_tell_can_be_said(package):
    theirs = package.autoencoder(norm_eps=0.5)
    weights = theirs.state_dict()
    assert difference(theirs, convert_autoencoder(weights, groups=GROUPS, eps=0.5).module()) < 1e-5
    wrong = ({"groups": 2, "eps": 0.5}, {"groups": GROUPS}, {"groups": GROUPS, "eps": 0.5, "spade_eps": 0.01})
    for settings in wrong:
        assert difference(theirs, convert_autoencoder(weights, **settings).module()) > 1e-3, settings
    one = package.autoencoder(channels=(8,), middle=False)  # the same names in both packages
    settings = {"groups": GROUPS} | ({} if package.name == "monai" else {"spade_eps": 1e-5})
    assert difference(one, convert_autoencoder(one.state_dict(), **settings).module()) < 1e-5


def test_what_the_weights_of_a_unet_do_not_tell_can_be_said(package):
    theirs = package.unet(norm_eps=0.5, heads=4, attention=(True, True))
    right = {"groups": GROUPS, "eps": 0.5, "head_channels": 4, "stride": 2}
    assert difference(theirs, convert_denoiser(theirs.state_dict(), **right).module()) < 1e-5
    for wrong in ({"groups": 2}, {"eps": 1e-6}, {"head_channels": 8}, {"head_channels": None}):
        assert difference(theirs, convert_denoiser(theirs.state_dict(), **right | wrong).module()) > 1e-3, wrong
    single = package.unet(heads=(8, 16), attention=(True, True))
    settings = {"groups": GROUPS, "head_channels": None, "stride": 2}
    assert difference(single, convert_denoiser(single.state_dict(), **settings).module()) < 1e-5


@pytest.mark.parametrize("change", ["modulation", "attention", "posterior", "padding", "rescale", "slope", "labels"])
def test_the_comparison_notices_what_could_be_wrong_in_an_autoencoder(package, change):
    theirs = package.autoencoder(channels=(8, 8))
    conversion = convert_autoencoder(theirs.state_dict(), groups=GROUPS)
    weights = conversion.weights
    if change == "modulation":
        rolled(weights, "decoder.layers.0.norm_0.gamma_beta", 8)
    elif change == "attention":
        exchange_query_and_key(weights, "decoder.layers.1.qkv", 8)
    elif change == "posterior":
        rolled(weights, "encoder.head", LATENT)
    elif change == "rescale":
        weights["decoder.rescale.bias"].zero_()
    elif change == "slope":
        conversion.arguments["spade"]["label_slope"] = 0.0
    elif change == "labels":
        conversion.arguments["labels"] = "fractions"
    ours = conversion.module()
    if change == "padding":
        shift_padding(ours)
    assert difference(theirs, ours) > 1e-3


@pytest.mark.parametrize("change", ["modulation", "affine", "attention", "padding", "time", "embedding", "skips"])
def test_the_comparison_notices_what_could_be_wrong_in_a_unet(package, change):
    theirs = package.unet(channels=(8, 8))
    conversion = convert_denoiser(theirs.state_dict(), groups=GROUPS, stride=2)
    weights = conversion.weights
    if change == "modulation":
        rolled(weights, "up.0.block.norm_1.gamma_beta", 8)
    elif change == "affine":
        weights["up.0.block.norm_1.weight"].fill_(1)
    elif change == "attention":
        exchange_query_and_key(weights, "middle.1.qkv", 8)
    elif change == "time":
        weights["time.0.weight"] = weights["time.0.weight"].roll(4, dims=1)  # sines before cosines
    elif change == "embedding":
        weights["down.0.block.embedding.bias"].zero_()
    elif change == "skips":
        weights["up.1.block.shortcut.weight"] = weights["up.1.block.shortcut.weight"].roll(8, dims=1)
    ours = conversion.module()
    if change == "padding":
        shift_padding(ours)
    assert difference(theirs, ours) > 1e-3


def rolled(weights: dict[str, torch.Tensor], layer: str, channels: int) -> None:
    for part in ("weight", "bias"):
        weights[f"{layer}.{part}"] = weights[f"{layer}.{part}"].roll(channels, dims=0)


def exchange_query_and_key(weights: dict[str, torch.Tensor], layer: str, channels: int) -> None:
    for part in ("weight", "bias"):
        q, k, v = weights[f"{layer}.{part}"].split(channels)
        weights[f"{layer}.{part}"] = torch.cat([k, q, v])


def shift_padding(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, Downsample):
            module.before = 1 - module.before


# ---- kinds and files


def test_both_are_recognised_in_a_checkpoint_that_holds_them(package):
    autoencoder, unet = package.autoencoder().state_dict(), package.unet().state_dict()
    assert list(KINDS)[3:5] == ["autoencoder", "denoiser"]
    for wrapped in (
        {"state_dict": {f"stage_1.{k}": v for k, v in autoencoder.items()} | {f"unet.{k}": v for k, v in unet.items()}},
        {"stage_1": {f"module.{k}": v for k, v in autoencoder.items()}, "unet": unet, "epoch": 3},
    ):
        assert convert(wrapped, name="stage_1", groups=GROUPS).kind == "autoencoder"
        assert convert(wrapped, name="unet", groups=GROUPS, stride=2).kind == "denoiser"
    assert convert(autoencoder, name="decoder.blocks.1.norm1", groups=GROUPS).kind == "spade"
    with pytest.raises(InputError, match=r"--stride says nothing about weights of SPADEAutoencoderKL; leave it out"):
        convert(autoencoder, stride=2)
    with pytest.raises(InputError, match=r"--slope says nothing about weights of SPADEDiffusionModelUNet"):
        convert(unet, slope=0.1)


def test_files_are_converted_by_the_command_line_and_their_cards_rebuild_the_networks(package, tmp_path, capsys):
    theirs = {"stage_1": package.autoencoder(), "unet": package.unet()}
    source = tmp_path / "both.ckpt"
    torch.save({name: network.state_dict() for name, network in theirs.items()}, source)
    for name, network in {"stage_1": SPADEAutoencoder, "unet": SPADEUNet}.items():
        output = tmp_path / f"{name}.pt"
        arguments = ["convert", "--weights", str(source), "--output", str(output), f"--name={name}", "--groups=4"]
        assert main(arguments) == 0
        assert capsys.readouterr().out.strip() == str(output)
        card = json.loads(output.with_suffix(".json").read_text())
        assert card["source"] == {"file": "both.ckpt", "sha256": sha256(source)} and card["sha256"] == sha256(output)
        # the stride leaves no trace in the weights: in the card it is the packages' default
        ours = network(**card["arguments"] | ({"stride": 2} if name == "unet" else {}))
        ours.load_state_dict(torch.load(output, weights_only=True))
        assert difference(theirs[name], ours) < 1e-5


def test_a_conversion_shares_no_memory_with_its_source(package):
    for theirs in (package.autoencoder(), package.unet()):
        before = {key: value.clone() for key, value in theirs.state_dict().items()}
        for value in convert(theirs.state_dict(), groups=GROUPS).weights.values():
            value.fill_(7)
        assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())


# ---- refusals


def test_2d_weights_are_refused(package):
    for theirs in (package.autoencoder(spatial_dims=2), package.unet(spatial_dims=2)):
        with pytest.raises(InputError, match=r"not a 3D network: \S+ has the shape .* third axis.*spatial_dims=3"):
            convert(theirs.state_dict(), groups=GROUPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"with_conditioning": True, "cross_attention_dim": 5},
            r"transformer_blocks\S+ and \d+ more: cross-attention; .*with_conditioning=False",
        ),
        ({"num_class_embeds": 2}, r"class_embedding\.weight: class embeddings, .*without num_class_embeds"),
        ({"resblock_updown": True}, r"sampler\.conv1\S+, .*that change the resolution; .*resblock_updown=False"),
        ({"out_channels": 6}, r"3 channels in and 6 out; .*in_channels and out_channels alike"),
        ({"label_nc": 1}, r"trained with label_nc=1; .*2 or more classes.*one-hot"),
    ],
)
def test_a_unet_that_ours_cannot_be_is_refused_with_the_reason(package, arguments, message):
    with pytest.raises(InputError, match=message):
        convert(package.unet(**arguments).state_dict(), groups=GROUPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"with_decoder_nonlocal_attn": False},
            r"non-local attention in the encoder but not in the decoder; .*with_decoder_nonlocal_attn alike",
        ),
        (
            {"with_encoder_nonlocal_attn": False, "attention": (False, True)},
            r"non-local attention in the decoder but not in the encoder; .*with_encoder_nonlocal_attn",
        ),
        ({"in_channels": 2}, r"an autoencoder of 2 channels in and 1 out; .*in_channels=1 and out_channels=1"),
        ({"out_channels": 3}, r"an autoencoder of 1 channels in and 3 out; .*one image channel"),
        ({"label_nc": 1}, r"trained with label_nc=1; .*2 or more classes.*one-hot"),
    ],
)
def test_an_autoencoder_that_ours_cannot_be_is_refused_with_the_reason(package, arguments, message):
    with pytest.raises(InputError, match=message):
        convert(package.autoencoder(**arguments).state_dict(), groups=GROUPS)


def test_settings_that_cannot_be_are_refused(package):
    autoencoder, unet = package.autoencoder().state_dict(), package.unet().state_dict()
    for weights in (autoencoder, unet):
        with pytest.raises(InputError, match=r"num_groups .*divide the channels \(8, 16\), got 32"):
            convert(weights)  # the packages' default
        for eps in (0.0, float("nan")):
            with pytest.raises(InputError, match=r"eps must be above 0, got"):
                convert(weights, groups=GROUPS, eps=eps)
    with pytest.raises(InputError, match=r"eps must be above 0, got -1"):
        convert(autoencoder, groups=GROUPS, spade_eps=-1.0)
    for heads in (0, -8, (8,), (8, 0)):
        with pytest.raises(InputError, match=r"head_channels must be 1 or more, .* each of the 2 levels, got"):
            convert(unet, groups=GROUPS, head_channels=heads)
    with pytest.raises(InputError, match=r"head_channels must divide the 16 channels of its level, got 5"):
        convert(unet, groups=GROUPS, head_channels=5)
    with pytest.raises(InputError, match=r"stride of 1 or more, got .* and 0$"):
        convert(unet, groups=GROUPS, stride=0)


def test_weights_that_are_not_quite_such_networks_are_refused_by_name(package):
    autoencoder, unet = package.autoencoder().state_dict(), package.unet().state_dict()
    beta = "decoder.blocks.1.norm2.mlp_beta.conv.bias"
    with pytest.raises(InputError, match=rf"not a SPADEAutoencoderKL .*\n  - {beta} is missing$"):
        convert({key: value for key, value in autoencoder.items() if key != beta}, groups=GROUPS)
    with pytest.raises(InputError, match=r"quant_conv_mu\.conv\.bias has the shape \(4,\), needs \(3,\)$"):
        convert(autoencoder | {"quant_conv_mu.conv.bias": torch.zeros(4)}, groups=GROUPS)
    with pytest.raises(InputError, match=r"C convolution, .* are none in the encoder and CRARRSRNC in the decoder"):
        convert({key: value for key, value in autoencoder.items() if "encoder.blocks.2" not in key}, groups=GROUPS)
    decoder = {key: value for key, value in autoencoder.items() if not key.startswith("encoder")}
    with pytest.raises(InputError, match=r"not a SPADEAutoencoderKL .* are none in the encoder"):
        convert(decoder, groups=GROUPS)
    with pytest.raises(InputError, match=r"not a SPADEDiffusionModelUNet .*\n  - extra\.weight is unknown$"):
        convert(unet | {"extra.weight": torch.ones(1)}, groups=GROUPS)
    later = {key: value for key, value in unet.items() if not key.startswith("up_blocks.0")}
    with pytest.raises(InputError, match=r"up_blocks\.0\.resnets\.0\.norm1\.mlp_shared\.conv\.weight is missing"):
        convert(later, groups=GROUPS)
    coarse = {key: value for key, value in unet.items() if not key.startswith("down_blocks.1")}
    with pytest.raises(InputError, match=r"down_blocks\.1\.resnets\.0\.conv1\.conv\.weight is missing"):
        convert(coarse, groups=GROUPS)


@pytest.mark.parametrize(("option", "heads"), [("4", 4), ("4,8", [4, 8])])
def test_the_command_takes_heads_and_stride(package: Package, option: str, heads, tmp_path) -> None:
    source, output = tmp_path / "unet.pt", tmp_path / "model.pt"
    torch.save(package.unet(attention=[False, True], heads=4).state_dict(), source)
    arguments = ["convert", "--weights", str(source), "--output", str(output), "--groups=4"]
    assert main([*arguments, f"--head-channels={option}", "--stride=2"]) == 0
    card = json.loads(output.with_suffix(".json").read_text())["arguments"]
    assert (card["head_channels"], card["stride"]) == (heads, 2)
