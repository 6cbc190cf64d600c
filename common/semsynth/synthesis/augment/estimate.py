"""How many volumes an augmentation makes, how long that takes and how much disk, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ...data.headers import read_header
from ...distributed import world_size
from ..workflow import run_inference
from .plan import Draw
from .rounds import SUFFIX, Rounds

BYTES_PER_VOXEL = 1.6
"""Of a volume as int16 in a compressed file; 1.3 to 1.6 were measured."""


def estimate(draws: Sequence[Draw], rounds: Rounds, formats: Sequence[str]) -> str:
    """An estimate for what is missing, in words; two volumes of the smallest map are made once to time them.

    Args:
        draws: all volumes.
        rounds: rounds that make them.
        formats: formats of the training set; folders of other programs hold copies.
    """
    cases = rounds.maps.entries
    voxels = {case: math.prod(read_header(str(entry["label"])).shape) for case, entry in cases.items()}
    folder = rounds.volumes(0)
    missing = [draw for draw in draws if not (folder / f"{draw.name}{SUFFIX}.nii.gz").is_file()]
    made = sum(voxels[draw.case] for draw in draws)
    copies = sum(name != "datalist" for name in formats)
    size = BYTES_PER_VOXEL * (made + copies * (made + sum(voxels.values()))) / 1e9
    morphed = sum(draw.morphed for draw in draws)
    drawn = sum(draw.generated for draw in draws)
    kinds = f"{morphed} of them of morphed maps" + (f", {drawn} of generated ones" if drawn else "")
    text = f"{len(draws)} volumes of {len(cases)} cases, {kinds}; {size:.1f} GB"
    if not missing:
        return f"{text}; all are there"
    smallest = min(voxels, key=voxels.__getitem__)
    each = _seconds(smallest, rounds) / voxels[smallest]
    seconds = each * sum(voxels[draw.case] for draw in missing) / world_size()
    rest = "" if len(missing) == len(draws) else f"{len(missing)} are still to be made, "
    besides = "the drawing of maps, and " if drawn else ""
    return f"{text}; {rest}about {_duration(seconds)}, without {besides}what is refused and drawn again"


def _seconds(case: str, rounds: Rounds) -> float:
    """What a volume of a case takes: from the end of one to the end of the next, so that loading does not count."""
    with TemporaryDirectory(prefix="semsynth-augment-") as name:
        maps, output = Path(name) / "maps", Path(name) / "out"
        probes = [Draw(case, i, morphed=False) for i in range(2 * world_size())]  # two of them are this process's
        rounds.list_maps(probes, 0, maps)
        run_inference(rounds.bundle, **rounds.inference_settings(maps, output))
        ends = sorted(path.stat().st_mtime for path in output.glob(f"*{SUFFIX}.nii.gz"))
    return ends[-1] - ends[0] if len(ends) > 1 else 0.0


def _duration(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
