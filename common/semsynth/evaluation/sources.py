"""What an evaluation compares: real cases with their label maps, and the volumes that systems made from them."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datalists import SPLITS, absolute, check_names, name_cases, read_datalist
from ..errors import InputError
from ..headers import SUFFIXES
from ..volumes import Volume, read_volume, same_affine, scale_intensity, stem

logger = logging.getLogger(__name__)
RANGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RealCase:
    """A real image and its label map.

    Attributes:
        case: its name.
        image: the file.
        label: the label map's file, or None.
        training: whether it belongs to the cases that generators were trained on; None if nobody says.
        content: where the case stands in a padded file, ``{"start", "shape"}`` in voxels.
    """

    case: str
    image: Path
    label: Path | None = None
    training: bool | None = None
    content: Mapping[str, Sequence[int]] | None = None

    def read(self) -> tuple[Volume, NDArray[np.int64] | None]:
        """Image scaled to [0, 1] (minimum to 0, maximum to 1, padding left out) and class indices, in RAS order.

        Raises:
            InputError: for a file that cannot be used, or a label map on another grid.
        """
        image = self._part(read_volume(self.image)).canonical()
        image = Volume(scale_intensity(image.data), image.affine)
        if self.label is None:
            return image, None
        label = self._part(read_volume(self.label)).canonical()
        check_grid(self.case, self.image, image, self.label, label)
        return image, np.rint(label.data).astype(np.int64)

    def read_synthetic(self, path: Path, real: Volume) -> Volume:
        """A synthetic volume of this case on the real one's grid, ``(H, W, D)`` in [0, 1].

        Raises:
            InputError: for another grid, other intensities than [0, 1], or voxels that are no numbers.
        """
        volume = read_volume(path)
        whole = self.content is not None and list(volume.data.shape) != list(self.content["shape"])
        volume = (self._part(volume) if whole else volume).canonical()
        check_grid(self.case, self.image, real, path, volume)
        data = volume.data.astype(np.float32)
        if not np.isfinite(data).all():
            raise InputError(f"{self.case}: {path} has NaN or infinite voxels; synthesise this case again")
        low, high = float(data.min()), float(data.max())
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise InputError(
                f"{self.case}: {path} has intensities from {low:.4g} to {high:.4g}; synthetic volumes need [0, 1] "
                "(real ones are scaled by minimum and maximum): scale them in the way that the system was trained with"
            )
        return Volume(data.clip(0, 1), volume.affine)

    def _part(self, volume: Volume) -> Volume:
        if self.content is None:
            return volume
        start, shape = self.content["start"], self.content["shape"]
        data = volume.data[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
        affine = volume.affine.copy()
        affine[:3, 3] = volume.affine[:3, :3] @ np.asarray(start, dtype=np.float64) + volume.affine[:3, 3]
        return Volume(data, affine)


def check_grid(case: str, first: Path, a: Volume, second: Path, b: Volume) -> None:
    """Raise where two volumes of a case do not share one grid.

    Raises:
        InputError: naming both files and what differs.
    """
    if a.data.shape != b.data.shape:
        found = f"{a.data.shape} and {b.data.shape} voxels"
    elif not same_affine(a.affine, b.affine):
        found = f"affines that differ by up to {np.abs(a.affine - b.affine).max():.3g} mm"
    else:
        return
    raise InputError(
        f"{case}: {first} and {second} must share one grid, found {found}; evaluate on the images that the label maps "
        "were prepared with (semsynth prepare writes both on one grid)"
    )


@dataclass(frozen=True)
class System:
    """Synthetic volumes of one generator.

    Attributes:
        name: as tables call it.
        volumes: per case its samples' files, in the order of their numbers.
        records: what the generator says of itself, the JSON beside each first sample, per case.
        in_loss: names or SHA-256 of networks that were in the generator's own loss.
    """

    name: str
    volumes: Mapping[str, tuple[Path, ...]]
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    in_loss: tuple[str, ...] = ()

    def samples(self, cases: Iterable[str]) -> int:
        """Samples that each of these cases has."""
        return min(len(self.volumes[case]) for case in cases)

    def trained_on(self, case: str) -> bool | None:
        """Whether the generator was trained on the case; None if its record does not say."""
        value = self.records.get(case, {}).get("trained_on")
        return None if value is None else bool(value)


def load_real(source: str | Path, *, train: str | Path | None = None, labels: str | None = None) -> dict[str, RealCase]:
    """Real cases by name.

    Args:
        source: a datalist (or its folder) with ``image`` and, where there is one, ``label``; a folder or a quoted
            pattern of image files.
        train: the cases that generators were trained on, in the same forms (of a datalist with several splits its
            training split); without it the training split of ``source``, where that has several.
        labels: a folder or a quoted pattern of label maps, for images without them.

    Raises:
        InputError: nothing found, no such files, or two cases of one name.
    """
    cases = _read_cases(source, None)
    if train is not None:
        seen = {case.case: replace(case, training=True) for case in _read_cases(train, "training").values()}
        _check_same(cases, seen, source, train)
        cases = {name: replace(case, training=False) for name, case in cases.items()} | seen
    if labels is not None:
        found = dict(_named(labels, "label maps"))
        cases = {name: replace(case, label=found.get(name, case.label)) for name, case in cases.items()}
    missing = [
        f"{c.case}: no such file {p}" for c in cases.values() for p in (c.image, c.label) if p and not p.is_file()
    ]
    if missing:
        raise InputError(f"{source}: files that are not there", missing)
    return cases


def _check_same(
    cases: Mapping[str, RealCase], seen: Mapping[str, RealCase], source: str | Path, train: str | Path
) -> None:
    other = [
        f"{name}: {cases[name].image} and {case.image}"
        for name, case in seen.items()
        if name in cases and cases[name].image.resolve() != case.image.resolve()
    ]
    if other:
        raise InputError(f"{source} and {train} have different images under one name; rename the cases", other)


def _read_cases(source: str | Path, wanted: str | None) -> dict[str, RealCase]:
    path = Path(source)
    listed = path / "datalist.json" if path.is_dir() else path
    if listed.suffix != ".json" or (path.is_dir() and not listed.is_file()):
        return {name: RealCase(name, file) for name, file in _named(str(source), "images")}
    content = read_datalist(listed)
    present = [split for split in SPLITS if content.get(split)]
    splits = [wanted] if wanted in present and len(present) > 1 else present
    known = len(present) > 1
    root = listed.resolve().parent
    cases = []
    for split in splits:
        problems = [
            f"{split}[{i}]" for i, entry in enumerate(content[split]) if not isinstance(entry.get("image"), str)
        ]
        if problems:
            raise InputError(f"{listed}: entries need 'image'", problems)
        names = name_cases([root / entry["image"] for entry in content[split]])
        for name, entry in zip(names, content[split], strict=True):
            item = absolute(entry, root, name)
            label = Path(item["label"]) if isinstance(item.get("label"), str) else None
            cases.append(RealCase(item["case"], Path(item["image"]), label, (split == "training") if known else None,
                                  item.get("content")))  # fmt: skip
    check_names([case.case for case in cases], listed)
    return {case.case: case for case in cases}


def load_system(name: str, sources: str | Sequence[str], *, in_loss: Sequence[str] = ()) -> System:
    """The synthetic volumes of one generator.

    Args:
        name: what tables call it.
        sources: folders that a bundle's inference wrote (with their ``datalist.json``), or folders or patterns of
            volumes called ``<case>.nii.gz`` or ``<case>_synthetic.nii.gz``. A pattern of folders, or several sources,
            give several samples per case.
        in_loss: names of networks that were in its loss, beside those that its records name.

    Raises:
        InputError: nothing found.
    """
    volumes: dict[str, list[Path]] = {}
    records: dict[str, Mapping[str, Any]] = {}
    for pattern in [sources] if isinstance(sources, str) else sources:
        folders = [path for path in sorted(glob.glob(pattern)) if Path(path).is_dir()]
        for source in folders or [pattern]:
            for case, path in _synthetic_files(source):
                volumes.setdefault(case, []).append(path)
                beside = path.with_name(path.name.split(".nii")[0] + ".json")
                if case not in records and beside.is_file():
                    records[case] = json.loads(beside.read_text(encoding="utf-8"))
    named = {text for record in records.values() for entry in record.get("in_loss", []) for text in _names(entry)}
    return System(name, {c: tuple(files) for c, files in volumes.items()}, records, tuple(sorted(named | set(in_loss))))


def _names(entry: Any) -> list[str]:
    """Name and SHA-256 of a network in a record, ``{"name", "sha256"}`` or a name alone."""
    return [str(value) for value in entry.values()] if isinstance(entry, Mapping) else [str(entry)]


def _synthetic_files(source: str) -> list[tuple[str, Path]]:
    listed = Path(source) / "datalist.json" if Path(source).is_dir() else Path(source)
    if listed.suffix != ".json" or not listed.is_file():
        return [(name.removesuffix("_synthetic"), path) for name, path in _named(source, "synthetic volumes")]
    content = read_datalist(listed)
    entries = [entry for split in SPLITS for entry in content.get(split, [])]
    root = listed.resolve().parent
    entries.sort(key=lambda entry: int(entry.get("sample", 0)))
    found = [(str(e.get("source_case", e["case"])), root / e["image"]) for e in entries if "case" in e and "image" in e]
    missing = [f"{case}: no such file {path}" for case, path in found if not path.is_file()]
    if missing or not found:
        raise InputError(f"{listed}: needs entries with 'case' and 'image', and their files", missing)
    return found


def _named(source: str, what: str) -> list[tuple[str, Path]]:
    """Case names and files of a folder or a pattern."""
    if Path(source).is_dir():
        paths = sorted(p.resolve() for p in Path(source).rglob("*") if p.name.lower().endswith(SUFFIXES))
    else:
        paths = [Path(path).resolve() for path in sorted(glob.glob(source, recursive=True))]
    if not paths:
        raise InputError(f"{source}: no {what} found; check the folder, and quote a pattern")
    flat = {path for path in paths if path.parent == Path(source).resolve()}  # a folder of files: a file is a case
    names = [stem(path) if path in flat else name for name, path in zip(name_cases(paths), paths, strict=True)]
    check_names(names, source)
    return list(zip(names, paths, strict=True))


def pair(systems: Sequence[System], real: Mapping[str, RealCase]) -> list[str]:
    """The cases that every system has volumes of, in order of their names.

    Raises:
        InputError: for a synthetic volume without its real image, or no case that all systems share.
    """
    missing = [f"{s.name}: {case}" for s in systems for case in s.volumes if case not in real]
    if missing:
        raise InputError("synthetic volumes without a real image of the same case name; give --real with them", missing)
    shared = set.intersection(*(set(system.volumes) for system in systems))
    if not shared:
        raise InputError("no case has volumes of every system: " + ", ".join(system.name for system in systems))
    for system in systems:
        left = sorted(set(system.volumes) - shared)
        if left:
            logger.warning("%s: %d cases that other systems lack are left out (%s…)", system.name, len(left), left[0])
    return sorted(shared)
