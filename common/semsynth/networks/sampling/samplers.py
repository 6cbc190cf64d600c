"""Noise schedules and samplers of diffusion models: DDPM, DDIM and DPM-Solver++, each written as its algorithm.

A sampler here is a function of the current latent and the network's prediction; where the noise comes from, and what
the prediction is guided by, is the caller's. Exact against MONAI's schedulers on the same noise where those are exact
(``tests/networks/test_samplers.py``): with fewer steps than it was trained with, MONAI's DDPM takes the posterior of
one step where it takes many, and its DDIM's step is T // n where its time steps are (T - 1) / (n - 1) apart. Where it
clips the estimate of the latent its DDIM keeps the noise of the estimate before, and loses what was clipped in every
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, exp, log, sqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules

from ...errors import InputError

Prediction: TypeAlias = Literal["epsilon", "v", "split"]
Sampler: TypeAlias = Literal["ddpm", "ddim", "dpm_solver", "angle"]
LAST_STEP = 0.3
"""Of the others' length. Adjacent slices of spade_ldm's volumes in ten steps differ 0.959 times as much as those of 250
steps where it is 1, 0.992 times for 0.5, 1.001 for 0.3, and 1.015 for 0.15 (three maps, the sampler ``"angle"``)."""
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "dpm_solver", "angle")


class Level(NamedTuple):
    """A noise level: ``noisy = signal · latent + noise · ε``; ``signal² + noise² = 1``. Of one step, two numbers."""

    signal: Any
    noise: Any


@dataclass(frozen=True)
class Schedule:
    """Noise level of every time step.

    Attributes:
        timesteps: T, of the training.
        kind: one of MONAI's ``NoiseSchedules``: ``"cosine"`` (Nichol & Dhariwal 2021, eq. 17), ``"linear_beta"``,
            ``"scaled_linear_beta"``, ``"sigmoid_beta"``.
        prediction: quantity that the network predicts: ``"epsilon"``, the noise (Ho et al. 2020), or ``"v"`` = signal ·
            ε − noise · latent (Salimans & Ho 2022, section 4), which says something at every level: at the last one ε
            is the input itself.

    Raises:
        InputError: for names that are unknown, or fewer than 2 time steps.

    Examples:
        >>> schedule = Schedule(timesteps=1000, kind="cosine", prediction="v")
        >>> schedule.steps(4)
        [999, 696, 393, 90]
        >>> level = schedule.level(torch.tensor([0, 999]))
        >>> [round(float(signal), 2) for signal in level.signal.flatten()]
        [1.0, 0.0]
    """

    timesteps: int = 1000
    kind: str = "cosine"
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        if self.kind not in NoiseSchedules.names:
            raise InputError(f"noise_schedule must be one of {', '.join(NoiseSchedules.names)}, got {self.kind!r}")
        if self.prediction not in ("epsilon", "v", "split"):
            raise InputError(f"prediction must be epsilon, v or split, got {self.prediction!r}")
        if self.timesteps < 2:
            raise InputError(f"needs 2 or more time steps, got {self.timesteps}")

    def alphas_cumprod(self) -> torch.Tensor:
        """signal² at each of the T time steps, ``(T,)`` float64, from nearly 1 to nearly 0.

        In float32 what a step adds, one minus the ratio of two neighbours, would be right to three digits only.
        """
        made = NoiseSchedules[self.kind](num_train_timesteps=self.timesteps)
        betas: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return torch.cumprod(1.0 - betas.double(), dim=0)

    def level(self, timestep: torch.Tensor) -> Level:
        """Noise level of time steps ``(B,)``, as ``(B, 1, 1, 1, 1)``."""
        square = self.alphas_cumprod().to(timestep.device)[timestep].view(-1, 1, 1, 1, 1)
        return Level(square.sqrt().float(), (1.0 - square).sqrt().float())

    def joined(self, output: torch.Tensor, level: Level) -> torch.Tensor:
        """A network's output ``(B, Z, …)``, for split ``(B, 2·Z, …)``, as the prediction ``(B, Z, …)``: ε or v."""
        if self.prediction != "split":
            return output
        noise, latent = output.chunk(2, dim=1)
        result: torch.Tensor = level.signal * noise - level.noise * latent
        return result

    def target(self, latent: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
        """What is to be predicted of ``level.signal · latent + level.noise · noise``: ε or v."""
        return noise if self.prediction == "epsilon" else level.signal * noise - level.noise * latent

    def estimate(self, predicted: torch.Tensor, noisy: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent without noise, and the noise, by a prediction (Ho et al. 2020, eq. 15; Salimans & Ho 2022, sec. 4)."""
        if self.prediction == "epsilon":
            return (noisy - level.noise * predicted) / level.signal, predicted
        return level.signal * noisy - level.noise * predicted, level.noise * noisy + level.signal * predicted

    def steps(self, count: int) -> list[int]:
        """``count`` time steps from the last one down, evenly apart, the last step shorter than the others.

        From the last time step on (Lin et al. 2024, "trailing"), and not down to 0: the step that ends nearly without
        noise would be the longest of all for a multistep sampler. What follows the last time step is one jump to the
        expected latent, which is smoother than any latent: :data:`LAST_STEP` keeps it short. With more than 0.3 · T
        steps they are all as long.

        Raises:
            InputError: for a count outside 1…T.
        """
        if not 1 <= count <= self.timesteps:
            raise InputError(f"steps must be 1 to {self.timesteps} (what the network was trained with), got {count}")
        last = LAST_STEP if 1 < count <= LAST_STEP * self.timesteps else 1.0
        return [round((1 - i / (count - 1 + last)) * self.timesteps) - 1 for i in range(count)]


@dataclass(frozen=True)
class Step:
    """One step of a sampler.

    Attributes:
        number: 0, 1, …
        timestep: timestep whose noise level the latent has.
        square, next_square: signal² now and after it; 1 after the last one.
    """

    number: int
    timestep: int
    square: float
    next_square: float

    @property
    def level(self) -> Level:
        """The latent's noise level."""
        return Level(sqrt(self.square), sqrt(1.0 - self.square))

    @property
    def next_level(self) -> Level:
        """The same after the step."""
        return Level(sqrt(self.next_square), sqrt(1.0 - self.next_square))


def ladder(schedule: Schedule, count: int) -> Iterator[Step]:
    """The steps from pure noise to a latent without noise.

    Examples:
        >>> [step.timestep for step in ladder(Schedule(), 4)]
        [999, 696, 393, 90]
    """
    squares = schedule.alphas_cumprod().tolist()
    ends = [*schedule.steps(count), None]
    for number, (now, then) in enumerate(pairwise(ends)):
        assert now is not None
        yield Step(number, now, squares[now], 1.0 if then is None else squares[then])


def ddpm_step(step: Step, noisy: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw from q(next | noisy, clean) (Ho et al. 2020, eq. 6 and 7; respaced: Nichol & Dhariwal 2021, eq. 19).

    Args:
        step: levels that it goes from and to.
        noisy: ``(B, Z, h, w, d)``.
        clean: the estimate of the latent without noise.
        noise: white, of variance 1; not used in the last step.

    Examples:
        >>> first, last = ladder(Schedule(), 2)
        >>> noisy, clean, noise = torch.randn(3, 1, 2, 4, 4, 4)
        >>> bool(torch.equal(ddpm_step(last, noisy, clean, noise), clean))  # the last step ends without noise
        True
    """
    alpha = step.square / step.next_square
    remaining = 1.0 - step.square
    of_clean = sqrt(step.next_square) * (1.0 - alpha) / remaining
    of_noisy = sqrt(alpha) * (1.0 - step.next_square) / remaining
    variance = (1.0 - step.next_square) / remaining * (1.0 - alpha)
    return of_clean * clean + of_noisy * noisy + sqrt(variance) * noise


def ddim_step(
    step: Step, clean: torch.Tensor, predicted_noise: torch.Tensor, noise: torch.Tensor, eta: float = 0.0
) -> torch.Tensor:
    """One step of Song et al. 2021 (DDIM), eq. 12 with σ of eq. 16.

    Args:
        step: levels that it goes from and to.
        clean, predicted_noise: the estimates, ``(B, Z, h, w, d)``.
        noise: white, of variance 1; not used where ``eta`` is 0.
        eta: η; 0 is deterministic.

    Examples:
        >>> first, last = ladder(Schedule(), 2)
        >>> clean, predicted, noise = torch.randn(3, 1, 2, 4, 4, 4)
        >>> bool(torch.equal(ddim_step(last, clean, predicted, noise), clean))  # the last step ends without noise
        True
    """
    spread = (1.0 - step.next_square) / (1.0 - step.square) * (1.0 - step.square / step.next_square)
    sigma = eta * sqrt(spread)
    direction = sqrt(max(1.0 - step.next_square - sigma**2, 0.0)) * predicted_noise
    result = sqrt(step.next_square) * clean + direction
    return result + sigma * noise if eta > 0 else result


class Estimate(NamedTuple):
    """What a multistep sampler keeps of the step before: where it was, and the latent without noise by it."""

    level: Level
    clean: torch.Tensor


def dpm_solver_step(
    step: Step, noisy: torch.Tensor, clean: torch.Tensor, before: Estimate | None = None
) -> torch.Tensor:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    The estimate of the latent is taken to change linearly with λ = log(signal / noise), through this step's and the one
    before. Of first order, which is DDIM, in the first step, and in the last, where λ becomes infinite.

    Args:
        step: levels that it goes from and to.
        noisy: ``(B, Z, h, w, d)``.
        clean: the estimate of the latent without noise.
        before: estimate of the step before; None in the first.

    Examples:
        >>> first, last = ladder(Schedule(), 2)
        >>> noisy, clean = torch.randn(2, 1, 2, 4, 4, 4)
        >>> noisy = dpm_solver_step(first, noisy, clean)
        >>> bool(torch.allclose(dpm_solver_step(last, noisy, clean, Estimate(first.level, clean)), clean))
        True
    """
    now, then = step.level, step.next_level
    if then.noise == 0.0:
        return clean
    h = _log_ratio(then) - _log_ratio(now)
    target = clean
    if before is not None:
        target = clean + 0.5 * h / (_log_ratio(now) - _log_ratio(before.level)) * (clean - before.clean)
    result: torch.Tensor = then.noise / now.noise * noisy - then.signal * (exp(-h) - 1.0) * target
    return result


def angle_step(step: Step, noisy: torch.Tensor, clean: torch.Tensor, before: Estimate | None = None) -> torch.Tensor:
    """One step of DPM-Solver++(2M) with the estimate linear in the angle θ = atan(noise / signal), not in λ.

    Where noise vanishes the estimate settles as θ does while λ goes to infinity, so that a line over λ leads far astray
    in long steps. With dλ = −dθ / (sin θ cos θ) the integral of eq. 8 there is, from θ to φ and with slope c,
    x_φ = sin φ / sin θ · x + sin φ · (clean (cot φ − cot θ) + c (ln(sin θ / sin φ) + (φ − θ) cot φ)).

    Args:
        step, noisy, clean, before: as in :func:`dpm_solver_step`.

    Examples:
        >>> first, last = ladder(Schedule(), 2)
        >>> noisy, clean = torch.randn(2, 1, 2, 4, 4, 4)
        >>> noisy = angle_step(first, noisy, clean)
        >>> bool(torch.allclose(angle_step(last, noisy, clean, Estimate(first.level, clean)), clean, atol=1e-4))
        True
    """
    now, then = step.level, step.next_level
    if then.noise == 0.0:
        return clean
    theta, phi = _angle(now), _angle(then)
    cot = then.signal / then.noise
    result: torch.Tensor = then.noise / now.noise * noisy + then.noise * (cot - now.signal / now.noise) * clean
    if before is not None:
        slope = (clean - before.clean) / (theta - _angle(before.level))
        result = result + then.noise * (log(now.noise / then.noise) + (phi - theta) * cot) * slope
    return result


MULTISTEP: dict[str, Callable[[Step, torch.Tensor, torch.Tensor, Estimate | None], torch.Tensor]] = {
    "dpm_solver": dpm_solver_step,
    "angle": angle_step,
}


def _angle(level: Level) -> float:
    return atan2(level.noise, level.signal)


def _log_ratio(level: Level) -> float:
    return log(level.signal / level.noise)


def sample(
    schedule: Schedule,
    noisy: torch.Tensor,
    predict: Callable[[torch.Tensor, Step], torch.Tensor],
    noise: Callable[[int], torch.Tensor],
    *,
    sampler: Sampler = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    clip: float | None = None,
    watch: Callable[[Iterator[Step]], Iterator[Step]] = lambda steps: steps,
) -> torch.Tensor:
    """Sample a latent from noise.

    Args:
        schedule: schedule that the network was trained with.
        noisy: white noise of variance 1, ``(B, Z, h, w, d)``.
        predict: (noisy latent, step) → the network's output, guided or not.
        noise: number of a step → white noise of variance 1 for it.
        sampler: ``"ddpm"``, ``"ddim"``, or of second order ``"dpm_solver"`` or ``"angle"``.
        steps: number of steps.
        eta: eta of DDIM.
        clip: largest absolute value of the estimated latent, or None. At the first steps, where there is hardly any
            signal, the estimate by ε is a small difference of large numbers.
        watch: wraps the steps, for a progress bar.

    Returns:
        ``(B, Z, h, w, d)``.

    Raises:
        InputError: for an unknown sampler, or a number of steps that the schedule does not have.

    Examples:
        >>> schedule, clean = Schedule(), torch.full((1, 2, 4, 4, 4), 0.5)
        >>> def predict(noisy, step):  # in place of a network: the noise that leaves 0.5
        ...     return (noisy - step.level.signal * clean) / step.level.noise
        >>> found = sample(schedule, torch.randn(1, 2, 4, 4, 4), predict, lambda step: torch.zeros_like(clean), steps=5)
        >>> bool(torch.allclose(found, clean, atol=1e-3))
        True
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    x = noisy
    before: Estimate | None = None
    for step in watch(ladder(schedule, steps)):
        level = step.level
        prediction = schedule.joined(predict(x, step), level)
        clean, predicted_noise = schedule.estimate(prediction, x, level)
        if clip is not None:
            clean = clean.clamp(-clip, clip)
            # the noise is what the clipped estimate leaves: else each step would lose some of the latent
            predicted_noise = (x - level.signal * clean) / level.noise
        if sampler == "ddpm":
            last = step.next_square == 1.0
            x = ddpm_step(step, x, clean, torch.zeros_like(x) if last else noise(step.number))
        elif sampler in MULTISTEP:
            x = MULTISTEP[sampler](step, x, clean, before)
            before = Estimate(level, clean)
        else:
            x = ddim_step(step, clean, predicted_noise, noise(step.number) if eta > 0 else x, eta)
    return x
