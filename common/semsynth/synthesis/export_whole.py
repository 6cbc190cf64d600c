"""Networks that are one graph as ONNX: segmenters and GANs, of any size of volume where the network allows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..errors import InputError
from ..networks.spade_gan import SPADEGenerator
from ..ownership import Outputs, beside, object_with
from .bundle_network import exemption, facts_of, label_classes, plain, random_volume
from .onnx_graphs import Graph, onnx_graph

GRAPH, RECORD = "model.onnx", "model.json"
TRACED = (40, 36, 20)
OTHERS = ((33, 50, 17), (7, 5, 3), (64, 32, 32))
"""Sizes that a graph of any size is traced with, and compared on."""
_RECORDS = object_with("semsynth", "graph", "largest_difference")


class Painter(nn.Module):
    """Label map and style → image: a SPADE generator, whose drawing of styles ONNX has no operators for."""

    def __init__(self, network: SPADEGenerator) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """``(1, 1, H, W, D)`` and ``(1, Z)`` → ``(1, 1, H, W, D)``."""
        pred: torch.Tensor = self.network(image, style=style)
        return pred


def whole_files(output: str | Path) -> Outputs:
    """The files of :func:`export_whole`, to be checked before any work."""
    return Outputs(output, "semsynth export", {GRAPH: beside(RECORD, _RECORDS), RECORD: _RECORDS})


def export_whole(
    network: nn.Module, bundle: Path, size: Sequence[int] | None, *, weights: str | Path | None = None
) -> dict[str, bytes]:
    """Content of ``model.onnx`` and of the record beside it.

    Args:
        network: network of the bundle, on the CPU.
        bundle: its folder.
        size: H, W, D of the graph's volumes; None: any.
        weights: weights that the network has, where they are not the bundle's own.

    Raises:
        InputError: for a network that is no single graph, or of which one of any size gives something else.
    """
    reason = exemption(bundle)
    styled = network if isinstance(network, SPADEGenerator) else None
    if reason is not None and styled is None:
        raise InputError(f"{bundle}: its network is no single graph: {reason}")
    if styled is not None and size is None:
        raise InputError(f"{bundle}: a graph of a SPADE network is of one size; give --size, such as 144,112,64")
    network, classes = plain(network), label_classes(bundle, weights)
    graph = _graph(network, [size] if size is not None else [TRACED, *OTHERS], classes)
    facts = {"semsynth": __version__} | facts_of(bundle, weights)
    content, difference = onnx_graph(graph, facts)
    about: dict[str, Any] = facts | {
        "graph": GRAPH,
        "inputs": {name: _shape(value, size) for name, value in zip(graph.names, graph.inputs, strict=True)},
        "outputs": {"pred": "logits per class" if classes is None else "intensities in [0, 1]"},
        "any_size": size is None,
        "largest_difference": float(f"{difference:.2g}"),
    }
    if getattr(network, "noise", False):
        about["noise_seed"] = network.noise_seed
    if styled is not None and styled.style_channels:
        about["style_mean"] = styled.style_mean.tolist()
        about["style_root"] = styled.drawn_root().tolist()
    return {GRAPH: content, RECORD: (json.dumps(about, indent=1) + "\n").encode()}


def _graph(network: nn.Module, sizes: Sequence[Sequence[int]], classes: int | None) -> Graph:
    """The graph and what it is compared on; one size is the graph's own."""
    given: list[tuple[Any, ...]] = [(random_volume(size, classes),) for size in sizes]
    names = ["image"]
    if isinstance(network, SPADEGenerator) and network.style_channels:
        style = torch.randn(1, network.style_channels, generator=torch.Generator().manual_seed(1))
        network, given, names = Painter(network), [(*one, style) for one in given], ["image", "style"]
    return Graph(network, given[0], names, ["pred"], given[1:])


def _shape(value: torch.Tensor, size: Sequence[int] | None) -> list[int | str]:
    fixed: list[int | str] = list(value.shape)
    return [*fixed[:2], "H", "W", "D"] if size is None and value.ndim == 5 else fixed
