"""Drawn label maps on disk: told from those of people, and ready for every generator's inference."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import CommonKeys as Keys

from .. import __version__
from ..data.classes import bundle_classes, read_metadata
from ..data.datalists import read_datalist
from ..data.entry_cases import SOURCE_VOXELS
from ..data.geometry import geometry_of
from ..data.kept import state_of
from ..data.resampling import on_voxels
from ..data.volumes import write_label
from ..errors import InputError
from ..files import atomic_path, sha256, write_text
from ..json_files import read_object_or_none
from ..ownership import Outputs
from ..paths import as_path
from ..synthesis.drawing.inferer import DrawnMapInferer
from ..vocabulary import class_names
from .held import HeldFolder

logger = logging.getLogger(__name__)
WHOSE = ("source_case", "patient", SOURCE_VOXELS)
"""Keys of an entry that say whose known structures a map has."""
WRITTEN = "label_sha256"
"""Key of a record: SHA-256 of the map's file as it was written."""
DATALIST = "datalist.json"
NAME = "label maps drawn by semsynth"


class MapWriter(HeldFolder):
    """Attached to an inference engine: writes each drawn map, and at the end ``datalist.json`` with all.

    Per map ``<output_dir>/<case>.nii.gz`` and a JSON beside it (bundle, version, SHA-256 of the weights, seed, figures,
    how many were refused before it, SHA-256 of the file). The datalist has them under ``testing``, where the inference
    of every generator looks first. Maps that are there, of the same weights, seed and settings, are kept; others are
    not replaced unless ``overwrite``. One run at a time holds the folder.

    Args:
        output_dir: folder of the results.
        metadata: the bundle's ``metadata.json``.
        weights: the file that the network's weights came from.
        num_classes: number of classes of the maps.
        inferer: inferer that draws the maps, and knows how.
        entries: all that are to be made, of :func:`semsynth.synthesis.drawing.load_requests`.
        seed: seed of the maps.
        spacing: mm per voxel of the files; None: those that the weights draw on. Figures are those of the map as it was
            drawn.
        draws_on: mm per voxel that the config says the weights draw on; compared with their card.
        settings: further settings that a map depends on; they go into the records.
        overwrite: replace maps that were made otherwise.
        wait: wait until another run that writes into ``output_dir`` has ended; without it such a run is an error.

    Raises:
        InputError: when it is first used: weights that are not there; files that are not ours, or were made otherwise;
            another run that writes there.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        metadata: str | Path,
        weights: str | Path,
        num_classes: int,
        inferer: DrawnMapInferer,
        entries: Sequence[Mapping[str, Any]],
        seed: int = 0,
        spacing: Sequence[float] | None = None,
        draws_on: Sequence[float] | None = None,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        wait: bool = False,
    ) -> None:
        self.output_dir, self.weights = as_path(output_dir, "output_dir"), as_path(weights, "weights")
        self.metadata, self.num_classes, self.inferer, self.entries = Path(metadata), num_classes, inferer, entries
        self.seed, self.overwrite, self.wait = seed, overwrite, wait
        if spacing is not None and (not isinstance(spacing, list | tuple) or len(spacing) != 3):
            raise InputError(f"voxel_size must be three sizes in mm, such as '[1,1,1]', got {spacing!r}")
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)
        self.draws_on = None if draws_on is None else tuple(float(s) for s in draws_on)
        self.settings = dict(settings or {})
        if self.spacing is not None and not all(0.1 <= s <= 20 for s in self.spacing):
            raise InputError(f"voxel_size must be three sizes of 0.1 to 20 mm, got {list(self.spacing)}")

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator whose output is decollated and whose data has ``case`` names."""
        engine.add_event_handler(Events.STARTED, lambda engine: self.prepare())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.finish())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def finished(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry's map is there, and is what would be made."""
        self.hold()
        path, described = self._paths(entry)
        found = read_object_or_none(described)
        if found is None or not path.is_file() or self._comparable(found) != self._made_by(entry):
            return False
        return state_of(path, found.get(WRITTEN)) == "kept"

    def prepare(self) -> None:
        """Before the first map: whether the weights are there, and nothing is lost that is not to be replaced."""
        self.hold()
        self._listing.check()
        self._check_spacing()
        foreign, otherwise = [], []
        for entry in self.entries:
            path, described = self._paths(entry)
            found = read_object_or_none(described)
            if found is None and path.is_file() and described.is_file():
                logger.warning("%s is damaged; the map is drawn again", described)
            elif (found is None and path.is_file()) or (found is not None and not found.get("drawn")):
                foreign.append(f"{path.name}: no record beside it says that it was drawn")
            elif found is not None and path.is_file():
                if self._comparable(found) != self._made_by(entry):
                    otherwise.append(f"{path.name}: was drawn with other weights, seed or settings")
                elif state_of(path, found.get(WRITTEN)) == "changed":
                    otherwise.append(f"{path.name}: was changed since it was drawn")
        if foreign:
            raise InputError(f"{self.output_dir}: holds other files; give another output_dir", foreign)
        if otherwise and not self.overwrite:
            raise InputError(
                f"{self.output_dir}: {len(otherwise)} map(s) would be replaced; give another output_dir or seed, or "
                "--overwrite True",
                otherwise[:10],
            )

    def _check_spacing(self) -> None:
        """The config's voxel size is that of the weights: they hold no millimetres."""
        geometry = geometry_of(self.weights, self.metadata)
        drawn = self.draws_on
        if geometry is None or drawn is None or np.allclose(geometry.spacing, drawn, rtol=0.01):
            return
        own = ",".join(f"{size:g}" for size in geometry.spacing)
        raise InputError(
            f"{self.weights}: draws on voxels of {own} mm, and spacing is {list(drawn)}; give --spacing '[{own}]' (and "
            "--voxel_size for files of another one)"
        )

    def _paths(self, entry: Mapping[str, Any]) -> tuple[Path, Path]:
        return self.output_dir / f"{entry['case']}.nii.gz", self.output_dir / f"{entry['case']}.json"

    @cached_property
    def _listing(self) -> Outputs:
        return Outputs(self.output_dir, "semsynth's inference", {DATALIST: _lists_drawn}, instead="output_dir")

    @cached_property
    def _origin(self) -> dict[str, Any]:
        if not self.weights.is_file():
            raise InputError(f"{self.weights}: no such weights; give --weights, or copy the bundle whole")
        about = read_metadata(self.metadata)
        return {
            "drawn": True, "bundle": about.get("bundle", ""), "version": about.get("version", ""),
            "weights": self.weights.name, "weights_sha256": sha256(self.weights), "seed": self.seed,
            "settings": json.loads(json.dumps(self.settings)),
            "spacing": None if self.spacing is None else list(self.spacing), "semsynth": __version__,
        }  # fmt: skip

    def _made_by(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What a map depends on."""
        request = {k: v for k, v in dict(entry[Keys.IMAGE]).items() if k != "file"}
        whose = {name: entry[name] for name in WHOSE if name in entry}
        return self._origin | {"case": entry["case"], "request": json.loads(json.dumps(request)), **whose}

    def _comparable(self, found: Mapping[str, Any]) -> dict[str, Any]:
        wanted = (*self._origin, "case", "request")
        return {name: found.get(name) for name in wanted} | {name: found[name] for name in WHOSE if name in found}

    def _write(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        known = {str(entry["case"]): entry for entry in self.entries}
        for item_in, item, how in zip(batch, output, self.inferer.records, strict=True):
            entry = known[str(item_in["case"])]
            label, affine = self._on_grid(item[Keys.PRED], item[Keys.IMAGE])
            path, described = self._paths(entry)
            with atomic_path(path) as new:
                write_label(new, label, affine)
                record = self._made_by(entry) | {**how, WRITTEN: sha256(new)}
                write_text(described, json.dumps(record, indent=1))

    def _on_grid(self, drawn: torch.Tensor, given: Any) -> tuple[np.ndarray, np.ndarray]:
        affine = np.array(given.affine.cpu().numpy(), dtype=np.float64)
        label = torch.as_tensor(drawn).cpu()
        if label.shape != given.shape:  # of a size that the network has chosen: its middle is the origin
            affine[:3, 3] = -affine[:3, :3] @ ((np.array(label.shape[1:]) - 1) / 2)
        made = MetaTensor(label, affine=torch.from_numpy(affine))
        made = made if self.spacing is None else on_voxels(made, self.spacing)
        return made.as_tensor().numpy()[0].astype(np.uint8), made.affine.numpy()

    def finish(self) -> None:
        """List all maps, once all are there, and leave the folder to others."""
        try:
            missing = sum(not self.finished(entry) for entry in self.entries)
            if missing:
                logger.info("%d of %d maps are still to be made, by other processes", missing, len(self.entries))
                return
            self._list()
        finally:
            self.let_go()

    def _list(self) -> None:
        names = bundle_classes(self.metadata)
        names = names if len(names) == self.num_classes else class_names(self.num_classes)
        content = {
            "name": NAME,
            "modality": {"0": "label map"},
            "num_classes": self.num_classes,
            "classes": {str(i): name for i, name in names.items()},
            "drawn_by": {name: self._origin[name] for name in ("bundle", "version", "weights", "weights_sha256")},
            "testing": [
                *self._listed_before({str(e["case"]) for e in self.entries}),
                *(
                    {"case": str(e["case"]), "label": f"{e['case']}.nii.gz", "drawn": True, "patient": str(e["case"])}
                    | {name: e[name] for name in WHOSE if name in e}
                    for e in self.entries
                ),
            ],
        }
        path = self._listing.write_text(DATALIST, json.dumps(content, indent=1))
        records = [read_object_or_none(self._paths(entry)[1]) or {} for entry in self.entries]
        refused = sum(sum(dict(record.get("refused") or {}).values()) for record in records)
        logger.info("%d label maps, %d refused on the way, listed in %s", len(records), refused, path)

    def _listed_before(self, own: Collection[str]) -> list[dict[str, Any]]:
        """Entries of earlier runs into this folder, of other seeds, whose maps still stand."""
        path = self.output_dir / DATALIST
        if not path.is_file():
            return []
        known = [entry for entry in read_datalist(path).get("testing") or [] if isinstance(entry, dict)]
        return [e for e in known if str(e.get("case")) not in own and self._paths(e)[0].is_file()]


def _lists_drawn(datalist: Path) -> bool:
    """Whether a datalist is one of drawn maps."""
    try:
        content = read_datalist(datalist)
    except InputError:
        return False
    return content.get("name") == NAME
