"""SPADE: the paper's equations, cached modulation, precision, memory, compilation, label pyramids."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hardware import needs_bfloat16
from monai.networks.blocks.spade_norm import SPADE as MonaiSPADE  # noqa: N811
from semsynth.errors import InputError
from semsynth.labels import one_hot
from semsynth.networks.blocks.normalization import affine_free_norm, modulate
from semsynth.networks.blocks.spade import (
    SPADE,
    Modulation,
    NoiseInjection,
    SPADEOptions,
    SPADEResBlock,
    label_pyramid,
    noise_like,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CLASSES = 4
CHANNELS_LAST = torch.channels_last_3d
SIZES = [(6, 6, 6), (5, 7, 3), (16, 3, 2), (1, 8, 9), (9, 1, 1)]


def options(**arguments) -> SPADEOptions:
    return SPADEOptions(**({"hidden": 5, "groups": 4} | arguments))


def spade(channels: int = 8, seed: int = 0, **arguments) -> SPADE:
    torch.manual_seed(seed)
    return SPADE(CLASSES, channels, options(**arguments))


def block(channels: int = 8, out_channels: int = 4, *, seed: int = 0, more: dict | None = None, **arguments):
    torch.manual_seed(seed)
    result = SPADEResBlock(channels, out_channels, CLASSES, options(**arguments), **(more or {}))
    if result.embedding is not None:
        nn.init.normal_(result.embedding.bias)  # so that a forgotten bias is seen
    return result


def features(*size: int, channels: int = 8, batch: int = 1, seed: int = 0) -> torch.Tensor:
    x = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    spread, offset = 1 + torch.arange(channels) % 3, torch.arange(channels) % 4
    return x * spread.view(1, -1, 1, 1, 1) + offset.view(1, -1, 1, 1, 1)


def encoding(*size: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Fractions of classes, of which the last voxel has none."""
    x = torch.rand(batch, CLASSES, *size, generator=torch.Generator().manual_seed(100 + seed)) ** 3
    x = x / x.sum(dim=1, keepdim=True)
    x[:, :, -1, -1, -1] = 0
    return x


def reference(module: SPADE, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Equations 1 and 2 of the paper, written with PyTorch's own functions."""
    o, weights = module.options, dict(module.named_parameters())
    if o.norm == "instance":
        normalised = F.instance_norm(x, eps=o.eps)
    else:
        groups = max(g for g in range(1, o.groups + 1) if x.shape[1] % g == 0)
        normalised = F.group_norm(x, groups, eps=o.eps)
    hidden = F.conv3d(label, weights["shared.weight"], weights["shared.bias"], padding="same")
    hidden = torch.where(hidden > 0, hidden, o.label_slope * hidden)
    gamma, beta = F.conv3d(hidden, weights["gamma_beta.weight"], weights["gamma_beta.bias"], padding="same").chunk(2, 1)
    return (1 + gamma) * normalised + beta


def block_reference(module: SPADEResBlock, x, label, embedding=None, noise=None) -> torch.Tensor:
    """Figure 4 of the paper, with noise after the first convolution and AdaGN after the second normalisation."""

    def bend(y):
        return torch.where(y > 0, y, module.slope * y)

    shortcut = x if module.conv_s is None else module.conv_s(reference(module.norm_s, x, label))
    y = module.conv_0(bend(reference(module.norm_0, x, label)))
    if noise is not None:
        y = y + noise * module.noise.strength[:, None, None, None]
    y = reference(module.norm_1, y, label)
    if embedding is not None:
        scale, shift = module.embedding(embedding).chunk(2, dim=1)
        y = y * (1 + scale[:, :, None, None, None]) + shift[:, :, None, None, None]
    return shortcut + module.conv_1(bend(y))


def gradients(output: torch.Tensor, *wanted) -> list[torch.Tensor]:
    """Of a sum that weighs every value differently."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=output.dtype)
    return list(torch.autograd.grad((output * weight).sum(), wanted))


def close(a, b, *, atol: float = 1e-6, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


# ------------------------------------------------------------------------------------------------------- the equations


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("batch", [1, 2])
def test_spade_is_the_papers_equation(size, norm, batch):
    module, x, label = spade(norm=norm), features(*size, batch=batch), encoding(*size, batch=batch)
    before = x.clone(), label.clone()
    expected = reference(module, x, label)
    close(module(x, label), expected)
    with torch.no_grad():
        close(module(x, label), expected)
    assert torch.equal(x, before[0]) and torch.equal(label, before[1]), "an argument was changed"


@pytest.mark.parametrize("more", [{"kernel_size": 1}, {"kernel_size": 5}, {"label_slope": 0.3}, {"eps": 1.0}])
def test_spades_options_are_used(more):
    module, x, label = spade(**more), features(5, 6, 4), encoding(5, 6, 4)
    close(module(x, label), reference(module, x, label))
    assert not torch.allclose(module(x, label), reference(spade(), x, label), atol=1e-2)
    module, x, label = module.double(), x.double().requires_grad_(), label.double().requires_grad_()
    wanted = [x, label, *module.parameters()]
    for a, b in zip(gradients(module(x, label), *wanted), gradients(reference(module, x, label), *wanted), strict=True):
        close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("channels", "groups", "expected"), [(8, 8, 8), (12, 8, 6), (7, 8, 7), (11, 8, 1), (16, 4, 4)])
def test_as_many_groups_as_divide_the_channels(channels, groups, expected):
    module = spade(channels, groups=groups)
    assert module.groups == expected
    x, label = features(4, 3, 5, channels=channels, batch=2), encoding(4, 3, 5, batch=2)
    close(module(x, label), reference(module, x, label))
    assert spade(channels, norm="instance").groups == channels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("recompute", [None, "labels", "all"])
def test_gradients_to_features_label_and_weights_are_autograds_of_the_equation(size, norm, recompute):
    module = spade(norm=norm, recompute=recompute).double()
    x, label = features(*size, batch=2).double().requires_grad_(), encoding(*size, batch=2).double().requires_grad_()
    wanted = [x, label, *module.parameters()]
    expected = gradients(reference(module, x, label), *wanted)
    assert all(g.abs().max() > 1e-3 for g in expected)
    for ours, theirs in zip(gradients(module(x, label), *wanted), expected, strict=True):
        close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_gradients_in_float32_are_close_too():
    module, x, label = spade(), features(9, 8, 7, batch=2).requires_grad_(), encoding(9, 8, 7, batch=2)
    wanted = [x, *module.parameters()]
    pairs = zip(gradients(module(x, label), *wanted), gradients(reference(module, x, label), *wanted), strict=True)
    for ours, theirs in pairs:
        close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recompute", [None, "labels", "all"])
def test_a_graph_can_be_used_twice(recompute):
    module, x, label = spade(recompute=recompute), features(4, 5, 3).requires_grad_(), encoding(4, 5, 3)
    output, wanted = module(x, label), [x, *module.parameters()]
    first, second = (torch.autograd.grad(output.square().sum(), wanted, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("frozen", ["features", "labels", "neither"])
def test_only_what_needs_a_gradient_gets_one(frozen):
    module, x, label = spade(), features(4, 4, 4), encoding(4, 4, 4)
    x.requires_grad_(frozen != "features")
    module.requires_grad_(frozen != "labels")
    output = module(x, label)
    output.sum().backward()  # a gradient with strides of 0
    assert (x.grad is None) == (frozen == "features")
    assert all((p.grad is None) == (frozen == "labels") for p in module.parameters())


@pytest.mark.parametrize(("groups", "batch", "shift_batch"), [(2, 2, 2), (4, 1, 1), (1, 2, 1), (2, 3, 1)])
@pytest.mark.parametrize("size", [(2, 3, 2), (1, 1, 4), (1, 1, 1)])
def test_modulate_passes_gradcheck(groups, batch, shift_batch, size):
    generator = torch.Generator().manual_seed(0)

    def value(b: int) -> torch.Tensor:
        return torch.randn(b, 4, *size, generator=generator, dtype=torch.float64, requires_grad=True)

    arguments = [value(batch), value(shift_batch), value(shift_batch)]
    assert torch.autograd.gradcheck(lambda *a: modulate(*a, groups=groups, eps=1e-2), arguments)


def test_second_derivatives_are_right_or_refused():
    values = [torch.randn(1, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    x = values[0]

    def penalty(function) -> torch.Tensor:
        (g,) = torch.autograd.grad(function(*values).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x)[0]

    expected = penalty(lambda x, scale, shift: F.group_norm(x, 2, eps=1e-5) * scale + shift)
    try:
        ours = penalty(lambda x, scale, shift: modulate(x, scale, shift, groups=2, eps=1e-5))
    except RuntimeError as error:
        assert "differentiat" in str(error) or "does not require grad" in str(error)
    else:
        close(ours, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_channels_without_spread_become_their_shift_and_have_finite_gradients(norm):
    module, label = spade(norm=norm, groups=8).double(), encoding(4, 5, 3).double()
    x = features(4, 5, 3).double()
    x[:, 2] = 7.0
    x[:, 5] = 0.0
    x.requires_grad_()
    output = module(x, label)
    shift = module.modulation(label).shift
    close(output[:, [2, 5]], shift[:, [2, 5]], atol=1e-9)
    close(gradients(output, x)[0], gradients(reference(module, x, label), x)[0], atol=1e-6, rtol=1e-6)


def test_a_group_of_one_value_becomes_its_shift_without_a_gradient():
    module, x, label = spade(norm="instance"), features(1, 1, 1, batch=2).requires_grad_(), encoding(1, 1, 1, batch=2)
    output = module(x, label)
    close(output, module.modulation(label).shift, atol=1e-3)
    assert gradients(output, x)[0].abs().max() < 1e-3
    assert affine_free_norm(torch.full((1, 3, 1, 1, 1), 5.0), 3, 1e-5).abs().max() < 1e-3


def test_features_need_not_be_contiguous():
    module, label = spade(), encoding(4, 5, 6, batch=2)
    wide = features(6, 5, 8, batch=2)
    for x in (wide[..., ::2, :, 1:7].transpose(2, 3)[:, :, :4, :3], wide[:1, :, :4, :, :6].expand(2, -1, -1, -1, -1)):
        there = label[..., : x.shape[2], : x.shape[3], : x.shape[4]]
        x = x.detach().requires_grad_()
        close(module(x, there), reference(module, x, there))
        close(gradients(module(x, there), x)[0], gradients(reference(module, x, there), x)[0], atol=1e-5, rtol=1e-4)


def test_one_label_encoding_serves_a_batch():
    module, x, label = spade(), features(4, 5, 3, batch=3).requires_grad_(), encoding(4, 5, 3)
    wanted = [x, *module.parameters()]
    close(module(x, label), reference(module, x, label))
    for a, b in zip(gradients(module(x, label), *wanted), gradients(reference(module, x, label), *wanted), strict=True):
        close(a, b, atol=1e-4, rtol=1e-4)


def test_a_label_encoding_or_modulation_of_another_resolution_is_refused():
    network = spade()
    for size in ((4, 4, 5), (1, 1, 1), (8, 8, 8)):
        for condition in (encoding(*size), network.modulation(encoding(*size))):
            with pytest.raises(InputError, match=r"features of \(4, 4, 4\) voxels .* to their resolution first"):
                network(features(4, 4, 4), condition)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "batch"}, "must be group, instance or voxel, got 'batch'"),
        ({"recompute": "everything"}, "recompute must be null, labels or all"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": -1}, "kernel_size must be odd"),
        ({"hidden": 0}, "hidden and groups of 1 or more"),
        ({"label_slope": -0.1}, "label_slope must be 0 or more, got -0.1"),
        ({"groups": 0}, "hidden and groups of 1 or more"),
    ],
)
def test_options_out_of_range_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        SPADEOptions(**arguments)


def test_the_state_is_the_weights_alone():
    assert set(spade().state_dict()) == {"shared.weight", "shared.bias", "gamma_beta.weight", "gamma_beta.bias"}


# -------------------------------------------------------------------------------------------------- MONAI's own blocks


def test_with_normalised_modulation_it_computes_what_monais_spade_computes():
    theirs = MonaiSPADE(CLASSES, 8, spatial_dims=3, hidden_channels=5, norm="INSTANCE")
    ours = spade(norm="instance", label_slope=0.01, normalized_modulation=True)
    ours.shared.load_state_dict(theirs.mlp_shared.conv.state_dict())
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(part.conv, name) for part in (theirs.mlp_gamma, theirs.mlp_beta)]
            getattr(ours.gamma_beta, name).copy_(torch.cat(parts))
    x, label = features(6, 5, 7, batch=2).requires_grad_(), encoding(6, 5, 7, batch=2)
    close(ours(x, label), theirs(x, label), atol=1e-4, rtol=1e-4)
    close(gradients(ours(x, label), x)[0], gradients(theirs(x, label), x)[0], atol=1e-4, rtol=1e-4)


def test_normalised_modulation_has_mean_0_and_variance_1_in_every_volume_whatever_the_weights():
    module, label = spade(normalized_modulation=True), encoding(7, 8, 9, batch=2)
    nn.init.normal_(module.gamma_beta.weight)
    first = module.modulation(label)
    for values in (first.scale - 1, first.shift):
        values = values.flatten(2)
        assert values.shape[:2] == (2, 8)
        assert values.mean(dim=2).abs().max() < 1e-4 and (values.var(dim=2, correction=0) - 1).abs().max() < 1e-2
    with torch.no_grad():
        module.gamma_beta.weight.mul_(30)
        module.gamma_beta.bias.add_(3)
    for a, b in zip(module.modulation(label), first, strict=True):
        close(a, b, atol=1e-2, rtol=1e-2)


# ------------------------------------------------------------------------------------------------- the residual block

VARIANTS = [
    pytest.param(8, 4, {}, id="narrowing"),
    pytest.param(4, 8, {"embedding_channels": 3}, id="widening-with-embedding"),
    pytest.param(8, 8, {"embedding_channels": 3, "noise": True}, id="same-width-with-all"),
    pytest.param(8, 4, {"embedding_channels": 3, "noise": True, "slope": 0.0}, id="narrowing-with-all"),
]


def inputs(module: SPADEResBlock, *size: int, batch: int = 2) -> tuple:
    """Features, label encoding, embedding and noise of a block."""
    generator = torch.Generator().manual_seed(5)
    x = features(*size, channels=module.norm_0.channels, batch=batch)
    embedding = None if module.embedding is None else torch.randn(batch, 3, generator=generator)
    noise = None if module.noise is None else torch.randn(batch, 1, *size, generator=generator)
    return x, encoding(*size, batch=batch), embedding, noise


@pytest.mark.parametrize(("channels", "out", "more"), VARIANTS)
@pytest.mark.parametrize("recompute", [None, "labels", "all"])
def test_the_block_and_its_gradients_are_the_papers_figure(channels, out, more, recompute):
    module = block(channels, out, more=more, recompute=recompute).double()
    values = [None if v is None else v.double() for v in inputs(module, 5, 3, 4)]
    kept = [None if v is None else v.clone() for v in values]
    values[0].requires_grad_()
    expected, output = block_reference(module, *values), module(*values)
    close(output, expected, atol=1e-10, rtol=1e-10)
    wanted = [values[0], *module.parameters()]
    for ours, theirs in zip(gradients(output, *wanted), gradients(expected, *wanted), strict=True):
        close(ours, theirs, atol=1e-8, rtol=1e-8)
    assert all(a is None or torch.equal(a, b) for a, b in zip(values, kept, strict=True)), "an argument was changed"
    with torch.no_grad():
        close(module(*values), expected, atol=1e-10, rtol=1e-10)


def test_what_is_the_same_in_every_voxel_passes_the_instance_norm_of_a_block():
    module = block(8, 8, more={"embedding_channels": 3}, norm="instance")
    x, label, embedding, _ = inputs(module, 6, 6, 6, batch=1)
    change = module(x, label, embedding) - module(x, label, embedding + 1)
    assert change.std() > 0.05, "the embedding was normalised away"


def test_noise_has_a_strength_per_channel_that_is_learnt():
    inject = NoiseInjection(3, strength=0.5)
    with torch.no_grad():
        inject.strength[1] = -2.0
    x, noise = features(3, 4, 5, channels=3, batch=2), torch.randn(2, 1, 3, 4, 5)
    close(inject(x, noise), x + torch.tensor([0.5, -2.0, 0.5]).view(1, 3, 1, 1, 1) * noise)
    (g,) = gradients(inject(x, noise), inject.strength)
    assert g.shape == (3,) and g.abs().min() > 0
    assert inject(x.bfloat16(), noise).dtype == torch.bfloat16


def test_noise_is_of_a_seed_or_drawn_anew():
    x = torch.zeros(2, 5, 4, 3, 6)
    assert torch.equal(noise_like(x, 3), noise_like(x, 3)) and noise_like(x, 3).shape == (2, 1, 4, 3, 6)
    assert not torch.equal(noise_like(x, 3), noise_like(x, 4))
    torch.manual_seed(0)
    first, second = noise_like(x, None), noise_like(x, None)
    assert first.shape == (2, 1, 4, 3, 6) and not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(noise_like(x, None), first)


# ----------------------------------------------------------------------------------------------- modulation as a value


@pytest.mark.parametrize("more", [{}, {"normalized_modulation": True}, {"recompute": "all"}, {"norm": "instance"}])
def test_cached_modulation_gives_what_the_label_gives_for_any_features_and_any_number_of_times(more):
    module, label = spade(**more), encoding(5, 4, 6)
    cached = module.modulation(label)
    kept = [value.clone() for value in cached]
    assert isinstance(cached, Modulation) and all(value.shape == (1, 8, 5, 4, 6) for value in cached)
    for batch, seed in ((1, 0), (1, 1), (3, 2), (1, 0)):
        x = features(5, 4, 6, batch=batch, seed=seed)
        close(module(x, cached), module(x, label))
    assert all(map(torch.equal, cached, kept))


def test_a_blocks_cached_modulation_serves_many_styles_at_once():
    module = block(8, 4, more={"embedding_channels": 3, "noise": True})
    x, label, embedding, noise = inputs(module, 5, 4, 6, batch=3)
    label = label[:1]
    with torch.no_grad():
        cached = module.modulation(label)
        assert set(cached) == {"norm_0", "norm_1", "norm_s"}
        expected = module(x, label.expand(3, -1, -1, -1, -1), embedding, noise)
        for _ in range(2):
            close(module(x, cached, embedding, noise), expected)
        for i in range(3):
            close(module(x[i : i + 1], cached, embedding[i : i + 1], noise[i : i + 1]), expected[i : i + 1])


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_flow_through_cached_modulation(batch):
    module = block(8, 4, more={"embedding_channels": 3}).double()
    x, label, embedding, _ = inputs(module, 4, 3, 5, batch=batch)
    x, label, embedding = x.double().requires_grad_(), label[:1].double().requires_grad_(), embedding.double()
    wanted = [x, label, *module.parameters()]
    cached = module.modulation(label)
    direct = gradients(module(x, label.expand(batch, -1, -1, -1, -1), embedding), *wanted)
    for a, b in zip(gradients(module(x, cached, embedding), *wanted), direct, strict=True):
        close(a, b, atol=1e-9, rtol=1e-9)


# ------------------------------------------------------------------------------------------------- precision and layout


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("grad", [False, True])
def test_statistics_of_half_precision_features_with_a_large_mean_are_those_of_float32(layout, grad):
    # bfloat16 has steps of 2 here: a mean rounded to it is off by a quarter of the spread
    x = (301 + 4 * torch.randn(2, 8, 10, 9, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    x, label = x.contiguous(memory_format=layout), encoding(10, 9, 8, batch=2)
    module = spade().to(memory_format=layout)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x, label)
        modulation = module.modulation(label)
    assert output.dtype == torch.bfloat16 and modulation.scale.dtype == torch.bfloat16
    expected = reference(module, x.float().contiguous(), label)
    assert (output.float() - expected).abs().max() < 0.06
    assert (output.float() - expected).mean(dim=(2, 3, 4)).abs().max() < 4e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("grad", [False, True])
def test_float32_features_with_a_large_mean_and_a_small_spread_keep_it(layout, grad):
    x = (300 + 0.5 * torch.randn(2, 8, 12, 11, 10, generator=torch.Generator().manual_seed(0))).contiguous(
        memory_format=layout
    )
    module, label = spade().to(memory_format=layout), encoding(12, 11, 10, batch=2)
    expected = reference(copy.deepcopy(module).double(), x.double(), label.double()).float()
    with torch.set_grad_enabled(grad):
        close(module(x, label), expected, atol=3e-3, rtol=0)


def test_the_type_of_the_features_is_kept_whatever_the_modulations():
    module, label, x = spade(), encoding(4, 5, 6), features(4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x, label).dtype == torch.float32 and module(x.bfloat16(), label).dtype == torch.bfloat16
        x.requires_grad_()
        output = module(x, label)
    gradients(output, x, *module.parameters())
    close(output, reference(module, x, label), atol=0.05)
    assert module(x.bfloat16(), module.modulation(label)).dtype == torch.bfloat16


def test_a_training_step_in_bfloat16_is_close_to_one_in_float32():
    module = block(8, 4, more={"embedding_channels": 3, "noise": True})
    values = inputs(module, 8, 7, 6)
    expected = gradients(module(*values), *module.parameters())
    for recompute in (None, "labels", "all"):
        module = block(8, 4, more={"embedding_channels": 3, "noise": True}, recompute=recompute)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(*values)
        got = gradients(output.float(), *module.parameters())
        assert all(g.dtype == torch.float32 for g in got)
        vectors = [torch.cat([g.flatten() for g in all_of]) for all_of in (got, expected)]
        assert F.cosine_similarity(*vectors, dim=0) > 0.999
        assert (vectors[0].norm() / vectors[1].norm() - 1).abs() < 0.02


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_gives_the_same_values_and_gradients(batch):
    plain = block(8, 4, more={"embedding_channels": 3, "noise": True})
    module = copy.deepcopy(plain).to(memory_format=CHANNELS_LAST)
    x, *rest = inputs(plain, 6, 5, 4, batch=batch)
    output = module(x.contiguous(memory_format=CHANNELS_LAST), *rest)
    expected = plain(x, *rest)
    close(output, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(output, *module.parameters()), gradients(expected, *plain.parameters()), strict=True):
        close(a, b, atol=1e-4, rtol=1e-4)


@needs_bfloat16
@pytest.mark.parametrize("recompute", [None, "labels", "all"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_mixed_precision_block_in_channels_last_never_leaves_it(recompute, grad):
    # in float32, PyTorch's small convolutions leave it by themselves
    module = block(8, 4, more={"embedding_channels": 3, "noise": True}, recompute=recompute)
    module.to(memory_format=CHANNELS_LAST)
    x, *rest = inputs(module, 6, 5, 4, batch=2)
    x = x.contiguous(memory_format=CHANNELS_LAST)
    seen = []
    for part in module.modules():
        part.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(x, *rest)
    volumes = [value for value in [*seen, output] if value.ndim == 5]
    assert len(volumes) >= 9 and all(value.is_contiguous(memory_format=CHANNELS_LAST) for value in volumes)
    if grad:
        reached = []
        module.conv_0.register_full_backward_pre_hook(lambda _, gradient: reached.append(gradient[0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(x, *rest)
        gradients(output, *module.parameters())
        assert reached[0].is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("grad", [False, True])
def test_features_in_channels_last_stay_so_with_a_modulation_of_one_map_or_of_another_layout(grad):
    module, x = spade(), features(6, 5, 4, batch=2).contiguous(memory_format=CHANNELS_LAST).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        one, two = encoding(6, 5, 4), encoding(6, 5, 4, batch=2)
        last = module.modulation(one.contiguous(memory_format=CHANNELS_LAST))
        for condition in (one, two, module.modulation(one), last):
            output = module(x, condition)
            assert output.is_contiguous(memory_format=CHANNELS_LAST) and not output.is_contiguous()
            if isinstance(condition, torch.Tensor):
                close(output, reference(module, x, condition))


# ---------------------------------------------------------------------------------------- memory, compilation, pickling


def stored(function) -> int:
    """Bytes that the graph of ``function`` keeps for the backward pass, parameters not counted."""
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    total = sum(kept.values())
    del output
    return total


def test_recomputing_stores_less():
    x, label = features(8, 8, 8).requires_grad_(), encoding(8, 8, 8)
    volume = 8**3 * 4
    amounts = {}
    for recompute in (None, "labels", "all"):
        module = spade(hidden=16, recompute=recompute)
        amounts[recompute] = stored(lambda module=module: module(x, label))
    assert amounts[None] - amounts["labels"] >= 16 * volume, "the label branch is still stored"
    assert amounts["labels"] - amounts["all"] >= 8 * volume, "the modulation is still stored"
    assert amounts["all"] <= (8 + CLASSES) * volume, "more than its inputs is stored"
    assert stored(lambda: spade().requires_grad_(False)(x.detach(), label)) == 0


def test_training_stores_no_normalised_features():
    x, label = features(8, 8, 8).requires_grad_(), encoding(8, 8, 8)
    volume = 8**3 * 4
    # features, scale (one storage with the shift), hidden activations, label: 4 + 2·4 + 5 + 4 channels fewer than with
    # a copy of the normalised features
    assert stored(lambda: spade()(x, label)) < (8 + 2 * 8 + 5 + CLASSES) * volume + 1000


def test_a_whole_block_can_be_checkpointed():
    module = block(8, 4, more={"embedding_channels": 3, "noise": True})
    values = inputs(module, 5, 4, 6)
    values[0].requires_grad_()
    wanted = [values[0], *module.parameters()]
    expected = module(*values)
    for recompute in (None, "all"):
        again = block(8, 4, more={"embedding_channels": 3, "noise": True}, recompute=recompute)
        output = checkpoint(again, *values, use_reentrant=False)
        close(output, expected)
        got = gradients(output, values[0], *again.parameters())
        for a, b in zip(got, gradients(module(*values), *wanted), strict=True):
            close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", [None, "labels", "all"])
def test_compiled_as_one_graph_it_gives_the_same_values_and_gradients(recompute):
    # two graphs of each kind would be compiled for a block; its three normalisations are one class
    module, x, label = spade(recompute=recompute), features(4, 3, 5).requires_grad_(), encoding(4, 3, 5)
    wanted = [x, *module.parameters()]
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    output, expected = compiled(x, label), module(x, label)
    close(output, expected)
    for a, b in zip(gradients(output, *wanted), gradients(expected, *wanted), strict=True):
        close(a, b, atol=1e-5, rtol=1e-5)


def test_a_block_compiles_as_one_graph():
    module = block(8, 4, more={"embedding_channels": 3, "noise": True})
    values = inputs(module, 4, 3, 5)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        close(compiled(*values), module(*values))


# -------------------------------------------------------------------------------------------------------- label pyramid


def labels(*size: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CLASSES, (batch, 1, *size), generator=torch.Generator().manual_seed(seed))


def shares(label: torch.Tensor, stride: int) -> torch.Tensor:
    """The share of each class in each block, by counting."""
    b, _, *size = label.shape
    counts = [math.ceil(length / stride) for length in size]
    result = torch.zeros(b, CLASSES, *counts)
    for i in range(b):
        for h in range(counts[0]):
            for w in range(counts[1]):
                for d in range(counts[2]):
                    start = h * stride, w * stride, d * stride
                    window = label[i, 0, start[0] :, start[1] :, start[2] :][:stride, :stride, :stride]
                    for c in range(CLASSES):
                        result[i, c, h, w, d] = (window == c).float().mean()
    return result


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 7, 9), (9, 1, 4), (4, 2, 13), (3, 2, 1), (1, 1, 1)])
def test_fractions_are_the_exact_shares_of_what_lies_inside_each_block(size):
    label = labels(*size, batch=2)
    levels = label_pyramid(label, CLASSES, [4, 1, 2, 2])
    assert sorted(levels) == [1, 2, 4]
    for stride, level in levels.items():
        assert level.dtype == torch.float32
        close(level, shares(label, stride))
        close(level.sum(dim=1), torch.ones_like(level[:, 0]))
    assert torch.equal(levels[1], one_hot(label, CLASSES))


@pytest.mark.parametrize("mode", ["fractions", "nearest"])
def test_a_stride_larger_than_the_volume_gives_one_voxel(mode):
    label = labels(3, 9, 5)
    level = label_pyramid(label, CLASSES, [8], mode=mode)[8]
    assert level.shape == (1, CLASSES, 1, 2, 1)
    if mode == "fractions":
        close(level, shares(label, 8))


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 7, 9), (9, 1, 4), (3, 2, 1)])
def test_nearest_is_pytorchs_nearest_of_the_one_hot_map(size):
    label = labels(*size, batch=2)
    levels = label_pyramid(label, CLASSES, [1, 2, 4], mode="nearest")
    for stride in (1, 2, 4):
        sizes = [math.ceil(length / stride) for length in size]
        expected = F.interpolate(one_hot(label, CLASSES), size=sizes, mode="nearest")
        assert torch.equal(levels[stride], expected)
    assert torch.equal(label_pyramid(label, CLASSES, [2], mode="nearest")[2], levels[2])


def test_thin_walls_stay_in_fractions_and_vanish_under_nearest():
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)
    label[:, :, 3] = 2
    fractions, nearest = (label_pyramid(label, CLASSES, [2, 4], mode=mode) for mode in ("fractions", "nearest"))
    for stride, voxel in ((2, 1), (4, 0)):
        wall = fractions[stride][0, 2]
        close(wall[voxel], torch.full_like(wall[voxel], 1 / stride))
        assert wall.sum() == wall[voxel].sum() and nearest[stride][0, 2].sum() == 0


@pytest.mark.parametrize("mode", ["fractions", "nearest"])
def test_indices_of_no_class_are_zero_in_every_channel(mode):
    label = torch.full((1, 1, 4, 4, 4), -1)
    assert all(level.abs().max() == 0 for level in label_pyramid(label, CLASSES, [1, 2, 4], mode=mode).values())
    label[:, :, :, :, 1::2] = CLASSES
    label[:, :, 2:] = 3
    level = label_pyramid(label, CLASSES, [2], mode=mode)[2]
    assert level[:, :, 0].abs().max() == 0 and level[:, 3, 1].eq(1).all()
    if mode == "fractions":
        label[:, :, 3] = CLASSES
        assert label_pyramid(label, CLASSES, [2])[2][:, 3, 1].eq(0.5).all()


def test_class_indices_may_be_of_any_number_type_and_the_map_is_left_alone():
    label = labels(5, 6, 7)
    kept = label.clone()
    for mode in ("fractions", "nearest"):
        expected = label_pyramid(label, CLASSES, [1, 2], mode=mode)
        for dtype in (torch.uint8, torch.int16, torch.float32, torch.float64):
            levels = label_pyramid(label.to(dtype), CLASSES, [1, 2], mode=mode)
            assert all(torch.equal(levels[stride], expected[stride]) for stride in expected)
    assert torch.equal(label, kept)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["fractions", "nearest"])
def test_a_pyramid_has_the_type_that_was_asked_for(dtype, mode):
    levels, expected = (label_pyramid(labels(16, 7, 9), CLASSES, [1, 8], mode=mode, dtype=d)
                        for d in (dtype, torch.float32))  # fmt: skip
    for stride, level in levels.items():
        assert level.dtype == dtype
        close(level.float(), expected[stride].to(dtype).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "mean"}, "by fractions or nearest, got 'mean'"),
        ({"strides": [2, 0]}, r"strides must be 1 or more, got \(2, 0\)"),
    ],
)
def test_unknown_ways_to_downsample_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        label_pyramid(labels(4, 4, 4), CLASSES, **({"strides": [2]} | arguments))
