"""Loading for training: scaled, checked against the network's classes, on one grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd
from semsynth.data.transforms import (
    Chain,
    CropContentd,
    LoadIntensityd,
    LoadLabelMapd,
    RandIntensityCurved,
    RandTissueContrastd,
    SameGridd,
    TissueMapd,
)
from semsynth.data.volumes import write_image, write_label
from semsynth.errors import InputError
from semsynth.labels import one_hot
from semsynth.vocabulary import class_names, num_classes

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    image = write_image(tmp_path / "i.nii.gz", 0.2 + 0.5 * rng.random((6, 7, 8)), AFFINE, "float32")
    label = write_label(tmp_path / "l.nii.gz", rng.integers(0, 4, (6, 7, 8)), AFFINE)
    return {"image": str(image), "label": str(label)}


def test_images_are_scaled_and_label_maps_kept_with_their_geometry(case):
    data = SameGridd(["image", "label"])(LoadLabelMapd("label", 4)(LoadIntensityd("image")(case)))
    assert data["image"].shape == data["label"].shape == (1, 6, 7, 8)
    assert data["image"].min() == 0 and data["image"].max() == 1 and data["image"].dtype == torch.float32
    assert data["label"].dtype == torch.uint8 and set(data["label"].unique().tolist()) == {0, 1, 2, 3}
    assert np.allclose(data["image"].affine, AFFINE) and isinstance(case["image"], str)


def test_a_map_with_more_classes_than_the_network_is_named(case):
    with pytest.raises(InputError, match=r"l\.nii\.gz: class indices must lie in 0…2 \(num_classes 3\), found 0…3"):
        LoadLabelMapd("label", 3)(case)


def test_a_map_that_was_resampled_linearly_is_named(tmp_path):
    path = write_image(tmp_path / "l.nii.gz", np.linspace(0, 1, 8).reshape(2, 2, 2), AFFINE, "float32")
    with pytest.raises(InputError, match="class indices must be integers, found fractions"):
        LoadLabelMapd("label", 4)({"label": str(path)})


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [((6, 7, 9), AFFINE, "must share one shape"), ((6, 7, 8), np.diag([1.5, 1.5, 2.1, 1]), "must share one affine")],
)
def test_image_and_map_on_two_grids_are_named(case, tmp_path, shape, affine, message):
    other = write_label(tmp_path / "other.nii.gz", np.zeros(shape, dtype=int), affine)
    data = LoadLabelMapd("label", 4)(LoadIntensityd("image")(case | {"label": str(other)}))
    with pytest.raises(InputError, match=message):
        SameGridd(["image", "label"])(data)


def test_classes_and_one_hot():
    assert [num_classes(k) for k in (0, 1, 2, 5)] == [3, 3, 4, 7]
    assert [num_classes(k, background=False) for k in (0, 1, 2)] == [3, 4, 5]
    assert list(class_names(5).values()) == ["background", "endo", "wall", "tissue 1", "tissue 2"]
    label = torch.tensor([0, 1, 2, 9]).view(1, 1, 4, 1, 1)
    assert one_hot(label, 3)[0, :, :, 0, 0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_padding_is_cut_away_before_anything_is_measured(case):
    data = LoadLabelMapd("label", 4)(LoadIntensityd("image")(case))
    cropped = CropContentd(["image", "label"])(data | {"content": {"start": [1, 0, 2], "shape": [4, 7, 5]}})
    assert cropped["image"].shape == cropped["label"].shape == (1, 4, 7, 5) and "content" not in cropped
    assert torch.equal(cropped["image"], data["image"][:, 1:5, :, 2:7])
    assert np.allclose(cropped["image"].affine[:3, 3], [1.5, 0, 4])
    assert CropContentd(["image"])(data)["image"].shape == data["image"].shape


def test_a_random_curve_changes_the_order_of_intensities_by_its_seed_alone():
    image = MetaTensor(torch.linspace(0, 1, 64).reshape(1, 4, 4, 4), affine=torch.eye(4) * 2)
    transform = RandIntensityCurved("image", prob=1.0)
    results = []
    for seed in (3, 4, 3):
        transform.set_random_state(seed=seed)
        results.append(transform({"image": image})["image"])
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    assert results[0].dtype == torch.float32 and torch.equal(results[0].affine, image.affine)
    assert float(results[0].min()) >= 0 and float(results[0].max()) <= 1
    falls = [bool((r.flatten().diff() < 0).any()) for r in results]
    assert any(falls), "blood must not always stay the brightest"
    assert transform.__class__("image", prob=0.0)({"image": image})["image"] is image


def tissues() -> dict:
    """Three slabs of rising brightness, a target of two classes in the last."""
    image = torch.linspace(0.2, 0.7, 3).repeat_interleave(8).reshape(1, 24, 1, 1).expand(1, 24, 10, 10)
    image = image + 0.01 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 24, 10, 10)
    label[:, 20:22], label[:, 22:] = 1, 2
    return {"image": MetaTensor(image, affine=torch.eye(4) * 2), "label": MetaTensor(label)}


def test_tissues_are_the_parts_outside_the_target_by_brightness_and_the_targets_classes():
    tissue = TissueMapd(["image", "label"], sigma=0.5)(tissues())["tissue"]
    assert tissue.shape == (1, 24, 10, 10) and set(tissue.unique().tolist()) == {0, 1, 2, 3, 4}
    assert [int(tissue[0, i, 5, 5]) for i in (2, 12, 18, 21, 23)] == [0, 1, 2, 3, 4]


def test_each_tissue_is_brightened_or_darkened_as_a_whole_and_keeps_its_texture():
    given = TissueMapd(["image", "label"], sigma=0.5)(tissues())
    transform = RandTissueContrastd("image", prob=1.0, shift=0.15)
    results = []
    for seed in (1, 2, 1):
        transform.set_random_state(seed=seed)
        found = transform(given)
        assert "tissue" not in found and torch.equal(found["image"].affine, given["image"].affine)
        results.append(found["image"])
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    change = results[0] - given["image"]
    inner = [change[0, i, 2:-2, 2:-2] for i in (3, 12, 18)]
    assert all(float(c.std()) < 1e-3 for c in inner), "a constant within a tissue"
    assert len({round(float(c.mean()), 2) for c in inner}) == 3 and max(float(c.abs().max()) for c in inner) <= 0.15
    assert "tissue" not in RandTissueContrastd("image", prob=0.0)(given)
    bright = RandTissueContrastd("image", prob=1.0, shift=5.0).set_random_state(seed=0)(given)["image"]
    assert float(bright.min()) >= 0 and float(bright.max()) <= 1


def test_a_chain_takes_lists_apart_and_keeps_their_order():
    steps = [RandFlipd("image", prob=0.0, spatial_axis=axis) for axis in range(4)]
    chain = Chain([[steps[0], steps[1]], steps[2], (steps[3],)])
    assert list(chain.transforms) == steps and isinstance(chain, Compose)


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_tensors_and_arrays_are_taken_as_volumes_with_metadata_are(kind):
    given = tissues()
    given["label"] = MetaTensor(given["label"], affine=given["image"].affine)
    plain = {key: kind(np.asarray(value)) for key, value in given.items()}
    steps = [
        SameGridd(["image", "label"]),
        RandIntensityCurved("image", prob=1.0),
        TissueMapd(["image", "label"], sigma=0.5),
        RandTissueContrastd("image", prob=1.0),
    ]
    found = [given, plain]
    for step in steps:
        results = []
        for data in found:
            if hasattr(step, "set_random_state"):
                step.set_random_state(seed=3)
            results.append(step(data))
        found = results
        assert found[0].keys() == found[1].keys()
        for key in found[0]:
            assert (
                type(found[1][key]) is type(plain["image"])
                and found[1][key].dtype == kind(np.asarray(found[0][key])).dtype
            )
            assert np.array_equal(found[0][key], found[1][key]), (type(step).__name__, key)


def test_two_sizes_of_tensors_are_named_by_their_keys():
    data = {"image": torch.zeros(1, 6, 7, 8), "label": torch.zeros(1, 6, 7, 9)}
    with pytest.raises(InputError, match=r"image and label must share one shape, got \(6, 7, 8\) and \(6, 7, 9\)"):
        SameGridd(["image", "label"])(data)
