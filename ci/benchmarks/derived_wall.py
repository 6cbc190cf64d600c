"""The derived wall against the one that experts drew, in every plane, on the scan itself and on stacks cut from it.

    OMP_NUM_THREADS=1 python ci/benchmarks/derived_wall.py

Reads cavity and wall of ``$SEMSYNTH_DATA/la_wall_scar`` (default ../shared/data/la_wall_scar: 0.625 × 0.625 × 2.5 mm,
drawn in axial slices). The cavity is sampled on other grids, as if it had been scanned in them; the wall is derived
from it as ``semsynth prepare --spacing 1,1,1`` does, and compared with the experts' wall on that 1 mm grid. ``as
before`` is the ring on the source's own voxels, in the two axes nearest to right and anterior. Prints a table of Dice
coefficients and of how many voxels each wall is thick (in the direction where it is the thinnest) and, as last line,
one JSON object.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from semsynth.data.volumes import Volume, read_volume
from semsynth.prepare.job import resample
from semsynth.prepare.wall import WALL_PLANES, measured_axes, thickness, wall_mask, within

DATA = Path(os.environ.get("SEMSYNTH_DATA", "../shared/data")) / "la_wall_scar"
WIDTH, SPACING, MARGIN = 2.5, (1.0, 1.0, 1.0), 12.0
STACKS = {  # mm per voxel along right, anterior, superior, and degrees by which the stack is turned around "right"
    "axial 1 × 1 × 3": ((1.0, 1.0, 3.0), 0.0),
    "axial 1.5 × 1.5 × 5": ((1.5, 1.5, 5.0), 0.0),
    "coronal 1 × 3 × 1": ((1.0, 3.0, 1.0), 0.0),
    "coronal 0.625 × 3 × 0.625": ((0.625, 3.0, 0.625), 0.0),
    "sagittal 3 × 1 × 1": ((3.0, 1.0, 1.0), 0.0),
    "oblique (45°) 1 × 1 × 3": ((1.0, 1.0, 3.0), 45.0),
    "oblique (45°) 1 × 3 × 1": ((1.0, 3.0, 1.0), 45.0),
    "isotropic 1": ((1.0, 1.0, 1.0), 0.0),
    "isotropic 3": ((3.0, 3.0, 3.0), 0.0),
}


def sampled(volume: Volume, affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mask at the voxels of another grid."""
    change = np.linalg.inv(volume.affine) @ affine
    return np.asarray(ndimage.affine_transform(volume.data, change[:3, :3], change[:3, 3], shape, order=0,
                                               mode="grid-constant"))  # fmt: skip


def cut(cavity: Volume, sizes: tuple[float, float, float], degrees: float) -> Volume:
    """The cavity as a stack of these voxels shows it, with some room around."""
    a = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    places = np.linalg.solve(turn, nib.affines.apply_affine(cavity.affine, np.argwhere(cavity.data)).T)
    low, high = places.min(axis=1) - MARGIN, places.max(axis=1) + MARGIN
    affine = nib.affines.from_matvec(turn * sizes, turn @ low)
    shape = tuple(int(n) for n in np.ceil((high - low) / sizes) + 1)
    return Volume(sampled(cavity, affine, shape), affine)


def measure(source: Volume, wall: Volume) -> dict[str, tuple[float, float]]:
    """Dice and thickness of the ring as it was before, and of the walls of all planes."""
    target = resample(source, SPACING, nearest=False)
    endo = resample(source, SPACING, nearest=True).data.astype(np.uint8)
    drawn = sampled(wall, target.affine, target.data.shape) * (endo == 0)
    before = Volume(within(source.data, source.spacing, WIDTH, (0, 1)), source.affine)
    found = {"as before": ("axial", resample(before, SPACING, nearest=True).data.astype(np.uint8))} | {
        plane: (plane, wall_mask(source, target, SPACING, width=WIDTH, plane=plane)) for plane in WALL_PLANES
    }
    result = {}
    for name, (plane, outer) in found.items():
        made = outer * (endo == 0)
        dice = 2 * np.count_nonzero(made & drawn) / max(np.count_nonzero(made) + np.count_nonzero(drawn), 1)
        result[name] = dice, thickness(endo, made, measured_axes(target.affine, source, plane))
    return result


def main() -> None:
    """Measure and print."""
    if not DATA.is_dir():
        print(f"{DATA} is not there: nothing measured; set SEMSYNTH_DATA")
        return
    files = (read_volume(DATA / f"{name}.nii.gz").canonical() for name in ("laendo", "lawall"))
    cavity, wall = (Volume((file.data > 0).astype(np.uint8), file.affine) for file in files)
    sources = {"as scanned, axial 0.625 × 0.625 × 2.5": cavity}
    sources |= {name: cut(cavity, sizes, degrees) for name, (sizes, degrees) in STACKS.items()}
    columns = ("as before", *WALL_PLANES)
    print("Dice with the experts' wall (thickness in voxels of 1 mm)")
    print("| stack, mm | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    results = {}
    for name, source in sources.items():
        row = results[name] = measure(source, wall)
        print(f"| {name} | " + " | ".join(f"{row[c][0]:.3f} ({row[c][1]:.1f})" for c in columns) + " |", flush=True)
    dice = {name: {column: round(value[0], 3) for column, value in row.items()} for name, row in results.items()}
    print(json.dumps({"dice": dice}))


if __name__ == "__main__":
    main()
