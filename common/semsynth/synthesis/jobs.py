"""Many volumes as one job: batches of samples of one map, shared among processes, going on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch
from torch.utils.data import Sampler

from ..data.geometry import TrainedGrid
from ..distributed import rank, world_size
from ..errors import InputError
from ..memory import memory_advice
from ..precision import reduced_type

logger = logging.getLogger(__name__)


class MapBatches(Sampler[list[int]]):
    """Batches of indices, each of samples of one label map, for ``DataLoader(batch_sampler=…)``.

    Under torchrun (or with ``RANK`` and ``WORLD_SIZE`` set by another launcher) each process has its share, every
    WORLD_SIZE-th batch. The shares follow from the entries alone, whatever is finished and whenever a process starts:
    no volume is in two of them, and none in no one's.

    Args:
        entries: entries of :func:`semsynth.data.entries.load_label_maps`.
        batch_size: at most as many samples in a batch.
        finished: function: entry → True where its volume is there already, and is to be left out; None: none is.

    Raises:
        InputError: for a batch size below 1.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        batch_size: int = 1,
        finished: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}")
        self.entries = entries
        batches: list[list[int]] = []
        for _, group in groupby(range(len(entries)), key=lambda i: (entries[i]["image"], entries[i].get("style_from"))):
            own = list(group)
            batches += [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
        share = batches[rank() :: world_size()]
        self.volumes = sum(map(len, share))
        left = [[i for i in batch if finished is None or not finished(entries[i])] for batch in share]
        self.batches = [batch for batch in left if batch]

    @property
    def remaining(self) -> int:
        """Number of this process's ``volumes`` that are to be made."""
        return sum(map(len, self.batches))

    def __iter__(self) -> Iterator[list[int]]:
        """The batches that are to be made, in the order of the entries."""
        return iter(self.batches)

    def __len__(self) -> int:
        """How many they are."""
        return len(self.batches)


def settings(
    network: Any, *, device: torch.device | str = "cpu", grid: TrainedGrid | None = None, **more: Any
) -> dict[str, Any]:
    """What else than map, weights, seed and style image a volume depends on, for its record.

    Args:
        network: network whose ``sampling`` (but for what changes speed and memory alone) and ``style_scale`` count.
        device: place of the computation: ``amp`` is recorded as it is in effect there.
        grid: grid that maps are resampled to, if they are.
        more: further settings of the config.
    """
    found: dict[str, Any] = {}
    if hasattr(network, "sampling"):
        sampling = asdict(network.sampling)
        alone = sampling["window"] is None or getattr(getattr(network, "denoiser", None), "slices_apart", False)
        unsaid = ["batch_size", "tile", "compile", *(("window", "overlap") if alone else ())]
        sampling["amp"] = sampling["amp"] and reduced_type(torch.device(device).type) is not None
        found |= {name: value for name, value in sampling.items() if name not in unsaid}
    if hasattr(network, "style_scale"):
        found["style_scale"] = network.style_scale
    return found | ({} if grid is None else grid.settings()) | more


def run(evaluator: Any, writer: Any, batches: MapBatches, *, alone: bool = False) -> None:
    """Make the volumes that are not there yet, and list them all.

    The processes do not wait for each other: that which finds all volumes finished writes the list.

    Args:
        evaluator: an inference engine with ``writer`` among its handlers.
        writer: :class:`semsynth.handlers.SyntheticWriter`.
        batches: batches of the evaluator's data loader.
        alone: True where later work needs all volumes: refuse to be one of several processes.

    Raises:
        InputError: for several processes where ``alone``; out of memory, with what to do.
    """
    if alone and world_size() > 1:
        raise InputError(
            "what evaluates the volumes needs all of them: run inference.json with torchrun, and then this without it, "
            "which finds them"
        )
    done = batches.volumes - batches.remaining
    if done:
        logger.info(
            "%d of %d volumes are there already, made with the same weights and settings", done, batches.volumes
        )
    if batches.remaining:
        with memory_advice("a synthesis", "give smaller label maps, --batch_size 1 or fewer --num_workers"):
            evaluator.run()
    else:
        writer.prepare()
        writer.finish()
