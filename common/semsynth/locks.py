"""One run at a time on a folder: who holds it, waiting for it, and what a killed run left in it."""

from __future__ import annotations

import atexit
import inspect
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout

from .distributed import rank, world_size
from .errors import InputError
from .files import real, remove_left_over, write_text
from .json_files import read_object_or_none
from .paths import as_path

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
LOCK = ".semsynth.lock"
"""Name of the lock file, or its beginning. It is removed while it is held; filelock sees that and asks anew."""
SECONDS_UNTIL_WORKERS_END = 15.0
SECONDS_BETWEEN_MESSAGES = 60.0


@contextmanager
def locked(folder: str | Path, work: str, *, wait: bool = False, shared: bool = False) -> Iterator[None]:
    """Hold a folder while the block runs; no other run that asks for it, on this or another host, writes into it.

    The operating system gives a lock back when its process ends, however it ends. Where the file system knows no
    locks, ``filelock`` takes over the lock of a process that has ended on the same host.

    Args:
        folder: folder that the block writes into; made if it is not there.
        work: name of the work, for the message of the other run, for example ``"semsynth prepare"``.
        wait: wait until another run has ended; without it such a run is an error.
        shared: True where the processes of one torchrun write into it together; each then holds its own lock.

    Raises:
        InputError: naming the process, host, work and start of the run that holds it.
        OSError: a folder that cannot be written into.
    """
    folder = as_path(folder, "output")
    mine = _HOLDS.pop(real(folder), None)
    if mine is not None:  # since hold(): from here on it is the block's
        with mine:
            yield
        return
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output must be a folder, {folder} is a file; name another path or remove the file")
    made = _missing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number, processes = (rank(), world_size()) if shared else (0, 1)
    with ExitStack() as held:
        held.callback(_leave_nothing, made)
        _acquire(held, folder, _name(number), work, wait, processes, made)
        if number == 0 and processes > 1 and not any(map(_is_held, folder.glob(f"{LOCK}.*[0-9]"))):
            remove_left_over(folder)
        if processes == 1:
            for other in sorted(folder.glob(f"{LOCK}.*[0-9]")):  # of a torchrun that is still there
                with ExitStack() as probe:
                    _acquire(probe, folder, other.name, work, wait, processes, [])
            remove_left_over(folder)
        elif number:
            _refuse_other_run(folder, processes, work, wait)
        yield


_HOLDS: dict[Path, ExitStack] = {}
"""Folders that this process holds since :func:`hold`."""


def hold(folder: str | Path, work: str, *, wait: bool = False) -> None:
    """Hold a folder from here on, until the :func:`locked` block on it that follows in this process has ended.

    A bundle's training calls this before its data are loaded, which takes long; its end gives the folder back.

    Args:
        folder, work, wait: as in :func:`locked`, of which this is a ``shared`` one.

    Raises:
        InputError, OSError: as :func:`locked`.
    """
    place = real(as_path(folder, "run_dir"))
    if place not in _HOLDS:
        held = ExitStack()
        held.enter_context(locked(folder, work, wait=wait, shared=True))
        _HOLDS[place] = held


@atexit.register
def _let_go_of_all() -> None:
    while _HOLDS:
        _HOLDS.popitem()[1].close()


def _missing(folder: Path) -> list[Path]:
    return [place for place in (folder, *folder.parents) if not place.exists()]


def one_at_a_time(work: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function hold its folder ``output`` while it runs, and wait for it where its argument ``wait`` is set.

    Args:
        work: as in :func:`locked`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            with locked(given["output"], work, wait=bool(given.get("wait", False))):
                return function(*args, **kwargs)

        return run

    return decorate


def _name(number: int) -> str:
    return f"{LOCK}.{number}" if number else LOCK


def _acquire(held: ExitStack, folder: Path, name: str, work: str, wait: bool, processes: int, made: list[Path]) -> None:
    """Take one lock, and say in a file beside who has it."""
    lock, about = FileLock(folder / name), folder / f"{name}.json"
    began = said = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=1.0 if wait else 0.3)  # another one may look for a moment
            break
        except FileNotFoundError:  # the other run made the folder, wrote nothing, and has just removed it
            made[:] = _missing(folder)
            folder.mkdir(parents=True, exist_ok=True)
            time.sleep(0.05)
            continue
        except Timeout:
            holder = _read(about)
        now = time.monotonic()
        if not wait and not (_has_ended(holder) and now - began < SECONDS_UNTIL_WORKERS_END):
            raise _refusal(folder, holder) from None
        if not wait:
            time.sleep(0.5)
        elif said == began or now - said > SECONDS_BETWEEN_MESSAGES:
            said = now
            logger.info("waiting for %s, which is writing into %s", _described(holder), folder)
    held.callback(lock.release)
    held.callback(_remove, folder / name)
    write_text(about, json.dumps(_self(work, processes)))
    held.callback(_remove, about)


def _refuse_other_run(folder: Path, processes: int, work: str, wait: bool) -> None:
    """A process of several: the first one's lock may be held by another run, which is one process alone."""
    while True:
        holder = _read(folder / f"{LOCK}.json")
        if holder.get("processes", processes) == processes or not _is_held(folder / LOCK):
            return
        if not wait:
            raise _refusal(folder, holder)
        time.sleep(1.0)


def _is_held(path: Path) -> bool:
    """Whether a process has a lock now; what says who has it may be that of a killed one."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.0)
    except Timeout:
        return True
    _remove(path)
    lock.release()
    return False


def _refusal(folder: Path, holder: Mapping[str, Any]) -> InputError:
    return InputError(
        f"{folder}: {_described(holder)} is writing into it; wait until it has ended (--wait True), or give another "
        "folder"
    )


def _self(work: str, processes: int) -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "work": work,
        "processes": processes,
    }


def _read(about: Path) -> dict[str, Any]:
    return read_object_or_none(about) or {}  # nothing: it has the lock since this moment, or gives it back


def _described(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another run"
    return (f"{holder.get('work', 'another run')} (process {holder.get('process', '?')} on {holder.get('host', '?')}, "
            f"since {holder.get('since', '?')})")  # fmt: skip


def _has_ended(holder: Mapping[str, Any]) -> bool:
    """Whether a holder on this host is no more: a killed process's loader workers hold its lock some seconds longer."""
    number = holder.get("process")
    if not isinstance(number, int) or holder.get("host") != socket.gethostname() or sys.platform == "win32":
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _remove(about: Path) -> None:
    with suppress(OSError):
        about.unlink(missing_ok=True)


def _leave_nothing(made: Sequence[Path]) -> None:
    """Remove the folders that were made for a run that wrote nothing, such as one whose input was refused."""
    with suppress(OSError):  # they are not empty
        for folder in made:
            folder.rmdir()
