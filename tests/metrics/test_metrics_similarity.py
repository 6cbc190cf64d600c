"""PSNR, RMSE, MAE, SSIM and MS-SSIM: independent implementations, closed forms, masks, wrong input, engines."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler
from monai.metrics import MAEMetric, MultiScaleSSIMMetric, PSNRMetric, RMSEMetric, SSIMMetric
from scipy.ndimage import gaussian_filter
from semsynth import metrics
from semsynth.data.volumes import read_volume, scale_intensity
from semsynth.errors import InputError
from semsynth.metrics import PAPER_WEIGHTS, mae, ms_ssim, ms_ssim_terms, psnr, rmse, similarity, ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim

DATA = Path(os.environ.get("SEMSYNTH_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
NAMES = {"psnr", "rmse", "mae", "ssim", "ms_ssim", "ms_ssim_normalised"}


def smooth_pair(shape: tuple[int, ...], seed: int = 0, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Blobs with a flat background, and the same with noise and another contrast, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    sigma = [0, 0] + [3] * (len(shape) - 2)
    y = gaussian_filter(rng.normal(size=shape), sigma)
    y = np.clip(y / (3 * y.std()), 0, 1)
    y_pred = np.clip(0.8 * y + 0.1 + noise * rng.normal(size=shape), 0, 1)
    return torch.from_numpy(y_pred).float(), torch.from_numpy(y).float()


@pytest.fixture(scope="module")
def real_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A real volume, cropped and thinned to every second voxel in plane, and the same painted over by its blur."""
    if not DATA.is_dir():
        pytest.skip(f"no real volumes at {DATA} (set SEMSYNTH_DATA)")
    folder = sorted(path for path in (DATA / "la2018").iterdir() if path.is_dir())[0]
    image = scale_intensity(read_volume(folder / "lgemri.nii.gz").data.astype(np.float32))[::2, ::2][:120, :100, :60]
    y = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    return torch.from_numpy(gaussian_filter(image, 1.5))[None, None], y


def check_against_monai(y_pred: torch.Tensor, y: torch.Tensor) -> None:
    """MONAI computes in float32, E[x²] − E[x]²: its SSIM of real volumes is off in the fifth digit."""
    dims, found = y.ndim - 2, similarity(y_pred, y)
    assert found.keys() == NAMES and all(v.shape == (len(y),) and v.dtype == torch.float32 for v in found.values())
    for name, theirs, rel in (
        ("psnr", PSNRMetric(1.0), 1e-5),
        ("rmse", RMSEMetric(), 1e-5),
        ("mae", MAEMetric(), 1e-5),
        ("ssim", SSIMMetric(dims), 5e-5),
        ("ms_ssim", MultiScaleSSIMMetric(dims, weights=PAPER_WEIGHTS), 5e-5),
        ("ms_ssim_normalised", MultiScaleSSIMMetric(dims, weights=[w / 0.6305 for w in PAPER_WEIGHTS]), 5e-5),
    ):
        torch.testing.assert_close(
            found[name], theirs(y_pred, y)[:, 0], rtol=rel, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shape", [(2, 1, 48, 61, 45), (1, 2, 47, 44, 50), (3, 1, 90, 77), (1, 1, 130, 46, 44)])
def test_all_agree_with_monai_also_for_odd_sizes_channels_and_2d(shape):
    check_against_monai(*smooth_pair(shape))


def test_all_agree_with_monai_on_a_real_volume(real_pair):
    check_against_monai(*real_pair)


def check_against_skimage(y_pred: torch.Tensor, y: torch.Tensor) -> None:
    """In float64; its windows are cut at 3.5 σ, so 11 voxels, and its mean leaves out the border of 5."""
    a, b = y_pred[0, 0].double(), y[0, 0].double()
    expected = structural_similarity(
        b.numpy(), a.numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(a[None, None], b[None, None]).item() == pytest.approx(expected, rel=1e-9)
    expected = peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1.0)
    assert psnr(a[None, None], b[None, None]).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 40, 31, 22), (1, 1, 64, 50)])
def test_ssim_and_psnr_agree_with_scikit_image(shape):
    check_against_skimage(*smooth_pair(shape))


def test_ssim_and_psnr_agree_with_scikit_image_on_a_real_volume(real_pair):
    check_against_skimage(*real_pair)


@pytest.mark.parametrize("shape", [(2, 1, 100, 77), (1, 1, 24, 30, 25)])
def test_ssim_and_contrast_agree_with_torchmetrics(shape):
    """Its MS-SSIM takes SSIM over a reflected border too, so it cannot agree; what it is made from does."""
    y_pred, y = (x.double() for x in smooth_pair(shape))
    options = {"sigma": 1.5, "data_range": 1.0, "reduction": "none"}
    contrast = torchmetrics_ssim(y_pred, y, return_contrast_sensitivity=True, **options)[1]
    windows = torchmetrics_ssim(y_pred, y, return_full_image=True, **options)[1][(..., *[slice(5, -5)] * y[0, 0].ndim)]
    terms = ms_ssim_terms(y_pred, y, scales=1)
    torch.testing.assert_close(terms.contrast[0], contrast, rtol=1e-9, atol=0)
    torch.testing.assert_close(terms.ssim[0], windows.flatten(1).mean(dim=1), rtol=1e-9, atol=0)


def test_float32_agrees_with_float64_also_on_a_bright_flat_background():
    y_pred, y = smooth_pair((1, 1, 60, 60, 60))
    y_pred, y = 0.9 + 0.1 * y_pred, 0.9 + 0.1 * y  # E[x²] − E[x]² at its worst: little variance about a large mean
    single, double = similarity(y_pred, y), similarity(y_pred.double(), y.double())
    for name, value in single.items():
        assert double[name].dtype == torch.float64
        assert value.item() == pytest.approx(double[name].item(), rel=1e-5), name


def test_autocast_and_half_precision_images_change_no_more_than_their_own_rounding():
    y_pred, y = smooth_pair((1, 1, 50, 50, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert similarity(y_pred, y) == similarity(y_pred, y)
        inside = ms_ssim(y_pred, y)
    assert inside.item() == ms_ssim(y_pred, y).item()
    assert ms_ssim(y_pred.half(), y.half()).item() == pytest.approx(inside.item(), abs=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_identical_and_constant_images(dims):
    y = smooth_pair((2, 1, *[50] * dims))[1]
    same = similarity(y, y.clone())
    assert same["psnr"].tolist() == [float("inf")] * 2 and same["rmse"].tolist() == same["mae"].tolist() == [0, 0]
    assert all(same[name].tolist() == [1, 1] for name in ("ssim", "ms_ssim", "ms_ssim_normalised"))
    flat = torch.full((1, 1, *[50] * dims), 0.3)
    assert ssim(flat, flat).item() == ms_ssim(flat, flat).item() == 1
    luminance = (2 * 0.3 * 0.5 + 1e-4) / (0.3**2 + 0.5**2 + 1e-4)  # contrast and structure of two constants are 1
    assert ssim(flat, flat + 0.2).item() == pytest.approx(luminance, rel=1e-6)
    assert ms_ssim(flat, flat + 0.2).item() == pytest.approx(luminance**0.3001, rel=1e-6)
    assert psnr(flat, flat + 0.2).item() == pytest.approx(-20 * np.log10(0.2), rel=1e-6)


def test_known_errors_have_known_values_in_the_units_of_max_val():
    y = torch.full((1, 1, 50, 50), 100.0)
    y_pred = y.clone()
    y_pred[..., :25] += 30
    found = similarity(y_pred, y, max_val=255)
    assert found["mae"].item() == pytest.approx(15) and found["rmse"].item() == pytest.approx(450**0.5)
    assert found["psnr"].item() == pytest.approx(10 * np.log10(255**2 / 450), rel=1e-6)
    scaled = similarity(y_pred / 255, y / 255)
    assert all(scaled[n].item() == pytest.approx(found[n].item(), rel=1e-5) for n in NAMES - {"mae", "rmse"})
    whole = similarity(y_pred.to(torch.uint8), y.to(torch.uint8), max_val=255)
    assert whole == found


def test_symmetric_and_one_pass_is_the_same_as_each_alone():
    y_pred, y = (100 * x for x in smooth_pair((2, 1, 45, 44, 46)))
    found, turned = similarity(y_pred, y, max_val=100), similarity(y, y_pred, max_val=100)
    for name, alone in {
        "psnr": psnr, "rmse": rmse, "mae": mae, "ssim": ssim, "ms_ssim": ms_ssim,
        "ms_ssim_normalised": partial(ms_ssim, normalize=True),
    }.items():  # fmt: skip
        assert torch.equal(alone(y_pred, y, max_val=100), found[name]), name
        torch.testing.assert_close(turned[name], found[name])
    terms = ms_ssim_terms(y_pred, y, max_val=100)
    assert terms.ssim.shape == terms.contrast.shape == (3, 2) and torch.equal(terms.ssim[0], found["ssim"])
    torch.testing.assert_close(found["ms_ssim"], found["ms_ssim_normalised"] ** 0.6305)


def test_images_do_not_influence_each_other_and_are_left_as_they_are():
    y_pred, y = smooth_pair((3, 1, 44, 45, 44))
    copies = y_pred.clone(), y.clone()
    together = similarity(MetaTensor(y_pred), MetaTensor(y))
    assert torch.equal(y_pred, copies[0]) and torch.equal(y, copies[1])
    for i in range(3):
        alone = similarity(y_pred[i : i + 1], y[i : i + 1])
        assert all(alone[n].item() == together[n][i].item() for n in NAMES)
    assert not any(isinstance(v, MetaTensor) for v in together.values())


def test_worse_images_score_worse():
    rows = [similarity(*smooth_pair((1, 1, 50, 50, 50), noise=n)) for n in (0.01, 0.05, 0.1, 0.2)]
    for name in NAMES:
        values = [row[name].item() for row in rows]
        assert values == sorted(values, reverse=name not in ("mae", "rmse")), name


def test_negative_means_count_as_0():
    y = smooth_pair((1, 1, 50, 50, 50))[1]
    assert ms_ssim_terms(1 - y, y).contrast[0].item() < 0 and ms_ssim(1 - y, y).item() == 0


def test_only_voxels_inside_the_mask_count():
    y_pred, y = smooth_pair((2, 1, 60, 52, 50))
    mask = torch.zeros(2, 1, 60, 52, 50, dtype=torch.bool)
    mask[0, :, 12:40, 10:40, 10:40] = True
    mask[1, :, 20:45, 15:30, 12:38] = True
    found = similarity(y_pred, y, mask=mask)
    for i in range(2):
        apart = (y_pred[i] - y[i])[mask[i]].double()
        assert found["mae"][i].item() == pytest.approx(apart.abs().mean().item(), rel=1e-5)
        assert found["rmse"][i].item() == pytest.approx(apart.square().mean().sqrt().item(), rel=1e-5)
        assert found["psnr"][i].item() == pytest.approx(-10 * apart.square().mean().log10().item(), rel=1e-5)
    # Windows centred in a box are the valid region of the box with a border of five.
    box = (slice(0, 1), slice(None), slice(7, 45), slice(5, 45), slice(5, 45))
    assert found["ssim"][0].item() == pytest.approx(ssim(y_pred[box], y[box]).item(), rel=1e-5)
    seen = torch.zeros_like(mask)  # what the windows reach
    seen[0, :, 7:45, 5:45, 5:45] = seen[1, :, 15:50, 10:35, 7:43] = True
    outside = torch.where(seen, y_pred, torch.rand_like(y_pred))
    torch.testing.assert_close(ssim(outside, y, mask=mask), found["ssim"])
    everything = similarity(y_pred, y, mask=torch.ones_like(mask))
    for name, value in similarity(y_pred, y).items():
        torch.testing.assert_close(everything[name], value)


def test_ms_ssim_pools_the_mask_like_the_images():
    """Against scipy's windows at every voxel and torch's pooling; a coarse voxel counts if at least half inside."""
    y_pred, y = (x.double() for x in smooth_pair((1, 1, 61, 64, 60)))
    mask = smooth_pair((1, 1, 61, 64, 60), seed=3)[1] > 0.2
    found, value, fraction = ms_ssim(y_pred, y, mask=mask), 1.0, mask.double()
    for scale, weight in enumerate(PAPER_WEIGHTS):
        if scale:
            y_pred, y, fraction = (F.avg_pool3d(x, 2) for x in (y_pred, y, fraction))
        p, q = y_pred[0, 0].numpy(), y[0, 0].numpy()
        a, b, aa, bb, ab = (
            gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5, 5:-5] for x in (p, q, p * p, q * q, p * q)
        )
        terms = (2 * (ab - a * b) + 9e-4) / (aa - a**2 + bb - b**2 + 9e-4)
        if scale == 2:
            terms = terms * (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
        value *= terms[fraction[0, 0, 5:-5, 5:-5, 5:-5].numpy() >= 0.5].mean() ** weight
    assert found.item() == pytest.approx(value, rel=1e-9)


GOOD = torch.rand(1, 1, 44, 44, 44, generator=torch.Generator().manual_seed(0))
NAN = torch.where(GOOD > 0.999, torch.nan, GOOD)


@pytest.mark.parametrize("metric", [psnr, rmse, mae, ssim, ms_ssim, similarity])
@pytest.mark.parametrize(
    ("y_pred", "y", "options", "message"),
    [
        (GOOD[..., :43], GOOD, {}, r"y_pred has shape \(1, 1, 44, 44, 43\) and y has"),
        (GOOD[0, 0], GOOD[0, 0], {}, r"images have shape \(44, 44, 44\); needed is"),
        (GOOD * 1.1, GOOD, {}, "y_pred has intensities from .* to 1.1; needed is 0 to 1"),
        (GOOD, GOOD * 2 - 1, {}, "y has intensities from -1 to 1;"),
        (GOOD, GOOD * 255, {"max_val": 200}, "y has intensities from .* to 255; needed is 0 to 200"),
        (NAN, GOOD, {}, "y_pred has intensities from nan to nan; .* no NaN"),
        (GOOD, NAN, {}, "y has intensities from nan"),
        (GOOD, GOOD, {"max_val": 0}, "max_val is the range of intensities and must be above 0, got 0"),
        (GOOD, GOOD, {"mask": torch.ones(1, 44, 44, 44)}, r"mask has shape \(1, 44, 44, 44\), needed is \(1, 1, 44"),
        (GOOD, GOOD, {"mask": torch.zeros(1, 1, 44, 44, 44)}, r"mask is empty for image\(s\) \[0\]"),
    ],
)
def test_wrong_images_are_refused(metric, y_pred, y, options, message):
    with pytest.raises(InputError, match=message):
        metric(y_pred, y, **options)


def test_a_thousandth_outside_of_the_range_is_rounding():
    assert psnr(GOOD + 5e-4, GOOD).item() == pytest.approx(66.02, abs=0.01)


def test_images_too_small_and_masks_at_the_border_are_refused_with_the_size_that_is_needed():
    with pytest.raises(InputError, match=r"too small for MS-SSIM of 3 scales: the smallest side must be at least 44"):
        ms_ssim(GOOD[..., 1:], GOOD[..., 1:])
    with pytest.raises(InputError, match=r"too small for SSIM: the smallest side must be at least 11"):
        ssim(GOOD[..., :10], GOOD[..., :10])
    assert ms_ssim(GOOD, GOOD).item() == ssim(GOOD[..., :11], GOOD[..., :11]).item() == 1
    border = torch.zeros(1, 1, 44, 44, 44)
    border[..., :4] = 1
    with pytest.raises(InputError, match="mask leaves no window at scale 1"):
        ssim(GOOD, GOOD, mask=border)
    for mask in (border * 0.3, border * torch.nan):
        with pytest.raises(InputError, match="mask has values other than 0 and 1"):
            psnr(GOOD, GOOD, mask=mask)
    for weights in ((), (0.0, 0.0), (-1.0, 2.0)):
        with pytest.raises(InputError, match="weights of MS-SSIM must be 0 or more and not all 0"):
            ms_ssim(GOOD, GOOD, weights=weights)


def test_image_metrics_are_key_metrics_of_a_real_engine():
    torch.manual_seed(0)
    data = [{"image": torch.rand(1, 44, 44, 44), "label": torch.rand(1, 44, 44, 44), "case": i} for i in range(3)]
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.Sigmoid())
    classes = {
        "psnr": metrics.PSNR(), "ssim": metrics.SSIM(), "rmse": metrics.RMSE(), "mae": metrics.MAE(),
        "ms_ssim": metrics.MultiScaleSSIM(), "ms_ssim_normalised": metrics.MultiScaleSSIM(normalize=True),
    }  # fmt: skip
    handlers = {
        name: IgniteMetricHandler(
            metric, output_transform=lambda out: tuple([o[k] for o in out] for k in ("pred", "label"))
        )
        for name, metric in classes.items()
    }
    engine = SupervisedEvaluator(
        torch.device("cpu"), torch.utils.data.DataLoader(data, batch_size=2), network,
        key_val_metric={"psnr": handlers.pop("psnr")}, additional_metrics=handlers,
    )  # fmt: skip
    for _ in range(2):  # the second run starts from nothing again
        engine.run()
    with torch.no_grad():
        pred = network(torch.stack([d["image"] for d in data]))
    expected = similarity(pred, torch.stack([d["label"] for d in data]))
    for name, values in expected.items():
        assert engine.state.metrics[name] == pytest.approx(values.mean().item(), rel=1e-5)
        torch.testing.assert_close(engine.state.metric_details[name], values[:, None])
    assert engine.state.best_metric == engine.state.metrics["psnr"]


def test_metric_classes_take_batches_with_masks_and_a_range():
    y_pred, y = smooth_pair((2, 1, 50, 50, 50))
    mask = torch.ones(2, 1, 50, 50, 50, dtype=torch.bool)
    mask[1, ..., :20] = False
    metric = metrics.SSIM(max_val=255, reduction="none")
    assert metric(y_pred * 255, y * 255, mask=mask).shape == (2, 1)
    torch.testing.assert_close(metric.aggregate()[:, 0], ssim(y_pred, y, mask=mask))
    with pytest.raises(InputError, match="y_pred has shape"):
        metric(y_pred[..., 1:], y)
