"""The real side of an evaluation: images and label maps by case."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.classes import class_table
from ..data.datalists import absolute, datalist_path, read_datalist, root_of, stated_classes, stated_patient
from ..data.entry_cases import check_volumes, source_of
from ..data.grids import place
from ..data.headers import named_segments, read_header
from ..data.hidden import Hidden, Names, Person, voxels_of
from ..data.identity import SOURCE
from ..data.intensity import (
    MIN_MAX,
    Intensity,
    Scaling,
    entry_intensity,
    intensity_beside,
    no_air,
    stated_intensity,
)
from ..data.naming import case_name, check_names, distinct_names, volumes_below
from ..data.patterns import matches
from ..data.segments import same_segments
from ..data.volumes import Volume, read_label, read_volume, stem
from ..data.voxels import hash_file
from ..errors import InputError
from ..paths import as_path
from ..vocabulary import SPLITS

logger = logging.getLogger(__name__)
RANGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RealCase:
    """A real image and its label map.

    Attributes:
        case: its name.
        image: the file.
        label: the label map's file, or None.
        training: True for a case that generators were trained on; None where that is unknown.
        content: place of the case in a padded file, ``{"start", "shape"}`` in voxels.
        patient: patient whose scan it is, as the datalist says; None if it does not: then the case is a patient of its
            own.
        split: split of the datalist, or None.
        source: ``source_<role>`` → hash of the voxels of the raw file that the prepared one was made from.
        intensity: intensities of the image's file; None where they are not stated.
        scaling: the rule for an image for which none is stated.
        assumed: True where they are not stated, and ``intensity`` is that of the volumes that it is compared with.
        known_as: its name where ``case`` is a pseudonym, by which cards may know it; nothing that is written holds it.
    """

    case: str
    image: Path
    label: Path | None = None
    training: bool | None = None
    content: Mapping[str, Sequence[int]] | None = None
    patient: str | None = None
    split: str | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    intensity: Intensity | None = None
    scaling: Scaling = MIN_MAX
    assumed: bool = False
    known_as: str | None = None

    @property
    def person(self) -> str:
        """The patient, or the case's name where no patient is stated."""
        return self.case if self.patient is None else self.patient

    def read(self) -> tuple[Volume, NDArray[np.int64] | None]:
        """Image in [0, 1] and class indices, without padding, in RAS order.

        The image is scaled by what is stated of its file, and by ``scaling`` where nothing is.

        Raises:
            InputError: for a file that cannot be used, or a label map on another grid.
        """
        whole = read_volume(self.image)
        image = whole.part(self.content).canonical()
        held = self.intensity or Intensity(None)
        if self.assumed and no_air(image.data):
            raise InputError(
                f"{self.case}: {self.image}: the synthetic volumes are in Hounsfield units, and this image has no air "
                f"about -1000: found {image.data.min():g} to {image.data.max():g}; state in a datalist which of its "
                'values are 0 and 1, such as "intensity": {"window": [24, 2024], "unit": "HU", "unit_range": [-1000, '
                "1000]} for HU + 1024, or prepare it with 'semsynth prepare-maps'"
            )
        image = Volume(held.read(image.data, self.scaling), image.affine)
        if self.label is None:
            return image, None
        label = on_grid(self.case, self.image, whole, self.label, read_label(self.label))
        return image, label.part(self.content).canonical().data.astype(np.int64)

    def read_synthetic(self, path: Path, real: Volume, held: Intensity | None = None) -> Volume:
        """A synthetic volume of this case on the real one's grid, ``(H, W, D)`` in [0, 1].

        Args:
            path: its file.
            real: the real image.
            held: intensities of the file; None where they are not stated: [0, 1], or the unit of the real image.

        Raises:
            InputError: for another grid, other intensities than [0, 1], or voxels that are no numbers.
        """
        volume = read_volume(path).oriented_as(read_header(self.image).affine)
        whole = self.content is not None and list(volume.data.shape) != list(self.content["shape"])
        volume = on_grid(self.case, self.image, real, path, volume.part(self.content) if whole else volume)
        data = volume.data.astype(np.float32)
        if not np.isfinite(data).all():
            raise InputError(f"{self.case}: {path} has NaN or infinite voxels; synthesise this case again")
        low, high = float(data.min()), float(data.max())
        inside = low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE
        if held is None and not inside and self.unit_range is not None:
            held = Intensity(self.unit_range)  # made by other tools, in the unit of the data set
        if held is not None and self.intensity is not None:
            held = held.in_range(self.intensity.unit, self.unit_range)
        if held is None and not inside:
            raise InputError(
                f"{self.case}: {path} has intensities from {low:.4g} to {high:.4g}; synthetic volumes need [0, 1], or "
                'a datalist beside them that states what their values are, such as "intensity": {"window": [-1000, '
                '1000], "unit": "HU"}: scale them in the way that the system was trained with'
            )
        return Volume(data.clip(0, 1) if held is None else held.read(data), volume.affine)

    @property
    def unit_range(self) -> tuple[float, float] | None:
        """What 0 and 1 are in the unit of the data set; None where it has none."""
        return None if self.intensity is None else self.intensity.unit_range


def on_grid(case: str, first: Path, a: Volume, second: Path, b: Volume) -> Volume:
    """The second volume of a case in the voxel order of the first one, and with its affine.

    Raises:
        InputError: naming both files and what differs, where they do not share one grid.
    """
    placed = place(b.affine, b.data.shape, a.affine, a.data.shape)
    if placed.one_grid:
        return Volume(placed.apply(b.data), a.affine)
    if placed.shape != a.data.shape:
        found = f"{a.data.shape} and {placed.shape} voxels"
    else:
        found = f"affines that differ by up to {placed.mm:.3g} mm at a corner"
    raise InputError(
        f"{case}: {first} and {second} must share one grid, found {found}; evaluate on the images that the label maps "
        "were prepared with (semsynth prepare writes both on one grid)"
    )


def load_names(source: str | Path) -> dict[int, str]:
    """Names of the classes that a datalist, or the one in a folder, states; {} for other sources."""
    path = datalist_path(source)
    if path is None or not path.is_file():
        return {}
    return stated_classes(path, read_datalist(path))


def load_real(source: str | Path, *, train: str | Path | None = None, labels: str | None = None) -> dict[str, RealCase]:
    """Real cases by name.

    Args:
        source: a datalist (or its folder) with ``image`` and, where there is one, ``label``; a folder or a quoted
            pattern of image files.
        train: the cases that generators were trained on, in the same forms (of a datalist with several splits its
            training split); without it the training split of ``source``, where that has several.
        labels: a folder or a quoted pattern of label maps by the same names, instead of those that ``source`` names.

    Raises:
        InputError: nothing found, files that cannot be used (see :func:`semsynth.data.check.check_cases`; an image that
            is there twice is one), synthetic volumes, or two cases of one name.
    """
    cases = _read_cases(source, None)
    if train is not None:
        seen = _read_cases(train, "training")
        _check_same(cases, seen, source, train)
        scans = {value for case in seen.values() for value in scans_of(case)}
        cases = {name: replace(case, training=True) for name, case in seen.items()} | {
            name: replace(case, training=bool(case.training) or name in seen or bool(scans & scans_of(case)),
                          patient=seen[name].patient if case.patient is None and name in seen else case.patient)
            for name, case in cases.items()
        }  # fmt: skip
    if labels is not None:
        cases = _with_labels(cases, labels)
    files = [
        {"case": case.case, "image": str(case.image)} | ({} if case.label is None else {"label": str(case.label)})
        for case in cases.values()
    ]
    check_volumes(files)
    return cases


def under_pseudonyms(cases: Mapping[str, RealCase], hidden: Hidden) -> tuple[dict[str, RealCase], Names]:
    """The cases called by pseudonyms and in their order, their patients too, and the names that they had as those.

    Raises:
        InputError: as :meth:`semsynth.data.hidden.Hidden.names`.
    """
    by_voxels = hidden.file is None
    people = [Person(name, case.patient, _told_by(case) if by_voxels else None) for name, case in cases.items()]
    names = hidden.names(people)
    renamed = {
        names.case(name): replace(case, case=names.case(name), known_as=name,
                                  patient=None if case.patient is None else names.patient(case.patient))
        for name, case in cases.items()
    }  # fmt: skip
    return dict(sorted(renamed.items())), names


def _told_by(case: RealCase) -> str | None:
    return voxels_of({}, lambda role: hash_file(case.label) if role == "label" and case.label is not None else
                     hash_file(case.image) if role == "image" else None)  # fmt: skip


def _with_labels(cases: Mapping[str, RealCase], labels: str) -> dict[str, RealCase]:
    found = dict(named_volumes(labels, "label maps", cases))
    missing = [name for name in cases if name not in found]
    if len(missing) == len(cases):
        raise InputError(
            f"{labels}: no label map has the name of a case; they are called {', '.join(list(found)[:3])}…, the cases "
            f"{', '.join(missing[:3])}…"
        )
    if missing:
        logger.warning("%s: has no label map of %d of %d cases: %s", labels, len(missing), len(cases), _few(missing))
    return {name: replace(case, label=found.get(name)) for name, case in cases.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ("…" if len(names) > 5 else "")


def _check_same(
    cases: Mapping[str, RealCase], seen: Mapping[str, RealCase], source: str | Path, train: str | Path
) -> None:
    other = [
        f"{name}: {cases[name].image} and {case.image}"
        for name, case in seen.items()
        if name in cases and hash_file(cases[name].image) != hash_file(case.image)
    ]
    if other:
        raise InputError(f"{source} and {train} have different images under one name; rename the cases", other)


def scans_of(case: RealCase) -> set[str]:
    """Hashes of the voxels of a case's image, and of the scan that it was prepared from."""
    known = (hash_file(case.image), case.source.get(f"{SOURCE}image"))
    return {value for value in known if value is not None}


def _read_cases(source: str | Path, wanted: str | None) -> dict[str, RealCase]:
    path = as_path(source)
    listed = path / "datalist.json" if path.is_dir() else path
    if listed.suffix != ".json" or (path.is_dir() and not listed.is_file()):
        return {
            name: RealCase(name, file, intensity=intensity_beside(file))
            for name, file in named_volumes(str(source), "images")
        }
    content = read_datalist(listed)
    present = [split for split in SPLITS if content.get(split)]
    splits = [wanted] if wanted in present and len(present) > 1 else present
    known = len(present) > 1
    root = root_of(listed)
    stated = stated_intensity(content, listed)
    cases = []
    for split in splits:
        problems = [
            f"{split}[{i}]" for i, entry in enumerate(content[split]) if not isinstance(entry.get("image"), str)
        ]
        if problems:
            raise InputError(f"{listed}: entries need 'image'", problems)
        made = [str(entry.get("case", i)) for i, entry in enumerate(content[split]) if entry.get("synthetic")]
        if made:
            raise InputError(f"{listed}: lists synthetic volumes as real ones: {_few(made)}; give the real images")
        for item in (absolute(entry, root) for entry in content[split]):
            label = Path(item["label"]) if isinstance(item.get("label"), str) else None
            cases.append(RealCase(
                item["case"], Path(item["image"]), label, (split == "training") if known else None,
                item.get("content"), stated_patient(item, content.get("patient_regex")), split,
                {f"{SOURCE}{role}": value for role, value in source_of(item).items()},
                entry_intensity(item, stated, listed),
            ))  # fmt: skip
    check_names([case.case for case in cases], listed)
    names = list(class_table(content.get("classes"), listed).values())[1:]
    differ = same_segments(named_segments({case.case: case.label for case in cases if case.label}), names)
    if differ:
        raise InputError(f"{listed}: label maps whose segments are not its classes", [str(found) for found in differ])
    return {case.case: case for case in cases}


def named_volumes(source: str, what: str, known: Collection[str] = ()) -> list[tuple[str, Path]]:
    """Case names and files of a folder or a pattern.

    A file that is called as a known case is that one's; all others are named by
    :func:`semsynth.data.naming.case_name`.

    Args:
        source: the folder or the pattern.
        what: name of the files in question, for the message.
        known: names of cases; ``<case>_synthetic`` is the case's as well.

    Raises:
        InputError: nothing found, or two cases of one name.
    """
    folder = as_path(source)
    places: list[tuple[str, ...]]
    if folder.is_dir():
        paths = volumes_below(folder)
        places = [()] * len(paths)
    else:
        found = [match for match in matches(source) if not match.path.name.startswith(".")]
        paths = [match.path.absolute() for match in found]
        places = [tuple(text for _, text in match.wildcards) for match in found]
    if not paths:
        raise InputError(f"{source}: no {what} found; check the folder, and quote a pattern")
    stems = [stem(path).removesuffix("_synthetic") for path in paths]
    names = [name if name in known else case_name(path) for name, path in zip(stems, paths, strict=True)]
    names = names if known else distinct_names(names, places)
    check_names(names, source, fix="give a pattern with stars where the paths differ, or a datalist with 'case'")
    return list(zip(names, paths, strict=True))
