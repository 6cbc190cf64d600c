"""From the measurements of volumes to numbers with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from ..metrics import fid, kid, mmd2
from ..networks.features.registry import Features
from ..report.tables import Column
from ..vocabulary import PLANES
from .judge import JudgeFacts
from .seen import Exposure
from .sources import RealCase
from .systems import System
from .uncertainty import Interval

if TYPE_CHECKING:
    from .distributions import Distribution

FLOOR = "real images"
FLOOR_TRAINING = "training scans"
PAINTING_TRAINING = "painting, training means"
PAINTING_OWN = "painting, own means"
CONDITIONAL = "conditional mean"
ROWS = (FLOOR, FLOOR_TRAINING, PAINTING_TRAINING, PAINTING_OWN)  # that are no systems
MIN_SAMPLES = 4  # of every label map: fewer say too little of their own spread for a conditional mean

IN_UNIT = "mae_hu"

PAIRED = {
    "psnr": Column(
        "PSNR (dB)", "higher", "10 log10(1 / mean squared error), intensities in [0, 1] (Al-Sanaani et al., eq. 5)"
    ),
    "ms_ssim": Column(
        "MS-SSIM", "higher", "three scales, weights 0.0448, 0.2856, 0.3001 as printed (Al-Sanaani et al., eq. 6)"
    ),
    "ms_ssim_normalised": Column("MS-SSIM, Σβ = 1", "higher", "the same with weights that sum to 1"),
    "ssim": Column("SSIM", "higher", "Gaussian window of 11 voxels, σ 1.5, valid region"),
    "rmse": Column("RMSE", "lower", "root of the mean squared error, intensities in [0, 1]"),
    "mse": Column(
        "MSE",
        "lower",
        "mean squared error, intensities in [0, 1]: its mean over cases is that of single "
        "samples and of the conditional mean in one unit",
    ),
    "mae": Column("MAE", "lower", "mean absolute error, intensities in [0, 1]"),
    IN_UNIT: Column("MAE (HU)", "lower", "the same in Hounsfield units, clipped to the window of the preparation"),
    "lpips": Column("LPIPS", "lower", "AlexNet, slice by slice"),
}
FAITHFUL = {
    "dice": Column("Dice", "higher", "of the judge's segmentation with the label map"),
    "jaccard": Column("Jaccard", "higher", "of the judge's segmentation with the label map"),
    "hd95": Column("HD95 (mm)", "lower", "95 % Hausdorff distance"),
    "asd": Column("ASD (mm)", "lower", "average symmetric surface distance"),
}
CONSISTENT = {
    f"slices_{plane}": Column(plane, "", "mean difference of adjacent slices, synthetic / real: 1 is ideal, below is "
                              "smoother, above is rougher")
    for plane in PLANES
}  # fmt: skip
DIVERSE_BLOCKS = {"distance": 1, "distance_coarse": 8}
DIVERSE = {
    "distance": Column("pairwise distance", "", "root mean square difference of two samples of one label map, "
                       "intensities in [0, 1]"),
    "distance_coarse": Column("of averages over 8³ voxels", "", "the same after averaging over cubes of 8 voxels: "
                              "brightness and contrast stay, noise does not"),
}  # fmt: skip
DISTRIBUTION: Mapping[str, tuple[Column, Callable[..., Any]]] = {
    "fid": (Column("FID", "lower", "Fréchet distance of features (Al-Sanaani et al., eq. 3)"), fid),
    "kid": (Column("KID", "lower", "MMD² with the cubic polynomial kernel, unbiased: may be negative"), kid),
    "mmd2": (
        Column("MMD²", "lower", "dot-product kernel (Al-Sanaani et al., eq. 4): squared distance of mean features"),
        mmd2,
    ),
}
DIGITS = {"psnr": 2, "mse": 5, IN_UNIT: 1, "hd95": 1, "asd": 2}


@dataclass
class Collected:
    """All measurements of an evaluation.

    Attributes:
        groups: group → its cases.
        systems: systems that were compared.
        other_maps: names of systems whose volumes were made from other label maps than those of the real cases.
        values: row → case → per sample metric → number. Under :data:`FLOOR` what the judge finds in the real images.
        conditional: row → case → metric → number, of the conditional mean.
        diversity: row → case → metric → number, between the samples of one map.
        features: row → case → per sample extractor → features. Under :data:`FLOOR` those of the real images.
        cases: the real cases, scored or not, with ``training`` as the systems' records say.
        seen: SHA-256 of a network → case → whether it was trained on that, see
            :func:`semsynth.evaluation.seen.judge_has_seen`.
        judged: case → whether the judge of that case was trained on it.
    """

    groups: dict[str, list[str]]
    systems: Sequence[System]
    other_maps: Sequence[str] = ()
    values: dict[str, dict[str, list[dict[str, float]]]] = field(default_factory=dict)
    conditional: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    diversity: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    features: dict[str, dict[str, list[dict[str, Features]]]] = field(default_factory=dict)
    cases: Mapping[str, RealCase] = field(default_factory=dict)
    seen: Mapping[str, Mapping[str, bool | None]] = field(default_factory=dict)
    judged: Mapping[str, bool | None] = field(default_factory=dict)

    def patients(self) -> dict[str, str]:
        """Case → patient."""
        return {name: case.person for name, case in self.cases.items()}

    def exposure(self, sha256: str, group: str) -> Exposure | None:
        """What a network has seen of a group; None for one that was not asked."""
        seen = self.seen.get(sha256)
        return None if seen is None else Exposure.among(self.groups[group], self.cases, seen)

    def judged_exposure(self, group: str) -> Exposure | None:
        """What the judges have seen of the cases of a group that each of them judges; None without a judge."""
        return Exposure.among(self.groups[group], self.cases, self.judged) if self.judged else None

    def mean(self, row: str, case: str) -> dict[str, float]:
        """Metrics of a case, averaged over its samples.

        A distance to a mask that was not found is infinite: it counts as missing, not as a mean of infinity.
        """
        samples = self.values.get(row, {}).get(case, [])
        result = {}
        for name in dict.fromkeys(name for sample in samples for name in sample):
            values = [s[name] for s in samples if name in s and not (is_faithful(name) and math.isinf(s[name]))]
            result[name] = float(np.mean(values)) if values else math.nan
        if "rmse" in result:
            result["mse"] = float(np.mean([s["rmse"] ** 2 for s in samples]))
        return result

    def per_case(self, row: str, group: str, metric: str) -> NDArray[np.float64]:
        """One value per case of a group, NaN where there is none.

        Of a conditional mean there are neither PSNR nor RMSE per case: its squared error may come out negative.
        """
        mean = row.removesuffix(f", {CONDITIONAL}")
        table = self.conditional.get(mean, {}) if mean != row else None
        table = self.diversity.get(row, {}) if metric in DIVERSE else table
        rows = [table.get(case, {}) if table is not None else self.mean(row, case) for case in self.groups[group]]
        return np.array([values.get(metric, math.nan) for values in rows], dtype=np.float64)


def is_faithful(metric: str) -> bool:
    """Whether a metric is of the judge, of all classes or of one (``hd95 of class 2``)."""
    return metric.split(" of class ")[0] in FAITHFUL


@dataclass(frozen=True)
class Score:
    """One number of a table.

    Attributes:
        group, row, metric: place in the tables.
        value: the mean over cases or draws.
        n: cases (paired), or cases on each side of a draw (distribution).
        sd: sample standard deviation over cases (n - 1); None for distribution metrics.
        low, high: 2.5 and 97.5 % of the draws; None for paired metrics.
        draws: number of draws.
        extractor, sha256: the feature network; for faithfulness ``sha256`` is the judge's, or those of both; else "".
        floor: A, the same metric of the real images of the same cases, over the same draws.
        floor_training: B, that of training scans of other patients than the references, against the same references.
        references_training: mean number of training scans among a draw's n references; None: unknown.
        in_loss: True where that network was in the system's own loss, so that the number is not to be compared.
        seen: number of the group's cases that a judge (as such, or as feature network) was trained on; None: unknown,
            or another network.
    """

    group: str
    row: str
    metric: str
    value: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    draws: int = 0
    extractor: str = ""
    sha256: str = ""
    floor: float | None = None
    floor_training: float | None = None
    references_training: float | None = None
    in_loss: bool = False
    seen: int | None = None


def paired_scores(
    found: Collected, metrics: Iterable[str], rows: Iterable[str], judge: JudgeFacts | None = None
) -> list[Score]:
    """Mean ± sample standard deviation over the cases of each group, of what was measured at all.

    Args:
        found: the measurements.
        metrics: names of the metrics.
        rows: systems of the rows.
        judge: the network behind the metrics, for faithfulness.
    """
    scores = []
    for group in found.groups:
        hashes = [] if judge is None else judge.hashes(found.groups[group])
        names = [] if judge is None else [judge.name, *hashes]
        guided = [system.name for system in found.systems if system.was_guided_by(*names)]
        exposure = None if judge is None else found.judged_exposure(group)
        seen = None if exposure is None else exposure.certain
        for row in rows:
            for metric in metrics:
                values = found.per_case(row, group, metric)
                values = values[~np.isnan(values)]
                if len(values):
                    mean = float(values.mean())
                    sd = float(values.std(ddof=1)) if len(values) > 1 and math.isfinite(mean) else None
                    scores.append(Score(group, row, metric, mean, len(values), sd=sd, sha256=" and ".join(hashes),
                                        in_loss=row in guided, seen=seen))  # fmt: skip
    return scores


def conditional_scores(found: Collected) -> list[Score]:
    """Scores of the mean of infinitely many samples, for systems with :data:`MIN_SAMPLES` of every map of a group.

    Squared errors per case are unbiased and may be negative; they stay until their mean over cases is taken. PSNR and
    RMSE are of that mean, their spread follows from that of the squared errors (delta method); where the mean is not
    above 0 there are none.
    """
    scores = []
    for row in found.conditional:
        name = f"{row}, {CONDITIONAL}"
        part = replace(
            found, groups={g: members for g, members in found.groups.items() if has_conditional(found, row, g)}
        )
        rest = paired_scores(part, [m for m in PAIRED if m not in ("psnr", "rmse")], [name])
        scores += rest
        for error in (s for s in rest if s.metric == "mse" and s.value > 0):
            sd = error.sd or 0.0
            for metric, value, spread in (
                ("psnr", -10 * math.log10(error.value), 10 / math.log(10) * sd / error.value),
                ("rmse", math.sqrt(error.value), sd / (2 * math.sqrt(error.value))),
            ):
                scores.append(replace(error, metric=metric, value=value, sd=None if error.sd is None else spread))
    return scores


def has_conditional(found: Collected, row: str, group: str) -> bool:
    """Whether a system has enough samples of every map of a group."""
    return set(found.groups[group]) <= found.conditional.get(row, {}).keys()


def all_scores(found: Collected, spread: Sequence[Distribution], judge: JudgeFacts | None) -> list[Score]:
    """Everything that tables show but differences."""
    rows = [row for row in ROWS[1:] if row in found.values]
    rows += [system.name for system in found.systems]
    several = dict.fromkeys(
        name for row in found.values.values() for case in row.values() for values in case for name in values
        if " of class " in name
    )  # fmt: skip
    scores = paired_scores(found, [*PAIRED, *CONSISTENT], rows) + conditional_scores(found)
    scores += paired_scores(found, DIVERSE, found.diversity)
    scores += paired_scores(found, [*FAITHFUL, *several], [FLOOR, *rows], judge)
    return scores + [score for item in spread for score in item.scores(found.systems)]


@dataclass(frozen=True)
class Difference:
    """A system minus another on the same cases (paired metrics) or the same draws (distribution metrics).

    Attributes:
        first, second: rows.
        value: mean difference.
        low, high: 2.5 and 97.5 % of the draws' differences; None for paired metrics.
        sd: sample standard deviation of the cases' differences (n - 1); None for distribution metrics.
        p: two-sided Wilcoxon signed-rank test over cases; None for distribution metrics.
    """

    group: str
    first: str
    second: str
    metric: str
    extractor: str
    value: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def differences(
    found: Collected, metrics: Iterable[str], spread: Sequence[Distribution], judge: JudgeFacts | None = None
) -> list[Difference]:
    """Every system against the painting that knows as much as it does, and against every other system.

    Against painting both single samples and the conditional mean are held, where there is one. Left out are systems of
    other label maps against painting, PSNR of a conditional mean (it has none per case; MSE has), and metrics by a
    network that was in the loss of one of the two.
    """
    result = []
    systems = {system.name: system for system in found.systems}
    for group in found.groups:
        judges = [] if judge is None else [judge.name, *judge.hashes(found.groups[group])]
        for first, second in _pairs(found, group):
            guided = [s for s in (systems.get(first), systems.get(second)) if s is not None]
            for metric in metrics:
                if is_faithful(metric) and _guided(guided, *judges):
                    continue
                delta = found.per_case(first, group, metric) - found.per_case(second, group, metric)
                delta = delta[np.isfinite(delta)]
                if len(delta) > 1:
                    result.append(Difference(group, first, second, metric, "", float(delta.mean()), len(delta),
                                             sd=float(delta.std(ddof=1)), p=_p_value(delta)))  # fmt: skip
            for item in spread:
                used = _guided(guided, item.extractor.name, item.extractor.sha256)
                if item.group == group and {first, second} <= set(item.values) and not used:
                    interval = Interval.of(item.values[first] - item.values[second])
                    result.append(Difference(group, first, second, item.metric, item.extractor.name, interval.mean,
                                             item.n, low=interval.low, high=interval.high))  # fmt: skip
    return result


def _pairs(found: Collected, group: str) -> list[tuple[str, str]]:
    names = [system.name for system in found.systems]
    pairs = []
    if PAINTING_TRAINING in found.values:
        for name in (name for name in names if name not in found.other_maps):
            pairs.append((name, PAINTING_TRAINING))
            conditional = has_conditional(found, name, group)
            pairs += [(f"{name}, {CONDITIONAL}", PAINTING_TRAINING)] if conditional else []
    return pairs + list(combinations(names, 2))


def _guided(systems: Iterable[System], *networks: str) -> bool:
    return any(system.was_guided_by(*networks) for system in systems)


def _p_value(delta: NDArray[np.float64]) -> float:
    return 1.0 if not delta.any() else float(wilcoxon(delta).pvalue)
