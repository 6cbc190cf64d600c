"""Choosing k: the scores find the number of tissues that is there."""

from __future__ import annotations

import numpy as np
import pytest
from semsynth.errors import InputError
from semsynth.prepare.choose_k import choose_k, save_scores, score_volume, table
from semsynth.prepare.composite import fit_centers
from sklearn.metrics import davies_bouldin_score, silhouette_score


def tissues(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (100 * rng.integers(0, count, (14, 14, 14)) + rng.normal(50, 4, (14, 14, 14))).astype(np.float32)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_both_scores_are_best_at_the_true_number(count):
    scores = score_volume(tissues(count), range(2, 7), sigma=0)
    assert 2 + int(np.argmax([s for s, _ in scores])) == count
    assert 2 + int(np.argmin([d for _, d in scores])) == count


def test_scores_are_scikit_learns_on_nearest_centres():
    image = tissues(3)
    centers = fit_centers(image, 3, sigma=0)
    labels = np.abs(image.reshape(-1, 1) - centers).argmin(axis=1)
    expected = silhouette_score(image.reshape(-1, 1), labels), davies_bouldin_score(image.reshape(-1, 1), labels)
    assert score_volume(image, [3], sigma=0)[0] == pytest.approx(expected, rel=1e-4)  # 14³ voxels: all are sampled


def test_a_data_set_gives_a_table_and_a_plot(tiny_dataset, tmp_path):
    scores = choose_k(tiny_dataset, k_max=4, cases=2, spacing=(3, 3, 3))
    assert [s.k for s in scores] == [2, 3, 4]
    text = table(scores)
    assert text.count("\n") == 4 and text.count("*") == 2
    data, plot = save_scores(scores, tmp_path)
    assert len(data.read_text().splitlines()) == 4 and plot.stat().st_size > 1000


def test_k_max_out_of_range_is_named(tiny_dataset):
    with pytest.raises(InputError, match="--k-max must lie in 2…10, got 11"):
        choose_k(tiny_dataset, k_max=11)
