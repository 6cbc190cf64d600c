"""Whether a shape model's maps are as they are asked for, and how long one takes; for the docs of la_maps.

    OMP_NUM_THREADS=1 python ci/map_requests.py [--maps 8] [--tries 60]

Draws maps with the weights and config of ``bundles/la_maps`` for each request, and prints what came out: figures (mean
± standard deviation), maps drawn for one that is within the limits, and seconds per map, checks included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from semsynth.errors import InputError
from semsynth.synthesis.drawing import DrawnMapInferer, load_requests
from semsynth.training.weights import load_weights

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "la_maps"
REQUESTS: list[dict[str, float]] = [
    {},
    *({"endo.volume_ml": float(ml)} for ml in (35, 55, 80, 110)),
    *({"endo.branches": float(count)} for count in (2, 3, 4, 5)),
    *({"endo.branches_mm": float(mm)} for mm in (90, 110)),
    {"endo.volume_ml": 70.0, "endo.branches": 4.0},
]
FIELD = [144.0, 112.0, 64.0]


def drawn(config: ConfigParser, wanted: dict[str, float], options: Any, field: list[float] | None = None) -> str:
    """One line of the table."""
    inferer = DrawnMapInferer(wanted, finishing=config.get_parsed_content("finishing"), tries=options.tries)
    network, transform = (config.get_parsed_content(name) for name in ("network_def", "preprocessing"))
    figures, tries, start = [], 0, time.perf_counter()
    for number, request in enumerate(load_requests(options.maps, field_of_view=field)):
        try:
            inferer(transform(request)["image"][None], network, noise_seeds=[number])
        except InputError as error:
            return f"{wanted}: {error}"
        figures.append([inferer.records[0]["figures"][name] for name in wanted])
        tries += inferer.records[0]["tries"]
    seconds = (time.perf_counter() - start) / options.maps
    mean, spread = (f(figures, axis=0) if wanted else np.zeros(0) for f in (np.mean, np.std))
    got = ", ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)) or "-"
    return f"{wanted or field or 'nothing'}: {got}; {tries / options.maps:.1f} drawn per map; {seconds:.2f} s per map"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--maps", type=int, default=8)
    parser.add_argument("--tries", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = ConfigParser()
    config.read_config(str(BUNDLE / "configs" / "inference.json"))
    config.get_parsed_content("network_def").load_state_dict(load_weights(BUNDLE / "models" / "model.pt"))
    for wanted in REQUESTS:
        print(drawn(config, wanted, options), flush=True)
    print(drawn(config, {}, options, FIELD))


if __name__ == "__main__":
    main()
