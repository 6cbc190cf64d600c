"""The denoiser, and autoencoder, denoiser and sampler as one network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from semsynth.errors import InputError
from semsynth.networks.blocks.noise import gaussian_noise, stream
from semsynth.networks.denoiser import sinusoids
from semsynth.networks.latent_diffusion import LatentDiffusion, intensity_style
from semsynth.networks.sampling.guided import compiled
from semsynth.networks.sampling.samplers import SAMPLERS, Step, sample
from semsynth.precision import reduced_type
from tiny_diffusion import denoiser, diffusion, exact, label_map
from torch.nn import functional as F

# ---- the denoiser


def inputs(size: tuple[int, int, int] = (4, 3, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, 3, *size, generator=generator), torch.tensor([400])


@pytest.mark.parametrize("size", [(16, 12, 8), (13, 9, 7), (5, 3, 1)])
@pytest.mark.parametrize("resampling", ["aligned", "strided"])
def test_any_size_is_denoised(size: tuple[int, int, int], resampling: str) -> None:
    network = denoiser(resampling=resampling)
    x, t = inputs(tuple(-(-n // 4) for n in size))  # type: ignore[arg-type]
    assert network(x, t, network.encode(label_map(size))).shape == x.shape


@pytest.mark.parametrize("kwargs", [{}, {"middle_spade": False}, {"middle_attention": False}, {"blocks": (2, 1)}])
@pytest.mark.parametrize("labels", ["fractions", "subvoxels", "nearest"])
def test_modulation_computed_before_gives_the_same_prediction(kwargs: dict[str, Any], labels: str) -> None:
    network = denoiser(labels=labels, **kwargs)
    x, t = inputs()
    levels = network.encode(label_map())
    style = torch.randn(1, 8)
    torch.testing.assert_close(
        network(x, t, network.modulation(levels), style), network(x, t, levels, style), atol=1e-6, rtol=0
    )
    assert len(network.modulation(levels).middle[0]) == (2 if kwargs.get("middle_spade", True) else 0)


def test_map_time_and_style_all_have_a_say() -> None:
    network = denoiser()
    x, t = inputs()
    levels, style = network.encode(label_map()), torch.randn(1, 8)
    first = network(x, t, levels, style)
    others = [
        network(x, t, network.encode(label_map(seed=5)), style),
        network(x, t + 300, levels, style),
        network(x, t, levels, style + 1),
        network(x, t, levels, None),
        network(x, t, network.encode(label_map() * 0 - 1), style),
    ]
    for other in others:
        assert (other - first).abs().max() > 1e-3


def test_the_map_reaches_middle_and_decoder() -> None:
    network = denoiser()
    x, t = inputs()
    levels = network.encode(label_map())
    for stride in network.strides:
        changed = levels | {stride: levels[stride].flip(1)}
        assert (network(x, t, changed) - network(x, t, levels)).abs().max() > 1e-3
    spades = [name for name, _ in network.named_modules() if name.endswith("norm_0.shared")]
    assert [name.split(".")[0] for name in spades].count("middle") == 2
    assert not any(name.startswith("down") for name in spades)


def test_subvoxels_tell_maps_of_the_same_fractions_apart() -> None:
    label = label_map()
    h, w, d = label.shape[2:]
    other = label.view(h // 4, 4, w // 4, 4, d // 4, 4).flip(1).reshape(label.shape)
    x, t = inputs()
    for labels, sees in (("subvoxels", True), ("fractions", False)):
        network = denoiser(labels=labels)
        apart = (network(x, t, network.encode(label)) - network(x, t, network.encode(other))).abs().max()
        assert bool(apart > 1e-3) == sees


def test_nan_is_the_null_style_row_by_row() -> None:
    network = denoiser()
    x, t = inputs()
    style = torch.randn(2, 8)
    style[1] = torch.nan
    both = network(x.repeat(2, 1, 1, 1, 1), t.repeat(2), network.encode(label_map()), style)
    torch.testing.assert_close(both[:1], network(x, t, network.encode(label_map()), style[:1]))
    torch.testing.assert_close(both[1:], network(x, t, network.encode(label_map()), None))


def test_the_null_map_is_zero_in_every_channel() -> None:
    levels = denoiser().encode(label_map() * 0 - 1)
    assert all(not bool(level.any()) for level in levels.values())


def test_time_embedding_is_that_of_monai() -> None:
    from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

    for width in (8, 9):
        ours = sinusoids(torch.tensor([0, 7, 999]), width)
        torch.testing.assert_close(ours, get_timestep_embedding(torch.tensor([0, 7, 999]), width))


def test_it_starts_by_predicting_nothing() -> None:
    from semsynth.networks.denoiser import SPADEUNet

    network = SPADEUNet(4, latent_channels=3, channels=(8, 8), spade={"hidden": 4, "groups": 2})
    x, t = inputs()
    assert not bool(network(x, t, network.encode(label_map())).any())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attention": (True,)}, "one entry per level, got 2, 2, 1, 2"),
        ({"blocks": (1, 1, 1)}, "one entry per level, got 2, 3, 2, 2"),
        ({"embedding": "film"}, "embedding must be add or scale_shift, got 'film'"),
        ({"resampling": "pool"}, "resampling must be aligned, strided, smooth or overlapping, got 'pool'"),
        ({"head_channels": 3}, "head_channels must divide the 8 channels of its level, got 3"),
    ],
)
def test_bad_denoisers_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        denoiser(**kwargs)


# ---- sampling


def test_no_two_noises_of_a_sample_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = diffusion(of_autoencoder={"noise": True}, sampler="ddpm", steps=5)
    seen: list[int] = []

    def noise(like: torch.Tensor, seed: int, *origin: Any) -> torch.Tensor:
        seen.append(seed)
        return gaussian_noise(like, seed, *origin)

    for module in ("latent_diffusion", "blocks.noise", "blocks.style"):
        monkeypatch.setattr(f"semsynth.networks.{module}.gaussian_noise", noise)
    network.synthesize(label_map(), [7])
    assert len(seen) >= 7
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("noise", [False, True])
def test_a_sample_depends_on_map_and_seed_alone(noise: bool) -> None:
    network = diffusion(of_autoencoder={"noise": noise})
    several = network.synthesize(label_map(), [3, 11, 3])
    assert torch.equal(several[0], several[2])
    assert not torch.equal(several[0], several[1])
    assert torch.equal(several[1:2], network.synthesize(label_map(), [11]))
    network.noise_seed = 11
    both = network(torch.cat([label_map(seed=7), label_map()]))
    assert torch.equal(both[1:], several[1:2])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "split"])
def test_images_are_in_range_and_of_the_maps_size(sampler: str, prediction: str) -> None:
    outputs = {"predictions": 2 if prediction == "split" else 1}
    network = diffusion(sampler=sampler, prediction=prediction, of_denoiser=outputs)
    assert bool(torch.isfinite(network.train()(label_map(), torch.randn(1, 3, 4, 3, 2), torch.rand(1, 8)).clean).all())
    network.eval()
    image = network(label_map((13, 9, 7)))
    assert image.shape == (1, 1, 13, 9, 7)
    assert float(image.min()) >= 0.0
    assert float(image.max()) <= 1.0


def test_the_loop_is_that_of_monais_scheduler() -> None:
    """The guided loop written by hand around MONAI's DDIM, on the network's own noise."""
    from monai.networks.schedulers import DDIMScheduler

    network = diffusion(timesteps=20, steps=20, guidance=1.5, sampler="ddim", clip=None)
    label, style = label_map(), torch.linspace(0.1, 0.9, 8)[None]
    theirs = exact(DDIMScheduler(20, "cosine", clip_sample=False))
    # the noise of seed 5: of a network that predicts nothing, DDIM leaves the start over the first signal
    given = network.conditioning(label)
    with encoded_latents(network) as starts:
        ours = network.sample_latent(given, [5], style=style)
    x, levels = starts[0], network.denoiser.encode(label)
    null = {stride: torch.zeros_like(level) for stride, level in levels.items()}
    standard = network.standardized(style)
    with torch.no_grad():
        for t in theirs.timesteps.tolist():
            conditional = network.denoiser(x, torch.tensor([t]), levels, standard)
            unconditional = network.denoiser(x, torch.tensor([t]), null, standard)
            x, _ = theirs.step(unconditional + 1.5 * (conditional - unconditional), t, x)
    # map and null map are one batch here and two there: rounded otherwise, by what the latents' size is
    assert (ours - x).abs().max() <= 1e-4 * x.abs().max()


def test_the_start_is_white_noise_of_variance_one() -> None:
    network = diffusion(of_denoiser={"style_channels": 0})
    with encoded_latents(network) as seen:
        network.sample_latent(network.conditioning(label_map((64, 64, 64))), [0, 1], steps=1)
    start = torch.cat(seen)
    assert float(start.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(start.std()) == pytest.approx(1.0, abs=0.02)
    flat = start.flatten(2).reshape(6, -1)
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.08  # no two channels or seeds alike


@contextmanager
def encoded_latents(network: LatentDiffusion) -> Iterator[list[torch.Tensor]]:
    """What the denoiser's encoder is given meanwhile."""
    seen: list[torch.Tensor] = []
    path = network.denoiser.down_path
    network.denoiser.down_path = lambda x, embedded: (seen.append(x), path(x, embedded))[1]  # type: ignore[method-assign]
    yield seen
    network.denoiser.down_path = path  # type: ignore[method-assign]


def rows_denoised(network: LatentDiffusion, **kwargs: Any) -> list[int]:
    """How many predictions the denoiser's decoder was asked for in each step."""
    rows: list[int] = []
    path = network.denoiser.up_path
    network.denoiser.up_path = lambda *given: (made := path(*given), rows.append(len(made)))[0]  # type: ignore[method-assign]
    network.synthesize(label_map(), [0], **kwargs)
    network.denoiser.up_path = path  # type: ignore[method-assign]
    return rows


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("middle_spade", [True, False])
def test_what_is_computed_once_gives_what_the_plain_loop_gives(sampler: Any, middle_spade: bool) -> None:
    """In the plain loop every step is two whole passes, each with modulation, time and style of its own."""
    # (ε would divide rounding errors by the first step's signal, 5e-5)
    network = diffusion(of_denoiser={"middle_spade": middle_spade}, prediction="v", sampler=sampler, steps=6)
    label, seeds, style = label_map((21, 14, 10)), [3, 8], torch.linspace(0.1, 0.9, 8)[None]
    levels, standard = network.denoiser.encode(label), network.standardized(style)
    null = network.denoiser.encode(label * 0 - 1)

    def predict(x: torch.Tensor, step: Step) -> torch.Tensor:
        timestep = torch.tensor([step.timestep])
        pred, without = (network.denoiser(x, timestep, given, standard) for given in (levels, null))
        return without + 1.5 * (pred - without)

    fast = network.sample_latent(network.conditioning(label), seeds, style=style)
    for latent, seed in zip(fast, seeds, strict=True):
        places = torch.empty(3, 1, *latent.shape[1:])

        def noise(number: int, seed: int = seed, places: torch.Tensor = places) -> torch.Tensor:
            return gaussian_noise(places, stream(seed, number + 2)).transpose(0, 1)

        with torch.no_grad():
            plain = sample(network.schedule, noise(-1), predict, noise, sampler=sampler, steps=6, clip=8.0)
        assert (latent - plain[0]).abs().max() <= 1e-5 * plain.abs().max()


def test_the_encoder_runs_once_for_map_and_null_map_and_several_samples_at_once() -> None:
    network, seeds = diffusion(), [3, 8, 11]
    one_by_one = network.synthesize(label_map(), seeds)
    with encoded_latents(network) as seen:
        at_once = network.synthesize(label_map(), seeds, batch_size=2)
    assert [len(x) for x in seen] == [2, 1] * 3
    torch.testing.assert_close(at_once, one_by_one, atol=1e-5, rtol=0)


def test_equal_maps_of_a_batch_share_their_conditioning() -> None:
    network, made = diffusion(), []
    conditioning = network.conditioning
    network.conditioning = lambda *a, **k: (made.append(1), conditioning(*a, **k))[1]  # type: ignore[method-assign]
    batch = network(torch.cat([label_map(), label_map(), label_map(seed=7)]), noise_seeds=[4, 9, 4])
    assert len(made) == 2
    assert torch.equal(batch[:2], network.synthesize(label_map(), [4, 9]))
    assert torch.equal(batch[2:], network.synthesize(label_map(seed=7), [4]))
    with pytest.raises(InputError, match="one per item of the batch, got 3 for 1"):
        network(label_map(), noise_seeds=[4, 9, 4])


def test_out_of_memory_names_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    network = diffusion(batch_size=2)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(network.denoiser, "down_path", full)
    wanted = r"out of memory on cpu for a label map of 16 × 12 × 8 voxels; give --batch_size 1 .* --amp True .* --tile"
    with pytest.raises(InputError, match=wanted):
        network.synthesize(label_map(), [0])


def test_a_copy_is_compiled_with_its_own_weights() -> None:
    network = denoiser()
    first = compiled(network)
    assert compiled(network) is first
    copy = deepcopy(network)
    assert compiled(copy) is not first
    assert compiled(copy) is compiled(copy)


def test_the_bar_may_be_another_ones() -> None:
    network, shares = diffusion(progress=True, steps=4), []
    network(label_map(), on_step=shares.append)
    assert shares == [0.25] * 4


def test_guidance_one_needs_one_pass_and_zero_forgets_the_map() -> None:
    network = diffusion()
    assert rows_denoised(network, guidance=1.0) == [1, 1, 1]
    assert rows_denoised(network, guidance=1.5) == [2, 2, 2]
    given, other = (network.conditioning(label_map(seed=s), guidance=0.0) for s in (1, 2))
    latents = [network.sample_latent(g, [0], guidance=0.0) for g in (given, other)]
    assert torch.equal(*latents)
    with pytest.raises(InputError, match=r"guidance 1.5 needs the null map"):
        network.sample_latent(network.conditioning(label_map(), guidance=1.0), [0])


def test_map_and_null_map_in_one_batch_are_two_passes() -> None:
    network = diffusion()
    pair, alone = (network.conditioning(label_map(), guidance=g) for g in (1.5, 1.0))
    null = network.conditioning(label_map() * 0 - 1, guidance=1.0)
    x, embedded = torch.randn(1, 3, 4, 3, 2), network.denoiser.embed(torch.tensor([400]))
    passes = [network.denoiser.denoise(x, embedded, given.denoiser) for given in (alone, null)]
    together = network.denoiser.denoise(x, embedded, pair.denoiser)
    torch.testing.assert_close(together, torch.cat(passes), atol=1e-5, rtol=0)


def test_all_time_steps_are_embedded_at_once() -> None:
    network, style = denoiser(), torch.randn(1, 8)
    timesteps = torch.tensor([999, 500, 3])
    for i, t in enumerate(timesteps):
        alone = network.embed(t[None], style)
        for together, vector in zip(network.embed(timesteps, style), alone, strict=True):
            torch.testing.assert_close(together[i : i + 1], vector, atol=1e-6, rtol=0)


def test_outside_its_interval_guidance_costs_nothing_and_does_nothing() -> None:
    network = diffusion(guidance_interval=(0.1, 0.7))  # time steps 999, 564 and 129
    assert rows_denoised(network) == [1, 2, 2]
    never, unguided = diffusion(guidance_interval=(0.9, 0.95)), diffusion(guidance=1.0)
    torch.testing.assert_close(never(label_map()), unguided(label_map()), atol=1e-6, rtol=0)
    for bad in ((0.5, 0.2), (0.0, 1.1), (0.5,)):
        with pytest.raises(InputError, match="guidance_interval must be two rising shares of the time steps in"):
            diffusion(guidance_interval=bad)


def test_arguments_take_the_place_of_the_networks_own() -> None:
    network = diffusion()
    first = network.synthesize(label_map(), [0])
    for kwargs in ({"steps": 5}, {"guidance": 3.0}, {"sampler": "ddpm"}, {"style": torch.zeros(1, 8)}):
        assert not torch.equal(network.synthesize(label_map(), [0], **kwargs), first)
    changed = diffusion(steps=5)
    assert torch.equal(network.synthesize(label_map(), [0], steps=5), changed.synthesize(label_map(), [0]))


def test_the_conditioning_serves_many_samples() -> None:
    network = diffusion()
    given = network.conditioning(label_map())
    latent = network.sample_latent(given, [4])
    image = network.autoencoder.decode(latent / network.latent_scale, given.decoder).clamp(0, 1)
    torch.testing.assert_close(image, network.synthesize(label_map(), [4]))
    with pytest.raises(InputError, match="one label map at a time is conditioned on, got a batch of 2"):
        network.conditioning(label_map().repeat(2, 1, 1, 1, 1))


def test_the_scale_of_latents_is_taken_away_before_decoding() -> None:
    network = diffusion()
    latent = network.sample_latent(network.conditioning(label_map()), [0])
    network.latent_scale.fill_(4.0)
    image = network.synthesize(label_map(), [0])
    torch.testing.assert_close(image, network.autoencoder.decode(latent / 4.0, label_map()).clamp(0, 1))


def test_half_precision_stays_close() -> None:
    network, half = diffusion(), diffusion(amp=True)
    apart = (network.synthesize(label_map(), [0]) - half.synthesize(label_map(), [0])).abs()
    assert float(apart.mean()) < 0.02
    assert bool(apart.any()) == (reduced_type("cpu") is not None), "off where the processor is not able"


# ---- style


def test_style_is_mean_and_spread_of_each_class() -> None:
    label, image = label_map(), torch.rand(1, 1, 16, 12, 8)
    label[label == 2] = 3  # a class that is not there
    style = intensity_style(image, label, 4)[0].numpy()
    for c in (0, 1, 3):
        values = image[label == c].numpy()
        assert style[c] == pytest.approx(values.mean(), abs=1e-5)
        assert style[4 + c] == pytest.approx(values.std(), abs=1e-5)
    assert np.isnan(style[[2, 6]]).all()


def test_a_missing_class_has_the_training_sets_style() -> None:
    network = diffusion()
    label, image = label_map(), torch.rand(1, 1, 16, 12, 8)
    label[label == 2] = 3
    style, log_variance = network.encode(image, label)
    assert torch.equal(style[0, [2, 6]], network.style_mean[[2, 6]])
    assert bool(torch.isfinite(style).all())
    assert not bool(log_variance.exp().any())


def test_drawn_styles_are_distributed_as_the_training_sets() -> None:
    network = diffusion()
    network.style_covariance += 0.005
    drawn = torch.cat([network.draw_style(seed) for seed in range(3000)])
    torch.testing.assert_close(drawn.mean(dim=0), network.style_mean, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), network.style_covariance, atol=0.002, rtol=0)
    network.style_scale = 0.0
    assert torch.equal(network.draw_style(5)[0], network.style_mean)


def test_seeds_draw_styles_and_a_given_style_takes_their_place() -> None:
    network = diffusion()
    drawn = network.synthesize(label_map(), [0])
    assert torch.equal(network.synthesize(label_map(), [0], style=network.draw_style(0)), drawn)
    given = network(label_map(), style=network.draw_style(77))
    assert not torch.equal(given, drawn)
    assert torch.equal(given, network.synthesize(label_map(), [0], style=network.draw_style(77)))


def test_a_network_without_style_says_so() -> None:
    network = diffusion(of_denoiser={"style_channels": 0})
    assert network(label_map()).shape == (1, 1, 16, 12, 8)
    with pytest.raises(InputError, match=r"this network has no style \(style_channels 0\)"):
        network.encode(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))


# ---- a training step


def test_a_training_step_predicts_the_noise_of_what_it_was_given() -> None:
    network = diffusion().train()
    network.latent_scale.fill_(2.0)
    latent = torch.randn(1, 3, 4, 3, 2)
    torch.manual_seed(4)
    made = network(label_map(), latent, torch.rand(1, 8))
    level = network.schedule.level(made.timestep)
    noisy = level.signal * latent * 2.0 + level.noise * made.target  # the target is the noise
    wanted = (noisy - level.noise * made.pred) / level.signal / 2.0
    torch.testing.assert_close(made.clean, wanted, atol=1e-4, rtol=1e-4)
    assert float(made.target.std()) == pytest.approx(1.0, abs=0.4)


def test_maps_and_styles_are_dropped_as_often_as_asked() -> None:
    network = diffusion(label_dropout=0.3, style_dropout=0.2).train()
    seen: list[tuple[bool, bool]] = []
    network.denoiser.forward = lambda x, t, levels, style: (  # type: ignore[method-assign]
        seen.extend(zip((~levels[4].flatten(1).any(dim=1)).tolist(), style.isnan().all(dim=1).tolist(), strict=True)),
        torch.zeros_like(x),
    )[1]
    labelled = []
    for _ in range(40):
        made = network(label_map().repeat(50, 1, 1, 1, 1), torch.zeros(50, 3, 4, 3, 2), torch.rand(50, 8))
        labelled += made.labelled.tolist()
    maps, styles = np.array(seen).T
    assert maps.mean() == pytest.approx(0.3, abs=0.04)
    assert styles.mean() == pytest.approx(0.2, abs=0.04)
    assert (maps & styles).mean() == pytest.approx(0.06, abs=0.03)  # each by itself
    assert labelled == (~maps).tolist()


def test_the_autoencoder_is_frozen_and_a_gradient_passes_through_it() -> None:
    network = diffusion().train()
    assert not network.autoencoder.training
    assert not any(p.requires_grad for p in network.autoencoder.parameters())
    made = network(label_map(), torch.randn(1, 3, 4, 3, 2), torch.rand(1, 8))
    network.autoencoder.decode(made.clean, label_map()).sum().backward()
    assert all(p.grad is not None for p in network.denoiser.parameters())
    assert all(p.grad is None for p in network.autoencoder.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"of_denoiser": {"latent_channels": 4}},
            r"must agree in classes, latent channels and stride, got \(4, 3, 4\)",
        ),
        ({"of_denoiser": {"stride": 8}}, "must agree"),
        ({"of_denoiser": {"style_channels": 5}}, r"style_channels must be 0 or 2 · num_classes \(8: .* got 5"),
        ({"label_dropout": 1.0}, "label_dropout and style_dropout must be in"),
        ({"sampler": "heun"}, "sampler must be one of ddpm, ddim, dpm_solver, angle, got 'heun'"),
        ({"steps": 2000}, "steps must be 1 to 1000"),
        ({"prediction": "x"}, "prediction must be epsilon, v or split"),
        ({"prediction": "split"}, "predictions must be 2 for prediction split and 1 otherwise, got 1 for split"),
        ({"of_denoiser": {"predictions": 2}}, "got 2 for epsilon"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        diffusion(**kwargs)


def test_thin_structures_stay_under_fractions_and_vanish_under_nearest() -> None:
    wall = torch.zeros(1, 1, 16, 16, 16)
    wall[:, :, 5] = 2.0  # one voxel thick, at no multiple of the stride
    shares = {mode: denoiser(labels=mode).encode(wall)[8][0, 2].sum() for mode in ("fractions", "nearest")}
    assert float(shares["fractions"]) == pytest.approx(4 / 8)
    assert float(shares["nearest"]) == 0.0
    assert F.one_hot(wall.long().flatten(), 4)[:, 2].float().mean() == pytest.approx(1 / 16)
