"""A picture of the best, the median and the worst case of a segmentation."""

from __future__ import annotations

import logging
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from numpy.typing import NDArray

from ..data.intensity import Scaling
from ..data.volumes import Volume, read_volume
from ..distributed import rank
from ..paths import as_path
from ..report.pictures import Panel, Row, centre_of, save_planes

logger = logging.getLogger(__name__)
EXPERT, NETWORK = "#33ff4d", "#ff7a1a"


class RankedSegmentations:
    """Attached to an evaluator: draws the best, median and worst case by a metric, in three planes.

    Outlines on the scan's own grid: the expert's in green, the network's in orange and drawn last. In several processes
    the first one's cases are drawn.

    Args:
        path: the PNG.
        metric: a metric of the evaluator with details per case; larger is better.
    """

    def __init__(self, path: str | Path, *, metric: str = "dice") -> None:
        self.path, self.metric = as_path(path, "evaluation_dir"), metric
        self.cases: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``; its decollated output has one-hot ``pred`` and ``label`` ``(C, H, W, D)``."""
        if rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.cases.clear())
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
            engine.add_event_handler(Events.COMPLETED, self._draw)

    def _collect(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        for source, item in zip(batch, output, strict=True):
            label, pred = (item[key].argmax(0).to(torch.uint8).cpu().numpy() for key in (Keys.LABEL, Keys.PRED))
            self.cases.append({
                "case": source["case"],
                "image": str(item[Keys.IMAGE].meta["filename_or_obj"]),
                "affine": np.asarray(item[Keys.LABEL].affine.cpu().numpy(), dtype=np.float64),
                "shape": label.shape,
                "label": zlib.compress(label.tobytes(), 1),  # masks shrink a hundredfold: any number of cases fits
                "pred": zlib.compress(pred.tobytes(), 1),
            })  # fmt: skip

    def _draw(self, engine: Engine) -> None:
        details = engine.state.metric_details[self.metric].float().nanmean(dim=1).tolist()  # type: ignore[attr-defined]
        # a case without the structure has no value: it comes last
        order = sorted(range(len(self.cases)), key=lambda i: -details[i] if math.isfinite(details[i]) else math.inf)
        chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1]])
        names = ("best", "median", "worst") if len(chosen) == 3 else ("",) * len(chosen)
        rows = [
            self._row(self.cases[i], f"{name} ({self.metric} {details[i]:.3f})")
            for i, name in zip(chosen, names, strict=True)
        ]
        logger.info("picture: %s", save_planes(self.path, rows))

    def _row(self, case: dict[str, Any], title: str) -> Row:
        masks = {key: self._mask(case, key) for key in ("label", "pred")}
        image = read_volume(case["image"])
        label, pred = masks["label"], masks["pred"]
        scan: NDArray[Any] = Scaling()(image.canonical().data)
        if scan.shape != label.data.shape:  # cropped to its content: the outlines alone
            scan = np.zeros(label.data.shape, dtype=np.float32)
        outlines = [(label.data, EXPERT), (pred.data, NETWORK)]
        panels = [Panel("scan", scan), Panel("expert green, network orange", scan, outlines=outlines)]
        return Row(f"{title} {case['case']}", panels, label.spacing, centre_of(label.data))

    @staticmethod
    def _mask(case: dict[str, Any], key: str) -> Volume:
        array = np.frombuffer(zlib.decompress(case[key]), dtype=np.uint8).reshape(case["shape"])
        return Volume(array, case["affine"]).canonical()
