"""Files whole or not at all, folders that stand for one volume, a part of either, and what identifies one."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PART = re.compile("#|::")
_TEMPORARY = ".semsynth-"
TEMPORARY = (_TEMPORARY, ".tmp")
"""Beginning and end of names that :func:`remove_left_over` removes."""


def split_part(path: str | Path) -> tuple[Path, str | None]:
    """A file or folder, and the part of it that is meant: ``seg.dcm#left atrium``, ``patient1#LGE``.

    MONAI turns every ``#`` of a bundle's options into ``::``, which is understood as well.

    Returns:
        The path before the ``#`` and what stands behind it; the whole path and None where it has no ``#``, where the
        ``#`` belongs to a name that exists, or where nothing exists.
    """
    text = str(path)
    if not _PART.search(text) or os.path.exists(text):  # noqa: PTH110 - False, not an error, for what is no path
        return Path(path), None
    text = text.replace("::", "#")
    for cut in reversed([match.start() for match in re.finditer("#", text)]):
        if cut and os.path.exists(text[:cut]):  # noqa: PTH110
            return Path(text[:cut]), text[cut + 1 :]
    return Path(path), None


def is_there(path: str | Path) -> bool:
    """Whether there is a file or folder that may hold a volume; a part behind a ``#`` is not looked for.

    False, not an error, for what cannot be reached: a folder that may not be read, links in a circle, a name too long.
    """
    return os.path.exists(split_part(path)[0])  # noqa: PTH110 - Path.exists raises for these


def real(path: str | Path) -> Path:
    """The path without links; no error, as in ``Path.resolve``, for links in a circle."""
    return Path(os.path.realpath(path))


def walk(folder: str | Path, unreadable: list[Path] | None = None) -> Iterator[Path]:
    """All files below a folder by path; linked folders are entered, each real folder once.

    Args:
        folder: folder to look through.
        unreadable: takes the folders that cannot be read.

    Raises:
        OSError: for a folder that cannot be read, unless a function takes the error.
    """
    entered: set[str] = set()

    def failed(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        if unreadable is None:
            raise error
        unreadable.append(Path(str(error.filename)))

    for place, inner, files in os.walk(folder, followlinks=True, onerror=failed):
        itself = os.path.realpath(place)
        if itself in entered:  # a link that leads back up
            inner.clear()
            continue
        entered.add(itself)
        inner.sort()
        yield from (Path(place) / name for name in sorted(files))


def stamp(path: str | Path) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file, by which one is known not to have changed meanwhile.

    Of a folder: the size of all files below, and a number that changes with any of their names, sizes and times.
    """
    place, _ = split_part(path)
    if not place.is_dir():
        found = place.stat()
        return found.st_size, found.st_mtime_ns
    seen = [(str(file.relative_to(place)), *stamp(file)) for file in walk(place) if file.is_file()]
    digest = hashlib.sha256(repr(seen).encode("utf-8", "surrogatepass")).digest()
    return sum(size for _, size, _ in seen), int.from_bytes(digest[:7])


def sha256(path: str | Path) -> str:
    """SHA-256 as hex: of a file; of names and contents of all files below a folder; of either and its part."""
    place, part = split_part(path)
    if place.is_dir():
        lines = [f"{file.relative_to(place).as_posix()} {sha256(file)}" for file in walk(place) if file.is_file()]
        found = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
    else:
        with place.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    return found if part is None else hashlib.sha256(f"{found}#{part}".encode()).hexdigest()


def shown_name(path: str | Path) -> str:
    """The name of a file or folder, and its part, as records show it.

    A DICOM UID, by which a scanner's archive finds the patient, is replaced by twelve digits of its hash.
    """
    place, part = split_part(path)
    if part is not None and re.fullmatch(r"[0-9]+(\.[0-9]+)+", part):
        part = hashlib.sha256(part.encode()).hexdigest()[:12]
    return place.name if part is None else f"{place.name}#{part}"


def relative_to(path: str | Path, folder: str | Path) -> str:
    """Where a file is, from a folder; a link keeps its own name."""
    place, _ = split_part(path)
    above, start = os.path.realpath(place.parent), os.path.realpath(folder)  # no error for links in a circle
    return os.path.relpath(Path(above) / shown_name(path), start)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` (same suffixes), renamed to it when the block ends well, removed otherwise.

    Raises:
        OSError: naming ``path``, also where the system's own error (a full disk) names no file.
    """
    path = Path(path)
    temporary = _beside(path)
    with _named(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder beside ``path``, renamed to it when the block ends well, removed otherwise.

    A folder that is there is replaced as a whole, once the new one is complete.

    Raises:
        OSError: naming ``path``, also where the system's own error (a full disk) names no file.
    """
    path = Path(path)
    temporary, old = _beside(path), _beside(path)
    with _named(path, temporary):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.exists():  # a folder that holds files cannot be renamed over
                path.rename(old)
            try:
                temporary.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name that no other process, and no case, has; short, so that long names of cases stay possible."""
    return path.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}.tmp{''.join(path.suffixes[-2:])[-16:]}")


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of the block that name no file, or the temporary one, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def remove_left_over(folder: str | Path) -> None:
    """Remove temporary files and folders that a killed process left; only for whoever writes there alone."""
    for path in Path(folder).glob(f"{_TEMPORARY}*.tmp*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all.

    Bytes of file names that are no UTF-8 are written as JSON escapes them, so that JSON gives them back.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)
