"""The cache of preprocessed entries: equal values back, and nothing damaged or out of date is ever used."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import time
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace

import monai
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureTyped,
    Invertd,
    Lambdad,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from semsynth.data.transforms import CropContentd, LoadIntensityd, LoadLabelMapd, SameGridd
from semsynth.errors import InputError
from semsynth.training import cache as cache_module
from semsynth.training.cache import DiskCache, describe, file_name

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
KEYS = ["image", "label"]


def transforms(num_classes: int = 4) -> list:
    return [LoadIntensityd("image"), LoadLabelMapd("label", num_classes), SameGridd(KEYS), CropContentd(KEYS)]


def apply(chain: list, entry: dict) -> dict:
    return reduce(lambda data, transform: transform(data), chain, entry)


@pytest.fixture
def entry(tiny_dataset, tmp_path):
    """An entry with its own copies of a phantom's files, cropped so that its tensors are views."""
    case = json.loads((tiny_dataset / "datalist.json").read_text())["training"][0]
    copied = {"case": "case 1/a", "content": {"start": [2, 3, 4], "shape": [20, 19, 18]}}
    for key in KEYS:
        path = tmp_path / f"source_{key}.nii.gz"
        path.write_bytes((tiny_dataset / case[key]).read_bytes())
        copied[key] = str(path)
    return copied


@pytest.fixture
def small():
    """An entry and its value, small enough to try every damage."""
    value = {
        "image": MetaTensor(torch.arange(24.0).view(1, 2, 3, 4), affine=torch.diag(torch.tensor([2.0, 2, 3, 1]))),
        "case": "a",
    }
    return {"case": "a", "image": "a.nii.gz"}, value


class Counting:
    """Builds a value and counts how often."""

    def __init__(self, build):
        self.build, self.count = build, 0

    def __call__(self):
        self.count += 1
        return self.build()


def assert_same(a, b):
    assert type(a) is type(b) or (isinstance(a, str) and isinstance(b, str)), (a, b)  # MONAI's texts are enumerations
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        if isinstance(a, MetaTensor):
            assert_same(a.meta, b.meta)
            assert torch.equal(a.affine, b.affine) and a.affine.dtype == b.affine.dtype
            assert len(a.applied_operations) == len(b.applied_operations)
    elif isinstance(a, (np.ndarray, np.generic)):
        assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    else:
        assert a == b or (a != a and b != b)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def filled(folder: Path, entry, value) -> Path:
    DiskCache(folder, []).load(entry, lambda: value)
    return only_file(folder)


def reasons(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "semsynth.training.cache"]


def never():
    raise AssertionError("the entry was built although it is in the cache")


# ---- what comes back


def test_a_preprocessed_volume_comes_back_equal_and_is_built_once(entry, tmp_path, caplog):
    build = Counting(partial(apply, transforms(), entry))
    folder = tmp_path / "cache"
    first = DiskCache(folder, transforms()).load(entry, build)
    again = DiskCache(folder, transforms()).load(entry, build)
    assert build.count == 1 and not reasons(caplog)
    assert_same(first, again)
    assert again["image"].shape == (1, 20, 19, 18) and again["image"].meta["filename_or_obj"] == entry["image"]
    again["image"] += 1  # belongs to the caller
    assert_same(DiskCache(folder, transforms()).load(entry, never), first)


def test_a_view_is_stored_without_what_it_looks_into(tmp_path):
    large = torch.zeros(1, 64, 64, 64)
    path = filled(tmp_path, {"case": "a"}, {"image": large[:, :4, :4, :4], "mean": large[0, 0, 0, 0].expand(9)})
    assert path.stat().st_size < 8000 < large.numel()


def test_all_kinds_of_values_come_back_equal(tmp_path):
    value = {
        "none": None,
        "numbers": [1, -(2**70), True, 0.1, float("inf"), float("nan")],
        "texts": ("ü \n\0", {"inner": {1: "integer key", (2, 3): "tuple key"}}),
        "numpy": [np.float32(0.1), np.float64(0.1), np.int16(-3), np.bool_(True), np.str_("x")],
        "arrays": [np.arange(6, dtype=">i2").reshape(2, 3).T, np.zeros((0, 3)), np.array(1.5), np.array(["a", "bc"])],
        "dates": np.array("2020", "M8[D]"),
        "tensors": [torch.tensor(1.5, dtype=torch.bfloat16), torch.zeros(0, 2), torch.ones(2, 3, dtype=torch.uint8).T],
        "meta": MetaTensor(torch.ones(1, 2, 2, 2), meta={"spacing": np.array([1.0]), "size": torch.tensor([2])}),
        "empty": [{}, [], ()],
    }  # fmt: skip
    cache = DiskCache(tmp_path, [])
    cache.load({"case": "a"}, lambda: value)
    assert_same(cache.load({"case": "a"}, never), value)


def test_monai_transforms_can_be_inverted_from_a_cached_value(entry, tmp_path):
    def chain() -> Compose:
        resample = Spacingd(KEYS, (2.0, 3.0, 4.0), mode=["bilinear", "nearest"])
        return Compose([*transforms(), Orientationd(KEYS, "LPS", labels=None), resample, EnsureTyped(KEYS)])

    inverted = []
    for build in (True, False):  # the second time with other transform objects, as in another process
        own = chain()
        value = DiskCache(tmp_path / "cache", [own]).load(entry, partial(own, entry) if build else never)
        value["pred"] = value["image"].clone()
        inverted.append(Invertd("pred", own, orig_keys="image", nearest_interp=False)(value)["pred"])
        assert inverted[-1].shape == (1, 20, 19, 18)
    assert_same(inverted[0].as_tensor(), inverted[1].as_tensor())


def test_a_value_that_cannot_be_stored_is_built_every_time_with_one_warning(tmp_path, caplog):
    build = Counting(lambda: {"image": torch.ones(2), "reader": object()})
    cache = DiskCache(tmp_path, [])
    for case in ("a", "a", "b"):
        assert torch.equal(cache.load({"case": case}, build)["image"], torch.ones(2))
    assert build.count == 3 and list(tmp_path.iterdir()) == []
    assert len(reasons(caplog)) == 1 and "a value of type object cannot be stored" in reasons(caplog)[0]


def test_an_error_in_the_transforms_is_passed_on(entry, tmp_path):
    with pytest.raises(InputError, match=r"class indices must lie in 0…1"):
        DiskCache(tmp_path / "c", transforms(2)).load(entry, partial(apply, transforms(2), entry))
    assert list((tmp_path / "c").iterdir()) == []


# ---- damage


def check_rebuilt(path: Path, entry, value, caplog, reason: str) -> None:
    """One load rebuilds with one warning that names file and reason, and the next takes the new file."""
    caplog.clear()
    build = Counting(lambda: value)
    assert_same(DiskCache(path.parent, []).load(entry, build), value)
    assert build.count == 1, "a damaged file was used"
    (message,) = reasons(caplog)
    assert str(path) in message and reason in message
    assert_same(DiskCache(path.parent, []).load(entry, never), value)
    assert len(reasons(caplog)) == 1 and only_file(path.parent) == path


def test_an_empty_file_is_rebuilt(small, tmp_path, caplog):
    path = filled(tmp_path, *small)
    path.write_bytes(b"")
    check_rebuilt(path, *small, caplog, "it is empty")


def test_a_truncated_file_is_rebuilt_whatever_its_length(small, tmp_path, caplog):
    path = filled(tmp_path, *small)
    whole = path.read_bytes()
    for length in [*range(1, 70), *range(70, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        check_rebuilt(path, *small, caplog, f"it is truncated to {length} bytes")


def test_any_flipped_byte_is_noticed(small, tmp_path, caplog):
    path = filled(tmp_path, *small)
    whole = path.read_bytes()
    assert len(whole) > 500
    for position in [*range(80), *range(80, len(whole), 23), len(whole) - 1]:
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            # a flip in the length may look like a longer file that was cut
            check_rebuilt(path, *small, caplog, "it is truncated" if 16 <= position < 24 and flip & ~whole[position]
                          else "it is damaged (its SHA-256 does not match)")  # fmt: skip


def test_bytes_appended_and_files_of_other_kinds_are_rebuilt(small, tmp_path, caplog):
    path = filled(tmp_path, *small)
    whole = path.read_bytes()
    for content in (whole + b"\0", b"\0" * len(whole), whole * 2):
        path.write_bytes(content)
        check_rebuilt(path, *small, caplog, "it is damaged")


def test_a_file_that_runs_code_when_unpickled_is_not_run(small, tmp_path, caplog, monkeypatch):
    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = tmp_path / "cache"
    monkeypatch.setattr(cache_module, "_encode", lambda value, tensors: tensors.append(Code()) or ["tensor", 0])
    path = filled(folder, *small)
    monkeypatch.undo()
    check_rebuilt(path, *small, caplog, "it cannot be loaded")
    assert not (tmp_path / "ran").exists()


# ---- made from something else


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (LoadLabelMapd("label", 4), LoadLabelMapd("label", 5)),
        (Spacingd(KEYS, (1.0, 1.0, 2.0)), Spacingd(KEYS, (1.0, 1.0, 2.5))),
        (Spacingd(KEYS, 1.0, mode=["bilinear", "nearest"]), Spacingd(KEYS, 1.0, mode=["bilinear", "bilinear"])),
        (Orientationd(KEYS, "RAS", labels=None), Orientationd(KEYS, "LPS", labels=None)),
        (ScaleIntensityRanged(KEYS, 0, 1, 0, 1), ScaleIntensityRanged(KEYS, 0, 1, 0, 1, clip=True)),
        (Compose([LoadIntensityd("image")]), Compose([LoadIntensityd("label")])),
        (Lambdad(KEYS, lambda x: x + 1), Lambdad(KEYS, lambda x: x + 2)),
        (Lambdad(KEYS, partial(np.clip, a_max=1)), Lambdad(KEYS, partial(np.clip, a_max=2))),
        (Lambdad(KEYS, [np.ones(3), 1]), Lambdad(KEYS, [np.zeros(3), 1])),
    ],
)
def test_another_transform_parameter_rebuilds_and_replaces(small, tmp_path, caplog, old, new):
    entry, value = small
    DiskCache(tmp_path, [old]).load(entry, dict)
    build = Counting(lambda: value)
    assert_same(DiskCache(tmp_path, [new]).load(entry, build), value)
    (message,) = reasons(caplog)
    assert build.count == 1 and str(only_file(tmp_path)) in message and "made by other transforms" in message
    assert_same(DiskCache(tmp_path, [new]).load(entry, never), value)


def test_an_added_or_reordered_transform_rebuilds(small, tmp_path):
    chain = transforms()
    DiskCache(tmp_path, chain).load(small[0], dict)
    for other in (chain[:-1], chain[::-1], chain):
        build = Counting(dict)
        DiskCache(tmp_path, other).load(small[0], build)
        assert build.count == 1


def test_an_edited_transform_is_another_one(tmp_path, monkeypatch):
    """The file that defines a class counts, so code may change without a new version."""
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "own_transforms.py"
    source.write_text("class Own:\n    def __call__(self, x):\n        return x\n")
    own = importlib.import_module("own_transforms").Own()
    before = describe(own)
    source.write_text("class Own:\n    def __call__(self, x):\n        return x + 100\n")
    cache_module._file_digest.cache_clear()  # as in a new process
    assert "own_transforms.Own" in before and describe(own) != before


DESCRIBE = """
from monai.transforms import *
from semsynth.training.cache import describe
from semsynth.data.transforms import *
keys = ["image", "label"]
print(describe([Compose([LoadImaged(keys), LoadLabelMapd("label", 4), Orientationd(keys, "RAS", labels=None)]),
    Spacingd(keys, 1.0, mode=("bilinear", "nearest")), CropForegroundd(keys, "image"), RandFlipd(keys, 0.5),
    Lambdad("image", lambda x: x in {"a", "b", "c", "d", "e", "f", "g"}), EnsureTyped(keys, device="cpu")]))
"""


@pytest.mark.slow
def test_the_same_transforms_are_the_same_in_every_process(capsys):
    env = os.environ | {"PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", DESCRIBE], check=True, capture_output=True, text=True, env=env).stdout
    exec(DESCRIBE, {"__name__": "__main__"})
    assert capsys.readouterr().out == other and "0x" not in other
    assert "monai.transforms.spatial.dictionary.Spacingd" in other and "'nearest'" in other


def test_objects_that_hold_each_other_can_be_described():
    a, b = Compose([]), Compose([])
    a.other, b.other = b, a
    assert describe(a) == describe(a)
    b.extra = 1
    assert describe(a) != describe(Compose([]))


@pytest.mark.parametrize(
    ("target", "name", "reason"),
    [(monai, "__version__", "monai"), (torch, "__version__", "torch"), (cache_module, "__version__", "semsynth"),
     (cache_module, "FORMAT", "cache")],
)  # fmt: skip
def test_another_version_rebuilds(small, tmp_path, caplog, monkeypatch, target, name, reason):
    with monkeypatch.context() as patch:
        patch.setattr(target, name, "0.0.1")
        path = filled(tmp_path, *small)
    check_rebuilt(path, *small, caplog, f"made by other versions ({reason} 0.0.1, now")


def test_a_source_file_that_changed_rebuilds(entry, tmp_path, caplog):
    cache = DiskCache(tmp_path / "cache", transforms())
    before = cache.load(entry, partial(apply, transforms(), entry))
    source = Path(entry["image"])
    stat = source.stat()
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    build = Counting(partial(apply, transforms(), entry))
    assert_same(cache.load(entry, build), before)
    (message,) = reasons(caplog)
    assert build.count == 1 and message.count(f"its source file changed: {source};") == 1

    source.write_bytes(source.read_bytes() + b"\0" * 8)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # another size, the same time
    cache.load(entry, build)
    cache.load(entry, never)
    assert build.count == 2
    source.unlink()
    with pytest.raises(InputError, match="no such file"):
        cache.load(entry, build)


def test_a_source_that_changes_while_it_is_read_rebuilds_at_the_next_load(entry, tmp_path):
    def build():
        os.utime(entry["label"], ns=(0, 0))
        return {}

    cache = DiskCache(tmp_path / "cache", [])
    cache.load(entry, build)
    second = Counting(dict)
    cache.load(entry, second)
    assert second.count == 1


def test_sources_in_a_list_count(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("x")
    entry = {"case": "a", "image": [str(path) for path in paths], "long": "x" * 5000, "odd": "\0"}
    cache = DiskCache(tmp_path / "cache", [])
    cache.load(entry, dict)
    cache.load(entry, never)
    paths[1].write_text("xy")
    build = Counting(dict)
    cache.load(entry, build)
    assert build.count == 1


def test_another_value_in_the_entry_rebuilds_in_place(entry, tmp_path, caplog):
    cache = DiskCache(tmp_path / "cache", [])
    cache.load(entry, dict)
    path = only_file(tmp_path / "cache")
    build = Counting(dict)
    cache.load(entry | {"content": {"start": [0, 0, 0], "shape": [20, 19, 18]}}, build)
    assert build.count == 1 and only_file(tmp_path / "cache") == path
    assert "made from another entry" in reasons(caplog)[0]


def test_entries_have_files_of_their_own_with_plain_names(entry):
    names = {
        file_name(e) for e in (entry, entry | {"case": "case 1_a"}, entry | {"image": "other"}, {"n": 1}, {"n": 2})
    }
    assert len(names) == 5 and all(name.isascii() and "/" not in name and " " not in name for name in names)
    assert len(file_name({"case": "../" + "ü" * 500}).encode()) < 100 and not file_name({"case": ".."}).startswith(".")


# ---- processes, kills, disks


def write_many(folder: Path, rounds: int) -> None:
    """Cases 0…3 over and over, 8 MB each; numpy, because torch's threads do not survive a fork."""
    for i in range(rounds):
        cache = DiskCache(folder, [])
        cache.load({"case": f"{i % 4}", "round": i}, partial(large_value, i % 4))
        assert cache._writable


def large_value(n: int) -> dict:
    return {"image": np.full(2_000_000, n, dtype=np.float32), "n": n}


def start(target, *args):
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


@needs_fork
def test_a_killed_writer_leaves_nothing_half(tmp_path, caplog):
    wait = random.Random(0)
    for kill in range(60):
        if kill >= 12 and list(tmp_path.glob(".semsynth-*.tmp")):
            break
        writer = start(write_many, tmp_path, 10**6)
        while not list(tmp_path.glob("*.cache")):
            time.sleep(0.001)
        time.sleep(0.05 + 0.05 * wait.random())
        writer.kill()
        writer.join()
        for path in tmp_path.glob("*.cache"):  # of whatever round: whole, so that only the round is wrong with it
            n = int(path.name[0])
            assert DiskCache(tmp_path, []).load({"case": f"{n}", "round": -1}, lambda: {"built": 1}) == {"built": 1}
            path.unlink()
    assert list(tmp_path.glob(".semsynth-*.tmp")), "no kill fell into a write: nothing was tested"
    assert reasons(caplog) and all("made from another entry" in message for message in reasons(caplog))


def test_a_file_is_on_the_disk_before_it_gets_its_name(small, tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: steps.append("synced") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda path, other: steps.append("renamed") or replace(path, other))
    filled(tmp_path, *small)
    assert steps == ["synced", "renamed"]


def test_what_killed_writers_left_is_removed_when_old(tmp_path):
    old, young, foreign = (tmp_path / name for name in (".semsynth-1.tmp", ".semsynth-2.tmp", "notes.tmp"))
    for path in (old, young, foreign):
        path.write_bytes(b"x")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    DiskCache(tmp_path, [])
    assert set(tmp_path.iterdir()) == {young, foreign}


@needs_fork
def test_two_processes_may_share_a_folder(tmp_path, caplog):
    writers = [start(write_many, tmp_path, 40) for _ in range(2)]
    reader = DiskCache(tmp_path, [])
    reader._writable = False
    while any(writer.is_alive() for writer in writers):  # what it finds is another round's at worst
        for n in range(4):
            reader.load({"case": f"{n}", "round": -1}, partial(large_value, n))
    assert all("made from another entry" in message for message in reasons(caplog))
    caplog.clear()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    for n in range(4):
        assert_same(DiskCache(tmp_path, []).load({"case": f"{n}", "round": 36 + n}, never), large_value(n))
    assert not reasons(caplog)


def test_a_folder_that_cannot_be_made_gives_one_warning(small, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    entry, value = small
    cache = DiskCache(tmp_path / "file" / "cache", [])
    assert len(reasons(caplog)) == 1 and "going on without" in reasons(caplog)[0]
    for case in ("a", "b"):
        assert_same(cache.load(entry | {"case": case}, lambda: value), value)
    assert all("is not used" in message for message in reasons(caplog)[1:])


def test_a_read_only_folder_is_read_with_one_warning(small, tmp_path, caplog, monkeypatch):
    entry, value = small
    filled(tmp_path, entry, value)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    class Denied(type(tmp_path)):
        def open(self, mode="r", *args, **kwargs):
            return refuse() if "x" in mode else super().open(mode, *args, **kwargs)

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    cache = DiskCache(Denied(tmp_path), [])
    assert_same(cache.load(entry, never), value)
    assert_same(cache.load(entry | {"case": "b"}, lambda: value), value)
    assert len(reasons(caplog)) == 1 and "Permission denied" in reasons(caplog)[0]


def fill_disk(folder: Path, messages: Path) -> None:
    import resource

    logging.getLogger("semsynth.training.cache").addHandler(logging.FileHandler(messages))
    cache = DiskCache(folder, [])
    cache.load({"case": "small"}, dict)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writing more fails, as on a full disk
    for n in range(3):
        assert_same(cache.load({"case": f"{n}"}, partial(large_value, n)), large_value(n))
    assert cache.load({"case": "small"}, never) == {}


@needs_fork
def test_a_disk_that_fills_up_gives_one_warning_and_leaves_no_half_file(tmp_path):
    messages = tmp_path / "messages"
    process = start(fill_disk, tmp_path / "cache", messages)
    process.join()
    assert process.exitcode == 0
    assert messages.read_text().count("going on without") == len(messages.read_text().splitlines()) == 1
    assert only_file(tmp_path / "cache").name.startswith("small-")


def test_transforms_that_cannot_be_described_switch_the_cache_off(small, tmp_path, caplog):
    path = filled(tmp_path, *small)
    content = path.read_bytes()
    chain = [SimpleNamespace(weights=torch.zeros(3).to_sparse())]
    cache, build = DiskCache(tmp_path, chain), Counting(lambda: small[1])
    cache.load(small[0], build)
    cache.load(small[0], build)
    assert build.count == 2 and only_file(tmp_path) == path and path.read_bytes() == content
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "going on without" in record.getMessage()
