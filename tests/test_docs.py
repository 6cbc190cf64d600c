"""The project's pages: every link leads somewhere, and the commands that they name are there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from docs_site import build, stage
from markdown_links import headings, links
from semsynth.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "bundles/*/docs/*.md") for path in ROOT.glob(pattern))
_COMMAND = re.compile(r"^\s*semsynth ([a-z-]+)", re.MULTILINE)
_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_CALL = re.compile(r"\bsemsynth (?:study (?=compare\b))?([a-z-]+)((?:(?!&&).)*)")
_OPTION = re.compile(r"(?<!\S)--([a-z0-9-]+)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_of_a_page_is_dead(page: Path) -> None:
    dead = []
    for link in links(page.read_text(encoding="utf-8")):
        if not link.relative:
            continue
        target = (page.parent / link.path).resolve() if link.path else page
        anchors = headings(target.read_text(encoding="utf-8")) if target.suffix == ".md" and target.is_file() else {}
        if not target.exists() or (link.anchor and link.anchor not in anchors):
            dead.append(link.target)
    assert dead == []


def test_every_command_has_a_row_and_no_page_names_one_that_is_not_there() -> None:
    table = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`semsynth {name}`" not in table] == []
    named = {name for page in PAGES for name in _COMMAND.findall(page.read_text(encoding="utf-8"))}
    assert named - set(COMMANDS) == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_on_a_page_have_no_option_that_is_not_there(page: Path) -> None:
    unknown = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for command, rest in _CALL.findall(re.split(r"(?:^|\s)#\s", line)[0]):
                known = inspect.signature(COMMANDS[command]).parameters
                unknown += [f"{command} --{option}" for option in _OPTION.findall(rest)
                            if option.replace("-", "_") not in known]  # fmt: skip
    assert unknown == []


def test_the_site_has_every_page_and_takes_nothing_from_another_server(tmp_path: Path) -> None:
    site = tmp_path / "site"
    stage(tmp_path / "pages")
    done = build(site, tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    for page in PAGES:
        name = page.relative_to(ROOT).with_suffix(".html")
        assert (site / name).is_file() or (site / name).with_name("index.html").is_file(), page
    loaded = re.compile(r"<(?:script|img|iframe|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(?:https?:)?//")
    written = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert not [match for text in written for match in loaded.findall(text)]
    assert "psnr" in (site / "docs" / "api" / "metrics.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("docs/stray.md", "# Stray", 'not included in the "nav"'),
        ("docs/gallery.md", "[a](absent.md)", "absent.md"),
        ("docs/gallery.md", "[a](morphing.md#absent)", "does not contain an anchor"),
    ],
)
def test_a_page_without_a_place_or_a_dead_link_ends_the_build(name: str, text: str, said: str, tmp_path: Path) -> None:
    stage(tmp_path / "pages")
    (tmp_path / "pages" / name).write_text(text)
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode != 0 and said in done.stderr + done.stdout
