"""Which volumes an augmentation makes: how many of each training map, and which of them of morphed maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...data.check import Entry
from ...data.datalists import datalist_path, patient_in, read_datalist, stated_classes
from ...data.entries import MOST_SAMPLES, load_datalist
from ...data.entry_cases import VOXELS
from ...data.identity import SOURCE, is_map, joined, patient_of
from ...data.naming import check_names
from ...errors import InputError
from ...limits import check_number
from ...seeds import checked_seed

TRAINING = "training"
GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps around a circle that fill it evenly, however many they are."""
KINDS = ("given", "morphed", "generated")
STYLES = ("drawn", "own")
FORMATS = ("datalist", "nnunet", "decathlon")


@dataclass(frozen=True)
class AugmentSettings:
    """What decides the content of an augmentation.

    Attributes:
        per_case: volumes of each training case.
        morph: share of them that are made of morphed maps, 0…1.
        generate: share of them that are made of maps that a generator of label maps draws, 0…1; the rest is of the
            cases' maps as they are.
        style: ``drawn`` by the network, ``own`` (of the case's own image), or a datalist of prepared images, of which
            each volume takes one.
        rules: rules of morphing, a YAML file; None: see :func:`semsynth.anatomy.rules.rules_for`.
        seed: seed of morphs, styles and volumes.
        resample: bring maps to the voxel size that the weights were trained at.
    """

    per_case: int = 4
    morph: float = 0.5
    generate: float = 0.0
    style: str = "drawn"
    rules: str | None = None
    seed: int = 0
    resample: bool = False

    def __post_init__(self) -> None:
        check_number("--per-case", self.per_case, 1, MOST_SAMPLES)
        check_number("--morph", self.morph, 0, 1)
        check_number("the share of generated maps", self.generate, 0, 1)
        if self.morph + self.generate > 1 + 1e-9:
            raise InputError(
                f"shares of morphed and generated maps must be 1 at most together, got {self.morph:g} and "
                f"{self.generate:g}"
            )
        checked_seed(self.seed, "--seed")

    def drawn(self, *what: object) -> int:
        """A seed, below 2^32, that follows from this one and from what it is for; those of two seeds do not meet."""
        said = ":".join(map(str, ("augment", self.seed, *what)))
        return int.from_bytes(sha256(said.encode()).digest()[:4], "little")


def shares_of(maps: str | Sequence[str]) -> tuple[float, float]:
    """Shares of morphed and of generated maps from what a user types.

    Args:
        maps: kinds of maps, ``given``, ``morphed``, ``generated``, each with ``=share`` or without: ``given,morphed``
            are half and half, ``given=1,generated=3`` a quarter and three quarters.

    Raises:
        InputError: for other kinds, one twice, or shares that are no numbers above 0.
    """
    listed = [item for item in (maps.split(",") if isinstance(maps, str) else maps) if str(item).strip()]
    if not listed:
        raise InputError(f"--maps must be of {', '.join(KINDS)}, got none")
    found: dict[str, float] = {}
    for item in listed:
        name, _, share = str(item).strip().partition("=")
        try:
            value = float(share) if share else 1.0
        except ValueError:
            value = math.nan
        if name not in KINDS or name in found or not 0 < value < math.inf:
            raise InputError(
                f"--maps must be of {', '.join(KINDS)}, each once, with =SHARE above 0 or without, such as "
                f"given=1,generated=3; got {item!r}"
            )
        found[name] = value
    whole = sum(found.values())
    return found.get("morphed", 0.0) / whole, found.get("generated", 0.0) / whole


@dataclass(frozen=True)
class Draw:
    """One volume that is to be made.

    Attributes:
        case: case whose map it is made of; of a generated one, in whose place it stands.
        number: number of the volume among those of the case.
        morphed: True where that map is morphed before.
        generated: True where its map is drawn by a generator of label maps.
    """

    case: str
    number: int
    morphed: bool
    generated: bool = False

    @property
    def name(self) -> str:
        """What the volume is called: ``<case>_a<number>``, ``_m`` of a morphed map; ``drawn_<hash>_g<number>``.

        A generated map has nothing of the case in whose place it stands, and not its name either.
        """
        if self.generated:
            return f"drawn_{sha256(self.case.encode()).hexdigest()[:8]}_g{self.number}"
        return f"{self.case}_{'m' if self.morphed else 'a'}{self.number}"


def draws_of(cases: Sequence[str], settings: AugmentSettings) -> list[Draw]:
    """The volumes of all cases, in the order of the cases.

    Whether a volume is of a morphed map follows from its case and number alone, so that those of a smaller number of
    volumes, or of fewer cases, stay what they were. Where the share is no whole number of a case's volumes, it is met
    over many cases.
    """
    found = []
    for case in cases:
        first = int.from_bytes(sha256(case.encode()).digest()[:4], "little") / 2**32
        steps = [math.floor(first + settings.morph * number + 1e-9) for number in range(settings.per_case + 1)]
        if not settings.generate:
            found += [Draw(case, i, steps[i + 1] > steps[i]) for i in range(settings.per_case)]
            continue
        # three kinds: each volume's place on a circle that the numbers go around, cut by the shares
        for i in range(settings.per_case):
            place = (first + GOLDEN * i) % 1.0
            generated = place < settings.generate
            morphed = not generated and place < settings.generate + settings.morph
            found.append(Draw(case, i, morphed, generated))
    return found


@dataclass(frozen=True)
class Prepared:
    """A prepared data set and its training cases.

    Attributes:
        path: its datalist.
        content: content of it.
        entries: the training cases as :func:`semsynth.data.entries.load_datalist` gives them.
        classes: index → name.
        people: case → who belongs together: the patient, and all cases of one label map.
    """

    path: Path
    content: Mapping[str, Any]
    entries: tuple[Mapping[str, Any], ...]
    classes: Mapping[int, str]
    people: Mapping[str, str]

    @classmethod
    def read(cls, source: str | Path, *, option: str = "input", needs: Sequence[str] = ("image", "label")) -> Prepared:
        """A prepared data set, all of its training cases checked.

        Args:
            source: its datalist, or its folder.
            option: option that named it, for messages.
            needs: files that each case must have.

        Raises:
            InputError: for data that was not prepared, holds synthetic volumes, or cannot be used.
        """
        path = datalist_path(source)
        if path is None or not path.is_file() or not is_prepared(path):
            raise InputError(
                f"--{option} {source}: is no prepared data; prepare the scans with 'semsynth prepare' or 'prepare-maps'"
            )
        content = read_datalist(path)
        made = [
            str(entry.get("case", i)) for i, entry in enumerate(content.get(TRAINING) or []) if entry.get("synthetic")
        ]
        if made:
            raise InputError(
                f"{path}: lists synthetic volumes as real ones: {', '.join(made[:5])}; give the real cases"
            )
        entries = load_datalist(path, TRAINING, num_classes=content.get("num_classes"), needs=needs)
        pattern = content.get("patient_regex")
        cases = [Entry(str(e["case"]), {}, patient=patient_in(e)) for e in entries]
        groups = joined(cases, pattern, {str(e["case"]): dict(e.get(VOXELS) or {}) for e in entries})
        # the group is called as its first case's patient, so that it is the datalist's own name where there is one
        first: dict[str, str] = {}
        for case in cases:
            first.setdefault(groups[case.name], patient_of(case, pattern))
        people = {case.name: first[groups[case.name]] for case in cases}
        return cls(path, content, tuple(entries), stated_classes(path, content), people)

    @property
    def cases(self) -> dict[str, Mapping[str, Any]]:
        """The entries by name."""
        return {str(entry["case"]): entry for entry in self.entries}

    def origin(self, case: str) -> dict[str, str]:
        """Role → hash of the voxels of the maps that an anatomy comes from: the raw ones, or else the case's own."""
        known = dict(self.cases[case].get(VOXELS) or {})
        raw = {
            role.removeprefix(SOURCE): str(v) for role, v in known.items() if is_map(role) and role.startswith(SOURCE)
        }
        return raw or {role: str(value) for role, value in known.items() if is_map(role)}


def is_prepared(source: str | Path) -> bool:
    """Whether a data set was prepared for trainings: its datalist says with which settings."""
    path = datalist_path(source)
    return path is not None and path.is_file() and isinstance(read_datalist(path).get("settings"), dict)


def check_draws(draws: Sequence[Draw], prepared: Prepared) -> None:
    """Raise where the names of volumes cannot be those of files, or meet those of cases.

    Raises:
        InputError: naming them.
    """
    check_names([*prepared.cases, *(draw.name for draw in draws)], prepared.path, fix="rename the cases")
