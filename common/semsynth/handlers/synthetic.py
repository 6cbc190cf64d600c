"""Synthetic volumes on disk: never mistaken for real ones, and ready to train on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys

from .. import __version__
from ..datalists import OWN_STYLE, read_datalist
from ..distributed import gather, rank
from ..errors import InputError
from ..headers import read_header
from ..labels import class_names
from ..provenance import case_hash
from ..volumes import StorageType, Volume, sha256, write_image, write_text

logger = logging.getLogger(__name__)


class SyntheticWriter:
    """Attached to an inference engine: writes each generated volume with the geometry of its label map.

    Per case ``<output_dir>/<case>_synthetic.nii.gz`` and a JSON beside it that marks it as synthetic (bundle, version,
    SHA-256 of the weights, seed, label map; from the card beside the weights whether they were trained on the case, and
    which networks were in their losses); at the end ``datalist.json``, image and map per entry, ready to train a
    segmentation network on. Each file is written whole or not at all.

    Args:
        output_dir: where to write.
        metadata: the bundle's ``metadata.json``.
        weights: the file that the network's weights came from.
        num_classes: of the label maps; goes into the datalist.
        seed: what sample 0 was drawn with (sample i with seed + i), or None for a deterministic network.
        dtype: how intensities are stored.
        style_from: the image whose style all volumes have, or ``"own"`` for that which the batch has under
            ``style_from``; it goes into their records.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        metadata: str | Path,
        weights: str | Path,
        num_classes: int,
        seed: int | None = None,
        dtype: StorageType = "int16",
        style_from: str | Path | None = None,
    ) -> None:
        self.output_dir, self.weights = Path(output_dir), Path(weights)
        self.metadata, self.num_classes, self.seed, self.dtype = Path(metadata), num_classes, seed, dtype
        self.style_from = style_from

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator whose output is decollated and whose data has ``case`` names."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.entries: list[dict[str, Any]] = []
        about = json.loads(self.metadata.read_text(encoding="utf-8"))
        listed = self.output_dir / "datalist.json"
        if listed.is_file():
            entries = [e for value in read_datalist(listed).values() if isinstance(value, list) for e in value]
            if not all(isinstance(e, dict) and e.get("synthetic") for e in entries):
                raise InputError(f"{listed}: lists real cases and would be replaced; give another output_dir")
            if rank() == 0:
                listed.unlink()  # until all are written anew it would list volumes of other weights
        if not self.weights.is_file():
            raise InputError(f"{self.weights}: no such file; train the bundle first or set 'weights' to a trained file")
        described = self.weights.with_suffix(".json")
        card = json.loads(described.read_text(encoding="utf-8")) if described.is_file() else {}
        self.origin = {
            "synthetic": True,
            "bundle": about.get("name", self.metadata.parent.parent.name),
            "version": about["version"],
            "semsynth": __version__,
            "weights": self.weights.name,
            "weights_sha256": sha256(self.weights),
            "in_loss": card.get("in_loss", []),
        }
        if self.style_from is not None and self.style_from != OWN_STYLE:
            self.origin |= _style_record(self.style_from)
        names = card.get("training_cases")
        self.seen = None if names is None else {case["name"] for case in names}

    def _write(self, engine: Engine) -> None:
        batch: Any = engine.state.batch  # decollated by MONAI's engine together with the output
        output: Any = engine.state.output
        for entry, item in zip(batch, output, strict=True):
            label, pred = item[Keys.IMAGE], item[Keys.PRED]
            # the network sees right, anterior, superior; the file is as its label map is
            affine = np.asarray(label.affine.cpu().numpy(), dtype=np.float64)
            label_path = Path(str(label.meta["filename_or_obj"])).resolve()
            volume = Volume(pred.detach().float().cpu().numpy()[0], affine)
            volume = volume.oriented_as(read_header(label_path).affine)
            image = self.output_dir / f"{entry['case']}_synthetic.nii.gz"
            record = self._record(entry, label_path)
            # the record first: no volume is ever without it
            write_text(image.with_name(f"{entry['case']}_synthetic.json"), json.dumps(record, indent=1))
            write_image(image, volume.data, volume.affine, self.dtype)
            relative = os.path.relpath(label_path, self.output_dir.resolve())
            drawn = {key: record[key] for key in ("case", "source_case", "sample") if key in record}
            self.entries.append(drawn | {"image": image.name, "label": relative, "synthetic": True})

    def _record(self, entry: Mapping[str, Any], label: Path) -> dict[str, Any]:
        case, sample = str(entry.get("source_case", entry["case"])), int(entry.get("sample", 0))
        several = {"source_case": case, "sample": sample} if "sample" in entry else {}
        style = _style_record(entry["style_from"]) if self.style_from == OWN_STYLE else {}
        return self.origin | several | style | {
            "case": entry["case"],
            "seed": None if self.seed is None else self.seed + sample,
            "trained_on": None if self.seen is None else case_hash(case) in self.seen,
            "label": label.name,
            "label_sha256": sha256(label),
        }  # fmt: skip

    def _finish(self, engine: Engine) -> None:
        entries = [entry for part in gather(self.entries) for entry in part]
        if rank() != 0:
            return
        names = {str(i): name for i, name in class_names(self.num_classes).items()}
        content: dict[str, Any] = {
            "name": f"synthetic, {self.origin['bundle']} {self.origin['version']}",
            "modality": {"0": "synthetic"},
            "num_classes": self.num_classes,
            "classes": names,
            "training": sorted({entry["case"]: entry for entry in entries}.values(), key=lambda entry: entry["case"]),
        }
        path = write_text(self.output_dir / "datalist.json", json.dumps(content, indent=1))
        logger.info("%d synthetic volumes, listed in %s", len(content["training"]), path)


def _style_record(image: str | Path) -> dict[str, str]:
    return {"style_from": Path(image).name, "style_from_sha256": sha256(Path(image))}
