"""A user's mistake ends in one message, never in a traceback: datalists, records, cards, links, seeds, weights."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from semsynth.cli.main import main
from semsynth.data.check import Entry, check_cases
from semsynth.data.datalists import read_datalist
from semsynth.data.entries import load_datalist, load_label_maps, load_training_images
from semsynth.data.geometry import TrainedGrid, bundle_grid
from semsynth.data.raw import find_cases
from semsynth.errors import InputError
from semsynth.evaluation.measure import MeasurementStore
from semsynth.evaluation.sources import load_real
from semsynth.evaluation.systems import load_system
from semsynth.files import walk
from semsynth.handlers import LoadWeights
from semsynth.prepare.atrium import Settings
from semsynth.prepare.maps import MapSettings
from semsynth.provenance.cards import record_of
from semsynth.provenance.seen import Seen
from semsynth.synthesis.batches import PrepareMapBatch
from semsynth.training.loading import CaseSampler, load_sources
from semsynth.training.sharing import ValidationShare
from semsynth.training.weights import load_weights

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def data(tiny_dataset, tmp_path):
    """A copy of the tiny data set that a test may spoil."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "data"))


def spoil(data: Path, change) -> Path:
    path = data / "datalist.json"
    content = json.loads(path.read_text())
    content = change(content) or content
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def in_first(**values):
    return lambda content: content["training"][0].update(values)


ENTRIES = {
    "image a number": (in_first(image=5), r"training\[0\] \(.*\): 'image' must be the path of a file, found 5"),
    "image a list": (in_first(image=["a"]), "'image' must be the path of a file, found a list of 1"),
    "image empty": (in_first(image=""), "'image' must be the path of a file, found ''"),
    "endo an object": (in_first(endo={}), "'endo' must be the path of a file, found an object of 0"),
    "label true": (in_first(label=True), "'label' must be the path of a file, found True"),
    "zero byte": (in_first(image="a\0b"), "'image' cannot be used, since it holds a zero byte"),
    "lone surrogate": (in_first(image="a\ud800b"), r"'image' cannot be used.*half of a character.*a\\ud800b"),
    "case a list": (in_first(case=[1]), "'case' must be a name, found a list of 1"),
    "patient an object": (in_first(patient={"a": 1}), "'patient' must be a name"),
    "content a number": (in_first(content=3), "'content' must be such as"),
    "content halves": (in_first(content={"start": [0, 0, 0.5], "shape": [8, 8, 8]}), "'content' must be such as"),
    "an entry a number": (lambda c: c["training"].append(5), "needs to be an object with file names, found 5"),
    "an entry null": (lambda c: c["training"].append(None), "needs to be an object with file names, found null"),
    "a split a number": (lambda c: c.update(validation=7), "validation: needs to be a list of entries, found 7"),
    "a split an object": (lambda c: c.update(testing={"a": 1}), "testing: needs to be a list of entries"),
    "a list": (lambda c: [c], "needs lists of cases"),
    "a number": (lambda c: "5", "needs lists of cases"),
    "null": (lambda c: "null", "needs lists of cases"),
    "all null": (lambda c: {"training": None}, "needs lists of cases"),
    "deep": (lambda c: DEEP, r"not valid JSON \(nested too deeply\)"),
    "deep entry": (lambda c: json.dumps(c)[:-1] + ', "more": ' + DEEP + "}", r"not valid JSON \(nested too deeply\)"),
    "truncated": (lambda c: json.dumps(c)[:-20], "not valid JSON"),
    "pattern a list": (lambda c: c.update(patient_regex=[1]), "patient_regex must be a text"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_spoilt_datalist_is_refused_in_words_by_all_that_reads_one(data, name):
    change, message = ENTRIES[name]
    path = spoil(data, change)
    readers = [
        lambda: read_datalist(path), lambda: load_datalist(path), lambda: load_label_maps(data),
        lambda: load_training_images(path), lambda: load_sources(path), lambda: find_cases(path),
        lambda: load_real(path), lambda: load_system("a", str(data)),
    ]  # fmt: skip
    for reader in readers:
        with pytest.raises(InputError, match=message):
            reader()


@pytest.mark.parametrize("name", ["image a number", "endo an object", "deep", "lone surrogate", "a number"])
def test_every_command_says_it_with_status_1(data, tmp_path, capsys, name):
    spoil(data, ENTRIES[name][0])
    out = str(tmp_path / "out")
    commands = [
        ["check", "--input", data], ["check", "--input", data, "--json"], ["prepare", "--input", data, "--output", out],
        ["prepare-maps", "--input", data, "--output", out], ["choose-k", "--input", data],
        ["prepare", "--input", data, "--output", out, "--like", data],
        ["picture", "--synthetic", data, "--output", f"{out}.png"],
        ["evaluate", "--synthetic", data, "--real", data, "--output", out, "--extractors", ""],
    ]  # fmt: skip
    for command in commands:
        assert main([str(part) for part in command]) == 1, command
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out and str(data / "datalist.json") in shown.err + shown.out


def test_null_says_nothing_like_a_key_that_is_not_there(data):
    def change(content):
        content["unlabelled"] = None
        content["training"][0] |= {"wall": None, "patient": None, "content": None}
        content["validation"], content["testing"] = None, content["testing"]

    path = spoil(data, change)
    assert set(read_datalist(path)["training"][0]) >= {"image", "label"}
    assert len(load_datalist(path)) == 2 and len(find_cases(path)) == 3
    with pytest.raises(InputError, match="no cases under validation"):
        load_datalist(path, "validation")


# ---- files


def test_links_in_a_circle_and_names_too_long_are_listed_with_the_other_problems(data):
    (data / "a").symlink_to("b")
    (data / "b").symlink_to("a")
    first = read_datalist(data / "datalist.json")["training"][0]
    found = [
        Entry("c1", {"image": data / first["image"]}),
        Entry("c2", {"image": data / "a" / "image.nii.gz"}),
        Entry("c3", {"image": data / ("n" * 300 + ".nii.gz")}),
        Entry("c4", {"image": data / first["image"] / "image.nii.gz"}),
        Entry("c5", {"image": data / "none.nii.gz"}),
    ]
    report = check_cases(found)
    assert [finding.case for finding in report.errors] == ["c2", "c3", "c4", "c5"]
    kinds = [finding.finding for finding in report.errors]
    assert "symbolic links" in kinds[0] and "too long" in kinds[1] and kinds[2:] == ["missing", "missing"]


@pytest.mark.parametrize("place", ["a/image.nii.gz", "n" * 300 + ".nii.gz"])
def test_a_training_and_a_preparation_name_them_as_well(data, tmp_path, capsys, place):
    (data / "a").symlink_to("b")
    (data / "b").symlink_to("a")
    path = spoil(data, in_first(image=place))
    with pytest.raises(InputError, match=r"1 of 2 cases cannot be used"):
        load_datalist(path)
    for command in ("prepare", "prepare-maps"):
        assert main([command, "--input", str(data), "--output", str(tmp_path / "out")]) == 1
        assert "cannot be used" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_listed_and_the_others_are_still_checked(data, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    for entry, name in zip(read_datalist(data / "datalist.json")["training"], ("p1", "p2"), strict=True):
        (raw / name).mkdir(parents=True)
        for role, file in (("image", "lgemri.nii.gz"), ("endo", "laendo.nii.gz")):
            shutil.copy(data / entry[role], raw / name / file)
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("p1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)  # a privileged user may read everything
    with pytest.raises(PermissionError):
        list(walk(raw))
    assert {case.image.parent.name for case in find_cases(raw)} == {"p1", "p2"}


# ---- intensities that one command takes and the other does not


@pytest.mark.parametrize(
    ("values", "finding"),
    [((0, 1e300), "intensities beyond all measure"), ((0, 1e-300), "image is constant"),
     ((1e12, 1e12 + 1), "image is constant")],
)  # fmt: skip
def test_check_and_prepare_agree_on_intensities_that_nothing_can_compute_with(data, tmp_path, capsys, values, finding):
    entry = read_datalist(data / "datalist.json")["training"][0]
    image = nib.load(data / entry["image"])
    low, high = values
    voxels = np.full(image.shape, low, dtype=np.float64)
    voxels[::2] = high
    nib.save(nib.Nifti1Image(voxels, image.affine), data / "odd.nii.gz")
    spoil(data, in_first(image="odd.nii.gz"))
    for command in (["check"], ["prepare", "--output", str(tmp_path / "out")]):
        assert main([command[0], "--input", str(data), *command[1:]]) == 1
        shown = capsys.readouterr()
        assert finding in shown.out + shown.err


# ---- cards, metadata, records

CARDS = {
    "a list": "[1]", "truncated": '{"training_cases": [', "deep": DEEP, "no cases": "{}",
    "a case a number": '{"training_cases": [5]}', "voxels lists": '{"training_cases": [{"voxels": {"image": [1]}}]}',
    "losses a number": '{"training_cases": [], "in_loss": 5}', "gaps": '{"training_cases": [], "unknown_parents": [1]}',
    "a hash a number": '{"training_cases": [], "sha256": 5}',
}  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(2, 2)}, path)
    return path


@pytest.mark.parametrize("name", CARDS)
def test_a_damaged_card_is_named_by_all_that_reads_it(weights, name):
    weights.with_suffix(".json").write_text(CARDS[name])
    for reader in (Seen.of, record_of):
        with pytest.raises(InputError, match=r"model\.json: not a model card"):
            reader(weights)


def test_a_card_that_is_no_text_is_named(weights):
    weights.with_suffix(".json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"model\.json: not a model card: not valid JSON"):
        Seen.of(weights)
    weights.with_suffix(".json").write_text('{"training_cases": [], "geometry": [1]}')
    with pytest.raises(InputError, match=r'"geometry" must be an object'):
        _ = TrainedGrid(weights, weights.with_name("metadata.json")).geometry


@pytest.mark.parametrize("stated", ['{"trained_on": [1]}', '{"trained_on": {"model.pt": 5}}', "[1]", DEEP, "{"])
def test_damaged_metadata_is_named(tmp_path, stated):
    path = tmp_path / "configs" / "metadata.json"
    path.parent.mkdir()
    path.write_text(stated)
    with pytest.raises(InputError, match=r"metadata\.json: |\"trained_on\" must hold"):
        bundle_grid(tmp_path)


@pytest.mark.parametrize(
    "record", ["[1]", "{", DEEP, '{"in_loss": 5}', '{"case": []}', '{"weights_sha256": {}}', '{"sample": "a"}']
)
def test_a_damaged_record_beside_a_synthetic_volume_is_named(tmp_path, record):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "c1_synthetic.nii.gz")
    (tmp_path / "c1_synthetic.json").write_text(record)
    with pytest.raises(InputError, match=r"c1_synthetic\.(json|nii\.gz): "):
        load_system("a", str(tmp_path))


@pytest.mark.parametrize("record", ["[1]", "{", DEEP, '{"intensity": null}', '{"source_voxels": 5}'])
def test_a_damaged_record_of_a_preparation_beside_a_map_is_done_without(data, tmp_path, record):
    entry = read_datalist(data / "datalist.json")["training"][0]
    (tmp_path / "c").mkdir()
    shutil.copy(data / entry["label"], tmp_path / "c" / "label.nii.gz")
    (tmp_path / "c" / "prepare.json").write_text(record)
    assert len(load_label_maps(tmp_path, str(tmp_path / "*" / "label.nii.gz"))) == 1


def test_a_kept_measurement_that_is_readable_but_another_is_measured_again(tmp_path):
    store, calls = MeasurementStore(tmp_path), []

    def measure():
        calls.append(1)
        return {"psnr": np.float64(3.0)}

    assert float(store.recall(["a"], measure)["psnr"]) == 3.0
    assert float(store.recall(["a"], measure)["psnr"]) == 3.0 and len(calls) == 1
    file = next(tmp_path.glob("*.npz"))
    for number, damage in enumerate(({"ssim": np.float64(1)}, {"psnr": np.array(["x"])}, {"psnr": np.float64(9)}, {})):
        np.savez(file, **damage)
        assert store.recall(["a"], measure) == {"psnr": 3.0} and len(calls) == number + 2
    whole = dict(np.load(file))
    np.savez(file, **whole | {"psnr": np.float64(4.0)})
    assert float(store.recall(["a"], measure)["psnr"]) == 3.0


# ---- weights


class Evil:
    def __reduce__(self):
        return os.getcwd, ()


def broken_weights(path: Path, kind: str) -> Path:
    torch.save({"weight": torch.ones(64, 64)}, path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "code":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    return path


KINDS = ("cut short", "text", "empty", "a module", "code", "a folder")


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_weights_are_one_line_without_pytorchs_advice(tmp_path, kind):
    path = broken_weights(tmp_path / "model.pt", kind)
    network = torch.nn.Linear(64, 64)
    for reader in (load_weights, lambda p: LoadWeights(p, load_dict={"model": network})(None)):
        with pytest.raises(InputError) as caught:
            reader(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ") and "\n" not in text and "weights_only" not in text
        assert ("could run code" in text) == (kind in ("a module", "code"))


@pytest.mark.parametrize("state", [{"other": torch.ones(2)}, [1, 2], {"weight": torch.ones(3, 3)}, {"weight": 5}])
def test_weights_of_another_network_are_one_line(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: (does not fit the network|holds no weights)") as caught:
        LoadWeights(tmp_path / "model.pt", load_dict={"model": torch.nn.Linear(2, 2)})(None)
    assert "\n" not in str(caught.value)


CHECKPOINTS = (
    {"objects": [1]}, {"epoch": "a"}, {"record": [1]}, {"objects": {"network": None}}, {"objects": {"network": [1]}},
    {"objects": {"network": {"w": 5}}}, {"objects": {"network": {"w": torch.ones(2, device="meta")}}},
)  # fmt: skip


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_a_checkpoint_of_another_form_is_named(tmp_path, capsys, change):
    good = {"objects": {"network": {"w": torch.ones(2)}}, "epoch": 1, "iteration": 2, "record": {}}
    path = tmp_path / "checkpoint_e0001_i0000002.pt"
    torch.save(good | change, path)
    arguments = ["weights", "--checkpoint", str(path), "--output", str(tmp_path / "model.pt")]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "model.pt").exists()


CONFIGS = ("", "{", "[1]", DEEP, "{}", '{"network_def": 5}', '{"network_def": {"_target_": "no.such.Thing"}}')


@pytest.mark.parametrize("config", CONFIGS)
def test_a_bundles_damaged_config_is_named_by_export(tmp_path, capsys, config):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text(config)
    arguments = ["export", "--bundle", str(tmp_path), "--output", str(tmp_path / "out"), "--size=32,32,32"]
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and str(tmp_path) in shown and "Traceback" not in shown


# ---- options


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "a", "True"])
def test_a_seed_that_no_generator_takes_is_refused_by_every_command(data, tmp_path, capsys, seed):
    out = str(tmp_path / "out")
    commands = [
        ["choose-k", "--input", data], ["phantom", "--output", out], ["prepare", "--input", data, "--output", out],
        ["prepare-maps", "--input", data, "--output", out],
        ["evaluate", "--synthetic", data, "--real", data, "--output", out, "--extractors", ""],
    ]  # fmt: skip
    for command in commands:
        assert main([*map(str, command), f"--seed={seed}"]) == 1
        assert "--seed must be a whole number from 0 to 4294967295" in capsys.readouterr().err


def test_and_by_what_trains_and_draws():
    with pytest.raises(InputError, match="seed must be a whole number from 0"):
        PrepareMapBatch(seed=-1)
    with pytest.raises(InputError, match="seed must be a whole number from 0"):
        CaseSampler(type("Data", (), {"data": [{}], "__len__": lambda _: 1})(), seed=-1)


@pytest.mark.parametrize("centers", [(5.0, 6.0), (-0.1, 0.5), (0.5, 1.1), (0.1, float("nan"))])
def test_centres_are_intensities_from_0_to_1(centers):
    for make in (Settings, lambda **kwargs: MapSettings(classes=("a",), **kwargs)):
        with pytest.raises(InputError, match="from 0 to 1, got"):
            make(k=2, centers=centers)


@pytest.mark.parametrize(("cases", "processes"), [(1, 2), (2, 4), (3, 2), (4, 4), (5, 3)])
def test_validation_cases_count_alike_however_many_processes_share_them(monkeypatch, cases, processes):
    counts = np.zeros(cases, int)
    for number in range(processes):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        mine = list(ValidationShare(range(cases)))
        assert mine, "every process has something to validate"
        counts[mine] += 1
    assert len(set(counts)) == 1 and counts[0] == (processes if cases < processes else 1)
