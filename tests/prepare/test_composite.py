"""Composite maps: the rules of the issue as properties, and the gaps of the printed algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from semsynth.errors import InputError
from semsynth.prepare.composite import (
    CompositeLabel,
    CompositeLabeld,
    IntensityHistogram,
    fit_centers,
    fit_histogram,
    kmeans_1d,
)
from semsynth.vocabulary import num_classes
from sklearn.cluster import KMeans

SHAPE = (12, 11, 10)


def scene(seed: int, *, levels: int = 4, zeros: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy volume of flat regions with some exact zeros, and overlapping endo and wall masks."""
    rng = np.random.default_rng(seed)
    image = 20.0 + 60.0 * rng.integers(0, levels, size=SHAPE) + rng.normal(0, 2, SHAPE)
    image = np.repeat(np.repeat(image[::3], 3, axis=0)[: SHAPE[0]], 1, axis=1).astype(np.float32)
    if zeros:
        image[:3] = 0
    endo = np.zeros(SHAPE, dtype=np.uint8)
    endo[4:8, 3:8, 2:7] = 1
    wall = np.zeros(SHAPE, dtype=np.uint8)
    wall[3:8, 2:9, 2:7] = 1  # overlaps endo on purpose
    return image, endo, wall


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(0, 6), background=st.sampled_from(["auto", "lowest", "none"]))
def test_every_voxel_has_one_class_and_expert_masks_are_kept_exactly(seed, k, background):
    image, endo, wall = scene(seed)
    label = CompositeLabel(k, background=background)(image, endo, wall)
    assert label.shape == image.shape and label.dtype == np.uint8
    assert np.array_equal(label == 1, endo == 1)
    assert np.array_equal(label == 2, (wall == 1) & (endo == 0))
    assert label.max() < num_classes(k, background=background != "none")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), k=st.integers(1, 5))
def test_scaling_the_intensities_changes_nothing(seed, scale, k):
    image, endo, wall = scene(seed)
    before = CompositeLabel(k)(image, endo, wall)
    after = CompositeLabel(k)(image * np.float32(scale), endo, wall)
    # only voxels within float32 rounding of a threshold may differ
    assert np.count_nonzero(before != after) <= 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6))
def test_kmeans_is_the_global_optimum_so_no_initialisation_can_beat_it(seed, k):
    rng = np.random.default_rng(seed)
    values = np.unique(rng.choice([10, 40, 90, 200], 60) + rng.normal(0, 8, 60))
    weights = rng.integers(1, 50, len(values)).astype(float)
    ours = kmeans_1d(values, weights, k)

    def inertia(centers):
        return (weights * np.min((values[:, None] - centers[None]) ** 2, axis=1)).sum()

    theirs = KMeans(k, n_init=20, random_state=0).fit(values[:, None], sample_weight=weights)
    assert inertia(ours) <= inertia(theirs.cluster_centers_.ravel()) * (1 + 1e-9)
    assert np.all(np.diff(ours) > 0)


def test_tissue_classes_rise_with_intensity():
    image, endo, wall = scene(1, levels=4, zeros=False)
    label = CompositeLabel(4, background="lowest")(image, endo, wall)
    means = [image[label == c].mean() for c in np.unique(label) if c != 1 and c != 2]
    assert means == sorted(means) and len(means) == 4


def test_background_is_the_cluster_of_the_source_zeros_even_if_it_is_not_the_darkest():
    image, endo, wall = scene(2, zeros=False)
    zeros = image > 150  # as if the brightest voxels had been zero in the source
    label = CompositeLabel(3, sigma=0)(image, endo, wall, zeros)
    outside = (endo == 0) & (wall == 0)
    assert np.all(label[zeros & outside] == 0)
    assert np.all(label[(image < 50) & outside] == 3)


def test_auto_background_without_zeros_takes_the_darkest_and_says_so(caplog):
    image, endo, wall = scene(3, zeros=False)
    auto = CompositeLabel(2)(image, endo, wall)
    assert "darkest cluster" in caplog.text and "case" not in caplog.text
    CompositeLabel(2).with_centers(image, endo, wall, case="P1")
    assert "case P1: no voxel of intensity 0" in caplog.text
    assert np.array_equal(auto, CompositeLabel(2, background="lowest")(image, endo, wall))


def test_background_zero_without_zeros_is_an_error():
    image, endo, wall = scene(3, zeros=False)
    with pytest.raises(InputError, match="background='zero' needs voxels of intensity 0"):
        CompositeLabel(2, background="zero")(image, endo, wall)


def test_without_background_cluster_every_tissue_voxel_has_a_tissue_class():
    image, endo, wall = scene(4)
    label = CompositeLabel(2, background="none")(image, endo, wall)
    assert set(np.unique(label)) == {1, 2, 3, 4}


def test_k_zero_gives_the_expert_masks_alone():
    image, endo, wall = scene(5)
    assert np.array_equal(CompositeLabel(0)(image, endo, wall), np.where(endo == 1, 1, 2 * wall))


def test_frozen_centres_give_the_map_that_they_were_fitted_on():
    image, endo, wall = scene(6)
    fitted, centers = CompositeLabel(3).with_centers(image, endo, wall)
    assert np.array_equal(CompositeLabel(3, centers=centers[::-1])(image, endo, wall), fitted)


def test_one_outlier_does_not_cost_the_tissue_its_resolution():
    image, _, _ = scene(7)
    clean = fit_centers(image, 3, sigma=0)
    values = IntensityHistogram(0, 1e6).add(image).atoms()[0]
    assert len(values) > 3
    spiked = image.copy()
    spiked[0, 0, 0] = 20 * image.max()
    assert np.abs(fit_centers(spiked, 4, sigma=0)[:3] - clean).max() < 0.01 * image.max()


def test_histograms_add_up_over_volumes():
    a, b = scene(8)[0], scene(9)[0]
    both = IntensityHistogram(0, 300).add(a).add(b)
    joint = IntensityHistogram(0, 300).add(np.concatenate([a, b]))
    assert np.allclose(fit_histogram(both, 3), fit_histogram(joint, 3))


def test_tensors_come_back_as_tensors_with_their_affine():
    image, endo, wall = (torch.from_numpy(x)[None] for x in scene(10))
    affine = torch.diag(torch.tensor([2.0, 2, 3, 1], dtype=torch.float64))
    label = CompositeLabel(2)(MetaTensor(image, affine=affine), endo, wall)
    assert isinstance(label, MetaTensor) and label.dtype == torch.uint8 and torch.equal(label.affine, affine)
    assert np.array_equal(label.numpy(), CompositeLabel(2)(image.numpy(), endo.numpy(), wall.numpy()))


def test_dictionary_form_matches_and_leaves_its_input_alone():
    image, endo, wall = scene(11)
    data = {"image": image, "endo": endo, "wall": wall}
    result = CompositeLabeld("label", k=2)(data)
    assert set(data) == {"image", "endo", "wall"}
    assert np.array_equal(result["label"], CompositeLabel(2)(image, endo, wall))


def break_scene(**changes):
    image, endo, wall = scene(12)
    return {"image": image, "endo": endo, "wall": wall} | {k: f(image, endo, wall) for k, f in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endo": lambda i, e, w: e[:-1]}, "must share one shape"),
        ({"image": lambda i, e, w: np.where(i == i.max(), np.nan, i)}, "must be finite, found 3 NaN"),
        ({"endo": lambda i, e, w: e * 0}, "endo mask is empty"),
        ({"endo": lambda i, e, w: e * 3}, "endo mask must hold only 0 and 1, found 0, 3"),
        ({"wall": lambda i, e, w: w * 0.5}, "wall mask must hold only 0 and 1"),
        ({"image": lambda i, e, w: (i > 50).astype(np.float32)}, "k = 3 clusters need at least 3 distinct intensities"),
        ({"image": lambda i, e, w: np.stack([i, i])}, "one 3D volume"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        CompositeLabel(3)(**break_scene(**changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": -1}, "k must be an integer in 0…10"),
        ({"sigma": -1.0}, "sigma must lie in 0…20 voxels"),
        ({"background": "dark"}, "background must be one of auto, zero, lowest, none"),
        ({"k": 2, "centers": [0.5]}, "centers must be k = 2 distinct values"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        CompositeLabel(**arguments)
