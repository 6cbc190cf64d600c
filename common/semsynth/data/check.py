"""One pass over all cases before anything is done with them: every file checked, every problem in one report."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import InputError
from ..files import stamp
from ..limits import check_classes, check_jobs
from ..memory import check_size
from .findings import Finding, FindingError, Report, of_case
from .headers import Header, on_grid, read_header, unreadable
from .histograms import check_histogram, check_ranges, span
from .identity import SOURCE, is_image, is_map, same_names, shared_patients, shared_voxels, unusable_names
from .intensity import Intensity
from .label_values import rounded
from .rules import (
    EXPERTS,
    check_axes,
    check_grid,
    check_intensities,
    check_label,
    check_mask,
    check_masks_together,
    check_patch,
    check_same_grid,
    looks_swapped,
    swapped,
    values_of,
)
from .segments import EVERYTHING, MASK, Selection, same_segments
from .volumes import Volume, read_volume
from .voxels import voxel_hash

IMAGE, LABEL, MASKS = "image", "label", ("endo", "wall")
ROLES = (IMAGE, LABEL, *MASKS)
SECONDS_UNTIL_BAR = 2.0
MOST_THREADS = 8


class Checkable(Protocol):
    """What can be checked: a :class:`semsynth.data.raw.Case`, or an :class:`Entry`."""

    @property
    def name(self) -> str:
        """Name of the case."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Role (``image``, ``label``, ``endo``, ``wall``) → file."""

    @property
    def split(self) -> str | None:
        """``training``, ``validation``, ``testing``, ``unlabelled`` (counts as training), or None."""

    @property
    def patient(self) -> str | None:
        """The patient of the scan, or None where none is stated."""


@dataclass(frozen=True)
class Entry:
    """One entry of a datalist: what is checked of it.

    ``shape`` is the case's own where its files were padded; ``source`` the hashes of the voxels of the raw files that a
    prepared case was made from, by their roles; ``selections`` what is taken of files of labels, by their roles;
    ``intensity`` what the image's file holds, where it says otherwise than its datalist.
    """

    name: str
    files: Mapping[str, Path]
    split: str | None = None
    shape: tuple[int, ...] | None = None
    patient: str | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    selections: Mapping[str, Selection] = field(default_factory=dict)
    intensity: Intensity | None = None


@dataclass(frozen=True)
class Rules:
    """What cases are checked against.

    Attributes:
        num_classes: number of classes of label maps; None allows indices up to 254.
        experts: classes of which a label map needs at least one where it has tissue clusters; empty for other maps.
        patch_size: voxels along right, anterior, superior that training crops.
        spacing: mm per voxel that training resamples to before; None if it does not.
        intensity: statement of the datalist on its image files; None where there is none.
        names: names of the classes from 1 on, which files that are read in the order of their segments have to have;
            empty compares these files with each other.
        pad: True where segmentations that 3D Slicer has cropped are put on the image's grid.
    """

    num_classes: int | None = None
    experts: Collection[int] = EXPERTS
    patch_size: Sequence[int] | None = None
    spacing: Sequence[float] | None = None
    intensity: Intensity | None = field(default=None, compare=False)  # only warnings depend on it
    names: Sequence[str] = ()
    pad: bool = True

    def __post_init__(self) -> None:
        if self.patch_size is not None and (len(self.patch_size) != 3 or min(self.patch_size) < 1):
            raise InputError(f"patch_size must be three positive numbers of voxels, got {tuple(self.patch_size)}")
        if self.num_classes is not None and self.num_classes < 2:
            raise InputError(f"num_classes must be 2 or more, got {self.num_classes}")
        if self.num_classes is not None:
            check_classes(self.num_classes)
        if self.patch_size is not None:
            check_size(self.patch_size, "a patch_size", "give a smaller one")


@dataclass
class Examined:
    """One case after its examination: what was found, and the volumes that could be read, by role.

    Label maps and masks have whole numbers where their files have nearly so, and the image's voxel order and affine.
    """

    findings: list[Finding] = field(default_factory=list)
    headers: dict[str, Header] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)


Also = Callable[[Any, Mapping[str, Volume]], list[Finding]]


def check_cases(
    cases: Sequence[Checkable],
    rules: Rules | None = None,
    *,
    patient_regex: str | None = None,
    jobs: int | None = None,
    also: Also | None = None,
) -> Report:
    """Check all cases: each file alone, the files of a case against each other, and the cases among themselves.

    Headers come first; the voxels of a file with a bad header are not read. Every file is read once.

    Args:
        cases: raw cases or entries of a datalist.
        rules: rules to check against.
        patient_regex: pattern whose first group in a case's name is the patient; None takes each name for a patient.
        jobs: threads; None takes one per core, up to 8.
        also: a further check of a case that has no error so far, given its volumes by role.

    Raises:
        InputError: for a ``patient_regex`` that is not valid or does not match a name, or ``jobs`` below 1. Everything
            else is a finding.

    Examples:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.data.volumes import write_label
        >>> with TemporaryDirectory() as folder:
        ...     path = write_label(f"{folder}/label.nii.gz", np.full((8, 8, 8), 5, np.uint8), np.eye(4))
        ...     report = check_cases([Entry("P1", {"label": path})], Rules(num_classes=4))
        >>> [(finding.case, finding.finding) for finding in report.findings if finding.severity == "error"]
        [('P1', 'label values out of range')]
    """
    if jobs is not None:
        check_jobs(jobs)
    rules = rules or Rules()
    total = _Total([*same_names(cases), *unusable_names(cases), *shared_patients(cases, patient_regex)])
    with ThreadPoolExecutor(jobs or min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        try:
            bar = tqdm(
                pool.map(lambda case: _One.of(case, rules, also), cases),
                total=len(cases),
                desc="checking",
                unit="case",
                leave=False,
                delay=SECONDS_UNTIL_BAR,
                mininterval=0.1 if sys.stderr.isatty() else 30.0,
            )
            for case, one in zip(cases, bar, strict=True):
                total.add(case, one)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C ends after the cases under way, not after all of them
            raise
    return total.report(cases, rules)


@dataclass
class _One:
    """What of one case is needed once its volumes are gone.

    Attributes:
        findings: findings on the case.
        hashes: role → hash of the voxels.
        classes: class indices in the label map.
        label: header of the label map, or None.
        largest: largest span of the image's intensities, or None where they are not compared among cases.
        stamps: file → its stamp before it was read; None for a case with an error.
    """

    findings: list[Finding]
    hashes: dict[str, str]
    classes: list[int]
    label: Header | None
    largest: float | None
    stamps: dict[Path, tuple[int, int]] | None

    @classmethod
    def of(cls, case: Checkable, rules: Rules, also: Also | None) -> _One:
        """Read and examine a case."""
        stamps = _stamps(case.files.values())  # before anything is read
        seen = examine(case, rules)
        if also is not None and seen.usable:
            seen.findings += of_case(case.name, also(case, seen.volumes))
        usable = seen.volumes if seen.usable else {}
        label, image = usable.get(LABEL), usable.get(IMAGE)
        said = getattr(case, "intensity", None) or rules.intensity or Intensity(None)
        return cls(
            seen.findings,
            _hashes(case, seen),
            [] if label is None else values_of(label.data).tolist(),
            seen.headers.get(LABEL),
            None if image is None or said.window is not None else span(image.data),
            stamps if seen.usable else None,
        )


@dataclass
class _Total:
    """What the examination of all cases adds up to; ``named`` holds files of segments and these segments' names."""

    findings: list[Finding]
    voxels: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: dict[str, tuple[str, float]] = field(default_factory=dict)
    classes: Counter[int] = field(default_factory=Counter)
    sound: dict[str, dict[Path, tuple[int, int]]] = field(default_factory=dict)
    named: dict[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, case: Checkable, one: _One) -> None:
        """Count a case that was examined."""
        self.findings += one.findings
        self.voxels[case.name] = one.hashes
        self.classes.update(one.classes)
        if one.stamps is not None:
            self.sound[case.name] = one.stamps
        if one.largest is not None:
            self.ranges[case.name] = str(case.files[IMAGE]), one.largest
        if one.label is not None and one.label.segments is not None and not one.label.selection.names:
            self.named[case.name] = one.label.path, one.label.segments.names

    def report(self, cases: Sequence[Checkable], rules: Rules) -> Report:
        """All findings, those among the cases too, in the order of the cases."""
        differ = same_segments(self.named, rules.names)
        found = [*self.findings, *differ, *shared_voxels(cases, self.voxels), *check_ranges(self.ranges)]
        labelled = sum(LABEL in case.files for case in cases)
        agree = bool(self.named) and not differ and len(self.named) == labelled
        names = next(iter(self.named.values()))[1] if agree else ()
        order = {name: i for i, name in enumerate(dict.fromkeys(case.name for case in cases))}
        return Report(tuple(sorted(found, key=lambda f: order.get(f.case, -1))), len(cases),
                      dict(sorted(self.classes.items())), self.sound, rules, self.voxels,
                      dict(enumerate(("background", *names))) if names else {})  # fmt: skip


def examine(case: Checkable, rules: Rules | None = None) -> Examined:
    """Read the files of one case and apply the rules; nothing is raised for what is wrong with a file."""
    rules = rules or Rules()
    seen = Examined()
    for role, path in case.files.items():
        try:
            header = read_header(path, selection_of(case, role))
            header = seen.headers[role] = on_grid(header, seen.headers.get(IMAGE) if rules.pad else None)
            seen.findings += [*check_grid(header), *header.notes]
        except FindingError as reason:
            seen.findings.append(reason.finding)
    _compare_headers(case, seen, rules)
    for role, header in seen.headers.items():
        try:
            volume = read_volume(header.path, header)
            seen.findings += volume.notes
            own = replace(rules, intensity=getattr(case, "intensity", None) or rules.intensity)
            seen.findings += _check_voxels(role, header, volume.data, own, seen.volumes.get(IMAGE))
            seen.volumes[role] = volume if role == IMAGE else _as_image(volume, seen.headers.get(IMAGE))
        except Exception as reason:  # whatever a file does, the others are still checked
            seen.findings.append(unreadable(header.path, reason).finding)
    if seen.usable and set(MASKS) <= seen.volumes.keys():
        seen.findings += check_masks_together(seen.headers["endo"], *(seen.volumes[role] for role in MASKS))
    seen.findings = of_case(case.name, seen.findings)
    return seen


def _stamps(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """By which files are known again; without those that cannot be reached, of which a finding says it."""
    found = {}
    for path in paths:
        with suppress(OSError):
            found[path] = stamp(path)
    return found


def _hashes(case: Checkable, seen: Examined) -> dict[str, str]:
    """Role → hash of the voxels, of what was read without an error, and of the raw files that the case came from."""
    bad = {finding.file for finding in seen.findings if finding.severity == "error"}
    read = {
        role: voxel_hash(volume.data)
        for role, volume in seen.volumes.items()
        if (is_image(role) or is_map(role)) and str(case.files[role]) not in bad
    }
    source = getattr(case, "source", {})
    return {role: value for role, value in read.items() if value} | {f"{SOURCE}{r}": v for r, v in source.items()}


def read_case(case: Checkable, rules: Rules | None = None, report: Report | None = None) -> dict[str, Volume]:
    """The volumes of one case by role, each file checked first, unless ``report`` vouches for it.

    Label maps and masks have whole numbers, and the image's voxel order and affine.

    Args:
        case: case to read.
        rules: rules to check against.
        report: report of an earlier :func:`check_cases`, or None.

    Raises:
        InputError: whatever is wrong with the files, each problem on its own line.
    """
    rules = rules or Rules()
    if report is not None and report.vouches_for(case.name, case.files.values(), rules):
        return {role: read_role(case, role) for role in case.files}
    seen = examine(case, rules)
    if not seen.usable:
        problems = [str(replace(finding, case="")) for finding in seen.findings if finding.severity == "error"]
        raise InputError(f"case {case.name}", problems)
    return seen.volumes


def selection_of(case: Checkable, role: str) -> Selection:
    """What is taken of the file of a role: what the case says, else one mask, or everything."""
    chosen: Selection | None = getattr(case, "selections", {}).get(role)
    return chosen if chosen is not None else MASK if role in MASKS else EVERYTHING


def read_role(case: Checkable, role: str) -> Volume:
    """One file of a case as a check reads it: of labels the segments that are meant, on the image's grid.

    Raises:
        InputError: as :func:`semsynth.data.volumes.read_volume`.
    """
    path = case.files[role]
    if role == IMAGE:
        return read_volume(path)
    header = read_header(path, selection_of(case, role))
    image = read_header(case.files[IMAGE]) if IMAGE in case.files else None
    return _as_image(read_volume(path, on_grid(header, image)), image)


def _as_image(volume: Volume, image: Header | None) -> Volume:
    """A label map or mask with whole numbers, in the image's voxel order; on another grid (an error) as it is."""
    whole = Volume(rounded(volume.data), volume.affine, volume.notes)
    placed = None if image is None else whole.on_grid(image.affine, image.shape)
    return whole if placed is None else placed


def _as_typed(header: Header) -> str:
    """The file of a mask, with the value that was asked for where it is a label map's."""
    values = header.selection.values
    return f"{header.path}#{values[0]}" if values else str(header.path)


def _compare_headers(case: Checkable, seen: Examined, rules: Rules) -> None:
    image = seen.headers.get(IMAGE)
    for role, header in seen.headers.items():
        if image is not None and role != IMAGE:
            seen.findings += check_same_grid(header, image)
    main = next(iter(seen.headers.values()), None)
    if main is not None:
        seen.findings += check_axes(main)
        if rules.patch_size is not None:
            seen.findings += check_patch(main, rules.patch_size, getattr(case, "shape", None), rules.spacing)


def _check_voxels(role: str, header: Header, data: NDArray[Any], rules: Rules, image: Volume | None) -> list[Finding]:
    if role == IMAGE:
        found = check_intensities(header.path, data)
        return found or check_histogram(header.path, data, rules.intensity)
    is_mask = role in MASKS
    found = (
        check_mask(_as_typed(header), data, role)
        if is_mask
        else check_label(header, data, rules.num_classes, rules.experts)
    )
    if any(finding.severity == "error" for finding in found) and image and looks_swapped(image.data, rounded(data)):
        return [swapped(header, role)]
    return found
