"""Learned perceptual distance of slices (LPIPS), by the ``lpips`` package, an extra that is loaded only when used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import InputError
from ..vocabulary import PLANES
from .similarity import check_pair

BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""Weights file of each backbone, as torchvision names it."""

SMALLEST = 32  # in-plane voxels; below, the backbones' poolings have nothing left
AXES = {plane: 2 + axis for axis, plane in enumerate(PLANES)}


@torch.no_grad()
def lpips(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    net: Literal["alex", "vgg", "squeeze"] = "alex",
    planes: Sequence[str] = ("axial",),
    max_val: float = 1.0,
    batch_size: int = 16,
) -> torch.Tensor:
    """Mean LPIPS over slices, ``(B,)``, 0 for identical volumes (Zhang et al. 2018, version 0.1 of its weights).

    Slices go in as three equal channels in [-1, 1], at their own size. The backbones are trained on photographs.

    Args:
        y_pred: generated volumes ``(B, 1, H, W, D)``, intensities in [0, ``max_val``].
        y: the real ones.
        net: backbone; LPIPS figures are commonly those of ``"alex"``.
        planes: any of ``"sagittal"``, ``"coronal"``, ``"axial"`` (slices along H, W, D); the mean is over all slices.
        max_val: range of the intensities.
        batch_size: slices at a time.

    Raises:
        InputError: where the ``lpips`` package, torchvision or the backbone's weights are not there (nothing is
            downloaded), for names that are none of the above, for slices below 32 voxels a side, and for images that
            :func:`semsynth.metrics.similarity` would refuse.
    """
    axes = [AXES.get(plane, 0) for plane in planes]
    if net not in BACKBONES or not axes or 0 in axes:
        raise InputError(
            f"net must be {', '.join(BACKBONES)} and planes any of {', '.join(AXES)}, got {net!r} and {tuple(planes)}"
        )
    pair = check_pair(y_pred, y, max_val)
    if y.ndim != 5 or y.shape[1] != 1:
        raise InputError(f"LPIPS takes volumes of one channel (B, 1, H, W, D), got shape {tuple(y.shape)}")
    if min(side for axis in axes for i, side in enumerate(y.shape) if i > 1 and i != axis) < SMALLEST:
        raise InputError(
            f"slices for LPIPS need {SMALLEST} voxels a side, volumes are {tuple(y.shape[2:])}; take other planes"
        )
    model = _model(net).to(y.device)
    rows = []
    for pred, real in zip(pair.pred[:, 0], pair.real[:, 0], strict=True):
        distances = [
            model(a, b).flatten()
            for axis in axes
            for a, b in zip(_slices(pred, axis, batch_size), _slices(real, axis, batch_size), strict=True)
        ]
        rows.append(torch.cat(distances).mean())
    return torch.stack(rows)


def _slices(x: torch.Tensor, axis: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Batches ``(N, 3, ., .)`` in [-1, 1] of a volume ``(H, W, D)``; ``axis`` is that in ``(B, C, H, W, D)``."""
    for batch in x.movedim(axis - 2, 0).split(batch_size):
        yield (2 * batch.float() - 1)[:, None].expand(-1, 3, -1, -1)


@lru_cache(maxsize=len(BACKBONES))
def _model(net: str) -> torch.nn.Module:
    """The network, once all that it needs is known to be there: else torchvision would try to download it."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]
    missing = [f"the package {name}" for name in ("lpips", "torchvision") if importlib.util.find_spec(name) is None]
    missing += [] if weights.is_file() else [f"the file {weights} (torchvision's weights of {net}; see TORCH_HOME)"]
    if missing:
        raise InputError(
            f"LPIPS needs {', '.join(missing)}, not found here; pip install 'semsynth[lpips]', put the weights there, "
            "or leave LPIPS out"
        )
    try:
        package: Any = importlib.import_module("lpips")
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision built for another torch
        raise InputError(f"LPIPS cannot be loaded ({error}); install a torchvision that fits this torch") from error
    model: torch.nn.Module = package.LPIPS(net=net, verbose=False).eval().requires_grad_(False)
    return model
