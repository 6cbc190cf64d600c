"""Choosing k: the scores find the number of tissues that is there."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.intensity import MIN_MAX, Scaling
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


def test_intensities_are_scaled_as_prepare_scales_them(tmp_path, capsys):
    """One voxel lies far above the three tissues: from minimum to maximum they are nearly one."""
    image = tissues(3)
    image[1, 1, 1] = 1e5
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii.gz")
    datalist = tmp_path / "datalist.json"

    def scores(stated=None, **options):
        entry = {"image": "a.nii.gz", "endo": "a.nii.gz"}
        datalist.write_text(json.dumps({"training": [entry]} | ({} if stated is None else {"intensity": stated})))
        return choose_k(datalist, k_max=3, sigma=0, **options)

    def expected(scaled):
        return [pytest.approx(s) for s, _ in score_volume(scaled, [2, 3], sigma=0)]

    by_percentiles = expected(Scaling()(image))
    assert [s.silhouette for s in scores()] == by_percentiles
    minimum_to_maximum = [s.silhouette for s in scores(scaling=MIN_MAX)]
    assert minimum_to_maximum == expected(MIN_MAX(image)) != by_percentiles
    window = {"window": [100, 200]}
    assert [s.silhouette for s in scores(window)] == expected(Scaling("window", (100, 200))(image)) != by_percentiles
    assert [s.silhouette for s in scores(window, scaling=Scaling())] == by_percentiles
    command = ["choose-k", "--input", str(datalist), "--k-max", "3", "--sigma", "0"]
    assert main([*command, "--scale", "min-max"]) == 0
    assert f"| 3 | {minimum_to_maximum[1]:.3f}" in capsys.readouterr().out
    assert main([*command, "--window", "0,100", "--percentiles", "0,99"]) == 1
    assert "--window and --percentiles are two rules" in capsys.readouterr().err


def test_k_max_out_of_range_is_named(tiny_dataset):
    with pytest.raises(InputError, match="--k-max must lie in 2…10, got 11"):
        choose_k(tiny_dataset, k_max=11)
