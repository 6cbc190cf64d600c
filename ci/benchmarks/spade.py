"""SPADE residual block and decoder: ours against MONAI's, both sides in one run on the same data.

    OMP_WAIT_POLICY=PASSIVE python ci/benchmarks/spade.py [--size 128,96,64] [--hidden 32] [--bfloat16] [--quick]

Both sides have the same convolutions; the label branch is 128 wide, as MONAI's SPADENet has it ("same arithmetic"), or
as wide as ours is by default ("same quality"). MONAI's γ and β each pass an instance norm, ours with
``normalized_modulation`` alone: that one computes what MONAI's does, which is checked first. Two networks: a residual
block at full resolution, and a decoder of four blocks at strides 16, 8, 4 and 2.

Time is the processor time of one thread, which other work on the machine disturbs least (on a GPU wall time),
the sides in turn, the shortest of several; what ours is compared to is the faster of MONAI's memory formats.
Memory is what a step adds to the peak of the resident set, measured in a process of its own (on a GPU what PyTorch's
allocator has handed out). Unlike a count of tensor bytes it has the copies that oneDNN makes to reorder a volume, and
it repeats to a percent because all large blocks are given back at once (``MALLOC_MMAP_THRESHOLD_``). Linux only.

Prints tables and, as last line, one JSON object. The bounds that the project holds itself to: a pass with the
modulation computed before at least 2.2 times as fast; same arithmetic: training 1.2 times as fast in one setting
and at most 0.6 of the memory in another; same quality: training twice as fast.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _timing import DEVICE, fastest
from monai.networks.nets.spade_network import SPADENetResBlock
from semsynth.labels import one_hot
from semsynth.networks.blocks.spade import SPADEOptions, SPADEResBlock, label_pyramid
from torch import nn
from torch.nn import functional as F

CLASSES = 4
WIDE = 128  # of the label branch, as MONAI's SPADENet builds it
NETWORKS = {"block": ((16, 16), (1,)), "decoder": ((128, 128, 128, 64, 32), (16, 8, 4, 2))}  # widths, strides


@dataclass(frozen=True)
class Side:
    """A way to compute the same network."""

    theirs: bool = False
    channels_last: bool = False
    hidden: int = WIDE
    normalized: bool = False
    recompute: Any = None
    cached: bool = False

    @property
    def options(self) -> SPADEOptions:
        """Of our blocks: the norm and the slope that MONAI has."""
        return SPADEOptions(
            hidden=self.hidden,
            norm="instance",
            label_slope=0.01,
            normalized_modulation=self.normalized,
            recompute=self.recompute,
        )


class Network(nn.Module):
    """Residual blocks from coarse to fine, each but the last followed by upsampling."""

    def __init__(self, side: Side, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.side, self.strides = side, strides
        self.blocks = nn.ModuleList(
            SPADENetResBlock(3, a, b, CLASSES, side.hidden)
            if side.theirs
            else SPADEResBlock(a, b, CLASSES, side.options)
            for a, b in pairwise(widths)
        )

    def conditions(self, label: torch.Tensor) -> list[Any]:
        """What each block is given: MONAI's brings the map to its resolution itself, in every normalisation."""
        form = torch.channels_last_3d if self.side.channels_last else torch.contiguous_format
        if self.side.theirs:
            return [one_hot(label, CLASSES).contiguous(memory_format=form)] * len(self.blocks)
        levels = label_pyramid(label, CLASSES, self.strides)
        encoded = [levels[stride].contiguous(memory_format=form) for stride in self.strides]
        if not self.side.cached:
            return encoded
        return [block.modulation(level) for block, level in zip(self.blocks, encoded, strict=True)]  # type: ignore[operator]

    def forward(self, x: torch.Tensor, conditions: list[Any]) -> torch.Tensor:
        """Features at the coarsest level → at the finest."""
        for number, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            if number:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(x, condition)
        return x


class Work:
    """One side's network with its input, ready to be timed."""

    def __init__(self, side: Side, network: str, size: tuple[int, ...], bfloat16: bool) -> None:
        widths, strides = NETWORKS[network]
        form = torch.channels_last_3d if side.channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randint(0, CLASSES, (1, 1, *(s // 8 for s in size)), generator=generator)
        label = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4).to(DEVICE)
        x = torch.randn(1, widths[0], *(s // strides[0] for s in size), generator=generator)
        self.network: Any = Network(side, widths, strides).to(DEVICE, memory_format=form)  # type: ignore[call-overload]
        self.x = x.to(DEVICE).contiguous(memory_format=form).requires_grad_()
        self.autocast = torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=bfloat16)
        with torch.no_grad(), self.autocast:
            self.conditions = self.network.conditions(label)

    def forward(self) -> None:
        """Without a graph."""
        with torch.no_grad(), self.autocast:
            self.network(self.x, self.conditions)

    def train(self) -> None:
        """Forward and backward."""
        with self.autocast:
            y = self.network(self.x, self.conditions)
        y.backward(torch.ones_like(y))
        self.network.zero_grad()
        self.x.grad = None


def step_memory(work: Work) -> float:
    """MiB that a training step adds to the peak of this process's resident set, or of the GPU's memory."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.train()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present again
    before = peak()
    work.train()
    return (peak() - before) / 1024


def peak() -> int:
    """KiB of this process's resident set at its largest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memories(network: str, options: argparse.Namespace, bfloat16: bool) -> dict[str, float]:
    """:func:`step_memory` of all sides."""
    result = {}
    for name, side in sides(options.hidden).items():
        work = Work(side, network, options.size, bfloat16)
        result[name] = step_memory(work)
        del work
        gc.collect()
    return result


def memories_apart(network: str, options: argparse.Namespace, bfloat16: bool) -> dict[str, float]:
    """:func:`memories` in a process whose allocator keeps no large block; on a GPU in this one."""
    if DEVICE.type == "cuda":
        return memories(network, options, bfloat16)
    command = [sys.executable, __file__, "--memory", "--network", network, "--hidden", str(options.hidden)]
    command += ["--size", ",".join(map(str, options.size)), "--threads", str(options.threads)]
    command += ["--bfloat16"] * bfloat16
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def sides(hidden: int) -> dict[str, Side]:
    """All that is compared, by name."""
    return {
        "MONAI": Side(theirs=True),
        "MONAI channels-last": Side(theirs=True, channels_last=True),
        "ours as MONAI's, channels-last": Side(channels_last=True, normalized=True),
        "ours": Side(),
        "ours channels-last": Side(channels_last=True),
        "ours recompute labels, ch.-last": Side(channels_last=True, recompute="labels"),
        "ours recompute all, ch.-last": Side(channels_last=True, recompute="all"),
        f"ours hidden {hidden}, channels-last": Side(channels_last=True, hidden=hidden),
    }


def difference() -> float:
    """Largest between MONAI's block and ours with its weights and ``normalized_modulation``, of values around 1."""
    size = (32, 24, 16)
    theirs, ours = Network(Side(theirs=True), (16, 8), (1,)), Network(Side(normalized=True), (16, 8), (1,))
    for name, parameter in ours.named_parameters():
        module, _, kind = name.rpartition(".")
        parent, _, last = module.rpartition(".")
        source = theirs.get_submodule(parent)
        if last == "shared":
            value: torch.Tensor = source.get_parameter(f"mlp_shared.conv.{kind}")
        elif last == "gamma_beta":
            value = torch.cat([source.get_parameter(f"mlp_{part}.conv.{kind}") for part in ("gamma", "beta")])
        else:
            value = theirs.get_parameter(f"{module}.conv.{kind}")
        parameter.data.copy_(value.data)
    label, x = torch.randint(0, CLASSES, (1, 1, *size)), torch.randn(1, 16, *size)
    with torch.no_grad():
        apart = theirs(x, theirs.conditions(label)) - ours(x, ours.conditions(label))
    return float(apart.abs().max())


def cached(network: str, options: argparse.Namespace, bfloat16: bool) -> float:
    """Prints the table of forward passes; how much faster ours is."""
    compared = {
        "MONAI": Side(theirs=True),
        "MONAI channels-last": Side(theirs=True, channels_last=True),
        "ours, modulation in every pass": Side(channels_last=True),
        "ours, modulation before": Side(channels_last=True, cached=True),
    }
    works = {name: Work(side, network, options.size, bfloat16) for name, side in compared.items()}
    times = fastest({name: work.forward for name, work in works.items()}, options.repeats)
    reference = min(times["MONAI"], times["MONAI channels-last"])
    print(f"\n{network}, forward")
    for name, value in times.items():
        print(f"  {name:<34}{value:9.3f} s{reference / value:8.2f} x")
    return reference / times["ours, modulation before"]


def training(network: str, options: argparse.Namespace, bfloat16: bool) -> dict[str, float]:
    """Prints the table of forward and backward passes; the ratios that there are aims for."""
    compared = sides(options.hidden)
    works = {name: Work(side, network, options.size, bfloat16) for name, side in compared.items()}
    times = fastest({name: work.train for name, work in works.items()}, options.repeats)
    del works
    peaks = memories_apart(network, options, bfloat16)
    theirs = [name for name, side in compared.items() if side.theirs]
    time_of, peak_of = min(times[name] for name in theirs), min(peaks[name] for name in theirs)
    print(f"\n{network}, forward + backward{'':<10}time{'faster':>12}{'peak':>13}{'of MONAI':>11}")
    for name in compared:
        faster, share = time_of / times[name], peaks[name] / peak_of
        print(f"  {name:<34}{times[name]:9.3f} s{faster:8.2f} x{peaks[name]:9.0f} MiB{share:10.2f}")
    ours = [name for name, side in compared.items() if not side.theirs and side.hidden == WIDE]
    return {
        "same_arithmetic_speedup": max(time_of / times[name] for name in ours if not compared[name].normalized),
        "same_function_speedup": max(time_of / times[name] for name in ours if compared[name].normalized),
        "same_arithmetic_memory": min(peaks[name] for name in ours) / peak_of,
        "same_quality_speedup": time_of / times[list(compared)[-1]],
    }


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128,96,64", help="multiples of 16")
    parser.add_argument("--hidden", type=int, default=SPADEOptions().hidden, help="our label branch's, same quality")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="a second round under bfloat16 autocast")
    parser.add_argument("--quick", action="store_true", help="one repeat at 32 x 32 x 16: does it run")
    parser.add_argument("--network", choices=list(NETWORKS), help="this one only")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.size, options.repeats = "32,32,16", 1
    options.size = tuple(int(s) for s in options.size.split(","))
    return options


def warm_up(options: argparse.Namespace) -> None:
    """What is loaded and compiled on first use."""
    size = options.size if DEVICE.type == "cuda" else (32, 32, 16)
    for network in [options.network] if options.network else NETWORKS:
        for side in sides(options.hidden).values():
            Work(side, network, size, options.bfloat16).train()


AIMS = {
    "cached_speedup": 2.2,
    "same_arithmetic_speedup": 1.2,
    "same_arithmetic_memory": 0.6,
    "same_quality_speedup": 2.0,
}


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(options.threads)
    warm_up(options)
    if options.memory:
        print(json.dumps(memories(options.network, options, options.bfloat16)))
        return
    result: dict[str, float] = {"largest_difference": difference()}
    print(f"{options.size}, {CLASSES} classes, {DEVICE.type}, {options.threads} threads; label branch {WIDE} wide")
    for bfloat16 in (False, True) if options.bfloat16 else (False,):
        print(f"\n{'bfloat16 autocast' if bfloat16 else 'float32'}")
        for network in [options.network] if options.network else NETWORKS:
            ratios = {"cached_speedup": cached(network, options, bfloat16), **training(network, options, bfloat16)}
            for name, value in ratios.items():
                aim = f"  aim {'<=' if 'memory' in name else '>='} {AIMS[name]}" if name in AIMS else ""
                print(f"  {name:<34}{value:9.2f}{aim}")
                result[f"{network}_{name}{'_bfloat16' if bfloat16 else ''}"] = round(value, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
