"""One progress bar over a whole run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from ..distributed import rank


class ProgressHandler:
    """A progress bar with time left over all epochs of an engine, and the running means of its losses.

    Shown by the first process only. Where the output is a file and not a terminal, a line every half minute.

    Args:
        title: in front of the bar.
        output_transform: engine output → name → number (for example :class:`semsynth.engines.LossTerms`), or None.
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
