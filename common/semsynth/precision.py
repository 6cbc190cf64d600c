"""Mixed precision where the device has instructions for it."""

from __future__ import annotations

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)


@cache
def reduced_type(device_type: str) -> torch.dtype | None:
    """The 16-bit type that a kind of device computes in: bfloat16, or float16 on GPUs without it; None for neither.

    A CPU without AVX-512 (or Arm's bfloat16 extension) has no fast kernels for bfloat16: a convolution then takes a
    hundred times as long as in float32 (measured on an AVX2 processor: 32 → 32 channels, 64³ voxels, 135 s against
    0.6 s).

    Args:
        device_type: kind of the device, such as ``"cpu"`` or ``"cuda"``.
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device_type == "cpu":
        fast = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return torch.bfloat16 if fast is not None and fast() else None
    return torch.bfloat16


def autocast(device: torch.device | str, *, enabled: bool = True, scaled: bool = False) -> torch.autocast:
    """``torch.autocast`` in :func:`reduced_type`; off, said once, on a device that has none.

    Args:
        device: place of the work.
        enabled: the user's choice (``amp``).
        scaled: presence of a gradient scaler. Without one float16, whose range is small, is not used: a GPU that has
            nothing else then emulates bfloat16.
    """
    kind = torch.device(device).type
    found = reduced_type(kind)
    if found == torch.float16 and not scaled:
        found = torch.bfloat16
    if enabled and found is None:
        _say_off(kind)
    return torch.autocast(kind, found or torch.bfloat16, enabled=enabled and found is not None)


@cache
def _say_off(kind: str) -> None:
    logger.info("this %s has no fast 16-bit arithmetic: amp is off, everything is computed in float32", kind.upper())
