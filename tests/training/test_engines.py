"""The adversarial trainer: what each step moves, what it reports, and that it learns."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from monai.engines import SupervisedTrainer
from semsynth.errors import InputError
from semsynth.networks.discriminators import ConditionalPatchDiscriminator
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.precision import reduced_type
from semsynth.training.engines.adversarial import AdversarialTrainer
from semsynth.training.engines.base import LossTerms
from semsynth.training.engines.batches import PrepareSynthesisBatch
from semsynth.training.losses.gan import ConditionalGANLoss


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 3, (1, 1, 16, 16, 16), generator=generator) for _ in range(count)]
    return [{"label": label, "image": label / 2.0} for label in labels]


def trainer(loss: ConditionalGANLoss | None = None, **arguments) -> AdversarialTrainer:
    torch.manual_seed(0)
    network = Pix2PixGenerator(3, channels=(4, 8))
    discriminator = ConditionalPatchDiscriminator(3, channels=4, num_layers=1)
    defaults = {
        "device": torch.device("cpu"),
        "max_epochs": 1,
        "train_data_loader": batches(),
        "optimizer": torch.optim.SGD(network.parameters(), lr=1e-2),
        "d_optimizer": torch.optim.SGD(discriminator.parameters(), lr=1e-2),
    }
    loss = loss or ConditionalGANLoss()
    return AdversarialTrainer(
        network=network, discriminator=discriminator, loss_function=loss, **(defaults | arguments)
    )


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    return any(not torch.equal(before[n], p) for n, p in module.named_parameters())


def test_it_is_a_supervised_trainer_that_reports_loss_and_named_terms():
    engine = trainer()
    engine.run()
    assert isinstance(engine, SupervisedTrainer)
    output = engine.state.output
    assert set(output["losses"]) == {"g_adversarial", "g_l1", "d_real", "d_fake"}
    assert output["loss"] == pytest.approx(float(output["losses"]["g_adversarial"] + output["losses"]["g_l1"]))
    assert set(LossTerms()(output)) == {"loss", *output["losses"]}
    assert set(LossTerms(["g_l1"])(output)) == {"g_l1"}


def test_both_networks_are_trained_and_neither_by_the_others_loss():
    engine = trainer(ConditionalGANLoss(l1_weight=0))
    g, d = copy.deepcopy(engine.network.state_dict()), copy.deepcopy(engine.discriminator.state_dict())
    engine.run()
    assert moved(g, engine.network) and moved(d, engine.discriminator)
    frozen = trainer(d_optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    d = copy.deepcopy(frozen.discriminator.state_dict())
    frozen.run()
    assert not moved(d, frozen.discriminator), "the generator's step reached the discriminator"


def test_no_gradient_of_the_generators_step_enters_the_discriminators():
    left_over = []

    class Spy(ConditionalGANLoss):
        def discriminator(self, discriminator, label, fake, real):
            left_over.extend(p.grad for p in discriminator.parameters())
            return super().discriminator(discriminator, label, fake, real)

    engine = trainer(Spy())
    engine.run()
    assert left_over and all(gradient is None for gradient in left_over)
    assert all(p.grad is not None for p in engine.discriminator.parameters())


def test_the_discriminator_is_shown_the_real_image_as_real():
    seen = []

    class Spy(ConditionalGANLoss):
        def discriminator(self, discriminator, label, fake, real):
            seen.append((label.clone(), fake, real.clone()))
            return super().discriminator(discriminator, label, fake, real)

    engine = trainer(Spy())
    engine.run()
    for (label, fake, real), batch in zip(seen, batches(), strict=True):
        assert torch.equal(label, batch["label"]) and torch.equal(real, batch["image"])
        assert not fake.requires_grad and not torch.equal(fake, real)


def test_accumulated_batches_make_one_step_and_the_epochs_end_flushes():
    steps = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(1)
            return super().step(closure)

    torch.manual_seed(0)
    network = Pix2PixGenerator(3, channels=(4, 8))
    engine = trainer(accumulation_steps=2, optimizer=Counting(network.parameters(), lr=0.1))
    engine.network = network
    engine.run()
    assert len(steps) == 2  # three batches: 2 + 1


def test_accumulation_averages_gradients():
    engines = [
        trainer(
            ConditionalGANLoss(adversarial_weight=0), accumulation_steps=steps, train_data_loader=batches(1) * steps
        )
        for steps in (1, 2)
    ]
    for engine in engines:
        engine.run()
    for a, b in zip(*(engine.network.parameters() for engine in engines), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_gradient_clipping_bounds_the_step():
    engine = trainer(clip_norm=1e-3, train_data_loader=batches(1))
    before = copy.deepcopy(engine.network.state_dict())
    engine.run()
    step = torch.cat([(p - before[n]).flatten() for n, p in engine.network.named_parameters()])
    assert 0 < step.norm() <= 1e-2 * 1e-3 * 1.01


def test_mixed_precision_runs_on_the_devices_own_type_and_keeps_losses_in_float32():
    dtypes = []

    class Spy(ConditionalGANLoss):
        def generator(self, discriminator, label, fake, real):
            dtypes.append(discriminator(label, fake)[-1].dtype)
            return super().generator(discriminator, label, fake, real)

    engine = trainer(Spy(), amp=True)
    engine.run()
    assert engine.scaler is None, "MONAI's own switch stays off"
    assert set(dtypes) == {reduced_type("cpu") or torch.float32}
    assert engine.state.output["loss"].dtype == torch.float32


@pytest.mark.parametrize("adversarial", ["least_squares", "hinge", "bce"])
def test_every_adversarial_loss_pulls_the_generator_towards_real(adversarial):
    loss = ConditionalGANLoss(adversarial=adversarial, l1_weight=0)

    def discriminator(label, image):  # a discriminator that likes bright images
        return [8 * image - 4]

    bright, dark = torch.full((1, 1, 4, 4, 4), 0.9), torch.full((1, 1, 4, 4, 4), 0.1)
    label = torch.zeros(1, 1, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g = {
            n: float(loss.generator(discriminator, label, x, x)["g_adversarial"])
            for n, x in (("bright", bright), ("dark", dark))
        }
        d = {n: sum(map(float, loss.discriminator(discriminator, label, *pair).values()))
             for n, pair in (("right", (dark, bright)), ("wrong", (bright, dark)))}  # fmt: skip
    assert g["bright"] < g["dark"] and d["right"] < d["wrong"]


def test_l1_is_measured_on_minus_one_to_one():
    terms = ConditionalGANLoss(adversarial_weight=0, l1_weight=100).generator(
        None, torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    )
    assert terms == {"g_l1": pytest.approx(200.0)}


def test_training_on_one_pair_learns_it():
    engine = trainer(
        max_epochs=60, train_data_loader=batches(1),
        loss=ConditionalGANLoss(adversarial_weight=0.1),
    )  # fmt: skip
    engine.optimizer = torch.optim.Adam(engine.network.parameters(), lr=1e-2)
    first = []
    engine.add_event_handler("ITERATION_COMPLETED", lambda e: first.append(float(e.state.output["losses"]["g_l1"])))
    engine.run()
    assert first[-1] < 0.25 * first[0]


def test_batches_are_label_map_and_image_and_inference_has_no_image():
    label, image = PrepareSynthesisBatch()(batches(1)[0])
    assert torch.equal(image, label / 2.0)
    assert PrepareSynthesisBatch("image", "none")({"image": label})[1] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trainer(clip_norm=0.0), "clip_norm must be positive"),
        (lambda: ConditionalGANLoss(adversarial="wgan"), "adversarial must be least_squares, hinge or bce"),
        (lambda: ConditionalGANLoss(l1_weight=-1), "loss weights must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ---- steps that a NaN cannot spoil


class Poisoned(ConditionalGANLoss):
    """Makes one term NaN in some iterations."""

    def __init__(self, *, term: str, iterations: set[int]) -> None:
        super().__init__()
        self.term, self.iterations, self.count = term, iterations, 0

    def generator(self, discriminator, label, fake, real):
        self.count += 1
        return self._poison(super().generator(discriminator, label, fake, real))

    def discriminator(self, discriminator, label, fake, real):
        return self._poison(super().discriminator(discriminator, label, fake, real))

    def _poison(self, terms):
        bad = self.count in self.iterations
        return {n: t * float("nan") if bad and n == self.term else t for n, t in terms.items()}


@pytest.mark.parametrize("term", ["g_l1", "d_real"])
def test_a_step_with_a_nan_loss_is_skipped_counted_and_leaves_the_network_alone(term, caplog):
    engine = trainer(Poisoned(term=term, iterations={2}))
    states = []
    learner = engine.network if term == "g_l1" else engine.discriminator
    engine.add_event_handler("ITERATION_COMPLETED", lambda: states.append(copy.deepcopy(learner.state_dict())))
    engine.run()
    first, second, third = (torch.cat([t.flatten().double() for t in state.values()]) for state in states)
    assert torch.equal(first, second) and not torch.equal(second, third) and bool(third.isfinite().all())
    assert engine.skipped == 1 and all(part.guard.in_a_row == 0 for part in engine.learners.values())
    assert f"iteration 2: loss {term} is NaN or infinite" in caplog.text


def test_running_statistics_that_a_nan_has_spoilt_are_put_back():
    data = batches()
    data[1]["image"] = data[1]["image"] * float("nan")
    engine = trainer(train_data_loader=data)
    assert any("running" in name for name, _ in engine.discriminator.named_buffers())
    engine.run()
    assert engine.skipped == 2  # generator and discriminator
    assert all(bool(t.isfinite().all()) for t in engine.discriminator.state_dict().values())


@pytest.mark.parametrize(
    ("value", "where"), [(float("inf"), r"1 of \d+ parameters: {name}"), (3e38, "norm inf of finite values")]
)
def test_infinite_gradients_of_a_finite_loss_are_skipped_too_and_named(value, where, caplog):
    engine = trainer()
    name, parameter = next(iter(engine.network.named_parameters()))
    parameter.register_hook(lambda g: torch.full_like(g, value))
    before = copy.deepcopy(engine.network.state_dict())
    engine.run()
    assert engine.skipped == 3 and not moved(before, engine.network)
    said = where.format(name=re.escape(name))
    assert re.search(rf"the gradient of g_adversarial \+ \S+ \({said}\) is NaN or infinite", caplog.text)


def test_too_many_bad_steps_in_a_row_stop_with_where_it_began():
    engine = trainer(Poisoned(term="g_adversarial", iterations=set(range(1, 50))), max_bad_steps=2)
    with pytest.raises(InputError, match=r"3 steps in a row.*the limit is 2.*it began in loss g_adversarial"):
        engine.run()


def test_out_of_memory_names_the_settings_that_help():
    class Greedy(torch.nn.Module):
        def forward(self, x):
            return x + torch.empty(2**50)

    engine = trainer()
    engine.network = Greedy()
    with pytest.raises(
        InputError, match=r"out of memory at iteration 1, with \(1, 1, 16, 16, 16\).*smaller patch_size"
    ):
        engine.run()
