"""Does each slice of a volume have a brightness of its own?

    python ci/slice_brightness.py DATA [NAME=OUT …] [--axis 2]

For each class of the label maps, the difference of the class means of two adjacent slices (mean over pairs of slices,
then over volumes), in scans and in each system's volumes of the same cases; and, of the scans, the difference of the
class means of two patients. If a model draws each slice for itself, the difference of adjacent slices grows from that
of scans towards that of two patients. In shares of the intensity window. As last line one JSON object.

DATA and OUT are folders with a datalist.json, of ``semsynth prepare`` and of a bundle's inference.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from semsynth.data.datalists import read_datalist
from semsynth.errors import InputError

LEAST_VOXELS = 200
"""Of a class in a slice; slices with fewer are left out."""


def slice_means(
    volume: NDArray[np.floating], label: NDArray[np.integer], tissue: int, axis: int
) -> NDArray[np.float64]:
    """Mean intensity of a class in each slice of ``(H, W, D)``; NaN where it has fewer than 200 voxels."""
    inside = np.moveaxis(label == tissue, axis, 0).reshape(label.shape[axis], -1)
    values = np.moveaxis(volume, axis, 0).reshape(inside.shape)
    count = inside.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = (values * inside).sum(axis=1) / count
    means[count < LEAST_VOXELS] = np.nan
    return means


def adjacent(means: NDArray[np.float64]) -> float:
    """Mean absolute difference of adjacent slices; NaN where no two adjacent slices have the class."""
    steps = np.abs(np.diff(means))
    steps = steps[np.isfinite(steps)]
    return float(steps.mean()) if len(steps) else float("nan")


def between(means: NDArray[np.float64]) -> float:
    """Mean absolute difference of two values drawn without replacement."""
    means = means[np.isfinite(means)]
    pairs = len(means) * (len(means) - 1)
    return float(np.abs(means[:, None] - means[None]).sum() / pairs) if pairs else float("nan")


def entries(folder: Path, parts: tuple[str, ...]) -> tuple[list[dict[str, Any]], Path, tuple[float, float]]:
    """Entries of these parts of the folder's datalist, where their paths begin, and the intensity window."""
    path = folder / "datalist.json" if folder.is_dir() else folder
    try:
        found = read_datalist(path)
    except InputError as error:
        raise SystemExit(str(error)) from None
    low, high = (found.get("intensity") or {}).get("window", (0.0, 1.0))
    return [entry for part in parts for entry in found.get(part) or []], path.parent, (low, high)


def measure(folder: Path, parts: tuple[str, ...], cases: set[str] | None, axis: int) -> dict[int, dict[str, Any]]:
    """Per class: differences of adjacent slices of each volume, and each volume's mean."""
    listed, root, (low, high) = entries(folder, parts)
    found: dict[int, dict[str, Any]] = defaultdict(lambda: {"adjacent": [], "mean": {}})
    for entry in listed:
        if cases is not None and entry["case"] not in cases:
            continue
        image, drawn = (nib.as_closest_canonical(nib.load(root / entry[key])) for key in ("image", "label"))
        volume = (image.get_fdata(dtype=np.float32) - low) / (high - low)
        label = np.asarray(drawn.dataobj).astype(np.int64)
        for tissue in np.unique(label).tolist():
            means = slice_means(volume, label, tissue, axis)
            if np.isfinite(means).any():
                found[tissue]["adjacent"].append(adjacent(means))
                found[tissue]["mean"].setdefault(entry.get("patient", entry["case"]), []).append(np.nanmean(means))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the scans")
    parser.add_argument("systems", nargs="*", help="NAME=FOLDER of a bundle's inference")
    parser.add_argument(
        "--axis", type=int, default=2, choices=(0, 1, 2), help="2: axial slices, 1: coronal, 0: sagittal"
    )
    arguments = parser.parse_args()
    systems = {}
    for text in arguments.systems:
        name, separator, folder = text.partition("=")
        if not separator or not Path(folder).exists():
            raise SystemExit(f"{text}: give NAME=FOLDER of a bundle's inference")
        systems[name] = Path(folder)
    cases = {
        entry.get("source_case", entry["case"])
        for folder in systems.values()
        for entry in entries(folder, ("training",))[0]
    } or None
    people = measure(arguments.data, ("training", "validation", "testing"), None, arguments.axis)
    rows = {"scans": measure(arguments.data, ("training", "validation", "testing"), cases, arguments.axis)}
    rows |= {name: measure(folder, ("training",), None, arguments.axis) for name, folder in systems.items()}
    result: dict[str, dict[str, float]] = {}
    for tissue in sorted(people):
        of_patients = np.array([np.mean(values) for values in people[tissue]["mean"].values()])
        line = {"two patients": between(of_patients)}
        if not np.isfinite(line["two patients"]):
            continue
        line |= {
            name: float(np.nanmean(row[tissue]["adjacent"])) for name, row in rows.items() if row[tissue]["adjacent"]
        }
        result[str(tissue)] = line
        print(f"class {tissue}: " + ", ".join(f"{name} {value:.4f}" for name, value in line.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
