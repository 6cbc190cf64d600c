"""Fréchet distance of two sets of features (FID), exact also where there are fewer images than features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import Cumulative

from ..errors import InputError

Extractor = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def fid(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Fréchet distance of the Gaussians fitted to two sets of features (Al-Sanaani et al., eq. 3; Heusel et al. 2017).

    ``|μ_A − μ_B|² + Tr Σ_A + Tr Σ_B − 2 Tr (Σ_A Σ_B)^½``, with unbiased covariances. For the centred matrices A and B,
    scaled by 1/√(n − 1), Σ = AᵀA, and the last trace is the sum of the singular values of A·Bᵀ. No covariance is formed
    and no matrix root taken: with fewer images than features those are singular, and the usual root is slow and keeps
    half of the digits. The cost follows the smallest of N, M and F.

    The value does not depend on the order of the two sets or of their rows. It is biased upwards by few images: compare
    only values of equal N and M.

    Args:
        y_pred: features of the generated images, ``(N, F)``, any scale.
        y: features of the real images, ``(M, F)``; M may differ from N.

    Returns:
        The distance, a float64 scalar of 0 or more, in squared units of the features.

    Raises:
        InputError: for fewer than two rows, another number of dimensions, different F, or values that are not finite.

    Examples:
        >>> features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> round(float(fid(features + 1, features)), 3)
        8.0
    """
    pred, real = check_features(y_pred, y)
    pred_mean, real_mean = pred.mean(dim=0), real.mean(dim=0)
    a = (pred - pred_mean).div_((len(pred) - 1) ** 0.5)
    b = (real - real_mean).div_((len(real) - 1) ** 0.5)
    cross = torch.linalg.svdvals(_reduced(a) @ _reduced(b).T).sum()
    distance: torch.Tensor = (pred_mean - real_mean).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return distance.clamp_(min=0.0)  # identical sets leave rounding of either sign


def check_features(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both feature matrices as plain float64 tensors.

    Raises:
        InputError: as in :func:`fid`.
    """
    matrices = []
    for name, x in (("y_pred", y_pred), ("y", y)):
        if x.ndim != 2:
            raise InputError(
                f"{name} has shape {tuple(x.shape)}, needed are features (images, features); pool feature maps over "
                "space first"
            )
        if len(x) < 2:
            raise InputError(f"{name} holds {len(x)} image(s); a covariance needs at least 2: add images")
        x = (x.as_tensor() if isinstance(x, MetaTensor) else x).detach().double()
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            bad = int((~finite).any(dim=1).sum())
            raise InputError(f"{name} has NaN or infinite features in {bad} of {len(x)} images; check the extractor")
        matrices.append(x)
    if y_pred.shape[1] != y.shape[1]:
        raise InputError(
            f"y_pred has {y_pred.shape[1]} features per image and y has {y.shape[1]}; take both from one extractor"
        )
    return matrices[0], matrices[1]


def _reduced(a: torch.Tensor) -> torch.Tensor:
    """A matrix of at most F rows with the same AᵀA: R of the QR decomposition where A is tall."""
    if a.shape[0] <= a.shape[1]:
        return a
    triangle: torch.Tensor = torch.linalg.qr(a, mode="r")[1]
    return triangle


class FeatureMetric(Cumulative):
    """Base of metrics on whole sets of features: collects those of ``y_pred`` and ``y``, from all processes.

    For engines, through ``monai.handlers.IgniteMetricHandler(metric, save_details=False)``.

    Args:
        extractor: makes features ``(B, F)`` of images ``(B, C, H, W, D)``, for both sides, without gradients. None:
            the metric is given features. A module stays in the mode and on the device where it is.
    """

    def __init__(self, extractor: Extractor | None = None) -> None:
        super().__init__()
        self.extractor = extractor

    @torch.no_grad()
    def __call__(self, y_pred: torch.Tensor | Sequence[torch.Tensor], y: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """Add a batch: ``(B, F)`` features, or images where there is an extractor; or lists of such without B.

        Raises:
            InputError: for features that are not ``(B, F)``.
        """
        self.extend(self._features("y_pred", y_pred), self._features("y", y))

    def _features(self, name: str, x: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            found = x if self.extractor is None else self.extractor(x)
        elif self.extractor is None:
            found = torch.stack(list(x))
        else:  # one at a time: images of a list may differ in size
            found = torch.cat([self.extractor(image[None]) for image in x])
        if found.ndim != 2:
            raise InputError(
                f"{name}: features have shape {tuple(found.shape)}, needed is (images, features); "
                + ("give an extractor" if self.extractor is None else "let the extractor pool its maps over space")
            )
        return (found.as_tensor() if isinstance(found, MetaTensor) else found).detach()

    def _sets(self) -> tuple[torch.Tensor, torch.Tensor]:
        buffers: Any = self.get_buffer()
        if buffers is None:
            raise InputError(f"{type(self).__name__} has seen no images; call it on batches before aggregate()")
        return buffers[0], buffers[1]


class FrechetDistance(FeatureMetric):
    """:func:`fid` of all the features that an engine's run collects (arguments as in :class:`FeatureMetric`).

    Examples:
        >>> metric = FrechetDistance()
        >>> features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> metric(features + 1, features)
        >>> round(metric.aggregate(), 3)
        8.0
    """

    def aggregate(self) -> float:
        """The distance of the two sets seen since ``reset``; errors as in :func:`fid`."""
        return float(fid(*self._sets()))
