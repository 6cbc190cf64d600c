"""Handlers of the first process, and one that stands in a list for another."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from semsynth.handlers import Attach, Stats, TensorBoardStats


def run_with(handler: object) -> Engine:
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(1.0)})
    handler.attach(engine)
    engine.run([0, 1], max_epochs=1)
    return engine


@pytest.mark.parametrize(("rank", "files"), [("0", 1), ("1", 0)])
def test_tensorboard_is_written_by_the_first_process(monkeypatch, tmp_path: Path, rank: str, files: int) -> None:
    monkeypatch.setenv("RANK", rank)
    handler = TensorBoardStats(log_dir=str(tmp_path / "log"), output_transform=lambda output: output["loss"].item())
    run_with(handler)
    handler.close()
    assert len(list(tmp_path.glob("log/events.*"))) == files


def test_tensorboards_file_does_not_name_the_machine(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-7-doe")
    handler = TensorBoardStats(log_dir=str(tmp_path), output_transform=lambda output: output["loss"].item())
    run_with(handler)
    handler.close()
    (written,) = tmp_path.iterdir()
    assert written.name.split(".")[-3] == "host" and b"ward-7-doe" not in written.read_bytes()
    assert socket.gethostname() == "ward-7-doe"


@pytest.mark.parametrize(("rank", "followed"), [("0", True), ("1", False)])
def test_metrics_are_told_by_the_first_process(monkeypatch, rank: str, followed: bool) -> None:
    monkeypatch.setenv("RANK", rank)
    engine = run_with(Stats(iteration_log=False))
    assert any(engine._event_handlers[event] for event in (Events.EPOCH_COMPLETED, Events.EXCEPTION_RAISED)) == followed


def test_what_stands_in_a_list_for_another_attaches_that() -> None:
    seen: list[int] = []

    class Counting:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration))

    run_with(Attach(Counting()))
    assert seen == [1, 2]
