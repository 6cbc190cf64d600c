"""Training data as latents, the denoiser's loss, training and validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from semsynth.data.transforms import LoadIntensityd, LoadLabelMapd
from semsynth.errors import InputError
from semsynth.handlers import MovingAverage, TrainingCheckpoint
from semsynth.networks.discriminators import ConditionalPatchDiscriminator
from semsynth.networks.frozen import FrozenSegmenter
from semsynth.networks.latent_diffusion import Denoised, LatentDiffusion, intensity_style
from semsynth.training.engines.adversarial import DecoderTrainer
from semsynth.training.engines.diffusion import DenoiserEvaluator, DenoiserTrainer, SynthesisEvaluator, drawn
from semsynth.training.latents import COARSE, LATENT, STYLE, EncodeCases
from semsynth.training.loading import CaseSampler, TrainingDataset, TrainingLoader
from semsynth.training.losses.autoencoder import DecoderLoss, block_means
from semsynth.training.losses.diffusion import DiffusionLoss
from semsynth.training.losses.texture import texture
from tiny_diffusion import dataset, diffusion, label_map
from torch import nn

# ---- the data


def test_views_are_posteriors_with_their_map_and_style(tiny_dataset: Path) -> None:
    network, data = diffusion(), dataset(tiny_dataset)
    data.encode(network)
    item = data[0, 0]
    assert item[LATENT].shape == (6, 6, 6, 6)
    assert item["label"].shape == (1, 24, 24, 24)
    assert item[STYLE].shape == (8,)
    raw = TrainingDataset.__getitem__(data, (0, data._seed(0, 0)))
    mean, log_variance = network.autoencoder.encode(raw["image"][None])
    torch.testing.assert_close(item[LATENT][None], torch.cat([mean, log_variance], dim=1), atol=1e-2, rtol=1e-3)
    style = intensity_style(raw["image"][None], raw["label"][None], 4)[0]
    torch.testing.assert_close(item[STYLE], style, equal_nan=True)


def test_the_seed_picks_one_of_the_views(tiny_dataset: Path) -> None:
    data = dataset(tiny_dataset, views=2)
    data.encode(diffusion())
    assert torch.equal(data[0, 4][LATENT], data[0, 6][LATENT])
    assert not torch.equal(data[0, 4][LATENT], data[0, 5][LATENT])


def test_each_step_draws_from_the_posterior_anew() -> None:
    network = diffusion()
    posterior = torch.cat([torch.zeros(1, 3, 4, 4, 4), torch.full([1, 3, 4, 4, 4], 2.0)], dim=1)
    first, second = drawn(network, posterior), drawn(network, posterior)
    assert not torch.equal(first, second)
    many = torch.stack([drawn(network, posterior) for _ in range(50)])
    assert float(many.std()) == pytest.approx(2.718, rel=0.05)


def test_with_no_views_every_draw_is_augmented_and_encoded_anew(tiny_dataset: Path) -> None:
    network, data = diffusion(), dataset(tiny_dataset, views=0)
    data.encode(network)
    first, second = data[0, 4], data[0, 6]
    assert LATENT not in first
    assert first[STYLE].shape == (8,)
    assert not torch.equal(first["image"], second["image"])
    assert drawn(network, torch.as_tensor(first["image"])[None]).shape == (1, 3, 6, 6, 6)


def test_latents_have_variance_one_after_scaling_and_styles_are_counted(tiny_dataset: Path) -> None:
    network, data = diffusion(), dataset(tiny_dataset, views=3)
    data.encode(network)
    posterior = torch.stack([data[case, view][LATENT] for case in range(2) for view in range(3)])
    mean, log_variance = posterior.chunk(2, dim=1)
    spread = (mean.var() + log_variance.exp().mean()).sqrt()
    assert float(network.latent_scale * spread) == pytest.approx(1.0, rel=0.01)
    styles = torch.stack([data[case, view][STYLE] for case in range(2) for view in range(3)])
    torch.testing.assert_close(network.style_mean, styles.nanmean(dim=0), atol=1e-3, rtol=0)
    torch.testing.assert_close(network.style_covariance, styles.T.cov(), atol=1e-4, rtol=0)


def test_sampled_latents_come_with_crops_of_their_own_map_and_scan(tiny_dataset: Path) -> None:
    network, data = diffusion(), dataset(tiny_dataset, crop=(14, 8, 100))  # 3 cells, 2 cells, the whole axis
    network.latent_scale.fill_(0.5)
    data.encode(network)
    view = data.made[1, 1]
    seen = set()
    for seed in range(1, 41, 2):  # odd: the second view
        item = data[1, seed]
        assert item["image"].shape == item["label"].shape == (1, 12, 8, 24)
        assert item[LATENT].shape == (3, 3, 2, 6)
        starts = [(h, w) for h in range(4) for w in range(5)]
        ((h, w),) = (
            (h, w) for h, w in starts if torch.equal(item[LATENT], view[LATENT][:, h : h + 3, w : w + 2].float())
        )
        seen.add((h, w))
        for key in ("image", "label"):
            part = view[key][:, 4 * h : 4 * h + 12, 4 * w : 4 * w + 8].float()
            assert torch.equal(item[key], part), key
        assert torch.equal(item[COARSE], view[COARSE][:, h : h + 3, w : w + 2].float())
    assert len(seen) > 5
    latent, label = view[LATENT][None].float(), view["label"][None].float()
    image = network.autoencoder.decode(latent, label)
    torch.testing.assert_close(block_means(image, 4)[0], view[COARSE].float(), atol=2e-2, rtol=0)
    given = network.conditioning(label)
    again = network.sample_latent(given, [data._seed(1, 1)])[0] / 0.5
    torch.testing.assert_close(again, latent[0], atol=1e-2, rtol=1e-2)


def test_latents_on_disk_are_sampled_again_where_they_would_be_others(tiny_dataset: Path, tmp_path: Path) -> None:
    network = diffusion(of_denoiser={"dropout": 0.5}).train()
    options: dict[str, Any] = {"crop": (8, 8, 8), "views": 1, "latents_dir": tmp_path}

    def made(**others: Any) -> torch.Tensor:
        data = dataset(tiny_dataset, **(options | others))
        data.encode(network)
        latent: torch.Tensor = data.made[0, 0][LATENT]
        return latent

    first, files = made(), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    network.sampling = replace(network.sampling, batch_size=3, tile=(8, 8, 0))
    assert torch.equal(made(), first)
    assert torch.equal(made(latents_dir=None), first)  # no dropout while sampling
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    network.style_scale = 0.5
    second = made()
    assert not torch.equal(first, second)
    with torch.no_grad():
        next(iter(network.denoiser.parameters())).add_(0.3)
    assert not torch.equal(made(), second)
    assert network.training and network.denoiser.training
    dataset(tiny_dataset, views=1, latents_dir=tmp_path).encode(diffusion())
    before = made()
    assert torch.equal(made(), before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop": (8, 8, 8), "views": 0}, "views must be 1 or more, got 0"),
        ({"crop": (8, 8, 3)}, r"crop must be three numbers of 4 voxels or more, got \(8, 8, 3\)"),
        ({"crop": (8, 8)}, "crop must be three numbers"),
        ({"crop": 8}, "crop must be three numbers"),
    ],
)
def test_bad_sampled_data_are_named(tiny_dataset: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataset(tiny_dataset, **kwargs)


def test_weights_that_know_their_scale_keep_it(tiny_dataset: Path) -> None:
    network = diffusion()
    network.latent_scale.fill_(0.7)
    dataset(tiny_dataset).encode(network)
    assert float(network.latent_scale) == pytest.approx(0.7)


def test_views_on_disk_are_taken_up_again_unless_the_autoencoder_changed(tiny_dataset: Path, tmp_path: Path) -> None:
    network, first = diffusion(), dataset(tiny_dataset, latents_dir=tmp_path / "views")
    first.encode(network)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "views").iterdir()}
    assert len(files) == 4
    again = dataset(tiny_dataset, latents_dir=tmp_path / "views")
    again.encode(network)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert torch.equal(first[1, 1][LATENT], again[1, 1][LATENT])
    network.autoencoder.encoder.head.weight.data *= 2
    again.encode(network)
    assert all(path.stat().st_mtime_ns != before for path, before in files.items())
    assert not torch.equal(first[1, 1][LATENT], again[1, 1][LATENT])


def test_views_that_are_not_made_and_bad_numbers_are_named(tiny_dataset: Path) -> None:
    with pytest.raises(InputError, match=r"latents are not made yet; attach semsynth\.training\.latents\.EncodeCases"):
        dataset(tiny_dataset)[0, 0]
    with pytest.raises(InputError, match=r"views must be 0 \(encode in each step\) or more, got -1"):
        dataset(tiny_dataset, views=-1)


# ---- the loss


class Threshold(nn.Module):
    """A segmenter that can be seen through: bright is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        inside = (image - 0.5) * self.gain
        return torch.cat([-inside, inside], dim=1)


def objective(**kwargs: Any) -> DiffusionLoss:
    segmenter = FrozenSegmenter(Threshold(), name="threshold", sha256="0")
    return DiffusionLoss(**({"segmenter": segmenter, "segmentation_interval": 1} | kwargs))


def step(network: LatentDiffusion, *, timestep: int | None = None, labelled: bool = True) -> tuple[Denoised, Any]:
    label = label_map((16, 16, 16))
    network.label_dropout = network.style_dropout = 0.0
    made = network.train()(label, torch.randn(1, 3, 4, 4, 4), torch.rand(1, 8))
    if timestep is not None:
        made = made._replace(timestep=torch.tensor([timestep]))
    return made._replace(labelled=torch.tensor([labelled])), label


def terms_of(loss: DiffusionLoss, network: LatentDiffusion, made: Denoised, label: torch.Tensor, it: int = 1) -> Any:
    return loss(made, label, network.autoencoder, timesteps=1000, iteration=it)


@pytest.mark.parametrize("term", ["denoising", "segmentation"])
def test_each_term_reaches_the_denoiser_and_nothing_else(term: str) -> None:
    network, loss = diffusion(), objective()
    made, label = step(network, timestep=10)
    terms = terms_of(loss, network, made, label)
    assert set(terms) == {"denoising", "segmentation"}
    terms[term].backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.denoiser.parameters())
    assert all(p.grad is None for p in network.autoencoder.parameters())
    assert all(p.grad is None for p in loss._held[0].parameters())
    assert list(loss.parameters()) == []


def test_denoising_is_the_mean_squared_error() -> None:
    network = diffusion()
    made, label = step(network)
    terms = terms_of(objective(segmentation_weight=0.0), network, made, label)
    assert list(terms) == ["denoising"]
    torch.testing.assert_close(terms["denoising"], (made.pred - made.target).square().mean())


@pytest.mark.parametrize(
    ("timestep", "labelled", "counts"), [(249, True, True), (250, True, False), (10, False, False)]
)
def test_segmentation_counts_at_low_noise_and_with_the_map_only(timestep: int, labelled: bool, counts: bool) -> None:
    network = diffusion()
    made, label = step(network, timestep=timestep, labelled=labelled)
    terms = terms_of(objective(), network, made, label)
    assert (float(terms["segmentation"]) > 0) == counts
    terms["segmentation"].backward()  # also a term of zero has a gradient: processes wait for one another


def test_segmentation_comes_every_nth_step_and_by_its_weight() -> None:
    network = diffusion()
    made, label = step(network, timestep=10)
    loss = objective(segmentation_interval=3)
    assert ["segmentation" in terms_of(loss, network, made, label, it) for it in (1, 2, 3, 6)] == [
        False,
        False,
        True,
        True,
    ]
    one, three = (terms_of(objective(segmentation_weight=w), network, made, label)["segmentation"] for w in (0.1, 0.3))
    torch.testing.assert_close(three, 3 * one)
    assert objective().in_loss == [{"name": "threshold", "sha256": "0"}]
    assert objective(segmentation_weight=0.0).in_loss == []
    assert DiffusionLoss().in_loss == []


def test_an_image_that_shows_the_map_costs_less() -> None:
    network, loss = diffusion(), objective(target=[1, 2])
    made, label = step(network, timestep=10)
    inside = (label == 1) | (label == 2)
    costs = []
    for image in (inside.float(), 1 - inside.float()):
        network.autoencoder.decode = lambda *_, image=image: image  # type: ignore[method-assign]
        costs.append(float(terms_of(loss, network, made, label)["segmentation"]))
    assert costs[0] < 0.05 * costs[1]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"segmentation_weight": -0.1}, "must be 0 or more, got .*segmentation_weight -0.1"),
        ({"segmentation_interval": 0}, "segmentation_interval must be 1 or more"),
        ({"target": []}, "target one class or more"),
    ],
)
def test_bad_losses_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiffusionLoss(**kwargs)


# ---- the training


def trainer(
    data: Path, *, epochs: int = 1, views: int = 2, folder: Path | None = None, resume: bool = False, **kwargs: Any
) -> DenoiserTrainer:
    torch.manual_seed(0)
    network, cases = diffusion(), dataset(data, views=views)
    average = MovingAverage(network, momentum=0.1)
    optimizer = torch.optim.Adam(network.denoiser.parameters(), lr=1e-3)
    handlers: list[Any] = [average, EncodeCases(cases, network)]
    if folder is not None:
        objects = {"network": network, "average": average.ema_model, "optimizer": optimizer}
        handlers.insert(1, TrainingCheckpoint(folder, objects, resume=resume))
    sampler = CaseSampler(cases, epoch_cases=6)
    made = DenoiserTrainer(
        device=torch.device("cpu"), max_epochs=epochs, network=network, optimizer=optimizer,
        train_data_loader=TrainingLoader(cases, sampler=sampler, batch_size=2, num_workers=0),
        loss_function=objective(), train_handlers=handlers, **kwargs,
    )  # fmt: skip
    made.average = average.ema_model  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("amp", [False, True])
def test_training_moves_the_denoiser_alone(tiny_dataset: Path, views: int, amp: bool) -> None:
    made, fresh = trainer(tiny_dataset, views=views, amp=amp), diffusion()
    made.run()
    changed = {name for name, p in made.network.named_parameters() if not torch.equal(p, fresh.get_parameter(name))}
    assert changed
    assert all(name.startswith("denoiser.") for name in changed)
    assert float(made.network.latent_scale) != 1.0
    assert made.skipped == 0


def test_it_is_a_supervised_trainer_that_fires_monais_events(tiny_dataset: Path) -> None:
    made, seen = trainer(tiny_dataset), []
    events = [IterationEvents.FORWARD_COMPLETED, IterationEvents.LOSS_COMPLETED, IterationEvents.MODEL_COMPLETED]
    for event in events:
        made.add_event_handler(event, lambda engine, name: seen.append((name, "pred" in engine.state.output)), event)
    made.run()
    assert seen == [(event, True) for event in events] * made.state.iteration


def test_an_optimizer_with_the_autoencoder_is_refused(tiny_dataset: Path) -> None:
    network = diffusion()
    with pytest.raises(
        InputError, match=r"the optimizer has the autoencoder's parameters; give it \$@network_def.denoiser"
    ):
        DenoiserTrainer(
            device=torch.device("cpu"), max_epochs=1, network=network, loss_function=objective(), train_data_loader=[],
            optimizer=torch.optim.Adam(network.parameters()),
        )  # fmt: skip


def test_a_resumed_training_gives_what_an_uninterrupted_one_gives(tiny_dataset: Path, tmp_path: Path) -> None:
    whole = trainer(tiny_dataset, epochs=3)
    whole.run()
    trainer(tiny_dataset, epochs=2, folder=tmp_path).run()
    resumed = trainer(tiny_dataset, epochs=3, folder=tmp_path, resume=True)
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name
    for name, value in whole.average.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(resumed.average.state_dict()[name], value), name  # type: ignore[attr-defined]


def test_the_average_starts_from_the_loaded_weights_and_follows_the_steps() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = MovingAverage(network, momentum=0.1)
    values = iter([2.0, 3.0])

    def update(engine: Engine, batch: Any) -> None:
        network.weight.data.fill_(next(values))

    engine = Engine(update)
    engine.add_event_handler(Events.STARTED, lambda _: network.weight.data.fill_(1.0))  # what a handler loads
    average.attach(engine)
    engine.run([0, 1], max_epochs=1)
    assert float(average.ema_model.weight) == pytest.approx(0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 3.0)


def test_validation_knows_a_better_denoiser_and_shows_the_first_cases(tiny_dataset: Path) -> None:
    keys = Compose([LoadIntensityd("image"), LoadLabelMapd("label", 4)])
    entries = dataset(tiny_dataset).data
    cases = [keys(dict(entry)) for entry in entries]
    network = diffusion()
    outputs: list[Any] = []

    def evaluate() -> float:
        evaluator = DenoiserEvaluator(
            device=torch.device("cpu"), val_data_loader=TrainingLoader(cases, batch_size=1), network=network,
            levels=3, images=1, steps=2,
        )  # fmt: skip
        outputs.clear()
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output[0]))
        evaluator.run()
        return float(torch.stack([(o["predicted"] - o["wanted"]).square().mean() for o in outputs]).mean())

    first = evaluate()
    assert evaluate() == first  # fixed noise at fixed levels
    assert ["pred" in o for o in outputs] == [True, False]
    assert outputs[0]["pred"].shape == outputs[0]["label"].shape
    assert outputs[0]["predicted"].shape == (9, 8, 8, 8)
    nn.init.zeros_(network.denoiser.head.weight)
    nn.init.zeros_(network.denoiser.head.bias)
    assert evaluate() == pytest.approx(1.0, abs=0.05)  # predicting nothing leaves the noise's variance


# ---- the decoder on sampled latents


def decoder_trainer(
    data: Any, network: LatentDiffusion, epochs: int = 2, discriminator: nn.Module | None = None, **weights: Any
) -> DecoderTrainer:
    torch.manual_seed(5)
    if discriminator is None:
        discriminator = ConditionalPatchDiscriminator(
            4, channels=4, num_layers=2, norm="INSTANCE", label_encoding="one_hot"
        )
    loader = TrainingLoader(data, sampler=CaseSampler(data, seed=0, epoch_cases=4), batch_size=1, num_workers=0)
    return DecoderTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=loader, network=network,
        optimizer=torch.optim.Adam(network.autoencoder.decoder.parameters(), lr=1e-3), discriminator=discriminator,
        d_optimizer=torch.optim.Adam(discriminator.parameters(), lr=1e-3), loss_function=DecoderLoss(**weights),
    )  # fmt: skip


def test_the_decoder_alone_is_trained(tiny_dataset: Path) -> None:
    network = diffusion(of_autoencoder={"noise": True})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    data = dataset(tiny_dataset, crop=(24, 24, 24))
    data.encode(network)
    trainer = decoder_trainer(data, network, r1_interval=1)
    trainer.run()
    assert set(trainer.state.output["losses"]) == {"g_adversarial", "g_content", "d_real", "d_fake", "d_r1"}  # type: ignore[index]
    after = network.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert not torch.equal(
        before["autoencoder.decoder.noise.conv.weight"], after["autoencoder.decoder.noise.conv.weight"]
    )


def test_the_coarse_content_is_held_and_fine_texture_is_free() -> None:
    loss = DecoderLoss(content_weight=3.0, content_cells=2)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 4, 4, 2, generator=generator)
    image = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    texture = torch.tensor([1.0, -1.0]).repeat(8).view(1, 1, 16, 1, 1)
    assert float(loss.content(image + 0.2 * texture, coarse, 4)["g_content"]) == pytest.approx(0, abs=1e-6)
    assert float(loss.content(image + 0.1, coarse, 4)["g_content"]) == pytest.approx(3.0 * 2 * 0.1, rel=1e-4)
    mottle = torch.tensor([1.0, -1.0]).repeat_interleave(4).repeat(2).view(1, 1, 16, 1, 1)  # of single cells
    assert float(loss.content(image + 0.1 * mottle, coarse, 4)["g_content"]) == pytest.approx(0, abs=1e-6)
    held = DecoderLoss(content_weight=3.0, content_cells=1).content(image + 0.1 * mottle, coarse, 4)
    assert float(held["g_content"]) == pytest.approx(0.6, rel=1e-4)
    assert DecoderLoss(content_weight=0.0).content(image, coarse, 4) == {}
    few = loss.content(image[..., :4] + 0.1, coarse[..., :1], 4)["g_content"]  # fewer cells than a block has
    assert float(few) == pytest.approx(0.6, rel=1e-4)
    with pytest.raises(InputError, match="content_cells must be 1 or more, got 0"):
        DecoderLoss(content_cells=0)


class DetailJudge(nn.Module):
    """A discriminator that knows one thing: its logit is 1 for as much fine detail as the scans have."""

    def __init__(self, usual: float) -> None:
        super().__init__()
        self.usual = nn.Parameter(torch.tensor(usual))

    def forward(self, label: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        detail = image - nn.functional.avg_pool3d(image, 3, stride=1, padding=1)
        return [detail, detail.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt() / self.usual]


def test_the_detail_that_a_discriminator_misses_is_added(tiny_dataset: Path) -> None:
    network = diffusion(of_autoencoder={"noise": True})
    decoder = network.autoencoder.decoder
    for parameter in [*decoder.noise.parameters(), decoder.head.weight, decoder.head.bias]:
        nn.init.zeros_(parameter)  # an even grey to begin with
    data = dataset(tiny_dataset, crop=(24, 24, 24))
    data.encode(network)
    item, knows = data[0, 0], DetailJudge(0.1)
    trainer = decoder_trainer(data, network, 25, discriminator=knows, r1_weight=0.0)
    trainer.d_optimizer.param_groups[0]["lr"] = 0.0
    trainer.optimizer.param_groups[0]["lr"] = 1e-2
    trainer.run()
    with torch.no_grad():
        images = [
            network.autoencoder.decode(item[LATENT][None], item["label"][None], torch.randn(1, 1, 24, 24, 24))
            for _ in range(2)
        ]
        logits = [float(knows(item["label"][None], image)[-1]) for image in images]
    assert logits == pytest.approx([1.0, 1.0], abs=0.3)
    assert (images[0] - images[1]).abs().mean() > 0.005
    means = block_means(block_means(images[0], 4), 2)
    torch.testing.assert_close(means, torch.full_like(means, 0.5), atol=0.05, rtol=0)


def test_an_optimizer_of_more_than_the_decoder_is_refused(tiny_dataset: Path) -> None:
    network, data = diffusion(), dataset(tiny_dataset, crop=(8, 8, 8))
    with pytest.raises(InputError, match=r"the optimizer has other parameters than the decoder's; give it \$@network"):
        DecoderTrainer(
            device=torch.device("cpu"), max_epochs=1, train_data_loader=[], network=network,
            optimizer=torch.optim.Adam(network.autoencoder.parameters()), discriminator=nn.Identity(),
            d_optimizer=torch.optim.Adam([nn.Parameter(torch.zeros(1))]), loss_function=DecoderLoss(),
        )  # fmt: skip
    assert data.crop == [2, 2, 2]


def test_the_decoder_is_not_trained_by_several_processes(monkeypatch: pytest.MonkeyPatch, tiny_dataset: Path) -> None:
    monkeypatch.setattr("semsynth.training.engines.adversarial.world_size", lambda: 2)
    with pytest.raises(InputError, match="the decoder is trained by one process, not 2: start it without torchrun"):
        decoder_trainer(dataset(tiny_dataset, crop=(8, 8, 8)), diffusion())


@pytest.mark.parametrize(("slices", "bands"), [(100, 4), (9, 3)])
def test_validation_compares_the_texture_of_each_case_in_its_own_style(
    tiny_dataset: Path, slices: int, bands: int
) -> None:
    network = diffusion()
    keys = Compose([LoadIntensityd("image"), LoadLabelMapd("label", 4)])
    case = keys(dataset(tiny_dataset).data[0])
    batch = {key: torch.as_tensor(case[key])[None][..., :slices] for key in ("image", "label")}
    found: list[Any] = []
    evaluator = SynthesisEvaluator(device=torch.device("cpu"), val_data_loader=[batch], network=network)
    evaluator.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: found.extend(engine.state.output))
    evaluator.run()
    (output,) = found
    style, _ = network.encode(batch["image"], batch["label"])
    pred = network.synthesize(batch["label"], [network.noise_seed + 1], style=style)
    torch.testing.assert_close(output["pred"], pred[0])
    wanted, there = texture(batch["image"].float(), batch["label"], bands=bands)
    assert output["wanted"].shape == output["predicted"].shape == (int(there.sum()),)
    torch.testing.assert_close(output["wanted"], wanted[there])
    torch.testing.assert_close(output["predicted"], texture(pred, batch["label"], bands=bands)[0][there])
