"""Training of a VQ-GAN."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch, SupervisedTrainer

from .engines import LOSSES, AdversarialTrainer
from .losses_vqgan import VQGANLoss
from .networks.vqgan import VQGAN


class PrepareImageBatch(PrepareBatch):
    """Batch → (image, image): an autoencoder's input is its target. No label map is needed.

    Args:
        image_key: where the batch has it.
    """

    def __init__(self, image_key: str = "image") -> None:
        self.image_key = image_key

    def __call__(  # type: ignore[override]  # noqa: D102
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image = batchdata[self.image_key].to(device=device, non_blocking=non_blocking, **kwargs)
        return image, image


class VQGANTrainer(AdversarialTrainer):
    """Training of a :class:`~semsynth.networks.vqgan.VQGAN`, whose discriminators take part after a warm-up.

    The output's ``losses`` also name how the codebook fares, for the log: ``perplexity`` (codes in use) and ``dead``
    (share of the codes that had next to nothing of late), and ``adaptive``, the weight of eq. 7. None of them is part
    of the loss.

    Args:
        warm_up_epochs: how many epochs go before the discriminators.
        kwargs: all else that :class:`~semsynth.engines.AdversarialTrainer` takes; ``loss_function`` is a
            :class:`semsynth.losses_vqgan.VQGANLoss`.
    """

    loss_function: VQGANLoss  # type: ignore[assignment]

    def __init__(self, *, warm_up_epochs: int = 10, **kwargs: Any) -> None:
        kwargs.setdefault("prepare_batch", PrepareImageBatch())
        super().__init__(**kwargs)
        self.warm_up_epochs = warm_up_epochs

    @property
    def adversarial(self) -> bool:
        """Whether the discriminators take part in this step."""
        weighed = self.loss_function.adversarial_weight > 0 or self.loss_function.feature_weight > 0
        return self.state.epoch > self.warm_up_epochs and weighed

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

    def _judge(self) -> Any:
        return super()._judge() if self.adversarial else None

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        made = self.network(label, details=True)
        return made.pred, made.quantized.commitment

    def _generator_terms(
        self, judge: Any, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *more: Any
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.generator(judge, fake, real, more[0], self._whole().last_layer)

    def _discriminator_step(self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, step: bool) -> None:
        if self.adversarial:
            super()._discriminator_step(label, fake, real, step=step)

    def _discriminator_terms(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.discriminator(self.discriminator, fake, real)
