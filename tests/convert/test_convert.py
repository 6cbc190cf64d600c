"""Converted weights give the output of the network that they come from; what cannot be converted is refused."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from semsynth.cli.main import main
from semsynth.convert import KINDS, bare_weights, convert, convert_file, convert_spade, convert_spade_block
from semsynth.convert import convert_spade_net as convert_net
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.blocks.spade import SPADE, SPADEOptions, SPADEResBlock, label_pyramid
from semsynth.networks.spade_gan import SPADEGenerator
from torch import nn

LABELS = 3
GROUPS = ("GROUP", {"num_groups": 2, "affine": False})


class Package:
    """The networks of one of the two packages, with weights drawn at random, biases too."""

    def __init__(self, name: str) -> None:
        self.name = name
        networks = importlib.import_module(f"{name}.networks.nets.spade_network")
        self._spade = importlib.import_module(f"{name}.networks.blocks.spade_norm").SPADE
        self._block = networks.SPADENetResBlock if name == "monai" else networks.SPADEResNetBlock
        self._net = networks.SPADENet

    def spade(self, channels: int = 6, *, dims: int = 3, kernel: int = 3, hidden: int = 5, **norm) -> nn.Module:
        return drawn(self._spade(LABELS, channels, kernel, dims, hidden, **norm))

    def block(self, channels=6, out_channels=4, *, dims=3, kernel=3, hidden=5, **arguments) -> nn.Module:
        return drawn(self._block(dims, channels, out_channels, LABELS, hidden, kernel_size=kernel, **arguments))

    def net(self, *, vae: bool = True, dims: int = 3, **arguments) -> nn.Module:
        widths = {"channels" if self.name == "monai" else "num_channels": [4, 6]}  # reversed by it: 6, 4, 1
        arguments = {"z_dim": 5, "is_vae": vae, "spade_intermediate_channels": 7} | widths | arguments
        return drawn(self._net(dims, 1, 1, LABELS, [8] * dims, **arguments))


@pytest.fixture(scope="module", params=["monai", "generative"])
def package(request) -> Package:
    if request.param == "generative":
        pytest.importorskip("generative", reason="pip install 'semsynth[generative]'")
    return Package(request.param)


def drawn(network: nn.Module) -> nn.Module:
    """Weights that keep the size of what goes through, and biases that are seen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(parameter[0].numel(), 2)
            parameter.normal_(0, fan_in**-0.5 if parameter.dim() > 1 else 0.3, generator=generator)
    return network


def inputs(channels: int, size: tuple[int, int, int] = (5, 4, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with a mean and a spread of their own, and one-hot labels of two different maps."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, channels, *size, generator=generator) * 3 + 1
    index = torch.randint(0, LABELS, (2, *size), generator=generator)
    return x, nn.functional.one_hot(index, LABELS).movedim(-1, 1).float()


def difference(theirs: nn.Module, ours: nn.Module, channels: int) -> float:
    """The largest one, over the largest output: in training and evaluation, at once and from cached modulation.

    Below 1e-5 it is rounding only if double precision brings it below 1e-12; else the result is infinite.
    """
    x, label = inputs(channels)
    single = max(_differences(theirs, ours, x, label))
    double = max(_differences(deepcopy(theirs).double(), deepcopy(ours).double(), x.double(), label.double()))
    return single if single > 1e-5 or double < 1e-12 else float("inf")


def _differences(theirs: nn.Module, ours: nn.Module, x: torch.Tensor, label: torch.Tensor) -> Iterator[float]:
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        expected = theirs(x, label).detach()
        assert expected.std() > 0.1
        with torch.no_grad():
            found = [ours(x, label), ours(x, ours.modulation(label))]
        found += [ours(x, label), ours(x, ours.modulation(label))]
        yield from (float((y.detach() - expected).abs().max() / expected.abs().max()) for y in found)


# ---- the same output


@pytest.mark.parametrize(("kernel", "hidden"), [(1, 5), (3, 5), (3, 16), (5, 2)])
def test_a_converted_spade_gives_the_same_output(package, kernel, hidden):
    theirs = package.spade(kernel=kernel, hidden=hidden)
    conversion = convert_spade(theirs.state_dict())
    ours = conversion.module()
    assert isinstance(ours, SPADE) and (ours.label_channels, ours.channels) == (LABELS, 6)
    assert (ours.options.hidden, ours.options.kernel_size, ours.options.norm) == (hidden, kernel, "instance")
    assert difference(theirs, ours, 6) < 1e-5


@pytest.mark.parametrize("channels", [(6, 4), (4, 6), (6, 6), (4, 1)])
@pytest.mark.parametrize(("kernel", "hidden"), [(3, 5), (1, 8), (5, 3)])
def test_a_converted_residual_block_gives_the_same_output(package, channels, kernel, hidden):
    theirs = package.block(*channels, kernel=kernel, hidden=hidden)
    ours = convert_spade_block(theirs.state_dict()).module()
    assert isinstance(ours, SPADEResBlock) and (ours.conv_s is None) == (channels[0] == channels[1])
    assert difference(theirs, ours, channels[0]) < 1e-5


def test_gradients_of_a_converted_block_are_the_same_too(package):
    theirs = package.block()
    ours = convert_spade_block(theirs.state_dict()).module()
    found = []
    for network in (theirs, ours):
        x, label = inputs(6)
        x.requires_grad_()
        label.requires_grad_()
        network(x, label).square().mean().backward()
        found.append((x.grad, label.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


def test_group_norm_epsilon_and_slope_that_weights_do_not_tell_can_be_said(package):
    spade = package.spade(norm="GROUP", norm_params=GROUPS[1] | {"eps": 0.5})
    assert difference(spade, convert_spade(spade.state_dict(), groups=2, eps=0.5).module(), 6) < 1e-5
    for wrong in ({}, {"groups": 3, "eps": 0.5}, {"groups": 2}):
        assert difference(spade, convert_spade(spade.state_dict(), **wrong).module(), 6) > 1e-3, wrong
    block = package.block(norm=GROUPS)
    assert difference(block, convert_spade_block(block.state_dict(), groups=2).module(), 6) < 1e-5
    block.activation = nn.LeakyReLU(0.05)  # an argument of MONAI's, fixed in monai-generative
    assert difference(block, convert_spade_block(block.state_dict(), groups=2, slope=0.05).module(), 6) < 1e-5
    assert difference(block, convert_spade_block(block.state_dict(), groups=2).module(), 6) > 1e-3


@pytest.mark.parametrize("change", ["swapped", "slope", "plain", "kernel", "shift"])
def test_the_comparison_notices_what_could_be_wrong(package, change):
    theirs = package.spade()
    conversion = convert_spade(theirs.state_dict())
    options, weights = conversion.arguments["options"], conversion.weights
    if change == "swapped":
        for key in ("gamma_beta.weight", "gamma_beta.bias"):
            weights[key] = weights[key].roll(6, dims=0)
    elif change == "slope":
        options["label_slope"] = 0.0
    elif change == "plain":
        options["normalized_modulation"] = False
    elif change == "kernel":
        weights["shared.weight"] = weights["shared.weight"].flip(2)
    else:
        weights["shared.bias"].zero_()
    assert difference(theirs, conversion.module(), 6) > 1e-3


@pytest.mark.parametrize("vae", [True, False])
def test_the_blocks_of_a_whole_net_give_the_same_output_at_every_resolution(package, vae):
    net = package.net(vae=vae)
    blocks = convert_net(net.state_dict(), blocks_only=True).module()["blocks"]
    index = torch.randint(0, LABELS, (2, 1, 8, 8, 8), generator=torch.Generator().manual_seed(3))
    label = nn.functional.one_hot(index[:, 0], LABELS).movedim(-1, 1).float()
    levels = label_pyramid(index, LABELS, [4, 2], mode="nearest")
    x = torch.randn(2, 6, 2, 2, 2, generator=torch.Generator().manual_seed(4))
    assert len(blocks) == len(net.decoder.blocks) == 2
    for theirs, ours, stride in zip(net.decoder.blocks, blocks, (4, 2), strict=True):
        expected = theirs(x, label)  # brings the map to its resolution by itself
        assert torch.allclose(ours(x, levels[stride]), expected, atol=1e-5, rtol=0)
        x = net.decoder.upsampling(expected)


def test_block_names_are_those_of_our_generator(package):
    weights = convert_net(package.net().state_dict(), blocks_only=True).weights
    generator = SPADEGenerator(LABELS, channels=(6, 4, 2), style_channels=0, noise=False)  # its second block: 6 to 4
    own = {key.replace("blocks.1.", "blocks.0.") for key in generator.state_dict() if key.startswith("blocks.1.")}
    assert own == {key for key in weights if key.startswith("blocks.0.")}


def test_what_is_said_about_a_net_holds_for_all_its_blocks(package):
    said = {"groups": 1, "eps": 0.5, "slope": 0.05}
    blocks = convert(package.net().state_dict(), blocks_only=True, **said).module()["blocks"]
    assert [block.slope for block in blocks] == [0.05, 0.05]
    norms = [module.options for module in blocks.modules() if isinstance(module, SPADE)]
    assert len(norms) == 6 and {(o.norm, o.groups, o.eps) for o in norms} == {("group", 1, 0.5)}


def test_conversion_shares_no_memory_with_its_source_and_leaves_it_as_it_was(package):
    theirs = package.block()
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    for value in convert_spade_block(theirs.state_dict()).weights.values():
        value.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())


# ---- what a file may hold


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {
            "model": {f"module.{k}": v for k, v in w.items()},
            "optimizer": {"state": {0: {"m": torch.ones(2)}}},
        },
        lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()},
        lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()} | {"loss.weight": torch.ones(1)}},
    ],
)
def test_entries_and_prefixes_around_the_weights_are_taken_off(package, wrap):
    weights = package.block().state_dict()
    found = bare_weights(wrap(weights))
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def test_a_name_tells_which_of_several_networks(package):
    a, b = package.block(6, 6).state_dict(), package.block().state_dict()
    several = {"state_dict": {f"G.{k}": v for k, v in a.items()} | {f"D.{k}": v for k, v in b.items()}}
    assert convert(several, name="G").arguments["out_channels"] == 6
    assert convert({"first": a, "second": b}, name="second").arguments["out_channels"] == 4
    assert convert(package.net().state_dict(), name="decoder.blocks.1").arguments["out_channels"] == 1
    assert convert(package.net().state_dict(), name="decoder.blocks.1.norm_s").kind == "spade"
    with pytest.raises(InputError, match=r"has nothing under 'H'; there are G\.conv_0\.conv\.weight, .* and \d+ more"):
        convert(several, name="H")
    with pytest.raises(InputError, match=r"no weights that can be converted.* It has G\.conv_0.*--name"):
        convert(several)


def test_each_kind_is_recognised_and_takes_only_its_own_settings(package):
    net = package.net().state_dict()
    examples = {"spade": package.spade().state_dict(), "spade_block": package.block().state_dict()}
    found = [convert(weights).kind for weights in examples.values()] + [convert(net, blocks_only=True).kind]
    assert found == [*examples, "spade_net"] == list(KINDS)[:3]
    decoder = {key.removeprefix("decoder."): v for key, v in net.items() if key.startswith("decoder.")}
    assert convert(decoder, blocks_only=True).weights.keys() == convert(net, blocks_only=True).weights.keys()
    with pytest.raises(InputError, match=r"--blocks-only says nothing about weights of SPADENetResBlock"):
        convert(examples["spade_block"], blocks_only=True)
    with pytest.raises(InputError, match=r"--slope says nothing about weights of SPADE; leave it out"):
        convert(examples["spade"], slope=0.1)


# ---- refusals


def test_2d_weights_are_refused(package):
    with pytest.raises(InputError, match=r"not a 3D network: mlp_shared\S+ has the shape \(5, 3, 3, 3\).* third axis"):
        convert(package.spade(dims=2).state_dict())
    for weights in (package.block(dims=2).state_dict(), package.net(dims=2).state_dict()):
        with pytest.raises(InputError, match=r"not a 3D network.*spatial_dims=3"):
            convert(weights)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        ("BATCH", "batch norm .*by each volume itself"),
        (("BATCH", {"affine": False}), "batch norm .*norm='INSTANCE'"),
        (("INSTANCE", {"track_running_stats": True}), "batch norm .or one that tracks statistics"),
        (("INSTANCE", {"affine": True}), "norm with weights .*'affine': False"),
        (("GROUP", {"num_groups": 2}), "norm with weights .* γ and β"),
    ],
)
def test_other_base_norms_are_refused_with_the_reason(package, norm, reason):
    weights = package.block(norm=norm).state_dict()
    with pytest.raises(InputError, match=reason):
        convert(weights)
    with pytest.raises(InputError, match=reason):
        convert({key.removeprefix("norm_0."): v for key, v in weights.items() if key.startswith("norm_0.")})
    if norm == "BATCH":
        with pytest.raises(InputError, match=r"residual block 0: a batch norm .*norm_0\.param_free_norm"):
            convert(package.net(norm=norm).state_dict(), blocks_only=True)


def test_fixed_size_layers_of_a_net_are_refused_by_name_until_only_blocks_are_asked_for(package):
    weights = package.net().state_dict()
    with pytest.raises(
        InputError, match=r"2 residual blocks can be converted, .*leave them out with --blocks-only"
    ) as e:
        convert(weights)
    skipped = convert(weights, blocks_only=True).skipped
    fixed = [f"{layer}: {reason}" for layer, reason in skipped.items() if "tied to one input_shape" in reason]
    assert [line.split(":")[0] for line in fixed] == ["encoder.fc_mu", "encoder.fc_var", "decoder.fc"]
    assert [*skipped][-1] == "decoder.last_conv.conv" and "no counterpart" in skipped["encoder.blocks.0.conv"]
    assert e.value.problems == [f"{layer}: {reason}" for layer, reason in skipped.items()]
    assert len({key.rpartition(".")[0] for key in weights if "decoder.blocks" not in key}) == len(skipped)


def test_a_kernel_that_ours_cannot_have_is_refused():
    theirs = drawn(Package("monai").spade(kernel=(3, 3, 1)))
    with pytest.raises(InputError, match=r"mlp_shared\.conv\.weight has a kernel of 3 × 3 × 1; .*same along all axes"):
        convert(theirs.state_dict())
    even = Package("monai").spade().state_dict()
    even["mlp_shared.conv.weight"] = even["mlp_shared.conv.weight"][..., :2, :2, :2]
    with pytest.raises(InputError, match=r"has a kernel of 2 × 2 × 2; semsynth's is odd"):
        convert(even)


def test_settings_that_cannot_be_are_refused(package):
    weights = package.block().state_dict()
    for groups in (0, 3, -2):
        with pytest.raises(InputError, match=rf"divide the channels \(6, 4, 6\), got {groups}"):
            convert(weights, groups=groups)
    for slope in (-0.1, float("nan")):
        with pytest.raises(InputError, match=r"slope must be 0 or more, got"):
            convert(weights, slope=slope)
    for eps in (0.0, -1.0, float("inf")):
        with pytest.raises(InputError, match=r"eps must be above 0, got"):
            convert(weights, eps=eps)


def changed(weights: dict[str, torch.Tensor], change: str) -> dict[str, torch.Tensor]:
    weights = dict(weights)
    if change == "missing":
        del weights["norm_1.mlp_beta.conv.bias"]
    elif change == "no gamma":
        del weights["norm_0.mlp_gamma.conv.weight"]
    elif change == "extra":
        weights["activation.weight"] = torch.ones(1)  # a PReLU's
    elif change == "shortcut":
        weights["conv_s.conv.weight"] = torch.zeros(4, 6, 3, 3, 3)
    elif change == "beta":
        weights["norm_1.mlp_beta.conv.weight"] = torch.zeros(5, 5, 3, 3, 3)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"not a SPADE residual block .*\n  - norm_1\.mlp_beta\.conv\.bias is missing$"),
        ("no gamma", r"norm_0\.mlp_gamma\.conv\.weight is missing; there are .*Give a whole state dict"),
        ("extra", r"not a SPADE residual block .*\n  - activation\.weight is unknown$"),
        ("shortcut", r"conv_s\.conv\.weight has the shape \(4, 6, 3, 3, 3\), needs \(4, 6, 1, 1, 1\)$"),
        ("beta", r"norm_1\.mlp_beta\.conv\.weight has the shape \(5, .*\), needs \(4, 5, 3, 3, 3\)$"),
    ],
)
def test_weights_that_are_not_quite_a_block_are_refused_by_name(package, change, message):
    with pytest.raises(InputError, match=message):
        convert(changed(package.block().state_dict(), change))


def test_a_net_with_unknown_or_missing_or_unequal_parts_is_refused(package):
    weights = package.net().state_dict()
    with pytest.raises(InputError, match=r"not a SPADENet .*decoder\.attention\.weight are unknown"):
        convert(weights | {"decoder.attention.weight": torch.ones(1)}, blocks_only=True)
    later = {key: value for key, value in weights.items() if "decoder.blocks.0" not in key}
    with pytest.raises(InputError, match=r"residual blocks are missing, there are only \[1\]"):
        convert(later, blocks_only=True)
    with pytest.raises(InputError, match=r"residual blocks are missing, there are only \[\]"):
        convert_net({"decoder.fc.weight": torch.ones(1, 1)})
    other = {f"decoder.blocks.1.{key}": v for key, v in package.block(4, 1, hidden=3).state_dict().items()}
    with pytest.raises(InputError, match=r"residual blocks differ in label channels, hidden width or kernel"):
        convert(weights | other, blocks_only=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Conv3d(1, 1, 3).state_dict(), r"no weights that can be converted.*It has weight, bias"),
        (SPADE(3, 4).state_dict(), r"no weights that can be converted.*SPADENet.*It has shared\.weight"),
        ({"epoch": 3}, r"holds no tensors; give what torch\.save"),
        (torch.ones(3), r"holds no tensors"),
        ([torch.ones(3)], r"holds no tensors"),
        ({}, r"holds no tensors"),
    ],
)
def test_anything_else_is_one_clear_error(content, message):
    with pytest.raises(InputError, match=message):
        convert(content)


# ---- files


def test_a_file_is_converted_by_the_command_line_and_its_card_says_how_to_use_it(package, tmp_path, capsys):
    theirs = package.block(norm=GROUPS)
    source, output = tmp_path / "theirs.ckpt", tmp_path / "new" / "ours.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 4}, source)
    assert main(["convert", "--weights", str(source), "--output", str(output), "--groups=2", "--slope=0.2"]) == 0
    assert capsys.readouterr().out.strip() == str(output)

    text = output.with_suffix(".json").read_text()
    card = json.loads(text)
    assert card["kind"] == "spade_block" and card["skipped"] == {} and card["training_cases"] == []
    assert card["source"] == {"file": "theirs.ckpt", "sha256": sha256(source)} and card["sha256"] == sha256(output)
    assert str(tmp_path) not in text
    arguments = card["arguments"]
    ours = SPADEResBlock(**arguments | {"options": SPADEOptions(**arguments["options"])})
    ours.load_state_dict(torch.load(output, weights_only=True))
    assert difference(theirs, ours, 6) < 1e-5
    assert sorted(path.name for path in output.parent.iterdir()) == ["ours.json", "ours.pt"]


def test_a_net_on_the_command_line_lists_what_it_leaves_out_in_log_and_card(package, tmp_path, capsys, caplog):
    source, output = tmp_path / "net.pt", tmp_path / "blocks.pt"
    torch.save(package.net().state_dict(), source)
    arguments = ["convert", "--weights", str(source), "--output", str(output)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert str(source) in error and "decoder.fc: a linear layer" in error and "--blocks-only" in error
    assert not output.exists() and not output.with_suffix(".json").exists()

    with caplog.at_level(logging.WARNING, logger="semsynth.convert"):
        assert main([*arguments, "--blocks-only"]) == 0
    card = json.loads(output.with_suffix(".json").read_text())
    assert {"encoder.fc_mu", "encoder.fc_var", "decoder.fc", "decoder.last_conv.conv"} <= card["skipped"].keys()
    told = [record.getMessage().split(": ")[1] for record in caplog.records if "convert" in record.name]
    assert told == [f"left out {x}" for x in card["skipped"]]
    assert card["training_cases"] == [] and card["unknown_parents"] == ["net.pt"], "nobody knows what it has seen"
    blocks = card["arguments"]["blocks"]
    assert blocks == [{"channels": 6, "out_channels": 4}, {"channels": 4, "out_channels": 1}]
    options = SPADEOptions(**card["arguments"]["options"])
    shared = {key: card["arguments"][key] for key in ("label_channels", "slope")}
    network = nn.ModuleDict(
        {"blocks": nn.ModuleList(SPADEResBlock(**widths, **shared, options=options) for widths in blocks)}
    )
    assert network.load_state_dict(torch.load(output, weights_only=True)).missing_keys == []


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    source, output = tmp_path / "theirs.pt", tmp_path / "ours.pt"
    torch.save(Package("monai").spade().state_dict(), source)
    arguments = ["convert", "--weights", str(source), "--output", str(output)]
    assert main(arguments) == 0
    before, card = output.read_bytes(), output.with_suffix(".json")
    torch.save(Package("monai").spade(hidden=9).state_dict(), source)
    assert main(arguments) == 1 and output.read_bytes() == before
    assert "already there; give another --output, or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert json.loads(card.read_text())["arguments"]["options"]["hidden"] == 9
    output.unlink()
    with pytest.raises(InputError, match=r"ours\.json: already there"):
        convert_file(source, output)
    content = source.read_bytes()
    with pytest.raises(InputError, match=r"would overwrite what the weights are made from"):
        convert_file(source, tmp_path / "x" / ".." / "theirs.pt", overwrite=True)
    with pytest.raises(InputError, match=r"theirs\.json: is the name of a card"):
        convert_file(source, tmp_path / "theirs.json")
    with pytest.raises(InputError, match=r"is a folder; give --output a file such as model\.pt"):
        convert_file(source, tmp_path)
    assert source.read_bytes() == content


class Trap:
    """Unpickled, it would call."""

    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_are_no_good_weights_are_refused_and_nothing_is_written(tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out" / "ours.pt"
    folder.mkdir()
    weights = Package("monai").spade().state_dict()
    torch.save(weights | {"trap": Trap()}, folder / "trap.pt")
    (folder / "text.pt").write_text("no weights")
    torch.save(weights, folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:-300])
    for name in ("trap", "text", "cut"):
        with pytest.raises(InputError, match=rf"{name}\.pt: cannot be read as weights"):
            convert_file(folder / f"{name}.pt", output)
    assert "executed" not in capsys.readouterr().out
    weights["mlp_beta.conv.weight"][0, 0, 0, 0, 0] = float("nan")
    torch.save(weights, folder / "nan.pt")
    with pytest.raises(InputError, match=r"nan\.pt: NaN or infinite weights in gamma_beta\.weight; nothing is written"):
        convert_file(folder / "nan.pt", output)
    with pytest.raises(InputError, match=r"none\.pt: no such file of weights"):
        convert_file(folder / "none.pt", output)
    assert not output.parent.exists()


def test_mistakes_on_the_command_line_are_one_clear_error(tmp_path, capsys):
    source = tmp_path / "theirs.pt"
    torch.save(Package("monai").block().state_dict(), source)
    output = tmp_path / "ours.pt"
    for option, message in {
        "--groups=two": "--groups must be a whole number, got 'two'",
        "--groups=3": "theirs.pt: groups must be the num_groups",
        "--slope=steep": "--slope must be a number",
        "--blocks-only": "--blocks-only says nothing about weights of SPADENetResBlock",
        "--block-only": "no option --block-only; did you mean blocks-only?",
        "--name=generator": "theirs.pt: has nothing under 'generator'",
    }.items():
        assert main(["convert", "--weights", str(source), "--output", str(output), option]) == 1
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown
    assert not output.exists()
