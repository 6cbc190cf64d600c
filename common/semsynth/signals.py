"""SIGTERM as an error, so that what is half-written goes before the process ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The process was told to end, as batch systems do. Status 143."""


def end_on_sigterm() -> None:
    """From here on the first SIGTERM raises :class:`Terminated` in the main thread; another one ends it at once.

    A handler that somebody else has set stays.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(TERMINATED)
