"""The generator of label maps behind an augmentation: a bundle such as la_maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.classes import bundle_classes, plain_name
from ...errors import InputError
from ...files import sha256
from ..workflow import check_settings, inference_config, known_settings, run_inference, weights_of

TRIES = 100
"""For one map: a whole augmentation does not end for one that is hard to draw."""


@dataclass(frozen=True)
class MapGenerator:
    """A bundle that draws label maps.

    Attributes:
        bundle: its folder.
        weights: the file that it draws with.
        sha256: SHA-256 of that file.
        spacing: mm per voxel of the maps; None: those that the weights draw on.
        device: device on which it draws; None: that of its config.
        inference: further settings of the bundle's inference in place of its own.
    """

    bundle: Path
    weights: Path
    sha256: str
    spacing: Sequence[float] | None = None
    device: str | None = None
    inference: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bundle: Path,
        weights: str | Path | None,
        classes: Mapping[int, str],
        *,
        spacing: Sequence[float] | None = None,
        device: str | None = None,
        inference: Mapping[str, Any] | None = None,
    ) -> MapGenerator:
        """A bundle and its weights, checked.

        Args:
            bundle: its folder.
            weights: in place of its own; None takes those.
            classes: classes of the maps that its maps stand beside, index → name.
            spacing, device, inference: see the class.

        Raises:
            InputError: for a bundle that draws no label maps, lacks weights, or draws other classes.
        """
        if "known" not in inference_config(bundle):
            raise InputError(f"--map-bundle {bundle}: draws no label maps; give a bundle such as bundles/la_maps")
        found = weights_of(bundle, weights)
        ours = {index: plain_name(name) for index, name in bundle_classes(bundle).items()}
        theirs = {index: plain_name(name) for index, name in classes.items()}
        if ours != theirs:
            raise InputError(
                f"--map-bundle {bundle}: draws the classes {', '.join(ours.values())}, the cases have "
                f"{', '.join(theirs.values())}; train it on your maps, or prepare the cases with its number of clusters"
            )
        told = check_settings(bundle, inference or {}, "--map-inference")
        return cls(bundle, found, sha256(found), spacing, device, told)

    def draw(self, names: Sequence[str], folder: Path, seed: int) -> None:
        """Draw a map of each name, where it is not there yet; the same whenever and by whichever process.

        Args:
            names: names of the maps.
            folder: folder of the maps.
            seed: seed of all.
        """
        own: dict[str, Any] = {"names": list(names), "seed": seed, "weights": str(self.weights), "tries": TRIES}
        own |= {} if self.spacing is None else {"voxel_size": [float(s) for s in self.spacing]}
        own |= {} if self.device is None else {"device": f"$torch.device({self.device!r})"}
        run_inference(self.bundle, output_dir=str(folder), **{**known_settings(self.bundle, own), **self.inference})
