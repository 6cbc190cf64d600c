"""An example in a folder of its own, and what is wrong with how a command met it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from attack_examples import ESCAPE, Attack
from attack_inputs import FOREIGN
from attack_server import ESCAPED, NETWORK

_TEMPORARY = re.compile(r"\.tmp\b|\.partial")


@dataclass
class Outcome:
    """What a command left."""

    status: int
    seconds: float
    output: str
    errors: str
    faults: list[str] = field(default_factory=list)

    def kind(self, command: str) -> str:
        """What two examples of one fault have in common: where it happened in the package, or what is wrong."""
        places = re.findall(r'File ".*?/(semsynth/[^"]+)", line (\d+)', self.errors)
        raised = re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception|Interrupt|Warning))\b", self.errors, re.MULTILINE)
        first = re.sub(r"\d+|'[^']*'|\S*/\S*|\S+\.\w+", "…", self.faults[0])
        if places and not self.faults[0].startswith(("changed", "left")):
            inner = [place for place in places if not place[0].startswith("semsynth/cli")] or places
            place = inner[0] if "hang" in first else inner[-1]
            return f"{place[0]}:{place[1]} {'hang' if 'hang' in first else raised[-1] if raised else first}"
        return f"{command}: {first}"


class Arena:
    """Runs examples on copies of the inputs.

    Args:
        inputs: what :func:`attack_inputs.write_inputs` wrote; never changed.
        folder: for the copies and for what the commands write.
    """

    def __init__(self, inputs: Path, folder: Path) -> None:
        self.inputs, self.folder = inputs, folder
        package = Path(__import__("semsynth").__file__).parents[1]
        paths = [str(package), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": str(folder / "matplotlib"),
        }
        command = [sys.executable, str(Path(__file__).with_name("attack_server.py"))]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.kill()
        self.server.wait()
        self.server.stdin.close()
        self.server.stdout.close()

    def run(self, attack: Attack) -> Outcome:
        """An example on a fresh copy of the inputs, and its faults."""
        place = self.folder / "example"
        shutil.rmtree(place, ignore_errors=True)
        work, home = place / "a" / "work", place / "home"  # "../.." of the work is still ours
        shutil.copytree(self.inputs, work)
        home.mkdir()
        for change in attack.files:
            with suppress(Exception):  # an earlier change spoilt the file: that is attack enough
                change.apply(work)
        before = _contents(place)
        arguments = attack.arguments()
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({"arguments": arguments, "folder": str(work), "home": str(home)}) + "\n")
        self.server.stdin.flush()
        answer = self._answer()
        output, errors = ((home / name).read_text(errors="surrogateescape") for name in ("stdout", "stderr"))
        outcome = Outcome(answer["status"], answer["seconds"], output, errors)
        for name in ("stdout", "stderr"):
            (home / name).unlink()
        outcome.faults += _said(outcome, arguments)
        outcome.faults += _left(place, before, outcome.status, at_home=any("~" in word for word in arguments))
        return outcome

    def smallest(self, attack: Attack, kind: str) -> Attack:
        """An example with as few changes as show the same fault."""
        for change in [*attack.options, *attack.files]:
            smaller = Attack(
                attack.command, attack.example, tuple(c for c in attack.options if c is not change),
                tuple(c for c in attack.files if c is not change),
            )  # fmt: skip
            found = self.run(smaller)
            if found.faults and found.kind(attack.command) == kind:
                attack = smaller
        return attack

    def _answer(self) -> dict[str, Any]:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, "the server ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def _contents(folder: Path) -> dict[str, str]:
    """Path → SHA-256 of each file, "folder", or where a link leads."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place) / name
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"link to {path.readlink()}"
            elif path.is_dir():
                found[key] = "folder"
            else:
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _said(outcome: Outcome, arguments: list[str]) -> list[str]:
    faults = []
    text = outcome.output + outcome.errors
    if outcome.status == ESCAPED:
        faults.append("an exception left main")
    elif outcome.status in (-24, -6) and "most recent call first" in outcome.errors:
        faults.append(f"hang: {outcome.seconds:.0f} s")
    elif outcome.status not in (0, 1, 2):
        faults.append(f"status {outcome.status}")
    elif "Traceback" in text:
        faults.append("a traceback was printed")
    if outcome.status in (1, 2) and not text.strip():
        faults.append("it failed without a word")
    if NETWORK in outcome.errors and not any("download" in word for word in arguments):
        faults.append("it asked the network")
    if ESCAPE in text:
        faults.append("an escape code was printed")
    return faults


def _left(place: Path, before: dict[str, str], status: int, *, at_home: bool) -> list[str]:
    """Faults of what is in the folders now; at home nothing is to be written unless it was named."""
    faults = []
    after = _contents(place)
    for name, was in before.items():
        own = name.removeprefix("a/work/")
        if own.startswith("kept") and own not in FOREIGN:  # an output folder's own files
            continue
        if after.get(name) != was:
            faults.append(f"{'changed' if name in after else 'deleted'}: {own}")
    new = [name for name in after if name not in before]
    for name in new:
        if _TEMPORARY.search(name):
            faults.append(f"left behind: {name}")
        elif not at_home and name.startswith("home/") and not name.startswith(("home/.cache", "home/.config")):
            faults.append(f"left in the home folder: {name}")
        elif name == "a/work/executed":
            faults.append("a payload was executed")
        elif after[name] not in ("folder",) and not after[name].startswith("link"):
            reason = _broken(place / name)
            faults += [f"not whole: {name} ({reason})"] if reason else []
    if status == 1:
        outside = (name for name in new if not re.match(r"a/work/(out|kept)|home/", name) and ".lock" not in name)
        faults += [f"written although it failed: {name}" for name in list(outside)[:3]]
    if status == 2:
        faults += [f"written by wrong usage: {name}" for name in new[:3]]
    return faults


def _broken(path: Path) -> str:
    """Why a result is not whole."""
    try:
        if path.name.endswith(".nii.gz"):
            data = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
            return "" if np.isfinite(data).all() else "not finite"
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".pt", ".pt2", ".npz"):
            broken = zipfile.ZipFile(path).testzip()
            return f"{broken} is damaged" if broken else ""
        elif path.suffix == ".png":
            return "" if path.read_bytes()[-8:-4] == b"IEND" else "no end"
        elif path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
        elif not path.stat().st_size and path.suffix != ".lock":
            return "empty"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return repr(error)
    return ""
