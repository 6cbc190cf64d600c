"""Decoding in tiles: the voxels of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from semsynth.errors import InputError
from semsynth.networks.autoencoder import SPADEAutoencoder, cover
from semsynth.networks.sampling.tiles import decode_in_tiles, tile_size, tiles
from tiny_diffusion import SPADE, awake, diffusion, label_map


def autoencoder(**kwargs: Any) -> SPADEAutoencoder:
    torch.manual_seed(0)
    usual: dict[str, Any] = {"channels": (8, 8, 8), "strides": (2, 1, 2), "latent_channels": 3, "spade": SPADE}
    network = SPADEAutoencoder(4, **(usual | kwargs))
    awake(network)
    return network.eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "as the bundle's": {},
    "nearest, then convolution": {"resampling": "strided"},
    "trilinear, then convolution": {"resampling": "smooth", "signed": False},
    "full resolution": {"strides": (1, 2, 2), "labels": "nearest"},
    "compression 8, wide labels": {"strides": (2, 2, 2), "spade": SPADE | {"kernel_size": 5}, "blocks": (1, 2, 1)},
    "norm before the head": {"last_norm": True},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_tiles_give_the_voxels_of_the_whole(variant: dict[str, Any]) -> None:
    network, size = autoencoder(**variant), (150, 11, 9)
    label, latent = label_map(size), torch.randn(2, 3, *cover(size, network.stride))
    with torch.no_grad():
        whole = network.decode(latent, label)
    for batch_size in (1, 2):
        parts = decode_in_tiles(network, latent, label, (40, 8, 0), batch_size=batch_size)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
@pytest.mark.parametrize("of", ["latent", "label"])
def test_no_voxel_depends_on_what_lies_beyond_the_reach(variant: dict[str, Any], of: str) -> None:
    network = autoencoder(**variant)
    reach, stride = network.reach(), network.stride
    assert reach is not None
    cells = reach // stride
    size = ((2 * cells + 3) * stride, 2 * stride, 2 * stride)
    label, latent = label_map(size) % 2, torch.randn(1, 3, *cover(size, stride))
    middle = cells + 1
    changed, other = latent.clone(), label.clone()
    if of == "latent":
        changed[:, :, middle] += 3.0
    else:
        other[:, :, middle * stride : (middle + 1) * stride] += 2.0
    with torch.no_grad():
        apart = (network.decode(changed, other) - network.decode(latent, label)).abs().amax(dim=(0, 1, 3, 4))
    touched = torch.nonzero(apart > 0).flatten()
    assert int(touched.min()) >= middle * stride - reach
    assert int(touched.max()) < (middle + 1) * stride + reach
    if of == "label":  # no more than is needed: labels reach farthest
        assert int(touched.min()) < middle * stride - reach + 2 * stride


@pytest.mark.parametrize("size", [(100, 37, 8), (5, 4, 3)])
def test_inner_parts_fill_the_volume_once(size: tuple[int, int, int]) -> None:
    count = torch.zeros(size)
    for tile in tiles(size, (30, 10, 0), 12, 4):
        count[tile.inner] += 1
        for outer, inner, length in zip(tile.outer, tile.inner, size, strict=True):
            assert outer.start == max(inner.start - 12, 0)
            assert outer.stop == min(inner.stop + 12, length)
            assert outer.start % 4 == 0
            assert outer.stop % 4 == 0 or outer.stop == length
    assert bool((count == 1).all())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"spade": SPADE | {"norm": "group"}},
        {"spade": SPADE | {"norm": "voxel", "normalized_modulation": True}},
        {"middle": True},
        {"attention": (False, False, True)},
    ],
)
def test_decoders_that_are_not_local_are_refused(kwargs: dict[str, Any]) -> None:
    network = autoencoder(**kwargs)
    with pytest.raises(InputError, match="norms with statistics of the whole volume, or self-attention"):
        decode_in_tiles(network, torch.randn(1, 3, 4, 3, 2), label_map(), (8, 8, 8))


@pytest.mark.parametrize("noise", [False, True])
def test_synthesis_in_tiles_is_synthesis(noise: bool) -> None:
    network = diffusion(of_autoencoder={"noise": noise})
    whole = network.synthesize(label_map((96, 16, 8)), [0, 1])
    parts = network.synthesize(label_map((96, 16, 8)), [0, 1], tile=(32, 0, 0))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    for bad in ((1, 2), (8, 8, -1)):
        with pytest.raises(InputError, match="tile must be three numbers of voxels, 0 for a whole axis, got"):
            network.synthesize(label_map(), [0], tile=bad)


def test_tiles_are_refused_before_any_denoising(monkeypatch: pytest.MonkeyPatch) -> None:
    network = diffusion()
    network.autoencoder = autoencoder(spade=SPADE | {"norm": "group"}, channels=(8, 8), strides=(2, 2))
    monkeypatch.setattr(network, "sample_latent", lambda *a, **k: pytest.fail("denoised"))
    with pytest.raises(InputError, match="norms with statistics of the whole volume"):
        network.synthesize(label_map(), [0], tile=(8, 8, 0))


def test_the_largest_part() -> None:
    assert tile_size((100, 50, 20), None, 12) == [100, 50, 20]
    assert tile_size((100, 50, 20), (32, 0, 16), 12) == [56, 50, 20]
