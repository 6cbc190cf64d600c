"""Handlers that belong to the first process alone, and one that stands in a list for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import StatsHandler, TensorBoardStatsHandler

from ..distributed import rank
from ..paths import as_path


class Stats(StatsHandler):
    """MONAI's ``StatsHandler``, attached by the first process only.

    Args:
        kwargs: as ``monai.handlers.StatsHandler``.
    """

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, in the first process."""
        if rank() == 0:
            super().attach(engine)


class TensorBoardStats(TensorBoardStatsHandler):
    """MONAI's ``TensorBoardStatsHandler``, made and attached by the first process only: each would write files.

    Args:
        log_dir: folder of the files.
        kwargs: all else that ``monai.handlers.TensorBoardStatsHandler`` takes.
    """

    def __init__(self, log_dir: str | Path = "./runs", **kwargs: Any) -> None:
        if rank() == 0:
            super().__init__(log_dir=str(as_path(log_dir, "run_dir")), **kwargs)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, in the first process."""
        if rank() == 0:
            super().attach(engine)

    def close(self) -> None:
        """Close the files, where they were opened."""
        if rank() == 0:
            super().close()


class Attach:
    """Stands in a trainer's list of handlers for one that others refer to as well, and so stands at top level.

    (``"@average"`` itself in that list would do for training, but MONAI's check of a bundle's properties expects every
    entry of ``train#handlers`` to be a component.)

    Args:
        handler: what is attached.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Attach the handler to ``engine``."""
        self.handler.attach(engine)
