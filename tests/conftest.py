"""What test files share."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "ci"))  # its tools are commands and modules at once


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a datalist and four phantoms of 32³ voxels, k = 2: two for training, one per other split."""
    from semsynth.prepare.phantom import write_phantom_cases

    folder = tmp_path_factory.mktemp("tiny_dataset")
    write_phantom_cases(folder, 4, size=(32, 32, 32), spacing=(3.0, 3.0, 3.0), k=2, progress=False)
    return folder


@pytest.fixture(autouse=True)
def no_log_to_a_closed_stream():
    """A test that runs a bundle in its process reads the bundle's logging.conf, which writes to that test's output."""
    for name in (None, *logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)
