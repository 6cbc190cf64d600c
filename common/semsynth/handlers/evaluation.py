"""How real and how faithful synthetic volumes are, while a generator is evaluated: FID, KID, PSNR, a judge's Dice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice
from monai.utils.enums import CommonKeys as Keys
from numpy.typing import NDArray

from ..data.transforms import CropContentd, LoadIntensityd
from ..distributed import gather, rank, world_size
from ..errors import InputError
from ..metrics.frechet import fid
from ..metrics.mmd import kid
from ..metrics.similarity import mae, ms_ssim, psnr, rmse, ssim
from ..networks.features.extractor import FeatureExtractor
from ..networks.frozen import FrozenSegmenter
from ..vocabulary import ENDO

logger = logging.getLogger(__name__)
PairedMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PAIRED: dict[str, PairedMetric] = {"mae": mae, "ms_ssim": ms_ssim, "psnr": psnr, "rmse": rmse, "ssim": ssim}
JUDGED = {Keys.PRED: "judge_dice", Keys.LABEL: "judge_dice_real"}
DISTRIBUTION: dict[str, PairedMetric] = {"fid": fid, "kid": kid}
Rows = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Scores:
    """What is kept of one case.

    Attributes:
        pred, real: extractor → features ``(F,)`` of the synthetic and of the real volume.
        paired: metric → value.
    """

    pred: Rows = field(default_factory=dict)
    real: Rows = field(default_factory=dict)
    paired: dict[str, float] = field(default_factory=dict)


class EvaluationHandler:
    """Attached to a generator's evaluator: distances of its volumes' features from real ones', and paired metrics.

    Adds to the engine's metrics ``fid_<extractor>`` and ``kid_<extractor>`` for each extractor and the mean of each
    paired metric under its name; to ``metric_details`` the paired values, ``(N, 1)``, cases in the order in which they
    came, process after process; and to the state's ``metric_about``, by metric, what has to stand beside a number: n,
    and of a distance m, what the real side is, the extractor's name, SHA-256, spacing and intensity rule. A case counts
    once, however often processes see it (a distributed sampler repeats cases to share them evenly). What cannot be
    computed (fewer than two cases, volumes too small for MS-SSIM) is left out with one warning, or NaN in the details.

    Args:
        extractors: feature networks, see :func:`semsynth.provenance.frozen.load_features`; they stay where
            they are.
        paired: metrics of :data:`PAIRED`; left out where the output has no real volume.
        judge: a segmentation network that was in no loss of the generator, or None: adds ``judge_dice``, of its
            segmentation of the synthetic volume with the label map, and ``judge_dice_real``, the same of the real one.
        target: the class of the label map that the judge's class 1 is held against.
        reference: the real side of FID and KID, other cases than the scored ones: images (files, or entries of a
            datalist), whose features are computed once, when the first epoch starts; or features ``(M, F)`` by
            extractor. None takes the real volumes of the scored cases themselves: too good a value, since the maps
            give their anatomy away, and a warning says so.

    Raises:
        InputError: for an unknown metric, two extractors of one name, features of another length, an entry without
            image; (at the first epoch) for an image that cannot be used.

    Examples:
        >>> def step(engine, batch):  # in place of MONAI's evaluator: a synthetic volume that is 0.1 too bright
        ...     return [{"image": case["label"], "pred": case["image"] + 0.1, "label": case["image"]} for case in batch]
        >>> evaluator = Engine(step)
        >>> evaluator.state.metrics, evaluator.state.metric_details = {}, {}
        >>> EvaluationHandler([], paired=("psnr",)).attach(evaluator)
        >>> case = {"case": "P1", "image": torch.zeros(1, 16, 16, 16), "label": torch.zeros(1, 16, 16, 16)}
        >>> round(evaluator.run([[case]]).metrics["psnr"], 3)
        20.0
    """

    def __init__(
        self,
        extractors: Sequence[FeatureExtractor],
        *,
        paired: Sequence[str] = ("psnr", "ms_ssim"),
        judge: FrozenSegmenter | None = None,
        target: int = ENDO,
        reference: Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]] | None = None,
    ) -> None:
        unknown = sorted(set(paired) - PAIRED.keys())
        if unknown:
            raise InputError(f"no paired metric is called {unknown[0]!r}; there are {', '.join(PAIRED)}")
        self.extractors = {extractor.name: extractor for extractor in extractors}
        if len(self.extractors) < len(extractors):
            raise InputError(f"extractors must differ, got {', '.join(extractor.name for extractor in extractors)}")
        if isinstance(reference, str | Path):
            raise InputError(f"reference is a list of images or of a datalist's entries, got {str(reference)!r}")
        self.paired, self.cases, self.real = tuple(paired), dict[str, Scores](), dict[str, Rows]()
        self.judge, self.target = judge, target
        self.images = None if reference is None or isinstance(reference, Mapping) else [_entry(r) for r in reference]
        self.reference = self._given(reference) if isinstance(reference, Mapping) else None
        self.warned: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``; decollated output: ``image`` label map, ``pred`` synthetic, ``label`` real or None.

        Volumes are MetaTensors ``(1, H, W, D)`` in [0, 1]; the batch names a case under ``case``.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._compute)

    def _given(self, reference: Mapping[str, Any]) -> Rows:
        rows = {name: np.asarray(reference[name], dtype=np.float32) for name in self.extractors if name in reference}
        for name, extractor in self.extractors.items():
            if name not in rows or rows[name].ndim != 2 or rows[name].shape[1] != extractor.dimension:
                found = f"shape {rows[name].shape}" if name in rows else f"those of {', '.join(reference) or 'none'}"
                raise InputError(
                    f"reference needs features (M, {extractor.dimension}) of {name}, found {found}; compute them with "
                    "that extractor"
                )
        return rows

    def _start(self, engine: Engine) -> None:
        self.cases = {}
        if self.images is None or self.reference is not None or not self.extractors:
            return
        world = world_size()
        own = {i: self._describe(_load(self.images[i])) for i in range(rank() % world, len(self.images), world)}
        every = {i: rows for part in gather(own) for i, rows in part.items()}
        self.reference = {
            name: np.stack([every[i][name] for i in sorted(every)]) if every else np.zeros((0, e.dimension), np.float32)
            for name, e in self.extractors.items()
        }

    def _update(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for name, item in zip(self._names(engine), output, strict=True):
            if name not in self.cases:
                self.cases[name] = self._score(name, item)

    def _names(self, engine: Engine) -> list[str]:
        batch: Any = engine.state.batch  # decollated by MONAI's engine together with the output
        output: Any = engine.state.output
        names = []
        if not isinstance(output, list):
            raise InputError("EvaluationHandler needs one output per case; leave the evaluator's decollate at true")
        for i, item in enumerate(output):
            entry = batch[i] if isinstance(batch, list) else {}
            file = getattr(item.get(Keys.IMAGE), "meta", {}).get("filename_or_obj")
            names.append(str(entry.get("case") or file or f"process {rank()}, {engine.state.iteration}, {i}"))
        return names

    @torch.no_grad()
    def _score(self, name: str, item: Mapping[str, Any]) -> Scores:
        pred, real = item[Keys.PRED], item.get(Keys.LABEL)
        scores = Scores(pred=self._describe(pred), paired=self._judged(item))
        if real is None:
            return scores
        if self.reference is None:
            if name not in self.real:  # the same in every epoch
                self.real[name] = self._describe(real)
            scores.real.update(self.real[name])
        for metric in self.paired:
            try:
                value = PAIRED[metric](pred.float()[None], real.float()[None])
                scores.paired[metric] = float(value.mean())
            except InputError as error:
                scores.paired[metric] = float("nan")
                self._warn(metric, f"{metric} of {name} is left out: {error}")
        return scores

    def _judged(self, item: Mapping[str, Any]) -> dict[str, float]:
        if self.judge is None:
            return {}
        truth = (item[Keys.IMAGE] == self.target).as_tensor()[None]
        place = next(self.judge.parameters(), truth).device
        volumes = {JUDGED[key]: item[key].to(place) for key in JUDGED if item.get(key) is not None}
        found = {name: (self.judge.segment(v).as_tensor() == 1).to(truth.device)[None] for name, v in volumes.items()}
        return {name: float(compute_dice(mask, truth)) for name, mask in found.items()}

    def _describe(self, volume: Any) -> Rows:
        return {name: extractor.describe(volume).volume for name, extractor in self.extractors.items()}

    def _compute(self, engine: Engine) -> None:
        state: Any = engine.state
        cases: dict[str, Scores] = {}
        for part in gather(self.cases):
            for name, scores in part.items():
                cases.setdefault(name, scores)
        state.metric_about = {}
        for metric in (*self.paired, *JUDGED.values()):
            values = np.array([scores.paired.get(metric, np.nan) for scores in cases.values()])
            n = int(np.count_nonzero(~np.isnan(values)))
            if n:
                state.metrics[metric], state.metric_about[metric] = float(np.nanmean(values)), {"n": n}
                state.metric_details[metric] = torch.from_numpy(values)[:, None]
        for name in self.extractors:
            self._distances(state, name, list(cases.values()))

    def _distances(self, state: Any, name: str, cases: Sequence[Scores]) -> None:
        pred, side = [scores.pred[name] for scores in cases], "given"
        if self.reference is not None:
            real = list(self.reference[name])
            self._warn_of_scored()
        else:
            real, side = [scores.real[name] for scores in cases if name in scores.real], "the scored cases' own"
            self._warn("own", "FID and KID are against the real volumes of the scored cases themselves, which is too "
                              "good: their maps give the anatomy away; give other real cases as reference")  # fmt: skip
        if min(len(pred), len(real)) < 2:
            self._warn(name, f"fid_{name} and kid_{name} are left out: they need two volumes on each side, there are "
                             f"{len(pred)} synthetic and {len(real)} real")  # fmt: skip
            return
        about = {"n": len(pred), "m": len(real), "reference": side, **self.extractors[name].about()}
        for prefix, distance in DISTRIBUTION.items():
            key = f"{prefix}_{name}"
            try:
                value = distance(torch.from_numpy(np.stack(pred)), torch.from_numpy(np.stack(real)))
            except InputError as error:
                self._warn(key, f"{key} is left out: {error}")
                continue
            state.metrics[key], state.metric_about[key] = float(value), about

    def _warn_of_scored(self) -> None:
        names = {entry["case"] for entry in self.images or [] if "case" in entry}
        scored = sorted(names & self.cases.keys())
        if scored:
            self._warn("scored", f"{len(scored)} reference cases are scored ones too ({scored[0]}, …), which makes "
                                  "FID and KID too good; give other real cases as reference")  # fmt: skip

    def _warn(self, key: str, message: str) -> None:
        if key not in self.warned:
            self.warned.add(key)
            logger.warning("%s", message)


def _entry(item: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    entry = dict(item) if isinstance(item, Mapping) else {"image": str(item)}
    if "image" not in entry:
        raise InputError(f"reference case {entry.get('case', '?')} has no image; give entries with 'image', or files")
    return entry


def _load(entry: Mapping[Any, Any]) -> Any:
    return CropContentd("image")(LoadIntensityd("image")(entry))["image"]
