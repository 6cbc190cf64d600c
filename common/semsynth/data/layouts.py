"""Data sets of known layouts that are given as a folder: which patterns find their cases."""

from __future__ import annotations

from pathlib import Path

from ..json_files import read_object_or_none

BIDS, NNUNET = "dataset_description.json", "dataset.json"


def hint(source: str | Path) -> str | None:
    """What to give in place of the folder of a data set in BIDS or of nnU-Net, or of its JSON file.

    Returns:
        None for anything else.
    """
    path = Path(source)
    folder = path.parent if path.name in (BIDS, NNUNET) else path
    if (folder / BIDS).is_file():
        return (
            f"it is a data set in BIDS: give quoted patterns such as --input '{folder}/sub-*/ses-*/anat/*_T1w.nii.gz' "
            f"and --endo '{folder}/derivatives/NAME/sub-*/ses-*/anat/*_label-NAME_mask.nii.gz' with the endings of "
            "your files (without ses-*/ where there are no sessions); each star stands for the same text in both"
        )
    if not (folder / "imagesTr").is_dir():
        return None
    about = read_object_or_none(folder / NNUNET) or {}
    ending, labels = about.get("file_ending", ".nii.gz"), about.get("labels")
    named = labels if isinstance(labels, dict) else {}
    plain = all(isinstance(value, int) for value in named.values())  # no regions of several labels
    classes = ",".join(str(name) for name in named if name != "background") if named and plain else "NAMES"
    pair = f"--input '{folder}/imagesTr/*_0000{ending}' --{{}} '{folder}/labelsTr/*{ending}{{}}'"
    return (
        f"it is a data set of nnU-Net: give quoted patterns, for 'prepare' {pair.format('endo', '#1')} with the value "
        f"of the cavity behind the #; for 'prepare-maps' {pair.format('label', '')} --classes {classes}"
    )
