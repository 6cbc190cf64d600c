"""What runs in deploy/Containerfile: as its lines say it, and in a place that is read-only and without a network."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_configs import WEIGHTS
from bundle_packages import kept_out, requirements
from bundle_runs import segmentation_findings, synthetic_findings
from pack_bundle import pack
from selection import name_of, slow_but_for
from semsynth.prepare.phantom import write_phantom_cases
from verify_bundles import find_bundles

ROOT = Path(__file__).resolve().parents[1]
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
SHIPPED = [path for path in find_bundles(ROOT / "bundles") if (path / WEIGHTS).is_file()]

# in namespaces of its own: all of the file system read-only but for one folder, and no network
ENCLOSED = """
mount -o remount,bind,ro / && mount --bind "$0" "$0" && mount -o remount,bind,rw "$0" && exec "$@"
"""
OUTSIDE = """
import pathlib, socket, sys
for place in sys.argv[1:]:
    try:
        pathlib.Path(place, "written").touch()
    except OSError as error:
        print(error.errno)
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error.errno)
"""


def enclosed(writable: Path) -> list[str]:
    """What a command begins with that may write into one folder alone and reach no network."""
    return ["unshare", "--map-root-user", "--mount", "--net", "sh", "-ec", ENCLOSED, str(writable)]


def namespaces() -> bool:
    """Whether this machine lets its users have them."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*enclosed(Path("/tmp")), "true"], capture_output=True, check=False).returncode == 0


def instructions() -> list[tuple[str, str]]:
    """Name and rest of each instruction, comments left out and lines joined."""
    lines = [line for line in CONTAINERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def of(name: str, *, final: bool = False) -> list[str]:
    found = instructions()
    start = max(i for i, (one, _) in enumerate(found) if one == "FROM") if final else 0
    return [rest for one, rest in found[start:] if one == name]


def test_who_runs_it_is_not_root_and_owns_neither_code_nor_weights() -> None:
    assert of("USER", final=True) == ["10001:10001"]
    order = [name for name, _ in instructions()]
    assert "COPY" not in order[order.index("USER") :] and "RUN" not in order[order.index("USER") :]
    copies = of("COPY", final=True)
    assert len(copies) == 2 and all("--chown=0:0" in copy for copy in copies)
    assert "chmod -R a-w,a+rX /opt/semsynth" in " ".join(of("RUN"))
    assert "chown 10001:10001 /output" in " ".join(of("RUN", final=True))


def test_nothing_is_fetched_but_packages_in_the_build() -> None:
    names = {name for name, _ in instructions()}
    known = "ARG FROM COPY RUN LABEL ENV VOLUME WORKDIR USER HEALTHCHECK ENTRYPOINT CMD"
    assert names <= set(known.split())
    text = "\n".join(rest for name, rest in instructions() if name in ("RUN", "COPY"))
    assert not re.search(r"\b(curl|wget|git|apt-get|ADD)\b|https?://", text)
    assert not re.search(r"pip|http", " ".join(of("RUN", final=True)))
    (base,) = (value for value in of("ARG") if value.startswith("BASE="))
    assert set(of("FROM")) == {"${BASE} AS build", "${BASE}"} and not base.endswith(("latest", ":"))


@pytest.mark.parametrize("bundle", slow_but_for(SHIPPED, "la_unet"), ids=name_of)
def test_what_is_copied_is_there_once_the_bundle_is_packed(bundle: Path, tmp_path: Path) -> None:
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in of("COPY"):
        words = [word for word in shlex.split(line) if not word.startswith("--")]
        if "--from=build" in line:
            continue
        for source in words[:-1]:
            name = source.replace("${BUNDLE}", bundle.name).replace("${VERSION}", version)
            assert any(Path(name).match(pattern) for pattern in allowed), f".dockerignore leaves out {name}"
            if name.startswith("dist/"):
                assert pack(bundle, tmp_path / "dist").name == Path(name).name
            else:
                assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("bundle", find_bundles(ROOT / "bundles"), ids=name_of)
def test_the_packages_are_those_of_the_metadata(bundle: Path) -> None:
    metadata = bundle / "configs" / "metadata.json"
    made = {
        part: subprocess.run(
            [sys.executable, str(ROOT / "deploy" / "pins.py"), str(metadata), part], capture_output=True, text=True,
            check=True,
        ).stdout.split()
        for part in ("--torch", "--rest")
    }  # fmt: skip
    about = json.loads(metadata.read_text())
    assert sorted(made["--torch"] + made["--rest"]) == requirements(about)
    assert made["--torch"] == [f"torch=={about['pytorch_version']}"]


@pytest.mark.parametrize("package", [{"x @ https://example.org/x.zip": "1"}, {"--index-url": "x"}, {"x": "1.0\n--pre"}])
def test_what_is_no_package_goes_to_no_pip(package: dict[str, str], tmp_path: Path) -> None:
    about = {"monai_version": "1.6.1", "numpy_version": "2.4.0", "pytorch_version": "2.13.0"}
    (tmp_path / "metadata.json").write_text(json.dumps(about | {"required_packages_version": package}))
    command = [sys.executable, str(ROOT / "deploy" / "pins.py"), str(tmp_path / "metadata.json"), "--rest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and not done.stdout and "is no package with an exact version" in done.stderr


def test_what_is_written_and_where_from_is_named() -> None:
    environment = dict(part.split("=", 1) for rest in of("ENV", final=True) for part in shlex.split(rest))
    assert environment["HF_HUB_OFFLINE"] == "1" and int(environment["OMP_NUM_THREADS"]) > 0
    (volumes,) = of("VOLUME")
    assert json.loads(volumes) == ["/input", "/output", "/tmp"]
    places = [value for name, value in environment.items() if name.endswith(("DIR", "_HOME")) and value.startswith("/")]
    assert len(places) >= 3 and all(place == "/tmp" or place.startswith("/tmp/") for place in places)
    entry, command = (json.loads(of(name, final=True)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[-2:] == ["--output_dir", "/output"] and command == ["--dataset_dir", "/input"]
    labels = dict(part.split("=", 1) for rest in of("LABEL", final=True) for part in shlex.split(rest))
    assert "research only" in labels["org.semsynth.intended-use"]


@pytest.mark.skipif(not namespaces(), reason="this machine lets its users have no namespaces of their own")
@pytest.mark.parametrize(
    "bundle",
    slow_but_for([path for path in SHIPPED if path.name in ("la_unet", "spade_ldm")], "la_unet"),
    ids=name_of,
)
def test_a_packed_bundle_runs_read_only_without_network_and_home(bundle: Path, tmp_path: Path) -> None:
    """The container's entry point, environment and self test."""
    with zipfile.ZipFile(pack(bundle, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path)
    unpacked, written = tmp_path / bundle.name, tmp_path / "written"
    data = write_phantom_cases(
        tmp_path / "in", 3, size=(48, 40, 32), spacing=(1.0, 1.0, 1.0), k=2, progress=False
    ).parent
    (written / "tmp").mkdir(parents=True)
    said = dict(part.split("=", 1) for rest in of("ENV", final=True) for part in shlex.split(rest))
    environment = {name: value.replace("/tmp", str(written / "tmp")) for name, value in said.items() if name != "PATH"}
    environment |= {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    environment |= kept_out({"semsynth"}, tmp_path / "kept_out")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        whole = [*enclosed(written), sys.executable, *command]
        return subprocess.run(
            whole, cwd=unpacked, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    refused = run("-c", OUTSIDE, str(unpacked), str(data), "/tmp", str(Path.home()))
    assert refused.stdout.split() == ["30"] * 4 + ["101"], "the test would prove nothing"

    before = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*")}
    entry = [word.replace("/output", str(written / "out")) for word in json.loads(of("ENTRYPOINT")[0])][1:]
    done = run(*entry, *(word.replace("/input", str(data)) for word in json.loads(of("CMD")[0])))
    assert done.returncode == 0, done.stderr[-3000:]
    kind = "image" if bundle.name == "la_unet" else "label"
    (case,) = json.loads((data / "datalist.json").read_text())["testing"]
    findings = segmentation_findings if kind == "image" else synthetic_findings
    assert findings(written / "out", {case["case"]: data / case[kind]}) == []
    (made,) = (written / "out").glob("*.nii.gz")
    assert np.asanyarray(nib.load(made).dataobj).std() > 0

    (check,) = of("HEALTHCHECK")
    tested = run(*json.loads(check[check.index("[") :])[1:])
    assert tested.returncode == 0 and ".: reproduced" in tested.stdout, tested.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in unpacked.rglob("*")} == before
