"""Small files that unpack to much, and settings that would cost all memory or time, end before the work begins."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import torch
from dicom_files import write_series
from semsynth.cli.main import main
from semsynth.data.check import Entry, check_cases
from semsynth.data.classes import class_table
from semsynth.data.datalists import read_datalist
from semsynth.data.dicom import is_dicom
from semsynth.data.entries import load_label_maps
from semsynth.data.identity import patient_of
from semsynth.data.inflate import SLACK, inflate
from semsynth.data.patterns import _pieces, _stands_for, matches
from semsynth.data.volumes import read_volume
from semsynth.errors import InputError
from semsynth.networks.pix2pix import Pix2PixGenerator
from semsynth.networks.segmentation import residual_unet
from semsynth.paths import read_text
from semsynth.tensor_files import load_tensors
from semsynth.training.checkpoints import save_atomically

MIB = 2**20


@contextmanager
def little_memory(most: int = 32 * MIB) -> Iterator[None]:
    """What Python and NumPy allocate meanwhile stays below ``most``, whatever a file claims."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.0f} MiB"


@contextmanager
def quickly(seconds: float = 5.0) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def nifti(shape: tuple[int, ...] = (8, 8, 8), size: tuple[int, ...] | None = None) -> bytes:
    """A file of zeros, whose header says ``size``."""
    content = nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)).to_bytes()
    return content if size is None else content[:42] + struct.pack("<3h", *size) + content[48:]


# ----------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("members", [1, 256])
def test_what_lies_behind_the_voxels_is_not_unpacked(tmp_path: Path, members: int) -> None:
    zeros = bytes(16 * MIB)
    packed = gzip.compress(nifti() + zeros, 1) if members == 1 else gzip.compress(nifti())
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(packed + gzip.compress(zeros) * (members - 1))  # 4 GiB in 4 MB
    with little_memory(), pytest.raises(InputError, match=r"more data than its header says: found more than 66912 "):
        read_volume(path)
    few = gzip.compress(nifti() + bytes(SLACK // 2))  # as some programs write them
    path.write_bytes(few)
    assert read_volume(path).data.shape == (8, 8, 8)


def test_a_file_of_many_members_is_read_as_one(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    packed = b"".join(gzip.compress(content[i : i + 1000]) for i in range(0, len(content), 1000))
    assert inflate(packed + bytes(500), len(content), tmp_path) == content
    with pytest.raises(EOFError):
        inflate(packed[:-9], len(content), tmp_path)
    with pytest.raises(zlib.error):
        inflate(packed + b"rest", len(content), tmp_path)
    with quickly(20):
        assert inflate(gzip.compress(b"") * 100_000, 100, tmp_path) == b""


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    content = nifti(size=(30_000, 30_000, 30_000))
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with little_memory(), pytest.raises(InputError, match=r"truncated or damaged: found .* of 54000000000352 bytes"):
        read_volume(tmp_path / name)


def test_a_volume_beyond_the_memory_is_named_with_both_figures(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    with path.open("wb") as stream:
        stream.write(nifti(size=(5000, 5000, 20_000))[:352])
        stream.truncate(352 + 10**12)  # sparse: it is whole, and takes no place
    figures = r"5000 × 5000 × 20000 voxels, which need at least 2\.79e\+03 GiB of memory, and .* GiB are free"
    with little_memory(), pytest.raises(InputError, match=figures):
        read_volume(path)
    report = check_cases([Entry("c", {"image": path})])
    assert [finding.finding for finding in report.errors] == ["more voxels than memory"]


def write_nrrd(
    path: Path, *, size: int = 8, encoding: str = "gzip", content: bytes | None = None, more: str = ""
) -> Path:
    head = (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {size} {size} {size}\nspace: left-posterior-superior\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: {encoding}\n{more}\n"
    )
    voxels = np.arange(8**3, dtype="<i2").tobytes()
    packed = {"gzip": gzip.compress, "raw": bytes}[encoding](voxels) if content is None else content
    path.write_bytes(head.encode() + packed)
    return path


def test_nrrd_files_are_bounded_in_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    whole = read_volume(write_nrrd(path)).data
    assert np.array_equal(whole, nrrd.read(str(path))[0]) and np.array_equal(whole, read_volume(
        write_nrrd(path, encoding="raw")).data)  # fmt: skip
    zeros = gzip.compress(bytes(64 * MIB))
    for content, size, encoding, found in (
        (zeros, 8, "gzip", "more data than its header says"),
        (zeros, 30_000, "gzip", "30000 × 30000 × 30000 voxels, which need at least"),
        (zeros, 1000, "gzip", "which hold less than 2000000000"),
        (bytes(100), 8, "raw", "100 of 1024 bytes"),
        (bytes(1100), 8, "raw", "more than 1024 bytes"),
        (gzip.compress(bytes(1000)), 8, "gzip", "1000 of 1024 bytes"),
    ):
        with little_memory(), pytest.raises(InputError, match=found):
            read_volume(write_nrrd(path, size=size, encoding=encoding, content=content))


def test_nrrd_headers_without_an_end_and_voxels_in_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0004\n#" + bytes(20 * MIB))
    with little_memory(), pytest.raises(InputError, match="a header without an end"):
        read_volume(path)
    os.mkfifo(tmp_path / "pipe")
    with quickly(), pytest.raises(InputError, match="its voxels in pipe, which is no file"):
        read_volume(write_nrrd(path, encoding="raw", content=b"", more="data file: pipe\n"))
    with quickly(), pytest.raises(InputError, match="0 of 1024 bytes"):
        read_volume(write_nrrd(path, encoding="raw", more="line skip: 1000000000000\n"))


# ------------------------------------------------------------------------------------------------------- DICOM


def test_a_deflated_file_that_fills_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    def deflated(ds: Any, k: int) -> None:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    monkeypatch.setattr("semsynth.data.dicom.files.MOST_DEFLATED", 80 * MIB)
    write_series(tmp_path / "s", np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4), change=deflated)
    assert read_volume(tmp_path / "s").data.shape == (8, 8, 8)
    one = sorted((tmp_path / "s").iterdir())[0]
    content = one.read_bytes()
    meta = 144 + struct.unpack("<I", content[140:144])[0]
    packer = zlib.compressobj(9, wbits=-15)
    zeros = bytes(64 * MIB)
    bomb = b"".join(packer.compress(zeros) for _ in range(2)) + packer.flush()
    one.write_bytes(content[:meta] + bomb)
    with little_memory(), pytest.raises(InputError, match="more data than a DICOM file has"):
        read_volume(tmp_path / "s")


def test_rows_and_columns_beyond_the_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    def claims(ds: Any, k: int) -> None:
        from pydicom.encaps import encapsulate
        from pydicom.uid import JPEGLSLossless

        ds.Rows = ds.Columns = 65535
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([b"\xff\xd8" * 50]), JPEGLSLossless
        ds["PixelData"].is_undefined_length = True

    write_series(tmp_path / "s", np.zeros((4, 4, 200), np.int16), np.eye(4), change=claims)
    with little_memory(), pytest.raises(InputError, match="65535 × 65535 × 200 voxels, which need at least"):
        read_volume(tmp_path / "s")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with quickly():
        assert not is_dicom(tmp_path) and not is_dicom(tmp_path / "pipe")


# ----------------------------------------------------------------------------------------------------- weights


def test_weights_that_unpack_to_much_more_than_they_are_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in plain.infolist():
            with bomb.open(part.filename, "w") as stream:
                stream.write(plain.read(part))
                for _ in range(128 if "data/0" in part.filename else 0):
                    stream.write(bytes(MIB))
    assert (tmp_path / "bomb.pt").stat().st_size < MIB
    with (
        little_memory(),
        pytest.raises(InputError, match=r"bomb\.pt: \d+ bytes that unpack to \d+, which weights never"),
    ):
        load_tensors(tmp_path / "bomb.pt")
    assert load_tensors(path)["a"].shape == (1000,)
    save_atomically({"a": torch.zeros(100_000)}, path, compressed=True)  # what we compress ourselves
    assert load_tensors(path)["a"].shape == (100_000,)
    with pytest.raises(InputError, match=r"unpack to .* which weights never"):
        load_tensors("x", io.BytesIO((tmp_path / "bomb.pt").read_bytes()))


def test_a_tensor_larger_than_what_is_stored_of_it_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": [{"w": torch.zeros(1).expand(1_000_000, 1_000_000)}]}, tmp_path / "model.pt")
    with pytest.raises(
        InputError, match=r"state_dict\.0\.w has \(1000000, 1000000\) values, of which 4 bytes are stored"
    ):
        load_tensors(tmp_path / "model.pt")
    laughs: Any = [torch.zeros(1)]
    for _ in range(60):
        laughs = [laughs, laughs]
    torch.save(laughs, tmp_path / "laughs.pt")
    with quickly():
        load_tensors(tmp_path / "laughs.pt")


# ---------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("pattern", [r"(?:(?:(?:a{1,1000}){1,1000}){1,1000})b", r"(?i)(a|A|aa)+$"])
def test_a_catastrophic_pattern_is_given_up(pattern: str) -> None:
    with quickly(10), pytest.raises(InputError, match="takes more than 1 s on the case name"):
        patient_of(Entry("a" * 200 + "x", {}), pattern)
    with pytest.raises(InputError, match="of 2000 characters; at most 1000"):
        patient_of(Entry("a", {}), "a" * 2000)


def test_patterns_mean_what_they_do_in_python() -> None:
    assert patient_of(Entry("P12_a", {}), r"^(?=P)(?P<who>P\d+)_\w$") == "P12"
    assert patient_of(Entry("sub-7_x", {}), r"sub-(\d+)|other-(\d+)") == "7"
    with pytest.raises(InputError, match=r"'\(a' is not a valid pattern: missing \)"):
        patient_of(Entry("a", {}), "(a")


def test_a_datalists_own_pattern_is_bounded_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"case": "a" * 200 + end, "image": f"{end}.nii.gz"} for end in "xy"]
    listed = {"patient_regex": "(?i)(a|A|aa)+$", "training": entries}
    (tmp_path / "datalist.json").write_text(json.dumps(listed))
    for entry in entries:
        (tmp_path / entry["image"]).write_bytes(gzip.compress(nifti()))
    with quickly(20):
        assert main(["check", "--input", str(tmp_path)]) == 1
    assert "takes more than 1 s" in capsys.readouterr().err


def test_many_stars_are_shared_out_in_no_time_and_as_before(tmp_path: Path) -> None:
    name = "a" * 7 + "b" + "a" * 200 + "c.nii"
    (tmp_path / name).touch()
    with quickly():
        found = matches(f"{tmp_path}/*a*a*a*a*a*a*a*b*c.nii")
    assert [match.path.name for match in found] == [name]
    assert [text for _, text in found[0].wildcards] == ["", "", "", "", "", "", "", "", "a" * 200]
    assert _stands_for(_pieces("z/**/x*_?[0-9].nii"), "z/a/b/xx_q7.nii") == (
        ("**/", "a/b/"), ("*", "x"), ("?", "q"), ("[", "7"))  # fmt: skip
    (tmp_path / "d1" / "d2" / "d3").mkdir(parents=True)
    (tmp_path / "d1" / "d2" / "d3" / "x.nrrd").touch()
    assert len(matches(f"{tmp_path}/**/**/**/**/x.nrrd")) == 1


# ------------------------------------------------------------------------------------------------------- texts


def test_texts_have_a_size_and_an_end(tmp_path: Path) -> None:
    with (tmp_path / "large.txt").open("wb") as stream:
        stream.truncate(2**30)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name, found in (
        ("large.txt", "has 1073741824 bytes"),
        ("pipe", "a pipe or a device"),
        ("zero.txt", "a device"),
    ):
        with little_memory(), quickly(), pytest.raises(InputError, match=found):
            read_text(tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "zero", "large"])
def test_a_datalist_that_is_a_pipe_a_device_or_too_large_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "datalist.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as stream:
            stream.truncate(2**30)
    with (
        little_memory(),
        quickly(),
        pytest.raises(InputError, match=r"datalist\.json: (is a pipe|has 1073741824 bytes)"),
    ):
        read_datalist(path)


# ---------------------------------------------------------------------------------------------------- settings


PREPARE, MAPS = "prepare --input DATA --output OUT", "prepare-maps --input DATA --output OUT"
EVALUATE, HUGE = "evaluate --synthetic DATA --real DATA --output OUT", "100000,100000,100000"
OPTIONS = {
    f"phantom --output OUT --size {HUGE}": r"a phantom of 100000 × .* would need at least .*, and .* are free",
    "phantom --output OUT --cases 1000000000000": r"cases must lie in 3…100000",
    f"{PREPARE} --spacing 0.001,0.001,0.001": r"case phantom_00\d: 96000 × .* would need .* give a larger --spacing",
    f"{PREPARE} --spacing 1,1,1e999": "--spacing must be three",
    f"{PREPARE} --size {HUGE}": r"case phantom_00\d: 1e\+05 × .* voxels would need at least .* a smaller --size",
    f"{PREPARE} --jobs 1000000": r"--jobs must lie in 1…256, got 1000000",
    f"{PREPARE} --sigma 1e6": r"--sigma must lie in 0…20 voxels, got 1000000",
    f"{MAPS} --k 1000000000": r"--k must lie in 0…255",
    f"{MAPS} --spacing 0.001,0.001,0.001": "would need at least .* give a larger --spacing",
    f"{MAPS} --margin 1e300": "--margin must lie in",
    "choose-k --input DATA --sigma 1e6": r"--sigma must lie in 0…20 voxels",
    "choose-k --input DATA --spacing 0.001,0.001,0.001": "would need at least .* give a larger --spacing",
    "check --input DATA --jobs 1000000": r"--jobs must lie in 1…256",
    "check --input DATA --num-classes 1000000000": "classes from 2 to 256",
    f"check --input DATA --patch-size {HUGE}": "a patch_size of 100000 × 100000 × 100000 voxels would need",
    f"{EVALUATE} --draws 1000000000000": r"--draws must lie in 20…100000",
    f"{EVALUATE} --pictures 1000000000": r"--pictures must lie in 0…1000",
    f"{EVALUATE} --feature-spacing 0.0001": "would need at least .* give a larger --feature-spacing",
    f"export --bundle BUNDLE --output OUT --size {HUGE}": "a label map of .* would need at least .* a smaller --size",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_setting_beyond_all_measure_ends_before_the_work(
    command: str, tiny_dataset: Path, project_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": tiny_dataset, "OUT": tmp_path / "out", "BUNDLE": project_root / "bundles" / "spade_ldm"}
    with quickly(20):
        assert main([str(places.get(word, word)) for word in command.split()]) == 1
    error = capsys.readouterr().err
    assert re.search(OPTIONS[command], error), error
    assert "Traceback" not in error and not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pix2PixGenerator(num_classes=10**9, channels=(8, 8)),
        lambda: residual_unet(10**9),
        lambda: class_table({str(i): "x" for i in range(1000)}, "metadata.json"),
    ],
)
def test_numbers_of_classes_have_a_limit(make: Callable[[], Any]) -> None:
    with quickly(), pytest.raises(InputError, match=r"2 to 256|at most 256"):
        make()


def test_a_datalist_and_an_inference_have_limits_too(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [], "num_classes": 10**9}))
    with pytest.raises(InputError, match="num_classes must be a whole number of classes from 2 to 256"):
        read_datalist(tmp_path / "datalist.json")
    with pytest.raises(InputError, match=r"num_samples must lie in 1…100000"):
        load_label_maps(tiny_dataset, num_samples=10**9)
