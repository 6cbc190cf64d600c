"""Training that survives: exact resuming, signals, kills, full disks, damaged files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_training
import torch
from ignite.engine import Engine, Events
from semsynth.errors import InputError
from semsynth.handlers import SaveBestWeights, SaveFinalWeights, TrainingCheckpoint
from semsynth.provenance.cards import TrainingRecord
from semsynth.training.checkpoints import (
    CheckpointFolder,
    newest_checkpoint,
    random_state,
    read_checkpoint,
    rounded,
    save_atomically,
    set_random_state,
)
from semsynth.training.loading import load_sources
from semsynth.training.weights import extract_weights, save_weights
from tiny_training import trainer, weights
from torch import nn

SCRIPT = Path(tiny_training.__file__)


def run(engine):
    engine.run()
    return weights(engine)


@pytest.mark.parametrize(("kind", "workers"), [("unet", 0), ("unet", 2), ("gan", 0), ("gan", 2)])
def test_a_resumed_training_gives_bit_for_bit_what_an_uninterrupted_one_does(tiny_dataset, tmp_path, kind, workers):
    options = {"kind": kind, "workers": workers}
    whole = run(trainer(tiny_dataset, tmp_path / "a", epochs=3, **options))
    run(trainer(tiny_dataset, tmp_path / "b", epochs=1, **options))
    # another process would start from other random numbers: resuming must not depend on what was drawn before
    torch.rand(17), np.random.rand(5), random.random()
    resumed = run(trainer(tiny_dataset, tmp_path / "b", epochs=3, resume=True, **options))
    assert torch.equal(whole, resumed)
    assert newest_checkpoint(tmp_path / "b")["epoch"] == 3


def test_workers_do_not_change_the_result(tiny_dataset, tmp_path):
    first, second = (run(trainer(tiny_dataset, tmp_path / str(n), epochs=1, workers=n)) for n in (0, 2))
    assert torch.equal(first, second)


class Interrupt:
    """Sends this process a real signal at one iteration."""

    def __init__(self, iteration: int, number: int = signal.SIGTERM) -> None:
        self.iteration, self.number = iteration, number

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.send)

    def send(self, engine) -> None:
        if engine.state.iteration == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("workers", "iteration"), [(0, 2), (2, 9), (0, 6), (0, 12)])
def test_a_training_stopped_within_an_epoch_goes_on_at_the_next_step(tiny_dataset, tmp_path, workers, iteration):
    whole = run(trainer(tiny_dataset, tmp_path / "a", epochs=3, workers=workers))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        trainer(tiny_dataset, tmp_path / "b", epochs=3, workers=workers, handlers=(Interrupt(iteration),)).run()
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert newest_checkpoint(tmp_path / "b")["iteration"] == iteration
    assert torch.equal(whole, run(trainer(tiny_dataset, tmp_path / "b", epochs=3, workers=workers, resume=True)))


def test_with_accumulation_the_stop_waits_for_the_optimizer_step(tiny_dataset, tmp_path):
    whole = run(trainer(tiny_dataset, tmp_path / "a", epochs=2, accumulation_steps=4))
    with pytest.raises(SystemExit):
        trainer(tiny_dataset, tmp_path / "b", epochs=2, accumulation_steps=4, handlers=(Interrupt(2),)).run()
    assert newest_checkpoint(tmp_path / "b")["iteration"] == 4
    assert torch.equal(whole, run(trainer(tiny_dataset, tmp_path / "b", epochs=2, accumulation_steps=4, resume=True)))


def command(data, folder, epochs, output, workers):
    return [sys.executable, str(SCRIPT), str(data), str(folder), str(epochs), str(output), str(workers)]


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    [(signal.SIGTERM, 143, 0), pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow)],
)
def test_a_signal_to_the_whole_job_ends_it_with_its_status_and_resuming_goes_on(
    tiny_dataset, tmp_path, number, status, workers
):
    arguments = command(tiny_dataset, tmp_path / "b", 2, tmp_path / "b.pt", workers)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.strip() == "3":
            os.killpg(process.pid, number)  # as a terminal's Ctrl-C and batch systems do: workers get it too
            break
    process.stdout.read()
    assert process.wait(timeout=60) == status
    assert 3 <= newest_checkpoint(tmp_path / "b")["iteration"] < 12
    subprocess.run(arguments, check=True, capture_output=True)
    whole = run(trainer(tiny_dataset, tmp_path / "a", epochs=2))
    assert torch.equal(torch.load(tmp_path / "b.pt"), whole)


def _save_forever(folder: Path) -> None:
    files, state = CheckpointFolder(folder), {"objects": {"w": torch.rand(200_000)}, "epoch": 0, "iteration": 0}
    for i in range(10_000):
        files.save(state | {"iteration": i}, epoch=0, iteration=i)


def _kill_while_saving(folder: Path, times: int):
    """What the newest checkpoint holds after each of so many kills."""
    rng = random.Random(0)
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(SCRIPT.parent), str(Path(__file__).parent)]!r}; "
             f"from pathlib import Path; import test_checkpoints as t; print('go', flush=True); "
             f"t._save_forever(Path({str(folder)!r}))"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        process.stdout.readline()
        while not (folder / "manifest.json").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        yield CheckpointFolder(folder).load_newest()[0]


def test_a_kill_while_saving_leaves_a_loadable_checkpoint(tmp_path):
    states = list(_kill_while_saving(tmp_path, 1))
    assert [state["objects"]["w"].shape for state in states] == [(200_000,)]


@pytest.mark.slow
def test_twenty_kills_in_a_row_while_saving_leave_a_loadable_checkpoint_every_time(tmp_path):
    states = list(_kill_while_saving(tmp_path, 20))
    assert [state["objects"]["w"].shape for state in states] == [(200_000,)] * 20
    # what a kill leaves half-written is cleared away by the next save
    CheckpointFolder(tmp_path).save({"objects": {}, "epoch": 1, "iteration": 10**6}, epoch=1, iteration=10**6)
    assert len(list(tmp_path.iterdir())) == 3  # two checkpoints and the manifest, nothing half-written


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path):
    files = CheckpointFolder(tmp_path)
    files.save({"objects": {"w": torch.zeros(10)}, "epoch": 1, "iteration": 1}, epoch=1, iteration=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # a real refusal by the operating system: no file may grow beyond 20 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(InputError, match=r"cannot be written \(File too large\).*untouched"):
            files.save({"objects": {"w": torch.rand(100_000)}, "epoch": 2, "iteration": 2}, epoch=2, iteration=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    state, path = files.load_newest()
    assert state["epoch"] == 1 and sorted(p.name for p in tmp_path.iterdir()) == [path.name, "manifest.json"]


def test_the_newest_good_checkpoint_is_found_and_damaged_ones_are_passed_over(tmp_path, caplog):
    files = CheckpointFolder(tmp_path, keep=3)
    for i in (1, 2, 3, 4):
        files.save({"objects": {"w": torch.full((100,), float(i))}, "epoch": i, "iteration": i}, epoch=i, iteration=i)
    assert [entry["epoch"] for entry in files.listed()] == [2, 3, 4]
    newest, middle, _ = sorted(tmp_path.glob("*.pt"), reverse=True)
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    newest.write_bytes(flipped)
    middle.write_bytes(middle.read_bytes()[:100])
    assert files.load_newest()[0]["epoch"] == 2
    assert "its SHA-256 is not the one of the manifest; trying the one before" in caplog.text
    (tmp_path / "manifest.json").write_text("{")  # a lost manifest: by reading the files themselves
    assert files.load_newest()[0]["epoch"] in (2, 4)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no good checkpoint"):
        files.load_newest()


def test_a_checkpoint_is_loaded_without_executing_anything(tmp_path):
    path = tmp_path / "checkpoint_e0001_i0000001.pt"
    torch.save({"objects": {}, "epoch": 1, "iteration": os.system}, path)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


def test_random_states_come_back():
    state = random_state()
    drawn = [random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()]
    set_random_state(state)
    assert drawn == [random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()]


def test_a_training_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tmp_path):
    network = nn.Linear(1, 1)
    engine = Engine(lambda e, b: network.weight.data.mul_(1.0 if e.state.epoch < 3 else float("nan")))
    TrainingCheckpoint(tmp_path, {"network": network}).attach(engine)
    with pytest.raises(InputError, match=r"epoch 3: NaN or infinite values in network\.weight"):
        engine.run([0], max_epochs=5)
    state = newest_checkpoint(tmp_path)
    assert state["epoch"] == 2 and state["objects"]["network"]["weight"].isfinite().all()


def test_nan_weights_are_never_written_as_a_model(tmp_path):
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(1e6)  # finite, but not in float16
    engine = Engine(lambda e, b: None)
    SaveFinalWeights(network, tmp_path / "model.pt", half=True).attach(engine)
    with pytest.raises(InputError, match=r"not written, NaN or infinite weights in weight"):
        engine.run([0], max_epochs=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", [3, 12])
def test_a_longer_cosine_schedule_goes_on_as_if_it_had_always_been_planned(tmp_path, first):
    def run(epochs, length, resume=False):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
        rates = []
        engine = Engine(lambda e, b: optimizer.step())
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: (schedule.step(), rates.append(schedule.get_last_lr()[0]))
        )
        objects = {"optimizer": optimizer, "schedule": schedule}
        TrainingCheckpoint(tmp_path, objects, resume=resume).attach(engine)
        engine.run([0], max_epochs=epochs)
        return rates

    run(3, first)
    assert run(6, 6, resume=True) == pytest.approx(run(6, 6)[3:])


def test_a_longer_one_cycle_schedule_goes_on_as_if_it_had_always_been_planned(tmp_path):
    def run(epochs, resume=False):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=epochs)
        rates = []

        def step(engine, batch):
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()

        engine = Engine(step)
        TrainingCheckpoint(tmp_path, {"schedule": schedule}, resume=resume).attach(engine)
        engine.run([0], max_epochs=epochs)
        return rates

    run(3)
    assert run(8, resume=True) == pytest.approx(run(8)[3:])


def one_cycle(folder, *, epochs, length, rate=1.0, resume=False, stop=None):
    """A training that steps its schedule per iteration; returns the rate of every iteration."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=rate, weight_decay=rate / 10)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=length)
    rates = []

    def step(engine, batch):
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])

    engine = Engine(step)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    TrainingCheckpoint(folder, {"schedule": schedule, "optimizer": optimizer}, resume=resume).attach(engine)
    if stop:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda e: e.terminate())
    engine.run([0] * length, max_epochs=epochs)
    return rates, optimizer


@pytest.mark.parametrize("length", [5, 20])
def test_a_schedule_per_iteration_goes_on_where_it_belongs_when_an_epoch_has_other_iterations(tmp_path, length):
    one_cycle(tmp_path, epochs=6, length=10, stop=3)  # for example by two processes, or with another batch size
    rates, _ = one_cycle(tmp_path, epochs=6, length=length, resume=True)
    whole, _ = one_cycle(tmp_path / "whole", epochs=6, length=length)
    assert rates == pytest.approx(whole[3 * length :])


def test_a_resumed_training_takes_the_learning_rate_and_weight_decay_of_its_config(tmp_path):
    one_cycle(tmp_path, epochs=6, length=4, stop=3)
    rates, optimizer = one_cycle(tmp_path, epochs=6, length=4, rate=0.01, resume=True)
    whole, _ = one_cycle(tmp_path / "whole", epochs=6, length=4, rate=0.01)
    assert rates == pytest.approx(whole[12:]) and optimizer.param_groups[0]["weight_decay"] == 0.001


def test_a_fresh_training_moves_the_checkpoints_of_another_aside(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    one_cycle(folder, epochs=3, length=2)
    one_cycle(folder, epochs=1, length=2)
    assert newest_checkpoint(folder)["epoch"] == 1
    aside = next(tmp_path.glob("checkpoints_before_*"))
    assert newest_checkpoint(aside)["epoch"] == 3 and "were moved to" in caplog.text


def test_a_request_that_arrives_twice_does_not_end_the_process_before_its_save(tiny_dataset, tmp_path):
    twice = (Interrupt(2), Interrupt(2))
    with pytest.raises(SystemExit):
        trainer(tiny_dataset, tmp_path, epochs=1, handlers=twice).run()
    assert newest_checkpoint(tmp_path)["iteration"] == 2


def test_a_checkpoint_holds_what_it_was_made_from_and_a_resumed_training_says_what_changed(
    tiny_dataset, tmp_path, caplog
):
    datalist = tiny_dataset / "datalist.json"

    def go(paths, resume=False):
        data = SimpleNamespace(data=load_sources(paths))
        engine = Engine(lambda e, b: None)
        record = TrainingRecord(data, paths, in_loss=[{"name": "x", "sha256": "0"}])
        TrainingCheckpoint(tmp_path / "c", {"n": nn.Linear(1, 1)}, resume=resume, record=record).attach(engine)
        engine.run([0], max_epochs=1)

    go(datalist)
    record = newest_checkpoint(tmp_path / "c")["record"]
    assert len(record["training_cases"]) == 2 and set(record["training_cases"][0]) == {"voxels"}
    assert record["in_loss"] == [{"name": "x", "sha256": "0"}]
    assert record["versions"]["torch"] == str(torch.__version__) and len(record["datalist_sha256"]) == 64
    go(datalist, resume=True)
    assert "is not the checkpoint's" not in caplog.text and "not among those" not in caplog.text
    go([datalist, datalist], resume=True)
    assert "the datalist is not the checkpoint's" in caplog.text


def test_skipped_steps_are_counted_on_after_a_resume(tiny_dataset, tmp_path):
    first = trainer(tiny_dataset, tmp_path, epochs=1)
    first.learners["network"].guard.skipped = 7
    first.run()
    second = trainer(tiny_dataset, tmp_path, epochs=1, resume=True)
    second.run()
    assert second.skipped == 7


def test_the_best_value_survives_a_resume(tmp_path):
    best = SaveBestWeights(nn.Linear(1, 1), tmp_path / "m.pt", lower_is_better=True)
    best.best = 0.25
    engine = Engine(lambda e, b: None)
    TrainingCheckpoint(tmp_path, {"best": best}).attach(engine)
    engine.run([0], max_epochs=1)
    again = SaveBestWeights(nn.Linear(1, 1), tmp_path / "m.pt", lower_is_better=True)
    engine = Engine(lambda e, b: None)
    TrainingCheckpoint(tmp_path, {"best": again}, resume=True).attach(engine)
    engine.run([0], max_epochs=1)
    assert again.best == 0.25


def test_a_checkpoint_of_another_network_is_refused_with_what_to_do(tmp_path):
    def go(network, resume=False, **more):
        engine = Engine(lambda e, b: None)
        TrainingCheckpoint(tmp_path, {"network": network} | more, resume=resume).attach(engine)
        engine.run([0], max_epochs=1)

    go(nn.Linear(3, 1))
    with pytest.raises(InputError, match=r"network: its state does not fit.*init_weights"):
        go(nn.Linear(4, 1), resume=True)
    with pytest.raises(InputError, match="has no state for other"):
        go(nn.Linear(3, 1), resume=True, other=nn.Linear(1, 1))


def test_weights_are_taken_out_of_a_checkpoint_with_their_card(tiny_dataset, tmp_path):
    engine = trainer(tiny_dataset, tmp_path / "checkpoints", epochs=1)
    engine.run()
    path = extract_weights(tmp_path, tmp_path / "m.pt")
    state = torch.load(path, weights_only=True)
    own = engine.network.state_dict()
    assert all(t.dtype == torch.float16 and torch.allclose(t.float(), own[k], atol=1e-3) for k, t in state.items())
    assert json.loads((tmp_path / "m.json").read_text())["metric"] == {"epoch": 1}
    with pytest.raises(InputError, match="holds no 'generator', only average, network, optimizer, schedule"):
        extract_weights(tmp_path, tmp_path / "m.pt", name="generator")


def test_saving_leaves_no_temporary_files(tmp_path):
    digest = save_atomically({"w": torch.zeros(3)}, tmp_path / "a.pt")
    import hashlib

    assert hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest() == digest
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# ---- smaller files


@pytest.mark.parametrize("bits", [1, 6, 8, 10])
def test_rounded_mantissas_are_the_nearest(bits: int) -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)).half()
    made = rounded(values, bits)
    mantissa, exponent = torch.frexp(values.float())
    wanted = torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)
    assert made.dtype == torch.float16
    error = (made.float() - values.float()).abs()
    assert bool((error <= (wanted - values.float()).abs() + 1e-7).all())
    assert bool((error <= values.float().abs() * 2.0 ** -(bits + 1) + 1e-7).all())
    assert len(torch.unique(made)) <= len(torch.unique(values))


def test_rounding_leaves_other_types_and_the_largest_values() -> None:
    assert rounded(torch.tensor([65504.0, -65504.0]).half(), 4).isfinite().all()
    for tensor in (torch.arange(5), torch.tensor([1.0001])):
        assert rounded(tensor, 4) is tensor
    with pytest.raises(InputError, match="1 to 10 bits, got 11"):
        rounded(torch.zeros(1), 11)


def test_weights_can_be_made_smaller_with_their_card(tmp_path: Path) -> None:
    network = torch.nn.Linear(300, 300)
    save_weights(network, tmp_path / "model.pt", half=True, metric={"epoch": 3})
    plain = torch.load(tmp_path / "model.pt", weights_only=True)
    same = extract_weights(tmp_path / "model.pt", tmp_path / "same.pt", mantissa_bits=10)
    small = extract_weights(tmp_path / "model.pt", tmp_path / "small.pt", mantissa_bits=8)
    sizes = [path.stat().st_size for path in (tmp_path / "model.pt", same, small)]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < 0.87 * sizes[0]
    assert all(torch.equal(value, plain[name]) for name, value in torch.load(same, weights_only=True).items())
    network.load_state_dict(torch.load(small, weights_only=True))
    assert torch.allclose(network.weight, plain["weight"].float(), rtol=2**-9 * 1.01, atol=1e-6)
    card = json.loads(small.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()
    assert card["metric"] == {"epoch": 3} and card["file"] == "small.pt" and "8 bits" in card["stored"]


def test_of_earlier_trainings_checkpoints_the_newest_two_are_kept_and_nothing_else_is_removed(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    (tmp_path / "checkpoints_before_paper").mkdir()
    (tmp_path / "checkpoints_before_paper" / "checkpoint_e0001_i0000001.pt").write_text("somebody's")
    aside = []
    for number in range(4):
        folder.save({"a": torch.tensor(number)}, epoch=1, iteration=1)
        if number == 0:
            (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
        aside.append(folder.set_aside())
    assert [path.is_dir() for path in aside] == [True, False, True, True]
    assert [path.name for path in aside[0].iterdir()] == ["notes.txt"]
    assert (tmp_path / "checkpoints_before_paper" / "checkpoint_e0001_i0000001.pt").is_file()
    assert folder.set_aside() is None


@pytest.mark.parametrize("under", [None, "model"])
def test_weights_of_a_server_of_federated_learning_are_taken_out_with_nothing_known_of_them(under, tmp_path):
    tensors = {"a.weight": torch.rand(3, 2), "a.count": torch.tensor(4)}
    torch.save(
        tensors if under is None else {under: tensors, "train_conf": {"train": {"model": "A"}}}, tmp_path / "FL.pt"
    )
    extract_weights(tmp_path / "FL.pt", tmp_path / "model.pt")
    made = torch.load(tmp_path / "model.pt", weights_only=True)
    assert made.keys() == tensors.keys() and torch.allclose(made["a.weight"].float(), tensors["a.weight"], atol=1e-3)
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["unknown_parents"] == ["FL.pt"] and card["training_cases"] == []
