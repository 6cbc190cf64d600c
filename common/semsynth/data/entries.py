"""A data set's entries as trainings and syntheses take them: read, made absolute and checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import is_there
from ..json_files import read_object_or_none
from ..limits import check_number
from ..paths import as_path
from ..vocabulary import OWN_STYLE, PREPARED, SPLITS, UNLABELLED
from .check import Entry, Rules, check_cases
from .classes import bundle_classes, class_table
from .datalists import (
    absolute,
    expert_classes,
    named_files,
    patient_in,
    read_datalist,
    root_of,
    stated_classes,
)
from .entry_cases import (
    SOURCE_VOXELS,
    VOXELS,
    case_of,
    check_volumes,
    held_out_scans,
    leaks,
    roles_of,
    source_of,
    with_vocabulary,
)
from .findings import Report
from .geometry import TrainedGrid
from .hidden import MARK, Hidden, has_pseudonyms, under_pseudonyms, warn_of_names
from .identity import SOURCE, patient_of
from .intensity import INTENSITY, Intensity, entry_intensity, intensity_beside, stated_intensity
from .naming import check_names
from .nesting import refuse_results
from .sizes import check_resampling
from .voxels import hash_file

logger = logging.getLogger(__name__)
MOST_SAMPLES = 100_000
"""Volumes of one label map, and some times more of all maps."""
DRAWN = ("source_case", "sample")
"""Keys of an entry that is one of several volumes of a case: the case's name, and the number of the volume."""


def load_datalist(
    path: str | Path,
    key: str | Sequence[str] = "training",
    *,
    num_classes: int | None = None,
    needs: Sequence[str] = ("image", "label"),
    patch_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    also: Sequence[str] | None = None,
    metadata: str | Path | None = None,
    vocabulary: str | None = "classes",
    check: bool = True,
) -> list[dict[str, Any]]:
    """Entries of a datalist with absolute paths, as a MONAI data set takes them, after all of them were checked.

    Errors are raised together; each kind of warning is logged once.

    Args:
        path: the ``datalist.json``.
        key: the split, or several of which the first that has entries is taken.
        num_classes: number of classes that the network was built for; checked against the label maps, and against the
            datalist where that states its own.
        needs: file keys that every entry must have, and whose files are checked; other keys that name files are made
            absolute as well.
        patch_size: voxels that training crops; cases that are smaller are named.
        spacing: mm per voxel that training resamples to before it crops.
        also: further keys whose files are checked in entries that have them; None takes with an image its label map,
            or else its masks, and an empty list nothing (an inference that reads images alone).
        metadata: the bundle's ``metadata.json``: refuses classes that its weights never saw. With another
            ``num_classes`` than it states the weights are others, and it says nothing about them.
        vocabulary: key in the metadata of the classes that the weights saw; None where it says nothing of them.
        check: False only looks whether the files of ``needs`` are there.

    Raises:
        InputError: no entries, a missing key, two cases of one name, another number of classes, or cases that cannot
            be used (see :func:`semsynth.data.check.check_cases`), all listed; a patient, a scan or a label map that
            stands in two splits.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.prepare.phantom import write_phantom_cases
        >>> with TemporaryDirectory() as folder:
        ...     datalist = write_phantom_cases(folder, 3, size=(32, 32, 32), progress=False)
        ...     entries = load_datalist(datalist, num_classes=4)
        >>> [entry["case"] for entry in entries]
        ['phantom_000']
    """
    path = as_path(path, "the datalist's path")
    content = read_datalist(path)
    keys = [key] if isinstance(key, str) else list(key)
    split = next((k for k in keys if content.get(k)), None)
    if split is None:
        raise InputError(f"{path}: no cases under {' or '.join(keys)}")
    if "label" in needs:
        _check_count(path, content, num_classes)
    resolved = _absolute_entries(path, content[split], needs)
    resolved = _with_intensity(path, content, resolved)
    if not check:
        _check_present(path, resolved, needs)
        return resolved
    found = [case_of(entry, roles_of(entry, needs, also), split) for entry in resolved]
    names = tuple(class_table(content.get("classes"), path).values())[1:]
    if spacing is not None:
        check_resampling({case.name: case.files["image"] for case in found if "image" in case.files}, spacing,
                         fix="give a larger spacing")  # fmt: skip
    held = stated_intensity(content, path)
    # trainings read files as they are: segments in the order of the classes, on the image's own grid
    rules = Rules(num_classes, expert_classes(path, content), patch_size, spacing, held, names, pad=False)
    report = check_cases(found, rules)
    held_out = held_out_scans(path, content, split, report) if "image" in needs else []
    report = replace(report, findings=(*leaks(path, content), *held_out, *report.findings))
    told = None if metadata is None or vocabulary is None or "label" not in needs else (metadata, vocabulary)
    if told is not None and _speaks_of(told[0], num_classes, told[1]):
        stated = stated_classes(path, content) or report.names
        report = with_vocabulary(report, stated, told[0], path, key=told[1])
    report.raise_for_errors()
    report.log_warnings(logger)
    return _recognisable(resolved, report, content.get("patient_regex"))


def _with_intensity(
    path: Path, content: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The entries with what their image files hold under ``intensity``, as a text, where it is stated."""
    stated = stated_intensity(content, path)
    result = []
    for entry in entries:
        held = entry_intensity(entry, stated, path)
        kept = {key: value for key, value in entry.items() if key != INTENSITY}
        result.append(kept | ({} if held is None else {INTENSITY: json.dumps(held.to_json())}))
    return result


def _recognisable(entries: Sequence[Mapping[str, Any]], report: Report, pattern: str | None) -> list[dict[str, Any]]:
    """The entries with the hashes of their voxels, and the patient where one is stated."""
    result = []
    for entry in entries:
        case = Entry(entry["case"], {}, patient=patient_in(entry))
        patient = {"patient": patient_of(case, pattern)} if case.patient is not None or pattern is not None else {}
        kept = {key: value for key, value in entry.items() if key != SOURCE_VOXELS}
        result.append(kept | patient | {VOXELS: dict(report.voxels.get(entry["case"], {}))})
    return result


def load_training_images(
    path: str | Path, *, unlabelled: str = UNLABELLED, patch_size: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The images of a datalist for a training that needs no label maps: those of its training cases, and further ones.

    Args:
        path: the ``datalist.json``.
        unlabelled: key of a list of entries with ``image`` alone; a datalist may have none.
        patch_size: voxels that training crops.

    Returns:
        Entries with ``case``, ``image`` and ``voxels``, ``content`` where an image was padded, and ``intensity`` where
        it is stated.

    Raises:
        InputError: as :func:`load_datalist`; also for an unlabelled image whose patient is held out for validation or
            testing, by ``patient`` or ``patient_regex``.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.prepare.phantom import write_phantom_cases
        >>> with TemporaryDirectory() as folder:
        ...     datalist = write_phantom_cases(folder, 3, size=(32, 32, 32), progress=False)
        ...     entries = load_training_images(datalist)
        >>> [(entry["case"], "label" in entry) for entry in entries]
        [('phantom_000', False)]
    """
    path = as_path(path, "the datalist's path")
    content = read_datalist(path)
    training = _absolute_entries(path, content.get(SPLITS[0]) or [], ("image",))
    further = _absolute_entries(path, content.get(unlabelled) or [], ("image",))
    if not training and not further:
        raise InputError(f"{path}: no cases under {SPLITS[0]} or {unlabelled}")
    cases = [case_of(entry, ["image"], SPLITS[0]) for entry in (*training, *further)]
    # held-out images are looked at as well: the same scan may stand in the list under another name
    held_out = [
        Entry(
            entry["case"],
            {"image": file} if is_there(file := Path(entry["image"])) else {},
            split,
            patient=patient_in(entry),
            source=source_of(entry),
        )
        for split in SPLITS[1:]
        for entry in _absolute_entries(path, [e for e in content.get(split) or [] if "image" in e], ("image",))
    ]
    check_names([case.name for case in cases], path)
    training, further = (_with_intensity(path, content, part) for part in (training, further))
    rules = Rules(patch_size=patch_size, intensity=stated_intensity(content, path))
    report = check_cases([*cases, *held_out], rules, patient_regex=content.get("patient_regex"))
    report.raise_for_errors()
    report.log_warnings(logger)
    loaded = _recognisable([*training, *further], report, content.get("patient_regex"))
    return [{k: e[k] for k in ("case", "image", "content", VOXELS, INTENSITY) if k in e} for e in loaded]


def load_label_maps(
    dataset_dir: str | Path,
    pattern: str | None = None,
    *,
    split: str | Sequence[str] = ("testing", "validation"),
    num_classes: int | None = None,
    metadata: str | Path | None = None,
    vocabulary: str | None = "classes",
    num_samples: int = 1,
    style_from: str | Path | None = None,
    grid: TrainedGrid | None = None,
    pseudonyms: str | Path | None = None,
    anonymous_names: bool = False,
    output_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Label maps to synthesise from, as ``{"case", "image"}`` entries (a generator's input is called ``image``).

    Args:
        dataset_dir: folder with a ``datalist.json``.
        pattern: a glob of label map files to take instead.
        split: split of the datalist, or several of which the first that has entries is taken; ``"all"`` takes every
            split.
        num_classes, metadata, vocabulary: as in :func:`load_datalist`.
        num_samples: number of volumes to draw per map. From two on, each map stands in the list as often, as case
            ``<case>_s0``, ``<case>_s1`` …, with the map's name under ``source_case`` and the number under ``sample``.
        style_from: ``"own"`` adds each case's own image under ``style_from``, or the image (with its ``style_map``)
            that the datalist states there; anything else is passed over.
        grid: grid that the weights were trained on: maps of another voxel size or field of view, and a data set whose
            images were scaled by another rule, are warned of.
        pseudonyms: key file by which cases and patients get pseudonyms, see :mod:`semsynth.data.hidden`.
        anonymous_names: pseudonyms without a key file.
        output_dir: folder of the volumes, outside of which the key file must lie.

    Raises:
        InputError: no label maps, two cases of one name, or maps that cannot be used, all listed; with ``"own"``, a
            pattern or an entry without an image; as :class:`semsynth.data.hidden.Hidden`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.prepare.phantom import write_phantom_cases
        >>> with TemporaryDirectory() as folder:
        ...     _ = write_phantom_cases(folder, 3, size=(32, 32, 32), progress=False)
        ...     maps = load_label_maps(folder, num_classes=4, num_samples=2)
        >>> [entry["case"] for entry in maps], Path(maps[0]["image"]).name
        (['phantom_002_s0', 'phantom_002_s1'], 'label.nii.gz')
    """
    hidden = Hidden.of(pseudonyms, anonymous_names, output_dir)
    if num_samples < 1:
        raise InputError(f"num_samples must be 1 or more, got {num_samples}")
    check_number("num_samples", num_samples, 1, MOST_SAMPLES)
    own = style_from == OWN_STYLE
    if own and pattern is not None:
        raise InputError(
            f"style_from {OWN_STYLE} takes the image that the datalist has for each label map, and {pattern} names "
            "maps alone; leave label_maps out, or give style_from a file"
        )
    told: dict[str, Any] = {"num_classes": num_classes, "metadata": metadata, "vocabulary": vocabulary}
    if pattern is not None:
        return _compared(_called(_named_maps(pattern, **told), hidden, {}), grid, num_samples)
    path = as_path(dataset_dir, "dataset_dir") / "datalist.json"
    maps, datalist = _listed_maps(path, split, own=own, **told), read_datalist(path)
    if grid is not None:
        grid.warn_of_scaling(stated_intensity(datalist, path), path)
    return _compared(_called(maps, hidden, datalist), grid, num_samples)


def _listed_maps(
    path: Path,
    split: str | Sequence[str],
    *,
    own: bool,
    num_classes: int | None,
    metadata: str | Path | None,
    vocabulary: str | None,
) -> list[dict[str, Any]]:
    """The label maps of a datalist; with ``own`` also the images whose styles their volumes are to have."""
    wanted = [key for key in SPLITS if read_datalist(path).get(key)] if split == "all" else [split]
    entries = [
        entry
        for key in wanted
        for entry in load_datalist(
            path,
            key,
            num_classes=num_classes,
            needs=("label", "image") if own and not _have_styles(path, key) else ("label",),
            metadata=metadata,
            vocabulary=vocabulary,
        )
    ]
    check_names([entry["case"] for entry in entries], path)
    kept = ("patient", VOXELS, *(("style_map", INTENSITY) if own else ()))
    return [
        {"case": e["case"], "image": e["label"]}
        | ({"style_from": e.get("style_from", e.get("image"))} if own else {})
        | {key: e[key] for key in (*kept, *(DRAWN if _is_drawn(e) else ())) if key in e}
        for e in entries
    ]


def _named_maps(
    pattern: str, *, num_classes: int | None, metadata: str | Path | None, vocabulary: str | None
) -> list[dict[str, Any]]:
    """The label maps that a pattern finds."""
    found = named_files(pattern, "label maps")
    refuse_results(str(pattern), [path for _, path in found], "label maps")
    report = check_cases([Entry(name, {"label": path}) for name, path in found], Rules(num_classes))
    if metadata is not None and vocabulary is not None and _speaks_of(metadata, num_classes, vocabulary):
        report = with_vocabulary(report, report.names, metadata, pattern, key=vocabulary)
    report.raise_for_errors()
    report.log_warnings(logger)
    return [
        {"case": name, "image": str(path), VOXELS: _source_beside(path) | dict(report.voxels.get(name, {}))}
        for name, path in found
    ]


def _called(maps: list[dict[str, Any]], hidden: Hidden | None, datalist: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The maps under pseudonyms; without a request for them as they are, after a warning that they have names."""
    if hidden is not None:
        return under_pseudonyms(maps, hidden)
    if not has_pseudonyms(datalist):
        warn_of_names()
    return [{**entry, **MARK} for entry in maps] if datalist.get("names") == MARK["names"] else maps


def _is_drawn(entry: Mapping[str, Any]) -> bool:
    """Whether an entry says which volume of which case it is to become, as those of ``semsynth augment`` do."""
    case, number = (entry.get(key) for key in DRAWN)
    return isinstance(case, str) and isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _have_styles(path: Path, key: str | Sequence[str]) -> bool:
    """Whether each entry of a split names the image whose style its volume is to have."""
    content = read_datalist(path)
    keys = [key] if isinstance(key, str) else list(key)
    split: Sequence[Mapping[str, Any]] = next((content[k] for k in keys if content.get(k)), [])
    return all(isinstance(entry.get("style_from"), str) for entry in split)


def _source_beside(path: Path) -> dict[str, str]:
    """The hashes of the raw files that a prepared map came from, where its record still lies beside it."""
    record = read_object_or_none(path.with_name(PREPARED)) or {}
    return {f"{SOURCE}{role}": value for role, value in source_of(record).items()}


def load_images(
    dataset_dir: str | Path,
    pattern: str | None = None,
    *,
    grid: TrainedGrid | None = None,
    pseudonyms: str | Path | None = None,
    anonymous_names: bool = False,
    output_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Images to segment, as ``{"case", "image"}`` entries; no label is needed.

    Args:
        dataset_dir: folder with a ``datalist.json``, whose ``testing`` entries are taken, else ``validation``.
        pattern: a glob of image files to take instead; names as in :func:`semsynth.data.naming.case_name`.
        grid: grid that the weights were trained on: images of another field of view are warned of.
        pseudonyms, anonymous_names, output_dir: as in :func:`load_label_maps`.

    Raises:
        InputError: no images, a missing or unusable file, or two cases of one name; as in :func:`load_label_maps`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from semsynth.prepare.phantom import write_phantom_cases
        >>> with TemporaryDirectory() as folder:
        ...     _ = write_phantom_cases(folder, 3, size=(32, 32, 32), progress=False)
        ...     images = load_images(folder)
        >>> images[0]["case"], Path(images[0]["image"]).name
        ('phantom_002', 'image.nii.gz')
    """
    hidden = Hidden.of(pseudonyms, anonymous_names, output_dir)
    if pattern is None:
        entries = load_datalist(
            as_path(dataset_dir, "dataset_dir") / "datalist.json", ("testing", "validation"), needs=("image",), also=()
        )
        found = [{k: entry[k] for k in ("case", "image", INTENSITY) if k in entry} for entry in entries]
        if grid is not None:
            path = Path(dataset_dir) / "datalist.json"
            grid.warn_of_scaling(stated_intensity(read_datalist(path), path), path)
    else:
        files = named_files(pattern, "images")
        refuse_results(str(pattern), [path for _, path in files], "images")
        beside = {name: held for name, path in files if (held := intensity_beside(path)) is not None}
        found = [
            {"case": name, "image": str(path)}
            | ({INTENSITY: json.dumps(beside[name].to_json())} if name in beside else {})
            for name, path in files
        ]
        unit = None if grid is None or grid.trained is None else grid.trained.unit_range
        check_volumes(found, None, otherwise=None if unit is None else Intensity(unit))
        if grid is not None:
            for held in dict.fromkeys(beside.values()):
                grid.warn_of_scaling(held, pattern)
    if grid is not None:
        grid.warn({entry["case"]: entry["image"] for entry in found}, voxel_size=False)
    if hidden is None:
        return found
    if hidden.file is None:
        found = [{**entry, VOXELS: {"image": hash_file(entry["image"])}} for entry in found]
    return [{k: v for k, v in entry.items() if k != VOXELS} for entry in under_pseudonyms(found, hidden)]


def _compared(entries: list[dict[str, Any]], grid: TrainedGrid | None, samples: int) -> list[dict[str, Any]]:
    """The entries once per sample, after a warning where they are not what the weights were trained on."""
    if grid is not None:
        grid.warn({entry["case"]: entry["image"] for entry in entries})
    return _repeat(entries, samples)


def _repeat(entries: list[dict[str, Any]], samples: int) -> list[dict[str, Any]]:
    if samples == 1:
        return entries
    check_number("num_samples × label maps", samples * len(entries), 1, 10 * MOST_SAMPLES)
    repeated = [
        entry | {"case": f"{entry['case']}_s{i}", "source_case": entry["case"], "sample": i}
        for entry in entries
        for i in range(samples)
    ]
    check_names([entry["case"] for entry in repeated], "samples")
    return repeated


def _speaks_of(metadata: str | Path, num_classes: int | None, key: str) -> bool:
    return num_classes is None or num_classes == len(bundle_classes(metadata, key=key))


def _check_count(path: Path, content: Mapping[str, Any], num_classes: int | None) -> None:
    stated = content.get("num_classes")
    if num_classes is not None and stated is not None and stated != num_classes:
        names = ", ".join(stated_classes(path, content).values())
        raise InputError(
            f"{path}: its maps have {stated} classes ({names}), the config's num_classes is {num_classes}; run with "
            f"--num_classes {stated}, or prepare the maps with another --k"
        )


def _absolute_entries(path: Path, entries: list[Mapping[str, Any]], needs: Sequence[str]) -> list[dict[str, Any]]:
    root = root_of(path)
    problems = [
        f"{entry.get('case', i)}: needs {key!r}"
        for i, entry in enumerate(entries)
        for key in needs
        if not isinstance(entry.get(key), str)
    ]
    if problems:
        raise InputError(f"{path}: entries without their files", problems)
    resolved = [absolute(entry, root) for entry in entries]
    check_names([entry["case"] for entry in resolved], path)
    return resolved


def _check_present(path: Path, entries: Sequence[Mapping[str, Any]], needs: Sequence[str]) -> None:
    problems = [f"{e['case']}: no such file {e[k]}" for e in entries for k in needs if not is_there(e[k])]
    if problems:
        raise InputError(f"{path}: files that are not there", problems)
