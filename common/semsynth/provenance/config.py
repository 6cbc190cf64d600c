"""The configuration of a run, as hashes that tell later which of its values changed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from .command import DATA_OPTIONS, started_module

# where and for how long a run computes, not what
RUN_KEYS = (
    "resume", "max_epochs", "device", "num_workers", "cache_rate", "cache_dir", "bundle_root", "run_dir", "output_dir",
)  # fmt: skip
_COMMENTS = ("_desc_", "_comment_", "_meta_")


def canonical(value: Any) -> str:
    """The value as JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def config_digest() -> dict[str, str] | None:
    """Hashes of the configuration that this process runs, one per value, to tell later which values changed.

    Returns:
        ``{"train#trainer#max_epochs": hash, …}`` with the first 16 hexadecimal digits of the SHA-256 of the value's
        JSON, for a process started as ``python -m monai.bundle run … --config_file …``: the files merged, overrides
        applied, comments left out. None for any other, and where the configuration cannot be read; never raises.
    """
    if started_module() != "monai.bundle" or sys.argv[1:2] != ["run"]:
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
        return {key: hashlib.sha256(canonical(value).encode()).hexdigest()[:16] for key, value in leaves.items()}
    except (Exception, SystemExit):  # of no worth to the training that asks
        return None


def settings_digest(config: Mapping[str, str] | None) -> str | None:
    """SHA-256 of a configuration without data, weights and folders, for what others may see.

    A path that can be guessed would be found by its hash, and its folders may be called after patients.

    Args:
        config: result of :func:`config_digest`.
    """
    if not config:
        return None
    kept = {key: value for key, value in config.items() if not _names_files(key)}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _names_files(key: str) -> bool:
    parts = [part for part in key.split("#") if not part.isdigit()]
    last = parts[-1] if parts else ""
    return bool(set(parts) & set(RUN_KEYS)) or last in DATA_OPTIONS or last.endswith(("_dir", "weights"))


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
