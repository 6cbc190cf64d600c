"""SegGuidedDiff: slices denoised for themselves, label maps beside them, classes that are missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from semsynth.data.transforms import RandSlicesd
from semsynth.errors import InputError
from semsynth.networks.denoiser import Denoiser
from semsynth.networks.slice_diffusion import ConcatUNet, Pixels, SliceDiffusion
from semsynth.training.engines.diffusion import SliceTrainer
from semsynth.training.losses.diffusion import DiffusionLoss
from tiny_diffusion import awake, label_map

SIZE = (16, 12, 6)


def network(*, of_denoiser: dict[str, Any] | None = None, **kwargs: Any) -> SliceDiffusion:
    torch.manual_seed(0)
    usual: dict[str, Any] = {"channels": (8, 8, 16), "blocks": 1, "groups": 4, "head_channels": 8}
    denoiser = ConcatUNet(4, **(usual | (of_denoiser or {})))
    awake(denoiser)
    sampling = {"steps": 3, "clip": 1.0, "guidance": 1.0} | kwargs.pop("sampling", {})
    return SliceDiffusion(denoiser, noise_schedule="linear_beta", sampling=sampling, **kwargs).eval()


def test_pixels_are_their_own_latent() -> None:
    image = torch.rand(1, 1, *SIZE)
    latent, log_variance = Pixels().encode(image)
    assert latent.min() < 0 < latent.max() <= 1
    assert torch.allclose(Pixels().decode(latent, label_map()), image)
    assert bool((log_variance.exp() == 0).all())


@pytest.mark.parametrize("size", [SIZE, (13, 7, 1), (4, 5, 3)])
def test_any_size_is_denoised(size: tuple[int, int, int]) -> None:
    made = network().synthesize(label_map(size), [0, 1])
    assert made.shape == (2, 1, *size) and float(made.std()) > 0.01
    assert float(made.min()) >= 0.0 and float(made.max()) <= 1.0


def test_slices_that_are_too_small_are_named() -> None:
    with pytest.raises(InputError, match=r"slices must have 4 × 4 pixels or more for this network, got 3 × 12"):
        network().synthesize(label_map((3, 12, 4)), [0])


def test_a_slice_depends_on_its_own_map_noise_and_place_alone() -> None:
    denoiser = network(of_denoiser={"position": True}).denoiser
    label, x, t = label_map(SIZE), torch.randn(1, 1, *SIZE), torch.tensor([400])
    plain = denoiser(x, t, denoiser.encode(label))
    changed, noisier = label.clone(), x.clone()
    changed[..., 2] = 3 - changed[..., 2]
    noisier[..., 4] += 1.0
    for other in (denoiser(x, t, denoiser.encode(changed)), denoiser(noisier, t, denoiser.encode(label))):
        differs = (other - plain).abs().amax((0, 1, 2, 3)) > 1e-6
        assert int(differs.sum()) == 1 and bool(differs[2] | differs[4])
    moved = denoiser(x, t, denoiser.encode(label, torch.full((1, SIZE[2]), 0.9)))
    assert not torch.allclose(moved, plain, atol=1e-5)


def test_each_item_of_a_batch_has_its_own_time_step() -> None:
    denoiser = network().denoiser
    label, x = label_map(SIZE).repeat(2, 1, 1, 1, 1), torch.randn(1, 1, *SIZE).repeat(2, 1, 1, 1, 1)
    t = torch.tensor([30, 900])
    both = denoiser(x, t, denoiser.encode(label))
    alone = torch.cat([denoiser(x[:1], t[i : i + 1], denoiser.encode(label[:1])) for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-5) and not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_slices_of_any_size_are_mirrored_at_their_ends() -> None:
    denoiser = network().denoiser
    label, x, t = label_map((16, 12, 3)), torch.randn(1, 1, 16, 12, 3), torch.tensor([400])
    odd = denoiser(x[:, :, :13, :11], t, denoiser.encode(label[:, :, :13, :11]))
    for whole in (label, x):
        whole[:, :, 13:] = whole[:, :, 9:12].flip(2)
        whole[:, :, :, 11:] = whole[:, :, :, 9:10]
    assert odd.shape == (1, 1, 13, 11, 3)
    assert torch.allclose(odd, denoiser(x, t, denoiser.encode(label))[:, :, :13, :11], atol=1e-5)


def test_without_position_the_place_says_nothing() -> None:
    denoiser = network().denoiser
    label, x, t = label_map(SIZE), torch.randn(1, 1, *SIZE), torch.tensor([400])
    moved = denoiser(x, t, denoiser.encode(label, torch.full((1, SIZE[2]), 0.9)))
    assert torch.equal(moved, denoiser(x, t, denoiser.encode(label)))


def test_the_labels_are_one_hot_channels() -> None:
    denoiser = network(of_denoiser={"position": True}).denoiser
    label = label_map(SIZE)
    label[0, 0, 0, 0, 0] = -1
    told = denoiser._told(denoiser.encode(label)[1].permute(0, 4, 1, 2, 3).flatten(0, 1))
    assert told.shape == (SIZE[2], 5, *SIZE[:2])
    assert torch.equal(told[:, :4].sum(1) == 0, label[0, 0].permute(2, 0, 1) < 0)
    known = label[0, 0].permute(2, 0, 1) >= 0
    assert torch.equal(told[:, :4].argmax(1)[known].float(), label[0, 0].permute(2, 0, 1)[known])
    places = told[:, 4, 0, 0]
    assert torch.allclose(places, (torch.arange(SIZE[2]) + 0.5) / SIZE[2] * 2 - 1)


def test_windows_change_nothing() -> None:
    whole, parts = (network(sampling={"window": w, "overlap": 0.0}) for w in (None, 4))
    label = label_map(SIZE)
    assert torch.allclose(whole.synthesize(label, [3]), parts.synthesize(label, [3]), atol=1e-5)


def test_guidance_is_away_from_the_map_that_says_nothing() -> None:
    label, made = label_map(SIZE), network(sampling={"steps": 1, "clip": None})
    one, none, more = (
        made.sample_latent(made.conditioning(told, guidance=g), [0], guidance=g)
        for told, g in ((label, 1.0), (torch.full_like(label, -1.0), 1.0), (label, 2.0))
    )
    assert not torch.allclose(one, none, atol=1e-3)
    assert torch.allclose(more, none + 2.0 * (one - none), rtol=1e-3, atol=1e-2)


def test_one_noise_field_for_a_volume_makes_like_slices_alike() -> None:
    flat = torch.ones(1, 1, *SIZE)  # one class everywhere
    alike, apart = (network(noise_field=field).synthesize(flat, [0]) for field in ("volume", "slice"))
    assert torch.allclose(alike, alike[..., :1].expand_as(alike), atol=1e-5)
    assert float((apart[..., 1:] - apart[..., :-1]).abs().mean()) > 0.01


def test_unknown_classes_say_nothing() -> None:
    label = label_map(SIZE)
    for_all = network(unknown=[2]).synthesize(label, [0])
    moved = torch.where(label == 2, torch.full_like(label, -1.0), label)
    assert torch.equal(for_all, network().synthesize(moved, [0]))
    assert not torch.allclose(for_all, network().synthesize(label, [0]), atol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"unknown": [4]}, r"unknown must be classes from 0 to 3, got \[4\]"),
        ({"noise_field": "row"}, "noise_field must be slice or volume"),
        ({"ablated": 1.5}, r"ablated in \[0, 1\]"),
        ({"of_denoiser": {"channels": (6, 8)}}, "multiples of groups"),
        ({"of_denoiser": {"attention": (True,)}}, "as many attention as channels"),
    ],
)
def test_wrong_settings_are_named(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network(**kwargs)


# ---- training


class _Told(ConcatUNet):
    """A denoiser that keeps what it was told."""

    def encode(self, label: torch.Tensor, position: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        self.label, self.position_given = label, position
        return super().encode(label, position)


def trained(**kwargs: Any) -> tuple[SliceDiffusion, _Told]:
    denoiser = _Told(4, channels=(8, 8), blocks=1, groups=4, head_channels=8, position=True)
    return SliceDiffusion(denoiser, noise_schedule="linear_beta", **kwargs), denoiser


def test_each_slice_has_its_own_time_step_and_place() -> None:
    net, denoiser = trained()
    label, places = label_map(SIZE), torch.linspace(0.1, 0.9, SIZE[2])[None]
    made = net(label, net.autoencoder.encode(torch.rand(1, 1, *SIZE))[0], None, places)
    assert made.pred.shape == (SIZE[2], 1, *SIZE[:2], 1) and len(set(made.timestep.tolist())) > 1
    assert denoiser.position_given is not None
    assert torch.equal(denoiser.position_given[:, 0], places[0])
    assert torch.equal(denoiser.label[:, 0, :, :, 0], label[0, 0].permute(2, 0, 1))


@pytest.mark.parametrize("ablated", [0.0, 1.0])
def test_mask_ablated_training_drops_whole_classes(ablated: float) -> None:
    net, denoiser = trained(ablated=ablated)
    label = label_map((12, 12, 40))
    net(label, torch.rand(1, 1, 12, 12, 40), None, torch.rand(1, 40))
    shares = []
    for given, real in zip(denoiser.label[:, 0, :, :, 0], label[0, 0].permute(2, 0, 1), strict=True):
        known = [c for c in range(4) if bool((given == c).any())]
        assert torch.equal(given >= 0, sum(real == c for c in known).bool()) if known else bool((given < 0).all())
        shares.append(len(known) / 4)
    mean = sum(shares) / len(shares)
    assert mean == 1.0 if ablated == 0 else 0.3 < mean < 0.7


def test_a_step_trains_the_denoiser_on_slices() -> None:
    net, _ = trained()
    batch = {"image": torch.rand(1, 1, *SIZE), "label": label_map(SIZE), "position": torch.rand(1, SIZE[2])}
    before = [p.clone() for p in net.denoiser.parameters()]
    trainer = SliceTrainer(
        device="cpu", max_epochs=2, train_data_loader=[batch], network=net,
        optimizer=torch.optim.AdamW(net.denoiser.parameters(), lr=0.01),
        loss_function=DiffusionLoss(segmentation_weight=0.0),
    )  # fmt: skip
    trainer.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.denoiser.parameters(), strict=True))
    assert float(trainer.state.output["loss"]) > 0


def test_drawn_slices_know_their_places() -> None:
    volume = torch.arange(10.0).expand(1, 4, 4, 10)
    drawn = RandSlicesd(["image", "label"], 4).set_random_state(0)({"image": volume, "label": volume * 2})
    numbers = drawn["image"][0, 0, 0]
    assert drawn["image"].shape == (1, 4, 4, 4) and len(set(numbers.tolist())) == 4
    assert torch.equal(drawn["label"], drawn["image"] * 2)
    assert torch.allclose(drawn["position"], (numbers + 0.5) / 10)
    assert RandSlicesd("image", 4)({"image": volume[..., :2]})["image"].shape[-1] == 4
    with pytest.raises(InputError, match="count must be 1 slice or more, got 0"):
        RandSlicesd("image", 0)


def test_a_denoiser_says_what_it_must_have() -> None:
    bare = Denoiser(style_channels=0, predictions=1)
    for name, given in (("encode", 1), ("null", 1), ("modulation", 1), ("embed", 1), ("down_path", 2), ("up_path", 4)):
        with pytest.raises(NotImplementedError):
            getattr(bare, name)(*[None] * given)
