"""Memory of an inference: what it will take, and what it took."""

from __future__ import annotations

import logging
from math import prod
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..data.geometry import TrainedGrid
from ..data.headers import read_header
from ..memory import GIB
from ..synthesis.memory import PeakMemory, free, resident, synthesis_memory

logger = logging.getLogger(__name__)


class MemoryReport:
    """Attached to an inference engine: peak memory as an estimate before the first volume, as measured after the last.

    The estimate is for the largest label map, from its header. Where it is more than what is free, a warning says which
    settings need less.

    Args:
        network: a :class:`~semsynth.networks.latent_diffusion.LatentDiffusion`; of others the measurement only.
        batches: batches that are to be made, see :class:`semsynth.synthesis.jobs.MapBatches`.
        device: the network's.
        grid: grid that maps may be resampled to; None: they are taken as they are.
    """

    def __init__(
        self, network: Any, batches: Any, device: torch.device | str = "cpu", grid: TrainedGrid | None = None
    ) -> None:
        self.network, self.batches, self.device, self.grid = network, batches, torch.device(device), grid
        self.measured = PeakMemory(self.device)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, after its weights are loaded."""
        engine.add_event_handler(Events.STARTED, self._estimate)
        engine.add_event_handler(Events.COMPLETED, self._measured)

    def _estimate(self, engine: Engine) -> None:
        if hasattr(self.network, "sampling") and self.batches.remaining:
            size, samples = self._largest()
            needed = synthesis_memory(self.network, size, samples)
            total, left = resident(self.device) + needed, free(self.device)
            logger.info(
                "peak memory on %s, estimated for the largest label map (%s voxels, %d at once): %.2f GiB, %.2f of it "
                "tensors", self.device, " × ".join(map(str, size)), samples, total / GIB, needed / GIB,
            )  # fmt: skip
            if left is not None and needed > left:
                logger.warning(
                    "%.2f GiB are free: it may run out of memory; less is needed with --batch_size 1, --amp True%s%s "
                    "or --guidance 1", left / GIB,
                    ", --window 16 (slices at once)" if self.network.denoiser.windowed else "",
                    "" if self.network.autoencoder.reach() is None else ", --tile '[192,192,0]' (decodes in parts)",
                )  # fmt: skip
        self.measured.start()

    def _largest(self) -> tuple[tuple[int, ...], int]:
        """Size of the largest map, and the samples of a map in a batch."""
        named = [[str(self.batches.entries[i]["image"]) for i in batch] for batch in self.batches]
        headers = [read_header(path) for path in {names[0] for names in named}]
        sizes = [header.shape if self.grid is None else self.grid.size(header) for header in headers]
        return max(sizes, key=prod), max(map(len, named))

    def _measured(self, engine: Engine) -> None:
        peak = self.measured.peak()
        if peak is not None:
            logger.info("peak memory on %s, measured: %.2f GiB", self.device, peak / GIB)
