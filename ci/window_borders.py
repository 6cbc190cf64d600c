"""Do volumes that were denoised in windows of slices show where windows begin and end?

    python ci/window_borders.py 'out/*_synthetic.nii.gz' --window 32 [--overlap 0.5] [--stride 4] [--plot borders.png]

For each pair of adjacent slices that lie in different cells of the latent: the mean absolute difference, divided by the
volume's mean over all such pairs. Pairs where a window begins or ends are compared with all others: the ratio of their
means, and how often as many pairs, drawn at random from the same volumes, have a mean as far from 1 (a permutation
test). As last line one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from semsynth.networks.sampling.guided import windows

DRAWS = 10000


def differences(volume: NDArray[np.floating], stride: int) -> NDArray[np.float64]:
    """Mean absolute difference of adjacent slices of ``(H, W, D)`` at each border of two cells, over their mean."""
    border = np.arange(stride, volume.shape[2], stride)
    found = np.abs(volume[:, :, border].astype(np.float64) - volume[:, :, border - 1]).mean(axis=(0, 1))
    result: NDArray[np.float64] = found / found.mean()
    return result


def window_borders(depth: int, window: int, overlap: float, stride: int) -> NDArray[np.bool_]:
    """Which of the borders between cells are the begin or end of a window, for a map of ``depth`` slices."""
    cells = -(-depth // stride)
    edges = {edge for pair in windows(cells, window // stride, overlap) for edge in pair}
    count = len(range(stride, depth, stride))
    return np.array([cell in edges for cell in range(1, count + 1)])


def compare(
    series: list[NDArray[np.float64]], at_border: list[NDArray[np.bool_]], *, seed: int = 0
) -> dict[str, float]:
    """Mean at borders, of the others, their ratio, and the permutation test's p (two-sided)."""
    values, borders = np.concatenate(series), np.concatenate(at_border)
    if not borders.any() or borders.all():
        raise SystemExit("no window begins or ends within these volumes: they are not deeper than a window")
    observed = values[borders].mean() / values[~borders].mean()
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        mixed = np.concatenate([rng.permutation(part) for part in at_border])
        drawn[i] = values[mixed].mean() / values[~mixed].mean()
    p = (np.count_nonzero(np.abs(drawn - 1) >= abs(observed - 1)) + 1) / (DRAWS + 1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"ratio": float(observed), "p": float(p), "low": float(low), "high": float(high),
            "borders": int(borders.sum()), "others": int((~borders).sum())}  # fmt: skip


def plot(path: Path, volume: NDArray[np.floating], edges: NDArray[np.bool_], stride: int) -> None:
    """A sagittal and a coronal slice with ticks at the borders of windows, and the differences below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(8, 8), height_ratios=[3, 3, 1.5])
    places = (np.flatnonzero(edges) + 1) * stride
    for axis, plane, name in zip(axes, (volume[volume.shape[0] // 2], volume[:, volume.shape[1] // 2]),
                                 ("sagittal", "coronal"), strict=False):  # fmt: skip
        axis.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(places, labels=[])
        axis.set_yticks([])
        axis.set_ylabel(name)
    values = differences(volume, 1)
    axes[2].plot(np.arange(1, len(values) + 1) + 0.5, values, lw=0.8, color="black")
    axes[2].set_xlim(0, volume.shape[2])
    axes[2].vlines(places, 0, values.max(), color="tab:red", lw=0.8)
    axes[2].set_xlabel("slice; red: where a window begins or ends")
    axes[2].set_ylabel("difference / mean")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", help="quoted pattern of synthetic volumes")
    parser.add_argument("--window", type=int, default=32, help="slices of a window")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--stride", type=int, default=4, help="slices per cell of the latent")
    parser.add_argument("--plot", type=Path, help="picture of the deepest volume")
    arguments = parser.parse_args()
    paths = sorted(glob.glob(arguments.volumes))
    if not paths:
        raise SystemExit(f"{arguments.volumes}: no volumes found; quote the pattern")
    volumes = [nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32) for path in paths]
    deep = [volume for volume in volumes if volume.shape[2] > arguments.window]
    if not deep:
        raise SystemExit(f"none of {len(volumes)} volumes is deeper than a window of {arguments.window} slices")
    edges = [window_borders(v.shape[2], arguments.window, arguments.overlap, arguments.stride) for v in deep]
    found = compare([differences(volume, arguments.stride) for volume in deep], edges)
    deepest = max(range(len(deep)), key=lambda i: deep[i].shape[2])
    if arguments.plot:
        plot(arguments.plot, deep[deepest], edges[deepest], arguments.stride)
    print(
        f"{len(deep)} volumes of up to {deep[deepest].shape[2]} slices: at {found['borders']} borders of windows "
        f"adjacent slices differ {found['ratio']:.3f} times as much as at {found['others']} others "
        f"(p = {found['p']:.2f}; 95 % of random choices lie in {found['low']:.3f} to {found['high']:.3f})"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
