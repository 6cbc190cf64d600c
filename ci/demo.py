"""The main job on the built-in phantom: cases, composite maps, training, synthesis, report, pictures (``make demo``).

At the end the weights of ``spade_ldm``, which were trained on scans, turn a map of the phantom into volumes. Every step
is the command that a user would type; the last line printed is the path of that picture.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "pix2pix3d"
TRAINED = ROOT / "bundles" / "spade_ldm"
MARK = ".semsynth-demo"
CONFIGS = "['configs/train.json','configs/demo.json']"


def run(title: str, *command: str, cwd: Path = ROOT) -> None:
    """Show and run one command; its output goes through, its failure ends the demo."""
    shown = " ".join(shlex.quote(part) for part in command)
    print(f"\n=== {title}\n$ cd {os.path.relpath(cwd, ROOT)} && {shown}", flush=True)
    start = time.monotonic()
    environment = os.environ | {
        "PYTHONWARNINGS": "ignore",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    status = subprocess.run(command, cwd=cwd, env=environment, check=False).returncode
    if status != 0:
        raise SystemExit(f"{title}: failed with exit status {status}")
    print(f"--- {time.monotonic() - start:.0f} s", flush=True)


def emptied(out: Path) -> Path:
    """The folder without what an earlier demo wrote; one of somebody else is refused, not emptied."""
    if out.exists() and out != ROOT / "demo" and not (out / MARK).is_file() and any(out.iterdir()):
        raise SystemExit(f"{out}: holds files that no demo wrote; give --output an empty folder, or a new one")
    for name in ("raw", "data", "run", "synthetic", "evaluation", "data_1mm", "synthetic_1mm"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("demo.png", "demo_pix2pix3d.png"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    return out


def ending(out: Path) -> str:
    """What was made and what it is worth, and where to look; the picture last.

    Args:
        out: folder of the demo.
    """
    report = json.loads((out / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    psnr = {score["row"]: score for score in report["scores"] if score["metric"] == "psnr"}
    ours, painted = psnr["pix2pix3d"], psnr["painting, training means"]
    gain = ours["value"] - painted["value"]
    made = len(list((out / "synthetic").glob("*.nii.gz")))
    return "\n".join([
        f"{out / 'synthetic'}: {made} volumes of phantom label maps, by a small pix2pix3d that was trained here.",
        f"Their worth: PSNR {ours['value']:.1f} dB on {ours['n']} unseen phantoms, {abs(gain):.1f} dB "
        f"{'more' if gain > 0 else 'less'} than painting each class with its mean; a phantom is no patient.",
        f"{out / 'synthetic_1mm'}: 3 volumes of one phantom map by spade_ldm, with weights that were trained on scans.",
        "Their worth: to look at, no more. What these weights reach on scans of other patients stands in "
        "bundles/spade_ldm/docs/README.md.",
        f"report: {out / 'evaluation' / 'evaluation.html'}",
        f"pictures: {out / 'demo_pix2pix3d.png'}, and the last line",
        str(out / "demo.png"),
    ])  # fmt: skip


def main() -> None:
    """Run the demo into ``demo/`` (made anew)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "demo", help="folder to write, made anew")
    parser.add_argument("--cases", type=int, default=14, help="phantom cases")
    parser.add_argument("--epochs", type=int, default=24, help="training epochs")
    options = parser.parse_args()
    out = emptied(options.output.resolve())
    run("phantom cases", "semsynth", "phantom", "--output", str(out / "raw"), "--cases", str(options.cases),
        "--size", "96,80,48", "--spacing", "1.25,1.25,1.25")  # fmt: skip
    run("composite maps", "semsynth", "prepare", "--input", str(out / "raw"), "--output", str(out / "data"),
        "--spacing", "1.25,1.25,1.25", "--k", "2", "--jobs", "2")  # fmt: skip
    bundle = [sys.executable, "-m", "monai.bundle", "run"]
    run("training", *bundle, "training", "--config_file", CONFIGS, "--dataset_dir", str(out / "data"),
        "--run_dir", str(out / "run"),
        "--max_epochs", str(options.epochs), cwd=BUNDLE)  # fmt: skip
    run("synthesis of unseen label maps", *bundle, "run", "--config_file",
        CONFIGS.replace("train.json", "inference.json"), "--dataset_dir", str(out / "data"),
        "--output_dir", str(out / "synthetic"), "--weights", str(out / "run" / "model.pt"), cwd=BUNDLE)  # fmt: skip
    run("picture", "semsynth", "picture", "--synthetic", str(out / "synthetic"), "--real", str(out / "data"),
        "--cases", "1", "--output", str(out / "demo_pix2pix3d.png"))  # fmt: skip
    run("what the volumes are worth", "semsynth", "evaluate", "--synthetic", f"pix2pix3d={out / 'synthetic'}", "--real",
        str(out / "data"), "--extractors", "", "--output", str(out / "evaluation"))  # fmt: skip

    run("maps at spade_ldm's voxel size", "semsynth", "phantom", "--output", str(out / "data_1mm"), "--cases", "3",
        "--size", "128,96,64", "--spacing", "1,1,1")  # fmt: skip
    run("synthesis with weights trained on scans", *bundle, "run", "--config_file", "configs/inference.json",
        "--dataset_dir", str(out / "data_1mm"), "--output_dir", str(out / "synthetic_1mm"), "--num_samples", "3",
        cwd=TRAINED)  # fmt: skip
    run("picture", "semsynth", "picture", "--synthetic", f"spade_ldm={out / 'synthetic_1mm'}", "--cases", "1",
        "--samples", "3", "--output", str(out / "demo.png"))  # fmt: skip
    print(f"\n{ending(out)}")


if __name__ == "__main__":
    main()
