"""Diffusion in pixels, slice by slice, with the label map beside the noisy image: SegGuidedDiff.

Konz et al. 2024 ("Anatomically-Controllable Medical Image Generation with Segmentation-Guided Diffusion Models",
MICCAI): a 2D U-Net that sees the noisy slice and its one-hot label map as channels, and "mask-ablated training", for
maps in which classes are missing. A volume is its slices, each denoised for itself. The U-Net is MONAI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..labels import plain
from ..limits import check_classes
from .autoencoder import DecoderModulation
from .blocks.noise import gaussian_noise
from .denoiser import Denoiser
from .latent_diffusion import Denoised, LatentDiffusion
from .map_diffusion import UNKNOWN, partly
from .sampling.guided import Conditioning

NoiseField: TypeAlias = Literal["slice", "volume"]


class Pixels(nn.Module):
    """A stand-in for an autoencoder: the latent is the image itself, in [-1, 1]. It has no parameters."""

    latent_channels = 1
    stride = 1
    takes_noise = False

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Intensities in [0, 1], ``(B, 1, H, W, D)`` → the same in [-1, 1], and log σ², −∞: it has no spread."""
        latent = plain(image).float() * 2.0 - 1.0
        return latent, torch.full_like(latent, -torch.inf)

    def decode(self, latent: torch.Tensor, condition: torch.Tensor | DecoderModulation) -> torch.Tensor:
        """The inverse of :meth:`encode`; ``condition`` is not used."""
        return plain(latent).float() * 0.5 + 0.5

    def modulation(self, label: torch.Tensor) -> DecoderModulation:
        """What decoding takes from a label map: nothing but its size."""
        return DecoderModulation((label.shape[2], label.shape[3], label.shape[4]), [])

    def reach(self) -> int:
        """How many voxels away the latent has a say in a voxel of the image."""
        return 0


class SliceLabels(NamedTuple):
    """What a :class:`ConcatUNet` is told of the slices.

    Attributes:
        channels: ``(B, 2, H, W, D)``: class indices, −1 where the class is unknown, and the slice's position in
            (-1, 1).
    """

    channels: torch.Tensor

    def row(self, number: int) -> SliceLabels:
        """The labels of one item of the batch; no copy."""
        return SliceLabels(self.channels[number : number + 1])

    def window(self, first: int, last: int) -> SliceLabels:
        """The labels of a range of slices; no copy."""
        return SliceLabels(self.channels[..., first:last])


class ConcatUNet(Denoiser):
    """Noisy image, time step and label map → the noise: MONAI's 2D diffusion U-Net, each slice for itself.

    The network's channels are the noisy slice and its one-hot label map (all zeros where the class is unknown). Any
    size of at least ``2 ** (levels - 1)`` pixels: slices are padded by their mirror image to a multiple of that.

    Args:
        num_classes: C, of the label map.
        channels: width of each level, from fine to coarse; multiples of ``groups``.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: levels with self-attention, beside the middle; None for no level.
        head_channels: number of channels of each attention head.
        groups: number of groups of the group norms.
        position: True where the slice's place in the volume is a channel too.
        predictions: number of predictions, each of the image's channels: 2 for ``prediction: "split"``.

    Attributes:
        windowed, slices_apart: True where a range of slices can be denoised without the others, and where each can be.

    Raises:
        InputError: for values out of range, or numbers of levels that differ.
    """

    windowed = slices_apart = True

    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64, 96, 128),
        blocks: int = 2,
        attention: Sequence[bool] | None = None,
        head_channels: int = 32,
        groups: int = 16,
        position: bool = False,
        predictions: int = 1,
    ) -> None:
        attended = [False] * len(channels) if attention is None else [bool(on) for on in attention]
        if not channels or len(attended) != len(channels) or blocks < 1 or any(width % groups for width in channels):
            raise InputError(
                f"needs channels of 1 or more levels, multiples of groups ({groups}), as many attention as channels, "
                f"and 1 or more blocks, got {list(channels)}, {attended} and {blocks}"
            )
        check_classes(num_classes)
        super().__init__(style_channels=0, predictions=predictions)
        self.num_classes, self.latent_channels, self.strides = num_classes, 1, [1]
        self.position, self.multiple = position, 2 ** (len(channels) - 1)
        self.network = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1 + num_classes + position,
            out_channels=predictions,
            num_res_blocks=blocks,
            channels=list(channels),
            attention_levels=attended,
            norm_num_groups=groups,
            num_head_channels=head_channels,
        )

    def encode(self, label: torch.Tensor, position: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        """Class indices ``(B, 1, H, W, D)``, −1 where unknown → what the network is told, under stride 1.

        Args:
            label: the map.
            position: position of each item's slices in their volume, ``(B, D)`` in (0, 1); None: the slices are the
                volume.
        """
        label = plain(label).float()
        if position is None:
            depth = label.shape[-1]
            position = ((torch.arange(depth, device=label.device) + 0.5) / depth).expand(len(label), depth)
        place = (position.to(label) * 2.0 - 1.0)[:, None, None, None, :]
        return {1: torch.cat([label, place.expand_as(label)], dim=1)}

    def null(self, levels: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """:meth:`encode` of no label at all, of the same slices."""
        channels = levels[1].clone()
        channels[:, :1] = UNKNOWN
        return {1: channels}

    def modulation(self, levels: dict[int, torch.Tensor]) -> SliceLabels:
        """What the network is told; it is made one-hot for the slices that are denoised, not before."""
        return SliceLabels(levels[1])

    def embed(self, timestep: torch.Tensor, style: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The time steps, ``(B, 1)``: MONAI's network embeds them itself."""
        return [timestep.float()[:, None]]

    def down_path(self, x: torch.Tensor, embedded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Nothing is done: the label map is among the first layer's channels."""
        return x, []

    def up_path(
        self, x: torch.Tensor, skips: Sequence[torch.Tensor], embedded: Sequence[torch.Tensor], condition: Any
    ) -> torch.Tensor:
        """The whole network, from noisy images ``(B, 1, H, W, D)``; ``(B, predictions, H, W, D)``, float32."""
        channels = condition.channels if isinstance(condition, SliceLabels) else condition[1]
        rows, depth = max(len(channels), len(x)), x.shape[-1]
        told = self._told(_slices(channels)).repeat(rows // len(channels), 1, 1, 1)
        timestep = embedded[0][:, 0].expand(rows).repeat_interleave(depth)
        noisy = _slices(x).repeat(rows // len(x), 1, 1, 1)
        made = self._padded(torch.cat([noisy.to(told.dtype), told], dim=1), timestep)
        volume: torch.Tensor = made.float().unflatten(0, (rows, depth)).permute(0, 2, 3, 4, 1)
        return volume

    def _told(self, channels: torch.Tensor) -> torch.Tensor:
        """One-hot labels, and the position if the network takes it, ``(N, C (+ 1), H, W)``."""
        index = channels[:, :1].long()
        one_hot = channels.new_zeros([len(index), self.num_classes, *index.shape[2:]])
        one_hot.scatter_(1, index.clamp(min=0), (index >= 0).to(one_hot.dtype))
        return torch.cat([one_hot, channels[:, 1:]], dim=1) if self.position else one_hot

    def _padded(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if min(height, width) < self.multiple:
            raise InputError(
                f"slices must have {self.multiple} × {self.multiple} pixels or more for this network, got {height} × "
                f"{width}; pad the label map"
            )
        missing = [-width % self.multiple, -height % self.multiple]
        if any(missing):
            x = F.pad(x, [0, missing[0], 0, missing[1]], mode="reflect")
        x = x.contiguous(memory_format=torch.channels_last)
        made: torch.Tensor = self.network(x, timestep)
        return made[:, :, :height, :width]


class SliceDiffusion(LatentDiffusion):
    """Label map → image, slice by slice; or, with an image, one training step: SegGuidedDiff for volumes.

    Args:
        denoiser: to be trained here.
        noise_field: the noise that a sample begins with (and, with the sampler ddpm, gets in every step): ``"slice"``:
            each slice its own; ``"volume"``: all slices of a volume the same, so that adjacent slices differ less.
        ablated: share of the training steps in which a random half of the classes is unknown ("mask-ablated
            training"), so that the network takes maps in which classes are missing.
        unknown: classes that are taken as unknown when images are made: what stands for them in a map says nothing.
        label_dropout: share of the training steps that know nothing of the map, for guidance (theirs has none).
        kwargs: all else that :class:`~semsynth.networks.latent_diffusion.LatentDiffusion` takes.

    Raises:
        InputError: as there, and for values out of range.
    """

    def __init__(
        self,
        denoiser: ConcatUNet,
        *,
        noise_field: NoiseField = "slice",
        ablated: float = 0.0,
        unknown: Sequence[int] = (),
        label_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        pixels: Any = Pixels()
        super().__init__(pixels, denoiser, label_dropout=label_dropout, standardize=False, **kwargs)
        if noise_field not in ("slice", "volume") or not 0 <= ablated <= 1:
            raise InputError(
                f"noise_field must be slice or volume, and ablated in [0, 1], got {noise_field!r} and {ablated}"
            )
        wrong = sorted(set(unknown) - set(range(denoiser.num_classes)))
        if wrong:
            raise InputError(f"unknown must be classes from 0 to {denoiser.num_classes - 1}, got {wrong}")
        self.noise_field, self.ablated, self.unknown = noise_field, ablated, sorted(set(unknown))

    def forward(
        self,
        image: torch.Tensor,
        latent: torch.Tensor | None = None,
        style: torch.Tensor | None = None,
        position: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As :meth:`~semsynth.networks.latent_diffusion.LatentDiffusion.forward`; each slice has its own time step.

        Args:
            image: class indices ``(B, 1, H, W, D)``.
            latent: images in [-1, 1] to train on, of the same size.
            position: with ``latent``, of the slices in their volume, ``(B, D)`` in (0, 1); None: the middle of it.
        """
        if latent is None:
            return super().forward(image, None, style, **kwargs)
        label, clean = _single(plain(image)), _single(plain(latent))
        if position is None:
            position = clean.new_full([len(clean)], 0.5)
        return self._denoised(label, clean, None, position=position.reshape(-1, 1))

    def _denoised(
        self, label: torch.Tensor, latent: torch.Tensor, style: torch.Tensor | None, **given: torch.Tensor
    ) -> Denoised:
        if self.ablated:
            chosen = torch.rand(len(label), 1, 1, 1, 1, device=label.device) < self.ablated
            label = torch.where(chosen, partly(label, self.num_classes), label.float())
        return super()._denoised(label, latent, style, **given)

    @torch.no_grad()
    def conditioning(self, label: torch.Tensor, **kwargs: Any) -> Conditioning:
        """The same as :meth:`~semsynth.networks.latent_diffusion.LatentDiffusion.conditioning`."""
        label = plain(label)
        if self.unknown:
            known = ~torch.isin(label, torch.tensor(self.unknown, device=label.device, dtype=label.dtype))
            label = torch.where(known, label.float(), float(UNKNOWN))
        return super().conditioning(label, **kwargs)

    def _noise(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        if self.noise_field == "slice":
            return gaussian_noise(like, seed)
        return gaussian_noise(like[..., :1], seed).expand_as(like)


def _slices(x: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W, D)`` → ``(B · D, C, H, W)``."""
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)


def _single(x: torch.Tensor) -> torch.Tensor:
    """``(B, C, H, W, D)`` → volumes of one slice, ``(B · D, C, H, W, 1)``."""
    return _slices(x)[..., None]
