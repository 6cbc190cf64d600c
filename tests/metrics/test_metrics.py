"""Consistency across slices, overlap of segmentations, LPIPS."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from semsynth.errors import InputError
from semsynth.metrics import inter_slice_consistency, lpips, segmentation_scores, slice_statistics
from semsynth.metrics.perceptual import BACKBONES


def volume(seed: int = 0, size: tuple[int, ...] = (20, 24, 28)) -> torch.Tensor:
    image = gaussian_filter(np.random.default_rng(seed).normal(size=size), 2)
    return torch.from_numpy((image - image.min()) / np.ptp(image)).float()[None, None]


def test_slice_statistics_are_those_of_numpy():
    y = torch.cat([volume(), volume(1)])
    found = slice_statistics(y)
    assert all(part.shape == (2, 3) for part in found)
    for i in range(2):
        for plane in range(3):
            slices = np.moveaxis(y[i, 0].double().numpy(), plane, 0).reshape(y.shape[plane + 2], -1)
            steps = np.abs(np.diff(slices, axis=0)).mean(axis=1)
            pearson = [np.corrcoef(a, b)[0, 1] for a, b in pairwise(slices)]
            expected = steps.mean(), np.mean(pearson), steps.std() / steps.mean()
            assert [part[i, plane].item() for part in found] == pytest.approx(expected, rel=1e-4)


def test_known_ramps_have_known_statistics():
    ramp = torch.linspace(0, 1, 11)[None, None, :, None, None] * torch.ones(1, 1, 11, 5, 6)
    found = slice_statistics(ramp, spacing=(0.5, 1, 2))
    assert found.difference[0].tolist() == pytest.approx([0.2, 0, 0], abs=1e-6)
    assert found.correlation[0].tolist() == pytest.approx([1, 1, 1]), "constant slices count as alike"
    assert found.flicker[0].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    stairs = torch.zeros(1, 1, 5, 4, 4)
    stairs[:, :, 2:] = 1
    assert slice_statistics(stairs).flicker[0, 0].item() == pytest.approx(3**0.5), "one jump in four steps"
    dot = torch.zeros(1, 1, 4, 4, 4)
    dot[0, 0, 0, 1, 1] = 1
    assert slice_statistics(dot).correlation[0, 0].item() == pytest.approx(2 / 3), "constant beside not constant is 0"


def test_slices_made_one_by_one_are_seen_in_their_plane_only():
    y = volume()
    y_pred = y.clone()
    y_pred += 0.1 * torch.randn(28, generator=torch.Generator().manual_seed(0))  # each axial slice its own brightness
    ratio, before, after = inter_slice_consistency(y_pred, y)[0], slice_statistics(y), slice_statistics(y_pred)
    assert ratio[:2].tolist() == pytest.approx([1, 1], rel=1e-4) and ratio[2] > 1.5
    assert after.flicker[0, 2] > 1.5 * before.flicker[0, 2]
    assert inter_slice_consistency(y, y).tolist() == [[1, 1, 1]]
    smooth = torch.from_numpy(gaussian_filter(y.numpy(), (0, 0, 2, 2, 2)))
    assert (inter_slice_consistency(smooth, y) < 1).all()


def test_consistency_of_constant_volumes_is_never_nan():
    flat, y = torch.full((1, 1, 20, 24, 28), 0.5), volume()
    assert [part.tolist() for part in slice_statistics(flat)] == [[[0, 0, 0]], [[1, 1, 1]], [[0, 0, 0]]]
    assert inter_slice_consistency(flat, flat).tolist() == [[1, 1, 1]]
    assert inter_slice_consistency(flat, y).tolist() == [[0, 0, 0]]
    assert inter_slice_consistency(y, flat).tolist() == [[float("inf")] * 3]


def test_wrong_volumes_are_refused():
    with pytest.raises(InputError, match=r"volumes have shape \(20, 24, 28\)"):
        slice_statistics(volume()[0, 0])
    with pytest.raises(InputError, match="two slices or more along each axis"):
        slice_statistics(volume()[..., :1])
    with pytest.raises(InputError, match="intensities from nan to nan; remove NaN"):
        slice_statistics(torch.where(volume() > 0.9, torch.nan, volume()))
    with pytest.raises(InputError, match=r"spacing must be three sizes in mm above 0 \(H, W, D\), got \(1, 0, 1\)"):
        slice_statistics(volume(), spacing=(1, 0, 1))
    with pytest.raises(InputError, match=r"y_pred has shape .* bring both to one grid"):
        inter_slice_consistency(volume()[..., 1:], volume())


def boxes(shift: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.zeros(2, 1, 24, 24, 24, dtype=torch.bool)
    y[:, :, 6:14, 6:14, 6:14] = True
    y_pred = y.clone()
    y_pred[1] = y[1].roll(shift, dims=1)
    return y_pred, y


def test_segmentation_scores_of_shifted_boxes_are_in_mm():
    y_pred, y = boxes()
    found = segmentation_scores(y_pred, y, (1.5, 1.0, 1.0))
    assert found["dice"].tolist() == pytest.approx([1, 0.75]) and found["jaccard"].tolist() == pytest.approx([1, 0.6])
    assert found["hd95"].tolist() == pytest.approx([0, 3]), "two voxels of 1.5 mm"
    assert found["asd"][0] == 0 and 0 < found["asd"][1] < 3
    coarse = segmentation_scores(y_pred, y, (3, 2, 2))
    assert all(coarse[name].tolist() == pytest.approx((2 * found[name]).tolist()) for name in ("hd95", "asd"))
    grid = MetaTensor(y.float(), affine=torch.diag(torch.tensor([1.5, 1.0, 1.0, 1.0])))
    for name, values in segmentation_scores(MetaTensor(y_pred.float()), grid).items():
        assert values.tolist() == found[name].tolist(), "voxel size of the affine"


@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class")
def test_scores_of_empty_masks_are_those_of_monai():
    y_pred, y = boxes()
    empty = torch.zeros_like(y)
    nothing = segmentation_scores(empty, empty, (1, 1, 1))
    assert all(torch.isnan(values).all() for values in nothing.values())
    invented = segmentation_scores(y_pred, empty, (1, 1, 1))
    assert torch.isnan(invented["dice"]).all() and torch.isnan(invented["jaccard"]).all()
    missed = segmentation_scores(empty, y, (1, 1, 1))
    assert missed["dice"].tolist() == missed["jaccard"].tolist() == [0, 0]
    assert not torch.isfinite(torch.cat([invented["hd95"], invented["asd"], missed["hd95"], missed["asd"]])).any()


def test_wrong_masks_are_refused():
    y_pred, y = boxes()
    with pytest.raises(InputError, match=r"both must be one \(B, 1, H, W, D\)"):
        segmentation_scores(y_pred[:1], y, (1, 1, 1))
    with pytest.raises(InputError, match=r"y_pred must be a mask of 0 and 1, has \[2\]; compare label == c"):
        segmentation_scores(y_pred.int() * 2, y.int(), (1, 1, 1))
    with pytest.raises(InputError, match=r"spacing must be three sizes in mm above 0 \(H, W, D\), got \[1.0, 1.0\]"):
        segmentation_scores(y_pred, y, (1, 1))
    with pytest.raises(InputError, match="y must be a MetaTensor with its affine"):
        segmentation_scores(y_pred, y)


def test_lpips_says_in_one_line_what_is_missing_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    y = volume(size=(40, 40, 3))
    with pytest.raises(InputError, match=r"LPIPS needs .*alexnet-owt-7be5be79\.pth .*TORCH_HOME.* not found") as error:
        lpips(y, y)
    assert "\n" not in str(error.value) and "pip install 'semsynth[lpips]'" in str(error.value)
    assert ("the package lpips" in str(error.value)) == (importlib.util.find_spec("lpips") is None)
    assert not list(tmp_path.rglob("*.pth"))


def test_lpips_refuses_what_it_cannot_measure():
    y = volume(size=(40, 40, 8))
    with pytest.raises(InputError, match=r"net must be alex, vgg, squeeze and planes any of .* got 'resnet'"):
        lpips(y, y, net="resnet")
    with pytest.raises(InputError, match=r"got 'alex' and \('oblique',\)"):
        lpips(y, y, planes=("oblique",))
    with pytest.raises(InputError, match=r"slices for LPIPS need 32 voxels a side, volumes are \(40, 40, 8\)"):
        lpips(y, y, planes=("axial", "coronal"))
    with pytest.raises(InputError, match="LPIPS takes volumes of one channel"):
        lpips(y.repeat(1, 2, 1, 1, 1), y.repeat(1, 2, 1, 1, 1))
    with pytest.raises(InputError, match="y_pred has intensities from 0 to 2"):
        lpips(y * 2, y)


def test_lpips_of_real_weights_is_0_for_equal_and_grows_with_noise():
    for package in ("lpips", "torchvision"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra lpips)", exc_type=Exception)
    weights = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES["alex"]
    if not weights.is_file():
        pytest.skip(f"no backbone weights at {weights}")
    y = volume(size=(64, 64, 40)).repeat(2, 1, 1, 1, 1)
    noisy = (y + torch.tensor([0.02, 0.2])[:, None, None, None, None] * torch.randn_like(y)).clamp(0, 1)
    assert lpips(y, y).tolist() == pytest.approx([0, 0], abs=1e-6)
    found = lpips(noisy, y, planes=("axial", "coronal"), batch_size=7)
    assert 0 < found[0] < found[1]
    torch.testing.assert_close(found[1:], lpips(noisy[1:], y[1:], planes=("axial", "coronal")))
