"""Pack a bundle into a zip that works without this project: ``<output>/<name>_v<version>.zip``.

    python ci/pack_bundle.py NAME [--output dist] [--bundles DIR]

The zip has one top folder, the bundle's name. Weights of other bundles that its configs name
(``… '/../la_unet/models/judge_1.pt'``) are copied in as ``models/la_unet_judge_1.pt`` with their cards, and the paths
in the configs changed; one that is not there is named, and its use is off in the zip. ``manifest.sha256`` lists the
SHA-256 of every file, for ``semsynth verify`` and ``sha256sum --check``. The package ``semsynth`` goes in
``scripts/``, and the configs' ``semsynth.…`` become ``scripts.semsynth.…``. The same files give the same zip, byte for
byte. Prints the zip's path.

What may go into a zip is listed (``ALLOWED``). What runs leave in ``data``, ``eval``, ``output`` and ``runs`` stays
out; every other file, and every link, is named and nothing is packed: a zip is published, and results name cases.

The unpacked folder is used with ``python -m monai.bundle`` from inside it. From elsewhere, ``run`` works too with
``--bundle_root`` (it puts the bundle's root on the module path itself); ``monai.bundle.load()``, ``ckpt_export`` and
``verify_net_in_out`` do not do that: put the folder on ``PYTHONPATH`` first.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from semsynth.trust.hashes import MANIFEST, manifest_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "common" / "semsynth"
LEFT_BY_RUNS = {"data", "eval", "output", "runs"}  # top folders of a bundle
ALLOWED = {
    "": ("LICENSE",),
    "configs": ("*.json", "logging.conf"),
    "docs": ("*.md", "*.png", "*.jpg", "*.svg", "data_license.txt", "golden.nii.gz", "golden.json"),
    "models": ("*.pt", "*.safetensors", "*.json"),
    "scripts": ("*.py",),
}
"""Folder of a bundle → the files that it may hold."""
IN_PACKAGE = ("*.py", "py.typed", "*.html", "*.yaml", "*.smk")
DEBRIS = {"__pycache__", ".DS_Store", "Thumbs.db", "desktop.ini"}
"""What Python and file managers leave: passed over."""
SHOWN = 20
MAX_FILE = 25_000_000
TIMESTAMP = (2020, 1, 1, 0, 0, 0)

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_DOTTED_PATH = re.compile(r"semsynth((?:\.\w+)+)")
# in an expression: not after a word, a dot, an @, or inside a path or a quoted name
_IN_EXPRESSION = re.compile(r"(?<![\w.@/'\"-])semsynth(?=\.[A-Za-z_])|(?<=\bimport )semsynth\b|(?<=\bfrom )semsynth\b")


_OTHERS_WEIGHTS = re.compile(r"/\.\./(\w+)/models/([\w.]+)")


def bring_in(text: str) -> str:
    """A config's JSON with the paths of other bundles' weights changed to where the zip has them."""
    return _OTHERS_WEIGHTS.sub(r"/models/\1_\2", text)


def weights_of_others(bundle: Path) -> dict[str, Path]:
    """Path in the zip → file, of the other bundles' weights that the configs name and that are there, with cards."""
    named = {
        match
        for config in sorted((bundle / "configs").glob("*.json"))
        for match in _OTHERS_WEIGHTS.findall(config.read_text(encoding="utf-8"))
    }
    found = {}
    for other, file in sorted(named):
        path = bundle.parent / other / "models" / file
        if not path.is_file():
            print(f"{bundle.name}: {other}/models/{file} is not there; its use is off in the zip", file=sys.stderr)
        for part in (path, path.with_suffix(".json")):
            if part.is_file():
                found[f"models/{other}_{part.name}"] = part
    return found


def relocate(text: str) -> str:
    """A config's JSON with each path of a module of the package, and each use of it in an expression, moved.

    Everything else, the layout too, stays as it is; a text that merely speaks of semsynth is no module path.
    """
    return _JSON_STRING.sub(lambda match: _relocate_string(match[0]), text)


def _relocate_string(token: str) -> str:
    value = json.loads(token)
    path = _DOTTED_PATH.fullmatch(value)
    if path:
        module = PACKAGE / path[1].split(".")[1]
        return f'"scripts.{token[1:]}' if module.is_dir() or module.with_suffix(".py").is_file() else token
    if value.startswith("$"):
        return json.dumps(_IN_EXPRESSION.sub("scripts.semsynth", value), ensure_ascii=False)
    return token


def collect(bundle: Path) -> dict[str, bytes]:
    """What goes into the zip: path below its top folder → content.

    Raises:
        ValueError: no such bundle, a file over 25 MB, links, and files that do not belong into a zip.
    """
    if not (bundle / "configs" / "metadata.json").is_file():
        raise ValueError(f"{bundle}: no bundle there; it needs configs/metadata.json")
    own, left = _files(bundle, LEFT_BY_RUNS)
    if left:
        print(f"{bundle.name}: {', '.join(left)} stay out of the zip, as what runs leave", file=sys.stderr)
    package, _ = _files(PACKAGE)
    others = weights_of_others(bundle)
    _refuse(bundle, [str(p) for p in (bundle, *own.values(), *package.values(), *others.values()) if p.is_symlink()],
            "are links")  # fmt: skip
    _refuse(bundle, [name for name in own if not _belongs(name, own)], "do not belong into a zip")
    _refuse(PACKAGE, [n for n in package if not _fits(n.rpartition("/")[2], IN_PACKAGE)], "do not belong into a zip")
    sources = own | {f"scripts/semsynth/{name}": path for name, path in package.items()} | others
    sources.setdefault("LICENSE", ROOT / "LICENSE")
    heavy = [name for name, path in sources.items() if path.stat().st_size > MAX_FILE]
    if heavy:
        raise ValueError(
            f"{bundle}: files over {MAX_FILE / 1e6:g} MB, remove them: {', '.join(heavy)} "
            "(a large_files.yml, MONAI's way to leave them out, is not made here)"
        )
    contents = {name: path.read_bytes() for name, path in sources.items()}
    contents.setdefault("scripts/__init__.py", b"")
    for name in contents:
        if re.fullmatch(r"configs/[^/]+\.json", name) and name != "configs/metadata.json":
            contents[name] = bring_in(relocate(contents[name].decode("utf-8"))).encode("utf-8")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return contents | {MANIFEST: manifest_of(hashes).encode("utf-8")}


def _belongs(name: str, beside: Collection[str]) -> bool:
    """Whether a file may go into the zip by its path in the bundle; a card needs its weights."""
    folder, _, file = name.rpartition("/")
    if folder == "models" and file.endswith(".json"):
        return any(name.removesuffix(".json") + ending in beside for ending in (".pt", ".safetensors"))
    if folder == "scripts" or folder.startswith("scripts/"):
        return not name.startswith("scripts/semsynth") and _fits(file, ALLOWED["scripts"])
    return _fits(file, ALLOWED.get(folder, ()))


def _fits(file: str, patterns: Sequence[str]) -> bool:
    return not file.startswith(".") and any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)


def _refuse(where: Path, names: Sequence[str], why: str) -> None:
    if names:
        shown = "".join(f"\n  - {name}" for name in sorted(names)[:SHOWN])
        more = f"\n  … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ValueError(f"{where}: {len(names)} files {why}, and nothing is packed; move them out:{shown}{more}")


def _files(folder: Path, left_out: Collection[str] = ()) -> tuple[dict[str, Path], list[str]]:
    """The files and links below a folder by their path there, links not followed, and the top folders left out."""
    files: dict[str, Path] = {}
    left: list[str] = []
    for place, inner, names in os.walk(folder):  # it does not enter links
        here = Path(place)
        if here == folder:
            left = sorted(name for name in inner if name in left_out)
            inner[:] = [name for name in inner if name not in left_out]
        inner[:] = sorted(name for name in inner if name not in DEBRIS)
        links = [name for name in inner if (here / name).is_symlink()]
        for name in (*names, *links):
            if name not in DEBRIS:
                files[(here / name).relative_to(folder).as_posix()] = here / name
    return files, left


def pack(bundle: Path, output: Path) -> Path:
    """Write the zip beside its final name and rename it, so that a broken one is never left there.

    Raises:
        ValueError: as in :func:`collect`; for a file of the zip's name that is no packed bundle.
    """
    contents = collect(bundle)
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


def _is_packed(path: Path, name: str) -> bool:
    """Whether a file is a zip that was made here, of a bundle of that name."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    own = {f"{name}/configs/metadata.json", f"{name}/scripts/semsynth/__init__.py"}
    return own <= entries and all(entry.startswith(f"{name}/") for entry in entries)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("name", metavar="NAME", help="the bundle")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="where the zip goes")
    parser.add_argument("--bundles", type=Path, default=ROOT / "bundles", metavar="DIR", help="where the bundles are")
    options = parser.parse_args()
    try:
        path = pack(options.bundles.resolve() / options.name, options.output)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
