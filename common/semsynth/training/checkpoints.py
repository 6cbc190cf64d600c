"""Checkpoint files on disk: written whole, listed with their SHA-256, read back only if they are what was written.

A folder holds ``checkpoint_e<epoch>_i<iteration>.pt`` files and ``manifest.json``. A save writes the new file beside
its name, flushes it to the disk and renames it, then replaces the manifest, and removes old files last: at any moment
a kill leaves a manifest whose files are whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import torch

from ..errors import InputError
from ..files import atomic_path, remove_left_over, sha256
from ..json_files import read_object_or_none
from ..ownership import refuse
from ..paths import as_path
from ..provenance.weights import MANIFEST, is_as_stated
from ..tensor_files import SAFETENSORS, read_tensors, safetensors_bytes

logger = logging.getLogger(__name__)
KEPT_ASIDE = 2
"""Folders of checkpoints of earlier trainings that are kept beside those of now."""
_NAME = re.compile(r"checkpoint_e\d+_i\d+\.pt")


class _HashingFile:
    """A binary file that hashes what is written to it, so that it need not be read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


def save_atomically(
    state: Mapping[str, Any],
    path: str | Path,
    *,
    compressed: bool = False,
    describe: Callable[[Path], Any] | None = None,
) -> str:
    """``torch.save`` to a file beside ``path``, flushed to the disk, then renamed: a kill leaves the old file whole.

    Args:
        state: state of tensors, numbers and texts; of tensors alone for safetensors.
        path: the file; one that ends in ``.safetensors`` is written in that format, which holds nothing but tensors.
        compressed: its parts are deflated; ``torch.load`` reads it all the same (but for ``mmap=True``).
        describe: called with the finished file before it gets its name, to write what stands beside it.

    Returns:
        The file's SHA-256.

    Raises:
        InputError: when it cannot be written (disk full, no permission); an existing file is left as it is.
    """
    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as stream:
                hashing = _HashingFile(stream)
                if path.suffix == SAFETENSORS:
                    hashing.write(safetensors_bytes(state))
                elif compressed:
                    hashing.write(_deflated(state))
                else:
                    torch.save(dict(state), hashing)  # type: ignore[arg-type]
                stream.flush()
                os.fsync(stream.fileno())
            digest = hashing.digest.hexdigest()
            if describe is not None:
                describe(temporary)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _os_error(error)
        if reason is None:
            raise
        raise InputError(
            f"{path}: cannot be written ({reason.strerror or reason}); what was saved before is untouched. Free disk "
            "space or give another run_dir, then go on with --resume True"
        ) from error
    return digest


def _deflated(state: Mapping[str, Any]) -> bytes:
    """What ``torch.save`` writes, a zip of stored parts, with its parts deflated; the same bytes for the same state."""
    plain, small = BytesIO(), BytesIO()
    torch.save(dict(state), plain)
    with ZipFile(plain) as source, ZipFile(small, "w", ZIP_DEFLATED, compresslevel=9) as target:
        for part in source.infolist():
            target.writestr(ZipInfo(part.filename), source.read(part), ZIP_DEFLATED, 9)
    return small.getvalue()


def rounded(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """A float16 tensor with mantissas of ``bits`` bits, to the nearest, in place of 10: the rest deflates well.

    A value changes by 2^-(bits + 1) of itself at most, one below 2^-14 by 2^-(bits + 15). Other types stay.

    Raises:
        InputError: for other bits than 1 to 10.
    """
    if not 1 <= bits <= 10:
        raise InputError(f"mantissas have 1 to 10 bits, got {bits}")
    if tensor.dtype != torch.float16 or bits == 10:
        return tensor
    step = 1 << (10 - bits)
    pattern = tensor.contiguous().view(torch.int16).to(torch.int32)
    nearest = ((pattern + step // 2) & ~(step - 1)).to(torch.int16).view(torch.float16)
    return torch.where(nearest.isfinite(), nearest, tensor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind one that torch raised in its place."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class CheckpointFolder:
    """The checkpoints of one training, the last few of them.

    Args:
        folder: made at the first save.
        keep: number of checkpoints to keep, at least 1.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise InputError(f"keep must be 1 checkpoint or more, got {keep}")
        self.folder, self.keep = as_path(folder, "run_dir"), keep

    def save(self, state: Mapping[str, Any], *, epoch: int, iteration: int) -> Path:
        """Write one checkpoint, list it, and remove those beyond ``keep``.

        Raises:
            InputError: when it cannot be written; the earlier ones are untouched.
        """
        path = self.folder / f"checkpoint_e{epoch:04d}_i{iteration:07d}.pt"
        listed = [entry for entry in self.listed() if entry["file"] != path.name]
        digest = save_atomically(state, path)
        listed = [*listed, {"file": path.name, "sha256": digest, "epoch": epoch, "iteration": iteration}][-self.keep :]
        try:
            self._list(listed)
        except OSError as error:
            raise InputError(
                f"{self.folder / MANIFEST}: cannot be written ({error.strerror}); free disk space, then resume"
            ) from error
        kept = {entry["file"] for entry in listed}
        for old in self.folder.iterdir():
            if _NAME.fullmatch(old.name) and old.name not in kept:
                old.unlink(missing_ok=True)
        remove_left_over(self.folder)
        return path

    def _list(self, entries: Sequence[Mapping[str, Any]]) -> None:
        with atomic_path(self.folder / MANIFEST) as temporary, temporary.open("w", encoding="utf-8") as stream:
            json.dump({"checkpoints": list(entries)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())  # on the disk before the files that it no longer lists are removed
        _sync_folder(self.folder)

    def refuse_foreign(self) -> None:
        """Raise where the folder's manifest would replace a file of that name that is none.

        Raises:
            InputError: naming it.
        """
        path = self.folder / MANIFEST
        content = read_object_or_none(path)
        if content is not None and "checkpoints" not in content:
            refuse([f"{path}: is no list of checkpoints"], "run_dir")

    def set_aside(self) -> Path | None:
        """Move what an earlier training has left to a folder beside; that folder, or None where there is nothing.

        Of such folders the newest two stay; of older ones the checkpoints are removed, and nothing else.
        """
        if not self.folder.is_dir() or not any(_NAME.fullmatch(path.name) for path in self.folder.iterdir()):
            return None
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = self.folder.rename(self.folder.with_name(f"{self.folder.name}_before_{stamp}"))
        aside_before = re.compile(rf"{re.escape(self.folder.name)}_before_\d{{8}}T\d{{12}}")
        for old in sorted(p for p in self.folder.parent.iterdir() if aside_before.fullmatch(p.name))[:-KEPT_ASIDE]:
            _remove_checkpoints(old)
        return aside

    def listed(self) -> list[dict[str, Any]]:
        """What the manifest lists, oldest first; [] where there is none or it cannot be read."""
        entries = (read_object_or_none(self.folder / MANIFEST) or {}).get("checkpoints")
        return [entry for entry in entries if _is_entry(entry)] if isinstance(entries, list) else []

    def load_newest(self) -> tuple[dict[str, Any], Path] | None:
        """The newest checkpoint that is whole, and its file; None where no checkpoint was ever written.

        A damaged one is passed over with a warning.

        Raises:
            InputError: when there are checkpoints and none of them is good.
        """
        listed = self.listed()
        if not listed:  # a lost manifest: the files by their iteration, checked by reading them
            names = sorted(
                (p.name for p in self.folder.glob("checkpoint_*.pt") if _NAME.fullmatch(p.name)),
                key=lambda name: int(name.rpartition("_i")[2][:-3]),
            )
            listed = [{"file": name, "sha256": None} for name in names]
        if not listed:
            return None
        problems = []
        for entry in reversed(listed):
            path = self.folder / entry["file"]
            try:
                return read_checkpoint(path, entry["sha256"]), path
            except InputError as error:
                logger.warning("%s; trying the one before", error)
                problems.append(str(error))
        raise InputError(f"{self.folder}: no good checkpoint; remove the folder to start afresh", problems)


def _remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints and their list in a folder, and the folder if nothing else is in it."""
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) or path.name == MANIFEST:
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_entry(entry: Any) -> bool:
    """Whether an entry of a manifest names a checkpoint of its own folder."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and _NAME.fullmatch(entry["file"]) is not None
        and isinstance(entry.get("sha256"), str)
    )


def read_checkpoint(path: str | Path, digest: str | None = None) -> dict[str, Any]:
    """Read one checkpoint (tensors, numbers and text only: nothing in it is executed).

    Args:
        path: the file.
        digest: the SHA-256 that it has to have, or None.

    Raises:
        InputError: missing, damaged, or no checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if digest is not None and sha256(path) != digest:
        raise InputError(f"{path}: damaged, its SHA-256 is not the one of the manifest")
    state: Any = read_tensors(path, "a checkpoint", fix="take another one")
    if not isinstance(state, dict) or not {"objects", "epoch", "iteration"} <= set(state):
        raise InputError(f"{path}: is no training checkpoint, it has no objects, epoch and iteration")
    kinds = {"objects": dict, "epoch": int, "iteration": int, "record": dict | None}
    wrong = [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]
    if wrong:
        raise InputError(f"{path}: is no training checkpoint, its {', '.join(wrong)} are of another kind; take another")
    return state


def newest_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint by its file, by its folder, or by the run's folder.

    Raises:
        InputError: nothing there, or nothing good; a file that is not the one that the list beside it describes.
    """
    path = Path(path)
    if path.is_file():
        is_as_stated(path)
        return read_checkpoint(path)
    for folder in (path, path / "checkpoints"):
        found = CheckpointFolder(folder).load_newest() if folder.is_dir() else None
        if found:
            return found[0]
    raise InputError(f"{path}: no checkpoint there; give a run's folder or a checkpoint_….pt")


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators (CPU and CUDA), as tensors and numbers."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Bring the generators back to :func:`random_state`; CUDA's where there are as many devices as then."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def not_finite(state: Any, name: str = "") -> list[str]:
    """Names of the tensors in a (nested) state that hold NaN or infinite values, or none that can be looked at."""
    if isinstance(state, torch.Tensor):
        try:
            return [] if state.isfinite().all() else [name]
        except (NotImplementedError, RuntimeError):  # without values, or of a form that no network here has
            return [name]
    parts: Sequence[tuple[Any, Any]] = ()
    if isinstance(state, Mapping):
        parts = list(state.items())
    elif isinstance(state, list | tuple):
        parts = list(enumerate(state))
    return [found for key, part in parts for found in not_finite(part, f"{name}.{key}" if name else str(key))]
