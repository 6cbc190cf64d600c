"""Morphing a label map, against MONAI's elastic deformation of the same map.

    OMP_NUM_THREADS=1 python ci/benchmarks/morph.py [--size 256,256,64] [--spacing 0.625,0.625,1.25] [--repeats 3]

Both sides in one run, on one thread. MONAI's ``Rand3DElastic`` moves the voxels and checks nothing; a try of morphing
also moves surfaces, veins and wall, and measures topology and figures of what comes out. Prints a table and, as last
line, one JSON object. The bound that the project holds itself to: at most 1 s for a try at 256 × 256 × 64.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from _timing import fastest
from monai.transforms import Rand3DElastic
from semsynth.anatomy.measured import anatomy_of
from semsynth.prepare.morph import MorphLabel
from semsynth.prepare.morph.deform import Source, deformed, draw_amounts
from semsynth.prepare.phantom import make_phantom

CLASSES = ("background", "endo", "wall", "tissue 1")


def label_map(size: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """The phantom's heart: cavity, wall and bright tissue."""
    phantom = make_phantom(0, size=size, spacing=spacing)
    label = np.where(phantom.image > np.median(phantom.image), 3, 0).astype(np.uint8)
    label[phantom.wall > 0] = 2
    label[phantom.endo > 0] = 1
    return label


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256,256,64")
    parser.add_argument("--spacing", default="0.625,0.625,1.25")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spacing = tuple(float(s) for s in options.spacing.split(","))
    label = label_map(tuple(int(n) for n in options.size.split(",")), spacing)
    transform = MorphLabel(CLASSES)
    source = Source.of(label, spacing, transform.index, transform.rules)
    elastic = Rand3DElastic(sigma_range=(5, 7), magnitude_range=(50, 100), prob=1.0, mode="nearest")
    channels = torch.from_numpy(label)[None]

    def one_try() -> None:
        amounts = draw_amounts(source, transform.limits, np.random.default_rng(0))
        made = deformed(source, amounts)
        assert made is not None
        anatomy_of(made, spacing, source.index, source.rules)

    times = fastest({
        "MONAI's Rand3DElastic": lambda: elastic(channels),
        "measuring a map once": lambda: Source.of(label, spacing, transform.index, transform.rules),
        "a try of morphing": one_try,
    }, options.repeats, warm=True)  # fmt: skip
    print(f"{options.size} voxels of {options.spacing} mm, one thread, best of {options.repeats}")
    for name, value in times.items():
        print(f"{name:<30}{value:8.2f} s")
    print(json.dumps({
        "try_s": round(times["a try of morphing"], 3),
        "times_of_monai": round(times["a try of morphing"] / times["MONAI's Rand3DElastic"], 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
