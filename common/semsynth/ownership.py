"""Whose a file is: what stands where a result goes is replaced only if it is ours and nobody has changed it.

A folder of results holds :data:`LEDGER`, the SHA-256 of each file that was written there. A file that it lists is ours
while it has that hash. One that it does not list (of a version before, or copied there without the ledger) is ours
where its content says so. All else is the user's, and is never replaced, whatever options say.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import atomic_path, sha256, write_text
from .json_files import read_object_or_none

LEDGER = ".semsynth-files.json"
MAKER = "semsynth"
"""The software that pictures name as their maker."""
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 65536
Recogniser = Callable[[Path], bool]


class Outputs:
    """The files that one command or handler writes into a folder.

    Args:
        folder: folder that the user gave; made when the first file is written.
        maker: command that writes them, such as ``semsynth prepare``; what another one has written is not replaced
            either.
        known: name → whether a file that the ledger does not list is, by its content, one of this maker.
        instead: option that the user can give in place of the folder, for the message.
    """

    def __init__(
        self, folder: str | Path, maker: str, known: Mapping[str, Recogniser], *, instead: str = "--output"
    ) -> None:
        self.folder, self.maker, self.known, self.instead = Path(folder), maker, dict(known), instead

    def check(self, names: Iterable[str] | None = None) -> None:
        """Raise, before any work, for files that would be replaced and are not ours.

        Args:
            names: names of the files that will be written; None: all that are known.

        Raises:
            InputError: naming all of them.
        """
        refuse(self.foreign(names), self.instead)

    def foreign(self, names: Iterable[str] | None = None) -> list[str]:
        """Which files may not be replaced, and why; arguments and errors as in :meth:`check`."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is a file; {self.instead} needs a folder")
        ledger = self._ledger()
        reasons = (self._foreign(name, ledger) for name in (self.known if names is None else names))
        return [reason for reason in reasons if reason]

    def _foreign(self, name: str, ledger: Mapping[str, Any]) -> str | None:
        """Why a file may not be replaced; None where it may."""
        path = self.folder / name
        if not os.path.lexists(path):  # a link that leads nowhere is there as well
            return None
        if not path.is_file():
            return f"{path}: is no file"
        listed = ledger.get(name)
        if isinstance(listed, dict) and isinstance(listed.get("sha256"), list):
            if listed.get("by") != self.maker:
                return f"{path}: was written by {listed.get('by')}"
            return None if sha256(path) in listed["sha256"] else f"{path}: was changed since {self.maker} wrote it"
        recognised = self.known.get(name, nobody)
        return None if _says_so(recognised, path) else f"{path}: was not written by {self.maker}"

    @contextmanager
    def path(self, name: str) -> Iterator[Path]:
        """A temporary path beside a file, renamed to it when the block ends well; the ledger lists it first.

        Raises:
            InputError: where the file is there and is not ours.
        """
        self.check([name])
        with atomic_path(self.folder / name) as temporary:
            yield temporary
            self._list({name: sha256(temporary)})

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all; errors as in :meth:`path`."""
        with self.path(name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        return self.folder / name

    def replace(self, made: Mapping[str, Path]) -> None:
        """Move finished files to their names, all within a moment.

        Raises:
            InputError: where one is there and is not ours; then none is moved.
        """
        self.check(made)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._list({name: sha256(path) for name, path in made.items()})
        for name, path in made.items():
            path.replace(self.folder / name)

    def remove_others(self, kept: Iterable[str]) -> None:
        """Remove what this maker wrote here before and is not to stay; files that were changed since stay as well.

        Args:
            kept: names of the files that stay.
        """
        ledger, wanted = self._ledger(), set(kept)
        ours = [
            name
            for name, listed in ledger.items()
            if name not in wanted and isinstance(listed, dict) and listed.get("by") == self.maker
        ]
        gone = [name for name in ours if not (self.folder / name).is_file() or self._foreign(name, ledger) is None]
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)
        if gone:
            self._write_ledger({name: listed for name, listed in ledger.items() if name not in gone})

    def _ledger(self) -> dict[str, Any]:
        content = read_object_or_none(self.folder / LEDGER)
        files = content.get("files") if content else None
        return files if isinstance(files, dict) else {}

    def _list(self, hashes: Mapping[str, str]) -> None:
        """Add files to the ledger, with the hash of what stands there too: a kill may come between the two."""
        files = self._ledger()
        for name, digest in hashes.items():
            path = self.folder / name
            standing = [sha256(path)] if path.is_file() else []  # which is ours, or nothing would be written
            files[name] = {"by": self.maker, "sha256": list(dict.fromkeys([digest, *standing]))}
        self._write_ledger(files)

    def _write_ledger(self, files: Mapping[str, Any]) -> None:
        about = "SHA-256 of what semsynth wrote here: files that were changed since are not replaced"
        text = json.dumps({"about": about, "files": files}, indent=1)
        write_text(self.folder / LEDGER, text + "\n")


def refuse(problems: Sequence[str], instead: str = "--output") -> None:
    """Raise for files of the user that would be replaced; nothing happens where there are none.

    Raises:
        InputError: naming them and what to do.
    """
    if problems:
        raise InputError(
            f"files that are not ours to replace stand where results go; move them away, or give another {instead}:",
            sorted(problems),
        )


# ---- how files say what they are


def nobody(path: Path) -> bool:
    """The recogniser of files whose content does not tell their maker: none of them is ours."""
    return False


def object_with(*keys: str, **values: Any) -> Recogniser:
    """Recognises a JSON object by its keys, and by the values of some of them."""

    def recognise(path: Path) -> bool:
        content = read_object_or_none(path)
        return content is not None and {*keys, *values} <= content.keys() and values.items() <= _plain(content).items()

    return recognise


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if not isinstance(value, list | dict)}


def text_with(start: str = "", *, within: str = "") -> Recogniser:
    """Recognises a text file by its beginning, or by what stands near it."""

    def recognise(path: Path) -> bool:
        with path.open("rb") as stream:
            head = stream.read(_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
        return head.startswith(start) and within in head

    return recognise


def text_like(pattern: str) -> Recogniser:
    """Recognises a text file by a regular expression that its beginning matches."""

    def recognise(path: Path) -> bool:
        with path.open("rb") as stream:
            head = stream.read(_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
        return re.match(pattern, head) is not None

    return recognise


def beside(name: str, recognised: Recogniser, *also: Recogniser) -> Recogniser:
    """Recognises a file by another one in its folder, where all of ``also`` hold of the file itself."""
    return lambda path: recognised(path.parent / name) and all(one(path) for one in also)


def any_of(*recognisers: Recogniser) -> Recogniser:
    """Recognises what one of several does."""
    return lambda path: any(_says_so(one, path) for one in recognisers)


def _says_so(recognised: Recogniser, path: Path) -> bool:
    try:
        return recognised(path)
    except OSError:
        return False


# ---- pictures, which stand anywhere and carry their own mark


def marked_png(data: bytes) -> bytes:
    """A PNG with a text chunk that names us and the SHA-256 of its pixels' data, by which a changed one is told."""
    text = b"semsynth\0" + _pixels(data).encode()
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    first = data.index(b"IDAT") - 4
    return data[:first] + chunk + data[first:]


def is_marked_png(path: Path) -> bool:
    """Whether a picture is one of ours as it was written."""
    data = path.read_bytes()
    if not data.startswith(_PNG):
        return False
    own = [content for kind, content in _chunks(data) if kind == b"tEXt" and content.startswith(b"semsynth\0")]
    return bool(own) and own[0][len(b"semsynth\0") :].decode("latin-1") == _pixels(data)


def is_plotted_png(path: Path) -> bool:
    """Whether a picture is one that Matplotlib drew, as those of version 0.1.0 say; others may say it too."""
    data = path.read_bytes()
    return data.startswith(_PNG) and any(
        kind == b"tEXt" and content.startswith(b"Software\0Matplotlib") for kind, content in _chunks(data)
    )


def refuse_picture(path: str | Path, *, also: Recogniser = nobody) -> None:
    """Raise where a picture would replace a file that is none of ours.

    Args:
        path: the PNG.
        also: function: file → True where a file without our mark is ours all the same.

    Raises:
        InputError: naming it.
    """
    path = Path(path)
    if os.path.lexists(path) and not (path.is_file() and any_of(is_marked_png, also)(path)):
        refuse([f"{path}: is no picture that semsynth drew, or was changed since"], "name for the picture")


def _pixels(data: bytes) -> str:
    return hash_of(b"".join(content for kind, content in _chunks(data) if kind in (b"IHDR", b"IDAT"))).hexdigest()


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length
