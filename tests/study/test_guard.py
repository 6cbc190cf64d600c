"""The leak guard finds every leak that is planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from semsynth.errors import InputError
from semsynth.study.guard import check_leaks
from semsynth.study.steps import open_test
from tiny_study import ROOT, begun, held_out, made, phantoms, trained


def test_a_clean_study_passes_and_says_what_was_checked(tmp_path):
    plan = begun(tmp_path)
    said = json.loads(check_leaks(plan).read_text())
    assert len(said["checked"]) == 3 + 21 and said["trusted"] == [] and said["scans"] >= 5


@pytest.mark.parametrize("name", ["generator", "judge", "maps"])
def test_weights_that_saw_a_test_case_are_refused(tmp_path, name):
    plan = begun(tmp_path)
    trained(plan, plan.out / plan["training", "3", name].output, "3", held_out(plan)[0])
    with pytest.raises(InputError, match="test patients were seen in training") as refused:
        check_leaks(plan)
    assert name in str(refused.value) and held_out(plan)[0]["case"] in str(refused.value)


def test_a_segmenter_that_saw_a_test_case_is_refused(tmp_path):
    plan = begun(tmp_path)
    trained(plan, plan.out / plan["segmenter", "3", "M", "1"].output, "3", held_out(plan)[0])
    with pytest.raises(InputError, match=r"segmenter 3 M 1"):
        check_leaks(plan)


def test_another_scan_of_a_test_patient_is_a_leak(tmp_path):
    entries = json.loads((phantoms() / "datalist.json").read_text())["training"]
    names = [entry["case"] for entry in entries]
    plan = begun(tmp_path, test=[names[0], *names[3:8]])
    other = entries[1] | {key: str(phantoms() / entries[1][key]) for key in ("image", "label")}
    trained(plan, plan.out / plan["training", "3", "generator"].output, "3", other)
    with pytest.raises(InputError, match=f"scan {names[1]} of test patient"):
        check_leaks(plan)


def test_a_parents_cases_are_a_leak_too(tmp_path):
    """A card names its parents' cases as its own: so do those of trainings that go on from leaking weights."""
    plan = begun(tmp_path)
    trained(plan, plan.out / plan["training", "3", "generator"].output, "3", unknown_parents=["autoencoder.pt"])
    with pytest.raises(InputError, match=r"the training cases of autoencoder\.pt are unknown"):
        check_leaks(plan)


def test_declared_weights_are_checked_by_their_card(tmp_path):
    plan = begun(tmp_path)
    judge = trained(plan, tmp_path / "judge.pt", "3", held_out(plan)[1])
    with pytest.raises(InputError, match=r"judge\.pt .*by its image"):
        begun(tmp_path / "other", volumes={"per_case": 2, "judge": str(judge)})
    assert not (tmp_path / "other" / "out" / "split" / "split.json").exists()  # found before anything is trained
    judge = trained(plan, tmp_path / "judge.pt", "3")
    plan = begun(tmp_path / "other", volumes={"per_case": 2, "judge": str(judge)})
    said = json.loads(check_leaks(plan).read_text())["checked"]
    assert [one["file"] for one in said if one["given"]] == ["judge.pt"]
    trained(plan, judge, "3", held_out(plan)[1])  # replaced while the study ran
    with pytest.raises(InputError, match=r"judge\.pt .*by its image"):
        check_leaks(plan)


def test_declared_weights_of_a_first_stage_are_checked(tmp_path):
    """A codebook or latent space of others' weights: an option of a training."""
    plan = begun(tmp_path)
    stage = trained(plan, tmp_path / "codebook.pt", "3", held_out(plan)[0])
    generator = {"bundle": str(ROOT / "bundles" / "pix2pix3d"), "options": {"init_weights": str(stage)}}
    with pytest.raises(InputError, match=r"codebook\.pt"):
        begun(tmp_path / "new", trainings={"generator": generator}, arms=["R", "M"], primary="M", maps=None, volumes={})


def test_a_network_in_a_loss_that_nobody_named_is_unknown(tmp_path):
    plan = begun(tmp_path)
    path = plan.out / plan["training", "3", "generator"].output
    trained(plan, path, "3", in_loss=[{"name": "la_unet", "sha256": "0" * 64}])
    with pytest.raises(InputError, match="la_unet in its loss"):
        check_leaks(plan)
    trained(plan, path, "3", in_loss=[{"name": "efficientnet_lite0", "sha256": "0" * 64}])
    check_leaks(plan)  # trained on photographs, the same everywhere


def test_weights_without_a_card_are_unknown_and_can_be_trusted(tmp_path):
    plan = begun(tmp_path)
    (plan.out / plan["training", "3", "generator"].output).with_suffix(".json").unlink()
    with pytest.raises(InputError, match="--trust-unknown-weights"):
        check_leaks(plan)
    from tiny_study import Plan, read

    trusting = Plan(read(tmp_path, trust=True))
    assert "generator" in json.loads(check_leaks(trusting).read_text())["trusted"][0]


def test_weights_that_are_not_those_of_their_card_are_refused(tmp_path):
    plan = begun(tmp_path)
    path = plan.out / plan["training", "3", "generator"].output
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"model_final.pt: is not the file that its card model_final.json describes"):
        check_leaks(plan)


def test_volumes_of_a_test_patients_map_are_refused(tmp_path):
    plan = begun(tmp_path)
    path = made(plan, plan["volumes", "3", "S"].output, "3")
    content = json.loads(path.read_text())
    content["training"][0]["label"] = held_out(plan)[0]["label"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has the label map of test scan"):
        check_leaks(plan)


def test_volumes_of_a_test_patient_are_refused_by_name(tmp_path):
    plan = begun(tmp_path)
    made(plan, plan["paint", "3", "P"].output, "3", patient=held_out(plan)[0]["patient"])
    with pytest.raises(InputError, match="has the patient of test scan"):
        check_leaks(plan)


def test_maps_drawn_by_other_weights_are_unknown(tmp_path):
    plan = begun(tmp_path)
    made(plan, plan["volumes", "3", "G"].output, "3", map_weights_sha256="0" * 64)
    with pytest.raises(InputError, match="label maps of weights 000000000000"):
        check_leaks(plan)


def test_the_test_is_opened_once_for_a_set_of_segmenters(tmp_path):
    plan = begun(tmp_path)
    for _ in range(2):
        (plan.out / "opened").unlink(missing_ok=True)  # as Snakemake does before it runs a job
        open_test(plan)
    assert len(json.loads((plan.out / "opened.json").read_text())["openings"]) == 1
    trained(plan, plan.out / plan["segmenter", "3", "M", "1"].output, "3", epoch=2)
    Path(plan.out / plan["segmenter", "3", "M", "1"].output).write_bytes(b"other")
    open_test(plan)
    assert len(json.loads((plan.out / "opened.json").read_text())["openings"]) == 2


def test_weights_within_tables_of_options_are_checked(tmp_path):
    plan = begun(tmp_path)
    stage = trained(plan, tmp_path / "inner.pt", "3", held_out(plan)[0])
    generator = {"bundle": str(ROOT / "bundles" / "pix2pix3d"), "options": {"network_def#x": {"list": [str(stage)]}}}
    with pytest.raises(InputError, match=r"inner\.pt"):
        begun(tmp_path / "new", trainings={"generator": generator}, arms=["R", "M"], primary="M", maps=None, volumes={})


def test_weights_are_found_whatever_they_are_called(tmp_path):
    plan = begun(tmp_path)
    for name in ("leak.bin", "leak.PT", "leak"):
        stage = trained(plan, tmp_path / name, "3", held_out(plan)[0])
        generator = {"bundle": str(ROOT / "bundles" / "pix2pix3d"), "options": {"init_weights": str(stage)}}
        with pytest.raises(InputError, match=f"{name} .*by its image"):
            begun(tmp_path / f"of {name}", trainings={"generator": generator}, arms=["R", "M"], primary="M", maps=None,
                  volumes={})  # fmt: skip


@pytest.mark.parametrize(("changes", "match"), [
    ({"sha256": None}, "does not say of which file it is"),
    ({"training_cases": [{"name": "0" * 16}]}, "names cases without the voxels"),
    ({"training_cases": [{"pseudonym": "a"}], "pseudonym_key": "b"}, "names cases without the voxels"),
])  # fmt: skip
def test_a_card_that_says_too_little_is_unknown(tmp_path, changes, match):
    plan = begun(tmp_path)
    card = (plan.out / plan["training", "3", "generator"].output).with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))
    with pytest.raises(InputError, match=match):
        check_leaks(plan)


def test_centres_that_may_come_from_the_test_are_unknown(tmp_path):
    plan = begun(tmp_path)
    path = plan.out / "data" / "datalist.json"
    content = json.loads(path.read_text())
    content["settings"]["centers"] = [0.2, 0.5]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the intensity centres of the label maps"):
        check_leaks(plan)


def test_volumes_of_weights_that_were_replaced_are_unknown(tmp_path):
    plan = begun(tmp_path)
    (plan.out / "volumes" / "3" / "M" / "augment.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match="its volumes are of weights 000000000000"):
        check_leaks(plan)
