"""The loss of a latent denoiser: what it predicts, and whether its image still shows the anatomy of the map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...errors import InputError
from ...networks.autoencoder import SPADEAutoencoder
from ...networks.frozen import FrozenSegmenter
from ...networks.latent_diffusion import Denoised
from .gan import _check_weights
from .segmentation import SegmentationLoss


class DiffusionLoss(nn.Module):
    """Mean squared error of the prediction (Al-Sanaani et al., eq. 1), and segmentation consistency (eq. 2).

    Segmentation consistency decodes the latent that the prediction amounts to and compares a frozen network's
    segmentation of that image with the label map: Dice + cross-entropy. Gradients reach the denoiser only. It counts
    where the estimate means something: at low noise, and in steps that saw the map.

    Args:
        signal_power: p of the weight signal^p on the squared error, where ``signal`` is what of the latent is left at
            the time step: 0 weighs all time steps alike in the unit of the prediction. The error of ε is signal times
            that of v, so that 2 makes eq. 1 of a prediction of v.
        segmenter: the frozen network (:func:`semsynth.provenance.frozen.load_segmenter`), whose class 1 is ``target``;
            None leaves the term out.
        segmentation_weight: weight of the consistency; 0 switches it off.
        segmentation_below: share of the time steps, from the least noisy, in which it counts.
        segmentation_interval: it is computed in every n-th step, for its cost is the decoder's.
        target: the map's classes that are the segmenter's class 1.

    Raises:
        InputError: for a negative weight, or values out of range.
    """

    def __init__(
        self,
        *,
        signal_power: float = 0.0,
        segmenter: FrozenSegmenter | None = None,
        segmentation_weight: float = 0.1,
        segmentation_below: float = 0.25,
        segmentation_interval: int = 4,
        target: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        _check_weights(
            signal_power=signal_power, segmentation_weight=segmentation_weight, segmentation_below=segmentation_below
        )
        if segmentation_interval < 1 or not target:
            raise InputError(
                f"segmentation_interval must be 1 or more, target one class or more, got {segmentation_interval} and "
                f"{list(target)}"
            )
        self.signal_power = signal_power
        self.segmentation_weight, self.below = segmentation_weight, segmentation_below
        self.interval, self.target = int(segmentation_interval), list(target)
        # in a tuple: a frozen network has no share in parameters or checkpoints
        self._held = (segmenter if segmentation_weight > 0 else None,)
        self.segmentation = SegmentationLoss()

    @property
    def in_loss(self) -> list[dict[str, str]]:
        """Name and SHA-256 of the segmenter, for the training's record: its scores are no longer independent."""
        (segmenter,) = self._held
        return [] if segmenter is None else [{"name": segmenter.name, "sha256": segmenter.sha256}]

    def due(self, iteration: int) -> bool:
        """Whether segmentation consistency is computed in this step."""
        return self._held[0] is not None and iteration % self.interval == 0

    def forward(
        self, denoised: Denoised, label: torch.Tensor, autoencoder: SPADEAutoencoder, *, timesteps: int, iteration: int
    ) -> dict[str, torch.Tensor]:
        """Weighted terms; their sum is the loss.

        Args:
            denoised: output of :class:`semsynth.networks.latent_diffusion.LatentDiffusion`.
            label: class indices ``(B, 1, H, W, D)``.
            autoencoder: frozen.
            timesteps: T.
            iteration: iteration of the training, from 1.
        """
        errors = (denoised.pred.float() - denoised.target.float()).square().mean(dim=(1, 2, 3, 4))
        terms = {"denoising": (denoised.signal.flatten() ** self.signal_power * errors).mean()}
        if self.due(iteration):
            chosen = (denoised.timestep < self.below * timesteps) & denoised.labelled
            # a term of 0 where no item counts: all processes have the same terms
            terms["segmentation"] = self.segmentation_weight * self._consistency(denoised, label, autoencoder, chosen)
        return terms

    def _consistency(
        self, denoised: Denoised, label: torch.Tensor, autoencoder: SPADEAutoencoder, chosen: torch.Tensor
    ) -> torch.Tensor:
        (segmenter,) = self._held
        assert segmenter is not None
        if not bool(chosen.any()):
            return denoised.pred.sum() * 0.0
        image = autoencoder.decode(denoised.clean[chosen], label[chosen]).clamp(0.0, 1.0)
        inside = torch.isin(label[chosen].long(), torch.tensor(self.target, device=label.device))
        losses = self.segmentation(segmenter(image), inside.to(label.dtype))
        return torch.stack(list(losses.values())).sum() * chosen.float().mean()
