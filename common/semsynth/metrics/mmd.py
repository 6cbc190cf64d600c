"""Maximum mean discrepancy of two sets of features, unbiased."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ..errors import InputError
from .frechet import Extractor, FeatureMetric, check_features

Kernel = Literal["dot", "cubic"]


@torch.no_grad()
def mmd2(y_pred: torch.Tensor, y: torch.Tensor, *, kernel: Kernel = "dot") -> torch.Tensor:
    """Unbiased squared maximum mean discrepancy (Al-Sanaani et al., eq. 4; Gretton et al. 2012, eq. 3).

    Mean kernel of pairs within ``y_pred`` plus that within ``y``, pairs of an image with itself left out, minus twice
    the mean kernel across. Being unbiased, it is *negative* about half of the time where the two distributions agree.

    Args:
        y_pred: features of the generated images, ``(N, F)``.
        y: features of the real images, ``(M, F)``; M may differ from N.
        kernel: ``"dot"``, x·y, which sees no more than the distance of the two means; ``"cubic"``,
            ``(x·y / F + 1)³``, that of KID, which also sees second and third moments.

    Returns:
        A float64 scalar, in squared units of the features for ``"dot"``.

    Raises:
        InputError: for a kernel that is none of the two, and as in :func:`semsynth.metrics.fid`.

    Examples:
        >>> features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> bool(mmd2(features + 1, features) > mmd2(features, features))
        True
    """
    if kernel not in get_args(Kernel):
        raise InputError(f"kernel must be dot or cubic, got {kernel!r}")
    pred, real = check_features(y_pred, y)
    n, m = len(pred), len(real)
    if kernel == "dot":
        # A shift of both sets changes nothing here; without their common mean the sums do not cancel digits away.
        center = (pred.mean(dim=0) + real.mean(dim=0)) / 2
        pred, real = pred - center, real - center
        pred_sum, real_sum = pred.sum(dim=0), real.sum(dim=0)
        within_pred = pred_sum.square().sum() - pred.square().sum()
        within_real = real_sum.square().sum() - real.square().sum()
        across = pred_sum @ real_sum
    else:
        within_pred, within_real = _off_diagonal(_cubic(pred, pred)), _off_diagonal(_cubic(real, real))
        across = _cubic(pred, real).sum()
    return within_pred / (n * (n - 1)) + within_real / (m * (m - 1)) - 2 * across / (n * m)


def kid(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Kernel inception distance (Bińkowski et al. 2018): :func:`mmd2` with the cubic kernel, on the full sets.

    No random subsets are drawn: those are for sets too large for one kernel matrix, and add noise. Unlike FID it has no
    bias that depends on the number of images. Can be negative. Unlike FID it changes when both sets
    are shifted alike. Arguments, result and errors as in :func:`mmd2`.

    Examples:
        >>> features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> bool(kid(features + 1, features) > kid(features, features))
        True
    """
    return mmd2(y_pred, y, kernel="cubic")


def _cubic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _off_diagonal(k: torch.Tensor) -> torch.Tensor:
    return k.sum() - k.diagonal().sum()


class MaximumMeanDiscrepancy(FeatureMetric):
    """:func:`mmd2` of all the features that an engine's run collects.

    Args:
        extractor: as in :class:`semsynth.metrics.FeatureMetric`.
        kernel: as in :func:`mmd2`; ``"cubic"`` makes it the kernel inception distance.

    Raises:
        InputError: for a kernel that is none of the two.

    Examples:
        >>> metric = MaximumMeanDiscrepancy(kernel="cubic")
        >>> features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        >>> metric(features + 1, features)
        >>> metric.aggregate() > 0
        True
    """

    def __init__(self, extractor: Extractor | None = None, *, kernel: Kernel = "dot") -> None:
        super().__init__(extractor)
        if kernel not in get_args(Kernel):
            raise InputError(f"kernel must be dot or cubic, got {kernel!r}")
        self.kernel: Kernel = kernel

    def aggregate(self) -> float:
        """The discrepancy of the two sets seen since ``reset``; can be negative; errors as in :func:`mmd2`."""
        return float(mmd2(*self._sets(), kernel=self.kernel))
