"""What is called from Python has an example in its docstring, and the example gives what stands there."""

from __future__ import annotations

import doctest
import importlib
import inspect
from typing import Any

import pytest
import semsynth.metrics

ELSEWHERE = {
    "semsynth.convert.spade": ["convert_spade"],
    "semsynth.networks.autoencoder": ["SPADEAutoencoder"],
    "semsynth.networks.blocks.spade": ["SPADE", "SPADEResBlock"],
    "semsynth.networks.pix2pix": ["Pix2PixGenerator"],
    "semsynth.networks.spade_gan": ["SPADEGenerator"],
    "semsynth.networks.vqgan": ["VQGAN"],
    "semsynth.prepare.phantom": ["write_phantom_cases"],
}
METRICS = [
    found
    for name in semsynth.metrics.__all__
    if inspect.isfunction(found := getattr(semsynth.metrics, name)) and name != "lpips"  # its weights are not at hand
]
OTHERS = [getattr(importlib.import_module(module), name) for module, names in ELSEWHERE.items() for name in names]


@pytest.mark.parametrize("thing", [*METRICS, *OTHERS], ids=lambda thing: thing.__name__)
def test_its_example_runs_and_gives_what_stands_there(thing: Any) -> None:
    examples = doctest.DocTestFinder(recurse=False).find(
        thing, thing.__name__, globs=dict(vars(importlib.import_module(thing.__module__)))
    )
    assert any(found.examples for found in examples), "has no example"
    said: list[str] = []
    failed = sum(doctest.DocTestRunner(verbose=False).run(found, out=said.append).failed for found in examples)
    assert failed == 0, "".join(said)
