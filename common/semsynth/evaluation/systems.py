"""The synthetic side of an evaluation: the volumes that systems made, and what they say of themselves."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.datalists import datalist_path, read_datalist
from ..data.grids import place
from ..data.headers import read_header
from ..data.hidden import Names
from ..data.intensity import HU, INTENSITY, MIN_MAX, Intensity, entry_intensity, one_rule, stated_intensity
from ..data.patterns import matches
from ..data.volumes import stem
from ..errors import InputError
from ..files import is_there
from ..json_files import read_object
from ..paths import as_path
from ..vocabulary import SPLITS
from .sources import RealCase, named_volumes

logger = logging.getLogger(__name__)
_TYPES: dict[str, Any] = {"case": str | None, "source_case": str | None, "in_loss": list | None,
                          "weights_sha256": str | None}  # fmt: skip
"""Of a record beside a synthetic volume: what is used of it, and what that has to be."""


@dataclass(frozen=True)
class System:
    """Synthetic volumes of one generator.

    Attributes:
        name: as tables call it.
        volumes: per case its samples' files, in the order of their numbers.
        records: records of the generator, the JSON beside a case's first sample.
        in_loss: names or SHA-256 of networks that were in the generator's own loss.
        weights: SHA-256 of its weights, or None.
        held: file → what it holds, where a record or a datalist says it.
    """

    name: str
    volumes: Mapping[str, tuple[Path, ...]]
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    in_loss: tuple[str, ...] = ()
    weights: str | None = None
    held: Mapping[Path, Intensity] = field(default_factory=dict)

    def samples(self, cases: Iterable[str]) -> tuple[int, int]:
        """Fewest and most samples of these cases."""
        counts = [len(self.volumes[case]) for case in cases]
        return min(counts), max(counts)

    def trained_on(self, case: str) -> bool | None:
        """Whether the generator was trained on the case; None if its record does not say."""
        value = self.records.get(case, {}).get("trained_on")
        return None if value is None else bool(value)

    def says(self, case: str, split: bool | None) -> bool | None:
        """What holds of a case that is in a split for training or not: its record, and without one the split.

        A record with an unknown status (``"trained_on": null``) makes no case unseen.
        """
        own = self.trained_on(case)
        unknown = "trained_on" in self.records.get(case, {}) and own is None
        return (split or None) if unknown else split if own is None else own

    @property
    def trained(self) -> Intensity | None:
        """The rule by which its training images became [0, 1], and their unit; None where it is unknown."""
        known = (held for held in self.held.values() if held.scaling is not None or held.unit_range is not None)
        return next(known, None)

    def was_guided_by(self, *names: str) -> bool:
        """Whether a network of this name or SHA-256 was in its loss."""
        return bool(set(names) & set(self.in_loss))


def load_system(
    name: str, sources: str | Sequence[str], *, in_loss: Sequence[str] = (), known: Collection[str] = ()
) -> System:
    """The synthetic volumes of one generator.

    Args:
        name: name in tables.
        sources: folders that a bundle's inference wrote (with their ``datalist.json``), or folders or patterns of
            volumes called ``<case>.nii.gz`` or ``<case>_synthetic.nii.gz``. A pattern of folders, or several sources,
            give several samples per case.
        in_loss: names of networks that were in its loss, beside those that its records name.
        known: names of the real cases, by which files without a record are recognised.

    Raises:
        InputError: nothing found, a record that cannot be read, one file given twice, or volumes of several weights.
    """
    samples: dict[str, list[tuple[int, Path]]] = {}
    records: dict[str, Mapping[str, Any]] = {}
    weights: dict[str, Path] = {}
    in_losses = set(in_loss)
    held: dict[Path, Intensity] = {}
    for number, source in enumerate(_folders([sources] if isinstance(sources, str) else sources)):
        listed = _listed_intensity(source)
        for case, path, sample in _synthetic_files(source, known):
            record = _record(path)
            said = entry_intensity(record, None, path) if INTENSITY in record else listed
            held |= {} if said is None else {path: said}
            samples.setdefault(case, []).append((number * 10**6 + sample, path))
            records.setdefault(case, record)
            if "weights_sha256" in record:
                weights.setdefault(str(record["weights_sha256"]), path)
            in_losses |= {text for entry in record.get("in_loss") or [] for text in _names(entry)}
    if len(weights) > 1:
        raise InputError(
            f"{name}: volumes of {len(weights)} different weights; synthesise all with one, or give several systems",
            [str(path) for path in weights.values()],
        )
    volumes = {case: tuple(path for _, path in sorted(files)) for case, files in samples.items()}
    twice = [f"{case}: {p}" for case, files in volumes.items() for p in set(files) if files.count(p) > 1]
    if twice:
        raise InputError(f"{name}: files that are given twice would count as two samples", sorted(twice))
    return System(name, volumes, records, tuple(sorted(in_losses)), next(iter(weights), None), held)


def renamed(system: System, names: Names) -> System:
    """A system whose cases have pseudonyms; those that have one already stay.

    Raises:
        InputError: for volumes of a case under its name and under its pseudonym.
    """
    twice = [name for name in system.volumes if names.case(name) != name and names.case(name) in system.volumes]
    if twice:
        raise InputError(
            f"{system.name}: volumes of {len(twice)} case(s) under their names and under their pseudonyms; give the "
            "folder of one run"
        )
    volumes = {names.case(name): files for name, files in system.volumes.items()}
    return replace(system, volumes=volumes, records={names.case(n): record for n, record in system.records.items()})


def _listed_intensity(source: str) -> Intensity | None:
    """What the datalist that a folder holds, or that ``source`` is, says of its volumes."""
    listed = datalist_path(source)
    return None if listed is None or not listed.is_file() else stated_intensity(read_datalist(listed), listed)


def _folders(patterns: Sequence[str]) -> list[str]:
    """The folders that patterns of folders stand for, seed2 before seed10; anything else as it is."""
    found = []
    for pattern in patterns:
        folders = [str(match.path) for match in matches(pattern) if match.path.is_dir()]
        found += sorted(folders, key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path)])
        found += [] if folders else [pattern]
    return found


def _record(volume: Path) -> Mapping[str, Any]:
    """The JSON beside a volume, empty where there is none."""
    path = volume.with_name(f"{stem(volume)}.json")
    if not path.is_file():
        return {}
    content = read_object(path, damaged="delete it or synthesise this case again")
    wrong = [key for key, kinds in _TYPES.items() if not isinstance(content.get(key), kinds)]
    if wrong:
        raise InputError(f"{path}: says something else than texts and names under {', '.join(wrong)}; delete it or "
                         "synthesise this case again")  # fmt: skip
    return content


def _names(entry: Any) -> list[str]:
    """Name and SHA-256 of a network in a record, ``{"name", "sha256"}`` or a name alone."""
    return [str(value) for value in entry.values()] if isinstance(entry, Mapping) else [str(entry)]


def _whole(path: Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{path}: the number of its sample must be 0 or more, found {value!r}")
    return value


def _synthetic_files(source: str, known: Collection[str]) -> list[tuple[str, Path, int]]:
    """Case, file and number of the sample."""
    listed = as_path(source)
    listed = listed / "datalist.json" if listed.is_dir() else listed
    if listed.suffix != ".json" or not listed.is_file():
        found = [(name, path, _record(path)) for name, path in named_volumes(source, "synthetic volumes", known)]
        return [
            (str(record.get("source_case", record.get("case", name))), path, _whole(path, record.get("sample", 0)))
            for name, path, record in found
        ]
    content = read_datalist(listed)
    entries = [entry for split in SPLITS for entry in content.get(split, [])]
    problems = [f"entry {i}: no 'image'" for i, entry in enumerate(entries) if not isinstance(entry.get("image"), str)]
    if problems:
        raise InputError(f"{listed}: entries need the synthetic volume's file under 'image'", problems)
    files = [
        (_case_of(entry), (listed.parent / entry["image"]).absolute(), _whole(listed, entry.get("sample", 0)))
        for entry in entries
    ]
    missing = [f"{case}: no such file {path}" for case, path, _ in files if not is_there(path)]
    if missing:
        raise InputError(f"{listed}: files that are not there", missing)
    return files


def _case_of(entry: Mapping[str, Any]) -> str:
    """The label map's case, which several samples share."""
    return str(entry.get("source_case") or entry.get("case") or stem(entry["image"]).removesuffix("_synthetic"))


def pair(systems: Sequence[System], real: Mapping[str, RealCase]) -> list[str]:
    """The cases that every system has volumes of, in order of their names.

    Raises:
        InputError: for a synthetic volume without its real image, or no case that all systems share.
    """
    missing = [f"{s.name}: {case}" for s in systems for case in s.volumes if case not in real]
    if missing:
        raise InputError(
            "synthetic volumes without a real image of the same case name; give --real with them, or, where only the "
            "volumes have pseudonyms, their key file with --pseudonyms (without one --anonymous-names)",
            missing,
        )
    shared = set.intersection(*(set(system.volumes) for system in systems))
    if not shared:
        raise InputError("no case has volumes of every system: " + ", ".join(system.name for system in systems))
    for system in systems:
        left = sorted(set(system.volumes) - shared)
        if left:
            logger.warning("%s: %d cases that other systems lack are left out (%s…)", system.name, len(left), left[0])
    return sorted(shared)


def with_scaling(real: Mapping[str, RealCase], systems: Sequence[System]) -> dict[str, RealCase]:
    """Real images whose intensities are not stated are scaled as those that the generators were trained on.

    Where they are stated and a generator was trained otherwise, a warning says that brightness will differ.
    """
    known = {system.name: system.trained for system in systems if system.trained is not None}
    stated = {case.intensity for case in real.values() if case.intensity is not None}
    for name, trained in known.items():
        other = [found for found in stated if not one_rule(found, trained)]
        if other and not (trained.unit and trained.unit == other[0].unit):  # of one unit: read in one range
            logger.warning(
                "%s was trained on images scaled in another way (%s) than the real ones here (%s), so that its volumes "
                "are brighter or darker; prepare the real ones in that way (--scale, --percentiles or --window)",
                name, trained.scaling, other[0].scaling,
            )  # fmt: skip
    first = next(iter(known.values()), None)
    if first is not None and first.unit_range is not None:
        assumed = Intensity(first.unit_range, first.scaling, first.unit, first.unit_range)
        hu = first.unit == HU
        return {n: case if case.intensity else replace(case, intensity=assumed, assumed=hu) for n, case in real.items()}
    rule = MIN_MAX if first is None or first.scaling is None else first.scaling
    return {name: case if case.intensity else replace(case, scaling=rule) for name, case in real.items()}


def check_grids(systems: Sequence[System], real: Mapping[str, RealCase], cases: Sequence[str]) -> None:
    """Compare all headers before anything is measured, which may take an hour.

    Raises:
        InputError: listing every synthetic volume that is not on its real image's grid.
    """
    problems = []
    for case in cases:
        image, content = read_header(real[case].image), real[case].content
        for system in systems:
            for path in system.volumes[case]:
                found = read_header(path)
                placed = place(found.affine, found.shape, image.affine, image.shape)
                cropped = content is not None and list(placed.shape) == list(content["shape"])
                if not placed.one_grid and not cropped:
                    apart = f"another affine (corners up to {placed.mm:.3g} mm apart)"
                    what = apart if placed.shape == image.shape else f"not {image.shape}"
                    problems.append(f"{system.name}, {case}: {path} has {found.shape} voxels, {what}")
    if problems:
        raise InputError(
            "synthetic volumes on other grids than their real images; evaluate on the images that the label maps were "
            "prepared with (semsynth prepare writes both on one grid)", problems,
        )  # fmt: skip
