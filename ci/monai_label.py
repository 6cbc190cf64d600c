"""MONAI Label with the packed bundles: the real server on loopback infers with all of them, and trains la_unet.

    python ci/monai_label.py [NAME ...] [--work DIR]

Makes a virtual environment with MONAI Label (its dependencies are in ``PACKAGES``; what they are pinned for stands
there), unpacks the zips into its app ``monaibundle``, starts the server, and asks of it what a viewer asks:

- each bundle is listed, and infers on a rotated map (or scan) with voxels of three sizes and a mirrored axis: the
  answer lies on the same grid, and fits the map better than each of its mirror images;
- ``la_unet`` is trained for one epoch on labels that are sent to the server, and infers with the result;
- the code of one bundle is changed: the answers of the others stay the same, bit for bit.

Prints a table and ends with 1 if a row is no success. The environment is about 2 GB and is used again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from bundle_configs import ROOT, WEIGHTS, read
from pack_bundle import pack
from semsynth.prepare.phantom import write_phantom_cases
from verify_bundles import find_bundles

VERSION = "0.8.5"
PACKAGES = (
    # as MONAI Label 0.8.5 asks for, without torchvision (there is none beside a CPU build of torch) and sam2 (which
    # needs it); pydicom-seg needs pydicom 2 and numpy 1, and so do the releases of the two DICOM packages below
    "torch==2.13.0", "monai==1.6.1", "fire", "pytorch-ignite", "itk", "nibabel", "tensorboard", "tqdm", "lmdb",
    "psutil", "scikit-image", "matplotlib", "regex", "pyyaml", "einops", "filelock", "uvicorn", "pydantic",
    "pydantic-settings", "python-dotenv", "fastapi", "python-multipart", "httpx", "schedule", "timeloop",
    "expiringdict", "expiring_dict", "cachetools", "watchdog", "pydicom<3", "pydicom-seg", "pynetdicom<3",
    "dicomweb-client<0.60", "pynrrd", "numpymaxflow", "girder-client", "ninja", "passlib", "pyjwt", "bcrypt",
    "shapely", "requests", "requests-toolbelt", "urllib3", "scikit-learn", "scipy", "google-auth",
)  # fmt: skip
TORCHVISION = "def make_grid(*args, **kwargs):\n    raise NotImplementedError\n\n\nsave_image = make_grid\n"
"""What MONAI Label imports of torchvision, and uses in the training pictures of DeepEdit alone."""
STARTS_WITHIN = 180
ANSWERS_WITHIN = 900


class Server:
    """A running server, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None, kind: str = "") -> bytes:
        """The answer's body.

        Raises:
            urllib.error.URLError: for any other status than 2xx.
        """
        request = urllib.request.Request(f"{self.address}{path}", data=body, method=method)
        if kind:
            request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN) as answer:
            content: bytes = answer.read()
        return content

    def form(self, path: str, method: str, name: str, content: bytes, file: str | None = None) -> bytes:
        """One field of a form sent."""
        mark = uuid.uuid4().hex
        about = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        body = f"--{mark}\r\nContent-Disposition: {about}\r\n\r\n".encode() + content + f"\r\n--{mark}--\r\n".encode()
        return self.ask(path, method=method, body=body, kind=f"multipart/form-data; boundary={mark}")

    def infer(self, bundle: str, image: str, place: Path) -> nib.Nifti1Image:
        """The answer of a bundle, written to ``place``."""
        params = json.dumps({"device": "cpu"}).encode()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(self.form(f"/infer/{bundle}?image={image}&output=image", "POST", "params", params))
        return nib.load(place)


def environment(folder: Path) -> Path:
    """The Python of an environment with MONAI Label, made where it is not there."""
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if complete.is_file() and complete.read_text(encoding="utf-8") == "\n".join(PACKAGES):
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as work:
        stand_in = Path(work) / "torchvision"
        stand_in.mkdir()
        (stand_in / "__init__.py").write_text('__version__ = "0.28.0"\n', encoding="utf-8")
        (stand_in / "utils.py").write_text(TORCHVISION, encoding="utf-8")
        (Path(work) / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "torchvision"\nversion = "0.28.0"\n[tool.setuptools]\npackages = ["torchvision"]\n',
            encoding="utf-8",
        )
        subprocess.run([*pip, *PACKAGES, work], check=True)
    subprocess.run([*pip, "--no-deps", f"monailabel=={VERSION}"], check=True)
    complete.write_text("\n".join(PACKAGES), encoding="utf-8")
    return python


def application(python: Path, bundles: Sequence[Path], folder: Path) -> Path:
    """MONAI Label's app for bundles, with the unpacked zips as its models."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(python.parents[1] / "monailabel" / "sample-apps" / "monaibundle", folder)
    (folder / "model").mkdir(exist_ok=True)
    for bundle in bundles:
        with zipfile.ZipFile(pack(bundle, folder.parent / "zips")) as archive:
            archive.extractall(folder / "model")
    return folder


def studies(folder: Path) -> Path:
    """Scans and maps of three phantoms, rotated, mirrored, with voxels of 1 × 1.2 × 1.4 mm."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        listed = write_phantom_cases(Path(work), 3, size=(56, 48, 40), spacing=(1.0, 1.2, 1.4), k=2, progress=False)
        content = json.loads(listed.read_text(encoding="utf-8"))
        entries = [entry for split in ("training", "validation", "testing") for entry in content.get(split, [])]
        affine = nib.affines.from_matvec(
            nib.eulerangles.euler2mat(z=0.2, x=0.1) @ np.diag([-1.0, 1.2, 1.4]), [40.0, -30.0, 17.0]
        )
        for number, entry in enumerate(entries, start=1):
            for role, kind in (("image", np.float32), ("label", np.uint8)):
                voxels = np.asanyarray(nib.load(Path(work) / entry[role]).dataobj).astype(kind)
                nib.save(nib.Nifti1Image(voxels, affine), folder / f"{role}_{number}.nii.gz")
    return folder


@contextmanager
def served(python: Path, app: Path, data: Path, names: Sequence[str]) -> Iterator[Server]:
    """The server, until it is no longer needed; what it says goes to a log beside the app."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    known |= {"MONAI_ZOO_SOURCE": "ngc", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [
        str(python), "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(data),
        "--conf", "models", ",".join(names), "--conf", "sam2", "false", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    log = app.with_name("server.log")
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=app.parent, env=known, stdout=stream, stderr=subprocess.STDOUT)
    server = Server(port)
    try:
        end = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                server.ask("/info/")
                break
            except (urllib.error.URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start; see {log}") from None
                time.sleep(1)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def fits(volume: np.ndarray, label: np.ndarray) -> float:
    """Share of a volume's variance that the classes of a map explain, from 0 to 1."""
    total = float(((volume - volume.mean()) ** 2).sum())
    within = sum(
        float(((volume[label == c] - volume[label == c].mean()) ** 2).sum())
        for c in np.unique(label)
        if (label == c).any()
    )
    return 1.0 - within / total if total else 0.0


def compared(answer: nib.Nifti1Image, label: nib.Nifti1Image, *, cavity: bool = False) -> str:
    """What is wrong with the place of an answer, of the cavity alone if ``cavity``; empty where nothing is."""
    if answer.shape != label.shape:
        return f"another shape, {answer.shape} in place of {label.shape}"
    off = float(np.abs(answer.affine - label.affine).max())
    if off > 1e-3:
        return f"another affine, up to {off:.3g} mm"
    volume, classes = (np.asarray(one.dataobj, dtype=np.float64) for one in (answer, label))
    classes = (classes == 1).astype(float) if cavity else classes
    own = fits(volume, classes)
    for flips in itertools.product((False, True), repeat=3):
        axes = [axis for axis, flip in enumerate(flips) if flip]
        if axes and fits(np.flip(volume, axes), classes) >= own:
            return f"fits the map better when it is mirrored along the axes {axes}"
    return ""


def drawn(answer: nib.Nifti1Image, label: nib.Nifti1Image) -> str:
    """What is wrong with a map that was drawn around the cavity of a given one, on a grid of its own."""
    values = np.asarray(answer.dataobj)
    there = np.argwhere(np.asarray(label.dataobj) == 1)
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(answer.affine) @ label.affine, there)).astype(int)
    inside = ((voxels >= 0) & (voxels < values.shape)).all(axis=1)
    share = float((values[tuple(voxels[inside].T)] == 1).sum() / len(voxels))
    return "" if share > 0.9 else f"the given cavity is not where it was: {share:.0%} of its voxels"


def check_inference(server: Server, names: Sequence[str], data: Path, out: Path) -> Iterator[tuple[str, str, str]]:
    """Each bundle listed, and its answer where it belongs."""
    listed = json.loads(server.ask("/info/"))["models"]
    for name in names:
        about = listed.get(name)
        if about is None:
            yield name, "listed", "is not"
            continue
        first = about["config"]["model_filename"][0]
        found = "" if first == Path(WEIGHTS).name else f"the first weights are {first}"
        yield name, f"listed: {', '.join(about['labels'])}", found
        label = nib.load(data / "label_1.nii.gz")
        try:
            answer = server.infer(name, "image_1" if segments(name) else "label_1", out / f"{name}.nii.gz")
            found = drawn(answer, label) if draws_maps(name) else compared(answer, label, cavity=segments(name))
        except (urllib.error.URLError, nib.filebasedimages.ImageFileError) as error:
            found = f"{type(error).__name__}: {error}"
        yield name, "infers, in its place", found


def check_training(server: Server, data: Path, app: Path, out: Path) -> Iterator[tuple[str, str, str]]:
    """la_unet fine-tuned for one epoch on labels that are sent, and what is served afterwards."""
    weights = app / "model" / "la_unet" / WEIGHTS
    before = weights.read_bytes()
    first = np.asarray(nib.load(out / "la_unet.nii.gz").dataobj)
    try:
        for path in sorted(data.glob("label_*.nii.gz")):
            image = path.name.replace("label", "image").removesuffix(".nii.gz")
            server.form(f"/datastore/label?image={image}&tag=final", "PUT", "label", path.read_bytes(), path.name)
        asked = json.dumps({"max_epochs": 1, "device": "cpu", "val_split": 0.3}).encode()
        server.ask("/train/la_unet?run_sync=true", method="POST", body=asked, kind="application/json")
        card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        found = "" if weights.read_bytes() != before else f"{WEIGHTS} is as it was"
        yield "la_unet", f"trained, {len(card['training_cases'])} cases in its card", found
        after = server.infer("la_unet", "image_1", out / "la_unet_trained.nii.gz")
        same = np.array_equal(np.asarray(after.dataobj), first)
        yield "la_unet", "infers with the result", "answers as before" if same else ""
    except (urllib.error.URLError, OSError) as error:
        yield "la_unet", "trained", f"{type(error).__name__}: {error}"


def check_apart(server: Server, names: Sequence[str], out: Path) -> Iterator[tuple[str, str, str]]:
    """After the code of the first generator was changed: its answer is another one, those of the others are not."""
    for number, name in enumerate(names):
        before = np.asarray(nib.load(out / f"{name}.nii.gz").dataobj)
        try:
            after = np.asarray(server.infer(name, "label_1", out / f"{name}_apart.nii.gz").dataobj)
        except urllib.error.URLError as error:
            yield name, "code of its own", f"{type(error).__name__}: {error}"
            continue
        same = np.array_equal(before, after)
        if number == 0:
            yield name, "code of its own: changed", "" if not same else "answers as before, though its code was changed"
        else:
            yield (
                name,
                f"code of its own: not {names[0]}'s",
                "" if same else f"answers otherwise with {names[0]}'s code",
            )


def change_code(bundle: Path) -> None:
    """Make all volumes of an unpacked bundle negative, in a module that every generator has."""
    path = bundle / "scripts" / "semsynth" / "data" / "resampling.py"
    text = path.read_text(encoding="utf-8")
    changed = text.replace("result[key] = _as_stored(back, given)", "result[key] = _as_stored(-back, given)")
    if changed == text:
        raise SystemExit(f"{path}: has changed; bring this script's check of mixed code up to date")
    path.write_text(changed, encoding="utf-8")


def segments(name: str) -> bool:
    """Whether a bundle takes scans."""
    return (
        str(read(ROOT / "bundles" / name, "metadata")["network_data_format"]["inputs"]["image"]["format"])
        == "magnitude"
    )


def draws_maps(name: str) -> bool:
    """Whether a bundle makes label maps."""
    return str(read(ROOT / "bundles" / name, "inference").get("writer", {}).get("_target_", "")).endswith("MapWriter")


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """The rows as text, those without a finding with ``ok``."""
    return "\n".join(f"{name:16} {what:48} {found or 'ok'}" for name, what, found in rows)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bundles; all that have weights if none is named")
    parser.add_argument("--work", type=Path, default=ROOT / "dist" / "monai_label", metavar="DIR",
                        help="folder for the environment and all files")  # fmt: skip
    options = parser.parse_args()
    work = options.work.resolve()
    bundles = [path for path in find_bundles(ROOT / "bundles") if (path / WEIGHTS).is_file()]
    if options.names:
        bundles = [path for path in bundles if path.name in options.names]
    names = [path.name for path in bundles]
    python = environment(work / "environment")
    app, data, out = application(python, bundles, work / "app"), studies(work / "studies"), work / "answers"
    shutil.rmtree(out, ignore_errors=True)
    with served(python, app, data, names) as server:
        rows = list(check_inference(server, names, data, out))
        rows += list(check_training(server, data, app, out)) if "la_unet" in names else []
    generators = [name for name in names if not segments(name) and not draws_maps(name)]
    if len(generators) > 1:
        change_code(app / "model" / generators[0])
        with served(python, app, data, names) as server:
            rows += list(check_apart(server, generators, out))
    print(table(rows))
    return int(any(found for _, _, found in rows))


if __name__ == "__main__":
    sys.exit(main())
