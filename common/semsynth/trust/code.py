"""Python in a bundle: it runs when the bundle does, so it has to be that of the package which is installed here."""

from __future__ import annotations

from pathlib import Path

from ..files import sha256
from .contents import Contents
from .findings import Checked, Finding
from .names import CODE

INSTALLED = Path(__file__).resolve().parents[1]
PACKED = f"{CODE}semsynth/"
"""Where a packed bundle has the package."""
SHOWN = 10


def check_code(contents: Contents, *, signed: bool) -> Checked:
    """Every file of Python, and all that stands in ``scripts``, against the package that is installed here.

    Args:
        contents: contents of the bundle.
        signed: True where the holder of a trusted key has signed all files, and with them code that is not known here.
    """
    files = {name: path for name, path in contents.files.items()
             if name.lower().endswith(".py") or name.lower().startswith(CODE)}  # fmt: skip
    unknown = [name for name, path in files.items() if not is_known(name, path)]
    if not files:
        return Checked("code", "no Python")
    known = f"{len(files) - len(unknown)} of {len(files)} files are those of the semsynth that is installed here"
    if signed:
        return Checked("code", known + (", the others are signed" if unknown else ""))
    findings = [
        Finding(name, "unknown Python, which runs with the bundle: install the version of semsynth "
                "that it was packed with and verify again, read it, or have it signed")
        for name in unknown[:SHOWN]
    ]  # fmt: skip
    if len(unknown) > SHOWN:
        findings.append(Finding("", f"… and {len(unknown) - SHOWN} more files of unknown Python"))
    return Checked("code", known, findings)


def is_known(name: str, path: Path) -> bool:
    """Whether a file below ``scripts`` is, byte by byte, one of the package that is installed here."""
    if name.startswith(PACKED):
        own = INSTALLED / name.removeprefix(PACKED)
        return own.is_file() and sha256(own) == sha256(path)
    return name == "scripts/__init__.py" and not path.stat().st_size
