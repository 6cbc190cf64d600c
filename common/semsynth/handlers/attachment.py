"""Handlers that belong to the first process alone, and one that stands in a list for another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ignite.engine import Engine
from monai.handlers import StatsHandler, TensorBoardStatsHandler
from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
from torch.utils.tensorboard import SummaryWriter

from ..distributed import rank
from ..errors import is_plain
from ..paths import as_path

logger = logging.getLogger(__name__)


class Stats(StatsHandler):
    """MONAI's ``StatsHandler``, attached by the first process only.

    Args:
        kwargs: as ``monai.handlers.StatsHandler``.
    """

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, in the first process."""
        if rank() == 0:
            super().attach(engine)

    def exception_raised(self, _engine: Engine, e: Exception) -> None:
        """Raise ``e`` again; logged with its traceback only where it does not end the run with one line of its own."""
        if is_plain(e):
            raise e
        super().exception_raised(_engine, e)


class _EventFiles:
    """TensorBoard's writer, made when the first number comes: a training that is refused leaves no file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def __getattr__(self, name: str) -> Any:
        if self.writer is None:
            with _nameless_host():
                self.writer = SummaryWriter(log_dir=str(self.folder))
        return getattr(self.writer, name)


@contextmanager
def _nameless_host() -> Iterator[None]:
    """TensorBoard writes the name of the machine, often a person's, into that of its file, and takes no other name."""
    socket = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")
    try:
        yield
    finally:
        event_file_writer.socket = socket


class TensorBoardStats(TensorBoardStatsHandler):
    """MONAI's ``TensorBoardStatsHandler``, attached by the first process only: each would write files.

    Numbers that cannot be written (a full disk) are a warning: they never end a training.

    Args:
        log_dir: folder of the files.
        kwargs: all else that ``monai.handlers.TensorBoardStatsHandler`` takes.
    """

    def __init__(self, log_dir: str | Path = "./runs", **kwargs: Any) -> None:
        self.files = _EventFiles(as_path(log_dir, "run_dir"))
        self.failed = False
        super().__init__(summary_writer=self.files, **kwargs)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, in the first process."""
        if rank() == 0:
            super().attach(engine)

    def epoch_completed(self, engine: Engine) -> None:
        """Write the numbers of an epoch."""
        self._write(super().epoch_completed, engine)

    def iteration_completed(self, engine: Engine) -> None:
        """Write the numbers of a step."""
        self._write(super().iteration_completed, engine)

    def _write(self, write: Callable[[Engine], None], engine: Engine) -> None:
        if self.failed:
            return
        try:
            write(engine)
        except OSError as error:
            self.failed = True
            logger.warning("%s: no more numbers are written for TensorBoard (%s); the training goes on",
                           self.files.folder, error.strerror or error)  # fmt: skip

    def close(self) -> None:
        """Close the files, where they were opened."""
        if self.files.writer is not None and not self.failed:
            self.files.writer.close()


class Attach:
    """Stands in a trainer's list of handlers for one that others refer to as well, and so stands at top level.

    (``"@average"`` itself in that list would do for training, but MONAI's check of a bundle's properties expects every
    entry of ``train#handlers`` to be a component.)

    Args:
        handler: handler to attach.

    Examples:
        >>> from semsynth.handlers import ProgressHandler
        >>> bar = ProgressHandler("training")  # to which other parts of a config refer
        >>> Attach(bar).attach(Engine(lambda engine, batch: None))
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        """Attach the handler to ``engine``."""
        self.handler.attach(engine)
