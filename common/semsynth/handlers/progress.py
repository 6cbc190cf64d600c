"""One progress bar over a whole run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from ..distributed import rank, world_size


class ProgressHandler:
    """A progress bar with time left over all epochs of an engine, and the running means of its losses.

    Shown by the first process only. Where the output is a file and not a terminal, a line every half minute.

    Args:
        title: in front of the bar.
        output_transform: engine output → name → number (for example :class:`semsynth.training.engines.base.LossTerms`),
            or None.

    Examples:
        >>> trainer = Engine(lambda engine, batch: {"loss": 0.5})
        >>> ProgressHandler("training", lambda output: output).attach(trainer)
        >>> _ = trainer.run([0, 1], max_epochs=2)  # with a bar on the terminal
    """

    def __init__(
        self, title: str = "training", output_transform: Callable[[Any], dict[str, float]] | None = None
    ) -> None:
        self.title, self.output_transform = title, output_transform
        self.means: dict[str, float] = {}
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        if rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.EXCEPTION_RAISED, self._close)

    def _start(self, engine: Engine) -> None:
        length = engine.state.epoch_length
        total = length * (engine.state.max_epochs or 1) if length else None
        interval = 0.1 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(total=total, initial=engine.state.iteration, desc=self.title, mininterval=interval, unit="it")

    def _advance(self, engine: Engine) -> None:
        assert self.bar is not None
        if self.output_transform is not None:
            for name, value in self.output_transform(engine.state.output).items():
                if math.isfinite(value):  # a skipped step must not spoil the mean for good
                    self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value
            shown = {name: f"{value:.3g}" for name, value in self.means.items()}
            if getattr(engine, "skipped", 0):
                shown["skipped"] = str(engine.skipped)  # type: ignore[attr-defined]
            self.bar.set_postfix({"epoch": engine.state.epoch, **shown}, refresh=False)
        self.bar.update(1)

    def _close(self, engine: Engine, error: BaseException | None = None) -> None:
        if self.bar is not None:
            self.bar.close()
        if error is not None:
            raise error


class SynthesisProgress:
    """A progress bar over the volumes of a synthesis, with time left, which moves with every step of a sampler.

    Shown by the first process only, of its own share: all have about as many to do. Where the output is a file and not
    a terminal, a line every half minute.

    Args:
        batches: batches that are to be made, see :class:`semsynth.synthesis.jobs.MapBatches`.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        if rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.EXCEPTION_RAISED, self._close)

    def _start(self, engine: Engine) -> None:
        processes = world_size()
        title = "synthesis" if processes == 1 else f"synthesis, process 1 of {processes}"
        self.bar = tqdm(
            total=self.batches.volumes,
            initial=self.batches.volumes - self.batches.remaining,
            desc=title,
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
            unit="volume",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )

    def _begin(self, engine: Engine) -> None:
        assert self.bar is not None
        self.done = round(self.bar.n)
        self.size, self.share = len(engine.state.batch["case"]), 0.0  # type: ignore[call-overload, index]

    def step(self, share: float) -> None:
        """A share of the work on the batch under way is done; networks of several steps tell it (``on_step``)."""
        if self.bar is None:
            return
        self.share = min(self.share + share, 1.0)
        self._show(self.done + self.share * self.size)

    def _advance(self, engine: Engine) -> None:
        self._show(self.done + self.size)

    def _show(self, volumes: float) -> None:
        assert self.bar is not None
        self.bar.update(volumes - self.bar.n)
        self.bar.n = volumes  # the sum of the parts may be off in its last digit, and so above the total

    def _close(self, engine: Engine, error: BaseException | None = None) -> None:
        if self.bar is not None:
            self.bar.close()
        if error is not None:
            raise error
