"""Preprocessed training entries on disk, where a crash, a kill or a damaged file costs a rebuild and nothing else.

A cache file is ``prefix | head | tensors``. The prefix holds the length and the SHA-256 of all that follows, checked at
every load. The head is one line of JSON: what the entry was made from, and its skeleton (everything but the tensors).
The tensors are a plain list, read with ``weights_only=True``, so nothing in a file can run code.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import json
import logging
import os
import re
import struct
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import TraceKeys

from .. import __version__
from ..files import sha256, split_part, stamp
from ..paths import as_path
from ..tensor_files import load_tensors

logger = logging.getLogger(__name__)

FORMAT = 1
_MAGIC = b"semsynth-cache\n\0"
_PREFIX = struct.Struct("<16sQ32s")  # magic, length of the rest, SHA-256 of the rest
_STALE_SECONDS = 3600  # a temporary file this old has lost its writer
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


class DiskCache:
    """Results of deterministic transforms on disk, one file per entry; use one folder per chain of transforms.

    A file is used only if it is whole and was made by the same versions of semsynth, MONAI and torch, with the same
    transforms (classes, the source files of these classes, parameters), from the same entry and the same source files.
    Source files are compared by size and modification time: hashing them at each load would read everything that the
    cache is there to spare, over the hospital's network. Not seen are therefore a change that keeps both, and a change
    of code that a transform calls in other modules under an unchanged version; remove the folder after one.

    Files are named after the entry, so a changed transform or source replaces its predecessor. Several processes may
    share the folder. The folder may be removed at any time.

    Args:
        folder: folder of the files, made when missing. One that cannot be written to is only read, with a warning.
        transforms: the deterministic transforms whose result is cached, as configured.
    """

    def __init__(self, folder: str | Path, transforms: Sequence[Callable[..., Any]]) -> None:
        self.folder = as_path(folder, "cache_dir")
        self._transforms, self._usable, self._writable = "", True, True
        try:
            # a hash instead of the transforms: taken before any use changes them, and the same in every worker
            self._transforms = _digest(describe(list(transforms)))
        except Exception as error:
            self._usable = False
            self._give_up(error)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            self._remove_stale()
        except OSError as error:
            self._give_up(error)

    def load(self, entry: Mapping[str, Any], build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cached result for ``entry``, or that of ``build()``, which is then stored.

        Values come back equal: tensors, MetaTensors (metadata and applied operations included), arrays, numbers,
        strings, and lists, tuples and dictionaries of these. A file that cannot be used is named in a warning with the
        reason, and replaced.

        Args:
            entry: input of the transforms: file names and further values.
            build: applies the transforms to the entry.

        Raises:
            Exception: whatever ``build`` raises; never anything because of the cache.
        """
        if not self._usable:
            return build()
        try:  # before building: a source that changes meanwhile is noticed at the next load
            path, origin = self.folder / file_name(entry), self._origin(entry)
        except Exception as error:
            self._give_up(error)
            return build()
        try:
            return _unpack(path.read_bytes(), origin)
        except FileNotFoundError:
            pass
        except (OSError, _UnusableError) as error:
            logger.warning("cache file %s is not used: %s; the entry is built again", path, error)
        result = build()
        if self._writable:
            try:
                _write(path, _pack(result, origin))
            except Exception as error:
                self._give_up(error)
        return result

    def _origin(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        versions = {
            "cache": str(FORMAT),
            "semsynth": __version__,
            "monai": str(monai.__version__),
            "torch": str(torch.__version__),
        }
        return {
            "versions": versions,
            "transforms": self._transforms,
            "entry": _digest(describe(entry)),
            "sources": _sources(entry),
        }

    def _give_up(self, error: Exception) -> None:
        """Stop writing, with one warning (per process): a cache must not end a training."""
        self._writable = False
        logger.warning("cache folder %s: no more entries are stored (%s); going on without", self.folder, error)

    def _remove_stale(self) -> None:
        for path in self.folder.glob(".semsynth-*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


class _UnusableError(Exception):
    """Why a cache file cannot be used."""


def file_name(entry: Mapping[str, Any]) -> str:
    """The entry's case name and a hash of its texts (file names), which stay when its other values change."""
    texts = {str(key): str(value) for key, value in entry.items() if isinstance(value, str | PurePath)}
    case = re.sub(r"[^\w.-]", "_", str(entry.get("case", "entry")), flags=re.ASCII)[:60].lstrip(".")
    return f"{case}-{_digest(describe(texts or entry))[:16]}.cache"


def _sources(entry: Mapping[str, Any]) -> dict[str, list[int]]:
    """The stamp of every value that names a file, or a folder by its whole path, alone or in a list."""
    sources = {}
    for value in entry.values():
        for name in value if isinstance(value, list | tuple) else [value]:
            if isinstance(name, str | PurePath):
                with suppress(OSError, ValueError):  # a text that is no file name
                    place, _ = split_part(str(name))
                    if place.is_file() or (place.is_absolute() and place.is_dir()):  # a case may be called as a folder
                        sources[str(name)] = list(stamp(str(name)))
    return sources


# ---- the file


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Whole or not at all; a name of its own per writer, also on other machines and in other threads.

    Raises:
        OSError: where it cannot be written.
    """
    temporary = path.with_name(f".semsynth-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pack(value: Mapping[str, Any], origin: Mapping[str, Any]) -> list[bytes | memoryview]:
    """The parts of a cache file.

    Raises:
        TypeError: for a value that cannot be stored.
    """
    tensors: list[torch.Tensor] = []
    head = json.dumps({"origin": origin, "value": _encode(value, tensors)}).encode() + b"\n"
    stream = io.BytesIO()
    torch.save(tensors, stream)
    rest: list[bytes | memoryview] = [head, stream.getbuffer()]
    digest = hashlib.sha256()
    for part in rest:
        digest.update(part)
    return [_PREFIX.pack(_MAGIC, sum(len(part) for part in rest), digest.digest()), *rest]


def _unpack(data: bytes, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The value that a cache file holds.

    Raises:
        _UnusableError: with the reason, when it is not whole or was made from something else.
    """
    if not data:
        raise _UnusableError("it is empty")
    if len(data) < _PREFIX.size:
        raise _UnusableError(f"it is truncated to {len(data)} bytes")
    magic, length, digest = _PREFIX.unpack_from(data)
    rest = memoryview(data)[_PREFIX.size :]
    if magic == _MAGIC and len(rest) < length:
        raise _UnusableError(f"it is truncated to {len(data)} bytes of {length + _PREFIX.size}")
    if magic != _MAGIC or len(rest) != length or hashlib.sha256(rest).digest() != digest:
        raise _UnusableError("it is damaged (its SHA-256 does not match)")
    try:
        end = data.index(b"\n", _PREFIX.size)
        head = json.loads(data[_PREFIX.size : end])
        _check_origin(head["origin"], origin)
        tensors = load_tensors("its tensors", io.BytesIO(memoryview(data)[end + 1 :]))
        value: dict[str, Any] = _decode(head["value"], tensors)
    except _UnusableError:
        raise
    except Exception as error:  # whole, yet unreadable here, such as tensors of a device that is not there
        raise _UnusableError(f"it cannot be loaded ({error})") from error
    return value


def _check_origin(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless the two agree.

    Raises:
        _UnusableError: naming the first difference.
    """
    if found["versions"] != wanted["versions"]:
        apart = [f"{name} {found['versions'].get(name)}, now {now}" for name, now in wanted["versions"].items()
                 if found["versions"].get(name) != now]  # fmt: skip
        raise _UnusableError(f"it was made by other versions ({'; '.join(apart)})")
    if found["transforms"] != wanted["transforms"]:
        raise _UnusableError("it was made by other transforms")
    if found["sources"] != wanted["sources"]:
        names = sorted({*found["sources"], *wanted["sources"]})
        changed = [name for name in names if found["sources"].get(name) != wanted["sources"].get(name)]
        raise _UnusableError(f"its source file changed: {', '.join(changed)}")
    if found != wanted:
        raise _UnusableError("it was made from another entry")


# ---- values as JSON and tensors


def _encode(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value as JSON, in which tensors and arrays are numbers into ``tensors``, to which they are appended.

    Raises:
        TypeError: for a type that cannot be stored.
    """
    if isinstance(value, MetaTensor):
        if value.pending_operations:
            raise TypeError("a MetaTensor with pending (lazy) operations cannot be stored")
        # the id is an address of this process; none is what MONAI's inverse takes in place of it
        applied = [{**operation, TraceKeys.ID: TraceKeys.NONE} for operation in value.applied_operations]
        kind, index = _encode(value.as_tensor(), tensors)
        return [f"meta{kind}", index, _encode(value.meta, tensors), _encode(applied, tensors)]
    if isinstance(value, torch.Tensor):
        plain = value.detach().as_subclass(torch.Tensor)
        whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        tensors.append(plain if whole else plain.clone())  # of a view, all of what it looks into would be stored
        return ["tensor", len(tensors) - 1]
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject and value.dtype.names is None:
        flat = np.array(value, order="C").reshape(-1).view(np.uint8)  # torch lacks some of numpy's types
        tensors.append(torch.from_numpy(flat))
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return [kind, len(tensors) - 1, value.dtype.str, list(value.shape)]
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", [_encode(item, tensors) for item in value]]
    if isinstance(value, Mapping):
        return ["dict", [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]]
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored")


def _decode(code: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """What :func:`_encode` was given."""
    if not isinstance(code, list):
        return code
    kind, content, *more = code
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_decode(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "tensor":
        return tensors[content]
    if kind == "metatensor":
        meta, applied = (_decode(item, tensors) for item in more)
        return MetaTensor(tensors[content], meta=meta, applied_operations=applied)
    array = tensors[content].numpy().view(np.dtype(more[0])).reshape(more[1])
    return array if kind == "array" else array[()]


# ---- what makes two transforms, or two entries, the same


def describe(value: Any, above: tuple[int, ...] = ()) -> str:
    """A text that is equal for equal values, in every process: class paths and parameters, never addresses.

    Objects are described by their class, its source file and all their attributes (also private ones: a parameter may
    be kept there), recursively; functions by their code; arrays and tensors by a hash of their content.

    Args:
        value: anything, such as a list of transforms or an entry of a datalist.
        above: addresses of the objects that ``value`` is inside of, so that a cycle ends.
    """
    if id(value) in above:
        return "above"
    inner = functools.partial(describe, above=(*above, id(value)))
    if isinstance(value, Enum):
        return f"{_path(type(value))}.{value.name}"
    if isinstance(value, torch.Tensor):
        content = value.detach().as_subclass(torch.Tensor).cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{value.dtype} {tuple(value.shape)} {_digest(content.numpy())} {inner(getattr(value, 'meta', None))}"
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return f"{value.dtype.str} {value.shape} {_digest(np.ascontiguousarray(value).tobytes())}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | PurePath):
        return f"{type(value).__name__} {str(value)!r}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{inner(key)}: {inner(item)}" for key, item in value.items())) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[" + ", ".join(map(inner, value)) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(inner, value))) + "}"
    return _describe_object(value, inner)


def _describe_object(value: Any, inner: Callable[[Any], str]) -> str:
    if isinstance(value, type):
        return f"{_path(value)} {_source(value)}"
    if isinstance(value, functools.partial):
        return f"partial{inner([value.func, value.args, value.keywords])}"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__self__)}.{value.__name__}"
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{_path(value)}{inner([value.__code__, value.__defaults__, value.__kwdefaults__, cells])}"
    if isinstance(value, types.CodeType):
        return f"code{inner([value.co_code, value.co_names, value.co_consts])}"
    if isinstance(value, types.BuiltinFunctionType | types.ModuleType | logging.Logger):
        return f"{_path(value)} {getattr(value, '__name__', '')}"
    name = f"{_path(type(value))} {_source(type(value))}"
    if hasattr(value, "__dict__"):
        return name + inner(vars(value))
    text = repr(value)
    return name if _ADDRESS.search(text) else f"{name} {text}"


def _path(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _source(kind: type) -> str:
    """SHA-256 of the file that defines the class, so that an edited transform is another one; '' without a file."""
    module = sys.modules.get(kind.__module__)
    try:
        return _file_digest(inspect.getfile(module)) if module else ""
    except (OSError, TypeError):  # typed in, or built in
        return ""


_file_digest = functools.lru_cache(maxsize=None)(sha256)


def _digest(content: Any) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content).hexdigest()
