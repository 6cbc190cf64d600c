"""The gate and the augmentation as overlays of a bundle's inference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bundle_runs
import pytest
from monai.bundle import ConfigWorkflow
from semsynth.cli.main import main
from semsynth.data.entries import load_datalist
from semsynth.errors import InputError
from semsynth.files import sha256
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.synthesis.gating import gate_volumes
from semsynth.synthesis.workflow import is_own
from tiny_synthesis import random_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
JUDGE = str(BUNDLES / "la_unet" / "models" / "judge_1.pt")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training cases, one of validation, and a tiny bundle."""
    folder = tmp_path_factory.mktemp("gating")
    write_phantom_cases(folder / "raw", cases=3, size=[56, 44, 36], spacing=[1.8, 1.8, 1.8], progress=False)
    path = folder / "raw" / "datalist.json"
    content = json.loads(path.read_text())
    entries = [e for split in ("training", "validation", "testing") for e in content.pop(split, [])]
    entries = [{k: v for k, v in e.items() if k != "label"} for e in entries]
    path.write_text(json.dumps(content | {"training": entries[:2], "validation": entries[2:]}))
    paths = ["--input", str(folder / "raw"), "--output", str(folder / "data"), "--spacing", "1.8,1.8,1.8"]
    assert main(["prepare", *paths]) == 0
    source, bundle = BUNDLES / "spade_ldm", folder / "spade_ldm"
    shutil.copytree(source / "configs", bundle / "configs")
    (bundle / "configs" / "inference.json").write_text(json.dumps(bundle_runs.read(source, "inference", "tiny")))
    (bundle / "models").mkdir()
    random_weights(source, bundle / "models" / "model.pt")
    return folder


def run(world: Path, overlay: str, output: Path, **settings: object) -> None:
    """A bundle's inference with an overlay, as ``python -m monai.bundle run`` runs it."""
    bundle = world / "spade_ldm"
    files = [str(bundle / "configs" / f"{name}.json") for name in ("inference", overlay)]
    own = {"dataset_dir": str(world / "data"), "output_dir": str(output), "device": "$torch.device('cpu')",
           "judge_weights": JUDGE, "second_judge_weights": None} | settings  # fmt: skip
    about = str(bundle / "configs" / "metadata.json")
    workflow = ConfigWorkflow(config_file=files, meta_file=about, workflow_type="infer", logging_file=False,
                              bundle_root=str(bundle), **own)  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def refusal(world: Path, overlay: str, output: Path, **settings: object) -> str:
    """What the component of a config that refuses the input says."""
    try:
        run(world, overlay, output, **settings)
    except Exception as error:  # MONAI's, around the component's own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        assert isinstance(cause, InputError)
        return str(cause)
    raise AssertionError("it was accepted")


def test_the_overlay_lists_what_the_judge_accepts(world, tmp_path):
    out = tmp_path / "out"
    run(world, "gate", out, min_dice=0.0)
    listed = out / "accepted" / "datalist.json"
    entries = load_datalist(listed, num_classes=4)  # files are where it says
    assert [e["case"] for e in entries] == ["phantom_000", "phantom_001"]  # of the training maps alone
    assert all(e["synthetic"] for e in json.loads(listed.read_text())["training"])
    report = json.loads((out / "gate.json").read_text())
    assert report["volumes"] == 2 and report["refused"] == 0 and report["thresholds"]["min_dice"] == 0
    assert all(0 <= row["dice"] <= 1 and len(row["judge_sha256"]) == 64 for row in report["judged"].values())
    volumes = {p.name: p.stat().st_mtime_ns for p in out.glob("*_synthetic.nii.gz")}
    run(world, "gate", out, min_dice=1.0)  # nothing is made again, and the list of before does not stay
    report = json.loads((out / "gate.json").read_text())
    assert report["refused"] == 2 and not listed.exists()
    assert all(row["refused"].startswith("Dice ") for row in report["judged"].values())
    assert volumes == {p.name: p.stat().st_mtime_ns for p in out.glob("*_synthetic.nii.gz")}


@pytest.mark.parametrize("split", ["training", "validation"])  # of the maps: limits are never learned from validation
def test_limits_are_learned_from_training_cases_and_from_enough_of_them(world, tmp_path, split):
    said = refusal(world, "gate", tmp_path / "out", split=split)
    assert "only 2 of the 2 real training cases are known to be new to their judge" in said


def test_the_gate_says_what_it_cannot_judge(world, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"datalist.json: no such file; make the volumes first"):
        gate_volumes(tmp_path / "none", JUDGE, min_dice=0.5)
    with pytest.raises(InputError, match=r"lists cases that are not synthetic: phantom_000"):
        gate_volumes(world / "data", JUDGE, min_dice=0.5)
    assert not (world / "data" / "gate.json").exists()
    with pytest.raises(InputError, match=r"elsewhere: no such file; give --dataset_dir"):
        gate_volumes(tmp_path, JUDGE, real=tmp_path / "elsewhere")
    listed = tmp_path / "lists" / "datalist.json"
    listed.parent.mkdir()
    listed.write_text(json.dumps({"training": [{"source_case": "a", "image": "x.nii.gz", "synthetic": True}]}))
    with pytest.raises(InputError, match=r"(?s)entries need the texts case, image, label; .*entry 0: no case, label"):
        gate_volumes(listed.parent, JUDGE, min_dice=0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without it, which finds"):
        gate_volumes(tmp_path, JUDGE, min_dice=0.5)


def test_volumes_of_maps_that_nobody_lists_are_judged_too(world, tmp_path):
    out = tmp_path / "out"
    pattern = str(world / "data" / "*" / "label.nii.gz")
    run(world, "gate", out, label_maps=pattern, real_datalist=None, min_dice=0.0)
    assert len(json.loads((out / "gate.json").read_text())["judged"]) == 3
    gate_volumes(out, JUDGE, real="none", min_dice=0.0)  # as it can be typed: MONAI's command line leaves out None
    with pytest.raises(InputError, match="--min_dice is needed where the real cases are not known"):
        gate_volumes(out, JUDGE)


def test_maps_of_other_raw_files_are_no_cases_of_that_name_and_held_out_ones_are_warned_of(world, tmp_path, caplog):
    out = tmp_path / "out"
    run(world, "gate", out, split="validation", min_dice=0.0)
    assert "volumes are of maps of validation or testing cases (phantom_002): do not train on them" in caplog.text
    content = json.loads((out / "datalist.json").read_text())
    content["training"][0]["source_voxels"] = {"endo": "0" * 64}
    (out / "datalist.json").write_text(json.dumps(content))
    gate_volumes(out, JUDGE, real=world / "data", min_dice=0.0)
    assert "does not have 1 of 1 cases that volumes were made of (phantom_002)" in caplog.text


def test_volumes_under_pseudonyms_are_judged_as_those_of_their_real_cases(world, tmp_path, caplog):
    out, key = tmp_path / "out", tmp_path / "key.json"
    run(world, "gate", out, min_dice=0.0, pseudonyms=str(key))
    names = json.loads(key.read_text())["cases"]
    judged = json.loads((out / "gate.json").read_text())["judged"]
    assert set(judged) == {names["phantom_000"], names["phantom_001"]} and "does not have" not in caplog.text
    assert "phantom_0" not in "".join(path.read_text() for path in out.rglob("*.json"))
    assert json.loads((out / "accepted" / "datalist.json").read_text())["names"] == "pseudonyms"
    gate_volumes(out, JUDGE, real=world / "data", min_dice=0.0)  # without the key nobody knows them
    assert "does not have 2 of 2 cases" in caplog.text and "give what the volumes were made with" in caplog.text


def test_what_is_wrong_is_said_before_volumes_are_made(world, tmp_path):
    out = tmp_path / "out"
    said = refusal(world, "gate", out, min_dice=0.5, judge_weights=str(tmp_path / "none.pt"))
    assert "--judge_weights" in said and "no such file" in said and not list(tmp_path.glob("out/*.nii.gz"))
    assert "--min_dice must lie in 0…1" in refusal(world, "gate", out, min_dice=3.0).replace("min-dice", "min_dice")
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_a_list_of_the_user_is_not_replaced(world, tmp_path):
    out = tmp_path / "out"
    (out / "accepted").mkdir(parents=True)
    (out / "accepted" / "datalist.json").write_text('{"training": []}')
    assert "was not written by the gate" in refusal(world, "gate", out, min_dice=0.0)
    assert (out / "accepted" / "datalist.json").read_text() == '{"training": []}'


def test_augment_as_an_overlay_makes_what_the_command_makes_with_the_settings_of_the_inference(world, tmp_path):
    own = tmp_path / "own.pt"
    shutil.copy(world / "spade_ldm" / "models" / "model.pt", own)
    told = {"formats": "datalist,decathlon", "labels": "endo", "steps": 2, "weights": str(own)}
    run(world, "augment", tmp_path / "overlay", per_case=1, min_dice=0.0, **told)
    assert (tmp_path / "overlay" / "decathlon" / "dataset.json").is_file()
    records = [json.loads(p.read_text()) for p in sorted((tmp_path / "overlay" / "records").glob("[!.]*.json"))]
    assert [r["settings"]["steps"] for r in records] == [2, 2] and {r["weights"] for r in records} == {"own.pt"}
    assert {r["weights_sha256"] for r in records} == {sha256(own)}
    told = [
        "--input",
        str(world / "data"),
        "--bundle",
        str(world / "spade_ldm"),
        "--device",
        "cpu",
        "--weights",
        str(own),
    ]
    assert main(["augment", *told, "--output", str(tmp_path / "command"), "--per-case", "1"]) == 0
    made = [sorted(e["case"] for e in json.loads((tmp_path / name / "datalist.json").read_text())["training"])
            for name in ("overlay", "command")]  # fmt: skip
    assert made[0] == made[1] and len(made[0]) == 4
    assert main(["augment", *told[:-1], str(tmp_path / "none.pt"), "--output", str(tmp_path / "x")]) == 1


def test_copies_stop_the_overlay_as_they_stop_the_command_before_any_work(world, tmp_path):
    """An audit that is none, and one that is overruled and not given, end it before anything is made."""
    out, audit = tmp_path / "out", tmp_path / "audit.json"
    assert "no such audit" in refusal(world, "augment", out, audit=str(audit))
    assert "goes with --audit" in refusal(world, "augment", out, despite_audit=True)
    assert not out.exists()
    told = {"per_case": 1, "judge_weights": None, "steps": 2, "formats": "datalist,decathlon"}
    run(world, "augment", out, **told | {"formats": "datalist"})
    listed = json.loads((out / "datalist.json").read_text())["training"]
    made = [sha256(out / entry["image"]) for entry in listed if entry.get("synthetic")]
    content = {"verdict": "copies found", "reasons": ["one copy"], "volumes_sha256": made, "weights_sha256": []}
    audit.write_text(json.dumps(content))
    said = refusal(world, "augment", out, audit=str(audit), **told)
    assert "copies of training scans were found in these volumes" in said and "--despite_audit True" in said
    assert not (out / "decathlon").exists()
    run(world, "augment", out, audit=str(audit), despite_audit=True, **told)
    assert json.loads((out / "augment.json").read_text())["audit"]["despite"] is True
    assert (out / "decathlon" / "dataset.json").is_file()


def test_own_weights_need_no_shipped_ones_and_raw_cases_are_not_prepared_for_them(world, tmp_path, capsys):
    bundle, own = tmp_path / "bundle", tmp_path / "own.pt"
    shutil.copytree(world / "spade_ldm" / "configs", bundle / "configs")
    shutil.copy(world / "spade_ldm" / "models" / "model.pt", own)
    told = ["augment", "--bundle", str(bundle), "--device", "cpu", "--weights", str(own), "--dry-run"]
    assert main([*told, "--input", str(world / "data"), "--output", str(tmp_path / "a")]) == 0
    assert "8 volumes of 2 cases" in capsys.readouterr().out
    assert main([*told, "--input", str(world / "raw"), "--output", str(tmp_path / "b")]) == 1
    assert "raw cases are prepared as the bundle's own weights need it" in " ".join(capsys.readouterr().err.split())
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").symlink_to(own)  # the bundle's own by another path
    assert is_own(bundle, own)
