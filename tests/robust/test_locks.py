"""One run at a time on a folder: who holds it is said, waiting works, and a dead run holds nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.handlers import TrainingCheckpoint
from semsynth.locks import LOCK, hold, locked

HOLD = (
    "import sys, time\nfrom semsynth.locks import locked\n"
    "with locked(sys.argv[1], 'a test'):\n    print('in', flush=True)\n    time.sleep(600)"
)


def test_the_second_run_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "out", "semsynth prepare"):
        told = rf"semsynth prepare \(process {os.getpid()} on {socket.gethostname()}, since 20.*\) is writing into it"
        with pytest.raises(InputError, match=told), locked(tmp_path / "out", "another"):
            pass
        (tmp_path / "out" / "result").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]
    with locked(tmp_path / "out", "another"):  # given back
        pass


def test_with_wait_the_second_run_comes_after_the_first(tmp_path: Path) -> None:
    order, holds = [], threading.Event()

    def first() -> None:
        with locked(tmp_path, "first"):
            holds.set()
            time.sleep(1.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    holds.wait()
    with locked(tmp_path, "second", wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_the_lock_of_a_killed_run_is_taken_over_and_its_debris_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=rf"a test \(process {run.pid} on "), locked(tmp_path, "another"):
            pass
        (tmp_path / ".semsynth-0123456789ab.tmp").mkdir()
        (tmp_path / ".semsynth-0123456789ac.tmp.nii.gz").write_text("half")
        run.send_signal(signal.SIGKILL)
    assert json.loads((tmp_path / f"{LOCK}.json").read_text())["process"] == run.pid
    with locked(tmp_path, "another"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, f"{LOCK}.json"]
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    assert main(["prepare", "--input", str(tmp_path / "nothing"), "--output", str(tmp_path / "a" / "b")]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["phantom", "prepare", "prepare-maps", "evaluate", "dicom"])
def test_every_command_that_writes_a_folder_holds_it(
    command: str, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "phantom": ["--size", "32,32,32"],
        "prepare": ["--input", str(tiny_dataset)],
        "prepare-maps": ["--input", str(tiny_dataset)],
        "dicom": ["--volume", str(tiny_dataset)],
        "evaluate": ["--synthetic", str(tiny_dataset), "--real", str(tiny_dataset)],
    }[command]
    with locked(tmp_path, "the first run"):
        assert main([command, "--output", str(tmp_path), *given]) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, f"{LOCK}.json"]
    assert "the first run (process" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_run_folder(tmp_path: Path) -> None:
    steps: list[int] = []

    def train() -> None:
        engine = Engine(lambda engine, batch: steps.append(batch))
        TrainingCheckpoint(tmp_path / "run" / "checkpoints", {}).attach(engine)
        engine.run([1], max_epochs=1)

    with locked(tmp_path / "run", "a training"):
        with pytest.raises(InputError, match=r"a training \(process .*\) is writing into it"):
            train()
        assert not steps and not (tmp_path / "run" / "checkpoints").exists()
    train()
    assert steps == [1] and not (tmp_path / "run" / LOCK).exists()


def test_a_training_takes_over_what_was_held_before_its_data_were_loaded(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    hold(run_dir, "a training")
    hold(run_dir, "a training")  # once is enough
    assert (run_dir / LOCK).exists()
    engine = Engine(lambda engine, batch: None)
    TrainingCheckpoint(run_dir / "checkpoints", {}).attach(engine)
    engine.run([1], max_epochs=1)
    assert not (run_dir / LOCK).exists()
    with locked(run_dir, "another"), pytest.raises(InputError, match="another"):
        hold(run_dir, "a training")


def test_a_training_holds_its_folder_until_its_last_handler_has_written(tmp_path: Path) -> None:
    held: list[bool] = []
    engine = Engine(lambda engine, batch: None)
    TrainingCheckpoint(tmp_path / "run" / "checkpoints", {}).attach(engine)
    engine.add_event_handler(Events.COMPLETED, lambda: held.append((tmp_path / "run" / LOCK).exists()))  # final weights
    engine.run([1], max_epochs=1)
    assert held == [True] and not (tmp_path / "run" / LOCK).exists()


def test_a_waiting_run_comes_through_where_the_first_one_removes_its_folder(tmp_path: Path) -> None:
    holds = threading.Event()

    def first() -> None:
        with locked(tmp_path / "out", "first"):
            holds.set()
            time.sleep(1.5)

    thread = threading.Thread(target=first)
    thread.start()
    holds.wait()
    with locked(tmp_path / "out", "second", wait=True):
        (tmp_path / "out" / "result").write_text("")
    thread.join()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_processes_of_one_torchrun_share_a_folder_and_no_other_run_joins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def process(number: int, count: int) -> None:
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    process(0, 2)
    with locked(tmp_path, "inference", shared=True):
        process(1, 2)
        with locked(tmp_path, "inference", shared=True):
            process(0, 1)
            with pytest.raises(InputError, match="is writing into it"), locked(tmp_path, "alone", shared=True):
                pass
    process(1, 2)
    with locked(tmp_path, "inference", shared=True):
        process(0, 1)
        with pytest.raises(InputError, match="is writing into it"), locked(tmp_path, "alone", shared=True):
            pass
    with locked(tmp_path, "alone", shared=True):
        process(1, 2)
        with pytest.raises(InputError, match=r"alone \(process"), locked(tmp_path, "inference", shared=True):
            pass
        process(0, 1)
    assert not list(tmp_path.iterdir())
