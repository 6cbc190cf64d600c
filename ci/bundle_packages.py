"""What a bundle's metadata.json says that it needs, as pip and as Python's import system have it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from bundle_configs import ROOT, read, walk
from packaging.requirements import Requirement

PINNED = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
"""Field of metadata.json → the package whose version it holds."""
TOOLS = {"pip", "setuptools", "wheel"}
"""What every virtual environment may have."""


def pins(about: Mapping[str, Any]) -> dict[str, str]:
    """Package → exact version, of all that a bundle's ``metadata.json`` names.

    Args:
        about: the content of the file.
    """
    return {package: about[field] for field, package in PINNED.items()} | dict(about["required_packages_version"])


def requirements(about: Mapping[str, Any]) -> list[str]:
    """``package==version`` for pip, sorted.

    Args:
        about: the content of ``metadata.json``.
    """
    return sorted(f"{package}=={version}" for package, version in pins(about).items())


def normal(name: str) -> str:
    """A package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_what_they_need(packages: Iterable[str]) -> set[str]:
    """Packages and all that they require, extras aside, by what is installed here.

    Args:
        packages: names.

    Raises:
        importlib.metadata.PackageNotFoundError: if one of them is not installed here.
    """
    found: set[str] = set()
    waiting = deque(normal(name) for name in packages)
    while waiting:
        name = waiting.popleft()
        if name in found:
            continue
        required = installed.requires(name) or []
        found.add(name)
        wanted = [Requirement(text) for text in required]
        waiting += [normal(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def modules_beyond(about: Mapping[str, Any]) -> set[str]:
    """Top-level modules that are installed here, but not by what a bundle's metadata names.

    Args:
        about: the content of ``metadata.json``.
    """
    allowed = with_what_they_need(pins(about)) | TOOLS
    return {
        module
        for module, packages in installed.packages_distributions().items()
        if not {normal(name) for name in packages} & allowed
    }


_KEEP_OUT = """
import json, os, sys

NAMES = frozenset(json.loads(os.environ["MODULES_KEPT_OUT"]))

class Without:  # as if they were not installed: torch asks whether some are there, without importing them
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
_IMPORT = """
import json, pydoc, sys
import fire, monai.bundle

for target in json.load(sys.stdin):
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        sys.exit(f"{target}: {error.value}")
    if found is None:
        sys.exit(f"{target}: cannot be found")
"""


def kept_out(modules: Iterable[str], folder: Path) -> dict[str, str]:
    """Environment variables of a process that cannot import these top-level modules.

    Args:
        modules: names.
        folder: empty; put on the module path for what Python runs at its start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_KEEP_OUT, encoding="utf-8")
    return {"PYTHONPATH": str(folder), "MODULES_KEPT_OUT": json.dumps(sorted(modules))}


def check_packages(bundle: Path) -> list[str]:
    """``python -m monai.bundle`` and every ``_target_`` can be imported with what the metadata names, and nothing else.

    What is imported only when a function is called does not show; ``--fresh`` runs that.
    """
    targets = {
        str(value["_target_"])
        for path in sorted(bundle.glob("configs/*.json"))
        for _, value in walk(json.loads(path.read_text(encoding="utf-8")))
        if isinstance(value, Mapping) and "." in str(value.get("_target_", ""))
    }
    modules = modules_beyond(read(bundle, "metadata")) - {"semsynth"}
    with tempfile.TemporaryDirectory() as folder:
        known = kept_out(modules, Path(folder))
        known["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'common'}"
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], input=json.dumps(sorted(targets)), env=os.environ | known, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
    return [f"metadata.json: required_packages_version: {done.stderr.splitlines()[-1]}"] if done.returncode else []
