"""Several volumes of one label map, each with a seed of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events

from ..errors import InputError


class SampleSeeds:
    """Attached to an inference engine: sample i of a label map is drawn with seed + i.

    Which sample it is stands in the batch under ``sample`` (see :func:`semsynth.datalists.load_label_maps`); without it
    the seed stays as it is. A volume thus depends on its map and its number alone, not on what else is drawn.

    Args:
        objects: what has the seed as an attribute ``noise_seed``, a network or an inferer; others are passed over.
        seed: of sample 0.
        per_case: mixed with the case's name, for networks whose seed is also their style: with the same seed for all
            cases a whole data set would look as if it came from one scan.
    """

    def __init__(self, objects: Sequence[Any], *, seed: int = 0, per_case: bool = False) -> None:
        self.objects, self.seed = [thing for thing in objects if hasattr(thing, "noise_seed")], seed
        self.per_case = per_case

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, whose batches hold one map each."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        samples = {int(sample) for sample in batch.get("sample", [0])}
        if len(samples) > 1:
            raise InputError("several samples in one batch would share a seed: set the dataloader's batch_size to 1")
        for thing in self.objects:
            thing.noise_seed = self.seed + max(samples) + self._of_case(batch)

    def _of_case(self, batch: Any) -> int:
        """A multiple of 2^20 that follows from the case's name, so that seeds of samples do not meet."""
        if not self.per_case:
            return 0
        (case,) = batch.get("source_case", batch["case"])
        return zlib.crc32(str(case).encode()) << 20
