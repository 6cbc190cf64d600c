"""What a preparation writes beside its cases' folders, and what it may not replace there."""

from __future__ import annotations

from pathlib import Path

from ..data.label_files import table_files
from ..ownership import Outputs, object_with
from .patients.groups import patient_files

DATALIST = "datalist.json"
NAME = "prepared by semsynth"


def listing(output: str | Path) -> Outputs:
    """The datalist of prepared cases; one of raw cases, or that somebody has changed, is not replaced."""
    return Outputs(output, "semsynth's preparation", {DATALIST: object_with("settings", name=NAME)})


def check_files(output: str | Path, *, patients: bool = False) -> None:
    """Raise, before any work, for files that a preparation would replace and that are not its own.

    Args:
        output: its folder.
        patients: whether the files of a search for scans of one patient go there as well.

    Raises:
        InputError: naming them.
    """
    listing(output).check()
    table_files(output).check()
    if patients:
        patient_files(output).check()
