"""Metrics over cases: what MONAI's MetricsSaver does not summarise as the rest of this package does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import MetricsSaver
from numpy.typing import NDArray

from ..distributed import rank
from ..errors import InputError
from ..files import write_text
from ..paths import as_path


class SaveMetrics(MetricsSaver):
    """MONAI's ``MetricsSaver`` for a folder that somebody typed.

    Args:
        save_dir: folder, made if it is not there.
        kwargs: all else that ``monai.handlers.MetricsSaver`` takes.

    Raises:
        InputError: for a path that is no text.
    """

    def __init__(self, save_dir: str | Path, **kwargs: Any) -> None:
        super().__init__(str(as_path(save_dir, "evaluation_dir")), **kwargs)

    def __call__(self, engine: Engine) -> None:
        """Write the files.

        Raises:
            OSError: naming the folder, also where the system's own error (a full disk) names no file.
        """
        try:
            super().__call__(engine)
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise type(error)(error.errno, error.strerror, str(self.save_dir)) from error


class MetricsSummary:
    """Attached to an evaluator: writes ``<metric>_summary.csv``: mean, sample standard deviation, median and range.

    MONAI's ``MetricsSaver`` (``summary_ops``) divides by n for its "std"; ``sd`` here is the sample standard deviation,
    by n - 1, as in the tables of ``semsynth evaluate``. Rows are the classes and their mean; ``n`` counts the cases
    with a finite value, which all else is of.

    Args:
        save_dir: folder, made if it is not there.
        metrics: of the evaluator, with details per case.
    """

    def __init__(self, save_dir: str | Path, metrics: Sequence[str]) -> None:
        self.save_dir, self.metrics = as_path(save_dir, "evaluation_dir"), tuple(metrics)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, after its metrics."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files, in the first process.

        Raises:
            InputError: for a metric without details.
        """
        if rank() != 0:
            return
        details = getattr(engine.state, "metric_details", {})
        for metric in self.metrics:
            if metric not in details:
                raise InputError(f"no details of a metric {metric!r}; there are {', '.join(details) or 'none'}")
            values = torch.as_tensor(details[metric]).double().cpu().numpy()
            values = values.reshape(len(values), -1)
            lines = ["class,n,mean,sd,median,min,max"]
            lines += [_line(f"class{i}", column) for i, column in enumerate(values.T)]
            has = np.isfinite(values)
            means = np.where(has, values, 0).sum(axis=1) / np.where(has.any(axis=1), has.sum(axis=1), np.nan)
            write_text(self.save_dir / f"{metric}_summary.csv", "\n".join([*lines, _line("mean", means)]) + "\n")


def _line(name: str, column: NDArray[np.float64]) -> str:
    values = column[np.isfinite(column)]
    if not len(values):
        return f"{name},0,,,,,"
    sd = f"{values.std(ddof=1):.4f}" if len(values) > 1 else ""
    rest = (np.median(values), values.min(), values.max())
    return f"{name},{len(values)},{values.mean():.4f},{sd}," + ",".join(f"{value:.4f}" for value in rest)
