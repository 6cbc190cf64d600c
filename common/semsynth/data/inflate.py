"""Compressed voxels, no more of them than the header says: what a small file unpacks to has no end by itself."""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .findings import FindingError, error

Packing: TypeAlias = Literal["gzip", "bzip2"]
GZIP: Packing = "gzip"
MOST_RATIO = {"gzip": 1032, "bzip2": 1 << 20}
"""Bytes that one byte of a file can unpack to: deflate's limit; bzip2's run lengths have hardly one."""
MEMBER = 1 << 14
SLACK = 1 << 16
"""Bytes behind the last voxel that a file may have, as some programs write them."""


def inflate(packed: bytes, needed: int, path: Path, packing: Packing = "gzip") -> bytes:
    """All that is packed, where it is what the header says; checksums are compared.

    Args:
        packed: one or several members, as ``gzip`` and ``bzip2`` write them; zeros behind the last one are passed over.
        needed: bytes that header and voxels take.
        path: the file, for the message.
        packing: the format.

    Raises:
        FindingError: for more than ``needed`` (but for a little), which is not unpacked.
        EOFError: for data that end early.
        OSError, zlib.error: for damaged data.
    """
    most, parts, size, at, step = needed + SLACK, list[bytes](), 0, 0, len(packed)
    while packed[at : at + 1]:
        member: Any = zlib.decompressobj(wbits=31) if packing == "gzip" else bz2.BZ2Decompressor()
        waiting = b""
        while not member.eof:
            if not waiting and getattr(member, "needs_input", True):
                waiting = packed[at : at + step]
                at += len(waiting)
                if not waiting:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            parts.append(member.decompress(waiting, most - size + 1))
            size += len(parts[-1])
            if size > most:
                raise _too_long(path, needed)
            waiting = getattr(member, "unconsumed_tail", b"")
        at -= len(member.unused_data)
        step = MEMBER  # the usual single member is unpacked in one go; of many, each would copy all that follow
        while packed[at : at + 1] == b"\0":
            at += len(packed[at : at + MEMBER]) - len(packed[at : at + MEMBER].lstrip(b"\0"))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_long(path: Path, needed: int) -> FindingError:
    return FindingError(error(
        path, "more data than its header says", found=f"more than {needed + SLACK} bytes when unpacked",
        expected=f"{needed}", fix="convert the source again: the file is damaged, or made to fill the memory",
    ))  # fmt: skip


def cannot_hold(stored: int, needed: int, packing: Packing | None) -> bool:
    """Whether a file of ``stored`` bytes is too small for the ``needed`` ones that its header claims."""
    return needed > stored * (1 if packing is None else MOST_RATIO[packing]) + (0 if packing is None else SLACK)
