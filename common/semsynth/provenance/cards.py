"""What a set of weights came from: the card beside the weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
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
from ..data.datalists import read_datalist
from ..data.geometry import training_geometry
from ..errors import InputError
from ..files import sha256, write_text
from ..paths import as_path
from ..tensor_files import read_tensors
from .command import run_command, without_absolute
from .config import canonical, config_digest, settings_digest
from .pseudonyms import key_id, pseudonym_key
from .seen import UNKNOWN_PARENTS, Seen, card_of, training_cases

logger = logging.getLogger(__name__)


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's names and values.

    Examples:
        >>> state = {"weight": torch.ones(2, 2)}
        >>> len(weights_hash(state)), weights_hash(state) == weights_hash({"weight": torch.zeros(2, 2)})
        (64, False)
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def datalist_hash(paths: str | Path | Iterable[str | Path]) -> str:
    """SHA-256 over what datalists say, whatever their layout and wherever they are; the order of several counts.

    Raises:
        InputError: for a file that is missing or no datalist.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     one, other = Path(folder, "one.json"), Path(folder, "other.json")
        ...     _ = one.write_text('{"training": [{"image": "a.nii.gz"}]}')
        ...     _ = other.write_text('{ "training":  [ {"image":  "a.nii.gz"} ] }')
        ...     datalist_hash(one) == datalist_hash(other)  # the layout does not count
        True
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    return hashlib.sha256(canonical([read_datalist(path) for path in listed]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes the weights.

    Examples:
        >>> {"torch", "monai"} <= set(versions())
        True
    """
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
    training_cases: Sequence[Mapping[str, Any]] = (),
    datalist_sha256: str | None = None,
    written: Path | None = None,
    **facts: Any,
) -> Path:
    """Write what is known about a file of weights beside it, as JSON (``model.pt`` → ``model.json``), whole or not.

    Args:
        weights_path: the file of weights.
        written: file that holds the weights now, if they get their name after the card.
        training_cases: training cases from :func:`semsynth.provenance.seen.training_cases`.
        datalist_sha256: SHA-256 of the datalist from :func:`datalist_hash`.
        facts: more, such as the best value, the epoch, the configuration's digest; what is not JSON becomes text, NaN
            and infinity become null.

    Raises:
        InputError: when there is no file of weights.
        ValueError: for a fact under a name that the card fills itself.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     weights = Path(folder, "model.pt")
        ...     torch.save({"weight": torch.ones(2, 2)}, weights)
        ...     card = write_model_card(weights, epoch=7)
        ...     card.name, json.loads(card.read_text())["epoch"]
        ('model.json', 7)
    """
    path = Path(weights_path)
    if not (written or path).is_file():
        raise InputError(f"{path}: no such file of weights; save it before its card is written")
    card: dict[str, Any] = {
        "file": path.name,
        "sha256": sha256(written or path),
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


class TrainingRecord:
    """What a training is made from, computed once and when first asked: for its checkpoints and its weights' card.

    Args:
        dataset: dataset of the training, whose ``data`` are its entries. Where it says that another program has handed
            them over (``handed_over``), no datalist is read.
        datalists: the datalist or datalists that they came from.
        in_loss: networks in the training's loss, ``{"name", "sha256"}`` each: an evaluation marks numbers that were
            made with them.
        builds_on: weights that it may start from, the first that is not None: what the card beside them names as
            training cases and networks in the loss is this training's too. Where there is no card, this training's own
            card says that its weights may have seen further, unknown cases.
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
        self.dataset, self.in_loss, self.spacing = dataset, in_loss, spacing
        several = [datalists] if isinstance(datalists, str | Path) else datalists
        given = [] if getattr(dataset, "handed_over", False) else several
        self.datalists = [as_path(path, "datalists") for path in given]
        self.builds_on = next((as_path(path, "init_weights") for path in builds_on if path is not None), None)
        self.earlier: dict[str, Any] | None = None

    @cached_property
    def _facts(self) -> dict[str, Any]:
        config = config_digest() or {}
        return {
            "training_cases": training_cases(self.dataset.data),
            "geometry": training_geometry(self.dataset.data, self.datalists, self.spacing),
            "datalist_sha256": datalist_hash(self.datalists) if self.datalists else None,
            "in_loss": list(self.in_loss),
            UNKNOWN_PARENTS: [],
            "pseudonym_key": None if (key := pseudonym_key()) is None else key_id(key),
            "config_sha256": settings_digest(config),
            "config": config,
            "command": run_command(),
            "versions": versions(),
        }

    @cached_property
    def _parent(self) -> dict[str, Any]:
        return {} if self.builds_on is None else record_of(self.builds_on)

    def begins_with(self, weights: str | Path) -> None:
        """Name weights that another program loads into the network before the first step, as MONAI Label does.

        Args:
            weights: their file.
        """
        if self.builds_on is None:
            self.builds_on = Path(weights)
            self.__dict__.pop("_parent", None)

    def goes_on_from(self, record: Mapping[str, Any] | None, source: str) -> list[str]:
        """Take over what a checkpoint has seen before this run; its record is the start, ``builds_on`` is in it.

        Args:
            record: record of the checkpoint, or None where it has none.
            source: the checkpoint's file, for the card.

        Returns:
            Names of the cases of now that the checkpoint had not seen as they are now.
        """
        before = Seen.from_card(record or {}, source)
        self.earlier = dict(record or {}) | {UNKNOWN_PARENTS: list(before.gaps)}
        entries = self.dataset.data if before.known else []
        return [str(entry.get("case", "?")) for entry in entries if "image" not in before.of_entry(entry)]

    def facts(self, *, for_card: bool = False) -> dict[str, Any]:
        """Hashes of cases, datalist and configuration; without what every card states anyway if ``for_card``."""
        left_out = ("config", "command", "versions") if for_card else ()
        earlier = self._parent if self.earlier is None else self.earlier
        own = self._facts
        both: dict[str, Any] = {
            key: _union(own[key], earlier.get(key) or []) for key in ("training_cases", "in_loss", UNKNOWN_PARENTS)
        }
        both["pseudonym_key"] = own["pseudonym_key"] or earlier.get("pseudonym_key")
        return {key: value for key, value in (own | both).items() if key not in left_out}


def record_of(weights: Path) -> dict[str, Any]:
    """What is known of the past of a file of weights: its card, or the record in a training checkpoint.

    Returns:
        ``training_cases``, ``in_loss`` and ``unknown_parents``; the last names the file where nothing is known of it.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     weights = Path(folder, "model.pt")
        ...     torch.save({"weight": torch.ones(2, 2)}, weights)
        ...     _ = write_model_card(weights, training_cases=[{"voxels": {"image": "0" * 64}}])
        ...     len(record_of(weights)["training_cases"])
        1
    """
    content = card_of(weights)
    content = _record_inside(weights) if content is None else content
    seen = Seen.from_card(content or {}, weights.name)
    if not seen.known:
        logger.warning(
            "%s: no model card next to these weights: training cases and losses are unknown, so overlap cannot be "
            "checked",
            weights,
        )
        return {UNKNOWN_PARENTS: [*seen.gaps]}
    return {
        "training_cases": list(seen.cases),
        "in_loss": list((content or {}).get("in_loss") or []),
        "pseudonym_key": seen.key,
        UNKNOWN_PARENTS: list(seen.gaps),
    }


def _record_inside(weights: Path) -> dict[str, Any] | None:
    try:
        content: Any = read_tensors(weights)
    except InputError:  # whoever loads it as weights says what is wrong
        return None
    record = content.get("record") if isinstance(content, dict) else None
    return dict(record) if isinstance(record, Mapping) else None


def _union(*lists: Sequence[Any]) -> list[Any]:
    """All entries once, in the order in which they come."""
    entries = {canonical(entry): entry for entries in lists for entry in entries}
    return list(entries.values())
