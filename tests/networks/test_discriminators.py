"""The multi-scale discriminator: what each scale sees, sizes that must work, norms, and the way it computes."""

from __future__ import annotations

import copy

import pytest
import torch
from semsynth.errors import InputError
from semsynth.labels import one_hot
from semsynth.networks.blocks.normalization import VolumeInstanceNorm
from semsynth.networks.discriminators import ConditionalPatchDiscriminator, MultiScaleDiscriminator, halved
from torch import nn


def multi_scale(**arguments) -> MultiScaleDiscriminator:
    torch.manual_seed(0)
    return MultiScaleDiscriminator(4, **({"channels": 4, "num_layers": 2} | arguments))


def pair(*size: int, batch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (batch, 1, *size), generator=generator)
    return label, torch.rand(batch, 1, *size, generator=generator)


def convolutions(module: nn.Module) -> list[nn.Conv3d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv3d)]


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """Means of 2³ voxels of even sizes."""
    b, c, h, w, d = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2, d // 2, 2).mean(dim=(3, 5, 7))


# ------------------------------------------------------------------------------------------------- what each scale sees


def test_there_is_one_list_of_features_per_scale_with_the_logits_last():
    features = multi_scale(scales=3)(*pair(64, 48, 48))
    assert len(features) == 3
    assert [len(scale) for scale in features] == [4, 4, 4], "first layer, two more, logits"
    assert all(scale[-1].shape[1] == 1 for scale in features)
    assert [scale[0].shape[2:] for scale in features] == [(32, 24, 24), (16, 12, 12), (8, 6, 6)]


@pytest.mark.parametrize("detail", [False, True])
def test_the_second_scale_sees_averaged_image_and_fractions_of_classes(detail):
    discriminator, (label, image) = multi_scale(detail=detail), pair(32, 32, 24)
    first, second = discriminator(label, image)
    assert all(map(torch.equal, first, discriminator.finest(label, image)))
    expected = discriminator.coarser[0].features(by_hand(one_hot(label, 4)), by_hand(image))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(second, expected, strict=True))


def test_the_second_scale_is_blind_to_a_checkerboard_that_the_first_one_sees():
    discriminator, (label, image) = multi_scale().eval(), pair(24, 24, 24)
    image = 0.25 + 0.5 * image
    board = (torch.arange(24).view(-1, 1, 1) + torch.arange(24).view(-1, 1) + torch.arange(24)) % 2 * 0.2 - 0.1
    plain, noisy = discriminator(label, image), discriminator(label, image + board)
    assert not torch.allclose(plain[0][-1], noisy[0][-1], atol=1e-2)
    assert torch.allclose(plain[1][-1], noisy[1][-1], atol=1e-4)


def test_a_scalar_map_is_never_averaged_into_another_class():
    discriminator, (label, image) = multi_scale(label_encoding="scalar"), pair(25, 24, 23)
    assert next(discriminator.parameters()).shape[1] == 2
    second = discriminator(label, image)[1]
    expected = discriminator.coarser[0](label[:, :, ::2, ::2, ::2], halved(image))
    assert all(map(torch.equal, second, expected))


def test_halving_an_odd_size_averages_what_is_left_at_the_border_alone():
    x = torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1, 1).expand(1, 2, 3, 2, 1)
    assert halved(x).shape == (1, 2, 2, 1, 1)
    assert halved(x)[0, 1].flatten().tolist() == [2.0, 5.0]


def test_each_scale_has_weights_of_its_own_and_all_are_trained():
    discriminator = multi_scale()
    first, second = (part.net.initial_conv.conv.weight for part in (discriminator.finest, discriminator.coarser[0]))
    assert not torch.equal(first, second)
    sum(scale[-1].square().mean() for scale in discriminator(*pair(24, 24, 24))).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in discriminator.parameters())


# -------------------------------------------------------------------------------------------------- sizes, norms, types


@pytest.mark.parametrize("size", [(32, 32, 16), (33, 17, 5), (7, 40, 2), (1, 1, 1)])
@pytest.mark.parametrize("label_encoding", ["one_hot", "scalar"])
@pytest.mark.parametrize("norm", ["INSTANCE", "volume_instance"])
def test_odd_sizes_and_thin_volumes_are_seen_in_training(size, label_encoding, norm):
    discriminator = multi_scale(num_layers=3, detail=True, label_encoding=label_encoding, norm=norm).train()
    label, image = pair(*size, batch=2)
    features = discriminator(label, image.requires_grad_())
    assert all(map(torch.all, (f.isfinite() for scale in features for f in scale)))
    sum(scale[-1].sum() for scale in features).backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("spectral", [False, True])
def test_it_computes_under_bfloat16_in_channels_last(spectral):
    discriminator = multi_scale(spectral=spectral, norm="volume_instance", scales=3).eval()
    label, image = pair(33, 24, 20, batch=2)
    expected = discriminator(label, image)
    last = copy.deepcopy(discriminator).to(memory_format=torch.channels_last_3d)
    close = last(label, image.to(memory_format=torch.channels_last_3d))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = last(label, image.to(memory_format=torch.channels_last_3d))
    for a, b, c in zip(expected, close, coarse, strict=True):
        assert torch.allclose(a[-1], b[-1], atol=1e-4)
        assert c[-1].dtype == torch.bfloat16 and (a[-1] - c[-1]).abs().max() < 0.1 * a[-1].abs().max()


def test_both_instance_norms_start_as_the_same_function():
    plain, ours = multi_scale(), multi_scale(norm="volume_instance")
    assert sum(isinstance(module, VolumeInstanceNorm) for module in ours.modules()) == 2 * 2
    assert not any(isinstance(module, nn.InstanceNorm3d) for module in ours.modules())
    for a, b in zip(plain(*pair(32, 24, 24)), ours(*pair(32, 24, 24)), strict=True):
        assert torch.allclose(a[-1], b[-1], atol=1e-5)


def test_spectral_norm_bounds_every_convolution_and_its_weights_are_trained_and_kept():
    discriminator = multi_scale(spectral=True).train()
    for _ in range(30):  # each use of a weight is one step of the power iteration
        discriminator(*pair(24, 24, 24))
    discriminator.eval()
    largest = [float(torch.linalg.matrix_norm(c.weight.detach().flatten(1), 2)) for c in convolutions(discriminator)]
    assert len(largest) == 8 and largest == pytest.approx([1.0] * 8, abs=0.1)
    plain = multi_scale().eval()
    assert max(float(torch.linalg.matrix_norm(c.weight.detach().flatten(1), 2)) for c in convolutions(plain)) > 1.2
    fresh = multi_scale(spectral=True).eval()
    fresh.load_state_dict(discriminator.state_dict())
    assert torch.equal(fresh(*pair(24, 24, 24))[1][-1], discriminator(*pair(24, 24, 24))[1][-1])


# ------------------------------------------------------------------------------------------------------- the single one


def test_the_single_discriminator_keeps_the_names_of_its_weights():
    names = list(ConditionalPatchDiscriminator(4, channels=4, num_layers=1).state_dict())
    assert names == [
        "net.initial_conv.conv.weight", "net.initial_conv.conv.bias", "net.0.conv.weight",
        *(f"net.0.adn.N.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "net.final_conv.conv.weight", "net.final_conv.conv.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("label_encoding", ["one_hot", "scalar"])
def test_a_map_may_be_given_encoded(label_encoding):
    discriminator = ConditionalPatchDiscriminator(4, channels=4, num_layers=1, label_encoding=label_encoding).eval()
    label, image = pair(8, 8, 8)
    condition = discriminator.encode(label, image.dtype)
    assert condition.min() == (-1 if discriminator.scalar else 0) and condition.max() == 1
    assert all(map(torch.equal, discriminator(label, image), discriminator.features(condition, image)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": 0}, "scales must be 1 or more, got 0"),
        ({"num_classes": 1}, "needs 2 or more classes, got 1"),
        ({"label_encoding": "onehot"}, "label_encoding must be one_hot or scalar, got 'onehot'"),
    ],
)
def test_settings_out_of_range_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        MultiScaleDiscriminator(**({"num_classes": 4, "channels": 4} | arguments))
