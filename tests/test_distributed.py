"""One process or several: what each is told of the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from semsynth.distributed import all_true, concatenate, gather, local_device, rank, start, stop, world_size
from semsynth.errors import InputError


def test_alone_everything_is_as_it_is() -> None:
    assert (rank(), world_size()) == (0, 1)
    assert gather({"a": 1}) == [{"a": 1}]
    assert all_true(True, torch.device("cpu")) and not all_true(False, torch.device("cpu"))
    value = torch.arange(3)
    assert concatenate(value) is value
    assert local_device() == (torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    stop()  # nothing to leave


def test_before_a_group_is_joined_the_environment_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size()) == (2, 4)


def test_a_group_without_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match=r"several processes are started by 'torchrun --nproc_per_node=N"):
        start()


@pytest.mark.slow
def test_two_processes_know_of_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert (first["rank"], second["rank"], first["size"]) == (0, 1, 2)
    assert first["gathered"] == second["gathered"] == ["of 0", "of 1"]
    assert first["all"] == second["all"] == [True, False], "what one decides, all have to do"
    assert first["together"] == second["together"] == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert first["drawn"] != second["drawn"], "processes do not augment alike"


def _one_of_two(folder: Path) -> None:
    start(seed=5)
    own, cpu = rank(), torch.device("cpu")
    found = {
        "rank": own,
        "size": world_size(),
        "gathered": gather(f"of {own}"),
        "all": [all_true(True, cpu), all_true(own == 0, cpu)],
        "together": concatenate(torch.full((1 + own, 2), float(own))).tolist(),
        "drawn": torch.rand(1).item(),
    }
    (folder / f"{own}.json").write_text(json.dumps(found))
    stop()


if __name__ == "__main__":
    _one_of_two(Path(sys.argv[1]))
