"""The guided denoising loop of a latent diffusion model: what is computed once, and what in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import InputError
from ...precision import autocast
from ..autoencoder import DecoderModulation
from ..blocks.normalization import memory_format
from ..denoiser import Denoiser, LabelCondition
from .samplers import SAMPLERS, Sampler, Schedule, Step, sample


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn from a trained network.

    Attributes:
        sampler: ``"ddpm"``, ``"ddim"``, ``"dpm_solver"`` or ``"angle"``, see
            :mod:`semsynth.networks.sampling.samplers`.
        steps: number of steps of the sampler.
        eta: eta of DDIM; 0 is deterministic but for the start.
        guidance: w in ε = ε_∅ + w (ε_c − ε_∅) (Ho & Salimans 2022; they write 1 + w for this w). 1 is no guidance, at
            about two thirds of the cost. ε_∅ has the null map, and the same style.
        guidance_interval: shares of the time steps, 0 the least noisy, between which guidance is used; outside one pass
            does (Kynkäänniemi et al. 2024).
        clip: largest absolute value of an estimated latent while sampling, in standard deviations; None for none.
            Latents of real images reach 8.
        amp: networks in bfloat16, on devices with instructions for it; the sampler's own arithmetic stays in float32.
        batch_size: samples of one map that go through the networks at once. Several may be rounded otherwise than
            one alone; they are faster.
        tile: voxels along H, W, D that are decoded at once, None (or, along an axis, 0) for all: see
            :func:`~semsynth.networks.sampling.tiles.decode_in_tiles`.
        window: slices of the label map that are denoised at once, for denoisers that do not downsample along D; None
            for all. Windows overlap, and what they predict is blended in every step, so that there is one latent, not
            several to be stitched (Bar-Tal et al. 2023, MultiDiffusion): volumes of any depth by a network that was
            trained on few slices.
        overlap: share of a window that the next one shows too, in [0, 1); at least.
        compile: the denoiser by ``torch.compile``, anew for each size of a map, until torch's limit (8, of sizes and
            kinds of step together) is reached; from then on it runs as it is.

    Raises:
        InputError: for a sampler that is unknown, or values out of range.

    Examples:
        >>> options = SamplingOptions(sampler="ddim", steps=20, guidance=2.0)
        >>> options.sampler, options.steps, options.window
        ('ddim', 20, None)
    """

    sampler: Sampler = "angle"
    steps: int = 10
    eta: float = 0.0
    guidance: float = 1.5
    guidance_interval: Sequence[float] = (0.0, 1.0)
    clip: float | None = 8.0
    amp: bool = False
    batch_size: int = 1
    tile: Sequence[int] | None = None
    window: int | None = None
    overlap: float = 0.5
    compile: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.eta < 0 or self.batch_size < 1 or (self.clip is not None and self.clip <= 0):
            raise InputError(
                f"eta must be 0 or more, batch_size 1 or more and clip above 0 or null, got {self.eta}, "
                f"{self.batch_size} and {self.clip}"
            )
        given = self.guidance_interval
        low, high = given if len(given) == 2 else (1.0, 0.0)
        if not 0.0 <= low <= high <= 1.0:
            raise InputError(
                f"guidance_interval must be two rising shares of the time steps in [0, 1], got {list(given)}"
            )
        if (self.window is not None and self.window < 1) or not 0.0 <= self.overlap < 1.0:
            raise InputError(
                f"window must be 1 slice or more, or null, and overlap in [0, 1), got {self.window} and {self.overlap}"
            )
        if self.tile is not None and (isinstance(self.tile, int) or len(self.tile) != 3 or min(self.tile) < 0):
            raise InputError(f"tile must be three numbers of voxels, 0 for a whole axis, got {self.tile}")

    def weight(self, step: Step, timesteps: int) -> float:
        """Guidance in a step."""
        low, high = self.guidance_interval
        return self.guidance if low <= step.timestep / timesteps <= high else 1.0


class Conditioning(NamedTuple):
    """All that sampling computes from a label map, once for all steps, samples and styles.

    Attributes:
        size: H, W, D of the label map.
        denoiser: result of the denoiser's encoding: a batch of map and null map, or of the map alone where guidance is
            1.
        guided: True where the null map is there.
        decoder: the autoencoder's, or the label map ``(1, 1, H, W, D)``, from which the decoder then computes it block
            by block: that needs less memory, and for one sample no more time.
    """

    size: tuple[int, int, int]
    denoiser: LabelCondition
    guided: bool
    decoder: DecoderModulation | torch.Tensor


class Start(NamedTuple):
    """What samples begin with.

    Attributes:
        noise: number of a step, −1 for the start → white noise of variance 1, ``(samples, Z, h, w, d)``.
        styles: standardised, ``(samples, S)``; None for a network without.
    """

    noise: Callable[[int], torch.Tensor]
    styles: torch.Tensor | None


class GuidedDenoiser:
    """A denoiser with guidance, over all steps of a sampler.

    Args:
        denoiser: the network.
        schedule: schedule that it was trained with.
        options: options of sampling.
        stride: voxels of the label map per cell of the latent, for windows.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, options: SamplingOptions, *, stride: int = 1) -> None:
        self.denoiser, self.schedule, self.options, self.stride = denoiser, schedule, options, stride

    def latents(
        self,
        given: Conditioning,
        start: Start,
        watch: Callable[[Iterator[Step]], Iterator[Step]] = lambda steps: steps,
    ) -> torch.Tensor:
        """Latents of unit variance, ``(samples, Z, h, w, d)``.

        Args:
            given: conditioning of the label map.
            start: start of the samples.
            watch: wraps the steps, for a progress bar.

        Raises:
            InputError: for guidance with a conditioning that has no null map.
        """
        options, noisy = self.options, start.noise(-1)
        if options.guidance != 1 and not given.guided:
            raise InputError(f"guidance {options.guidance} needs the null map: make the conditioning with it too")
        groups = torch.arange(len(noisy)).split(options.batch_size)
        embedded = self._embedded(start.styles, len(noisy), noisy.device)

        def predict(noisy: torch.Tensor, step: Step) -> torch.Tensor:
            weight = options.weight(step, self.schedule.timesteps)
            return torch.cat([
                self._blended(noisy[group], [vector[step.number, group] for vector in embedded], given, weight)
                for group in groups
            ])  # fmt: skip

        return sample(
            self.schedule, noisy, predict, start.noise, sampler=options.sampler, steps=options.steps,
            eta=options.eta, clip=options.clip, watch=watch,
        )  # fmt: skip

    def _embedded(self, styles: torch.Tensor | None, samples: int, device: torch.device) -> list[torch.Tensor]:
        """Per block, what it makes of all time steps and each sample's style, ``(steps, samples, …)``."""
        timesteps = torch.tensor(self.schedule.steps(self.options.steps), device=device)
        with self._autocast(device):
            # sample by sample: rounded as for one alone
            made = [
                self.denoiser.embed(timesteps, None if styles is None else styles[i : i + 1]) for i in range(samples)
            ]
        return [torch.stack(vectors, dim=1) for vectors in zip(*made, strict=True)]

    def _blended(
        self, noisy: torch.Tensor, embedded: Sequence[torch.Tensor], given: Conditioning, guidance: float
    ) -> torch.Tensor:
        """:meth:`_guided` of the whole, or of windows of slices, weighted by how far from their ends a slice is."""
        depth = noisy.shape[-1]
        size = depth if self.options.window is None else max(self.options.window // self.stride, 1)
        if size >= depth:
            return self._guided(noisy, embedded, given.denoiser, given.guided, guidance)
        total = noisy.new_zeros([len(noisy), self.denoiser.predictions * noisy.shape[1], *noisy.shape[2:]])
        weights = noisy.new_zeros(depth)
        for first, last in windows(depth, size, self.options.overlap):
            part = noisy[..., first:last].contiguous(memory_format=memory_format(noisy))
            made = self._guided(part, embedded, given.denoiser.window(first, last), given.guided, guidance)
            share = ramp(last - first).to(made)
            total[..., first:last] += made * share
            weights[first:last] += share
        return total / weights

    def _guided(
        self,
        noisy: torch.Tensor,
        embedded: Sequence[torch.Tensor],
        modulation: LabelCondition,
        guided: bool,
        guidance: float,
    ) -> torch.Tensor:
        down, up = self._paths()
        with self._autocast(noisy.device):
            features, skips = down(noisy, embedded)
            if not guided or guidance == 1:
                return up(features, skips, embedded, modulation.row(0))  # type: ignore[no-any-return]
            if len(noisy) == 1:
                pred, null = up(features, skips, embedded, modulation).split(1)
            else:  # a modulation for each sample would be as large as all features together
                pred, null = (up(features, skips, embedded, modulation.row(i)) for i in (0, 1))
        result: torch.Tensor = null + guidance * (pred - null)
        return result

    def _paths(self) -> tuple[Any, Any]:
        if not self.options.compile:
            return self.denoiser.down_path, self.denoiser.up_path
        return compiled(self.denoiser)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return autocast(device, enabled=self.options.amp)


def windows(depth: int, size: int, overlap: float) -> list[tuple[int, int]]:
    """First slice, and the one behind the last, of windows over ``depth`` slices, as evenly apart as they can be.

    Args:
        depth: depth of all.
        size: size of a window.
        overlap: share of a window that the next one shows too, at least.
    """
    if size >= depth:
        return [(0, depth)]
    stride = max(int(size * (1.0 - overlap)), 1)
    count = -(-(depth - size) // stride) + 1
    starts = [round(i * (depth - size) / (count - 1)) for i in range(count)]
    return [(start, start + size) for start in starts]


def ramp(size: int) -> torch.Tensor:
    """Weights of a window's slices, ``(size,)``, from its ends to its middle in equal steps; never 0."""
    places = torch.arange(size) + 0.5
    return torch.minimum(places, size - places) / (size / 2)


def check_windows(denoiser: Denoiser, options: SamplingOptions) -> None:
    """Raise where windows are asked for that the denoiser cannot have.

    Raises:
        InputError: saying why.
    """
    if options.window is not None and not denoiser.windowed:
        raise InputError(
            f"window {options.window}: this denoiser downsamples along D and takes any depth whole; leave it out"
        )


def compiled(denoiser: nn.Module) -> tuple[Any, Any]:
    """Encoder and decoder of a denoiser by ``torch.compile``; made once."""
    owner, paths = denoiser.__dict__.get("_compiled", (None, None))
    if owner != id(denoiser):  # a copy has those of its original, whose weights they use
        paths = tuple(torch.compile(path, dynamic=False) for path in (denoiser.down_path, denoiser.up_path))  # type: ignore[arg-type]
        denoiser.__dict__["_compiled"] = (id(denoiser), paths)  # not a submodule, and nothing of the weights
    return paths  # type: ignore[no-any-return]
