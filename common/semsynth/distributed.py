"""Several processes (torchrun): what the multi-GPU overlays of the bundles call."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from monai.utils import set_determinism
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError

T = TypeVar("T")


def start(seed: int | None = None, *, backend: str | None = None, hours: float | None = None) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    Args:
        seed: this process draws from seed + its number, so that processes do not augment alike (networks start
            alike all the same: the first process's weights are sent to all).
        backend: in place of that.
        hours: number of hours that a process waits for the others at most; None: PyTorch's default, minutes.

    Raises:
        InputError: when not started by torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        raise InputError("several processes are started by 'torchrun --nproc_per_node=N -m monai.bundle run …'")
    if not dist.is_initialized():
        chosen = backend or ("nccl" if torch.cuda.is_available() else "gloo")
        dist.init_process_group(chosen, timeout=None if hours is None else timedelta(hours=hours))
    if seed is not None:
        set_determinism(seed + dist.get_rank())


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def leave() -> None:
    """Leave the process group without waiting for the others, after an error."""
    if dist.is_initialized():
        dist.destroy_process_group()


def together(work: Callable[[], T], *, first: bool = False) -> T | None:
    """Do a part of the work in every process, and go on when all have done theirs; an error of one is one of all.

    Args:
        work: function that each process calls.
        first: True where the first process alone calls it; the others get None.

    Raises:
        InputError: of any process, in all of them.
    """
    found: T | None = None
    problem: InputError | None = None
    try:
        if not first or rank() == 0:
            found = work()
    except InputError as error:
        if world_size() == 1:
            raise
        problem = error
    said = [text for text in gather(None if problem is None else str(problem)) if text is not None]
    if problem is not None:
        raise problem
    if said:
        raise InputError(said[0])
    return found


def local_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    """This process's number, 0 for the first or only one; from torchrun's environment before the group is joined."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together, 1 without torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def all_true(value: bool, device: torch.device) -> bool:
    """Whether ``value`` is true in every process: what one decides, all have to do."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    flag = torch.tensor(int(value), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def gather(value: T) -> list[T]:
    """The value of each process, in their order; of the only one without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def concatenate(value: torch.Tensor) -> torch.Tensor:
    """The tensors of all processes along the first dimension, in their order; without gradients.

    Args:
        value: value of one shape, but for the first dimension, and one type in all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    own = torch.tensor([len(value)], device=value.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    most = int(torch.cat(counts).max())
    padded = value.new_zeros([most, *value.shape[1:]])
    padded[: len(value)] = value.detach()
    values = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(values, padded)
    return torch.cat([part[: int(count)] for part, count in zip(values, counts, strict=True)])


def distribute(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap a network for training in several processes.

    Buffers are not broadcast: a discriminator runs twice before its backward pass, and a broadcast in between would
    change what the first run needs. (Each process's running statistics are its own unless the network counts over all
    of them, see :func:`concatenate`; the first process's are saved.)
    """
    start()
    return DistributedDataParallel(
        module.to(device), device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )
