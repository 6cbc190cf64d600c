"""Clustering and the composite transform on a full-size volume, against scikit-learn's k-means on the raw voxels.

    python ci/benchmarks/composite.py [--size 576,576,88] [--k 2] [--repeats 3]

Both sides in one run. Prints a table and, as last line, one JSON object. The bounds that the project holds itself to:
clustering at least 30 times faster with centres within 0.5 % of the intensity range; the whole transform with smoothing
in at most 2 s and 1.5 GiB of memory above the input's. Memory is the rise of a fresh process's resident set from the
moment before the transform to its peak in it (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from semsynth.prepare.composite import CompositeLabel, IntensityHistogram, fit_histogram
from sklearn.cluster import KMeans


def volume(size: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A volume with the histogram of a scan (air, muscle, blood, fat, noise; 8-bit levels) and a cavity mask."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0.0, 45.0, 110.0, 160.0], p=[0.3, 0.35, 0.25, 0.1], size=[max(s // 16, 1) for s in size])
    image = ndimage.zoom(coarse, [s / c for s, c in zip(size, coarse.shape, strict=True)], order=1).astype(np.float32)
    air = image < 20
    image += rng.normal(0, 8, size).astype(np.float32)
    image = np.rint(image).clip(1, 255).astype(np.float32)
    image[air] = 0
    endo = np.zeros(size, dtype=np.uint8)
    endo[tuple(slice(s // 3, s // 2) for s in size)] = 1
    return image, endo


def resident(field: str) -> int:
    """Resident memory of this process in bytes: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def rise(k: int, image: np.ndarray, endo: np.ndarray) -> int:
    """How far the transform raises this process's memory above what it holds before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of making the input
    before = resident("VmRSS")
    CompositeLabel(k)(image, endo)
    return resident("VmHWM") - before


def memory_of(size: str, k: int) -> int:
    """:func:`rise` in a fresh process."""
    command = [sys.executable, __file__, "--size", size, "--k", str(k), "--rise"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def best_of(repeats: int, work: object) -> float:
    """Shortest wall time of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="576,576,88")
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    image, endo = volume(tuple(int(s) for s in options.size.split(",")))
    if options.rise:
        print(rise(options.k, image, endo))
        return

    start = time.perf_counter()
    theirs = KMeans(options.k, n_init=10, random_state=0).fit(image.reshape(-1, 1))
    sklearn_s = time.perf_counter() - start
    result = {}

    def ours() -> None:
        result["centers"] = fit_histogram(IntensityHistogram(image.min(), image.max()).add(image), options.k)

    ours_s = best_of(options.repeats, ours)
    apart = np.abs(np.sort(theirs.cluster_centers_.ravel()) - result["centers"]).max() / np.ptp(image)
    whole_s = best_of(options.repeats, lambda: CompositeLabel(options.k)(image, endo))
    extra = memory_of(options.size, options.k)

    print(f"{options.size} voxels, k = {options.k}, best of {options.repeats}")
    print(f"{'k-means, scikit-learn on raw voxels, n_init 10':<50}{sklearn_s:9.2f} s")
    print(f"{'k-means, ours on a histogram':<50}{ours_s:9.2f} s   {sklearn_s / ours_s:.0f} times faster")
    print(f"{'largest distance of the centres':<50}{100 * apart:9.4f} % of the intensity range")
    print(f"{'whole transform with smoothing':<50}{whole_s:9.2f} s   {extra / 2**30:.2f} GiB above the input's")
    print(json.dumps({
        "speedup": round(sklearn_s / ours_s, 1), "centres_apart": float(f"{apart:.3g}"),
        "transform_s": round(whole_s, 2), "transform_gib": round(extra / 2**30, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
