"""None of these bundles runs anything when it is verified, and each is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles_of_enemies import CONFIG, Payload, configured, good_bundle, packed
from bundles_of_enemies import ENEMIES as FIRST
from bundles_of_more_enemies import BREAK_OUT, IN_LOGGING, MORE, logging_of, overridden
from monai.bundle import ConfigParser
from monai.transforms import LoadImage

HERE = Path(__file__).resolve().parent
ENEMIES = FIRST | MORE


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is wrong → exit status, output and what was run, all in one process that is watched; and "canaries"."""
    folder = tmp_path_factory.mktemp("enemies")
    good = packed(good_bundle(folder / "good" / "bundle"))
    paths = {}
    for number, (name, (build, _)) in enumerate(ENEMIES.items()):
        paths[name] = build(good_bundle(folder / str(number) / "bundle"), folder / str(number) / "canary")
    command = [sys.executable, str(HERE / "verify_watched.py"), str(good), *map(str, paths.values())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {"good": found["good"], **{name: found[str(path)] for name, path in paths.items()},
            "canaries": sorted(str(path) for path in folder.rglob("canary*"))}  # fmt: skip


def test_a_good_bundle_is_found_good(verdicts):
    assert verdicts["good"]["status"] == 0, verdicts["good"]["said"]
    assert "nothing wrong was found, and 1 thing below that cannot be checked" in verdicts["good"]["said"]


@pytest.mark.parametrize("name", ENEMIES)
def test_each_is_refused_by_its_name(name: str, verdicts: dict[str, Any]) -> None:
    found = verdicts[name]
    assert found["status"] == 1 and "DO NOT USE IT" in found["said"], found["said"]
    refused = [line for line in found["said"].splitlines() if line.startswith("  - REFUSED")]
    assert any(re.search(ENEMIES[name][1], line) for line in refused), found["said"]
    assert "Traceback" not in found["said"]


@pytest.mark.parametrize("name", ENEMIES)
def test_none_runs_anything(name: str, verdicts: dict[str, Any]) -> None:
    assert verdicts[name]["ran"] == [] and verdicts["canaries"] == []


def test_there_are_enough_of_them():
    assert len(ENEMIES) >= 80 and not FIRST.keys() & MORE.keys()


# ---- that the payloads are real, and that the watch sees them


def test_the_payloads_work_where_nobody_looks(tmp_path):
    pickle.loads(pickle.dumps(Payload(f"touch {tmp_path / 'a'}")))
    torch.save({"w": Payload(f"touch {tmp_path / 'b'}")}, tmp_path / "b.pt")
    torch.load(tmp_path / "b.pt", weights_only=False)
    evil = {
        "target": {"_target_": "os.system", "command": f"touch {tmp_path / 'c'}"},
        "expression": f"$__import__('os').system('touch {tmp_path / 'd'}')",
        "loading": {"_target_": "LoadImaged", "keys": "image", "reader": "subprocess.Popen",
                    "args": ["touch", str(tmp_path / "e")]},
    }  # fmt: skip
    parser = ConfigParser(CONFIG | evil)
    for key in evil:
        parser.get_parsed_content(key)
    ends = time.monotonic() + 20
    while not (tmp_path / "e").exists() and time.monotonic() < ends:  # Popen does not wait
        time.sleep(0.05)
    assert [name for name in "abcde" if (tmp_path / name).exists()] == list("abcde")


def test_the_payloads_of_what_reads_less_work_too(tmp_path):
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    description = {"_target_": "torch.nn.Identity", "_desc_": f"$__import__('os').system('touch {b}')"}
    content = CONFIG | {"f": "x", "text": BREAK_OUT.replace("{canary}", str(a)), "described": description}
    (tmp_path / "config.json").write_text(json.dumps(content | overridden(c)))
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "config.json"))
    for key in ("text", "described", "loading"):
        parser.get_parsed_content(key)
    (tmp_path / "notes.md").write_bytes(pickle.dumps(Payload(f"touch {d}"), 0))
    with pytest.raises(ValueError, match="Unsupported output type"):  # the answer of os.system is no volume
        LoadImage(reader="NumpyReader", allow_pickle=True)(tmp_path / "notes.md")
    (tmp_path / "logging.conf").write_text(logging_of(IN_LOGGING.format(canary=e)))
    code = f"import logging.config; logging.config.fileConfig({str(tmp_path / 'logging.conf')!r})"
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300, check=False)
    ends = time.monotonic() + 20
    while not c.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert [path.name for path in (a, b, c, d, e) if path.exists()] == list("abcde")


def test_the_watch_sees_what_runs(tmp_path):
    good, enemy = good_bundle(tmp_path / "a" / "bundle"), configured(good_bundle(tmp_path / "b" / "bundle"))
    script = tmp_path / "watched.py"
    text = (HERE / "verify_watched.py").read_text()
    script.write_text(text.replace("status = main", "__import__('os').system('true'); status = main"))
    done = subprocess.run([sys.executable, str(script), str(good), str(enemy)], capture_output=True, text=True,
                          timeout=300, check=True)  # fmt: skip
    assert any("os.system" in event for event in json.loads(done.stdout.splitlines()[-1])[str(enemy)]["ran"])
