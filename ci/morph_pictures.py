"""What morphing makes of the training maps of a prepared data set: figures beside the real ones, and pictures.

    python ci/morph_pictures.py --data prepared/la2018 --output docs [--per-map 2] [--picture CASE]

Writes ``morph_shapes.png`` (distribution of each figure, real and morphed) and ``morphs.png`` (one map and eight morphs
of it in three planes), and prints a table: share of tries that were refused, by reason; least, middle and largest value
of each figure.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from semsynth.data.entries import load_datalist
from semsynth.data.label_files import LABEL_COLOURS
from semsynth.data.volumes import read_volume
from semsynth.prepare.morph import MorphLabel
from tqdm import tqdm

EIGHT = 8
UNITS = {"volume_ml": "volume (ml)", "surface_cm2": "surface (cm²)", "thickness_mm": "wall thickness (mm)",
         "openness": "share of the cavity without wall", "branches": "veins and appendage (number)"}  # fmt: skip


def figures_picture(real: Mapping[str, Sequence[float]], made: Mapping[str, Sequence[float]], path: Path) -> None:
    """Distributions side by side."""
    drawing, axes = plt.subplots(2, -(-len(real) // 2), figsize=(13, 6.5))
    for axis in np.ravel(axes)[len(real) :]:
        axis.axis("off")
    for axis, name in zip(np.ravel(axes), real, strict=False):
        parts = axis.violinplot([real[name], made[name]], showmedians=True, widths=0.8)
        for body, colour in zip(parts["bodies"], ("#1f77b4", "#ff7f0e"), strict=True):
            body.set_facecolor(colour)
        axis.set_xticks([1, 2], [f"real ({len(real[name])})", f"morphed ({len(made[name])})"])
        axis.set_title(UNITS.get(name, name))
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)


def maps_picture(maps: Sequence[np.ndarray], path: Path) -> None:
    """Three planes through the middle of class 1 of the first map."""
    colours = ListedColormap(LABEL_COLOURS[: int(max(m.max() for m in maps)) + 1])
    middle = [int(x) for x in np.argwhere(maps[0] == 1).mean(axis=0)]
    drawing, axes = plt.subplots(3, len(maps), figsize=(2.1 * len(maps), 5.2))
    for column, label in enumerate(maps):
        for row, axis in enumerate((2, 1, 0)):
            cell = axes[row, column]
            cell.imshow(np.take(label, middle[axis], axis).T, cmap=colours, vmin=0, vmax=colours.N - 1, origin="lower")
            cell.axis("off")
        axes[0, column].set_title("the map" if column == 0 else f"morph {column}", fontsize=9)
    drawing.tight_layout()
    drawing.savefig(path, dpi=80)


def main() -> None:
    """Morph, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--per-map", type=int, default=2)
    parser.add_argument("--picture", help="case of the picture; the first one unless given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.data / "datalist.json"
    entries = load_datalist(path, check=False)
    transform = MorphLabel(json.loads(path.read_text(encoding="utf-8"))["classes"])
    volumes = {entry["case"]: read_volume(Path(entry["label"])) for entry in entries}
    anatomies = {case: transform.measure(v.data, v.spacing) for case, v in tqdm(volumes.items(), "measuring")}
    transform.learn((v.data, v.spacing) for v in volumes.values())
    real: dict[str, list[float]] = {}
    made: dict[str, list[float]] = {}
    refused: Counter[str] = Counter()
    tries = 0
    for case, volume in tqdm(volumes.items(), "morphing"):
        for seed in range(options.per_map):
            record = transform.morphed(volume.data, seed, volume.spacing).record
            tries += record["tries"]
            refused.update(record["refused"])
            for figures in record["after"].values():
                for name, value in figures.items():
                    made.setdefault(name, []).append(value)
        for figures in anatomies[case].figures.values():
            for name, value in figures.items():
                real.setdefault(name, []).append(value)
    shown = volumes[options.picture or entries[0]["case"]]
    morphs = [transform.morphed(shown.data, 100 + i, shown.spacing).label for i in range(EIGHT)]
    figures_picture(real, made, options.output / "morph_shapes.png")
    maps_picture([np.asarray(shown.data), *morphs], options.output / "morphs.png")
    print(f"{len(made['volume_ml'])} morphs of {len(volumes)} maps, {tries} tries")
    for reason, count in refused.most_common():
        print(f"  refused, {reason}: {count} ({100 * count / tries:.1f} %)")
    for name in real:
        for kind, values in (("real", real[name]), ("morphed", made[name])):
            low, middle, high = np.percentile(values, [0, 50, 100])
            print(f"{name:<14}{kind:<9}{low:9.3g}{middle:9.3g}{high:9.3g}  spread {np.std(values):.3g}")


if __name__ == "__main__":
    main()
