"""What the benchmarks time with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], Any]) -> float:
    """Processor time, on a GPU wall time, of one call."""
    if DEVICE.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def fastest(works: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = False) -> dict[str, float]:
    """Shortest time of each, measured in turn; ``warm``: after a call that is not."""
    if warm:
        for work in works.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: min(values) for name, values in times.items()}
