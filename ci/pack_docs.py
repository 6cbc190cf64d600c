"""The pages and pictures that a bundle's own pages link to, brought into the bundle so that no link is dead there.

A page ``docs/…md`` of the project that is linked comes along as a page of the bundle's ``docs``, with what it links to
in turn, pictures too. A link to another bundle, or to a file that stays behind, becomes its text, and says where it is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from markdown_links import Link, headings, links, relink

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".jpg", ".svg")


class _Place(NamedTuple):
    """Where a page stands in the project, and where in the packed bundle; paths with ``/``."""

    project: str
    packed: str


def bring_docs(name: str, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bundle's pages with links that lead somewhere, and all that comes along; path in the bundle → content.

    Args:
        name: name of the bundle; its links are read as from ``bundles/<name>``, wherever the folder is.
        contents: contents of the bundle, path → content.

    Raises:
        ValueError: for a link to a file or heading that is not there, or two files that would have one name.
    """
    own = f"bundles/{name}/"
    waiting = [_Place(own + path, path) for path in sorted(contents) if path.endswith(".md")]
    done: dict[str, bytes] = {}
    while waiting:
        page = waiting.pop(0)
        if page.packed in done:
            continue
        source = contents[page.packed] if page.project.startswith(own) else _read(page.project)
        text = source.decode("utf-8")
        for link in links(text):
            found = _found(link, page, name)
            if found is None or found.project.startswith(own):
                continue
            if found.packed in contents:
                raise ValueError(f"{page.project}: {found.project} cannot come along, there is {own}{found.packed}")
            if found.packed.endswith(".md"):
                waiting.append(found)
            else:
                done[found.packed] = _read(found.project)
        done[page.packed] = relink(text, lambda link, page=page: _relinked(link, page, name)).encode("utf-8")
    _check(done, contents, name)
    return done


def _found(link: Link, page: _Place, name: str) -> _Place | None:
    """The file that a link points at, where it is in the packed bundle or comes along."""
    if not link.relative or not link.path:
        return None
    target = _target(link, page)
    if target.startswith(f"bundles/{name}/"):
        return _Place(target, target.removeprefix(f"bundles/{name}/"))
    if posixpath.dirname(target) == "docs" and target.endswith((".md", *PICTURES)):
        return _Place(target, target)
    return None


def _target(link: Link, page: _Place) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page.project), link.path))


def _relinked(link: Link, page: _Place, name: str) -> str | None:
    """What stands in place of a link in the packed page; None if it may stay."""
    if not link.relative or not link.path:
        return None
    found = _found(link, page, name)
    if found is None:
        return _as_text(link, page)
    path = posixpath.relpath(found.packed, posixpath.dirname(page.packed))
    anchor = f"#{link.anchor}" if link.anchor else ""
    return f"{'!' * link.picture}[{link.text}]({path}{anchor})"


def _as_text(link: Link, page: _Place) -> str:
    """A link to what stays behind, as words that say where it is."""
    target = _target(link, page)
    source = _read(target)  # a link that is dead in the project is an error here too
    if not target.startswith("bundles/"):
        place = f"`{target}` of the project"
    elif (other := target.split("/")[1]) not in link.text:
        place = f"bundle {other}"
    else:
        place = f"its {posixpath.splitext(posixpath.basename(target))[0]}" if link.anchor else ""
    section = f'section "{_heading(source.decode("utf-8"), link, page)}"' if link.anchor else ""
    where = ", ".join(part for part in (place, section) if part)
    return f"{link.text} ({where})" if where else link.text


def _heading(text: str, link: Link, page: _Place) -> str:
    known = headings(text)
    if link.anchor not in known:
        raise ValueError(f"{page.project}: the link to {link.target} leads nowhere: no such heading")
    return known[link.anchor]


def _read(path: str) -> bytes:
    """A file of the project.

    Raises:
        ValueError: if there is none, or if it is a link.
    """
    file = ROOT / path
    if path.startswith("..") or file.is_symlink() or not file.is_file():
        raise ValueError(f"{path}: is linked to, and is no file of the project")
    return file.read_bytes()


def _check(pages: Mapping[str, bytes], contents: Mapping[str, bytes], name: str) -> None:
    """Raise for links of the packed pages that lead nowhere."""
    there = {**contents, **pages}
    known = {path: headings(content.decode("utf-8")) for path, content in there.items() if path.endswith(".md")}
    for path in known:
        for link in links(there[path].decode("utf-8")):
            if not link.relative:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link.path)) if link.path else path
            if target not in there or (link.anchor and link.anchor not in known.get(target, {})):
                raise ValueError(f"{name}: {path}: the link to {link.target} leads nowhere")
