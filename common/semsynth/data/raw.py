"""Raw cases: finding them (datalist, challenge folders, patterns) and checking them before use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import is_there
from ..paths import as_path, expanded
from ..vocabulary import SPLITS, UNLABELLED
from .check import ROLES, Checkable, Entry, Rules, check_cases, read_case
from .classes import class_table, vocabulary_of
from .datalists import (
    absolute,
    datalist_path,
    expert_classes,
    named_files,
    patient_in,
    read_datalist,
    root_of,
    stated_classes,
)
from .dicom import is_dicom, listing, needs
from .entry_cases import case_of, roles_of, source_of, with_vocabulary
from .findings import Finding, Report
from .geometry import bundle_grid
from .histograms import check_modality
from .identity import patient_of
from .intensity import stated_intensity
from .label_values import rounded
from .layouts import hint
from .naming import BIDS_PATIENT, case_name, check_names, distinct_names, entry_name, patients_of_bids, walk
from .patterns import is_pattern, matches, names_of
from .rules import EXPERTS, check_mask
from .segments import Selection, mask_file
from .volumes import Volume

logger = logging.getLogger(__name__)
Search = Callable[[Sequence[Checkable], str | None], list[Finding]]
CHALLENGE_FILES = {"image": "lgemri", "endo": "laendo", "wall": "lawall"}


@dataclass(frozen=True)
class Case:
    """Where the files of one case are. ``split`` is None until it is given or drawn, ``patient`` where none is stated.

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
            folders (``lgemri``, ``laendo``, ``lawall`` as ``.nrrd`` or ``.nii.gz``); or a pattern of image files or of
            folders of DICOM series (see :func:`semsynth.data.patterns.matches`).
        endo, wall: for a pattern: the paths of the masks with the same wildcards, which stand for the same text;
            ``…/seg.seg.nrrd#cavity`` is the segment of that name.

    Raises:
        InputError: nothing found, an entry without its files' names, or two cases of one name.
    """
    cases = _find(as_path(source, "--input"), endo, wall)
    if not cases:
        raise _no_cases(source)
    check_names([case.name for case in cases], source)
    return cases


def _no_cases(source: str | Path) -> InputError:
    ways = hint(source) or "give a datalist, a folder of cases or a quoted pattern of images"
    return InputError(f"{source}: no cases found; {ways}")


def _find(source: Path, endo: str | None, wall: str | None) -> list[Case]:
    if is_pattern(source):
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
        files, selections = _masks({role: root / expanded(mask) for role, mask in masks.items() if mask})
        found.append(
            Case(
                name=entry_name(entry, root),
                image=root / expanded(entry["image"]),
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

    folder = folder.absolute()
    unreadable: list[Path] = []
    images = [image for path in sorted({f.parent for f in walk(folder, unreadable)}) if (image := find(path, "image"))]
    images += [path / (CHALLENGE_FILES["image"] + ".nrrd") for path in unreadable]  # the check says why they are none
    names = distinct_names([case_name(image) for image in images],
                           [image.parent.relative_to(folder).parts for image in images])  # fmt: skip
    # a folder without its mask is listed by the check, with the name that the file should have
    return [
        Case(name, image, find(image.parent, "endo") or image.parent / "laendo.nrrd", find(image.parent, "wall"))
        for name, image in zip(names, images, strict=True)
    ]


def _from_pattern(pattern: str, endo: str | None, wall: str | None) -> list[Case]:
    found = matches(pattern)
    if not found:
        raise InputError(f"{pattern}: no such file or folder, and as a pattern it finds nothing; check the path")
    if not endo:
        raise InputError(
            f"--input {pattern}: a pattern of images needs --endo, the masks' pattern with the same stars; for maps of "
            "other classes 'check' and 'prepare-maps' take --label"
        )
    masks = {"endo": endo} | ({"wall": wall} if wall else {})
    cases = []
    for name, match in zip(names_of(found, pattern), found, strict=True):
        files, selections = _masks({role: match.partner(pattern, mask) for role, mask in masks.items()})
        walls = files["wall"] if "wall" in files and is_there(files["wall"]) else None
        cases.append(Case(name, match.path, files["endo"], walls, selections=selections))
    return cases


def labelled_images(pattern: str | Path, label: str) -> list[Entry]:
    """The images of a pattern, each with its label map of any classes.

    Args:
        pattern: pattern of the images.
        label: the label maps' paths with the same wildcards, which stand for the same text.

    Raises:
        InputError: no pattern, nothing found, or two cases of one name.
    """
    if not is_pattern(pattern):
        raise InputError(f"--label goes with a quoted pattern of image files as --input, got {pattern}")
    found = matches(str(pattern))
    if not found:
        raise InputError(f"{pattern}: no images found; quote the pattern and check the folder")
    return [
        Entry(name, {"image": match.path, "label": match.partner(str(pattern), label)})
        for name, match in zip(names_of(found, str(pattern)), found, strict=True)
    ]


def patient_pattern(source: str | Path, cases: Sequence[Checkable]) -> str | None:
    """The pattern by which names tell the patient: a datalist's own, or that of BIDS; None where names do not tell.

    Args:
        source: as in :func:`find_cases`.
        cases: cases that were found there.
    """
    path = datalist_path(source)
    if path is not None and path.is_file():
        pattern = read_datalist(path).get("patient_regex")
        return None if pattern is None else str(pattern)
    return patients_of_bids(case.name for case in cases)


def log_bids(pattern: str | None, cases: Sequence[Checkable]) -> None:
    """Say whose scans the first cases are taken for where names of BIDS tell it."""
    if pattern == BIDS_PATIENT:
        told = ", ".join(f"{case.name} is of {patient_of(case, pattern)}" for case in cases[:2])
        logger.info("names of BIDS tell the patient (%s); --patient-regex says otherwise", told)


def check_input(
    source: str | Path | None,
    *,
    endo: str | None = None,
    wall: str | None = None,
    label: str | None = None,
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
        label: pattern of label maps: for a pattern of images with the same wildcards; without ``source`` they are
            checked alone.
        num_classes: number of classes of the label maps; None takes what the datalist states.
        patch_size: voxels that training will crop.
        patient_regex: as in :func:`split_cases`; None takes what the datalist states.
        bundle: folder of a bundle whose weights are to be used on the label maps.
        jobs: threads; None takes one per core.
        search: a further search among all cases without an error, given them and the ``patient_regex``.

    Raises:
        InputError: where no case can be found, or for a bundle that does not say its classes.
    """
    found: list[Checkable]
    early, of_list, names = list[Finding](), list[Finding](), dict[int, str]()
    path = None if source is None or endo or wall or label else datalist_path(source)
    if path is None:
        found = list(_given(source, endo, wall, label))
        patient_regex = patient_regex or patients_of_bids(case.name for case in found)
        rules = Rules(num_classes, () if label else EXPERTS, patch_size)
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
    source = source or label or ""
    if not found and not early:
        raise _no_cases(source)
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
    if grid is None:
        return report
    scaling = grid.check_scaling(rules.intensity, source) if any("image" in case.files for case in found) else []
    return replace(report, findings=(*scaling, *report.findings, *grid.check(maps)))


def _given(source: str | Path | None, endo: str | None, wall: str | None, label: str | None) -> Sequence[Checkable]:
    """The cases of patterns and folders."""
    if label and (endo or wall):
        raise InputError("--label is for label maps of any classes, --endo and --wall for masks; give one or the other")
    if label and source is None:
        return [Entry(name, {"label": path}) for name, path in named_files(label, "label maps")]
    if source is None:
        raise InputError("give --input, a data set, or --label, a quoted pattern of label maps")
    return labelled_images(source, label) if label else _find(as_path(source, "--input"), endo, wall)


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
