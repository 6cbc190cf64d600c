"""What a case is called: one name from one file, the same in every command, whatever else was found beside it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import split_part, walk
from ..texts import shown
from .headers import SUFFIXES
from .volumes import stem

ROLES = frozenset({
    "image", "images", "img", "imgs", "scan", "scans", "volume", "volumes", "vol", "mri", "mr", "ct", "cbct",
    "pet", "suv", "lge", "lgemri", "de", "cine", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "pd",
    "dwi", "adc", "swi", "2d", "3d", "raw", "orig", "original", "label", "labels", "labelmap", "map", "maps",
    "seg", "segs", "segmentation", "segmentations", "dseg", "mask", "masks", "gt", "groundtruth", "annotation",
    "annotations", "roi", "endo", "wall", "scar", "cavity", "laendo", "lawall", "lascar", "organs", "composite",
    "synthetic",
})  # fmt: skip
"""Words of file names that say what a file holds, not whose it is."""
STRUCTURES = frozenset({
    "heart", "atrium", "ventricle", "myocardium", "brain", "liver", "lung", "lungs", "tumor", "tumour", "lesion",
    "organ",
})  # fmt: skip
"""The same at the end of a name alone: at its beginning they may be a data set's (``liver_12``)."""
PLAIN_FOLDERS = ROLES | {
    "imagestr", "imagests", "imagesval", "imagestrain", "imagestest", "labelstr", "labelsts", "labelsval",
    "labelstrain", "labelstest", "anat", "func", "data", "dataset", "datasets", "nifti", "nii", "nrrd", "train",
    "training", "val", "valid", "validation", "test", "testing", "unlabelled", "derivatives", "all", "cases",
    "out", "output", "files", "renamed", "prepared",
}  # fmt: skip
"""Folders that hold many cases, or one case's files of one kind."""
LONGEST_NAME = 180
_VISIT = re.compile(
    r"(ses|session|visit|tp|timepoint|day|week|month|year|exam|study|series|run)[-_ ]?\w*|baseline|follow[-_ ]?up\d*"
    r"|(pre|post)([-_ ]?op)?",
    re.IGNORECASE,
)
_BIDS = re.compile(r"sub-[a-zA-Z0-9]+(_[a-zA-Z]+-[a-zA-Z0-9+]+)*(_[a-zA-Z0-9]+)?")
BIDS_PATIENT = "^sub-[a-zA-Z0-9]+"
"""What is a patient in a name as BIDS gives it."""
_OF_THE_FILE = ("desc", "label", "space", "res", "den")  # BIDS entities of a derived file, not of the scan
_FILES = ("image", "label", "endo")  # of an entry, in the order in which they name its case


def patients_of_bids(names: Iterable[str]) -> str | None:
    """The pattern that finds the patients in names that are all as BIDS gives them (``sub-01_ses-2``); else None."""
    pattern = None
    for name in names:
        if not _BIDS.fullmatch(name):
            return None
        pattern = BIDS_PATIENT
    return pattern


def entry_name(entry: Mapping[str, Any], root: Path) -> str:
    """The name of a datalist's entry: its ``case``, else :func:`case_name` of its image, its label map or its mask."""
    stated = entry.get("case")
    files = [entry[key] for key in _FILES if isinstance(entry.get(key), str)]
    return str(stated) if stated is not None else case_name(root / files[0]) if files else ""


def case_name(path: str | Path) -> str:
    """The name of the case that a file belongs to. It follows from the path alone; links keep their own names.

    - The file's name without the words that say what it holds: ``la_000_0000`` (nnU-Net's channel 0) and ``la_000``
      give ``la_000``, ``P1_lge`` and ``P1_endo`` give ``P1``. Further channels keep their numbers: they are other
      images.
    - BIDS: ``sub-01_ses-2_LGE`` and ``sub-01_ses-2_desc-endo_mask`` give ``sub-01_ses-2``.
    - A name of nothing but such words (``lge``, ``label``): the first folder above that does not only say what kind of
      files it holds; a visit's folder (``ses-2``, ``post``) together with the one above.
    - A folder of DICOM files: by its own name, as a file; of a series' or a visit's (``LGE_series``, ``series_3``)
      together with the one above.
    - A mere number (LiTS: ``volume-7``, ``segmentation-7``) or a name without one (``anna``): with the folder in front,
      ``batch1_7``, ``clinic_anna``, unless that is a folder such as ``imagesTr`` or ``maps``.
    """
    path = Path(os.path.abspath(split_part(path)[0]))  # noqa: PTH100 - without "..", but a link by its own name
    name, folder = stem(path), path.parent
    if _BIDS.fullmatch(name):
        return _bids(name)
    bare = _without_roles(_without_channel(name, folder))
    if path.is_dir() and _VISIT.fullmatch(bare):  # a series or a visit: whose it is says the folder above
        return f"{_folder_name(folder)}_{bare}".lstrip("_")
    if not bare:
        return _folder_name(folder) or name
    tells = any(letter.isdigit() for letter in bare) and not bare.isdigit()
    if tells or folder.name.lower() in PLAIN_FOLDERS or not folder.name:
        return bare
    return f"{_folder_name(folder) or folder.name}_{bare}"


def _bids(name: str) -> str:
    parts = [part for part in name.split("_") if "-" in part and part.split("-")[0] not in _OF_THE_FILE]
    return "_".join(parts)


def _without_channel(name: str, folder: Path) -> str:
    bare = name.removesuffix("_0000")
    numbered = any(letter.isdigit() for letter in bare)  # else 0000 is the case's own number
    return bare if bare and (numbered or folder.name.lower().startswith("images")) else name


def _without_roles(name: str) -> str:
    """The name without words of :data:`ROLES` at its ends, also where a number follows at once (``img07``).

    And without those of :data:`STRUCTURES` at its end.
    """
    words = re.split(r"([_\-. ]+)", name)
    while words and _says_nothing(words[0]):
        words.pop(0)
    while words and (_says_nothing(words[-1]) or words[-1].lower() in STRUCTURES):
        words.pop()
    rest = "".join(words)
    number = re.fullmatch(r"([a-zA-Z]+)(\d+)", rest)
    return number[2] if number and number[1].lower() in ROLES else rest


def _says_nothing(word: str) -> bool:
    return word.lower() in ROLES or not re.search(r"[^\W_]", word)


def _folder_name(folder: Path) -> str:
    while folder.name and folder.name.lower() in PLAIN_FOLDERS:
        folder = folder.parent
    above = folder.parent
    if folder.name and _VISIT.fullmatch(folder.name) and _folder_name(above):
        return f"{_folder_name(above)}_{folder.name}"
    return folder.name


def distinct_names(names: Sequence[str], places: Sequence[Sequence[str]]) -> list[str]:
    """The names, or, where one stands twice, names for all by where the files were found.

    Args:
        names: names of the cases, by :func:`case_name`.
        places: parts of each case's path that were not given beforehand: what the wildcards of a pattern stand
            for, or the folders below the one that was searched. Those that are the same for all cases say nothing.
    """
    if len(set(names)) == len(names):
        return list(names)
    length = max(map(len, places))
    padded = [[*place, *[""] * (length - len(place))] for place in places]
    columns = [column for column in zip(*padded, strict=True) if len(set(column)) > 1]
    told = list(dict.fromkeys(columns))  # sub-*/anat/sub-*_LGE says who it is twice
    return ["_".join(part.strip("/").replace("/", "_") for part in parts if part.strip("/"))
            for parts in zip(*told, strict=True)] or list(names)  # fmt: skip


def check_names(names: Sequence[str], source: str | Path, *, fix: str = "set 'case'") -> None:
    """Raise if two cases share a name (one would overwrite the other) or a name is no plain file name.

    Args:
        names: names of all cases.
        source: source of the names, for the message.
        fix: remedy, for the message.

    Raises:
        InputError: listing the names.
    """
    unsafe = [f"{shown(repr(name))}: {why}" for name in sorted(set(names)) if (why := unusable_name(name)) is not None]
    if unsafe:
        raise InputError(f"{source}: case names become folder and file names, cannot use these; {fix}", unsafe)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"{source}: case names must differ, found more than once: {', '.join(twice)}; {fix}")


def unusable_name(name: str) -> str | None:
    """Why a case's name cannot be that of its folder and files, or None where it can."""
    if not name:
        return "it is empty"
    if name.startswith("."):
        return "files whose names begin with a dot are hidden"
    if set(name) & set("/\\"):
        return "it leads to another folder"
    if shown(name) != name:
        return "it holds characters that are not seen, such as a line break"
    if len(name.encode()) > LONGEST_NAME:
        return f"it has {len(name.encode())} bytes, of which file systems take {LONGEST_NAME} beside what is put behind"
    return None


def volumes_below(folder: str | Path) -> list[Path]:
    """The volumes below a folder, hidden files left out, as absolute paths (see :func:`walk`)."""
    found = [path.absolute() for path in walk(folder) if path.name.lower().endswith(SUFFIXES)]
    return sorted(path for path in found if not path.name.startswith("."))
