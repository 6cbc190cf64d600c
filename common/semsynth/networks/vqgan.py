"""VQ-GAN in 3D: image → latent, quantised to the codes of a codebook → image; the first stage of Med-LSDM.

Esser et al. 2021 in the 3D form of Ge et al. 2022 (TATS) and Khader et al. 2023 (Medical Diffusion), on which Med-LSDM
builds (section 3.2 and appendix A there). Needs no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ..errors import InputError
from ..labels import plain
from .autoencoder import DecoderModulation, cover, depth_to_space, is_local, start_layer
from .blocks.codebook import Codebook, Quantized
from .blocks.residual import Downsample, Norm, Resampling, ResBlock, Upsample, check_resampling
from .blocks.spade import SPADEOptions


class QuantizedReconstruction(NamedTuple):
    """What a VQ-GAN gives in training.

    Attributes:
        pred: intensities in [0, 1], ``(B, 1, H, W, D)``.
        quantized: quantised form of the latent.
    """

    pred: torch.Tensor
    quantized: Quantized


class VQGAN(nn.Module):
    """Image → latent → codes → image. Any volume size: each level has as many voxels as it takes to cover the volume.

    The defaults are the paper's: with them the encoder has 441.6 K parameters and the decoder 948.4 K (appendix A:
    441.5 K and 948.6 K). With ``norm="voxel"`` and no ``edge_norms`` the decoder is a local function of the latent: a
    crop trains what a whole volume uses, and overlapping tiles give the whole volume's voxels.

    Args:
        channels: numbers of channels of the encoder at each resolution, from the image's (or, with ``patch`` 2, half of
            it) to the latent's; each is half as fine as the one before.
        decoder_channels: numbers of channels of the decoder at the same resolutions but the latent's, from fine to
            coarse.
        blocks: residual blocks at each resolution of encoder and decoder.
        patch: 1, or 2: the finest level has 2³ voxels as channels of one, at the decoder's end too. At full resolution
            most of the time goes into memory, not arithmetic.
        latent_channels: Z, of a code (8 in the paper).
        codes: K, of the codebook (16384 in the paper).
        codebook: further arguments of :class:`~semsynth.networks.blocks.codebook.Codebook`.
        norm, groups: norm, and number of its groups, of the residual blocks: ``"group"`` (paper), ``"instance"`` or
            ``"voxel"``, see :class:`~semsynth.networks.blocks.spade.SPADEOptions`.
        edge_norms: norm and activation at the ends of encoder and decoder that face the latent, as in the paper. With
            ``norm="voxel"`` they would take the intensity from each cell just before it is to be told.
        resampling: ``"overlapping"`` (paper) or ``"aligned"``, see
            :class:`~semsynth.networks.blocks.residual.Downsample`.
        tanh: the last activation, as in the paper. Without it intensities may leave [0, 1] by a little. Where much of
            an image is the darkest value (the air of a CT), tanh saturates there before anything else is learned.

    Raises:
        InputError: for numbers of levels that do not fit, or values out of range.

    Examples:
        >>> network = VQGAN(channels=(8, 8, 8), decoder_channels=(8, 8), latent_channels=2, codes=16, groups=4).eval()
        >>> image = torch.rand(1, 1, 16, 16, 8)
        >>> latent, _ = network.encode(image)
        >>> latent.shape, network.decode(latent, image).shape
        (torch.Size([1, 2, 4, 4, 2]), torch.Size([1, 1, 16, 16, 8]))
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (16, 32, 64),
        decoder_channels: Sequence[int] = (32, 64),
        blocks: Sequence[int] = (1, 2),
        patch: Literal[1, 2] = 1,
        latent_channels: int = 8,
        codes: int = 16384,
        codebook: dict[str, Any] | None = None,
        norm: Literal["group", "instance", "voxel"] = "group",
        groups: int = 32,
        edge_norms: bool = True,
        resampling: Resampling = "overlapping",
        tanh: bool = True,
    ) -> None:
        super().__init__()
        check_resampling(resampling)
        if len(channels) != len(decoder_channels) + 1 or not decoder_channels:
            raise InputError(
                "channels must be one number more than decoder_channels (the latent's resolution), got "
                f"{list(channels)} and {list(decoder_channels)}"
            )
        if patch not in (1, 2) or latent_channels < 1 or len(blocks) != 2 or min(blocks) < 0:
            raise InputError(
                "patch must be 1 or 2, latent_channels 1 or more and blocks two numbers (encoder, decoder), got "
                f"{patch}, {latent_channels} and {blocks}"
            )
        plan = _Plan(int(patch), SPADEOptions(norm=norm, groups=groups, eps=1e-6), edge_norms, resampling)
        self.latent_channels, self.patch, self.tanh = latent_channels, int(patch), tanh
        self.strides: list[int] = [patch * 2**level for level in range(len(channels))]
        self.encoder = _Encoder(channels, blocks[0], plan)
        self.to_latent = nn.Conv3d(channels[-1], latent_channels, 1)
        self.codebook = Codebook(codes, latent_channels, **(codebook or {}))
        self.from_latent = nn.Conv3d(latent_channels, channels[-1], 1)
        self.decoder = _Decoder(channels[-1], decoder_channels, blocks[1], plan)

    @property
    def stride(self) -> int:
        """Voxels of the image per voxel of the latent, along each axis (f; 4 in the paper)."""
        return self.strides[-1]

    @property
    def last_layer(self) -> torch.Tensor:
        """The weight of the decoder's last convolution, whose gradients eq. 7 compares."""
        return self.decoder.head.weight

    def forward(self, image: torch.Tensor, *, details: bool = False) -> Any:
        """Image → its reconstruction from codes.

        Args:
            image: intensities in [0, 1], ``(B, 1, H, W, D)``.
            details: return a :class:`QuantizedReconstruction`. In training mode the codebook learns in passing.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``, float32.
        """
        image = plain(image)
        quantized = self.codebook(self._latent(image))
        pred = self._image(quantized.codes, image.shape[2:])
        return QuantizedReconstruction(pred, quantized) if details else pred

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent before quantisation, scaled so that the codebook's values fill [-1, 1] (section 4 of the paper).

        Args:
            image: intensities in [0, 1], ``(B, 1, H, W, D)``.

        Returns:
            Latent ``(B, Z, ⌈H/f⌉, ⌈W/f⌉, ⌈D/f⌉)``, float32, mostly in [-1, 1]; and its log σ², −∞: it has no spread.
        """
        low, high = self.codebook.span()
        latent = (self._latent(plain(image)) - low) * (2.0 / (high - low)) - 1.0
        return latent, torch.full_like(latent, -torch.inf)

    @property
    def takes_noise(self) -> bool:
        """Whether :meth:`decode` makes use of noise: it does not."""
        return False

    def modulation(self, label: torch.Tensor) -> DecoderModulation:
        """What the decoder takes from a label map: its size alone."""
        return DecoderModulation((label.shape[2], label.shape[3], label.shape[4]), [])

    def decode(self, latent: torch.Tensor, condition: torch.Tensor | DecoderModulation) -> torch.Tensor:
        """Image of a latent, each of its cells set to the nearest code first.

        Args:
            latent: ``(B, Z, ⌈H/f⌉, ⌈W/f⌉, ⌈D/f⌉)``, scaled as :meth:`encode` gives it.
            condition: a volume of the image's size, ``(B or 1, 1, H, W, D)``, or :meth:`modulation` of it.

        Returns:
            Intensities in [0, 1], ``(B, 1, H, W, D)``, float32.

        Raises:
            InputError: for a latent that does not cover the volume.
        """
        size = condition.size if isinstance(condition, DecoderModulation) else tuple(condition.shape[2:])
        needed = cover(size, self.stride)
        if list(latent.shape[2:]) != needed:
            raise InputError(
                f"a label map of {size} voxels needs a latent of {tuple(needed)}, got {tuple(latent.shape[2:])}"
            )
        low, high = self.codebook.span()
        latent = (plain(latent).float() + 1.0) * ((high - low) / 2.0) + low
        return self._image(self.codebook.nearest(latent), size)

    def reach(self) -> int | None:
        """How many voxels away, along each axis, the latent still has a say in a decoded voxel.

        A multiple of :attr:`stride`. None where the whole volume has a say: with group or instance norms.
        """
        if not all(is_local(layer) for layer in self.decoder.modules() if isinstance(layer, Norm)):
            return None
        strides = list(self.strides)
        reach = strides[0]  # the head's convolution
        for layer in reversed(self.decoder.layers):
            if isinstance(layer, Upsample):
                strides = strides[1:]
                reach += strides[0]  # a cell beside
            else:
                reach += 2 * strides[0]
        return cover([reach + strides[0]], self.stride)[0] * self.stride

    def _latent(self, image: torch.Tensor) -> torch.Tensor:
        x = self.encoder(image.to(self.to_latent.weight.dtype) * 2.0 - 1.0)
        latent: torch.Tensor = self.to_latent(x).float()
        return latent

    def _image(self, codes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        x = self.decoder(self.from_latent(codes.to(self.from_latent.weight.dtype)), size, self.strides)
        if self.patch == 2:
            x = depth_to_space(x, size)
        image: torch.Tensor = x.float()
        return (torch.tanh(image) if self.tanh else image) * 0.5 + 0.5


@dataclass(frozen=True)
class _Plan:
    """What encoder and decoder have in common."""

    patch: int
    options: SPADEOptions
    edge_norms: bool
    resampling: Resampling

    def blocks(self, width: int, count: int) -> list[nn.Module]:
        return [ResBlock(width, width, self.options, zero_last=True) for _ in range(count)]

    def edge(self, width: int) -> nn.Module:
        """What stands at the latent's side."""
        return nn.Sequential(Norm(width, self.options), nn.SiLU()) if self.edge_norms else nn.Identity()


class _Encoder(nn.Module):
    def __init__(self, channels: Sequence[int], blocks: int, plan: _Plan) -> None:
        super().__init__()
        self.start = start_layer(1, channels[0], plan.patch)
        layers: list[nn.Module] = []
        for i, wide in enumerate(channels):
            if i:
                layers.append(Downsample(channels[i - 1], wide, plan.resampling))
            if i or plan.patch == 2:  # nothing but the first convolution at full resolution
                layers += plan.blocks(wide, blocks)
        self.layers = nn.ModuleList(layers)
        self.norm = plan.edge(channels[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.norm(x)
        return result


class _Decoder(nn.Module):
    def __init__(self, width: int, channels: Sequence[int], blocks: int, plan: _Plan) -> None:
        super().__init__()
        self.norm = plan.edge(width)
        layers: list[nn.Module] = []
        for wide in reversed(channels):
            layers += [Upsample(width, wide, plan.resampling), *plan.blocks(wide, blocks)]
            width = wide
        self.layers = nn.ModuleList(layers)
        self.head = nn.Conv3d(width, plan.patch**3, 3, padding=1)

    def forward(self, x: torch.Tensor, size: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        coarse_to_fine = list(reversed(strides))
        x = self.norm(x)
        for layer in self.layers:
            if isinstance(layer, Upsample):
                coarse_to_fine = coarse_to_fine[1:]
                x = layer(x, cover(size, coarse_to_fine[0]))
            else:
                x = layer(x)
        result: torch.Tensor = self.head(x)
        return result
