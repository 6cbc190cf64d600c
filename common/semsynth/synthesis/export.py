"""Latent diffusion as graphs (``torch.export``) that a server runs with torch alone, without this package.

Three graphs of one size of label map, and a description of the noise levels: what depends on the map alone
(``conditioning.pt2``, once per map), the denoiser (``denoiser.pt2``, in every step), and the decoder (``decoder.pt2``).
The loop between them is the server's; it is a few lines, see the bundle's ``docs/README.md``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from .. import __version__
from ..errors import InputError, is_out_of_memory
from ..files import sha256
from ..json_files import read_object
from ..memory import check_fits, check_size
from ..networks.autoencoder import cover
from ..networks.blocks.spade import Modulation
from ..networks.denoiser import DenoiserModulation
from ..networks.latent_diffusion import LatentDiffusion
from ..networks.sampling.samplers import Level
from ..ownership import Outputs, beside, object_with
from ..training.weights import load_weights
from ..trust.configs import refuse_configs
from .memory import synthesis_memory

logger = logging.getLogger(__name__)
DESCRIPTION = "sampling.json"
_DESCRIBES = object_with("semsynth", "timesteps", "signal_squared")
EXPORT_BYTES = 8
"""Per voxel at least: the label map, and the volume."""


class Conditioner(nn.Module):
    """Label map ``(1, 1, H, W, D)`` → the denoiser's modulation of map and null map, as tensors ``(2, C, h, w, d)``."""

    def __init__(self, network: LatentDiffusion) -> None:
        super().__init__()
        self.denoiser = network.denoiser

    def forward(self, label: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        levels = self.denoiser.encode(label)
        null = self.denoiser.null(levels)
        made = self.denoiser.modulation({stride: torch.cat([x, null[stride]]) for stride, x in levels.items()})
        return tuple(flat(made))


class Denoiser(nn.Module):
    """Noisy latent, time step, style and modulation → the latent without noise, by the map and by the null map.

    It is linear in the network's prediction: what is guided is guided, clipped and stepped on from it.
    """

    def __init__(self, network: LatentDiffusion) -> None:
        super().__init__()
        self.denoiser, self.schedule = network.denoiser, network.schedule
        squares = network.schedule.alphas_cumprod()
        self.register_buffer("signal", squares.sqrt().float())
        self.register_buffer("noise", (1.0 - squares).sqrt().float())
        self.names = _names(self.denoiser)

    signal: torch.Tensor
    noise: torch.Tensor

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, style: torch.Tensor, modulation: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """``(1, Z, h, w, d)``, ``(1,)`` int64, standardised ``(1, S)``, tensors → ``(2, Z, h, w, d)``."""
        level = Level(self.signal[timestep].view(-1, 1, 1, 1, 1), self.noise[timestep].view(-1, 1, 1, 1, 1))
        embedded = self.denoiser.embed(timestep, style if style.shape[1] else None)
        output = self.denoiser.denoise(noisy, embedded, nested(modulation, self.names))
        clean, _ = self.schedule.estimate(self.schedule.joined(output, level), noisy, level)
        return clean


class Decoder(nn.Module):
    """Latent of unit variance ``(1, Z, h, w, d)`` and label map → intensities in [0, 1], ``(1, 1, H, W, D)``.

    A decoder that adds noise takes it as well: of mean 0 and variance 1, as large as the map.
    """

    def __init__(self, network: LatentDiffusion) -> None:
        super().__init__()
        self.autoencoder = network.autoencoder
        self.register_buffer("scale", network.latent_scale.float())

    scale: torch.Tensor

    def forward(self, latent: torch.Tensor, label: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.autoencoder.decode(latent / self.scale, label, *noise).clamp(0.0, 1.0)


def flat(modulation: DenoiserModulation) -> list[torch.Tensor]:
    """Scale and shift of each normalisation, in the order of the blocks."""
    blocks = [*modulation.middle, *modulation.up]
    return [part for block in blocks for made in block.values() for part in made]


def nested(tensors: Sequence[torch.Tensor], names: Sequence[Sequence[Sequence[str]]]) -> DenoiserModulation:
    """The inverse of :func:`flat`, with the names of each block's normalisations, middle and decoder."""
    left = iter(tensors)
    middle, up = ([{name: Modulation(next(left), next(left)) for name in block} for block in part] for part in names)
    return DenoiserModulation(middle, up)


def _names(denoiser: nn.Module) -> list[list[list[str]]]:
    with torch.no_grad():
        label = torch.zeros(1, 1, 8, 8, 8, device=next(denoiser.parameters()).device)
        made = denoiser.modulation(denoiser.encode(label))  # type: ignore[operator]
    return [[list(block) for block in part] for part in made]


def graph_files(output: str | Path) -> Outputs:
    """The files of :func:`export_sampling`, to be checked before any work."""
    graphs = ("conditioning.pt2", "denoiser.pt2", "decoder.pt2")
    known = dict.fromkeys(graphs, beside(DESCRIPTION, _DESCRIBES)) | {DESCRIPTION: _DESCRIBES}
    return Outputs(output, "semsynth export", known)


@torch.no_grad()
def export_sampling(network: LatentDiffusion, size: Sequence[int], output: str | Path, **about: Any) -> Path:
    """Write the three graphs and ``sampling.json``, all of them or none.

    Args:
        network: in float32; its ``sampling`` says how many steps and which guidance are described.
        size: H, W, D of the label maps, axes right, anterior, superior.
        output: folder.
        about: what else the description says.

    Returns:
        The folder.

    Raises:
        InputError: for guidance in a part of the steps only, maps of more slices than a window has, files in the folder
            that are not ours, or a disk that cannot be written.
    """
    output = Path(output)
    graph_files(output).check()
    if tuple(network.sampling.guidance_interval) != (0.0, 1.0):
        raise InputError("what is described is guidance in all steps; set guidance_interval to [0, 1]")
    window = network.sampling.window
    if window is not None and size[2] > window:
        raise InputError(f"maps of {size[2]} slices need windows of {window}, which are not described; export {window}")
    network = deepcopy(network).float().eval()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    device = network.style_mean.device
    latent = [1, network.denoiser.latent_channels, *cover(size, network.autoencoder.stride)]
    label, noisy = torch.zeros(1, 1, *size, device=device), torch.zeros(latent, device=device)
    style = torch.zeros(1, network.style_channels, device=device)
    timestep = torch.zeros(1, dtype=torch.int64, device=device)
    noise = (torch.zeros_like(label),) if network.autoencoder.takes_noise else ()
    conditioner = Conditioner(network)
    graphs: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
        "conditioning": (conditioner, (label,)),
        "denoiser": (Denoiser(network).to(device), (noisy, timestep, style, conditioner(label))),
        "decoder": (Decoder(network), (noisy, label, *noise)),
    }
    made = {f"{name}.pt2": _graph(module, inputs) for name, (module, inputs) in graphs.items()}
    description = _description(network, size, latent) | about
    _write(output, made | {DESCRIPTION: json.dumps(description, indent=1).encode()})
    return output


def _graph(module: nn.Module, inputs: tuple[Any, ...]) -> bytes:
    exported = torch.export.export(module.eval(), inputs)
    exported.example_inputs = None  # as large as a modulation
    stream = BytesIO()  # where a file cannot be written, torch's own writer ends the whole process
    torch.export.save(exported, stream)
    return stream.getvalue()


def _write(output: Path, contents: dict[str, bytes]) -> None:
    """Write all files into a folder beside each other, then move them to their names.

    Raises:
        InputError: for a file that is not ours, or a disk that cannot be written; nothing is left of the new files.
    """
    before = output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export.", dir=output) as folder:
            paths = {name: Path(folder) / name for name in contents}
            for name, path in paths.items():
                path.write_bytes(contents[name])
            graph_files(output).replace(paths)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); free disk space or give another --output"
        ) from error
    finally:
        if not before and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
    for name in contents:
        logger.info("%s", output / name)


def _description(network: LatentDiffusion, size: Sequence[int], latent: Sequence[int]) -> dict[str, Any]:
    timesteps = network.schedule.steps(network.sampling.steps)
    squares = network.schedule.alphas_cumprod()[timesteps].tolist()
    about: dict[str, Any] = {
        "semsynth": __version__,
        "label_map": [1, 1, *size],
        "num_classes": network.num_classes,
        "latent": list(latent),
        "timesteps": timesteps,
        "signal_squared": [*squares, 1.0],
        "guidance": network.sampling.guidance,
        "clip": 1e6 if network.sampling.clip is None else network.sampling.clip,
        "decoder_noise": network.autoencoder.takes_noise,
    }
    if network.style_channels:
        about["style_mean"] = network.style_mean.tolist()
        about["style_root"] = network.style_root().tolist()
    return about


def export_bundle(
    bundle: str | Path,
    output: str | Path,
    size: Sequence[int],
    *,
    weights: str | Path | None = None,
    steps: int | None = None,
    overwrite: bool = False,
) -> Path:
    """:func:`export_sampling` of a bundle's network.

    Args:
        bundle: its folder.
        output: folder.
        size: of the label maps.
        weights: instead of the bundle's ``models/model.pt``.
        steps: instead of its own.
        overwrite: replace graphs that are there, if they are ours.

    Raises:
        InputError: for a bundle of another kind, weights that do not fit, a size of fewer than 3 numbers, graphs that
            are there already.
    """
    bundle, output = Path(bundle), Path(output)
    if len(size) != 3 or min(size) < 1:
        raise InputError(f"size must be three numbers of voxels, for example 144,112,64, got {list(size)}")
    files = graph_files(output)
    files.check()
    there = [name for name in files.known if (output / name).exists()]
    if there and not overwrite:
        raise InputError(f"{output}: has {', '.join(sorted(there))} already; give another output, or --overwrite")
    check_size(size, "a label map", "give a smaller --size", voxel=EXPORT_BYTES)
    network = load_network(bundle, weights)
    check_fits(
        synthesis_memory(network, size), f"graphs of {' × '.join(map(str, size))} voxels", "give a smaller --size"
    )
    if steps is not None:
        network.schedule.steps(steps)
        network.sampling = replace(network.sampling, steps=steps)
    return export_sampling(network, size, output, weights_sha256=sha256(weights or bundle / "models" / "model.pt"))


def load_network(bundle: str | Path, weights: str | Path | None = None) -> LatentDiffusion:
    """A bundle's trained network, on the CPU.

    Raises:
        InputError: no bundle there; a config that would do more than build a network; a network of another kind;
            weights that do not fit.
    """
    bundle = Path(bundle)
    config = bundle / "configs" / "inference.json"
    if not config.is_file():
        raise InputError(f"{bundle}: no configs/inference.json in it; give the folder of a bundle")
    refuse_configs(bundle, config.name)
    parser = ConfigParser()
    parser.read_config(read_object(config, damaged="take the bundle's own"))
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    source = Path(weights or bundle / "models" / "model.pt")
    state = {name: value.float() for name, value in load_weights(source).items()}
    if any(name.startswith("autoencoder.decoder.noise.") for name in state):
        parser["network_def#autoencoder#noise"] = True
    try:
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # of any kind that a config's components raise
        if is_out_of_memory(error):
            raise
        reason = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise InputError(f"{config}: its network_def cannot be built ({reason[0]}); take the bundle's own") from error
    if not isinstance(network, LatentDiffusion):
        raise InputError(f"{bundle}: holds a {type(network).__name__}; what is exported is a LatentDiffusion")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{source}: weights of another network ({str(error).splitlines()[-1].strip()})") from error
    return network
