"""Many volumes as one job: batches, shares of processes, and going on where a run stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.handlers import SynthesisProgress
from semsynth.synthesis.jobs import MapBatches, run
from tiny_synthesis import random_weights, refused, synthesise

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "spade_ldm"
ENTRIES = [{"case": f"{case}_s{i}", "image": f"{case}.nii.gz", "sample": i} for case in "abcde" for i in range(7)]


def set_process(monkeypatch: pytest.MonkeyPatch, number: int, count: int) -> None:
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(count))


# ---- batches


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_batch_holds_samples_of_one_map(batch_size: int) -> None:
    batches = list(MapBatches(ENTRIES, batch_size))
    assert sorted(i for batch in batches for i in batch) == list(range(35))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len({ENTRIES[i]["image"] for i in batch}) == 1
    with pytest.raises(InputError, match="batch_size must be 1 or more, got 0"):
        MapBatches(ENTRIES, 0)


@pytest.mark.parametrize("processes", [1, 2, 3, 40])
def test_shares_have_no_overlap_and_leave_no_gap_whatever_is_finished(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    made: set[str] = set()
    seen: list[int] = []

    def finished(entry: Mapping[str, Any]) -> bool:
        return entry["case"] in made

    for number in range(processes):
        set_process(monkeypatch, number, processes)
        share = MapBatches(ENTRIES, 2, finished)
        own = [i for batch in share for i in batch]
        seen.extend(own)
        made |= {ENTRIES[i]["case"] for i in own}  # the next one starts later
    assert sorted(seen) == list(range(35))


def test_what_is_finished_is_left_out() -> None:
    batches = MapBatches(ENTRIES, 4, lambda entry: entry["sample"] < 5)
    assert (batches.volumes, batches.remaining, len(batches)) == (35, 10, 5)
    assert all(ENTRIES[i]["sample"] >= 5 for batch in batches for i in batch)


# ---- the bundle


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(BUNDLE, tmp_path_factory.mktemp("weights") / "model.pt")


def stamps(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.glob("*_synthetic.nii.gz")}


def test_a_stopped_run_goes_on(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    def make(**options: Any) -> list[np.ndarray]:
        return synthesise(BUNDLE, weights, tiny_dataset, tmp_path, **({"num_samples": 3, "steps": 2} | options))

    volumes, before = make(), stamps(tmp_path)
    listed = (tmp_path / "datalist.json").read_text()
    again = make()
    assert stamps(tmp_path) == before
    assert all(np.array_equal(*pair) for pair in zip(volumes, again, strict=True))
    # as a kill or a full disk may leave it: records without their volume, a damaged record
    names = sorted(before)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[2].replace(".nii.gz", ".json")).write_text("{")
    (tmp_path / "datalist.json").unlink()
    assert all(np.array_equal(*pair) for pair in zip(volumes, make(), strict=True))
    assert all(stamps(tmp_path)[name] != before[name] for name in names)
    assert (tmp_path / "datalist.json").read_text() == listed
    # more samples: the first ones stay
    before = stamps(tmp_path)
    assert len(make(num_samples=4)) == 4
    assert before.items() <= stamps(tmp_path).items()


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 3},
        {"guidance": 3.0},
        {"seed": 1},
        {"guidance_interval": [0.2, 0.8]},
        {"dtype": "uint8"},
        {"network_def#style_scale": 0.0},
        {"network_def#sampling#clip": 0.5},
    ],
)
def test_other_settings_make_all_anew_where_that_is_asked_for(
    weights: Path, tiny_dataset: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    (first,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path, steps=2)
    before = stamps(tmp_path)
    with refused(r"1 volume\(s\) would be replaced"):
        synthesise(BUNDLE, weights, tiny_dataset, tmp_path, **({"steps": 2} | options))
    assert stamps(tmp_path) == before
    (second,) = synthesise(BUNDLE, weights, tiny_dataset, tmp_path, overwrite=True, **({"steps": 2} | options))
    assert np.abs(first - second).max() > 0
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("*_synthetic.json"))
    assert record["settings"]["steps"] == options.get("steps", 2)


def test_a_batch_has_the_style_of_its_maps_own_image(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    options = {"num_samples": 2, "amp": False, "style_from": "own", "split": "all"}
    alone = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "alone", **options)
    together = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "together", batch_size=2, **options)
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() < 1e-3


def test_images_of_one_map_are_in_batches_of_their_own() -> None:
    entries = [{"case": str(i), "image": "map.nii.gz", "style_from": f"{i // 2}.nii.gz"} for i in range(4)]
    assert list(MapBatches(entries, 4)) == [[0, 1], [2, 3]]


def test_what_needs_all_volumes_refuses_to_be_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    set_process(monkeypatch, 1, 2)
    with pytest.raises(InputError, match=r"run inference\.json with torchrun, and then this without it"):
        run(None, None, MapBatches(ENTRIES), alone=True)


def test_batches_of_samples_are_the_samples(weights: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    options = {"num_samples": 3, "amp": False, "split": "all"}
    alone = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "alone", **options)
    together = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "together", batch_size=2, **options)
    assert len(alone) == len(together) == 12
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() < 1e-3  # rounded otherwise, and int16 in the files


def test_processes_share_the_volumes_and_the_last_one_lists_them(
    weights: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    alone = synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "alone", num_samples=3, split="all", steps=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517", "-m",
               "monai.bundle", "run", "--config_file", "['configs/inference.json','configs/tiny.json']",
               "--dataset_dir", str(tiny_dataset), "--output_dir", str(tmp_path / "two"), "--weights", str(weights),
               "--num_samples", "3", "--split", "all", "--steps", "2"]  # fmt: skip
    done = subprocess.run(
        command, cwd=BUNDLE, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "synthesis, process 1 of 2" in done.stderr
    entries = json.loads((tmp_path / "two" / "datalist.json").read_text())["training"]
    assert len(entries) == len(alone) == 12
    for entry, volume in zip(entries, alone, strict=True):
        assert np.array_equal(read_volume(tmp_path / "two" / entry["image"]).data, volume)


def test_the_bar_counts_volumes_and_moves_with_the_steps(
    weights: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shown: list[float] = []
    step = SynthesisProgress.step
    monkeypatch.setattr(SynthesisProgress, "step", lambda self, share: (step(self, share), shown.append(self.bar.n)))
    synthesise(BUNDLE, weights, tiny_dataset, tmp_path, num_samples=2, steps=2)
    assert shown == [0.5, 1.0, 1.5, 2.0]
    assert "synthesis: 100%|" in capsys.readouterr().err
