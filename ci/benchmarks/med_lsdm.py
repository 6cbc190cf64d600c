"""Med-LSDM's denoiser: a guided step and its memory, and a training step with and without recomputing.

    OMP_WAIT_POLICY=PASSIVE python ci/benchmarks/med_lsdm.py [--paper] [--classes 13] [--bfloat16] [--repeats 5]

A guided step of one window of slices, three ways: ours; the paper's layout (the same network and weights, label map
encoded and brought through SPADE in every step, map and null map one after the other); and MONAI's
``DiffusionModelUNet`` of about as many parameters, which is given no labels, twice, as guidance needs. Then a training
step of ours as it is and with ``recompute``. All sides in one run.

Time is the processor time of one thread (on a GPU wall time), the sides in turn, the shortest of several. Memory is
that of the tensors that are alive at a time, beside the weights. Prints tables and, as last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from _timing import DEVICE, fastest
from monai.networks.nets import DiffusionModelUNet
from semsynth.networks.slice_unet import SliceUNet
from semsynth.synthesis.memory import tensor_bytes
from torch import nn

LATENT, GUIDANCE = 8, 1.5
SMALL: dict[str, Any] = {
    "channels": (48, 64, 64), "blocks": 1, "heads": 4, "head_channels": 16, "label_channels": 32, "label_vector": 8,
    "spade": {"hidden": 32, "kernel_size": 1},
}  # fmt: skip
SIZES = {"small": (128, 112, 32), "paper": (256, 256, 32)}
MIB = 2**20


def parameters(network: nn.Module) -> int:
    """How many."""
    return sum(p.numel() for p in network.parameters())


def ours(paper: bool, classes: int, **options: Any) -> SliceUNet:
    """The bundle's network, or the paper's."""
    torch.manual_seed(0)
    return SliceUNet(classes, latent_channels=LATENT, **({} if paper else SMALL), **options).to(
        DEVICE, memory_format=torch.channels_last_3d
    )


def theirs(wanted: int, levels: int) -> DiffusionModelUNet:
    """MONAI's network whose number of parameters is the nearest to ours: widths in the ratio 1 : 2 : 4 …."""

    def made(width: int) -> DiffusionModelUNet:
        torch.manual_seed(0)
        channels = tuple(width * 2**level for level in range(levels))
        return DiffusionModelUNet(
            spatial_dims=3, in_channels=LATENT, out_channels=LATENT, channels=channels, norm_num_groups=8,
            attention_levels=(False,) * (levels - 1) + (True,), num_res_blocks=1, num_head_channels=channels[-1],
            use_flash_attention=True,
        )  # fmt: skip

    with torch.device("meta"):
        width = min(range(8, 129, 8), key=lambda w: abs(parameters(made(w)) - wanted))
    return made(width).to(DEVICE, memory_format=torch.channels_last_3d)


def guided(network: SliceUNet, label: torch.Tensor, x: torch.Tensor, autocast: Callable[[], Any]) -> dict[str, Any]:
    """A guided step with all computed that is computed once, and one of the paper's layout."""
    timestep = torch.tensor([500], device=DEVICE)
    with torch.no_grad(), autocast():
        levels = network.encode(label)
        null = network.null(levels)
        kept = network.modulation({stride: torch.cat([level, null[stride]]) for stride, level in levels.items()})
        embedded = network.embed(timestep)
    del levels, null

    @torch.no_grad()
    def cached() -> torch.Tensor:
        with autocast():
            features, skips = network.down_path(x, embedded)
            pred, without = network.up_path(features, skips, embedded, kept).split(1)
        result: torch.Tensor = without + GUIDANCE * (pred - without)
        return result

    @torch.no_grad()
    def plain() -> torch.Tensor:
        with autocast():
            pred, without = (network(x, timestep, network.encode(given)) for given in (label, label * 0 - 1))
        result: torch.Tensor = without + GUIDANCE * (pred - without)
        return result

    fast, slow = cached(), plain()
    difference = float((fast - slow).abs().max() / slow.abs().max())
    return {"ours": cached, "paper's layout": plain, "difference": difference}


def unconditional(network: nn.Module, x: torch.Tensor, autocast: Callable[[], Any]) -> Callable[[], Any]:
    """Two passes of a network without labels, joined as guidance does."""
    timestep = torch.tensor([500], device=DEVICE)

    @torch.no_grad()
    def twice() -> torch.Tensor:
        with autocast():
            pred, without = (network(x, timestep) for _ in range(2))
        result: torch.Tensor = without.float() + GUIDANCE * (pred.float() - without.float())
        return result

    return twice


def training(
    network: SliceUNet, label: torch.Tensor, x: torch.Tensor, autocast: Callable[[], Any]
) -> Callable[[], Any]:
    """Forward and backward pass."""
    timestep = torch.tensor([500], device=DEVICE)

    def step() -> None:
        with autocast():
            made = network(x, timestep, network.encode(label))
        made.square().mean().backward()
        network.zero_grad(set_to_none=True)

    return step


def table(title: str, works: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Time and memory of each, printed; and returned, in seconds and MiB."""
    times = fastest(works, repeats, warm=True)
    memory = {name: tensor_bytes(work, DEVICE) / MIB for name, work in works.items()}
    print(f"\n{title:44} {'s':>8} {'MiB':>8}")
    for name in works:
        print(f"{name:44} {times[name]:8.3f} {memory[name]:8.0f}")
    return times, memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the paper's widths, 256 x 256 x 32")
    parser.add_argument("--classes", type=int, default=13, help="of the label map, with the background")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="the shortest of so many is taken")
    parser.add_argument(
        "--quick", action="store_true", help="a small volume, once (whatever --repeats says): to see that it runs"
    )
    arguments = parser.parse_args()
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    size = (32, 32, 32) if arguments.quick else SIZES["paper" if arguments.paper else "small"]
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    repeats = 1 if arguments.quick else arguments.repeats

    def autocast() -> torch.autocast:
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=arguments.bfloat16)

    label = torch.randint(0, arguments.classes, (1, 1, *size)).float().to(DEVICE)
    x = torch.randn(1, LATENT, *(length // 4 for length in size), device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    network = ours(arguments.paper, arguments.classes).eval()
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    other = theirs(parameters(network), len(network.strides)).eval()
    works = guided(network, label, x, autocast)
    difference = works.pop("difference")
    names = {"ours": f"ours, {parameters(network) / 1e6:.1f} M parameters",
             "MONAI": f"MONAI, {parameters(other) / 1e6:.1f} M parameters, no labels"}  # fmt: skip
    step, step_memory = table(
        f"guided step, {' x '.join(map(str, size))}",
        {names["ours"]: works["ours"], "the paper's layout": works["paper's layout"],
         names["MONAI"]: unconditional(other, x, autocast)},
        repeats,
    )  # fmt: skip
    print(f"largest difference between the first two: {difference:.1e} of the largest value")
    lean = ours(arguments.paper, arguments.classes, recompute=True).train()
    train, train_memory = table(
        "training step",
        {"as it is": training(network.train(), label, x, autocast), "recompute": training(lean, label, x, autocast)},
        repeats,
    )
    first = names["ours"]
    print(json.dumps({
        "difference": difference,
        "step": {name: step[name] / step[first] for name in step},
        "step_memory": {name: step_memory[name] / step_memory[first] for name in step},
        "training": {name: train[name] / train["as it is"] for name in train},
        "training_memory": {name: train_memory[name] / train_memory["as it is"] for name in train},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
