"""Paired similarity of images: PSNR, RMSE, MAE, SSIM and multi-scale SSIM, one value per image.

All take ``(B, C, H, W, D)`` or ``(B, C, H, W)`` with intensities in [0, ``max_val``], and a mask for what counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from monai.data import MetaTensor
from monai.metrics.regression import RegressionMetric

from ..errors import InputError

PAPER_WEIGHTS = (0.0448, 0.2856, 0.3001)
"""Weights of MS-SSIM's three scales as Al-Sanaani et al. print them (eq. 6); their sum is 0.6305, not 1."""

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
BORDER = WINDOW // 2
BLOCK = 54  # output voxels of one banded product; with the window's ten, 64 of input, which stay in the cache


class ScaleTerms(NamedTuple):
    """Means over the counted windows of each image, by scale: SSIM and its contrast–structure part, ``(scales, B)``."""

    ssim: torch.Tensor
    contrast: torch.Tensor


class ImagePair(NamedTuple):
    """Checked images over ``max_val`` (so [0, 1]), and what counts, ``(B, 1, ...)`` bool or None."""

    pred: torch.Tensor
    real: torch.Tensor
    mask: torch.Tensor | None


def mae(
    y_pred: torch.Tensor, y: torch.Tensor, *, max_val: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean absolute error, ``(B,)``, in the images' units; arguments and errors as in :func:`similarity`.

    Examples:
        >>> y = torch.zeros(1, 1, 16, 16, 16)
        >>> mae(y + 0.25, y)
        tensor([0.2500])
    """
    pair = check_pair(y_pred, y, max_val, mask)
    return max_val * _errors(pair)[0]


def rmse(
    y_pred: torch.Tensor, y: torch.Tensor, *, max_val: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Root of the mean squared error, ``(B,)``, in the images' units; arguments and errors as in :func:`similarity`.

    Examples:
        >>> y = torch.zeros(1, 1, 16, 16, 16)
        >>> rmse(y + 0.25, y)
        tensor([0.2500])
    """
    pair = check_pair(y_pred, y, max_val, mask)
    return max_val * _errors(pair)[1].sqrt()


def psnr(
    y_pred: torch.Tensor, y: torch.Tensor, *, max_val: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio, ``10 log₁₀ (L² / MSE)`` in dB, ``(B,)`` (Al-Sanaani et al., eq. 5).

    L is ``max_val``. Infinite where two images are identical. Arguments and errors as in :func:`similarity`.

    Examples:
        >>> y = torch.zeros(1, 1, 16, 16, 16)
        >>> psnr(y + 0.1, y)
        tensor([20.])
    """
    pair = check_pair(y_pred, y, max_val, mask)
    return -10.0 * _errors(pair)[1].log10()


def ssim(
    y_pred: torch.Tensor, y: torch.Tensor, *, max_val: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Structural similarity, ``(B,)``, at most 1 (Wang et al. 2004): Gaussian windows of 11 (σ 1.5), K 0.01 and 0.03.

    The mean over all windows that lie wholly inside the image, over channels too; with a mask, over those of them whose
    centre is inside it. Two images that are constant and equal have 1. Arguments and errors as in :func:`similarity`.

    Examples:
        >>> y = torch.rand(1, 1, 16, 16, 16)
        >>> ssim(y, y)
        tensor([1.])
    """
    return ms_ssim_terms(y_pred, y, max_val=max_val, mask=mask, scales=1).ssim[0]


def ms_ssim(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    max_val: float = 1.0,
    mask: torch.Tensor | None = None,
    weights: Sequence[float] = PAPER_WEIGHTS,
    normalize: bool = False,
) -> torch.Tensor:
    """Multi-scale structural similarity, ``(B,)``, in [0, 1] (Al-Sanaani et al., eq. 6; Wang et al. 2003).

    ``Π CS_jᵝʲ`` over all scales but the coarsest, times SSIM there to its own weight. Means that are negative count
    as 0, as in MONAI's metric. Each scale is the one before, average-pooled by 2 (an odd last voxel is left out).

    Args:
        y_pred, y, max_val, mask: as in :func:`similarity`.
        weights: β, from the finest scale to the coarsest; as many as there are scales.
        normalize: divide the weights by their sum. Those of the paper sum to 0.63, which lifts every value: 0.82 as
            printed is 0.73 normalised.

    Raises:
        InputError: as in :func:`similarity`, and for weights that are negative or sum to 0.

    Examples:
        >>> y = torch.rand(1, 1, 48, 48, 48)
        >>> ms_ssim(y, y)
        tensor([1.])
    """
    if len(weights) == 0 or min(weights) < 0 or sum(weights) <= 0:
        raise InputError(f"weights of MS-SSIM must be 0 or more and not all 0, got {tuple(weights)}")
    terms = ms_ssim_terms(y_pred, y, max_val=max_val, mask=mask, scales=len(weights))
    return _product(terms, weights, normalize=normalize)


def similarity(
    y_pred: torch.Tensor, y: torch.Tensor, *, max_val: float = 1.0, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """All measures of this module in one pass.

    Args:
        y_pred: generated images, ``(B, C, H, W, D)`` or ``(B, C, H, W)``, intensities in [0, ``max_val``].
        y: the real ones, of the same shape and range.
        max_val: L, the range of intensities.
        mask: ``(B, 1, H, W, D)`` or ``(B, 1, H, W)``, bool or 0/1: voxels that count. For SSIM and MS-SSIM, windows
            *centred* on such voxels count (what they see reaches outside); at coarser scales the mask is pooled like
            the images, and voxels at least half inside count.

    Returns:
        ``psnr`` (dB), ``rmse``, ``mae``, ``ssim``, ``ms_ssim`` (weights as printed) and ``ms_ssim_normalised``, each
        ``(B,)``, float32 (float64 for float64 images).

    Raises:
        InputError: for shapes that differ or are none of the two, intensities outside of [0, ``max_val``] by more than
            a thousandth of it, NaN, a mask of another shape or that leaves nothing, and images too small: 11 voxels per
            axis for SSIM, 44 for MS-SSIM.

    Examples:
        >>> y = torch.rand(1, 1, 48, 48, 48)
        >>> sorted(similarity(y, y))
        ['mae', 'ms_ssim', 'ms_ssim_normalised', 'psnr', 'rmse', 'ssim']
    """
    pair = check_pair(y_pred, y, max_val, mask)
    absolute, squared = _errors(pair)
    terms = _terms(pair, len(PAPER_WEIGHTS))
    return {
        "psnr": -10.0 * squared.log10(),
        "rmse": max_val * squared.sqrt(),
        "mae": max_val * absolute,
        "ssim": terms.ssim[0],
        "ms_ssim": _product(terms, PAPER_WEIGHTS, normalize=False),
        "ms_ssim_normalised": _product(terms, PAPER_WEIGHTS, normalize=True),
    }


def ms_ssim_terms(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    max_val: float = 1.0,
    mask: torch.Tensor | None = None,
    scales: int = len(PAPER_WEIGHTS),
) -> ScaleTerms:
    """What SSIM and every MS-SSIM of an image are made from; arguments and errors as in :func:`similarity`.

    Examples:
        >>> y = torch.rand(2, 1, 48, 48, 48)
        >>> ms_ssim_terms(y, y).ssim.shape
        torch.Size([3, 2])
    """
    return _terms(check_pair(y_pred, y, max_val, mask), scales)


def check_pair(
    y_pred: torch.Tensor, y: torch.Tensor, max_val: float = 1.0, mask: torch.Tensor | None = None
) -> ImagePair:
    """The images as plain float tensors in [0, 1]; arguments and errors as in :func:`similarity`."""
    if y_pred.shape != y.shape:
        raise InputError(f"y_pred has shape {tuple(y_pred.shape)} and y has {tuple(y.shape)}; bring both to one grid")
    if y.ndim not in (4, 5) or y.numel() == 0:
        raise InputError(f"images have shape {tuple(y.shape)}; needed is (B, C, H, W, D) or (B, C, H, W), not empty")
    if not 0 < max_val < float("inf"):
        raise InputError(f"max_val is the range of intensities and must be above 0, got {max_val}")
    images = []
    for name, x in (("y_pred", y_pred), ("y", y)):
        x = _plain(x).detach()
        low, high = (float(v) for v in torch.aminmax(x))  # NaN if there is one
        if not (low >= -1e-3 * max_val and high <= 1.001 * max_val):
            raise InputError(
                f"{name} has intensities from {low:.4g} to {high:.4g}; needed is 0 to {max_val:g} (max_val), no NaN; "
                "scale both images alike or set max_val to their range"
            )
        x = x if x.dtype == torch.float64 else x.float()
        images.append(x if max_val == 1 else x / max_val)
    if mask is not None:
        if mask.shape != (y.shape[0], 1, *y.shape[2:]):
            raise InputError(f"mask has shape {tuple(mask.shape)}, needed is {(y.shape[0], 1, *y.shape[2:])}")
        mask = _plain(mask).to(y.device)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError("mask has values other than 0 and 1; give what counts as bool, such as mask > 0.5")
        mask = mask != 0
        empty = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"mask is empty for image(s) {empty} of the batch; leave them out or widen the mask")
    return ImagePair(images[0], images[1], mask)


def _plain(x: torch.Tensor) -> torch.Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


@torch.no_grad()
def _errors(pair: ImagePair) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean absolute and mean squared error of each image, ``(B,)``."""
    apart = (pair.pred - pair.real).abs_()
    if pair.mask is None:
        count = torch.full((len(apart),), apart[0].numel(), dtype=torch.float64, device=apart.device)
    else:
        apart.mul_(pair.mask)
        count = pair.mask.flatten(1).sum(dim=1, dtype=torch.float64) * apart.shape[1]
    absolute = apart.flatten(1).sum(dim=1) / count  # torch sums in cascades: seven digits hold
    squared = apart.square_().flatten(1).sum(dim=1) / count
    return absolute.to(apart.dtype), squared.to(apart.dtype)


@torch.no_grad()
def _terms(pair: ImagePair, scales: int) -> ScaleTerms:
    need = WINDOW * 2 ** (scales - 1)
    shape = tuple(pair.real.shape[2:])
    if min(shape) < need:
        raise InputError(
            f"images of {shape} voxels are too small for {'SSIM' if scales == 1 else f'MS-SSIM of {scales} scales'}: "
            f"the smallest side must be at least {need}; use larger crops or fewer scales"
        )
    rows = [
        _image_terms(pred, real, None if pair.mask is None else pair.mask[i, 0], scales)
        for i, (pred, real) in enumerate(zip(pair.pred, pair.real, strict=True))
    ]
    table = torch.stack(rows, dim=-1).to(pair.real.dtype)  # (2, scales, B)
    return ScaleTerms(table[0], table[1])


def _image_terms(pred: torch.Tensor, real: torch.Tensor, mask: torch.Tensor | None, scales: int) -> torch.Tensor:
    """SSIM and contrast of one image ``(C, ...)`` at each scale, ``(2, scales)``.

    All is computed from sum and difference of the two images: then the terms of equal images are exactly 1. Their means
    over the volume are taken off first: a variance as E[x²] − E[x]² would lose its digits in float32.
    """
    both = torch.stack([pred + real, pred - real], dim=1)  # (C, 2, ...)
    means = both.flatten(2).mean(dim=2)
    both -= means.reshape(*means.shape, *[1] * (real.ndim - 1))
    inside = None if mask is None else mask.to(both.dtype)
    out = []
    for scale in range(scales):
        if scale:
            both, inside = _pooled(both, real.ndim - 1), None if inside is None else _pooled(inside, real.ndim - 1)
        counts = None if inside is None else inside[(slice(BORDER, -BORDER),) * inside.ndim] >= 0.5
        if counts is not None and not bool(counts.any()):
            raise InputError(
                f"mask leaves no window at scale {scale + 1}: windows of {WINDOW} voxels must lie inside the image "
                f"with their centre in the mask, {BORDER * 2**scale} voxels from the image's border; widen the mask"
            )
        sums = torch.stack([_window_means(c, m.tolist(), counts) for c, m in zip(both, means, strict=True)])
        out.append(sums.mean(dim=0))
    return torch.stack(out, dim=1)


def _window_means(both: torch.Tensor, means: list[float], counts: torch.Tensor | None) -> torch.Tensor:
    """Mean SSIM and mean contrast over one channel's windows, ``(2,)`` in float64.

    Args:
        both: sum and difference of the images, ``(2, ...)``, centred.
        means: means that were taken off the two.
        counts: the windows to count, None for all.
    """
    total, number = torch.zeros(2, dtype=torch.float64, device=both.device), 0
    c1, c2 = 2 * K1**2, 2 * K2**2
    for rows, slab in _slabs(both):
        moments = torch.cat([slab, slab.square()])
        for axis in range(1, moments.ndim):
            moments = _blurred(moments, axis)
        mean_sum, mean_diff = moments[0], moments[1]
        var_sum = moments[2].addcmul_(mean_sum, mean_sum, value=-1).clamp_(min=0.0)
        var_diff = moments[3].addcmul_(mean_diff, mean_diff, value=-1).clamp_(min=0.0)
        # x = (s + d)/2, y = (s − d)/2: 2 σ_xy = (σ_s² − σ_d²)/2 and σ_x² + σ_y² = (σ_s² + σ_d²)/2, means alike.
        contrast = 1 - 2 * var_diff / var_sum.add_(var_diff).add_(c2)
        square_sum, square_diff = (mean_sum + means[0]).square_(), (mean_diff + means[1]).square_()
        value = contrast * (1 - 2 * square_diff / square_sum.add_(square_diff).add_(c1))
        if counts is not None:
            value, contrast = value[counts[rows]], contrast[counts[rows]]
        total += torch.stack([value.sum(), contrast.sum()])
        number += value.numel()
    return total / number


def _slabs(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Pieces of ``(2, H, ...)`` along H that overlap by a window, with the windows' rows that each of them has."""
    rows = x.shape[1] - WINDOW + 1
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        yield slice(start, stop), x[:, start : stop + WINDOW - 1]


def _blurred(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Gaussian windows along one axis, valid region: products with banded matrices, faster than convolutions."""
    length, after = x.shape[axis], x.shape[axis + 1 :].numel()
    out_shape = (*x.shape[:axis], length - WINDOW + 1, *x.shape[axis + 1 :])
    with torch.autocast(x.device.type, enabled=False):
        if axis == x.ndim - 1:
            return (x.reshape(-1, length) @ _band(length, x.dtype, x.device).T).reshape(out_shape)
        x = x.reshape(-1, length, after)
        rows = length - WINDOW + 1
        if rows <= 2 * BLOCK:
            return torch.bmm(_band(length, x.dtype, x.device).expand(len(x), -1, -1), x).reshape(out_shape)
        out = x.new_empty(len(x), rows, after)
        for start in range(0, rows, BLOCK):
            stop = min(start + BLOCK, rows)
            band = _band(stop - start + WINDOW - 1, x.dtype, x.device).expand(len(x), -1, -1)
            out[:, start:stop] = torch.bmm(band, x[:, start : stop + WINDOW - 1])
    return out.reshape(out_shape)


@lru_cache(maxsize=64)
def _band(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The windows along an axis as a matrix ``(length - 10, length)``."""
    offset = torch.arange(length)[None] - torch.arange(length - WINDOW + 1)[:, None] - BORDER
    matrix = torch.exp(-offset.double().square() / (2 * SIGMA**2)) * (offset.abs() <= BORDER)
    return (matrix / matrix.sum(dim=1, keepdim=True)).to(device, dtype)


def _pooled(x: torch.Tensor, spatial: int) -> torch.Tensor:
    """Average-pooled by 2 along the last ``spatial`` axes; an odd last voxel is left out, as in avg_pool3d."""
    for axis in range(x.ndim - spatial, x.ndim):
        pairs = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))
        x = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
    return x * 0.5**spatial


def _product(terms: ScaleTerms, weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    factors = torch.cat([terms.contrast[:-1], terms.ssim[-1:]]).clamp(min=0.0)
    exponents = torch.tensor(weights, dtype=factors.dtype, device=factors.device)
    if normalize:
        exponents = exponents / exponents.sum()
    return (factors ** exponents[:, None]).prod(dim=0)


class _ImageMetric(RegressionMetric):
    """One value per image, ``(B, 1)``, for MONAI's engines (``IgniteMetricHandler``); collected from all processes.

    Takes ``(y_pred, y)`` as batches or as MONAI's decollated lists without B (then of any sizes), and ``mask`` with
    batches only.

    Args:
        max_val: range of the intensities.
        reduction, get_not_nans: as in MONAI's metrics; ``"mean"`` is the mean over all images.
    """

    measure: ClassVar[Any]

    def __init__(self, *, max_val: float = 1.0, reduction: str = "mean", get_not_nans: bool = False) -> None:
        super().__init__(reduction=reduction, get_not_nans=get_not_nans)
        self.options: dict[str, Any] = {"max_val": max_val}

    def _compute_tensor(  # type: ignore[override]
        self, y_pred: torch.Tensor, y: torch.Tensor, *, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        values: torch.Tensor = type(self).measure(y_pred, y, mask=mask, **self.options)
        return values[:, None]

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._compute_tensor(y_pred, y)


class PSNR(_ImageMetric):
    """:func:`psnr` in dB for engines; one identical pair makes the mean infinite.

    Examples:
        >>> metric, y = PSNR(), torch.zeros(2, 1, 16, 16, 16)
        >>> _ = metric(y + 0.1, y)
        >>> round(float(metric.aggregate()), 3)
        20.0
    """

    measure = staticmethod(psnr)


class RMSE(_ImageMetric):
    """:func:`rmse` for engines.

    Examples:
        >>> metric, y = RMSE(), torch.zeros(2, 1, 16, 16, 16)
        >>> _ = metric(y + 0.25, y)
        >>> float(metric.aggregate())
        0.25
    """

    measure = staticmethod(rmse)


class MAE(_ImageMetric):
    """:func:`mae` for engines.

    Examples:
        >>> metric, y = MAE(), torch.zeros(2, 1, 16, 16, 16)
        >>> _ = metric(y + 0.25, y)
        >>> float(metric.aggregate())
        0.25
    """

    measure = staticmethod(mae)


class SSIM(_ImageMetric):
    """:func:`ssim` for engines.

    Examples:
        >>> metric, y = SSIM(), torch.rand(2, 1, 16, 16, 16)
        >>> _ = metric(y, y)
        >>> round(float(metric.aggregate()), 3)
        1.0
    """

    measure = staticmethod(ssim)


class MultiScaleSSIM(_ImageMetric):
    """:func:`ms_ssim` for engines.

    Args:
        weights, normalize: as in :func:`ms_ssim`.
        kwargs: ``max_val``, ``reduction``, ``get_not_nans``.

    Examples:
        >>> metric, y = MultiScaleSSIM(normalize=True), torch.rand(2, 1, 48, 48, 48)
        >>> _ = metric(y, y)
        >>> round(float(metric.aggregate()), 3)
        1.0
    """

    measure = staticmethod(ms_ssim)

    def __init__(self, *, weights: Sequence[float] = PAPER_WEIGHTS, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options |= {"weights": tuple(weights), "normalize": normalize}
