"""Memory: estimated from two small runs, and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from semsynth.synthesis.memory import (
    PeakMemory,
    TensorMemory,
    extrapolated,
    free,
    resident,
    synthesis_memory,
    tensor_bytes,
)
from tiny_diffusion import diffusion, label_map, med_lsdm
from tiny_synthesis import random_weights, synthesise

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "spade_ldm"
CPU = torch.device("cpu")


def test_what_is_alive_at_a_time_is_counted() -> None:
    with TensorMemory() as counted:
        a = torch.zeros(1000)
        view = a[10:]
        b = a + 1
        del a, view
        c = b * 2
        b.add_(1)
        del b, c
        torch.zeros(500)
    assert counted.peak == 8000


def test_a_line_through_two_small_volumes_is_extrapolated() -> None:
    made: list[Any] = []

    def work(size: Any) -> None:
        made.append(tuple(size))
        kept = torch.zeros(size), torch.zeros(1000)
        assert len(kept) == 2

    assert extrapolated(work, (100, 90, 80), CPU) == 100 * 90 * 80 * 4 + 4000
    assert max(made) == (64, 32, 32)  # the large one was not run
    assert extrapolated(work, (8, 8, 8), CPU) == 8**3 * 4 + 4000


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"batch_size": 2}, {"tile": (32, 0, 0)}, {"amp": True}])
def test_the_estimate_of_a_larger_map_is_what_it_takes(options: dict[str, Any]) -> None:
    network, size, seeds = diffusion(**options), (128, 64, 48), [0, 1]
    needed = tensor_bytes(lambda: network.synthesize(label_map(size), seeds), CPU)
    assert synthesis_memory(network, size, len(seeds)) == pytest.approx(needed, rel=0.25)


@pytest.mark.parametrize("size", [(64, 48, 96), (32, 32, 256)])
def test_windows_need_what_one_takes_and_what_is_made_of_the_whole_map(size: tuple[int, int, int]) -> None:
    network = med_lsdm(window=16)
    needed = tensor_bytes(lambda: network.synthesize(label_map(size), [0]), CPU)
    assert synthesis_memory(network, size) == pytest.approx(needed, rel=0.1)


def test_tiles_need_less_and_batches_more() -> None:
    size = (256, 256, 64)
    whole = synthesis_memory(diffusion(), size)
    assert synthesis_memory(diffusion(tile=(32, 32, 32)), size) < 0.7 * whole
    assert synthesis_memory(diffusion(batch_size=4), size, 4) > 1.5 * whole


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_the_peak_is_that_since_the_start() -> None:
    torch.zeros(2**27).fill_(1.0)
    measured = PeakMemory(CPU)
    measured.start()
    assert measured.peak() < resident(CPU) + 2**28
    torch.zeros(2**27).fill_(1.0)  # 512 MiB
    assert measured.peak() > resident(CPU) + 2**28
    assert (free(CPU) or 1) > 0


def test_a_run_tells_what_it_will_take_and_what_it_took(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights(BUNDLE, tmp_path / "model.pt")
    monkeypatch.setattr("semsynth.handlers.memory.free", lambda device: 1000)
    synthesise(BUNDLE, weights, tiny_dataset, tmp_path / "out", num_samples=3, batch_size=2)
    text = capsys.readouterr().out
    assert "peak memory on cpu, estimated for the largest label map (32 × 32 × 32 voxels, 2 at once): " in text
    assert "it may run out of memory; less is needed with --batch_size 1" in text
    assert "peak memory on cpu, measured: " in text
