"""Training sets of real and synthetic volumes: a datalist, and the folders of nnU-Net and of the decathlon."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...data.classes import plain_name
from ...data.datalists import LISTS, relocated, root_of
from ...data.intensity import INTENSITY, Intensity, entry_intensity, stated_intensity
from ...data.volumes import copy_clean, read_label, read_volume, write_image, write_label
from ...errors import InputError
from ...files import TEMPORARY, relative_to
from ...ownership import Outputs, object_with
from .maps import DATALIST, Maps
from .plan import TRAINING, Draw, Prepared
from .rounds import Made

MAKER = "semsynth augment"
NAME = "training set of semsynth augment"
FOLDS = 5
"""nnU-Net's number."""
NNUNET = Path("nnunet") / "Dataset501_semsynth"
"""nnU-Net's data sets have a number; those of users are from 501 on by its documentation's advice."""
DECATHLON = Path("decathlon")
SUFFIXES = {NNUNET: "_0000", DECATHLON: ""}
"""Behind the name of an image's file."""


@dataclass(frozen=True)
class Item:
    """A volume of the training set.

    Attributes:
        case: its name.
        image, label: its files.
        person: person whose anatomy it is.
        synthetic: True for a synthetic one.
        held: intensities of the image's file.
    """

    case: str
    image: Path
    label: Path
    person: str
    synthetic: bool
    held: Intensity = Intensity()  # noqa: RUF009 - frozen


def items_of(prepared: Prepared, made: Sequence[Made], maps: Maps) -> list[Item]:
    """Real cases and accepted volumes."""
    stated = stated_intensity(prepared.content, prepared.path)
    real = [
        Item(case, Path(str(e["image"])), Path(str(e["label"])), prepared.people[case], False,
             entry_intensity(e, stated, prepared.path) or Intensity())
        for case, e in prepared.cases.items()
    ]  # fmt: skip
    return real + [
        Item(m.draw.name, m.image, m.label, maps.person(m.draw), True,
             Intensity.from_json(m.record().get(INTENSITY, {}), m.image))
        for m in made
        if not m.refused
    ]  # fmt: skip


def listing(output: Path) -> Outputs:
    """The datalist; another one that stands there is not replaced."""
    return Outputs(output, MAKER, {DATALIST: object_with(name=NAME)})


def write_datalist(prepared: Prepared, made: Sequence[Made], output: Path, maps: Maps) -> Path:
    """Real and synthetic training cases; the input's other lists and keys as they are.

    Raises:
        InputError: where another datalist stands there.
    """
    root = root_of(prepared.path)
    stated = stated_intensity(prepared.content, prepared.path)
    content: dict[str, Any] = {**prepared.content, "name": NAME}
    for name in LISTS:
        if name in content:
            content[name] = [_moved(entry, root, output, entry_intensity(entry, stated, prepared.path))
                             for entry in content[name]]  # fmt: skip
    content[TRAINING] += [_entry(one, maps, output) for one in made if not one.refused]
    return listing(output).write_text(DATALIST, json.dumps(content, indent=1))


def _moved(entry: Mapping[str, Any], root: Path, output: Path, held: Any) -> dict[str, Any]:
    """An entry with paths from another folder, and what its image holds."""
    return {**relocated(entry, root, output), **({} if held is None else {INTENSITY: held.to_json()})}


def _entry(made: Made, maps: Maps, output: Path) -> dict[str, Any]:
    return {
        "case": made.draw.name,
        "image": relative_to(made.image, output),
        "label": relative_to(made.label, output),
        **({} if made.draw.generated else {"source_case": made.draw.case}),
        "patient": maps.person(made.draw),
        "synthetic": True,
        INTENSITY: made.record().get(INTENSITY, {}),
        **maps.origin(made.draw),
        **maps.content(made.draw),
    }


def segmenter_labels(classes: Mapping[int, str], wanted: Sequence[str] | None) -> dict[str, int]:
    """Classes that a segmenter learns, by name, as their index in the maps.

    Args:
        classes: index → name of the maps.
        wanted: names; None: the cavity where there is one, else all classes but background.

    Raises:
        InputError: for a name that the maps do not have, or none.
    """
    index_of = {plain_name(name): index for index, name in classes.items() if index}
    names = list(index_of) if "endo" not in index_of else ["endo"]
    if wanted is not None:
        names = [plain_name(name) for name in wanted if name]
    unknown = [name for name in names if name not in index_of]
    if unknown or not names:
        lacking = f"the maps have no class {', '.join(unknown)}" if unknown else "no class is given"
        raise InputError(f"--labels: {lacking}; the maps have {', '.join(index_of)}")
    return {classes[index_of[name]]: index_of[name] for name in names}


def check_folders(prepared: Prepared, draws: Sequence[Draw], output: Path, formats: Sequence[str]) -> None:
    """Before any work: whether folders of other programs would replace files that are not ours.

    Raises:
        InputError: naming them; for nnU-Net, whose folds are by patient, with a single patient.
    """
    names = [*prepared.cases, *(draw.name for draw in draws)]
    for folder in _folders(formats):
        Outputs(output / folder, MAKER, {}).check(_names(names, folder))
    if "nnunet" in formats and len(set(prepared.people.values())) < 2:
        raise InputError(
            f"{prepared.path}: has one patient, and nnU-Net's folds need two; leave nnunet out of --format"
        )


def write_folders(items: Sequence[Item], labels: Mapping[str, int], output: Path, formats: Sequence[str],
                  seed: int) -> dict[str, Path]:  # fmt: skip
    """The folders of other programs: images as they are, maps with the segmenter's classes alone.

    nnU-Net's ``splits_final.json`` keeps volumes of one patient, real or synthetic, in one fold, and validates on real
    ones alone. Files of an earlier run that are not in the set any more are removed.

    Args:
        items: items of the training set.
        labels: class name → index in the maps; classes get 1, 2, … in this order.
        output: output folder of the augmentation.
        formats: names of the folders' forms.
        seed: seed of the folds.

    Returns:
        Format → folder.
    """
    for folder in _folders(formats):
        files = Outputs(output / folder, MAKER, {})
        _copy(items, labels, files, SUFFIXES[folder])
        if folder == NNUNET:
            files.write_text("splits_final.json", json.dumps(folds_of(items, seed), indent=1))
        about = _nnunet(items, labels) if folder == NNUNET else _decathlon(items, labels)
        files.write_text("dataset.json", json.dumps(about, indent=1))
        files.remove_others(_names([item.case for item in items], folder))
    return {("nnunet" if folder == NNUNET else "decathlon"): output / folder for folder in _folders(formats)}


def folds_of(items: Sequence[Item], seed: int) -> list[dict[str, list[str]]]:
    """Up to five folds by patient: real cases to validate on, all volumes of other patients to train on."""
    people = sorted({item.person for item in items if not item.synthetic})
    np.random.default_rng(seed).shuffle(people)
    count = min(FOLDS, len(people))
    found = []
    for fold in range(count):
        held_out = set(people[fold::count])
        found.append({
            "train": sorted(i.case for i in items if i.person not in held_out),
            "val": sorted(i.case for i in items if i.person in held_out and not i.synthetic),
        })  # fmt: skip
    return found


def _folders(formats: Sequence[str]) -> list[Path]:
    return [folder for name, folder in (("nnunet", NNUNET), ("decathlon", DECATHLON)) if name in formats]


def _names(cases: Sequence[str], folder: Path) -> list[str]:
    """The files of a folder."""
    more = ["splits_final.json"] if folder == NNUNET else []
    images = [f"imagesTr/{case}{SUFFIXES[folder]}.nii.gz" for case in cases]
    return ["dataset.json", *more, *images, *(f"labelsTr/{case}.nii.gz" for case in cases)]


def _nnunet(items: Sequence[Item], labels: Mapping[str, int]) -> dict[str, Any]:
    return {
        "channel_names": {"0": "image"},
        "labels": {"background": 0} | {name: i for i, name in enumerate(labels, 1)},
        "numTraining": len(items),
        "file_ending": ".nii.gz",
        "name": "semsynth",
        "description": "real and synthetic volumes, made by semsynth augment",
    }


def _decathlon(items: Sequence[Item], labels: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": "semsynth",
        "description": "real and synthetic volumes, made by semsynth augment",
        "tensorImageSize": "3D",
        "modality": {"0": "image"},
        "labels": {"0": "background"} | {str(i): name for i, name in enumerate(labels, 1)},
        "numTraining": len(items),
        "numTest": 0,
        TRAINING: [{"image": f"./imagesTr/{i.case}.nii.gz", "label": f"./labelsTr/{i.case}.nii.gz"} for i in items],
        "test": [],
    }


def _copy(items: Sequence[Item], labels: Mapping[str, int], files: Outputs, suffix: str) -> None:
    table = np.zeros(256, dtype=np.uint8)
    table[list(labels.values())] = np.arange(1, len(labels) + 1)
    files.folder.mkdir(parents=True, exist_ok=True)
    one_unit = len({item.held for item in items}) == 1
    with TemporaryDirectory(prefix=TEMPORARY[0], suffix=TEMPORARY[1], dir=files.folder) as name:
        folder = Path(name)
        made: dict[str, Path] = {}
        for item in items:
            image = folder / f"{item.case}{suffix}.nii.gz"
            label = folder / f"{item.case}.label.nii.gz"
            if one_unit and item.synthetic and item.image.name.endswith(".nii.gz"):
                shutil.copyfile(item.image, image)
            elif one_unit and not item.synthetic:  # what its header says of the patient stays behind
                copy_clean(item.image, image)
            else:  # such as CT in [0, 1], and volumes of it in Hounsfield units
                volume = read_volume(item.image)
                write_image(image, item.held.read(volume.data), volume.affine, "int16")
            truth = read_label(item.label)
            write_label(label, table[truth.data.astype(np.uint8)], truth.affine)
            made |= {f"imagesTr/{image.name}": image, f"labelsTr/{item.case}.nii.gz": label}
        for name in ("imagesTr", "labelsTr"):
            (files.folder / name).mkdir(parents=True, exist_ok=True)
        files.replace(made)
