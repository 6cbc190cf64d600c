"""What an engine's network gets of a batch, and what it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch

from ...errors import InputError
from ...labels import plain


class PrepareSynthesisBatch(PrepareBatch):
    """Batch → (label map, image): a generator's input is the label map and its target the image.

    The trainer's output then has the label map under ``image`` and the real image under ``label``, the names of MONAI's
    engines for a network's input and target.

    Args:
        label_key, image_key: keys of the batch; an absent image gives the target None (inference).
    """

    def __init__(self, label_key: str = "label", image_key: str = "image") -> None:
        self.label_key, self.image_key = label_key, image_key

    def __call__(  # type: ignore[override]  # noqa: D102
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        label = batchdata[self.label_key].to(device=device, non_blocking=non_blocking, **kwargs)
        image = batchdata.get(self.image_key)
        if image is None:
            return label, None
        return label, image.to(device=device, non_blocking=non_blocking, **kwargs)


class PrepareReconstructionBatch(PrepareSynthesisBatch):
    """Batches as above, with the image as the network's second input too: for the validation of an autoencoder."""

    def __call__(  # type: ignore[override]  # noqa: D102
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[Any, ...], dict[str, Any]]:
        label, image = super().__call__(batchdata, device, non_blocking, **kwargs)
        if image is None:
            raise InputError(f"an autoencoder needs images, and this batch has none under {self.image_key!r}")
        return label, image, (plain(image),), {}
