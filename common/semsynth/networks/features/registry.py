"""The feature networks' names, and the judge as one of them: what FID, KID and perceptual losses see volumes with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import pixelunshuffle

from ..segmentation import StandardizedSegmenter
from ..texture import embedding, encoder_length, encoder_levels, swin_of
from .extractor import Embedding, FeatureExtractor, Features, FeaturesUnavailable
from .medicalnet import MANIFEST
from .slicewise import SlicewiseEfficientNet

__all__ = [
    "EXTRACTORS",
    "FeatureExtractor",
    "Features",
    "FeaturesUnavailable",
    "JudgeEncoder",
    "SlicewiseEfficientNet",
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
        sha256: SHA-256 of the weights' file.
        source: file of the weights.
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
