"""Handlers: checkpoints that can be gone on from, best weights, previews."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from semsynth.errors import InputError
from semsynth.handlers import PreviewHandler, ProgressHandler, SaveBestWeights, TrainingCheckpoint
from semsynth.handlers.checkpoint import extract_weights
from torch import nn


def fit(path, *, epochs: int, resume: bool = False, stop_after: int | None = None) -> nn.Linear:
    """A tiny real training with momentum and a schedule: both have state that a resume must bring back."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def step(engine, batch):
        optimizer.zero_grad()
        loss = (network(batch) ** 2).mean()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss)}

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: schedule.step())
    objects = {"network": network, "optimizer": optimizer, "schedule": schedule}
    TrainingCheckpoint(path, objects, resume=resume).attach(engine)
    ProgressHandler(output_transform=lambda output: output).attach(engine)
    if stop_after:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), lambda e: e.terminate())
    engine.run([torch.ones(2, 3), torch.full((2, 3), 2.0)], max_epochs=epochs)
    return network


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = fit(tmp_path / "a.pt", epochs=6)
    fit(tmp_path / "b.pt", epochs=6, stop_after=3)
    resumed = fit(tmp_path / "b.pt", epochs=6, resume=True)
    assert torch.allclose(whole.weight, resumed.weight, atol=0)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["epoch"] == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


@pytest.mark.parametrize("first", [3, 12])
def test_a_longer_cosine_schedule_goes_on_as_if_it_had_always_been_planned(tmp_path, first):
    def optimizer_and_schedule(length):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)

    def run(epochs, length, resume=False):
        optimizer, schedule = optimizer_and_schedule(length)
        rates = []
        engine = Engine(lambda e, b: optimizer.step())
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: (schedule.step(), rates.append(schedule.get_last_lr()[0]))
        )
        TrainingCheckpoint(tmp_path / "a.pt", {"optimizer": optimizer, "schedule": schedule}, resume=resume).attach(
            engine
        )
        engine.run([0], max_epochs=epochs)
        return rates

    run(3, first)
    assert run(6, 6, resume=True) == pytest.approx(run(6, 6)[3:])


def test_the_best_value_survives_a_resume(tmp_path):
    best = SaveBestWeights(nn.Linear(1, 1), tmp_path / "m.pt", lower_is_better=True)
    best.best = 0.25
    engine = Engine(lambda e, b: None)
    TrainingCheckpoint(tmp_path / "c.pt", {"best": best}).attach(engine)
    engine.run([0], max_epochs=1)
    again = SaveBestWeights(nn.Linear(1, 1), tmp_path / "m.pt", lower_is_better=True)
    engine = Engine(lambda e, b: None)
    TrainingCheckpoint(tmp_path / "c.pt", {"best": again}, resume=True).attach(engine)
    engine.run([0], max_epochs=1)
    assert again.best == 0.25


def test_a_training_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path):
    network = nn.Linear(1, 1)
    engine = Engine(lambda e, b: network.weight.data.mul_(1.0 if e.state.epoch < 3 else float("nan")))
    TrainingCheckpoint(tmp_path / "a.pt", {"network": network}).attach(engine)
    with pytest.raises(InputError, match="epoch 3: network hold NaN or infinite values, training has diverged"):
        engine.run([0], max_epochs=5)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["epoch"] == 2 and state["network"]["weight"].isfinite().all()


def test_resuming_with_nothing_there_starts_afresh(tmp_path):
    assert torch.equal(fit(tmp_path / "a.pt", epochs=2, resume=True).weight, fit(tmp_path / "b.pt", epochs=2).weight)


def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"half")
    with pytest.raises(InputError, match=r"a\.pt: cannot be read as a checkpoint"):
        fit(path, epochs=1, resume=True)
    torch.save({"epoch": 1, "network": {}}, path)
    with pytest.raises(InputError, match="has no state for optimizer, schedule"):
        fit(path, epochs=1, resume=True)


def test_only_a_better_metric_replaces_the_weights_and_float16_is_close(tmp_path):
    network = nn.Linear(3, 1)
    path = tmp_path / "model.pt"
    engine = Engine(lambda e, b: None)
    engine.state.key_metric_name = "l1"
    SaveBestWeights(network, path, lower_is_better=True, half=True).attach(engine)
    kept = []
    for value in (0.5, 0.7, 0.4):
        with torch.no_grad():
            network.weight.fill_(value / 3)
        engine.state.metrics = {"l1": value}
        engine.add_event_handler(Events.STARTED, lambda e, v=value: e.state.metrics.update(l1=v))
        engine.run([0], max_epochs=1)
        kept.append(float(torch.load(path, weights_only=True)["weight"][0, 0]))
    assert kept == pytest.approx([0.5 / 3, 0.5 / 3, 0.4 / 3], abs=1e-3)
    state = torch.load(path, weights_only=True)
    assert state["weight"].dtype == torch.float16
    assert nn.Linear(3, 1).load_state_dict(state).missing_keys == []


def test_weights_are_taken_out_of_a_checkpoint(tmp_path):
    network = fit(tmp_path / "a.pt", epochs=1)
    state = torch.load(extract_weights(tmp_path / "a.pt", tmp_path / "m.pt"), weights_only=True)
    assert torch.allclose(state["weight"].float(), network.weight, atol=1e-3) and state["weight"].dtype == torch.float16
    with pytest.raises(InputError, match="holds no 'generator', only epoch, network, optimizer, schedule"):
        extract_weights(tmp_path / "a.pt", tmp_path / "m.pt", name="generator")


def test_previews_show_the_same_first_cases_at_every_validation_under_the_trainers_epoch(tmp_path):
    data = [
        {"image": torch.full((1, 1, 8, 8, 8), v / 4), "label": torch.full((1, 1, 8, 8, 8), v / 4)} for v in range(3)
    ]
    handler = PreviewHandler(tmp_path, cases=2)
    engine = SupervisedEvaluator(torch.device("cpu"), data, nn.Identity(), val_handlers=[handler])
    for epoch in (5, 10):
        engine.run(epoch)
        assert [float(row.panels[1].volume.mean()) for row in handler.rows] == [0, 0.25]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0005.png", "epoch_0010.png"]
