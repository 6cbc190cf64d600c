"""Training engines: only the steps that MONAI's lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError
from .losses import ConditionalGANLoss

LOSSES = "losses"
"""Key of the trainer's output that holds the named, weighted loss terms."""


class PrepareSynthesisBatch(PrepareBatch):
    """Batch → (label map, image): a generator's input is the label map and its target the image.

    The trainer's output then has the label map under ``image`` and the real image under ``label``, the names of MONAI's
    engines for a network's input and target.

    Args:
        label_key, image_key: where the batch has them; an absent image gives the target None (inference).
    """

    def __init__(self, label_key: str = "label", image_key: str = "image") -> None:
        self.label_key, self.image_key = label_key, image_key

    def __call__(  # type: ignore[override]  # noqa: D102
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        label = batchdata[self.label_key].to(device=device, non_blocking=non_blocking, **kwargs)
        image = batchdata.get(self.image_key)
        if image is None:
            return label, None
        return label, image.to(device=device, non_blocking=non_blocking, **kwargs)


class AdversarialTrainer(SupervisedTrainer):
    """Alternating generator and discriminator steps on (label map, image) batches.

    A ``SupervisedTrainer`` whose ``network`` is the generator, so that whatever works with one (handlers, federated
    learning, checkpoints) works here. MONAI's own ``AdversarialTrainer`` takes the network's *input* for the
    discriminator's real sample, which is wrong for image-to-image. Each iteration makes one generated image, takes a
    generator step with the discriminator frozen, then a discriminator step on the same image, detached.

    The output holds ``image`` (label map), ``label`` (real image), ``pred``, ``loss`` (the generator's sum) and
    ``losses`` (every named term).

    Args:
        discriminator: (label map, image) → list of features, logits last; may be wrapped for distributed training.
        d_optimizer: its optimizer.
        loss_function: makes the named terms of both steps.
        amp: mixed precision on the device's own type: bfloat16 on CPU and where CUDA has it, else float16 with loss
            scaling. Norm statistics and losses stay in float32.
        clip_norm: largest gradient norm of each of the two networks, or None.
        accumulation_steps: batches per optimizer step, as in ``SupervisedTrainer``.
        kwargs: all else that ``SupervisedTrainer`` takes (device, max_epochs, network, optimizer, …).

    Raises:
        InputError: for a ``clip_norm`` that is not positive.
    """

    loss_function: ConditionalGANLoss

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        d_optimizer: torch.optim.Optimizer,
        loss_function: ConditionalGANLoss,
        amp: bool = False,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        if clip_norm is not None and clip_norm <= 0:
            raise InputError(f"clip_norm must be positive or null, got {clip_norm}")
        kwargs.setdefault("prepare_batch", PrepareSynthesisBatch())
        kwargs.setdefault("decollate", False)
        # MONAI's engines autocast on CUDA only, so its own switch stays off
        super().__init__(loss_function=loss_function, amp=False, **kwargs)
        self.discriminator, self.d_optimizer = discriminator, d_optimizer
        self.mixed_precision, self.clip_norm = amp, clip_norm
        device = torch.device(self.state.device)
        half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.float16 if half else torch.bfloat16,
            "enabled": amp,
        }
        self.scalers = {name: torch.amp.GradScaler(device.type, enabled=amp and half) for name in ("g", "d")}

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        if batchdata is None:
            raise InputError("the data loader gave no batch")
        label, real = (_plain(x) for x in engine.prepare_batch(
            batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)[:2])  # fmt: skip
        first, last = self._accumulation()
        self.network.train()
        self.discriminator.train()
        if first:
            self.optimizer.zero_grad(set_to_none=True)
            self.d_optimizer.zero_grad(set_to_none=True)
        engine.state.output = {Keys.IMAGE: label, Keys.LABEL: real}

        fake, g_terms = self._generator_step(engine, label, real, step=last)
        d_terms = self._discriminator_step(label, fake.detach(), real, step=last)

        engine.state.output[LOSSES] = {name: term.detach() for name, term in (g_terms | d_terms).items()}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output  # type: ignore[no-any-return]

    def _generator_step(
        self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor, *, step: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # the bare module: frozen parameters give a distributed wrapper nothing to wait for
        judge = (
            self.discriminator.module if isinstance(self.discriminator, DistributedDataParallel) else self.discriminator
        )
        judge.requires_grad_(False)
        with torch.autocast(**self.autocast):
            fake = engine.inferer(label, self.network)
            engine.state.output[Keys.PRED] = fake.detach()
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            terms = self.loss_function.generator(judge, label, fake, real)
            loss = torch.stack(list(terms.values())).sum()
        engine.state.output[Keys.LOSS] = loss.detach()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self._backward(loss, "g")
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        judge.requires_grad_(True)
        if step:
            self._step(self.optimizer, self.network.parameters(), "g")
        return fake, terms

    def _discriminator_step(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, step: bool
    ) -> dict[str, torch.Tensor]:
        with torch.autocast(**self.autocast):
            terms = self.loss_function.discriminator(self.discriminator, label, fake, real)
        self._backward(torch.stack(list(terms.values())).sum(), "d")
        if step:
            self._step(self.d_optimizer, self.discriminator.parameters(), "d")
        return terms

    def _accumulation(self) -> tuple[bool, bool]:
        """Whether this batch is the first and the last of its optimizer step (an epoch's end always is the last)."""
        length = self.state.epoch_length or 0
        position = (self.state.iteration - 1) % length if length else self.state.iteration - 1
        last = (position + 1) % self.accumulation_steps == 0 or position + 1 == length
        return position % self.accumulation_steps == 0, last

    def _backward(self, loss: torch.Tensor, name: str) -> None:
        self.scalers[name].scale(loss / self.accumulation_steps).backward()

    def _step(self, optimizer: torch.optim.Optimizer, parameters: Any, name: str) -> None:
        scaler = self.scalers[name]
        if self.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        scaler.step(optimizer)
        scaler.update()


def _plain(x: torch.Tensor) -> torch.Tensor:
    """The bare tensor: MetaTensor's bookkeeping costs time in every operation of a training step."""
    return x.as_tensor() if hasattr(x, "as_tensor") else x


class LossTerms:
    """Trainer output → its named loss terms, for the ``output_transform`` of logging handlers.

    Args:
        names: the terms to keep; None keeps all.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = names

    def __call__(self, output: dict[str, Any]) -> dict[str, float]:
        """Term name → value; ``loss`` is the generator's sum."""
        terms = {"loss": output[Keys.LOSS], **output[LOSSES]}
        return {name: float(value) for name, value in terms.items() if self.names is None or name in self.names}
