"""Texts of a patient that nobody writes by chance, put into all that a data set has, and searched for in files."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import nrrd

CASE, PATIENT, FOLDER, FILE = "zzCASEzz", "zzPATIENTzz", "zzFOLDERzz", "zzFILEzz"
HEADER, NOTE = "zzHEADERzz", "zzNOTEzz"
CANARIES = (CASE, PATIENT, FOLDER, FILE, HEADER, NOTE)
_FOUND = re.compile("|".join(CANARIES).encode(), re.IGNORECASE)
_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
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


def poison(path: Path) -> None:
    """A canary in every text of a NIfTI header, and in extensions of three kinds."""
    image = nib.load(path)
    new = nib.Nifti1Image(image.dataobj.get_unscaled(), image.affine, image.header)
    for name in _FIELDS:
        new.header[name] = HEADER
    slope = image.header.get_slope_inter()
    new.header.set_slope_inter(*slope)
    for kind in ("comment", "afni"):
        new.header.extensions.append(nib.nifti1.Nifti1Extension(kind, HEADER.encode()))
    nib.save(new, path)
    packed = io.BytesIO()
    with gzip.GzipFile(filename=f"{FILE}.nii", mode="wb", fileobj=packed) as stream:  # as the command gzip does
        stream.write(gzip.decompress(path.read_bytes()))
    path.write_bytes(packed.getvalue())


def poison_nrrd(path: Path) -> None:
    """A canary in a key and a field of an NRRD header."""
    data, header = nrrd.read(str(path))
    nrrd.write(str(path), data, {**header, "PatientName": HEADER, "content": HEADER})


def leaks(folder: Path) -> dict[str, set[str]]:
    """File or folder below ``folder`` → canaries that its name or its bytes hold, in containers too."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        seen = canaries_in(path.name.encode())
        if path.is_file():
            seen |= canaries_in(path.read_bytes())
        if seen:
            found[name] = seen
    return found


def canaries_in(content: bytes) -> set[str]:
    """Canaries in bytes, and in what is packed in them."""
    found = {match.decode().upper() for part in _unpacked(content) for match in _FOUND.findall(part)}
    return {canary for canary in CANARIES if canary.upper() in found}


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
