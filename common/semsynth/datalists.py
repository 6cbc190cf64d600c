"""Datalists in MONAI's form: what a data set's cases are called, where their files are, and which split they are in."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError
from .labels import check_range, class_names
from .volumes import read_volume, stem

SPLITS = ("training", "validation", "testing")


def check_names(names: Sequence[str], source: str | Path) -> None:
    """Raise if two cases share a name (one would overwrite the other) or a name is no plain file name.

    Raises:
        InputError: listing the names.
    """
    unsafe = sorted({repr(name) for name in names if name in ("", ".", "..") or set(name) & set("/\\\0")})
    if unsafe:
        raise InputError(
            f"{source}: case names become folder and file names, cannot use {', '.join(unsafe)}; set 'case'"
        )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"{source}: case names must differ, found more than once: {', '.join(twice)}; set 'case'")


def name_cases(images: Sequence[Path]) -> list[str]:
    """A name per image file: its folder's, or its own where the folder holds several of them."""
    per_folder = Counter(path.parent for path in images)
    return [path.parent.name if per_folder[path.parent] == 1 and path.parent.name else stem(path) for path in images]


def read_datalist(path: str | Path) -> dict[str, Any]:
    """Read a datalist in MONAI's form.

    Raises:
        InputError: missing file, not JSON, or no list of entries under training, validation or testing.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; make it with 'semsynth prepare' or 'semsynth phantom'") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    found = [key for key in SPLITS if isinstance(content, dict) and isinstance(content.get(key), list)]
    if not found:
        raise InputError(f"{path}: needs lists of cases under {', '.join(SPLITS)}")
    bad = [
        f"{key}[{i}]: needs to be an object with file names, found {entry!r}"
        for key in found
        for i, entry in enumerate(content[key])
        if not isinstance(entry, dict)
    ]
    if bad:
        raise InputError(f"{path}: entries that cannot be used", bad)
    result: dict[str, Any] = content
    return result


def load_datalist(
    path: str | Path,
    key: str | Sequence[str] = "training",
    *,
    num_classes: int | None = None,
    needs: Sequence[str] = ("image", "label"),
) -> list[dict[str, Any]]:
    """Entries of a prepared datalist with absolute paths, as a MONAI data set takes them.

    Args:
        path: the ``datalist.json``.
        key: the split, or several of which the first that has entries is taken.
        num_classes: what the network was built for; checked against the datalist where that states its own.
        needs: file keys that every entry must have and whose files must exist; other keys that name files are made
            absolute as well.

    Raises:
        InputError: no entries, a missing key or file (all listed), two cases of one name, or another number of classes.
    """
    path = Path(path)
    content = read_datalist(path)
    keys = [key] if isinstance(key, str) else list(key)
    entries = next((content[k] for k in keys if content.get(k)), None)
    if not entries:
        raise InputError(f"{path}: no cases under {' or '.join(keys)}")
    stated = content.get("num_classes")
    if num_classes is not None and stated is not None and stated != num_classes:
        names = content.get("classes", class_names(int(stated)))
        raise InputError(
            f"{path}: its maps have {stated} classes ({', '.join(map(str, names.values()))}), the config's num_classes "
            f"is {num_classes}; run with --num_classes {stated}, or prepare the maps with another --k"
        )
    resolved = _absolute_entries(path, entries, needs)
    if num_classes is not None:
        check_volumes(resolved, num_classes)
    return resolved


def check_volumes(entries: Sequence[Mapping[str, Any]], num_classes: int, label_key: str = "label") -> None:
    """Read every volume once, so that all bad files are known before any work starts.

    Args:
        entries: with file names under ``image`` and ``label_key``; absent keys are passed over.
        num_classes: label maps must hold integers in 0…num_classes−1.
        label_key: where the label map is.

    Raises:
        InputError: listing every file that cannot be used.
    """

    def problem(entry: Mapping[str, Any]) -> str | None:
        try:
            for key in {"image", label_key} & entry.keys():
                volume = read_volume(entry[key])
                if key == label_key:
                    values = torch.from_numpy(np.unique(volume.data).astype(np.float32))
                    check_range(values, num_classes, source=str(entry[key]))
                elif not np.isfinite(volume.data.sum(dtype=np.float64)):
                    raise InputError(f"{entry[key]}: image must be finite, found NaN or infinite voxels; repair them")
        except InputError as error:
            return f"case {entry['case']}: {error}"
        return None

    with ThreadPoolExecutor() as pool:
        problems = [found for found in pool.map(problem, entries) if found]
    if problems:
        raise InputError(f"{len(problems)} of {len(entries)} cases cannot be used:", problems)


def load_label_maps(
    dataset_dir: str | Path, pattern: str | None = None, *, num_classes: int | None = None
) -> list[dict[str, Any]]:
    """Label maps to synthesise from, as ``{"case", "image"}`` entries (a generator's input is called ``image``).

    Args:
        dataset_dir: folder with a ``datalist.json``, whose ``testing`` entries are taken, else ``validation``.
        pattern: a glob of label map files to take instead.
        num_classes: as in :func:`load_datalist`.

    Raises:
        InputError: no label maps, a missing file, or two cases of one name.
    """
    if pattern is None:
        entries = load_datalist(
            Path(dataset_dir) / "datalist.json", ("testing", "validation"), num_classes=num_classes, needs=("label",)
        )
        return [{"case": entry["case"], "image": entry["label"]} for entry in entries]  # checked by load_datalist
    paths = [Path(path).resolve() for path in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise InputError(f"{pattern}: no label maps found; quote the pattern and check the folder")
    names = name_cases(paths)
    check_names(names, pattern)
    entries = [{"case": name, "image": str(path)} for name, path in zip(names, paths, strict=True)]
    if num_classes is not None:
        check_volumes(entries, num_classes, label_key="image")
    return entries


def _absolute_entries(path: Path, entries: list[Mapping[str, Any]], needs: Sequence[str]) -> list[dict[str, Any]]:
    root = path.resolve().parent
    problems = [
        f"{entry.get('case', i)}: needs {key!r}" for i, entry in enumerate(entries) for key in needs if key not in entry
    ]
    if problems:
        raise InputError(f"{path}: entries without their files", problems)
    fallback = name_cases([root / str(entry[needs[0]]) for entry in entries])
    resolved = [
        {k: str(root / v) if isinstance(v, str) and k != "case" else v for k, v in entry.items()}
        | {"case": str(entry.get("case", name))}
        for name, entry in zip(fallback, entries, strict=True)
    ]
    check_names([entry["case"] for entry in resolved], path)
    problems = [f"{e['case']}: no such file {e[k]}" for e in resolved for k in needs if not Path(e[k]).is_file()]
    if problems:
        raise InputError(f"{path}: files that are not there", problems)
    return resolved
