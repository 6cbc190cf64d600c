"""The pix2pix networks: shapes, ranges, padding, encodings, normalisation, export."""

from __future__ import annotations

import pytest
import torch
from semsynth.errors import InputError
from semsynth.networks.blocks.noise import gaussian_noise, white_noise, white_noises
from semsynth.networks.blocks.normalization import VolumeInstanceNorm
from semsynth.networks.discriminators import ConditionalPatchDiscriminator
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.synthesis.inferers import NoisyWindowInferer
from torch import nn


def generator(**arguments) -> Pix2PixGenerator:
    torch.manual_seed(0)
    return Pix2PixGenerator(4, **({"channels": (4, 8, 8)} | arguments)).eval()


def label_map(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 4, (1, 1, *size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(8, 8, 8), (13, 9, 5), (1, 1, 1), (33, 2, 17)])
def test_any_size_comes_back_as_it_went_in_with_intensities_in_0_1(size):
    out = generator()(label_map(*size))
    assert out.shape == (1, 1, *size) and out.min() >= 0 and out.max() <= 1 and out.isfinite().all()


def test_padding_is_the_repeated_border_so_a_padded_map_gives_the_same_volume():
    network, label = generator(), label_map(7, 8, 6)
    by_hand = nn.functional.pad(label.float(), [0, 2, 0, 0, 0, 1], mode="replicate")
    assert torch.allclose(network(label), network(by_hand)[:, :, :7, :8, :6], atol=1e-6)


def test_one_hot_and_scalar_encodings_tell_all_classes_apart():
    for encoding in ("one_hot", "scalar"):
        network = generator(label_encoding=encoding)
        outputs = [network(torch.full((1, 1, 8, 8, 8), c)) for c in range(4)]
        mixed = [network(label_map(8, 8, 8, seed=s)) for s in range(2)]
        assert not torch.allclose(*mixed), encoding
        assert all(o.isfinite().all() for o in outputs)


def test_class_indices_may_be_of_any_number_type():
    network, label = generator(), label_map(8, 8, 8)
    expected = network(label)
    for dtype in (torch.uint8, torch.int32, torch.float32):
        assert torch.equal(network(label.to(dtype)), expected)


def test_noise_makes_one_volume_per_map_and_seed_and_a_new_one_in_every_training_step():
    label = label_map(9, 8, 7)
    network, other = generator(noise=True), generator(noise=True, noise_seed=1)
    assert torch.equal(network(label), network(label))
    assert not torch.allclose(network(label), other(label), atol=1e-4)
    network.train()
    assert not torch.allclose(network(label), network(label), atol=1e-4)
    twice = network(label.expand(2, -1, -1, -1, -1))
    assert not torch.allclose(twice[0], twice[1], atol=1e-4), "the items of a training batch share their noise"


def test_an_items_noise_is_that_of_its_seed_wherever_it_stands():
    label, network = label_map(9, 8, 7), generator(noise=True)
    maps = torch.cat([label, label.flip(2), label])
    alone = [network(item[None], [seed]) for item, seed in zip(maps, (5, 6, 2**63 + 7), strict=True)]
    assert torch.allclose(network(maps, [5, 6, 2**63 + 7]), torch.cat(alone), atol=1e-5)
    assert torch.allclose(network(maps), torch.cat([network(item[None]) for item in maps]), atol=1e-5)
    with pytest.raises(InputError, match=r"3 label maps need as many seeds, or one for all, got \[5, 6\]"):
        network(maps, [5, 6])
    noise = white_noises(torch.zeros(3, 2, 6, 5, 4), [5, 6, 5])
    assert torch.equal(noise[0], noise[2]) and torch.equal(noise[1:2], white_noise(torch.zeros(1, 1, 6, 5, 4), 6))


def test_white_noise_is_white_and_a_voxels_value_does_not_depend_on_the_size():
    noise = white_noise(torch.zeros(2, 3, 30, 31, 32), 5)
    assert noise.shape == (2, 1, 30, 31, 32)
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    for axis in (2, 3, 4):
        n = noise.shape[axis]
        assert (noise.narrow(axis, 1, n - 1) * noise.narrow(axis, 0, n - 1)).mean().abs() < 0.02
    assert (noise[0] * noise[1]).mean().abs() < 0.02, "items of a batch share their noise"
    assert torch.equal(white_noise(torch.zeros(1, 1, 30, 8, 40), 5)[..., :32], noise[:1, :, :, :8])


def test_five_levels_and_the_weights_budget():
    network = Pix2PixGenerator(4)
    assert len(network.downs) == len(network.ups) == 5
    assert 2 * sum(p.numel() for p in network.parameters()) < 12_000_000, "float16 weights must stay under 12 MB"


def test_no_transposed_convolution():
    assert not any(isinstance(m, nn.ConvTranspose3d) for m in Pix2PixGenerator(4).modules())


@pytest.mark.parametrize("noise", [False, True])
def test_torchscript_gives_the_eager_volume(noise):
    network, label = generator(noise=noise), label_map(9, 8, 7).float()
    assert torch.allclose(torch.jit.script(network)(label), network(label), atol=1e-6)


@pytest.mark.parametrize("norm", ["BATCH", ("group", {"num_groups": 2}), ("instance", {"affine": True})])
def test_monais_norms_can_be_named(norm):
    assert generator(norm=norm)(label_map(8, 8, 8)).shape == (1, 1, 8, 8, 8)


@pytest.mark.parametrize("batch", [1, 3])
def test_volume_instance_norm_is_pytorchs_instance_norm(batch):
    x = torch.randn(batch, 4, 5, 6, 7, requires_grad=True)
    ours, theirs = VolumeInstanceNorm(4), nn.InstanceNorm3d(4, affine=True)
    for norm in (ours, theirs):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(x.shape)
    gradients = [torch.autograd.grad((norm(x) * weight).sum(), [x, *norm.parameters()]) for norm in (ours, theirs)]
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_one_voxel_becomes_the_bias():
    norm = VolumeInstanceNorm(3)
    nn.init.constant_(norm.bias, 0.5)
    assert norm(torch.randn(2, 3, 1, 1, 1)).eq(0.5).all()


def test_discriminator_sees_label_map_and_image():
    torch.manual_seed(0)
    discriminator = ConditionalPatchDiscriminator(4, channels=4, num_layers=2).eval()
    label, image = label_map(16, 16, 16), torch.rand(1, 1, 16, 16, 16)
    logits = discriminator(label, image)[-1]
    assert logits.shape[:2] == (1, 1) and logits[0, 0].numel() > 1
    assert not torch.allclose(discriminator(label_map(16, 16, 16, seed=1), image)[-1], logits)
    assert not torch.allclose(discriminator(label, image.flip(2))[-1], logits)
    assert next(discriminator.parameters()).shape[1] == 2, "paper: one label and one image channel"
    assert next(ConditionalPatchDiscriminator(4, label_encoding="one_hot").parameters()).shape[1] == 5


def test_the_detail_channel_is_blind_to_smooth_brightness():
    torch.manual_seed(0)
    discriminator = ConditionalPatchDiscriminator(4, channels=4, num_layers=1, detail=True).eval()
    first = discriminator.net.initial_conv.conv.weight
    assert first.shape[1] == 3
    with torch.no_grad():
        first[:, :2] = 0  # only the detail is seen
    label, image = label_map(16, 16, 16), torch.rand(1, 1, 16, 16, 16) * 0.5
    assert torch.allclose(discriminator(label, image)[-1], discriminator(label, image + 0.2)[-1], atol=1e-4)
    assert not torch.allclose(
        discriminator(label, image)[-1], discriminator(label, image.mean().expand_as(image))[-1], atol=1e-2
    )


def test_settings_out_of_range_are_named():
    with pytest.raises(InputError, match="label_encoding must be one_hot or scalar"):
        Pix2PixGenerator(4, label_encoding="onehot")
    with pytest.raises(InputError, match="2 or more classes"):
        Pix2PixGenerator(1)


def test_windows_of_one_volume_share_its_noise():
    label = label_map(24, 24, 24)
    windows = NoisyWindowInferer(noise=True, noise_seed=3, roi_size=(16, 16, 16), overlap=0.5, mode="gaussian")

    def second_channel(x):
        return x[:, 1:2].clone()  # MONAI weighs the output in place

    assert torch.allclose(windows(label, second_channel), white_noise(torch.zeros(1, 1, 24, 24, 24), 3), atol=1e-5)
    assert torch.allclose(windows(label, lambda x: x[:, :1].clone()), label.float(), atol=1e-5)
    network = generator(noise=True, noise_seed=3)
    whole = NoisyWindowInferer(noise=True, noise_seed=3, roi_size=(24, 24, 24))(label, network)
    assert torch.allclose(whole, network(label), atol=1e-5)
    maps, seeds = torch.cat([label, label.flip(3)]), [4, 9]
    alone = torch.cat([windows(maps[i : i + 1], network, noise_seeds=[seeds[i]]) for i in range(2)])
    assert torch.allclose(windows(maps, network, noise_seeds=seeds), alone, atol=1e-5)


def test_windows_begin_at_multiples_where_a_network_takes_every_nth_voxel_of_the_noise():
    label, seen = label_map(21, 18, 16), []
    windows = NoisyWindowInferer(noise=True, normal=True, multiple=8, roi_size=(16, 16, 16), overlap=0.5)

    def coarse_noise(x):
        seen.append(x[:, 1:2, ::8, ::8, ::8])
        return x[:, :1].clone()

    assert torch.allclose(windows(label, coarse_noise), label.float(), atol=1e-5)
    whole = gaussian_noise(torch.zeros(1, 1, 24, 24, 16), 0)[:, :, ::8, ::8, ::8]
    for window in seen:
        assert all((whole - value).abs().min() < 1e-6 for value in window.flatten()), "voxels between the coarse ones"


def test_a_thin_stack_can_be_discriminated():
    discriminator = ConditionalPatchDiscriminator(4, channels=4, num_layers=3).eval()
    assert discriminator(label_map(32, 24, 5), torch.rand(1, 1, 32, 24, 5))[-1].isfinite().all()
