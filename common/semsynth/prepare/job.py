"""What every preparation of a data set does: splits, resampling, records, the datalist."""

from __future__ import annotations

import json
import logging
from collections import Counter
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
from tqdm import tqdm

from .. import __version__
from ..data.check import IMAGE, Checkable, Entry, selection_of
from ..data.entry_cases import SOURCE_VOXELS
from ..data.findings import Report
from ..data.grids import place
from ..data.headers import read_header
from ..data.histograms import WINDOW_MISFIT
from ..data.identity import Voxels, is_image, is_map, joined
from ..data.intensity import INTENSITY, Intensity
from ..data.label_files import write_label_tables
from ..data.raw import Case
from ..data.sizes import check_resampling
from ..data.volumes import Volume
from ..data.voxels import hash_file
from ..errors import InputError
from ..files import sha256, shown_name
from ..memory import LESS_TO_PREPARE, memory_advice
from ..vocabulary import PREPARED, SPLITS, UNLABELLED
from .composite import IntensityHistogram, fit_histogram, smooth
from .outputs import DATALIST, NAME, listing
from .scaling import with_source_scaling

logger = logging.getLogger(__name__)
T = TypeVar("T")
AnyCase = TypeVar("AnyCase", Case, Entry)
RECORD = PREPARED
MOST_MM = 100


def check_form(spacing: Sequence[float] | None, size: Sequence[int] | None, dtype: str) -> None:
    """Raise unless prepared volumes can have this voxel size, matrix and type of intensities.

    Raises:
        InputError: naming the option.
    """
    if spacing is not None and (len(spacing) != 3 or not all(0 < mm <= MOST_MM for mm in spacing)):
        raise InputError(f"--spacing must be three numbers of mm above 0 and up to {MOST_MM}, got {spacing}")
    if size is not None and (len(size) != 3 or min(size) < 8):
        raise InputError(f"--size must be three numbers of voxels, at least 8, got {size}")
    if dtype not in ("uint8", "int16", "float32"):
        raise InputError(f"--dtype must be uint8, int16 or float32, got {dtype!r}")


def check_memory(
    cases: Sequence[Checkable], spacing: Sequence[float] | None, size: Sequence[int] | None, jobs: int
) -> None:
    """Raise before any work where prepared volumes would not fit into memory.

    Raises:
        InputError: naming the largest case and the options.
    """
    files = {case.name: case.files[IMAGE] for case in cases if IMAGE in case.files}
    check_resampling(files, spacing, size=size, at_once=jobs, fix=LESS_TO_PREPARE)


def resample(volume: Volume, spacing: Sequence[float], *, nearest: bool) -> Volume:
    """A volume on another voxel size, linear or nearest, the edge repeated beyond the border."""
    tensor = MetaTensor(
        torch.from_numpy(np.ascontiguousarray(volume.data, dtype=np.float32))[None],
        affine=torch.from_numpy(volume.affine),
    )
    mode = "nearest" if nearest else "bilinear"
    moved: Any = Spacing(pixdim=spacing, mode=mode, padding_mode="border", dtype=np.float32)(tensor)
    return Volume(moved[0].numpy(), np.asarray(moved.affine, dtype=np.float64))


def shifted(affine: NDArray[np.float64], voxels: Sequence[int]) -> NDArray[np.float64]:
    """The affine of an array that starts ``voxels`` further on along each axis (before, where they are negative)."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ np.array([*voxels, 1.0]))[:3]
    return moved


def first_voxel(middle: int, size: int, low: int, high: int) -> int:
    """Where along an axis a crop of ``size`` voxels around ``middle`` begins, so that it stays within low…high."""
    return int(np.clip(middle - size // 2, low, max(high - size, low)))


@dataclass(frozen=True)
class Prepared:
    """A case as its files hold it: ``(H, W, D)`` arrays of one shape, and where the case stands in the padding.

    Attributes:
        image: intensities in [0, 1].
        label: class indices; None where there is no map.
        affine: affine of both.
        content: ``{"start", "shape"}`` in voxels.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    content: dict[str, list[int]]

    @staticmethod
    def of(
        image: NDArray[np.float32],
        label: NDArray[np.uint8] | None,
        affine: NDArray[np.float64],
        size: Sequence[int] | None,
    ) -> Prepared:
        """A case with zeros around it up to ``size``. Padding is the last step, so that zeros enter no computation."""
        before, after = [0, 0, 0], [0, 0, 0]
        if size is not None:
            before = [max(s - n, 0) // 2 for s, n in zip(size, image.shape, strict=True)]
            after = [max(s - n, 0) - b for s, n, b in zip(size, image.shape, before, strict=True)]
        width = list(zip(before, after, strict=True))
        map_ = None if label is None else np.pad(label, width)
        content = {"start": before, "shape": list(image.shape)}
        return Prepared(np.pad(image, width), map_, shifted(affine, [-b for b in before]), content)

    def record(self, case: Checkable, settings: Any, intensity: Intensity | None, **more: Any) -> dict[str, Any]:
        """What stands beside the files: their sources, the settings, what intensities they hold, and their geometry."""
        held = intensity or with_source_scaling(settings, None)[1]
        return {
            "case": case.name,
            "semsynth": __version__,
            "sources": fingerprints(case),
            SOURCE_VOXELS: source_voxels(case),
            **reordered(case),
            "settings": asdict(settings),
            INTENSITY: held.to_json(),
            **more,
            "shape": list(self.image.shape),
            "content": self.content,
        }


def fingerprints(case: Checkable) -> dict[str, dict[str, str]]:
    """Role → name and SHA-256 of the case's files, and the segment that a mask is of them."""

    def one(role: str, path: Path) -> dict[str, str]:
        chosen = selection_of(case, role)
        segment = {"segment": chosen.names[0]} if chosen.mask and chosen.names else {}
        return {"file": shown_name(path), "sha256": sha256(path)} | segment

    return {role: one(role, path) for role, path in case.files.items()}


def reordered(case: Checkable) -> dict[str, dict[str, str]]:
    """``{"reordered": {role: "LPS to RAS"}}`` for label maps and masks whose voxels are stored in another order than
    the image's; empty where there are none."""
    image = read_header(case.files[IMAGE])
    own = {role: read_header(path, selection_of(case, role)) for role, path in case.files.items() if role != IMAGE}
    found = {
        role: f"{header.axes} to {image.axes}"
        for role, header in own.items()
        if place(header.affine, header.shape, image.affine, image.shape).reordered
    }
    return {"reordered": found} if found else {}


def source_voxels(case: Checkable) -> dict[str, str]:
    """Role → hash of the voxels of the raw image and of its label map or mask, for whoever meets them elsewhere.

    A case that was prepared from prepared files keeps the hashes of the raw ones.
    """
    own = {
        role: hash_file(path, selection_of(case, role), None if role == IMAGE else case.files.get(IMAGE))
        for role, path in case.files.items()
        if is_image(role) or is_map(role)
    }
    return {role: value for role, value in own.items() if value} | dict(getattr(case, "source", {}))


def refuse(report: Report) -> None:
    """Raise for what makes a data set worthless: errors of the check, and a window that leaves nothing of an image.

    Raises:
        InputError: listing all of it.
    """
    report.raise_for_errors()
    misfits = [finding for finding in report.findings if finding.finding == WINDOW_MISFIT]
    if misfits:
        texts = [str(finding) for finding in misfits]
        raise InputError(f"{len(misfits)} of {report.cases} cases cannot be used:", texts)


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
    with ThreadPoolExecutor(max_workers=min(jobs, max(len(items), 1))) as pool:
        futures = {pool.submit(work, item): name(item) for item in items}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=title, unit="case", disable=not futures):
                try:
                    with memory_advice("", LESS_TO_PREPARE):
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


def splits_are_given(cases: Sequence[AnyCase], fractions: Sequence[float] | None) -> bool:
    """Whether the splits of the input are kept: not where all cases stand in one and fractions were asked for."""
    given = {case.split for case in cases}
    return None not in given and (len(given) > 1 or fractions is None)


def with_splits(
    cases: list[AnyCase], fractions: Sequence[float] | None, seed: int, patient_regex: str | None, voxels: Voxels
) -> list[AnyCase]:
    """The cases with splits drawn so that a patient, and the cases of one label map, stay together."""
    splits = split_cases(joined(cases, patient_regex, voxels), fractions or (0.8, 0.2), seed=seed)
    return [replace(case, split=splits[case.name]) for case in cases]


def split_cases(patient_of_case: Mapping[str, str], fractions: Sequence[float], *, seed: int = 0) -> dict[str, str]:
    """Draw a split for each case so that no patient stands in two of them.

    Args:
        patient_of_case: case name → patient (see :func:`semsynth.data.identity.joined`); their order does not matter.
        fractions: shares of training, validation and (optionally) testing; they add up to 1.
        seed: seed of the draw.

    Returns:
        Case name → ``"training"``, ``"validation"`` or ``"testing"``.

    Raises:
        InputError: fractions that do not add up to 1, or too few patients.
    """
    if not 2 <= len(fractions) <= 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"fractions must be 2 or 3 shares that add up to 1, got {tuple(fractions)}")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, got {seed}")
    patients: dict[str, list[str]] = {}
    for name in sorted(patient_of_case):
        patients.setdefault(patient_of_case[name], []).append(name)
    order = [sorted(patients)[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    wanted = [split for split, share in zip(SPLITS, fractions, strict=False) if share > 0]
    if len(order) < len(wanted):
        raise InputError(
            f"{len(order)} patients (cases of one label map count as one) cannot fill {len(wanted)} splits; give more "
            "cases or other fractions"
        )
    edges = np.rint(np.cumsum(fractions) * len(order)).astype(int)
    which = np.searchsorted(edges, np.arange(len(order)), side="right")
    split_of = {patient: SPLITS[min(int(s), len(fractions) - 1)] for patient, s in zip(order, which, strict=True)}
    for split in wanted:
        if split not in split_of.values():  # a small share still gets one patient, of the largest split
            largest = Counter(split_of.values()).most_common(1)[0][0]
            split_of[next(patient for patient in order if split_of[patient] == largest)] = split
    return {name: split for patient, split in split_of.items() for name in patients[patient]}


def dataset_centers(
    cases: Sequence[AnyCase], k: int, sigma: float, intensities: Callable[[AnyCase], NDArray[np.float32]], *, jobs: int
) -> tuple[float, ...]:
    """``k`` cluster centres in scaled intensities [0, 1], fitted once over ``cases`` (each counts by its voxels).

    Args:
        cases: to fit to.
        k: number of clusters.
        sigma: Gaussian smoothing before clustering, in voxels.
        intensities: case → ``(H, W, D)`` in [0, 1] on the target grid.
        jobs: cases at the same time.

    Raises:
        InputError: without cases.
    """
    if not cases:
        raise InputError(
            "--centers dataset: the input has no training cases to fit the centres to; give --centers FOLDER or --like "
            "FOLDER, the prepared data of the training that these cases are for, or draw splits with --fractions"
        )

    def count(case: AnyCase) -> NDArray[np.int64]:
        return IntensityHistogram(0.0, 1.0).add(smooth(intensities(case), sigma)).counts

    total = IntensityHistogram(0.0, 1.0)
    for counts in run_all(cases, count, jobs=jobs, title="fitting centres", name=lambda case: case.name).values():
        total.counts += counts
    return tuple(round(float(c), 6) for c in fit_histogram(total, k))


def write_datalist(
    output: Path,
    cases: Sequence[Case | Entry],
    settings: Any,
    names: Mapping[int, str],
    *,
    intensity: Intensity,
    modality: str = "MRI",
    patient_regex: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``datalist.json`` in MONAI's form, with the classes, the settings, and whose scan each case is.

    Beside it the classes' names and colours are written for ITK-SNAP and 3D Slicer.

    Args:
        output: folder of the prepared cases.
        cases: with their splits; those under ``unlabelled`` have no label map.
        settings: settings that the cases were prepared with.
        names: index → name of all classes.
        intensity: intensities of the images.
        modality: modality of the images.
        patient_regex: pattern by which names tell the patient, where they do.
        more: further content of the datalist.
    """
    content: dict[str, Any] = {
        "name": NAME,
        "modality": {"0": modality},
        "num_classes": len(names),
        "classes": {str(i): name for i, name in names.items()},
        INTENSITY: intensity.to_json(),
        **(more or {}),
        "settings": asdict(settings),
    }
    if patient_regex is not None:
        content["patient_regex"] = patient_regex
    for split in (*SPLITS, UNLABELLED):
        chosen = sorted((case for case in cases if case.split == split), key=lambda case: case.name)
        if chosen or split != UNLABELLED:
            content[split] = [_listed(output, case, labelled=split != UNLABELLED) for case in chosen]
    write_label_tables(output, names)
    return listing(output).write_text(DATALIST, json.dumps(content, indent=1))


def _listed(output: Path, case: Checkable, *, labelled: bool) -> dict[str, Any]:
    name = case.name
    record = json.loads((output / name / RECORD).read_text(encoding="utf-8"))
    files = {role: f"{name}/{role}.nii.gz" for role in (("image", "label") if labelled else ("image",))}
    patient = {} if case.patient is None else {"patient": case.patient}
    source = record.get(SOURCE_VOXELS) or source_voxels(case)  # a record of before has none
    return {"case": name, **files, **patient, "content": record["content"], SOURCE_VOXELS: source}
