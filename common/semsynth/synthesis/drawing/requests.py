"""Which maps are to be drawn: how many, on which grid, and what of them is known."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Transform

from ...data.classes import bundle_classes, plain_name
from ...data.datalists import datalist_path
from ...data.entries import MOST_SAMPLES, load_datalist, load_label_maps
from ...data.entry_cases import SOURCE_VOXELS, VOXELS
from ...data.hidden import Hidden, under_pseudonyms
from ...data.in_memory import ORIGINAL_AFFINE, SPATIAL_SHAPE, volume_of
from ...data.naming import check_names
from ...data.resampling import on_voxels
from ...data.volumes import Volume, read_label
from ...errors import InputError
from ...files import sha256
from ...limits import check_number
from ...seeds import checked_seed
from ...vocabulary import ENDO, SPLITS

LEAST_MM, MOST_MM = 10.0, 1000.0


def load_requests(
    count: int,
    *,
    prefix: str = "drawn",
    names: Sequence[str] | str | None = None,
    seed: int = 0,
    field_of_view: Sequence[float] | None = None,
    given: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    known: Sequence[str] | str = (),
    num_classes: int | None = None,
    metadata: str | Path | None = None,
    pseudonyms: str | Path | None = None,
    anonymous_names: bool = False,
    output_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Entries of maps that are to be drawn, as a MONAI data set takes them.

    Args:
        count: number of maps; of each given map, where there are given ones.
        prefix: prefix of the names, ``<prefix>_0000`` and so on.
        names: names of the maps, in place of ``count`` and ``prefix``: each map follows from its name and the seed.
        seed: seed of the maps; another seed gives other names, so that they can stand in one folder.
        field_of_view: mm along H, W, D; None leaves it to the network, which takes that of a training map.
        given: a pattern of label maps whose ``known`` classes stay; or ``"datalist"``: those of ``dataset_dir``.
        dataset_dir: folder with a datalist.
        known: names of the classes that stay.
        num_classes, metadata: as in :func:`semsynth.data.entries.load_datalist`.
        pseudonyms, anonymous_names, output_dir: pseudonyms, anonymous names and output dir of the given maps, as in
            :func:`semsynth.data.entries.load_label_maps`.

    Returns:
        ``case``, ``sample``, and ``image``: ``field_of_view`` in mm; or the file, its SHA-256 and the classes that
        stay, and beside it whose map that is (``source_case``, ``patient``).

    Raises:
        InputError: for numbers out of range, ``known`` without ``given`` or the other way round.
    """
    hidden = Hidden.of(pseudonyms, anonymous_names, output_dir)
    check_number("count", count, 1, MOST_SAMPLES)
    checked_seed(seed, "seed")
    known = _words(known, "known")
    if bool(known) != (given is not None):
        raise InputError("given and known go together: label maps, and the names of the classes in them that stay")
    if given is not None and (field_of_view is not None or names is not None):
        raise InputError(
            "field_of_view and names do not go with given: maps have the names and the size of the given ones"
        )
    if given is not None:
        return _given(count, given, dataset_dir, known, num_classes, metadata, hidden)
    if field_of_view is not None:
        _check_field(field_of_view)
    asked = None if field_of_view is None else [float(mm) for mm in field_of_view]
    if names is None:
        first = prefix if seed == 0 else f"{prefix}{seed}"
        names = [f"{first}_{i:04d}" for i in range(count)]
    names = _words(names, "names")
    check_names(names, "names of drawn maps")
    return [{"case": name, "sample": 0, "image": {"field_of_view": asked}} for name in names]


def _given(
    count: int,
    given: str | Path,
    dataset_dir: Any,
    known: Sequence[str],
    num_classes: Any,
    metadata: Any,
    hidden: Hidden | None,
) -> list[dict[str, Any]]:
    names = {plain_name(name): index for index, name in bundle_classes(str(metadata)).items()}
    unknown = [name for name in known if plain_name(name) not in names]
    if unknown:
        raise InputError(f"known: no class {', '.join(unknown)}; the maps have {', '.join(names)}")
    classes = [names[plain_name(name)] for name in known]
    found = []
    entries = _entries(given, dataset_dir, num_classes, metadata)
    for entry in entries if hidden is None else under_pseudonyms(entries, hidden):
        case, voxels = str(entry["case"]), dict(entry.get(VOXELS) or {})
        about: dict[str, Any] = {"source_case": case, "patient": str(entry.get("patient", case))}
        about |= {SOURCE_VOXELS: {role: value for role, value in voxels.items() if role == "label"}} if voxels else {}
        file = str(entry["label"])
        request = {"file": file, "known": classes, "sha256": sha256(file)}
        request |= {"content": entry["content"]} if "content" in entry else {}
        found += [
            {"case": f"{case}_drawn_s{i}", "sample": i, **about, "image": request} for i in range(count)
        ]  # fmt: skip
    return found


def _entries(given: str | Path, dataset_dir: Any, num_classes: Any, metadata: Any) -> list[dict[str, Any]]:
    """The given maps, with ``case`` and ``label``."""
    if str(given) != "datalist":
        found = load_label_maps(str(dataset_dir or "."), str(given), num_classes=num_classes, metadata=metadata)
        return [{**entry, "label": entry["image"]} for entry in found]
    path = datalist_path(str(dataset_dir or "."))
    if path is None or not path.is_file():
        raise InputError(f"given: no datalist.json in {dataset_dir}; give --dataset_dir, or a pattern of label maps")
    return load_datalist(path, SPLITS[::-1], needs=("label",), also=(), num_classes=num_classes, metadata=metadata)


def _words(value: Sequence[str] | str, option: str) -> list[str]:
    """A list of names, also where it is typed as one text with commas."""
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(item, str | int) for item in listed):
        raise InputError(f"{option} must be a list of names, such as \"['endo']\", got {value!r}")
    return [str(item).strip() for item in listed]


def _check_field(field: Sequence[float]) -> None:
    if isinstance(field, str | int | float) or len(field) != 3:
        raise InputError(f"field_of_view must be three lengths in mm, got {field!r}")
    for mm in field:
        check_number("field_of_view", mm, LEAST_MM, MOST_MM)


class RequestedMapd(Transform):
    """A request → what is known of a map, ``(1, H, W, D)``, −1 elsewhere, on the grid that the weights draw on.

    Where nothing is asked for, not even a field of view, it is one voxel: the inferer makes it as large as the network
    says. In place of a request, MONAI Label and MONAI Deploy give a label map, as a path or an array: of that map the
    cavity stays, and the rest is drawn.

    Args:
        spacing: mm per voxel that the weights draw on.
        key: key of the request.
        kept: classes that stay of a map that is given in place of a request.

    Raises:
        InputError: for a file or array that cannot be used, or a given map that has none of the classes that stay.
    """

    def __init__(self, spacing: Sequence[float], key: str = "image", kept: Sequence[int] = (ENDO,)) -> None:
        self.spacing, self.key = tuple(float(s) for s in spacing), key
        self.kept = tuple(int(c) for c in kept)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data → the same data with the map in place of the request."""
        request = data[self.key]
        if not isinstance(request, Mapping):
            return dict(data) | {self.key: self._of_map(*volume_of(data, self.key, label=True))}
        if "file" in request:
            volume = read_label(request["file"]).part(request.get("content"))
            return dict(data) | {self.key: self._known(volume, request["known"])}
        field = request["field_of_view"] or self.spacing  # one voxel: the network says how many there are
        shape = [max(1, round(mm / size)) for mm, size in zip(field, self.spacing, strict=True)]
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = -(np.array(shape) - 1) / 2 * np.array(self.spacing)
        return dict(data) | {self.key: MetaTensor(torch.full((1, *shape), -1.0), affine=torch.from_numpy(affine))}

    def _of_map(self, volume: Volume, name: str) -> MetaTensor:
        known = self._known(volume, self.kept)
        if bool((known.as_tensor() < 0).all()):
            kept = " or ".join(str(c) for c in self.kept)
            raise InputError(f"{name}: no voxel of class {kept}, around which a map could be drawn; give a label map")
        grid = known.affine.numpy()
        known.meta |= {"filename_or_obj": name, ORIGINAL_AFFINE: grid.copy(), SPATIAL_SHAPE: np.array(known.shape[1:])}
        return known

    def _known(self, volume: Volume, classes: Sequence[int]) -> MetaTensor:
        volume = volume.canonical()
        whole = torch.from_numpy(np.ascontiguousarray(volume.data).astype(np.float32))[None]
        label = on_voxels(MetaTensor(whole, affine=torch.from_numpy(volume.affine)), self.spacing)
        inside = torch.isin(label.as_tensor(), torch.tensor([float(c) for c in classes]))
        return MetaTensor(torch.where(inside, label.as_tensor(), -1.0), affine=label.affine)
