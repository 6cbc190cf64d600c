"""Bundles that are harmless to a check which reads less than MONAI, Python's logging or another unzip does."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from bundles_of_enemies import LOGGING, Payload, configured, packed, write_manifest

Builder = Callable[[Path, Path], Path]
BREAK_OUT = "$@bundle_root + '/x @f {torch.os.system(\"touch {canary}\")}'"
"""MONAI makes ``__local_refs['f']`` of ``@f`` also between quotes: the text ends there, and ``f'] {…}'`` begins."""
LOADING = {"_target_": "semsynth.distributed.stop", "keys": "image", "reader": "subprocess.Popen"}
"""Harmless as long as the target is ours; MONAI merges the key ``loading#_target_`` into it."""
IN_LOGGING = "('%(x)s',)\nx=',__import__(\"os\").system(\"touch {canary}\"),'"


def _config(**changes: Any) -> Builder:
    return lambda folder, canary: configured(folder, **json.loads(json.dumps(changes).replace("{canary}", str(canary))))


def overridden(canary: Path) -> dict[str, Any]:
    """Entries of a config that make another component of one that looks harmless."""
    return {"loading": LOADING | {"args": ["touch", str(canary)]}, "loading#_target_": "LoadImaged"}


def _overridden(folder: Path, canary: Path) -> Path:
    return configured(folder, **overridden(canary))


def _overridden_by_another_file(folder: Path, canary: Path) -> Path:
    (folder / "configs" / "overlay.json").write_text(json.dumps({"loading#_target_": "LoadImaged"}))
    return configured(folder, loading=overridden(canary)["loading"])


def _unpickling_reader(folder: Path, canary: Path) -> Path:
    (folder / "docs" / "notes.md").write_bytes(pickle.dumps(Payload(f"touch {canary}"), 0))
    return configured(folder, loading={"_target_": "LoadImage", "reader": "NumpyReader", "allow_pickle": True})


def logging_of(text: str, handler: str = "StreamHandler", form: str = "%(message)s") -> str:
    """A ``logging.conf`` with these arguments and this format."""
    return LOGGING.format(handler=handler, args=text).replace("format=%(message)s", f"format={form}")


def _interpolated(folder: Path, canary: Path) -> Path:
    (folder / "configs" / "logging.conf").write_text(logging_of(IN_LOGGING.format(canary=canary)))
    return folder


def _log_is_a_program(folder: Path, canary: Path) -> Path:
    code = f"import os; os.system('touch {canary}') #%(message)s"
    (folder / "configs" / "logging.conf").write_text(logging_of("('lpips.py', 'w')", "FileHandler", code))
    return folder


def _tensor_called(name: str) -> Builder:
    def build(folder: Path, canary: Path) -> Path:
        path = folder / "models" / "more.pt"
        torch.save({name: torch.zeros(1).expand(10_000_000, 10_000_000)}, path)
        return folder

    return build


def _file(place: str, content: bytes) -> Builder:
    def build(folder: Path, canary: Path) -> Path:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
        return folder

    return build


def _large_program(folder: Path, canary: Path) -> Path:
    entry = {"path": "numpy.py", "url": "https://example.org/x", "hash_val": "0" * 64}
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    return folder


def _manifest_twice(folder: Path, canary: Path) -> Path:
    write_manifest(folder)
    path = folder / "manifest.sha256"
    path.write_text(f"{'0' * 64}  LICENSE\n" + path.read_text())
    return folder


# ---- zips of which programs read different things


def _commented(folder: Path, canary: Path) -> Path:
    target = packed(folder)
    with zipfile.ZipFile(target, "a") as archive:
        archive.comment = b"here could be the end of another zip"
    return target


def _in_front(folder: Path, canary: Path) -> Path:
    target = packed(folder)
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as archive:
        archive.writestr("bundle/numpy.py", "x")
    target.write_bytes(hidden.getvalue() + target.read_bytes())
    return target


def _between(folder: Path, canary: Path) -> Path:
    """A file that stands in the zip and not in its table: who reads from front to back unpacks it."""
    target = packed(folder, {f"{folder.name}/zz.py": b"import os\n"})
    with zipfile.ZipFile(target, "a") as archive:
        entry = archive.getinfo(f"{folder.name}/zz.py")
        archive.filelist.remove(entry)
        del archive.NameToInfo[entry.filename]
        archive.writestr(f"{folder.name}/docs/zz.md", "seen")
    return target


def _second_name(folder: Path, canary: Path) -> Path:
    target = packed(folder)
    entry = zipfile.ZipInfo(f"{folder.name}/docs/more.md")
    other = struct.pack("<BI", 1, zlib.crc32(entry.filename.encode())) + f"../../{canary.name}".encode()
    entry.extra = struct.pack("<HH", 0x7075, len(other)) + other
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(entry, "x")
    return target


def _other_head(folder: Path, canary: Path) -> Path:
    """A file whose own head says another size than the table."""
    target = packed(folder)
    data = bytearray(target.read_bytes())
    data[22:26] = struct.pack("<I", 1)
    target.write_bytes(data)
    return target


DETACHED = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 1 1 1\nencoding: raw\ndata file: /etc/hostname\n\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
MORE: dict[str, tuple[Builder, str]] = {
    "a text that ends within its quotes": (
        _config(f="x", evil=BREAK_OUT),
        r"inference\.json: evil: the expression .* is not allowed",
    ),
    "code in a description": (
        _config(network_def={"_target_": "torch.nn.Identity", "_desc_": "$__import__('os').system('touch {canary}')"}),
        r"network_def#_desc_: the expression .* is not allowed",
    ),
    "a description of another file": (_config(_desc_="%/etc/x.json"), r"_desc_: the macro .* brings in another file"),
    "a component that is exchanged later": (_overridden, r"loading#reader: 'subprocess\.Popen' is the name of no"),
    "a component that another file exchanges": (_overridden_by_another_file, r"'subprocess\.Popen' is the name of no"),
    "a root that makes all targets ours": (
        _config(**{"_target_": "semsynth.distributed.stop", "loading#reader": "subprocess.Popen"}),
        r"loading#reader: 'subprocess\.Popen' is the name of no reader",
    ),
    "a merger that is imported": (
        _config(evil={"_target_": "PatchInferer", "merger_cls": "antigravity.x"}),
        r"is the name of no merger_cls",
    ),
    "a reader that unpickles": (_unpickling_reader, r"'allow_pickle' is 'True', which unpickles files"),
    "weights that are unpickled": (
        _config(evil={"_target_": "torch.nn.Identity", "weights_only": False}),
        r"'weights_only' is not true",
    ),
    "code from GitHub behind a loss": (
        _config(evil={"_target_": "monai.losses.perceptual.MedicalNetPerceptualSimilarity"}),
        r"fetches code or weights",
    ),
    "a network that is fetched by default": (
        _config(evil={"_target_": "EfficientNetBN", "model_name": "efficientnet-b0"}),
        r"unless 'pretrained' is false",
    ),
    "a switch that is on as a number": (
        _config(evil={"_target_": "DenseNet121", "spatial_dims": 2, "pretrained": 1}),
        r"'pretrained' is '1', which as",
    ),
    "a debugger by an argument": (_config(evil={"_target_": "torch.nn.Identity", "_debug_": True}), r"in a debugger"),
    "an empty text by multiplication": (
        _config(name="x", empty="$@name * 0", evil="$@empty + '/etc/passwd'"),
        r"empty: the expression .* is not all",
    ),
    "an empty text by an attribute": (
        _config(
            layout={"_target_": "monai.data.FolderLayout", "output_dir": "x"},
            empty="$@layout.postfix",
            more="@empty",
            evil="$@more + '/etc/passwd'",
        ),
        r"empty: is joined to a path, and '\$@layout\.postfix' may be any text",
    ),
    "a component as a path": (
        _config(part={"_target_": "torch.nn.Identity"}, evil="$@part + '/x'"),
        r"part: is joined to a path, and a comp",
    ),
    "upwards in two parts": (_config(evil="$@bundle_root + '/.' + './x'"), r"evil: the expression .* is not allowed"),
    "upwards behind a point": (_config(evil="$@bundle_root + './x'"), r"evil: the expression .* is not allowed"),
    "upwards behind an @": (_config(evil="@/../../x"), r"evil: the path '@/\.\./\.\./x' leads out of the bundle"),
    "a log that is a program": (
        _config(evil={"_target_": "monai.handlers.LogfileHandler", "output_dir": ".", "filename": "lpips.py"}),
        r"evil#filename: 'lpips\.py' is the name of a program",
    ),
    "a program by a join": (_config(evil="$@bundle_root + '/lpips.py'"), r"'/lpips\.py' is the name of a program"),
    "logging.conf that puts values together": (_interpolated, r"args: .* takes in other values of the file"),
    "logging.conf that writes a program": (_log_is_a_program, r"args: 'lpips\.py' is the name of a program"),
    "code in a file that is no config": (
        _file("docs/more.json", b"{\"run\": \"$__import__('os').system('true')\"}"),
        r"docs/more\.json: run: the expression .* is not allowed",
    ),
    "an excuse in a tensor's name": (_tensor_called("semsynth[trust]"), r"more\.pt: semsynth\[trust\] has \(10000000"),
    "Python with a capital ending": (_file("numpy.PY", b"x"), r"numpy\.PY: unknown Python"),
    "a page that runs scripts": (_file("docs/a.html", b"<script/>"), r"docs/a\.html: a kind of file that may run"),
    "a picture that runs scripts": (_file("docs/a.svg", SVG), r"docs/a\.svg: is a picture with a script in it"),
    "a pickle as a picture": (_file("docs/a.png", pickle.dumps(1)), r"docs/a\.png: is no picture, as its name says"),
    "a program as a text": (_file("docs/a.md", b"\x7fELF\0"), r"docs/a\.md: is no text, as its name says"),
    "a volume of another file": (_file("docs/a.nrrd", DETACHED), r"docs/a\.nrrd: has its voxels in another file"),
    "a name within another file": (_file("docs/a.txt:b.md", b"x"), r"a name with characters that are not seen, with a"),
    "a folder that is another one elsewhere": (
        _file("configs./inference.json", b"{}"),
        r"configs\./inference\.json: a name with characters .* at the end",
    ),
    "a program to be fetched": (_large_program, r"large_files\.yml: numpy\.py: is no file of weights and no volume"),
    "a manifest that says two things": (_manifest_twice, r"manifest\.sha256: is no list of hashes and names"),
    "a zip with a comment": (_commented, r"the zip ends with a comment, in which a second table may stand"),
    "a zip behind another": (_in_front, r"something stands before it that the table does not list"),
    "a file that the table lacks": (_between, r"something stands before it that the table does not list"),
    "a file with two names": (_second_name, r"docs/more\.md: has a second name in it"),
    "a file of two sizes": (_other_head, r"says something else of itself than the table does"),
}
"""As :data:`bundles_of_enemies.ENEMIES`."""
