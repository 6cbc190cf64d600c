"""The loss of a VQ-GAN: stage 1 of Med-LSDM (section 3.2 there; Esser et al. 2021; Khader et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from .gan import Adversarial, _check_weights, discriminator_loss, feature_matching, generator_loss

MOST_ADAPTIVE = 1e4
"""Largest weight of eq. 7, as in Esser et al.'s code."""


class VQGANLoss(nn.Module):
    """L1, perceptual, commitment, adversarial and feature matching terms; a term of weight 0 is not computed.

    Args:
        l1_weight: weight of voxel-wise L1, on intensities scaled to [-1, 1] (4 in the public code).
        perceptual_weight: weight of the perceptual term (4 in the public code, of a VGG).
        feature_weight: weight of feature matching (4 in the public code), see
            :func:`~semsynth.training.losses.gan.feature_matching`.
        commitment_weight: weight of the latents' distance from their codes (0.25).
        adversarial: ``"hinge"`` (paper), ``"least_squares"`` or ``"bce"``.
        adversarial_weight: weight of both discriminators' terms together, before eq. 7's weight.
        adaptive: multiply the adversarial terms by eq. 7: the size of the reconstruction's gradient (L1 and
            perceptual) at the decoder's last layer over that of the adversarial one. The public code lacks it.
        adaptive_interval: steps from one computation of it to the next: its two extra backward passes.
        slices: number of random axial slices of each volume that the slice discriminator sees (1 in the paper).
        perceptual: (fake, real) → scalar, such as :class:`semsynth.networks.features.perceptual.PerceptualLoss`.

    Attributes:
        weight: last result of eq. 7; 1 where it is off.
        left: steps until it is computed again.

    Raises:
        InputError: for an unknown name, a negative weight, or a perceptual weight without a network.
    """

    weight: torch.Tensor
    left: torch.Tensor

    def __init__(
        self,
        *,
        l1_weight: float = 4.0,
        perceptual_weight: float = 4.0,
        feature_weight: float = 4.0,
        commitment_weight: float = 0.25,
        adversarial: Adversarial = "hinge",
        adversarial_weight: float = 1.0,
        adaptive: bool = True,
        adaptive_interval: int = 1,
        slices: int = 1,
        perceptual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if adversarial not in ("least_squares", "hinge", "bce"):
            raise InputError(f"adversarial must be least_squares, hinge or bce, got {adversarial!r}")
        _check_weights(
            l1_weight=l1_weight, perceptual_weight=perceptual_weight, feature_weight=feature_weight,
            commitment_weight=commitment_weight, adversarial_weight=adversarial_weight,
        )  # fmt: skip
        if l1_weight == 0:
            raise InputError("l1_weight must be positive: eq. 7 measures the adversarial terms by the reconstruction's")
        if perceptual_weight > 0 and perceptual is None:
            raise InputError(
                f"perceptual_weight is {perceptual_weight} and there is no perceptual network; give one as perceptual "
                "(semsynth.provenance.frozen.load_perceptual) or set perceptual_weight to 0"
            )
        if slices < 1 or adaptive_interval < 1:
            raise InputError(f"slices and adaptive_interval must be 1 or more, got {slices} and {adaptive_interval}")
        self.l1_weight, self.perceptual_weight = l1_weight, perceptual_weight
        self.feature_weight, self.commitment_weight = feature_weight, commitment_weight
        self.adversarial: Adversarial = adversarial
        self.adversarial_weight, self.adaptive = adversarial_weight, adaptive
        self.adaptive_interval, self.slices = int(adaptive_interval), int(slices)
        self.perceptual = perceptual if perceptual_weight > 0 else None
        # in the state, so that a resumed training goes on with them
        self.register_buffer("weight", torch.ones([]))
        self.register_buffer("left", torch.zeros([], dtype=torch.long))

    @property
    def in_loss(self) -> list[dict[str, str]]:
        """Name and SHA-256 of the networks that this loss uses; none for a perceptual module that names none."""
        return list(getattr(self.perceptual, "in_loss", []))

    def generator(
        self,
        discriminator: Any,
        fake: torch.Tensor,
        real: torch.Tensor,
        commitment: torch.Tensor,
        last_layer: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Weighted terms of the VQ-GAN; their sum is its loss.

        Args:
            discriminator: a :class:`~semsynth.networks.discriminators.SliceAndVolumeDiscriminator`; None leaves its
                terms out.
            fake, real: images in [0, 1], ``(B, 1, H, W, D)``.
            commitment: commitment of the latents, see :class:`~semsynth.networks.blocks.codebook.Quantized`.
            last_layer: the decoder's last weight, for eq. 7.
        """
        terms = {"g_l1": self.l1_weight * 2.0 * F.l1_loss(fake.float(), real.float())}  # [0, 1] → [-1, 1]: twice
        if self.perceptual is not None:
            terms["g_perceptual"] = self.perceptual_weight * self.perceptual(fake, real)
        reconstruction = torch.stack(list(terms.values())).sum()
        terms["g_commitment"] = self.commitment_weight * commitment
        if discriminator is None:
            return terms
        where = self.places(real)
        found = discriminator(fake, where)
        persuasion = torch.stack([generator_loss(self.adversarial, features[-1]) for features in found]).sum()
        if self.adversarial_weight > 0:
            if self.adaptive and last_layer is not None and torch.is_grad_enabled():
                self._balance(reconstruction, persuasion, last_layer)
            terms["g_adversarial"] = self.adversarial_weight * self.weight.clone() * persuasion
        if self.feature_weight > 0:
            with torch.no_grad():
                targets = discriminator(real, where)
            terms["g_feature"] = self.feature_weight * feature_matching(found, targets)
        return terms

    def discriminator(self, discriminator: Any, fake: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms of the two discriminators, half of each for real and for reconstructed images."""
        where = self.places(real)
        terms = {}
        for name, image, is_real in (("d_real", real, True), ("d_fake", fake, False)):
            found = discriminator(image, where)
            losses = [discriminator_loss(self.adversarial, features[-1], is_real=is_real) for features in found]
            terms[name] = 0.5 * torch.stack(losses).sum()
        return terms

    def places(self, image: torch.Tensor) -> torch.Tensor:
        """Indices of random slices, from PyTorch's global generator."""
        return torch.randperm(image.shape[-1])[: self.slices].to(image.device)

    def _balance(self, reconstruction: torch.Tensor, persuasion: torch.Tensor, last_layer: torch.Tensor) -> None:
        """Eq. 7: |∇ reconstruction| / (|∇ adversarial| + δ) at the last layer."""
        if int(self.left) > 0:
            self.left -= 1
            return
        self.left.fill_(self.adaptive_interval - 1)
        sizes = [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
            for loss in (reconstruction, persuasion)
        ]
        weight = sizes[0] / (sizes[1] + 1e-4)
        if bool(weight.isfinite()):  # a step that is about to be skipped says nothing
            self.weight.copy_(weight.detach().clamp(0.0, MOST_ADAPTIVE))
