"""What damages an input file: values of JSON files, headers and voxels of volumes, tensors of weights, bytes, links."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import torch

DEEP = "a list in a list, 100 000 times"
BOMB = gzip.compress(bytes(1 << 26))  # 64 MiB of zeros; members of a gzip file may follow each other


@dataclass(frozen=True)
class JsonChange:
    """One node of a JSON file: replaced, copied under another key, renamed or deleted."""

    file: str
    node: int
    action: str
    value: Any

    def apply(self, folder: Path) -> None:
        """See the class."""
        content = {"": json.loads((folder / self.file).read_text())}
        places = list(_places(content))
        holder, key = places[self.node % len(places)]
        value = self.value
        if self.action == "delete" and key != "":
            del holder[key]
        elif self.action == "rename" and isinstance(holder, dict) and key != "":
            holder[str(value)] = holder.pop(key)
        elif self.action == "copy" and isinstance(holder, list):
            holder.append(holder[key])
        elif self.action == "other":
            holder[key] = json.loads(json.dumps(_at(*places[(self.node * 7 + 3) % len(places)])))
        else:
            holder[key] = value
        text = json.dumps(content[""])
        deep = "[" * 100_000 + "]" * 100_000
        (folder / self.file).write_text(text.replace(json.dumps(DEEP), deep))


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)


def _at(holder: Any, key: Any) -> Any:
    return holder[key]


@dataclass(frozen=True)
class CellChange:
    """One cell of a CSV file."""

    file: str
    cell: int
    value: str

    def apply(self, folder: Path) -> None:
        """See the class."""
        lines = [line.split(",") for line in (folder / self.file).read_text().splitlines()]
        line, column = [(line, i) for line in lines for i in range(len(line))][self.cell % sum(map(len, lines))]
        line[column] = self.value
        text = "\n".join(",".join(line) for line in lines) + "\n"
        (folder / self.file).write_text(text, encoding="utf-8", errors="surrogateescape")


# Offset and struct format of one item, number of items.
NIFTI: dict[str, tuple[int, str, int]] = {
    "sizeof_hdr": (0, "<i", 1),
    "dim_info": (39, "<b", 1),
    "dim": (40, "<h", 8),
    "datatype": (70, "<h", 1),
    "bitpix": (72, "<h", 1),
    "pixdim": (76, "<f", 8),
    "vox_offset": (108, "<f", 1),
    "scl_slope": (112, "<f", 1),
    "scl_inter": (116, "<f", 1),
    "xyzt_units": (123, "<b", 1),
    "cal_max": (124, "<f", 1),
    "descrip": (148, "<i", 20),
    "qform_code": (252, "<h", 1),
    "sform_code": (254, "<h", 1),
    "quatern": (256, "<f", 6),
    "srow": (280, "<f", 12),
    "intent_name": (328, "<i", 4),
    "magic": (344, "<i", 1),
}


@dataclass(frozen=True)
class NiftiChange:
    """One number of a NIfTI header."""

    file: str
    field: str
    item: int
    value: float

    def apply(self, folder: Path) -> None:
        """See the class."""
        path = folder / self.file
        data = bytearray(gzip.decompress(path.read_bytes()))
        offset, kind, count = NIFTI[self.field]
        place = offset + struct.calcsize(kind) * (self.item % count)
        struct.pack_into(kind, data, place, _fitting(self.value, kind))
        path.write_bytes(gzip.compress(bytes(data), 1))


def _fitting(value: float, kind: str) -> float:
    if kind == "<f":
        return max(min(value, 3e38), -3e38) if np.isfinite(value) else value
    bits = 8 * struct.calcsize(kind) - 1
    whole = 0 if np.isnan(value) else int(max(min(value, 2.0**62), -(2.0**62)))
    return max(min(whole, 2**bits - 1), -(2**bits))


VOXELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one is NaN": lambda x: _with(x, np.nan),
    "one is infinite": lambda x: _with(x, -np.inf),
    "one is 1e300": lambda x: _with(x, 1e300),
    "one is -1": lambda x: _with(x, -1),
    "one is 1e6": lambda x: _with(x, 1e6),
    "all are NaN": lambda x: np.full_like(x, np.nan),
    "all are 0": np.zeros_like,
    "all are 7": lambda x: np.full_like(x, 7),
    "all are 0.5 more": lambda x: x + 0.5,
    "negative": lambda x: -x,
    "all 1e30 times larger": lambda x: x * 1e30,
    "a fourth axis": lambda x: x[..., None],
    "two volumes": lambda x: np.stack([x, x], -1),
    "one slice": lambda x: x[..., :1],
    "two axes": lambda x: x[..., 0],
    "no voxel": lambda x: x[:0],
    "one voxel": lambda x: x[:1, :1, :1],
    "a slice less": lambda x: x[:-1],
    "complex": lambda x: x.astype(np.complex64),
    "colours": lambda x: np.zeros(x.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
    "uint64": lambda x: np.abs(x).astype(np.uint64),
}


def _with(x: np.ndarray, value: float) -> np.ndarray:
    x = x.copy()
    x[x.shape[0] // 2, x.shape[1] // 2, x.shape[2] // 2] = value
    return x


@dataclass(frozen=True)
class VoxelChange:
    """The voxels of a NIfTI file, one of :data:`VOXELS`."""

    file: str
    action: str

    def apply(self, folder: Path) -> None:
        """See the class."""
        path = folder / self.file
        volume = nib.load(path)
        changed = VOXELS[self.action](np.asarray(volume.dataobj, np.float64))  # type: ignore[attr-defined]
        written = nib.Nifti1Image(changed, volume.affine, dtype=changed.dtype)  # type: ignore[attr-defined]
        path.write_bytes(gzip.compress(written.to_bytes(), 1))


@dataclass(frozen=True)
class NrrdChange:
    """One line of an NRRD header: another value, deleted for None."""

    file: str
    line: int
    value: str | None

    def apply(self, folder: Path) -> None:
        """See the class."""
        path = folder / self.file
        head, gap, data = path.read_bytes().partition(b"\n\n")
        lines = head.split(b"\n")
        number = self.line % len(lines)
        if self.value is None:
            del lines[number]
        else:
            name, separator, _ = lines[number].partition(b":=" if b":=" in lines[number] else b": ")
            lines[number] = name + separator + self.value.encode("utf-8", "surrogateescape")
        path.write_bytes(b"\n".join(lines) + gap + data)


def _spoilt(state: dict[str, Any], value: float) -> dict[str, Any]:
    return {key: torch.full_like(tensor, value) if tensor.is_floating_point() else tensor
            for key, tensor in state.items()}  # fmt: skip


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda state: _spoilt(state, float("nan")),
    "infinite": lambda state: _spoilt(state, float("inf")),
    "too large for float16": lambda state: _spoilt(state, 1e30),
    "other names": lambda state: {f"{key}\x1b[31mRED\n": tensor for key, tensor in state.items()},
    "numbers as names": lambda state: dict(enumerate(state.values())),
    "half of them": lambda state: dict(list(state.items())[::2]),
    "another shape": lambda state: {key: tensor[..., None] for key, tensor in state.items()},
    "no dimensions": lambda state: {key: torch.tensor(1.0) for key in state},
    "whole numbers": lambda state: {key: tensor.long() for key, tensor in state.items()},
    "complex": lambda state: {key: tensor.to(torch.complex64) for key, tensor in state.items()},
    "sparse": lambda state: {key: tensor.to_sparse() for key, tensor in state.items()},
    "empty tensors": lambda state: {key: tensor.flatten()[:0] for key, tensor in state.items()},
    "meta": lambda state: {key: tensor.to("meta") for key, tensor in state.items()},
    "texts": lambda state: dict.fromkeys(state, "x"),
    "a list": lambda state: list(state.values()),
    "nothing": lambda state: {},
    "null": lambda state: None,
    "objects are null": lambda state: {"objects": None},
    "network is null": lambda state: {"objects": {"network": None}},
    "network is a number": lambda state: {"objects": {"network": 3}},
    "state_dict within": lambda state: {"state_dict": state, "epoch": 3},
}


@dataclass(frozen=True)
class WeightsChange:
    """The tensors of a file of weights, one of :data:`WEIGHTS`."""

    file: str
    action: str

    def apply(self, folder: Path) -> None:
        """See the class."""
        path = folder / self.file
        state = torch.load(path, weights_only=True)
        inner = state.get("objects", {}).get("network") if isinstance(state, dict) else None
        if inner:
            changed = WEIGHTS[self.action](inner)
            torch.save(state | {"objects": {"network": changed}}, path)
        elif isinstance(state, dict):
            torch.save(WEIGHTS[self.action](state), path)


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "the last byte is missing": lambda data: data[:-1],
    "ten bytes": lambda data: data[:10],
    "bytes behind": lambda data: data + b"trailing\0" * 100,
    "twice": lambda data: data * 2,
    "a byte is changed": lambda data: data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :],
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "text": lambda data: b"no volume",
    "packed once more": lambda data: gzip.compress(data),
    "unpacked": lambda data: gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data,
    "4 GiB of zeros behind": lambda data: data + BOMB * 64,
    "a pickle": lambda data: pickle.dumps(_Payload()),
    "null bytes": lambda data: bytes(1000),
}


@dataclass(frozen=True)
class BytesChange:
    """The bytes of any file, one of :data:`BYTES`."""

    file: str
    action: str

    def apply(self, folder: Path) -> None:
        """See the class."""
        path = folder / self.file
        path.write_bytes(BYTES[self.action](path.read_bytes()))


PLACES = ("missing", "a folder", "a link to nowhere", "a link to itself", "a link to another file", "a link upwards")


@dataclass(frozen=True)
class PlaceChange:
    """Something else in a file's place, one of :data:`PLACES`; of its folder where ``level`` is 1."""

    file: str
    action: str
    level: int

    def apply(self, folder: Path) -> None:
        """See the class."""
        path = folder / self.file
        if self.level and len(Path(self.file).parts) > self.level:
            path = path.parent
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if not path.parent.is_dir():
            return
        if self.action == "a folder":
            path.mkdir()
        elif self.action.startswith("a link"):
            target = {"nowhere": "nowhere", "itself": path.name, "another file": "../datalist.json", "upwards": ".."}
            path.symlink_to(target[self.action.removeprefix("a link to ").removeprefix("a link ")])


FileChange: TypeAlias = (
    JsonChange | CellChange | NiftiChange | VoxelChange | NrrdChange | WeightsChange | BytesChange | PlaceChange
)
