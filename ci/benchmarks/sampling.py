"""Guided sampling of latent diffusion: ours against MONAI's networks, both sides in one run on the same label map.

    OMP_WAIT_POLICY=PASSIVE python ci/benchmarks/sampling.py [--size 96,80,48] [--steps 50] [--compile] [--quick]

First table: MONAI's ``SPADEDiffusionModelUNet`` and ``SPADEAutoencoderKL``, as wide as the bundle spade_ldm's networks,
and ours with the very same weights (``semsynth.convert``), which compute the same function: the largest difference is
printed. The loop around MONAI's is written here, as a careful user would: no gradients, the label map encoded once and
brought to the latent's size, map and null map one after the other or in one batch, in either memory format, the fastest
counts, with flash attention and MONAI's DDIM scheduler. Sampler, steps, guidance and precision are the same on both
sides. A volume is decoded once, with as much arithmetic on both sides: the more steps, the more the loop counts.

Second table: the bundle's own network, from a loop that computes all in every step to what each option adds.

Time is the processor time of one thread (on a GPU wall time), the sides in turn, the shortest of several. Memory is
that of the tensors that are alive at a time, without what operators need inside; on a GPU what PyTorch's allocator gave
out. Prints tables and, as last line, one JSON object. The bound that the project holds itself to: at the same
arithmetic and precision, a step and a whole volume at least twice as fast.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _timing import DEVICE, fastest
from monai.bundle import ConfigParser
from monai.networks.nets.spade_autoencoderkl import SPADEAutoencoderKL
from monai.networks.nets.spade_diffusion_model_unet import SPADEDiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from semsynth.convert import convert_autoencoder, convert_denoiser
from semsynth.labels import one_hot
from semsynth.networks.latent_diffusion import LatentDiffusion
from semsynth.networks.sampling.guided import GuidedDenoiser, SamplingOptions, Start
from semsynth.precision import autocast
from semsynth.synthesis.memory import tensor_bytes
from torch import nn
from torch.nn import functional as F

CLASSES, LATENT, STRIDE, GROUPS, GUIDANCE = 4, 8, 4, 8, 1.5
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "spade_ldm"
LAST, FIRST = torch.channels_last_3d, torch.contiguous_format
AIMS = {"step": 2.0, "volume": 2.0}
Work = Callable[[], Any]


class Theirs:
    """MONAI's networks and a guided loop around them.

    Args:
        networks: U-Net and autoencoder.
        form: memory format.
        paired: map and null map in one batch.
        bfloat16: autocast.
    """

    def __init__(
        self, networks: tuple[nn.Module, nn.Module], form: torch.memory_format, *, paired: bool, bfloat16: bool
    ) -> None:
        # of a copy: the formats of both sides are timed in turn
        self.unet, self.autoencoder = (_copy(network, form) for network in networks)
        self.form, self.paired = form, paired
        self.autocast = autocast(DEVICE, enabled=bfloat16)

    def given(self, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map in one-hot form as large as the latent, and as large as the image."""
        image = one_hot(label, CLASSES).contiguous(memory_format=self.form)
        size = [length // STRIDE for length in label.shape[2:]]
        return F.interpolate(image, size=size, mode="nearest").contiguous(memory_format=self.form), image

    @torch.no_grad()
    def predict(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """A guided prediction."""
        with self.autocast:
            if self.paired:
                both = torch.cat([label, torch.zeros_like(label)])
                pred, null = self.unet(torch.cat([x, x]), timestep.expand(2), both).split(1)
            else:
                pred = self.unet(x, timestep, label)
                null = self.unet(x, timestep, torch.zeros_like(label))
        result: torch.Tensor = null.float() + GUIDANCE * (pred.float() - null.float())
        return result

    @torch.no_grad()
    def volume(self, label: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        """A label map's image."""
        scheduler = DDIMScheduler(1000, "cosine", prediction_type="v_prediction", clip_sample=False)
        scheduler.set_timesteps(steps)
        small, large = self.given(label)
        x = noise.contiguous(memory_format=self.form)
        for t in scheduler.timesteps:
            x, _ = scheduler.step(self.predict(x, t[None].to(DEVICE), small), int(t), x)
        with self.autocast:
            image: torch.Tensor = self.autoencoder.decode_stage_2_outputs(x, large)
        return image.float()


class Ours:
    """Our networks and the loop that they come with.

    Args:
        network: with its options.
        form: memory format.
    """

    def __init__(self, network: LatentDiffusion, form: torch.memory_format = FIRST) -> None:
        self.network, self.form = _copy(network, form), form
        self.loop = GuidedDenoiser(self.network.denoiser, self.network.schedule, self.network.sampling)

    def step(self, label: torch.Tensor, noise: torch.Tensor) -> Work:
        """One guided prediction, with all computed that is computed once."""
        options = self.network.sampling
        with torch.no_grad(), autocast(DEVICE, enabled=options.amp):
            given = self.network.conditioning(label, decoder=False)
            timesteps = torch.tensor([500], device=DEVICE)
            embedded = self.network.denoiser.embed(timesteps, self._style())
        x = noise.contiguous(memory_format=self.form)

        @torch.no_grad()
        def predict() -> torch.Tensor:
            return self.loop._blended(x, embedded, given, options.guidance)

        return predict

    @torch.no_grad()
    def volume(self, label: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        """A label map's image."""
        given = self.network.conditioning(label, decoder=False)
        loop = GuidedDenoiser(self.network.denoiser, self.network.schedule, replace(self.loop.options, steps=steps))
        latent = loop.latents(given, Start(lambda number: noise, self._style()))
        return self.network.decode(latent, given.decoder)

    @torch.no_grad()
    def plain(self, label: torch.Tensor, noise: torch.Tensor) -> Work:
        """One guided prediction of two whole passes, with everything computed in each."""
        denoiser, timestep, style = self.network.denoiser, torch.tensor([500], device=DEVICE), self._style()
        x = noise.contiguous(memory_format=self.form)

        @torch.no_grad()
        def predict() -> torch.Tensor:
            with autocast(DEVICE, enabled=self.network.sampling.amp):
                pred, null = (denoiser(x, timestep, denoiser.encode(m), style) for m in (label, label * 0 - 1))
            result: torch.Tensor = null + GUIDANCE * (pred - null)
            return result

        return predict

    def _style(self) -> torch.Tensor | None:
        channels = self.network.style_channels
        return torch.zeros(1, channels, device=DEVICE) if channels else None


def _copy(network: Any, form: torch.memory_format) -> Any:
    return deepcopy(network).to(DEVICE, memory_format=form).eval()


def theirs() -> tuple[nn.Module, nn.Module]:
    """MONAI's U-Net and autoencoder, as wide as the bundle's, with weights that are not zero."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "spatial_dims": 3, "label_nc": CLASSES, "num_res_blocks": (1, 1, 1), "norm_num_groups": GROUPS,
        "use_flash_attention": True,
    }  # fmt: skip
    unet = SPADEDiffusionModelUNet(
        in_channels=LATENT, out_channels=LATENT, channels=(40, 48, 48), attention_levels=(False, False, True),
        num_head_channels=48, **common,
    )  # fmt: skip
    autoencoder = SPADEAutoencoderKL(
        channels=(32, 32, 64), attention_levels=(False,) * 3, latent_channels=LATENT,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False, **common,
    )  # fmt: skip
    for network in (unet, autoencoder):
        for parameter in network.parameters():
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.02)
    return unet, autoencoder


def converted(networks: tuple[nn.Module, nn.Module], **sampling: Any) -> LatentDiffusion:
    """Ours with MONAI's weights."""
    unet, autoencoder = networks
    denoiser = convert_denoiser(unet.state_dict(), groups=GROUPS, head_channels=48, stride=STRIDE)
    decoder = convert_autoencoder(autoencoder.state_dict(), groups=GROUPS)
    return LatentDiffusion(
        decoder.module(), denoiser.module(), prediction="v",
        sampling={"sampler": "ddim", "guidance": GUIDANCE, "clip": None} | sampling,
    )  # fmt: skip


def bundled(**sampling: Any) -> LatentDiffusion:
    """The bundle's network, with weights that are not zero."""
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    parser["device"] = DEVICE.type
    parser["network_def"]["progress"] = False
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    network.sampling = SamplingOptions(**({"sampler": "ddim", "guidance": GUIDANCE} | sampling))
    assert isinstance(network, LatentDiffusion)
    return network


def against_monai(options: argparse.Namespace, label: torch.Tensor, noise: torch.Tensor, bfloat16: bool) -> Any:
    """First table; step, volume and memory ratios."""
    networks = theirs()
    sides = {
        f"MONAI{', channels-last' * (form == LAST)}{', one batch' * paired}": Theirs(
            networks, form, paired=paired, bfloat16=bfloat16
        )
        for form in (FIRST, LAST)
        for paired in (False, True)
    }
    network = converted(networks, amp=bfloat16)
    ours = {"ours": Ours(network), "ours, channels-last": Ours(network, LAST)}
    t = torch.tensor([500], device=DEVICE)
    small = {name: side.given(label)[0] for name, side in sides.items()}
    step: dict[str, Work] = {
        name: lambda side=side, name=name: side.predict(noise, t, small[name])  # type: ignore[misc]
        for name, side in sides.items()
    } | {name: side.step(label, noise) for name, side in ours.items()}
    apart = (step["MONAI"]() - step["ours"]()).abs().max() / step["MONAI"]().abs().max()
    everyone: dict[str, Any] = sides | ours
    volume: dict[str, Work] = {
        name: lambda side=side: side.volume(label, noise, options.steps)  # type: ignore[misc]
        for name, side in everyone.items()
    }
    steps, volumes = fastest(step, options.repeats, warm=True), fastest(volume, options.volumes)
    memory = {  # no other one with more steps
        name: tensor_bytes(lambda side=side: side.volume(label, noise, 2), DEVICE) / 2**20  # type: ignore[misc]
        for name, side in everyone.items()
    }
    best = {kind: min(times[name] for name in sides) for kind, times in (("step", steps), ("volume", volumes))}
    lightest = min(memory[name] for name in sides)
    print(f"{'':<34}{'a step':>10}{'':>9}{options.steps:>6} steps + decoding{'':>4}{'peak':>8}{'of MONAI':>11}")
    for name in step:
        print(
            f"{name:<34}{steps[name]:8.3f} s{best['step'] / steps[name]:7.2f} x{volumes[name]:15.2f} s"
            f"{best['volume'] / volumes[name]:7.2f} x{memory[name]:9.0f} MiB{memory[name] / lightest:9.2f}"
        )
    return {
        "largest_difference": float(apart),
        "step": best["step"] / min(steps[name] for name in ours),
        "volume": best["volume"] / min(volumes[name] for name in ours),
        "memory": min(memory[name] for name in ours) / lightest,
    }


def what_each_adds(options: argparse.Namespace, label: torch.Tensor, noise: torch.Tensor) -> dict[str, float]:
    """Second table: guided steps of the bundle's network, and their peak memory."""
    single, half = Ours(bundled(), LAST), Ours(bundled(amp=True), LAST)
    first = Ours(bundled())
    unguided = Ours(bundled(amp=True, guidance=1.0), LAST)
    works: dict[str, Work] = {
        "all in every step, two passes": single.plain(label, noise),
        "+ what is computed once": single.step(label, noise),
        "  the same, not channels-last": first.step(label, noise),
        "+ bfloat16": half.step(label, noise),
        "  bfloat16, not channels-last": Ours(bundled(amp=True)).step(label, noise),
        "  bfloat16, all in every step": half.plain(label, noise),
        "+ outside the guidance interval": unguided.step(label, noise),
    }
    if options.compile:
        works["+ torch.compile, bfloat16"] = Ours(bundled(amp=True, compile=True), LAST).step(label, noise)
    times = fastest(works, options.repeats, warm=True)
    base = times["all in every step, two passes"]
    print(f"\n{'the bundle, a guided step':<34}{'time':>10}{'':>9}{'peak':>10}")
    for name, work in works.items():
        memory = tensor_bytes(work, DEVICE) / 2**20 if "compile" not in name else float("nan")
        print(f"{name:<34}{times[name]:8.3f} s{base / times[name]:7.2f} x{memory:9.0f} MiB")
    return {name.strip(" +"): round(base / value, 2) for name, value in times.items()}


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="96,80,48", help="voxels of the label map, multiples of 16")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5, help="of a step")
    parser.add_argument("--volumes", type=int, default=1, help="repeats of a whole volume")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile too; needs a C++ compiler")
    parser.add_argument("--quick", action="store_true", help="one repeat at 32 x 32 x 16 and 2 steps: does it run")
    options = parser.parse_args()
    if options.quick:
        options.size, options.repeats, options.steps = "32,32,16", 1, 2
    options.size = tuple(int(s) for s in options.size.split(","))
    return options


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, CLASSES, (1, 1, *(s // 8 for s in options.size)), generator=generator).float()
    label = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4).to(DEVICE)
    noise = torch.randn(1, LATENT, *(s // STRIDE for s in options.size), generator=generator).to(DEVICE)
    result: dict[str, Any] = {}
    for bfloat16 in (False, True):
        name = "bfloat16 autocast" if bfloat16 else "float32"
        print(f"\n{options.size} voxels, {DEVICE.type}, {options.threads} threads, {name}")
        ratios = against_monai(options, label, noise, bfloat16)
        for kind, value in ratios.items():
            aim = f"  aim >= {AIMS[kind]}" if kind in AIMS else ""
            print(f"  {kind:<32}{value:9.3g}{aim}")
            result[f"{kind}{'_bfloat16' * bfloat16}"] = float(f"{value:.3g}")
    result["options"] = what_each_adds(options, label, noise)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
