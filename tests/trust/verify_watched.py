"""Verify bundles while Python itself reports what is run: ``python verify_watched.py GOOD ENEMY …`` prints JSON.

The good bundle comes first, unwatched: whatever imports and libraries do for the first time is done with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from semsynth.cli.main import main

RUNS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen", "code.__new__", "webbrowser.open",
)  # fmt: skip
seen: list[str] = []
FOLDERS = (*(str(Path(path).parent) for path in sys.argv[2:]), str(Path(tempfile.gettempdir()) / "semsynth-verify"))


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what runs a program, asks a network, or executes a file of a bundle."""
    if event in RUNS:
        seen.append(f"{event} {arguments!r:.200}")
    if event == "exec" and getattr(arguments[0], "co_filename", "").startswith(FOLDERS):
        seen.append(f"exec {arguments[0].co_filename}")
    if event == "import" and str(arguments[1] or "").startswith(FOLDERS):
        seen.append(f"import {arguments!r:.200}")


def verified(path: str) -> dict[str, Any]:
    """Exit status and output of ``semsynth verify``, and what was run meanwhile."""
    seen.clear()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(["verify", path])
    return {"status": status, "said": said.getvalue(), "ran": list(seen)}


good = verified(sys.argv[1])
sys.addaudithook(watch)
print(json.dumps({"good": good, **{path: verified(path) for path in sys.argv[2:]}}))
