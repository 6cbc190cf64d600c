"""One volume at a time: its metrics, its features, and what a segmentation network finds in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from ..data.volumes import Volume
from ..errors import InputError
from ..files import atomic_path
from ..metrics import inter_slice_consistency, lpips, mae, ms_ssim, psnr, rmse, segmentation_scores, similarity, ssim
from ..networks.features.registry import FeatureExtractor, Features
from ..provenance.cards import weights_hash
from ..vocabulary import PLANES
from .judge import Panel

Arrays = dict[str, NDArray[Any]]
_DIGEST = "sha256_of_all"
MEASURED_AS = 1
"""To be raised when a measurement comes to mean something else: results that were kept are then measured again."""


class MeasurementStore:
    """Results of finished measurements in a folder, so that an interrupted evaluation goes on where it was.

    A result is found by the SHA-256 of all that it depends on; a damaged file is measured again.

    Args:
        folder: made when the first result is kept; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def recall(self, what: Sequence[Any], compute: Callable[[], Arrays]) -> Arrays:
        """The arrays that ``compute`` gives, from the folder where they are there already."""
        if self.folder is None:
            return compute()
        said = json.dumps([MEASURED_AS, *what], sort_keys=True, default=str)
        key = hashlib.sha256(said.encode()).hexdigest()
        path = self.folder / f"{key[:32]}.npz"
        kept = _kept(path)
        if kept is not None:
            return kept
        found = {name: np.asarray(value) for name, value in compute().items()}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found, **{_DIGEST: np.asarray(_digest(found))})  # type: ignore[arg-type]
        return found


def _kept(path: Path) -> Arrays | None:
    """What a file of an earlier run holds; None where there is none, or another than was written."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except Exception:  # missing, or whatever damaged bytes make of zip and NumPy; it is measured and written again
        return None
    digest = found.pop(_DIGEST, None)
    return found if digest is not None and str(digest) == _digest(found) else None


def _digest(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Measurer:
    """Measures volumes, one at a time; only numbers and features stay.

    Args:
        extractors: feature networks.
        panel: the judge of each case, segmentation networks that were in no generator's loss; None: no judge.
        targets: class of the judge → class of the label map that it is held against.
        with_lpips: also LPIPS, which needs the extra ``lpips``.
        store: finished results.
        device: device of the metrics (networks stay on their own).
    """

    def __init__(
        self,
        extractors: Sequence[FeatureExtractor],
        panel: Panel | None = None,
        *,
        targets: Mapping[int, int],
        with_lpips: bool = False,
        store: MeasurementStore | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.extractors, self.panel, self.targets = extractors, panel or Panel(), dict(targets)
        self.with_lpips, self.store, self.device = with_lpips, store or MeasurementStore(None), device
        self.hashes = {
            judge.sha256: weights_hash(judge.state_dict()) for judge in (self.panel.first, self.panel.second) if judge
        }

    def features(self, key: Sequence[Any], volume: Volume) -> dict[str, Features]:
        """Features of a volume in [0, 1], by extractor.

        Args:
            key: text that stands for the voxels, such as the file's SHA-256.
            volume: ``(H, W, D)``.
        """
        found = {}
        for extractor in self.extractors:
            compute = partial(_described, extractor, volume)
            about = {name: fact for name, fact in extractor.about().items() if name != "trained_on"}  # changes nothing
            arrays = self.store.recall(["features", about, *key], compute)
            slices = {name.removeprefix("slices_"): a for name, a in arrays.items() if name.startswith("slices_")}
            found[extractor.name] = Features(arrays["volume"], slices)
        return found

    def paired(self, key: Sequence[Any], volume: Volume, real: Volume) -> dict[str, float]:
        """Similarity to the real image and consistency between slices."""

        def compute() -> Arrays:
            pair = [torch.from_numpy(np.ascontiguousarray(v.data)).to(self.device)[None, None] for v in (volume, real)]
            found = {name: float(value) for name, value in similarities(*pair).items()}
            ratios = inter_slice_consistency(*pair)[0]
            found |= {f"slices_{plane}": float(ratio) for plane, ratio in zip(PLANES, ratios, strict=True)}
            if self.with_lpips:
                found["lpips"] = float(lpips(*pair))
            return {name: np.float64(value) for name, value in found.items()}  # type: ignore[misc]

        values = {
            name: float(value) for name, value in self.store.recall(["paired", self.with_lpips, *key], compute).items()
        }
        return values

    def faithfulness(
        self, case: str, key: Sequence[Any], volume: Volume, label: NDArray[np.integer]
    ) -> dict[str, float]:
        """Agreement of the judge's segmentation of a volume with its label map (Med-LSDM, section 4.2).

        Args:
            case: case whose judge is asked.
            key: as in :meth:`features`.
            volume: ``(H, W, D)``.
            label: class indices, of the same shape.
        """
        judge = self.panel.judge(case)
        if judge is None:
            return {}

        def compute() -> Arrays:
            moved: Any = tensor(volume).to(next(judge.parameters(), torch.zeros(0)).device)
            found = judge.segment(moved).cpu().numpy()[0]
            scores = [_overlap(found == own, label == other, volume.spacing) for own, other in self.targets.items()]
            per_class = {
                f"{name} of class {other}": score[name]
                for other, score in zip(self.targets.values(), scores, strict=True)
                for name in score
            }
            means = {name: np.nanmean([score[name] for score in scores]) for name in scores[0]}
            return {name: np.float64(value) for name, value in (means | per_class).items()}  # type: ignore[misc]

        what = ["judge", self.hashes[judge.sha256], judge.spacing, sorted(self.targets.items()), *key]
        recalled = self.store.recall(what, compute)
        return {name: float(v) for name, v in recalled.items() if len(self.targets) > 1 or " of class " not in name}


def similarities(y_pred: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """PSNR, RMSE, MAE, SSIM and both MS-SSIM of ``(1, 1, H, W, D)``; those that need larger volumes are left out."""
    try:
        return similarity(y_pred, y)
    except InputError:
        found = {"psnr": psnr(y_pred, y), "rmse": rmse(y_pred, y), "mae": mae(y_pred, y)}
        for name, function in (("ssim", ssim), ("ms_ssim", ms_ssim)):
            try:
                found[name] = function(y_pred, y)
            except InputError:
                found[name] = torch.full((1,), torch.nan)
        return found | {"ms_ssim_normalised": torch.full((1,), torch.nan)}


def tensor(volume: Volume) -> MetaTensor:
    """``(1, H, W, D)`` float32 with its affine."""
    data = torch.from_numpy(np.ascontiguousarray(volume.data, dtype=np.float32))
    return MetaTensor(data[None], affine=torch.from_numpy(volume.affine))


def _described(extractor: FeatureExtractor, volume: Volume) -> Arrays:
    features = extractor.describe(tensor(volume))
    return {"volume": features.volume} | {f"slices_{plane}": a for plane, a in features.slices.items()}


def _overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]) -> dict[str, float]:
    a, b = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (found, truth))
    return {name: float(value) for name, value in segmentation_scores(a, b, spacing).items()}
