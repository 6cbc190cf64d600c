"""Training of a generator of label maps: its autoencoder, and the validation of its denoiser."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer

from ...labels import plain
from ...networks.label_autoencoder import LabelReconstruction
from ...networks.map_diffusion import UNKNOWN
from ..losses.label_maps import LabelAutoencoderLoss
from .base import MixedPrecisionTrainer
from .batches import PrepareSynthesisBatch
from .diffusion import DenoiserEvaluator


class LabelAutoencoderTrainer(MixedPrecisionTrainer):
    """Training of a :class:`~semsynth.networks.label_autoencoder.LabelAutoencoder`; batches hold ``label`` alone.

    Args:
        loss_function: a :class:`semsynth.training.losses.label_maps.LabelAutoencoderLoss`.
        kwargs: all else that :class:`~semsynth.training.engines.base.MixedPrecisionTrainer` takes.
    """

    loss_function: LabelAutoencoderLoss

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", PrepareSynthesisBatch(image_key="label"))
        super().__init__(**kwargs)

    def _terms(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        made: LabelReconstruction = self.network(inputs)
        self._predicted(made.logits)
        terms: dict[str, torch.Tensor] = self.loss_function(made, target)
        return terms


class LabelReconstructionInferer(SimpleInferer):
    """What an autoencoder of label maps makes of one: the logits of its classes."""

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Label map ``(B, 1, H, W, D)`` → ``(B, C, H, W, D)``."""
        made: LabelReconstruction = network(inputs)
        return made.logits


class MapDenoiserEvaluator(DenoiserEvaluator):
    """Validation of a :class:`~semsynth.networks.map_diffusion.MapDiffusion` that is told figures, and no voxel.

    Args:
        kwargs: all that :class:`~semsynth.training.engines.diffusion.DenoiserEvaluator` takes. Batches hold one map,
            under ``label``.
    """

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        label = plain(batchdata["label"]).float()
        nothing = torch.full_like(label, UNKNOWN)
        return super()._iteration(engine, {"label": nothing, "image": label})
