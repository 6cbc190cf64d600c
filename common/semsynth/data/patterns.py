"""Patterns of files: what their wildcards stand for in each file, and names of folders that only look like patterns."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..paths import expanded
from .naming import case_name, check_names, distinct_names

_WILDCARD = re.compile(r"\*\*/|\*\*|\*|\?|\[!?+(?:\][^\]]*|[^\]]+)\]")  # [] and [!] are texts, as glob takes them
_DOUBLED = re.compile(r"(\*\*/)+")


@dataclass(frozen=True)
class _Piece:
    """A part of a pattern: text, or a wildcard."""

    text: str
    wild: bool

    @property
    def kind(self) -> str:
        """What it is to be paired with: every [...] with every other."""
        return self.text[0] if self.wild and self.text[0] == "[" else self.text

    def glob(self) -> str:
        """The pattern as :mod:`glob` takes it."""
        return self.text if self.wild else glob.escape(self.text)

    def ends(self, text: str, at: int) -> Iterator[int]:
        """Where what it stands for can end, if it begins at ``at``: rising, each found from the one before."""
        if not self.wild:
            yield from (at + len(self.text),) if text.startswith(self.text, at) else ()
        elif self.text[0] != "*":
            yield from (at + 1,) if at < len(text) and self._is_one(text[at]) else ()
        else:
            yield at
            while (end := self._further(text, at)) is not None:
                yield (at := end)

    def _further(self, text: str, at: int) -> int | None:
        """One more character, or folder, than up to ``at``; None where a star cannot stand for it."""
        if self.text == "**/":
            slash = text.find("/", at)
            return slash + 1 if slash > at else None
        return at + 1 if at < len(text) and (self.text == "**" or text[at] != "/") else None

    def _is_one(self, character: str) -> bool:
        return character != "/" and fnmatch.fnmatchcase(character, self.text)


def is_pattern(source: str | Path) -> bool:
    """Whether a path has wildcards (``*``, ``?``, ``[...]``) and is not, as it stands, a file or folder's name."""
    return glob.has_magic(str(source)) and not os.path.lexists(source)


@dataclass(frozen=True)
class Match:
    """A file or folder that a pattern found: its path, and what each wildcard stands for there, as (kind, text)."""

    path: Path
    wildcards: tuple[tuple[str, str], ...] = ()

    def partner(self, pattern: str, other: str) -> Path:
        """The path that another pattern of the same wildcards gives, where they stand for the same text.

        Args:
            pattern: pattern that found this file, for the message.
            other: pattern of the path; it may have fewer wildcards, the first ones.

        Raises:
            InputError: where its wildcards are others.
        """
        kinds = [kind for kind, _ in self.wildcards]
        pieces = _pieces(other, brackets="[" in kinds)
        own = [piece.kind for piece in pieces if piece.wild]
        if len(own) > len(kinds):
            raise InputError(f"{other}: has more stars than {pattern}; each star stands for the same text in both")
        if own != kinds[: len(own)]:
            raise InputError(
                f"{other}: has the wildcards {' '.join(own)}, {pattern} has {' '.join(kinds)}; each stands for the "
                "same text in both: give the same ones in the same order"
            )
        texts = iter(text for _, text in self.wildcards)
        return Path("".join(next(texts) if piece.wild else piece.text for piece in pieces))


def matches(pattern: str) -> list[Match]:
    """The files and folders that a pattern finds, by path.

    The part of the pattern that is there as it stands is a name, also with brackets: ``scans [v2]/*.nii.gz``. Brackets
    of other parts are wildcards where that finds something, else they belong to names too.

    Args:
        pattern: with ``*`` and ``?`` within names, ``[...]`` for one of several characters, and ``**`` for any number
            of folders. A part behind a ``#`` or ``::`` (``data/*#LGE``, see :func:`semsynth.files.split_part`) is put
            behind each path found.
    """
    pattern = pattern.rstrip("/") or pattern
    for text in dict.fromkeys((pattern, pattern.replace("::", "#"))):
        for cut in [len(text), *reversed([match.start() for match in re.finditer("#", text)])]:
            found = _matches(text[:cut]) if cut else []
            if found:
                return [Match(Path(f"{match.path}{text[cut:]}"), match.wildcards) for match in found]
    return []


def _matches(pattern: str) -> list[Match]:
    for brackets in (True, False):
        pieces = _pieces(pattern, brackets=brackets)
        asked = _DOUBLED.sub("**/", "".join(piece.glob() for piece in pieces))  # each would double what is found
        found = sorted(set(glob.glob(asked, recursive=True)))
        if found:
            return [Match(Path(path), _stands_for(pieces, path)) for path in found]
    return []


def matches_path(pattern: str, path: str | Path) -> bool:
    """Whether a pattern would find a file or folder of this path, were it there; links are followed."""
    parts = [match.start() for match in re.finditer("#|::", pattern)]
    place = os.path.realpath(path).replace(os.sep, "/")
    for cut in (len(pattern), *parts):
        head, rest = _split(expanded(pattern[:cut].rstrip("/")))
        if not rest:
            continue
        start = os.path.realpath(head or ".").replace(os.sep, "/").rstrip("/")
        pieces = [_Piece(f"{start}/", wild=False), *_pieces(rest)]
        if _fitting(pieces, place)[-1][0]:
            return True
    return False


def names_of(found: Sequence[Match], pattern: str) -> list[str]:
    """The names of the cases that a pattern found: by :func:`semsynth.data.naming.case_name`.

    Where that gives one name twice, all are called by what the wildcards stand for.

    Raises:
        InputError: for names that still stand twice, or cannot be those of files.
    """
    names = distinct_names([case_name(f.path) for f in found], [[text for _, text in f.wildcards] for f in found])
    check_names(names, pattern, fix="give a pattern with stars where the paths differ, or a datalist with 'case'")
    return names


def _pieces(pattern: str, *, brackets: bool = True) -> list[_Piece]:
    head, rest = _split(expanded(pattern))
    pieces, end = [_Piece(head, wild=False)], 0
    for match in _WILDCARD.finditer(rest):
        if match[0][0] == "[" and not brackets:
            continue
        pieces += [_Piece(rest[end : match.start()], wild=False), _Piece(match[0], wild=True)]
        end = match.end()
    return [piece for piece in (*pieces, _Piece(rest[end:], wild=False)) if piece.text]


def _split(pattern: str) -> tuple[str, str]:
    """The folders that are there as the pattern spells them, and the rest."""
    parts = re.split(r"(?<=/)", pattern)
    head = ""
    for part in parts:
        if glob.has_magic(part) and not os.path.lexists(head + part.rstrip("/")):
            break
        head += part
    return head, pattern[len(head) :]


def _stands_for(pieces: Sequence[_Piece], path: str) -> tuple[tuple[str, str], ...]:
    """What each wildcard stands for, the first ones for as much as they can; nothing where the path does not fit."""
    text = path.replace(os.sep, "/")
    table = _fitting(pieces, text)
    if not table[-1][0]:
        return ()
    found, at = list[tuple[str, str]](), 0
    for piece, rest in zip(pieces, table[-2::-1], strict=True):
        end = max(end for end in piece.ends(text, at) if rest[end])
        found += [(piece.kind, text[at:end])] if piece.wild else []
        at = end
    return tuple(found)


def _fitting(pieces: Sequence[_Piece], text: str) -> list[list[bool]]:
    """Whether the last 0, 1, 2 … pieces fit the text from each of its places on.

    In time of text × pattern: a regular expression tries all ways to share a name among many stars.
    """
    table = [fits := [False] * len(text) + [True]]
    for piece in reversed(pieces):
        own = [False] * (len(text) + 1)
        for at in reversed(range(len(text) + 1)):
            first = next(ends := piece.ends(text, at), None)
            further = next(ends, None)  # what fits further on is known already
            own[at] = (first is not None and fits[first]) or (further is not None and own[further])
        table.append(fits := own)
    return table
