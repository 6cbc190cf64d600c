"""Volumes that another program has read: where they lie, which shapes they may have, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd
from semsynth.data.in_memory import ORIGINAL_AFFINE, SPATIAL_SHAPE, volume_of
from semsynth.data.resampling import OwnGridd, SpacingOfKeysd
from semsynth.data.transforms import LoadIntensityd, LoadLabelMapd
from semsynth.errors import InputError

AFFINE = np.array([[-1.0, 0.1, 0.0, 7.0], [0.1, 1.2, 0.0, -5.0], [0.0, 0.0, 1.4, 3.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (7, 6, 5)


def voxels(kind: str = "image") -> np.ndarray:
    random = np.random.default_rng(0)
    return random.random(SHAPE).astype(np.float32) if kind == "image" else random.integers(0, 4, SHAPE).astype(np.uint8)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("form", ["array", "tensor", "meta", "first", "last", "stated"])
def test_an_array_is_loaded_as_its_file_is(kind: str, form: str, tmp_path: Path) -> None:
    own = voxels(kind)
    nib.save(nib.Nifti1Image(own, AFFINE), tmp_path / "scan.nii.gz")
    forms: dict[str, Any] = {
        "array": own,
        "tensor": torch.from_numpy(own),
        "meta": MetaTensor(torch.from_numpy(own), affine=torch.from_numpy(AFFINE)),
        "first": own[None],
        "last": own[..., None],
        "stated": MetaTensor(torch.from_numpy(own[..., None]), affine=torch.from_numpy(AFFINE),
                             meta={"original_channel_dim": -1}),
    }  # fmt: skip
    load = LoadIntensityd("image") if kind == "image" else LoadLabelMapd("image", num_classes=4)
    wanted = load({"image": str(tmp_path / "scan.nii.gz")})["image"]
    found = load({"image": forms[form], "image_meta_dict": {"affine": AFFINE}})["image"]
    assert found.shape == (1, *SHAPE) and found.dtype == wanted.dtype
    assert torch.equal(found.as_tensor(), wanted.as_tensor())
    assert torch.allclose(found.affine, wanted.affine, atol=1e-6)
    assert np.allclose(found.meta[ORIGINAL_AFFINE], AFFINE, atol=1e-6) and tuple(found.meta[SPATIAL_SHAPE]) == SHAPE


def test_an_array_of_which_nobody_says_where_it_lies_has_voxels_of_1_mm() -> None:
    volume, name = volume_of({"image": voxels()}, "image")
    assert np.array_equal(volume.affine, np.eye(4)) and name == "image"


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5, 6), (4, 5, 6, 3), (1, 1, 4, 5, 6)])
def test_an_array_of_several_channels_or_other_axes_is_named(shape: tuple[int, ...]) -> None:
    data = {"image": MetaTensor(torch.zeros(shape), meta={"filename_or_obj": "scan 3"})}
    with pytest.raises(
        InputError, match=rf"scan 3: needs one volume of one channel.*{shape[0]}, {shape[1]}.*hand over"
    ):
        volume_of(data, "image")


def test_a_label_of_floats_is_rounded_and_one_between_classes_is_named() -> None:
    load = LoadLabelMapd("image", num_classes=4)
    near = voxels("label").astype(np.float32) + 1e-5
    assert torch.equal(load({"image": near})["image"].as_tensor()[0], torch.from_numpy(voxels("label")))
    with pytest.raises(InputError, match="image"):
        load({"image": near + 0.4})


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_volume_comes_back_in_the_order_of_voxels_of_its_map(flips: tuple[int, ...]) -> None:
    affine = nib.affines.from_matvec(np.diag(np.multiply(flips, [1.0, 1.2, 1.4])), [7, -5, 3])
    label = MetaTensor(torch.from_numpy(voxels("label")), affine=torch.from_numpy(affine))
    steps = Compose([LoadLabelMapd("image", num_classes=4), Orientationd("image", axcodes="RAS", labels=None)])
    seen = steps({"image": label})
    made = OwnGridd("pred")({**seen, "pred": seen["image"].as_tensor().float() * 10})["pred"]
    assert torch.equal(made.as_tensor()[0], label.as_tensor().float() * 10)
    assert torch.allclose(made.affine, torch.from_numpy(affine))


def test_spacing_leaves_alone_what_another_program_keeps_under_a_similar_name(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(voxels(), AFFINE), tmp_path / "scan.nii.gz")
    data = LoadIntensityd("image")({"image": str(tmp_path / "scan.nii.gz")}) | {"image_path": "a text", "other": 1}
    step = SpacingOfKeysd("image", pixdim=(2.0, 2.0, 2.0))
    made = step(data)
    assert made["image_path"] == "a text" and made["other"] == 1
    assert made["image"].shape[1:] != SHAPE
    assert step.inverse(made)["image"].shape[1:] == SHAPE
