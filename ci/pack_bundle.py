"""Pack a bundle for use without this project: a zip, the files of a model-zoo pull request, a Hugging Face repository.

    python ci/pack_bundle.py NAME [--output dist] [--bundles DIR] [--audit DIR]
    python ci/pack_bundle.py NAME --zoo DIR [--large-files-url URL]
    python ci/pack_bundle.py NAME --hf DIR

The zip is ``<output>/<name>_v<version>.zip`` and has one top folder, the bundle's name. Weights of other bundles that
its configs name (``… '/../la_unet/models/judge_1.pt'``) are copied in as ``models/la_unet_judge_1.pt`` with their
cards, and the paths in the configs changed; one that is not there is named, and its use is off in the zip. The package
``semsynth`` goes in ``scripts/``, and the configs' ``semsynth.…`` become ``scripts.semsynth.…``. Pages and pictures of
the project's ``docs`` that the bundle's pages link to come along. ``manifest.sha256`` lists the SHA-256 of every file,
for ``semsynth verify`` and ``sha256sum --check``. The same files give the same zip, byte for byte.

``--audit`` packs what ``semsynth audit`` has said of the weights' volumes, as ``docs/audit.json``. It blocks nothing.

``--zoo`` writes ``DIR/models/<name>``, ``DIR/ci/unit_tests/test_<name>.py`` and ``DIR/<name>_pull_request.txt``; DIR
may be a clone of the zoo. ``--hf`` writes ``DIR/<name>``, all that the repository on the hub holds. Either replaces
what it wrote there before, and nothing else. Prints the paths.

The unpacked folder is used with ``python -m monai.bundle`` from inside it. From elsewhere, ``run`` works too with
``--bundle_root`` (it puts the bundle's root on the module path itself); ``monai.bundle.load()``, ``ckpt_export`` and
``verify_net_in_out`` do not do that: put the folder on ``PYTHONPATH`` first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

from bundle_contents import ROOT, collect, with_manifest
from semsynth.errors import InputError
from semsynth.provenance.audits import read_audit

TIMESTAMP = (2020, 1, 1, 0, 0, 0)


def pack(bundle: Path, output: Path, audit: Path | None = None) -> Path:
    """Write the zip beside its final name and rename it, so that a broken one is never left there.

    Args:
        bundle: its folder.
        output: folder for the zip.
        audit: folder of ``semsynth audit`` of volumes of the bundle's weights; its verdict is packed.

    Raises:
        ValueError: as in :func:`bundle_contents.collect` and :func:`audited`; for a file of the zip's name that is no
            packed bundle.
    """
    contents = with_manifest(collect(bundle) | audited(bundle, audit))
    version = json.loads(contents["configs/metadata.json"])["version"]
    path = output / f"{bundle.name}_v{version}.zip"
    if os.path.lexists(path) and not _is_packed(path, bundle.name):
        raise ValueError(f"{path}: is there and is no packed {bundle.name}; move it away, or give another --output")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(f"{bundle.name}/{name}", TIMESTAMP)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, rw-r--r--, wherever it is made
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, contents[name])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def audited(bundle: Path, audit: Path | None) -> dict[str, bytes]:
    """The verdict of an audit as a file of the packed bundle; nothing without one.

    It blocks nothing: weights are no volumes, and whoever takes them should know.

    Args:
        bundle: its folder.
        audit: folder of ``semsynth audit``.

    Raises:
        ValueError: for a folder that is no audit, or one of volumes of other weights.
    """
    if audit is None:
        return {}
    found = read_audit(audit)
    own = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (bundle / "models").glob("*.pt")}
    if not own & found.weights:
        raise ValueError(
            f"{audit}: is an audit of volumes of other weights than {bundle.name}'s; audit volumes of these"
        )
    return {"docs/audit.json": (json.dumps(found.record(), indent=1) + "\n").encode()}


def _is_packed(path: Path, name: str) -> bool:
    """Whether a file is a zip that was made here, of a bundle of that name."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    own = {f"{name}/configs/metadata.json", f"{name}/scripts/semsynth/__init__.py"}
    return own <= entries and all(entry.startswith(f"{name}/") for entry in entries)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("name", metavar="NAME", help="the bundle")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="where the zip goes")
    parser.add_argument("--bundles", type=Path, default=ROOT / "bundles", metavar="DIR", help="where the bundles are")
    parser.add_argument(
        "--zoo", type=Path, metavar="DIR", help="a folder for a model-zoo pull request, in place of a zip"
    )
    parser.add_argument("--hf", type=Path, metavar="DIR", help="a folder for Hugging Face trees, in place of a zip")
    parser.add_argument("--large-files-url", metavar="URL",
                        help="for --zoo: the address below which files over 25 MB can be downloaded")  # fmt: skip
    parser.add_argument("--audit", type=Path, metavar="DIR",
                        help="folder of 'semsynth audit' of the weights' volumes; its verdict is packed")  # fmt: skip
    options = parser.parse_args()
    if options.large_files_url and not options.zoo:
        parser.error("--large-files-url goes with --zoo")
    return options


def main() -> int:
    """The command; returns its exit status."""
    options = _options()
    bundle = options.bundles.resolve() / options.name
    try:
        if options.zoo:
            from pack_zoo import write_zoo

            print(*write_zoo(bundle, options.zoo, options.large_files_url, audited(bundle, options.audit)), sep="\n")
        if options.hf:
            from pack_hf import write_hf

            print(write_hf(bundle, options.hf, audited(bundle, options.audit)))
        if not (options.zoo or options.hf):
            print(pack(bundle, options.output, options.audit))
    except (ValueError, OSError, InputError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
