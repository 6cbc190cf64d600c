"""What a CPU cannot show: float16 with loss scaling, CUDA's random state, NCCL, memory and batches on a GPU.

    python ci/gpu/checks.py [--small]

Each check prints a line with what was found. ``--small`` takes tiny sizes, and runs on a CPU as well, where it shows
only that the checks themselves run. The exit status is 1 where a check fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.networks.nets import UNet
from semsynth.networks.latent_diffusion import LatentDiffusion
from semsynth.networks.segmentation import StandardizedSegmenter, residual_unet
from semsynth.precision import reduced_type
from semsynth.synthesis.export import load_network
from semsynth.synthesis.memory import synthesis_memory, tensor_bytes
from semsynth.training.checkpoints import random_state, set_random_state
from semsynth.training.engines.base import MixedPrecisionTrainer
from semsynth.training.losses.segmentation import SegmentationLoss

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def float16_scaler(device: torch.device, *, small: bool) -> str:
    """The project's trainer in float16: it searches its scale from far too high on, and the loss falls.

    On a CPU, which has no such training, in whatever the CPU has.
    """
    torch.manual_seed(0)
    unet = UNet(3, 1, 2, (8, 16), (2,), num_res_units=1, norm="INSTANCE")
    network = StandardizedSegmenter(unet, multiple=2).to(device)
    image = torch.rand(1, 1, 32, 32, 32)
    batches = [{"image": image, "label": (image > 0.5).long()}] * (8 if small else 60)
    losses: list[float] = []
    kind = (lambda _: torch.float16) if device.type == "cuda" else reduced_type
    with patch("semsynth.precision.reduced_type", kind), patch("semsynth.training.engines.base.reduced_type", kind):
        trainer = MixedPrecisionTrainer(
            device=device, max_epochs=1, train_data_loader=batches, network=network, amp=True,
            optimizer=torch.optim.Adam(network.parameters(), lr=1e-2), loss_function=SegmentationLoss(),
        )  # fmt: skip
        learner = trainer.learners["network"]
        high = 2.0**30
        learner.scaler = torch.amp.GradScaler(device.type, init_scale=high, enabled=trainer.use_scaler)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
        trainer.run()
    assert trainer.use_scaler == (device.type == "cuda"), "the gradients were not scaled"
    assert not trainer.use_scaler or learner.scaler.get_scale() < high, "infinite gradients did not lower the scale"
    assert losses[-1] < losses[0], f"the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    return (
        f"loss {losses[0]:.3f} to {losses[-1]:.3f}, scale {learner.scaler.get_scale():g}, {trainer.skipped} bad steps"
    )


def cuda_random_state(device: torch.device, *, small: bool) -> str:
    """A checkpoint's random state gives the same numbers again, on the GPU too."""
    kept = random_state()
    first = torch.rand(1000 if small else 10**6, device=device)
    set_random_state(kept)
    again = torch.rand_like(first)
    assert torch.equal(first, again), "other numbers after the state was restored"
    return f"{first.numel()} numbers drawn on {device.type} come again"


def nccl_of_one(device: torch.device, *, small: bool) -> str:
    """Gradients of a network within a process group of one, by NCCL on a GPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            network = residual_unet(channels=(4, 8) if small else (16, 32, 64)).to(device)
            wrapped = torch.nn.parallel.DistributedDataParallel(network)
            size = 16 if small else 64
            wrapped(torch.rand(1, 1, size, size, size, device=device)).square().mean().backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        finally:
            dist.destroy_process_group()
    assert bool(norm.isfinite()), "gradients are not finite"
    return f"{backend}, gradient norm {float(norm):.3g}"


def _ldm(device: torch.device) -> LatentDiffusion:
    network: LatentDiffusion = load_network(BUNDLES / "spade_ldm").to(device).eval()
    return network


def memory_estimate(device: torch.device, *, small: bool) -> str:
    """What synthesis is estimated to need, against what the allocator gives out."""
    network, found = _ldm(device), []
    for size in ((48, 48, 32),) if small else ((144, 112, 64), (256, 256, 64)):
        estimate = synthesis_memory(network, size)
        label = torch.zeros(1, 1, *size, device=device)
        measured = tensor_bytes(lambda x=label: network.synthesize(x, seeds=[0]), device)  # type: ignore[misc]
        ratio = estimate / measured
        found.append(f"{' x '.join(map(str, size))}: {estimate / 2**20:.0f} MiB, {measured / 2**20:.0f} measured")
        assert small or 0.8 < ratio < 1.6, f"the estimate is {ratio:.2f} of what was measured ({found[-1]})"
    return "; ".join(found)


def batches(device: torch.device, *, small: bool) -> str:
    """Samples that go through the networks together are those that are made one by one."""
    network = _ldm(device)
    size, count = ((32, 32, 16), 2) if small else ((144, 112, 64), 4)
    label = torch.randint(0, 4, (1, 1, *size), device=device).float()
    seeds, steps = list(range(count)), 2 if small else 10
    network.synthesize(label, seeds=[0], steps=steps)  # what is made on first use
    began = time.perf_counter()
    alone = torch.cat([network.synthesize(label, seeds=[seed], steps=steps).cpu() for seed in seeds])
    between = time.perf_counter()
    together = network.synthesize(label, seeds=seeds, steps=steps, batch_size=count).cpu()
    end = time.perf_counter()
    rms = float((alone - together).square().mean().sqrt())
    assert rms < 0.02, f"samples differ by {rms:.4f} (root mean square) when they are made together"
    return f"{count} samples {(between - began) / (end - between):.2f} times as fast together, {rms:.5f} apart (RMS)"


CHECKS: tuple[Callable[..., str], ...] = (float16_scaler, cuda_random_state, nccl_of_one, memory_estimate, batches)


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, also on a CPU")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.small:
        print("no CUDA here: nothing to check; --small tries the checks themselves on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, 16-bit type {reduced_type(device.type)}", flush=True)
    failed = 0
    for check in CHECKS:
        try:
            line: Any = check(device, small=options.small)
        except Exception as error:  # one check's failure must not hide the others
            failed += 1
            line = f"FAILED: {type(error).__name__}: {error}"
        print(f"{check.__name__:20}{line}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
