"""What a set of weights came from: the card beside the weights, and the cases that it names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import monai
import nibabel
import numpy as np
import torch

from .. import __version__
from ..data.datalists import name_cases, read_datalist
from ..data.geometry import training_geometry
from ..errors import InputError
from ..files import sha256, write_text
from .command import run_command, without_absolute
from .config import canonical, config_digest

logger = logging.getLogger(__name__)


def case_hashes(entries: Sequence[Mapping[str, Any]], *, image_key: str = "image") -> list[dict[str, str]]:
    """One fingerprint per case, so that a case can be recognised without being named.

    This is a pseudonym, not anonymisation: names are few and short, so whoever holds a list of names, or guesses them,
    can tell which of them are meant. Whoever holds an image file can tell whether it is meant.

    Args:
        entries: of a datalist, with ``case`` (without it the name that a datalist would give) and the image's file.
        image_key: where the image's file is.

    Returns:
        ``{"name": …, "image": …}`` per case, sorted, so that their order tells nothing: 16 hexadecimal digits of the
        SHA-256 of "semsynth:" and the case's name, and the SHA-256 of the image's file.

    Raises:
        InputError: listing the cases without a readable image file.
    """
    hashes = _hashes(entries, image_key)
    problems = [f"{name}: no file under {image_key!r}" for name, found in hashes if "image" not in found]
    if problems:
        raise InputError("every case needs its image file:", problems)
    return sorted((found for _, found in hashes), key=lambda found: (found["name"], found["image"]))


def case_hash(name: str) -> str:
    """The fingerprint of a case's name in :func:`case_hashes`."""
    return hashlib.sha256(f"semsynth:{name}".encode()).hexdigest()[:16]


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's names and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _hashes(entries: Sequence[Mapping[str, Any]], image_key: str) -> list[tuple[str, dict[str, str]]]:
    """Name and hashes per entry, in its order; without "image" where there is no file."""
    fallback = name_cases([Path(str(entry.get(image_key, ""))) for entry in entries])
    names = [str(entry.get("case", name)) for name, entry in zip(fallback, entries, strict=True)]

    def one(name: str, entry: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        found = {"name": case_hash(name)}
        with contextlib.suppress(OSError, KeyError, TypeError):
            found["image"] = sha256(entry[image_key])
        return name, found

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return list(pool.map(one, names, entries))


def datalist_hash(paths: str | Path | Iterable[str | Path]) -> str:
    """SHA-256 over what datalists say, whatever their layout and wherever they are; the order of several counts.

    Raises:
        InputError: for a file that is missing or no datalist.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    return hashlib.sha256(canonical([read_datalist(path) for path in listed]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes the weights."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "monai": str(monai.__version__),
        "numpy": np.__version__,
        "ignite": version("pytorch-ignite"),
        "semsynth": __version__,
        "nibabel": nibabel.__version__,
    }


def write_model_card(
    weights_path: str | Path,
    *,
    training_cases: Sequence[Mapping[str, str]] = (),
    datalist_sha256: str | None = None,
    **facts: Any,
) -> Path:
    """Write what is known about a file of weights beside it, as JSON (``model.pt`` → ``model.json``), whole or not.

    Args:
        weights_path: the file of weights.
        training_cases: from :func:`case_hashes`.
        datalist_sha256: from :func:`datalist_hash`.
        facts: more, such as the best value, the epoch, the configuration's digest; what is not JSON becomes text, NaN
            and infinity become null.

    Raises:
        InputError: when there is no file of weights.
        ValueError: for a fact under a name that the card fills itself.
    """
    path = Path(weights_path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; save it before its card is written")
    card: dict[str, Any] = {
        "file": path.name,
        "sha256": sha256(path),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": run_command(),
        "versions": versions(),
        "training_cases": list(training_cases),
        "datalist_sha256": datalist_sha256,
    }
    taken = sorted(card.keys() & facts.keys())
    if taken:
        raise ValueError(f"facts must not replace what the card states itself, got {', '.join(taken)}; rename them")
    text = json.dumps(_plain(card | facts), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path.with_suffix(".json"), text + "\n")


def _plain(value: Any) -> Any:
    """The value as strict JSON has it."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return without_absolute(str(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def refuse_seen_cases(card_path: str | Path, entries: Sequence[Mapping[str, Any]], *, image_key: str = "image") -> None:
    """Raise if weights were trained on any of these cases: what is measured on them would look too good.

    A case is recognised by its name or by its image file's bytes; a case that was renamed *and* converted is not.

    Args:
        card_path: the card beside the weights, from :func:`write_model_card`.
        entries: of a datalist; without an image file only the name is compared.
        image_key: where the image's file is.

    Raises:
        InputError: listing the cases, or for a card that is missing or none.
    """
    seen = _training_cases(Path(card_path))
    problems = []
    for name, found in _hashes(entries, image_key):
        same = [what for what in ("name", "image") if found.get(what) in seen[what]]
        if same:
            problems.append(f"{name}: same {' and '.join(same)} as a training case")
    if problems:
        raise InputError(
            f"{card_path}: {len(problems)} of {len(entries)} cases were used to train these weights; "
            "take cases of other patients (where only the name is the same, but not the patient, rename the case)",
            problems,
        )


def _training_cases(path: Path) -> dict[str, set[str]]:
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["training_cases"]
        seen = {what: {case[what] for case in cases} for what in ("name", "image")}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such model card; it is written beside the weights by a training") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a model card ({error!r}); take the one that its training wrote") from error
    if not cases:
        logger.warning("%s names no training cases, so none can be recognised", path)
    return seen


class TrainingRecord:
    """What a training is made from, computed once and when first asked: for its checkpoints and its weights' card.

    Args:
        dataset: of the training, whose ``data`` are its entries.
        datalists: the datalist or datalists that they came from.
        in_loss: networks in the training's loss, ``{"name", "sha256"}`` each: an evaluation marks numbers that were
            made with them.
        builds_on: weights that it may start from, the first that is not None: what the card beside them names as
            training cases and networks in the loss is this training's too.
        spacing: mm per voxel that training resamples to; None: it takes volumes as they are.
    """

    def __init__(
        self,
        dataset: Any,
        datalists: str | Path | Sequence[str | Path],
        *,
        in_loss: Sequence[Mapping[str, str]] = (),
        builds_on: Sequence[str | Path | None] = (),
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.dataset, self.datalists, self.in_loss, self.spacing = dataset, datalists, in_loss, spacing
        self.builds_on = next((Path(path) for path in builds_on if path is not None), None)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        config = config_digest() or {}
        earlier = {} if self.builds_on is None else _card(self.builds_on)
        return {
            "training_cases": _union(case_hashes(self.dataset.data), earlier.get("training_cases", [])),
            "geometry": training_geometry(self.dataset.data, self.datalists, self.spacing),
            "datalist_sha256": datalist_hash(self.datalists),
            "in_loss": _union(self.in_loss, earlier.get("in_loss", [])),
            "config_sha256": hashlib.sha256(canonical(config).encode()).hexdigest() if config else None,
            "config": config,
            "command": run_command(),
            "versions": versions(),
        }

    def facts(self, *, for_card: bool = False) -> dict[str, Any]:
        """Hashes of cases, datalist and configuration; without what a card states by itself if ``for_card``."""
        left_out = ("config", "command", "versions") if for_card else ()
        return {key: value for key, value in self._facts.items() if key not in left_out}


def _card(weights: Path) -> dict[str, Any]:
    """The card beside a file of weights; {} with a warning where there is none."""
    path = weights.with_suffix(".json")
    if not path.is_file():
        logger.warning(
            "%s: no card beside these weights, so nobody knows which cases and losses they have seen", weights
        )
        return {}
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


def _union(*lists: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """All entries once, in the order in which they come."""
    entries = {canonical(dict(entry)): dict(entry) for entries in lists for entry in entries}
    return list(entries.values())
