"""Volumes of an augmentation, round by round: all are made, the refused ones are drawn again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.hidden import MARK
from ...distributed import together
from ...errors import InputError
from ...files import write_text
from ...json_files import read_object_or_none
from ...vocabulary import OWN_STYLE
from ..gate import Gate, Thresholds
from ..workflow import known_settings, run_inference, weights_of
from .maps import DATALIST, Maps
from .plan import TRAINING, AugmentSettings, Draw

logger = logging.getLogger(__name__)
ROUND = "round_{}"
SUFFIX = "_synthetic"
"""Behind the name of a volume's file and record, as inferences write them."""


@dataclass(frozen=True)
class Made:
    """A volume that was made.

    Attributes:
        draw: draw that it was made by.
        attempt: number of its round, from 0 on.
        image, label: its files.
        figures: figures that the gate measured; empty without a gate.
        refused: reason why the gate refused it; empty where it did not.
    """

    draw: Draw
    attempt: int
    image: Path
    label: Path
    figures: Mapping[str, float]
    refused: str

    def record(self) -> dict[str, Any]:
        """What the inference wrote beside the volume.

        Raises:
            InputError: where it is not there, or damaged.
        """
        path = self.image.with_name(f"{self.draw.name}{SUFFIX}.json")
        found = read_object_or_none(path)
        if found is None:
            raise InputError(f"{path}: is missing or damaged; remove {self.image.name} beside it and start again")
        return found


class Rounds:
    """Runs a bundle's inference until every volume is accepted or was drawn often enough.

    Args:
        bundle: folder of the bundle.
        maps: the label maps.
        settings: settings of the augmentation.
        folder: folder of the augmentation; round ``i`` stands in its folder ``volumes/round_i``.
        own: settings of the inference in place of the bundle's.
        gate: None accepts all.
        thresholds: thresholds of the gate.
        tries: largest number of draws of a volume.
    """

    def __init__(
        self,
        bundle: Path,
        maps: Maps,
        settings: AugmentSettings,
        folder: Path,
        *,
        own: Mapping[str, Any] | None = None,
        gate: Gate | None = None,
        thresholds: Thresholds | None = None,
        tries: int = 3,
    ) -> None:
        self.bundle, self.maps, self.settings, self.folder = bundle, maps, settings, folder
        self.own, self.gate, self.thresholds, self.tries = dict(own or {}), gate, thresholds, tries

    @property
    def weights(self) -> str:
        """The generator's file of weights."""
        return str(weights_of(self.bundle, self.own.get("weights")))

    def run(self, draws: Sequence[Draw]) -> list[Made]:
        """All volumes, those of earlier rounds that were refused too, in the order in which they were made."""
        found: list[Made] = []
        wanted = list(draws)
        for attempt in range(self.tries if self.gate is not None else 1):
            made = self._one(wanted, attempt)
            found += made
            wanted = [m.draw for m in made if m.refused]
            if not wanted:
                break
            logger.info("round %d: %d of %d volumes were refused", attempt + 1, len(wanted), len(made))
        return found

    def _one(self, draws: Sequence[Draw], attempt: int) -> list[Made]:
        """One round: make the volumes that are not there yet, and judge them."""
        folder, maps = self.volumes(attempt), self.maps.folder / ROUND.format(attempt)
        together(lambda: self.list_maps(draws, attempt, maps), first=True)
        together(lambda: run_inference(self.bundle, **self.inference_settings(maps, folder)))
        paths = [(d.case, folder / f"{d.name}{SUFFIX}.nii.gz", self.maps.path(d)) for d in draws]
        figures: list[dict[str, float]] = [{} for _ in draws]
        refused = [""] * len(draws)
        if self.gate is not None and self.thresholds is not None:
            drawn = {self.maps.path(d) for d in draws if d.generated}
            figures = self.gate.judge_all(paths, f"judging, round {attempt + 1}", drawn)
            refused = [self.thresholds.refusal(found) for found in figures]
        rows = zip(draws, paths, figures, refused, strict=True)
        return [Made(draw, attempt, image, label, found, why) for draw, (_, image, label), found, why in rows]

    def volumes(self, attempt: int) -> Path:
        """The folder of a round's volumes."""
        return self.folder / "volumes" / ROUND.format(attempt)

    def list_maps(self, draws: Sequence[Draw], attempt: int, folder: Path) -> None:
        """Write the datalist that the inference reads, where it does not stand there yet."""
        prepared = self.maps.prepared.content
        content = {key: prepared[key] for key in ("num_classes", "classes", "phantom", *MARK) if key in prepared}
        content |= {
            "name": "label maps of semsynth augment",
            TRAINING: [self.maps.entry(draw, folder, attempt) for draw in draws],
        }
        path, text = folder / DATALIST, json.dumps(content, indent=1)
        if not (path.is_file() and path.read_text(encoding="utf-8") == text):
            write_text(path, text)

    def inference_settings(self, maps: Path, output: Path) -> dict[str, Any]:
        """What the inference is told: where its maps are, and where its volumes go."""
        style = {} if self.settings.style == "drawn" else {"style_from": OWN_STYLE}
        told = {"split": TRAINING, "seed": self.settings.drawn("volumes"), "num_samples": 1,
                "resample": self.settings.resample, **style, **self.own}  # fmt: skip
        return {"dataset_dir": str(maps), "output_dir": str(output), **known_settings(self.bundle, told)}
