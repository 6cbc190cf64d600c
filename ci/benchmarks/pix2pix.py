"""One training step of the pix2pix generator: our instance normalisation against PyTorch's, in one run.

    python ci/benchmarks/pix2pix.py [--size 128,96,64] [--repeats 5]

The values are equal (checked first); the time differs because PyTorch's layer leaves the channels-last memory format.
Prints a table and, as last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from semsynth.networks.blocks.normalization import VolumeInstanceNorm
from semsynth.networks.pix2pix import Pix2PixGenerator
from torch import nn


def step(network: nn.Module, label: torch.Tensor) -> float:
    """Seconds of one forward and backward pass in bfloat16."""
    start = time.perf_counter()
    with torch.autocast(label.device.type, dtype=torch.bfloat16):
        loss = network(label).float().mean()
    loss.backward()
    if label.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="128,96,64")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(2, 8, 9, 10, 11)
    difference = (VolumeInstanceNorm(8)(x) - nn.InstanceNorm3d(8)(x)).abs().max().item()
    label = torch.randint(0, 4, (1, 1, *(int(s) for s in options.size.split(","))), device=device)
    networks = {
        "torch InstanceNorm3d": Pix2PixGenerator(4, norm=("instance", {"affine": True})),
        "VolumeInstanceNorm": Pix2PixGenerator(4),
    }
    networks = {n: net.to(device, memory_format=torch.channels_last_3d) for n, net in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(options.repeats + 1):  # in turn, the first round for warming up
        for name, network in networks.items():
            seconds = step(network, label)
            if repeat:
                times[name].append(seconds)
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    print(f"generator forward + backward, {options.size}, {device}, median of {options.repeats}")
    for name, value in medians.items():
        print(f"{name:<26}{value:8.3f} s")
    ratio = medians["torch InstanceNorm3d"] / medians["VolumeInstanceNorm"]
    print(json.dumps({"speedup": round(ratio, 2), "largest_difference": difference}))


if __name__ == "__main__":
    main()
