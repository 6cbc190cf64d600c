"""Memory of the machine: what can be had, whether work fits into it, and a message with a setting where it ran out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError, is_out_of_memory

GIB = 2**30
LESS_TO_PREPARE = "give a larger --spacing, a smaller --size or fewer --jobs"
LESS_TO_EVALUATE = "give a larger --feature-spacing, fewer --extractors, or --device cpu where that has more memory"
IMAGE_BYTES = 4
"""Of a voxel of an intensity, float32: what every work on a volume holds at least once."""


def free_memory() -> int | None:
    """Bytes that this process can still have: of the machine, its container or its own limit; None if that is unknown.

    Swap counts: what is slow still ends.
    """
    found = [left for left in (_of_machine(), *_left_in_group(), _left_of_limit()) if left is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    here = kib("/proc/meminfo", "MemAvailable")
    if here is not None:
        return (here + (kib("/proc/meminfo", "SwapFree") or 0)) * 1024
    with suppress(AttributeError, ValueError, OSError):  # macOS tells its memory, Windows not even that
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _left_in_group() -> list[int]:
    """Of a container's own limit; files that the system keeps in memory for reading give way."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stated = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    kept = sum(int(stated.get(name, 0)) for name in ("active_file", "inactive_file"))
    return [max(int(limit) - int(used) + kept, 0)] if limit.isdigit() else []


def _left_of_limit() -> int | None:
    """Of what a batch system or ``ulimit -v`` allows this process."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = kib("/proc/self/status", "VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else max(limit - used * 1024, 0)


def kib(path: str, name: str) -> int | None:
    """A figure in KiB of one of Linux's tables; None where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def too_much(needed: float) -> str | None:
    """``"26.1 GiB of memory, and 3.2 GiB are free"`` where so many bytes cannot be had; None where they can."""
    free = free_memory()
    if free is None or needed <= free:
        return None
    return f"{_gib(needed)} of memory, and {_gib(free)} are free"


def _gib(count: float) -> str:
    return f"{count / GIB:.3g} GiB" if math.isfinite(count) and count < 1e5 * GIB else f"{count / GIB:.0e} GiB"


def check_fits(needed: float, what: str, fix: str) -> None:
    """Raise before work that cannot fit into memory is begun.

    Args:
        needed: bytes that it takes at least.
        what: the work, for the message.
        fix: remedy.

    Raises:
        InputError: naming both figures.
    """
    excess = too_much(needed)
    if excess is not None:
        raise InputError(f"{what} would need at least {excess}; {fix}")


def check_size(size: Sequence[int], what: str, fix: str, *, voxel: int = IMAGE_BYTES) -> None:
    """:func:`check_fits` of a volume.

    Args:
        size: its voxels along the three axes.
        what: its name, for the message.
        fix: remedy.
        voxel: bytes per voxel that work on it takes at least.

    Raises:
        InputError: naming both figures.
    """
    voxels = " × ".join(f"{n:g}" if n >= 1e6 else str(n) for n in size)
    check_fits(math.prod(float(n) for n in size) * voxel, f"{what} of {voxels} voxels", fix)


@contextmanager
def memory_advice(what: str | Callable[[], str], fix: str) -> Iterator[None]:
    """Work that says what to do where its memory runs out.

    Args:
        what: the work ("case P1"), or a function that gives it, for the message.
        fix: the settings that need less.

    Raises:
        InputError: in place of torch's, NumPy's and Python's own errors of memory; every other error passes.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(out_of_memory(what if isinstance(what, str) else what(), fix, error)) from error


def out_of_memory(what: str, fix: str, error: BaseException | None = None) -> str:
    """The message for memory that ran out."""
    lines = str(error or "").splitlines()
    reason = f" ({lines[0][:200]})" if lines else ""
    return f"{what}{': ' if what else ''}out of memory{reason}; {fix}"
