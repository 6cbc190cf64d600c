"""Volumes in the style of a given image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.transforms import CropForeground, ScaleIntensity

from ..errors import InputError
from ..networks.extractor import at_spacing
from ..preprocessing import LoadIntensityd

logger = logging.getLogger(__name__)


class StyleFrom:
    """Attached to an inference engine, after its weights are loaded: all volumes get the style of one image.

    The image (brightness, contrast, noise) is encoded once; what is left to the seed is the noise. It is prepared as
    training images are: RAS axes, ``spacing``, zeros around the content cut off, minimum to 0 and maximum to 1.

    Args:
        network: has ``encode(image) -> (mean, log σ²)`` and takes the attribute ``style``, ``(1, Z)``.
        image: file of the image, or None to draw styles by their seeds.
        spacing: mm per voxel that the network was trained at.

    Raises:
        InputError: for a network without styles, when there is an image.
    """

    def __init__(
        self, network: Any, image: str | Path | None = None, *, spacing: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> None:
        if image is not None and not hasattr(network, "encode"):
            raise InputError(f"style_from {image}: {type(network).__name__} has no styles; leave style_from at null")
        self.network, self.image, self.spacing = network, image, tuple(spacing)

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator."""
        if self.image is not None:
            engine.add_event_handler(Events.STARTED, self._encode)

    @torch.no_grad()
    def _encode(self, engine: Engine) -> None:
        content: Any = CropForeground()(LoadIntensityd("image")({"image": str(self.image)})["image"])
        image: Any = ScaleIntensity()(at_spacing(content, self.spacing).float())
        device = next(self.network.parameters()).device
        self.network.style = self.network.encode(image[None].to(device))[0]
        logger.info("style of %s: %d values of spread %.2f", self.image, self.network.style.shape[1],
                    float(self.network.style.std()))  # fmt: skip
