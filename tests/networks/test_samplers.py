"""Noise schedules, DDPM and DDIM: exact against MONAI's where those are exact, and right where they are not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from semsynth.errors import InputError
from semsynth.networks.sampling.samplers import (
    MULTISTEP,
    Estimate,
    Level,
    Schedule,
    Step,
    angle_step,
    ddim_step,
    ddpm_step,
    dpm_solver_step,
    ladder,
    sample,
)
from tiny_diffusion import exact

SHAPE = (2, 3, 4, 4, 4)


def noise_of(number: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """In float64, as MONAI's schedulers draw it for latents in float64."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number), dtype=torch.float64).to(dtype)


def predictor(schedule: Schedule) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """What is right for white latents, and something that is not; at every level a latent of the size of 1."""
    squares = schedule.alphas_cumprod()

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        wrong = 0.3 * torch.sin(torch.arange(x.numel()).view(x.shape) + t).to(x) + 0.1 * torch.tanh(x)
        if schedule.prediction == "v":
            return wrong
        return float((1.0 - squares[t]).sqrt()) * x + float(squares[t].sqrt()) * wrong

    return predict


def by_step(predict: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[[torch.Tensor, Step], torch.Tensor]:
    return lambda x, step: predict(x, step.timestep)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["cosine", "linear_beta", "scaled_linear_beta"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_noise_and_target_are_those_of_monai(kind: str, prediction: str) -> None:
    schedule, theirs = Schedule(1000, kind, prediction), exact(DDPMScheduler(1000, kind))  # type: ignore[arg-type]
    latent, noise, t = noise_of(0), noise_of(1), torch.tensor([3, 987])
    level = schedule.level(t)
    assert_close(level.signal * latent + level.noise * noise, theirs.add_noise(latent, noise, t))
    wanted = noise if prediction == "epsilon" else theirs.get_velocity(latent, noise, t)
    assert_close(schedule.target(latent, noise, level), wanted)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_right_prediction_gives_back_latent_and_noise(prediction: str) -> None:
    schedule = Schedule(1000, "cosine", prediction)  # type: ignore[arg-type]
    latent, noise, t = noise_of(0).double(), noise_of(1).double(), torch.tensor([10, 500])
    level = schedule.level(t)
    noisy = level.signal * latent + level.noise * noise
    clean, back = schedule.estimate(schedule.target(latent, noise, level), noisy, level)
    torch.testing.assert_close(clean, latent, atol=1e-5, rtol=0)
    torch.testing.assert_close(back, noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["cosine", "linear_beta"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddpm_over_all_steps_is_monais(kind: str, prediction: str, clip: float | None) -> None:
    schedule = Schedule(200, kind, prediction)  # type: ignore[arg-type]
    kind_of = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    theirs = exact(DDPMScheduler(200, kind, prediction_type=kind_of, clip_sample=clip is not None))
    start, x, predict = noise_of(99), noise_of(99), predictor(schedule)
    for number, t in enumerate(theirs.timesteps.tolist()):
        generator = torch.Generator().manual_seed(number)
        x, _ = theirs.step(predict(x, t), t, x, generator=generator)
    for dtype in (torch.float32, torch.float64):
        ours = sample(
            schedule,
            start.to(dtype),
            by_step(predict),
            lambda n, d=dtype: noise_of(n, d),
            sampler="ddpm",
            steps=200,
            clip=clip,
        )
        assert ours.dtype == dtype
        assert_close(ours, x)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_over_all_steps_is_monais(prediction: str, eta: float) -> None:
    schedule = Schedule(200, "cosine", prediction)  # type: ignore[arg-type]
    kind_of = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    theirs = exact(DDIMScheduler(200, "cosine", prediction_type=kind_of, clip_sample=False))
    start, x, predict = noise_of(99), noise_of(99), predictor(schedule)
    for number, t in enumerate(theirs.timesteps.tolist()):
        generator = torch.Generator().manual_seed(number)
        x, _ = theirs.step(predict(x, t), t, x, eta=eta, generator=generator)
    ours = sample(schedule, start, by_step(predict), noise_of, sampler="ddim", steps=200, eta=eta)
    assert_close(ours, x)


def test_a_ddim_step_over_many_time_steps_is_monais() -> None:
    schedule, theirs = Schedule(1000, "cosine"), exact(DDIMScheduler(1000, "cosine", clip_sample=False))
    theirs.set_timesteps(50)  # its step is 1000 // 50 = 20
    squares = schedule.alphas_cumprod()
    x, t, predict = noise_of(0), 500, predictor(schedule)
    wanted, _ = theirs.step(predict(x, t), t, x)
    step = next(s for s in ladder(schedule, 1000) if s.timestep == t)
    step = type(step)(0, t, float(squares[t]), float(squares[t - 20]))
    clean, noise = schedule.estimate(predict(x, t), x, step.level)
    assert_close(ddim_step(step, clean, noise, noise), wanted)


@pytest.mark.parametrize("count", [4, 30, 1000])
def test_a_ddpm_step_leads_from_one_noise_level_to_the_next_whatever_its_length(count: int) -> None:
    """Given the true latent, what was signal · latent + noise · ε is so again, at the next level's signal and noise."""
    latent = torch.full([1, 1, 60, 60, 60], 0.7)

    def white(number: int) -> torch.Tensor:
        return torch.randn(latent.shape, generator=torch.Generator().manual_seed(number))

    for step in list(ladder(Schedule(), count))[count // 2 : count // 2 + 2]:
        noisy = step.level.signal * latent + step.level.noise * white(step.number)
        after = ddpm_step(step, noisy, latent, white(-5))
        assert float(after.mean()) == pytest.approx(step.next_square**0.5 * 0.7, abs=0.01)
        assert float(after.var()) == pytest.approx(1.0 - step.next_square, abs=0.01)


# ---- second order


def gaussian(
    schedule: Schedule, mean: float = 0.5, variance: float = 0.09
) -> Callable[[torch.Tensor, Step], torch.Tensor]:
    """What a perfect network predicts of latents from N(mean, variance)."""

    def predict(x: torch.Tensor, step: Step) -> torch.Tensor:
        signal, noise = step.level
        clean = (mean * noise**2 + signal * variance * x) / (step.square * variance + noise**2)
        eps = (x - signal * clean) / noise
        return eps if schedule.prediction == "epsilon" else signal * eps - noise * clean

    return predict


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", MULTISTEP)
def test_the_error_of_second_order_falls_as_the_square_of_the_step(
    sampler: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semsynth.networks.sampling.samplers.LAST_STEP", 1.0)
    schedule = Schedule(1000, "cosine", prediction)  # type: ignore[arg-type]

    def error(name: str, steps: int) -> float:
        return error_of_gaussian(schedule, name, steps)

    assert error(sampler, 40) < error(sampler, 20) / 3.5
    assert error("ddim", 40) > error("ddim", 20) / 2.2
    assert error(sampler, 20) < error("ddim", 20) / 2


def error_of_gaussian(schedule: Schedule, name: str, steps: int, variance: float = 0.09) -> float:
    square, start = float(schedule.alphas_cumprod()[-1]), noise_of(3)
    exact = 0.5 + (variance / (square * variance + 1.0 - square)) ** 0.5 * (start - square**0.5 * 0.5)
    predict = gaussian(schedule, variance=variance)
    made = sample(schedule, start, predict, noise_of, sampler=name, steps=steps)  # type: ignore[arg-type]
    return float((made - exact).abs().max())


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver", "angle"])
def test_a_short_last_step_keeps_what_is_fine(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a latent that hardly varies, the jump to its expectation takes the most."""
    errors = {}
    for last in (0.3, 1.0):
        monkeypatch.setattr("semsynth.networks.sampling.samplers.LAST_STEP", last)
        errors[last] = error_of_gaussian(Schedule(1000, "cosine", "v"), sampler, 10, variance=0.01)
    assert errors[0.3] < errors[1.0] / 1.5


@pytest.mark.parametrize("one_step", MULTISTEP.values())
def test_the_first_and_the_last_step_are_those_of_ddim(one_step: Any) -> None:
    steps = list(ladder(Schedule(), 8))
    x, clean, other = noise_of(0), noise_of(1), noise_of(2)
    for step, before in ((steps[3], None), (steps[-1], Estimate(steps[-2].level, other))):
        noise = (x - step.level.signal * clean) / step.level.noise
        torch.testing.assert_close(one_step(step, x, clean, before), ddim_step(step, clean, noise, noise))


@pytest.mark.parametrize(
    ("one_step", "variable"),
    [
        (dpm_solver_step, lambda level: math.log(level[0] / level[1])),
        (angle_step, lambda level: math.atan2(level[1], level[0])),
    ],
)
def test_an_estimate_that_is_a_line_is_integrated_exactly(one_step: Any, variable: Callable[[Level], float]) -> None:
    """dx = (clean − …) dλ by many small steps of DDIM against one step; DPM-Solver++'s second order is in λ's steps."""
    earlier, step = list(ladder(Schedule(), 50))[23:25]
    x, before, clean = (float(value) for value in (0.7, -0.4, 0.1))
    start, end = variable(step.level), variable(step.next_level)
    slope = (clean - before) / (start - variable(earlier.level))
    count, value = 20000, x
    thetas = torch.linspace(
        math.atan2(step.level.noise, step.level.signal), math.atan2(step.next_level.noise, step.next_level.signal),
        count + 1, dtype=torch.float64,
    ).tolist()  # fmt: skip
    for now, then in itertools.pairwise(thetas):
        middle = 0.5 * (now + then)
        estimate = clean + slope * (variable(Level(math.cos(middle), math.sin(middle))) - start)
        eps = (value - math.cos(now) * estimate) / math.sin(now)
        value = math.cos(then) * estimate + math.sin(then) * eps
    tensors = [torch.full([1], number, dtype=torch.float64) for number in (x, clean, before)]
    made = one_step(step, tensors[0], tensors[1], Estimate(earlier.level, tensors[2]))
    tolerance = 1e-6 if one_step is angle_step else 0.05 * abs(end - start) ** 2
    assert float(made) == pytest.approx(value, abs=tolerance)


def test_split_predictions_are_v_of_their_two_parts() -> None:
    split, whole = Schedule(100, prediction="split"), Schedule(100, prediction="v")
    latent, noise, t = noise_of(0), noise_of(1), torch.tensor([10, 70])
    level = split.level(t)
    joined = split.joined(torch.cat([noise, latent], dim=1), level)
    torch.testing.assert_close(joined, whole.target(latent, noise, level))
    torch.testing.assert_close(split.target(latent, noise, level), joined)
    assert whole.joined(latent, level) is latent

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.cat([torch.sin(x + t), torch.cos(x)], dim=1)

    def predict_v(x: torch.Tensor, t: int) -> torch.Tensor:
        return split.joined(predict(x, t), split.level(torch.tensor([t])))

    results = [
        sample(split, noise_of(5), by_step(predict), noise_of, steps=7),
        sample(whole, noise_of(5), by_step(predict_v), noise_of, steps=7),
    ]
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def test_steps_go_from_the_last_to_the_first() -> None:
    schedule = Schedule(1000)
    assert schedule.steps(1000) == list(range(999, -1, -1))
    assert schedule.steps(3) == [999, 564, 129]  # 1000, and 1000 / 2.3 and twice that less
    assert schedule.steps(500) == list(range(999, 0, -2))
    assert schedule.steps(1) == [999]
    for count in range(1, 1001):
        steps = schedule.steps(count)
        assert len(set(steps)) == count
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] >= 0
    assert [s.next_square for s in ladder(schedule, 7)][-1] == 1.0


def test_the_last_step_of_ddpm_needs_no_noise() -> None:
    step = list(ladder(Schedule(100), 10))[-1]
    x, clean = noise_of(0), noise_of(1)
    torch.testing.assert_close(ddpm_step(step, x, clean, noise_of(2)), clean)


def test_clipping_bounds_the_estimate() -> None:
    schedule = Schedule(1000)
    result = sample(schedule, noise_of(0), lambda x, step: -5 * x, noise_of, steps=5, clip=0.5)
    assert float(result.abs().max()) <= 0.5 + 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver", "angle"])
def test_a_clipped_estimate_leaves_nothing_out_of_the_noise(sampler: str, prediction: str) -> None:
    """Else DDIM loses a part of the latent in each step, and more in more steps (MONAI's does).

    Of an estimate that is always clipped to 1 there is a straight way: 1 and the noise that the start has beside it.
    """
    schedule = Schedule(1000, "cosine", prediction)  # type: ignore[arg-type]
    start, seen = noise_of(3), []

    def predict(x: torch.Tensor, step: Step) -> torch.Tensor:
        seen.append((step, x))
        signal, noise = step.level
        eps = (x - signal * 5.0) / noise
        return eps if prediction == "epsilon" else signal * eps - noise * 5.0

    sample(schedule, start, predict, noise_of, sampler=sampler, steps=50, clip=1.0)  # type: ignore[arg-type]
    first = seen[0][0].level
    beside = (start - first.signal) / first.noise
    for step, x in seen:
        torch.testing.assert_close(x, step.level.signal + step.level.noise * beside, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "cosine", "epsilon"), "needs 2 or more time steps, got 1"),
        ((10, "cosin", "epsilon"), "noise_schedule must be one of .*cosine.*, got 'cosin'"),
        ((10, "cosine", "x0"), "prediction must be epsilon, v or split, got 'x0'"),
    ],
)
def test_bad_schedules_are_named(arguments: tuple[int, str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule(*arguments)  # type: ignore[arg-type]


def test_bad_steps_and_samplers_are_named() -> None:
    with pytest.raises(InputError, match=r"steps must be 1 to 1000 \(what the network was trained with\), got 1001"):
        Schedule().steps(1001)
    with pytest.raises(InputError, match="sampler must be one of ddpm, ddim, dpm_solver, angle, got 'euler'"):
        sample(Schedule(), noise_of(0), by_step(predictor(Schedule())), noise_of, sampler="euler")  # type: ignore[arg-type]
