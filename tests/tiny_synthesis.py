"""A bundle's inference with the tiny network and random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bundle_runs
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from semsynth.data.volumes import read_volume


def random_weights(bundle: Path, path: Path) -> Path:
    """Weights of the tiny network, whose styles matter as much as trained ones do, in ``path``."""
    network = ConfigParser(bundle_runs.read(bundle, "inference", "tiny")).get_parsed_content("network_def")
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(network.state_dict(), path)
    return path


def synthesise(
    bundle: Path,
    weights: Path,
    dataset: Path,
    output: Path,
    names: Sequence[str] = ("inference",),
    **options: Any,
) -> list[np.ndarray]:
    """The volumes that inference makes of ``dataset``."""
    paths = {"dataset_dir": dataset, "output_dir": output, "weights": weights}
    inference = bundle_runs.workflow(bundle, names, "infer", paths, style_spacing=[3.0, 3.0, 3.0], **options)
    inference.run()
    inference.finalize()
    entries = json.loads((output / "datalist.json").read_text())["training"]
    return [read_volume(output / entry["image"]).data for entry in entries]


@contextmanager
def refused(match: str) -> Iterator[None]:
    """The block raises an error that was caused by one whose message matches: MONAI wraps those of a config."""
    with pytest.raises(Exception) as caught:
        yield
    texts, error = [], caught.value
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    assert any(re.search(match, text) for text in texts), texts
