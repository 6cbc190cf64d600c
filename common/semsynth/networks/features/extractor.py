"""What feature networks share: one interface for distribution metrics and for perceptual losses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, affine_to_spacing
from monai.transforms import Orientation, Spacing
from numpy.typing import NDArray
from torch import nn

from ...errors import InputError
from ...paths import as_path
from ...tensor_files import read_tensors

SPACING_TOLERANCE = 1e-3


class FeaturesUnavailable(InputError):  # noqa: N818  (a state of affairs, raised and also shown in tables)
    """A feature network cannot be had: one line with what is missing and how to get it. None other takes its place."""


@dataclass(frozen=True)
class Features:
    """One volume in a feature network's eyes.

    Attributes:
        volume: ``(F,)`` float32.
        slices: plane → ``(S, f)`` float32, one row per slice; empty for 3D networks.
    """

    volume: NDArray[np.float32]
    slices: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class FeatureExtractor(nn.Module):
    """A feature network with fixed weights, and the way from any volume to its features.

    Gradients pass through to the input (for a loss), none reach the weights. It stays in evaluation mode, whatever it
    is a part of, so a volume's features do not depend on the rest of its batch.

    Args:
        network: the network itself, on intensities that the subclass has brought to ``intensity``.
        name: name that stands beside the numbers made with it.
        sha256: SHA-256 of the file that its weights came from.
        dimension: F, the length of a volume's feature vector.
        intensity: the rule that brings intensities in [0, 1] to what the network was trained on, in words.
        spacing: mm per voxel that it sees volumes at.
        trained_on: the data that it was trained on, in words; "" where that is unknown.
        source: the file of its weights, where a card beside it names the cases; else None.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        sha256: str,
        dimension: int,
        intensity: str,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        trained_on: str = "",
        source: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.name, self.sha256, self.dimension, self.intensity = name, sha256, dimension, intensity
        self.spacing: tuple[float, float, float] = (spacing[0], spacing[1], spacing[2])
        self.trained_on, self.source = trained_on, source
        self.train(False)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in evaluation mode, whatever it is a part of."""
        return super().train(False)

    def levels(self, volume: torch.Tensor) -> Iterator[torch.Tensor]:
        """The feature maps of :meth:`maps` one after another, so that only who keeps them needs their memory."""
        raise NotImplementedError

    def maps(self, volume: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps from shallow to deep, differentiable in the input, for perceptual losses.

        Args:
            volume: intensities in [0, 1], ``(B, 1, H, W, D)`` at :attr:`spacing`.

        Returns:
            ``(B, C, h, w, d)`` per depth.
        """
        return list(self.levels(volume))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Intensities in [0, 1], ``(B, 1, H, W, D)`` at :attr:`spacing` → features ``(B, F)``."""
        return torch.stack([self.embed(item[None]).volume for item in volume])  # one at a time: memory stays bounded

    def embed(self, volume: torch.Tensor) -> Embedding:
        """Features of one volume ``(1, 1, H, W, D)`` as tensors: the deepest map, globally averaged."""
        return Embedding(pool(last(self.levels(volume)))[0])

    @torch.no_grad()
    def describe(self, volume: MetaTensor) -> Features:
        """Features of one volume on any grid: it is brought to RAS axes and to :attr:`spacing` first.

        Args:
            volume: intensities in [0, 1], ``(1, H, W, D)`` with their affine.

        Raises:
            InputError: for another shape.
        """
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise InputError(f"features are of one volume (1, H, W, D), got the shape {tuple(volume.shape)}")
        device = next(self.network.parameters()).device
        embedding = self.embed(at_spacing(volume, self.spacing).float().to(device)[None])
        slices = {plane: rows.cpu().numpy() for plane, rows in embedding.slices.items()}
        return Features(embedding.volume.cpu().numpy(), slices)

    def about(self) -> dict[str, Any]:
        """What has to stand beside every number that is made with it."""
        return {"name": self.name, "sha256": self.sha256, "spacing": list(self.spacing), "intensity": self.intensity,
                "dimension": self.dimension} | ({"trained_on": self.trained_on} if self.trained_on else {})  # fmt: skip


@dataclass(frozen=True)
class Embedding:
    """:class:`Features` as tensors, with their gradient."""

    volume: torch.Tensor
    slices: dict[str, torch.Tensor] = field(default_factory=dict)


def pool(features: torch.Tensor) -> torch.Tensor:
    """Global average: ``(B, C, …)`` → ``(B, C)``."""
    return features.flatten(2).mean(dim=2)


def last(maps: Iterator[torch.Tensor]) -> torch.Tensor:
    """The deepest map; the others are dropped on the way."""
    deepest = next(maps)
    for deepest in maps:  # noqa: B007
        pass
    return deepest


def at_spacing(volume: MetaTensor, spacing: Sequence[float]) -> torch.Tensor:
    """``(1, H, W, D)`` on any grid → RAS axes and ``spacing``; untouched voxels where it has that spacing (1e-3 mm)."""
    moved: Any = Orientation("RAS", labels=None)(volume)
    if np.abs(np.asarray(affine_to_spacing(moved.affine)) - np.asarray(spacing)).max() > SPACING_TOLERANCE:
        moved = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")(moved)
    tensor: torch.Tensor = moved.as_tensor().contiguous()  # strides of a turned volume would change the last digits
    return tensor


def existing_file(path: str | Path, *, name: str) -> Path:
    """The path.

    Raises:
        FeaturesUnavailable: when there is no such file.
    """
    found = as_path(path, f"the weights of {name}")
    if not found.is_file():
        raise FeaturesUnavailable(f"{name}: no such file: {path}; give the path of its weights")
    return found


def read_published(path: str | Path, *, name: str, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a published weights file, out of their ``state_dict`` where there is one.

    The file is opened once: the bytes that are read are those whose hash was compared.

    Args:
        path: the file.
        name: the network's.
        sha256: SHA-256 of the published file.

    Raises:
        FeaturesUnavailable: when there is no such file.
        InputError: when it is another file, or holds anything else.
    """
    path = existing_file(path, name=name)

    def compare(stream: BufferedReader) -> None:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise InputError(
                f"{path}: not the weights of {name}: its SHA-256 is {found}, theirs is {sha256}; give that file, or "
                "delete this one from the cache so that it is fetched again"
            )

    return named_tensors(read_tensors(path, f"weights of {name}", check=compare), path, name=name)


def named_tensors(content: Any, path: str | Path, *, name: str) -> dict[str, torch.Tensor]:
    """The tensors in what a weights file holds, out of their ``state_dict`` where there is one.

    Raises:
        InputError: where it holds anything else.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no weights by name; give the file of {name}")
    return dict(state)


def load_exactly(network: nn.Module, state: dict[str, torch.Tensor], *, path: str | Path, name: str) -> None:
    """Load all weights or none: a network that is partly random gives numbers that look like any others.

    Raises:
        InputError: naming what is missing, too much or of another shape.
    """
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # older files have none, nothing uses them
    missing = sorted(set(own) - set(state) - counters)
    unknown = sorted(set(state) - set(own))
    other = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    found = [f"{len(keys)} {what} ({keys[0]}, …)" for what, keys in
             (("missing", missing), ("unknown", unknown), ("of another shape", other)) if keys]  # fmt: skip
    if found:
        raise InputError(f"{path}: does not fit {name}: weights {', '.join(found)}; give the file of that network")
    network.load_state_dict(state, strict=False)
