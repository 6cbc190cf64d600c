"""FID and MS-SSIM against MONAI's metrics, both sides in one run on the same data.

    OMP_WAIT_POLICY=PASSIVE python ci/benchmarks/metrics.py [--features 512,2048] [--images 144] [--size 256,256,64]

Prints a table and, as last line, one JSON object. The bounds that the project holds itself to: FID of 144 images at
least 50 times faster at 512 features and 200 times at 2048, the same value to 1e-6 where MONAI's is defined (600 × 128:
more images than features, both covariances regular); MS-SSIM of a pair of 256 × 256 × 64 voxels at least 3 times
faster, the same to 1e-4 (both round in float32; what float64 gives is printed too). MONAI's slow calls are timed once
or twice. On a machine that does other work too, threads that spin while they wait (OpenMP's default) measure that work:
hence the variable.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable

import torch
from monai.metrics import FIDMetric, MultiScaleSSIMMetric
from semsynth.metrics import PAPER_WEIGHTS, fid, ms_ssim, similarity
from torch.nn import functional as F


def feature_sets(n: int, f: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of correlated features, non-negative as after a ReLU and pooling."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(f, f, generator=g) / f**0.5
    a, b = (torch.randn(n, f, generator=g) @ mixing for _ in range(2))
    return (a + 0.2).relu(), (1.1 * b).relu()


def pair(size: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth volume in [0, 1] and the same with noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *[max(s // 8, 2) for s in size], generator=g)
    y = F.interpolate(coarse, size=size, mode="trilinear")
    return (y + 0.05 * torch.randn(y.shape, generator=g)).clamp(0, 1), y


def seconds(repeats: int, work: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Shortest wall time of several runs and the value that was computed."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = work()
        times.append(time.perf_counter() - start)
    return min(times), value.item()


def line(name: str, theirs: tuple[float, float], ours: tuple[float, float]) -> None:
    """One row of the table."""
    print(
        f"{name:<34}{theirs[0]:10.4f} s {ours[0]:10.5f} s {theirs[0] / ours[0]:8.0f} x"
        f"{theirs[1]:16.8f}{ours[1]:16.8f}{abs(theirs[1] / ours[1] - 1):10.1e}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="512,2048")
    parser.add_argument("--images", type=int, default=144)
    parser.add_argument("--size", default="256,256,64")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # scipy's, about an argument that MONAI gives
    size = tuple(int(s) for s in options.size.split(","))
    result: dict[str, float] = {}
    print(f"{torch.get_num_threads()} threads, shortest of {options.repeats}")
    print(f"{'':<34}{'MONAI':>12} {'ours':>12} {'faster':>10}{'MONAI':>16}{'ours':>16}{'apart':>10}")

    rows = [(options.images, int(f)) for f in options.features.split(",")] + [(600, 128)]
    for n, f in rows:
        a, b = feature_sets(n, f)
        theirs = seconds(1 if f > 1000 else 2, lambda a=a, b=b: FIDMetric()(a, b))  # type: ignore[misc]
        ours = seconds(4 * options.repeats, lambda a=a, b=b: fid(a, b))  # type: ignore[misc]
        line(f"FID {n} x {f}" + (" (n > d)" if n > f else " (singular)"), theirs, ours)
        result[f"fid_{n}x{f}_speedup"] = round(theirs[0] / ours[0], 1)
        result[f"fid_{n}x{f}_apart"] = float(f"{abs(theirs[1] / ours[1] - 1):.2g}")

    y_pred, y = pair(size)
    monai = MultiScaleSSIMMetric(3, weights=PAPER_WEIGHTS, kernel_size=11, kernel_sigma=1.5)
    theirs = seconds(2, lambda: monai(y_pred, y))
    ours = seconds(options.repeats, lambda: ms_ssim(y_pred, y))
    line(f"MS-SSIM {options.size}", theirs, ours)
    result["ms_ssim_speedup"] = round(theirs[0] / ours[0], 1)
    result["ms_ssim_apart"] = float(f"{abs(theirs[1] / ours[1] - 1):.2g}")
    exact = ms_ssim(y_pred.double(), y.double()).item()
    print(f"MS-SSIM in float64 {exact:.8f}: MONAI's is {theirs[1] - exact:+.1e} from it, ours {ours[1] - exact:+.1e}")
    print(f"all six paired measures in one pass {seconds(2, lambda: similarity(y_pred, y)['ssim'])[0]:.3f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
