"""Styles of given images, for the volumes that are made."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import CropForeground, CropForegroundd, ScaleIntensity, Spacingd

from ..data.geometry import TrainedGrid
from ..data.intensity import INTENSITY, MIN_MAX, intensity_beside
from ..data.transforms import LoadIntensityd, LoadLabelMapd, SameGridd
from ..errors import InputError
from ..networks.features.extractor import at_spacing
from ..paths import as_path
from ..vocabulary import OWN_STYLE

logger = logging.getLogger(__name__)


class StyleSource:
    """Batch → the style that its volumes are to have, or None where the network is to draw one.

    One image for all volumes is encoded once, when the first batch comes (the weights are loaded by then), and kept:
    for other weights make another source. With ``"own"`` each label map has the style of its own image, which the batch
    has under ``style_from`` (see :func:`semsynth.data.entries.load_label_maps`); where that image belongs to another
    label map, the batch has this one under ``style_map``. What is left to the seed is the noise.
    The image is prepared as training images are: RAS axes, ``spacing``, zeros around the content cut off, and the
    intensity rule of the weights, unless a record beside it or its datalist says what it holds: prepared and synthetic
    images are not stretched again.

    Args:
        network: has ``encode(image) -> (mean, log σ²)``, or ``encode(image, label map)`` and ``style_needs_labels``
            true.
        image: file of the image; ``"own"``; or None to draw styles by their seeds.
        label_map: the image's, for networks whose style is told by class; with ``"own"`` it is the map itself.
        spacing: mm per voxel that the network was trained at.
        grid: training data of the weights, whose intensity rule holds; None: minimum to 0, maximum to 1.

    Raises:
        InputError: for a network without styles, or one that needs a label map and has none, when there is an image;
            for a batch of several cases with ``"own"``.
    """

    def __init__(
        self,
        network: Any,
        image: str | Path | None = None,
        *,
        label_map: str | Path | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        grid: TrainedGrid | None = None,
    ) -> None:
        if image is not None and not hasattr(network, "encode"):
            raise InputError(f"style_from {image}: {type(network).__name__} has no styles; leave style_from at null")
        self.by_class = bool(getattr(network, "style_needs_labels", False))
        if self.by_class and image not in (None, OWN_STYLE) and label_map is None:
            raise InputError(
                f"style_from {image}: a style is the intensity in each class here; give the image's label map as "
                "style_map"
            )
        self.network, self.spacing = network, tuple(spacing)
        self.image = image if image in (None, OWN_STYLE) else as_path(image, "style_from")
        self.label_map = None if label_map is None else as_path(label_map, "style_map")
        self.grid, self.scaling = grid, MIN_MAX if grid is None else grid.scaling
        self._one: torch.Tensor | None = None

    def __call__(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Style ``(1, Z)`` for all items of a batch."""
        if self.image is None:
            return None
        if self.image == OWN_STYLE:
            images = set(batch["style_from"])
            if len(images) > 1:
                raise InputError("several cases in one batch would share a style: set batch_size to 1")
            maps = set(batch.get("style_map") or batch["image"].meta["filename_or_obj"]) if self.by_class else {None}
            if len(maps) > 1:
                raise InputError("several style maps in one batch would share a style: set batch_size to 1")
            label_map = maps.pop()
            return self.encode(images.pop(), label_map, next(iter(batch.get(INTENSITY, [])), None))
        if self._one is None:
            self._one = self.encode(str(self.image), self.label_map)
            logger.info("style of %s: %d values of spread %.2f", self.image, self._one.shape[1], float(self._one.std()))
        return self._one

    @torch.no_grad()
    def encode(self, image: str, label_map: str | Path | None = None, held: str | None = None) -> torch.Tensor:
        """The style ``(1, Z)`` of an image, with its label map for networks whose style is told by class.

        Args:
            image: its file.
            label_map: its label map's file.
            held: intensities of the file, as its datalist states them; None: as the record beside it does.
        """
        device = next(self.network.parameters()).device
        beside = intensity_beside(image) if held is None else None
        said = held if beside is None else json.dumps(beside.to_json())
        entry: dict[Any, Any] = {"image": image} | ({INTENSITY: said} if said else {})
        item: Any = LoadIntensityd("image", self.grid, self.scaling)(entry)
        # resampled edges are a little lower than the maximum, which was 1 in training
        whole: Any = (lambda x: x) if said or self.scaling != MIN_MAX else ScaleIntensity()
        if not self.by_class:
            content: Any = CropForeground()(item["image"])
            content = whole(at_spacing(content, self.spacing).float())
            style: torch.Tensor = self.network.encode(content[None].to(device))[0]
            return style
        keys = ["image", "label"]
        item = LoadLabelMapd("label", self.network.num_classes)(item | {"label": str(label_map)})
        item = CropForegroundd(keys, source_key="image")(SameGridd(keys)(item))
        item = Spacingd(keys, self.spacing, mode=("bilinear", "nearest"), padding_mode="border")(item)
        content = whole(item["image"].float())
        style = self.network.encode(content[None].to(device), item["label"][None].to(device))[0]
        return style
