"""Latent diffusion guided by label maps: autoencoder, denoiser and sampler as one module, label map → image.

Rombach et al. 2022 with SPADE (Al-Sanaani et al., fig. 1), and an acquisition style beside the time step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..errors import InputError, is_out_of_memory
from ..labels import one_hot, plain
from ..precision import autocast
from .autoencoder import DecoderModulation, cover
from .blocks.noise import VolumeNoise, gaussian_noise, stream
from .blocks.style import StyleDistribution
from .denoiser import Denoiser
from .sampling.guided import Conditioning, GuidedDenoiser, SamplingOptions, Start, check_windows
from .sampling.samplers import Prediction, Schedule, Step
from .sampling.tiles import Autoencoder, check_local, decode_in_tiles

_OF_START, _OF_DECODER = 1, 1 << 20
"""Numbers of a sample's streams of noise: the style's is 0, the start's 1, those of the steps follow."""


class Denoised(NamedTuple):
    """One training step's prediction.

    Attributes:
        pred: prediction of the denoiser, ``(B, Z, h, w, d)``.
        target: prediction that it should have made.
        clean: the latent without noise by the prediction, in the autoencoder's units.
        timestep: ``(B,)``.
        signal: share of the latent that was left at it, ``(B, 1, 1, 1, 1)``.
        labelled: items that saw their map, not the null map, ``(B,)``.
    """

    pred: torch.Tensor
    target: torch.Tensor
    clean: torch.Tensor
    timestep: torch.Tensor
    signal: torch.Tensor
    labelled: torch.Tensor


class LatentDiffusion(StyleDistribution):
    """Label map → image, by denoising a latent; or, with an image, one training step of the denoiser.

    The autoencoder is frozen: its parameters have no gradient and it stays in evaluation mode. (A gradient still passes
    through its decoder, for losses on decoded images.)

    Args:
        autoencoder: autoencoder of stage 1: a :class:`~semsynth.networks.autoencoder.SPADEAutoencoder` or a
            :class:`~semsynth.networks.vqgan.VQGAN`.
        denoiser: to be trained here: a :class:`~semsynth.networks.denoiser.SPADEUNet` or a
            :class:`~semsynth.networks.slice_unet.SliceUNet`.
        timesteps, noise_schedule, prediction: see :class:`~semsynth.networks.sampling.samplers.Schedule`.
        label_dropout: share of the training steps with the null map, for guidance.
        style_dropout: share of the training steps with the null style.
        sampling: arguments of :class:`~semsynth.networks.sampling.guided.SamplingOptions`: sampler, steps, guidance,
            what is computed at once. :meth:`synthesize` takes others in their place.
        standardize: latents are brought to unit variance, by one number for all, before noise is added (Rombach et al.
            2022, section G). False takes them as the autoencoder gives them.
        style_scale: 1 draws styles as they are in the training set, less draws them nearer to the typical one, which 0
            gives.
        noise_seed: seed of the noise, and of the style where none is given: any whole number.
        progress: a bar over the steps, unless ``on_step`` of :meth:`forward` is told of them.

    Attributes:
        latent_scale: one over the standard deviation of the training set's latents; exactly 1 until it is measured, see
            :class:`semsynth.training.latents.EncodeCases`, and without ``standardize``.
        style_mean, style_covariance: mean and covariance of the training set's styles, see :func:`intensity_style`.
        style_needs_labels: True where :meth:`encode` takes a label map.

    Raises:
        InputError: for a denoiser that does not fit the autoencoder, or values out of range.

    Examples:
        >>> from semsynth.networks.autoencoder import SPADEAutoencoder
        >>> from semsynth.networks.denoiser import SPADEUNet
        >>> network = LatentDiffusion(
        ...     SPADEAutoencoder(4, channels=(8, 8), strides=(2, 2), latent_channels=2),
        ...     SPADEUNet(4, latent_channels=2, channels=(8, 8), stride=4, spade={"hidden": 4}),
        ...     sampling={"steps": 2},
        ... ).eval()
        >>> network.synthesize(torch.zeros(1, 1, 16, 16, 8), seeds=[0, 1]).shape
        torch.Size([2, 1, 16, 16, 8])
    """

    latent_scale: torch.Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        *,
        timesteps: int = 1000,
        noise_schedule: str = "cosine",
        prediction: Prediction = "epsilon",
        label_dropout: float = 0.1,
        style_dropout: float = 0.1,
        standardize: bool = True,
        style_scale: float = 1.0,
        noise_seed: int = 0,
        sampling: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        _check_fit(autoencoder, denoiser, prediction)
        style_channels = self._style_length(denoiser)
        if not (0 <= label_dropout < 1 and 0 <= style_dropout < 1 and style_scale >= 0):
            raise InputError(
                f"label_dropout and style_dropout must be in [0, 1) and style_scale 0 or more, got {label_dropout}, "
                f"{style_dropout} and {style_scale}"
            )
        super().__init__(style_channels, style_scale)
        self.autoencoder, self.denoiser = autoencoder.requires_grad_(False).eval(), denoiser
        self.schedule = Schedule(timesteps, noise_schedule, prediction)
        self.label_dropout, self.style_dropout = label_dropout, style_dropout
        self.sampling = SamplingOptions(**(sampling or {}))
        self.schedule.steps(self.sampling.steps)
        check_windows(denoiser, self.sampling)
        self.standardize, self.noise_seed, self.progress = standardize, int(noise_seed), progress
        self.register_buffer("latent_scale", torch.ones([]))

    style_needs_labels = True

    @property
    def num_classes(self) -> int:
        """C, of the label map."""
        return self.denoiser.num_classes

    @property
    def style_of(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """How a style is measured: image and label map, ``(B, 1, H, W, D)`` each → ``(B, S)``, NaN where it is not."""
        return partial(intensity_style, num_classes=self.num_classes)

    @staticmethod
    def _style_length(denoiser: Denoiser) -> int:
        """S, of a style, from what the denoiser is given."""
        if denoiser.style_channels not in (0, 2 * denoiser.num_classes):
            raise InputError(
                f"the denoiser's style_channels must be 0 or 2 · num_classes ({2 * denoiser.num_classes}: mean and "
                f"spread of intensity per class), got {denoiser.style_channels}"
            )
        return denoiser.style_channels

    def train(self, mode: bool = True) -> LatentDiffusion:
        """The denoiser alone: the autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    # ---- training

    def forward(
        self,
        image: torch.Tensor,
        latent: torch.Tensor | None = None,
        style: torch.Tensor | None = None,
        *,
        noise_seeds: Sequence[int] | None = None,
        on_step: Callable[[float], None] | None = None,
    ) -> Any:
        """Label map → image; with a latent, one training step of the denoiser.

        Args:
            image: class indices ``(B, 1, H, W, D)``. (The name is what MONAI's tools call a network's input.)
            latent: the image's latent as the autoencoder gives it, ``(B, Z, h, w, d)``.
            style: with a latent that of its image, ``(B, S)``, see :func:`intensity_style`; else the style of the
                images to be made, ``(1, S)`` or ``(B, S)``; None draws one per seed.
            noise_seeds: one per item; None takes the network's own for all.
            on_step: told after each step of the sampler which share of the work on its samples that was.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``; with ``latent`` a :class:`Denoised`.
        """
        if latent is not None:
            return self._denoised(plain(image), plain(latent), style)
        maps = plain(image)
        seeds = [self.noise_seed] * len(maps) if noise_seeds is None else list(noise_seeds)
        if len(seeds) != len(maps):
            raise InputError(f"noise_seeds must be one per item of the batch, got {len(seeds)} for {len(maps)}")
        styles = None if style is None else style.expand(len(maps), -1)
        starts = [0, *(i for i in range(1, len(maps)) if not torch.equal(maps[i], maps[i - 1])), len(maps)]
        return torch.cat([
            self.synthesize(
                maps[a : a + 1], seeds[a:b], style=None if styles is None else styles[a:b], on_step=on_step
            )
            for a, b in pairwise(starts)
        ])  # fmt: skip

    def _denoised(
        self, label: torch.Tensor, latent: torch.Tensor, style: torch.Tensor | None, **given: torch.Tensor
    ) -> Denoised:
        """One training step; ``given``: what else the denoiser's ``encode`` takes."""
        b = label.shape[0]
        clean = latent * self._scale()
        timestep = torch.randint(0, self.schedule.timesteps, (b,), device=label.device)
        noise = torch.randn_like(clean)
        level = self.schedule.level(timestep)
        noisy = level.signal * clean + level.noise * noise
        dropped = torch.rand(b, device=label.device) < self.label_dropout
        levels = self.denoiser.encode(torch.where(dropped.view(-1, 1, 1, 1, 1), -1, label), **given)
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
        on_step: Callable[[float], None] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Images of one label map, one per seed: each depends on map, seed and style alone, not on the others.

        (But for rounding, where ``batch_size`` is more than 1.)

        Args:
            label: class indices ``(1, 1, H, W, D)``.
            seeds: whole numbers.
            style: ``(1, S)`` or ``(len(seeds), S)``; None draws one per seed.
            on_step: see :meth:`forward`.
            options: in place of the network's own, see :class:`~semsynth.networks.sampling.guided.SamplingOptions`.

        Returns:
            Intensities in [0, 1], ``(len(seeds), 1, H, W, D)``, float32.

        Raises:
            InputError: out of memory, with what to do; tiles of a decoder that is not local.
        """
        own = replace(self.sampling, **options)
        check_windows(self.denoiser, own)
        if own.tile is not None:
            check_local(self.autoencoder)  # before all denoising
        try:
            given = self.conditioning(label, decoder=len(seeds) > own.batch_size and own.tile is None, **options)
            latent = self.sample_latent(given, seeds, style=style, on_step=on_step, **options)
            condition = given.decoder
            del given  # the denoiser's modulation is the larger part of all
            return self.decode(latent, condition, seeds=seeds, **options).clamp_(0.0, 1.0)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            advice = _memory_advice(label, own, self.autoencoder.reach() is not None, self.denoiser.windowed)
            raise InputError(advice) from error

    @torch.no_grad()
    def conditioning(self, label: torch.Tensor, *, decoder: bool = True, **options: Any) -> Conditioning:
        """All that depends on the label map alone.

        Args:
            label: class indices ``(1, 1, H, W, D)``.
            decoder: the decoder's part too; False leaves the map in its place.
            options: in place of the network's own.

        Raises:
            InputError: for several maps.
        """
        label = plain(label)
        if label.shape[0] != 1:
            raise InputError(f"one label map at a time is conditioned on, got a batch of {label.shape[0]}")
        own = replace(self.sampling, **options)
        guided = own.guidance != 1
        size = (label.shape[2], label.shape[3], label.shape[4])
        with self._autocast(label, own):
            levels = self.denoiser.encode(label)
            if guided:
                null = self.denoiser.null(levels)
                levels = {stride: torch.cat([x, null[stride]]) for stride, x in levels.items()}
            made = self.denoiser.modulation(levels)
            return Conditioning(size, made, guided, self.autoencoder.modulation(label) if decoder else label)

    @torch.no_grad()
    def sample_latent(
        self,
        given: Conditioning,
        seeds: Sequence[int],
        *,
        style: torch.Tensor | None = None,
        on_step: Callable[[float], None] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Latents of unit variance, ``(len(seeds), Z, h, w, d)``; arguments as in :meth:`synthesize`."""
        own = replace(self.sampling, **options)
        size = [self.denoiser.latent_channels, *cover(given.size, self.autoencoder.stride)]
        places = torch.empty(size, device=self.style_mean.device)[:, None]  # (Z, 1, h, w, d)

        def noise(number: int) -> torch.Tensor:
            return torch.stack([self._noise(places, stream(seed, number + 1 + _OF_START))[:, 0] for seed in seeds])

        loop = GuidedDenoiser(self.denoiser, self.schedule, own, stride=self.autoencoder.stride)
        return loop.latents(given, Start(noise, self._styles(seeds, style)), partial(self._watch, on_step=on_step))

    def _noise(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        """White noise of variance 1 for a latent, ``(Z, 1, h, w, d)``."""
        return gaussian_noise(like, seed)

    @torch.no_grad()
    def decode(
        self,
        latent: torch.Tensor,
        condition: DecoderModulation | torch.Tensor,
        *,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Images ``(B, 1, H, W, D)`` of latents of unit variance, all of one label map.

        Args:
            latent: ``(B, Z, h, w, d)``.
            condition: the map ``(1, 1, H, W, D)``, or, where the whole is decoded, what the decoder makes of it.
            seeds: one per latent, of the noise that the decoder adds, if it is one that does; None adds none.
            options: in place of the network's own.

        Raises:
            InputError: for tiles of a decoder that is not local, see :mod:`~semsynth.networks.sampling.tiles`.
        """
        own = replace(self.sampling, **options)
        latent = latent / self._scale()
        noise = None
        if seeds is not None and self.autoencoder.takes_noise:
            noise = VolumeNoise([stream(seed, _OF_DECODER) for seed in seeds])
        with self._autocast(latent, own):
            if own.tile is not None and isinstance(condition, torch.Tensor):
                return decode_in_tiles(
                    self.autoencoder, latent, condition, own.tile, batch_size=own.batch_size, noise=noise
                )
            size = condition.size if isinstance(condition, DecoderModulation) else condition.shape[2:]
            images = []
            for first in range(0, len(latent), own.batch_size):
                rows = slice(first, first + own.batch_size)
                added = () if noise is None else (noise.part(rows, size, device=latent.device),)
                images.append(self.autoencoder.decode(latent[rows], condition, *added))
        return torch.cat(images) if len(images) > 1 else images[0]

    def _autocast(self, like: torch.Tensor, options: SamplingOptions) -> torch.autocast:
        return autocast(like.device, enabled=options.amp)

    def _watch(self, steps: Iterator[Step], on_step: Callable[[float], None] | None = None) -> Iterator[Step]:
        every = list(steps)
        shown: Iterable[Step] = every
        if self.progress and on_step is None:
            interval = 0.1 if sys.stderr.isatty() else 30.0
            shown = tqdm(every, desc="denoising", unit="step", leave=False, mininterval=interval)
        for step in shown:
            yield step
            if on_step is not None:
                on_step(1.0 / len(every))

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
        style = self.style_of(image, label)
        missing = ~torch.isfinite(style)
        style = torch.where(missing, self.style_mean.to(style).expand_as(style), style)
        return style, torch.full_like(style, -torch.inf)

    def style_root(self) -> torch.Tensor:
        """``(S, S)``: times it, white noise ``(1, S)`` is distributed as standardised styles are."""
        spread = self.style_covariance.float().diagonal().clamp(min=1e-8).sqrt()
        return self.style_scale * self._root() / spread

    def _styles(self, seeds: Sequence[int], style: torch.Tensor | None) -> torch.Tensor | None:
        if not self.style_channels:
            return None
        if style is None:
            style = torch.cat([self.draw_style(seed) for seed in seeds])
        return self.standardized(style.to(self.style_mean.device).expand(len(seeds), -1))


def _memory_advice(label: torch.Tensor, options: SamplingOptions, tiles: bool, windowed: bool) -> str:
    size = " × ".join(str(length) for length in label.shape[2:])
    ways = []
    if options.batch_size > 1:
        ways.append(f"--batch_size 1 (now {options.batch_size})")
    if not options.amp:
        ways.append("--amp True (half the memory)")
    if windowed and label.shape[-1] > 16 and (options.window is None or options.window > 16):
        ways.append(
            f"--window {16 if options.window is not None and options.window <= 32 else 32} (fewer slices at once)"
        )
    if tiles and options.tile is None:
        ways.append("--tile '[192,192,0]' (decodes in parts)")
    elif options.tile is not None and max(options.tile) > 64:
        ways.append(f"a smaller --tile than {list(options.tile)}")
    ways.append("--guidance 1, or a map cropped to what is needed")
    ways += [] if label.device.type == "cpu" else ["--device cpu"]
    return f"out of memory on {label.device} for a label map of {size} voxels; give {', or '.join(ways)}"


def _check_fit(autoencoder: Autoencoder, denoiser: Denoiser, prediction: Prediction) -> None:
    classes = getattr(autoencoder, "num_classes", denoiser.num_classes)  # a VQ-GAN knows of no classes
    ours = (classes, autoencoder.latent_channels, autoencoder.stride)
    theirs = (denoiser.num_classes, denoiser.latent_channels, denoiser.strides[0])
    if ours != theirs:
        raise InputError(
            f"autoencoder and denoiser must agree in classes, latent channels and stride, got {ours} and {theirs}"
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

    Examples:
        >>> image, label = torch.full((1, 1, 8, 8, 8), 0.25), torch.zeros(1, 1, 8, 8, 8)
        >>> intensity_style(image, label, num_classes=2)  # mean and standard deviation of class 0; class 1 is not there
        tensor([[0.2500,    nan, 0.0000,    nan]])
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
