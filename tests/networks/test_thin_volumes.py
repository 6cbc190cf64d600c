"""Volumes of one to five slices, whose coarse levels have a single one, in every type and memory format."""

from __future__ import annotations

import pytest
import torch
from semsynth import precision
from semsynth.networks.blocks.normalization import affine_free_norm, modulate, modulate_jointly
from semsynth.networks.vqgan import VQGAN
from tiny_diffusion import label_map, med_lsdm

FORMATS = [torch.contiguous_format, torch.channels_last_3d]
TYPES = [torch.float32, torch.bfloat16]


def one_slice(form: torch.memory_format, dtype: torch.dtype, stride: int) -> torch.Tensor:
    """Features of one slice whose stride along the slices says nothing, as bfloat16 kernels leave them."""
    x = torch.randn(2, 8, 6, 5, 1, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=form)
    return x.as_strided(x.shape, (*x.stride()[:4], stride))


@pytest.mark.parametrize("stride", [1, 3, 4096])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_norms_take_one_slice_whatever_its_stride(form, dtype, stride):
    x, scale_shift = one_slice(form, dtype, stride), torch.linspace(-1, 1, 16, dtype=dtype).view(1, 16, 1, 1, 1)
    scale_shift = scale_shift.expand(2, 16, 6, 5, 1).contiguous(memory_format=form)
    usual = x.clone(memory_format=torch.contiguous_format)
    scale, shift = scale_shift.chunk(2, dim=1)
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for groups in (2, 8):
        wanted = affine_free_norm(usual, groups, 1e-6)
        torch.testing.assert_close(affine_free_norm(x, groups, 1e-6), wanted, **close)
        with torch.no_grad():
            torch.testing.assert_close(
                modulate(x, scale, shift, groups=groups, eps=1e-6), wanted * scale + shift, **close
            )
        trained = x.detach().requires_grad_()
        result = modulate_jointly(trained, scale_shift.clone().requires_grad_(), groups=groups, eps=1e-6)
        torch.testing.assert_close(result, wanted * scale + shift, **close)
        result.square().sum().backward()
        assert trained.grad is not None and bool(trained.grad.isfinite().all())


@pytest.fixture(params=TYPES, ids=str)
def dtype(request, monkeypatch):
    """The type of computation; bfloat16 also on processors that are slow at it."""
    monkeypatch.setattr(precision, "reduced_type", lambda kind: torch.bfloat16)
    return request.param


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMATS)
def test_a_vqgan_reconstructs_thin_volumes(form, depth, dtype):
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8, depth)
    for norm, patch, resampling in (("voxel", 2, "aligned"), ("group", 1, "overlapping")):
        network = VQGAN(channels=(8, 8, 8), decoder_channels=(8, 8), latent_channels=3, codes=16, groups=2, norm=norm,
                        patch=patch, resampling=resampling).eval().to(memory_format=form)  # fmt: skip
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            made = network(image)
        assert made.shape == image.shape and bool(made.isfinite().all())


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMATS)
def test_a_volume_is_sampled_of_a_thin_map(form, depth, dtype):
    label = label_map((8, 8, depth))
    wanted = med_lsdm(guidance=2.0)(label)
    network = med_lsdm(guidance=2.0, amp=dtype == torch.bfloat16).to(memory_format=form)
    with torch.no_grad():
        made = network(label)
    assert made.shape == label.shape and bool(made.isfinite().all())
    if dtype == torch.float32:
        torch.testing.assert_close(made, wanted.detach(), rtol=1e-3, atol=1e-3)
