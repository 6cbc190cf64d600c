"""What a set of weights came from: cases, configuration, command and versions, in a card beside the weights."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import shlex
import sys
import warnings
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
from monai.bundle import ConfigParser

from . import __version__
from .datalists import name_cases, read_datalist
from .errors import InputError
from .volumes import sha256, write_text

logger = logging.getLogger(__name__)

# where and for how long a run computes, not what
RUN_KEYS = (
    "resume", "max_epochs", "device", "num_workers", "cache_rate", "cache_dir", "bundle_root", "run_dir", "output_dir",
)  # fmt: skip
_COMMENTS = ("_desc_", "_comment_", "_meta_")
_QUOTED_PATH = re.compile(r"(?<=['\"])(?:/|[A-Za-z]:[\\/])[^'\"]+")
_BARE_PATH = re.compile(r"(?<![\w.~…/\\)\]}'\"-])(?:/|\b[A-Za-z]:[\\/])[^\s'\",;()\[\]{}]+")
_URL = re.compile(r"\b(?!file\b|sqlite\b)[a-z][a-z0-9+]+://[^\s'\"]+")


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
    return hashlib.sha256(_canonical([read_datalist(path) for path in listed]).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


# ---- the command


def run_command() -> str:
    """The command that started this process, as one would type it, without absolute paths.

    Paths under the working directory become relative to it; of others only the last part stays, after "…/".
    """
    program, arguments = _program()
    return " ".join([*program, *(_quote(_without_absolute(argument)) for argument in arguments)])


def _program() -> tuple[list[str], list[str]]:
    """How the process was started ("python -m …", "python script.py", an installed command), and its arguments."""
    first, *arguments = sys.argv or [""]
    module = _module()
    if module:
        return ["python", "-m", module], arguments
    if first in ("", "-c"):
        return ["python", *([first] if first else [])], arguments
    if Path(first).parent.resolve() == Path(sys.executable).parent.resolve():
        return [_quote(Path(first).name)], arguments
    return ["python", _quote(_without_absolute(first))], arguments


def _module() -> str | None:
    """What stands after ``python -m``, if it was started like this."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return None if spec is None or spec.name == "__main__" else str(spec.name).removesuffix(".__main__")


def _quote(text: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./#…~-]+", text):
        return text
    # as lists are typed, "['a.json','b.json']", where nothing in it means something else between double quotes
    return shlex.quote(text) if "'" not in text or re.search(r'["$`\\!]', text) else f'"{text}"'


def _without_absolute(argument: str) -> str:
    """An argument (a path, ``--key=path``, a list of paths, an expression that holds paths) without absolute paths."""
    key, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if _is_absolute(value):
        return key + equals + _shorten(value)
    expression = value.startswith("$")

    def shorten(match: re.Match[str]) -> str:
        path = match[0]
        # in "$@run_dir + '/model.pt'" the text is the end of a path, not a path
        if expression and not Path(path).parents[-1].joinpath(*Path(path).parts[1:2]).exists():
            return path
        return _shorten(path)

    parts = re.split(f"({_URL.pattern})", argument)
    return "".join(
        part if i % 2 else _BARE_PATH.sub(shorten, _QUOTED_PATH.sub(shorten, part)) for i, part in enumerate(parts)
    )


def _is_absolute(text: str) -> bool:
    return text.startswith("/") or re.match(r"[A-Za-z]:[\\/]", text) is not None


def _shorten(path: str) -> str:
    absolute = Path(os.path.normpath(path))
    here = Path.cwd()
    if absolute.is_absolute() and here != Path(here.anchor):  # under the root of the file system is everything
        for candidate in (absolute, absolute.resolve()):
            if candidate.is_relative_to(here):
                return candidate.relative_to(here).as_posix()
    last = [part for part in re.split(r"[\\/]", str(path)) if part]
    return "…/" + (last[-1] if last else "")


# ---- the configuration


def config_digest() -> dict[str, str] | None:
    """Hashes of the configuration that this process runs, one per value, to tell later which values changed.

    Returns:
        ``{"train#trainer#max_epochs": hash, …}`` with the first 16 hexadecimal digits of the SHA-256 of the value's
        JSON, for a process started as ``python -m monai.bundle run … --config_file …``: the files merged, overrides
        applied, comments left out. None for any other, and where the configuration cannot be read; never raises.
    """
    if _module() != "monai.bundle" or sys.argv[1:2] != ["run"]:
        return None
    try:
        arguments = _bundle_arguments(sys.argv[1:])
        if not arguments["config_file"]:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = ConfigParser()
            parser.read_config(arguments["config_file"])
            parser.update(arguments["override"])
            parser.resolve_macro_and_relative_ids()
        leaves = _flatten(parser.get())
        return {key: hashlib.sha256(_canonical(value).encode()).hexdigest()[:16] for key, value in leaves.items()}
    except (Exception, SystemExit):  # of no worth to the training that asks
        return None


def _bundle_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Config files and overrides of ``monai.bundle run``, read by what MONAI reads them with.

    Raises:
        SystemExit: for arguments that it refuses, too.
    """
    import fire  # only the command line needs it

    found: dict[str, Any] = {}

    def run(
        run_id: Any = None,
        init_id: Any = None,
        final_id: Any = None,
        meta_file: Any = None,
        config_file: Any = None,
        logging_file: Any = None,
        tracking: Any = None,
        args_file: Any = None,
        **override: Any,
    ) -> None:
        defaults = ConfigParser.load_config_files(args_file) if args_file else {}
        known = {"run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking"}
        found["config_file"] = config_file if config_file is not None else defaults.get("config_file")
        found["override"] = {key: value for key, value in defaults.items() if key not in known} | override

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fire.Fire({"run": run}, command=list(arguments))
    return found


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists → ``{"a#b#0": value}``; empty ones are values."""
    if not isinstance(value, dict | list) or not value:
        return {key: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    flat: dict[str, Any] = {}
    for name, item in pairs:
        if name not in _COMMENTS:
            flat |= _flatten(item, f"{key}#{name}" if key else str(name))
    return flat


def changed_keys(old: Mapping[str, str], new: Mapping[str, str], ignore: Sequence[str] = RUN_KEYS) -> list[str]:
    """The keys of two configurations (see :func:`config_digest`) whose values differ, or that only one of them has.

    Args:
        old, new: hashes per key.
        ignore: keys that do not count, at any level ("num_workers" also stands for "train#dataloader#num_workers").
    """
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [key for key in differing if not set(key.split("#")) & set(ignore)]


# ---- the card


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
        return _without_absolute(str(value))
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
    """

    def __init__(
        self,
        dataset: Any,
        datalists: str | Path | Sequence[str | Path],
        *,
        in_loss: Sequence[Mapping[str, str]] = (),
        builds_on: Sequence[str | Path | None] = (),
    ) -> None:
        self.dataset, self.datalists, self.in_loss = dataset, datalists, in_loss
        self.builds_on = next((Path(path) for path in builds_on if path is not None), None)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        config = config_digest() or {}
        earlier = {} if self.builds_on is None else _card(self.builds_on)
        return {
            "training_cases": _union(case_hashes(self.dataset.data), earlier.get("training_cases", [])),
            "datalist_sha256": datalist_hash(self.datalists),
            "in_loss": _union(self.in_loss, earlier.get("in_loss", [])),
            "config_sha256": hashlib.sha256(_canonical(config).encode()).hexdigest() if config else None,
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
    entries = {_canonical(dict(entry)): dict(entry) for entries in lists for entry in entries}
    return list(entries.values())
