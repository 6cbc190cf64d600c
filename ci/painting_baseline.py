"""What painting alone scores: every class of a label map filled with its mean intensity, against the real volumes.

    python ci/painting_baseline.py DATASET_DIR

DATASET_DIR is what ``semsynth prepare`` wrote. Two rows: class means over the training cases (what a generator could
know) and over the very volume that is imitated (what it could not). A generator's PSNR is to be read beside them.
PSNR in dB, peak 1, mean ± standard deviation over the validation cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from semsynth.datalists import load_datalist, read_datalist
from semsynth.volumes import read_volume, scale_intensity


def read(entry: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Image scaled to [0, 1] and label map of one case."""
    return scale_intensity(read_volume(entry["image"]).data), read_volume(entry["label"]).data.astype(int)


def class_means(image: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    """Mean intensity per class; NaN where the class does not occur."""
    sums = np.bincount(label.ravel(), image.ravel(), minlength=count)
    voxels = np.bincount(label.ravel(), minlength=count)
    return np.where(voxels > 0, sums / np.maximum(voxels, 1), np.nan)


def psnr(pred: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for intensities in [0, 1] (Al-Sanaani et al., eq. 5)."""
    return float(-10 * np.log10(np.mean((pred - image) ** 2)))


def main() -> None:
    """Measure and print both rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    path = parser.parse_args().dataset_dir / "datalist.json"
    count = int(read_datalist(path)["num_classes"])
    training = [class_means(*read(entry), count) for entry in load_datalist(path, "training")]
    means = np.nanmean(training, axis=0)
    rows: dict[str, list[float]] = {"class means of the training cases": [], "class means of the volume itself": []}
    for entry in load_datalist(path, "validation"):
        image, label = read(entry)
        for name, values in zip(rows, (means, class_means(image, label, count)), strict=True):
            rows[name].append(psnr(values[label], image))
    print(f"class means over {len(training)} training cases: {', '.join(f'{m:.3f}' for m in means)}")
    for name, scores in rows.items():
        print(f"{name:<36}{np.mean(scores):6.2f} ± {np.std(scores, ddof=1):.2f} dB  (n = {len(scores)})")


if __name__ == "__main__":
    main()
