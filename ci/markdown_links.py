"""Links of Markdown as GitHub, GitLab and the Hugging Face hub show it: where they are, and what they can point at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n[ \t]*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(
    r"(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\(\s*<?(?P<target>[^\s()<>]+)>?(?:\s+\"[^\"]*\")?\s*\)"
)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")


class Link(NamedTuple):
    """A link or a picture as it stands in a text."""

    picture: bool
    text: str
    target: str
    """The path or address, and what stands behind a ``#``."""

    @property
    def path(self) -> str:
        """The target without its anchor; empty for a link within the page."""
        return self.target.partition("#")[0]

    @property
    def anchor(self) -> str:
        """What stands behind the ``#``."""
        return self.target.partition("#")[2]

    @property
    def relative(self) -> bool:
        """Whether it points at a file beside the page, or at a part of the page, and not at another server."""
        return not _ELSEWHERE.match(self.target)


def links(text: str) -> list[Link]:
    """All links and pictures of a page, those that stand in code left out."""
    return [_link(text, match) for match in _matches(text)]


def relink(text: str, change: Callable[[Link], str | None]) -> str:
    """The page with links changed.

    Args:
        text: Markdown.
        change: link → the Markdown that stands in its place; None leaves it as it is.
    """
    parts, end = [], 0
    for match in _matches(text):
        start, stop = match.span()
        put = change(_link(text, match))
        parts += [text[end:start], text[start:stop] if put is None else put]
        end = stop
    return "".join([*parts, text[end:]])


def headings(text: str) -> dict[str, str]:
    """Anchor → heading of a page, by the rule that hosts of Markdown have in common."""
    found: dict[str, str] = {}
    masked = _FENCE.sub(_blank, text)
    for match in _HEADING.finditer(masked):
        title = _LINK.sub(lambda link: link["text"], match[1]).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found[name] = title.strip()
    return found


def _matches(text: str) -> Iterator[re.Match[str]]:
    yield from _LINK.finditer(_CODE.sub(_blank, _FENCE.sub(_blank, text)))


def _link(text: str, match: re.Match[str]) -> Link:
    start, end = match.span("text")
    return Link(bool(match["picture"]), text[start:end], match["target"])


def _blank(match: re.Match[str]) -> str:
    """As many characters, none of which means anything; lines stay lines."""
    return re.sub(r"[^\n]", "\0", match[0])
