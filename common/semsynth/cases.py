"""Raw cases: finding them (datalist, challenge folders, patterns), checking them before use, splitting by patient."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .composite import check_mask
from .datalists import SPLITS, check_names, name_cases, read_datalist
from .errors import InputError
from .volumes import Volume, read_volume, same_affine

CHALLENGE_FILES = {"image": "lgemri", "endo": "laendo", "wall": "lawall"}


@dataclass(frozen=True)
class Case:
    """Where the files of one case are. ``split`` is None until it is given or drawn."""

    name: str
    image: Path
    endo: Path
    wall: Path | None = None
    split: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by role."""
        return {"image": self.image, "endo": self.endo} | ({"wall": self.wall} if self.wall else {})


@dataclass(frozen=True)
class LoadedCase:
    """The volumes of one case, on one grid; masks as uint8 0/1, ``wall`` None where the case has none."""

    image: Volume
    endo: np.ndarray
    wall: np.ndarray | None


def find_cases(source: str | Path, *, endo: str | None = None, wall: str | None = None) -> list[Case]:
    """Find the cases of a data set.

    Args:
        source: a datalist (``.json``, or a folder that holds ``datalist.json``) with ``image`` and ``endo`` (or a 0/1
            ``label``) and, where present, ``wall`` and ``case`` per entry; a folder of the 2018 challenge's case
            folders (``lgemri``, ``laendo``, ``lawall`` as ``.nrrd`` or ``.nii.gz``); or a pattern of image files.
        endo, wall: for a pattern: the paths of the masks with the same stars, which stand for the same text.

    Raises:
        InputError: nothing found, an entry without its files' names, or two cases of one name.
    """
    source = Path(source)
    if glob.has_magic(str(source)):
        cases = _from_pattern(str(source), endo, wall)
    elif endo or wall:
        raise InputError(f"--endo and --wall go with a pattern of image files as --input, got {source}")
    elif source.suffix == ".json" or (source / "datalist.json").is_file():
        cases = _from_datalist(source if source.suffix == ".json" else source / "datalist.json")
    elif source.is_dir():
        cases = _from_challenge(source)
    else:
        raise InputError(f"{source}: no such file or folder; give a datalist, a folder of cases or a quoted pattern")
    if not cases:
        raise InputError(f"{source}: no cases found; give a datalist, a folder of cases or a quoted pattern of images")
    check_names([case.name for case in cases], source)
    return cases


def _from_datalist(path: Path) -> list[Case]:
    content = read_datalist(path)
    entries = [(split, i, entry) for split in SPLITS for i, entry in enumerate(content.get(split, []))]
    missing = [
        f"{split}[{i}] ({entry.get('case', entry.get('image', '?'))}): needs 'image' and 'endo'"
        for split, i, entry in entries
        if "image" not in entry or not ("endo" in entry or "label" in entry)
    ]
    if missing:
        raise InputError(f"{path}: entries without their files", missing)
    root = path.parent
    names = name_cases([root / entry["image"] for _, _, entry in entries])
    return [
        Case(
            name=str(entry.get("case", name)),
            image=root / entry["image"],
            endo=root / entry.get("endo", entry.get("label")),
            wall=root / entry["wall"] if entry.get("wall") else None,
            split=split,
        )
        for name, (split, _, entry) in zip(names, entries, strict=True)
    ]


def _from_challenge(folder: Path) -> list[Case]:
    def find(case: Path, role: str) -> Path | None:
        found = [
            path
            for suffix in (".nrrd", ".nii.gz", ".nii")
            if (path := case / (CHALLENGE_FILES[role] + suffix)).is_file()
        ]
        return found[0] if found else None

    cases = []
    folder = folder.resolve()
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        image = find(path, "image")
        if image:
            # a folder without its mask is listed by the check, with the name that the file should have
            cases.append(Case(path.name, image, find(path, "endo") or path / "laendo.nrrd", find(path, "wall")))
    return cases


def _from_pattern(pattern: str, endo: str | None, wall: str | None) -> list[Case]:
    if set("?[") & set(pattern):
        raise InputError(f"--input {pattern}: only stars are understood in patterns, not ? or [...]")
    if not endo:
        raise InputError(f"--input {pattern}: a pattern of images needs --endo, the masks' pattern with the same stars")
    images = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    matcher = re.compile("".join("(.*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", pattern)))

    def partner(image: Path, other: str) -> Path:
        match = matcher.fullmatch(str(image))
        parts = list(match.groups()) if match else []
        if other.count("*") > len(parts):
            raise InputError(f"{other}: has more stars than {pattern}; each star stands for the same text in both")
        for part in parts[: other.count("*")]:
            other = other.replace("*", part, 1)
        return Path(other)

    def optional(image: Path) -> Path | None:
        path = partner(image, wall) if wall else None
        return path if path and path.is_file() else None

    names = name_cases(images)
    return [Case(n, i, partner(i, endo), optional(i)) for n, i in zip(names, images, strict=True)]


def load_case(case: Case) -> LoadedCase:
    """Read and check one case.

    The challenge stores its masks as 0 and 255; that one convention is understood, every other value is an error.

    Raises:
        InputError: whatever is wrong with the files, each problem on its own line.
    """
    problems: list[str] = []
    volumes: dict[str, Volume] = {}
    for role, path in case.files.items():
        try:
            volumes[role] = read_volume(path)
        except InputError as error:
            problems.append(str(error))
    image = volumes.get("image")
    for role, volume in volumes.items():
        try:
            if role == "image":
                check_image(volume.data)
            else:
                volumes[role] = Volume(_binary(volume.data, role), volume.affine)
        except InputError as error:
            problems.append(f"{case.files[role]}: {error}")
        if image is not None and volume.data.shape != image.data.shape:
            problems.append(
                f"{case.files[role]}: {role} and image must share one shape, "
                f"got {volume.data.shape} and {image.data.shape}; resample the mask to the image's grid"
            )
        elif image is not None and not same_affine(volume.affine, image.affine):
            apart = np.abs(volume.affine - image.affine).max()
            problems.append(
                f"{case.files[role]}: {role} and image must share one affine (tolerance 1e-3), they differ by "
                f"{apart:.4g} mm; resample the mask to the image's grid"
            )
    if problems:
        raise InputError(f"case {case.name}", problems)
    wall = volumes.get("wall")
    return LoadedCase(volumes["image"], volumes["endo"].data, wall.data if wall else None)


def check_image(data: np.ndarray) -> None:
    """Raise unless ``data`` holds finite real numbers of more than one value.

    Raises:
        InputError: saying what was found.
    """
    if not np.issubdtype(data.dtype, np.number) or np.issubdtype(data.dtype, np.complexfloating):
        raise InputError(f"image must hold real numbers, found {data.dtype}")
    if not np.isfinite(data.sum(dtype=np.float64)):
        raise InputError(
            f"image must be finite, found {int((~np.isfinite(data)).sum())} NaN or infinite voxels; repair them"
        )
    if data.min() == data.max():
        raise InputError(f"image is constant ({data.min():g}); check that it is the right file")


def _binary(data: np.ndarray, role: str) -> np.ndarray:
    if data.dtype.fields is not None:
        raise InputError(f"{role} mask must hold numbers, found colours; write the structure as 1 and all else as 0")
    challenge = data.max() == 255 and np.count_nonzero(data == 255) == np.count_nonzero(data)
    mask = (data == 255) if challenge else data
    check_mask(mask, role, allow_empty=role == "wall")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def patient_of(name: str, pattern: str | None) -> str:
    """The patient in a case's name: the pattern's first group, or its whole match; without a pattern the name itself.

    Raises:
        InputError: for a pattern that is not valid or does not match.
    """
    if pattern is None:
        return name
    try:
        match = re.search(str(pattern), name)
    except re.error as error:
        raise InputError(f"--patient-regex {pattern!r} is not a valid pattern: {error}") from error
    if match is None:
        raise InputError(f"--patient-regex {pattern!r} does not match the case name {name!r}")
    return str(match.group(1) if match.groups() else match.group(0))


def check_patients(splits: dict[str, str], pattern: str | None) -> None:
    """Raise if a patient stands in two splits.

    Args:
        splits: case name → split.
        pattern: as in :func:`patient_of`.

    Raises:
        InputError: listing the patients.
    """
    seen: dict[str, set[str]] = {}
    for name, split in splits.items():
        seen.setdefault(patient_of(name, pattern), set()).add(split)
    leaks = [f"patient {p}: in {' and '.join(sorted(s))}" for p, s in sorted(seen.items()) if len(s) > 1]
    if leaks:
        raise InputError("the datalist's splits share patients; correct them, or give the cases without splits", leaks)


def split_cases(
    names: Sequence[str], fractions: Sequence[float], *, seed: int = 0, patient_regex: str | None = None
) -> dict[str, str]:
    """Draw a split for each case so that no patient stands in two of them.

    Args:
        names: case names.
        fractions: shares of training, validation and (optionally) testing; they add up to 1.
        seed: of the draw; the order of ``names`` does not matter.
        patient_regex: a pattern whose first group (or whole match) in the case's name is the patient; None takes each
            case for a patient of its own.

    Returns:
        Case name → ``"training"``, ``"validation"`` or ``"testing"``.

    Raises:
        InputError: fractions that do not add up to 1, a name that the pattern does not match, or too few patients.
    """
    if not 2 <= len(fractions) <= 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"fractions must be 2 or 3 shares that add up to 1, got {tuple(fractions)}")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, got {seed}")
    patients: dict[str, list[str]] = {}
    for name in sorted(names):
        patients.setdefault(patient_of(name, patient_regex), []).append(name)
    order = [sorted(patients)[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    wanted = [split for split, share in zip(SPLITS, fractions, strict=False) if share > 0]
    if len(order) < len(wanted):
        raise InputError(f"{len(order)} patients cannot fill {len(wanted)} splits; give more cases or other fractions")
    edges = np.rint(np.cumsum(fractions) * len(order)).astype(int)
    which = np.searchsorted(edges, np.arange(len(order)), side="right")
    splits = {
        name: SPLITS[min(int(s), len(fractions) - 1)] for p, s in zip(order, which, strict=True) for name in patients[p]
    }
    for split, patient in zip([s for s in wanted if s not in splits.values()], order, strict=False):
        splits |= dict.fromkeys(patients[patient], split)  # a small share still gets one patient
    return splits
