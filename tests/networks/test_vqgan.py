"""VQ-GAN: codebook, networks and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from semsynth.errors import InputError
from semsynth.networks.blocks.codebook import Codebook
from semsynth.networks.discriminators import SliceAndVolumeDiscriminator
from semsynth.networks.sampling.tiles import decode_in_tiles
from semsynth.networks.vqgan import VQGAN
from semsynth.training.engines.vqgan import VQGANTrainer
from semsynth.training.losses.vqgan import VQGANLoss
from tiny_diffusion import awake
from torch import nn
from torch.nn import functional as F


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def vqgan(**kwargs: Any) -> VQGAN:
    torch.manual_seed(0)
    usual: dict[str, Any] = {
        "channels": (8, 8), "decoder_channels": (8,), "blocks": (1, 1), "patch": 2, "latent_channels": 3, "codes": 16,
        "norm": "voxel", "edge_norms": False, "resampling": "aligned",
    }  # fmt: skip
    network = VQGAN(**(usual | kwargs))
    awake(network)
    return network.eval()


def vectors(n: int = 60, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Latents ``(1, channels, n, 1, 1)``."""
    return torch.randn(1, channels, n, 1, 1, generator=torch.Generator().manual_seed(seed))


# ---- the codebook


def test_each_latent_becomes_the_code_nearest_to_it() -> None:
    codebook = Codebook(50, 3).eval()
    latent = vectors(2000)
    rows = latent[0, :, :, 0, 0].T
    wanted = torch.cdist(rows.double(), codebook.table.double()).argmin(dim=1)
    made = codebook(latent)
    assert torch.equal(made.indices.flatten(), wanted)
    assert torch.allclose(made.codes[0, :, :, 0, 0].T, codebook.table[wanted], atol=1e-6)
    assert torch.equal(codebook.nearest(latent)[0, :, :, 0, 0].T, codebook.table[wanted])
    assert made.commitment == pytest.approx(float(F.mse_loss(rows, codebook.table[wanted])), rel=1e-5)


def test_gradient_passes_the_codes_as_if_they_were_the_latents() -> None:
    codebook = Codebook(50, 3).eval()
    latent = vectors().requires_grad_()
    weights = torch.randn_like(latent)
    (codebook(latent).codes * weights).sum().backward()
    assert torch.allclose(latent.grad, weights)


def test_codes_begin_as_latents_of_the_first_batch() -> None:
    codebook = Codebook(20, 3, decay=0.999).train()
    latent = vectors(60)
    codebook(latent)
    rows = latent[0, :, :, 0, 0].T
    assert torch.cdist(codebook.table, rows).min(dim=1).values.max() < 0.02
    assert len(torch.unique(codebook.table, dim=0)) == 20


def test_codes_are_moving_averages_of_their_latents() -> None:
    codebook = Codebook(4, 3, decay=0.9, restart_below=0.0).train()
    codebook(vectors(40))
    before, usage = codebook.table.clone(), codebook.usage.clone()
    latent = vectors(40, seed=1)
    rows = latent[0, :, :, 0, 0].T
    nearest = torch.cdist(rows, before).argmin(dim=1)
    codebook(latent)
    for code in range(4):
        own = rows[nearest == code]
        share = 0.9 * usage[code] + 0.1 * len(own) / 40
        total = 0.9 * usage[code] * before[code] + 0.1 * own.sum(dim=0) / 40
        assert torch.allclose(codebook.table[code], total / share, atol=1e-5)
        assert float(codebook.usage[code]) == pytest.approx(float(share), rel=1e-5)
    assert float(codebook.usage.sum()) == pytest.approx(1.0)


def test_codes_that_nothing_is_near_to_begin_anew() -> None:
    def trained(**kwargs: Any) -> Codebook:
        codebook = Codebook(8, 3, decay=0.5, **kwargs).train()
        codebook(vectors(40))
        codebook.table[:4] = 1000.0
        for seed in range(1, 12):
            codebook(vectors(40, seed=seed))
        return codebook

    left, restarted = trained(restart_below=0.0), trained(restart_below=0.1, restart_interval=5)
    assert float(left.table.max()) == 1000.0
    assert float(left.dead()) == 0.0  # nothing is called dead where nothing is to be restarted
    assert float(restarted.table.max()) < 10.0
    assert len(torch.unique(restarted(vectors(400, seed=99)).indices)) > len(torch.unique(left(vectors(400)).indices))


def test_what_is_logged_is_what_is_used_however_much_is_restarted() -> None:
    # ten different latents cannot use more than ten codes
    codebook = Codebook(64, 3, restart_interval=2).train()
    few = vectors(10)
    for _ in range(400):
        codebook(few.repeat(1, 1, 6, 1, 1))
    assert float(codebook.perplexity()) <= 25  # of late: which of equal codes is taken changes
    assert float(codebook.dead()) >= 0.3
    batch = few.repeat(1, 1, 2, 1, 1)[:, :, :13]
    fresh = Codebook(64, 3, restart_interval=1, restart_below=1e9).train()
    fresh(vectors(64))
    fresh(batch)  # all are dead, and no more begin anew than there are latents
    assert int((torch.cdist(fresh.table, batch[0, :, :, 0, 0].T).min(dim=1).values < 1e-6).sum()) <= 13


def test_perplexity_is_the_number_of_codes_used_alike() -> None:
    codebook = Codebook(10, 3)
    codebook.seen.copy_(torch.tensor([0.25] * 4 + [0.0] * 6))
    assert float(codebook.perplexity()) == pytest.approx(4.0)
    assert float(codebook.dead()) == pytest.approx(0.6)


def test_nothing_is_learned_in_evaluation() -> None:
    codebook = Codebook(10, 3).eval()
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    codebook(vectors())
    assert all(torch.equal(value, before[name]) for name, value in codebook.state_dict().items())


@pytest.mark.parametrize("bad", [{"codes": 1}, {"decay": 1.0}, {"restart_below": -1.0}, {"restart_interval": 0}])
def test_bad_codebooks_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a codebook needs 2 or more codes"):
        Codebook(**({"codes": 8, "channels": 3} | bad))


# ---- the network


def test_the_paper_has_these_parameters() -> None:
    # Med-LSDM, appendix A: encoder 441.5 K, decoder 948.6 K, discriminators 2.8 M and 11.0 M; 5 % to either side
    network, discriminators = VQGAN(), SliceAndVolumeDiscriminator()
    assert count(network.encoder) == pytest.approx(441.5e3, rel=0.05)
    assert count(network.decoder) == pytest.approx(948.6e3, rel=0.05)
    assert count(discriminators.slices) == pytest.approx(2.8e6, rel=0.05)
    assert count(discriminators.volume) == pytest.approx(11.0e6, rel=0.05)
    assert tuple(network.codebook.table.shape) == (16384, 8)
    assert network.stride == 4


PAPER = {
    "channels": (8, 8, 16), "decoder_channels": (8, 8), "patch": 1, "norm": "group", "groups": 2, "edge_norms": True,
    "resampling": "overlapping",
}  # fmt: skip


@pytest.mark.parametrize("kwargs", [{}, PAPER, {"tanh": False}], ids=["small", "paper", "linear"])
@pytest.mark.parametrize("size", [(16, 12, 8), (13, 10, 7)])
def test_any_size_is_reconstructed(kwargs: dict[str, Any], size: tuple[int, int, int]) -> None:
    network = vqgan(**kwargs)
    image = torch.rand(2, 1, *size)
    made = network(image, details=True)
    assert made.pred.shape == image.shape
    assert made.quantized.codes.shape == (2, 3, *(-(-length // 4) for length in size))
    assert torch.equal(network(image), made.pred)
    if network.tanh:
        assert made.pred.detach().min() >= 0.0 and made.pred.detach().max() <= 1.0


def test_latents_are_scaled_by_the_codebook_and_quantised_at_decoding() -> None:
    network = vqgan()
    image = torch.rand(1, 1, 16, 12, 8)
    latent, log_variance = network.encode(image)
    assert bool((log_variance == -torch.inf).all())
    low, high = network.codebook.table.min(), network.codebook.table.max()
    raw = (latent + 1) / 2 * (high - low) + low
    codes = network.codebook.nearest(raw)
    in_range = (codes - low) / (high - low) * 2 - 1
    assert float(in_range.min()) >= -1.0 and float(in_range.max()) <= 1.0
    assert torch.allclose(network.decode(latent, image), network(image), atol=1e-5)
    # a latent that stays nearest to the same codes decodes to the same image
    nudged = latent + 1e-4 * torch.randn_like(latent)
    same = torch.equal(network.codebook.nearest((nudged + 1) / 2 * (high - low) + low), codes)
    assert not same or torch.equal(network.decode(nudged, image), network.decode(latent, image))
    assert torch.allclose(network.decode(in_range, network.modulation(image)), network(image), atol=1e-5)


def test_reach_is_how_far_a_cell_is_seen() -> None:
    network = vqgan()
    reach = network.reach()
    assert reach is not None
    latent = torch.rand(1, 3, 33, 1, 1) * 2 - 1
    other = latent.clone()
    other[:, :, 16] = -other[:, :, 16]
    image = torch.zeros(1, 1, 132, 4, 4)
    changed = (network.decode(latent, image) != network.decode(other, image))[0, 0].flatten(1).any(dim=1)
    seen = changed.nonzero()
    assert 0 < int(64 - seen.min()) <= reach and 0 < int(seen.max() - 67) <= reach


def test_tiles_give_the_voxels_of_the_whole() -> None:
    network = vqgan()
    latent, image = torch.rand(1, 3, 20, 5, 4) * 2 - 1, torch.zeros(1, 1, 78, 20, 13)
    whole = network.decode(latent, image)
    assert torch.allclose(decode_in_tiles(network, latent, image, (16, 8, 0)), whole, atol=1e-5)
    with pytest.raises(InputError, match="decode whole"):
        decode_in_tiles(vqgan(**PAPER), latent, image, (16, 8, 0))


def test_latent_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs a latent of \(4, 3, 2\), got \(4, 3, 3\)"):
        vqgan().decode(torch.zeros(1, 3, 4, 3, 3), torch.zeros(1, 1, 16, 12, 8))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"decoder_channels": (8, 8)}, "one number more than decoder_channels"),
        ({"patch": 3}, "patch must be 1 or 2"),
        ({"blocks": (1,)}, "blocks two numbers"),
        ({"resampling": "pool"}, "resampling must be"),
    ],
)
def test_bad_networks_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        vqgan(**bad)


# ---- the losses


class LinearDiscriminator(nn.Module):
    """Features and logits of slices and volume; ``gain`` scales the logits."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.net = nn.Conv3d(1, 1, 3)

    def forward(self, image: torch.Tensor, where: torch.Tensor) -> list[list[torch.Tensor]]:
        features = self.net(image)
        return [[features, self.gain * features.mean(dim=(2, 3, 4), keepdim=True)] for _ in range(2)]


def gradients(
    network: VQGAN, loss: VQGANLoss, discriminator: nn.Module, names: list[str], image: torch.Tensor
) -> torch.Tensor:
    made = network(image, details=True)
    terms = loss.generator(discriminator, made.pred, image, made.quantized.commitment, network.last_layer)
    total = torch.stack([terms[name] for name in names]).sum()
    (gradient,) = torch.autograd.grad(total, network.last_layer)
    return gradient


@pytest.mark.parametrize("gain", [0.01, 100.0])
def test_adaptive_weight_makes_both_gradients_alike_at_the_last_layer(gain: float) -> None:
    torch.manual_seed(0)
    network, discriminator, image = vqgan(), LinearDiscriminator(gain), torch.rand(1, 1, 16, 12, 8)
    loss = VQGANLoss(perceptual_weight=0.0)
    ours = gradients(network, loss, discriminator, ["g_l1"], image).norm()
    theirs = gradients(network, loss, discriminator, ["g_adversarial"], image).norm()
    assert float(theirs) == pytest.approx(float(ours), rel=0.05)
    fixed = VQGANLoss(perceptual_weight=0.0, adaptive=False)
    assert float(gradients(network, fixed, discriminator, ["g_adversarial"], image).norm() / ours) != pytest.approx(
        1.0, rel=0.5
    )
    assert float(fixed.weight) == 1.0


def test_adaptive_weight_is_kept_between_its_steps() -> None:
    network, image = vqgan(), torch.rand(1, 1, 16, 12, 8)
    loss = VQGANLoss(perceptual_weight=0.0, adaptive_interval=2)
    seen = []
    for gain in (1.0, 5.0, 5.0):
        gradients(network, loss, LinearDiscriminator(gain), ["g_l1"], image)
        seen.append(float(loss.weight))
    assert seen[0] == seen[1] != seen[2]


def test_terms_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    discriminators = SliceAndVolumeDiscriminator(channels=4, num_layers=2, norm="INSTANCE")
    loss = VQGANLoss(perceptual=lambda fake, real: (fake - real).abs().max(), slices=3)  # type: ignore[arg-type]
    fake, real = torch.rand(2, 1, 24, 20, 16), torch.rand(2, 1, 24, 20, 16)
    terms = loss.generator(discriminators, fake, real, torch.tensor(0.5))
    assert list(terms) == ["g_l1", "g_perceptual", "g_commitment", "g_adversarial", "g_feature"]
    assert float(terms["g_l1"]) == pytest.approx(4 * 2 * float((fake - real).abs().mean()), rel=1e-5)
    assert float(terms["g_perceptual"]) == pytest.approx(4 * float((fake - real).abs().max()), rel=1e-5)
    assert float(terms["g_commitment"]) == pytest.approx(0.125)
    assert list(loss.generator(None, fake, real, torch.tensor(0.5))) == ["g_l1", "g_perceptual", "g_commitment"]
    assert float(loss.generator(discriminators, real, real, torch.tensor(0.0))["g_feature"]) == 0.0
    assert set(loss.discriminator(discriminators, fake, real)) == {"d_real", "d_fake"}


def test_slices_are_seen_one_by_one() -> None:
    torch.manual_seed(0)
    discriminators = SliceAndVolumeDiscriminator(channels=4, num_layers=2, norm="INSTANCE").eval()
    image = torch.rand(2, 1, 24, 20, 16)
    of_slices, of_volume = discriminators(image, torch.tensor([3, 7, 11]))
    assert of_slices[-1].shape[:2] == (6, 1) and of_volume[-1].shape[:2] == (2, 1)
    other = image.clone()
    other[..., 8] = 0.0  # a slice that is not looked at
    assert torch.equal(discriminators(other, torch.tensor([3, 7, 11]))[0][-1], of_slices[-1])
    assert not torch.equal(discriminators(other, torch.tensor([3, 7, 11]))[1][-1], of_volume[-1])
    assert torch.allclose(discriminators(image, torch.tensor([7]))[0][-1][1], of_slices[-1][4], atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"adversarial": "wasserstein"}, "adversarial must be"),
        ({"perceptual_weight": 1.0}, "there is no perceptual network"),
        ({"l1_weight": 0.0}, "l1_weight must be positive"),
        ({"slices": 0}, "slices and adaptive_interval must be 1 or more"),
        ({"feature_weight": -1.0}, "loss weights must be 0 or more"),
    ],
)
def test_bad_losses_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VQGANLoss(**({"perceptual_weight": 0.0} | bad))


# ---- several processes


def learn(rank: int, folder: str) -> None:
    """One of two processes, whose batches hold different numbers of latents."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    codebook = Codebook(16, 3, decay=0.9, restart_interval=2).train()
    for batch in range(6):
        codebook(vectors(30 + 10 * rank, seed=2 * batch + rank))
    torch.save(codebook.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_one_codebook_from_the_latents_of_both(tmp_path: Path) -> None:
    mp.spawn(learn, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = Codebook(16, 3, decay=0.9, restart_interval=2).train()
    for batch in range(6):
        alone(torch.cat([vectors(30, seed=2 * batch), vectors(40, seed=2 * batch + 1)], dim=2))
    assert all(torch.allclose(value, first[name], atol=1e-6) for name, value in alone.state_dict().items())


def test_the_trainer_learns_the_image_and_not_the_label_map_beside_it() -> None:
    network, discriminator, seen = vqgan().train(), SliceAndVolumeDiscriminator(channels=4, num_layers=1), []
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image, label = torch.rand(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8)
    trainer = VQGANTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[{"image": image, "label": label}],
        network=network, optimizer=torch.optim.Adam(network.parameters()), loss_function=VQGANLoss(perceptual_weight=0),
        discriminator=discriminator, d_optimizer=torch.optim.Adam(discriminator.parameters()),
    )  # fmt: skip
    trainer.run()
    assert len(seen) == 1 and torch.equal(torch.as_tensor(seen[0]), image)
