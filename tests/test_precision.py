"""Mixed precision where the device has instructions for it."""

from __future__ import annotations

import logging

import pytest
import torch
from semsynth import precision
from semsynth.precision import autocast, reduced_type


def test_amp_is_what_was_asked_for_where_the_processor_is_able_and_off_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
