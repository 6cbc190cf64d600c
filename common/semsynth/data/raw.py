"""Raw cases: finding them (datalist, challenge folders, patterns) and checking them before use."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import is_there, matching
from ..vocabulary import SPLITS, UNLABELLED
from .check import ROLES, Checkable, Rules, check_cases, read_case
from .classes import class_table, vocabulary_of
from .datalists import (
    absolute,
    check_names,
    datalist_path,
    expert_classes,
    patient_in,
    read_datalist,
    root_of,
    stated_classes,
)
from .dicom import is_dicom, listing, needs
from .entries import case_of, roles_of, source_of, with_vocabulary
from .findings import Finding, Report
from .geometry import bundle_grid
from .histograms import check_modality
from .intensity import stated_intensity
from .label_values import rounded
from .naming import case_name, entry_name, walk
from .rules import check_mask
from .segments import Selection, mask_file
from .volumes import Volume

Search = Callable[[Sequence[Checkable], str | None], list[Finding]]
CHALLENGE_FILES = {"image": "lgemri", "endo": "laendo", "wall": "lawall"}


@dataclass(frozen=True)
class Case:
    """Where the files of one case are. ``split`` is None until it is given or drawn, ``patient`` where nobody says.

    ``source`` holds the hashes of the voxels of raw files that these ones were made from, by role, where it is known;
    ``selections`` which segment of a file is the mask, by role.
    """

    name: str
    image: Path
    endo: Path
    wall: Path | None = None
    split: str | None = None
    patient: str | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    selections: Mapping[str, Selection] = field(default_factory=dict)

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
            folders (``lgemri``, ``laendo``, ``lawall`` as ``.nrrd`` or ``.nii.gz``); or a pattern of image files, or
            of folders of DICOM series.
        endo, wall: for a pattern: the paths of the masks with the same stars, which stand for the same text;
            ``…/seg.seg.nrrd#cavity`` is the segment of that name.

    Raises:
        InputError: nothing found, an entry without its files' names, or two cases of one name.
    """
    cases = _find(Path(source), endo, wall)
    if not cases:
        raise InputError(f"{source}: no cases found; give a datalist, a folder of cases or a quoted pattern of images")
    check_names([case.name for case in cases], source)
    return cases


def _find(source: Path, endo: str | None, wall: str | None) -> list[Case]:
    if glob.has_magic(str(source)):
        return _from_pattern(str(source), endo, wall)
    if endo or wall:
        raise InputError(f"--endo and --wall go with a pattern of image files as --input, got {source}")
    path = datalist_path(source)
    if path is not None:
        return _from_datalist(path)
    if source.is_dir():
        return _from_challenge(source) or _refuse_dicom(source)
    if is_dicom(source):
        _refuse_dicom(source)
    raise InputError(f"{source}: no such file or folder; give a datalist, a folder of cases or a quoted pattern")


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
    root = root_of(path)
    found = []
    for split, _, entry in entries:
        masks = {"endo": entry.get("endo", entry.get("label")), "wall": entry.get("wall")}
        files, selections = _masks({role: root / mask for role, mask in masks.items() if mask})
        found.append(
            Case(
                name=entry_name(entry, root),
                image=root / entry["image"],
                endo=files["endo"],
                wall=files.get("wall"),
                split=split,
                patient=patient_in(entry),
                source=source_of(entry),
                selections=selections,
            )
        )
    return found


def _masks(named: Mapping[str, str | Path]) -> tuple[dict[str, Path], dict[str, Selection]]:
    """Role → file, and role → the segment that is meant of it where one is named."""
    found = {role: mask_file(mask) for role, mask in named.items()}
    return {r: file for r, (file, _) in found.items()}, {r: chosen for r, (_, chosen) in found.items() if chosen.names}


def _refuse_dicom(source: Path) -> list[Case]:
    """No cases for a folder without DICOM files; else an error that lists its series and says how to give them."""
    if not is_dicom(source):
        return []
    needs(source)
    folder = source if source.is_dir() else source.parent
    raise InputError(
        f"{source}: holds DICOM files, and nothing that says which of them are cases; give a quoted pattern of the "
        f"patients' folders, such as --input '{folder}/*#DESCRIPTION' (with a # where a folder holds several series), "
        "and the pattern of their masks as --endo; or a datalist whose 'image' is such a folder. Found:",
        listing(folder),
    )


def _from_challenge(folder: Path) -> list[Case]:
    def find(case: Path, role: str) -> Path | None:
        found = [
            path
            for suffix in (".nrrd", ".nii.gz", ".nii")
            if (path := case / (CHALLENGE_FILES[role] + suffix)).is_file()
        ]
        return found[0] if found else None

    cases = []
    for path in sorted({file.parent for file in walk(folder.absolute())}):
        image = find(path, "image")
        if image:
            # a folder without its mask is listed by the check, with the name that the file should have
            endo = find(path, "endo") or path / "laendo.nrrd"
            cases.append(Case(case_name(image), image, endo, find(path, "wall")))
    return cases


def _from_pattern(pattern: str, endo: str | None, wall: str | None) -> list[Case]:
    if set("?[") & set(pattern):
        raise InputError(f"--input {pattern}: only stars are understood in patterns, not ? or [...]")
    if not endo:
        raise InputError(f"--input {pattern}: a pattern of images needs --endo, the masks' pattern with the same stars")
    images = [Path(path) for path in matching(pattern)]
    pattern = pattern.rstrip("/")
    matcher = re.compile("".join("(.*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", pattern)))

    def partner(image: Path, other: str) -> str:
        match = matcher.fullmatch(str(image))
        parts = list(match.groups()) if match else []
        if other.count("*") > len(parts):
            raise InputError(f"{other}: has more stars than {pattern}; each star stands for the same text in both")
        for part in parts[: other.count("*")]:
            other = other.replace("*", part, 1)
        return other

    def case(image: Path) -> Case:
        files, selections = _masks({role: partner(image, mask) for role, mask in masks.items()})
        walls = files["wall"] if "wall" in files and is_there(files["wall"]) else None
        return Case(case_name(image), image, files["endo"], walls, selections=selections)

    masks = {"endo": endo} | ({"wall": wall} if wall else {})
    return [case(image) for image in images]


def stated_regex(source: str | Path) -> str | None:
    """The pattern by which a datalist says that names tell the patient; None where it says nothing, or is none."""
    path = datalist_path(source)
    if path is None or not path.is_file():
        return None
    pattern = read_datalist(path).get("patient_regex")
    return None if pattern is None else str(pattern)


def check_input(
    source: str | Path,
    *,
    endo: str | None = None,
    wall: str | None = None,
    num_classes: int | None = None,
    patch_size: Sequence[int] | None = None,
    patient_regex: str | None = None,
    bundle: str | Path | None = None,
    jobs: int | None = None,
    search: Search | None = None,
) -> Report:
    """Check a data set, raw or prepared; see ``semsynth check --help``.

    Args:
        source, endo, wall: as in :func:`find_cases`; of a datalist's entries ``label`` is checked as a label map.
        num_classes: of the label maps; None takes what the datalist states.
        patch_size: voxels that training will crop.
        patient_regex: as in :func:`split_cases`; None takes what the datalist states.
        bundle: folder of a bundle whose weights are to be used on the label maps.
        jobs: threads; None takes one per core.
        search: a further search among all cases without an error, given them and the ``patient_regex``.

    Raises:
        InputError: where no case can be found, or for a bundle that does not say its classes.
    """
    path = datalist_path(Path(source))
    if path is None or endo or wall:
        found: list[Checkable] = list(_find(Path(source), endo, wall))
        rules, names, early = Rules(num_classes, patch_size=patch_size), dict[int, str](), list[Finding]()
        of_list = list[Finding]()
    else:
        content = read_datalist(path)
        names = stated_classes(path, content)
        found, early = _entries(path, content)
        stated = stated_intensity(content, path)
        of_list = check_modality(path, content, stated)
        rules = Rules(
            num_classes or content.get("num_classes"), expert_classes(path, content), patch_size,
            intensity=stated,
        )  # fmt: skip
        patient_regex = patient_regex or content.get("patient_regex")
    if not found and not early:
        raise InputError(f"{source}: no cases found; give a datalist, a folder of cases or a quoted pattern of images")
    report = check_cases(found, rules, patient_regex=patient_regex, jobs=jobs)
    late = search([case for case in found if case.name in report.sound], patient_regex) if search else []
    report = replace(report, findings=(*of_list, *early, *report.findings, *late), cases=report.cases + len(early))
    if bundle is None:
        return report
    if not any("label" in case.files for case in found):
        raise InputError(f"{source}: has no label maps to compare with {bundle}; prepare them with 'semsynth prepare'")
    count = rules.num_classes or (max(report.classes) + 1 if report.classes else 0)
    key = vocabulary_of(bundle, count)
    report = with_vocabulary(report, names or report.names, bundle, source, key=key)
    grid = bundle_grid(bundle, key)
    maps = {case.name: case.files["label"] for case in found if "label" in case.files}
    return report if grid is None else replace(report, findings=(*report.findings, *grid.check(maps)))


def _entries(path: Path, content: dict[str, Any]) -> tuple[list[Checkable], list[Finding]]:
    """All entries of a datalist as cases to check, and findings on those that name no image and no label map.

    Label maps with named segments are read by the names of the classes, where the datalist states them.
    """
    names = list(class_table(content.get("classes"), path).values())[1:]
    listed = [(split, entry) for split in (*SPLITS, UNLABELLED) for entry in content.get(split) or []]
    cases: list[Checkable] = []
    early = []
    for i, (split, entry) in enumerate(listed):
        entry = absolute(entry, root_of(path))
        entry["case"] = entry["case"] or f"entry_{i}"
        roles = roles_of(entry, ROLES)
        if not {"image", "label"} & set(roles):
            early.append(Finding(entry["case"], str(path), "missing", f"an entry under {split} without files",
                                 "'image' and 'label' or 'endo'", "complete the datalist"))  # fmt: skip
        else:
            cases.append(case_of(entry, roles, split, names))
    return cases, early


def load_case(case: Case, report: Report | None = None) -> LoadedCase:
    """Read one case, and check it unless ``report``, of an earlier check, vouches for its files.

    The challenge stores its masks as 0 and 255; that one convention is understood, every other value is an error.

    Raises:
        InputError: whatever is wrong with the files, each problem on its own line.
    """
    volumes = read_case(case, report=report)
    masks = {role: _as_mask(volumes[role].data) for role in case.files if role != "image"}
    if not masks["endo"].any():
        raise InputError(f"case {case.name}: endo mask is empty; leave the case out or give its mask")
    return LoadedCase(volumes["image"], masks["endo"], masks.get("wall"))


def binary_mask(data: np.ndarray, role: str) -> np.ndarray:
    """A mask of 0 and 1, or of 0 and 255 as the 2018 challenge writes them, as uint8 0/1; only a wall may be empty.

    Raises:
        InputError: for other values, or an empty mask.
    """
    found = [finding for finding in check_mask(role, data, role) if finding.severity == "error"]
    if found:
        raise InputError(str(found[0]))
    mask = _as_mask(data)
    if role != "wall" and not mask.any():
        raise InputError(f"{role} mask is empty: no voxel of it; leave the case out or give its mask")
    return mask


def _as_mask(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rounded(data) > 0, dtype=np.uint8)
