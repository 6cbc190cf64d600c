"""The table of a zip, judged before anything is unpacked: names, sizes, and that every program reads the same in it."""

from __future__ import annotations

import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ..tensor_files import MOST_RATIO, SMALL
from .findings import Finding
from .names import bad_name

MOST_FILES = 10_000
_CHUNK = 1 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
"""What stands before each file: mark, version, flags, method, time, date, CRC, both sizes, lengths of name and more."""
_BEHIND = (0, 12, 16, 20, 24)
"""Bytes behind a file whose sizes are said there."""
_OTHER_NAME = 0x7075
"""The part of an entry by which some programs give its file another name."""
_ZIP64, _SAID_BEHIND, _UTF8 = 0xFFFFFFFF, 8, 0x800
_MEANT = 1 | _SAID_BEHIND | _UTF8
"""Flags that say how a file is read: encrypted, sizes behind it, name in UTF-8."""


def in_table(archive: zipfile.ZipFile, stored: int) -> list[Finding]:
    """What is wrong with the names and sizes in a zip's table.

    Args:
        archive: the zip.
        stored: its bytes.
    """
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
    return found + _of_two_readings(archive)


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


def _of_two_readings(archive: zipfile.ZipFile) -> list[Finding]:
    """Where programs that unpack would not agree: only what this program reads has been verified.

    Some read the table at the end, as this one does, others the files one after the other: nothing may stand between
    them, and each has to say of itself what the table says of it.
    """
    stream = archive.fp
    assert stream is not None
    again = "other programs may unpack something else than what was verified; pack the bundle again"
    if archive.comment:
        return [Finding("", f"the zip ends with a comment, in which a second table may stand: {again}")]
    ends = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        stream.seek(entry.header_offset)
        head = stream.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
            return [Finding(entry.filename, "is not where the table says: damaged; get the zip again")]
        letters, more = _LOCAL.unpack(head)[-2:]
        name, extra = stream.read(letters), stream.read(more)
        if entry.header_offset - ends not in (_BEHIND if ends else (0,)):
            return [Finding(entry.filename, f"something stands before it that the table does not list: {again}")]
        if _differs(head, name, entry):
            return [Finding(entry.filename, f"says something else of itself than the table does: {again}")]
        if _OTHER_NAME in {*_kinds_of(extra), *_kinds_of(entry.extra)}:
            return [Finding(entry.filename, f"has a second name in it: {again}")]
        ends = stream.tell() + entry.compress_size
    if archive.start_dir - ends not in _BEHIND:
        return [Finding("", f"something stands behind the last file that the table does not list: {again}")]
    return []


def _differs(head: bytes, name: bytes, entry: zipfile.ZipInfo) -> bool:
    """Whether what stands before a file says something else than the table."""
    _, _, flags, method, _, _, crc, packed, size, _, _ = _LOCAL.unpack(head)
    listed = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437", "replace")
    if (flags ^ entry.flag_bits) & _MEANT or method != entry.compress_type or name != listed:
        return True
    sizes = packed in (entry.compress_size, _ZIP64) and size in (entry.file_size, _ZIP64)
    return not flags & _SAID_BEHIND and not (crc == entry.CRC and sizes)


def _kinds_of(extra: bytes) -> Iterable[int]:
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        yield kind
        extra = extra[4 + length :]


def unpack(archive: zipfile.ZipFile, folder: Path) -> list[Finding]:
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
