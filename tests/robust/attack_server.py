"""One command line of ``semsynth`` per forked process: whatever it does, the next one starts afresh.

Reads a JSON object per line (``arguments``, ``folder``, ``home``) and answers with one: ``status`` (:data:`ESCAPED`
where an exception left ``main``), ``signal`` that ended it, ``seconds`` of processor time. What it printed stands in
``home/stdout`` and ``home/stderr``. A process that forks for every example has imported torch once; it must have no
threads of its own, so that it is not the tests' process.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

ESCAPED = 99
MEMORY = 3 << 30  # bytes of address space above those of the imported packages
FILE = 128 << 20  # bytes of one written file
PROCESSOR, WALL = {"export": 60, "reproduce": 60}, 300  # seconds until a command hangs: computing (others 20), waiting
NETWORK = "the network was asked for"


def load_everything() -> None:
    """Import all that commands import when they run."""
    import semsynth

    for module in pkgutil.walk_packages(semsynth.__path__, "semsynth."):
        importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "torch.export", "scipy.stats", "skimage.measure", "sklearn.cluster"):
        importlib.import_module(name)


def _no_network(*_: Any, **__: Any) -> NoReturn:
    print(NETWORK, file=sys.stderr)
    raise OSError("no network here")


def _limit(command: str) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    seconds = PROCESSOR.get(command, 20)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of the process's end
    socket.getaddrinfo = socket.socket.connect = _no_network  # type: ignore[method-assign, assignment]


def _example(job: dict[str, Any]) -> NoReturn:
    status = ESCAPED
    try:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(Path(job["home"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job["folder"])
        os.environ["HOME"] = job["home"]
        tqdm.set_lock(threading.RLock())  # its own one is shared with later processes, and a killed one holds it
        faulthandler.enable()
        faulthandler.register(signal.SIGXCPU, chain=True)  # says where it was
        _limit(job["arguments"][0])
        sys.argv = ["semsynth", *job["arguments"]]
        from semsynth.cli.main import main

        status = main()
    except BaseException:  # whatever leaves main is the finding
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _wait(child: int) -> tuple[int, float]:
    """The status that ``waitpid`` gives, and seconds of processor time."""
    end = time.monotonic() + WALL
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage.ru_utime + usage.ru_stime
        if time.monotonic() > end:
            os.kill(child, signal.SIGABRT)  # faulthandler says where it was
            time.sleep(1)
            os.killpg(child, signal.SIGKILL)
            end += 1e9
        time.sleep(0.005)


def serve() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load_everything()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _example(json.loads(line))
        status, seconds = _wait(child)
        answer = {"status": os.waitstatus_to_exitcode(status), "seconds": seconds}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
