"""The perceptual loss: what it compares, whom its gradient reaches, and which network it takes."""

from __future__ import annotations

import logging

import pytest
import torch
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.networks.features.extractor import FeatureExtractor
from semsynth.networks.features.perceptual import PerceptualLoss
from semsynth.networks.features.registry import FeaturesUnavailable
from semsynth.networks.segmentation import subvoxel_swin
from semsynth.provenance.frozen import load_features, load_perceptual
from semsynth.training.losses.gan import VariationalGANLoss
from torch import nn

SIZE = (40, 33, 21)


class TwoLevels(FeatureExtractor):
    """The smallest 3D feature network; counts how often its deeper level was computed."""

    def __init__(self, gain: float = 1.0) -> None:
        torch.manual_seed(0)
        network = nn.ModuleList([nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)])
        super().__init__(network, name="two_levels", sha256="ab" * 32, dimension=4, intensity="none")
        self.gain, self.deep = gain, 0

    def levels(self, volume):
        x = torch.relu(self.network[0](volume))
        yield x
        self.deep += 1
        yield self.gain * torch.relu(self.network[1](x))


@pytest.fixture(scope="module")
def slicewise():
    extractor = load_features("efficientnet_lite0")
    extractor.pixel_mm = 1.0
    return extractor


def volumes(batch: int = 1, size=SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    fake, real = torch.rand(2, batch, 1, *size, generator=generator)
    return fake, real


@pytest.fixture(params=["3d", "slicewise"])
def loss(request, slicewise):
    return PerceptualLoss(TwoLevels() if request.param == "3d" else slicewise)


# ----------------------------------------------------------------------------------------------------- what it compares


def test_equal_volumes_are_0_apart_and_others_the_further_the_more_they_differ(loss):
    fake, real = volumes()
    assert float(loss(real, real)) == 0.0
    torch.manual_seed(0)
    near = loss(real + 0.05 * (fake - real), real)
    torch.manual_seed(0)
    assert 0.0 < float(near) < float(loss(fake, real))


def test_the_gradient_reaches_the_generated_volume_and_nothing_else(loss):
    fake, real = (x.requires_grad_() for x in volumes())
    loss.requires_grad_(True)  # what a trainer may do to a loss
    loss(fake, real).backward()
    assert fake.grad.abs().sum() > 0 and real.grad is None
    assert all(weight.grad is None and not weight.requires_grad for weight in loss.extractor.parameters())


def test_the_value_is_the_mean_over_depths_of_l1_relative_to_the_real_volumes_maps():
    extractor, (fake, real) = TwoLevels(), volumes()
    expected = [
        float((ours - theirs).abs().mean() / theirs.abs().mean())
        for ours, theirs in zip(extractor.maps(fake), extractor.maps(real), strict=True)
    ]
    assert float(PerceptualLoss(extractor)(fake, real)) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_depths_weigh_alike_however_large_their_activations_are():
    fake, real = volumes()
    plain, loud = PerceptualLoss(TwoLevels())(fake, real), PerceptualLoss(TwoLevels(gain=1000.0))(fake, real)
    assert float(loud) == pytest.approx(float(plain), rel=1e-4)


def test_a_map_that_is_zero_for_the_real_volume_gives_a_finite_loss_and_gradient():
    fake, real = volumes()
    fake.requires_grad_()
    value = PerceptualLoss(TwoLevels(gain=0.0))(fake, real)
    value.backward()
    assert value.isfinite() and fake.grad.isfinite().all()


def test_a_volume_is_scaled_by_itself_so_a_batch_is_the_mean_of_its_volumes(loss):
    fake, real = volumes(batch=2)
    real = real * torch.tensor([1.0, 0.2]).view(2, 1, 1, 1, 1)
    values = []
    for chosen in (slice(0, 1), slice(1, 2), slice(0, 2)):
        torch.manual_seed(3)
        values.append(float(loss(fake[chosen], real[chosen])))
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=1e-4)
    assert values[0] != pytest.approx(values[1], rel=0.01)


def test_depths_beyond_the_chosen_ones_are_not_computed(slicewise):
    fake, real = volumes()
    extractor = TwoLevels()
    PerceptualLoss(extractor, depths=1)(fake, real)
    assert extractor.deep == 0
    PerceptualLoss(extractor, depths=7)(fake, real)
    assert extractor.deep == 2
    head = []
    hook = slicewise.network._conv_head.register_forward_hook(lambda *_: head.append(1))
    PerceptualLoss(slicewise, depths=4)(fake, real)
    assert head == []
    PerceptualLoss(slicewise)(fake, real)
    assert len(head) == 6, "three planes of two volumes"
    hook.remove()


# --------------------------------------------------------------------------------------------------------------- slices


def seen_by(loss, fake, real):
    """Which voxels of the generated volume have a gradient."""
    fake = fake.clone().requires_grad_()
    loss(fake, real).backward()
    return fake.grad[0, 0] != 0


def test_it_sees_that_many_slices_per_plane_and_others_in_every_call(slicewise):
    fake, real = volumes()
    torch.manual_seed(0)
    first, second = (seen_by(PerceptualLoss(slicewise, slices=2, depths=1), fake, real) for _ in range(2))
    for axis, size in enumerate(SIZE):
        # a slice of this plane is touched (almost) everywhere, any other where it crosses the others' slices only
        share = first.float().mean(dim=[a for a in range(3) if a != axis])
        assert len(share) == size and int((share > 0.9).sum()) == 2
    assert not torch.equal(first, second)


def test_the_global_generators_state_decides_which_slices_so_that_a_resumed_training_sees_the_same(slicewise):
    loss, (fake, real) = PerceptualLoss(slicewise), volumes()
    torch.manual_seed(5)
    loss(fake, real)
    state = torch.get_rng_state()
    value = loss(fake, real)
    torch.set_rng_state(state)
    assert torch.equal(loss(fake, real), value)


def test_both_volumes_are_compared_at_the_same_slices(slicewise):
    ramp = torch.linspace(0, 1, 33).view(1, 1, 1, 33, 1).expand(1, 1, *SIZE)
    loss = PerceptualLoss(slicewise, slices=1)
    for seed in range(4):  # different slices of one volume differ, the same ones do not
        torch.manual_seed(seed)
        assert float(loss(ramp, ramp.clone())) == 0.0


def test_more_slices_than_a_volume_has_are_all_of_them(slicewise):
    fake, real = volumes(size=(32, 32, 3))
    assert PerceptualLoss(slicewise, slices=8, depths=1)(fake, real).isfinite()


# ------------------------------------------------------------------------------------------- as a part of other modules


def test_the_network_is_in_no_checkpoint_and_under_no_optimizer_but_moves_along():
    loss = PerceptualLoss(TwoLevels())
    around = VariationalGANLoss(perceptual=loss)
    assert around.state_dict() == {} and list(around.parameters()) == []
    around.load_state_dict({})
    around.to("meta")
    assert {weight.device.type for weight in loss.extractor.parameters()} == {"meta"}
    around.train()
    assert not loss.extractor.training
    assert around.in_loss == loss.in_loss == [{"name": "two_levels", "sha256": "ab" * 32}]


def test_under_bfloat16_it_is_close_to_float32_and_its_value_is_float32(loss):
    fake, real = volumes()
    fake.requires_grad_()
    torch.manual_seed(0)
    expected = loss(fake, real)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(fake.bfloat16(), real)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=0.03)
    value.backward()
    assert fake.grad.isfinite().all() and fake.grad.abs().sum() > 0


def test_on_a_cpu_the_slicewise_network_stays_in_float32_where_it_is_faster(slicewise):
    loss, (fake, real) = PerceptualLoss(slicewise), volumes()
    torch.manual_seed(0)
    expected = loss(fake, real)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(fake, real), expected)


# ----------------------------------------------------------------------------------------------- which network it takes


def test_the_first_network_is_taken_when_its_weights_are_there(tmp_path, caplog):
    path = tmp_path / "judge.pt"
    torch.save(subvoxel_swin().state_dict(), path)
    with caplog.at_level(logging.INFO):
        loss = load_perceptual(["la_unet_judge", "efficientnet_lite0"], weights={"la_unet_judge": path}, pixel_mm=1.0)
    assert loss.in_loss == [{"name": "la_unet_judge", "sha256": sha256(path)}]
    assert f"la_unet_judge (SHA-256 {sha256(path)[:12]}…)" in caplog.text
    warned = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1 and "unknown, no card beside it" in warned[0]
    fake, real = volumes(size=(16, 16, 16))
    fake.requires_grad_()
    loss(fake, real).backward()
    assert fake.grad.abs().sum() > 0


def test_the_next_network_is_taken_with_a_warning_why_when_the_first_is_missing(tmp_path, caplog):
    missing = str(tmp_path / "missing.pth")
    with caplog.at_level(logging.INFO):
        loss = load_perceptual(
            ("medicalnet_resnet34", "efficientnet_lite0"), weights={"medicalnet_resnet34": missing},
            slices=3, depths=2, pixel_mm=1.0,
        )  # fmt: skip
    assert [network["name"] for network in loss.in_loss] == ["efficientnet_lite0"]
    assert (loss.slices, loss.depths, loss.extractor.pixel_mm) == (3, 2, 1.0)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "medicalnet_resnet34: no such file" in warnings[0] and missing in warnings[0]
    assert "perceptual loss with efficientnet_lite0 (SHA-256 579344248a93…)" in caplog.text


def test_the_pixel_of_the_evaluation_stays_unless_another_is_asked_for():
    assert load_perceptual("efficientnet_lite0").extractor.pixel_mm == 0.5


def test_when_none_can_be_had_one_line_names_all_and_why(tmp_path):
    names = ["medicalnet_resnet34", "medicalnet_resnet50"]
    weights = {name: str(tmp_path / f"{name}.pth") for name in names}
    with pytest.raises(FeaturesUnavailable, match=r"resnet34, medicalnet_resnet50\): .*34\.pth.*50\.pth") as caught:
        load_perceptual(names, weights=weights)
    assert "\n" not in str(caught.value)


def test_a_wrong_file_is_an_error_and_no_reason_to_take_another_network(tmp_path):
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"something else")
    with pytest.raises(InputError, match="not the weights of medicalnet_resnet34") as caught:
        load_perceptual(["medicalnet_resnet34", "efficientnet_lite0"], weights={"medicalnet_resnet34": str(wrong)})
    assert not isinstance(caught.value, FeaturesUnavailable)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_perceptual(["efficientnet_lite0", "vgg"]), "no feature network is called 'vgg'; there are"),
        (lambda: load_perceptual("efficientnet_lite0", weights={"vgg": "x"}), "no feature network is called 'vgg'"),
        (lambda: load_perceptual([]), "needs a network's name; there are"),
        (lambda: load_perceptual("efficientnet_lite0", pixel_mm=0), "pixel_mm must be 1 or a fraction of it, got 0"),
        (lambda: PerceptualLoss(TwoLevels(), slices=0), "must be 1 or more, got 0 and None"),
        (lambda: PerceptualLoss(TwoLevels(), depths=0), "must be 1 or more, got 2 and 0"),
        (lambda: PerceptualLoss(TwoLevels())(*(torch.rand(1, 1, 8, 8, n) for n in (8, 6))), "volumes of one shape"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
