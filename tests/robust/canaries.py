"""Texts of a patient that nobody writes by chance, put into all that a data set has, and searched for in files.

So are the date of the input's files, hashes of names (a name that can be guessed is found by its hash), the name of the
machine and the folder of the program.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import nrrd

CASE, PATIENT, FOLDER, FILE = "zzCASEzz", "zzPATIENTzz", "zzFOLDERzz", "zzFILEzz"
HEADER, NOTE, HOST = "zzHEADERzz", "zzNOTEzz", "zzHOSTzz"
PROGRAM = str(Path(__file__).resolve().parents[2])
"""Folder of this project: those of people are called after them."""
DATE, HASH = "the date of the input's files", "the hash of a name"
CANARIES = (CASE, PATIENT, FOLDER, FILE, HEADER, NOTE, HOST, PROGRAM)
_NAMES = [name for n in range(12) for name in (f"{CASE}_{n:03d}", f"{PATIENT}_{n}")]
_HASHES = {
    hashlib.new(kind, f"{salt}{name}".encode()).hexdigest()[:8]
    for kind in ("md5", "sha1", "sha256") for salt in ("", "semsynth:", "semsynth name:") for name in _NAMES
}  # fmt: skip
_FOUND = re.compile("|".join([*map(re.escape, CANARIES), *_HASHES]).encode(), re.IGNORECASE)
_FIELDS = ("descrip", "aux_file", "db_name", "intent_name", "data_type")
_NUMBERS = ("toffset", "intent_p1", "cal_max", "slice_duration")
_NUMBER = 1234567.0
_WHEN = 981173106
"""In 2001."""
_DATA_URI = re.compile(rb"data:[\w/+.-]+;base64,([A-Za-z0-9+/=]+)")


def spoil(raw: Path) -> None:
    """Make a patient's of each phantom: its name, folder, files, headers, and what the datalist says of it."""
    listed = json.loads((raw / "datalist.json").read_text())
    number = 0
    for split in ("training", "validation", "testing"):
        for entry in listed[split]:
            old, case = entry["case"], entry["case"].replace("phantom", CASE)
            (raw / old).rename(raw / case)
            entry |= {"case": case, "patient": f"{PATIENT}_{number}", "note": NOTE}
            for role in ("image", "endo", "wall", "scar", "label"):
                path = raw / case / f"{role}.nii.gz"
                poison(path)
                own = raw / case / f"{FILE}_{role}.nii.gz"  # a pattern finds image.nii.gz, the datalist this one
                own.write_bytes(path.read_bytes())
                entry[role] = str(own.relative_to(raw))
            (raw / case / ".semsynth-files.json").unlink(missing_ok=True)
            number += 1
    (raw / "datalist.json").write_text(json.dumps(listed | {"description": NOTE, "reference": NOTE}, indent=1))
    make_old(raw)


def annotate(prepared: Path) -> None:
    """Make of prepared cases what another program may have made: texts in their headers, further keys in their list."""
    listed = json.loads((prepared / "datalist.json").read_text())
    for split in ("training", "validation", "testing"):
        for entry in listed.get(split, []):
            entry["note"] = NOTE
            for role in ("image", "label"):
                poison(prepared / entry[role])
    (prepared / "datalist.json").write_text(json.dumps(listed | {"description": NOTE, "reference": NOTE}, indent=1))
    make_old(prepared)


def make_old(folder: Path) -> None:
    """Give all files the date that is searched for."""
    for path in folder.rglob("*"):
        os.utime(path, (_WHEN, _WHEN))


def poison(path: Path) -> None:
    """A canary in every text and free number of a NIfTI header, in extensions of two kinds, and in gzip's header."""
    image = nib.load(path)
    new = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine, image.header)
    for name in _FIELDS:
        new.header[name] = HEADER
    for name in _NUMBERS:
        new.header[name] = _NUMBER
    new.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    for kind in ("comment", "afni"):
        new.header.extensions.append(nib.nifti1.Nifti1Extension(kind, HEADER.encode()))
    nib.save(new, path)
    packed = io.BytesIO()
    name = f"{FILE}.nii"  # which the command gzip writes, and the date
    with gzip.GzipFile(filename=name, mode="wb", fileobj=packed, mtime=_WHEN) as stream:
        stream.write(gzip.decompress(path.read_bytes()))
    path.write_bytes(packed.getvalue())


def poison_nrrd(path: Path) -> None:
    """A canary in a key and a field of an NRRD header."""
    data, header = nrrd.read(str(path))
    nrrd.write(str(path), data, {**header, "PatientName": HEADER, "content": HEADER})


def leaks(folder: Path) -> dict[str, set[str]]:
    """File, folder or link below ``folder`` → canaries that its name, its date or its bytes hold, in containers too."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        seen = canaries_in(path.name.encode())
        if int(path.lstat().st_mtime) == _WHEN:
            seen.add(DATE)
        if path.is_symlink():
            seen |= canaries_in(str(path.readlink()).encode())
        elif path.is_file():
            seen |= canaries_in(path.read_bytes())
        if seen:
            found[name] = seen
    return found


def canaries_in(content: bytes) -> set[str]:
    """Canaries in bytes, and in what is packed in them."""
    found: set[str] = set()
    for part in _unpacked(content):
        found |= {match.decode().upper() for match in _FOUND.findall(part)}
        if part[344:348] == b"n+1\0" and struct.pack("<f", _NUMBER) in part[:348]:
            found.add(HEADER.upper())
        if part[:2] == b"\x1f\x8b" and part[4:8] == struct.pack("<I", _WHEN):
            found.add(DATE.upper())
        if any(digest.upper() in found for digest in _HASHES):
            found.add(HASH.upper())
    return {canary for canary in (*CANARIES, DATE, HASH) if canary.upper() in found}


def _unpacked(content: bytes, depth: int = 0) -> Iterator[bytes]:
    yield content
    yield content.replace(b"\0", b"")  # texts of two bytes a letter
    if depth > 3:
        return
    for inner in _containers(content):
        yield from _unpacked(inner, depth + 1)


def _containers(content: bytes) -> Iterator[bytes]:
    """What gzip, zip (npz, pt), PNG's compressed texts and base64 in pages hold."""
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _png_texts(content)
    else:
        for match in _DATA_URI.finditer(content):
            yield base64.b64decode(match[1])


def _png_texts(content: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        body = content[at + 8 : at + 8 + size]
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            start = body.find(b"x\x9c")
            if start >= 0:
                yield zlib.decompressobj().decompress(body[start:])
        at += 12 + size
