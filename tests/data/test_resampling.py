"""Label maps to the trained voxel size and volumes back: same grid, no shift, nothing changed where nothing differs."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from semsynth.data.entries import load_label_maps
from semsynth.data.geometry import VOXEL_SIZE, Geometry, TrainedGrid
from semsynth.data.resampling import AS_GIVEN, OwnGridd, TrainedSpacingd, resampled, resampled_classes

OBLIQUE = np.array([[0.9, -0.3, 0.0, 7.0], [0.3, 0.9, 0.1, -5.0], [0.0, -0.1, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


def grid(folder: Path, spacing: Sequence[float] = (1.0, 1.0, 1.0), *, resample: bool = True) -> TrainedGrid:
    """That of weights whose card states the voxel size."""
    card = {"geometry": Geometry.of_grids([(spacing, (40, 40, 40))]).to_json()}
    (folder / "model.json").write_text(json.dumps(card))
    return TrainedGrid(folder / "model.pt", folder / "metadata.json", resample)


def directions(spacing: Sequence[float]) -> torch.Tensor:
    """An oblique affine of that voxel size."""
    affine = OBLIQUE.copy()
    affine[:3, :3] *= np.asarray(spacing) / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    return torch.from_numpy(affine)


def positions(volume: Any) -> torch.Tensor:
    """``(3, H, W, D)``: mm of every voxel's centre."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in volume.shape[1:]), indexing="ij")).double()
    return torch.einsum("ij,jhwd->ihwd", volume.affine[:3, :3], index) + volume.affine[:3, 3].view(3, 1, 1, 1)


def smooth(place: torch.Tensor) -> torch.Tensor:
    """A smooth volume as a function of mm."""
    return (torch.sin(place[0] / 9) + torch.cos(place[1] / 11) + torch.sin(place[2] / 10 + 1))[None].float()


def label_map(spacing: Sequence[float], shape: Sequence[int], path: str = "label.nii.gz") -> MetaTensor:
    """Balls around the middle, as class indices."""
    empty = MetaTensor(torch.zeros(1, *shape), affine=directions(spacing))
    place = positions(empty)
    middle = place.reshape(3, -1).mean(dim=1).view(3, 1, 1, 1)
    distance = (place - middle).norm(dim=0)
    data = sum((distance < radius).to(torch.uint8) for radius in (8.0, 10.0, 14.0))
    return MetaTensor(data[None], affine=directions(spacing), meta={"filename_or_obj": path})  # type: ignore[index, arg-type]


SIZES = [((0.6, 0.6, 0.6), (50, 51, 52)), ((1.25, 1.25, 8.0), (30, 31, 6)), ((0.7, 1.0, 2.3), (41, 40, 17))]


@pytest.mark.parametrize(("spacing", "shape"), SIZES)
def test_there_and_back_is_the_same_grid_without_a_shift(
    tmp_path: Path, spacing: Sequence[float], shape: Sequence[int]
) -> None:
    label = label_map(spacing, shape)
    there = TrainedSpacingd("image", grid(tmp_path))({"image": label, "case": "a"})
    seen = there["image"]
    assert torch.allclose(seen.pixdim.double(), torch.ones(3, dtype=torch.float64)) and seen.dtype == torch.uint8
    for n, count, size in zip(shape, seen.shape[1:], spacing, strict=True):
        assert abs((n - 1) * size - (count - 1)) <= 0.5
    assert there[f"image{AS_GIVEN}"] is label and seen.meta["filename_or_obj"] == "label.nii.gz"
    # a volume that is a function of mm, made on the network's grid, is that function on the map's own
    back = OwnGridd("pred")(there | {"pred": MetaTensor(smooth(positions(seen)), affine=seen.affine)})
    assert back["image"] is label and set(back) == {"image", "case", "pred"}
    assert back["pred"].shape == label.shape and torch.equal(back["pred"].affine, label.affine)
    inner = tuple(slice(2, -2) if n > 8 else slice(1, -1) for n in shape)
    error = (back["pred"][0] - smooth(positions(label))[0])[inner]
    half = smooth(positions(label) + 0.5 * min(spacing))[0][inner] - smooth(positions(label))[0][inner]
    assert error.abs().max() < 0.005 < half.abs().max() / 3


def test_the_map_is_where_it_was(tmp_path: Path) -> None:
    label = label_map((0.6, 0.6, 0.6), (70, 71, 72))
    seen = TrainedSpacingd("image", grid(tmp_path))({"image": label})["image"]
    for value in (1, 2, 3):
        own, new = ((part[0] == value) for part in (label, seen))
        centres = [positions(part)[:, mask].mean(dim=1) for part, mask in ((label, own), (seen, new))]
        assert (centres[0] - centres[1]).norm() < 0.05
        assert float(new.sum()) == pytest.approx(float(own.sum()) * 0.216, rel=0.05)


def test_the_largest_fraction_wins_and_a_tie_is_the_lowest_class() -> None:
    label = torch.tensor([0, 0, 3, 3, 1, 1, 2, 2], dtype=torch.uint8).view(1, 8, 1, 1)
    halved = resampled_classes(label, (4, 1, 1), (1.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    assert halved.flatten().tolist() == [0, 3, 1, 2] and halved.dtype == torch.uint8
    tied = resampled_classes(label[:, 1:3], (1, 1, 1), (1.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    assert tied.flatten().tolist() == [0]
    tied = resampled_classes(label[:, 3:5], (1, 1, 1), (1.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    assert tied.flatten().tolist() == [1]
    one_hot = torch.nn.functional.one_hot(torch.randint(0, 12, (9, 8, 7)), 12).movedim(-1, 0).float()
    wanted = resampled(one_hot, (13, 6, 7), (1.0, 1.0, 1.0), (0.7, 1.3, 1.0)).argmax(dim=0)
    found = resampled_classes(one_hot.argmax(dim=0)[None], (13, 6, 7), (1.0, 1.0, 1.0), (0.7, 1.3, 1.0))
    assert torch.equal(found[0], wanted)


def test_edges_are_repeated() -> None:
    volume = torch.arange(4.0).view(1, 4, 1, 1)
    finer = resampled(volume, (8, 1, 1), (2.0, 1.0, 1.0), (1.0, 1.0, 1.0)).flatten()
    assert torch.equal(finer, torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.005, 0.995, 1.0)])
def test_a_map_of_the_trained_voxel_size_stays_the_very_same_tensor(tmp_path: Path, spacing: Sequence[float]) -> None:
    label = label_map(spacing, (40, 41, 42))
    there = TrainedSpacingd("image", grid(tmp_path))({"image": label})
    assert there["image"] is label and set(there) == {"image"}
    pred = torch.rand(1, 40, 41, 42)
    back = OwnGridd("pred")(there | {"pred": pred})["pred"]
    assert torch.equal(back.as_tensor(), pred) and torch.allclose(back.affine, label.affine)


def test_without_the_option_nothing_is_resampled(tmp_path: Path) -> None:
    label = label_map((0.6, 0.6, 0.6), (40, 41, 42))
    assert TrainedSpacingd("image", grid(tmp_path, resample=False))({"image": label})["image"] is label


def test_images_go_with_their_map(tmp_path: Path) -> None:
    label = label_map((0.7, 1.0, 2.3), (41, 40, 17))
    real = MetaTensor(smooth(positions(label)), affine=label.affine, meta={"filename_or_obj": "image.nii.gz"})
    there = TrainedSpacingd("image", grid(tmp_path), images=["real"])({"image": label, "real": real})
    assert torch.equal(there["real"].affine, there["image"].affine) and there["real"].shape == there["image"].shape
    error = there["real"] - smooth(positions(there["real"]))
    assert error[:, 3:-3, 3:-3, 4:-4].abs().max() < 0.01


def test_a_difference_is_logged_once_per_kind_and_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    step = TrainedSpacingd("image", grid(tmp_path, resample=False))
    for name, spacing in (("a", 0.6), ("b", 0.6), ("c", 3.0), ("d", 1.0)):
        step({"image": label_map((spacing,) * 3, (40, 41, 42), f"{tmp_path}/{name}.nii.gz")})
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [VOXEL_SIZE in text for text in said] == [True, True, False]  # c is also three times as large
    assert "a.nii.gz" in said[0] and "c.nii.gz" in said[1]


def test_what_the_list_has_told_is_not_told_again_also_in_a_worker(
    tmp_path: Path, tiny_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = grid(tmp_path, resample=False)
    entries = load_label_maps(tiny_dataset, grid=weights)
    assert caplog.text.count(VOXEL_SIZE) == 1
    step = TrainedSpacingd("image", weights)
    label = label_map((3.0, 3.0, 3.0), (32, 32, 32), entries[0]["image"])
    for one in (step, pickle.loads(pickle.dumps(step))):
        one({"image": label})
    assert caplog.text.count(VOXEL_SIZE) == 1
    other = TrainedGrid(tmp_path / "other.pt", tmp_path / "metadata.json")
    (tmp_path / "other.json").write_text((tmp_path / "model.json").read_text())
    TrainedSpacingd("image", other)({"image": label})  # other weights: nobody has told of them
    assert caplog.text.count(VOXEL_SIZE) == 2
