"""What is called from Python has an example in its docstring, and the example gives what stands there."""

from __future__ import annotations

import doctest
import importlib
import inspect
from typing import Any

import pytest
from docs_site import API

IN_CONFIGS = "a part of the bundles' configs, which other tests run"
RESULT = "a result, which the example of what makes it shows"
WITHOUT = {
    "metrics": {"FeatureMetric": "the base of two metrics that have one", "lpips": "its weights are not at hand"}
    | dict.fromkeys(("ScaleTerms", "SliceStatistics"), RESULT),
    "evaluation": {"Results": RESULT},
    "prepare.morph": dict.fromkeys(("Anatomy", "Morphed"), RESULT),
    "prepare.phantom": {"Phantom": RESULT},
    "data.check": dict.fromkeys(("Entry", "Rules"), "in the example of check_cases"),
    "data.headers": {"Header": RESULT},
    "data.volumes": {"Volume": RESULT},
    "networks.blocks.spade": {"Modulation": RESULT},
    "networks.blocks.codebook": {"Quantized": RESULT},
    "networks.autoencoder": {"DecoderModulation": RESULT},
    "networks.denoiser": {"DenoiserModulation": RESULT},
    "networks.latent_diffusion": {"Denoised": RESULT},
    "networks.label_autoencoder": {"LabelReconstruction": RESULT},
    "networks.shape_model": {"ShapeModel": "is made of maps by a training"},
    "networks.sampling.samplers": dict.fromkeys(("Estimate", "Level", "Step"), RESULT),
    "networks.spade_gan": dict.fromkeys(("LabelModulation", "Reconstruction"), RESULT),
    "networks.vqgan": {"QuantizedReconstruction": RESULT},
    "handlers": dict.fromkeys(
        (
            "LearnLimits",
            "MapWriter",
            "MemoryReport",
            "RankedSegmentations",
            "SaveMetrics",
            "SegmentationWriter",
            "Stats",
            "SynthesisProgress",
            "SyntheticWriter",
            "TensorBoardStats",
        ),
        IN_CONFIGS,
    ),
    "convert": {"Kind": "a row of the table of kinds"},
    "study": dict.fromkeys(("Comparison", "Paired"), RESULT),
    "study.statistics": {"Contrast": RESULT, "Trained": "in the example of contrast"},
    "provenance.cards": {"TrainingRecord": IN_CONFIGS},
    "provenance.frozen": dict.fromkeys(("load_features", "load_perceptual"), "their weights are not at hand"),
    "provenance.audits": {"Audit": RESULT},
    "provenance.pseudonyms": {"pseudonym_key": "reads the institution's key"},
    "privacy.copies": dict.fromkeys(("Count", "Counts", "Judged"), RESULT) | {"Sides": "in the example of Calibration"},
    "trust.verify": {"Verdict": RESULT, "sign": "needs a private key"},
}
"""Module of a page → what has no example there, and why."""


def names_of(module: str) -> list[str]:
    """The functions and classes on the page of a module."""
    content = importlib.import_module(f"semsynth.{module}")
    own = [name for name, value in vars(content).items() if getattr(value, "__module__", "") == content.__name__]
    shown = API[module][1] or getattr(content, "__all__", None) or [name for name in own if not name.startswith("_")]
    return [name for name in shown if inspect.isfunction(thing := getattr(content, name)) or inspect.isclass(thing)]


def examples_of(thing: Any) -> list[doctest.DocTest]:
    names = dict(vars(importlib.import_module(thing.__module__)))
    found = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__, globs=names)
    return [one for one in found if one.examples]


@pytest.mark.parametrize("module", API)
def test_everything_on_a_page_of_the_package_has_an_example_that_gives_what_stands_there(module: str) -> None:
    content = importlib.import_module(f"semsynth.{module}")
    without, said = [], list[str]()
    for name in names_of(module):
        examples = examples_of(getattr(content, name))
        without += [] if examples else [name]
        for one in examples:
            doctest.DocTestRunner(verbose=False).run(one, out=said.append)
    assert said == [], "".join(said)
    assert sorted(without) == sorted(WITHOUT.get(module, {})), "an example is missing, or one more is there"
