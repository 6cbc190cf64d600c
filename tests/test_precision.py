"""Mixed precision where the device has instructions for it."""

from __future__ import annotations

import logging

import pytest
import torch
from semsynth import precision
from semsynth.precision import autocast, reduced_type


def test_a_cpu_computes_in_bfloat16_if_it_has_avx_512_or_the_like() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "DEFAULT"):
        assert reduced_type("cpu") is None
    if "AVX512" in capability:
        assert reduced_type("cpu") == torch.bfloat16


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_without_bfloat16_has_float16_where_there_is_a_gradient_scaler(monkeypatch, able: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    reduced_type.cache_clear()
    try:
        assert reduced_type("cuda") == (torch.bfloat16 if able else torch.float16)
        reference = torch.bfloat16 if able else torch.float16
        assert autocast("cuda", enabled=False, scaled=True).fast_dtype == reference
        assert autocast("cuda", enabled=False).fast_dtype == torch.bfloat16, "its range is small"
    finally:
        reduced_type.cache_clear()


def test_amp_is_on_where_the_processor_is_able_and_off_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    precision._say_off.cache_clear()
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with autocast("cpu"):
                found = layer(x).dtype
    assert found == (reduced_type("cpu") or torch.float32)
    said = caplog.text.count("this CPU has no fast 16-bit arithmetic: amp is off")
    assert said == (0 if reduced_type("cpu") else 1), "once, and only where it is so"


def test_without_being_asked_for_it_is_off_everywhere() -> None:
    with autocast(torch.device("cpu"), enabled=False):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
