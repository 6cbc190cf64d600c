"""A picture of drawn label maps and their volumes beside real ones, for the docs.

    python ci/map_pictures.py --real DATA --maps DRAWN --volumes VOLUMES --output docs

``DRAWN`` is the output of la_maps' inference, ``VOLUMES`` that of a generator's inference with it as ``dataset_dir``.
Writes ``generated_maps.png``: twelve real maps with their scans, and twelve drawn ones with their volumes, axial slices
through the middle of the cavity. Nothing is chosen: every n-th real case, and the first drawn maps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from semsynth.data.datalists import read_datalist
from semsynth.data.volumes import read_label, read_volume
from semsynth.report.pictures import centre_of, plane, save_figure

COLUMNS = 12


def pairs_of_real(folder: Path) -> list[tuple[Path, Path]]:
    """Label maps and scans of every n-th training case."""
    entries: list[dict[str, Any]] = read_datalist(folder / "datalist.json")["training"]
    chosen = entries[:: max(len(entries) // COLUMNS, 1)][:COLUMNS]
    return [(folder / entry["label"], folder / entry["image"]) for entry in chosen]


def pairs_of_drawn(maps: Path, volumes: Path) -> list[tuple[Path, Path]]:
    """The first drawn maps and their volumes."""
    cases = [entry["case"] for entry in read_datalist(maps / "datalist.json")["testing"]][:COLUMNS]
    return [(maps / f"{case}.nii.gz", volumes / f"{case}_synthetic.nii.gz") for case in cases]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    for name in ("real", "maps", "volumes", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    rows = [("real", pairs_of_real(options.real)), ("drawn", pairs_of_drawn(options.maps, options.volumes))]
    figure = Figure(figsize=(1.45 * COLUMNS, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, COLUMNS)
    for axis in axes.flat:
        axis.set_axis_off()
    for first, (title, pairs) in zip((0, 2), rows, strict=True):
        for column, (label_file, image_file) in enumerate(pairs):
            label = read_label(label_file).canonical().data.astype(int)
            image = read_volume(image_file).canonical().data.astype(np.float32)
            centre = centre_of(label)
            axes[first, column].imshow(plane(label, "axial", centre), vmin=0, vmax=3, interpolation="nearest")
            high = float(np.percentile(image, 99.9))
            axes[first + 1, column].imshow(plane(image, "axial", centre), cmap="gray", vmin=0, vmax=high)
            axes[first, column].set_title(f"{title} {column + 1}", fontsize=8)
    print(save_figure(options.output / "generated_maps.png", figure, dpi=90))


if __name__ == "__main__":
    main()
