"""What a packed bundle holds: which of its files, with which changes, and which are refused.

What may go in is listed (``ALLOWED``). What runs leave in ``data``, ``eval``, ``output`` and ``runs`` stays out; every
other file, and every link, is named and nothing is packed: what is packed is published, and results name cases.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pack_docs import bring_docs
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
TEXTS = (".md", ".json", ".txt", ".conf", ".py", ".yaml", ".yml", ".html", ".smk", ".svg", "LICENSE")
_FOLDER = re.compile(
    rb"(?<![\w.~>}/-])/(?:home|root|Users|work|workspace|mnt|scratch|private)/\w|\b[A-Za-z]:\\+Users\\"
)

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


def collect(bundle: Path, largest: int | None = MAX_FILE) -> dict[str, bytes]:
    """What the packed bundle holds: path below its folder → content.

    Args:
        bundle: its folder.
        largest: bytes that a file may have; None: any number.

    Raises:
        ValueError: no such bundle, files over ``largest``, links, files that do not belong into a packed bundle, pages
            with dead links, and texts that name folders of a machine.
    """
    if not (bundle / "configs" / "metadata.json").is_file():
        raise ValueError(f"{bundle}: no bundle there; it needs configs/metadata.json")
    sources = _sources(bundle)
    heavy = [name for name, path in sources.items() if largest is not None and path.stat().st_size > largest]
    if heavy:
        raise ValueError(
            f"{bundle}: files over {MAX_FILE / 1e6:g} MB, remove them: {', '.join(heavy)} (--hf takes them, and --zoo "
            "with --large-files-url lists them)"
        )
    contents = {name: path.read_bytes() for name, path in sources.items()}
    contents.setdefault("scripts/__init__.py", b"")
    for name in contents:
        if re.fullmatch(r"configs/[^/]+\.json", name) and name != "configs/metadata.json":
            contents[name] = bring_in(relocate(contents[name].decode("utf-8"))).encode("utf-8")
    contents |= bring_docs(bundle.name, contents)
    _refuse(
        bundle, [name for name, content in contents.items() if _machine(name, content)], "name folders of a machine"
    )
    return contents


def with_manifest(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same with ``manifest.sha256``, which ``semsynth verify`` compares the files with.

    Args:
        contents: path → content.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return dict(contents) | {MANIFEST: manifest_of(hashes).encode("utf-8")}


def _sources(bundle: Path) -> dict[str, Path]:
    """The files that are packed as they are, or with other paths in them: path in the packed bundle → file."""
    own, left = _files(bundle, LEFT_BY_RUNS)
    if left:
        print(f"{bundle.name}: {', '.join(left)} stay out, as what runs leave", file=sys.stderr)
    package, _ = _files(PACKAGE)
    others = weights_of_others(bundle)
    _refuse(bundle, [str(p) for p in (bundle, *own.values(), *package.values(), *others.values()) if p.is_symlink()],
            "are links")  # fmt: skip
    _refuse(bundle, [name for name in own if not _belongs(name, own)], "do not belong into a packed bundle")
    strange = [name for name in package if not _fits(name.rpartition("/")[2], IN_PACKAGE)]
    _refuse(PACKAGE, strange, "do not belong into a packed bundle")
    sources = own | {f"scripts/semsynth/{name}": path for name, path in package.items()} | others
    sources.setdefault("LICENSE", ROOT / "LICENSE")
    return sources


def _machine(name: str, content: bytes) -> bool:
    """Whether a text names a folder as machines and their users have them."""
    return name.endswith(TEXTS) and re.search(_FOLDER, content) is not None


def of_this_bundle(folder: Path, name: str, extra: Collection[str] = ()) -> None:
    """Raise unless a folder may be replaced by the packed bundle: nothing is there, or what was packed there before.

    Args:
        folder: folder for it.
        name: name of the bundle.
        extra: paths that a packed bundle may have besides what belongs into it.

    Raises:
        ValueError: for a file or link, another folder, and a folder that holds files besides.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder}: is there and is no folder; move it away, or name another one")
    names, _ = _files(folder)
    if not {"configs/metadata.json", "scripts/semsynth/__init__.py"} <= set(names) or _bundle_of(folder) != name:
        raise ValueError(f"{folder}: is there and is no packed {name}; move it away, or name another folder")
    beside = {*names, *(f"{part.removesuffix('.json')}.pt" for part in names if part.endswith(".json"))}
    strange = [
        part
        for part, path in names.items()
        if path.is_symlink() or not (part in extra or _belongs(part, beside) or _of_package(part))
    ]
    _refuse(folder, strange, "were not packed here", "written")


def _bundle_of(folder: Path) -> object:
    try:
        return json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8")).get("bundle")
    except (OSError, ValueError, AttributeError):
        return None


def _of_package(name: str) -> bool:
    return name.startswith("scripts/semsynth/") and _fits(name.rpartition("/")[2], IN_PACKAGE)


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


def _refuse(where: Path, names: Sequence[str], why: str, done: str = "packed") -> None:
    if names:
        shown = "".join(f"\n  - {name}" for name in sorted(names)[:SHOWN])
        more = f"\n  … and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ValueError(f"{where}: {len(names)} files {why}, and nothing is {done}; move them out:{shown}{more}")


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
