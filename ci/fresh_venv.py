"""A bundle's packed zip in a virtual environment that has what its metadata.json names, and nothing else.

Used by ``python ci/verify_bundles.py --fresh``. Bundles that name the same packages share an environment. The trainings
are tiny (two steps each, the overlays ``tiny*.json``), the inference is that of the shipped weights; data are phantoms.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bundle_configs import WEIGHTS, config_path, known_settings, read, stages, with_tiny
from bundle_packages import requirements
from pack_bundle import pack
from semsynth.prepare.phantom import write_phantom_cases

LIMIT = 1800  # seconds for one run
SHOWN = 600  # letters of what a failed run said


def check_fresh(bundle: Path, folder: Path) -> list[str]:
    """Pack, install what the metadata names, train each stage for two steps, and infer with the shipped weights.

    Args:
        bundle: its folder.
        folder: folder of environments, data and runs; an environment that is there is used again.
    """
    about = json.loads(config_path(bundle, "metadata").read_text(encoding="utf-8"))
    try:
        python = environment(requirements(about), folder / "environments")
    except subprocess.CalledProcessError as error:
        return [f"metadata.json: pip cannot install what it names: {_end(error.stderr)}"]
    with zipfile.ZipFile(pack(bundle, folder / "zips")) as archive:
        archive.extractall(folder / "unpacked")
    unpacked = folder / "unpacked" / bundle.name
    k = max(int(read(bundle, "train").get("num_classes", 4)) - 2, 0)
    small, trained = folder / "data" / f"small_{k}", folder / "data" / f"trained_{k}"
    for data, spacing in ((small, 1.5), (trained, 1.0)):
        if not (data / "datalist.json").is_file():
            write_phantom_cases(data, 12, size=(32, 32, 32), spacing=(spacing,) * 3, k=k, progress=False)
    found = []
    for name, arguments in runs(unpacked, small, trained, folder / "runs" / bundle.name):
        done = _run([str(python), "-m", "monai.bundle", "run", *arguments], unpacked)
        if done.returncode:
            found.append(f"{name}: {_end(done.stderr or done.stdout)}")
    return found


def environment(wanted: Sequence[str], folder: Path) -> Path:
    """The Python of an environment that has these packages; made where it is not there yet.

    Args:
        wanted: for pip, each with its version.
        folder: folder of environments.

    Raises:
        subprocess.CalledProcessError: if pip fails.
    """
    place = folder / hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = place / "requirements.txt"
    if not complete.is_file():
        venv.create(place, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(install, check=True, capture_output=True, text=True)
        complete.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python


def runs(bundle: Path, small: Path, trained: Path, output: Path) -> Iterator[tuple[str, list[str]]]:
    """A name and the arguments of ``monai.bundle run`` for each stage's training, and for the inference.

    Args:
        bundle: the unpacked folder.
        small: phantom cases for the trainings.
        trained: phantom cases of the voxel size that the weights know.
        output: folder for runs.
    """
    made: dict[str, Path] = {}
    earlier = [stage for stage in stages(bundle)[2:] if stage.startswith("train")]
    for stage in [*earlier, "train"]:
        settings = {"dataset_dir": small, "run_dir": output / stage, "max_epochs": 1, "epoch_cases": 2} | made
        yield f"{stage}.json", ["training", *_arguments(bundle, with_tiny(bundle, stage), settings)]
        made[f"{stage.removeprefix('train_')}_weights"] = output / stage / "model_final.pt"
    if (bundle / WEIGHTS).is_file():
        settings = {"dataset_dir": trained, "output_dir": output / "inference", "overwrite": True}
        yield "inference.json", _arguments(bundle, ["inference"], settings)


def _arguments(bundle: Path, names: Sequence[str], settings: Mapping[str, object]) -> list[str]:
    """The configs, and those of the settings that they have as a plain value."""
    files = ",".join(f"'configs/{name}.json'" for name in names)
    there = known_settings(bundle, names, settings)
    return ["--config_file", f"[{files}]", *(part for key, value in there.items() for part in (f"--{key}", str(value)))]


def _run(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    known |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        return subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"not ended after {LIMIT} s")


def _end(text: str) -> str:
    """The last lines of what a process said, in one."""
    return " ".join(text.split())[-SHOWN:] or f"ended without a word ({sys.platform})"
