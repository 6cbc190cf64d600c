"""MedicalNet's 3D ResNets (Chen et al., Med3D, 2019) as feature networks: MONAI's modules, the published weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet, resnet34, resnet50
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ..segmentation import standardize
from .extractor import FeatureExtractor, FeaturesUnavailable, load_exactly, read_published

HUB_TIMEOUT = 3.0
"""Seconds after which the hub counts as out of reach."""


@dataclass(frozen=True)
class HubFile:
    """Where weights are published.

    Attributes:
        repository, file, revision: on the Hugging Face hub. No commit of these repositories is on record, so the
            revision is a branch's name; the SHA-256 is what pins the content.
        sha256: SHA-256 of the file.
        dimension: dimension of the deepest feature map.
    """

    repository: str
    file: str
    sha256: str
    dimension: int
    revision: str = "main"


MANIFEST = {
    "medicalnet_resnet34": HubFile(
        "TencentMedicalNet/MedicalNet-Resnet34", "resnet_34_23dataset.pth",
        "3ea7188e396774e4ef95b66e5e90a78273bb33f6e58d3d717bf24f5f1aaeaa28", 512,
    ),
    "medicalnet_resnet50": HubFile(
        "TencentMedicalNet/MedicalNet-Resnet50", "resnet_50_23dataset.pth",
        "ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e", 2048,
    ),
}  # fmt: skip


class MedicalNet(FeatureExtractor):
    """A MedicalNet ResNet: 512 (ResNet-34) or 2048 (ResNet-50) features of a volume at 1 mm, z-scored.

    Layers 3 and 4 are dilated (2 and 4) instead of strided and the first convolution has stride 2, so that the deepest
    map is at an eighth of the resolution: so were the weights trained, and so are they used for FID by the packages
    that publish such numbers (MedicalNet-models, which MONAI's generative examples load; medmetric). MONAI's own
    ``resnet34`` and ``resnet50`` stride in both layers and not in the first, which the weights load into as well, and
    give other numbers. MedicalNet was trained at each data set's median spacing; 1 mm is this package's choice.

    :meth:`maps` gives five: after the first convolution (stride 2) and after each layer (strides 4, 8, 8, 8).

    Args:
        network: as :func:`medicalnet_network` makes it, with its weights.
        name: one of :data:`MANIFEST`.
    """

    def __init__(self, network: ResNet, name: str) -> None:
        entry = MANIFEST[name]
        super().__init__(network, name=name, sha256=entry.sha256, dimension=entry.dimension,
                         intensity="mean 0, variance 1 per volume",
                         trained_on="CT and MRI of 23 medical data sets (as published; no case of ours was looked for "
                                    "among them)")  # fmt: skip

    def levels(self, volume: torch.Tensor) -> Iterator[torch.Tensor]:
        """Five maps ``(B, C, h, w, d)``, see the class."""
        network: Any = self.network
        x = network.act(network.bn1(network.conv1(standardize(volume))))
        yield x
        x = network.layer1(network.maxpool(x))
        yield x
        for layer in (network.layer2, network.layer3, network.layer4):
            x = layer(x)
            yield x


class ZeroPaddedShortcut(nn.Module):
    """Shortcut "A" (He et al., 2016): every stride-th voxel, zeros for the new channels; with its gradient.

    MedicalNet's and MONAI's own copy the values without their history, which would leave a perceptual loss only part of
    its gradient.

    Args:
        channels: number of channels of the result.
        stride: per axis.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, c, H, W, D)`` → ``(B, channels, H/stride, W/stride, D/stride)``, rounded up."""
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], [0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]])


def medicalnet_network(name: str) -> ResNet:
    """MONAI's ResNet with MedicalNet's strides and dilations, weights random.

    Args:
        name: one of :data:`MANIFEST`.
    """
    deep = name.endswith("50")
    make, shortcut = (resnet50, "B") if deep else (resnet34, "A")
    network = make(spatial_dims=3, n_input_channels=1, conv1_t_stride=2, feed_forward=False, shortcut_type=shortcut,
                   bias_downsample=not deep)  # fmt: skip
    width = 64
    layers: Any = (network.layer1, network.layer2, network.layer3, network.layer4)
    for layer, dilation, stride in zip(layers, (1, 1, 2, 4), (1, 2, 1, 1), strict=True):
        for module in layer.modules():
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1) if dilation > 1 else module.stride
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3
        if shortcut == "A" and layer[0].downsample is not None:
            layer[0].downsample = ZeroPaddedShortcut(width, stride)
        width *= 2
    return network


def load_medicalnet(name: str, weights: str | Path | None = None, *, download: bool = False) -> MedicalNet:
    """The network with the published weights.

    Args:
        name: one of :data:`MANIFEST`.
        weights: the file; None looks in the Hugging Face hub's cache.
        download: ask the hub for what is not in the cache; without it no network is ever asked.

    Raises:
        FeaturesUnavailable: when the file is not there and cannot be had.
        InputError: when it is not the published file.
    """
    entry = MANIFEST[name]
    path = weights or _from_hub(name, entry, download=download)
    try:
        published = read_published(path, name=name, sha256=entry.sha256)
    except FeaturesUnavailable:
        raise
    except InputError as error:
        if weights is not None:
            raise
        # the hub's file has changed, or the cache is damaged: nobody's mistake, and no reason to stop all else
        raise FeaturesUnavailable(f"{name}: what the hub gave is not the published file: {error}") from error
    state = {key.removeprefix("module."): value for key, value in published.items()}
    network = medicalnet_network(name)
    encoder = {key: value for key, value in state.items() if not key.startswith(("conv_seg.", "fc."))}
    load_exactly(network, encoder, path=path, name=name)
    return MedicalNet(network, name)


def _from_hub(name: str, entry: HubFile, *, download: bool) -> str:
    instead = (
        f"or fetch it elsewhere from the hub's {entry.repository} and give its path as weights (--weights {name}=FILE)"
    )
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    except ImportError as error:
        raise FeaturesUnavailable(
            f"{name}: fetching {entry.file} needs the package huggingface_hub; pip install huggingface-hub, {instead}"
        ) from error
    where: dict[str, Any] = {"repo_id": entry.repository, "filename": entry.file, "revision": entry.revision}
    # not hf_hub_download(local_files_only=True), which asks the hub for a list of programs before it looks
    cached = try_to_load_from_cache(**where)
    if isinstance(cached, str):
        return cached
    if not download:
        raise FeaturesUnavailable(
            f"{name}: {entry.file} is not in the Hugging Face hub's cache, and no network is asked without --download "
            f"(of bundles: --download True); give that, {instead}"
        )
    try:
        # asked once, with a short timeout: without a network the download itself goes on trying for half a minute
        get_hf_file_metadata(hf_hub_url(**where), timeout=HUB_TIMEOUT)
        return str(hf_hub_download(**where))
    except Exception as error:
        raise FeaturesUnavailable(
            f"{name}: {entry.file} is not in the Hugging Face hub's cache and the hub cannot be reached "
            f"({type(error).__name__}); connect once, {instead}"
        ) from error
