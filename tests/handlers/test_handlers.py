"""Handlers: best weights, previews."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from semsynth.handlers import PreviewHandler, SaveBestWeights
from torch import nn


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
