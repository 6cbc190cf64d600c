"""Raw cases → what every bundle trains on: images and composite maps on one spacing, a datalist, quality pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.check import Rules, check_cases, selection_of
from ..data.findings import Finding, Report, error
from ..data.intensity import Ends, Intensity, Scaling, chosen_scaling
from ..data.raw import Case, LoadedCase, find_cases, load_case, log_bids, patient_pattern
from ..data.rules import values_of
from ..data.volumes import StorageType, Volume
from ..errors import InputError
from ..limits import MOST_SIGMA, check_jobs, check_number
from ..locks import one_at_a_time
from ..report.pictures import Panel, Row, centre_of, overlay_edges
from ..vocabulary import ENDO, class_names, num_classes
from .composite import BACKGROUNDS, MAX_K, Background, CompositeLabel, check_centers
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
from .wall import IN_WORDS, WALL_PLANES, WallPlane, measured_axes, thickness, wall_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What decides the content of a prepared case (and so whether an existing one can be kept).

    Attributes:
        spacing: mm per voxel along right, anterior, superior.
        size: matrix to crop and pad to around the cavity, or None to keep each case's own.
        k, sigma, background: as in :class:`semsynth.prepare.composite.CompositeLabel`.
        centers: frozen cluster centres in scaled intensities [0, 1], or None for a fit to each volume.
        wall_mm: width of the derived wall where no wall mask is given; 0 derives none.
        wall_plane: plane in which that width is measured, see :func:`semsynth.prepare.wall.derive_wall`.
        dtype: type of the stored intensities.
        scale, percentiles, window: the rule by which intensities become [0, 1], see
            :class:`semsynth.data.intensity.Scaling`; None where it is not said.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size: tuple[int, int, int] | None = None
    k: int = 2
    sigma: float = 1.0
    background: Background = "auto"
    centers: tuple[float, ...] | None = None
    wall_mm: float = 2.5
    wall_plane: WallPlane = "axial"
    dtype: StorageType = "int16"
    scale: str | None = None
    percentiles: Ends | None = None
    window: Ends | None = None

    def __post_init__(self) -> None:
        check_form(self.spacing, self.size, self.dtype)
        _ = self.scaling  # raises for a rule that is none
        if not 0 <= self.wall_mm <= 20:
            raise InputError(f"--wall-mm must lie in 0…20 mm, got {self.wall_mm}")
        if self.wall_plane not in WALL_PLANES:
            raise InputError(f"--wall-plane must be one of {', '.join(WALL_PLANES)}, got {self.wall_plane!r}")
        check_number("--sigma", self.sigma, 0, MOST_SIGMA, unit=" voxels")
        if not 0 <= self.k <= MAX_K:
            raise InputError(f"--k must lie in 0…{MAX_K}, got {self.k}")
        if self.background not in BACKGROUNDS:
            raise InputError(f"--background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        check_centers(self.centers)

    @property
    def scaling(self) -> Scaling | None:
        """The rule of intensities that is asked for; None where none is."""
        return chosen_scaling(self.scale, self.percentiles, self.window)

    @property
    def unit_range(self) -> None:
        """Magnitudes of MRI have no unit."""

    @property
    def num_classes(self) -> int:
        """Number of classes of the maps that these settings make."""
        return num_classes(self.k, background=self.background != "none")


@dataclass(frozen=True)
class Grid:
    """A case on the target grid: ``(H, W, D)`` arrays of one shape and their affine."""

    image: NDArray[np.float32]
    endo: NDArray[np.uint8]
    wall: NDArray[np.uint8]
    zeros: NDArray[np.uint8]
    affine: NDArray[np.float64]


def atrium_grid(case: LoadedCase, settings: Settings) -> Grid:
    """Right–anterior–superior order, derived wall where none is given, resampling, crop around the cavity.

    The wall is derived and zeros are looked for on the source's own grid where its voxels allow it: after resampling a
    thin ring is ragged and exact zeros are rare.
    """
    image = case.image.canonical()
    masks = {"endo": Volume(case.endo, case.image.affine).canonical()}
    if case.wall is not None:
        masks["wall"] = Volume(case.wall, case.image.affine).canonical()
    masks["zeros"] = Volume((image.data == 0).astype(np.uint8), image.affine)
    moved = resample(image, settings.spacing, nearest=False)
    arrays = {
        name: resample(mask, settings.spacing, nearest=True).data.astype(np.uint8) for name, mask in masks.items()
    }
    if case.wall is None:
        outer = wall_mask(masks["endo"], moved, settings.spacing, width=settings.wall_mm, plane=settings.wall_plane)
        arrays["wall"] = outer * (arrays["endo"] == 0)
    grid = Grid(moved.data, affine=moved.affine, **arrays)
    return grid if settings.size is None else _crop(grid, settings.size)


def _crop(grid: Grid, size: Sequence[int]) -> Grid:
    """Crop to ``size`` around the cavity where the volume is larger; padding comes last, so that it enters nothing."""
    inside = np.argwhere(grid.endo)
    middle = (inside.min(axis=0) + inside.max(axis=0) + 1) // 2 if len(inside) else np.array(grid.endo.shape) // 2
    start = [first_voxel(int(m), s, 0, n) for m, s, n in zip(middle, size, grid.endo.shape, strict=True)]
    box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
    return Grid(grid.image[box], grid.endo[box], grid.wall[box], grid.zeros[box], shifted(grid.affine, start))


def prepare_atrium_case(
    case: Case, settings: Settings, folder: Path, report: Report | None = None, intensity: Intensity | None = None
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
    loaded = load_case(case, report)
    grid = atrium_grid(loaded, settings)
    image, ends = scaled(loaded, grid, settings)
    composite = CompositeLabel(settings.k, settings.sigma, settings.background, settings.centers)
    label, centers = composite.with_centers(image, grid.endo, grid.wall, grid.zeros, case=case.name)
    made = Prepared.of(image, label, grid.affine, settings.size)
    wall = wall_found(case, loaded, grid, settings)
    record = made.record(
        case, settings, intensity, **wall, centers=[round(float(c), 6) for c in centers],
        intensity_range=[round(value, 6) for value in ends],
        zero_voxels=int(np.count_nonzero(loaded.image.data == 0)),
        endo_ml=round(float(np.count_nonzero(label == ENDO) * np.prod(settings.spacing) / 1000), 2),
    )  # fmt: skip
    assert made.label is not None
    panels = [
        Panel("image", made.image),
        Panel("masks", overlay_edges(made.image, made.label)),
        Panel("label map", made.label, is_label=True),
    ]
    row = Row(folder.name, panels, settings.spacing, centre_of(made.label))
    commit_case(
        folder, made, record, settings.dtype, row, title=f"{folder.name}: wall {wall['wall']}, k = {settings.k}"
    )
    return record


def scaled(case: LoadedCase, grid: Grid, settings: Settings) -> tuple[NDArray[np.float32], Ends]:
    """The image on the target grid in [0, 1], and the intensities of the files that became 0 and 1.

    Percentiles are those of the whole source volume on its own grid, so that neither the target's voxel size nor a crop
    changes them; minimum and maximum are those of what is kept.
    """
    rule = settings.scaling or Scaling()
    ends = rule.window(grid.image if rule.scale == "min-max" else case.image.data)
    return rule(grid.image, None if rule.scale == "min-max" else ends), ends


def wall_found(case: Case, loaded: LoadedCase, grid: Grid, settings: Settings) -> dict[str, Any]:
    """What the record of a prepared case says of its wall: what it is, and how many voxels a derived one is thick.

    Raises:
        InputError: for a derived wall of which no voxel is left.
    """
    sizes = " × ".join(f"{mm:g}" for mm in settings.spacing)
    if loaded.wall is not None:
        if loaded.wall.any() and not grid.wall.any():
            logger.warning("case %s: no voxel of its wall mask is left at %s mm; use a smaller --spacing",
                           case.name, sizes)  # fmt: skip
        return {"wall": "given"}
    if not settings.wall_mm:
        return {"wall": "none"}
    made = f"derived, {settings.wall_mm:g} mm, {IN_WORDS[settings.wall_plane]}"
    ways = "use a smaller --spacing, another --wall-plane or a larger --wall-mm, or give a wall mask"
    if not grid.wall.any():
        raise InputError(
            f"case {case.name}: the wall ({made}) has no voxel at {sizes} mm; {ways}; --wall-mm 0 makes maps without "
            "a wall"
        )
    endo = Volume(loaded.endo, loaded.image.affine).canonical()
    thick = thickness(grid.endo, grid.wall, measured_axes(grid.affine, endo, settings.wall_plane))
    if thick < 1:
        logger.warning("case %s: the wall (%s) is %.2f voxels thick at %s mm, less than one, and may have holes; %s",
                       case.name, made, math.floor(100 * thick) / 100, sizes, ways)  # fmt: skip
    return {"wall": made, "wall_thickness_voxels": round(thick, 2)}


def unsuitable(case: Case, volumes: Mapping[str, Volume], settings: Settings) -> list[Finding]:
    """What ``settings`` ask of a case beyond the rules for all cases: zeros, distinct intensities, a cavity."""
    data, found = volumes["image"].data, []
    if settings.background == "zero" and settings.k > 0 and not (data == 0).any():
        found.append(error(case.image, "no voxel of intensity 0", found=f"{data.min():g} as the lowest",
                           expected="zeros, for --background zero", fix="use --background auto"))  # fmt: skip
    sample = data.ravel(order="K")[:: max(data.size // 65536, 1)]
    if len(values_of(sample)) < settings.k and (count := len(values_of(data))) < settings.k:
        found.append(error(case.image, "too few intensities", found=f"{count} distinct ones",
                           expected=f"{settings.k} for --k {settings.k}", fix="use a smaller --k"))  # fmt: skip
    if not volumes["endo"].data.any():
        file = "#".join((str(case.endo), *selection_of(case, "endo").names))  # with the segment or value that is meant
        found.append(error(file, "endo mask is empty", found="no voxel of endo", expected="a cavity to prepare",
                           fix="leave the case out or give its mask"))  # fmt: skip
    return found


@one_at_a_time("semsynth prepare")
def prepare(
    source: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    endo: str | None = None,
    wall: str | None = None,
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    find_patients: bool = False,
    seed: int = 0,
    frozen_centers: bool = False,
    jobs: int = 1,
    overwrite: bool = False,
    wait: bool = False,
) -> Path:
    """Prepare a data set; see ``semsynth prepare --help``.

    Every case is checked before any work starts and all bad ones are listed together. A case that already stands in
    ``output``, made from the same files with the same settings, is kept, so that an interrupted run goes on.

    Returns:
        The path of the ``datalist.json`` that was written.

    Raises:
        InputError: for whatever is wrong with the input; another run that writes into ``output``, unless ``wait``.
    """
    check_jobs(jobs)
    output = Path(output)
    settings, intensity = with_source_scaling(settings, source_intensity(source))
    cases = find_cases(source, endo=endo, wall=wall)
    patient_regex = patient_regex or patient_pattern(source, cases)
    log_bids(patient_regex, cases)
    drawn = not splits_are_given(cases, fractions)
    cases = [replace(case, split=None) for case in cases] if drawn else cases
    check_output(output, cases)
    check_files(output, cases, (source, endo, wall), patients=find_patients)
    check_memory(cases, settings.spacing, settings.size, jobs)
    report = check_cases(
        cases, Rules(intensity=Intensity(settings.window)), patient_regex=patient_regex, jobs=jobs,
        also=lambda case, seen: unsuitable(case, seen, settings),
    )  # fmt: skip
    refuse(report)
    report.log_warnings(logger)
    cases = group_patients(cases, output, patient_regex) if find_patients else cases
    if drawn:
        cases = with_splits(cases, fractions, seed, patient_regex, report.voxels)
    if frozen_centers:
        training = [case for case in cases if case.split == "training"]
        fitted = dataset_centers(
            training, settings.k, settings.sigma, lambda case: _scaled(case, settings, report), jobs=jobs
        )
        settings = replace(settings, centers=fitted)
    work = partial(prepare_atrium_case, report=report, intensity=intensity)
    prepare_missing(cases, settings, output, work, jobs=jobs, overwrite=overwrite, intensity=intensity)
    names = class_names(settings.num_classes)
    return write_datalist(output, cases, settings, names, intensity=intensity, patient_regex=patient_regex)


def _scaled(case: Case, settings: Settings, report: Report) -> NDArray[np.float32]:
    loaded = load_case(case, report)
    return scaled(loaded, atrium_grid(loaded, settings), settings)[0]
