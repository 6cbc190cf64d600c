"""Segmentation networks that standardise their input themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import SwinUNETR, UNet
from torch import nn
from torch.nn import functional as F

from ..limits import check_classes


class StandardizedSegmenter(nn.Module):
    """Any fully convolutional network behind per-volume standardisation and padding.

    The intensity scale of an MRI means nothing: the volume is brought to mean 0 and variance 1 first, inside it and
    differentiable, so that the same module segments scans and judges synthetic volumes within a loss (the gradient
    passes through the standardisation). Any size: it pads to a multiple of ``multiple`` by repeating the border, after
    the statistics are taken, and crops back. A volume that would be one voxel at the network's lowest level, of which
    instance norm takes no statistics, is padded to two along the first axis.

    Args:
        network: ``(B, 1, H, W, D)`` → logits ``(B, C, H, W, D)``, H, W, D multiples of ``multiple``.
        multiple: factor of the network's down- and upsampling, 16 for five levels.

    Examples:
        >>> network = StandardizedSegmenter(torch.nn.Conv3d(1, 2, 3, padding=1), multiple=4)
        >>> image = torch.rand(1, 1, 9, 8, 7)
        >>> bool(torch.allclose(network(image), network(100 * image + 7), atol=1e-3))  # whatever the intensity scale
        True
    """

    def __init__(self, network: nn.Module, *, multiple: int = 16) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Volume → logits.

        Args:
            image: intensities on any scale, ``(B, 1, H, W, D)``.

        Returns:
            Logits per class, ``(B, C, H, W, D)``.
        """
        h, w, d = image.shape[2], image.shape[3], image.shape[4]
        logits: torch.Tensor = self.network(self.prepared(image))[:, :, :h, :w, :d]
        return logits

    def prepared(self, image: torch.Tensor) -> torch.Tensor:
        """What the network within sees of a volume: standardised and padded, ``(B, 1, H', W', D')``."""
        h, w, d = image.shape[2], image.shape[3], image.shape[4]
        m = self.multiple
        least = 2 * m - m * min((max(h, w, d) - 1) // m, 1)  # 2 m of one block; no branch, for graphs of any size
        padding = [0, -d % m, 0, -w % m, 0, max(-h % m, least - h)]
        return F.pad(standardize(image), padding, mode="replicate")


def standardize(image: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Mean 0 and variance 1 per item of the batch, in float32: ``(B, C, H, W, D)`` → the same shape."""
    x = image.float()
    x = x - x.mean(dim=(1, 2, 3, 4), keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim=(1, 2, 3, 4), keepdim=True) + eps)


class SubvoxelNetwork(nn.Module):
    """A network that works on blocks of 2 × 2 × 2 voxels, without losing their detail.

    The block's voxels become channels (and channels become voxels again at the end), so a network that would be slow at
    full resolution runs on an eighth of the positions: Shi et al., CVPR 2016, section 3.1, in 3D and both ways.

    Args:
        network: ``(B, 8·in, h, w, d)`` → ``(B, 8·out, h, w, d)``.
        factor: edge of a block, in voxels.
    """

    def __init__(self, network: nn.Module, *, factor: int = 2) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, in, H, W, D)`` → ``(B, out, H, W, D)``; H, W, D are multiples of what the network needs × factor."""
        # as MONAI's pixelunshuffle and pixelshuffle, which TorchScript cannot hold
        f = self.factor
        b, c, h, w, d = x.shape
        blocks = x.reshape(b, c, h // f, f, w // f, f, d // f, f).permute(0, 1, 3, 5, 7, 2, 4, 6)
        y = self.network(blocks.reshape(b, c * f * f * f, h // f, w // f, d // f))
        y = y.reshape(b, -1, f, f, f, h // f, w // f, d // f).permute(0, 1, 5, 2, 6, 3, 7, 4)
        x = y.reshape(b, -1, h, w, d)
        return x


def residual_unet(
    num_classes: int = 2, *, channels: Sequence[int] = (16, 32, 64, 128, 128), dropout: float = 0.2
) -> StandardizedSegmenter:
    """MONAI's residual 3D U-Net with instance norm (Al-Sanaani et al., section II-D), standardising its input.

    Args:
        num_classes: background and what is to be segmented.
        channels: widths of the levels, five in the paper (which gives no widths).
        dropout: rate within the units.

    Examples:
        >>> network = residual_unet(channels=(4, 8, 8, 8, 8)).eval()
        >>> network(torch.rand(1, 1, 30, 22, 18)).shape  # any size
        torch.Size([1, 2, 30, 22, 18])
    """
    check_classes(num_classes)
    network = UNet(
        spatial_dims=3, in_channels=1, out_channels=num_classes, channels=channels, strides=(2,) * (len(channels) - 1),
        num_res_units=2, norm="INSTANCE", dropout=dropout,
    )  # fmt: skip
    return StandardizedSegmenter(network, multiple=2 ** (len(channels) - 1))


def subvoxel_swin(
    num_classes: int = 2, *, features: int = 12, window: int = 4, depths: Sequence[int] = (2, 2, 2, 2)
) -> StandardizedSegmenter:
    """MONAI's Swin UNETR (Hatamizadeh et al. 2021) on blocks of 2 × 2 × 2 voxels, standardising its input.

    Another family than :func:`residual_unet`: its encoder is a transformer with attention within windows, for a judge
    whose mistakes are its own.

    Args:
        num_classes: background and what is to be segmented.
        features: width of the first level, doubled at each of the five; a multiple of 12.
        window: edge of the windows of attention, in positions of a level.
        depths: transformer blocks per stage.

    Examples:
        >>> network = subvoxel_swin(window=2, depths=(1, 1, 1, 1)).eval()
        >>> network(torch.rand(1, 1, 32, 32, 32)).shape
        torch.Size([1, 2, 32, 32, 32])
    """
    check_classes(num_classes)
    network = SwinUNETR(
        spatial_dims=3, in_channels=8, out_channels=8 * num_classes, feature_size=features, window_size=window,
        depths=tuple(depths), num_heads=(2, 2, 4, 4),
    )  # fmt: skip
    return StandardizedSegmenter(SubvoxelNetwork(network), multiple=64)
