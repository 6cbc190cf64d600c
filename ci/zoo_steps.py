"""What the model zoo's CI asks of a bundle, with MONAI's own tools called as it calls them.

    cd ZOO && python zoo_steps.py NAME [exempt]

Run in a process of its own, from the root of a clone of the zoo, by :mod:`zoo_checks`: as there, the bundle's folder is
put on the module path. Nothing is written into the bundle, and the metadata's schema is a local copy.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

SCHEMAS = Path(__file__).resolve().parent / "schema"
LARGEST = 25_000_000


def verify_files(bundle: Path) -> None:
    """The files that the zoo asks for are there, or listed as large ones, and none is larger than it takes."""
    listing = bundle / "large_files.yml"
    listed = yaml.safe_load(listing.read_text(encoding="utf-8"))["large_files"] if listing.is_file() else []
    elsewhere = {row["path"] for row in listed}
    for name in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json"):
        if not (bundle / name).is_file() and name not in elsewhere:
            sys.exit(f"{name} is not there")
    for path in bundle.rglob("*"):
        if path.is_file() and path.stat().st_size > LARGEST:
            sys.exit(f"{path} is larger than the zoo takes")
    about = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    if about["version"] not in about["changelog"]:
        sys.exit(f"version {about['version']} is not in the changelog")


def main(name: str, exempt: bool) -> None:
    """Make the checks; the first that fails ends the process.

    Args:
        name: name of the bundle.
        exempt: True where it is in the zoo's list of bundles without TorchScript.
    """
    bundle = Path("models") / name
    sys.path.insert(0, str(bundle))
    verify_files(bundle)
    meta, config = str(bundle / "configs/metadata.json"), str(bundle / "configs/inference.json")
    with tempfile.TemporaryDirectory() as folder:
        schema = Path(folder) / "schema.json"  # a file that is there is not downloaded
        address = json.loads(Path(meta).read_text(encoding="utf-8"))["schema"]
        shutil.copy(SCHEMAS / address.rpartition("/")[2], schema)
        verify_metadata(meta_file=meta, filepath=str(schema))
        verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, bundle_root=str(bundle))
        if not exempt:
            ckpt_export(
                net_id="network_def",
                filepath=str(Path(folder) / "verify_model.ts"),
                ckpt_file=str(bundle / "models/model.pt"),
                meta_file=meta,
                config_file=config,
                bundle_root=str(bundle),
            )


if __name__ == "__main__":
    main(sys.argv[1], "exempt" in sys.argv[2:])
