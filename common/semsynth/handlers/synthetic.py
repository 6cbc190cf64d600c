"""Synthetic volumes on disk: never mistaken for real ones, and ready to train on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys as Keys

from .. import __version__
from ..data.classes import bundle_classes, read_metadata
from ..data.datalists import read_datalist
from ..data.entry_cases import SOURCE_VOXELS, VOXELS
from ..data.geometry import TrainedGrid
from ..data.headers import read_header
from ..data.hidden import KNOWN_AS, MARK
from ..data.identity import SOURCE, is_map
from ..data.intensity import INTENSITY, Stored
from ..data.kept import state_of
from ..data.nesting import refuse_among
from ..data.volumes import StorageType, Volume, check_storage, write_image
from ..data.voxels import hash_file
from ..errors import InputError
from ..files import atomic_path, relative_to, sha256, shown_name, write_text
from ..json_files import read_object_or_none
from ..ownership import Outputs
from ..paths import as_path
from ..prepare.pseudonymise import copy_case
from ..provenance.seen import Seen, read_card
from ..vocabulary import OWN_STYLE, class_names
from .finite import refuse_not_finite
from .held import HeldFolder

logger = logging.getLogger(__name__)
WRITTEN = "volume_sha256"
"""Key of a record: SHA-256 of the volume's file as it was written."""
MOST_SHOWN = 10
DATALIST = "datalist.json"
MAPS = "maps"
"""Folder of label maps under pseudonyms."""


class SyntheticWriter(HeldFolder):
    """Attached to an inference engine: writes each generated volume with the geometry of its label map.

    Per case ``<output_dir>/<case>_synthetic.nii.gz`` and a JSON beside it that marks it as synthetic (bundle, version,
    SHA-256 of the weights, seed, label map; from the card beside the weights whether they were trained on the case,
    null where unknown, which networks were in their losses, what the values of the file are, and its SHA-256); at
    the end ``datalist.json``, image and map per entry, ready to train a segmentation network on. Each file is written
    whole or not at all, and no output with NaN is written. Volumes that are there, of the same map, weights, seed and
    settings, are kept; others are not replaced unless ``overwrite``. One run at a time holds the folder.

    Of cases under pseudonyms (see :func:`semsynth.data.entries.load_label_maps`) label maps are copied to
    ``<output_dir>/maps/<case>/label.nii.gz``, and no name of a source's file is written.

    Args:
        output_dir: folder of the results.
        metadata: the bundle's ``metadata.json``.
        weights: the file that the network's weights came from.
        num_classes: number of classes of the label maps; goes into the datalist, with their names.
        vocabulary: key of the names in the metadata; None where it does not have them.
        seed: seed of sample 0 (of sample i, seed + i), or None for a deterministic network.
        dtype: type of the stored intensities.
        grid: training data of the weights; where they know a unit (CT: Hounsfield units), volumes are written in
            it, as whole numbers. None: intensities in [0, 1].
        intensity_range: values of the files for the intensities 0 and 1, in place of that; None: as ``grid`` says.
        style_from: the image whose style all volumes have, or ``"own"`` for that which the batch has under
            ``style_from``; it goes into their records.
        style_map: the label map of that image, where the style is told by class.
        settings: further settings that a volume depends on (sampler, steps …); they go into the records.
        entries: all that are to be made, by this process, others or a run before, see :meth:`finished`; the datalist
            has them all, once they are all there. None: what this process writes.
        overwrite: replace volumes that were made otherwise (other weights, seed, settings), and ones
            that were changed since.
        wait: wait until another run that writes into ``output_dir`` has ended; without it such a run is an error.

    Raises:
        InputError: when it is first used: weights that are not there; a folder whose datalist is of other data; volumes
            that would be replaced: of other label maps, because the cases have the same names, and, unless
            ``overwrite``, ones that were made otherwise or changed since; another run that writes there. Per case: an
            output with NaN or infinite values.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        metadata: str | Path,
        weights: str | Path,
        num_classes: int,
        vocabulary: str | None = "classes",
        seed: int | None = None,
        dtype: StorageType = "int16",
        grid: TrainedGrid | None = None,
        intensity_range: Sequence[float] | None = None,
        style_from: str | Path | None = None,
        style_map: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        entries: Sequence[Mapping[str, Any]] | None = None,
        overwrite: bool = False,
        wait: bool = False,
    ) -> None:
        self.output_dir, self.weights = as_path(output_dir, "output_dir"), as_path(weights, "weights")
        self.metadata, self.num_classes, self.seed, self.dtype = Path(metadata), num_classes, seed, dtype
        self.vocabulary = vocabulary
        self.grid, self.intensity_range = grid, intensity_range
        self.style_from, self.style_map = style_from, style_map
        self.settings, self.entries = dict(settings or {}), entries
        self.overwrite, self.wait = overwrite, wait
        self.written: list[dict[str, Any]] = []
        self._hashes: dict[Path, str] = {}
        self._known: dict[str, dict[str, str]] = {}
        self._copied: set[Path] = set()

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator whose output is decollated and whose data has ``case`` names."""
        engine.add_event_handler(Events.STARTED, lambda engine: self.prepare())
        refuse_not_finite(engine, self.weights)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.finish())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def prepare(self) -> None:
        """Before the first volume: whether the weights are there, and nothing is lost that is not to be replaced."""
        self.hold()
        self.written = []
        self._listing.check()
        _ = self._origin  # whether the weights are there, before any work
        check_storage(self.dtype, self._stored.window)
        refuse_among(self.output_dir, [str(e[Keys.IMAGE]) for e in self.entries or []], option="output_dir")
        self._refuse_replacing()

    def _refuse_replacing(self) -> None:
        """Volumes that stand here under the names of these cases have to be those that would be made."""
        other_maps, otherwise = [], []
        for entry in self.entries or []:
            image, described = self._paths(entry)
            found = read_object_or_none(described)
            if not image.is_file():
                if found is not None and not found.get("synthetic"):
                    other_maps.append(f"{described.name}: is no record of a synthetic volume")
                continue
            if found is None and described.is_file():
                logger.warning("%s is damaged; the volume is made again", described)
            elif found is None:
                other_maps.append(f"{image.name}: has no {described.name} beside it, so no inference wrote it")
            elif (place := self._other_map(entry, found)) is not None:
                other_maps.append(f"{image.name}: was made from {place[0]}, not from {place[1]}")
            elif reason := self._made_otherwise(entry, found, image):
                otherwise.append(f"{image.name}: {reason}")
        if other_maps:
            raise InputError(
                f"{self.output_dir}: holds volumes of other label maps under the same case names; give another "
                "output_dir, or set 'case' in the datalist",
                other_maps,
            )
        if otherwise and not self.overwrite:
            raise InputError(
                f"{self.output_dir}: {len(otherwise)} volume(s) would be replaced; give another output_dir, or "
                "--overwrite True",
                [
                    *otherwise[:MOST_SHOWN],
                    *([f"and {len(otherwise) - MOST_SHOWN} more"] if otherwise[MOST_SHOWN:] else []),
                ],
            )

    def _other_map(self, entry: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, str] | None:
        """The label map of a record, and the entry's, where they are two; the same file may hold another map now."""
        label = self._map(entry)
        own, place = relative_to(label, self.output_dir), found.get("label_from", found.get("label"))
        voxels = self._voxels(entry).get("label")
        same_map = voxels is not None and voxels == found.get("label_voxels")
        if place in (own, label.name) or same_map or found.get("label_sha256") == self._sha256(label):
            return None
        return str(place), own

    def _made_otherwise(self, entry: Mapping[str, Any], found: Mapping[str, Any], image: Path) -> str:
        """What is another one in a record than it would be now; empty where nothing is."""
        wanted = self._comparable(self._record(entry))
        was = self._comparable(found)
        names = [name for name in wanted | was if wanted.get(name) != was.get(name)]
        if names:
            return ", ".join(f"{name} {_short(was.get(name))}, now {_short(wanted.get(name))}" for name in names[:3])
        state = state_of(image, found.get(WRITTEN))
        if state == "damaged":
            logger.warning("%s is damaged; it is made again", image)
        return "it has changed since it was made" if state == "changed" else ""

    @staticmethod
    def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as its JSON, without where the label map is, as folders may be moved together, and the hash."""
        content: dict[str, Any] = json.loads(json.dumps(dict(record)))
        return {name: value for name, value in content.items() if name not in ("label_from", WRITTEN)}

    def finished(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry's volume is there, whole, of the same map, weights, seed, style, settings and versions."""
        self.hold()
        image, described = self._paths(entry)
        found = read_object_or_none(described)
        if found is None or self._comparable(found) != self._comparable(self._record(entry)):
            return False
        return state_of(image, found.get(WRITTEN)) == "kept"

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """What all records have in common."""
        about = read_metadata(self.metadata)
        if not self.weights.is_file():
            raise InputError(f"{self.weights}: no such file; train the bundle first or set 'weights' to a trained file")
        origin = {
            "synthetic": True,
            "bundle": about.get("bundle", self.metadata.parent.parent.name),
            "version": str(about.get("version", "unknown")),
            "semsynth": __version__,
            "weights": self.weights.name,
            "weights_sha256": sha256(self.weights),
            "in_loss": self._card.get("in_loss", []),
            "stored_as": self.dtype,
            INTENSITY: self._stored.about.to_json(),
        }
        if self.settings:
            origin["settings"] = self.settings
        if self.style_from is not None and self.style_from != OWN_STYLE:
            origin |= self._style_record(self.style_from)
            if self.style_map is not None:
                origin["style_map_sha256"] = self._sha256(as_path(self.style_map, "style_map"))
        return origin

    @cached_property
    def _listing(self) -> Outputs:
        """The list of volumes; one of real cases, or that somebody has edited, is not replaced."""
        return Outputs(self.output_dir, "semsynth's inference", {DATALIST: _lists_synthetic}, instead="output_dir")

    @cached_property
    def _stored(self) -> Stored:
        return Stored.of(None if self.grid is None else self.grid.trained, self.intensity_range)

    @cached_property
    def _listed_voxels(self) -> dict[str, Any]:
        return {str(entry["case"]): entry.get(VOXELS) for entry in self.entries or []}

    @cached_property
    def _seen(self) -> Seen:
        return Seen.of(self.weights)

    @cached_property
    def _card(self) -> dict[str, Any]:
        described = self.weights.with_suffix(".json")
        return read_card(described) if described.is_file() else {}

    def _paths(self, entry: Mapping[str, Any]) -> tuple[Path, Path]:
        """The volume's file and its record's."""
        image = self.output_dir / f"{entry['case']}_synthetic.nii.gz"
        return image, self.output_dir / f"{entry['case']}_synthetic.json"

    def _write(self, engine: Engine) -> None:
        batch: Any = engine.state.batch  # decollated by MONAI's engine together with the output
        output: Any = engine.state.output
        for entry, item in zip(batch, output, strict=True):
            label, pred = item[Keys.IMAGE], item[Keys.PRED]
            # where postprocessing says nothing, the volume is as the network saw the map: right, anterior, superior
            own = pred if isinstance(pred, MetaTensor) else label
            affine = np.asarray(own.affine.cpu().numpy(), dtype=np.float64)
            source = {**entry, Keys.IMAGE: str(label.meta["filename_or_obj"])}
            volume = Volume(pred.detach().float().cpu().numpy()[0], affine)
            volume = volume.oriented_as(read_header(source[Keys.IMAGE]).affine)
            image, described = self._paths(entry)
            with atomic_path(image) as new:
                write_image(new, volume.data, volume.affine, self.dtype, self._stored.window)
                record = self._record(source) | {WRITTEN: sha256(new)}
                if image.exists():  # the list may hold it as a volume of other weights
                    (self.output_dir / DATALIST).unlink(missing_ok=True)
                # both are on the disk before one is renamed; the record is first: no volume is ever without one
                write_text(described, json.dumps(record, indent=1))
            self.written.append(source)

    def _record(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        case, sample = _source(entry), int(entry.get("sample", 0))
        several = {"source_case": case, "sample": sample} if "sample" in entry else {}
        style = self._style_record(entry["style_from"]) if self.style_from == OWN_STYLE else {}
        label, voxels = self._map(entry), self._voxels(entry)
        reasons = self._seen.reasons(str(entry.get(KNOWN_AS, case)), voxels=voxels)
        raw = {role.removeprefix(SOURCE): value for role, value in sorted(voxels.items()) if role.startswith(SOURCE)}
        return self._origin | several | style | ({SOURCE_VOXELS: raw} if raw else {}) | {
            "case": entry["case"],
            "seed": None if self.seed is None else self.seed + sample,
            "trained_on": True if reasons else False if self._seen.complete else None,
            "label": label.name,
            "label_from": relative_to(label, self.output_dir),
            "label_sha256": self._sha256(label),
            "label_voxels": voxels.get("label"),
        }  # fmt: skip

    def _voxels(self, entry: Mapping[str, Any]) -> dict[str, str]:
        """Role → hash of the label map's voxels, and of the raw files that it comes from."""
        case = entry["case"]
        if case not in self._known:
            listed = self._listed_voxels.get(case) or entry.get(VOXELS) or {}
            known = {role: value for role, value in dict(listed).items() if isinstance(value, str)}
            if "label" not in known and (own := hash_file(entry[Keys.IMAGE])):
                known["label"] = own
            self._known[case] = known
        return self._known[case]

    def _style_record(self, image: str | Path) -> dict[str, str]:
        named = {} if self._hidden else {"style_from": shown_name(image)}
        return named | {"style_from_sha256": self._sha256(as_path(image, "style_from"))}

    @property
    def _hidden(self) -> bool:
        """Whether cases have pseudonyms, so that no name of a source's file may be written."""
        return any(KNOWN_AS in entry for entry in self.entries or [])

    def _map(self, entry: Mapping[str, Any]) -> Path:
        """The label map that records and the list name: the file itself, or under a pseudonym a clean copy."""
        if KNOWN_AS not in entry:
            return Path(entry[Keys.IMAGE])
        folder = self.output_dir / MAPS / _source(entry)
        if folder not in self._copied:
            try:
                copy_case({"label": Path(entry[Keys.IMAGE])}, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            self._copied.add(folder)
        return folder / "label.nii.gz"

    def _sha256(self, path: Path) -> str:
        """Of a file that many volumes have in common."""
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]

    def finish(self) -> None:
        """List all volumes, once all are there, and leave the folder to others."""
        try:
            self._list()
        finally:
            self.let_go()

    def _list(self) -> None:
        entries = self.written if self.entries is None else self.entries
        missing = sum(not self.finished(entry) for entry in entries)
        if missing:
            logger.info("%d of %d volumes are still to be made, by other processes", missing, len(entries))
            return
        listed = {str(entry["case"]): self._listed(entry) for entry in entries}
        content: dict[str, Any] = {
            "name": f"synthetic, {self._origin['bundle']} {self._origin['version']}",
            **(MARK if self._hidden or any(MARK.items() <= entry.items() for entry in entries) else {}),
            "modality": {"0": "synthetic"},
            "num_classes": self.num_classes,
            "classes": {str(i): name for i, name in self._names().items()},
            INTENSITY: self._stored.about.to_json(),
            "training": [listed[case] for case in sorted(listed)],
        }
        path = self._listing.write_text(DATALIST, json.dumps(content, indent=1))
        logger.info("%d synthetic volumes, listed in %s", len(listed), path)

    def _names(self) -> dict[int, str]:
        if self.vocabulary is None:
            return {i: f"class {i}" if i else "background" for i in range(self.num_classes)}
        known = bundle_classes(self.metadata, key=self.vocabulary)
        return known if len(known) == self.num_classes else class_names(self.num_classes)

    def _listed(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        record = self._record(entry)
        drawn = {key: record[key] for key in ("case", "source_case", "sample") if key in record}
        voxels = self._voxels(entry)
        source = {
            role.removeprefix(SOURCE): v for role, v in voxels.items() if is_map(role) and role.startswith(SOURCE)
        }
        # the scan itself is no source of the volume; the anatomy is, and its patient's for every draw
        return drawn | {
            "image": self._paths(entry)[0].name,
            "label": relative_to(self._map(entry), self.output_dir),
            "patient": str(entry.get("patient") or record.get("source_case", record["case"])),
            "synthetic": True,
            INTENSITY: self._stored.about.to_json(),  # of each: lists of several origins are put together by hand
            **({SOURCE_VOXELS: source} if source else {}),
        }


def _source(entry: Mapping[str, Any]) -> str:
    """The case whose label map it is."""
    return str(entry.get("source_case", entry["case"]))


def _lists_synthetic(datalist: Path) -> bool:
    """Whether a datalist is one of synthetic volumes alone."""
    try:
        content = read_datalist(datalist)
    except InputError:
        return False
    entries = [entry for value in content.values() if isinstance(value, list) for entry in value]
    synthetic = all(isinstance(entry, dict) and entry.get("synthetic") for entry in entries)
    return synthetic and (bool(entries) or str(content.get("name", "")).startswith("synthetic, "))


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
