"""Faithfulness while a generator is evaluated: does a segmentation network find what the label map says?"""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.metrics import DiceMetric
from monai.utils.enums import CommonKeys as Keys

from ..labels import ENDO
from ..networks.frozen import FrozenSegmenter


class JudgeDice:
    """Attached to a generator's evaluator: Dice between a judge's segmentation of the synthetic volume and its map.

    The judge must not have been in the generator's loss (Med-LSDM, section 4.2, compares such a Dice on synthetic and
    on real volumes). With a real image in the output, the judge's Dice on that is there too: what it reaches at most.
    Adds ``judge_dice`` and ``judge_dice_real`` to the engine's metrics and their details.

    Args:
        segmenter: the judge, or None: then nothing is added.
        target: the class of the label map that the judge's class 1 is held against.
    """

    def __init__(self, segmenter: FrozenSegmenter | None, *, target: int = ENDO) -> None:
        self.segmenter, self.target = segmenter, target
        self.metrics = {key: DiceMetric(include_background=False) for key in (Keys.PRED, Keys.LABEL)}
        self.names = {Keys.PRED: "judge_dice", Keys.LABEL: "judge_dice_real"}

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``; decollated output: ``image`` label map, ``pred`` synthetic, ``label`` real."""
        if self.segmenter is not None:
            engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._compute)

    def _reset(self, engine: Engine) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def _update(self, engine: Engine) -> None:
        assert self.segmenter is not None
        output: Any = engine.state.output
        for item in output:
            truth = (item[Keys.IMAGE] == self.target).as_tensor()
            for key, metric in self.metrics.items():
                if item.get(key) is not None:
                    found = self.segmenter.segment(item[key]).as_tensor() == 1
                    metric(_one_hot(found), _one_hot(truth))

    def _compute(self, engine: Engine) -> None:
        state: Any = engine.state
        for key, metric in self.metrics.items():
            values = metric.get_buffer()  # of all processes
            if values is not None and len(values):
                state.metrics[self.names[key]] = float(values.nanmean())
                state.metric_details[self.names[key]] = values


def _one_hot(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([~mask, mask]).float()[None]
