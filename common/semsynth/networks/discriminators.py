"""Discriminators of (label map, image) pairs, and of images alone, around MONAI's PatchGAN."""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ..errors import InputError
from ..labels import one_hot
from ..limits import check_classes
from .blocks.normalization import VolumeInstanceNorm


class ConditionalPatchDiscriminator(nn.Module):
    """3D PatchGAN on a label map and an image: one logit per patch (Isola et al. 2017, section 3.2.2).

    Args:
        num_classes: number of classes of the label map.
        channels: width of the first layer; doubled by each further one.
        num_layers: strided layers before the last (3: a logit sees 70 voxels per axis; 2: 34).
        norm: MONAI's norm name or (name, arguments), ``"volume_instance"``
            (:class:`~semsynth.networks.blocks.normalization.VolumeInstanceNorm`), or None. Batch norm as in the paper;
            at batch size 1 it is instance norm. (The one training tried without any norm, at learning rate 4e-4, blew
            up within 400 steps.)
        detail: one more input channel, the image minus its local mean over 3³ voxels, times 8. Noise is a small part of
            an image's variance, and a filter that sees it has to be found first; the channel hands it over.
        label_encoding: ``"scalar"`` (paper: two input channels in all) or ``"one_hot"``.
        spectral: spectral norm (Miyato et al. 2018) on every convolution, the first and the last too.

    Raises:
        InputError: for another label encoding, or fewer than 2 classes.

    Examples:
        >>> network = ConditionalPatchDiscriminator(4, channels=4, num_layers=2)
        >>> network(torch.zeros(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32))[-1].shape  # a logit per patch
        torch.Size([1, 1, 6, 6, 6])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 32,
        num_layers: int = 3,
        norm: str | tuple[str, dict[str, Any]] | None = "BATCH",
        detail: bool = False,
        label_encoding: Literal["one_hot", "scalar"] = "scalar",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if label_encoding not in ("one_hot", "scalar"):
            raise InputError(f"label_encoding must be one_hot or scalar, got {label_encoding!r}")
        if num_classes < 2:
            raise InputError(f"a discriminator of label maps needs 2 or more classes, got {num_classes}")
        check_classes(num_classes)
        self.num_classes = num_classes
        self.scalar = label_encoding == "scalar"
        self.smallest = 3 * 2**num_layers  # voxels per axis below which the last layer's kernel would not fit
        self.detail = detail
        inputs = 1 + int(detail) + (1 if self.scalar else num_classes)
        self.net = _patch_discriminator(3, inputs, channels, num_layers, norm, spectral)

    def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        """Features and logits of pairs.

        Args:
            label: class indices ``(B, 1, H, W, D)``.
            image: intensities in [0, 1], ``(B, 1, H, W, D)``; scaled to [-1, 1] inside.

        Returns:
            The features of each layer and, last, the logits ``(B, 1, h, w, d)``.
        """
        return self.features(self.encode(label, image.dtype), image)

    def encode(self, label: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Class indices ``(B, 1, H, W, D)`` → what the network sees of them, in [-1, 1] ``(B, 1 or C, H, W, D)``."""
        if self.scalar:
            return label.to(dtype) * (2.0 / (self.num_classes - 1)) - 1.0
        return one_hot(label, self.num_classes, dtype=dtype)

    def features(self, condition: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        """The same as :meth:`forward`, with the map as :meth:`encode` gives it, whatever was done to it since."""
        x = _padded(torch.cat([condition, image * 2.0 - 1.0], dim=1), self.smallest)
        if self.detail:
            mean = F.avg_pool3d(x[:, -1:], 3, stride=1, padding=1, count_include_pad=False)
            x = torch.cat([x, (x[:, -1:] - mean) * 8.0], dim=1)
        features: list[torch.Tensor] = self.net(x)
        return features


class MultiScaleDiscriminator(nn.Module):
    """Discriminators of one architecture at several resolutions (Wang et al. 2018, pix2pixHD, section 3.2).

    The s-th sees map and image at 1/2^s of the resolution: it sees structures 2^s times as large. The image is halved
    by averaging 2³ voxels, and so is a one-hot map, whose voxels become fractions of classes; of a scalar map, whose
    average would be another class, every second voxel is taken. Sizes are rounded up by repeating the border.
    Volumes of fewer than 3·2^(num_layers + s) voxels per axis are padded by their border at scale s, so that of small
    patches the coarse scales see little but padding.

    SPADE's discriminator (Park et al. 2019) is this one with ``norm="INSTANCE"``, ``spectral=True`` (there not on the
    first and the last convolution) and one-hot maps.

    Args:
        num_classes: number of classes of the label map.
        scales: number of discriminators.
        channels, num_layers, norm, detail, label_encoding, spectral: settings of each, see
            :class:`ConditionalPatchDiscriminator`.

    Raises:
        InputError: for fewer than one scale, and as :class:`ConditionalPatchDiscriminator`.

    Examples:
        >>> network = MultiScaleDiscriminator(4, scales=2, channels=4, num_layers=2)
        >>> fine, coarse = network(torch.zeros(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32))
        >>> fine[-1].shape, coarse[-1].shape
        (torch.Size([1, 1, 6, 6, 6]), torch.Size([1, 1, 2, 2, 2]))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        scales: int = 2,
        channels: int = 32,
        num_layers: int = 3,
        norm: str | tuple[str, dict[str, Any]] | None = "INSTANCE",
        detail: bool = False,
        label_encoding: Literal["one_hot", "scalar"] = "one_hot",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if scales < 1:
            raise InputError(f"scales must be 1 or more, got {scales}")
        networks = [
            ConditionalPatchDiscriminator(num_classes, channels=channels, num_layers=num_layers, norm=norm,
                                          detail=detail, label_encoding=label_encoding, spectral=spectral)
            for _ in range(scales)
        ]  # fmt: skip
        self.finest = networks[0]
        self.coarser = nn.ModuleList(networks[1:])

    def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[list[torch.Tensor]]:
        """Features and logits of pairs.

        Args:
            label: class indices ``(B, 1, H, W, D)``.
            image: intensities in [0, 1], ``(B, 1, H, W, D)``.

        Returns:
            Per scale, from fine to coarse, the features of each layer and, last, the logits ``(B, 1, h, w, d)``.
        """
        condition = self.finest.encode(label, image.dtype)
        features = [self.finest.features(condition, image)]
        for discriminator in self.coarser:
            condition = condition[:, :, ::2, ::2, ::2] if self.finest.scalar else halved(condition)
            image = halved(image)
            features.append(discriminator.features(condition, image))  # type: ignore[operator]
        return features


class SliceAndVolumeDiscriminator(nn.Module):
    """Two PatchGANs on images without labels: one sees single axial slices, one the volume (Med-LSDM, section 3.2).

    With 64 channels and 3 layers they have the paper's 2.8 M and 11.0 M parameters (appendix A).

    Args:
        channels, num_layers, norm, spectral: settings of each, see :class:`ConditionalPatchDiscriminator`; the norm is
            MONAI's, ``"BATCH"`` in the paper. ``"volume_instance"`` holds for the volume's, and is instance norm for
            slices'.

    Examples:
        >>> network = SliceAndVolumeDiscriminator(channels=4, num_layers=2)
        >>> slices, volume = network(torch.rand(1, 1, 32, 32, 32), torch.tensor([3, 17]))
        >>> slices[-1].shape, volume[-1].shape
        (torch.Size([2, 1, 6, 6]), torch.Size([1, 1, 6, 6, 6]))
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        num_layers: int = 3,
        norm: str | tuple[str, dict[str, Any]] | None = "BATCH",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        self.smallest = 3 * 2**num_layers
        of_slices = "INSTANCE" if norm == "volume_instance" else norm
        self.slices = _patch_discriminator(2, 1, channels, num_layers, of_slices, spectral)
        self.volume = _patch_discriminator(3, 1, channels, num_layers, norm, spectral)

    def forward(self, image: torch.Tensor, where: torch.Tensor) -> list[list[torch.Tensor]]:
        """Features and logits of images.

        Args:
            image: intensities in [0, 1], ``(B, 1, H, W, D)``; scaled to [-1, 1] inside.
            where: indices of the axial slices to look at, along D, the same in all items.

        Returns:
            Of the slices ``(B · slices, …)`` and of the volume ``(B, …)``: the features of each layer and, last, the
            logits.
        """
        x = image * 2.0 - 1.0
        slices = x[..., where].permute(0, 4, 1, 2, 3).flatten(0, 1)  # (B · slices, 1, H, W)
        return [self.slices(_padded(slices, self.smallest)), self.volume(_padded(x, self.smallest))]


def _patch_discriminator(
    spatial_dims: int,
    inputs: int,
    channels: int,
    num_layers: int,
    norm: str | tuple[str, dict[str, Any]] | None,
    spectral: bool,
) -> PatchDiscriminator:
    net = PatchDiscriminator(
        spatial_dims=spatial_dims,
        channels=channels,
        in_channels=inputs,
        num_layers_d=num_layers,
        norm="INSTANCE" if norm == "volume_instance" else norm,  # type: ignore[arg-type]  # MONAI takes None too
    )
    if norm == "volume_instance":
        _use_volume_instance_norm(net)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    for layer in convolutions:
        # MONAI's N(0, 0.02) is meant for 2D: with 4³ kernels it starts with logits all over the place
        nn.init.kaiming_normal_(layer.weight, a=0.2, nonlinearity="leaky_relu")
    last = convolutions[-1].weight
    nn.init.normal_(last, std=0.3 * last[0].numel() ** -0.5)  # first logits near 0, none favoured
    if spectral:
        for layer in convolutions:
            parametrizations.spectral_norm(layer)
    return net


def _padded(x: torch.Tensor, smallest: int) -> torch.Tensor:
    """At least so many voxels along each axis, by repeating the border: a thin stack of slices."""
    missing = [max(smallest - size, 0) for size in x.shape[:1:-1]]  # last axis first, as pad takes them
    if not any(missing):
        return x
    return F.pad(x, [p for m in missing for p in (m // 2, m - m // 2)], mode="replicate")


def halved(x: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W, D)`` → means of 2³ voxels, sizes rounded up: an odd border is repeated once."""
    odd = [p for size in x.shape[:1:-1] for p in (0, size % 2)]
    if any(odd):
        x = F.pad(x, odd, mode="replicate")
    return F.avg_pool3d(x, 2)


def _use_volume_instance_norm(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, VolumeInstanceNorm(child.num_features))
