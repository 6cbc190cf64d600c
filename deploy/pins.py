"""The packages that a bundle's ``metadata.json`` names, ``package==version`` a line, for pip.

    python deploy/pins.py METADATA [--torch | --rest]

``--torch``: PyTorch alone, which has an index of its own for CPUs; ``--rest``: all but it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

PIN = re.compile(r"[A-Za-z0-9][\w.-]*==\d[\w.+!-]*", re.ASCII)
"""A line for pip: anything else, such as an address or an option, would come from where the bundle wants."""
FIELDS = {"monai_version": "monai", "numpy_version": "numpy", "pytorch_version": "torch"}


def pins(metadata: Path) -> list[str]:
    """Sorted, of the content of a ``metadata.json``.

    Raises:
        SystemExit: for what is no name of a package, or no exact version.
    """
    about = json.loads(metadata.read_text(encoding="utf-8"))
    wanted = {package: about[field] for field, package in FIELDS.items()} | about["required_packages_version"]
    lines = sorted(f"{package}=={version}" for package, version in wanted.items())
    wrong = [line for line in lines if not PIN.fullmatch(line)]
    if wrong:
        raise SystemExit(f"{metadata}: {wrong[0]!r} is no package with an exact version; take the bundle's own file")
    return lines


def main(arguments: Sequence[str]) -> None:
    """The command."""
    found = pins(Path(arguments[0]))
    if len(arguments) > 1:
        found = [line for line in found if line.startswith("torch==") == (arguments[1] == "--torch")]
    sys.stdout.write("\n".join(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
