"""Training that survives: checkpoints of everything, exact resuming, signals."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch.nn.parallel import DistributedDataParallel

from ..distributed import all_true, gather, rank, world_size
from ..errors import InputError
from ..locks import locked
from ..provenance.cards import TrainingRecord
from ..provenance.config import changed_keys
from ..training.checkpoints import CheckpointFolder, not_finite, random_state, set_random_state

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_UNTIL_ASKED_AGAIN = 5.0


class TrainingCheckpoint:
    """Attached to a trainer: saves its whole state, goes on from it exactly, and answers SIGTERM and SIGINT.

    Resuming gives bit for bit what an uninterrupted training would have given (on CPU; with a
    :class:`semsynth.training.loading.CaseSampler`, whose order and augmentation follow from epoch and position). On the
    first SIGTERM or SIGINT the step ends (at the end of an epoch: its validation too), a checkpoint is saved, and the
    process ends with status 143 or 130; another one five seconds later ends it at once. Learning rate and weight decay
    are the config's, also where they are not the checkpoint's.

    Args:
        folder: folder of the checkpoints (see :class:`semsynth.training.checkpoints.CheckpointFolder`).
        objects: name → anything with ``state_dict`` and ``load_state_dict``: networks, optimizers, schedulers, moving
            averages. A cosine or one-cycle schedule may have another length than the checkpoint's: it goes on as if it
            had always had it.
        interval: epochs between saves; the last epoch is always saved.
        keep: number of checkpoints to keep.
        resume: go on from the newest good checkpoint where there is one.
        wait: wait until another training in the same run folder has ended; without it such a training is an error.
        record: record of what the training is made from; its hashes go into each checkpoint, and a resumed training
            with another configuration or other data says so.

    Raises:
        InputError: (at the start) another training in the run folder, which is the parent of ``folder``; no good
            checkpoint among those there, or one that lacks an object or has another shape; (at a save) NaN or infinite
            weights, which are never saved, or a disk that cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> network = torch.nn.Linear(1, 1)
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as run:
        ...     TrainingCheckpoint(f"{run}/checkpoints", {"network": network}).attach(trainer)
        ...     _ = trainer.run([0, 1], max_epochs=2)
        ...     sorted(path.name for path in Path(run, "checkpoints").iterdir())
        ['checkpoint_e0001_i0000002.pt', 'checkpoint_e0002_i0000004.pt', 'manifest.json']
    """

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, Any],
        *,
        interval: int = 1,
        keep: int = 2,
        resume: bool = False,
        wait: bool = False,
        record: TrainingRecord | None = None,
    ) -> None:
        # the bare networks: a checkpoint of two processes can be resumed by one, and the other way round
        self.objects = {
            name: obj.module if isinstance(obj, DistributedDataParallel) else obj for name, obj in objects.items()
        }
        self.files = CheckpointFolder(folder, keep=keep)
        self.interval, self.resume, self.wait, self.record = interval, resume, wait, record
        self.held = ExitStack()
        self.signal: int | None = None
        self.heard = 0.0
        self.previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.STARTED, self._hold)
        engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_told)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._stop_listening)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    # ---- one training at a time

    def _hold(self, engine: Engine) -> None:
        # all processes wait where they wait at all: those that write nothing would go on without the first one
        self.held.enter_context(locked(self.files.folder.parent, "a training", wait=self.wait, shared=True))
        # behind all other handlers, however late they were attached: the final weights are written in the folder too
        for event in (Events.COMPLETED, Events.TERMINATE):
            if not engine.has_event_handler(self._let_go, event):
                engine.add_event_handler(event, self._let_go)

    def _let_go(self, engine: Engine) -> None:
        self.held.close()

    # ---- saving

    def _save_epoch(self, engine: Engine) -> None:
        told = self._told(engine)
        last = engine.state.epoch == engine.state.max_epochs
        if told or last or engine.state.epoch % self.interval == 0:
            self._save(engine)
        if told:
            self._exit(engine)

    def _stop_if_told(self, engine: Engine) -> None:
        length = engine.state.epoch_length
        if length and engine.state.iteration % length == 0:
            return  # the epoch's own handlers (validation, schedules) come first, then the epoch's save
        at_border = getattr(engine, "at_step_border", lambda: True)()
        if at_border and self._told(engine):
            self._save(engine)
            self._exit(engine)

    def _save(self, engine: Engine) -> None:
        streams = gather(random_state())  # every process has its own
        if rank() == 0:
            path = self.files.save(
                self.state(engine) | {"random": streams}, epoch=engine.state.epoch, iteration=engine.state.iteration
            )
            logger.debug("saved %s", path)
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # a process that ends while the first one still writes takes it down with it

    def state(self, engine: Engine) -> dict[str, Any]:
        """All that a checkpoint holds but the generators' states.

        Raises:
            InputError: when an object holds NaN or infinite values.
        """
        objects = {name: obj.state_dict() for name, obj in self.objects.items()}
        # best values start at infinity: only what holds tensors can have diverged
        broken = not_finite(objects)
        if broken:
            raise InputError(
                f"epoch {engine.state.epoch}: NaN or infinite values in {', '.join(broken[:4])}"
                f"{' …' if len(broken) > 4 else ''}: training has diverged and is not saved; {self.files.folder} keeps "
                "the last good state: resume with a lower learning rate or with clip_norm"
            )
        state: dict[str, Any] = {
            "objects": objects,
            "trainer": engine.training_state() if hasattr(engine, "training_state") else {},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "batch_size": getattr(getattr(engine.state, "dataloader", None), "batch_size", None),
            "processes": world_size(),
        }
        return state | ({} if self.record is None else {"record": self.record.facts()})

    # ---- going on

    def _load(self, engine: Engine) -> None:
        if engine.state.iteration:
            return  # the trainer is run again, by a round of federated learning: what stands there is its own
        self.files.refuse_foreign()
        if self.record is not None and rank() == 0:
            self.record.facts()  # read now what they are made from: a signal leaves no time for it
        if not self.resume:
            if rank() == 0:
                aside = self.files.set_aside()
                if aside is not None:
                    logger.warning("checkpoints of an earlier training were moved to %s; --resume True would have gone "
                                   "on from them", aside)  # fmt: skip
            return
        found = self.files.load_newest()
        if found is None:
            logger.info("nothing to resume in %s: starting afresh", self.files.folder)
            return
        state, path = found
        _same_everywhere((state["epoch"], state["iteration"]), path)
        missing = sorted(set(self.objects) - set(state["objects"]))
        if missing:
            raise InputError(f"{path}: has no state for {', '.join(missing)}; it belongs to another training")
        schedules = {name for name, part in state["objects"].items() if "last_epoch" in part}
        for name in self.objects.keys() - schedules:
            _restore(self.objects[name], state["objects"][name], f"{path}: {name}")
        if state["trainer"] and hasattr(engine, "load_training_state"):
            engine.load_training_state(state["trainer"])
        self._compare(state, path)
        self._go_to(engine, state)
        for name in self.objects.keys() & schedules:  # last: where they are to be follows from where the engine is
            _restore_schedule(self.objects[name], state["objects"][name], state, engine)
        streams = state["random"]
        if rank() < len(streams):
            set_random_state(streams[rank()])
        if engine.state.epoch >= (engine.state.max_epochs or 0):
            logger.warning("%s is at epoch %d of %s: nothing left to train", path, engine.state.epoch,
                           engine.state.max_epochs)  # fmt: skip
        logger.info("resumed from %s: epoch %d, iteration %d", path, state["epoch"], state["iteration"])

    def _go_to(self, engine: Engine, state: Mapping[str, Any]) -> None:
        """Put the engine, and the order of the cases, where the checkpoint was."""
        epoch, iteration, length = int(state["epoch"]), int(state["iteration"]), engine.state.epoch_length
        done = iteration % state["epoch_length"] if state["epoch_length"] else 0
        if done == 0:
            engine.state.epoch = epoch
            engine.state.iteration = epoch * (length or 0)
            return
        loader: Any = engine.state.dataloader
        sampler: Any = getattr(loader, "sampler", None)
        same = (length, getattr(loader, "batch_size", None), world_size()) == (
            state["epoch_length"], state["batch_size"], state["processes"])  # fmt: skip
        engine.state.epoch = epoch - 1  # the engine counts up when the epoch starts
        if same and hasattr(sampler, "skip"):
            sampler.skip = done * int(loader.batch_size)
            engine.state.iteration = iteration
        else:
            logger.warning("the data, batch size or processes have changed: epoch %d starts from its beginning", epoch)
            engine.state.iteration = (epoch - 1) * (length or 0)

    def _compare(self, state: Mapping[str, Any], path: Path) -> None:
        """Say what is not as it was; going on with it is the user's right (a longer schedule, other data).

        What the checkpoint has seen stays in the record, whatever the data are now.
        """
        if self.record is None:
            return
        other = self.record.goes_on_from(state.get("record"), path.name)
        if "record" not in state:
            logger.warning("%s does not say which cases it has seen: the cards of this training say so", path)
            return
        then, now = state["record"], self.record.facts()
        if other:
            some = ", ".join(other[:3]) + ("…" if other[3:] else "")
            logger.warning("%d of %d images are not among those that the checkpoint was trained on, by their voxels "
                           "(%s): new, or replaced under the same name; the cards name the earlier ones too",
                           len(other), len(self.record.dataset.data), some)  # fmt: skip
        changed = changed_keys(then.get("config") or {}, now.get("config") or {})
        if changed and then.get("config") and now.get("config"):
            logger.warning("the configuration is not the checkpoint's; changed: %s", ", ".join(changed))
        if then.get("datalist_sha256") != now.get("datalist_sha256"):
            logger.warning("the datalist is not the checkpoint's")
        versions = {n: v for n, v in then.get("versions", {}).items() if now["versions"].get(n) != v}
        if versions:
            logger.warning("other versions than the checkpoint's, results may differ; then: %s", versions)

    # ---- signals

    def _listen(self, engine: Engine) -> None:
        self.signal = None
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # one request often arrives twice (to the process and to its group); a second one later means: at once
            if time.monotonic() - self.heard > SECONDS_UNTIL_ASKED_AGAIN:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.signal, self.heard = number, time.monotonic()
        logger.warning("%s: the step is finished and a checkpoint saved first", signal.Signals(number).name)

    def _told(self, engine: Engine) -> bool:
        """Whether any process was told to stop: all stop at the same step."""
        device = torch.device(getattr(engine.state, "device", "cpu"))
        return not all_true(self.signal is None, device)

    def _exit(self, engine: Engine) -> None:
        number = self.signal or signal.SIGTERM
        self._stop_listening(engine)
        self.held.close()
        logger.warning("stopped at epoch %d, iteration %d; --resume True goes on from there",
                       engine.state.epoch, engine.state.iteration)  # fmt: skip
        raise SystemExit(128 + number)

    def _stop_listening(self, engine: Engine) -> None:
        for number, before in self.previous.items():
            signal.signal(number, before)
        self.previous = {}

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        self._stop_listening(engine)
        self.held.close()
        raise error


def _same_everywhere(position: tuple[int, int], path: Path) -> None:
    """Raise if processes have found different checkpoints: they would train apart."""
    everyone = gather(position)
    if len(set(everyone)) > 1:
        raise InputError(
            f"{path}: the processes find checkpoints of different age (epoch, iteration: {everyone}); put run_dir on a "
            "disk that all of them share"
        )


def _restore(obj: Any, state: Mapping[str, Any], name: str) -> None:
    """Load a network's, an optimizer's or another object's state; an optimizer keeps the rates of its config."""
    planned = [dict(group) for group in obj.param_groups] if isinstance(obj, torch.optim.Optimizer) else []
    try:
        obj.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{name}: its state does not fit ({str(error).splitlines()[0]}); it belongs to another network. To take "
            "over what fits, start afresh with init_weights"
        ) from error
    for group, plan in zip(obj.param_groups if planned else (), planned, strict=True):
        rate = "initial_lr" if "initial_lr" in plan and "initial_lr" in group else "lr"
        if group[rate] != plan[rate] and group[rate] > 0:
            scale = plan[rate] / group[rate]
            group |= {key: group[key] * scale for key in ("lr", "initial_lr", "max_lr", "min_lr") if key in group}
        if "weight_decay" in plan:
            group["weight_decay"] = plan["weight_decay"]


def _restore_schedule(schedule: Any, state: Mapping[str, Any], checkpoint: Mapping[str, Any], engine: Engine) -> None:
    """Load a schedule's state, or bring it to where it would be with the length, data and rates of now.

    Loading the old state would bring the old length back, and the rate would rise after its end; and a schedule that
    steps per iteration stands elsewhere once an epoch has more or fewer of them.
    """
    last, iteration = int(state["last_epoch"]), int(checkpoint["iteration"])
    per_iteration = last == iteration and (checkpoint["epoch_length"] or 1) > 1
    target = engine.state.iteration if per_iteration else last
    other = any(key in state and getattr(schedule, key, None) != state[key] for key in ("T_max", "total_steps"))
    rates = [group.get("initial_lr", group["lr"]) for group in schedule.optimizer.param_groups]
    if other or target != last:
        _replay(schedule, target)
    else:
        schedule.load_state_dict(state)
    if "base_lrs" in state and state["base_lrs"] != rates:
        schedule.base_lrs = rates


def _replay(schedule: Any, steps: int) -> None:
    for group in schedule.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped in between
        for _ in range(min(steps, getattr(schedule, "total_steps", steps))):
            schedule.step()
