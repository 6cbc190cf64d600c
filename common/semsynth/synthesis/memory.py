"""How much memory a network needs: measured, and for a size that was not run yet, estimated."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..memory import free_memory, kib
from ..networks.autoencoder import cover
from ..networks.sampling.guided import GuidedDenoiser, Start
from ..networks.sampling.tiles import tile_size
from ..precision import autocast


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, as long as they are alive.

    What operators use inside (oneDNN's reordered copies, cuDNN's work space) is not seen.

    Attributes:
        peak: most bytes at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def tensor_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors at the peak of ``work``, beyond those that were there; on a GPU what its allocator gave out."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    counted = TensorMemory()
    with counted:
        work()
    return counted.peak


def extrapolated(work: Callable[[Sequence[int]], Any], size: Sequence[int], device: torch.device) -> int:
    """Bytes at the peak of ``work(size)`` by a line through those of two small volumes, which are run.

    Args:
        work: runs a volume of a size whose memory is a constant and so much per voxel.
        size: H, W, D.
        device: device that it runs on.
    """
    small, larger = (32, 32, 32), (64, 32, 32)
    if prod(size) <= prod(larger):
        return tensor_bytes(lambda: work(size), device)
    tensor_bytes(lambda: work(small), device)  # what is made on first use
    first, second = (tensor_bytes(lambda s=s: work(s), device) for s in (small, larger))  # type: ignore[misc]
    per_voxel = (second - first) / (prod(larger) - prod(small))
    return max(int(first + per_voxel * (prod(size) - prod(small))), second)


class PeakMemory:
    """Measures the process's peak from :meth:`start` on: its resident set, or what the GPU's allocator gave out.

    Where the system cannot forget an older peak (all but Linux), it is that since the process began.

    Args:
        device: the network's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        """Measure from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is the present again

    def peak(self) -> int | None:
        """Bytes; None where the system does not say (Windows)."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self.device))
        found = kib("/proc/self/status", "VmHWM")
        if found is not None:
            return found * 1024
        try:
            import resource
        except ModuleNotFoundError:
            return None
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def resident(device: torch.device) -> int:
    """Bytes that the process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return (kib("/proc/self/status", "VmRSS") or 0) * 1024


def free(device: torch.device) -> int | None:
    """Bytes that can still be had; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


@torch.no_grad()
def synthesis_memory(network: Any, size: Sequence[int], samples: int = 1) -> int:
    """Bytes that a :class:`~semsynth.networks.latent_diffusion.LatentDiffusion` needs for a map, beyond its weights.

    The larger of denoising and decoding, each from two small runs of it, see :func:`extrapolated`. With windows of
    slices denoising takes what a window takes, and what is made of the map for all slices. Not in it is what
    the process holds before, some 0.5 GiB on a CPU, and what the allocator does not give back at once.

    Args:
        network: on its device.
        size: H, W, D of the label map.
        samples: in one batch.
    """
    options, device = network.sampling, network.style_mean.device
    rows = min(samples, options.batch_size)
    stride, channels = network.autoencoder.stride, network.denoiser.latent_channels
    whole = options.tile is None

    def denoise(part: Sequence[int]) -> Any:
        given = network.conditioning(torch.zeros(1, 1, *part, device=device), decoder=whole and samples > rows)
        noise = torch.zeros(rows, channels, *cover(part, stride), device=device)
        styles = torch.zeros(rows, network.style_channels, device=device) if network.style_channels else None
        once = replace(options, compile=False, steps=1, window=None)
        loop = GuidedDenoiser(network.denoiser, network.schedule, once)
        return loop.latents(given, Start(lambda number: noise, styles))

    def decode(part: Sequence[int]) -> Any:
        latent = torch.zeros(rows, channels, *cover(part, stride), device=device)
        condition = torch.zeros(1, 1, *part, device=device)
        if samples > rows:
            with autocast(device, enabled=options.amp):
                condition = network.autoencoder.modulation(condition)
        return network.decode(latent, condition, seeds=[0] * rows, tile=None)

    of_decoding = extrapolated(decode, tile_size(size, options.tile, network.autoencoder.reach()), device)
    if not whole:
        of_decoding += samples * prod(size) * 4
    if options.window is None or options.window >= size[2]:
        return max(extrapolated(denoise, size, device), of_decoding)

    def condition(part: Sequence[int]) -> Any:
        return network.conditioning(torch.zeros(1, 1, *part, device=device), decoder=False)

    of_window = extrapolated(denoise, [*size[:2], options.window], device)
    return max(of_window + extrapolated(condition, size, device), of_decoding)
