"""Training data whose order and augmentation depend on seed, epoch and position alone, so that training can go on."""

from __future__ import annotations

import atexit
import json
import logging
import math
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.data.utils import affine_to_spacing, worker_init_fn
from monai.transforms import RandomizableTrait, Transform
from torch.utils.data.distributed import DistributedSampler

from ..data.datalists import read_datalist
from ..data.entries import load_datalist
from ..data.entry_cases import SOURCE_VOXELS, VOXELS, case_of
from ..data.halves import in_half
from ..data.hidden import MARK
from ..data.identity import is_image, is_map, patient_of
from ..data.intensity import INTENSITY, Intensity, Scaling, one_rule
from ..data.volumes import stem
from ..distributed import rank, world_size
from ..errors import InputError
from ..files import real
from ..limits import check_number
from ..memory import memory_advice
from ..paths import as_path
from ..provenance.seen import Seen, entry_voxels, refuse_seen_cases
from ..seeds import checked_seed
from ..vocabulary import SPLITS

logger = logging.getLogger(__name__)
MOST_DRAWS = 10_000_000
MOST_WORKERS = 256
LESS_MEMORY = (
    "give fewer --num_workers (each holds whole volumes), a smaller --cache_rate, or with it a --cache_dir on disk, a "
    "smaller --patch_size, or crop the cases with 'semsynth prepare --size'"
)


def load_sources(
    paths: str | Path | Sequence[str | Path],
    key: str | Sequence[str] = "training",
    *,
    validation: str | Path | None = None,
    half: int | None = None,
    **kwargs: Any,
) -> list[dict[str, Any]]:
    """Entries of one or several datalists, each with the number of its datalist under ``source``.

    Args:
        paths: a ``datalist.json`` or several, for example one of real and one of synthetic volumes.
        key: the split that is taken from each.
        validation: a datalist whose validation and testing cases must not be among them, by name, patient, scan or
            label map: a synthetic volume that was made from a validation case's map gives that case's anatomy away.
        half: half of the patients, 0 or 1 (see :mod:`semsynth.data.halves`); None takes all.
        kwargs: all else that :func:`semsynth.data.entries.load_datalist` takes.

    Raises:
        InputError: as :func:`semsynth.data.entries.load_datalist`, for an empty list of paths, or for cases of the
            validation; where some lists have pseudonyms and others have not.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise InputError("needs one datalist or more, got none")
    entries = [entry | {"source": i} for i, path in enumerate(paths) for entry in load_datalist(path, key, **kwargs)]
    bare = [e["case"] for e in entries if not any(isinstance(e.get(k), str) for k in ("label", "endo"))]
    if bare:
        raise InputError(f"{', '.join(map(str, paths))}: entries without 'label' or 'endo', complete them", bare)
    if validation is not None:
        _refuse_mixed_names([*paths, validation])
        _refuse_held_out(entries, as_path(validation, "validation_datalist"), [as_path(path) for path in paths])
    return _on_one_scale(in_half(entries, half), paths)


def _on_one_scale(entries: list[dict[str, Any]], paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The entries, those of one unit read in the range of the first; another rule of intensities is warned of."""
    raw = Intensity(None, Scaling())  # how images are read whose intensities are not stated
    held = [Intensity.from_json(e[INTENSITY], e["case"]) if INTENSITY in e else raw for e in entries]
    result, apart = [], set[int]()
    for entry, own in zip(entries, held, strict=True):
        placed = own.in_range(held[0].unit, held[0].unit_range)
        result.append(entry if placed == own else entry | {INTENSITY: json.dumps(placed.to_json())})
        if not one_rule(held[0], placed):
            apart.add(entry["source"])
    if apart:
        logger.warning(
            "%s: images are scaled by another rule than those of the first list (%s), so that the same tissue differs "
            "in brightness; prepare all by one rule (--scale, --percentiles or --window)",
            ", ".join(str(paths[i]) for i in sorted(apart)), held[0].scaling,
        )  # fmt: skip
    return result


def _refuse_mixed_names(paths: Sequence[str | Path]) -> None:
    """Raise where one list has names and another pseudonyms: a patient who is held out would not be recognised."""
    lists = {str(path): read_datalist(path) for path in paths}
    own = next((path for path, content in lists.items() if content.get("names") == MARK["names"]), None)
    other = next((path for path, content in lists.items() if _names_people(content)), None)
    if own is not None and other is not None:
        raise InputError(
            f"{own}: its cases have pseudonyms, and those of {other} have not, so that a patient who is held out "
            "cannot be recognised; take the real cases under the same pseudonyms ('semsynth pseudonymise' with the "
            "same key file)"
        )


def _names_people(content: Mapping[str, Any]) -> bool:
    """Whether a datalist has cases under their names; volumes of maps that are nobody's have no source."""
    if content.get("names") == MARK["names"]:
        return False
    entries = [entry for split in SPLITS for entry in content.get(split) or []]
    return any(not entry.get("synthetic") or SOURCE_VOXELS in entry for entry in entries)


def _refuse_held_out(entries: Sequence[Mapping[str, Any]], validation: Path, paths: Sequence[Path]) -> None:
    known: dict[tuple[str, str], str] = {}
    content = read_datalist(validation)
    for split in SPLITS[1:]:
        if content.get(split):
            for held_out in load_datalist(validation, split, needs=(), check=False):
                patient = patient_of(case_of(held_out, []), content.get("patient_regex"))
                marks = marks_of(held_out | {"patient": patient})
                known |= dict.fromkeys(marks, f"{held_out['case']}, in {split} of {validation}")
    leaks = []
    for entry in entries:
        # within one list load_datalist has compared the splits
        inside = real(paths[entry["source"]]) == real(validation)
        same = {} if inside else {mark[0]: known[mark] for mark in marks_of(entry) if mark in known}
        if same:
            where = f"{entry['case']}, in {paths[entry['source']]}"
            leaks.append(f"{where}: same {' and '.join(same)} as {next(iter(same.values()))}")
    if leaks:
        raise InputError(
            f"{len(leaks)} training cases are held out for validation or testing; take them out of the training lists "
            "(synthetic volumes: synthesise from training maps)",
            leaks,
        )


def marks_of(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The marks of a case by which another list knows it: names, patient, voxels of its scan and of its map or mask."""
    names = [str(entry[key]) for key in ("case", "source_case") if key in entry]
    # a case that states no patient is one of its own, by its name
    marks = [("name", name) for name in names] + [("patient", str(entry.get("patient") or names[-1]))]
    for role, value in entry_voxels(entry).items():
        marks += [("image", value)] if is_image(role) else [("label map", value)] if is_map(role) else []
    return marks


def load_unseen(
    path: str | Path,
    key: str | Sequence[str] = "validation",
    *,
    weights: str | Path,
    half: int | None = None,
    **kwargs: Any,
) -> list[dict[str, Any]]:
    """Entries to evaluate weights on, refused where the weights were trained on one of them.

    The card beside the weights says what they were trained on (see :mod:`semsynth.provenance.seen`); weights without a
    card, or that come from weights without one, are evaluated with a warning. Asked for the whole training split, the
    fit itself is meant, and nothing is refused; asked for one half of its patients, that half has to be unseen.

    Args:
        path, key, kwargs: as :func:`semsynth.data.entries.load_datalist`.
        weights: the file of weights.
        half: half of the patients, 0 or 1 (see :mod:`semsynth.data.halves`); None takes all.

    Raises:
        InputError: as :func:`semsynth.data.entries.load_datalist`, and for cases that were seen.
    """
    entries = in_half(load_datalist(path, key, **kwargs), half)
    if key != "training" or half is not None:
        refuse_seen_cases(Seen.of(weights), entries)
    return entries


class TrainingDataset(CacheDataset):
    """MONAI's ``CacheDataset`` whose random transforms are seeded per draw, and which can cache on disk as well.

    An index is a number (as in any data set), or ``(number, seed)`` as :class:`CaseSampler` gives it: the random
    transforms then depend on that seed alone, whichever worker process runs them and whatever was drawn before.

    Entries without a ``case``, as a program that trains the bundle hands them over in place of a datalist's (MONAI
    Label), are called by their image's file.

    Args:
        data: entries, as in :func:`load_sources`.
        transform: all transforms; those before the first random one are cached.
        cache_dir: folder of a checked disk cache (:class:`semsynth.training.cache.DiskCache`) of the same, or None.
        kwargs: all else that ``CacheDataset`` takes.

    Attributes:
        handed_over: True where the entries came from another program, so that no datalist says what they are.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Any, *, cache_dir: str | Path | None = None, **kwargs: Any
    ) -> None:
        self.disk = None
        self.handed_over = any("case" not in entry for entry in data)
        if self.handed_over:
            data = called_by_file(data)
        if cache_dir is not None:
            from .cache import DiskCache

            self.disk = DiskCache(cache_dir, _deterministic(transform))
        super().__init__(data, transform, **kwargs)

    def _load_cache_item(self, idx: int) -> Any:
        with memory_advice(lambda: f"case {self.data[idx].get('case', idx)} while it is loaded", LESS_MEMORY):
            return self._loaded(idx)

    def _loaded(self, idx: int) -> Any:
        if self.disk is None:
            return super()._load_cache_item(idx)
        # by its files, whose changes the cache notices itself: an entry whose voxels changed replaces the old one
        entry = {key: value for key, value in self.data[idx].items() if key != VOXELS}
        return self.disk.load(entry, lambda: super(TrainingDataset, self)._load_cache_item(idx))

    def before_augmentation(self, index: int) -> dict[str, Any]:
        """The entry as the deterministic transforms leave it."""
        item: dict[str, Any] = self._cache[index] if index < self.cache_num else self._load_cache_item(index)
        return item

    def _transform(self, index: int) -> Any:
        if self.disk is None or index % len(self) < self.cache_num:
            return super()._transform(index)
        item = self._load_cache_item(index)
        first = len(_deterministic(self.transform))
        return item if first == len(self.transform.transforms) else self.transform(item, start=first)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, tuple):
            return super().__getitem__(index)
        number, seed = index
        self.transform.set_random_state(seed=seed)
        with memory_advice(lambda: f"case {self.data[number].get('case', number)} while it is augmented", LESS_MEMORY):
            return self._transform(number)


def called_by_file(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries with a ``case``: where there is none, the name of the image's file, with a number if it comes again.

    Args:
        entries: with the path of an ``image``.

    Raises:
        InputError: for an entry that has neither a case nor the path of an image.
    """
    found: list[dict[str, Any]] = []
    taken = {str(entry["case"]) for entry in entries if "case" in entry}
    for number, entry in enumerate(entries):
        if "case" in entry:
            found.append(dict(entry))
            continue
        if not isinstance(entry.get("image"), str | Path):
            raise InputError(
                f"entry {number} of the training data: needs the path of an image, got {entry.get('image')!r}"
            )
        name = case = stem(entry["image"])
        again = 2
        while case in taken:
            case, again = f"{name}_{again}", again + 1
        taken.add(case)
        found.append({"case": case, **entry})
    return found


def _deterministic(transform: Any) -> list[Any]:
    """The transforms before the first random one, as MONAI's ``CacheDataset`` parts them."""
    found = []
    for part in transform.transforms:
        if isinstance(part, RandomizableTrait) or not isinstance(part, Transform):
            break
        found.append(part)
    return found


class CaseSampler(DistributedSampler):
    """The order of the cases: a function of seed and epoch, with a fixed share for each source of data.

    Each source is gone through in permutations, so that no case comes twice before all of its source have come once,
    also over the border of two epochs. A position holds a seed for the augmentation (see :class:`TrainingDataset`), so
    that nothing has to be remembered but epoch and position. A ``DistributedSampler``, because MONAI's engines tell
    those the epoch; with one process it simply has one part.

    Args:
        dataset: dataset whose ``data`` are entries with ``source`` numbers (one source where there are none).
        ratio: shares of the sources, for example ``[1, 1]``; None takes every case once per epoch.
        epoch_cases: draws per epoch over all processes, whatever the sources hold: equal numbers of iterations for
            a comparison. None: as many as it takes for the first source to come once.
        seed: seed of order and augmentation.
        shuffle: False keeps the order of the entries.
        group: draws per process are a multiple of this (the batch size).

    Raises:
        InputError: a ratio that does not fit the sources, or values that are not positive.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        ratio: Sequence[float] | None = None,
        epoch_cases: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        group: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=world_size(), rank=rank(), shuffle=shuffle, seed=checked_seed(seed))
        sources = np.array([entry.get("source", 0) for entry in dataset.data])
        self.members = [np.flatnonzero(sources == source) for source in np.unique(sources)]
        sizes = [len(members) for members in self.members]
        if ratio is not None and (len(ratio) != len(sizes) or min(ratio) <= 0):
            raise InputError(f"mixing ratio needs one positive share per datalist ({len(sizes)}), got {list(ratio)}")
        if epoch_cases is not None and epoch_cases < 1:
            raise InputError(f"epoch_cases must be positive or null, got {epoch_cases}")
        if epoch_cases is not None:
            check_number("epoch_cases", epoch_cases, 1, MOST_DRAWS)
        shares = np.asarray(sizes if ratio is None else ratio, dtype=float)
        shares /= shares.sum()
        parts = self.num_replicas * group
        total = epoch_cases or round(sizes[0] / shares[0])
        self.total_size = math.ceil(total / parts) * parts
        self.num_samples = self.total_size // self.num_replicas
        # shares by rounding over all epochs so far: they add up in each, and over many none drifts
        self.edges = np.concatenate([[0.0], np.cumsum(shares)])
        self.turns: dict[int, tuple[int, np.ndarray]] = {}
        self.skip = 0

    def __iter__(self) -> Any:
        skip, self.skip = self.skip, 0  # where a training goes on in the middle of an epoch; only once
        order = self.order(self.epoch)
        mine = [
            (int(index), self._draw_seed(position))
            for position, index in enumerate(order)
            if position % self.num_replicas == self.rank
        ]
        return iter(mine[skip:])

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch, of all processes together, in order."""
        drawn: list[int] = []
        for source, members in enumerate(self.members):
            first, last = (self._drawn_until(source, e) for e in (max(epoch, 1), max(epoch, 1) + 1))
            drawn += [self._from_source(source, members, i) for i in range(first, last)]
        if not self.shuffle:
            return drawn
        return [drawn[i] for i in np.random.default_rng([self.seed, epoch, 1]).permutation(len(drawn))]

    def _drawn_until(self, source: int, epoch: int) -> int:
        """Draws from one source before an epoch (counted from 1) starts; every epoch has ``total_size`` in all."""
        before = self.total_size * max(epoch - 1, 0)
        low, high = (round(float(self.edges[i]) * before) for i in (source, source + 1))
        return high - low

    def _from_source(self, source: int, members: np.ndarray, position: int) -> int:
        turn, place = divmod(position, len(members))
        if not self.shuffle:
            return int(members[place])
        if source not in self.turns or self.turns[source][0] != turn:
            self.turns[source] = (turn, np.random.default_rng([self.seed, source, turn, 2]).permutation(members))
        return int(self.turns[source][1][place])

    def _draw_seed(self, position: int) -> int:
        return int(np.random.SeedSequence([self.seed, self.epoch, position, 3]).generate_state(1)[0])


class TrainingLoader(DataLoader):
    """MONAI's ``DataLoader`` with a generator of its own: starting an epoch draws nothing from the global one.

    What the network draws (dropout, noise) then does not depend on how often an epoch was started, which exact resuming
    needs. Worker processes leave SIGINT and SIGTERM to the main process: Ctrl-C and batch systems send them to all, and
    a training whose workers are gone could not finish its step. When the main process ends they are killed.

    Args:
        dataset, kwargs: as ``monai.data.DataLoader``.
    """

    def __init__(self, dataset: Any, **kwargs: Any) -> None:
        check_number("num_workers", kwargs.get("num_workers") or 0, 0, MOST_WORKERS)
        kwargs.setdefault("generator", torch.Generator().manual_seed(0))
        kwargs.setdefault("worker_init_fn", _start_worker)
        super().__init__(dataset, **kwargs)
        if self.num_workers:
            _end_with_this_process()


@cache
def _end_with_this_process() -> None:
    atexit.register(_kill_workers)  # before multiprocessing waits for them, whose SIGTERM they do not heed


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would say that a worker was killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _start_worker(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    worker_init_fn(worker)


def check_spacing(item: Mapping[str, Any], spacing: Sequence[float], key: str = "label") -> None:
    """Raise where a map's voxels are not those that a network draws on.

    Args:
        item: a case as its transforms leave it, with a MetaTensor under ``key``.
        spacing: mm per voxel of the network.

    Raises:
        InputError: naming the case and both sizes.
    """
    affine = getattr(item[key], "affine", None)
    if affine is None:
        return
    own = [float(size) for size in affine_to_spacing(affine, 3)]
    if not np.allclose(own, spacing, rtol=0.01):
        sizes = [",".join(f"{size:.3g}" for size in sizes) for sizes in (own, spacing)]
        raise InputError(
            f"case {item.get('case', '?')}: its voxels are {sizes[0]} mm, and the network's {sizes[1]} mm; give "
            f"--spacing '[{sizes[0]}]', or prepare the data with 'semsynth prepare --spacing {sizes[1]}'"
        )
