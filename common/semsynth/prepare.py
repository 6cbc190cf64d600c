"""Raw cases → what every bundle trains on: images and composite maps on one spacing, a datalist, quality pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from . import __version__
from .cases import Case, LoadedCase, find_cases, load_case, split_cases
from .check import Checkable, Entry, check_cases
from .composite import BACKGROUNDS, MAX_K, Background, CompositeLabel, IntensityHistogram, fit_histogram, smooth
from .datalists import SPLITS
from .errors import InputError
from .findings import Finding, error
from .labels import class_names, num_classes
from .report import Panel, Row, centre_of, overlay_edges, save_planes
from .rules import values_of
from .volumes import StorageType, Volume, scale_intensity, sha256, write_image, write_label, write_text

logger = logging.getLogger(__name__)
T = TypeVar("T")
AnyCase = TypeVar("AnyCase", Case, Entry)
RECORD = "prepare.json"


@dataclass(frozen=True)
class Settings:
    """What decides the content of a prepared case (and so whether an existing one can be kept).

    Attributes:
        spacing: mm per voxel along right, anterior, superior.
        size: matrix to crop and pad to around the cavity, or None to keep each case's own.
        k, sigma, background: as in :class:`semsynth.composite.CompositeLabel`.
        centers: frozen cluster centres in scaled intensities [0, 1], or None for a fit to each volume.
        wall_mm: width of the derived wall where no wall mask is given; 0 derives none.
        dtype: how intensities are stored.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size: tuple[int, int, int] | None = None
    k: int = 2
    sigma: float = 1.0
    background: Background = "auto"
    centers: tuple[float, ...] | None = None
    wall_mm: float = 2.5
    dtype: StorageType = "int16"

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise InputError(f"--spacing must be three positive numbers of mm, got {self.spacing}")
        if self.size is not None and (len(self.size) != 3 or min(self.size) < 8):
            raise InputError(f"--size must be three numbers of voxels, at least 8, got {self.size}")
        if not 0 <= self.wall_mm <= 20:
            raise InputError(f"--wall-mm must lie in 0…20 mm, got {self.wall_mm}")
        if self.dtype not in ("uint8", "int16", "float32"):
            raise InputError(f"--dtype must be uint8, int16 or float32, got {self.dtype!r}")
        if self.sigma < 0:
            raise InputError(f"--sigma must be 0 or more voxels, got {self.sigma}")
        if not 0 <= self.k <= MAX_K:
            raise InputError(f"--k must lie in 0…{MAX_K}, got {self.k}")
        if self.background not in BACKGROUNDS:
            raise InputError(f"--background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")

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


def derive_wall(endo: NDArray[np.uint8], spacing: Sequence[float], width: float) -> NDArray[np.uint8]:
    """The accepted stand-in for a wall mask: in-plane dilation of the cavity by ``width`` mm, minus the cavity.

    Args:
        endo: ``(H, W, D)`` 0/1 mask, axial slices along D.
        spacing: mm per voxel along H, W, D.
        width: mm.

    Returns:
        ``(H, W, D)`` 0/1 mask, disjoint from ``endo``.
    """
    wall = np.zeros_like(endo)
    for z in np.flatnonzero(endo.any(axis=(0, 1))):
        distance = ndimage.distance_transform_edt(endo[:, :, z] == 0, sampling=spacing[:2])
        wall[:, :, z] = (distance > 0) & (distance <= width + 1e-6)
    return wall


def resample(volume: Volume, spacing: Sequence[float], *, nearest: bool) -> Volume:
    """A volume on another voxel size, linear or nearest, the edge repeated beyond the border."""
    tensor = MetaTensor(
        torch.from_numpy(np.ascontiguousarray(volume.data, dtype=np.float32))[None],
        affine=torch.from_numpy(volume.affine),
    )
    mode = "nearest" if nearest else "bilinear"
    moved: Any = Spacing(pixdim=spacing, mode=mode, padding_mode="border", dtype=np.float32)(tensor)
    return Volume(moved[0].numpy(), np.asarray(moved.affine, dtype=np.float64))


def to_grid(case: LoadedCase, settings: Settings) -> Grid:
    """Right–anterior–superior order, derived wall where none is given, resampling, crop around the cavity.

    The wall is derived and zeros are looked for on the source's own grid: after resampling a thin ring is ragged and
    exact zeros are rare.
    """
    image = case.image.canonical()
    masks = {"endo": Volume(case.endo, case.image.affine).canonical()}
    if case.wall is not None:
        masks["wall"] = Volume(case.wall, case.image.affine).canonical()
    else:
        ring = derive_wall(masks["endo"].data, image.spacing, settings.wall_mm)
        masks["wall"] = Volume(ring, image.affine)
    masks["zeros"] = Volume((image.data == 0).astype(np.uint8), image.affine)
    moved = resample(image, settings.spacing, nearest=False)
    arrays = {
        name: resample(mask, settings.spacing, nearest=True).data.astype(np.uint8) for name, mask in masks.items()
    }
    grid = Grid(moved.data, affine=moved.affine, **arrays)
    return grid if settings.size is None else _crop(grid, settings.size)


def _crop(grid: Grid, size: Sequence[int]) -> Grid:
    """Crop to ``size`` around the cavity where the volume is larger; padding comes last, so that it enters nothing."""
    inside = np.argwhere(grid.endo)
    middle = (inside.min(axis=0) + inside.max(axis=0) + 1) // 2 if len(inside) else np.array(grid.endo.shape) // 2
    start = [int(np.clip(m - s // 2, 0, max(n - s, 0))) for m, s, n in zip(middle, size, grid.endo.shape, strict=True)]
    box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
    affine = grid.affine.copy()
    affine[:3, 3] = (grid.affine @ np.array([*start, 1.0]))[:3]
    return Grid(grid.image[box], grid.endo[box], grid.wall[box], grid.zeros[box], affine)


def pad(data: NDArray[Any], size: Sequence[int] | None) -> tuple[NDArray[Any], list[int]]:
    """Zeros around ``data`` up to ``size``; also how many stand in front of it."""
    before = [0, 0, 0] if size is None else [max(s - n, 0) // 2 for s, n in zip(size, data.shape, strict=True)]
    after = [0, 0, 0] if size is None else [max(s - n, 0) - b for s, n, b in zip(size, data.shape, before, strict=True)]
    return np.pad(data, list(zip(before, after, strict=True))), before


def prepare_case(case: Case, settings: Settings, folder: Path) -> dict[str, Any]:
    """Prepare one case into ``folder`` (written beside, then renamed): image, label map, record and picture.

    Returns:
        The record that was written as ``prepare.json``.
    """
    loaded = load_case(case)
    grid = to_grid(loaded, settings)
    image = scale_intensity(grid.image)
    composite = CompositeLabel(settings.k, settings.sigma, settings.background, settings.centers)
    label, centers = composite.with_centers(image, grid.endo, grid.wall, grid.zeros)
    padded, before = pad(image, settings.size)
    label = pad(label, settings.size)[0]
    affine = grid.affine.copy()
    affine[:3, 3] = (grid.affine @ np.array([*(-b for b in before), 1.0]))[:3]
    source_range = [float(grid.image.min()), float(grid.image.max())]
    wall = "given" if loaded.wall is not None else (f"derived, {settings.wall_mm:g} mm" if settings.wall_mm else "none")
    record = {
        "case": case.name,
        "semsynth": __version__,
        "sources": _fingerprints(case),
        "settings": asdict(settings),
        "wall": wall,
        "centers": [round(float(c), 6) for c in centers],
        "intensity_range": source_range,
        "zero_voxels": int(np.count_nonzero(loaded.image.data == 0)),
        "shape": list(padded.shape),
        "content": {"start": before, "shape": list(image.shape)},
        "endo_ml": round(float(np.count_nonzero(label == 1) * np.prod(settings.spacing) / 1000), 2),
    }
    panels = [
        Panel("image", padded),
        Panel("masks", overlay_edges(padded, label)),
        Panel("label map", label, is_label=True),
    ]
    row = Row(folder.name, panels, settings.spacing, centre_of(label))
    title = f"{folder.name}: wall {wall}, k = {settings.k}"
    commit_case(folder, Volume(padded, affine), label, record, settings.dtype, row, title=title)
    return record


def commit_case(
    folder: Path,
    image: Volume,
    label: NDArray[Any] | None,
    record: Mapping[str, Any],
    dtype: StorageType,
    picture: Row,
    *,
    title: str,
) -> None:
    """Write a prepared case beside, then rename it: image, label map (None: there is none), record and picture."""
    partial = folder.with_name(f".partial.{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    write_image(partial / "image.nii.gz", image.data, image.affine, dtype)
    if label is not None:
        write_label(partial / "label.nii.gz", label, image.affine)
    save_planes(partial / "qc.png", [picture], title=title)
    write_text(partial / RECORD, json.dumps(record, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _fingerprints(case: Checkable) -> dict[str, dict[str, str]]:
    return {role: {"file": path.name, "sha256": sha256(path)} for role, path in case.files.items()}


def already_prepared(case: Checkable, settings: Any, folder: Path, overwrite: bool) -> bool:
    """Whether ``folder`` already holds this case, made from the same files with the same settings.

    Raises:
        InputError: when it holds the case made otherwise, and ``overwrite`` is not set.
    """
    if not (folder / RECORD).is_file():
        return False
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps({"settings": asdict(settings), "sources": _fingerprints(case)}))
    different = [key for key, value in wanted.items() if record.get(key) != value]
    if different and not overwrite:
        raise InputError(
            f"{folder}: was prepared with other {' and '.join(different)}; give another --output or --overwrite"
        )
    return not different


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
        found.append(error(case.endo, "endo mask is empty", found="no voxel of endo", expected="a cavity to prepare",
                           fix="leave the case out or give its mask"))  # fmt: skip
    return found


def run_all(
    items: Sequence[T], work: Callable[[T], Any], *, jobs: int, title: str, name: Callable[[T], str]
) -> dict[str, Any]:
    """Run ``work`` on each item in ``jobs`` threads with a progress bar.

    Returns:
        Item name → result.

    Raises:
        InputError: after all items were tried, with every problem that came up.
    """
    results: dict[str, Any] = {}
    problems: list[str] = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {pool.submit(work, item): name(item) for item in items}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=title, unit="case", disable=not futures):
                try:
                    results[futures[future]] = future.result()
                except InputError as error:
                    case, text = futures[future], str(error).replace("\n", "\n  ")
                    problems.append(text if text.startswith(f"case {case}") else f"case {case}: {text}")
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C ends after the cases under way, not after all of them
            raise
    if problems:
        raise InputError(f"{len(problems)} of {len(futures)} cases cannot be used:", sorted(problems))
    return results


def prepare(
    source: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    endo: str | None = None,
    wall: str | None = None,
    fractions: Sequence[float] | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    frozen_centers: bool = False,
    jobs: int = 1,
    overwrite: bool = False,
) -> Path:
    """Prepare a data set; see ``semsynth prepare --help``.

    Every case is checked before any work starts and all bad ones are listed together. A case that already stands in
    ``output``, made from the same files with the same settings, is kept, so that an interrupted run goes on.

    Returns:
        The path of the ``datalist.json`` that was written.

    Raises:
        InputError: for whatever is wrong with the input.
    """
    if jobs < 1:
        raise InputError(f"--jobs must be 1 or more, got {jobs}")
    output = Path(output)
    cases = with_splits(find_cases(source, endo=endo, wall=wall), fractions, seed, patient_regex)
    check_output(output, cases)
    report = check_cases(
        cases, patient_regex=patient_regex, jobs=jobs, also=lambda case, seen: unsuitable(case, seen, settings)
    )
    report.raise_for_errors()
    report.log_warnings(logger)
    if frozen_centers:
        settings = replace(
            settings, centers=dataset_centers([c for c in cases if c.split == "training"], settings, jobs=jobs)
        )

    prepare_missing(cases, settings, output, prepare_case, jobs=jobs, overwrite=overwrite)
    return write_datalist(output, cases, settings, patient_regex)


def prepare_missing(
    cases: Sequence[AnyCase],
    settings: Any,
    output: Path,
    work: Callable[[AnyCase, Any, Path], Any],
    *,
    jobs: int,
    overwrite: bool,
) -> None:
    """Run ``work(case, settings, folder)`` for all cases that are not prepared yet from their files with ``settings``.

    Raises:
        InputError: for cases that are prepared otherwise, unless ``overwrite``, and whatever is wrong with a case.
    """

    def is_open(case: AnyCase) -> bool:
        return not already_prepared(case, settings, output / case.name, overwrite)

    def prepare_one(case: AnyCase) -> Any:
        return work(case, settings, output / case.name)

    todo = run_all(cases, is_open, jobs=jobs, title="comparing", name=lambda case: case.name)
    left = [case for case in cases if todo[case.name]]
    if len(left) < len(cases):
        logger.info("%d of %d cases are already prepared and kept", len(cases) - len(left), len(cases))
    output.mkdir(parents=True, exist_ok=True)
    run_all(left, prepare_one, jobs=jobs, title="preparing", name=lambda case: case.name)


def check_output(output: Path, cases: Sequence[Checkable]) -> None:
    """A case's folder is replaced as a whole, so none may hold source files or anything else that is not ours."""
    if output.is_file():
        raise InputError(f"{output}: is a file; --output needs a folder")
    folders = {(output / case.name).resolve(): case.name for case in cases}
    problems = []
    for case in cases:
        inside = [path for path in case.files.values() if folders.keys() & set(path.resolve().parents)]
        problems += [f"case {case.name}: {path} lies in a folder that would be replaced" for path in inside]
    for folder, name in folders.items():
        if folder.exists() and not (folder / RECORD).is_file() and not problems:
            problems.append(f"case {name}: {folder} exists and holds no {RECORD}, so it is not a prepared case")
    if problems:
        raise InputError("--output would overwrite what is not its own; give another folder:", problems)


def with_splits(
    cases: list[AnyCase], fractions: Sequence[float] | None, seed: int, patient_regex: str | None
) -> list[AnyCase]:
    """The given splits, or new ones: also where all cases stand in one split and fractions were asked for."""
    given = {case.name: case.split for case in cases if case.split}
    if len(given) == len(cases) and (len(set(given.values())) > 1 or fractions is None):
        return cases
    names = [case.name for case in cases]
    splits = split_cases(names, fractions or (0.8, 0.2), seed=seed, patient_regex=patient_regex)
    return [replace(case, split=splits[case.name]) for case in cases]


def dataset_centers(cases: Sequence[Case], settings: Settings, *, jobs: int = 1) -> tuple[float, ...]:
    """``k`` cluster centres in scaled intensities [0, 1], fitted once over ``cases`` (each counts by its voxels)."""

    def count(case: Case) -> NDArray[np.int64]:
        scaled = scale_intensity(to_grid(load_case(case), settings).image)
        return IntensityHistogram(0.0, 1.0).add(smooth(scaled, settings.sigma)).counts

    counted = run_all(cases, count, jobs=jobs, title="fitting centres", name=lambda case: case.name)
    total = IntensityHistogram(0.0, 1.0)
    for counts in counted.values():
        total.counts += counts
    return tuple(round(float(c), 6) for c in fit_histogram(total, settings.k))


def _entry(output: Path, name: str) -> dict[str, Any]:
    content = json.loads((output / name / RECORD).read_text(encoding="utf-8"))["content"]
    return {"case": name, "image": f"{name}/image.nii.gz", "label": f"{name}/label.nii.gz", "content": content}


def write_datalist(output: Path, cases: Sequence[Case], settings: Settings, patient_regex: str | None = None) -> Path:
    """Write ``datalist.json`` in MONAI's form, with the classes, the settings, and how names tell the patient."""
    count = settings.num_classes
    content: dict[str, Any] = {
        "name": "prepared by semsynth",
        "modality": {"0": "MRI"},
        "num_classes": count,
        "classes": {str(i): name for i, name in class_names(count).items()},
        "settings": asdict(settings),
        "settings_sha256": hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest(),
    }
    if patient_regex is not None:
        content["patient_regex"] = patient_regex
    for split in SPLITS:
        names = sorted(case.name for case in cases if case.split == split)
        content[split] = [_entry(output, name) for name in names]
    return write_text(output / "datalist.json", json.dumps(content, indent=1))
