"""``semsynth augment``: what it makes, what it refuses, that it goes on, and that others can read its training sets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
from semsynth.cli.main import main
from semsynth.data.entries import load_datalist
from semsynth.data.volumes import read_label
from semsynth.files import sha256
from semsynth.prepare.morph import MorphLabel
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.synthesis.augment.plan import AugmentSettings, draws_of
from semsynth.synthesis.augment.sets import Item, folds_of
from semsynth.synthesis.gate import Thresholds
from tiny_synthesis import random_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
JUDGES = [str(BUNDLES / "la_unet" / "models" / name) for name in ("judge_1.pt", "judge_2.pt")]
SIZE, SPACING = [56, 44, 36], [1.8, 1.8, 1.8]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training cases and one of each other split, raw and prepared, and two tiny bundles."""
    folder = tmp_path_factory.mktemp("augment")
    write_phantom_cases(folder / "raw", cases=6, size=SIZE, spacing=SPACING, progress=False)
    path = folder / "raw" / "datalist.json"
    content = json.loads(path.read_text())
    entries = [e for split in ("training", "validation", "testing") for e in content.pop(split, [])]
    entries = [{k: v for k, v in e.items() if k != "label"} for e in entries]
    content |= {"training": entries[:3], "validation": entries[3:4], "testing": entries[4:]}
    path.write_text(json.dumps(content))
    paths = ["--input", str(folder / "raw"), "--output", str(folder / "prepared")]
    assert main(["prepare", *paths, "--spacing", "1.8,1.8,1.8"]) == 0
    paths[3] = str(folder / "coarse")
    assert main(["prepare", *paths, "--spacing", "4,4,4"]) == 0
    for name in ("pix2pix3d", "spade_ldm"):
        _tiny_bundle(BUNDLES / name, folder / name)
    return folder


def _tiny_bundle(source: Path, folder: Path) -> None:
    shutil.copytree(source / "configs", folder / "configs")
    config = bundle_runs.read(source, "inference", "tiny")
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "models").mkdir()
    random_weights(source, folder / "models" / "model.pt")


def run(world: Path, output: Path, *more: str, bundle: str = "pix2pix3d", source: str = "prepared") -> int:
    return main(["augment", "--input", str(world / source), "--bundle", str(world / bundle), "--output", str(output),
                 "--device", "cpu", *more])  # fmt: skip


def records_in(output: Path) -> list[dict]:
    """What is written of each volume."""
    return [json.loads(path.read_text()) for path in sorted((output / "records").glob("[!.]*.json"))]


@pytest.mark.parametrize(("per_case", "share"), [(4, 0.5), (1, 0.5), (3, 0.5), (5, 0.3), (2, 0.0), (2, 1.0)])
def test_a_share_of_morphed_maps_is_met_and_more_volumes_leave_the_first_ones(per_case, share):
    cases = [f"c{i}" for i in range(40)]
    draws = draws_of(cases, AugmentSettings(per_case=per_case, morph=share))
    assert len(draws) == 40 * per_case and len({d.name for d in draws}) == len(draws)
    wanted = 40 * per_case * share
    assert abs(sum(d.morphed for d in draws) - wanted) <= (0 if per_case * share % 1 == 0 else 8)
    more = draws_of(["new", *cases], AugmentSettings(per_case=per_case + 3, morph=share))
    assert set(draws) <= set(more)


def test_seeds_of_two_augmentations_do_not_meet():
    def seeds(seed: int) -> set[int]:
        settings = AugmentSettings(seed=seed)
        return {settings.drawn("volumes") + i for i in range(1000)}

    assert not seeds(0) & seeds(1)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> Path:
    """Two volumes of each training case."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    assert run(world, folder, "--per-case", "2") == 0
    return folder


def test_a_training_set_of_training_cases_alone(world, finished):
    content = json.loads((finished / "datalist.json").read_text())
    given = json.loads((world / "prepared" / "datalist.json").read_text())
    real = [e for e in content["training"] if not e.get("synthetic")]
    made = [e for e in content["training"] if e.get("synthetic")]
    assert [e["case"] for e in real] == [e["case"] for e in given["training"]] and len(made) == 6
    assert {e["source_case"] for e in made} == {e["case"] for e in given["training"]}
    assert [e["case"] for e in content["validation"]] == [e["case"] for e in given["validation"]]
    entries = load_datalist(finished / "datalist.json", num_classes=4)  # files are there, nothing leaks
    assert len(entries) == 9
    morphed = [e for e in made if e["case"][-2] == "m"]
    assert len(morphed) == 3
    for entry in made:
        label = np.asarray(nib.load(finished / entry["label"]).dataobj)
        own = next(e for e in given["training"] if e["case"] == entry["source_case"])
        same = np.array_equal(label, np.asarray(nib.load(world / "prepared" / own["label"]).dataobj))
        assert same == (entry not in morphed)
        # by which the leak guard knows whose anatomy it is, morphed or not
        assert entry["source_voxels"] == {"endo": own["source_voxels"]["endo"]}
        record = json.loads((finished / "records" / f"{entry['case']}.0.json").read_text())
        assert record["synthetic"] and record["source_case"] == entry["source_case"]
        assert (record["morph"] is None) == same and "weights_sha256" in record
    assert (finished / "sheet.png").stat().st_size > 10_000


def test_a_case_that_cannot_be_morphed_is_taken_as_it_is(world, tmp_path, caplog):
    rules = tmp_path / "rules.yaml"
    rules.write_text("amplitude: 20\nwavelength: 10\nclasses: {endo: {}}\n")
    assert run(world, tmp_path / "out", "--per-case", "1", "--morph", "1", "--rules", str(rules)) == 0
    assert "phantom_000_m0: no morphed map within the limits in 20 tries" in caplog.text
    records = records_in(tmp_path / "out")
    assert len(records) == 3 and all(r["morph"] is None for r in records)


def test_it_goes_on_where_it_was_and_makes_the_same(world, finished, tmp_path):
    parts = tmp_path / "out"
    shutil.copytree(finished, parts, copy_function=shutil.copy2)
    volumes = sorted(p.relative_to(finished) for p in finished.glob("**/*_synthetic.nii.gz"))
    maps = sorted(p.relative_to(finished) for p in finished.glob("maps/*.nii.gz"))
    assert len(volumes) == 6 and len(maps) == 3
    for name in volumes[::2] + maps[:1]:
        (parts / name).unlink()
    (parts / "datalist.json").unlink()
    kept = {name: (parts / name).stat().st_mtime_ns for name in volumes[1::2]}
    assert run(world, parts, "--per-case", "2") == 0
    for name in [*volumes, *maps]:
        ours, theirs = (np.asarray(nib.load(folder / name).dataobj) for folder in (finished, parts))
        assert np.array_equal(ours, theirs)
    assert kept == {name: (parts / name).stat().st_mtime_ns for name in kept}
    lists = [json.loads((folder / "datalist.json").read_text()) for folder in (finished, parts)]
    cases = [[(e["case"], e["label"].rsplit("/", 1)[-1]) for e in content["training"]] for content in lists]
    assert cases[0] == cases[1]


def test_a_folder_that_was_begun_otherwise_or_changed_is_left_as_it_is(world, finished, tmp_path, capsys):
    parts = tmp_path / "out"
    shutil.copytree(finished, parts)
    assert run(world, parts, "--per-case", "2", "--seed", "1") == 1
    assert "was begun with another seed; give the same as before, or another --output" in capsys.readouterr().err
    changed = next(iter(sorted(parts.glob("maps/*.nii.gz"))))
    other = nib.load(changed)
    nib.save(nib.Nifti1Image(np.zeros(other.shape, np.uint8), other.affine), changed)
    assert run(world, parts, "--per-case", "2") == 1
    assert "was changed since it was made" in capsys.readouterr().err


def test_a_larger_number_of_volumes_adds_to_those_that_are_there(world, finished, tmp_path):
    more = tmp_path / "out"
    shutil.copytree(finished, more, copy_function=shutil.copy2)
    before = {p.relative_to(more): p.stat().st_mtime_ns for p in more.glob("**/*_synthetic.nii.gz")}
    assert run(world, more, "--per-case", "3") == 0
    after = {p.relative_to(more): p.stat().st_mtime_ns for p in more.glob("**/*_synthetic.nii.gz")}
    assert len(before) == 6 and len(after) == 9 and before.items() <= after.items()


def test_folders_of_the_user_are_left_as_they_are(world, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("decathlon/dataset.json", "nnunet/Dataset501_semsynth/imagesTr/phantom_000_0000.nii.gz"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        assert run(world, out, "--per-case", "1", "--format", name.split("/")[0]) == 1
        assert "files that are not ours to replace" in capsys.readouterr().err
        assert (out / name).read_text() == "mine"
        shutil.rmtree(out / name.split("/")[0])
    (out / "decathlon" / "imagesTs").mkdir(parents=True)
    (out / "decathlon" / "imagesTs" / "own.txt").write_text("mine")
    assert run(world, out, "--per-case", "2", "--format", "decathlon") == 0
    first = {p.name for p in (out / "decathlon" / "imagesTr").iterdir()}
    assert run(world, out, "--per-case", "1", "--format", "decathlon") == 0
    second = {p.name for p in (out / "decathlon" / "imagesTr").iterdir()}
    assert len(first) == 9 and len(second) == 6 and second < first
    assert (out / "decathlon" / "imagesTs" / "own.txt").read_text() == "mine"


def test_synthetic_volumes_are_no_real_cases(world, finished, tmp_path, capsys):
    path = [
        "augment",
        "--input",
        str(finished),
        "--bundle",
        str(world / "pix2pix3d"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(path) == 1
    assert "lists synthetic volumes as real ones" in capsys.readouterr().err


def test_patients_stay_together_by_the_datalists_pattern_and_other_keys_stay(world, tmp_path):
    content = json.loads((world / "prepared" / "datalist.json").read_text())
    shutil.copytree(world / "prepared", tmp_path / "prepared")
    for entry, name in zip(content["training"], ("P1_a", "P1_b", "P2_a"), strict=True):
        entry |= {"case": name, "scanner": "Avanto"}
        entry.pop("patient", None)
    content["unlabelled"] = [{"image": content["testing"][0]["image"], "case": "U1"}]
    content["testing"] = content["testing"][1:]
    content["patient_regex"] = "^(P[0-9]|phantom_[0-9]+|U1)"
    (tmp_path / "prepared" / "datalist.json").write_text(json.dumps(content))
    paths = ["--input", str(tmp_path / "prepared"), "--bundle", str(world / "pix2pix3d"), "--output"]
    assert main(["augment", *paths, str(tmp_path / "out"), "--per-case", "1", "--format", "nnunet"]) == 0
    made = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert {e["source_case"]: e["patient"] for e in made["training"] if e.get("synthetic")} == {
        "P1_a": "P1", "P1_b": "P1", "P2_a": "P2",
    }  # fmt: skip
    assert made["training"][0]["scanner"] == "Avanto"
    assert (tmp_path / "out" / made["unlabelled"][0]["image"]).is_file()
    assert len(load_datalist(tmp_path / "out" / "datalist.json")) == 6
    folds = json.loads((tmp_path / "out" / "nnunet" / "Dataset501_semsynth" / "splits_final.json").read_text())
    assert sorted(tuple(fold["val"]) for fold in folds) == [("P1_a", "P1_b"), ("P2_a",)]
    assert all(not any(name.startswith(fold["val"][0][:2]) for name in fold["train"]) for fold in folds)


def test_padding_stays_padding_and_the_place_of_the_case_is_said(world, tmp_path):
    paths = ["--input", str(world / "raw"), "--output", str(tmp_path / "padded")]
    assert main(["prepare", *paths, "--spacing", "1.8,1.8,1.8", "--size", "64,64,48"]) == 0
    paths = [
        "--input",
        str(tmp_path / "padded"),
        "--bundle",
        str(world / "pix2pix3d"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["augment", *paths, "--per-case", "1", "--morph", "1"]) == 0
    given = {e["case"]: e for e in json.loads((tmp_path / "padded" / "datalist.json").read_text())["training"]}
    for entry in json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]:
        if entry.get("synthetic"):
            own = given[entry["source_case"]]
            assert entry["content"] == own["content"]
            label, before = (
                np.asarray(nib.load(path).dataobj)
                for path in (tmp_path / "out" / entry["label"], tmp_path / "padded" / own["label"])
            )
            outside = np.ones(label.shape, bool)
            outside[tuple(slice(a, a + n) for a, n in zip(*own["content"].values(), strict=True))] = False
            assert outside.any() and np.array_equal(label[outside], before[outside]) and (label != before).any()
            assert set(np.unique(label[~outside])) == set(np.unique(before[~outside]))
            assert 0.5 < np.count_nonzero(label == 1) / np.count_nonzero(before == 1) < 2


def test_flipped_maps_with_large_slices_are_morphed_as_they_lie(world, tmp_path):
    """A map in another orientation and its twin in RAS order: cavities of the morphs are alike in size."""
    transform = MorphLabel(["background", "endo", "wall", "tissue 1"])
    path = next(iter((world / "prepared").glob("*/label.nii.gz")))
    label = nib.load(path)
    flipped = label.as_reoriented(nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], [[2, -1], [0, 1], [1, -1]]))
    nib.save(flipped, tmp_path / "flipped.nii.gz")
    volume = read_label(tmp_path / "flipped.nii.gz")
    made = transform.morphed(volume.data.astype(np.uint8), 3, volume.spacing)
    assert made.label.shape == flipped.shape
    assert set(np.unique(made.label)) <= set(np.unique(np.asarray(label.dataobj)))


def test_organs_of_a_ct_without_rules_are_morphed_too(world, tmp_path):
    content = json.loads((world / "prepared" / "datalist.json").read_text())
    shutil.copytree(world / "prepared", tmp_path / "prepared")
    content["classes"] = {"0": "background", "1": "liver", "2": "kidney left", "3": "tissue 1"}
    (tmp_path / "prepared" / "datalist.json").write_text(json.dumps(content))
    bundle = tmp_path / "bundle"
    shutil.copytree(world / "pix2pix3d", bundle)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata["classes"] = content["classes"]
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    paths = ["--input", str(tmp_path / "prepared"), "--bundle", str(bundle), "--output", str(tmp_path / "out")]
    assert main(["augment", *paths, "--per-case", "1", "--morph", "1"]) == 0
    records = records_in(tmp_path / "out")
    assert len(records) == 3 and all(r["morph"]["amounts"]["classes"] == {} for r in records)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(world, tmp_path):
    torchrun, semsynth = (str(Path(sys.executable).with_name(name)) for name in ("torchrun", "semsynth"))
    (tmp_path / "out" / "decathlon").mkdir(parents=True)
    (tmp_path / "out" / "datalist.json").write_text("mine")
    command = [torchrun, "--standalone", "--nproc_per_node=2", "--no-python", semsynth, "augment", "--device", "cpu"]
    paths = {"--input": world / "prepared", "--bundle": world / "pix2pix3d", "--output": tmp_path / "out"}
    ended = subprocess.run([*command, *(str(part) for pair in paths.items() for part in pair)],
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    assert ended.returncode != 0 and "files that are not ours to replace" in ended.stderr


@pytest.mark.slow
def test_processes_share_the_work_and_make_the_same(world, finished, tmp_path):
    torchrun, semsynth = (str(Path(sys.executable).with_name(name)) for name in ("torchrun", "semsynth"))
    command = [torchrun, "--standalone", "--nproc_per_node=2", "--no-python", semsynth, "augment", "--per-case", "2"]
    paths = [
        "--input",
        str(world / "prepared"),
        "--bundle",
        str(world / "pix2pix3d"),
        "--output",
        str(tmp_path / "out"),
    ]
    subprocess.run([*command, *paths, "--device", "cpu"], check=True, timeout=600)
    for path in sorted(finished.glob("**/*_synthetic.nii.gz")) + sorted(finished.glob("maps/*.nii.gz")):
        ours, theirs = (np.asarray(nib.load(p).dataobj) for p in (path, tmp_path / "out" / path.relative_to(finished)))
        assert np.allclose(ours, theirs, atol=1e-3 if path.parent.name != "maps" else 0)  # threads sum in other orders


def test_raw_cases_are_prepared_as_the_weights_data_was(world, tmp_path):
    assert run(world, tmp_path / "out", "--per-case", "1", "--morph", "0", source="raw") == 0
    settings = json.loads((tmp_path / "out" / "prepared" / "datalist.json").read_text())["settings"]
    metadata = json.loads((world / "pix2pix3d" / "configs" / "metadata.json").read_text())
    stated = metadata["trained_on"]["model.pt"]["prepared_with"]
    assert {key: settings[key] for key in stated} == stated


def test_each_volume_takes_the_style_of_its_own_scan_or_of_one_that_is_drawn(world, tmp_path):
    def records(name: str, *style: str) -> list[dict]:
        more = ["--per-case", "2", "--morph", "0", *style]
        assert run(world, tmp_path / name, *more, bundle="spade_ldm", source="coarse") == 0
        return records_in(tmp_path / name)

    own = records("own", "--style", "own")
    assert len(own) == 6 and len({(r["source_case"], r["style_from_sha256"]) for r in own}) == 3
    scans = records("scans", "--style", str(world / "coarse" / "datalist.json"))
    assert len(scans) == 6 and len({r["style_from_sha256"] for r in scans}) > 1
    pairs = [{(r["source_case"], r["style_from_sha256"]) for r in records} for records in (scans, own)]
    assert pairs[0] != pairs[1]


def test_a_morphed_map_takes_its_scans_style_by_the_map_as_it_was(world, tmp_path):
    assert run(world, tmp_path / "out", "--per-case", "1", "--morph", "1", "--style", "own", bundle="spade_ldm") == 0
    listed = json.loads((tmp_path / "out" / "maps" / "round_0" / "datalist.json").read_text())["training"]
    for entry in listed:
        assert "/maps/" not in entry["style_map"] and entry["style_map"].endswith(
            f"{entry['source_case']}/label.nii.gz"
        )


def test_under_pseudonyms_nothing_is_called_after_a_case_and_the_same_is_made_again(world, tmp_path, capsys):
    out, key = tmp_path / "out", tmp_path / "key.json"
    more = ("--per-case=2", "--morph=0.5", f"--style={world / 'prepared'}", f"--pseudonyms={key}", "--format=decathlon")
    assert run(world, out, *more, bundle="spade_ldm") == 0, capsys.readouterr().err
    names = json.loads(key.read_text())["cases"]
    assert len(names) == 6
    for path in out.rglob("*"):
        assert "phantom_0" not in path.name
        if path.suffix == ".json":
            text = path.read_text()
            assert "phantom_0" not in text and str(tmp_path) not in text and str(world) not in text, path
    listed = json.loads((out / "datalist.json").read_text())
    taken = [entry for entry in listed["training"] if entry.get("synthetic")]
    assert len(taken) == 6 and {entry["source_case"] for entry in taken} < set(names.values())
    assert len(load_datalist(out / "datalist.json", "training", num_classes=4)) == 9
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_synthetic.nii.gz")}
    assert run(world, out, *more, bundle="spade_ldm") == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*_synthetic.nii.gz")}
    other = [word.replace("key.json", "other.json") for word in more]
    assert run(world, out, *other, bundle="spade_ldm") == 1
    assert "of another key file" in capsys.readouterr().err


def test_an_audit_is_recorded_and_copies_stop_the_forms_of_other_programs(world, finished, tmp_path, capsys):
    """The audit of the volumes that an earlier run of the same command has made."""
    output = tmp_path / "aug"
    shutil.copytree(finished, output, copy_function=shutil.copy2)
    assert json.loads((output / "augment.json").read_text())["audit"] == {"verdict": "not audited"}
    listed = json.loads((output / "datalist.json").read_text())["training"]
    made = [output / entry["image"] for entry in listed if entry.get("synthetic")]
    content = {"verdict": "copies found", "reasons": ["one copy"], "weights_sha256": [],
               "volumes_sha256": [sha256(path) for path in made]}  # fmt: skip
    (tmp_path / "audit.json").write_text(json.dumps(content))
    more = ("--per-case", "2", "--format", "datalist,decathlon", "--audit", str(tmp_path / "audit.json"))
    assert run(world, output, *more) == 1
    assert "copies of training scans were found in these volumes" in capsys.readouterr().err
    assert not (output / "decathlon").exists()
    assert run(world, output, *more, "--despite-audit") == 0
    said = json.loads((output / "augment.json").read_text())["audit"]
    assert said["verdict"] == "copies found" and said["despite"] is True and (output / "decathlon").is_dir()


def test_the_gate_refuses_draws_again_drops_and_lists(world, tmp_path, capsys):
    judge = ["--judge", JUDGES[0], "--min-dice", "0.99", "--tries", "2"]
    assert run(world, tmp_path / "out", "--per-case", "1", *judge) == 0
    said = capsys.readouterr().out
    assert "0 of 3 volumes are in the training set" in said and "the gate refused 6 of 6 that were made" in said
    summary = json.loads((tmp_path / "out" / "augment.json").read_text())
    assert summary["made"] == 6 and summary["taken"] == 0 and len(summary["left_out"]) == 3
    records = records_in(tmp_path / "out")
    assert all(r["gate"]["refused"].startswith("Dice ") and r["gate"]["judge_sha256"] for r in records)
    seeds = {(r["source_case"], r["seed"]) for r in records}
    assert len(seeds) == 6
    assert not [
        e for e in json.loads((tmp_path / "out" / "datalist.json").read_text())["training"] if e.get("synthetic")
    ]
    assert run(world, tmp_path / "all", "--per-case", "1", "--judge", JUDGES[0], "--min-dice", "0") == 0
    assert "the gate refused 0 of 3" in capsys.readouterr().out


def test_thresholds_refuse_what_is_below_above_or_no_number():
    limits = Thresholds(0.8, 10.0)
    assert limits.refusal({"dice": 0.8, "hd95": 10.0}) == ""
    assert limits.refusal({"dice": 0.79, "hd95": 1.0}) == "Dice 0.790, needed 0.800"
    assert limits.refusal({"dice": 0.9, "hd95": 11.0}) == "HD95 11.0 mm, at most 10.0"
    assert limits.refusal({"dice": float("nan"), "hd95": 1.0}) and limits.refusal({"dice": 0.9, "hd95": float("nan")})
    assert Thresholds(0.8).refusal({"dice": 0.9, "hd95": float("inf")}) == ""


def test_thresholds_are_learned_from_real_scans_that_the_judge_did_not_see(world, tmp_path, capsys):
    assert run(world, tmp_path / "out", "--per-case", "1", "--judge", JUDGES[0]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "only 3 of the 3 real training cases are known to be new to their judge, 5 are needed" in said


def test_folders_of_nnunet_and_the_decathlon(world, tmp_path):
    assert run(world, tmp_path / "out", "--per-case", "2", "--format", "nnunet,decathlon", "--labels", "endo,wall") == 0
    folder = tmp_path / "out" / "nnunet" / "Dataset501_semsynth"
    about = json.loads((folder / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "endo": 1, "wall": 2} and about["numTraining"] == 9
    images = sorted(p.name for p in (folder / "imagesTr").iterdir())
    assert len(images) == 9 and all(name.endswith("_0000.nii.gz") for name in images)
    for name in images:
        image = nib.load(folder / "imagesTr" / name)
        label = nib.load(folder / "labelsTr" / name.replace("_0000", ""))
        assert image.shape == label.shape and np.allclose(image.affine, label.affine)
        assert set(np.unique(np.asarray(label.dataobj))) == {0, 1, 2}
    cases = {name.removesuffix("_0000.nii.gz") for name in images}
    for fold in json.loads((folder / "splits_final.json").read_text()):
        assert set(fold["train"]) | set(fold["val"]) <= cases and not set(fold["train"]) & set(fold["val"])
    decathlon = json.loads((tmp_path / "out" / "decathlon" / "dataset.json").read_text())
    assert decathlon["labels"] == {"0": "background", "1": "endo", "2": "wall"}
    assert all((tmp_path / "out" / "decathlon" / e[key]).is_file() for e in decathlon["training"] for key in e)


def test_nnunets_own_check_accepts_the_folder(world, tmp_path, capfd):
    integrity = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity", reason="extra nnunet")
    assert run(world, tmp_path / "out", "--per-case", "1", "--format", "nnunet") == 0
    integrity.verify_dataset_integrity(str(tmp_path / "out" / "nnunet" / "Dataset501_semsynth"), 1)
    said = capfd.readouterr().out
    assert "verify_dataset_integrity Done" in said and "Error" not in said and "Warning" not in said


def test_folds_keep_patients_together_and_validate_on_real_scans():
    items = [Item(f"p{i}_{j}", Path(), Path(), f"p{i}", j > 1) for i in range(7) for j in range(4)]
    folds = folds_of(items, 0)
    by_name = {item.case: item for item in items}
    assert len(folds) == 5
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(i.case for i in items if not i.synthetic)
    for fold in folds:
        people = [{by_name[name].person for name in fold[part]} for part in ("train", "val")]
        assert not people[0] & people[1]
        assert not any(by_name[name].synthetic for name in fold["val"])
        assert any(by_name[name].synthetic for name in fold["train"])


def test_a_dry_run_says_how_many_how_long_how_much_and_leaves_nothing(world, tmp_path, capsys):
    assert run(world, tmp_path / "out", "--per-case", "3", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "9 volumes of 3 cases, " in said and "0.0 GB; about 1 min, without what is refused" in said
    assert not (tmp_path / "out").exists()


def test_weights_of_another_size_take_the_inferences_settings(world, tmp_path, capsys):
    """A bundle as it ships, with weights of the tiny network: as a training with other options leaves them."""
    _tiny_bundle(BUNDLES / "pix2pix3d", tmp_path / "tiny")
    shipped = tmp_path / "shipped"
    shutil.copytree(BUNDLES / "pix2pix3d" / "configs", shipped / "configs")
    (shipped / "models").mkdir()
    weights, output = tmp_path / "tiny" / "models" / "model.pt", tmp_path / "out"
    words = ["augment", "--input", str(world / "prepared"), "--bundle", str(shipped), "--device", "cpu", "--per-case",
             "1", "--weights", str(weights), "--output", str(output)]  # fmt: skip
    assert main(words) == 1 and "the inference cannot be run" in capsys.readouterr().err
    channels = bundle_runs.read(BUNDLES / "pix2pix3d", "inference", "tiny")["network_def"]["channels"]
    assert main([*words, "--inference", json.dumps({"network_def#channels": channels})]) == 0
    assert len(records_in(output)) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--per-case", "0"], "--per-case must lie in 1…"),
        (["--morph", "1.5"], "--morph must lie in 0…1, got 1.5"),
        (["--style", "own"], "--style own: this bundle's network has no styles; leave --style out"),
        (["--min-dice", "0.5"], "--min-dice goes with --judge"),
        (["--format", "niftynet"], "--format must be of datalist, nnunet, decathlon, got niftynet"),
        (["--labels", "aorta"], "--labels: the maps have no class aorta; the maps have endo, wall, tissue 1"),
        (["--labels", ","], "--labels: no class is given; the maps have endo, wall, tissue 1"),
        (["--judge", JUDGES[0], "--max-hd95", "1e400"], "--max-hd95 must lie in 0…1000 mm, got inf"),
        (["--jobs", "0"], "--jobs must be 1 or more"),
        (["--judge", "nowhere.pt"], "--judge nowhere.pt: no such file"),
        (["--inference", "{bad"], "--inference must be a JSON object in single quotes"),
        (["--inference", '{"stepz": 2}'], "configs/inference.json has no setting stepz"),
        (["--inference", '{"weights": "x.pt"}'], "--inference: weights is an option of its own"),
        (["--map-inference", '{"tries": 2}'], "--map-inference goes with --map-bundle"),
        (["--rules", "nowhere.yaml"], "nowhere.yaml: cannot be read as YAML rules of morphing"),
    ],
)
def test_what_cannot_be_done_says_why(world, tmp_path, capsys, more, said):
    assert run(world, tmp_path / "out", *more) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "datalist.json").exists()
