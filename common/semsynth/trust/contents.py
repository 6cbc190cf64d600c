"""What a bundle consists of: the files of a folder, or of a zip that is unpacked once its table has been judged."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError
from ..files import real
from .findings import Finding
from .names import bad_name, unknown_kind
from .zips import MOST_FILES, in_table, unpack

LEFT_BY_RUNS = ("data", "eval", "output", "runs")
"""Top folders of what runs leave in a bundle's folder; nothing of a bundle is there."""


@dataclass(frozen=True)
class Contents:
    """The files of a bundle.

    Attributes:
        root: folder that holds them.
        files: path below it, with "/" → file, sorted.
        packed: True where they come from a zip.
        left_out: top folders of what runs leave, which are not looked at.
        findings: faults of the paths and sizes themselves.
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
            found = in_table(archive, path.stat().st_size) or unpack(archive, Path(folder))
        top = [] if found else [place for place in Path(folder).iterdir() if place.is_dir()]
        yield _of_folder(top[0], packed=True) if top else Contents(Path(folder), {}, True, (), tuple(found))


# ------------------------------------------------------------------------------------------------------------- folders


def _of_folder(root: Path, *, packed: bool = False) -> Contents:
    files: dict[str, Path] = {}
    findings: list[Finding] = []
    left: list[str] = []

    def unreadable(error: OSError) -> None:
        below = Path(str(error.filename)).relative_to(root).as_posix()
        findings.append(Finding(below, "a folder that cannot be read: what is in it is unknown"))

    for place, inner, names in os.walk(root, onerror=unreadable):  # it does not enter links
        here = Path(place)
        if here == root and not packed:
            left = sorted(name for name in inner if name in LEFT_BY_RUNS and not (here / name).is_symlink())
            inner[:] = [name for name in inner if name not in left]
        inner.sort()
        for name in sorted([*names, *(name for name in inner if (here / name).is_symlink())]):
            path = here / name
            below = path.relative_to(root).as_posix()
            reason = _not_plain(path, root) or bad_name(below) or unknown_kind(below)
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
