"""Files of weights, read as tensors, numbers and texts: nothing in them is executed."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from .errors import InputError, is_out_of_memory
from .paths import as_path
from .tensor_files import load_tensors

_UNSAFE = ("GLOBAL", "allowlist")
"""What PyTorch says of a file that names classes or functions, which loading it without care would run."""


def read_tensors(path: str | Path, what: str = "weights", *, fix: str = "copy the file again") -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Args:
        path: the file.
        what: it is to hold, for the message.
        fix: what to do where it cannot be read, for the message.

    Raises:
        InputError: in one line, for a file that is missing, cannot be read, is damaged, would unpack to much more
            than it is, or holds anything that would be executed.
    """
    path = as_path(path, what)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: is a pipe or a device; give a file of weights")
        with path.open("rb"):
            pass
        return load_tensors(path)
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
    return "it is damaged, cut short, or no file that torch.save wrote"
