"""The label maps of an augmentation: those of the cases as they are, morphed and generated ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ... import __version__
from ...data.entries import MOST_SAMPLES
from ...data.entry_cases import SOURCE_VOXELS, VOXELS
from ...data.intensity import INTENSITY, entry_intensity, stated_intensity
from ...data.kept import state_of
from ...data.volumes import write_label
from ...distributed import rank, together, world_size
from ...errors import InputError
from ...files import relative_to, sha256, write_text
from ...json_files import read_object_or_none
from ...prepare.morph import MorphLabel, ShapeLimits
from ...prepare.morph.deform import Source, morph
from ..region import Region
from .generator import MapGenerator
from .plan import AugmentSettings, Draw, Prepared

logger = logging.getLogger(__name__)
MAPS, DATALIST, GENERATED = "maps", "datalist.json", "generated"
SHA256 = "label_sha256"


class Maps:
    """Label maps in a folder: made where they are not there yet, the same whenever and by whichever process.

    Args:
        prepared: the cases.
        settings: settings of the augmentation.
        folder: folder of the augmentation; maps stand in its folder ``maps``.
        styles: scans whose styles volumes take, each that of one which is drawn; None: as the settings say.
        generator: generator of label maps, where there are generated ones.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: AugmentSettings,
        folder: Path,
        styles: Prepared | None = None,
        generator: MapGenerator | None = None,
    ) -> None:
        self.prepared, self.settings, self.folder, self.styles = prepared, settings, folder / MAPS, styles
        self.generator = generator
        self.entries = prepared.cases
        self.transform = MorphLabel(prepared.classes, settings.rules)

    def path(self, draw: Draw) -> Path:
        """The file of a volume's label map."""
        if draw.generated:
            return self.folder / GENERATED / f"{draw.name}.nii.gz"
        own = Path(str(self.entries[draw.case]["label"]))
        return self.folder / f"{draw.name}.nii.gz" if draw.morphed else own

    def record(self, draw: Draw) -> dict[str, Any] | None:
        """What is written of a morphed or generated map; None of one as it is."""
        return read_object_or_none(self._record_path(draw)) if draw.morphed or draw.generated else None

    def person(self, draw: Draw) -> str:
        """Whose volume it is; one of a generated map has no patient, unless it has the style of a patient's scan."""
        alone = draw.generated and self.settings.style != "own"
        return draw.name if alone else self.prepared.people[draw.case]

    def origin(self, draw: Draw) -> dict[str, Any]:
        """Where a volume's anatomy comes from, for its entry."""
        if draw.generated and self.generator is not None:
            return {"drawn": True, "map_weights_sha256": self.generator.sha256}
        return {SOURCE_VOXELS: self.prepared.origin(draw.case)}

    def content(self, draw: Draw) -> dict[str, Any]:
        """Where the map stands in its padding, for its entry."""
        own = self.entries[draw.case]
        return {"content": own["content"]} if "content" in own and not draw.generated else {}

    def make(self, draws: Sequence[Draw]) -> None:
        """Make this process's share of the generated and morphed maps that are not there yet.

        Where no morph of a case is within the limits, its map is taken as it is, and that is said.

        Raises:
            InputError: for maps there that are others, or not ours.
        """
        drawn = [draw.name for draw in draws if draw.generated]
        if drawn and self.generator is not None:
            generator = self.generator
            together(lambda: generator.draw(drawn, self.folder / GENERATED, self.settings.drawn("maps")))
        wanted = [draw for draw in draws if draw.morphed]
        if not wanted:
            return
        together(self._learn, first=True)
        together(self._learn)  # the others read what the first has kept
        cases = sorted({draw.case for draw in wanted})[rank() :: world_size()]
        together(lambda: self._make([draw for draw in wanted if draw.case in cases]))

    def _make(self, draws: Sequence[Draw]) -> None:
        made_with = self._made_with()
        missing = [draw for draw in draws if not self._is_there(draw, made_with)]
        region: Region | None = None
        for draw in tqdm(missing, "morphing", unit="map", disable=not missing):
            file = str(self.entries[draw.case]["label"])
            if region is None or region.source != file:
                region = Region.read(file, self.entries[draw.case].get("content"))
                source = Source.of(region.label, region.spacing, self.transform.index, self.transform.rules)
            about = {"case": draw.case, "label": relative_to(file, self.folder), **made_with}
            label: NDArray[np.integer] = region.label
            try:
                seed = self.settings.drawn("morph", draw.case, draw.number)
                label, record = morph(source, self.transform.limits, seed, tries=self.transform.tries)
                about |= {"morph": record}
            except InputError as error:
                logger.warning("%s: %s; its map is taken as it is", draw.name, error)
                about |= {"morph": None, "reason": str(error)}
            path = write_label(self.path(draw), region.whole(label), region.affine)
            write_text(self._record_path(draw), json.dumps(about | {SHA256: sha256(path)}, indent=1))

    def entry(self, draw: Draw, folder: Path, attempt: int) -> dict[str, Any]:
        """A volume's entry of the datalist that an inference reads, with paths from ``folder``.

        Args:
            draw: the volume.
            folder: folder of that datalist.
            attempt: number of times that it was refused before.
        """
        return {
            "case": draw.name,
            "label": relative_to(self.path(draw), folder),
            "source_case": draw.name if draw.generated else draw.case,
            "sample": draw.number + attempt * MOST_SAMPLES,
            "patient": self.person(draw),
            **self.origin(draw),
            **self.content(draw),
            **self._style(draw, folder, attempt),
        }

    def _style(self, draw: Draw, folder: Path, attempt: int) -> dict[str, Any]:
        """The image whose style the volume is to have; nothing where the network draws it."""
        if self.settings.style == "drawn":
            return {}
        scan, of = self.entries[draw.case], self.prepared
        if self.styles is not None:
            of = self.styles
            rng = np.random.default_rng(self.settings.drawn("style", draw.case, draw.number, attempt))
            scan = of.entries[rng.integers(len(of.entries))]
        held = entry_intensity(scan, stated_intensity(of.content, of.path), of.path)
        return {
            "style_from": relative_to(str(scan["image"]), folder),
            **({"style_map": relative_to(str(scan["label"]), folder)} if "label" in scan else {}),
            **({} if held is None else {INTENSITY: held.to_json()}),
        }

    def _learn(self) -> None:
        """Limits from the maps of the cases; kept, since measuring them takes a while."""
        path = self.folder / "limits.json"
        hashes = sorted(str(dict(entry.get(VOXELS) or {}).get("label")) for entry in self.entries.values())
        key = hash_of(json.dumps([self._rules(), hashes, __version__]).encode()).hexdigest()
        known = read_object_or_none(path)
        if known is not None and known.get("of") == key:
            self.transform.limits = ShapeLimits.from_json(known.get("limits"), str(path))
            return
        regions = (Region.read(str(e["label"]), e.get("content")) for e in self.entries.values())
        self.transform.learn((r.label, r.spacing) for r in tqdm(regions, "measuring", len(self.entries), unit="map"))
        write_text(path, json.dumps({"of": key, "limits": self.transform.limits.as_json()}, indent=1))

    def _rules(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(asdict(self.transform.rules)))
        return found

    def _made_with(self) -> dict[str, Any]:
        """What a morphed map depends on beside its case and number."""
        return {"rules": self._rules(), "limits": self.transform.limits.as_json(), "seed": self.settings.seed}

    def _is_there(self, draw: Draw, made_with: Mapping[str, Any]) -> bool:
        """Whether a morphed map stands there whole, of the same rules, limits and seed.

        Raises:
            InputError: for one that is not ours, was changed since, or made otherwise.
        """
        path, known = self.path(draw), self.record(draw)
        if not path.is_file():
            return False
        fix = "give another --output, or move the file away"
        if known is None or SHA256 not in known:
            raise InputError(f"{path}: was not written by semsynth augment; {fix}")
        if {name: known.get(name) for name in made_with} != dict(made_with):
            raise InputError(f"{path}: was morphed by other rules, with limits of other cases, or another seed; {fix}")
        state = state_of(path, known[SHA256])
        if state == "changed":
            raise InputError(f"{path}: was changed since it was made; {fix}")
        return state == "kept"

    def _record_path(self, draw: Draw) -> Path:
        return self.path(draw).with_name(f"{draw.name}.json")
