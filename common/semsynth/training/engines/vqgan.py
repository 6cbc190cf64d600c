"""Training of a VQ-GAN."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer

from ...networks.vqgan import VQGAN
from ..losses.vqgan import VQGANLoss
from .adversarial import DelayedAdversarialTrainer
from .base import LOSSES
from .batches import PrepareSynthesisBatch


class VQGANTrainer(DelayedAdversarialTrainer):
    """Training of a :class:`~semsynth.networks.vqgan.VQGAN`; batches are (image, image), no label map is needed.

    The output's ``losses`` also name how the codebook fares, for the log: ``perplexity`` (codes in use) and ``dead``
    (share of the codes that had next to nothing of late), and ``adaptive``, the weight of eq. 7. None of them is part
    of the loss.

    Args:
        kwargs: all that :class:`~semsynth.training.engines.adversarial.DelayedAdversarialTrainer` takes;
            ``loss_function`` is a :class:`semsynth.training.losses.vqgan.VQGANLoss`.
    """

    loss_function: VQGANLoss  # type: ignore[assignment]

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", PrepareSynthesisBatch(label_key="image"))
        super().__init__(**kwargs)

    @property
    def adversarial(self) -> bool:
        """Whether the discriminators take part in this step."""
        return self.warmed_up and (self.loss_function.adversarial_weight > 0 or self.loss_function.feature_weight > 0)

    def _train_on(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> None:
        super()._train_on(engine, inputs, target)
        codebook = self._whole().codebook
        output: Any = self.state.output
        output[LOSSES] |= {"perplexity": codebook.perplexity(), "dead": codebook.dead()}
        if self.adversarial:
            output[LOSSES]["adaptive"] = self.loss_function.weight.clone()

    def _whole(self) -> VQGAN:
        whole: Any = getattr(self.network, "module", self.network)
        assert isinstance(whole, VQGAN)
        return whole

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        made = self.network(label, details=True)
        return made.pred, made.quantized.commitment

    def _generator_terms(
        self, discriminator: Any, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *more: Any
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.generator(discriminator, fake, real, more[0], self._whole().last_layer)

    def _discriminator_terms(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.discriminator(self.discriminator, fake, real)
