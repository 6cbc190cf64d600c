"""Files of weights: what is in them is listed before they are loaded, and then they hold tensors of a sane size."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..tensor_files import SAFETENSORS, NoSafetensorsError, load_tensors
from .contents import Contents
from .findings import Checked, Finding
from .names import WEIGHTS

_PARTS = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_ALLOWED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch\.storage "
    r"(Untyped|Typed)Storage|torch Size|torch (float|bfloat|int|uint|complex|bool)\w*"
)
"""What a state dict names: how its tensors are put together, and nothing that does anything else."""
MOST_PICKLE = 1 << 24
"""Bytes of a file's list of tensors: of a hundred thousand tensors. A longer one takes minutes to be read."""
_NAMING = ("GLOBAL", "INST")
_OTHER = ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
SHOWN = 3


def check_weights(contents: Contents) -> Checked:
    """Every file of weights holds tensors, numbers and texts alone, and no tensor that is larger than the file."""
    files = contents.ending(*WEIGHTS)
    findings = [finding for name, path in files.items() for finding in weights_findings(path, name)]
    return Checked("weights", f"{len(files)} files, tensors only", findings)


def weights_findings(path: Path, name: str) -> list[Finding]:
    """What is wrong with one file of weights.

    Args:
        path: the file.
        name: its path in the bundle.
    """
    fix = "get it from somebody who wrote it as a state dict, or as safetensors"
    if not name.lower().endswith(SAFETENSORS):
        reason = _in_pickle(path)
        if reason is not None:
            return [Finding(name, f"{reason}; it is never loaded: {fix}")]
    try:
        content = load_tensors(path)
    except NoSafetensorsError as error:
        return [Finding(name, str(error), refused=False)]
    except InputError as error:
        return [Finding(name, str(error).removeprefix(f"{path}: "))]
    except Exception as error:  # torch's and safetensors' own, for damage of any kind
        lines = str(error).splitlines() or [type(error).__name__]
        return [Finding(name, f"cannot be read as weights ({lines[0][:120]}); {fix}")]
    return [] if _is_plain(content) else [Finding(name, f"holds something else than tensors, numbers and texts; {fix}")]


def _in_pickle(path: Path) -> str | None:
    """What the pickle in a file would call, or None; it is read as a list of instructions, and not run."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            called = _named(stream.read(MOST_PICKLE))
        told = f" that names {', '.join(called)}" if called else ""
        return f"code in a file of weights: a bare pickle{told}, the format before PyTorch 1.6 or a program"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            others = [name for name in names if not _PARTS.fullmatch(name)]
            if others or len({name.split("/")[0] for name in names}) != 1 or len(set(names)) != len(names):
                told = ", ".join(others[:SHOWN]) or "several archives in one"
                return f"code in a file of weights: a TorchScript program, or more than torch.save writes ({told})"
            pickles = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE:
                return "holds no list of its tensors of a sane size"
            named = _named(archive.read(pickles[0]))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"cannot be read as weights ({error})"
    return f"code in a file of weights: its pickle names {', '.join(named)}" if named else None


def _named(pickle: bytes) -> list[str]:
    """What a pickle names, and would call, beyond what a state dict needs; at most a few."""
    found: dict[str, None] = {}
    try:
        for instruction, argument, _ in pickletools.genops(pickle):
            if instruction.name in _NAMING and not _ALLOWED.fullmatch(str(argument)):
                found.setdefault(str(argument).replace(" ", "."))
            elif instruction.name in _OTHER:
                found.setdefault("something by names that it makes itself")
    except Exception as error:  # of any kind that bytes raise which are no pickle
        found.setdefault(f"nothing that can be read to its end ({type(error).__name__})")
    return list(found)[:SHOWN]


def _is_plain(content: Any, depth: int = 0) -> bool:
    if isinstance(content, torch.Tensor):
        return content.layout == torch.strided and content.device.type == "cpu"
    if isinstance(content, dict | list | tuple):
        parts = [*content, *content.values()] if isinstance(content, dict) else content
        return depth < 20 and all(_is_plain(part, depth + 1) for part in parts)
    return content is None or isinstance(content, bool | int | float | str)
