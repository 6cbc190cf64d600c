"""Volumes in a bundle, such as its golden file: no more than their headers say, and no more than the memory holds."""

from __future__ import annotations

from ..data.volumes import read_volume
from ..errors import InputError
from .contents import Contents
from .findings import Checked, Finding
from .names import VOLUMES


def check_volumes(contents: Contents) -> Checked:
    """Every volume can be read within its own header's bounds."""
    files = contents.ending(*VOLUMES)
    findings = []
    for name, path in files.items():
        try:
            read_volume(path)
        except (InputError, OSError, EOFError, ValueError) as error:
            findings.append(Finding(name, str(error).replace(f"{path}: ", "").replace("\n", " ")))
    return Checked("volumes", f"{len(files)} within the bounds of their headers", findings)
