"""Training and validation of a latent denoiser."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.engines import PrepareBatch, SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from ...errors import InputError
from ...labels import plain
from ...networks.latent_diffusion import LatentDiffusion
from ...precision import autocast
from ..latents import LATENT, STYLE
from ..losses.diffusion import DiffusionLoss
from ..losses.texture import BANDS, texture
from .base import MixedPrecisionTrainer


class PrepareLatentBatch(PrepareBatch):
    """Batch → (label map, posterior of the latent); where the latent is not there, the image to encode."""

    def __call__(  # type: ignore[override]  # noqa: D102
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        target = batchdata[LATENT if LATENT in batchdata else "image"]
        label = batchdata["label"].to(device=device, non_blocking=non_blocking, **kwargs)
        return plain(label), plain(target.to(device=device, non_blocking=non_blocking, **kwargs))


class DenoiserTrainer(MixedPrecisionTrainer):
    """Training of the denoiser in a :class:`~semsynth.networks.latent_diffusion.LatentDiffusion`.

    Batches are those of a :class:`semsynth.training.latents.LatentDataset`. Each step draws a latent from its
    posterior, noise and a time step. The output holds ``image`` (label map), ``label`` (posterior or image), ``pred``,
    ``loss`` and ``losses``.

    Args:
        loss_function: a :class:`semsynth.training.losses.diffusion.DiffusionLoss`.
        kwargs: all else that :class:`~semsynth.training.engines.base.MixedPrecisionTrainer` takes; the optimizer has
            the denoiser's parameters alone.

    Raises:
        InputError: for an optimizer that would train the autoencoder as well.
    """

    loss_function: DiffusionLoss

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", PrepareLatentBatch())
        super().__init__(**kwargs)
        whole = self._whole()
        frozen = {id(p) for p in whole.autoencoder.parameters()}
        if any(id(p) in frozen for group in self.optimizer.param_groups for p in group["params"]):
            raise InputError(
                "the optimizer has the autoencoder's parameters; give it $@network_def.denoiser.parameters()"
            )

    def _whole(self) -> LatentDiffusion:
        whole: Any = getattr(self.network, "module", self.network)
        assert isinstance(whole, LatentDiffusion)
        return whole

    def _terms(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        whole = self._whole()
        latent = drawn(whole, target)
        denoised = engine.inferer(inputs, self.network, latent, *self._given(engine.state.batch, latent.device))
        self._predicted(denoised.pred)
        terms: dict[str, torch.Tensor] = self.loss_function(
            denoised, inputs, whole.autoencoder,
            timesteps=whole.schedule.timesteps, iteration=engine.state.iteration,
        )  # fmt: skip
        return terms

    def _given(self, batch: Any, device: torch.device) -> list[torch.Tensor | None]:
        """What the network is given behind label map and latent: the style."""
        style = batch.get(STYLE)
        return [None if style is None else style.to(device)]


class SliceTrainer(DenoiserTrainer):
    """Training of a :class:`~semsynth.networks.slice_diffusion.SliceDiffusion`.

    Batches hold a few slices of each case, under ``image`` and ``label``, and their places under ``position``, as
    :class:`semsynth.data.transforms.RandSlicesd` leaves them.

    Args:
        kwargs: as in :class:`DenoiserTrainer`.
    """

    def _given(self, batch: Any, device: torch.device) -> list[torch.Tensor | None]:
        return [None, batch["position"].to(device)]


@torch.no_grad()
def drawn(network: LatentDiffusion, target: torch.Tensor) -> torch.Tensor:
    """A latent from its posterior ``(B, 2·Z, h, w, d)``, or from that of an image ``(B, 1, H, W, D)``."""
    if target.shape[1] == 1:
        mean, log_variance = network.autoencoder.encode(target)
    else:
        mean, log_variance = target.float().chunk(2, dim=1)
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


class DenoiserEvaluator(SupervisedEvaluator):
    """Validation of a denoiser: its error at fixed noise levels with fixed noise, and images of the first cases.

    Of a network that denoises windows of slices, the window in the middle of each case is predicted.

    The output holds ``image`` (label map), ``label`` (real image), ``predicted`` and ``wanted`` (by the denoiser, with
    the levels as channels) and, for the first cases, ``pred`` (a synthetic image in the style of the real one).

    Args:
        network: the :class:`~semsynth.networks.latent_diffusion.LatentDiffusion`.
        levels: number of time steps, evenly over all.
        images: number of cases to synthesise.
        steps: number of steps of the sampler, for these.
        kwargs: all else that ``SupervisedEvaluator`` takes. Batches hold one case, under ``image`` and ``label``.
    """

    def __init__(self, *, network: nn.Module, levels: int = 8, images: int = 2, steps: int = 25, **kwargs: Any) -> None:
        super().__init__(network=network, **kwargs)
        self.levels, self.images, self.steps = levels, images, steps

    @torch.no_grad()
    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        whole: Any = getattr(self.network, "module", self.network)
        whole.eval()
        label, image = (batchdata[key].to(engine.state.device) for key in ("label", "image"))
        style = None
        if whole.style_channels:
            style, _ = whole.encode(image, label)
        shown = [_middle(volume, whole.sampling.window) for volume in (label, image)]
        predicted, wanted = fixed_predictions(whole, shown[0], shown[1], style, levels=self.levels)
        output: dict[str, Any] = {Keys.IMAGE: label, Keys.LABEL: image, "predicted": predicted, "wanted": wanted}
        if engine.state.iteration <= self.images:
            output[Keys.PRED] = whole.synthesize(label, [whole.noise_seed], style=style, steps=self.steps)
        engine.state.output = output
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        decollated: dict[str, Any] = engine.state.output
        return decollated


@torch.no_grad()
def fixed_predictions(
    network: LatentDiffusion, label: torch.Tensor, image: torch.Tensor, style: torch.Tensor | None, *, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a denoiser predicts and what it should, at time steps that are even over all and with the same noise always.

    Args:
        network: with its weights, in evaluation.
        label: class indices ``(1, 1, H, W, D)``.
        image: intensities in [0, 1] of the same shape.
        style: ``(1, S)`` of the image, or None.
        levels: number of time steps.

    Returns:
        ``(1, levels · Z, h, w, d)`` each.
    """
    clean = network.autoencoder.encode(image)[0] * network.latent_scale
    standard = None if style is None else network.standardized(style)
    generator = torch.Generator().manual_seed(0)
    told = network.denoiser.encode(label)
    predicted, wanted = [], []
    for number in range(levels):
        t = int((number + 0.5) / levels * network.schedule.timesteps)
        timestep = torch.tensor([t], device=clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        level = network.schedule.level(timestep)
        noisy = level.signal * clean + level.noise * noise
        with autocast(noisy.device, enabled=network.sampling.amp):
            output = network.denoiser(noisy, timestep, told, standard)
        predicted.append(network.schedule.joined(output, level))
        wanted.append(network.schedule.target(clean, noise, level))
    return torch.cat(predicted, dim=1), torch.cat(wanted, dim=1)


class SynthesisEvaluator(SupervisedEvaluator):
    """Validation of synthetic volumes by their texture: one per case, in the style of the case's own scan.

    The output holds ``image`` (label map), ``label`` (real image), ``pred`` (the synthetic one), and ``predicted`` and
    ``wanted``: the strength of each band of texture of both, where the map has tissue and where it has none, see
    :func:`semsynth.training.losses.texture.texture`; regions of too few voxels are left out.

    Args:
        network: the :class:`~semsynth.networks.latent_diffusion.LatentDiffusion`.
        kwargs: all else that ``SupervisedEvaluator`` takes. Batches hold one case, under ``image`` and ``label``.
    """

    @torch.no_grad()
    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        whole: Any = getattr(self.network, "module", self.network)
        whole.eval()
        label, image = (plain(batchdata[key].to(engine.state.device)) for key in ("label", "image"))
        style = whole.encode(image, label)[0] if whole.style_channels else None
        pred = whole.synthesize(label, [whole.noise_seed + engine.state.iteration], style=style)
        bands = min(BANDS, int(math.log2(min(label.shape[2:]))))  # a thin volume has no coarse ones
        found = [texture(volume.float().clamp(0.0, 1.0), label, bands=bands) for volume in (pred, image)]
        there = found[0][1] & found[1][1]
        output = {
            Keys.IMAGE: label, Keys.LABEL: image, Keys.PRED: pred,
            "predicted": found[0][0][there][None], "wanted": found[1][0][there][None],
        }  # fmt: skip
        engine.state.output = output
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        decollated: dict[str, Any] = engine.state.output  # type: ignore[assignment]
        return decollated


def _middle(volume: torch.Tensor, slices: int | None) -> torch.Tensor:
    """The slices in the middle of ``(B, 1, H, W, D)``; all for None."""
    volume = plain(volume)
    first = 0 if slices is None else max((volume.shape[-1] - slices) // 2, 0)
    return volume[..., first : None if slices is None else first + slices]
