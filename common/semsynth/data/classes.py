"""Whether label maps and weights speak of the same classes (free of torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import json_files
from ..errors import InputError
from ..limits import MOST_CLASSES
from ..vocabulary import WALL, class_names
from .findings import Finding, error, warning

WALL_NAME = class_names(3)[WALL]


def bundle_classes(bundle: str | Path, *, key: str = "classes") -> dict[int, str]:
    """The classes that a bundle's weights were trained on: ``classes`` of its metadata, index → name.

    Args:
        bundle: the bundle's folder, or its ``metadata.json``.
        key: key in the metadata, for a bundle that has other weights beside ``model.pt``.

    Raises:
        InputError: no metadata, metadata without ``classes``, or classes that its configs contradict.
    """
    path = Path(bundle)
    path = path if path.suffix == ".json" else path / "configs" / "metadata.json"
    classes = class_table(read_metadata(path).get(key), path)
    if not classes:
        raise InputError(
            f'{path}: does not say which classes the weights know; add "{key}": {{"0": "background", "1": …}}'
        )
    if key != "classes":
        return classes
    for name in ("train.json", "inference.json"):
        config = path.with_name(name)
        count = read_metadata(config).get("num_classes") if config.is_file() else None
        if isinstance(count, int) and count != len(classes):
            raise InputError(f"{path}: lists {len(classes)} classes, but num_classes of {name} is {count}; correct one")
    return classes


def vocabulary_of(bundle: str | Path, count: int) -> str:
    """The key of a bundle's metadata under which maps of ``count`` classes are: ``classes``, or that of other weights.

    Args:
        bundle: its folder, or its ``metadata.json``.
        count: number of the maps' classes.
    """
    path = Path(bundle)
    path = path if path.suffix == ".json" else path / "configs" / "metadata.json"
    tables = {
        key: value
        for key, value in read_metadata(path).items()
        if key.startswith("classes") and isinstance(value, dict)
    }
    fitting = [key for key, table in tables.items() if len(table) == count]
    return "classes" if "classes" in fitting or not fitting else fitting[0]


def class_table(content: Any, source: str | Path) -> dict[int, str]:
    """``{"0": "background", …}`` as datalists and metadata hold it, as index → name; empty where there is none.

    Raises:
        InputError: for anything else.
    """
    if content is None:
        return {}
    if isinstance(content, Mapping) and len(content) > MOST_CLASSES:
        raise InputError(f'{source}: "classes" has {len(content)} of them; label maps have at most {MOST_CLASSES}')
    try:
        return {int(index): str(name) for index, name in sorted(content.items(), key=lambda item: int(item[0]))}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f'{source}: "classes" must be a table such as {{"0": "background", "1": "endo"}}, found {content!r}'
        ) from None


def compare_classes(
    maps: Mapping[int, str],
    weights: Mapping[int, str],
    *,
    source: str | Path,
    counts: Mapping[int, int] | None = None,
) -> list[Finding]:
    """Compare the classes of label maps with those that a network's weights were trained on.

    Names count in whatever case, with spaces, hyphens or underscores. A class without a name is compared by its index.

    Args:
        maps: index → name in the maps; an empty name where it is not known.
        weights: index → name at training.
        source: the file that findings are about.
        counts: class → number of maps that hold it, as :attr:`semsynth.data.findings.Report.classes`; a class that no
            map holds cannot do harm. None: not known.

    Returns:
        One error that lists the classes that the weights never saw, one with the remap for those that they know under
        another index; a warning for classes that the maps lack, one for those that are stated and that no map holds,
        and one where names are not known.

    Examples:
        >>> findings = compare_classes({1: "endo", 2: "scar"}, {1: "endo", 2: "wall"}, source="datalist.json")
        >>> [(finding.severity, finding.finding) for finding in findings]
        [('error', 'classes that the weights never saw'), ('warning', 'classes that the maps lack')]
    """
    index_of = {plain_name(name): index for index, name in weights.items()}
    used = {i: name for i, name in maps.items() if counts is None or counts.get(i)}
    target = {i: index_of.get(plain_name(name)) if name else (i if i in weights else None) for i, name in used.items()}
    unseen = {i: name for i, name in used.items() if target[i] is None}
    moved = {i: name for i, name in used.items() if target[i] not in (None, i)}
    lacking = {i: name for i, name in weights.items() if i not in target.values() and not _known(maps, i, name)}
    absent = {i: name for i, name in weights.items() if i not in target.values() and i not in lacking and counts}
    nameless = {i: name for i, name in used.items() if not name}
    known = f"{len(weights)} classes: {_table(weights)}"
    found = []
    if unseen:
        found.append(error(source, "classes that the weights never saw", found=_table(unseen, counts), expected=known,
                           fix="merge them into classes that the weights know, rename those in the datalist that only "
                           "have another name, or use weights that were trained on them"))  # fmt: skip
    if moved:
        remap = ", ".join(f"{index} → {target[index]} ({name})" for index, name in moved.items())
        found.append(error(source, "classes that the weights know under another index", found=_table(moved, counts),
                           expected=known, fix=f"remap {remap}"))  # fmt: skip
    if lacking:
        found.append(warning(source, "classes that the maps lack", found=f"{len(used)} classes: {_table(used)}",
                             expected=f"also {_table(lacking)}", fix="nothing to do if they are not meant to be there",
                             ))  # fmt: skip
    if absent:
        remade = (
            "; a derived wall that is empty needs another --wall-plane or a smaller --spacing of 'semsynth prepare'"
        )
        wall = any(plain_name(name) == WALL_NAME for name in absent.values())
        found.append(warning(source, "classes that no case has", found=f"no voxel of {_table(absent)} in any map",
                             expected=known, fix="nothing to do if they are not meant to be there"
                             + (remade if wall else "")))  # fmt: skip
    if nameless:
        found.append(warning(source, "classes without names", found=_table(nameless, counts), expected=known,
                             fix='compared by index alone; state "classes" in the datalist'))  # fmt: skip
    return found


def _known(maps: Mapping[int, str], index: int, name: str) -> bool:
    """Whether the maps state this class, even if none of them holds it."""
    return any(plain_name(other) == plain_name(name) if other else i == index for i, other in maps.items())


def read_metadata(path: Path) -> dict[str, Any]:
    """A bundle's ``metadata.json``, or another JSON object of a bundle.

    Raises:
        InputError: for anything else.
    """
    return json_files.read_object(path, missing="give the folder of a bundle", damaged="take the bundle's own")


def trained_on(metadata: Path) -> dict[str, dict[str, Any]]:
    """What a bundle's metadata says of the data that its files of weights were trained on; empty where it does not.

    Raises:
        InputError: for anything else than an object of objects.
    """
    stated = read_metadata(metadata).get("trained_on")
    if stated is None:
        return {}
    if not isinstance(stated, dict) or not all(isinstance(about, dict) for about in stated.values()):
        raise InputError(f'{metadata}: "trained_on" must hold an object for each file of weights, found {stated!r}')
    return stated


def plain_name(name: str) -> str:
    """A class's name in lower case, with single spaces for hyphens and underscores, as names are compared."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _table(classes: Mapping[int, str], counts: Mapping[int, int] | None = None) -> str:
    held = {i: f" (in {counts[i]} maps)" if counts and i in counts else "" for i in classes}
    return ", ".join(f"{index} {name}".strip() + held[index] for index, name in classes.items())
