"""Latent diffusion guided by label maps: autoencoder, denoiser and sampler as one module, label map → image.

Rombach et al. 2022 with SPADE (Al-Sanaani et al., fig. 1), and an acquisition style beside the time step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from ..errors import InputError
from ..labels import one_hot, plain
from ..samplers import SAMPLERS, Prediction, Sampler, Schedule, Step, sample
from .autoencoder import DecoderModulation, SPADEAutoencoder, cover
from .denoiser import DenoiserModulation, SPADEUNet
from .noise import gaussian_noise

STREAMS = 4096
"""Noise fields per seed: one for the start, one per step, one for the style."""


class Denoised(NamedTuple):
    """One training step's prediction.

    Attributes:
        pred: what the denoiser predicted, ``(B, Z, h, w, d)``.
        target: what it should have.
        clean: the latent without noise by the prediction, in the autoencoder's units.
        timestep: ``(B,)``.
        signal: how much of the latent was left at it, ``(B, 1, 1, 1, 1)``.
        labelled: which items saw their map, not the null map, ``(B,)``.
    """

    pred: torch.Tensor
    target: torch.Tensor
    clean: torch.Tensor
    timestep: torch.Tensor
    signal: torch.Tensor
    labelled: torch.Tensor


class Conditioning(NamedTuple):
    """All that sampling computes from a label map, once for all steps, samples and styles.

    Attributes:
        size: H, W, D of the label map.
        labelled: the denoiser's modulation by the map.
        null: by the null map; None where guidance is 1.
        decoder: the autoencoder's.
    """

    size: tuple[int, int, int]
    labelled: DenoiserModulation
    null: DenoiserModulation | None
    decoder: DecoderModulation


class LatentDiffusion(nn.Module):
    """Label map → image, by denoising a latent; or, with an image, one training step of the denoiser.

    The autoencoder is frozen: its parameters have no gradient and it stays in evaluation mode. (A gradient still passes
    through its decoder, for losses on decoded images.)

    Args:
        autoencoder: of stage 1.
        denoiser: to be trained here.
        timesteps, noise_schedule, prediction: see :class:`~semsynth.samplers.Schedule`.
        label_dropout: share of the training steps with the null map, for guidance.
        style_dropout: share of the training steps with the null style.
        sampler: ``"ddim"`` or ``"ddpm"``.
        steps: of the sampler.
        eta: of DDIM; 0 is deterministic but for the start.
        guidance: w in ε = ε_∅ + w (ε_c − ε_∅) (Ho & Salimans 2022; they write 1 + w for this w). 1 is no guidance, at
            half the cost. ε_∅ has the null map, and the same style.
        clip: largest absolute value of an estimated latent while sampling, in standard deviations; None for none.
        style_scale: 1 draws styles as they are in the training set, less draws them nearer to the typical one, which 0
            gives.
        noise_seed: which noise, and which style where none is given: any whole number.
        amp: networks in bfloat16 while sampling; the sampler's own arithmetic and the style stay in float32.
        progress: a bar over the steps.

    Attributes:
        latent_scale: one over the standard deviation of the training set's latents (Rombach et al. 2022, section G);
            exactly 1 until it is measured, see :class:`semsynth.latents.EncodeCases`.
        style_mean, style_covariance: of the training set's styles, see :func:`intensity_style`.
        style: ``(1, S)`` in place of drawn ones, or None.
        style_needs_labels: that :meth:`encode` takes a label map.

    Raises:
        InputError: for a denoiser that does not fit the autoencoder, or values out of range.
    """

    latent_scale: torch.Tensor
    style_mean: torch.Tensor
    style_covariance: torch.Tensor
    style: torch.Tensor | None

    def __init__(
        self,
        autoencoder: SPADEAutoencoder,
        denoiser: SPADEUNet,
        *,
        timesteps: int = 1000,
        noise_schedule: str = "cosine",
        prediction: Prediction = "epsilon",
        label_dropout: float = 0.1,
        style_dropout: float = 0.1,
        sampler: Sampler = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        guidance: float = 1.5,
        clip: float | None = 4.0,
        style_scale: float = 1.0,
        noise_seed: int = 0,
        amp: bool = False,
        progress: bool = False,
    ) -> None:
        super().__init__()
        _check_fit(autoencoder, denoiser, prediction)
        if not (0 <= label_dropout < 1 and 0 <= style_dropout < 1 and style_scale >= 0 and eta >= 0):
            raise InputError(
                f"label_dropout and style_dropout must be in [0, 1) and style_scale and eta 0 or more, got "
                f"{label_dropout}, {style_dropout}, {style_scale} and {eta}"
            )
        if sampler not in SAMPLERS:
            raise InputError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        self.autoencoder, self.denoiser = autoencoder.requires_grad_(False).eval(), denoiser
        self.schedule = Schedule(timesteps, noise_schedule, prediction)
        self.label_dropout, self.style_dropout = label_dropout, style_dropout
        self.sampler: Sampler = sampler
        self.steps, self.eta, self.guidance, self.clip = int(steps), eta, float(guidance), clip
        self.schedule.steps(self.steps)
        self.style_scale, self.noise_seed, self.progress = style_scale, int(noise_seed), progress
        self.amp = amp
        self.style = None
        self.register_buffer("latent_scale", torch.ones([]))
        self.register_buffer("style_mean", torch.zeros(denoiser.style_channels))
        self.register_buffer("style_covariance", torch.eye(denoiser.style_channels))

    style_needs_labels = True

    @property
    def num_classes(self) -> int:
        """C, of the label map."""
        return self.denoiser.num_classes

    @property
    def style_channels(self) -> int:
        """S, length of a style; 0 for a network without."""
        return self.denoiser.style_channels

    def train(self, mode: bool = True) -> LatentDiffusion:
        """The denoiser alone: the autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    # ---- training

    def forward(
        self, image: torch.Tensor, latent: torch.Tensor | None = None, style: torch.Tensor | None = None
    ) -> Any:
        """Label map → image; with a latent, one training step of the denoiser.

        Args:
            image: class indices ``(B, 1, H, W, D)``. (The name is what MONAI's tools call a network's input.)
            latent: the image's latent as the autoencoder gives it, ``(B, Z, h, w, d)``.
            style: of the image, ``(B, S)``, see :func:`intensity_style`.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``; with ``latent`` a :class:`Denoised`.
        """
        if latent is not None:
            return self._denoised(plain(image), plain(latent), style)
        images = [self.synthesize(item[None], [self.noise_seed]) for item in plain(image)]
        return torch.cat(images)

    def _denoised(self, label: torch.Tensor, latent: torch.Tensor, style: torch.Tensor | None) -> Denoised:
        b = label.shape[0]
        clean = latent * self._scale()
        timestep = torch.randint(0, self.schedule.timesteps, (b,), device=label.device)
        noise = torch.randn_like(clean)
        level = self.schedule.level(timestep)
        noisy = level.signal * clean + level.noise * noise
        dropped = torch.rand(b, device=label.device) < self.label_dropout
        levels = self.denoiser.encode(torch.where(dropped.view(-1, 1, 1, 1, 1), -1, label))
        if style is not None and self.style_channels:
            forgotten = torch.rand(b, 1, device=label.device) < self.style_dropout
            style = torch.where(forgotten, torch.nan, self.standardized(style))
        pred = self.schedule.joined(self.denoiser(noisy, timestep, levels, style), level)
        estimate, _ = self.schedule.estimate(pred, noisy, level)
        target = self.schedule.target(clean, noise, level)
        return Denoised(pred, target, estimate / self._scale(), timestep, level.signal, ~dropped)

    def _scale(self) -> torch.Tensor:
        return self.latent_scale.float()

    # ---- sampling

    @torch.no_grad()
    def synthesize(
        self,
        label: torch.Tensor,
        seeds: Sequence[int],
        *,
        style: torch.Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
    ) -> torch.Tensor:
        """Images of one label map, one per seed: each depends on map, seed and style alone, not on the others.

        Args:
            label: class indices ``(1, 1, H, W, D)``.
            seeds: whole numbers.
            style: ``(1, S)`` or ``(len(seeds), S)``; None draws one per seed, or takes the attribute :attr:`style`.
            steps, guidance, sampler: in place of the network's own.

        Returns:
            Intensities in [0, 1], ``(len(seeds), 1, H, W, D)``, float32.
        """
        guidance = self.guidance if guidance is None else guidance
        with torch.autocast(label.device.type, torch.bfloat16, enabled=self.amp):
            given = self.conditioning(label, guidance=guidance)
        latent = self.sample_latent(given, seeds, style=style, steps=steps, guidance=guidance, sampler=sampler)
        with torch.autocast(label.device.type, torch.bfloat16, enabled=self.amp):
            images = [self.autoencoder.decode(item[None] / self._scale(), given.decoder) for item in latent]
        return torch.cat(images).clamp(0.0, 1.0)

    @torch.no_grad()
    def conditioning(self, label: torch.Tensor, *, guidance: float | None = None) -> Conditioning:
        """All that depends on the label map alone.

        Args:
            label: class indices ``(1, 1, H, W, D)``.
            guidance: in place of the network's own.

        Raises:
            InputError: for several maps.
        """
        label = plain(label)
        if label.shape[0] != 1:
            raise InputError(f"one label map at a time is conditioned on, got a batch of {label.shape[0]}")
        guidance = self.guidance if guidance is None else guidance
        levels = self.denoiser.encode(label)
        null = None
        if guidance != 1:
            null = self.denoiser.modulation({stride: torch.zeros_like(x) for stride, x in levels.items()})
        size = (label.shape[2], label.shape[3], label.shape[4])
        return Conditioning(size, self.denoiser.modulation(levels), null, self.autoencoder.modulation(label))

    @torch.no_grad()
    def sample_latent(
        self,
        given: Conditioning,
        seeds: Sequence[int],
        *,
        style: torch.Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
    ) -> torch.Tensor:
        """Latents of unit variance, ``(len(seeds), Z, h, w, d)``; arguments as of :meth:`synthesize`."""
        guidance = self.guidance if guidance is None else guidance
        size = [self.denoiser.latent_channels, *cover(given.size, self.autoencoder.stride)]
        places = torch.empty(size, device=self.style_mean.device)[:, None]  # (Z, 1, h, w, d)
        styles = self._styles(seeds, style)

        def noise(number: int) -> torch.Tensor:
            fields = [gaussian_noise(places, _stream(seed, number + 2))[:, 0] for seed in seeds]
            return torch.stack(fields)

        def predict(noisy: torch.Tensor, timestep: int) -> torch.Tensor:
            t = torch.tensor([timestep], device=noisy.device)
            rows = []
            for i, row in enumerate(noisy):  # one by one: a batch of several is rounded otherwise than one alone
                embedding = self.denoiser.embed(t, None if styles is None else styles[i : i + 1])
                rows.append(self._guided(row[None], embedding, given, guidance))
            return torch.cat(rows)

        return sample(
            self.schedule, noise(-1), predict, noise, sampler=sampler or self.sampler, steps=steps or self.steps,
            eta=self.eta, clip=self.clip, watch=self._bar if self.progress else lambda steps: steps,
        )  # fmt: skip

    def _guided(
        self, noisy: torch.Tensor, embedding: torch.Tensor, given: Conditioning, guidance: float
    ) -> torch.Tensor:
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.amp):
            pred = self.denoiser.denoise(noisy, embedding, given.labelled)
            if given.null is None or guidance == 1:
                return pred
            null = self.denoiser.denoise(noisy, embedding, given.null)
        return null + guidance * (pred - null)

    def _bar(self, steps: Iterator[Step]) -> Iterator[Step]:
        every = list(steps)
        interval = 0.1 if sys.stderr.isatty() else 30.0
        yield from tqdm(every, desc="denoising", unit="step", leave=False, mininterval=interval)

    # ---- style

    def standardized(self, style: torch.Tensor) -> torch.Tensor:
        """A style ``(B, S)`` in units of the training set's spread, as the denoiser is given it."""
        spread = self.style_covariance.float().diagonal().clamp(min=1e-8).sqrt()
        return (style.float() - self.style_mean.float()) / spread

    def encode(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Style of an image with its label map, see :func:`intensity_style`, and its log σ² (that of no spread).

        Raises:
            InputError: for a network without style.
        """
        if not self.style_channels:
            raise InputError("this network has no style (style_channels 0); train one that has")
        style = intensity_style(image, label, self.num_classes)
        missing = ~torch.isfinite(style)
        style = torch.where(missing, self.style_mean.to(style).expand_as(style), style)
        return style, torch.full_like(style, -torch.inf)

    def draw_style(self, seed: int) -> torch.Tensor:
        """The style ``(1, S)`` of a seed, distributed as styles are in the training set."""
        places = self.style_mean.new_zeros([1, 1, max(self.style_channels, 1), 1, 1], dtype=torch.float32)
        normal = gaussian_noise(places, _stream(seed, 0))[:, 0, : self.style_channels, 0, 0]
        values, vectors = torch.linalg.eigh(self.style_covariance.float())
        root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T  # the one root whose signs are not arbitrary
        style: torch.Tensor = self.style_mean.float() + self.style_scale * normal @ root
        return style

    def _styles(self, seeds: Sequence[int], style: torch.Tensor | None) -> torch.Tensor | None:
        if not self.style_channels:
            return None
        style = self.style if style is None else style
        if style is None:
            style = torch.cat([self.draw_style(seed) for seed in seeds])
        return self.standardized(style.to(self.style_mean.device).expand(len(seeds), -1))


def _check_fit(autoencoder: SPADEAutoencoder, denoiser: SPADEUNet, prediction: Prediction) -> None:
    ours = (autoencoder.num_classes, autoencoder.latent_channels, autoencoder.stride)
    theirs = (denoiser.num_classes, denoiser.latent_channels, denoiser.strides[0])
    if ours != theirs:
        raise InputError(
            f"autoencoder and denoiser must agree in classes, latent channels and stride, got {ours} and {theirs}"
        )
    if denoiser.style_channels not in (0, 2 * denoiser.num_classes):
        raise InputError(
            f"the denoiser's style_channels must be 0 or 2 · num_classes ({2 * denoiser.num_classes}: mean and "
            f"spread of intensity per class), got {denoiser.style_channels}"
        )
    if denoiser.predictions != (2 if prediction == "split" else 1):
        raise InputError(
            "the denoiser's predictions must be 2 for prediction split and 1 otherwise, got "
            f"{denoiser.predictions} for {prediction}"
        )


def intensity_style(image: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The acquisition's style: mean and standard deviation of the intensity in each class.

    Args:
        image: intensities in [0, 1], ``(B, 1, H, W, D)``.
        label: class indices, the same shape.
        num_classes: C.

    Returns:
        ``(B, 2·C)``, means first, float32; NaN for classes that are not there.
    """
    image, label = plain(image).float(), plain(label)
    rows = []
    for values, classes in zip(image.flatten(1), label.flatten(1), strict=True):
        inside = one_hot(classes.view(1, 1, -1, 1, 1), num_classes)[0].flatten(1)  # (C, voxels)
        count = inside.sum(dim=1)
        mean = inside @ values / count
        variance = (inside * (values[None] - mean[:, None].nan_to_num()) ** 2).sum(dim=1) / count
        rows.append(torch.cat([mean, variance.sqrt()]))
    return torch.stack(rows)


def _stream(seed: int, number: int) -> int:
    """A seed of its own for the style, the start and each step of a sample."""
    return (seed * STREAMS + number + 1) % 2**62  # 0 would hash the first voxel to 0
