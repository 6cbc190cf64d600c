"""Which cases weights have seen, and how a case is recognised among them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.entry_cases import VOXELS, source_of
from ..data.identity import SOURCE, is_image, is_map
from ..data.voxels import hash_file
from ..errors import InputError
from ..files import sha256, stamp
from ..json_files import read_object
from ..paths import as_path
from ..texts import shown
from .pseudonyms import key_id, pseudonym, pseudonym_key

logger = logging.getLogger(__name__)
UNKNOWN_PARENTS = "unknown_parents"
"""Key of a card: files of weights that these ones come from and that had no card."""
_FILES = ("image", "label", "endo")


@dataclass(frozen=True)
class Seen:
    """What the card beside weights says of the cases that they were trained on.

    Attributes:
        known: True where there is a card of these very weights that names cases.
        cases: as :func:`training_case` makes them, and as version 0.1.0 wrote them (``name`` and ``image``, the SHA-256
            of the name and of the image's file).
        gaps: files of weights somewhere before these ones whose cases are unknown; with one of them a case that
            is not found may still have been seen.
        key: :func:`semsynth.provenance.pseudonyms.key_id` of the key that names were hidden with, or None.
        source: the file of weights.

    Examples:
        >>> import numpy as np
        >>> from semsynth.data.voxels import voxel_hash
        >>> scan = np.random.default_rng(0).random((6, 5, 4))
        >>> seen = Seen.from_card({"training_cases": [{"voxels": {"image": voxel_hash(scan)}}]}, "model.pt")
        >>> seen.reasons("P1", voxels={"image": voxel_hash(2 * scan)})  # the same scan, under any name
        ['image']
    """

    known: bool = False
    cases: tuple[Mapping[str, Any], ...] = ()
    gaps: tuple[str, ...] = ()
    key: str | None = None
    source: str = ""
    _index: dict[str, set[str]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether a case that is not found has surely not been seen."""
        return self.known and not self.gaps

    @property
    def scans(self) -> int:
        """Number of scans among the cases; one that stands there in several preparations counts once."""
        groups: list[set[str]] = []
        for i, case in enumerate(self.cases):
            voxels = case.get("voxels") or {}
            marks = {value for role, value in voxels.items() if is_image(role)} or {f"case {i}"}
            joined = [group for group in groups if group & marks]
            groups = [group for group in groups if not group & marks] + [marks.union(*joined)]
        return len(groups)

    @staticmethod
    def of(weights: str | Path) -> Seen:
        """What the card beside a file of weights says; one with ``known`` False where there is none.

        Raises:
            InputError: as :func:`card_of`.
        """
        path = as_path(weights, "weights")
        content = card_of(path)
        return Seen(gaps=(path.name,), source=path.name) if content is None else Seen.from_card(content, path.name)

    @staticmethod
    def from_card(content: Mapping[str, Any], source: str) -> Seen:
        """What a card, or the record in a checkpoint, says; nothing, where it says it in another form."""
        content = content if not content or not _wrong_in(content) else {}
        cases = tuple(content.get("training_cases") or ())
        said = content.get(UNKNOWN_PARENTS)  # 0.1.0 left out what weights were trained on before, and says nothing
        gaps = tuple(said) if said is not None and (cases or said) else (source,)
        return Seen(bool(cases), cases, gaps, content.get("pseudonym_key"), source)

    def reasons(
        self, name: str, files: Mapping[str, str | Path] | None = None, voxels: Mapping[str, str] | None = None
    ) -> list[str]:
        """The marks by which a case is recognised: "name", "image", "label map"; empty where it is not.

        Args:
            name: name of the case.
            files: role (``image``, ``label``, ``endo``) → file; missing ones are passed over.
            voxels: role → hash of the voxels, where they are known already; files of other roles are read.
        """
        known = dict(voxels or {})
        paths = {role: Path(file) for role, file in (files or {}).items()}
        if self._values("voxels"):
            for role in (role for role in _FILES if role in paths and role not in known):
                value = hash_file(paths[role])
                known |= {role: value} if value else {}
        found = []
        if self._by_name(name):
            found.append("name")
        if any(value in self._values("voxels") for role, value in known.items() if is_image(role)) or (
            self._values("image") and "image" in paths and _sha256(paths["image"]) in self._values("image")
        ):
            found.append("image")
        if any(value in self._values("voxels") for role, value in known.items() if is_map(role)):
            found.append("label map")
        return found

    def of_entry(self, entry: Mapping[str, Any]) -> list[str]:
        """:meth:`reasons` of an entry of a datalist, also one that has not been loaded yet."""
        files = {role: entry[role] for role in _FILES if isinstance(entry.get(role), str | Path)}
        source = {f"{SOURCE}{role}": value for role, value in source_of(entry).items()}
        return self.reasons(str(entry.get("case", "")), files, source | dict(entry.get(VOXELS) or {}))

    def _by_name(self, name: str) -> bool:
        if hashlib.sha256(f"semsynth:{name}".encode()).hexdigest()[:16] in self._values("name"):
            return True  # as 0.1.0 wrote it
        key = pseudonym_key() if self.key is not None else None
        return key is not None and key_id(key) == self.key and pseudonym(name, key) in self._values("pseudonym")

    def _values(self, what: str) -> set[str]:
        if what not in self._index:
            self._index[what] = set()
            for case in self.cases:
                value = case.get(what)
                self._index[what] |= set(value.values()) if isinstance(value, Mapping) else {value} if value else set()
        return self._index[what]


def card_of(weights: str | Path, found: str | None = None) -> dict[str, Any] | None:
    """The card beside a file of weights; None where there is none.

    Args:
        weights: the file.
        found: its SHA-256, where it is known already.

    Raises:
        InputError: for a card that cannot be read as one; where the file is not the one that the card describes.
    """
    path = Path(weights)
    card = path.with_suffix(".json")
    if not card.is_file():
        return None
    content = read_card(card)
    stated = content.get("sha256")
    if stated is not None and path.is_file():
        refuse_another(
            path, stated, f"its card {card.name}", f"remove {card.name} to use it as weights of unknown origin", found
        )
    return content


def refuse_another(path: Path, stated: str, where: str, instead: str, found: str | None = None) -> None:
    """Raise for a file that has not the SHA-256 that is stated of it.

    Args:
        path: the file.
        stated: its SHA-256, as it should be.
        where: place where that is stated, for the message.
        instead: remedy beside restoring the file, for the message.
        found: its SHA-256, where it is known already.

    Raises:
        InputError: naming both hashes and what to do.
    """
    found = found or _sha256(path)
    if found.lower() != stated.lower():
        raise InputError(
            f"{path}: is not the file that {where} describes (SHA-256 {found[:12]}…, not {stated[:12]}…): damaged, or "
            f"exchanged. Restore the file that belongs to it, or {instead}"
        )


def read_card(path: str | Path) -> dict[str, Any]:
    """The card beside weights.

    Raises:
        InputError: for a file that is missing or no card.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     card = Path(folder, "model.json")
        ...     _ = card.write_text('{"training_cases": [], "epoch": 7}')
        ...     read_card(card)["epoch"]
        7
    """
    if not os.path.exists(path):  # noqa: PTH110 - False for links in a circle
        raise InputError(f"{path}: no such model card; it is written beside the weights by a training")
    fix = "take the one that its training wrote, or remove it"
    try:
        content = read_object(path, damaged=fix)
    except InputError as error:
        raise InputError(f"{path}: not a model card: {str(error).removeprefix(f'{shown(path)}: ')}") from error
    wrong = _wrong_in(content)
    if wrong:
        raise InputError(f"{path}: not a model card ({wrong}); {fix}")
    return content


def _wrong_in(record: Mapping[str, Any]) -> str:
    """What of a card, or of the record in a checkpoint, is not as it is written; empty for nothing."""
    cases = record.get("training_cases")
    if not isinstance(cases, list) or not all(isinstance(case, Mapping) and _of_texts(case) for case in cases):
        return "training_cases must be a list of objects of texts"
    losses = record.get("in_loss")
    if losses is not None and not (isinstance(losses, list) and all(map(_is_network, losses))):
        return "in_loss must be a list of names or of objects of texts"
    gaps = record.get(UNKNOWN_PARENTS)
    if gaps is not None and not (isinstance(gaps, list) and all(isinstance(gap, str) for gap in gaps)):
        return f"{UNKNOWN_PARENTS} must be a list of texts"
    for key in ("sha256", "pseudonym_key"):
        if not isinstance(record.get(key), str | None):
            return f"{key} must be a text"
    return ""


def _of_texts(values: Mapping[str, Any]) -> bool:
    """Whether all values are texts, or objects of texts."""
    return all(
        isinstance(value, str | None)
        or (isinstance(value, Mapping) and all(isinstance(item, str | None) for item in value.values()))
        for value in values.values()
    )


def _is_network(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and _of_texts(value))


def training_cases(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What cards keep of the cases of a training, sorted, so that their order tells nothing.

    Args:
        entries: entries of a loaded datalist.

    Returns:
        Per case ``{"voxels": {role: hash}}``, of its image and label map and of the raw files that they were made from;
        with the institution's key also ``"pseudonym"`` (see :mod:`semsynth.provenance.pseudonyms`).

    Raises:
        InputError: listing the cases whose image cannot be read.
    """
    key = pseudonym_key()
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(entry_voxels, entries))
    problems = [f"{e.get('case', i)}: no image" for i, (e, h) in enumerate(zip(entries, hashes, strict=True)) if not h]
    if problems:
        raise InputError("every case needs an image that can be read:", problems)
    cases = [
        ({} if key is None else {"pseudonym": pseudonym(str(entry.get("case", "")), key)}) | {"voxels": voxels}
        for entry, voxels in zip(entries, hashes, strict=True)
    ]
    return sorted(cases, key=lambda case: json.dumps(case, sort_keys=True))


def entry_voxels(entry: Mapping[str, Any]) -> dict[str, str]:
    """Role → hash of an entry's voxels and of those that it was made from; files are read where they are not said."""
    known = {f"{SOURCE}{role}": value for role, value in source_of(entry).items()}
    known |= dict(entry.get(VOXELS) or {})
    for role in _FILES:
        if role not in known and isinstance(entry.get(role), str | Path):
            value = hash_file(entry[role])
            known |= {role: value} if value else {}
    return {role: known[role] for role in sorted(known)}


def refuse_seen_cases(seen: Seen, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise if weights were trained on any of these cases: what is measured on them would look too good.

    Args:
        seen: cases that the weights have seen.
        entries: entries of a loaded datalist.

    Raises:
        InputError: listing the cases and by what they were recognised.

    Examples:
        >>> import numpy as np
        >>> from semsynth.data.voxels import voxel_hash
        >>> digest = voxel_hash(np.random.default_rng(0).random((6, 5, 4)))
        >>> seen = Seen.from_card({"training_cases": [{"voxels": {"image": digest}}]}, "model.pt")
        >>> refuse_seen_cases(seen, [{"case": "P2", "voxels": {"image": "0" * 64}}])  # a new scan
        >>> refuse_seen_cases(seen, [{"case": "P1", "voxels": {"image": digest}}])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        semsynth.errors.InputError: model.pt: 1 of 1 cases were used to train these weights; ...
    """
    problems = [
        f"{entry.get('case', '?')}: same {' and '.join(reasons)} as a training case"
        for entry in entries
        if (reasons := seen.of_entry(entry))
    ]
    if problems:
        raise InputError(
            f"{seen.source}: {len(problems)} of {len(entries)} cases were used to train these weights; take cases of "
            "other patients (where only the name is the same, but not the patient, rename the case)",
            problems,
        )
    if not seen.complete:
        logger.warning("%s: %s, so none of these cases is known to be unseen", seen.source, _why(seen.gaps))


def _why(gaps: Iterable[str]) -> str:
    return f"the training cases of {', '.join(gaps)} are unknown"


_SHA256: dict[tuple[Path, tuple[int, int]], str] = {}


def _sha256(path: Path) -> str:
    """Of a file that is asked for again and again; read once as long as it does not change."""
    try:
        key = (path, stamp(path))
    except OSError:
        return ""
    if key not in _SHA256:
        _SHA256[key] = sha256(path)
    return _SHA256[key]
