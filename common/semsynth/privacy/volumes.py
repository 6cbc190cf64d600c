"""The volumes of an audit: synthetic ones with what they say of their maps, real ones with whose they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..data.datalists import datalist_path, read_datalist
from ..data.volumes import Volume, read_label, read_volume, stem
from ..errors import InputError
from ..evaluation.sources import RealCase, named_volumes, on_grid
from ..files import is_there, sha256
from ..json_files import read_object_or_none
from ..vocabulary import SPLITS

Origin: TypeAlias = Literal["own", "morphed", "generated", "unknown"]
ORIGINS: tuple[Origin, ...] = ("own", "morphed", "generated", "unknown")


@dataclass(frozen=True)
class Made:
    """A synthetic volume.

    Attributes:
        name: name of its label map's case.
        image: the file.
        label: the label map that it was drawn of, or None.
        content: place of the case in a padded file, ``{"start", "shape"}`` in voxels.
        origin: origin of that map: a case's own, a morphed one, a generated one, or unknown.
        source: the real case whose map it was, as it is or morphed; None for generated and unknown maps.
        sha256: SHA-256 of the file.
        weights: SHA-256 of the generator's weights, where a record says it.
    """

    name: str
    image: Path
    label: Path | None
    content: Mapping[str, Sequence[int]] | None
    origin: Origin
    source: str | None
    sha256: str
    weights: str | None

    def read(self) -> tuple[Volume, Volume | None]:
        """Image and class indices, without padding, in RAS order; errors as in :func:`read_pair`."""
        return read_pair(self.name, self.image, self.label, self.content)


def read_real(case: RealCase) -> tuple[Volume, Volume | None]:
    """Image and class indices of a real case, as in :meth:`Made.read`; intensities as they are stored."""
    return read_pair(case.case, case.image, case.label, case.content)


def read_pair(
    name: str, image: Path, label: Path | None, content: Mapping[str, Sequence[int]] | None
) -> tuple[Volume, Volume | None]:
    """Image and label map of one grid, ``(H, W, D)`` without padding, in RAS order.

    Raises:
        InputError: for files that cannot be read, or a label map on another grid.
    """
    whole = read_volume(image)
    inside = None if content is None or list(whole.data.shape) == list(content["shape"]) else content
    if label is None:
        return whole.part(inside).canonical(), None
    found = read_label(label)
    if inside is None and content is not None and list(found.data.shape) != list(content["shape"]):
        found = found.part(content)
    found = on_grid(name, image, whole, label, found)
    return whole.part(inside).canonical(), found.part(inside).canonical()


def load_made(sources: str | Sequence[str], known: Collection[str]) -> list[Made]:
    """Synthetic volumes of folders, datalists or patterns, in the order of their files.

    Args:
        sources: folders that an inference or an augmentation wrote (their ``datalist.json`` is read, and of it the
            entries that are synthetic), or folders or patterns of volumes.
        known: names of the real cases, by which the source of a map is recognised.

    Raises:
        InputError: nothing found, files that are not there, or one file given twice.
    """
    found: list[Made] = []
    for source in [sources] if isinstance(sources, str) else sources:
        listed = datalist_path(source)
        if listed is not None and listed.is_file():
            found += _listed(listed, known)
        else:
            found += [_made(name, path, {}, known) for name, path in named_volumes(source, "synthetic volumes")]
    counts = Counter(made.image for made in found)
    twice = sorted(str(path) for path, count in counts.items() if count > 1)
    if twice:
        raise InputError("synthetic volumes that are given twice; give each once", twice)
    return sorted(found, key=lambda made: str(made.image))


def _listed(listed: Path, known: Collection[str]) -> list[Made]:
    content = read_datalist(listed)
    entries = [entry for split in SPLITS for entry in content.get(split, [])]
    made = [entry for entry in entries if entry.get("synthetic")] or entries
    bare = [f"entry {i}: no 'image'" for i, entry in enumerate(made) if not isinstance(entry.get("image"), str)]
    if bare or not made:
        raise InputError(f"{listed}: entries need the synthetic volume's file under 'image'", bare)
    paths = [(listed.parent / entry["image"]).absolute() for entry in made]
    missing = [str(path) for path in paths if not is_there(path)]
    if missing:
        raise InputError(f"{listed}: files that are not there; restore them, or synthesise these cases again", missing)
    return [
        _made(str(entry.get("case") or stem(path)), path, entry | {"_folder": str(listed.parent)}, known)
        for entry, path in zip(made, paths, strict=True)
    ]


def _made(name: str, image: Path, entry: Mapping[str, Any], known: Collection[str]) -> Made:
    record = read_object_or_none(image.with_name(f"{stem(image)}.json")) or {}
    folder = Path(str(entry.get("_folder", image.parent)))
    places = [
        (folder, entry.get("label")),
        (image.parent, record.get("label_from")),
        (image.parent, record.get("label")),
    ]
    labels = [(place / text).resolve() for place, text in places if isinstance(text, str)]
    label = next((path for path in labels if path.is_file()), None)
    of_map = {} if label is None else read_object_or_none(label.with_name(f"{stem(label)}.json")) or {}
    told: dict[str, Any] = {key: of_map[key] for key in ("drawn", "morph", "source_case") if key in of_map}
    origin, source = _origin(name, {**told, **record, **entry}, known)
    weights = record.get("weights_sha256")
    content = entry.get("content") or record.get("content")
    return Made(name, image.absolute(), label, content if isinstance(content, Mapping) else None, origin, source,
                sha256(image), weights if isinstance(weights, str) else None)  # fmt: skip


def _origin(name: str, said: Mapping[str, Any], known: Collection[str]) -> tuple[Origin, str | None]:
    """The map that a volume was drawn of, by the record of the map, its own record, and its entry in a datalist."""
    if said.get("drawn") is True or said.get("generated") is True:
        return "generated", None
    source = said.get("source_case") if isinstance(said.get("source_case"), str) else said.get("case", name)
    if source not in known:
        return "unknown", None
    morphed = isinstance(said.get("morph"), Mapping) or re.fullmatch(rf"{re.escape(str(source))}_m\d+", name)
    return ("morphed" if morphed else "own"), str(source)
