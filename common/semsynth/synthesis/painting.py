"""Painted label maps: each class in the brightness of a real scan, with noise, blur and a bias field; no network.

What a segmenter learns from them is what label maps alone are worth. A network's volumes should be worth more. The idea
is that of Billot et al., SynthSeg, Medical Image Analysis 86 (2023); there brightness is drawn at random, here it is
that of real scans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import RandBiasField
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..data.datalists import read_datalist
from ..data.entries import load_datalist
from ..data.intensity import INTENSITY, Intensity, Scaling, entry_intensity, stated_intensity
from ..data.volumes import read_label, read_volume, write_image
from ..errors import InputError
from ..files import relative_to, write_text
from ..networks.latent_diffusion import intensity_style

JITTER = 0.03
"""Standard deviation by which each class's mean is moved away from the scan's, of the range of intensities."""
GRAIN = (0.0, 1.0)
"""Width of the noise's grain, voxels, from none to this."""
BLUR = (0.3, 0.8)
"""Width of the blur of borders between classes, voxels."""
BIAS = 0.2
"""Largest coefficient of the bias field's polynomial."""
_KEPT = ("source_case", "patient", "source_voxels", "content")  # what an entry says of its map


def paint(label: NDArray[np.integer], styles: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """One painted volume.

    Args:
        label: class indices ``(H, W, D)``.
        styles: styles of real scans ``(N, C, 2)``: mean and standard deviation of the intensity, in [0, 1], in each
            class; NaN for classes that a scan does not have. One is drawn.
        seed: decides everything that is drawn.

    Returns:
        Intensities in [0, 1], ``(H, W, D)``.

    Raises:
        InputError: for a class that none of the scans has.
    """
    random = np.random.default_rng(seed)
    known = np.nanmean(styles, axis=0) if len(styles) else np.full((0, 2), np.nan)
    there = np.unique(label)
    unknown = [int(c) for c in there if c >= len(known) or not np.isfinite(known[c]).all()]
    if unknown:
        raise InputError(f"class {', '.join(map(str, unknown))} is in the label map, and in none of the real scans, so "
                         "that its brightness is unknown; paint maps of the scans' classes")  # fmt: skip
    style = styles[random.integers(len(styles))]
    style = np.where(np.isfinite(style), style, known)
    mean = style[:, 0] + JITTER * random.standard_normal(len(style))
    noise = gaussian_filter(random.standard_normal(label.shape), random.uniform(*GRAIN))
    noise /= max(float(noise.std()), 1e-6)
    painted = gaussian_filter(mean[label], random.uniform(*BLUR)) + noise * style[label, 1]
    field = RandBiasField(degree=3, coeff_range=(0.0, BIAS), prob=1.0)
    field.set_random_state(seed=int(random.integers(2**31)))
    bent: torch.Tensor = torch.as_tensor(field(painted[None].astype(np.float32)))[0]
    inside: NDArray[np.float32] = np.clip(bent.numpy(), 0.0, 1.0).astype(np.float32)
    return inside


def styles_of(datalist: str | Path) -> NDArray[np.float64]:
    """Mean and standard deviation in each class, of the training cases of a prepared datalist, ``(N, C, 2)``.

    Raises:
        InputError: as :func:`semsynth.data.entries.load_datalist`.
    """
    classes = int(read_datalist(datalist).get("num_classes") or 0)
    entries = load_datalist(datalist, "training")
    cases = [(_image(entry, datalist), read_label(entry["label"]).data) for entry in entries]
    classes = classes or 1 + max(int(np.max(label)) for _, label in cases)
    rows = [
        intensity_style(torch.from_numpy(image)[None, None], torch.from_numpy(np.asarray(label, np.int64))[None, None],
                        classes)[0]
        for image, label in cases
    ]  # fmt: skip
    found = torch.stack(rows).numpy().astype(np.float64)
    pairs: NDArray[np.float64] = np.stack([found[:, :classes], found[:, classes:]], axis=-1)
    return pairs


def paint_all(maps: str | Path, real: str | Path, output: str | Path, *, seed: int = 0) -> Path:
    """Paint every label map of a datalist's training cases; volumes that are there already are kept.

    Args:
        maps: a datalist whose ``training`` entries have label maps, such as one of synthetic volumes.
        real: prepared datalist of the scans that brightness is taken from.
        output: folder of the volumes and of ``datalist.json``.
        seed: seed of all.

    Returns:
        The datalist.
    """
    output = Path(output)
    content, styles = read_datalist(maps), styles_of(real)
    held = stated_intensity(read_datalist(real), Path(real)) or Intensity()
    unit = Intensity(window=(0.0, 1.0), scaling=held.scaling)
    entries: list[dict[str, Any]] = []
    for entry in load_datalist(maps, "training", needs=("label",), also=()):
        name = f"{entry['case']}_p"
        image = output / f"{name}.nii.gz"
        if not image.is_file():
            label = read_label(entry["label"])
            values = paint(np.asarray(label.data, np.int64), styles, _seed(seed, entry["case"]))
            write_image(image, values, label.affine, "uint8")
        kept: dict[str, Any] = {key: entry[key] for key in _KEPT if key in entry}
        entries.append(
            {"case": name, "image": image.name, "label": relative_to(entry["label"], output), "synthetic": True,
             **kept, INTENSITY: unit.to_json()}
        )  # fmt: skip
    head = {key: value for key, value in content.items() if not isinstance(value, list)}
    return write_text(output / "datalist.json", json.dumps({**head, "training": entries}, indent=1))


def _image(entry: Mapping[str, Any], source: str | Path) -> NDArray[np.float32]:
    held = entry_intensity(entry, None, source) or Intensity(None, Scaling())  # as a training reads it
    return held.read(read_volume(entry["image"]).data, Scaling())


def _seed(seed: int, case: str) -> int:
    """Follows from the study's seed and the case alone."""
    return int.from_bytes(sha256(f"painted:{seed}:{case}".encode()).digest()[:4], "little")
