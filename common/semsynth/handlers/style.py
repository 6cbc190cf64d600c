"""Volumes in the style of given images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.transforms import CropForeground, ScaleIntensity

from ..datalists import OWN_STYLE
from ..errors import InputError
from ..networks.extractor import at_spacing
from ..preprocessing import LoadIntensityd

logger = logging.getLogger(__name__)


class StyleFrom:
    """Attached to an inference engine, after its weights are loaded: volumes get the style of an image.

    One image for all of them is encoded once; with ``"own"`` each label map's own image, which the batch has under
    ``style_from`` (see :func:`semsynth.datalists.load_label_maps`). What is left to the seed is the noise. The image
    (brightness, contrast, noise) is prepared as training images are: RAS axes, ``spacing``, zeros around the content
    cut off, minimum to 0 and maximum to 1.

    Args:
        network: has ``encode(image) -> (mean, log σ²)`` and takes the attribute ``style``, ``(1, Z)``.
        image: file of the image; ``"own"``; or None to draw styles by their seeds.
        spacing: mm per voxel that the network was trained at.

    Raises:
        InputError: for a network without styles, when there is an image; for a batch of several cases with ``"own"``.
    """

    def __init__(
        self, network: Any, image: str | Path | None = None, *, spacing: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> None:
        if image is not None and not hasattr(network, "encode"):
            raise InputError(f"style_from {image}: {type(network).__name__} has no styles; leave style_from at null")
        self.network, self.image, self.spacing = network, image, tuple(spacing)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator."""
        if self.image == OWN_STYLE:
            engine.add_event_handler(Events.ITERATION_STARTED, self._encode_own)
        elif self.image is not None:
            engine.add_event_handler(Events.STARTED, self._encode_one)

    def _encode_one(self, engine: Engine) -> None:
        self._encode(str(self.image))
        logger.info("style of %s: %d values of spread %.2f", self.image, self.network.style.shape[1],
                    float(self.network.style.std()))  # fmt: skip

    def _encode_own(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        images = set(batch["style_from"])
        if len(images) > 1:
            raise InputError("several cases in one batch would share a style: set the dataloader's batch_size to 1")
        self._encode(images.pop())

    @torch.no_grad()
    def _encode(self, image: str) -> None:
        content: Any = CropForeground()(LoadIntensityd("image")({"image": image})["image"])
        content = ScaleIntensity()(at_spacing(content, self.spacing).float())
        device = next(self.network.parameters()).device
        self.network.style = self.network.encode(content[None].to(device))[0]
