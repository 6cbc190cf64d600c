"""A tiny good bundle, and bundles that somebody has made to run code, read or write elsewhere, or fill the memory.

``{canary}`` in a payload is the file whose existence proves that it ran.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from semsynth.files import sha256
from semsynth.trust.contents import LEFT_BY_RUNS
from semsynth.trust.hashes import MANIFEST, manifest_of

LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=simple
[logger_root]
level=INFO
handlers=console
[handler_console]
class={handler}
level=INFO
formatter=simple
args={args}
[formatter_simple]
format=%(message)s
"""
CONFIG: dict[str, Any] = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "device": {"_target_": "semsynth.distributed.local_device"},
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "channels": [2, 4],
                    "strides": [2]},
    "network": "$@network_def.to(@device)",
    "weights": "$@bundle_root + '/models/model.pt'",
    "loading": {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
    "run": ["$@network.parameters()"],
}  # fmt: skip


class Payload:
    """What a pickle calls when it is loaded without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


def good_bundle(folder: Path) -> Path:
    """Configs, weights with their card, a volume, licence and README."""
    for name in ("configs", "docs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "LICENSE").write_text("free")
    (folder / "docs" / "README.md").write_text("# A bundle")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), folder / "docs" / "golden.nii.gz")
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": "Tiny", "version": "0.1.0"}))
    (folder / "configs" / "inference.json").write_text(json.dumps(CONFIG))
    (folder / "configs" / "logging.conf").write_text(LOGGING.format(handler="StreamHandler", args="(sys.stdout,)"))
    write_weights(folder / "models" / "model.pt")
    return folder


def write_weights(path: Path, values: float = 1.0) -> None:
    """Weights and a card that says their hash."""
    torch.save({"w": torch.full((8, 8), values)}, path)
    card = {"file": path.name, "sha256": sha256(path), "training_cases": []}
    path.with_suffix(".json").write_text(json.dumps(card))


def write_manifest(folder: Path) -> None:
    """As ``ci/pack_bundle.py`` does."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert not set(LEFT_BY_RUNS) & {name.split("/")[0] for name in files}
    (folder / MANIFEST).write_text(manifest_of({name: sha256(path) for name, path in files.items()}))


def packed(folder: Path, further: dict[str, bytes] | None = None) -> Path:
    """The folder as a zip with its manifest; ``further`` entries beside, under any name."""
    write_manifest(folder)
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
        for name, content in (further or {}).items():
            archive.writestr(name, content)
    return target


def configured(folder: Path, **changes: Any) -> Path:
    """With other entries in its config."""
    (folder / "configs" / "inference.json").write_text(json.dumps(CONFIG | changes))
    return folder


def _carded(folder: Path, content: bytes) -> Path:
    """With other bytes as weights, and a card that vouches for them."""
    path = folder / "models" / "model.pt"
    path.write_bytes(content)
    card = {"file": path.name, "sha256": sha256(path), "training_cases": []}
    path.with_suffix(".json").write_text(json.dumps(card))
    return folder


def _pickled(payload: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(payload, stream)
    return stream.getvalue()


def _torchscript() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), stream)
    return stream.getvalue()


def _absurd_shape() -> bytes:
    """One value that claims to be 10¹⁴ of them."""
    return _pickled({"w": torch.zeros(1).expand(10_000_000, 10_000_000)})


def _bare(folder: Path, canary: Path) -> Path:
    return _carded(folder, pickle.dumps(Payload(f"touch {canary}")))


def _in_zip(folder: Path, canary: Path) -> Path:
    return packed(_carded(folder, _pickled({"w": Payload(f"touch {canary}")})))


def _stack_global(folder: Path, canary: Path) -> Path:
    """The newer way to name a function, in the archive that torch.save writes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(f"touch {canary}"), protocol=4))
        archive.writestr("archive/version", "3\n")
    return _carded(folder, stream.getvalue())


def _slip(folder: Path, canary: Path) -> Path:
    return packed(folder, {f"{folder.name}/../../{canary.name}": b"out"})


def _bomb(folder: Path, canary: Path) -> Path:
    return packed(folder, {f"{folder.name}/docs/zeros.txt": bytes(80_000_000)})


def _zip_link(folder: Path, canary: Path) -> Path:
    target = packed(folder)
    entry = zipfile.ZipInfo(f"{folder.name}/docs/link.md")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    return target


def _target(value: str, **arguments: Any) -> Callable[[Path, Path], Path]:
    def build(folder: Path, canary: Path) -> Path:
        filled = {key: text.format(canary=canary) if isinstance(text, str) else text for key, text in arguments.items()}
        return configured(folder, network_def={"_target_": value, **filled})

    return build


def _value(value: str, key: str = "evil") -> Callable[[Path, Path], Path]:
    return lambda folder, canary: configured(folder, **{key: value.format(canary=canary)})


def _popen(folder: Path, canary: Path) -> Path:
    return configured(folder, network_def={"_target_": "subprocess.Popen", "args": ["touch", str(canary)]})


def _reader(folder: Path, canary: Path) -> Path:
    loading = {"_target_": "LoadImaged", "keys": "image", "reader": "subprocess.Popen", "args": ["touch", str(canary)]}
    return configured(folder, loading=loading)


def _large_files(folder: Path, canary: Path) -> Path:
    entry = {"path": f"../../{canary.name}", "url": "https://example.org/x", "hash_val": "0" * 64}
    (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": [entry]}))
    return folder


def _tampered(folder: Path, canary: Path) -> Path:
    path = folder / "models" / "model.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return folder


def _swapped_card(folder: Path, canary: Path) -> Path:
    write_weights(folder / "models" / "other.pt", 2.0)
    shutil.copy(folder / "models" / "other.json", folder / "models" / "model.json")
    return folder


def _link(folder: Path, canary: Path) -> Path:
    (folder / "models" / "more.pt").symlink_to("/etc/passwd")
    return folder


def _logging(handler: str, args: str) -> Callable[[Path, Path], Path]:
    def build(folder: Path, canary: Path) -> Path:
        text = LOGGING.format(handler=handler.format(canary=canary), args=args.format(canary=canary))
        (folder / "configs" / "logging.conf").write_text(text)
        return folder

    return build


def _gzip_bomb(folder: Path, canary: Path) -> Path:
    raw = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()
    (folder / "docs" / "golden.nii.gz").write_bytes(gzip.compress(raw + bytes(200_000_000)))
    return folder


def _huge_header(folder: Path, canary: Path) -> Path:
    raw = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    raw[40:48] = struct.pack("<4h", 3, 32000, 32000, 32000)
    (folder / "docs" / "golden.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    return folder


def _yaml_tag(folder: Path, canary: Path) -> Path:
    text = f"evil: !!python/object/apply:os.system ['touch {canary}']\n"
    (folder / "configs" / "more.yaml").write_text(text)
    return folder


def _yaml_laughs(folder: Path, canary: Path) -> Path:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (folder / "configs" / "more.yaml").write_text("\n".join(lines))
    return folder


def _twice(folder: Path, canary: Path) -> Path:
    text = json.dumps({"_target_": "os.system", "command": f"touch {canary}"})
    (folder / "configs" / "more.json").write_text(text[:-1] + ', "_target_": "torch.nn.Identity"}')
    return folder


def _code(place: str) -> Callable[[Path, Path], Path]:
    def build(folder: Path, canary: Path) -> Path:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(f"import os\nos.system('touch {canary}')\n")
        return packed(folder)

    return build


def _compiled(folder: Path, canary: Path) -> Path:
    (folder / "scripts" / "__pycache__").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"\x00" * 64)
    return folder


def _added(folder: Path, canary: Path) -> Path:
    write_manifest(folder)
    (folder / "docs" / "more.md").write_text("added afterwards")
    return folder


ENEMIES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a pickle as weights": (_bare, r"model\.pt: code in a file of weights: a bare pickle that names something"),
    "a pickle in a packed .pt": (_in_zip, r"model\.pt: code in a file of weights: its pickle names (posix|nt)\.system"),
    "a pickle that makes its names": (_stack_global, r"its pickle names something by names that it makes itself"),
    "TorchScript": (lambda folder, _: _carded(folder, _torchscript()), r"code in a file of weights: a TorchScript"),
    "a tensor of absurd shape": (lambda f, _: _carded(f, _absurd_shape()), r"w has \(10000000, 10000000\) values"),
    "zip slip": (_slip, r"zip slip: a path that leads out of the bundle"),
    "a zip bomb": (_bomb, r"a zip bomb: \d+ bytes that would unpack to 8\d{7}"),
    "a link in a zip": (_zip_link, r"docs/link\.md: a link, which unpacks to a file somewhere else"),
    "a second top folder": (
        lambda f, _: packed(f, {"torch/__init__.py": b"x"}),
        r"needs one top folder, .* and has \w+, torch",
    ),
    "a file twice": (
        lambda f, _: packed(f, {f"{f.name}/configs/Inference.json": b"{}"}),
        r"Inference\.json: there is \w+/configs/inference\.json too",
    ),
    "os.system": (
        _target("os.system", command="touch {canary}"),
        r"network_def#_target_: the target 'os\.system' is not",
    ),
    "subprocess.Popen": (_popen, r"the target 'subprocess\.Popen' is not of semsynth, monai, torch"),
    "a builtin": (_target("exec", source="open('{canary}', 'w')"), r"the target 'exec' is no name of MONAI's"),
    "torch.hub.load": (
        _target("torch.hub.load", repo_or_dir="x/y", model="z"),
        r"'torch\.hub\.load' is a function",
    ),
    "torch.load": (
        _target("torch.load", f="models/model.pt"),
        r"the target 'torch\.load' is a function that",
    ),
    "a bundle that runs another": (_target("monai.bundle.run", run_id="x"), r"'monai\.bundle\.run' is a function that"),
    "a module behind a name of ours": (
        _target("semsynth.files.os.system", command="touch {canary}"),
        r"'semsynth\.files\.os\.system' is no class or function",
    ),
    "a target from an expression": (
        _target("$__import__('os').system", command="touch {canary}"),
        r"_target_: the target .* is no plain name",
    ),
    "a target in a key": (
        lambda f, c: configured(f, **{"network_def::_target_": "os.system"}),
        r"network_def::_target_: the target 'os\.system' is not",
    ),
    "a debugger": (_target("torch.nn.Identity", _mode_="debug"), r"the mode 'debug' is none of default and callable"),
    "a reader that is called": (_reader, r"loading#reader: 'subprocess\.Popen' is the name of no reader"),
    "$__import__": (_value("$__import__('os').system('touch {canary}')"), r"the expression .* is not allowed"),
    "$ with a walk of attributes": (
        _value("$@network_def.__class__.__init__.__globals__"),
        r"the expression '\$@network_def\.__class__.*' is not allowed",
    ),
    "$import os": (_value("$import os"), r"the expression '\$import os' is not allowed"),
    "a macro of another file": (_value("%../../secret.json::key"), r"the macro .* brings in another file"),
    "an absolute path": (_value("/etc/passwd", "weights"), r"weights: the path '/etc/passwd' is absolute"),
    "a path upwards": (_value("$@bundle_root + '/../../x'"), r"the path .* leads out of the bundle"),
    "an empty root": (_value("", "bundle_root"), r"bundle_root: is an empty text, which makes an absolute path"),
    "an upward path in large_files": (_large_files, r"large_files\.yml: .*a path that leads out of the bundle"),
    "tampered weights": (_tampered, r"models/model\.pt: is not the file that its card model\.json describes"),
    "the card of other weights": (_swapped_card, r"models/model\.pt: is not the file that its card model\.json"),
    "a link out": (_link, r"models/more\.pt: a link out of the bundle"),
    "logging.conf that calls": (
        _logging("StreamHandler", "(__import__('os').system('touch {canary}'),)"),
        r"logging\.conf: handler_console: args: .*is no literal, and would be evaluated",
    ),
    "logging.conf of another class": (
        _logging("__import__('os').system('touch {canary}')", "()"),
        r"handler_console: the class .* is none of",
    ),
    "logging.conf that writes elsewhere": (
        _logging("FileHandler", "('/etc/cron.d/x',)"),
        r"args: the path '/etc/cron\.d/x' is absolute",
    ),
    "a gzip bomb": (_gzip_bomb, r"docs/golden\.nii\.gz: .*more data than its header says"),
    "a header of absurd size": (_huge_header, r"docs/golden\.nii\.gz: .*"),
    "YAML with a tag": (_yaml_tag, r"more\.yaml: holds a tag of YAML \(tag:yaml\.org,2002:python/object/apply:os"),
    "YAML that grows": (_yaml_laughs, r"more\.yaml: holds references of YAML"),
    "a key twice": (_twice, r"more\.json: says '_target_' twice"),
    "code in scripts": (_code("scripts/helper.py"), r"scripts/helper\.py: unknown Python"),
    "code in our package's place": (
        _code("scripts/semsynth/files.py"),
        r"scripts/semsynth/files\.py: unknown Python",
    ),
    "code that shadows a package": (_code("numpy.py"), r"numpy\.py: unknown Python"),
    "compiled Python": (_compiled, r"__pycache__/.*\.pyc: compiled Python, which cannot be read"),
    "a file that the manifest lacks": (_added, r"docs/more\.md: is not in the manifest: it was added later"),
}
"""What is wrong → how such a bundle is made in a folder, and its named error."""
