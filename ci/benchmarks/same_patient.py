"""Copies of real scans that are planted in a data set, and found again or not, kind by kind; links that should not be.

    OMP_NUM_THREADS=1 python ci/benchmarks/same_patient.py [--cases 26] [--copies 20] [--kinds crop,noise]

Reads the cases of ``$SEMSYNTH_DATA/la2018`` (default ../shared/data/la2018) and compares what is found with its
``patients.json``. For each kind of change ``--copies`` of the first ``--cases`` scans are written again, changed, and
the data set of scans and copies is searched as ``semsynth check --same-patient`` does. Prints a table and, as last
line, one JSON object. The bound that the project holds itself to: 95 % of the copies of each kind are linked (sure or
likely) where at most one false link is expected in the whole data set. A link that is neither planted nor in
``patients.json`` is counted as "other"; some of these are scans of one patient that the file does not know.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation
from semsynth.data.check import Entry
from semsynth.data.volumes import read_volume
from semsynth.prepare.patients.screening import screen

DATA = Path(os.environ.get("SEMSYNTH_DATA", "../shared/data")) / "la2018"
FILES = {"image": "lgemri.nii.gz", "endo": "laendo.nii.gz"}
Array = NDArray[np.float32]
Pair = tuple[Array, Array, NDArray[np.float64]]
"""Image, mask and affine."""


def crop(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """Up to a fifth less along each axis, at either end."""
    start = [int(rng.uniform(0, 0.2) * n) for n in image.shape]
    stop = [s + int((1 - rng.uniform(0.1, 0.2)) * n) for s, n in zip(start, image.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    moved = affine.copy()
    moved[:3, 3] = (affine @ np.array([*start, 1.0]))[:3]
    return image[box], mask[box], moved


def rotated(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """By 5 degrees around any axis through the centre."""
    axis = rng.normal(size=3)
    matrix = Rotation.from_rotvec(np.radians(5) * axis / np.linalg.norm(axis)).as_matrix()
    middle = (np.array(image.shape) - 1) / 2
    offset = middle - matrix @ middle
    turned = [ndimage.affine_transform(a, matrix, offset, order=o, mode="nearest") for a, o in ((image, 1), (mask, 0))]
    return turned[0], turned[1], affine


def noise(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """Gaussian, a quarter of the image's standard deviation."""
    return image + rng.normal(scale=0.25 * image.std(), size=image.shape).astype(np.float32), mask, affine


def gamma(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """Exponent 0.5 or 2, then another range of grey levels."""
    unit = (image - image.min()) / np.ptp(image)
    return 700 * unit ** float(rng.choice([0.5, 2.0])) + 40, mask, affine


def bias(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """A smooth field of factors from about a half to two."""
    field = ndimage.zoom(rng.uniform(-0.7, 0.7, size=(3, 3, 3)), np.array(image.shape) / 3, order=2, mode="nearest")
    return image * np.exp(field[tuple(slice(n) for n in image.shape)]).astype(np.float32), mask, affine


def resampled(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """To voxels 1.25 times as large."""
    scaled = [ndimage.zoom(a, 1 / 1.25, order=o, mode="nearest") for a, o in ((image, 1), (mask, 0))]
    return scaled[0], scaled[1], affine @ np.diag([1.25, 1.25, 1.25, 1.0])


def mirrored(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """The array turned over along one or three axes under the old header."""
    axes = [(0,), (1,), (2,), (0, 1, 2)][rng.integers(4)]
    return np.flip(image, axes), np.flip(mask, axes), affine


def reordered(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """The array's axes in another order under the old header."""
    order = list(itertools.permutations(range(3)))[rng.integers(1, 6)]
    return image.transpose(order), mask.transpose(order), affine


def header(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """The header says that right is left, and puts the origin elsewhere."""
    edited = affine.copy()
    edited[0] *= -1
    edited[:3, 3] += 100
    return image, mask, edited


def everything(rng: np.random.Generator, image: Array, mask: Array, affine: NDArray[np.float64]) -> Pair:
    """Rotated, cropped, another gamma, a bias field, other voxels, noise, and mirrored."""
    for change in (rotated, crop, gamma, bias, resampled, noise, mirrored):
        image, mask, affine = change(rng, np.asarray(image, np.float32), mask, affine)
    return image, mask, affine


KINDS: dict[str, Callable[..., Pair]] = {
    "crop": crop, "rotated": rotated, "noise": noise, "gamma": gamma, "bias": bias, "resampled": resampled,
    "mirrored": mirrored, "reordered": reordered, "header": header, "everything": everything,
}  # fmt: skip


def plant(case: Entry, kind: str, folder: Path, seed: int) -> Entry:
    """A changed copy of a case in a folder of its own."""
    name = f"{case.name}_{kind}"
    volumes = {role: read_volume(path) for role, path in case.files.items()}
    arrays = [np.asarray(volumes[role].data, dtype=np.float32) for role in FILES]
    image, mask, affine = KINDS[kind](np.random.default_rng(seed), *arrays, volumes["image"].affine)
    (folder / name).mkdir()
    files = {role: folder / name / file for role, file in FILES.items()}
    nib.save(nib.Nifti1Image(np.clip(image, -32000, 32000).astype(np.int16), affine), files["image"])
    nib.save(nib.Nifti1Image((mask > 0.5).astype(np.uint8), affine), files["endo"])
    return Entry(name, files)


def measure(cases: list[Entry], kind: str, copies: int, known: set[tuple[str, str]]) -> dict[str, float]:
    """Plant copies of one kind, search, and count."""
    with tempfile.TemporaryDirectory() as folder:
        planted = [plant(case, kind, Path(folder), seed) for seed, case in enumerate(cases[:copies])]
        found = screen([*cases, *planted])
    wanted = {(case.name, copy.name) for case, copy in zip(cases, planted, strict=False)}
    # a copy of a scan is as much a scan of the patient's other scans
    linked = {tuple(sorted((a.first, a.second))): a for a in found.links if a.sureness != "weak"}
    other = {tuple(sorted(n.split("_")[0] for n in pair)) for pair in linked} - known
    got = [linked[pair] for pair in wanted if pair in linked]
    return {
        "recall": len(got) / len(wanted),
        "as_same_scan": sum(link.kind == "same scan" for link in got) / len(wanted),
        "lowest_correlation": round(min((link.correlation for link in got), default=float("nan")), 3),
        "other": sum(a != b for a, b in other),
        "seconds": round(found.seconds, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=26)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA} is not there: nothing measured; set SEMSYNTH_DATA")
        return
    groups = json.loads((DATA / "patients.json").read_text(encoding="utf-8"))["groups"].values()
    known = {tuple(sorted(pair)) for group in groups for pair in itertools.combinations(group, 2)}
    folders = [folder for folder in sorted(DATA.iterdir()) if folder.is_dir() and not folder.name.startswith("CMPXO4")]
    cases = [Entry(f.name, {role: f / file for role, file in FILES.items()}) for f in folders[: options.cases]]
    print(f"{len(cases)} scans and changed copies of {options.copies} of them, one thread")
    columns = ("linked", 8), ("as one scan", 13), ("lowest correlation", 20), ("other links", 13), ("processor s", 13)
    print(f"{'copies':<14}" + "".join(f"{title:>{width}}" for title, width in columns))
    result = {}
    for kind in options.kinds.split(","):
        row = result[kind] = measure(cases, kind, options.copies, known)
        print(f"{kind:<14}{row['recall']:>8.2f}{row['as_same_scan']:>13.2f}{row['lowest_correlation']:>20.3f}"
              f"{row['other']:>13.0f}{row['seconds']:>13.1f}", flush=True)  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
