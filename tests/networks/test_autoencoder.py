"""The KL autoencoder with a SPADE decoder, its loss and its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from semsynth.errors import InputError
from semsynth.networks.autoencoder import (
    SPADEAutoencoder,
    depth_to_space,
    encode_labels,
    label_channels,
    space_to_depth,
)
from semsynth.networks.blocks.normalization import voxel_norm
from semsynth.networks.blocks.residual import Attention, ResBlock, Upsample
from semsynth.networks.blocks.spade import SPADEOptions
from semsynth.networks.discriminators import ConditionalPatchDiscriminator
from semsynth.synthesis.inferers import ReconstructionInferer
from semsynth.training.engines.adversarial import AutoencoderTrainer
from semsynth.training.engines.batches import PrepareReconstructionBatch
from semsynth.training.losses.autoencoder import AutoencoderLoss, latent_kl, r1_penalty
from tiny_training import loader
from torch import nn

TINY: dict[str, Any] = {
    "channels": (8, 8),
    "strides": (2, 2),
    "latent_channels": 3,
    "spade": {"hidden": 4, "groups": 2},
}


def tiny(**kwargs: Any) -> SPADEAutoencoder:
    """Random weights everywhere: blocks whose last convolution is zero would hide what their labels do."""
    torch.manual_seed(0)
    network = SPADEAutoencoder(4, **(TINY | kwargs))
    for parameter in network.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def volumes(size: tuple[int, int, int] = (16, 12, 8), batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (batch, 1, *size), generator=generator).float()
    return label, torch.rand(batch, 1, *size, generator=generator)


# ---- the network


@pytest.mark.parametrize("strides", [(1, 2), (2, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize("size", [(16, 12, 8), (13, 9, 7), (5, 3, 1)])
def test_any_size_comes_back_and_the_latent_covers_it(strides: tuple[int, int], size: tuple[int, int, int]) -> None:
    network = tiny(strides=strides)
    label, image = volumes(size)
    mean, log_variance = network.encode(image)
    assert network.stride == strides[0] * strides[1]
    assert list(mean.shape[2:]) == [-(-length // network.stride) for length in size]
    assert mean.shape == log_variance.shape
    assert network.decode(mean, label).shape == image.shape


@pytest.mark.parametrize("labels", ["subvoxels", "fractions", "nearest"])
@pytest.mark.parametrize(
    "kwargs", [{}, {"middle": True, "attention": (False, True)}, {"resampling": "strided"}, {"resampling": "smooth"}]
)
def test_modulation_computed_before_gives_the_same_image(labels: str, kwargs: dict[str, Any]) -> None:
    network = tiny(labels=labels, blocks=(1, 2), **kwargs)
    label, image = volumes((13, 12, 8))
    latent, _ = network.encode(image)
    torch.testing.assert_close(
        network.decode(latent, network.modulation(label)), network.decode(latent, label), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("labels", ["subvoxels", "fractions", "nearest"])
def test_the_label_map_reaches_every_block_of_the_decoder_and_none_of_the_encoder(labels: str) -> None:
    network = tiny(labels=labels)
    label, image = volumes()
    latent, _ = network.encode(image)
    first = network.decode(latent, label)
    for block in [layer for layer in network.decoder.layers if isinstance(layer, ResBlock)]:
        for name in ("norm_0", "norm_1"):
            weight = getattr(block, name).shared.weight
            before = weight.detach().clone()
            weight.data += 0.5
            assert (network.decode(latent, label) - first).abs().max() > 1e-4
            weight.data = before
    assert (network.decode(latent, 3 - label) - first).abs().max() > 1e-3


def test_intensities_can_be_left_as_they_are_inside() -> None:
    signed, other = tiny(), tiny(signed=False)
    other.load_state_dict(signed.state_dict())
    label, image = volumes((13, 12, 8))
    for x, y in zip(signed.encode(image), other.encode(image * 2 - 1), strict=True):
        assert torch.equal(x, y)
    latent = signed.encode(image)[0]
    assert torch.equal(signed.decode(latent, label), other.decode(latent, label) * 0.5 + 0.5)


def test_subvoxels_lose_nothing_of_the_map_and_fractions_do() -> None:
    label, _ = volumes((8, 8, 8))
    other = label.flip(2, 3, 4).reshape(1, 1, 4, 2, 4, 2, 4, 2).flip(3, 5, 7).reshape(label.shape).flip(2, 3, 4)
    assert not torch.equal(label, other)  # the same voxels in each block of 2³, in another order
    for labels, sees in (("subvoxels", True), ("fractions", False)):
        network = tiny(labels=labels, strides=(2, 1))
        latent = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        apart = (network.decode(latent, label) - network.decode(latent, other)).abs().max()
        assert bool(apart > 1e-3) == sees


def test_space_to_depth_and_back_is_the_identity() -> None:
    x = torch.rand(2, 1, 6, 4, 8)
    assert torch.equal(depth_to_space(space_to_depth(x, 2), (6, 4, 8)), x)
    assert space_to_depth(x, 2)[0, :, 0, 0, 0].tolist() == x[0, 0, :2, :2, :2].flatten().tolist()


def test_subvoxels_of_a_cell_are_its_voxels_and_their_mean_is_the_fraction() -> None:
    label = torch.randint(0, 4, (2, 1, 9, 8, 5), generator=torch.Generator().manual_seed(0)).float()
    strides = [4, 8]
    fine = encode_labels(label, 4, strides, mode="subvoxels", dtype=torch.float32)
    fractions = encode_labels(label, 4, strides, mode="fractions", dtype=torch.float32)
    assert {s: level.shape[1] for s, level in fine.items()} == label_channels(4, strides, "subvoxels") == {4: 256, 8: 4}
    assert torch.equal(fine[8], fractions[8])
    torch.testing.assert_close(fine[4].view(2, 4, 64, 3, 2, 2).mean(dim=2), fractions[4])
    cell = fine[4].view(2, 4, 4, 4, 4, 3, 2, 2)[..., 1, 0, 0].argmax(dim=1)
    assert torch.equal(cell.float(), label[:, 0, 4:8, 0:4, 0:4])


def test_with_voxel_norm_a_part_of_the_volume_is_decoded_as_in_the_whole() -> None:
    whole, part = tiny(), slice(16, 112)
    label, image = volumes((128, 8, 8))
    latent, _ = whole.encode(image)
    decoded = whole.decode(latent, label)[:, :, part]
    alone = whole.decode(latent[:, :, 4:28], label[:, :, part])
    reach = 32  # voxels from the cut that its convolutions do not get to
    torch.testing.assert_close(alone[:, :, reach:-reach], decoded[:, :, reach:-reach], atol=1e-6, rtol=0)
    grouped = tiny(spade={"hidden": 4, "norm": "group", "groups": 2})
    latent, _ = grouped.encode(image)
    apart = grouped.decode(latent, label)[:, :, part] - grouped.decode(latent[:, :, 4:28], label[:, :, part])
    assert apart[:, :, reach:-reach].abs().max() > 1e-4


def test_voxel_norm_is_a_layer_norm_of_each_voxel() -> None:
    x = torch.randn(2, 6, 3, 4, 5) * 3 + 1
    wanted = nn.functional.layer_norm(x.permute(0, 2, 3, 4, 1), [6], eps=1e-5).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(voxel_norm(x, 1e-5), wanted)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(voxel_norm(last, 1e-5), wanted)


def test_in_training_the_latent_is_drawn_and_otherwise_it_is_the_mean() -> None:
    network = tiny()
    label, image = volumes()
    made = network(label, image)
    assert torch.equal(made.pred, network.decode(made.mean, label))
    network.train()
    assert not torch.equal(network(label, image).pred, network(label, image).pred)


@pytest.mark.parametrize("kwargs", [{}, {"strides": (1, 2)}, {"channels": (8, 8, 6), "strides": (2, 1, 1)},
                                    {"channels": (6, 8), "resampling": "strided"},
                                    {"channels": (6, 8), "resampling": "smooth"}])  # fmt: skip
def test_noise_is_added_at_the_finest_level_of_any_decoder(kwargs: dict[str, Any]) -> None:
    network = tiny(noise=True, **kwargs)
    label, image = volumes((93, 12, 7))
    latent = network.encode(image)[0]
    noise = torch.randn(1, 1, 93, 12, 7, generator=torch.Generator().manual_seed(3))
    one = noise.clone()
    one[:, :, 45, 6, 3] += 5.0
    without, first, second = (network.decode(latent, label, n) for n in (None, noise, one))
    assert (first - without).abs().mean() > 1e-3
    changed = torch.nonzero((second - first).abs()[0, 0] > 1e-7)
    assert len(changed)
    # no further than 2³ voxels at once, two blocks of two convolutions, or three, and the last convolution
    assert 2 <= int((changed[:, 0] - 45).abs().max()) <= 2 * (3 * 2 + 1) + 1
    with pytest.raises(InputError, match="noise was given to a decoder that takes none"):
        tiny(**kwargs).decode(latent, label, noise)


def test_weights_from_before_there_was_noise_give_the_same_image_with_and_without() -> None:
    old, new = tiny(), tiny(noise=True)
    new.load_state_dict(old.state_dict())
    label, image = volumes()
    latent = old.encode(image)[0]
    wanted = old.decode(latent, label)
    assert torch.equal(new.decode(latent, label, torch.randn_like(image)), wanted)
    both = nn.ModuleDict({"one": new})
    both.load_state_dict({f"one.{name}": value for name, value in old.state_dict().items()})


def test_noise_is_drawn_in_training_alone() -> None:
    network = tiny(noise=True)
    label, image = volumes()
    with torch.no_grad():
        network.encoder.head.weight.zero_()
        network.encoder.head.bias[3:] = -30.0  # type: ignore[index]  # a posterior without spread
        assert torch.equal(network(label, image).pred, network(label, image).pred)
        network.train()
        first, second = network(label, image).pred, network(label, image).pred
    assert (first - second).abs().mean() > 1e-3


def test_a_latent_of_another_size_is_named() -> None:
    network = tiny()
    label, _ = volumes()
    message = r"a label map of \(16, 12, 8\) voxels needs a latent of \(4, 3, 2\), got \(4, 3, 3\)"
    with pytest.raises(InputError, match=message):
        network.decode(torch.zeros(1, 3, 4, 3, 3), label)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strides": (2, 2, 2)}, "one entry per level, got 2, 3, 2, 2"),
        ({"blocks": (1,)}, "one entry per level, got 2, 2, 1, 2"),
        ({"strides": (3, 1)}, r"strides of 1 or 2, .* got \(3, 1\)"),
        ({"resampling": "bilinear"}, "resampling must be aligned, strided, smooth or overlapping, got 'bilinear'"),
        ({"spade": {"norm": "batch"}}, "must be group, instance or voxel, got 'batch'"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**kwargs)


def test_attention_is_softmax_over_all_voxels() -> None:
    torch.manual_seed(0)
    layer = Attention(6, SPADEOptions(groups=2), head_channels=3)
    x = torch.randn(2, 6, 2, 3, 2)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).chunk(3, dim=2)
    wanted = []
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 3**0.5).softmax(dim=2)
        wanted.append(weights @ v[..., part])
    result = x + layer.out(torch.cat(wanted, dim=2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), result, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="must divide the 6 channels of its level, got 4"):
        Attention(6, SPADEOptions(), head_channels=4)


def test_upsampling_after_the_convolution_is_upsampling_before_it() -> None:
    layer = Upsample(3, 2, "aligned")
    x = torch.randn(1, 3, 4, 3, 2)
    wanted = layer.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="trilinear"))
    torch.testing.assert_close(layer(x, (8, 6, 4)), wanted, atol=1e-5, rtol=0)


# ---- the loss


def patch_discriminator() -> ConditionalPatchDiscriminator:
    torch.manual_seed(0)
    return ConditionalPatchDiscriminator(4, channels=4, num_layers=1, norm="volume_instance", label_encoding="one_hot")


class Difference(nn.Module):
    """A perceptual term that can be checked by hand."""

    in_loss = ({"name": "difference", "sha256": "0"},)

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return (fake - real).square().mean()


def loss(**weights: float) -> AutoencoderLoss:
    off = dict.fromkeys(("adversarial_weight", "l1_weight", "perceptual_weight", "kl_weight", "r1_weight"), 0.0)
    return AutoencoderLoss(**(off | weights), perceptual=Difference())


@pytest.mark.parametrize(
    ("weight", "term", "reaches_decoder"),
    [
        ("l1_weight", "g_l1", True),
        ("perceptual_weight", "g_perceptual", True),
        ("kl_weight", "g_kl", False),
        ("adversarial_weight", "g_adversarial", True),
    ],
)
def test_each_term_reaches_what_it_should_and_no_more(weight: str, term: str, reaches_decoder: bool) -> None:
    network, discriminator = tiny().train(), patch_discriminator().requires_grad_(False)
    label, image = volumes((16, 16, 16))
    made = network(label, image)
    terms = loss(**{weight: 2.0}).generator(discriminator, label, made.pred, image, (made.mean, made.log_variance))
    assert list(terms) == [term]
    terms[term].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.encoder.parameters())
    reached = [p.grad is not None and bool(p.grad.any()) for p in network.decoder.parameters()]
    assert all(reached) if reaches_decoder else not any(reached)
    assert all(p.grad is None for p in discriminator.parameters())


def test_the_discriminators_terms_do_not_reach_the_autoencoder() -> None:
    network, discriminator = tiny().train(), patch_discriminator()
    label, image = volumes((16, 16, 16))
    objective = loss(r1_weight=1.0, adversarial_weight=1.0)
    terms = objective.discriminator(discriminator, label, network(label, image).pred.detach(), image)
    terms |= objective.penalty(discriminator, label, image)
    assert set(terms) == {"d_real", "d_fake", "d_r1"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_weights_are_factors_and_zero_leaves_a_term_out() -> None:
    network = tiny()
    label, image = volumes((16, 16, 16))
    made = network(label, image)
    posterior = (made.mean, made.log_variance)
    one = loss(l1_weight=1.0, kl_weight=1.0, perceptual_weight=1.0).generator(None, label, made.pred, image, posterior)
    three = loss(l1_weight=3.0, kl_weight=3.0, perceptual_weight=3.0).generator(
        None, label, made.pred, image, posterior
    )
    for name in one:
        torch.testing.assert_close(three[name], 3 * one[name])
    assert loss().generator(patch_discriminator(), label, made.pred, image, posterior) == {}
    assert loss().penalty(patch_discriminator(), label, image) == {}
    assert loss(l1_weight=1.0).in_loss == []
    assert loss(perceptual_weight=1.0).in_loss == [{"name": "difference", "sha256": "0"}]


def test_r1_is_the_squared_gradient_norm_per_patch() -> None:
    class Linear(nn.Module):
        def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
            pooled = nn.functional.avg_pool3d(image, 4) * 64 * 3  # each logit: three times the sum of its patch
            return [image, pooled]

    label, image = volumes((8, 8, 8))
    # per patch: 64 voxels, each with gradient 3
    assert float(r1_penalty(Linear(), label, image)) == pytest.approx(64 * 9)
    term = loss(r1_weight=10.0).penalty(Linear(), label, image)["d_r1"]
    assert float(term) == pytest.approx(0.5 * 10.0 * 16 * 64 * 9)


def test_kl_does_not_depend_on_the_volumes_size() -> None:
    mean, log_variance = torch.full([1, 2, 4, 4, 4], 0.5), torch.full([1, 2, 4, 4, 4], -1.0)
    one = torch.distributions.Normal(0.5, torch.tensor(-0.5).exp())
    wanted = 2 * torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(latent_kl(mean, log_variance), wanted)
    torch.testing.assert_close(latent_kl(mean[..., :2], log_variance[..., :2]), wanted)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kl_weight": -1.0, "perceptual_weight": 0.0}, "must be 0 or more, got .*kl_weight -1.0"),
        ({"r1_interval": 0, "perceptual_weight": 0.0}, "r1_interval must be 1 or more, got 0"),
        ({}, "perceptual_weight is 0.001 and there is no perceptual network"),
    ],
)
def test_bad_losses_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutoencoderLoss(**kwargs)


# ---- the training


def train(data: Path, epochs: int, warm_up: int, **weights: float) -> tuple[AutoencoderTrainer, list[list[str]]]:
    network, discriminator = tiny().train(), patch_discriminator()
    seen: list[list[str]] = []
    usual = {"l1_weight": 1.0, "kl_weight": 1e-3, "adversarial_weight": 0.1, "r1_weight": 1.0}
    trainer = AutoencoderTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=loader(data, "pix2pix", workers=0),
        network=network, optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
        discriminator=discriminator, d_optimizer=torch.optim.Adam(discriminator.parameters(), lr=1e-3),
        loss_function=loss(**(usual | weights)),
        warm_up_epochs=warm_up,
    )  # fmt: skip
    trainer.loss_function.r1_interval = 2
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(sorted(e.state.output["losses"])))
    trainer.run()
    return trainer, seen


def test_the_adversarial_part_begins_after_the_warm_up(tiny_dataset: Path) -> None:
    before = [p.detach().clone() for p in patch_discriminator().parameters()]
    trainer, seen = train(tiny_dataset, 2, 2)
    assert all(names == ["g_kl", "g_l1"] for names in seen)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.discriminator.parameters(), strict=True))
    trainer, seen = train(tiny_dataset, 2, 1)
    first, second = seen[:6], seen[6:]
    assert all(names == ["g_kl", "g_l1"] for names in first)
    assert all({"d_fake", "d_real", "g_adversarial"} <= set(names) for names in second)
    assert ["d_r1" in names for names in second] == [False, True] * 3
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.discriminator.parameters(), strict=True))


def test_without_its_weight_the_adversarial_part_never_begins(tiny_dataset: Path) -> None:
    _, seen = train(tiny_dataset, 1, 0, adversarial_weight=0.0)
    assert all(names == ["g_kl", "g_l1"] for names in seen)


def test_training_brings_the_reconstruction_closer(tiny_dataset: Path) -> None:
    batch = next(iter(loader(tiny_dataset, "pix2pix", workers=0)))
    trainer, _ = train(tiny_dataset, 25, 100)
    after, before = trainer.network.eval(), tiny()
    errors = [(net(batch["label"], batch["image"]).pred - batch["image"]).abs().mean() for net in (before, after)]
    assert errors[1] < 0.5 * errors[0]


def test_reconstruction_of_a_batch_is_in_range_and_needs_the_image() -> None:
    label, image = volumes()
    network = tiny()
    prepare = PrepareReconstructionBatch()
    inputs, target, args, _ = prepare({"label": label, "image": image})
    made = ReconstructionInferer()(inputs, network, *args)
    assert target is not None
    assert made.shape == target.shape
    assert float(made.min()) >= 0.0
    assert float(made.max()) <= 1.0
    with pytest.raises(InputError, match="an autoencoder needs images, and this batch has none under 'image'"):
        prepare({"label": label})
