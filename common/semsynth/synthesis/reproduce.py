"""Whether a bundle's weights give here what they gave where they were shipped: one volume against a golden file.

The golden file is what the bundle's own inference made of the built-in phantom, in float32 on a CPU, stored as
inference stores volumes; what it was made with stands beside it. Both are in the bundle's ``docs``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data.volumes import read_volume
from ..data.voxels import hash_file
from ..errors import InputError
from ..files import atomic_path, sha256
from ..json_files import read_object
from ..paths import as_path
from ..prepare.phantom import write_phantom_cases
from ..provenance.cards import versions
from .workflow import known_settings, run_inference, weights_of

VOLUME, ABOUT = "golden.nii.gz", "golden.json"
CASE = "phantom_002"
PHANTOM = {"cases": 3, "seed": 0, "size": [80, 64, 48], "spacing": [1.0, 1.0, 1.0], "k": 2}
SETTINGS: dict[str, Any] = {"seed": 0, "num_samples": 1, "amp": False, "compile": False, "dtype": "uint8"}
"""Of the inference, where it has them."""
TOLERANCE = {"rms": 0.004, "largest": 0.05}
"""Of a synthetic volume whose intensities are in [0, 1], see docs/reproduce.md for what was measured."""
TOLERANCE_SEGMENTATION = {"differing": 0.0005}
"""Share of the voxels whose class may differ, of a segmentation."""


@dataclass(frozen=True)
class Finding:
    """One thing that was compared.

    Attributes:
        what: name of what was found.
        agrees: True where it agrees.
        found: in words, with the numbers.
    """

    what: str
    agrees: bool
    found: str


def reproduce(bundle: str | Path, *, device: str | None = None) -> list[Finding]:
    """Make the golden file's volume again and compare.

    Args:
        bundle: its folder.
        device: device of the network; None: the bundle's own choice, a GPU where there is one.

    Returns:
        What was compared, in order: the weights, the input that the phantom gives, the volume.

    Raises:
        InputError: no bundle there, one without golden file or weights.
    """
    bundle = as_path(bundle, "bundle")
    about = _about(bundle)
    weights = sha256(weights_of(bundle))
    same = weights == about["weights_sha256"]
    findings = [
        Finding("weights", same, f"SHA-256 {weights[:12]}…" if same else f"models/model.pt has the SHA-256 "
                f"{weights[:12]}…, the golden file was made by {about['weights_sha256'][:12]}…")
    ]  # fmt: skip
    with TemporaryDirectory(prefix="semsynth-reproduce-") as folder:
        made, inputs = _make(bundle, Path(folder), device)
        for role, value in about["inputs"].items():
            agrees = inputs.get(role) == value
            findings.append(Finding(f"phantom's {role}", agrees, "the same voxels" if agrees else "other voxels: NumPy "
                                    "or SciPy compute the phantom otherwise here"))  # fmt: skip
        findings.append(_compare(made, bundle / "docs" / VOLUME, about["tolerance"]))
    return findings


def write_golden(bundle: str | Path) -> Path:
    """Make a bundle's golden file and what stands beside it, on the CPU.

    Args:
        bundle: its folder, with the weights that are shipped.

    Raises:
        InputError: no bundle there, one without weights.
    """
    bundle = as_path(bundle, "bundle")
    weights = weights_of(bundle)
    with TemporaryDirectory(prefix="semsynth-golden-") as folder:
        made, inputs = _make(bundle, Path(folder), "cpu")
        segmentation = made.name.endswith("_seg.nii.gz")
        about = {
            "what": "what this bundle's inference makes of the built-in phantom; see 'semsynth reproduce --help'",
            "weights_sha256": sha256(weights),
            "phantom": PHANTOM | {"case": CASE},
            "settings": known_settings(bundle, SETTINGS),
            "inputs": inputs,
            "tolerance": TOLERANCE_SEGMENTATION if segmentation else TOLERANCE,
            "versions": versions(),
        }
        target = bundle / "docs" / VOLUME
        with atomic_path(target) as temporary:
            shutil.copyfile(made, temporary)
    with atomic_path(bundle / "docs" / ABOUT) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return target


def _about(bundle: Path) -> dict[str, Any]:
    path = bundle / "docs" / ABOUT
    fix = "take the bundle's own, or a bundle that has one"
    about = read_object(path, missing=f"this bundle ships no golden file; {fix}", damaged=fix)
    kinds = {"weights_sha256": str, "inputs": dict, "tolerance": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(about.get(key), kind)]
    told = about.get("tolerance")
    known = (set(TOLERANCE), set(TOLERANCE_SEGMENTATION))
    if not wrong and (set(told) not in known or not all(isinstance(v, int | float) for v in told.values())):  # type: ignore[arg-type, union-attr]
        wrong = ["tolerance"]
    if wrong or not (bundle / "docs" / VOLUME).is_file():
        raise InputError(f"{path}: {', '.join(wrong) or VOLUME} is missing or of another form; {fix}")
    return about


def _make(bundle: Path, folder: Path, device: str | None) -> tuple[Path, dict[str, str]]:
    """The volume of the phantom's last case, and the hashes of what goes into it."""
    data = folder / "data"
    write_phantom_cases(data, progress=False, **PHANTOM)  # type: ignore[arg-type]
    own = known_settings(bundle, SETTINGS) | ({} if device is None else {"device": f"$torch.device({device!r})"})
    run_inference(bundle, dataset_dir=str(data), output_dir=str(folder / "out"), **own)
    made = sorted((folder / "out").glob(f"{CASE}_*.nii.gz"))
    if len(made) != 1:
        raise InputError(f"{bundle}: its inference wrote {len(made)} volumes of {CASE} instead of one")
    roles = ("image",) if made[0].name.endswith("_seg.nii.gz") else ("label",)
    return made[0], {role: str(hash_file(data / CASE / f"{role}.nii.gz")) for role in roles}


def _compare(made: Path, golden: Path, tolerance: Mapping[str, float]) -> Finding:
    here, there = read_volume(made), read_volume(golden)
    if here.data.shape != there.data.shape or not np.allclose(here.affine, there.affine, atol=1e-4):
        return Finding("volume", False, f"{here.data.shape} voxels on another grid than {there.data.shape}")
    difference = np.abs(here.data.astype(np.float64) - there.data.astype(np.float64))
    if "differing" in tolerance:
        found = {"differing": float((difference > 0).mean())}
    else:
        found = {"rms": float(np.sqrt(np.square(difference).mean())), "largest": float(difference.max())}
    names = {
        "differing": "share of voxels of another class", "rms": "root mean square difference",
        "largest": "largest difference",
    }  # fmt: skip
    text = ", ".join(f"{names[key]} {value:.2g} (tolerance {tolerance[key]:g})" for key, value in found.items())
    return Finding("volume", all(value <= tolerance[key] for key, value in found.items()), text)
