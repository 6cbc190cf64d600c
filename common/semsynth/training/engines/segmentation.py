"""Training of a segmentation network."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer

from ...errors import InputError
from ...networks.supervision import DeepSupervision
from ...networks.texture import TextureHead
from ..losses.texture import TextureLoss
from .base import MixedPrecisionTrainer


class SegmentationTrainer(MixedPrecisionTrainer):
    """Training of a segmentation network, alone or within what asks more of it while it learns.

    Within a :class:`~semsynth.networks.texture.TextureHead` its features also have to tell the texture of a volume.
    Within a :class:`~semsynth.networks.supervision.DeepSupervision` the loss is a weighted mean over the levels, whose
    weights halve from level to level (Isensee et al. 2021).

    Args:
        texture_loss: loss of a ``TextureHead``, added to ``loss_function``; None without one.
        kwargs: all else that :class:`~semsynth.training.engines.base.MixedPrecisionTrainer` takes.

    Raises:
        InputError: for a texture loss without a ``TextureHead``, or the other way round.
    """

    def __init__(self, *, texture_loss: TextureLoss | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.texture_loss = texture_loss
        if (texture_loss is not None) != isinstance(self._whole(), TextureHead):
            raise InputError("a texture loss and a TextureHead around the network go together; give both or none")

    def _whole(self) -> torch.nn.Module:
        whole: torch.nn.Module = getattr(self.network, "module", self.network)
        return whole

    def _terms(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        whole = self._whole()
        if not isinstance(whole, TextureHead | DeepSupervision):
            return super()._terms(engine, inputs, target)
        logits, more = engine.inferer(inputs, self.network)
        self._predicted(logits)
        if self.texture_loss is not None:
            return self._losses(engine, logits, target) | {"texture": self.texture_loss(more, inputs, target)}
        weights = [0.5**level for level in range(1 + len(more))]
        terms = [self._losses(engine, x, target) for x in (logits, *more)]
        return {
            name: torch.stack([w * t[name] for w, t in zip(weights, terms, strict=True)]).sum() / sum(weights)
            for name in terms[0]
        }

    @staticmethod
    def _losses(engine: SupervisedTrainer, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = engine.loss_function(logits.float(), target)
        return loss if isinstance(loss, dict) else {"loss": loss}
