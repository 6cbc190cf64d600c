"""The SPADE VAE-GAN: sizes, seeds, styles, its encoder, and the trainer that teaches it."""

from __future__ import annotations

import copy
import math

import pytest
import tiny_training
import torch
from hardware import needs_bfloat16
from scipy import stats
from semsynth.errors import InputError
from semsynth.handlers import TrainingCheckpoint
from semsynth.networks.blocks.noise import gaussian_noise, white_noise
from semsynth.networks.blocks.spade import NoiseInjection
from semsynth.networks.discriminators import MultiScaleDiscriminator
from semsynth.networks.spade_gan import LabelModulation, Reconstruction, SPADEGenerator
from semsynth.training.engines.adversarial import VariationalGANTrainer
from semsynth.training.engines.base import LOSSES
from semsynth.training.losses.gan import VariationalGANLoss
from torch.nn import functional as F

CLASSES, STYLE = 4, 6
CHANNELS_LAST = torch.channels_last_3d


def generator(seed: int = 0, **arguments) -> SPADEGenerator:
    """Strides 4, 2 and 1."""
    torch.manual_seed(seed)
    tiny = {"channels": (8, 8, 4), "style_channels": STYLE, "encoder_channels": (4, 8), "head_hidden": 4}
    return SPADEGenerator(CLASSES, **(tiny | {"spade": {"hidden": 4, "groups": 2}} | arguments)).eval()


def label_map(*size: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CLASSES, (batch, 1, *size), generator=torch.Generator().manual_seed(seed))


def images(*size: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def styles(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, STYLE, generator=torch.Generator().manual_seed(seed))


def close(a, b, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def differ(a: torch.Tensor, b: torch.Tensor, by: float = 1e-3) -> bool:
    return bool((a - b).abs().max() > by)


# ---------------------------------------------------------------------------------------------------------------- noise


def test_gaussian_noise_is_normal_and_white():
    noise = gaussian_noise(torch.zeros(2, 3, 41, 40, 39), 5)
    assert noise.shape == (2, 1, 41, 40, 39) and noise.dtype == torch.float32
    values = noise.flatten().double()
    assert values.mean().abs() < 0.01 and (values.var() - 1).abs() < 0.02
    assert (values**3).mean().abs() < 0.03 and ((values**4).mean() - 3).abs() < 0.1
    assert 3.9 < values.abs().max() < 4.9
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.001
    for axis in (2, 3, 4):
        n = noise.shape[axis]
        assert (noise.narrow(axis, 1, n - 1) * noise.narrow(axis, 0, n - 1)).mean().abs() < 0.015
    assert (noise[0] * noise[1]).mean().abs() < 0.015, "items of a batch share their noise"
    for other in (6, 5 + 64, -5):
        assert (noise * gaussian_noise(noise, other)).mean().abs() < 0.015, "seeds share their noise"


def test_a_voxels_noise_does_not_depend_on_the_size_or_the_type():
    large = gaussian_noise(torch.zeros(2, 1, 12, 9, 14), 5)
    assert torch.equal(gaussian_noise(torch.zeros(1, 4, 7, 9, 3), 5), large[:1, :, :7, :, :3])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(gaussian_noise(torch.zeros(2, 1, 12, 9, 14, dtype=dtype), 5), large.to(dtype))


def test_the_first_voxel_is_as_normal_as_any_other_over_the_seeds():
    like = torch.zeros(1, 1, 2, 1, 2)
    drawn = torch.stack([gaussian_noise(like, seed).flatten() for seed in range(1, 1001)])
    assert drawn.mean(dim=0).abs().max() < 0.13 and (drawn.std(dim=0) - 1).abs().max() < 0.1
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.13
    assert (drawn[1:] * drawn[:-1]).mean(dim=0).abs().max() < 0.13


@pytest.mark.parametrize("seed", [-3, 2**31, 2**40, 2**63])
def test_any_whole_number_is_a_seed(seed):
    noise = white_noise(torch.zeros(1, 1, 8, 8, 8), seed)
    assert noise.isfinite().all() and noise.abs().max() <= 3**0.5 + 1e-6 and 0.8 < noise.std() < 1.2
    assert differ(noise, white_noise(noise, seed + 1))
    label, network = label_map(4, 4, 4), generator(noise_seed=seed)
    assert differ(network(label), generator(noise_seed=seed + 1)(label))


# ------------------------------------------------------------------------------------------------------ sizes and seeds


@pytest.mark.parametrize("size", [(8, 8, 8), (13, 9, 5), (1, 1, 1), (3, 2, 17), (4, 1, 6)])
@pytest.mark.parametrize("arguments", [{}, {"labels": "nearest", "style_channels": 0}, {"spade": {"norm": "instance"}}])
def test_any_size_comes_back_as_it_went_in_with_intensities_in_0_1(size, arguments):
    network = generator(**arguments)
    for mode in (network.eval(), network.train()):
        out = mode(label_map(*size, batch=2))
        assert out.shape == (2, 1, *size) and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1 and out.isfinite().all()
        assert out.std() > 1e-4 or size == (1, 1, 1), "one voxel has no spread that a norm could keep"


def test_a_map_padded_to_whole_coarse_voxels_gives_the_same_borders_labels():
    network, label = generator(labels="fractions"), label_map(7, 8, 2)
    by_hand = F.pad(label.float(), [0, 2, 0, 0, 0, 1], mode="replicate")
    ours, padded = network.modulation(label), network.modulation(by_hand)
    close(ours.start, padded.start)
    assert ours.head.scale.shape[2:] == (7, 8, 2), "padding would have a say in the statistics"


def test_sixteen_is_the_coarsest_stride_of_five_widths():
    network = generator(channels=(8, 8, 4, 4, 2))
    assert network.strides == [16, 8, 4, 2, 1] and len(network.blocks) == 4
    levels = []
    for part in network.blocks:
        part.register_forward_hook(lambda _, given, output: levels.append((output.shape[1], *output.shape[2:])))
    assert network(label_map(20, 5, 32)).shape == (1, 1, 20, 5, 32)
    assert levels == [(8, 2, 1, 2), (8, 3, 1, 4), (4, 5, 2, 8), (4, 10, 3, 16)], "no more than covers the volume"


def test_map_and_seed_make_the_volume_and_the_global_random_numbers_are_left_alone():
    label, network, other = label_map(9, 8, 7), generator(), generator(noise_seed=1)
    state = torch.get_rng_state()
    first = network(label)
    torch.rand(3)
    assert torch.equal(network(label), first)
    torch.set_rng_state(state)
    network(label), network.modulation(label), network.draw_style(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert differ(first, other(label)) and differ(first, network(label_map(9, 8, 7, seed=1)))


def test_both_the_style_and_the_noise_are_of_the_seed():
    label = label_map(9, 8, 7)
    network, other = generator(), generator(noise_seed=1)
    assert differ(network.draw_style(0), network.draw_style(1), 0.1)
    same = torch.zeros(1, STYLE)
    assert differ(network(label, style=same), other(label, style=same)), "only the style changes with the seed"
    quiet, other = generator(noise=False), generator(noise=False, noise_seed=1)
    assert differ(quiet(label), other(label)), "only the noise changes with the seed"


def test_seeds_that_are_given_take_the_place_of_the_networks_own():
    label, network = label_map(9, 8, 7, batch=2), generator()
    expected = generator(noise_seed=6)(label)
    assert torch.equal(network(label, noise_seeds=[6]), expected) and torch.equal(
        network(label, noise_seeds=[6, 6]), expected
    )
    assert network.noise_seed == 0
    alone = [network(label[i : i + 1], noise_seeds=[seed]) for i, seed in enumerate((6, 7))]
    close(network(label, noise_seeds=[6, 7]), torch.cat(alone), atol=1e-5)
    with pytest.raises(InputError, match=r"2 label maps need as many seeds, or one for all, got \[6, 7, 8\]"):
        network(label, noise_seeds=[6, 7, 8])


def heard(network: SPADEGenerator) -> list[torch.Tensor]:
    """Filled with the noise that reaches each level of the decoder, from coarse to fine."""
    fields: list[torch.Tensor] = []
    for part in network.modules():
        if isinstance(part, NoiseInjection):
            part.register_forward_hook(lambda _, given, __: fields.append(given[1]))
    return fields


def test_the_levels_of_the_decoder_do_not_share_their_noise():
    network, other = generator(), generator(noise_seed=1)
    fields = heard(network), heard(other)
    for each in (network, other):
        each(label_map(64, 4, 64))
    corners = [field[0, 0, :16, :1, :16].flatten() for field in (*fields[0], *fields[1])]
    assert [field.shape[2] for field in fields[0]] == [16, 32, 64]
    assert torch.corrcoef(torch.stack(corners)).fill_diagonal_(0).abs().max() < 0.25


@pytest.mark.parametrize("training", [False, True])
def test_a_second_channel_takes_the_place_of_the_networks_noise(training):
    network, label = generator().train(training), label_map(9, 6, 7, batch=2).float()
    field = torch.randn(2, 1, 9, 6, 7)
    fields = heard(network)
    with torch.no_grad():
        first, again = (network(torch.cat([label, field], dim=1)) for _ in range(2))
        assert torch.equal(first, again) and differ(first, network(torch.cat([label, -field], dim=1)))
        cached = network.decode(network.modulation(label), network.draw_style(0), field)
    close(cached, first)
    for given, stride in zip(fields, (4, 2, 1), strict=False):
        assert torch.equal(given, field[:, :, ::stride, ::stride, ::stride])
    quiet = generator(noise=False)
    assert torch.equal(quiet(torch.cat([label, field], dim=1)), quiet(label))


def test_noise_is_drawn_anew_in_every_training_step_and_without_it_training_is_deterministic():
    label = label_map(9, 8, 7)
    network, quiet = generator().train(), generator(noise=False).train()
    assert differ(network(label), network(label), 1e-4)
    assert torch.equal(quiet(label), quiet(label)) and torch.equal(quiet(label), quiet.eval()(label))
    assert not any("noise" in name for name, _ in quiet.named_parameters())


def test_every_source_of_noise_is_heard():
    label, network, style = label_map(8, 8, 8), generator(), torch.zeros(1, STYLE)
    strengths = [module for module in network.modules() if hasattr(module, "strength")]
    assert len(strengths) == 3
    base = network(label, style=style)
    for module in strengths:
        with torch.no_grad():
            kept = module.strength.clone()
            module.strength.zero_()
            assert differ(network(label, style=style), base, 1e-3)
            module.strength.copy_(kept)


def test_a_volume_does_not_depend_on_its_neighbours_in_the_batch():
    label, network = label_map(9, 8, 7, batch=3), generator()
    together = network(label)
    close(together, torch.cat([network(item[None]) for item in label]), atol=1e-5)
    same = network(label[:1].expand(2, -1, -1, -1, -1), noise_seeds=[3, 4])
    assert differ(same[0], same[1]), "two seeds share style and noise"
    network = generator(noise=False)
    style = styles(1)
    alone = torch.cat([network(item[None], style=style) for item in label])
    close(network(label, style=style), alone, atol=1e-5)


def test_class_indices_may_be_of_any_number_type_and_are_left_alone():
    network, label = generator(), label_map(9, 8, 7)
    kept, expected = label.clone(), network(label)
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.float64):
        assert torch.equal(network(label.to(dtype)), expected)
    assert torch.equal(label, kept)


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("labels", ["fractions", "nearest"])
def test_an_object_moved_by_the_coarsest_stride_moves_in_the_image(axis, labels):
    network = generator(noise=False, labels=labels).double()
    style, outputs = styles(1).double(), []
    for start in (40, 44):
        label = torch.zeros(1, 1, 96, 4, 4, dtype=torch.float64)
        label[:, :, start : start + 5, 1:, 2:] = 2
        label[:, :, start + 2, 1] = 1
        outputs.append(network(label.transpose(2, axis), style=style).transpose(2, axis))
    first, second = outputs
    assert differ(first, second, 0.01)
    close(second[:, :, 28:68], first[:, :, 24:64], atol=1e-7)


# --------------------------------------------------------------------------------------------------------------- styles


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("place", [0, 1])
def test_the_style_reaches_the_image_through_each_block_alone(norm, place):
    network, label = generator(noise=False, spade={"hidden": 4, "groups": 2, "norm": norm}), label_map(12, 12, 12)
    with torch.no_grad():
        for i, part in enumerate(network.blocks):
            if i != place:
                part.embedding.weight.zero_()
    modulation = network.modulation(label)
    first, second = (network.decode(modulation, style) for style in (styles(1), styles(1, seed=1)))
    assert (first - second).std() > 0.05 * first.std(), "the style was normalised away"
    base = network.decode(modulation, torch.zeros(1, STYLE))
    for unit in torch.eye(STYLE):
        assert (network.decode(modulation, unit[None]) - base).std() > 1e-3, "an element of the style has no effect"


def test_drawn_styles_are_normal_and_independent():
    network, count = generator(style_channels=32), 600
    drawn = drawn_styles(network, count)
    assert drawn.shape == (count, 32) and drawn.dtype == torch.float32
    flat = drawn.double()
    assert flat.mean(dim=0).abs().max() < 0.18 and (flat.std(dim=0) - 1).abs().max() < 0.13, "one element stands out"
    assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.19
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().mean() < 0.2
    assert stats.kstest(flat.flatten().numpy(), "norm").pvalue > 0.001
    assert ((flat**4).mean() - 3).abs() < 0.2 and 3.5 < flat.abs().max() < 4.9
    assert (flat.std(dim=1) - 1).abs().max() < 0.6, "one style stands out"


def test_a_drawn_style_is_a_function_of_the_seed_alone_and_is_scaled():
    network = generator()
    one, again = (network.draw_style(3) for _ in range(2))
    assert one.shape == (1, STYLE) and torch.equal(one, again) and differ(one, network.draw_style(4), 0.1)
    close(generator(style_scale=0.5).draw_style(3), 0.5 * one)
    assert generator(style_scale=0.0).draw_style(3).abs().max() == 0
    label = label_map(9, 8, 7)
    scaled = generator(style_scale=0.5, noise_seed=4)
    close(scaled(label), scaled.decode(scaled.modulation(label), 0.5 * network.draw_style(4)))


def posteriors(count: int, channels: int = STYLE, rank: int = 2) -> torch.Tensor:
    """Means of posteriors on a plane far from 0, as an encoder gives them that uses few of its dimensions."""
    draw = torch.Generator().manual_seed(4)
    centre, basis = 2 * torch.randn(channels, generator=draw), torch.randn(rank, channels, generator=draw)
    return centre + 0.5 * torch.randn(count, rank, generator=draw) @ basis


def covariance(values: torch.Tensor) -> torch.Tensor:
    return torch.cov(values.T, correction=0)


def drawn_styles(network: SPADEGenerator, count: int) -> torch.Tensor:
    """One style for each of the first seeds, ``(count, Z)``."""
    return torch.cat([network.draw_style(seed) for seed in range(count)])


def test_styles_are_drawn_as_the_encoder_gave_them_in_training():
    network, means, log_variance = generator(), posteriors(2000), torch.full((2000, STYLE), -1.0)
    for i in range(2000):
        network.count_styles(means[i : i + 1], log_variance[i : i + 1], 1 / (i + 1))
    drawn = drawn_styles(network, 3000)
    expected = covariance(means) + torch.eye(STYLE) * math.exp(-1.0)
    close(drawn.mean(dim=0), means.mean(dim=0), atol=0.1)
    close(covariance(drawn), expected, atol=0.1)
    network.style_scale = 0.0
    close(drawn_styles(network, 2), means.mean(dim=0).expand(2, -1), atol=1e-4)


def test_styles_are_counted_in_training_alone_and_converge_to_those_of_the_images():
    network, label, real = generator(), label_map(4, 4, 4, batch=2), images(4, 4, 4, batch=2)
    network(label, real), network.train()(label), network.encode(real)
    assert network.style_mean.abs().max() == 0 and torch.equal(network.style_covariance, torch.eye(STYLE))
    made = network(label, real)
    assert differ(network.style_mean, torch.zeros(STYLE), 1e-4) and not network.style_mean.requires_grad
    for _ in range(2000):
        network.count_styles(made.mean, made.log_variance)
    assert not network.style_mean.requires_grad and not network.style_covariance.requires_grad
    close(network.style_mean, made.mean.mean(dim=0).detach(), atol=0.05)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_moments_of_styles_stand_mixed_precision_and_weights_in_float16(amp, half):
    network, means = generator(style_channels=64), posteriors(1500, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        for mean in means:
            network.count_styles(mean[None], torch.full((1, 64), -5.0))
    state = {name: value.half() if half else value for name, value in network.state_dict().items()}
    other = generator(style_channels=64)
    other.load_state_dict(state)
    drawn = drawn_styles(other, 500)
    close(drawn.mean(dim=0), means.mean(dim=0), atol=0.25)
    close(drawn.std(dim=0), means.std(dim=0), atol=0.25)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_given_style_takes_the_place_of_a_drawn_one(batch):
    network, label = generator(), label_map(9, 8, 7, batch=batch)
    drawn, style = network(label), styles(1)
    close(network(label, style=style), network.decode(network.modulation(label), style.expand(batch, -1)))
    assert differ(network(label, style=style), drawn) and torch.equal(style, styles(1))
    assert torch.equal(network(label), drawn)


def test_a_generator_without_style():
    network, label = generator(style_channels=0), label_map(9, 8, 7)
    assert network.encoder is None and isinstance(network(label, images(9, 8, 7)), torch.Tensor)
    close(network(label), network.decode(network.modulation(label), None))
    assert network(label).grad_fn is not None and not any("embedding" in n for n, _ in network.named_parameters())
    with pytest.raises(InputError, match=r"no style \(style_channels 0\)"):
        network.encode(images(9, 8, 7))


# --------------------------------------------------------------------------------------------------- cached modulation


@pytest.mark.parametrize("arguments", [{}, {"style_channels": 0}, {"noise": False}, {"labels": "nearest"}])
def test_decoding_a_cached_modulation_is_the_forward_pass(arguments):
    network, label = generator(**arguments), label_map(9, 6, 7, batch=2)
    style = network.draw_style(0) if network.style_channels else None
    modulation = network.modulation(label)
    assert isinstance(modulation, LabelModulation) and modulation.size == (9, 6, 7)
    for _ in range(2):
        close(network.decode(modulation, style), network(label))


def test_one_modulation_serves_many_styles_at_once_or_in_turn():
    network, label, style = generator(noise=False), label_map(9, 6, 7), styles(3)
    with torch.no_grad():
        modulation = network.modulation(label)
        kept = copy.deepcopy(modulation)
        together = network.decode(modulation, style)
        assert together.shape == (3, 1, 9, 6, 7) and differ(together[0], together[1]) and differ(*together[1:])
        for i in (2, 0, 1):
            close(network.decode(modulation, style[i : i + 1]), together[i : i + 1], atol=1e-5)
        noisy = generator()
        together = noisy.decode(noisy.modulation(label), style[:1].expand(2, -1))
    assert differ(*together), "two samples of one map share their noise"
    flat = [[m.start, *m.head, *(v for b in m.blocks for part in b.values() for v in part)] for m in (modulation, kept)]
    assert all(map(torch.equal, *flat)), "decoding changed the modulation"


def test_gradients_flow_through_the_modulation():
    network, label, style = generator(noise=False).double(), label_map(6, 5, 7), styles(2).double()
    wanted = [(n, p) for n, p in network.named_parameters() if not n.startswith("encoder")]
    weight = torch.rand(2, 1, 6, 5, 7, dtype=torch.float64)
    alone = []
    for i in range(2):
        alone.append((network(label, style=style[i : i + 1]) * weight[i]).sum())
    direct = torch.autograd.grad(sum(alone), [p for _, p in wanted])
    output = network.decode(network.modulation(label), style)
    cached = torch.autograd.grad((output * weight).sum(), [p for _, p in wanted])
    for (name, _), a, b in zip(wanted, cached, direct, strict=True):
        assert b.abs().max() > 0, name
        close(a, b, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- the encoder


def test_an_images_style_is_that_of_its_texture_not_of_its_size():
    network = generator(encoder_channels=(4, 8, 8))
    tile = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    smooth = tile.mean().expand_as(tile)

    def style(image: torch.Tensor, *times: int) -> torch.Tensor:
        mean, log_variance = network.encode(image.repeat(1, 1, *times))
        assert mean.shape == log_variance.shape == (1, STYLE) and mean.dtype == torch.float32
        return mean[0].detach()

    base = style(tile, 6, 6, 6)
    by_size = max(float((style(tile, *times) - base).norm()) for times in ((4, 6, 6), (4, 4, 4), (8, 5, 6)))
    flatter, coarser = 0.5 + (tile - 0.5) * 0.4, F.avg_pool3d(tile, 2).repeat(1, 1, 2, 2, 2)
    for other in (tile + 0.2, tile - 0.2, flatter, smooth, coarser):
        by_look = (style(other, 6, 6, 6) - base).norm()
        assert by_look > 2 * by_size and by_look > 0.5, "two looks have one style"


def test_faint_noise_is_seen_by_its_detail_and_by_the_spread_of_features():
    network, flat = generator(encoder_channels=(4, 8, 8)), torch.full((1, 1, 24, 24, 24), 0.5)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    faint = (network.encode(flat + 0.03 * noise)[0] - network.encode(flat)[0]).norm()
    assert faint > 1, "noise of 0.03 should be as far away as brightness of 0.2"
    with torch.no_grad():
        for level in network.encoder.levels:
            level.bias.fill_(50.0)  # no activation bends: means do not change
    spread = (network.encode(flat + 0.1 * noise)[0] - network.encode(flat)[0]).norm()
    assert spread > 3


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 5), (7, 9, 3)])
def test_images_of_any_size_have_a_finite_style_and_gradient(size):
    network = generator()
    image = images(*size, batch=2).requires_grad_()
    mean, log_variance = network.encode(image)
    (mean.sum() + log_variance.sum()).backward()
    assert mean.shape == (2, STYLE) and mean.isfinite().all() and log_variance.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters()) and image.grad.isfinite().all()
    flat = torch.full((1, 1, 8, 8, 8), 0.5, requires_grad=True)
    network.encode(flat)[0].sum().backward()
    assert flat.grad.isfinite().all()


def test_a_style_is_of_one_image_alone_and_starts_with_little_doubt():
    network, image = generator(), images(9, 8, 7, batch=3)
    mean, log_variance = network.encode(image)
    close(mean[1:2], network.encode(image[1:2])[0], atol=1e-5)
    assert (0.5 * log_variance).exp().max() < 0.5 and mean.std(dim=0).max() > 0.1


def test_the_style_is_computed_in_float32_under_mixed_precision():
    network, image = generator(), images(9, 8, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, log_variance = network.encode(image)
    assert mean.dtype == log_variance.dtype == torch.float32
    assert (mean - network.encode(image)[0]).abs().max() < 0.1


def test_in_training_the_style_is_drawn_around_the_real_images():
    network, label, real = generator(noise=False), label_map(8, 8, 8), images(8, 8, 8)
    made = network(label, real)
    assert isinstance(made, Reconstruction) and made.pred.shape == (1, 1, 8, 8, 8)
    mean, log_variance = network.encode(real)
    assert torch.equal(made.mean, mean) and torch.equal(made.log_variance, log_variance)
    assert differ(network(label, real).pred, made.pred, 1e-4), "nothing was drawn"
    modulation = network.modulation(label)
    with torch.no_grad():
        network.encoder.posterior.bias[STYLE:] = -50.0  # no doubt (but for the clamp)
        close(network(label, real).pred, network.decode(modulation, mean), atol=0.01)
        network.encoder.posterior.bias[STYLE:] = 2.0
        network.encoder.posterior.weight.zero_()
        network.encoder.posterior.bias[:STYLE] = 3.0
        drawn = []
        network.blocks[0].register_forward_pre_hook(lambda _, given: drawn.append(given[2]))
        for _ in range(100):
            network(label_map(3, 3, 3, batch=2), images(3, 3, 3, batch=2))
    drawn = torch.stack(drawn)
    assert (drawn.mean() - 3).abs() < 0.35 and abs(drawn.std() / torch.e - 1) < 0.1
    assert differ(drawn[0, 0], drawn[0, 1], 0.1), "the items of a batch share their style's noise"


def test_every_parameter_is_reached_from_the_image_and_posterior():
    network = generator().train()
    made = network(label_map(12, 8, 9, batch=2), images(12, 8, 9, batch=2))
    (made.pred.var() + made.mean.square().sum() + made.log_variance.exp().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


# ------------------------------------------------------------------------------------- precision, memory, export, state


def test_mixed_precision_gives_nearly_the_volume_of_float32():
    network, label = generator(), label_map(13, 9, 10)
    expected = network(label)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            out, cached = network(label), network.decode(network.modulation(label), network.draw_style(0))
        assert out.dtype == torch.float32 and (out - expected).abs().mean() < 0.01
        assert (out - expected).abs().max() < 0.08 and (cached - out).abs().max() < 0.05


def test_networks_of_another_type_work_too():
    label, real = label_map(6, 5, 7), images(6, 5, 7)
    network, expected = generator(), generator()(label)
    mean = network.encode(real)[0]
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        other = generator().to(dtype)
        assert (other(label).float() - expected).abs().max() < tolerance
        assert (other.encode(real.to(dtype))[0] - mean).abs().max() < 5 * tolerance
        assert other(label, real.to(dtype)).pred.isfinite().all()


def test_channels_last_gives_the_same_volume():
    plain = generator()
    network, label = copy.deepcopy(plain).to(memory_format=CHANNELS_LAST), label_map(9, 8, 7, batch=2)
    close(network(label), plain(label), atol=1e-5)
    close(network(label.contiguous(memory_format=CHANNELS_LAST)), plain(label), atol=1e-5)
    image = images(9, 8, 7)
    close(network.encode(image)[0], plain.encode(image)[0], atol=1e-4)


@needs_bfloat16
def test_mixed_precision_in_channels_last_never_leaves_it():
    network, label = generator().to(memory_format=CHANNELS_LAST), label_map(9, 8, 7, batch=2)
    seen = []
    for part in network.blocks:
        part.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(label)
    assert seen and all(volume.is_contiguous(memory_format=CHANNELS_LAST) for volume in seen)


def test_recomputing_changes_neither_volume_nor_gradients():
    label, real = label_map(9, 8, 7), images(9, 8, 7)
    results = []
    for recompute in (None, "labels", "all"):
        network = generator(spade={"hidden": 4, "groups": 2, "recompute": recompute}).train()
        torch.manual_seed(3)
        made = network(label, real)
        made.pred.var().backward()
        results.append((made.pred, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])))
    for pred, gradient in results[1:]:
        close(pred, results[0][0])
        close(gradient, results[0][1], atol=1e-6)


def test_an_exported_generator_gives_the_eager_volume():
    network, label = generator(), label_map(5, 4, 6)
    exported = torch.export.export(network, (label,), strict=False).module()
    for seed in (0, 1):
        close(exported(label_map(5, 4, 6, seed=seed)), network(label_map(5, 4, 6, seed=seed)), atol=1e-5)


def test_the_state_makes_the_same_generator_again(tmp_path):
    network, other, label = generator(), generator(seed=1), label_map(9, 8, 7)
    network.count_styles(styles(3), torch.zeros(3, STYLE), 0.5)
    assert set(network.state_dict()) == {n for n, _ in network.named_parameters()} | {"style_mean", "style_covariance"}
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(label), network(label))
    assert torch.equal(copy.deepcopy(network)(label), network(label))


def test_weights_from_before_the_moments_of_styles_draw_from_n_0_1():
    network = generator()
    old = {name: value for name, value in network.state_dict().items() if not name.startswith("style_")}
    other = generator(seed=1)
    other.count_styles(styles(3), torch.zeros(3, STYLE), 0.5)
    other.load_state_dict(old)
    assert torch.equal(other(label_map(9, 8, 7)), network(label_map(9, 8, 7)))
    wrapped, theirs = torch.nn.Sequential(other), torch.nn.Sequential(network)
    wrapped.load_state_dict({f"0.{name}": value for name, value in old.items()})
    assert torch.equal(wrapped(label_map(9, 8, 7)), theirs(label_map(9, 8, 7)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": (8,)}, r"needs 2 or more classes and widths .* widths \(8,\)"),
        ({"style_channels": -1}, "style_channels -1"),
        ({"style_scale": -0.5}, "style_scale -0.5"),
        ({"spade": {"norm": "batch"}}, "must be group, instance or voxel"),
        ({"head_hidden": 0}, "hidden and groups of 1 or more"),
        ({"labels": "mean"}, "by fractions or nearest, got 'mean'"),
    ],
)
def test_settings_out_of_range_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        generator(**arguments)(label_map(4, 4, 4))
    with pytest.raises(InputError, match="got 1 classes"):
        SPADEGenerator(1)


# ---------------------------------------------------------------------------------------------------------- the trainer


def batches(count: int = 2, size: int = 8) -> list[dict[str, torch.Tensor]]:
    labels = [label_map(size, size, size, seed=seed) for seed in range(count)]
    return [{"label": label, "image": (label / 3.0) * 0.8 + 0.1} for label in labels]


def loss(**weights) -> VariationalGANLoss:
    return VariationalGANLoss(**({"perceptual_weight": 0} | weights))


def trainer(loss_function: VariationalGANLoss | None = None, *, network: dict | None = None, **arguments):
    model = generator(**(network or {}))
    torch.manual_seed(0)
    discriminator = MultiScaleDiscriminator(CLASSES, scales=2, channels=4, num_layers=1)
    lr = arguments.pop("lr", 1e-2)
    defaults = {
        "device": torch.device("cpu"),
        "max_epochs": 1,
        "train_data_loader": batches(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "d_optimizer": torch.optim.SGD(discriminator.parameters(), lr=lr),
    }
    return VariationalGANTrainer(
        network=model, discriminator=discriminator, loss_function=loss_function or loss(), **(defaults | arguments)
    )


def parameters(engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.network.named_parameters()}


def moved(engine, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the generator's parameters that have moved."""
    return {name for name, p in engine.network.named_parameters() if not torch.equal(before[name], p)}


def test_one_step_moves_decoder_encoder_and_discriminator():
    engine = trainer(train_data_loader=batches(1))
    before, d = parameters(engine), copy.deepcopy(engine.discriminator.state_dict())
    engine.run()
    assert moved(engine, before) == set(before), "a parameter of the generator stayed where it was"
    weights = [name for name, _ in engine.discriminator.named_parameters() if name.endswith("weight")]
    assert len(weights) > 4
    assert all(not torch.equal(d[name], engine.discriminator.state_dict()[name]) for name in weights)
    assert all(p.requires_grad for p in engine.discriminator.parameters())


def test_every_term_has_its_name_and_the_loss_is_the_generators_sum():
    engine = trainer(loss(l1_weight=1.0))
    engine.run()
    output = engine.state.output
    ours = {"g_adversarial", "g_feature", "g_kl", "g_l1"}
    assert set(output[LOSSES]) == ours | {"d_real", "d_fake"}
    assert float(output["loss"]) == pytest.approx(sum(float(output[LOSSES][name]) for name in ours), rel=1e-5)
    assert output["pred"].shape == output["image"].shape and not output["pred"].requires_grad
    assert torch.equal(output["label"], batches()[-1]["image"])


def test_kl_reaches_the_encoder_and_nothing_else():
    only = {"adversarial_weight": 0, "feature_weight": 0}
    engine = trainer(loss(kl_weight=1.0, **only))
    before = parameters(engine)
    engine.run()
    encoder = {name for name in before if name.startswith("encoder")}
    assert moved(engine, before) == encoder and set(engine.state.output[LOSSES]) == {"g_kl", "d_real", "d_fake"}
    engine = trainer(loss(kl_weight=0, l1_weight=1.0, **only))
    engine.run()
    assert moved(engine, before) == set(before), "the encoder learns from the posterior alone"
    assert "g_kl" not in engine.state.output[LOSSES]


def test_kl_is_that_of_the_real_images_posterior():
    engine = trainer(train_data_loader=batches(1), lr=0.0)
    engine.run()
    mean, log_variance = engine.network.encode(batches(1)[0]["image"])
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    close(engine.state.output[LOSSES]["g_kl"], 0.05 * divergence.sum().detach(), atol=1e-4)


def test_the_image_is_made_in_the_style_of_the_real_one():
    preds = []
    for brightness in (0.1, 0.1, 0.9):
        batch = [{"label": label_map(8, 8, 8), "image": torch.full((1, 1, 8, 8, 8), brightness)}]
        engine = trainer(train_data_loader=batch, lr=0.0)
        torch.manual_seed(5)
        engine.run()
        preds.append(engine.state.output["pred"])
    assert torch.equal(preds[0], preds[1]) and differ(preds[0], preds[2], 0.01)


def test_a_generator_without_style_is_trained_too():
    engine = trainer(network={"style_channels": 0})
    before = parameters(engine)
    engine.run()
    assert set(engine.state.output[LOSSES]) == {"g_adversarial", "g_feature", "d_real", "d_fake"}
    assert moved(engine, before) == set(before)


@pytest.mark.parametrize("amp", [False, True])
def test_training_on_one_pair_lowers_its_distance(amp):
    engine = trainer(
        loss(adversarial_weight=0.1, feature_weight=0.1, l1_weight=1.0),
        # not 8: of levels of 2 voxels some processors' bfloat16 kernels give gradients that are not there
        max_epochs=30, train_data_loader=batches(1, 12), amp=amp,
    )  # fmt: skip
    engine.optimizer = engine.learners["network"].optimizer = torch.optim.Adam(engine.network.parameters(), lr=1e-2)
    course = []
    engine.add_event_handler("ITERATION_COMPLETED", lambda e: course.append(float(e.state.output[LOSSES]["g_l1"])))
    engine.run()
    assert sum(course[-5:]) / 5 < 0.5 * course[0] and engine.skipped == 0
    assert engine.state.output["loss"].dtype == torch.float32


def test_a_step_on_a_spoilt_image_is_skipped_for_both_networks():
    data = batches(1)
    data[0]["image"] = data[0]["image"] * float("nan")
    engine = trainer(train_data_loader=data)
    before = copy.deepcopy(engine.network.state_dict())
    engine.run()
    after = engine.network.state_dict()
    assert engine.skipped == 2 and all(torch.equal(before[name], after[name]) for name in before)


def test_the_trainers_own_state_goes_into_another_trainer():
    engine, other = trainer(), trainer()
    engine.learners["discriminator"].guard.skipped = 3
    state = engine.training_state()
    assert set(state) == {"network", "discriminator"}
    other.load_training_state(state)
    assert other.skipped == 3 and other.training_state() == state


def resumable(data, folder, *, epochs: int, resume: bool = False) -> VariationalGANTrainer:
    """A training with random crops, noise and styles, whose whole state is in a checkpoint."""
    engine = trainer(max_epochs=epochs, train_data_loader=tiny_training.loader(data, "gan", workers=0, epoch_cases=2))
    engine.optimizer = engine.learners["network"].optimizer = torch.optim.Adam(engine.network.parameters(), lr=1e-3)
    objects = {
        "network": engine.network,
        "optimizer": engine.optimizer,
        "discriminator": engine.discriminator,
        "d_optimizer": engine.d_optimizer,
    }
    TrainingCheckpoint(folder, objects, resume=resume).attach(engine)
    torch.manual_seed(11)
    return engine


def test_a_resumed_training_gives_bit_for_bit_what_an_uninterrupted_one_does(tiny_dataset, tmp_path):
    def run(engine) -> torch.Tensor:
        engine.run()
        states = [engine.network.state_dict(), engine.discriminator.state_dict()]
        return torch.cat([value.flatten().double() for state in states for value in state.values()])

    whole = run(resumable(tiny_dataset, tmp_path / "a", epochs=2))
    half = run(resumable(tiny_dataset, tmp_path / "b", epochs=1))
    engine = resumable(tiny_dataset, tmp_path / "b", epochs=2, resume=True)
    engine.network.load_state_dict(generator(seed=5).state_dict())
    torch.rand(17)  # resuming must depend neither on weights nor on random numbers before it
    assert torch.equal(run(engine), whole) and not torch.equal(half, whole)
