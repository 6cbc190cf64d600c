"""How runs of bundles end: by one line where it is no fault of the program, and with the status that shells expect."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from semsynth import errors
from semsynth.errors import InputError, os_error_line, say_plainly
from semsynth.handlers.attachment import Stats


@pytest.fixture
def hook(monkeypatch):
    """The hook of a bundle's run, in place of pytest's own."""
    before = logging.getLogRecordFactory()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["monai.bundle"])
    term = signal.getsignal(signal.SIGTERM)
    say_plainly()
    yield lambda error: sys.excepthook(type(error), error, error.__traceback__)
    signal.signal(signal.SIGTERM, term)
    logging.setLogRecordFactory(before)
    for handler in logging.getLogger().handlers:
        handler.removeFilter(errors._SAID_AT_THE_END)


def wrapped(error: BaseException) -> BaseException:
    """As MONAI hands errors on: inside others."""
    try:
        try:
            raise error
        except BaseException as inner:
            raise RuntimeError("Failed to instantiate component") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("c1: bad; mend it"), "error: c1: bad; mend it\n"),
        (PermissionError(13, "Permission denied", "/x\x1b"), "error: /x\\x1b: Permission denied; check the path"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; free disk space"),
    ],
)
def test_what_is_no_fault_of_the_program_ends_with_one_line(hook, capsys, error, line):
    hook(wrapped(error))
    shown = capsys.readouterr().err
    assert shown.startswith(line) and shown.count("\n") == 1


def test_a_fault_keeps_its_traceback(hook, capsys):
    hook(wrapped(ZeroDivisionError("a fault")))
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_one_line_and_status_130(hook, capsys):
    with pytest.raises(SystemExit) as ended:
        hook(KeyboardInterrupt())
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; what is finished stays, and the same command goes on from here\n"


@pytest.mark.parametrize("handlers", [[], [Stats()]])
@pytest.mark.parametrize("error", [InputError("bad"), KeyboardInterrupt()])
def test_engines_do_not_say_it_too(hook, caplog, capfd, error, handlers):
    def fail(_):
        raise error

    caplog.handler.addFilter(errors._SAID_AT_THE_END)
    engine = Engine(lambda *_: None)
    for handler in handlers:
        handler.attach(engine)
    engine.add_event_handler(Events.STARTED, fail)
    with pytest.raises(type(error)):
        engine.run([1])
    said = caplog.text + "".join(capfd.readouterr())  # MONAI's handler writes by itself
    assert "terminating" not in said and "Exception" not in said
    caplog.handler.removeFilter(errors._SAID_AT_THE_END)


def test_a_full_disk_names_the_file_where_it_is_known():
    assert os_error_line(OSError(errno.ENOSPC, "No space left on device", "/a")).startswith("/a: No space left")


@pytest.mark.slow
def test_ctrl_c_in_an_inference_keeps_what_is_made(tiny_dataset, tmp_path, project_root):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
               "--dataset_dir", str(tiny_dataset), "--output_dir", str(tmp_path), "--num_samples", "500"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(project_root / "common"), "OMP_NUM_THREADS": "1"}
    bundle = project_root / "bundles" / "pix2pix3d"
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        run = subprocess.Popen(command, cwd=bundle, env=environment, stdout=stream, stderr=stream)
        deadline = time.monotonic() + 120
        while len(list(Path(tmp_path).glob("*_synthetic.nii.gz"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    text = log.read_text()
    assert "Traceback" not in text and "terminating" not in text
    assert text.endswith("interrupted; what is finished stays, and the same command goes on from here\n")
    volumes = list(Path(tmp_path).glob("*_synthetic.nii.gz"))
    assert len(volumes) >= 2 and all(path.with_name(f"{path.name[:-7]}.json").is_file() for path in volumes)
    assert not list(Path(tmp_path).glob(".*"))
