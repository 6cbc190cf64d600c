"""A folder that one run at a time writes into."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ignite.engine import Engine

from ..locks import locked


class HeldFolder:
    """Base of handlers whose folder is theirs from the first look at what is in it until they let it go.

    Attributes:
        output_dir: the folder.
        wait: wait until another run that writes there has ended; without it such a run is an error.
    """

    output_dir: Path
    wait: bool
    _held: ExitStack | None = None

    def hold(self) -> None:
        """Take the folder for this run."""
        if self._held is None:
            held = ExitStack()
            held.enter_context(locked(self.output_dir, "an inference", wait=self.wait, shared=True))
            self._held = held

    def let_go(self) -> None:
        """Leave the folder to others."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _give_up(self, engine: Engine, error: BaseException) -> None:
        self.let_go()
        raise error
