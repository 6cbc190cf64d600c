"""The step that every training takes: mixed precision, accumulation, and a guard against NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from ...distributed import all_true
from ...errors import InputError, is_out_of_memory
from ...labels import plain
from ...precision import autocast, reduced_type

logger = logging.getLogger(__name__)
LOSSES = "losses"
"""Key of the trainer's output that holds the named, weighted loss terms."""


class StepGuard:
    """Counts optimizer steps that were skipped because a loss or a gradient was NaN or infinite.

    Args:
        limit: number of them in a row that ends the training.
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
        bad: name of the first value that was NaN or infinite since the last step, or "".
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


def _where(learner: Learner, norm: torch.Tensor) -> str:
    """The parameters whose gradients are not finite, the first three by name."""
    grads = {name: p.grad for name, p in learner.network.named_parameters() if p.grad is not None}
    bad = [name for name, grad in grads.items() if not bool(grad.isfinite().all())]
    if not bad:  # too large to be squared, or a fault of the machine
        return f"norm {float(norm)} of finite values"
    return f"{len(bad)} of {len(grads)} parameters: {', '.join(bad[:3])}{', …' if len(bad) > 3 else ''}"


class MixedPrecisionTrainer(SupervisedTrainer):
    """MONAI's ``SupervisedTrainer`` with the device's own mixed precision, and steps that a NaN cannot spoil.

    The output holds ``image``, ``label``, ``pred``, ``loss`` and, where ``loss_function`` returns a dictionary of named
    terms (their sum is the loss), ``losses``. A step whose loss or gradient is NaN or infinite is skipped and counted
    in ``skipped``.

    Args:
        amp: mixed precision: bfloat16 on CPUs and GPUs with instructions for it, else float16 with loss scaling on
            CUDA and float32 on CPUs, see :mod:`semsynth.precision`. (MONAI's engines know it on CUDA only, so their
            own switch stays off.)
        clip_norm: largest gradient norm, or None.
        max_bad_steps: number of skipped steps in a row that ends the training.
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
        self.mixed = amp  # not ``amp``, which is MONAI's own switch
        self.use_scaler = amp and reduced_type(device.type) == torch.float16
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
        with autocast(self.state.device, enabled=self.mixed, scaled=True):
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
            losses = " + ".join(self.state.output[LOSSES])  # type: ignore[index]
            learner.bad = f"the gradient of {losses} ({_where(learner, norm)})"
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


def _memory_advice(engine: Engine, error: Exception) -> str:
    amp = "" if getattr(engine, "mixed", False) else ", --amp True"
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
