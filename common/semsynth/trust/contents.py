"""What a bundle consists of: the files of a folder, or of a zip that is unpacked once its table has been judged."""

from __future__ import annotations

import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ..errors import InputError
from ..files import real
from ..tensor_files import MOST_RATIO, SMALL
from ..texts import shown
from .findings import Finding

LEFT_BY_RUNS = ("data", "eval", "output", "runs")
"""Top folders of what runs leave in a bundle's folder; nothing of a bundle is there."""
MOST_FILES = 10_000
WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")
VOLUMES = (".nii.gz", ".nii", ".nrrd")
KINDS = (
    *WEIGHTS, *VOLUMES, ".json", ".yaml", ".yml", ".conf", ".md", ".txt", ".sha256", ".png", ".jpg", ".jpeg", ".svg",
    ".py", ".typed", ".html", ".smk",
)  # fmt: skip
"""How the files of a bundle end; LICENSE has no ending."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Contents:
    """The files of a bundle.

    Attributes:
        root: folder that holds them.
        files: path below it, with "/" → file, sorted.
        packed: whether they come from a zip.
        left_out: top folders of what runs leave, which are not looked at.
        findings: what is wrong with the paths and sizes themselves.
    """

    root: Path
    files: Mapping[str, Path]
    packed: bool = False
    left_out: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    def ending(self, *suffixes: str) -> dict[str, Path]:
        """The files whose names end with one of these."""
        return {name: path for name, path in self.files.items() if name.lower().endswith(suffixes)}


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The contents of a folder, or of a zip, whose files are there while the block lasts.

    Raises:
        InputError: for what is neither.
    """
    if path.is_dir():
        yield _of_folder(path)
        return
    with TemporaryDirectory(prefix="semsynth-verify-") as folder:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(f"{path}: no folder, and no zip that can be read; give a bundle") from error
        with archive:
            found = _in_table(archive, path.stat().st_size) or _unpack(archive, Path(folder))
        top = [] if found else [place for place in Path(folder).iterdir() if place.is_dir()]
        yield _of_folder(top[0], packed=True) if top else Contents(Path(folder), {}, True, (), tuple(found))


# ------------------------------------------------------------------------------------------------------------- folders


def _of_folder(root: Path, *, packed: bool = False) -> Contents:
    files: dict[str, Path] = {}
    findings: list[Finding] = []
    left: list[str] = []
    for place, inner, names in os.walk(root):  # it does not enter links
        here = Path(place)
        if here == root and not packed:
            left = sorted(name for name in inner if name in LEFT_BY_RUNS and not (here / name).is_symlink())
            inner[:] = [name for name in inner if name not in left]
        inner.sort()
        for name in sorted([*names, *(name for name in inner if (here / name).is_symlink())]):
            path = here / name
            below = path.relative_to(root).as_posix()
            reason = _not_plain(path, root) or bad_name(below) or _unknown_kind(below)
            findings += [] if reason is None else [Finding(below, reason)]
            files |= {below: path} if reason is None else {}
    if len(files) > MOST_FILES:
        findings.append(Finding("", f"too many files: {len(files)}, a bundle has at most {MOST_FILES}"))
        files = {}
    return Contents(root, dict(sorted(files.items())), packed, tuple(left), tuple(findings))


def _not_plain(path: Path, root: Path) -> str | None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        inside = real(path).is_relative_to(real(root))
        return f"a link{'' if inside else ' out of the bundle'}, which may be another file tomorrow; put the file there"
    return None if stat.S_ISREG(mode) else "a pipe, a device or the like; a bundle has files alone"


def bad_name(name: str) -> str | None:
    """Why a path is none of a file in a bundle, or None."""
    if shown(name) != name or "\\" in name:
        return "a name with characters that are not seen, or with a backslash"
    parts = name.split("/")
    if name.startswith("/") or name[1:2] == ":" or ".." in parts or "." in parts or "" in parts:
        return "a path that leads out of the bundle: absolute, or with '..'"
    return None


def _unknown_kind(name: str) -> str | None:
    if name.endswith((".pyc", ".pyo")) or "__pycache__" in name.split("/"):
        return "compiled Python, which nobody can read and Python prefers to its source; remove the folder __pycache__"
    if name.lower().endswith(KINDS) or PurePosixPath(name).name in ("LICENSE", "NOTICE"):
        return None
    return "a kind of file that no bundle needs (programs, archives and TorchScript are among them); remove it"


# ---------------------------------------------------------------------------------------------------------------- zips


def _in_table(archive: zipfile.ZipFile, stored: int) -> list[Finding]:
    """What is wrong with the names and sizes in a zip's table, before anything of it is unpacked."""
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        return [Finding("", f"too many files: {len(entries)}, a bundle has at most {MOST_FILES}")]
    found = [Finding(entry.filename, reason) for entry in entries if (reason := _bad_entry(entry)) is not None]
    found += _same_names(entry.filename for entry in entries)
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(MOST_RATIO * stored, SMALL):
        found.append(Finding("", f"a zip bomb: {stored} bytes that would unpack to {unpacked}"))
    tops = sorted({entry.filename.split("/")[0] for entry in entries})
    if len(tops) != 1 or any("/" not in entry.filename for entry in entries):
        found.append(Finding("", f"needs one top folder, the bundle's, and has {', '.join(tops[:5]) or 'nothing'}; "
                                 "what stands beside it would land beside the bundle"))  # fmt: skip
    return found


def _bad_entry(entry: zipfile.ZipInfo) -> str | None:
    if entry.flag_bits & 1:
        return "is encrypted"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link, which unpacks to a file somewhere else"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device, a pipe or the like"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in a way that bundles are not"
    reason = bad_name(entry.orig_filename.removesuffix("/"))
    return None if reason is None else f"zip slip: {reason}"


def _same_names(names: Iterable[str]) -> list[Finding]:
    """Files that are one on some machines, so that the later one replaces the other."""
    seen: dict[str, str] = {}
    found = []
    for name in names:
        key = unicodedata.normalize("NFC", name.removesuffix("/")).casefold()
        if key in seen:
            found.append(Finding(name, f"there is {seen[key]} too, which is the same file once they are unpacked"))
        seen[key] = name
    return found


def _unpack(archive: zipfile.ZipFile, folder: Path) -> list[Finding]:
    """Unpack what the table lists, no more of each file than it says."""
    for entry in archive.infolist():
        target = folder / entry.filename
        try:
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("xb") as stream:  # which ends at the size in the table
                while chunk := source.read(_CHUNK):
                    stream.write(chunk)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, FileExistsError, NotADirectoryError,
                RuntimeError, ValueError) as error:  # fmt: skip
            return [Finding(entry.filename, f"cannot be unpacked ({error}): damaged, or not what the table says")]
    return []
