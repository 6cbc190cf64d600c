"""Unlabelled images with the labels that a segmenter gives them, as further cases of a study."""

from __future__ import annotations

import json

from ..data.datalists import read_datalist, relocated, root_of
from ..errors import InputError
from ..files import relative_to, write_text
from .plan import DATA, WITH_UNLABELLED, Plan
from .splits import cases_of, read_split


def pseudo_masks(plan: Plan, cases: str) -> None:
    """The unlabelled images with the masks that a segmenter has written, as a datalist of raw cases.

    Raises:
        InputError: for an image without its mask.
    """
    folder, rest = plan.out / "pseudo" / cases, plan.out / "split" / cases / "rest" / "datalist.json"
    entries, missing = [], []
    for entry in read_datalist(rest)["validation"]:
        mask = folder / "masks" / f"{entry['case']}_seg.nii.gz"
        if not mask.is_file():
            missing.append(str(mask))
        entries.append({"case": entry["case"], "patient": entry["patient"], "endo": relative_to(mask, folder),
                        "image": relative_to(rest.parent / entry["image"], folder)})  # fmt: skip
    if missing:
        raise InputError(f"{folder}: unlabelled images without the masks that a segmenter gives them", missing)
    content = {"name": f"pseudo-labelled images of {plan.study.name}", "training": entries}
    write_text(folder / "datalist.json", json.dumps(content, indent=1))


def pseudo_set(plan: Plan, cases: str) -> None:
    """Labelled cases and pseudo-labelled ones in one datalist, and the latter in one of their own.

    Pseudo-labels and label maps of the experts are of one form: composite maps as in ``semsynth prepare``.
    """
    made, prepared = plan.out / "pseudo" / cases / "data" / "datalist.json", plan.out / DATA
    people = read_split(plan.out)["patients"]
    own = read_datalist(plan.out / "split" / cases / "datalist.json")
    folder = plan.out / "split" / (cases + WITH_UNLABELLED)
    head = {key: value for key, value in own.items() if key != "training"}
    labelled, pseudo = cases_of(prepared), cases_of(made)
    kept = [(prepared, labelled[str(entry["case"])]) for entry in own["training"]]
    given = [(made, entry | {"case": case, "patient": people[case]}) for case, entry in pseudo.items()]
    for place, entries in ((folder / "pseudo", given), (folder, [*kept, *given])):
        moved = [relocated(entry, root_of(source), place) for source, entry in entries]
        write_text(place / "datalist.json", json.dumps({**head, "training": moved}, indent=1))
