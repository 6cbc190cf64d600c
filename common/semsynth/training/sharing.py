"""Which validation cases each process of a training has."""

from __future__ import annotations

import logging
from typing import Any

from monai.data import DistributedSampler

from ..distributed import rank, world_size

logger = logging.getLogger(__name__)


class ValidationShare(DistributedSampler):
    """MONAI's ``DistributedSampler`` for validation: each case once, in order, over all processes.

    Where there are fewer cases than processes every process has all of them: each case then counts as often as every
    other one, so that means are the same, and no process is left without one.

    Args:
        dataset: dataset of the validation.
    """

    def __init__(self, dataset: Any) -> None:
        processes, number = world_size(), rank()
        if len(dataset) < processes:
            if number == 0:
                logger.info("%d validation cases for %d processes: each has them all", len(dataset), processes)
            processes, number = 1, 0
        super().__init__(dataset, even_divisible=False, num_replicas=processes, rank=number, shuffle=False)
