"""The generators' losses: values against ones computed by hand, and whom each term's gradient reaches."""

from __future__ import annotations

import pytest
import torch
from semsynth.errors import InputError
from semsynth.networks.discriminators import ConditionalPatchDiscriminator, MultiScaleDiscriminator
from semsynth.training.losses.gan import (
    ConditionalGANLoss,
    VariationalGANLoss,
    discriminator_loss,
    feature_matching,
    generator_loss,
    kl_divergence,
)
from torch import nn

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 2.0]).view(1, 1, 2, 2, 1)
OFF = {"adversarial_weight": 0.0, "feature_weight": 0.0, "perceptual_weight": 0.0, "kl_weight": 0.0}


class BrightnessJudge(nn.Module):
    """As a discriminator of ``scales`` scales, whose every layer and logits are multiples of the image."""

    def __init__(self, scales: int = 1) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([2.0, 4.0, 10.0]))
        self.scales, self.calls = scales, []

    def forward(self, label, image):
        self.calls.append((image, torch.is_grad_enabled()))
        features = [[image * gain * (s + 1) for gain in self.gain] for s in range(self.scales)]
        return features if self.scales > 1 else features[0]


class MeanDifference(nn.Module):
    """As a perceptual loss."""

    in_loss = ({"name": "mean", "sha256": "0" * 64},)

    def forward(self, fake, real):
        return (fake.mean() - real.mean()).abs()


def images(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (batch, 1, 24, 24, 24), generator=generator)
    fake, real = torch.rand(2, batch, 1, 24, 24, 24, generator=generator)
    return label, fake.requires_grad_(), real.requires_grad_()


def multi_scale(**arguments) -> MultiScaleDiscriminator:
    torch.manual_seed(0)
    return MultiScaleDiscriminator(4, channels=4, num_layers=2, **arguments)


# ---------------------------------------------------------------------------------------------------------- adversarial


def test_hinge_is_as_computed_by_hand():
    assert float(discriminator_loss("hinge", LOGITS, is_real=True)) == pytest.approx((4 + 1.5 + 1 + 0) / 4)
    assert float(discriminator_loss("hinge", LOGITS, is_real=False)) == pytest.approx((0 + 0.5 + 1 + 3) / 4)
    assert float(generator_loss("hinge", LOGITS)) == pytest.approx(1.5 / 4)


def test_the_generator_gets_the_whole_gradient_however_sure_the_discriminator_is():
    logits = torch.tensor([-50.0, 0.0, 50.0], requires_grad=True)
    generator_loss("hinge", logits).backward()
    assert logits.grad.tolist() == pytest.approx([-1 / 3] * 3)
    logits = torch.tensor([-50.0, 50.0], requires_grad=True)
    generator_loss("bce", logits).backward()
    assert logits.grad.tolist() == pytest.approx([-0.5, 0.0]), "a sigmoid that has run to 0 must not swallow it"


def test_least_squares_and_cross_entropy_are_as_computed_by_hand():
    assert float(discriminator_loss("least_squares", LOGITS, is_real=True)) == pytest.approx((16 + 2.25 + 1 + 1) / 4)
    assert float(generator_loss("least_squares", LOGITS)) == pytest.approx((16 + 2.25 + 1 + 1) / 4)
    assert float(discriminator_loss("least_squares", LOGITS, is_real=False)) == pytest.approx((9 + 0.25 + 0 + 4) / 4)
    probability = LOGITS.double().sigmoid()
    assert float(discriminator_loss("bce", LOGITS, is_real=True)) == pytest.approx(float(-probability.log().mean()))
    assert float(discriminator_loss("bce", LOGITS, is_real=False)) == pytest.approx(
        float(-(1 - probability).log().mean())
    )


@pytest.mark.parametrize("make", [ConditionalGANLoss, lambda **k: VariationalGANLoss(perceptual_weight=0, **k)])
def test_the_discriminators_terms_are_half_each_and_the_mean_over_scales(make):
    loss = make(adversarial="hinge")
    label, fake, real = torch.zeros(1, 1, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1, 1), 0.05)
    one = loss.discriminator(BrightnessJudge(), label, fake, real)
    assert {name: float(x) for name, x in one.items()} == {
        "d_real": pytest.approx(0.5 * (1 - 0.5)), "d_fake": pytest.approx(0.5 * (1 + 3)),
    }  # fmt: skip
    two = loss.discriminator(BrightnessJudge(scales=2), label, fake, real)
    assert {name: float(x) for name, x in two.items()} == {
        "d_real": pytest.approx(0.5 * (0.5 + 0) / 2), "d_fake": pytest.approx(0.5 * (4 + 7) / 2),
    }  # fmt: skip


def test_the_discriminators_step_reaches_the_discriminator_and_takes_a_detached_image():
    network, (label, fake, real) = multi_scale(), images()
    terms = VariationalGANLoss(perceptual_weight=0).discriminator(network, label, fake.detach(), real.detach())
    sum(terms.values()).backward()
    assert all(weight.grad is not None for weight in network.parameters()) and fake.grad is None


# --------------------------------------------------------------------------------------------- the terms of a generator


def test_every_term_is_as_computed_by_hand():
    loss = VariationalGANLoss(perceptual=MeanDifference(), l1_weight=3)
    shape = (1, 1, 2, 2, 2)
    posterior = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    terms = loss.generator(
        BrightnessJudge(scales=2), torch.zeros(shape), torch.full(shape, 0.5), torch.full(shape, 0.25), posterior
    )
    assert {name: float(term) for name, term in terms.items()} == {
        "g_adversarial": pytest.approx(-(5 + 10) / 2),
        "g_feature": pytest.approx(10 * 0.25 * (2 + 4 + 4 + 8) / 4),  # logits (10 and 20) left out
        "g_perceptual": pytest.approx(10 * 0.25),
        "g_kl": pytest.approx(0.05 * 0.5),
        "g_l1": pytest.approx(3 * 0.5),
    }


@pytest.mark.parametrize(
    ("setting", "name"),
    [("adversarial_weight", "g_adversarial"), ("feature_weight", "g_feature"), ("perceptual_weight", "g_perceptual"),
     ("kl_weight", "g_kl"), ("l1_weight", "g_l1")],
)  # fmt: skip
def test_each_weight_alone_leaves_its_term_whose_gradient_reaches_whom_it_should(setting, name):
    network, (label, fake, real) = multi_scale().requires_grad_(False), images()
    posterior = torch.randn(1, 3, requires_grad=True), torch.randn(1, 3, requires_grad=True)
    loss = VariationalGANLoss(**(OFF | {setting: 2.0}), perceptual=MeanDifference())
    double = VariationalGANLoss(**(OFF | {setting: 4.0}), perceptual=MeanDifference())
    terms = loss.generator(network, label, fake, real.detach(), posterior)
    assert list(terms) == [name]
    assert float(double.generator(network, label, fake, real.detach(), posterior)[name]) == pytest.approx(
        2 * float(terms[name])
    )
    terms[name].backward()
    of_posterior = name == "g_kl"
    assert all((x.grad is not None) == of_posterior for x in posterior)
    assert (fake.grad is not None and bool(fake.grad.abs().sum() > 0)) != of_posterior


def test_without_any_weight_nothing_is_computed_not_even_by_the_discriminator():
    network, (label, fake, real) = BrightnessJudge(), images()
    loss = VariationalGANLoss(**OFF, perceptual=MeanDifference())
    assert loss.generator(network, label, fake, real, (torch.zeros(1, 2), torch.zeros(1, 2))) == {}
    assert network.calls == [] and loss.perceptual is None and loss.in_loss == []


def test_without_a_posterior_there_is_no_kl_term():
    label, fake, real = images()
    assert "g_kl" not in VariationalGANLoss(perceptual_weight=0).generator(BrightnessJudge(), label, fake, real)


def test_the_generators_step_shows_the_discriminator_each_image_once_and_the_real_one_without_gradient():
    network, (label, fake, real) = BrightnessJudge(), images()
    terms = VariationalGANLoss(perceptual_weight=0).generator(network, label, fake, real)
    assert [(image is fake, gradient) for image, gradient in network.calls] == [(True, True), (False, False)]
    sum(terms.values()).backward()
    assert fake.grad is not None and real.grad is None
    network.calls.clear()
    VariationalGANLoss(perceptual_weight=0, feature_weight=0).generator(network, label, fake, real)
    assert len(network.calls) == 1, "no feature matching: the real image need not be shown"


def test_matching_features_of_the_same_pair_costs_nothing_whatever_the_number_of_scales():
    label, fake, _ = images()
    for network in (
        multi_scale(scales=1),
        multi_scale(scales=2),
        ConditionalPatchDiscriminator(4, channels=4, num_layers=2),
    ):
        terms = VariationalGANLoss(perceptual_weight=0).generator(network, label, fake, fake.detach())
        assert float(terms["g_feature"]) == 0.0


def test_one_scale_in_a_list_is_worth_as_much_as_one_scale_alone():
    label, fake, real = images()
    network = multi_scale(scales=1)
    loss = VariationalGANLoss(perceptual_weight=0)
    in_list = loss.generator(network, label, fake, real)
    alone = loss.generator(network.finest, label, fake, real)
    assert in_list.keys() == alone.keys() == {"g_adversarial", "g_feature"}
    assert all(torch.equal(in_list[name], alone[name]) for name in alone)


def test_features_to_match_are_targets_and_get_no_gradient():
    ours, theirs = torch.rand(1, 2, 3, 3, 3, requires_grad=True), torch.rand(1, 2, 3, 3, 3, requires_grad=True)
    feature_matching([[ours, ours]], [[theirs, theirs]]).backward()
    assert ours.grad.abs().sum() > 0 and theirs.grad is None


def test_kl_is_that_of_the_two_normal_distributions_summed_over_z_and_mean_over_the_batch():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 5), torch.randn(3, 5)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    reference = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(dim=1).mean()
    assert float(kl_divergence(mean, log_variance)) == pytest.approx(float(reference), rel=1e-5)
    assert float(kl_divergence(torch.zeros(3, 5), torch.zeros(3, 5))) == 0.0
    assert kl_divergence(mean.bfloat16(), log_variance.bfloat16()).dtype == torch.float32


def test_all_terms_are_float32_under_bfloat16():
    network, (label, fake, real) = multi_scale(), images(batch=2)
    posterior = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16)
    for adversarial in ("hinge", "least_squares", "bce"):
        loss = VariationalGANLoss(adversarial=adversarial, l1_weight=1, perceptual=MeanDifference())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = loss.generator(network, label, fake, real, posterior)
            terms |= loss.discriminator(network, label, fake.detach(), real)
        assert len(terms) == 7
        assert all(term.dtype == torch.float32 and term.ndim == 0 and term.isfinite() for term in terms.values())


def test_it_names_the_networks_that_are_in_the_loss():
    assert VariationalGANLoss(perceptual=MeanDifference()).in_loss == [{"name": "mean", "sha256": "0" * 64}]
    assert VariationalGANLoss(perceptual=MeanDifference(), perceptual_weight=0).in_loss == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariationalGANLoss(adversarial="wgan", perceptual_weight=0), "adversarial must be least_squares, hin"),
        (lambda: VariationalGANLoss(), "no perceptual network; give one as perceptual .* or set perceptual_weight to"),
        (lambda: VariationalGANLoss(perceptual_weight=-1), "must be 0 or more, got .*perceptual_weight -1"),
        (lambda: VariationalGANLoss(perceptual_weight=0, kl_weight=-0.1), "must be 0 or more, got .*kl_weight -0.1"),
        (lambda: VariationalGANLoss(perceptual_weight=0, feature_weight=-1), "must be 0 or more, got feature_weight"),
        (lambda: VariationalGANLoss(perceptual_weight=0, l1_weight=-1), "must be 0 or more, got .*l1_weight -1"),
        (lambda: kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4)), r"mean and log-variance \(B, Z\) each, got"),
        (lambda: kl_divergence(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)), r"mean and log-variance \(B, Z\) each"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
