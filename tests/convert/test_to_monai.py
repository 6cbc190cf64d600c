"""Our SPADE networks as MONAI's: the same output, or all the parts that have no counterpart."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SPADEAutoencoderKL, SPADEDiffusionModelUNet, SPADENet
from semsynth.cli.main import main
from semsynth.convert import convert, to_monai
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.autoencoder import SPADEAutoencoder
from semsynth.networks.blocks.spade import SPADE, SPADEOptions, SPADEResBlock
from semsynth.networks.denoiser import SPADEUNet
from torch import nn

pytest.importorskip("einops", reason="MONAI's attention needs it: pip install einops")

BUNDLES = Path(__file__).parents[2] / "bundles"
CLASSES, LATENT = 4, 3
LIKE_MONAI = {
    "hidden": 5,
    "norm": "group",
    "groups": 4,
    "eps": 1e-6,
    "label_slope": 0.01,
    "normalized_modulation": True,
}
AUTOENCODER: dict[str, Any] = {
    "num_classes": CLASSES, "channels": [8, 16], "strides": [1, 2], "latent_channels": LATENT, "spade": LIKE_MONAI,
    "labels": "nearest", "middle": True, "last_norm": True, "resampling": "strided",
}  # fmt: skip
UNET: dict[str, Any] = {
    "num_classes": CLASSES, "latent_channels": LATENT, "channels": [8, 16], "stride": 2,
    "spade": LIKE_MONAI | {"affine": True}, "labels": "nearest", "middle_spade": False, "embedding": "add",
    "resampling": "strided",
}  # fmt: skip


def drawn(network: nn.Module) -> nn.Module:
    """Weights that keep the size of what goes through, norms and biases that are seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(parameter[0].numel(), 2)
            parameter.normal_(0, fan_in**-0.5 if parameter.dim() > 1 else 0.3, generator=generator)
    return network.eval()


def common_channels(network: SPADEAutoencoder) -> SPADEAutoencoder:
    """Mean and log σ² of as many common channels as the latent has, as where the weights came from MONAI."""
    head = network.encoder.head
    generator = torch.Generator().manual_seed(2)
    factors = torch.randn(2 * LATENT, LATENT, generator=generator)
    with torch.no_grad():
        head.weight.copy_(torch.einsum("oz,zchwd->ochwd", factors, head.weight[:LATENT].clone()))
    return network


def one_hot(label: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(label[:, 0], CLASSES).movedim(-1, 1).float()


def labels(size: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, CLASSES, (2, 1, *size), generator=torch.Generator().manual_seed(3))


def largest(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    assert all(expected.std() > 0.05 for expected, _ in pairs)
    return max(float((found - expected).abs().max() / expected.abs().max()) for expected, found in pairs)


def of_autoencoder(ours: SPADEAutoencoder, theirs: nn.Module, *, mean_only: bool = False) -> float:
    label, image = labels((8, 4, 12)), torch.rand(2, 1, 8, 4, 12, generator=torch.Generator().manual_seed(4))
    latent = torch.randn(2, LATENT, *(n // ours.stride for n in (8, 4, 12)), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mean, log_variance = ours.encode(image)
        found = theirs.eval().encode(image * 2 - 1 if ours.signed else image)
        decoded = theirs.decode(latent, one_hot(label))
        pairs = [(mean, found[0]), (ours.decode(latent, label), decoded * 0.5 + 0.5 if ours.signed else decoded)]
        if mean_only:
            assert found[1].max() < 1e-6
        else:
            pairs.append((torch.exp(0.5 * log_variance), found[1]))
    return largest(pairs)


def of_unet(ours: SPADEUNet, theirs: nn.Module) -> float:
    size = (8, 8, 4)
    noisy, steps = torch.randn(2, LATENT, *size, generator=torch.Generator().manual_seed(4)), torch.tensor([3, 711])
    label = labels(tuple(ours.strides[0] * n for n in size))
    with torch.no_grad():
        expected = ours(noisy, steps, ours.encode(label))
        return largest([(expected, theirs.eval()(noisy, steps, one_hot(label)))])


def of_features(ours: nn.Module, theirs: nn.Module, channels: int) -> float:
    x, label = torch.randn(2, channels, 5, 4, 6, generator=torch.Generator().manual_seed(4)), one_hot(labels((5, 4, 6)))
    with torch.no_grad():
        return largest([(ours(x, label), theirs.eval()(x, label))])


# ---- the same output


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"middle": False, "blocks": [1, 2], "attention": [False, True]},
        {"channels": [8, 8, 16], "strides": [1, 2, 2], "signed": False},
        {"channels": [8, 8], "spade": LIKE_MONAI | {"norm": "instance", "eps": 0.5}},
        {"norm_eps": 1e-6, "spade": LIKE_MONAI | {"groups": 2}},
    ],
)
def test_an_autoencoder_gives_the_same_output_in_monai(arguments: dict[str, Any]):
    given = AUTOENCODER | arguments
    ours = common_channels(drawn(SPADEAutoencoder(**given)))
    conversion = to_monai("autoencoder", ours.state_dict(), given)
    assert conversion.kind == "SPADEAutoencoderKL" and conversion.skipped == {}
    assert of_autoencoder(ours, conversion.module()) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention": [True, True], "head_channels": 4, "blocks": [2, 1]},
        {"attention": [False, True], "head_channels": [8, 16], "stride": 1, "dropout": 0.1},
        {"spade": LIKE_MONAI},
        {"channels": [8, 8], "spade": LIKE_MONAI | {"norm": "group", "groups": 8, "eps": 0.5, "affine": True}},
    ],
)
def test_a_unet_gives_the_same_output_in_monai(arguments: dict[str, Any]):
    given = UNET | arguments
    ours = drawn(SPADEUNet(**given))
    conversion = to_monai("denoiser", ours.state_dict(), given)
    assert conversion.kind == "SPADEDiffusionModelUNet"
    assert of_unet(ours, conversion.module()) < 1e-5


@pytest.mark.parametrize("norm", [{"norm": "instance"}, {"norm": "group", "groups": 2}])
@pytest.mark.parametrize("affine", [False, True])
def test_a_normalisation_and_a_residual_block_give_the_same_output_in_monai(norm: dict[str, Any], affine: bool):
    options = LIKE_MONAI | {"kernel_size": 5, "eps": 0.5, "affine": affine} | norm
    ours: nn.Module = drawn(SPADE(CLASSES, 6, SPADEOptions(**options)))
    given: dict[str, Any] = {"label_channels": CLASSES, "channels": 6, "options": options}
    assert of_features(ours, to_monai("spade", ours.state_dict(), given).module(), 6) < 1e-5
    for widths in ((6, 4), (6, 6)):
        ours = drawn(SPADEResBlock(*widths, CLASSES, SPADEOptions(**options), slope=0.1))
        given = {"channels": widths[0], "out_channels": widths[1], "label_channels": CLASSES, "slope": 0.1}
        theirs = to_monai("spade_block", ours.state_dict(), given | {"options": options}).module()
        assert of_features(ours, theirs, 6) < 1e-5


def test_what_came_from_monai_goes_back_as_it_was():
    both = dict.fromkeys(("norm_num_groups", "spade_intermediate_channels"), 4)
    unet = SPADEDiffusionModelUNet(
        3, LATENT, LATENT, CLASSES, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1, **both
    )
    autoencoder = SPADEAutoencoderKL(
        3, CLASSES, channels=(8, 16), attention_levels=(False, False), num_res_blocks=(1, 1), latent_channels=LATENT,
        **both,
    )  # fmt: skip
    for theirs in (unet, autoencoder):
        weights = drawn(theirs).state_dict()
        ours = convert(weights, groups=4)
        back = to_monai(ours.kind, ours.weights, ours.arguments)
        assert back.weights.keys() == weights.keys() and [*back.weights] == [*weights]
        same = [key for key in weights if torch.equal(back.weights[key], weights[key])]
        split = ("quant_conv_mu.", "quant_conv_log_sigma.", "encoder.blocks.8.")  # another split of the same product
        assert all(key.startswith(split) for key in set(weights) - set(same))
    net = drawn(SPADENet(3, 1, 1, CLASSES, [8, 8, 8], [4, 6], z_dim=5, spade_intermediate_channels=7))
    blocks = convert(net.state_dict(), blocks_only=True)
    back = to_monai("spade_net", blocks.weights, blocks.arguments)
    own = {key: tensor for key, tensor in net.decoder.state_dict().items() if key.startswith("blocks.")}
    assert back.weights.keys() == own.keys() and all(torch.equal(back.weights[key], own[key]) for key in own)
    assert back.module().state_dict().keys() == own.keys()
    assert len(back.arguments["blocks"]) == 2 and "SPADENetResBlock" in back.arguments["blocks"][0]["_target_"]


def test_a_posterior_that_was_trained_on_here_goes_as_its_mean_alone():
    ours = drawn(SPADEAutoencoder(**AUTOENCODER))
    with pytest.raises(InputError, match=r"mean and log σ² are not made of 3 common channels.*--mean-only"):
        to_monai("autoencoder", ours.state_dict(), AUTOENCODER)
    conversion = to_monai("autoencoder", ours.state_dict(), AUTOENCODER, mean_only=True)
    assert [*conversion.skipped] == ["encoder.head (log σ²)"]
    assert of_autoencoder(ours, conversion.module(), mean_only=True) < 1e-5
    with pytest.raises(InputError, match=r"--mean-only says nothing about weights of kind denoiser"):
        to_monai("denoiser", {}, UNET, mean_only=True)


@pytest.mark.parametrize("change", ["swapped", "affine", "skips"])
def test_the_comparison_notices_what_could_be_wrong(change: str):
    ours = drawn(SPADEUNet(**UNET))
    conversion = to_monai("denoiser", ours.state_dict(), UNET)
    weights, norm = conversion.weights, "up_blocks.0.resnets.0.norm2"
    if change == "swapped":
        for part in ("weight", "bias"):
            gamma, beta = f"{norm}.mlp_gamma.conv.{part}", f"{norm}.mlp_beta.conv.{part}"
            weights[gamma], weights[beta] = weights[beta], weights[gamma]
    elif change == "affine":
        weights[f"{norm}.param_free_norm.weight"].fill_(1)
    else:
        key = "up_blocks.1.resnets.0.skip_connection.conv.weight"
        weights[key] = weights[key].roll(8, dims=1)
    assert of_unet(ours, conversion.module()) > 1e-3


# ---- what has no counterpart


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"spade": LIKE_MONAI | {"normalized_modulation": False}}, r"normalized_modulation=False: γ and β as"),
        ({"spade": LIKE_MONAI | {"label_slope": 0.0}}, r"label_slope=0: .*MONAI's is 0\.01"),
        ({"spade": LIKE_MONAI | {"norm": "voxel"}}, r"norm='voxel'"),
        ({"spade": LIKE_MONAI | {"kernel_size": 1}}, r"kernel_size=1: MONAI's is 3"),
        ({"spade": LIKE_MONAI | {"norm": "instance"}}, r"8, 16 groups in levels of different widths"),
        ({"labels": "fractions"}, r"labels='fractions': .*nearest voxel"),
        ({"resampling": "smooth"}, r"resampling='smooth'"),
    ],
)
def test_what_monai_cannot_be_told_is_named(change: dict[str, Any], problem: str):
    for kind, given in {"autoencoder": AUTOENCODER, "denoiser": UNET}.items():
        with pytest.raises(InputError, match=r"These parts have no counterpart") as e:
            to_monai(kind, {}, given | change)
        assert len(e.value.problems) == 1, e.value.problems
        with pytest.raises(InputError, match=problem):
            to_monai(kind, {}, given | change)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("autoencoder", {"strides": [2, 1]}, r"strides \[2, 1\]: MONAI's has 1 at the first level"),
        ("autoencoder", {"last_norm": False}, r"last_norm=False"),
        ("autoencoder", {"noise": True}, r"noise: a decoder that is given white noise"),
        ("autoencoder", {"norm_eps": 0.1}, r"norm_eps=0\.1 beside 1e-06 under SPADE"),
        ("autoencoder", {"spade": LIKE_MONAI | {"affine": True}}, r"affine=True: .*in MONAI's autoencoder it has none"),
        ("denoiser", {"middle_spade": True}, r"middle_spade: SPADE in the middle"),
        ("denoiser", {"middle_attention": False}, r"middle_attention=False"),
        ("denoiser", {"embedding": "scale_shift"}, r"embedding='scale_shift'"),
        ("denoiser", {"style_channels": 8}, r"style_channels: a style vector"),
        ("denoiser", {"predictions": 2}, r"predictions=2: noise and latent are predicted apart"),
    ],
)
def test_what_one_network_of_monais_cannot_be_told_is_named(kind: str, change: dict[str, Any], problem: str):
    given = {"autoencoder": AUTOENCODER, "denoiser": UNET}[kind]
    with pytest.raises(InputError, match=problem) as e:
        to_monai(kind, {}, given | change)
    assert len(e.value.problems) == 1


def test_blocks_that_monai_has_no_equal_of_are_refused_with_the_reason():
    given = {"channels": 6, "out_channels": 4, "label_channels": CLASSES, "options": LIKE_MONAI}
    for change, problem in (
        ({"embedding_channels": 5}, r"a block that is given a style"),
        ({"noise": True}, r"a block that is given noise"),
        ({"options": LIKE_MONAI | {"normalized_modulation": False}}, r"normalized_modulation=False"),
        ({"options": LIKE_MONAI | {"groups": 6}}, r"6 do not divide all of \[4, 6\] channels"),
    ):
        ours = SPADEResBlock(**given | change | {"options": SPADEOptions(**(given | change)["options"])})
        with pytest.raises(InputError, match=problem):
            to_monai("spade_block", ours.state_dict(), given | change)


def test_weights_and_arguments_that_do_not_belong_together_are_refused():
    weights = SPADEUNet(**UNET).state_dict()
    with pytest.raises(InputError, match=r"(?s)not a SPADEUNet of the stated arguments; .*has the shape"):
        to_monai("denoiser", weights, UNET | {"channels": [8, 8]})
    with pytest.raises(InputError, match=r"arguments that are not those of a SPADEUNet: .*'depth'"):
        to_monai("denoiser", weights, UNET | {"depth": 3})
    for wrong in ({"channels": 3}, {"spade": {"hidden": "x"}}, {"blocks": ["1", "1"]}, {"num_classes": None}):
        with pytest.raises(InputError, match=r"no network of kind denoiser can be built with the stated arguments"):
            to_monai("denoiser", weights, UNET | wrong)
    with pytest.raises(InputError, match=r"weights of kind 'vqgan' cannot go to MONAI; those of spade, "):
        to_monai("vqgan", weights, UNET)


# ---- files


def written(folder: Path, kind: str, network: nn.Module, arguments: dict[str, Any]) -> Path:
    """Weights with a card as a conversion writes them."""
    path = folder / "ours.pt"
    torch.save(network.state_dict(), path)
    card = {
        "sha256": sha256(path),
        "kind": kind,
        "arguments": arguments,
        "training_cases": [],
        "unknown_parents": ["x"],
    }
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def test_a_file_goes_to_monai_by_the_command_line_and_its_card_builds_the_network(tmp_path, capsys):
    ours = drawn(SPADEUNet(**UNET))
    source, output = written(tmp_path, "denoiser", ours, UNET), tmp_path / "new" / "theirs.pt"
    arguments = ["convert", "--weights", str(source), "--output", str(output), "--to", "monai"]
    assert main(arguments) == 0 and capsys.readouterr().out.strip() == str(output)
    card = json.loads(output.with_suffix(".json").read_text())
    assert card["kind"] == "SPADEDiffusionModelUNet" and card["unknown_parents"] == ["x"]
    assert card["source"] == {"file": "ours.pt", "sha256": sha256(source)} and card["sha256"] == sha256(output)
    assert str(tmp_path) not in output.with_suffix(".json").read_text()
    theirs = ConfigParser({"network": card["arguments"]}).get_parsed_content("network")
    theirs.load_state_dict(torch.load(output, weights_only=True))
    assert of_unet(ours, theirs) < 1e-5
    assert main(arguments) == 1 and "already there" in capsys.readouterr().err
    again = ["convert", "--weights", str(output), "--output", str(tmp_path / "x.pt"), "--to", "monai"]
    assert main(again) == 1 and "weights of MONAI's SPADEDiffusionModelUNet already" in capsys.readouterr().err


def test_a_network_of_a_bundle_goes_to_monai(tmp_path: Path, capsys):
    networks = {
        "autoencoder": common_channels(drawn(SPADEAutoencoder(**AUTOENCODER))),
        "denoiser": drawn(SPADEUNet(**UNET)),
    }
    source = tmp_path / "model.pt"
    state = {f"{name}.{key}": x for name, part in networks.items() for key, x in part.state_dict().items()}
    torch.save(state | {"latent_scale": torch.ones(1)}, source)
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    parts: dict[str, Any] = {
        "autoencoder": {"_target_": "semsynth.networks.autoencoder.SPADEAutoencoder", **deepcopy(AUTOENCODER)},
        "denoiser": {"_target_": "semsynth.networks.denoiser.SPADEUNet", **deepcopy(UNET)},
    }
    for part in parts.values():
        part["num_classes"] = "@num_classes"
    definition = {"_target_": "semsynth.networks.latent_diffusion.LatentDiffusion", **parts}
    config = tmp_path / "bundle" / "configs" / "train.json"
    config.write_text(json.dumps({"num_classes": CLASSES, "network_def": definition}))
    arguments = ["convert", "--weights", str(source), "--to", "monai", "--bundle", str(tmp_path / "bundle")]
    for name, ours in networks.items():
        output = tmp_path / f"{name}.pt"
        assert main([*arguments, "--output", str(output), "--name", name]) == 0
        card = json.loads(output.with_suffix(".json").read_text())
        theirs = ConfigParser({"network": card["arguments"]}).get_parsed_content("network")
        theirs.load_state_dict(torch.load(output, weights_only=True))
        assert (of_autoencoder if name == "autoencoder" else of_unet)(ours, theirs) < 1e-5
    capsys.readouterr()
    for extra, message in (
        ([], "made of several networks; name one of them"),
        (["--name", "discriminator"], "has no network_def.discriminator that can be read"),
        (["--name", "autoencoder.channels"], "names no network"),
    ):
        assert main([*arguments, "--output", str(tmp_path / "x.pt"), *extra]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("bundle", "name", "message"),
    [
        ("spade_ldm", "autoencoder", "norm='voxel': a norm over the channels of each voxel"),
        ("spade_ldm", "denoiser", "predictions=2: noise and latent are predicted apart"),
        ("spade_gan3d", None, "a SPADEGenerator is not converted to MONAI: it starts from the label map"),
        ("pix2pix3d", None, "it has no SPADE"),
        ("med_lsdm", "denoiser", "it works within slices"),
        ("la_unet", None, "it is MONAI's UNet already"),
        ("la_maps", None, "there is no such network in MONAI"),
    ],
)
def test_shipped_weights_say_why_monai_has_no_equal_network(bundle, name, message, tmp_path, capsys):
    folder = BUNDLES / bundle
    arguments = ["convert", "--weights", str(folder / "models" / "model.pt"), "--output", str(tmp_path / "x.pt")]
    named = [] if name is None else ["--name", name]
    assert main([*arguments, "--to", "monai", "--bundle", str(folder), *named]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "x.pt").exists()


def test_mistakes_on_the_command_line_are_one_clear_error(tmp_path: Path, capsys):
    source = written(tmp_path, "denoiser", SPADEUNet(**UNET), UNET)
    bare = tmp_path / "bare.pt"
    torch.save(SPADEUNet(**UNET).state_dict(), bare)
    back = ["--to", "monai"]
    for weights, options, message in (
        (source, ["--to", "nnunet"], "--to must be monai, got 'nnunet'"),
        (source, [*back, "--groups=4", "--signed"], "--groups and --signed can be said without --to alone"),
        (
            source,
            ["--mean-only", "--bundle", str(tmp_path)],
            "--bundle and --mean-only can be said with --to monai alone",
        ),
        (source, [*back, "--name", "denoiser"], "--name says which network of a bundle is meant"),
        (source, [*back, "--bundle", str(tmp_path)], "no configs/train.json in it"),
        (bare, back, "there is no card beside it that says how the network is built"),
        (tmp_path / "none.pt", back, "no such file of weights"),
    ):
        assert main(["convert", "--weights", str(weights), "--output", str(tmp_path / "x.pt"), *options]) == 1
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "x.pt").exists()


def test_files_that_are_no_good_weights_are_refused_and_nothing_is_written(tmp_path: Path, capsys):
    ours = drawn(SPADEUNet(**UNET))
    with torch.no_grad():
        ours.head.weight[0, 0, 0, 0, 0] = float("nan")
    source, output = written(tmp_path, "denoiser", ours, UNET), tmp_path / "out" / "x.pt"
    arguments = ["convert", "--weights", str(source), "--output", str(output), "--to", "monai"]
    assert main(arguments) == 1
    assert "NaN or infinite weights in out.2.conv.weight; nothing is written" in capsys.readouterr().err
    source.write_text("no weights")
    assert main(arguments) == 1 and "is not the file that its card ours.json describes" in capsys.readouterr().err
    card = source.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": sha256(source)}))
    assert main(arguments) == 1 and "cannot be read as weights" in capsys.readouterr().err
    assert not output.parent.exists()
