"""What a study's file may say, and what it makes of it."""

from __future__ import annotations

import inspect
import json
import shutil
from itertools import pairwise

import pytest
from semsynth.cli.datasets import prepare
from semsynth.errors import InputError
from semsynth.study.plan import Plan
from semsynth.study.run import check_snakemake
from semsynth.study.saved import load_study, save_study
from semsynth.study.settings import PREPARE
from semsynth.study.splits import divide
from semsynth.study.steps import cases, link, split
from tiny_study import ROOT, begun, phantoms, read

UNET = str(ROOT / "bundles" / "la_unet")


def test_a_plan_has_every_arm_and_seed_and_the_control_is_r_of_all_cases(tmp_path):
    plan = Plan(read(tmp_path))
    assert ("segmenter", ("3", "R", "0")) in plan.jobs and ("segmenter", ("all", "R", "2")) in plan.jobs
    assert len(plan.of("segmenter")) == len(plan.of("test")) == 3 * 7
    assert {job.key for job in plan.of("training")} == {("3", "generator"), ("3", "judge"), ("3", "maps")}
    assert [job.key[1] for job in plan.of("volumes")] == ["MG", "S", "M", "G"]


def test_all_arms_train_for_as_many_steps_and_take_the_last_one(tmp_path):
    plan = Plan(read(tmp_path))
    told = [words for job in plan.of("segmenter") for _, words in job.commands]
    for words in told:
        assert words[words.index("--max_epochs") + 1] == "1" and words[words.index("--epoch_cases") + 1] == "2"
        assert words[words.index("--val_interval") + 1] == "1000000"  # no best of several
    assert all(job.output.endswith("model_final.pt") for job in plan.of("segmenter"))
    mixed = plan["segmenter", "3", "MG", "0"].commands[0][1]
    assert mixed[mixed.index("--mixing_ratio") + 1] == "[1.0, 1.0]"
    assert "--mixing_ratio" not in plan["segmenter", "3", "R", "0"].commands[0][1]


def test_nothing_is_trained_on_the_test_and_nothing_validated_on_it(tmp_path):
    for job in Plan(read(tmp_path)).jobs.values():
        if job.rule in ("training", "segmenter"):
            (_, words), *_ = job.commands
            assert words[words.index("--validate#dataset#data#key") + 1] == "training"
            reads = [word for name, word in pairwise(words) if name != "--validation_datalist"]
            assert not [word for word in reads if "/split/test" in word]


def test_painted_maps_are_those_of_the_mixture(tmp_path):
    plan = Plan(read(tmp_path))
    (paint,) = plan.of("paint")
    assert "volumes/3/MG/synthetic/datalist.json" in paint.inputs


def test_the_curve_has_its_arms_at_every_number_of_cases(tmp_path):
    plan = Plan(read(tmp_path, cases=[3, 2, "all"], curve=["M"]))
    keys = {job.key[:2] for job in plan.of("test")}
    assert {("2", "R"), ("2", "M"), ("all", "M"), ("all", "R"), ("3", "MG")} <= keys and ("2", "MG") not in keys
    assert ("2", "generator") in {job.key for job in plan.of("training")}


def test_an_arm_of_ones_own(tmp_path):
    other = {"name": "M2", "like": "M", "maps": {"morphed": 1, "given": 1}, "ratio": [1, 3], "seeds": [7]}
    plan = Plan(read(tmp_path, arms=["R", "C", "MG", "M", other]))
    words = plan["segmenter", "3", "M2", "7"].commands[0][1]
    assert words[words.index("--mixing_ratio") + 1] == "[1.0, 3.0]"
    volumes = plan["volumes", "3", "M2"].commands[0][1]
    assert volumes[volumes.index("--maps") + 1] == "given=1,morphed=1"


def test_an_arm_can_end_on_real_cases_with_as_many_steps(tmp_path):
    other = {"name": "M2", "like": "M", "real_end": 0.25}
    segmenter = {"bundle": UNET, "epochs": 8, "epoch_cases": 2}
    job = Plan(read(tmp_path, arms=["R", "M", other], primary="M2", segmenter=segmenter))["segmenter", "3", "M2", "0"]
    (_, first), (_, second) = job.commands
    one, two = dict(pairwise(first)), dict(pairwise(second))
    assert (one["--max_epochs"], two["--max_epochs"]) == ("6", "2")
    assert two["--init_weights"] == f"{one['--run_dir']}/model_final.pt" and "--mixing_ratio" not in two
    assert "synthetic" in one["--datalists"] and "synthetic" not in two["--datalists"]
    assert job.output == "segmenters/3/M2/0/model_final.pt"


@pytest.mark.parametrize(("changes", "match"), [
    ({"sedes": [0]}, "unknown setting 'sedes'; did you mean seeds"),
    ({"data": None}, "needs data, a text"),
    ({"seeds": [0, 1]}, "seeds must be 3 or more"),
    ({"seeds": [0, 0, 1]}, "different whole numbers"),
    ({"primary": "R"}, "primary must be one of the arms but R and C"),
    ({"primary": "O"}, "primary must be one of the arms"),
    ({"arms": ["C", "MG"]}, "arms needs R"),
    ({"arms": ["R", "XX"]}, "unknown arm 'XX'"),
    ({"arms": ["R", "P"], "primary": "P"}, "takes the volumes or maps of MG"),
    ({"arms": ["R", "RU", "MG"]}, "need images without labels"),
    ({"cases": [0]}, "cases must be numbers of labelled patients"),
    ({"cases": ["all"]}, "the arms R and C are the same"),
    ({"ratio": [1, 0]}, "ratio must be two numbers above 0"),
    ({"test": 1.5}, "test must be testing or validation"),
    ({"patients": "some"}, "patients must be of stated, group, each"),
    ({"maps": None}, "has generated maps; add maps"),
    ({"generators": {}}, "needs a generator"),
    ({"volumes": {"judge": "{jugde}"}}, "none of the trainings"),
    ({"volumes": {"judge": "nowhere.pt"}}, "no such file, and no training in braces"),
    ({"segmenter": {"bundle": "nowhere"}}, "has no folder configs"),
    ({"curve": ["M", "X"]}, "curve: 'X' is none of the arms"),
    ({"segmenter": {"bundle": UNET, "epochs": 3}}, "segmenter needs epochs and epoch_cases"),
    ({"segmenter": {"bundle": UNET, "config": []}}, "config must name one file"),
    ({"data": "nowhere"}, "no such file or folder"),
    ({"prepare": {"centres": 3}}, "prepare: unknown option centres"),
    ({"prepare": {"k": 3}}, "is prepared already"),
    ({"patients": "group"}, "is prepared already"),
    ({"volumes": {"min_dice": 0.5}}, "go with judge"),
    ({"volumes": {"min_dice": float("nan")}}, "min_dice must be a number"),
    ({"test": ["a", "a"]}, "list of different names"),
    ({"cases": ["all"], "arms": ["R", "MU", "M"], "primary": "M", "unlabelled": True}, "no images are left"),
    ({"arms": ["R", {"name": "C", "like": "C"}, "MG"]}, "give yours another name"),
    ({"arms": ["R", {"name": "C2", "like": "C"}, "MG"]}, "is like 'C', which is none of"),
    ({"arms": ["R", "MG", {"name": "X", "like": "M", "maps": {"morphed": "abc"}}]}, "with shares above 0"),
    ({"arms": ["R", "MG", "O", {"name": "X", "like": "O", "generator": "g"}]}, "do nothing in an arm like O"),
    ({"arms": ["R", {"name": "X", "like": "M", "seeds": [0]}], "primary": "X"}, "needs 3 seeds or more"),
    ({"arms": ["R", "MG", {"name": "X", "like": "M", "real_end": 1}]}, "real_end must lie from 0 to below 1"),
    ({"arms": ["R", "MG", "O", {"name": "X", "like": "O", "real_end": 0.5}]}, "real_end would do nothing"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused(tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        read(tmp_path, **changes)


def test_options_of_the_preparation_are_those_of_the_command():
    assert set(PREPARE) <= inspect.signature(prepare).parameters.keys()


@pytest.mark.parametrize("found", ["9.15.0", "8.30.0", "9.9"])
def test_a_snakemake_that_starts_too_many_jobs_is_refused(found):
    with pytest.raises(InputError, match=f"needs Snakemake 9.17 or newer, found {found}"):
        check_snakemake(found)
    check_snakemake("9.17.0rc1")
    check_snakemake("10.0")


def test_trainings_that_need_each_other_are_refused(tmp_path):
    both = {name: {"bundle": UNET, "options": {"init_weights": f"{{{other}}}"}} for name, other in ("ab", "ba")}
    with pytest.raises(InputError, match="need each other's weights"):
        read(tmp_path, trainings=both, arms=["R", "M"], primary="M", maps=None, volumes=None,
             generators={"g": {"bundle": UNET, "weights": "{a}"}})  # fmt: skip


def test_a_begun_study_is_the_same_or_has_more(tmp_path):
    begun(tmp_path)
    assert load_study(tmp_path / "out") == read(tmp_path)
    save_study(read(tmp_path, seeds=[0, 1, 2, 3], cases=[3, 2]))  # more of it
    with pytest.raises(InputError, match="was begun with another ratio"):
        save_study(read(tmp_path, seeds=[0, 1, 2, 3], cases=[3, 2], ratio=[1, 2]))
    with pytest.raises(InputError, match="was begun with another primary"):
        save_study(read(tmp_path, seeds=[0, 1, 2, 3], cases=[3, 2], primary="M"))
    with pytest.raises(InputError, match="was begun with another seeds"):
        save_study(read(tmp_path, seeds=[0, 1, 2], cases=[3, 2]))
    with pytest.raises(InputError, match="was begun with another seeds"):
        save_study(
            read(tmp_path, seeds=[7, 0, 1, 2, 3], cases=[3, 2])
        )  # the first one makes pictures and pseudo-labels


def test_before_any_training_all_may_change(tmp_path):
    plan = Plan(read(tmp_path))
    save_study(plan.study)
    link(plan)
    split(plan)
    save_study(read(tmp_path, test=0.5, ratio=[1, 2]))
    assert not (plan.out / "split").exists() and (plan.out / "data").is_dir()
    save_study(read(tmp_path, test=0.5, patients="each"))
    assert not (plan.out / "data").exists() and load_study(plan.out).test == 0.5


def test_how_volumes_are_made_may_change_until_they_are_there(tmp_path):
    plan = begun(tmp_path)
    other = {"per_case": 3, "judge": "{judge}", "min_dice": 0.5}
    with pytest.raises(InputError, match="another volumes"):
        save_study(read(tmp_path, volumes=other))
    shutil.rmtree(plan.out / "volumes")
    save_study(read(tmp_path, volumes=other))


def test_numbers_of_cases_can_be_added(tmp_path):
    before = begun(tmp_path, cases=[3])
    split_at = (before.out / "split" / "split.json").stat().st_mtime_ns
    plan = Plan(read(tmp_path, cases=[3, 4]))
    assert plan["cases", "4"].inputs == ("split/split.json",)
    cases(plan, "4")
    assert (before.out / "split" / "split.json").stat().st_mtime_ns == split_at
    entries = json.loads((plan.out / "split" / "4" / "datalist.json").read_text())["training"]
    assert len(entries) == 4
    folds = [read(tmp_path / "folds", fold=1, test=0.1, cases=counts) for counts in ([1], [1, 4])]
    tests = [divide(study, before.out / "data" / "datalist.json").test for study in folds]
    assert tests[0] == tests[1]


def test_options_of_a_training_reach_the_config_as_they_are(tmp_path):
    options = {"classes": [2], "texture_loss": None, "noise": {"prob": 0.2, "on": True}}
    plan = Plan(read(tmp_path, segmenter={"bundle": UNET, "epochs": 1, "epoch_cases": 2, "options": options}))
    words = plan["segmenter", "3", "R", "0"].commands[0][1]
    told = dict(pairwise(words))
    assert told["--classes"] == "[2]" and told["--texture_loss"] == "$None"
    assert told["--noise"] == "{'on': True, 'prob': 0.2}"


def test_declared_weights_are_inputs(tmp_path):
    weights = tmp_path / "generator.pt"
    weights.write_bytes(b"")
    bundle = str(ROOT / "bundles" / "pix2pix3d")
    plan = Plan(read(tmp_path, generators={"g": {"bundle": bundle, "weights": str(weights)}}, volumes={}))
    assert str(weights) in plan["volumes", "3", "M"].inputs
    with pytest.raises(InputError, match="give it as weights"):
        read(tmp_path, generators={"g": {"bundle": bundle, "weights": str(weights), "inference": {"x": "y.pt"}}})


# ---- the split -------------------------------------------------------------------------------------------------------


def _divided(tmp_path, **changes):
    plan = begun(tmp_path, **changes)
    return plan, divide(plan.study, plan.out / "data" / "datalist.json")


def test_no_patient_trains_and_tests(tmp_path):
    _, split = _divided(tmp_path)
    held = {split.people[case] for case in split.test}
    for listed in (*split.sets.values(), *split.rest.values()):
        assert not held & {split.people[case] for case in listed}
    assert len(split.sets["3"]) == 3 and len({split.people[case] for case in split.sets["3"]}) == 3


def test_fewer_labelled_patients_are_the_first_of_more(tmp_path):
    _, split = _divided(tmp_path, cases=[4, 2])
    assert split.sets["2"] == split.sets["4"][:2] and set(split.sets["4"]) < set(split.sets["all"])


def test_all_scans_of_a_test_patient_are_kept_out(tmp_path):
    first = json.loads((phantoms() / "datalist.json").read_text())["training"]
    names = [entry["case"] for entry in first]
    _, split = _divided(tmp_path, test=[names[0], *names[3:8]])  # the first two are of one patient
    assert names[1] in split.unused and names[1] not in split.sets["all"]


def test_the_labelled_cases_can_be_named(tmp_path):
    names = [entry["case"] for entry in json.loads((phantoms() / "datalist.json").read_text())["training"]]
    _, split = _divided(tmp_path, test=names[3:9], labelled=[names[12], names[9]], cases=[2])
    assert split.sets["2"] == (names[12], names[9])
    with pytest.raises(InputError, match="labelled: cases of test patients"):
        _divided(tmp_path / "other", test=names[3:9], labelled=[names[4]], cases=[2])


def test_folds_hold_out_patients_that_are_not_labelled(tmp_path):
    first, second = (read(tmp_path, fold=fold, test=0.1, cases=[1]) for fold in (1, 2))
    prepared = begun(tmp_path, test=0.4).out / "data" / "datalist.json"
    splits = [divide(study, prepared) for study in (first, second)]
    assert splits[0].sets["1"] == splits[1].sets["1"] and not set(splits[0].test) & set(splits[1].test)
    for own in splits:
        assert not {own.people[c] for c in own.test} & {own.people[c] for c in own.sets["all"]}


def test_too_few_patients_are_an_error(tmp_path):
    with pytest.raises(InputError, match="20 labelled patients are wanted"):
        _divided(tmp_path / "many", cases=[20])
    with pytest.raises(InputError, match="the test has 1 patients"):
        _divided(tmp_path, test=0.1)


def test_somebody_has_to_say_whose_scans_they_are(tmp_path):
    silent = tmp_path / "silent"
    silent.mkdir()
    content = json.loads((phantoms() / "datalist.json").read_text())
    for entry in content["training"]:
        entry |= {"image": str(phantoms() / entry["image"]), "label": str(phantoms() / entry["label"])}
        del entry["patient"]
    (silent / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="nobody says whose scans 14 cases are"):
        begun(tmp_path, data=str(silent))
    assert len(set(_divided(tmp_path / "each", data=str(silent), patients="each")[1].people.values())) == 14
    with pytest.raises(InputError, match="the data states otherwise"):
        begun(tmp_path / "stated", patients="each")


def test_the_test_is_on_the_raw_scans_own_grids(tmp_path):
    raw = tmp_path / "raw"
    from semsynth.prepare.phantom import write_phantom_cases

    write_phantom_cases(raw, 10, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    content = json.loads((raw / "datalist.json").read_text())
    assert "settings" not in content
    plan = Plan(read(tmp_path, data=str(raw), patients="each", test=0.5))
    save_study(plan.study)
    link(plan)  # in place of the preparation: the same files
    split(plan)
    entry = json.loads((plan.out / "split" / "test" / "datalist.json").read_text())["validation"][0]
    assert (plan.out / "split" / "test" / entry["image"]).resolve().is_relative_to(raw.resolve()) and "endo" in entry
