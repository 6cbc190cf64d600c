"""Feature networks by name: what FID, KID and perceptual losses see volumes with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import pixelunshuffle

from ...errors import InputError
from ...files import sha256
from ..segmentation import StandardizedSegmenter, subvoxel_swin
from ..texture import embedding, encoder_length, encoder_levels, swin_of
from .extractor import (
    Embedding,
    FeatureExtractor,
    Features,
    FeaturesUnavailable,
    existing_file,
    load_exactly,
    read_weights,
)
from .medicalnet import MANIFEST, load_medicalnet
from .slicewise import SlicewiseEfficientNet, load_slicewise

__all__ = [
    "EXTRACTORS",
    "FeatureExtractor",
    "Features",
    "FeaturesUnavailable",
    "JudgeEncoder",
    "SlicewiseEfficientNet",
    "load_features",
]
JUDGE = "la_unet_judge"
EXTRACTORS: tuple[str, ...] = (*MANIFEST, "efficientnet_lite0", JUDGE)


class JudgeEncoder(FeatureExtractor):
    """The encoder of a judge that segments the left atrium: the features that are about the heart.

    A volume's features are those of all levels that the encoder hands to the decoder (12, 12, 24, 48 and 96 channels at
    strides 2, 4, 8, 16 and 32), see :func:`semsynth.networks.texture.embedding`. Judges of this project are trained to
    tell the texture of a volume from them, because a network that only segments does not notice it; how much they see
    is measured by ``ci/feature_sensitivity.py`` and written in docs/evaluation.md. Whoever trains with a judge must not
    be scored with the same one.

    :meth:`maps` gives the levels as they are.

    Args:
        network: as :func:`semsynth.networks.segmentation.subvoxel_swin` makes it, with its weights.
        sha256: of the weights' file.
        source: that file.
    """

    def __init__(self, network: StandardizedSegmenter, *, sha256: str, source: Path | None = None) -> None:
        super().__init__(network, name=JUDGE, sha256=sha256, dimension=encoder_length(network),
                         intensity="mean 0, variance 1 per volume", source=source,
                         trained_on="scans of left atria, those that the card beside its weights names")  # fmt: skip

    def levels(self, volume: torch.Tensor) -> Iterator[torch.Tensor]:
        """The levels of the encoder, without the padding that the network adds."""
        network: Any = self.network
        size, factor = volume.shape[2:], network.network.factor
        x = pixelunshuffle(network.prepared(volume), spatial_dims=3, scale_factor=factor)
        for level, found in enumerate(encoder_levels(swin_of(network), x)):
            h, w, d = (-(-length // (factor * 2**level)) for length in size)
            yield found[:, :, :h, :w, :d]

    def embed(self, volume: torch.Tensor) -> Embedding:
        """Features of one volume ``(1, 1, H, W, D)`` as a tensor, of all levels, see the class."""
        return Embedding(embedding(self.levels(volume))[0])


def load_features(
    name: str,
    *,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    spacing: float = 1.0,
    download: bool = False,
) -> FeatureExtractor:
    """A feature network by its name, with the weights that the name stands for.

    The published networks' files are compared with their SHA-256. ``la_unet_judge`` is whatever file of that
    architecture is given: which one it was, its SHA-256 says beside every number.

    Args:
        name: one of :data:`EXTRACTORS`: ``medicalnet_resnet34`` and ``medicalnet_resnet50`` (from the Hugging Face
            hub's cache, or with ``download`` from the hub), ``efficientnet_lite0`` (from an installed package),
            ``la_unet_judge`` (from the bundle ``la_unet``).
        weights: the weights' file, where it is not to be looked for; needed for ``la_unet_judge``.
        device: where it computes.
        spacing: mm per voxel at which ``efficientnet_lite0`` takes slices; the others have one of their own.
        download: ask the hub for weights that are not here; without it no network is ever asked.

    Raises:
        FeaturesUnavailable: when the weights cannot be had, in one line.
        InputError: for an unknown name, another file than the published one, or one of another architecture.
    """
    if name not in EXTRACTORS:
        raise InputError(f"no feature network is called {name!r}; there are {', '.join(EXTRACTORS)}")
    extractor: FeatureExtractor
    if name in MANIFEST:
        extractor = load_medicalnet(name, weights, download=download)
    elif name == JUDGE:
        extractor = _load_judge(weights)
    else:
        extractor = load_slicewise(weights, spacing=spacing)
    return extractor.to(device)


def _load_judge(weights: str | Path | None) -> JudgeEncoder:
    if weights is None:
        raise FeaturesUnavailable(f"{JUDGE}: give the path of the bundle la_unet's models/judge_1.pt as weights")
    path = existing_file(weights, name=JUDGE)
    network = subvoxel_swin()
    load_exactly(network, read_weights(path, name=JUDGE), path=path, name=JUDGE)
    return JudgeEncoder(network, sha256=sha256(path), source=path)
