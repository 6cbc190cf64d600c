"""Training engines: only the steps that MONAI's lack."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import PrepareBatch, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import all_true
from .errors import InputError, is_out_of_memory
from .labels import plain
from .losses import ConditionalGANLoss
from .losses_autoencoder import AutoencoderLoss

logger = logging.getLogger(__name__)
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


class PrepareReconstructionBatch(PrepareSynthesisBatch):
    """As there, and the image once more as the network's second input: for the validation of an autoencoder."""

    def __call__(  # type: ignore[override]  # noqa: D102
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[Any, ...], dict[str, Any]]:
        label, image = super().__call__(batchdata, device, non_blocking, **kwargs)
        if image is None:
            raise InputError(f"an autoencoder needs images, and this batch has none under {self.image_key!r}")
        return label, image, (plain(image),), {}


class StepGuard:
    """Counts optimizer steps that were skipped because a loss or a gradient was NaN or infinite.

    Args:
        limit: how many in a row are taken before the training stops.
    """

    def __init__(self, limit: int = 10) -> None:
        self.limit, self.skipped, self.in_a_row, self.began = limit, 0, 0, ""

    def good(self) -> None:
        """A step was taken."""
        self.in_a_row, self.began = 0, ""

    def bad(self, where: str, iteration: int) -> None:
        """A step was skipped.

        Raises:
            InputError: when it was one too many in a row, saying in which loss it began.
        """
        self.skipped += 1
        self.in_a_row += 1
        self.began = self.began or where
        logger.warning("iteration %d: %s is NaN or infinite; step skipped (%d so far)", iteration, where, self.skipped)
        if self.in_a_row > self.limit:
            raise InputError(
                f"{self.in_a_row} steps in a row had NaN or infinite values (the limit is {self.limit}); it began in "
                f"{self.began}. Resume from the last checkpoint with a lower learning rate, with clip_norm, or with "
                "--amp False"
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "began": self.began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.skipped, self.in_a_row, self.began = int(state["skipped"]), int(state["in_a_row"]), str(state["began"])


@dataclass
class Learner:
    """What one optimizer trains: a network with its gradient scaler, and how the current step fares.

    Attributes:
        guard: counts its skipped steps.
        bad: what was first found NaN or infinite since the last step, or "".
        buffers: the network's running statistics before the current step, to go back to.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    guard: StepGuard
    bad: str = ""
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)

    def start(self) -> None:
        """Before the first batch of an optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.bad = ""
        self.buffers = {name: buffer.detach().clone() for name, buffer in self.network.named_buffers()}

    def undo(self) -> None:
        """Throw the step away: its gradients, and what a NaN has done to running statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        current = dict(self.network.named_buffers())
        for name, value in self.buffers.items():
            current[name].copy_(value)


class MixedPrecisionTrainer(SupervisedTrainer):
    """MONAI's ``SupervisedTrainer`` with the device's own mixed precision, and steps that a NaN cannot spoil.

    The output holds ``image``, ``label``, ``pred``, ``loss`` and, where ``loss_function`` returns a dictionary of named
    terms (their sum is the loss), ``losses``. A step whose loss or gradient is NaN or infinite is skipped and counted
    in ``skipped``.

    Args:
        amp: mixed precision: bfloat16 on CPU and where CUDA has it, else float16 with loss scaling. (MONAI's engines
            know it on CUDA only, so their own switch stays off.)
        clip_norm: largest gradient norm, or None.
        max_bad_steps: how many skipped steps in a row stop the training.
        kwargs: all else that ``SupervisedTrainer`` takes (device, max_epochs, network, optimizer, …).

    Raises:
        InputError: for a ``clip_norm`` that is not positive; while training: out of memory, with the settings that
            help, and more than ``max_bad_steps`` bad steps in a row.
    """

    def __init__(
        self, *, amp: bool = False, clip_norm: float | None = None, max_bad_steps: int = 10, **kwargs: Any
    ) -> None:
        if clip_norm is not None and clip_norm <= 0:
            raise InputError(f"clip_norm must be positive or null, got {clip_norm}")
        kwargs.setdefault("decollate", False)
        super().__init__(amp=False, **kwargs)
        self.clip_norm, self.max_bad_steps = clip_norm, max_bad_steps
        device = torch.device(self.state.device)
        half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        self.autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": torch.float16 if half else torch.bfloat16,
            "enabled": amp,
        }
        self.use_scaler = amp and half
        self.learners = {"network": self._learner(self.network, self.optimizer)}

    def _learner(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Learner:
        device = torch.device(self.state.device)
        scaler = torch.amp.GradScaler(device.type, enabled=self.use_scaler)
        return Learner(network, optimizer, scaler, StepGuard(self.max_bad_steps))

    @property
    def skipped(self) -> int:
        """How many optimizer steps were skipped so far."""
        return sum(learner.guard.skipped for learner in self.learners.values())

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the trainer itself: the gradient scalers and the counts of skipped steps."""
        return {
            name: {"guard": learner.guard.state_dict(), "scaler": learner.scaler.state_dict()}
            for name, learner in self.learners.items()
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`training_state`."""
        for name, learner in self.learners.items():
            learner.guard.load_state_dict(state[name]["guard"])
            if state[name]["scaler"]:  # empty where there was no scaling
                learner.scaler.load_state_dict(state[name]["scaler"])

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, torch.Tensor]) -> dict[str, Any]:
        if batchdata is None:
            raise InputError("the data loader gave no batch")
        try:
            inputs, target = (plain(x) for x in engine.prepare_batch(
                batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)[:2])  # fmt: skip
            engine.state.output = {Keys.IMAGE: inputs, Keys.LABEL: target}
            self._train_on(engine, inputs, target)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(_memory_advice(engine, error)) from error
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Any] = engine.state.output  # type: ignore[assignment]
        return output

    def _train_on(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> None:
        first, last = self._accumulation()
        learner = self.learners["network"]
        self.network.train()
        if first:
            learner.start()
        with torch.autocast(**self.autocast):
            terms = self._terms(engine, inputs, target)
        self._optimize(learner, terms, step=last)

    def _terms(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """The network's pass and its named losses."""
        pred = engine.inferer(inputs, self.network)
        self._predicted(pred)
        loss = engine.loss_function(pred.float(), target)
        return loss if isinstance(loss, dict) else {"loss": loss}

    def _predicted(self, pred: torch.Tensor) -> None:
        self.state.output[Keys.PRED] = pred.detach()  # type: ignore[index]
        self.fire_event(IterationEvents.FORWARD_COMPLETED)

    def _optimize(self, learner: Learner, terms: dict[str, torch.Tensor], *, step: bool) -> None:
        """Backward on the terms' sum, and an optimizer step if ``step`` and all is finite."""
        output: Any = self.state.output
        loss = torch.stack(list(terms.values())).sum()
        main = learner is self.learners["network"]
        if main:
            output[Keys.LOSS] = loss.detach()
        output[LOSSES] = output.get(LOSSES, {}) | {name: term.detach() for name, term in terms.items()}
        if main:
            self.fire_event(IterationEvents.LOSS_COMPLETED)
        if not all_true(bool(loss.isfinite()), loss.device):
            bad = [name for name, term in terms.items() if not bool(term.isfinite().all())]
            learner.bad = learner.bad or f"loss {', '.join(bad or terms)}"
        # also where the loss is bad: other processes wait for these gradients
        learner.scaler.scale(loss / self.accumulation_steps).backward()
        if main:
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if step:
            self._step(learner)

    def _step(self, learner: Learner) -> None:
        learner.scaler.unscale_(learner.optimizer)
        parameters = [p for group in learner.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(norm.isfinite())
        # infinite gradients are how a scaler finds its scale: it skips those steps by itself, and lowers it
        searching = self.use_scaler and learner.scaler.get_scale() > 1.0
        if not learner.bad and not finite and not searching:
            learner.bad = f"the gradient of {' + '.join(self.state.output[LOSSES])}"  # type: ignore[index]
        if learner.bad:
            learner.undo()
            learner.guard.bad(learner.bad, self.state.iteration)
        else:
            if self.clip_norm is not None and finite:
                nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
            learner.scaler.step(learner.optimizer)
            if finite:
                learner.guard.good()
        if self.use_scaler:
            learner.scaler.update()

    def at_step_border(self) -> bool:
        """Whether the last iteration ended with an optimizer step: only then is the whole state in the checkpoint."""
        return self._accumulation()[1]

    def _accumulation(self) -> tuple[bool, bool]:
        """Whether this batch is the first and the last of its optimizer step (an epoch's end always is the last)."""
        length = self.state.epoch_length or 0
        position = (self.state.iteration - 1) % length if length else self.state.iteration - 1
        last = (position + 1) % self.accumulation_steps == 0 or position + 1 == length
        return position % self.accumulation_steps == 0, last


class AdversarialTrainer(MixedPrecisionTrainer):
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
        kwargs: all else that :class:`MixedPrecisionTrainer` takes; ``clip_norm`` holds for each of the two networks.
    """

    loss_function: ConditionalGANLoss

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        d_optimizer: torch.optim.Optimizer,
        loss_function: ConditionalGANLoss,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("prepare_batch", PrepareSynthesisBatch())
        super().__init__(loss_function=loss_function, **kwargs)
        self.discriminator, self.d_optimizer = discriminator, d_optimizer
        self.learners["discriminator"] = self._learner(discriminator, d_optimizer)

    def _train_on(self, engine: SupervisedTrainer, inputs: torch.Tensor, target: torch.Tensor) -> None:
        first, last = self._accumulation()
        self.network.train()
        self.discriminator.train()
        if first:
            for learner in self.learners.values():
                learner.start()
        fake = self._generator_step(engine, inputs, target, step=last)
        self._discriminator_step(inputs, fake.detach(), target, step=last)

    def _generator_step(
        self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor, *, step: bool
    ) -> torch.Tensor:
        judge = self._judge()
        if judge is not None:
            judge.requires_grad_(False)
        with torch.autocast(**self.autocast):
            made = self._synthesize(engine, label, real)
            fake: torch.Tensor = made[0]
            self._predicted(fake)
            terms = self._generator_terms(judge, label, fake, real, *made[1:])
        self._optimize(self.learners["network"], terms, step=step)
        if judge is not None:
            judge.requires_grad_(True)
        return fake

    def _generator_terms(
        self, judge: Any, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *more: Any
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.generator(judge, label, fake, real, *more)

    def _judge(self) -> nn.Module | None:
        """What judges the generated image: bare, for frozen parameters give a wrapper nothing to wait for."""
        wrapped = isinstance(self.discriminator, DistributedDataParallel)
        judge: nn.Module = self.discriminator.module if wrapped else self.discriminator  # type: ignore[assignment]
        return judge

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        """The generated image, and what else the generator's loss takes."""
        return (engine.inferer(label, self.network),)

    def _discriminator_step(self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, step: bool) -> None:
        with torch.autocast(**self.autocast):
            terms = self._discriminator_terms(label, fake, real)
        self._optimize(self.learners["discriminator"], terms, step=step)

    def _discriminator_terms(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return self.loss_function.discriminator(self.discriminator, label, fake, real)


class VariationalGANTrainer(AdversarialTrainer):
    """Adversarial training of a generator that takes its style from the real image (a VAE-GAN; Park et al. 2019).

    The network is called with label map and real image and gives a
    :class:`~semsynth.networks.spade_gan.Reconstruction`; its posterior goes to the loss.
    """

    def _synthesize(self, engine: SupervisedTrainer, label: torch.Tensor, real: torch.Tensor) -> tuple[Any, ...]:
        made = engine.inferer(label, self.network, real)
        if isinstance(made, torch.Tensor):  # a generator without style
            return (made,)
        return made.pred, (made.mean, made.log_variance)


class DelayedAdversarialTrainer(AdversarialTrainer):
    """Adversarial training of an autoencoder, whose discriminator takes part after a warm-up.

    Until then neither is it judged by nor trained: it would learn to tell blurred reconstructions, which need no
    discriminator.

    Args:
        warm_up_epochs: how many epochs go before it.
        kwargs: all else that :class:`AdversarialTrainer` takes.
    """

    def __init__(self, *, warm_up_epochs: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.warm_up_epochs = warm_up_epochs

    @property
    def warmed_up(self) -> bool:
        """Whether the warm-up is over."""
        return bool(self.state.epoch > self.warm_up_epochs)

    @property
    def adversarial(self) -> bool:
        """Whether the adversarial part takes part in this step."""
        return self.warmed_up and self.loss_function.adversarial_weight > 0

    def _judge(self) -> nn.Module | None:
        return super()._judge() if self.adversarial else None

    def _discriminator_step(self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, *, step: bool) -> None:
        if self.adversarial:
            super()._discriminator_step(label, fake, real, step=step)


class AutoencoderTrainer(DelayedAdversarialTrainer, VariationalGANTrainer):
    """Training of a KL autoencoder: a warm-up (10 epochs in the paper), and R1 for the discriminator.

    Args:
        kwargs: all that :class:`DelayedAdversarialTrainer` takes; ``loss_function`` is a
            :class:`semsynth.losses_autoencoder.AutoencoderLoss`.
    """

    loss_function: AutoencoderLoss

    def _discriminator_terms(
        self, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        terms = super()._discriminator_terms(label, fake, real)
        if self.state.iteration % self.loss_function.r1_interval == 0:
            terms |= self.loss_function.penalty(self.discriminator, label, real)
        return terms


def _memory_advice(engine: Engine, error: Exception) -> str:
    amp = "" if getattr(engine, "autocast", {}).get("enabled") else ", --amp True"
    shapes = {k: tuple(v.shape) for k, v in (engine.state.output or {}).items() if isinstance(v, torch.Tensor)}  # type: ignore[union-attr]
    return (
        f"out of memory at iteration {engine.state.iteration}, with {shapes.get(Keys.IMAGE, 'a batch')} as input "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). What helps, in this order: a smaller "
        f"patch_size, a smaller batch_size with more accumulation_steps{amp}, a smaller cache_rate (CPU memory); "
        "then go on with --resume True"
    )


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
