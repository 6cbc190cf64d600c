"""The loss of a KL autoencoder with a discriminator: stage 1 of latent diffusion (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from .gan import Adversarial, VariationalGANLoss, _check_weights, scales_of


class AutoencoderLoss(VariationalGANLoss):
    """L1, perceptual, KL and adversarial terms, and R1 for the discriminator (Al-Sanaani et al., section II-C).

    A term of weight 0 is not computed.

    Args:
        adversarial: ``"least_squares"`` (as there), ``"hinge"`` or ``"bce"``.
        adversarial_weight: weight of the adversarial term, once it is on (see
            :class:`semsynth.training.engines.adversarial.AutoencoderTrainer`).
        l1_weight: weight of voxel-wise L1, on intensities scaled to [-1, 1].
        perceptual_weight: weight of the perceptual term.
        kl_weight: weight of :func:`latent_kl`. The paper's 1e-6 is for the sum over the whole latent, as in the public
            tutorials; this is per voxel of the latent and so does not depend on the volume's size. A latent of n voxels
            has the paper's with n · 1e-6: 0.012 for 128 × 96 × 64 voxels at a compression of 4.
        r1_weight: γ of :func:`r1_penalty`.
        r1_interval: steps of the discriminator from one R1 step to the next; the penalty is multiplied by it (lazy
            regularisation, Karras et al. 2020, section 3.1).
        perceptual: (fake, real) → scalar; not kept where its weight is 0.

    Raises:
        InputError: for an unknown name, a negative weight, an interval below 1, or a perceptual weight without a
            network.
    """

    def __init__(
        self,
        *,
        adversarial: Adversarial = "least_squares",
        adversarial_weight: float = 0.01,
        l1_weight: float = 1.0,
        perceptual_weight: float = 1e-3,
        kl_weight: float = 1e-3,
        r1_weight: float = 10.0,
        r1_interval: int = 16,
        perceptual: nn.Module | None = None,
    ) -> None:
        super().__init__(
            adversarial=adversarial,
            adversarial_weight=adversarial_weight,
            feature_weight=0.0,
            perceptual_weight=perceptual_weight,
            kl_weight=kl_weight,
            l1_weight=l1_weight,
            perceptual=perceptual,
        )
        _check_weights(r1_weight=r1_weight)
        if r1_interval < 1:
            raise InputError(f"r1_interval must be 1 or more, got {r1_interval}")
        self.r1_weight, self.r1_interval = r1_weight, int(r1_interval)

    def divergence(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """:func:`latent_kl` of a posterior ``(B, Z, h, w, d)``."""
        return latent_kl(mean, log_variance)

    def penalty(self, discriminator: nn.Module, label: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """The R1 term of a step that has one, in float32; {} where its weight is 0."""
        if self.r1_weight == 0:
            return {}
        with torch.autocast(real.device.type, enabled=False):
            return {"d_r1": 0.5 * self.r1_weight * self.r1_interval * r1_penalty(discriminator, label, real.float())}


class DecoderLoss(AutoencoderLoss):
    """The loss of a decoder that is trained on sampled latents: adversarial, and the coarse content as it was.

    There is no image that a sampled latent should give, voxel by voxel: a discriminator says what is missing. Means
    over blocks of cells are held where they were, so that anatomy, style and what the label map asks for stay.

    Args:
        adversarial, adversarial_weight, r1_weight, r1_interval: as in :class:`AutoencoderLoss`.
        content_weight: weight of the mean absolute difference of the blocks' means, on intensities scaled to [-1, 1].
        content_cells: number of cells of the latent along each axis of a block; 1 holds every cell's mean, more leaves
            the mottle of single cells to the discriminator.

    Raises:
        InputError: as :class:`AutoencoderLoss`, and for blocks of less than one cell.
    """

    def __init__(
        self,
        *,
        adversarial: Adversarial = "least_squares",
        adversarial_weight: float = 1.0,
        content_weight: float = 1.0,
        content_cells: int = 2,
        r1_weight: float = 1.0,
        r1_interval: int = 16,
    ) -> None:
        super().__init__(
            adversarial=adversarial, adversarial_weight=adversarial_weight, l1_weight=0.0, perceptual_weight=0.0,
            kl_weight=0.0, r1_weight=r1_weight, r1_interval=r1_interval,
        )  # fmt: skip
        _check_weights(content_weight=content_weight)
        if content_cells < 1:
            raise InputError(f"content_cells must be 1 or more, got {content_cells}")
        self.content_weight, self.content_cells = content_weight, int(content_cells)

    def content(self, fake: torch.Tensor, coarse: torch.Tensor, stride: int) -> dict[str, torch.Tensor]:
        """The term of the coarse content; {} where its weight is 0.

        Args:
            fake: image in [0, 1], ``(B, 1, H, W, D)``.
            coarse: mean intensity of each cell, as it should be, ``(B, 1, h, w, d)``.
            stride: voxels of the image per cell.
        """
        if self.content_weight == 0:
            return {}
        found, wanted = (block_means(x, self.content_cells) for x in (block_means(fake, stride), coarse))
        return {"g_content": self.content_weight * 2.0 * F.l1_loss(found, wanted)}


def block_means(x: torch.Tensor, edge: int) -> torch.Tensor:
    """Means of blocks of edge³ voxels, ``(B, C, H, W, D)`` → ``(B, C, ⌈H/e⌉, ⌈W/e⌉, ⌈D/e⌉)``, float32.

    Of a block that reaches beyond the volume, of its voxels within it.
    """
    kernel = [min(edge, length) for length in x.shape[2:]]
    return F.avg_pool3d(x.float(), kernel, ceil_mode=True, count_include_pad=False)


def latent_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) of a spatial latent: sum over channels, mean over voxels and batch; float32.

    Args:
        mean, log_variance: ``(B, Z, h, w, d)`` each.
    """
    m, v = mean.float(), log_variance.float()
    return -0.5 * (1.0 + v - m.square() - v.exp()).sum(dim=1).mean()


def r1_penalty(discriminator: nn.Module, label: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Squared gradient norm of the discriminator's logits at real images (Mescheder et al. 2018, eq. 9, without γ/2).

    Per patch: the gradient of the sum of all logits, squared, summed over voxels and divided by the number of patches,
    which for a single logit is the equation's and does not grow with the volume. Of several scales the mean.

    Args:
        discriminator: (label, image) → features, logits last.
        label: class indices ``(B, 1, H, W, D)``.
        real: ``(B, 1, H, W, D)``, float32.
    """
    real = real.detach().requires_grad_(True)
    penalties = []
    for features in scales_of(discriminator(label, real)):
        logits = features[-1]
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalties.append(gradient.square().sum() / logits.numel())
    return torch.stack(penalties).mean()
