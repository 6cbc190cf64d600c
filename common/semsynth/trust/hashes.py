"""SHA-256 of a bundle's files against what is stated of them: cards, the manifest, ``large_files.yml``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import sha256
from .contents import Contents
from .findings import Checked, Finding
from .kinds import MOST_TEXT
from .names import VOLUMES, WEIGHTS, bad_name
from .texts import NotPlainError, read_plain

MANIFEST = "manifest.sha256"
"""File of a packed bundle that lists all others, in the form of the program ``sha256sum``."""
LARGE_FILES = re.compile(r"large_files?\.(yml|yaml|json)")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def manifest_of(hashes: Mapping[str, str]) -> str:
    """The text of a manifest: a line per file, sorted by name, as ``sha256sum --check`` reads it."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes) if name != MANIFEST)


def check_hashes(contents: Contents) -> list[Checked]:
    """Every file against the manifest, weights against their cards, large files against their list."""
    hashes = {name: sha256(path) for name, path in contents.files.items()}
    found = [_manifest(contents, hashes), _cards(contents, hashes)]
    lists = [name for name in hashes if LARGE_FILES.fullmatch(name)]
    return found + [_large_files(contents.files[name], name, hashes) for name in lists]


def _manifest(contents: Contents, hashes: Mapping[str, str]) -> Checked:
    path = contents.files.get(MANIFEST)
    if path is None:
        missing = "no manifest.sha256: it was not packed by ci/pack_bundle.py, and files may be missing or added"
        return Checked("manifest", "none", [Finding("", missing, refused=False)] if contents.packed else [])
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size < MOST_TEXT else "?"
    except UnicodeDecodeError:
        text = "?"
    lines = [_LINE.fullmatch(line) for line in text.splitlines()]
    if not all(lines) or len({line[2] for line in lines if line}) < len(lines):
        return Checked("manifest", MANIFEST, [Finding(MANIFEST, "is no list of hashes and names; get the zip again")])
    listed = {line[2]: line[1] for line in lines if line}
    fix = "get the zip again from where it comes from"
    findings = [Finding(name, f"is in the manifest and not here; {fix}") for name in listed if name not in hashes]
    findings += [Finding(name, f"is not in the manifest: it was added later; {fix}")
                 for name in hashes if name not in listed and name != MANIFEST]  # fmt: skip
    findings += [
        Finding(name, f"is not the file that the manifest lists (SHA-256 {hashes[name][:12]}…, not {listed[name][:12]}…"
                f"); {fix}")
        for name in listed if name in hashes and hashes[name] != listed[name]
    ]  # fmt: skip
    return Checked("manifest", f"{len(listed)} files by their SHA-256 in {MANIFEST}", findings)


def _cards(contents: Contents, hashes: Mapping[str, str]) -> Checked:
    weights = [name for name in contents.files if name.lower().endswith(WEIGHTS)]
    findings = [finding for name in weights for finding in of_card(name, contents.files, hashes[name])]
    bodies = {_stem(name) for name in weights}
    cards = [name for name in contents.files if name.startswith("models/") and name.endswith(".json")]
    findings += [
        Finding(name, "is the card of weights that are not here", refused=False)
        for name in cards
        if _stem(name) not in bodies
    ]
    carded = sum(f"{_stem(name)}.json" in contents.files for name in weights)
    return Checked("cards", f"{carded} of {len(weights)} files of weights by the SHA-256 in their cards", findings)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def of_card(name: str, files: Mapping[str, Path], found: str) -> list[Finding]:
    """Whether weights are those that the card beside them describes.

    Args:
        name: name of the weights.
        files: name → file, of the card too.
        found: SHA-256 of the weights.
    """
    card = f"{_stem(name)}.json"
    if card not in files:
        return [Finding(name, "no card beside it says what it is: unknown weights", refused=False)]
    try:
        content: Any = read_plain(files[card])
    except NotPlainError as error:
        return [Finding(card, f"{error}; take the card that its training wrote")]
    if not isinstance(content, dict) or not isinstance(content.get("training_cases"), list):
        return [Finding(card, f"is no card of {PurePosixPath(name).name}; take the one that its training wrote")]
    stated = content.get("sha256")
    if stated is None:
        return [Finding(card, "does not say of which file it is (no sha256): unknown weights", refused=False)]
    if str(stated).lower() == found:
        return []
    text = (
        f"is not the file that its card {PurePosixPath(card).name} describes (SHA-256 {found[:12]}…, not "
        f"{str(stated)[:12]}…): damaged, or one of the two was exchanged; get both again from where they come from"
    )
    return [Finding(name, text)]


def _large_files(path: Path, name: str, hashes: Mapping[str, str]) -> Checked:
    try:
        content: Any = read_plain(path)
    except NotPlainError as error:
        return Checked("large files", name, [Finding(name, f"{error}; take the bundle's own")])
    entries = content.get("large_files") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return Checked("large files", name, [Finding(name, "lists no large_files; take the bundle's own")])
    findings = [Finding(name, text, refused) for entry in entries for text, refused in _large_file(entry, hashes)]
    return Checked("large files", f"{len(entries)} of {name}", findings)


def _large_file(entry: Mapping[str, Any], hashes: Mapping[str, str]) -> Iterable[tuple[str, bool]]:
    path, url = str(entry.get("path", "")), str(entry.get("url", ""))
    stated, kind = str(entry.get("hash_val") or ""), str(entry.get("hash_type") or "sha256")
    reason = bad_name(path)
    if reason is not None:
        yield f"{path[:100]!r}: {reason}; MONAI would write the download there", True
        return
    if not path.lower().endswith((*WEIGHTS, *VOLUMES)):
        yield f"{path}: is no file of weights and no volume; MONAI would write the download there", True
    if not url.lower().startswith("https://"):
        yield f"{path}: would be fetched from {url[:60]!r}, which is no https address", True
    if kind.lower() != "sha256" or not _SHA256.fullmatch(stated):
        yield f"{path}: has no SHA-256 that the download could be compared with ({kind})", True
    elif path not in hashes:
        yield f"{path}: is not here; fetch it, and verify again", False
    elif hashes[path] != stated.lower():
        yield f"{path}: is not that file (SHA-256 {hashes[path][:12]}…, not {stated[:12]}…); fetch it again", True
