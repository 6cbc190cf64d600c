"""Normalisation layers of the volume networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class VolumeInstanceNorm(nn.Module):
    """Affine instance normalisation, computed as batch normalisation of (1, B·C, H, W, D).

    The values are those of ``torch.nn.InstanceNorm3d``, which copies the volume to the default memory format and back:
    on two cores a training step of the pix2pix generator takes 1.12 times as long with it
    (``ci/benchmarks/pix2pix.py``). One voxel, which PyTorch's layer refuses in training, has no spread and becomes the
    bias: small volumes reach one voxel at the deepest level.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W, D)`` → the same shape, mean and spread of each channel of each volume set by the weights."""
        b, c, h, w, d = x.shape[0], x.shape[1], x.shape[2], x.shape[3], x.shape[4]
        if h * w * d == 1:
            return (x - x) + self.bias.view(1, -1, 1, 1, 1).to(x.dtype)
        if b == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        y = x.reshape(1, b * c, h, w, d)
        y = F.batch_norm(y, None, None, self.weight.repeat(b), self.bias.repeat(b), True, 0.0, self.eps)
        return y.reshape(b, c, h, w, d)


MEAN_OVER_SPREAD = 100.0
"""Above it, what cancels is 1e-3 of the variance and more."""


def affine_free_norm(x: torch.Tensor, groups: int, eps: float, *, offset: torch.Tensor | None = None) -> torch.Tensor:
    """Group normalisation without weights, its statistics in float32 whatever the features' type.

    Args:
        x: ``(B, C, h, w, d)``.
        groups: number of groups of the channels; C gives instance normalisation, 0 :func:`voxel_norm`. A group of one
            value becomes 0.
        eps: added to the variance.
        offset: ``(C,)``, added to the result; not with :func:`voxel_norm`.

    Returns:
        The same shape and type.
    """
    if groups == 0:
        return voxel_norm(x, eps)
    if x.device.type != "cpu":  # there, half-precision features would get half-precision statistics
        if not _counts(x, groups):
            return torch.zeros_like(x) + (0 if offset is None else offset.to(x.dtype).view(1, -1, 1, 1, 1))
        return F.group_norm(x.float(), groups, bias=offset, eps=eps).to(x.dtype)
    return _group_norm(x, groups, eps, offset)[0]


def voxel_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Every voxel's channels brought to mean 0 and variance 1 (Ba et al. 2016, layer norm, at each place alone).

    No voxel knows of another one: a network of convolutions and this norm gives the same for a part of a volume as for
    the whole, as far from the part's border as its convolutions reach.

    Args:
        x: ``(B, C, h, w, d)``.
        eps: added to the variance.

    Returns:
        The same shape and type; statistics in float32.
    """
    normalised = F.layer_norm(x.permute(0, 2, 3, 4, 1), [x.shape[1]], eps=eps)
    return normalised.permute(0, 4, 1, 2, 3)


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, groups: int, eps: float) -> torch.Tensor:
    """``affine_free_norm(x) · scale + shift`` in one pass after the statistics.

    Training keeps ``x`` and ``scale``, not the normalised features, which are computed again in the backward pass.

    Args:
        x: ``(B, C, h, w, d)``.
        scale, shift: the same shape, batch size B or 1.
        groups, eps: as in :func:`affine_free_norm`.

    Returns:
        ``(B, C, h, w, d)`` of the type of ``x``.
    """
    scale, shift = _laid_out_as(x, scale.to(x.dtype)), _laid_out_as(x, shift.to(x.dtype))
    if groups == 0:
        return torch.addcmul(shift, voxel_norm(x, eps), scale)
    if _plain(x, scale) or shift.shape != scale.shape:
        normalised = affine_free_norm(x, groups, eps)
        reuse = not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and scale.shape[0] <= x.shape[0]
        return torch.addcmul(shift, normalised, scale, out=normalised if reuse else None)
    return modulate_jointly(x, torch.cat([scale, shift], dim=1), groups=groups, eps=eps)


def modulate_jointly(x: torch.Tensor, scale_shift: torch.Tensor, *, groups: int, eps: float) -> torch.Tensor:
    """:func:`modulate` with scale and shift in one tensor, ``(B, 2·C, h, w, d)``, whose gradient comes in one too."""
    scale_shift = scale_shift.to(x.dtype)
    if groups == 0:
        scale, shift = scale_shift.chunk(2, dim=1)
        return torch.addcmul(shift, voxel_norm(x, eps), scale)
    if _plain(x, scale_shift):
        return modulate(x, *scale_shift.chunk(2, dim=1), groups=groups, eps=eps)
    result: torch.Tensor = _Modulate.apply(x, scale_shift, groups, eps)
    return result


def _laid_out_as(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """In the memory format of x; half of the channels of such a volume is left as it is."""
    form = memory_format(x)
    same = value.is_contiguous() or value.stride(1) != 1
    return value if same == (form == torch.contiguous_format) else value.contiguous(memory_format=form)


def _plain(x: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether autograd's own backward pass is to be used."""
    elsewhere = torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type != "cpu"
    return elsewhere or scale.shape[0] != x.shape[0]


class _Modulate(torch.autograd.Function):
    """:func:`modulate` with a backward pass that recomputes what is cheap.

    On a processor a new volume costs more than what is computed in it (the system gives out its pages one by one):
    both passes write into volumes that are there.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale_shift: torch.Tensor, groups: int, eps: float) -> Any:
        normalised, _, _ = _group_norm(x, groups, eps)
        ctx.save_for_backward(x, scale_shift)
        ctx.groups, ctx.eps = groups, eps
        scale, shift = scale_shift.chunk(2, dim=1)
        return torch.addcmul(shift, normalised, scale, out=normalised)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, scale_shift = ctx.saved_tensors
        normalised, _, rstd = _group_norm(x, ctx.groups, ctx.eps)
        grad = grad.contiguous(memory_format=memory_format(x))
        scale = scale_shift.chunk(2, dim=1)[0]
        d_scale_shift = torch.empty_like(scale_shift)
        d_scale, d_shift = d_scale_shift.chunk(2, dim=1)
        torch.mul(grad, normalised, out=d_scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_normalised = grad * scale
            # d_x = rstd (d_n - mean(d_n) - n mean(d_n n)), means over each group; eq. as of batch normalisation
            first = _group_mean(d_normalised, ctx.groups)
            second = _group_mean(torch.mul(d_normalised, normalised, out=d_shift), ctx.groups)
            factor, offset = _per_channel(rstd, x), _per_channel(-first * rstd, x)
            d_x = torch.addcmul(offset.to(x.dtype), d_normalised, factor.to(x.dtype), out=d_normalised)
            d_x.addcmul_(normalised, _per_channel(-second * rstd, x).to(x.dtype))
        d_shift.copy_(grad)
        return d_x, d_scale_shift, None, None


def _group_mean(x: torch.Tensor, groups: int) -> torch.Tensor:
    """``(B, C, h, w, d)`` → ``(B, groups)``, summed in float32 or better; the sums of the planes are rounded."""
    total = x.sum(dim=(3, 4)).sum(dim=2, dtype=torch.promote_types(x.dtype, torch.float32))
    return total.view(x.shape[0], groups, -1).mean(dim=2) / x[0, 0].numel()


def _per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``(B, groups)`` → ``(B, C, 1, 1, 1)``."""
    repeated = values.repeat_interleave(x.shape[1] // values.shape[1], dim=1)
    return repeated[:, :, None, None, None]


def _group_norm(
    x: torch.Tensor, groups: int, eps: float, offset: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # float32 weights make the kernel keep float32 statistics for half-precision features
    b, c = x.shape[0], x.shape[1]
    ones = torch.ones(c, device=x.device)
    zeros = torch.zeros(c, device=x.device) if offset is None else offset.float()
    if x.dtype == torch.float64:
        ones, zeros = ones.double(), zeros.double()
    x = _laid_out(x)
    result: Any = torch.native_group_norm(x, ones, zeros, b, c, x[0, 0].numel(), groups, eps)
    if _cancels(x, result[1], result[2]):
        x = x - _per_channel(result[1], x).to(x.dtype)
        result = torch.native_group_norm(x, ones, zeros, b, c, x[0, 0].numel(), groups, eps)
    return result[0], result[1], result[2]


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """The same values in the memory format of ``x``, with that format's strides along axes of one voxel as well.

    There a stride says nothing and can be any number: kernels leave different ones for volumes of one slice. PyTorch's
    group norm tells the format by all strides, and then refuses such a volume as not contiguous in that format.
    """
    form = memory_format(x)
    x = x.contiguous(memory_format=form)
    steps, step = [0] * 5, 1
    for axis in (1, 4, 3, 2, 0) if form == torch.channels_last_3d else (4, 3, 2, 1, 0):
        steps[axis], step = step, step * x.shape[axis]
    return x if list(x.stride()) == steps else x.clone(memory_format=form)


def _cancels(x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor) -> bool:
    """Whether means so far above the spread have spoilt it: channels-last, PyTorch takes E[x²] - E[x]² in float32."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or memory_format(x) == torch.contiguous_format:
        return False
    return bool((mean.abs() * rstd).amax() > MEAN_OVER_SPREAD)


def leaky_relu_(x: torch.Tensor, slope: float) -> torch.Tensor:
    """``F.leaky_relu`` in place, whose backward pass is in place too: only where one convolution takes the result.

    (A convolution's gradient is used nowhere else. Of a label branch's wide features it is the largest volume.)
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not x.requires_grad:
        return F.leaky_relu(x, slope, inplace=True)
    result: torch.Tensor = _LeakyReLU.apply(x, slope)
    return result


class _LeakyReLU(torch.autograd.Function):
    """:func:`leaky_relu_`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, slope: float) -> Any:
        ctx.mark_dirty(x)
        y = F.leaky_relu_(x, slope)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward.grad_input(grad, y, ctx.slope, True, grad_input=grad), None


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format of ``(B, C, h, w, d)``: channels-last; where that is the same, or neither is the case, contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if last else torch.contiguous_format


def _counts(x: torch.Tensor, groups: int) -> bool:
    """Whether a group holds more than one value."""
    return x[0].numel() > groups
