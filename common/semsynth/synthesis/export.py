"""Latent diffusion as graphs that a server runs without this package: ``torch.export`` (torch alone), or ONNX.

Three graphs of one size of label map, and a description of the noise levels: what depends on the map alone
(``conditioning``, once per map), the denoiser (in every step), and the decoder. The loop between them is the server's;
it is a few lines, see the bundle's ``docs/commands.md``. Other networks are one graph, :mod:`.export_whole`.
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
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from .. import __version__
from ..errors import InputError
from ..memory import check_fits, check_size
from ..networks.autoencoder import cover
from ..networks.blocks.spade import Modulation
from ..networks.denoiser import DenoiserModulation
from ..networks.latent_diffusion import LatentDiffusion
from ..networks.sampling.samplers import Level
from ..networks.slice_diffusion import SliceDiffusion
from ..ownership import Outputs, beside, object_with
from .bundle_network import facts_of, network_of, plain, random_volume
from .export_whole import export_whole, whole_files
from .memory import synthesis_memory
from .onnx_graphs import Graph, check_packages, onnx_graph

logger = logging.getLogger(__name__)
Form: TypeAlias = Literal["torch", "onnx"]
ENDINGS: dict[str, str] = {"torch": "pt2", "onnx": "onnx"}
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


def graph_files(output: str | Path, form: Form = "torch") -> Outputs:
    """The files of :func:`export_sampling`, to be checked before any work."""
    graphs = [f"{name}.{ENDINGS[form]}" for name in ("conditioning", "denoiser", "decoder")]
    known = dict.fromkeys(graphs, beside(DESCRIPTION, _DESCRIBES)) | {DESCRIPTION: _DESCRIBES}
    return Outputs(output, "semsynth export", known)


@torch.no_grad()
def export_sampling(
    network: LatentDiffusion, size: Sequence[int], output: str | Path, form: Form = "torch", **about: Any
) -> Path:
    """Write the three graphs and ``sampling.json``, all of them or none.

    Args:
        network: in float32; its ``sampling`` says how many steps and which guidance are described.
        size: H, W, D of the label maps, axes right, anterior, superior.
        output: folder.
        form: form of the graphs.
        about: further content of the description.

    Returns:
        The folder.

    Raises:
        InputError: for guidance in a part of the steps only, maps of more slices than a window has, files in the folder
            that are not ours, a graph that gives something else than the network, or a disk that cannot be written.
    """
    output = Path(output)
    graph_files(output, form).check()
    if isinstance(network, SliceDiffusion):
        raise InputError("a network that makes volumes slice by slice is not described; use the bundle itself")
    if tuple(network.sampling.guidance_interval) != (0.0, 1.0):
        raise InputError("export supports guidance in every step only; set guidance_interval to [0, 1]")
    window = network.sampling.window
    if window is not None and size[2] > window:
        raise InputError(f"maps of {size[2]} slices need windows of {window}, which are not described; export {window}")
    network = deepcopy(network)
    plain(network)
    graphs = sampling_graphs(network, size)
    description = _description(network, size, list(graphs["denoiser"].inputs[0].shape)) | about
    made = {}
    for name, graph in graphs.items():
        if form == "torch":
            made[f"{name}.pt2"] = _graph(graph.module, graph.inputs)
            continue
        made[f"{name}.onnx"], difference = onnx_graph(graph, {"semsynth": __version__, "graph": name} | about)
        description.setdefault("graphs", {})[name] = {
            "inputs": list(graph.names), "outputs": list(graph.outputs),
            "largest_difference": float(f"{difference:.2g}"),
        }  # fmt: skip
    _write(graph_files(output, form), made | {DESCRIPTION: json.dumps(description, indent=1).encode()})
    return output


def sampling_graphs(network: LatentDiffusion, size: Sequence[int]) -> dict[str, Graph]:
    """The three graphs of :func:`export_sampling` by name.

    Args:
        network: in evaluation and float32.
        size: H, W, D of the label maps.
    """
    device = network.style_mean.device
    generator = torch.Generator().manual_seed(0)
    label = random_volume(size, network.num_classes).to(device)
    latent = (1, network.denoiser.latent_channels, *cover(size, network.autoencoder.stride))
    noisy = torch.randn(latent, generator=generator).to(device)
    style = torch.randn(1, network.style_channels, generator=generator).to(device)
    timestep = torch.full((1,), network.schedule.timesteps // 2, dtype=torch.int64, device=device)
    noise = (torch.randn(label.shape, generator=generator).to(device),) if network.autoencoder.takes_noise else ()
    conditioner = Conditioner(network)
    modulation = conditioner(label)
    parts = [f"modulation_{number}" for number in range(len(modulation))]
    denoiser, decoder = Denoiser(network).to(device), Decoder(network)
    added = ["noise"] if noise else []
    return {
        "conditioning": Graph(conditioner, (label,), ["label"], parts),
        "denoiser": Graph(denoiser, (noisy, timestep, style, modulation),
                          ["noisy", "timestep", "style", *parts], ["clean"]),
        "decoder": Graph(decoder, (noisy, label, *noise), ["latent", "label", *added], ["image"]),
    }  # fmt: skip


def _graph(module: nn.Module, inputs: tuple[Any, ...]) -> bytes:
    exported = torch.export.export(module.eval(), inputs)
    exported.example_inputs = None  # as large as a modulation
    for part in exported.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the folders of this program, which are those of a person
    stream = BytesIO()  # where a file cannot be written, torch's own writer ends the whole process
    torch.export.save(exported, stream)
    return stream.getvalue()


def _write(files: Outputs, contents: dict[str, bytes]) -> None:
    """Write all files into a folder beside each other, then move them to their names.

    Raises:
        InputError: for a file that is not ours, or a disk that cannot be written; nothing is left of the new files.
    """
    output = files.folder
    before = output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export.", dir=output) as folder:
            paths = {name: Path(folder) / name for name in contents}
            for name, path in paths.items():
                path.write_bytes(contents[name])
            files.replace(paths)
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
    size: Sequence[int] | None = None,
    *,
    form: Form = "torch",
    weights: str | Path | None = None,
    steps: int | None = None,
    overwrite: bool = False,
) -> Path:
    """A bundle's network as graphs: :func:`export_sampling`, or as ONNX also networks that are one graph.

    Args:
        bundle: its folder.
        output: folder.
        size: size of the label maps, or volumes; None: any, of a network that is one graph.
        form: form of the graphs.
        weights: instead of the bundle's ``models/model.pt``.
        steps: instead of its own.
        overwrite: replace graphs that are there, if they are ours.

    Raises:
        InputError: for a bundle of another kind, weights that do not fit, a size of fewer than 3 numbers, graphs that
            are there already, or packages that ONNX needs and that are missing.
    """
    bundle, output = Path(bundle), Path(output)
    if form not in ENDINGS:
        raise InputError(f"format must be one of {', '.join(ENDINGS)}, got {form!r}")
    if size is not None and (len(size) != 3 or min(size) < 1):
        raise InputError(f"size must be three numbers of voxels, for example 144,112,64, got {list(size)}")
    if size is not None:
        check_size(size, "a label map", "give a smaller --size", voxel=EXPORT_BYTES)
    if form == "onnx":
        check_packages()
    _free(graph_files(output, form), overwrite)
    network = load_network(bundle, weights) if form == "torch" else network_of(bundle, weights)
    facts = facts_of(bundle, weights)
    if not isinstance(network, LatentDiffusion):
        files = whole_files(output)
        _free(files, overwrite)
        _write(files, export_whole(network, bundle, size, weights=weights))
        return output
    if size is None:
        raise InputError(f"{bundle}: graphs of latent diffusion are of one size; give --size, such as 144,112,64")
    check_fits(
        synthesis_memory(network, size), f"graphs of {' × '.join(map(str, size))} voxels", "give a smaller --size"
    )
    if steps is not None:
        network.schedule.steps(steps)
        network.sampling = replace(network.sampling, steps=steps)
    return export_sampling(network, size, output, form, **facts)


def _free(files: Outputs, overwrite: bool) -> None:
    """Raise for files that are not ours, or that are there already."""
    files.check()
    there = [name for name in files.known if (files.folder / name).exists()]
    if there and not overwrite:
        raise InputError(f"{files.folder}: has {', '.join(sorted(there))} already; give another output, or --overwrite")


def load_network(bundle: str | Path, weights: str | Path | None = None) -> LatentDiffusion:
    """A latent diffusion bundle's trained network, on the CPU.

    Raises:
        InputError: no bundle there; a config that would do more than build a network; a network of another kind;
            weights that do not fit.
    """
    network = network_of(bundle, weights)
    if not isinstance(network, LatentDiffusion):
        raise InputError(
            f"{bundle}: holds a {type(network).__name__}; what is exported is a LatentDiffusion, and with --format "
            "onnx networks that are one graph"
        )
    return network
