"""Which bundles a long test runs on in the quick run, and which only in ``make test-all``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def slow_but_for(bundles: Sequence[Path], *quick: str) -> list[Any]:
    """All bundles, as parameters of a test: those that are not named are marked slow."""
    unknown = set(quick) - {bundle.name for bundle in bundles}
    assert not unknown, f"no such bundles: {unknown}"
    return [bundle if bundle.name in quick else pytest.param(bundle, marks=pytest.mark.slow) for bundle in bundles]


def name_of(bundle: Path) -> str:
    """A bundle's name, for the test's."""
    return bundle.name
