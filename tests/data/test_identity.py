"""Patients, doubled scans and shared label maps: found in every layout, kept together by every draw."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from semsynth.data.check import Entry, check_cases
from semsynth.data.entries import load_datalist, load_label_maps, load_training_images
from semsynth.data.identity import joined, patient_of
from semsynth.data.raw import check_input
from semsynth.data.voxels import hash_file
from semsynth.errors import InputError
from semsynth.prepare.atrium import Settings, prepare
from semsynth.prepare.maps import MapSettings, prepare_maps
from semsynth.training.loading import load_sources

SHAPE = (16, 14, 12)


def save(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def write(root: Path, name: str, *, image: int, heart: int) -> dict[str, str]:
    """A case whose image and mask follow from two numbers; its entry."""
    endo = np.zeros(SHAPE, np.uint8)
    endo[4 : 8 + heart, 4:9, 4:8] = 1
    noise = np.random.default_rng(image).integers(0, 100, SHAPE)
    save(root / name / "lge.nii.gz", (noise + 200 * endo + 1).astype(np.int16))
    save(root / name / "endo.nii.gz", endo)
    return {"image": f"{name}/lge.nii.gz", "endo": f"{name}/endo.nii.gz"}


def listed(root: Path, **content: object) -> Path:
    path = root / "datalist.json"
    path.write_text(json.dumps(content))
    return path


def kinds(report) -> list[tuple[str, str, str]]:
    return [(f.severity, f.case, f.finding) for f in report.findings if f.finding != "orientation is not RAS"]


def test_a_stated_patient_goes_before_the_pattern_and_the_pattern_before_the_name():
    case = Entry("P1_a", {})
    assert patient_of(case) == "P1_a" and patient_of(case, r"^(P\d)") == "P1"
    assert patient_of(Entry("P1_a", {}, patient="x"), r"^(P\d)") == "x"
    with pytest.raises(InputError, match="does not match the case name 'P1_a'"):
        patient_of(case, "Q")


def test_a_patient_of_the_datalist_in_two_splits_is_an_error_in_check_and_in_training(tmp_path):
    a, b = (write(tmp_path, name, image=i, heart=i) | {"patient": "anna"} for i, name in enumerate("ab"))
    path = listed(tmp_path, training=[a], validation=[b])
    assert kinds(check_input(path)) == [("error", "b", "patient in two splits")]
    with pytest.raises(InputError, match="patient anna in training"):
        load_datalist(path, "training", needs=("image",))
    listed(tmp_path, training=[a], unlabelled=[b])
    assert kinds(check_input(path)) == [], "images without maps are for training too"


def test_one_label_map_in_two_splits_is_an_error_and_in_one_split_a_warning(tmp_path):
    a, b, c = (
        write(tmp_path, name, image=i, heart=h) for i, (name, h) in enumerate(zip("abc", (0, 0, 1), strict=True))
    )
    path = listed(tmp_path, training=[a], validation=[b, c])
    assert kinds(check_input(path)) == [("error", "b", "one label map in two splits")], "by its voxels"
    listed(tmp_path, training=[a, b], validation=[c])
    assert kinds(check_input(path)) == [("warning", "b", "two cases with one label map")]
    listed(tmp_path, training=[a | {"patient": "x"}, b | {"patient": "x"}], validation=[c])
    assert kinds(check_input(path)) == [], "of one patient nobody needs to be told"
    listed(tmp_path, training=[a], validation=[c | {"endo": a["endo"]}])
    with pytest.raises(InputError, match=r"one label map in two splits: found that of case a, which is in training"):
        load_datalist(path, "training", needs=("image",))


def test_a_scan_that_is_held_out_under_another_name_is_not_trained_on(tmp_path):
    a, b = (write(tmp_path, name, image=i, heart=i) for i, name in enumerate("ab"))
    scan = nib.load(tmp_path / a["image"])
    copy = np.asarray(scan.dataobj)[::-1].astype(np.float32) * 3  # the other way round, another type, another scale
    save(tmp_path / "b" / "lge.nii.gz", copy)
    path = listed(tmp_path, training=[a], validation=[b])
    with pytest.raises(InputError, match="one scan in two splits: found the same voxels as b, which is in validation"):
        load_datalist(path, "training", needs=("image",))
    assert kinds(check_input(path)) == [("error", "b", "duplicate case")]


def test_draws_keep_patients_and_images_of_one_map_together(tmp_path):
    entries = []
    for i in range(8):
        entry = write(tmp_path, f"c{i}", image=i, heart=i // 2)  # c0 and c1 share a map, c2 and c3 …
        entries.append(entry | ({"patient": "anna"} if i in (0, 7) else {}))
    path = listed(tmp_path, training=entries)
    for seed in range(2):
        out = prepare(path, tmp_path / f"out{seed}", Settings(k=0), fractions=(0.5, 0.5), seed=seed)
        content = json.loads(out.read_text())
        split = {e["case"]: s for s in ("training", "validation") for e in content[s]}
        assert len({split[c] for c in ("c0", "c1", "c6", "c7")}) == 1 and split["c2"] == split["c3"]
        assert {split[c] for c in split} == {"training", "validation"}
        patients = {e["case"]: e.get("patient") for s in ("training", "validation") for e in content[s]}
        assert patients["c0"] == patients["c7"] == "anna" and patients["c1"] is None
        assert not check_input(out).errors
    voxels = {"a": {"label": "1"}, "b": {"label": "1", "source_endo": "2"}, "c": {"endo": "3"}, "d": {"image": "1"}}
    groups = joined([Entry(name, {}) for name in "abcd"], None, voxels)
    assert groups["a"] == groups["b"] and len(set(groups.values())) == 3


def test_a_pattern_of_the_input_is_used_and_written_on(tmp_path):
    entries = [write(tmp_path, f"P{i // 2}_{i % 2}", image=i, heart=i) for i in range(6)]
    path = listed(tmp_path, training=entries, patient_regex=r"^(P\d)")
    out = prepare(path, tmp_path / "out", Settings(k=0), fractions=(0.5, 0.5))
    content = json.loads(out.read_text())
    assert content["patient_regex"] == r"^(P\d)"
    splits = {s: {e["case"][:2] for e in content[s]} for s in ("training", "validation")}
    assert not splits["training"] & splits["validation"] and set().union(*splits.values()) == {"P0", "P1", "P2"}
    assert [e["patient"] for e in load_datalist(out, "validation")] == [e["case"][:2] for e in content["validation"]]
    maps = listed(
        tmp_path / "out", **{**content, "training": content["training"] + content["validation"], "validation": []}
    )
    again = prepare_maps(maps, tmp_path / "maps", MapSettings(classes=("endo", "wall", "t")), fractions=(0.5, 0.5))
    content = json.loads(again.read_text())
    splits = {s: {e["case"][:2] for e in content[s]} for s in ("training", "validation")}
    assert not splits["training"] & splits["validation"]


def test_prepared_cases_carry_the_voxels_of_their_sources_through_every_preparation(tmp_path):
    entry = write(tmp_path, "P1", image=0, heart=0)
    path = listed(tmp_path, training=[entry])
    raw = {role: hash_file(tmp_path / entry[role]) for role in ("image", "endo")}
    out = prepare(path, tmp_path / "out", Settings(k=2, spacing=(2.0, 2.0, 2.0)), fractions=(1.0, 0.0))
    (case,) = json.loads(out.read_text())["training"]
    assert case["source_voxels"] == raw
    (loaded,) = load_datalist(out, "training")
    assert {f"source_{role}": value for role, value in raw.items()}.items() <= loaded["voxels"].items()
    assert loaded["voxels"]["label"] == hash_file(tmp_path / "out" / case["label"]) and "source_voxels" not in loaded
    twice = prepare_maps(out, tmp_path / "twice", MapSettings(classes=("endo", "wall", "t")), fractions=(1.0, 0.0))
    (case,) = json.loads(twice.read_text())["training"]
    assert raw.items() <= case["source_voxels"].items(), "the raw files' hashes win"


def test_synthetic_volumes_of_held_out_maps_are_refused_under_any_name(tmp_path):
    train, held = (write(tmp_path, name, image=i, heart=i) for i, name in enumerate(("a", "b")))
    path = listed(tmp_path, training=[train], validation=[held])
    volume = write(tmp_path / "syn", "v1", image=9, heart=1)
    for more, by in (
        ({}, "label map"),
        ({"endo": train["endo"], "patient": "b"}, None),
        ({"source_case": "b"}, "name"),
    ):
        entry = {k: f"syn/{v}" for k, v in volume.items()} | {"case": "v1"} | more
        (tmp_path / "synthetic.json").write_text(json.dumps({"training": [entry]}))
        if by is None:
            continue
        with pytest.raises(InputError, match=rf"v1, in .*synthetic.json: same .*{by}.* as b, in validation"):
            load_sources(tmp_path / "synthetic.json", needs=("image",), validation=path)


def test_a_linked_datalist_has_its_files_beside_the_link_in_every_command(tmp_path):
    (tmp_path / "splits").mkdir()
    entries = [write(tmp_path / "data", name, image=i, heart=i) for i, name in enumerate(("P1", "P2"))]
    fold = tmp_path / "splits" / "fold0.json"
    fold.write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    link = tmp_path / "data" / "datalist.json"
    link.symlink_to("../splits/fold0.json")
    assert not check_input(link).errors and not check_input(tmp_path / "data").errors
    assert [e["image"] for e in load_datalist(link, "training", needs=("image",))] == [
        str(link.parent / "P1/lge.nii.gz")
    ]
    prepared = prepare(tmp_path / "data", tmp_path / "out", Settings(k=0))
    real = tmp_path / "out" / "list.json"
    Path(prepared).rename(tmp_path / "splits" / "prepared.json")
    Path(prepared).symlink_to("../splits/prepared.json")
    assert [e["case"] for e in load_label_maps(tmp_path / "out", split="all")] == ["P1", "P2"] and not real.exists()


def test_names_are_those_of_the_link_not_of_what_it_leads_to(tmp_path):
    entry = write(tmp_path / "annex", "x77", image=0, heart=0)
    (tmp_path / "P1").mkdir()
    for role in ("image", "endo"):
        (tmp_path / "P1" / Path(entry[role]).name).symlink_to(tmp_path / "annex" / entry[role])
    path = listed(tmp_path, training=[{"image": "P1/lge.nii.gz", "endo": "P1/endo.nii.gz"}])
    assert [e["case"] for e in load_datalist(path, "training", needs=("image",))] == ["P1"]
    assert check_cases([Entry("P1", {"image": tmp_path / "P1" / "lge.nii.gz"})]).cases == 1


def test_patients_that_are_held_out_are_recognised_by_pattern_and_by_name(tmp_path):
    held, train, further = (write(tmp_path, name, image=i, heart=i) for i, name in enumerate(("P2_a", "P1_a", "P2_x")))
    for regex, more in ((r"^(P\d)", {"patient": "P2"}), (r"^(P\d)", {}), (None, {"patient": "P2_a"})):
        stated = {} if regex is None else {"patient_regex": regex}
        path = listed(
            tmp_path, training=[train], validation=[held], testing=[{"case": "P9", "label": "map.nii.gz"}], **stated
        )
        content = {"training": [further | more]} | (stated if not more else {})
        (tmp_path / "more.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"P2_x, in .*more.json: same patient as P2_a, in validation"):
            load_sources(tmp_path / "more.json", needs=("image",), validation=path)


def test_an_autoencoder_is_not_trained_on_a_held_out_scan_of_another_preparation(tmp_path):
    a, b = (
        write(tmp_path, name, image=i, heart=i) | {"source_voxels": {"image": "0" * 64}} for i, name in enumerate("ab")
    )
    path = listed(tmp_path, training=[a], validation=[b])
    with pytest.raises(InputError, match="duplicate case"):
        load_training_images(path)


def test_maps_given_alone_are_known_by_the_record_of_their_preparation(tmp_path):
    path = listed(tmp_path, training=[write(tmp_path, "P1", image=0, heart=0)])
    prepare(path, tmp_path / "out", Settings(k=0), fractions=(1.0, 0.0))
    (entry,) = load_label_maps(tmp_path, f"{tmp_path}/out/*/label.nii.gz")
    assert entry["voxels"]["source_endo"] == hash_file(tmp_path / "P1" / "endo.nii.gz")


def test_a_pattern_with_two_ways_to_tell_a_patient():
    assert [patient_of(Entry(name, {}), "(a)|(p7)") for name in ("a1", "p7_2")] == ["a", "p7"]
