"""Check that bundles are what MONAI and this project expect of them; no network is needed.

    python ci/verify_bundles.py [NAME ...] [--bundles DIR] [--allow-missing-weights] [--fresh [DIR]] [--zoo [DIR]]

Prints one line per bundle and check, and exits with 1 if anything was found. Each check is a function that takes the
bundle's folder and returns findings, one sentence each; ``CHECKS`` lists them.

``--fresh`` is one check more, which takes minutes and a registry of packages: a virtual environment with what
``metadata.json`` names and nothing else, in which the packed zip trains each of its stages and infers. ``--zoo`` is
another: the folder of a model-zoo pull request, and the zoo's own checks and unit test on it, as its CI calls them.

A network that TorchScript cannot hold (a sampling loop, for example) is let off the export by its ``metadata.json``::

    "export_exemption": "the reason, in a sentence that the bundle's README repeats"
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jsonschema
from bundle_configs import (
    MIN_REASON,
    ROOT,
    WEIGHTS,
    WeightsMissingError,
    check_overlays,
    check_properties,
    check_repeated_keys,
    check_targets,
    config_path,
    root_cause,
    weights_path,
)
from bundle_packages import check_packages
from bundle_runs import check_export, check_load, check_network, check_run
from config_expressions import check_expressions
from fresh_venv import check_fresh
from markdown_links import headings
from semsynth.trust.verify import verify as verify_trust
from zoo_checks import check_zoo

# ------------------------------------------------------------------------------------------- files and what they say


SCHEMAS = Path(__file__).resolve().parent / "schema"
MAX_WEIGHTS = 12_000_000

FILES = (
    "LICENSE",
    "docs/README.md",
    "docs/data_license.txt",
    "configs/logging.conf",
    *(f"configs/{n}.json" for n in ("metadata", "train", "inference", "evaluate", "multi_gpu_train", "tiny")),
)
METADATA_FIELDS = (
    "name",
    "bundle",
    "supported_apps",
    "changelog",
    "intended_use",
    "references",
    "data_source",
    "data_type",
)
README_HEADINGS = ("Model Overview", "Data", "Training configuration", "Input", "Output", "Performance", "Commands",
                   "References", "License")  # fmt: skip
README_WORDS = 1250  # five minutes
PINS = ("monai_version", "pytorch_version", "numpy_version")
PIN = re.compile(r"\d+(\.\d+)+([a-z]+\d+)?")


def check_files(bundle: Path) -> list[str]:
    """The files that every bundle has are there and not empty."""
    missing = [f"{name}: no such file" for name in FILES if not (bundle / name).is_file()]
    return missing + [f"{n}: is empty" for n in FILES if (bundle / n).is_file() and not (bundle / n).stat().st_size]


def check_trust(bundle: Path) -> list[str]:
    """``semsynth verify`` refuses nothing of it; what it calls unknown is no finding."""
    return [finding.line() for finding in verify_trust(bundle).findings if finding.refused]


def check_weights_file(bundle: Path) -> list[str]:
    """``models/model.pt`` is there, and light enough for the tree."""
    size = weights_path(bundle).stat().st_size
    return [f"{WEIGHTS}: {size / 1e6:.1f} MB, needs to be under {MAX_WEIGHTS / 1e6:g} MB"] if size > MAX_WEIGHTS else []


def check_metadata(bundle: Path) -> list[str]:
    """``metadata.json`` follows MONAI's schema, has the further fields of this project, and pins versions exactly."""
    metadata = json.loads(config_path(bundle, "metadata").read_text(encoding="utf-8"))
    schema = SCHEMAS / Path(str(metadata.get("schema", "none"))).name
    if not schema.is_file():
        return [f"metadata.json: schema must be one of {sorted(p.name for p in SCHEMAS.iterdir())}, got {schema.name}"]
    validator = jsonschema.Draft201909Validator(json.loads(schema.read_text(encoding="utf-8")))
    errors = validator.iter_errors(metadata)
    found = [f"{'#'.join(map(str, e.absolute_path)) or 'top level'}: {e.message}" for e in errors]
    found += [f"{field}: must be there and not empty" for field in METADATA_FIELDS if not metadata.get(field)]
    version = metadata.get("version")
    if version not in (metadata.get("changelog") or {}):
        found.append(f"changelog: has no entry for version {version}")
    if metadata.get("bundle") != bundle.name:
        found.append(f"bundle: must be the folder's name, {bundle.name}, got {metadata.get('bundle')}")
    if metadata.get("name") == bundle.name:
        found.append("name: must be a name to show, such as 'Left atrium segmentation in LGE-MRI', got the folder's")
    pins = {name: metadata.get(name) for name in PINS} | (metadata.get("required_packages_version") or {})
    found += [f"{n}: must be an exact version, got {v!r}" for n, v in pins.items() if not PIN.fullmatch(str(v))]
    tensors = metadata.get("network_data_format", {})
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        tensor = tensors.get(side, {}).get(name)
        if tensor is None:
            found.append(f"network_data_format#{side}: needs {name!r}, the name that MONAI's tools look for")
        elif len(tensor.get("channel_def", {})) != tensor.get("num_channels"):
            found.append(f"network_data_format#{side}#{name}: channel_def must name each of its num_channels channels")
    if "export_exemption" in metadata and len(str(metadata["export_exemption"])) < MIN_REASON:
        found.append("export_exemption: must give the reason in a sentence")
    return [f"metadata.json: {text}" for text in found]


def check_readme(bundle: Path) -> list[str]:
    """The page has the model zoo's headings in their order, can be read in five minutes, and names all references."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    there = list(headings(text).values())
    found = [f"needs a heading {name!r}" for name in README_HEADINGS if name not in there]
    if not found and [name for name in there if name in README_HEADINGS] != list(README_HEADINGS):
        found.append(f"headings must stand in this order: {', '.join(README_HEADINGS)}")
    words = len(text.split())
    if words > README_WORDS:
        found.append(f"has {words} words, needs to be at most {README_WORDS}; move what few need to other pages")
    page = " ".join(text.split())
    metadata = json.loads(config_path(bundle, "metadata").read_text(encoding="utf-8"))
    found += [f"References: lacks {name!r} of metadata.json" for name in metadata["references"] if name not in page]
    return [f"docs/README.md: {text}" for text in found]


def check_exemption(bundle: Path) -> list[str]:
    """The README of a bundle without TorchScript says so and why, as the model zoo asks for."""
    reason = json.loads(config_path(bundle, "metadata").read_text(encoding="utf-8")).get("export_exemption")
    sentence = f"TorchScript is not supported: {reason}"
    page = " ".join((bundle / "docs" / "README.md").read_text(encoding="utf-8").split())
    return [] if reason is None or sentence in page else [f"docs/README.md: must say {sentence!r}"]


# ------------------------------------------------------------------------------------------------------------ command

CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "trust": check_trust,
    "files": check_files,
    "weights_file": check_weights_file,
    "metadata": check_metadata,
    "readme": check_readme,
    "exemption": check_exemption,
    "properties": check_properties,
    "repeated_keys": check_repeated_keys,
    "overlays": check_overlays,
    "expressions": check_expressions,
    "targets": check_targets,
    "packages": check_packages,
    "network": check_network,
    "export": check_export,
    "load": check_load,
    "run": check_run,
}

RUNNING = (
    "repeated_keys", "overlays", "targets", "packages", "network", "export", "load", "run", "fresh", "zoo",
)  # fmt: skip
"""Checks that read other files, import or run what a bundle's configs name."""


def find_bundles(folder: Path) -> list[Path]:
    """The bundles in a folder: those that have metadata."""
    return sorted(path.parents[1] for path in folder.glob("*/configs/metadata.json"))


def verify(
    bundle: Path, *, allow_missing_weights: bool = False, fresh: Path | None = None, zoo: Path | None = None
) -> list[str]:
    """Make every check on one bundle, print a line for each, and return all findings."""
    everything, trusted = list[str](), True
    further = {} if fresh is None else {"fresh": partial(check_fresh, folder=fresh)}
    if zoo is not None:
        further["zoo"] = partial(check_zoo, folder=zoo)
    for name, check in (CHECKS | further).items():
        state = "ok"
        if name in RUNNING and not trusted:
            print(f"{bundle.name:14} {name:14} not made, as it would run what 'trust' refuses", flush=True)
            continue
        try:
            found = check(bundle)
        except WeightsMissingError as error:
            # one finding is enough: the checks that need the weights are left out
            found = [] if allow_missing_weights or name != "weights_file" else [str(error)]
            state = f"skipped ({error})"
        except Exception as error:  # a bundle so broken that the check cannot be made
            found = [f"the check cannot be made, {root_cause(error)}"]
        print(f"{bundle.name:14} {name:14} {f'{len(found)} finding(s)' if found else state}", flush=True)
        trusted = trusted and (name != "trust" or not found)
        everything += [f"{bundle.name}: {name}: {text}" for text in found]
    return everything


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bundles to check; all if none is named")
    parser.add_argument("--bundles", type=Path, default=ROOT / "bundles", metavar="DIR", help="where they are")
    parser.add_argument("--allow-missing-weights", action="store_true", help=f"do not mind a bundle without {WEIGHTS}")
    parser.add_argument("--fresh", type=Path, nargs="?", const=ROOT / "dist" / "fresh", metavar="DIR",
                        help="a virtual environment of metadata.json alone, too; made in DIR")  # fmt: skip
    parser.add_argument("--zoo", type=Path, nargs="?", const=ROOT / "dist" / "zoo", metavar="DIR",
                        help="the model zoo's checks and unit test, too; its folder is written to DIR")  # fmt: skip
    options = parser.parse_args()
    root = options.bundles.resolve()
    chosen = [root / name for name in options.names] or find_bundles(root)
    unknown = [path.name for path in chosen if not config_path(path, "metadata").is_file()]
    if unknown or not chosen:
        print(f"{root}: no bundle {', '.join(unknown) or 'found'}; a bundle has configs/metadata.json", file=sys.stderr)
        return 1
    fresh, zoo = (None if folder is None else folder.resolve() for folder in (options.fresh, options.zoo))
    settings = {"allow_missing_weights": options.allow_missing_weights, "fresh": fresh, "zoo": zoo}
    found = [text for bundle in chosen for text in verify(bundle, **settings)]
    print("\n".join(["", f"{len(found)} finding(s)", *(f"  - {text}" for text in found)]) if found else "\nno findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
