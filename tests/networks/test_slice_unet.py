"""Med-LSDM's denoiser: parts, label maps in step with latents, any number of classes, windows of slices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import window_borders
from semsynth.errors import InputError
from semsynth.networks.blocks.label_encoder import LabelEncoder
from semsynth.networks.blocks.slice_attention import SliceAttention, linear_attention, rotated
from semsynth.networks.latent_diffusion import _memory_advice
from semsynth.networks.sampling.guided import GuidedDenoiser, SamplingOptions, ramp, windows
from semsynth.networks.slice_unet import SliceUNet
from semsynth.synthesis.export import export_sampling
from semsynth.synthesis.memory import TensorMemory, synthesis_memory
from tiny_diffusion import awake, diffusion, med_lsdm
from tiny_diffusion import slice_unet as denoiser


def label_map(size: tuple[int, int, int] = (16, 12, 24), classes: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, classes, (1, 1, *size), generator=torch.Generator().manual_seed(seed)).float()


# ---- the network


def test_the_paper_has_37_9_million_parameters() -> None:
    network = SliceUNet(37)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(37.9e6, rel=0.03)


@pytest.mark.parametrize("size", [(16, 12, 24), (13, 10, 7), (4, 4, 4)])
def test_any_size_is_denoised(size: tuple[int, int, int]) -> None:
    network, label = denoiser(), label_map(size)
    cells = [-(-length // 4) for length in size]
    x = torch.randn(1, 3, *cells)
    levels = network.encode(label)
    made = network(x, torch.tensor([7]), levels)
    assert made.shape == x.shape
    kept = network(x, torch.tensor([7]), network.modulation(levels))
    assert torch.allclose(made, kept, atol=1e-5)


def test_every_part_has_a_say() -> None:
    network, label, x = denoiser(style_channels=2), label_map(), torch.randn(1, 3, 4, 3, 6)

    def made(**changed: Any) -> torch.Tensor:
        given: dict[str, Any] = {"x": x, "t": 7, "label": label, "style": torch.zeros(1, 2)} | changed
        return network(given["x"], torch.tensor([given["t"]]), network.encode(given["label"]), given["style"])

    plain = made()
    other = label.clone()
    other[..., 12:, 8:, 20:] = 0
    for changed in ({"t": 8}, {"label": other}, {"style": torch.ones(1, 2)}, {"style": torch.full((1, 2), torch.nan)}):
        assert not torch.allclose(made(**changed), plain, atol=1e-5), changed
    gradients = torch.autograd.grad(plain.sum(), list(network.parameters()), allow_unused=True)
    unused = [name for (name, _), g in zip(network.named_parameters(), gradients, strict=True) if g is None]
    assert not unused


def test_the_middle_is_told_the_time() -> None:
    network, x, label = denoiser(), torch.randn(1, 3, 4, 3, 6), label_map()
    vectors = [network.embed(torch.tensor([t])) for t in (7, 500)]
    first = len(network._down_blocks())
    mixed = [*vectors[0][:first], *vectors[1][first : first + 2], *vectors[0][first + 2 :]]
    levels = network.encode(label)
    assert not torch.allclose(network.denoise(x, mixed, levels), network.denoise(x, vectors[0], levels), atol=1e-5)


def test_recomputing_changes_nothing() -> None:
    gradients = []
    for recompute in (False, True):
        network = denoiser(recompute=recompute).train()
        network(torch.ones(1, 3, 4, 3, 6), torch.tensor([7]), network.encode(label_map())).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_without_attention_slices_know_nothing_of_each_other_but_by_labels() -> None:
    network = denoiser(spade={"hidden": 4, "norm": "voxel"})
    for module in network.modules():
        if isinstance(module, SliceAttention) and module.over == "depth":
            torch.nn.init.zeros_(module.out.weight)
            torch.nn.init.zeros_(module.out.bias)
    x, levels = torch.randn(1, 3, 4, 3, 6), network.encode(label_map())
    other = x.clone()
    other[..., 0] = 0.0
    changed = (
        (network(x, torch.tensor([7]), levels) - network(other, torch.tensor([7]), levels)).abs().amax((0, 1, 2, 3))
    )
    assert changed[0] > 1e-3 and not changed[1:].any()


# ---- attention


def test_attention_over_depth_knows_distances_alone() -> None:
    vectors = torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8)
    q, k = rotated(vectors), rotated(torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8))
    products = (q @ k.transpose(-1, -2))[0, 0]
    for distance in range(-3, 4):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)
    assert float((products[0, 1:] - products[0, 0]).abs().max()) > 1e-3


@pytest.mark.parametrize("over", ["depth", "slice", "slice_linear"])
def test_attention_stays_along_its_axes(over: Any) -> None:
    torch.manual_seed(0)
    layer = SliceAttention(6, over, heads=2, head_channels=4)
    awake(layer)
    x = torch.randn(1, 6, 4, 3, 5)
    other = x.clone()
    other[0, :, 2, 1, 3] = torch.randn(6)
    changed = (layer(x) != layer(other)).any(dim=1)[0]
    if over == "depth":
        assert bool(changed[2, 1].all()) and int(changed.sum()) == 5
    else:
        assert bool(changed[..., 3].all()) and int(changed.sum()) == 12


def test_linear_attention_is_that_of_its_equation_and_needs_no_pairs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64) for _ in range(3))
    pairs = q.softmax(dim=-1) @ k.softmax(dim=-2).transpose(-1, -2)  # (…, tokens, tokens)
    assert torch.allclose(linear_attention(q, k, v), pairs @ v / 2.0)

    def peak(side: int) -> int:
        layer = SliceAttention(8, "slice_linear", heads=2, head_channels=4)
        x = torch.randn(1, 8, side, side, 1)
        with torch.no_grad(), TensorMemory() as counted:
            layer(x)
        return counted.peak

    # sixteen times the pixels: sixteen times the memory, where pairs would take 256 times
    assert peak(64) == pytest.approx(16 * peak(16), rel=0.1)


# ---- the label map


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_shifting_the_map_by_a_cell_shifts_its_features_by_one(axis: int) -> None:
    torch.manual_seed(0)
    encoder = LabelEncoder(5, 4, [6, 6])
    label = label_map((32, 32, 32))
    features, shifted = encoder(label)[0], encoder(label.roll(4, dims=axis))[0]
    assert features.shape[2:] == (8, 8, 8)  # a depth of 32 is 8 cells
    inner = slice(2, -2)
    assert torch.allclose(shifted.roll(-1, dims=axis)[:, :, inner, inner, inner], features[:, :, inner, inner, inner])
    by_three = encoder(label.roll(3, dims=axis))[0]
    assert not torch.allclose(
        by_three.roll(-1, dims=axis)[:, :, inner, inner, inner], features[:, :, inner, inner, inner]
    )


def test_a_cell_is_told_of_its_own_voxels() -> None:
    torch.manual_seed(0)
    encoder = LabelEncoder(5, 4, [6, 6])
    label = label_map((32, 32, 32))
    other = label.clone()
    other[..., 12:16, 12:16, 12:16] = (other[..., 12:16, 12:16, 12:16] + 1) % 5
    changed = [(a != b).any(dim=1)[0].nonzero() for a, b in zip(encoder(label), encoder(other), strict=True)]
    assert changed[0].min(dim=0).values.tolist() == [2, 2, 2] and changed[0].max(dim=0).values.tolist() == [4, 4, 4]
    assert changed[1].min(dim=0).values.tolist() == [1, 1, 2] and changed[1].max(dim=0).values.tolist() == [2, 2, 4]


def test_many_classes_cost_no_more_memory_than_few() -> None:
    def peak(classes: int) -> int:
        network, label = denoiser(num_classes=classes), label_map((32, 32, 32), classes)
        x = torch.randn(1, 3, 8, 8, 8)
        with TensorMemory() as counted:
            network(x, torch.tensor([7]), network.encode(label)).sum().backward()
        return counted.peak

    assert peak(117) == pytest.approx(peak(10), rel=0.01)


def test_the_null_map_is_that_of_training() -> None:
    network, label = denoiser(), label_map((13, 10, 7))
    null = network.null(network.encode(label))
    trained = network.encode(torch.full_like(label, -1.0))
    assert all(torch.allclose(null[s], trained[s]) for s in trained)
    assert not torch.allclose(null[4], network.encode(torch.zeros_like(label))[4])


# ---- windows of slices


@pytest.mark.parametrize("depth", [5, 8, 9, 12, 31, 32])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_cover_all_slices_and_overlap(depth: int, overlap: float) -> None:
    made = windows(depth, 8, overlap)
    assert made[0][0] == 0 and made[-1][1] == depth
    assert all(last - first == min(8, depth) for first, last in made)
    assert all(a[1] - b[0] >= 8 * overlap for a, b in pairwise(made))
    assert float(ramp(8).min()) > 0 and torch.equal(ramp(8), ramp(8).flip(0)) and torch.equal(ramp(5), ramp(5).flip(0))


def test_one_window_is_the_whole() -> None:
    network, label = med_lsdm(), label_map()
    whole = network.synthesize(label, [3])
    assert torch.equal(network.synthesize(label, [3], window=24), whole)
    assert torch.equal(network.synthesize(label, [3], window=100), whole)
    assert not torch.allclose(network.synthesize(label, [3], window=16), whole, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_windows_are_blended_in_every_step(guidance: float) -> None:
    network, label = med_lsdm(), label_map((16, 12, 40))  # 10 slices of cells
    given = network.conditioning(label, guidance=guidance)
    options = SamplingOptions(steps=3, window=16, overlap=0.5, guidance=guidance)
    loop = GuidedDenoiser(network.denoiser, network.schedule, options, stride=4)
    noisy = torch.randn(1, 3, 4, 3, 10)
    embedded = network.denoiser.embed(torch.tensor([500]))
    made = loop._blended(noisy, embedded, given, guidance)
    wanted, weights = torch.zeros_like(noisy), torch.zeros(10)
    for first, last in ((0, 4), (2, 6), (4, 8), (6, 10)):
        own = [given.denoiser.window(first, last).row(i) for i in (range(2) if guidance != 1 else range(1))]
        parts = [network.denoiser.denoise(noisy[..., first:last], embedded, modulation) for modulation in own]
        pred = parts[0] if guidance == 1 else parts[1] + guidance * (parts[0] - parts[1])
        share = torch.tensor([0.25, 0.75, 0.75, 0.25])
        wanted[..., first:last] += pred * share
        weights[first:last] += share
    assert torch.allclose(made, wanted / weights, atol=1e-5)


def test_windows_do_not_change_how_samples_are_batched() -> None:
    network, label = med_lsdm(window=16), label_map((16, 12, 40))
    together = network.synthesize(label, [3, 4], batch_size=2)
    assert torch.allclose(together[1:], network.synthesize(label, [4]), atol=1e-4)


def test_windows_are_refused_where_depth_is_downsampled() -> None:
    with pytest.raises(InputError, match="this denoiser downsamples along D"):
        diffusion(window=16)
    with pytest.raises(InputError, match="this denoiser downsamples along D"):
        diffusion().synthesize(label_map(classes=4), [1], window=16)
    for bad in ({"window": 0}, {"overlap": 1.0}):
        with pytest.raises(InputError, match="window must be 1 slice or more"):
            SamplingOptions(**bad)


def test_training_gives_the_denoiser_gradients_and_leaves_the_codebook() -> None:
    network = med_lsdm().train()
    image, label = torch.rand(1, 1, 16, 12, 24), label_map()
    before = network.autoencoder.codebook.table.clone()
    latent, _ = network.autoencoder.encode(image)
    done = network(label, latent)
    (done.pred - done.target).square().mean().backward()
    assert all(p.grad is not None for p in network.denoiser.parameters())
    assert all(p.grad is None for p in network.autoencoder.parameters())
    assert torch.equal(network.autoencoder.codebook.table, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: denoiser(channels=()), "1 or more levels"),
        (lambda: SliceAttention(8, "time"), "attention must be over depth"),  # type: ignore[arg-type]
        (lambda: SliceAttention(8, "depth", head_channels=3), "head_channels even"),
        (lambda: LabelEncoder(1, 4, [8]), "2 or more classes"),
    ],
)
def test_bad_networks_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.slow
def test_its_graphs_are_the_networks(tmp_path: Path) -> None:
    network, label = med_lsdm(window=24), label_map()
    export_sampling(network, (16, 12, 24), tmp_path)
    condition, denoise, decode = (
        torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("conditioning", "denoiser", "decoder")
    )
    x, t = torch.randn(1, 3, 4, 3, 6), torch.tensor([400])
    with torch.no_grad():
        found = denoise(x, t, torch.zeros(1, 0), condition(label))
        levels = network.denoiser.encode(label)
        level = network.schedule.level(t)
        both = (levels, network.denoiser.null(levels))
        wanted = [network.schedule.estimate(network.denoiser(x, t, given), x, level)[0] for given in both]
        assert torch.allclose(found, torch.cat(wanted), atol=1e-4)
        assert torch.allclose(decode(x, label), network.decode(x, label).clamp(0, 1), atol=1e-5)
    with pytest.raises(InputError, match="maps of 40 slices need windows of 24"):
        export_sampling(network, (16, 12, 40), tmp_path)


def test_steps_between_windows_are_found_where_there_are_any() -> None:
    rng = np.random.default_rng(0)
    smooth = [rng.normal(size=(12, 12, 96)).cumsum(axis=2) for _ in range(4)]
    edges = [window_borders.window_borders(96, 32, 0.5, 4)] * 4
    assert (np.flatnonzero(edges[0]) + 1).tolist() == [4, 8, 12, 16, 20]  # cells: 16, 32 … slices
    none = window_borders.compare([window_borders.differences(v, 4) for v in smooth], edges)
    assert none["p"] > 0.05 and none["borders"] == 20 and none["others"] == 72
    stepped = [v + 3.0 * (np.arange(96) // 16) for v in smooth]
    some = window_borders.compare([window_borders.differences(v, 4) for v in stepped], edges)
    assert some["p"] < 0.001 and some["ratio"] > 1.2


def test_windows_need_less_memory_and_the_advice_names_them() -> None:
    label = torch.zeros(1, 1, 32, 32, 128)
    needs = []
    for window in (None, 32):
        network = med_lsdm(window=window, tile=(16, 16, 16), of_denoiser={"channels": (64, 64)})
        needs.append(synthesis_memory(network, label.shape[2:]))
    assert needs[1] < 0.95 * needs[0]
    advice = [_memory_advice(label, SamplingOptions(window=window), True, True) for window in (None, 32, 16)]
    assert "--window 32" in advice[0] and "--window 16" in advice[1] and "--window" not in advice[2]
    assert "--window" not in _memory_advice(label, SamplingOptions(), True, False)
