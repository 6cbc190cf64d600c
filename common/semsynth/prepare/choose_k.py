"""Choosing the number of clusters: silhouette and Davies–Bouldin over k (Al-Sanaani et al., Fig. 2)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import davies_bouldin_score, silhouette_score

from ..data.check import Entry, read_case
from ..data.intensity import MIN_MAX, Scaling
from ..data.raw import Case, find_cases
from ..data.sizes import check_resampling
from ..errors import InputError
from ..limits import MOST_SIGMA, check_number
from ..ownership import Outputs, any_of, beside, is_marked_png, is_plotted_png, text_with
from ..report.pictures import save_figure
from .composite import MAX_K, fit_centers, smooth
from .job import check_form, resample, run_all
from .scaling import source_intensity

TABLE, PLOT = "choose_k.csv", "choose_k.png"
_COLUMNS = ["k", "silhouette_mean", "silhouette_sd", "davies_bouldin_mean", "davies_bouldin_sd"]
_TABULATED = text_with(",".join(_COLUMNS) + "\n")
SAMPLE = 4000
"""Voxels per volume that the scores are computed on (the silhouette costs their square)."""


@dataclass(frozen=True)
class Score:
    """Scores of one k, over the cases: silhouette in [-1, 1] (higher is better), Davies–Bouldin ≥ 0 (lower is)."""

    k: int
    silhouette: float
    silhouette_sd: float
    davies_bouldin: float
    davies_bouldin_sd: float


def score_volume(
    image: NDArray[np.floating], ks: Sequence[int], *, sigma: float = 1.0, seed: int = 0
) -> list[tuple[float, float]]:
    """(silhouette, Davies–Bouldin) of the intensity clusters of one ``(H, W, D)`` volume, for each k.

    Centres are fitted to all voxels, the scores taken on a random sample of 4,000.
    """
    smoothed = smooth(image, sigma).reshape(-1)
    sample = np.random.default_rng(seed).choice(smoothed, min(SAMPLE, smoothed.size), replace=False)[:, None]
    scores = []
    for k in ks:
        centers = fit_centers(image, k, sigma=sigma)
        labels = np.searchsorted((centers[1:] + centers[:-1]) / 2, sample[:, 0])
        if len(np.unique(labels)) < 2:
            raise InputError(f"k = {k}: the sampled voxels fall into one cluster; the image has too few intensities")
        scores.append((float(silhouette_score(sample, labels)), float(davies_bouldin_score(sample, labels))))
    return scores


def choose_k(
    source: str | Path,
    *,
    endo: str | None = None,
    k_max: int = 10,
    cases: int = 20,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    sigma: float = 1.0,
    scaling: Scaling | None = None,
    seed: int = 0,
) -> list[Score]:
    """Scores for k = 2…``k_max`` over up to ``cases`` volumes of a data set (the training split where there is one).

    Intensities become [0, 1] as in ``semsynth prepare``: by ``scaling``, without it by the window that the datalist
    states, and without that by percentiles.

    Raises:
        InputError: for input that cannot be found or read, or ``k_max`` outside 2…10.
    """
    if not 2 <= k_max <= MAX_K:
        raise InputError(f"--k-max must lie in 2…{MAX_K}, got {k_max}")
    if cases < 1:
        raise InputError(f"--cases must be 1 or more, got {cases}")
    found = find_cases(source, endo=endo)
    found = [case for case in found if case.split == "training"] or found
    picked = np.random.default_rng(seed).permutation(len(found))[:cases]
    check_number("--sigma", sigma, 0, MOST_SIGMA, unit=" voxels")
    check_form(spacing, None, "float32")
    ks = range(2, k_max + 1)
    rule = scaling or _stated(source) or Scaling()

    def work(case: Case) -> list[tuple[float, float]]:
        volume = read_case(Entry(case.name, {"image": case.image}))["image"].canonical()
        ends = None if rule == MIN_MAX else rule.window(volume.data)  # of the source volume, as prepare has it
        moved = resample(volume, spacing, nearest=False)
        return score_volume(rule(moved.data, ends), ks, sigma=sigma, seed=seed)

    chosen = [found[index] for index in sorted(picked)]
    check_resampling({case.name: case.image for case in chosen}, spacing, fix="give a larger --spacing")
    per_case = run_all(chosen, work, jobs=1, title="choosing k", name=lambda case: case.name)
    values = np.array([per_case[case.name] for case in chosen])  # (cases, k, 2)
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1 if len(values) > 1 else 0)
    return [Score(k, mean[i, 0], sd[i, 0], mean[i, 1], sd[i, 1]) for i, k in enumerate(ks)]


def _stated(source: str | Path) -> Scaling | None:
    stated = source_intensity(source)
    return None if stated is None or stated.window is None else Scaling("window", stated.window)


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table, the best of each column marked."""
    high = max(s.silhouette for s in scores)
    low = min(s.davies_bouldin for s in scores)
    lines = ["| k | silhouette (higher is better) | Davies–Bouldin (lower is better) |", "|---|---|---|"]
    for s in scores:
        a = f"{s.silhouette:.3f} ± {s.silhouette_sd:.3f}" + (" *" if s.silhouette == high else "")
        b = f"{s.davies_bouldin:.3f} ± {s.davies_bouldin_sd:.3f}" + (" *" if s.davies_bouldin == low else "")
        lines.append(f"| {s.k} | {a} | {b} |")
    return "\n".join(lines)


def save_scores(scores: Sequence[Score], output: str | Path) -> tuple[Path, Path]:
    """Write ``choose_k.csv`` and ``choose_k.png`` into the folder ``output``; returns both paths.

    Raises:
        InputError: for files of these names that are not ours.
    """
    files = score_files(output)
    files.check()
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(_COLUMNS)
    writer.writerows([s.k, s.silhouette, s.silhouette_sd, s.davies_bouldin, s.davies_bouldin_sd] for s in scores)
    data = files.write_text(TABLE, stream.getvalue())
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    ks = [s.k for s in scores]
    left, right = figure.subplots(1, 2)
    left.errorbar(ks, [s.silhouette for s in scores], [s.silhouette_sd for s in scores], marker="o", capsize=3)
    left.set(xlabel="k", ylabel="silhouette", title="higher is better")
    right.errorbar(ks, [s.davies_bouldin for s in scores], [s.davies_bouldin_sd for s in scores], marker="o", capsize=3)
    right.set(xlabel="k", ylabel="Davies–Bouldin", title="lower is better")
    return data, save_figure(files.folder / PLOT, figure, dpi=110)


def score_files(output: str | Path) -> Outputs:
    """The files of :func:`save_scores`, to be checked before the scores are computed."""
    known = {TABLE: _TABULATED, PLOT: any_of(is_marked_png, beside(TABLE, _TABULATED, is_plotted_png))}
    return Outputs(output, "semsynth choose-k", known)
