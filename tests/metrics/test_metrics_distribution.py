"""FID, MMD and KID: closed forms, independent implementations, wrong input, engines and processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler
from monai.metrics import FIDMetric, MMDMetric
from scipy.linalg import sqrtm
from semsynth.errors import InputError
from semsynth.metrics import FrechetDistance, MaximumMeanDiscrepancy, fid, kid, mmd2
from torch import nn
from torchmetrics.image.kid import poly_mmd


def features(n: int, f: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Correlated features of uneven scale, with a mean far from 0."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(f, f, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / f**0.5
    scale = torch.linspace(0.1, 3, f, dtype=torch.float64)
    return torch.randn(n, f, generator=g, dtype=torch.float64) @ mixing * scale + 2 + shift


def exact(mean: torch.Tensor, covariance: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """A sample whose mean and unbiased covariance are exactly those given."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    white = torch.linalg.qr(x - x.mean(dim=0))[0] * (n - 1) ** 0.5
    return white @ torch.linalg.cholesky(covariance).T + mean


def reference_fid(a: torch.Tensor, b: torch.Tensor) -> float:
    """As the formula is written, by scipy's matrix root."""
    x, y = a.double().numpy(), b.double().numpy()
    ca, cb = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(sqrtm(ca @ cb))
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(ca) + np.trace(cb) - 2 * np.trace(root))


@pytest.mark.parametrize(("n", "m", "f"), [(60, 80, 20), (300, 90, 64), (41, 200, 40)])
def test_fid_agrees_with_scipy_and_monai_where_the_covariances_are_regular(n, m, f):
    a, b = features(n, f), features(m, f, seed=1, shift=0.3)
    assert fid(a, b).item() == pytest.approx(reference_fid(a, b), rel=1e-8)
    assert fid(a, b).item() == pytest.approx(FIDMetric()(a, b).item(), rel=1e-8)


def test_fid_of_fewer_images_than_features_agrees_with_a_root_that_is_stable():
    """Eigenvalues of Σ_A^½ Σ_B Σ_A^½, by symmetric solvers only, stand where scipy's root does not."""
    a, b = features(12, 50), features(17, 50, seed=1, shift=0.3)
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(ca)
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T
    root = torch.linalg.eigvalsh(half @ cb @ half).clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * root
    assert fid(a, b).item() == pytest.approx(expected.item(), rel=1e-6)


def test_fid_of_gaussians_with_diagonal_covariances_is_the_closed_form():
    f = 8
    s, t = torch.linspace(0.5, 4, f).double(), torch.linspace(3, 0.2, f).double()
    mean, shift = torch.arange(f).double(), torch.linspace(-1, 2, f).double()
    a, b = exact(mean + shift, s.square().diag(), 30), exact(mean, t.square().diag(), 50, seed=1)
    expected = shift.square().sum() + (s - t).square().sum()
    assert fid(a, b).item() == pytest.approx(expected.item(), rel=1e-10)


def test_fid_of_gaussians_with_any_covariances_is_the_closed_form():
    ca, cb = torch.cov(features(40, 6).T), torch.cov(features(40, 6, seed=5).T)
    a, b = exact(torch.zeros(6).double(), ca, 9), exact(torch.ones(6).double(), cb, 12)
    expected = 6 + ca.trace() + cb.trace() - 2 * np.trace(np.real(sqrtm((ca @ cb).numpy())))
    assert fid(a, b).item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("n", [5, 16, 200])
def test_identical_sets_have_fid_0_and_a_pure_shift_has_its_square(n):
    a = features(n, 32)
    spread = a.var(dim=0).sum().item()
    assert 0 <= fid(a, a.clone()).item() <= 1e-10 * spread
    shift = torch.linspace(-1, 1, 32).double()
    assert fid(a + shift, a).item() == pytest.approx(shift.square().sum().item(), rel=1e-9)
    assert mmd2(a + shift, a).item() < shift.square().sum().item(), "unbiased: less than the distance of the means"


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 40), st.integers(0, 10**6), st.floats(-1e3, 1e3))
def test_fid_and_mmd_are_symmetric_blind_to_order_and_shift_and_fid_is_never_negative(n, m, f, seed, offset):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(n, f, generator=g).double(), torch.randn(m, f, generator=g).double() * 1.5
    mixed = a[torch.randperm(n, generator=g)]
    for metric in (fid, mmd2):
        value = metric(a, b)
        assert value.dtype == torch.float64 and value.ndim == 0
        torch.testing.assert_close(metric(b, a), value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(metric(mixed, b), value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(metric(a + offset, b + offset), value, rtol=1e-7, atol=1e-7)
    assert fid(a, b) >= 0
    torch.testing.assert_close(kid(b, mixed), kid(a, b), rtol=1e-9, atol=1e-9)


def test_every_image_twice_leaves_the_mean_and_shrinks_the_covariance_as_it_must():
    a, b = features(10, 24), features(14, 24, seed=1)
    twice = torch.cat([a, a])
    smaller = a.mean(dim=0) + (a - a.mean(dim=0)) * (2 * 9 / 19) ** 0.5  # 20 rows, 19 degrees of freedom
    assert fid(twice, b).item() == pytest.approx(fid(smaller, b).item(), rel=1e-9)
    assert fid(a[:1].repeat(10, 1), b).item() == pytest.approx(
        (a[0] - b.mean(0)).square().sum().item() + b.var(dim=0).sum().item(), rel=1e-9
    ), "one image ten times: no covariance"


def test_fid_of_float32_features_is_that_of_the_same_numbers_in_float64_and_leaves_them_alone():
    a, b = features(16, 100).float(), features(16, 100, seed=1).float()
    copies = a.clone(), b.clone()
    assert fid(a, b) == fid(a.double(), b.double())
    assert kid(a, b) == kid(a.double(), b.double())
    assert torch.equal(a, copies[0]) and torch.equal(b, copies[1])


def test_dot_mmd_agrees_with_monai_and_with_the_sums_of_the_paper():
    a, b = features(14, 20), features(14, 20, seed=1, shift=0.2)
    assert mmd2(a, b).item() == pytest.approx(MMDMetric()(b, a).item(), rel=1e-9)  # MONAI's order: (y, y_pred)
    b = features(9, 20, seed=2)
    for kernel, k in (("dot", lambda x, y: x @ y), ("cubic", lambda x, y: (x @ y / 20 + 1) ** 3)):
        within_a = sum(float(k(a[i], a[j])) for i in range(14) for j in range(14) if i != j) / (14 * 13)
        within_b = sum(float(k(b[i], b[j])) for i in range(9) for j in range(9) if i != j) / (9 * 8)
        across = sum(float(k(x, y)) for x in a for y in b) / (14 * 9)
        assert mmd2(a, b, kernel=kernel).item() == pytest.approx(within_a + within_b - 2 * across, rel=1e-8)


def test_kid_agrees_with_torchmetrics():
    a, b = features(25, 30), features(25, 30, seed=1, shift=0.1)
    assert kid(a, b).item() == pytest.approx(poly_mmd(b, a).item(), rel=1e-9)
    assert kid(a, b) == mmd2(a, b, kernel="cubic") != mmd2(a, b)


def test_mmd_of_one_distribution_is_negative_about_half_of_the_time():
    draws = [(features(20, 10, seed=2 * i), features(20, 10, seed=2 * i + 1)) for i in range(200)]
    for kernel in ("dot", "cubic"):
        values = torch.stack([mmd2(a, b, kernel=kernel) for a, b in draws])
        assert 0.35 < (values < 0).double().mean() < 0.75
        assert values.mean().abs() < 3 * values.std() / 200**0.5, "unbiased"


WRONG = [
    (torch.zeros(1, 4), torch.zeros(3, 4), "y_pred holds 1 image"),
    (torch.zeros(3, 4), torch.zeros(0, 4), "y holds 0 image"),
    (torch.zeros(3, 4), torch.zeros(3, 5), "y_pred has 4 features per image and y has 5"),
    (torch.zeros(3, 4, 1), torch.zeros(3, 4), r"y_pred has shape \(3, 4, 1\)"),
    (torch.zeros(3, 4), torch.zeros(4), r"y has shape \(4,\)"),
    (torch.tensor([[0.0, 1], [float("nan"), 2]]), torch.zeros(3, 2), "y_pred has NaN or infinite features in 1 of 2"),
    (torch.zeros(3, 2), torch.tensor([[0.0, 1], [float("inf"), -float("inf")]]), "y has NaN or infinite"),
]


@pytest.mark.parametrize("metric", [fid, mmd2, kid])
@pytest.mark.parametrize(("y_pred", "y", "message"), WRONG)
def test_wrong_features_are_refused(metric, y_pred, y, message):
    with pytest.raises(InputError, match=message):
        metric(y_pred, y)


def test_a_kernel_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="kernel must be dot or cubic, got 'rbf'"):
        mmd2(torch.zeros(3, 2), torch.zeros(3, 2), kernel="rbf")
    with pytest.raises(InputError, match="kernel must be dot or cubic"):
        MaximumMeanDiscrepancy(kernel="rbf")


class Pooled(nn.Module):
    """A feature network of two numbers per octant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([nn.functional.adaptive_avg_pool3d(f, 2).flatten(1) for f in (x, x.square())], dim=1)


def test_feature_metrics_are_key_metrics_of_a_real_engine():
    torch.manual_seed(0)
    data = [{"image": torch.rand(1, 8, 8, 8), "label": torch.rand(1, 8, 8, 8)} for _ in range(6)]
    network = nn.Conv3d(1, 1, 1)
    metrics = {"fid": FrechetDistance(Pooled()), "kid": MaximumMeanDiscrepancy(Pooled(), kernel="cubic")}
    handlers = {
        name: IgniteMetricHandler(
            metric,
            save_details=False,
            output_transform=lambda out: tuple([o[k] for o in out] for k in ("pred", "label")),
        )
        for name, metric in metrics.items()
    }
    engine = SupervisedEvaluator(
        torch.device("cpu"), torch.utils.data.DataLoader(data, batch_size=4), network,
        key_val_metric={"fid": handlers["fid"]}, additional_metrics={"kid": handlers["kid"]},
        metric_cmp_fn=lambda new, best: new < best,
    )  # fmt: skip
    for _ in range(2):  # the second run starts from nothing again
        engine.run()
        with torch.no_grad():
            a, b = (
                Pooled()(x)
                for x in (network(torch.stack([d["image"] for d in data])), torch.stack([d["label"] for d in data]))
            )
        assert engine.state.metrics["fid"] == pytest.approx(fid(a, b).item(), rel=1e-6)
        assert engine.state.metrics["kid"] == pytest.approx(kid(a, b).item(), rel=1e-5)
    assert engine.state.best_metric == engine.state.metrics["fid"] > 0


def test_feature_metrics_take_features_and_say_what_is_wrong():
    metric = FrechetDistance()
    with pytest.raises(InputError, match="FrechetDistance has seen no images"):
        metric.aggregate()
    with pytest.raises(InputError, match=r"y_pred: features have shape \(2, 1, 4, 4, 4\).*give an extractor"):
        metric(torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4))
    a, b = features(6, 5), features(9, 5, seed=1)
    metric(a[:4], b[:4])
    metric(a[4:], list(b[4:]))
    images = [torch.rand(1, side, 8, 8) for side in (6, 8, 10, 12)]
    extracted = FrechetDistance(Pooled())
    extracted(images[:3], images[1:])
    one_by_one = [torch.cat([Pooled()(image[None]) for image in part]) for part in (images[:3], images[1:])]
    assert extracted.aggregate() == fid(*one_by_one).item()
    assert isinstance(metric.aggregate(), float) and metric.aggregate() == fid(a, b).item()


PROCESS = """
import sys, torch, torch.distributed as dist
from semsynth.metrics import FrechetDistance
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
a, b = torch.load(sys.argv[3])
metric, part = FrechetDistance(), (slice(0, 7), slice(7, 12))[rank]
metric(a[part], b[part])
print(repr(metric.aggregate()))
"""


@pytest.mark.slow
def test_features_are_gathered_from_all_processes_also_when_they_hold_unequal_numbers(tmp_path):
    a, b = features(12, 5), features(12, 5, seed=1)
    torch.save((a, b), tmp_path / "features.pt")
    arguments = [str(tmp_path / "meeting"), str(tmp_path / "features.pt")]
    workers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), *arguments], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [float(worker.communicate(timeout=120)[0].split()[-1]) for worker in workers]
    assert found == pytest.approx([fid(a, b).item()] * 2, rel=1e-12)
