"""Make the golden files of bundles anew, after their weights have changed.

    python ci/golden.py [NAME …]

Each bundle's ``docs/golden.nii.gz`` and ``docs/golden.json``, which ``semsynth reproduce`` compares with; all bundles
unless some are named.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from semsynth.synthesis.reproduce import write_golden

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def main() -> None:
    """Make and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(path.name for path in BUNDLES.iterdir() if path.is_dir()))
    for name in parser.parse_args().names:
        print(write_golden(BUNDLES / name))


if __name__ == "__main__":
    main()
