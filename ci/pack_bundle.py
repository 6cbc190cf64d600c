"""Pack a bundle into a zip that works without this project: ``<output>/<name>_v<version>.zip``.

    python ci/pack_bundle.py NAME [--output dist] [--bundles DIR]

The zip has one top folder, the bundle's name. Weights of other bundles that its configs name
(``… '/../la_unet/models/judge.pt'``) are copied in as ``models/la_unet_judge.pt`` with their cards, and the configs'
paths changed; one that is not there is named, and its use is off in the zip. The package ``semsynth`` goes into
``scripts/``, and the configs' ``semsynth.…`` become ``scripts.semsynth.…``. The same files give the same zip, byte for
byte. Prints the zip's path.

The unpacked folder is used with ``python -m monai.bundle`` from inside it. From elsewhere, ``run`` works too with
``--bundle_root`` (it puts the bundle's root on the module path itself); ``monai.bundle.load()``, ``ckpt_export`` and
``verify_net_in_out`` do not do that: put the folder on ``PYTHONPATH`` first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "common" / "semsynth"
LEFT_BY_RUNS = {"data", "eval", "output", "runs"}  # top folders of a bundle
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
        ValueError: no such bundle, or a file over 25 MB.
    """
    if not (bundle / "configs" / "metadata.json").is_file():
        raise ValueError(f"{bundle}: no bundle there; it needs configs/metadata.json")
    sources = {name: path for name, path in _files(bundle).items() if name.split("/")[0] not in LEFT_BY_RUNS}
    sources |= {f"scripts/semsynth/{name}": path for name, path in _files(PACKAGE).items()}
    sources |= weights_of_others(bundle)
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
    return contents


def _files(folder: Path) -> dict[str, Path]:
    """The files below a folder by their path there, without caches and hidden ones."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    hidden = {name for name in files if any(part.startswith(".") or part == "__pycache__" for part in name.parts)}
    return {name.as_posix(): path for name, path in files.items() if name not in hidden}


def pack(bundle: Path, output: Path) -> Path:
    """Write the zip beside its final name and rename it, so that a broken one is never left there.

    Raises:
        ValueError: as in :func:`collect`.
    """
    contents = collect(bundle)
    version = json.loads(contents["configs/metadata.json"])["version"]
    path = output / f"{bundle.name}_v{version}.zip"
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


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("name", metavar="NAME", help="the bundle")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="where the zip goes")
    parser.add_argument("--bundles", type=Path, default=ROOT / "bundles", metavar="DIR", help="where the bundles are")
    options = parser.parse_args()
    try:
        path = pack(options.bundles.resolve() / options.name, options.output)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
