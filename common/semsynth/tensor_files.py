"""Files of tensors (weights, checkpoints, caches), as ``torch.save`` writes them, and safetensors.

They are measured before they are unpacked, and nothing in them is executed.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from .errors import InputError, is_out_of_memory
from .memory import check_fits
from .paths import as_path

MOST_RATIO = 20
"""So many times its own size a file may unpack to. ``torch.save`` stores; float16 weights deflate to a half at best."""
SAFETENSORS = ".safetensors"
"""How files of that format end: a table of names, types and shapes, and the values; nothing that could be executed."""
SMALL = 1 << 26
"""Bytes that any file may unpack to."""
_UNSAFE = ("GLOBAL", "allowlist")
"""What PyTorch says of a file that names classes or functions, which loading it without care would run."""


class NoSafetensorsError(InputError):
    """The package that reads and writes safetensors is not installed."""


def check_tensor_file(path: str | Path, stream: BinaryIO | None = None) -> None:
    """Raise for a file that would unpack to much more than it is, or than the memory that is free.

    Args:
        path: the file, or its name for the message.
        stream: its content, where that is in memory.

    Raises:
        InputError: naming both sizes.
    """
    if stream is None:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file of weights")
        with Path(path).open("rb") as opened:
            check_tensor_file(path, opened)
        return
    stored = stream.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, OSError):
        return  # the older format holds tensors as they are, and of anything else torch says what is wrong with it
    finally:
        stream.seek(0)
    if unpacked > max(MOST_RATIO * stored, SMALL):
        raise InputError(
            f"{path}: {stored} bytes that unpack to {unpacked}, which weights never do; get the file again from where "
            "it comes from"
        )
    check_fits(unpacked, f"{path}: these weights", "use a larger machine, or end other programs")


def load_tensors(path: str | Path, stream: BinaryIO | None = None) -> Any:
    """What a file holds, on the CPU: tensors, numbers and texts; nothing in it is executed.

    Args:
        path, stream: as in :func:`check_tensor_file`.

    Raises:
        InputError: as :func:`check_tensor_file`; for a tensor that is larger than what is stored of it.
        Exception: torch's own for a file that it cannot read.
    """
    check_tensor_file(path, stream)
    if Path(path).suffix.lower() == SAFETENSORS:
        return _load_safetensors(Path(path).read_bytes() if stream is None else stream.read())
    content = torch.load(path if stream is None else stream, map_location="cpu", weights_only=True)
    for name, tensor in _tensors(content):
        needed = tensor.numel() * tensor.element_size()
        if tensor.layout == torch.strided and needed > tensor.untyped_storage().nbytes():
            raise InputError(
                f"{path}: {name} has {tuple(tensor.shape)} values, of which {tensor.untyped_storage().nbytes()} bytes "
                "are stored; get the file again from where it comes from"
            )
    return content


def _load_safetensors(data: bytes) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = _library().load(data)
    return tensors


def safetensors_bytes(state: Mapping[str, Any]) -> bytes:
    """A state dict in the format safetensors.

    Raises:
        InputError: for anything else than tensors; without the package.
    """
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(f"safetensors hold tensors alone, and {', '.join(map(str, others[:3]))} is none; write a .pt")
    # values that two names share are written twice
    written: bytes = _library().save({name: tensor.contiguous().clone() for name, tensor in state.items()})
    return written


def _library() -> Any:
    try:
        from safetensors import torch as library
    except ImportError as error:
        raise NoSafetensorsError(
            "safetensors are read and written by the package safetensors; pip install 'semsynth[trust]', or use a .pt"
        ) from error
    return library


def _tensors(content: Any, name: str = "", seen: set[int] | None = None) -> Iterable[tuple[str, torch.Tensor]]:
    seen = set() if seen is None else seen
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, Mapping | list | tuple) and id(content) not in seen:
        seen.add(id(content))  # lists of one list many times over would not end
        for key, part in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _tensors(part, f"{name}.{key}" if name else str(key), seen)


def read_tensors(
    path: str | Path,
    what: str = "weights",
    *,
    fix: str = "copy the file again",
    check: Callable[[BufferedReader], None] | None = None,
) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Args:
        path: the file.
        what: it is to hold, for the message.
        fix: remedy where it cannot be read, for the message.
        check: called with the open file that is read afterwards, such as to compare its hash: no other file can take
            its place in between.

    Raises:
        InputError: in one line, for a file that is missing, cannot be read, is damaged, would unpack to much more
            than it is, or holds anything that would be executed.
    """
    path = as_path(path, what)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: is a pipe or a device; give a file of weights")
        with path.open("rb") as stream:
            if check is not None:
                check(stream)
            return load_tensors(path, stream)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of weights; check the path") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path}: cannot be read as {what} ({_reason(error)}); {fix}") from error


def _reason(error: Exception) -> str:
    """Why, in words of our own: PyTorch's advise to load the file in a way that runs what is in it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnpicklingError) and any(sign in str(error) for sign in _UNSAFE):
        return "it holds more than tensors, numbers and texts, which could run code and is never loaded"
    return "it is damaged, cut short, or no file that torch.save or safetensors wrote"
