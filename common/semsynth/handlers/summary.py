"""Metrics over cases: what MONAI's MetricsSaver does not summarise as the rest of this package does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import MetricsSaver
from numpy.typing import NDArray

from ..distributed import rank
from ..errors import InputError
from ..ownership import Outputs, Recogniser, text_like, text_with
from ..paths import as_path

_SUMMARY = "class,n,mean,sd,median,min,max"


def _files(folder: Path, names: Mapping[str, Recogniser]) -> Outputs:
    return Outputs(folder, "semsynth's metrics", names, instead="evaluation_dir")


class SaveMetrics(MetricsSaver):
    """MONAI's ``MetricsSaver`` for a folder that somebody typed; each file whole or not at all.

    Args:
        save_dir: folder, made if it is not there.
        kwargs: all else that ``monai.handlers.MetricsSaver`` takes.

    Raises:
        InputError: for a path that is no text; (when it is attached) for files in the folder that are not ours.
    """

    def __init__(self, save_dir: str | Path, **kwargs: Any) -> None:
        super().__init__(str(as_path(save_dir, "evaluation_dir")), **kwargs)
        # as MONAI writes them: a line per metric, and per case its file, a value for each class and their mean
        details, raw = self.metric_details or (), text_like(r"filename,(class\d+,)+mean\n")
        means = {"metrics.csv": text_like(r"(\w+,(nan|-?inf|[-+.e\d]+)\n)+\Z")}
        self.files = _files(Path(self.save_dir), means | {f"{metric}_raw.csv": raw for metric in details})

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, after its metrics."""
        self.files.check()
        super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        """Write the files, in the first process."""
        with TemporaryDirectory() as made:
            self.save_dir = made
            super().__call__(engine)
            for path in sorted(Path(made).iterdir()):
                self.files.write_text(path.name, path.read_text(encoding="utf-8"))


class MetricsSummary:
    """Attached to an evaluator: writes ``<metric>_summary.csv``: mean, sample standard deviation, median and range.

    MONAI's ``MetricsSaver`` (``summary_ops``) divides by n for its "std"; ``sd`` here is the sample standard deviation,
    by n - 1, as in the tables of ``semsynth evaluate``. Rows are the classes and their mean; ``n`` counts the cases
    with a finite value, which all else is of.

    Args:
        save_dir: folder, made if it is not there.
        metrics: metrics of the evaluator, with details per case.

    Raises:
        InputError: (when it is attached) for files in the folder that are not ours.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> evaluator = Engine(lambda engine, batch: None)
        >>> with TemporaryDirectory() as folder:
        ...     MetricsSummary(folder, ["dice"]).attach(evaluator)
        ...     evaluator.state.metric_details = {"dice": torch.tensor([[0.9], [0.7], [0.8]])}  # a row per case
        ...     _ = evaluator.run([0])
        ...     Path(folder, "dice_summary.csv").read_text().splitlines()[1]
        'class0,3,0.8000,0.1000,0.8000,0.7000,0.9000'
    """

    def __init__(self, save_dir: str | Path, metrics: Sequence[str]) -> None:
        self.save_dir, self.metrics = as_path(save_dir, "evaluation_dir"), tuple(metrics)
        known = {f"{metric}_summary.csv": text_with(_SUMMARY + "\n") for metric in self.metrics}
        self.files = _files(self.save_dir, known)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, after its metrics."""
        self.files.check()
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
            lines = [_SUMMARY]
            lines += [_line(f"class{i}", column) for i, column in enumerate(values.T)]
            has = np.isfinite(values)
            means = np.where(has, values, 0).sum(axis=1) / np.where(has.any(axis=1), has.sum(axis=1), np.nan)
            self.files.write_text(f"{metric}_summary.csv", "\n".join([*lines, _line("mean", means)]) + "\n")


def _line(name: str, column: NDArray[np.float64]) -> str:
    values = column[np.isfinite(column)]
    if not len(values):
        return f"{name},0,,,,,"
    sd = f"{values.std(ddof=1):.4f}" if len(values) > 1 else ""
    rest = (np.median(values), values.min(), values.max())
    return f"{name},{len(values)},{values.mean():.4f},{sd}," + ",".join(f"{value:.4f}" for value in rest)
