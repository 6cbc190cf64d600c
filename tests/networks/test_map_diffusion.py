"""A latent diffusion model of label maps, its autoencoder, and a cascade of it and a shape model; all tiny."""

from __future__ import annotations

import math

import pytest
import torch
from semsynth.anatomy import MapFigures
from semsynth.errors import InputError
from semsynth.networks.denoiser import SPADEUNet
from semsynth.networks.label_autoencoder import LabelAutoencoder
from semsynth.networks.map_cascade import MapCascade
from semsynth.networks.map_diffusion import MapDiffusion, partly, with_known
from semsynth.networks.signed_distances import signed_distances
from semsynth.training.losses.label_maps import LabelAutoencoderLoss
from tiny_maps import CLASSES, NAMES, SPACING, blank, egg, model

SMALL = {"hidden": 4, "kernel_size": 3, "norm": "group", "groups": 2}


def autoencoder(**more) -> LabelAutoencoder:
    return LabelAutoencoder(4, **({"channels": [8, 16], "strides": [2, 2], "latent_channels": 3} | more))


def network(**more) -> MapDiffusion:
    torch.manual_seed(0)
    denoiser = SPADEUNet(4, latent_channels=3, stride=4, channels=[8, 8], blocks=1, attention=[False, True],
                         spade=SMALL, style_channels=8)  # fmt: skip
    figures = MapFigures(CLASSES, NAMES)
    given = {"figures": figures, "spacing": SPACING, "prediction": "v", "timesteps": 50,
             "sampling": {"steps": 3, "guidance": 1.0}}  # fmt: skip
    return MapDiffusion(autoencoder(), denoiser, **(given | more)).eval()


def maps(*radii: float) -> torch.Tensor:
    return torch.stack([torch.from_numpy(egg(r, 1.2)).float()[None] for r in radii])


# ---------------------------------------------------------------------------------------------------------- autoencoder


@pytest.mark.parametrize("shape", [(16, 16, 16), (19, 14, 9), (5, 4, 3)])
def test_any_size_comes_back(shape):
    made = autoencoder()(torch.zeros(2, 1, *shape))
    assert made.logits.shape == (2, 4, *shape)
    assert list(made.mean.shape[2:]) == [-(-n // 4) for n in shape] and made.mean.shape[1] == 3


def test_it_learns_a_map():
    torch.manual_seed(0)
    net, loss = autoencoder(), LabelAutoencoderLoss()
    optimizer, label = torch.optim.Adam(net.parameters(), lr=1e-2), maps(14.0)
    for _ in range(60):
        optimizer.zero_grad()
        terms = loss(net(label), label)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert set(terms) == {"dice", "cross_entropy", "kl"}
    found = net.eval()(label).logits.argmax(dim=1, keepdim=True)
    assert (found == label).float().mean() > 0.97


def test_its_latent_is_drawn_in_training_alone():
    net, label = autoencoder(), maps(14.0)
    assert not torch.equal(net.train()(label).logits, net(label).logits)
    assert torch.equal(net.eval()(label).logits, net(label).logits)
    with pytest.raises(InputError, match=r"a label map of \(36, 32, 28\) voxels needs a latent of \(9, 8, 7\)"):
        net.decode(torch.zeros(1, 3, 8, 8, 7), label.shape[2:])
    with pytest.raises(InputError, match="strides of 1 or 2"):
        autoencoder(strides=[2, 3])


# -------------------------------------------------------------------------------------------------------------- drawing


def test_maps_follow_from_their_seeds():
    net = network()
    made = net.synthesize(blank(), [3, 4])
    assert made.shape == (2, 1, 36, 32, 28) and made.dtype == torch.uint8 and int(made.max()) < 4
    assert torch.equal(made[1:], net.synthesize(blank(), [4])) and not torch.equal(made[0], made[1])


def test_figures_that_are_asked_for_reach_the_network():
    net = network()
    net.style_covariance.copy_(torch.diag(torch.tensor([9.0, 0.1, 1.0, 100.0])))
    for parameter in net.denoiser.parameters():  # what starts at zero tells nothing
        torch.nn.init.normal_(parameter, std=0.1)
    free = net.synthesize(blank(), [0])
    asked = torch.tensor([[40.0, math.nan, math.nan, math.nan]])
    assert not torch.equal(free, net.synthesize(blank(), [0], style=asked))
    assert torch.equal(free, net.synthesize(blank(), [0], style=torch.full((1, 4), math.nan)))


def test_unknown_figures_are_told_as_unknown():
    net = network()
    net.style_mean.copy_(torch.tensor([10.0, 1.0, 2.0, 30.0]))
    told = net.standardized(torch.tensor([[11.0, math.nan, 2.0, math.nan]]))
    assert told.tolist() == [[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]]
    style, _ = net.encode(maps(14.0), maps(14.0))
    assert style.shape == (1, 4) and float(style[0, 0]) == pytest.approx(13.8, rel=0.1)


def test_known_classes_stay_and_are_not_drawn_elsewhere():
    label = maps(14.0)
    given = torch.where(label == 1, 1.0, -1.0)
    made = network().synthesize(given, [0])
    assert torch.equal(made == 1, label == 1)
    logits = torch.zeros(1, 3, 1, 1, 4)
    logits[:, 2] = 1.0
    known = torch.tensor([2.0, -1.0, 0.0, -1.0]).view(1, 1, 1, 1, 4)
    assert with_known(logits, known).flatten().tolist() == [2, 1, 0, 1]  # neither 0 nor 2 in new places
    assert with_known(logits, torch.full_like(known, -1.0)).flatten().tolist() == [2, 2, 2, 2]


# ------------------------------------------------------------------------------------------------------------- training


def test_a_step_sees_some_classes_of_some_maps():
    net = network(label_dropout=0.0).train()
    label = maps(14.0).expand(64, -1, -1, -1, -1)
    seen = partly(label, net.num_classes)
    assert set(seen.unique().tolist()) == {-1.0, 0.0, 1.0, 2.0, 3.0}
    for one, whole in zip(seen, label, strict=True):
        for index in range(4):  # a class is known as a whole or not at all
            assert len((one[whole == index] == index).unique()) == 1
    shares = [(seen == index).flatten(1).any(dim=1).float().mean().item() for index in range(4)]
    assert all(0.25 < share < 0.75 for share in shares)


def test_a_step_trains_the_denoiser_alone():
    net = network().train()
    latent = torch.randn(2, 3, 9, 8, 7)
    made = net(maps(14.0, 15.0), latent, torch.tensor([[14.0, 1.2, 0.0, math.nan]] * 2))
    (made.pred - made.target).square().mean().backward()
    assert made.pred.shape == latent.shape and torch.isfinite(made.pred).all()
    assert all(p.grad is None for p in net.autoencoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.denoiser.parameters())
    with pytest.raises(InputError, match=r"twice the number of figures \(8\), got 6"):
        MapDiffusion(autoencoder(), SPADEUNet(4, latent_channels=3, channels=[8], spade=SMALL, style_channels=6),
                     figures=MapFigures(CLASSES, NAMES), spacing=SPACING)  # fmt: skip
    with pytest.raises(InputError, match="figure_dropout"):
        network(figure_dropout=1.0)


# -------------------------------------------------------------------------------------------------------------- cascade


def test_a_cascade_keeps_the_cavity_of_the_first_and_draws_the_rest_by_the_second():
    shape, second = model(), network()
    signed = torch.from_numpy(signed_distances(egg(14.0, 1.2).astype("int16"), shape.surfaces, SPACING))
    shape.distance_mean.copy_(torch.nn.functional.avg_pool3d(signed[None], 2)[0])
    shape.count.fill_(1)  # of one map, whose numbers are 0: it draws that one alone
    cavity = shape.synthesize(blank(), [2]) == 1
    assert cavity.any()
    cascade = MapCascade(shape, second)
    made = cascade.synthesize(blank(), [2])
    assert torch.equal(made == 1, cavity)
    assert torch.equal(made, second.synthesize(torch.where(cavity, 1.0, -1.0), [2]))
    other = torch.where(maps(12.0) == 1, 1.0, -1.0)  # known classes leave the first nothing to do
    assert torch.equal(cascade.synthesize(other, [2]), second.synthesize(other, [2]))
    assert cascade.limits is shape.limits and cascade.figures is shape.figures
    with pytest.raises(InputError, match="kept must name classes"):
        MapCascade(shape, second, kept=[7])
    with pytest.raises(InputError, match="same classes and voxel size"):
        MapCascade(model(spacing=(1.0, 1.0, 1.0)), second)
