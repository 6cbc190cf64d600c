"""What the gate achieves: how many volumes of each generator it refuses, and what another judge says of the rest.

    python ci/gate_effect.py --real prepared/la2018 --judge JUDGE --second-judge JUDGE_2 NAME=FOLDER …

The folders are those of inferences (``configs/inference.json``) on maps that neither judge was trained on, such as the
validation cases. The gate is as ``configs/gate.json`` has it: its limits are learned from the training cases of
``--real``, each by the judge that did not see it, and ``--judge`` refuses. ``--second-judge`` then says how faithful
the accepted and the refused volumes are; it has no part in refusing them. Prints a table, and one JSON object as last
line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from semsynth.data.datalists import read_datalist, stated_classes
from semsynth.errors import InputError
from semsynth.evaluation.sources import load_real
from semsynth.files import sha256
from semsynth.synthesis.gate import Gate
from semsynth.synthesis.gating import gate_volumes


def effect(folder: Path, real: Path, judge: Path, second: Path) -> dict[str, float]:
    """Figures of one generator: ``volumes``, ``refused``, and the second judge's mean Dice by group."""
    gated = gate_volumes(folder, judge, real=real, second_judge=second)
    judged = json.loads(gated.report.read_text(encoding="utf-8"))["judged"]
    if any(row["judge_sha256"] != sha256(judge) for row in judged.values()):
        raise InputError(f"{judge}: was trained on some of the maps' patients; give maps of other patients")
    listed = folder / "datalist.json"
    content = read_datalist(listed)
    entries = content["training"]
    cases = load_real(real)
    scored = {str(entry["source_case"]): cases[str(entry["source_case"])] for entry in entries}
    other = Gate(scored, stated_classes(listed, content), second, store=folder / "measured_by_second")
    known = [name for name, saw in other.saw.items() if saw is not False]
    if known:
        raise InputError(f"{second}: may have been trained on {', '.join(known[:5])}; give maps of other patients")
    rows = [(str(e["source_case"]), folder / e["image"], folder / e["label"]) for e in entries]
    found = other.judge_all(rows, "scoring by the second judge")
    taken = np.array([str(entry["case"]) not in gated.refused for entry in entries])
    dice = np.array([figures["dice"] for figures in found])
    hd95 = np.array([figures["hd95"] for figures in found])
    return {
        "volumes": len(entries),
        "refused": int((~taken).sum()),
        "min_dice": gated.thresholds.min_dice,
        "max_hd95": gated.thresholds.max_hd95 or float("nan"),
        "dice_all": float(dice.mean()),
        "dice_accepted": float(dice[taken].mean()) if taken.any() else float("nan"),
        "dice_refused": float(dice[~taken].mean()) if (~taken).any() else float("nan"),
        "hd95_all": float(hd95.mean()),
        "hd95_accepted": float(hd95[taken].mean()) if taken.any() else float("nan"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True, type=Path)
    parser.add_argument("--judge", required=True, type=Path)
    parser.add_argument("--second-judge", required=True, type=Path)
    parser.add_argument("systems", nargs="+", help="NAME=FOLDER")
    options = parser.parse_args()
    found = {}
    for system in options.systems:
        name, folder = system.split("=", 1)
        found[name] = effect(Path(folder), options.real, options.judge, options.second_judge)
    first = next(iter(found.values()))
    print(f"limits: Dice {first['min_dice']:.3f}, HD95 {first['max_hd95']:.1f} mm")
    for name, row in found.items():
        print(
            f"{name:<16}{row['refused']:>4.0f} of {row['volumes']:.0f} refused; Dice by the second judge: all "
            f"{row['dice_all']:.3f}, accepted {row['dice_accepted']:.3f}, refused {row['dice_refused']:.3f}; HD95 "
            f"{row['hd95_all']:.1f} and {row['hd95_accepted']:.1f} mm"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
