"""What a preparation writes beside its cases' folders, and what it may not replace there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.check import Checkable
from ..data.label_files import table_files
from ..data.nesting import refuse_among, refuse_found
from ..ownership import Outputs, object_with
from .patients.groups import patient_files

DATALIST = "datalist.json"
NAME = "prepared by semsynth"


def listing(output: str | Path) -> Outputs:
    """The datalist of prepared cases; one of raw cases, or that somebody has changed, is not replaced."""
    return Outputs(output, "semsynth's preparation", {DATALIST: object_with("settings", name=NAME)})


def check_files(
    output: str | Path,
    cases: Sequence[Checkable],
    sources: Iterable[str | Path | None],
    *,
    patients: bool = False,
) -> None:
    """Raise, before any work, where a preparation would replace files of others, or stand among its inputs.

    Args:
        output: its folder.
        cases: cases that are to be prepared.
        sources: the input, and the patterns of its masks and label maps.
        patients: True where the files of a search for scans of one patient go there as well.

    Raises:
        InputError: naming them.
    """
    given = list(sources)
    made = [f"{case.name}{file}" for case in cases for file in ("", "/image.nii.gz", "/label.nii.gz")]
    refuse_found(output, given, made)
    refuse_among(output, [path for case in cases for path in case.files.values()], given[0])
    listing(output).check()
    table_files(output).check()
    if patients:
        patient_files(output).check()
