"""What training maps say of the maps that may be drawn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from ..distributed import rank
from ..labels import plain
from ..training.loading import check_spacing

logger = logging.getLogger(__name__)


class LearnLimits:
    """Attached to a trainer: measures the training maps, as they are before augmentation, for the network's limits.

    Args:
        dataset: dataset of the training, with maps under ``label``.
        network: with ``limits`` (:class:`semsynth.networks.figure_limits.FigureLimits`) and ``spacing``.
        more: further ones that are told the same, such as its moving average.
        widen: as in :meth:`semsynth.anatomy.MapFigures.limits`; None: that of the rules.
    """

    def __init__(self, dataset: Any, network: Any, more: Sequence[Any] = (), *, widen: float | None = None) -> None:
        self.dataset, self.widen = dataset, widen
        self.networks = [getattr(n, "module", n) for n in (network, *more)]

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.STARTED, self._learn)

    def _learn(self, engine: Engine) -> None:
        network = self.networks[0]
        figures: Any = network.limits.figures
        if figures is None:
            return
        rows, sizes = [], []
        for number in tqdm(range(len(self.dataset)), "measuring maps", unit="map", disable=rank() != 0):
            item = self.dataset.before_augmentation(number)
            check_spacing(item, network.spacing)
            label = plain(torch.as_tensor(item["label"]))[0]
            sizes.append(tuple(label.shape))
            rows.append(figures(label.numpy().astype(np.uint8), network.spacing))
        ranges = figures.limits(rows, self.widen)
        for each in self.networks:
            each.limits.set(ranges)
            each.limits.set_fields(sizes)
        said = ", ".join(f"{n} {a:.3g} to {b:.3g}" for n, (a, b) in zip(figures.names, ranges, strict=True))
        logger.info("limits of drawn maps: %s", said)
