"""Losses of the generators, as named terms: what each is worth is seen while it trains."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError

Adversarial: TypeAlias = Literal["least_squares", "hinge", "bce"]
Scales: TypeAlias = list[list[torch.Tensor]]
"""Per scale of a discriminator, the features of each layer and, last, the logits."""


class ConditionalGANLoss(nn.Module):
    """Adversarial loss on (label map, image) pairs plus voxel-wise L1 (Isola et al. 2017, eq. 4).

    For the discriminator "real" is (label, real image) and "fake" is (label, generated image). Of a discriminator with
    several scales all weigh alike.

    Args:
        adversarial: ``"least_squares"`` (LSGAN), ``"hinge"`` or ``"bce"``.
        adversarial_weight: weight of the generator's adversarial term; 0 switches it off.
        l1_weight: λ_L1, on intensities scaled to [-1, 1] (100 in pix2pix); 0 switches it off.

    Raises:
        InputError: for a name that is none of the three, or a negative weight.
    """

    def __init__(
        self, *, adversarial: Adversarial = "least_squares", adversarial_weight: float = 1.0, l1_weight: float = 100.0
    ) -> None:
        super().__init__()
        if adversarial not in ("least_squares", "hinge", "bce"):
            raise InputError(f"adversarial must be least_squares, hinge or bce, got {adversarial!r}")
        _check_weights(adversarial_weight=adversarial_weight, l1_weight=l1_weight)
        self.adversarial: Adversarial = adversarial
        self.adversarial_weight, self.l1_weight = adversarial_weight, l1_weight

    def generator(
        self, discriminator: nn.Module | None, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Weighted terms of the generator; their sum is its loss. All tensors ``(B, 1, H, W, D)``, images in [0, 1].

        Without a discriminator (None) there is no adversarial term.
        """
        terms = {}
        if discriminator is not None and self.adversarial_weight > 0:
            terms["g_adversarial"] = self.adversarial_weight * self._persuasion(scales_of(discriminator(label, fake)))
        if self.l1_weight > 0:
            terms["g_l1"] = self._l1(fake, real)
        return terms

    def discriminator(
        self, discriminator: nn.Module, label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Terms of the discriminator, half each (pix2pix: it is to learn no faster than the generator)."""
        return {
            "d_real": 0.5 * self._verdict(scales_of(discriminator(label, real)), is_real=True),
            "d_fake": 0.5 * self._verdict(scales_of(discriminator(label, fake)), is_real=False),
        }

    def _persuasion(self, scales: Scales) -> torch.Tensor:
        return torch.stack([generator_loss(self.adversarial, features[-1]) for features in scales]).mean()

    def _verdict(self, scales: Scales, *, is_real: bool) -> torch.Tensor:
        losses = [discriminator_loss(self.adversarial, features[-1], is_real=is_real) for features in scales]
        return torch.stack(losses).mean()

    def _l1(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return self.l1_weight * 2.0 * F.l1_loss(fake.float(), real.float())  # [0, 1] → [-1, 1]: twice


class VariationalGANLoss(ConditionalGANLoss):
    """Adversarial, feature matching, perceptual and KL terms (Park et al. 2019, SPADE, appendix A), and L1 if wanted.

    The defaults are SPADE's but for the feature matching, see there.

    Args:
        adversarial: ``"hinge"``, ``"least_squares"`` or ``"bce"``.
        adversarial_weight: weight of the adversarial term.
        feature_weight: weight of :func:`feature_matching`; its mean over layers, where SPADE sums over four: SPADE's 10
            is 40 here.
        perceptual_weight: weight of the perceptual term.
        kl_weight: weight of :func:`kl_divergence`, for generators with an encoder.
        l1_weight: weight of voxel-wise L1, on intensities scaled to [-1, 1].
        perceptual: (fake, real) → scalar, such as :class:`semsynth.networks.features.perceptual.PerceptualLoss`; not
            kept where its weight is 0.

    A term of weight 0 is not computed.

    Raises:
        InputError: for an unknown name, a negative weight, or a perceptual weight without a network.
    """

    perceptual: nn.Module | None

    def __init__(
        self,
        *,
        adversarial: Adversarial = "hinge",
        adversarial_weight: float = 1.0,
        feature_weight: float = 10.0,
        perceptual_weight: float = 10.0,
        kl_weight: float = 0.05,
        l1_weight: float = 0.0,
        perceptual: nn.Module | None = None,
    ) -> None:
        super().__init__(adversarial=adversarial, adversarial_weight=adversarial_weight, l1_weight=l1_weight)
        _check_weights(feature_weight=feature_weight, perceptual_weight=perceptual_weight, kl_weight=kl_weight)
        if perceptual_weight > 0 and perceptual is None:
            raise InputError(
                f"perceptual_weight is {perceptual_weight} and there is no perceptual network; give one as perceptual "
                "(semsynth.provenance.frozen.load_perceptual) or set perceptual_weight to 0"
            )
        self.feature_weight, self.perceptual_weight, self.kl_weight = feature_weight, perceptual_weight, kl_weight
        self.perceptual = perceptual if perceptual_weight > 0 else None

    @property
    def in_loss(self) -> list[dict[str, str]]:
        """Name and SHA-256 of the networks that this loss uses; none for a perceptual module that names none."""
        return list(getattr(self.perceptual, "in_loss", []))

    def generator(
        self,
        discriminator: nn.Module | None,
        label: torch.Tensor,
        fake: torch.Tensor,
        real: torch.Tensor,
        posterior: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Weighted terms of the generator and its encoder; their sum is their loss.

        Args:
            discriminator: (label, image) → features, logits last; or a list of such lists, one per scale; None leaves
                its terms out.
            label: class indices ``(B, 1, H, W, D)``.
            fake, real: images in [0, 1], ``(B, 1, H, W, D)``.
            posterior: mean and log σ² of the encoder, see :meth:`divergence`; None leaves the KL term out.
        """
        terms = {}
        if discriminator is not None and (self.adversarial_weight > 0 or self.feature_weight > 0):
            scales = scales_of(discriminator(label, fake))
            if self.adversarial_weight > 0:
                terms["g_adversarial"] = self.adversarial_weight * self._persuasion(scales)
            if self.feature_weight > 0:
                with torch.no_grad():
                    targets = scales_of(discriminator(label, real))
                terms["g_feature"] = self.feature_weight * feature_matching(scales, targets)
        if self.perceptual is not None:
            terms["g_perceptual"] = self.perceptual_weight * self.perceptual(fake, real)
        if self.kl_weight > 0 and posterior is not None:
            terms["g_kl"] = self.kl_weight * self.divergence(*posterior)
        if self.l1_weight > 0:
            terms["g_l1"] = self._l1(fake, real)
        return terms

    def divergence(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """:func:`kl_divergence` of a posterior ``(B, Z)``."""
        return kl_divergence(mean, log_variance)


def scales_of(features: list[torch.Tensor] | Scales) -> Scales:
    """What a discriminator of one scale or of several returns, as a list over scales of lists of features."""
    return [features] if isinstance(features[0], torch.Tensor) else features  # type: ignore[list-item, return-value]


def generator_loss(adversarial: Adversarial, logits: torch.Tensor) -> torch.Tensor:
    """What the generator loses by these logits of its images; for the hinge -mean D (Lim & Ye 2017), else as if real.

    Not MONAI's ``PatchAdversarialLoss``: its hinge sends the logits through tanh, in both steps, and clamps the
    generator's, which takes the gradient from whatever the discriminator is certain of.
    """
    logits = logits.float()
    if adversarial == "hinge":
        return -logits.mean()
    return discriminator_loss(adversarial, logits, is_real=True)


def discriminator_loss(adversarial: Adversarial, logits: torch.Tensor, *, is_real: bool) -> torch.Tensor:
    """What the discriminator loses by these logits, ``(B, 1, h, w, d)``, mean over patches, in float32.

    Hinge: mean max(0, 1 - D) for real pairs and mean max(0, 1 + D) for others (Lim & Ye 2017); least squares: mean
    (D - 1)² and mean D² (Mao et al. 2017); bce: cross-entropy.
    """
    logits = logits.float()
    if adversarial == "hinge":
        return F.relu(1.0 - logits if is_real else 1.0 + logits).mean()
    target = torch.full_like(logits, float(is_real))
    if adversarial == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.mse_loss(logits, target)


def feature_matching(fake: Scales, real: Scales) -> torch.Tensor:
    """L1 between the discriminator's features of fake and real pairs, without the logits (Wang et al. 2018, eq. 4).

    Mean over elements, then over layers and scales; eq. 4 sums over layers and over scales. The number of layers is
    then no part of the weight. ``real`` gets no gradient.
    """
    distances = [
        F.l1_loss(ours.float(), theirs.detach().float())
        for made, target in zip(fake, real, strict=True)
        for ours, theirs in zip(made[:-1], target[:-1], strict=True)
    ]
    return torch.stack(distances).mean()


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)), sum over Z, mean over the batch (Kingma & Welling 2014, appendix B); float32.

    SPADE's code sums over the batch as well.

    Args:
        mean, log_variance: ``(B, Z)``.

    Raises:
        InputError: for other shapes.
    """
    if mean.ndim != 2 or mean.shape != log_variance.shape:
        raise InputError(
            f"a posterior is mean and log-variance (B, Z) each, got {tuple(mean.shape)} and {tuple(log_variance.shape)}"
        )
    m, v = mean.float(), log_variance.float()
    return -0.5 * (1.0 + v - m.square() - v.exp()).sum(dim=1).mean()


def _check_weights(**weights: float) -> None:
    if min(weights.values()) < 0:
        given = " and ".join(f"{name} {weight}" for name, weight in weights.items())
        raise InputError(f"loss weights must be 0 or more, got {given}")
