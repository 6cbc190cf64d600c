"""What MkDocs is told while it builds the site: no file from the internet, and names in docstrings as plain code."""

from __future__ import annotations

import re
from typing import Any

_SHIM = re.compile(r'<script src="https://[^"]*iframe-worker[^"]*"></script>')
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):\s*<code>~?(?:[\w.]*\.)?(\w+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Sphinx's roles, which the docstrings have, as the last part of the name.

    Args:
        html: content of a page.
    """
    return _ROLE.sub(r"<code>\1</code>", html)


def on_post_page(output: str, **_: Any) -> str:
    """Without the script that Material takes from another server, for the search in pages opened as files.

    Args:
        output: a whole page.
    """
    return _SHIM.sub("", output)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that are made of no Markdown, such as that of an address that is not there.

    Args:
        output_content: a whole page.
    """
    return _SHIM.sub("", output_content)
