"""Images with label maps of any classes → what every bundle trains on: one grid, one intensity range, one vocabulary.

The classes that are given keep their indices; what they leave of the image can become tissue clusters behind them
(context: where the body is, where bone), as in :mod:`semsynth.prepare.composite`. Images without a map are prepared
too: an autoencoder's training takes them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..data.check import Entry, Rules, check_cases, read_case
from ..data.datalists import absolute, datalist_path, named_files, patient_in, read_datalist, root_of
from ..data.entry_cases import source_of
from ..data.findings import Finding, Report, warning
from ..data.identity import joined
from ..data.intensity import AIR, Ends, Intensity, Scaling, chosen_scaling, no_air
from ..data.layouts import hint
from ..data.raw import labelled_images, log_bids, patient_pattern
from ..data.segments import Selection
from ..data.volumes import StorageType, Volume
from ..errors import InputError
from ..limits import MOST_SIGMA, check_jobs, check_number
from ..locks import one_at_a_time
from ..report.pictures import Panel, Row, centre_of
from ..vocabulary import SPLITS, UNLABELLED
from .composite import IntensityHistogram, check_centers, fit_histogram, smooth
from .job import (
    Prepared,
    check_form,
    check_memory,
    dataset_centers,
    first_voxel,
    refuse,
    resample,
    shifted,
    splits_are_given,
    with_splits,
    write_datalist,
)
from .kept import check_output, commit_case, prepare_missing
from .outputs import check_files
from .patients.groups import group_patients
from .scaling import source_intensity, with_source_scaling

logger = logging.getLogger(__name__)
MAX_CLASSES = 255
MOST_MARGIN = 10_000.0
TRAINING = SPLITS[0]
CT = "CT"
AXES = {letter: axis for axis in ("RL", "AP", "SI") for letter in axis}


@dataclass(frozen=True)
class MapSettings:
    """What decides the content of a prepared case.

    Attributes:
        classes: names of the classes of the given maps from 1 on.
        spacing: mm per voxel along right, anterior, superior; None keeps each case's own.
        size: matrix to crop and pad to around the map's classes, or None.
        scale, percentiles, window: the rule by which intensities become [0, 1], see
            :class:`semsynth.data.intensity.Scaling`; None where it is not said. The window is in the files' values.
        hu_offset: number that is added to the files' values to get Hounsfield units (CT); None: they have no unit.
        k: number of clusters of the intensities outside the given classes; the darkest is background, the others are
            tissue 1, tissue 2, … behind the classes. 0 or 1 make none.
        centers: centres of the clusters in scaled intensities [0, 1]; None: fitted to each volume.
        sigma: Gaussian smoothing before clustering, in voxels.
        margin: crop to the body (the largest connected part of what is not background) and the classes, with so many
            mm around; None does not.
        axes: the directions in which the files' axes really run, such as ``"PLI"``, where their headers say otherwise;
            None believes the headers.
        dtype: type of the stored intensities.
        original_values: values of the files' voxels that become classes 1, 2, …; None takes the values as they are.
            Files with named segments are read by the classes' names.

    Raises:
        InputError: for values out of range.
    """

    classes: tuple[str, ...]
    spacing: tuple[float, float, float] | None = None
    size: tuple[int, int, int] | None = None
    scale: str | None = None
    percentiles: Ends | None = None
    window: Ends | None = None
    hu_offset: float | None = None
    k: int = 0
    centers: tuple[float, ...] | None = None
    sigma: float = 1.0
    margin: float | None = None
    axes: str | None = None
    dtype: StorageType = "int16"
    original_values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_form(self.spacing, self.size, self.dtype)
        if self.hu_offset is not None and self.window is None and self.scale is not None:
            raise InputError(f"--hu-offset goes with --window, got --scale {self.scale}")
        _ = self.scaling  # raises for a rule that is none
        if self.k < 0 or self.sigma < 0 or (self.margin is not None and self.margin < 0):
            raise InputError(f"--k, --sigma and --margin must be 0 or more, got {self.k}, {self.sigma}, {self.margin}")
        check_number("--sigma", self.sigma, 0, MOST_SIGMA, unit=" voxels")
        check_number("--k", self.k, 0, MAX_CLASSES)
        if self.margin is not None:
            check_number("--margin", self.margin, 0, MOST_MARGIN, unit=" mm")
        if not self.classes:
            raise InputError("names of the classes are needed: give --classes, or state them in the datalist")
        if len(set(self.names)) != len(self.names) or len(self.names) > MAX_CLASSES:
            raise InputError(
                f"needs 1 to {MAX_CLASSES - 1} classes of different names, tissues too, got {len(self.names)}: "
                f"{', '.join(self.names[:8])} …"
            )
        check_centers(self.centers)
        if self.centers is not None and (len(self.centers) != self.k or list(self.centers) != sorted(self.centers)):
            raise InputError(f"--centers must be --k {self.k} rising intensities in [0, 1], got {self.centers}")
        if self.axes is not None and sorted(AXES.get(letter, "?") for letter in self.axes) != ["AP", "RL", "SI"]:
            raise InputError(f"--axes must be three of R or L, A or P, S or I, such as PLI, got {self.axes!r}")

    @property
    def scaling(self) -> Scaling | None:
        """The rule of intensities that is asked for; None where none is."""
        return chosen_scaling(self.scale, self.percentiles, self.window)

    @property
    def unit_range(self) -> Ends | None:
        """The window in Hounsfield units; None without them."""
        if self.hu_offset is None or self.window is None:
            return None
        return self.window[0] + self.hu_offset, self.window[1] + self.hu_offset

    @property
    def selection(self) -> Selection:
        """What is taken of a label map."""
        return Selection(self.classes, self.original_values or ())

    @property
    def value_table(self) -> dict[str, Any]:
        """The table for datalist and records: class → value in the source files, where values were changed."""
        if self.original_values is None:
            return {}
        return {"original_values": {str(i): value for i, value in enumerate(self.original_values, 1)}}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all classes, from 0 on."""
        return ("background", *self.classes, *(f"tissue {i}" for i in range(1, self.k)))


@dataclass(frozen=True)
class MapGrid:
    """A case on the target grid: ``(H, W, D)`` arrays and their affine; ``label`` is None where there is no map."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]


def find_maps(source: str | Path, *, label: str | None = None, unlabelled: str | None = None) -> list[Entry]:
    """The cases of a data set with label maps, and its images without.

    Args:
        source: a datalist (``.json``, or a folder that holds ``datalist.json``) with ``image`` and ``label`` per entry
            and, under ``unlabelled``, entries with ``image`` alone; or a pattern of image files.
        label: for a pattern: the label maps' paths with the same stars.
        unlabelled: a pattern of further images without maps.

    Raises:
        InputError: nothing found, or an entry without its files.
    """
    if label is not None:
        found = labelled_images(source, label)
    else:
        path = datalist_path(source)
        if path is None or not path.is_file():
            ways = hint(source)
            raise InputError(f"{source}: needs a datalist, or a quoted pattern of images with --label"
                             + (f"; {ways}" if ways else ""))  # fmt: skip
        content = read_datalist(path)
        found = [
            entry
            for split in (*SPLITS, UNLABELLED)
            for entry in _entries_of(path, content.get(split) or [], split, labelled=split != UNLABELLED)
        ]
    if unlabelled is not None:
        found += [
            Entry(name, {"image": path}, UNLABELLED) for name, path in named_files(unlabelled, "unlabelled images")
        ]
    if not found:
        raise InputError(f"{source}: no cases found; give a datalist or a quoted pattern of images with --label")
    return found


def _entries_of(path: Path, listed: list[dict[str, Any]], split: str, *, labelled: bool) -> list[Entry]:
    needed = ("image", "label") if labelled else ("image",)
    missing = [f"{split}[{i}]: needs {' and '.join(needed)}" for i, e in enumerate(listed) if not set(needed) <= set(e)]
    if missing:
        raise InputError(f"{path}: entries without their files", missing)
    return [
        Entry(e["case"], {role: Path(e[role]) for role in needed}, split, patient=patient_in(e), source=source_of(e))
        for e in (absolute(entry, root_of(path)) for entry in listed)
    ]


def map_grid(case: Entry, settings: MapSettings, report: Report | None = None) -> MapGrid:
    """Read a case: right–anterior–superior order, resampled, intensities scaled to [0, 1].

    Raises:
        InputError: whatever is wrong with the files.
    """
    read = read_case(case, Rules(len(settings.classes) + 1, experts=()), report)
    rule = settings.scaling or Scaling()
    ends = None if rule.scale == "min-max" else rule.window(read["image"].data)  # of the whole source volume
    volumes = {role: redirected(volume, settings.axes).canonical() for role, volume in read.items()}
    if settings.spacing is not None:
        volumes = {role: resample(v, settings.spacing, nearest=role == "label") for role, v in volumes.items()}
    image, label = volumes["image"], volumes.get("label")
    return MapGrid(rule(image.data, ends), None if label is None else label.data.astype(np.uint8), image.affine)


def redirected(volume: Volume, axes: str | None) -> Volume:
    """The same voxels and voxel sizes, with axes in the directions that letters such as ``"PLI"`` say."""
    if axes is None:
        return volume
    orientation = nib.orientations.axcodes2ornt(tuple(axes))
    turned = np.linalg.inv(nib.orientations.inv_ornt_aff(orientation, volume.data.shape))  # array to canonical
    return Volume(volume.data, turned @ np.diag([*volume.spacing, 1.0]))


def tissue_map(grid: MapGrid, settings: MapSettings) -> NDArray[np.uint8]:
    """The given classes, and behind them the clusters of all other voxels but the darkest one.

    What is not connected with the body, the largest connected part of all that is not background, is background.
    """
    label = np.zeros(grid.image.shape, dtype=np.uint8) if grid.label is None else grid.label
    if settings.k < 2:
        return label
    smoothed = smooth(grid.image, settings.sigma)
    centers = np.asarray(settings.centers or fit_histogram(IntensityHistogram(0.0, 1.0).add(smoothed), settings.k))
    clusters = np.zeros(label.shape, dtype=np.uint8)
    for threshold in (centers[1:] + centers[:-1]) / 2:  # nearest centre, by the midpoints between them
        clusters += smoothed > np.float32(threshold)
    body = largest_part((clusters > 0) | (label > 0))
    tissue = np.where(body & (clusters > 0), clusters + np.uint8(len(settings.classes)), 0)
    return np.where(label > 0, label, tissue).astype(np.uint8)


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask ``(H, W, D)`` (neighbours share a face); an empty one as it is."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    result: NDArray[np.bool_] = parts == sizes.argmax()
    return result


def prepare_map_case(
    case: Entry, settings: MapSettings, folder: Path, report: Report | None = None, intensity: Intensity | None = None
) -> dict[str, Any]:
    """Prepare one case into ``folder`` (written beside, then renamed): image, label map, record and picture.

    Args:
        case: case to prepare.
        settings: settings of the preparation.
        folder: folder to write.
        report: report of an earlier check; a case that it vouches for is not checked again.
        intensity: intensities of the prepared image; None: those that follow from the settings.

    Returns:
        The record that was written as ``prepare.json``.
    """
    grid = map_grid(case, settings, report)
    label = tissue_map(grid, settings)
    start, stop = _box(grid, label, settings)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    image, label = grid.image[box], label[box]
    shown = Prepared.of(image, label, shifted(grid.affine, start), settings.size)
    made = shown if grid.label is not None else replace(shown, label=None)
    assert shown.label is not None
    voxels = {str(i): int(n) for i, n in enumerate(np.bincount(shown.label.ravel())) if n}
    panels = [Panel("image", shown.image), Panel("label map", shown.label, is_label=True)]
    row = Row(folder.name, panels, Volume(shown.image, shown.affine).spacing, centre_of(shown.label))
    record = made.record(case, settings, intensity, voxels=voxels, **settings.value_table)
    commit_case(folder, made, record, settings.dtype, row, title=folder.name)
    return record


def not_hounsfield(case: Entry, volumes: Mapping[str, Volume], offset: float | None) -> list[Finding]:
    """A warning on an image that has no air where its values and the offset are to be Hounsfield units."""
    data = volumes["image"].data
    if offset is None or not no_air(data.astype(np.float32) + offset):
        return []
    return [warning(
        case.files["image"], "no air in Hounsfield units", found=f"{data.min() + offset:g} to {data.max() + offset:g}",
        expected="air, about -1000", fix="check --window and --hu-offset: files may hold HU + 1024 (--window 24,2024 "
        "--hu-offset -1024)",
    )]  # fmt: skip


def _box(grid: MapGrid, label: NDArray[np.uint8], settings: MapSettings) -> tuple[list[int], list[int]]:
    """First voxel, and the one behind the last, of what is kept along each axis."""
    shape = label.shape
    inside = np.argwhere(label > 0)
    start, stop = [0, 0, 0], list(shape)
    if settings.margin is not None and len(inside):
        spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
        around = np.ceil(settings.margin / spacing).astype(int)
        start = np.maximum(inside.min(axis=0) - around, 0).tolist()
        stop = np.minimum(inside.max(axis=0) + 1 + around, shape).tolist()
    if settings.size is not None:
        named = np.argwhere((label > 0) & (label <= len(settings.classes)))
        named = named if len(named) else (inside if len(inside) else np.array([[0, 0, 0], shape]))
        middle = (named.min(axis=0) + named.max(axis=0) + 1) // 2
        for axis, wanted in enumerate(settings.size):
            length = stop[axis] - start[axis]
            if length > wanted:
                first = first_voxel(int(middle[axis]), wanted, start[axis], stop[axis])
                start[axis], stop[axis] = first, first + wanted
    return start, stop


@one_at_a_time("semsynth prepare-maps")
def prepare_maps(
    source: str | Path,
    output: str | Path,
    settings: MapSettings,
    *,
    label: str | None = None,
    unlabelled: str | None = None,
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    find_patients: bool = False,
    seed: int = 0,
    frozen_centers: bool = False,
    modality: str = "MRI",
    jobs: int = 1,
    overwrite: bool = False,
    wait: bool = False,
) -> Path:
    """Prepare a data set with label maps; see ``semsynth prepare-maps --help``.

    Every case is checked before any work starts and all bad ones are listed together; what is already prepared, from
    the same files with the same settings, is kept.

    Returns:
        The path of the ``datalist.json`` that was written.

    Raises:
        InputError: for whatever is wrong with the input; another run that writes into ``output``, unless ``wait``.
    """
    check_jobs(jobs)
    output = Path(output)
    stated = source_intensity(source)
    _check_modality(modality, settings, stated)
    settings, intensity = with_source_scaling(settings, stated)
    cases = [
        replace(case, selections={"label": settings.selection})
        for case in find_maps(source, label=label, unlabelled=unlabelled)
    ]
    patient_regex = patient_regex or patient_pattern(source, cases)
    log_bids(patient_regex, cases)
    given = [case for case in cases if "label" in case.files]
    bare = [case for case in cases if "label" not in case.files]
    drawn = not splits_are_given(given, fractions)
    given = [replace(case, split=None) for case in given] if drawn else given
    cases = [*given, *bare]
    check_output(output, cases)
    check_files(output, cases, (source, label, unlabelled), patients=find_patients)
    check_memory(cases, settings.spacing, settings.size, jobs)
    rules = Rules(len(settings.classes) + 1, experts=(), intensity=Intensity(settings.window))
    offset = settings.hu_offset if stated is None else None
    report = check_cases(
        cases, rules, patient_regex=patient_regex, jobs=jobs,
        also=lambda case, seen: not_hounsfield(case, seen, offset),
    )  # fmt: skip
    refuse(report)
    report.log_warnings(logger)
    if find_patients:
        cases = group_patients(cases, output, patient_regex)
        given, bare = (cases[: len(given)], cases[len(given) :])
    if drawn:
        given = with_splits(given, fractions, seed, patient_regex, report.voxels)
        cases = _with_bare(given, bare, joined(cases, patient_regex, report.voxels))
    if frozen_centers and settings.k > 1:
        training = [case for case in cases if case.split in (TRAINING, None)]
        fitted = dataset_centers(
            training, settings.k, settings.sigma, lambda case: map_grid(case, settings, report).image, jobs=jobs
        )
        settings = replace(settings, centers=fitted)
    work = partial(prepare_map_case, report=report, intensity=intensity)
    prepare_missing(cases, settings, output, work, jobs=jobs, overwrite=overwrite, intensity=intensity)
    names = dict(enumerate(settings.names))
    return write_datalist(
        output, cases, settings, names, intensity=intensity, modality=modality, patient_regex=patient_regex,
        more=settings.value_table,
    )  # fmt: skip


def _with_bare(given: Sequence[Entry], bare: Sequence[Entry], whose: Mapping[str, str]) -> list[Entry]:
    """All cases: images without maps are for training, and so are their patients.

    Args:
        given: cases with label maps, divided into splits.
        bare: cases without.
        whose: case → patient.
    """
    known = {whose[case.name] for case in bare}
    return [*(replace(c, split=TRAINING) if whose[c.name] in known else c for c in given), *bare]


def _check_modality(modality: str, settings: MapSettings, stated: Intensity | None) -> None:
    """CT is quantitative: its window has to be said, in Hounsfield units or with what makes them of the files' values.

    Raises:
        InputError: for CT without a window.
    """
    if settings.unit_range is None and settings.window is not None and settings.window[0] <= AIR and stated is None:
        logger.warning(
            "--window %g,%g looks like Hounsfield units, and nothing says that it is: give --modality CT, so that the "
            "unit is kept", *settings.window,
        )  # fmt: skip
    windowed = settings.window is not None or (stated is not None and stated.window is not None)
    if settings.hu_offset is not None and not windowed:
        raise InputError("--hu-offset goes with --window, the values of the files that become 0 and 1")
    if modality.strip().upper() == CT and settings.scaling is None and not windowed:
        raise InputError(
            "CT needs the window of intensities that becomes 0 to 1, the same for all cases: give --window -1000,1000, "
            "with --hu-offset (such as -1024) and a window in the files' values where these are not Hounsfield units; "
            "or --scale percentiles, if the units are not to be kept"
        )
