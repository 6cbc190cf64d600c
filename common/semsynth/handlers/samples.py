"""Several volumes of one label map, each with a seed of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events

from ..errors import InputError


class SampleSeeds:
    """Attached to an inference engine: sample i of a label map is drawn with seed + i.

    Which sample it is stands in the batch under ``sample`` (see :func:`semsynth.data.entries.load_label_maps`); without
    it the seed stays as it is. A volume thus depends on its map and its number alone, not on what else is drawn.

    Args:
        objects: what has the seed as an attribute ``noise_seed``, a network or an inferer, or, for batches of several
            samples, the seeds as ``noise_seeds``; others are passed over.
        seed: of sample 0.
        per_case: mixed with the case's name, for networks whose seed is also their style: with the same seed for all
            cases a whole data set would look as if it came from one scan.
    """

    def __init__(self, objects: Sequence[Any], *, seed: int = 0, per_case: bool = False) -> None:
        self.objects, self.seed = [thing for thing in objects if hasattr(thing, "noise_seed")], seed
        self.per_case = per_case

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, whose batches hold one map each, or several samples of it."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._forget)

    def _forget(self, engine: Engine) -> None:
        for thing in self.objects:
            if hasattr(thing, "noise_seeds"):
                thing.noise_seeds = None  # a batch of another size may follow

    def _set(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        cases = batch.get("source_case", batch["case"])
        seeds = [
            self.seed + int(sample) + self._of_case(str(case))
            for sample, case in zip(batch.get("sample", [0] * len(cases)), cases, strict=True)
        ]
        for thing in self.objects:
            if hasattr(thing, "noise_seeds"):
                thing.noise_seeds = seeds
            elif len(set(seeds)) > 1:
                raise InputError("several samples in one batch would share a seed: set batch_size to 1")
            thing.noise_seed = seeds[0]

    def _of_case(self, case: str) -> int:
        """A multiple of 2^20 that follows from the case's name, so that seeds of samples do not meet."""
        return zlib.crc32(case.encode()) << 20 if self.per_case else 0
