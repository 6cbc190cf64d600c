"""What a study's file may say, and what it makes of it."""

from __future__ import annotations

import inspect
import json
import shutil
from itertools import pairwise

import pytest
from semsynth.cli.datasets import phantom, prepare
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.study.config import read_study
from semsynth.study.plan import Plan
from semsynth.study.run import _snakemake, check_snakemake, run_study
from semsynth.study.saved import load_study, save_study
from semsynth.study.settings import PHANTOM, PREPARE
from semsynth.study.splits import divide
from semsynth.study.steps import cases, link, split
from tiny_study import ROOT, begun, phantoms, read
from tiny_study import told as study_file

UNET = str(ROOT / "bundles" / "la_unet")
SEGMENTER = {"bundle": UNET, "epochs": 1, "epoch_cases": 2}
PIX2PIX = {"bundle": str(ROOT / "bundles" / "pix2pix3d"), "weights": "{generator}"}


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


def test_an_arm_can_take_the_volumes_of_another(tmp_path):
    other = {"name": "MG3", "like": "MG", "volumes_of": "MG", "ratio": [3, 1]}
    plan = Plan(read(tmp_path, arms=["R", "MG", other], primary="MG"))
    assert [job.key for job in plan.of("volumes")] == [("3", "MG")]
    job = plan["segmenter", "3", "MG3", "0"]
    assert "volumes/3/MG/synthetic/datalist.json" in job.inputs
    words = job.commands[0][1]
    assert words[words.index("--mixing_ratio") + 1] == "[3.0, 1.0]"
    for more in ({"maps": {"morphed": 1}}, {"generator": "pix2pix3d"}):
        with pytest.raises(InputError, match="would do nothing in an arm like MG; volumes_of says"):
            read(tmp_path, arms=["R", "MG", other | more], primary="MG")
    with pytest.raises(InputError, match="takes the volumes or maps of M, which is no arm with maps of its own"):
        read(tmp_path, arms=["R", "MG", other | {"volumes_of": "M"}], primary="MG")


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
    ({"linked": [["P1"]]}, "linked must be lists of two or more names of cases, .*found .'P1'."),
    ({"linked": {"P1": "P2"}}, "linked must be lists of two or more"),
    ({"linked": [[{"case": "P1"}, "P2"]]}, "linked must be lists of two or more"),
    ({"linked": "nowhere.json"}, "nowhere.json: no such file; write it with 'semsynth check --same-patient'"),
    ({"primary": "R"}, "primary must be one of the arms but R and C"),
    ({"primary": "O"}, "primary must be one of the arms"),
    ({"arms": ["C", "MG"]}, "arms needs R"),
    ({"arms": ["R", "XX"]}, "unknown arm 'XX'"),
    ({"arms": ["R", "P"], "primary": "P"}, "takes the volumes or maps of MG"),
    ({"arms": ["R", "RU", "MG"]}, "need images without labels"),
    ({"cases": [0]}, "cases must be different numbers of labelled patients"),
    ({"cases": ["all"]}, "the arms R and C are the same"),
    ({"ratio": [1, 0]}, "ratio must be two numbers above 0"),
    ({"test": 1.5}, "test must be testing or validation"),
    ({"patients": "some"}, "patients must be of stated, group, each"),
    ({"maps": None}, "has generated maps; add maps"),
    ({"generators": {}}, "needs a generator"),
    ({"volumes": {"judge": "{jugde}"}}, "none of the trainings"),
    ({"volumes": {"judge": "nowhere.pt"}}, "no such file, and no training in braces"),
    ({"segmenter": {"bundle": "nowhere"}}, "has no folder configs"),
    ({"curve": ["M", "X"], "cases": [3, 2]}, "curve: 'X' is none of the arms"),
    ({"curve": ["C"], "cases": [3, 2]}, "curve: 'C' is none of the arms"),
    ({"curve": ["M"]}, "curve would do nothing"),
    ({"cases": [3, 3]}, "cases must be different numbers"),
    ({"output": ""}, "output must not be empty"),
    ({"phantom": {"cases": 30}}, "has data and phantom"),
    ({"data": None, "phantom": {"casses": 30}}, "phantom: unknown option casses"),
    ({"labelled": [7, "a"]}, "labelled must be a list of names, found 7; put a name that looks like a number"),
    ({"test": [7]}, "test must be a list of names, found 7"),
    ({"arms": ["R", False]}, "found False .YAML takes yes, no, on and off"),
    ({"name": 5}, "name must be a text, found 5; put it in quotes"),
    ({"seeds": [0, 1, -1]}, r"study\.yaml: seeds must be a whole number"),
    ({"segmenter": SEGMENTER | {"options": {"lerning_rate": 1}}}, "lerning_rate; did you mean learning_rate"),
    ({"segmenter": SEGMENTER | {"options": {"max_epochs": 50}}}, "max_epochs is given by the study; give epochs"),
    ({"segmenter": SEGMENTER | {"options": {"seed": 5}}}, "seed is given by the study; give seeds instead"),
    ({"segmenter": SEGMENTER | {"options": {"init_weights": "nowhere"}}}, "nowhere: no such file of weights"),
    ({"segmenter": SEGMENTER | {"options": {"device": "$open('x')"}}}, "is an expression"),
    ({"trainings": {"generator": SEGMENTER | {"options": {"run_dir": "x"}}}, "volumes": {}, "maps": None,
      "arms": ["R", "M"], "primary": "M"}, "run_dir is given by the study; leave it out"),
    ({"generators": {"g": PIX2PIX | {"inference": {"weights": "x.bin"}}}}, "x.bin is a file of weights"),
    ({"generators": {"g": PIX2PIX | {"inference": {"style_from": "x"}}}}, "style_from is given by the study"),
    ({"generators": {"g": PIX2PIX | {"inference": {"stepps": 3}}}}, "inference.json have no setting stepps"),
    ({"segmenter": {"bundle": UNET, "epochs": 3}}, "segmenter needs epochs and epoch_cases"),
    ({"segmenter": {"bundle": UNET, "config": []}}, "config must name one file"),
    ({"data": "nowhere"}, "no such file or folder"),
    ({"prepare": {"centres": 3}}, "prepare: unknown option centres"),
    ({"prepare": {"k": 3}}, "is prepared already"),
    ({"patients": "group"}, "is prepared already"),
    ({"volumes": {"min_dice": 0.5}}, "go with judge"),
    ({"volumes": {"min_dice": float("nan")}}, "min_dice must be a number"),
    ({"test": ["a", "a"]}, "test: a is there twice"),
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


def test_linked_cases_are_named_or_found_in_a_file(tmp_path):
    assert read(tmp_path, linked=[["P1", "P2"], ["P3", "P4", "P5"]]).linked == (("P1", "P2"), ("P3", "P4", "P5"))
    found = {"groups": {"patient_01": {"cases": ["P1", "P2"], "least_sure": "sure"}}}
    (tmp_path / "same_patient.json").write_text(json.dumps(found))
    assert read(tmp_path, linked="same_patient.json").linked == (("P1", "P2"),) and read(tmp_path).linked == ()
    for damaged in ({}, {"groups": [["P1"]]}, {"groups": {"patient_01": ["P1"]}}):
        (tmp_path / "same_patient.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="linked must be lists of two or more"):
            read(tmp_path, linked="same_patient.json")


@pytest.mark.parametrize(("text", "match"), [
    ("cases: [3]\nseeds: [0]\ncases: [1]\n", "line 3: 'cases' is there twice"),
    ("trainings:\n  a: {epochs: 1, epochs: 2}\n", "line 2: 'epochs' is there twice"),
    ("name: a\n\tcases: [3]\n", "line 2: a tab"),
    ("name: 2024-13-45\n", "no YAML that can be used"),
    ("name: !!int abc\n", "no YAML that can be used"),
    ("volumes: &a {judge: *a}\n", "no YAML that can be used"),
    ("on: 3\n", "names must be texts, found True .YAML takes yes, no"),
    ("- a\n", "must hold names with values"),
    ("a: [\n", "line 2: "),
])  # fmt: skip
def test_yaml_that_does_not_say_one_thing_is_refused(tmp_path, text, match):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(InputError, match=match):
        read_study(tmp_path / "study.yaml")
    with pytest.raises(InputError, match="is a folder"):
        read_study(tmp_path)


def test_options_of_the_commands_are_theirs():
    assert set(PREPARE) <= inspect.signature(prepare).parameters.keys()
    assert set(PHANTOM) <= inspect.signature(phantom).parameters.keys()


def test_the_output_holds_no_data(tmp_path):
    """What is in the output may be removed when settings change."""
    raw = tmp_path / "data"
    write_phantom_cases(raw, 8, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    for output in (".", "data", ".."):
        with pytest.raises(InputError, match="holds the data"):
            read(tmp_path, data="data", output=output)
    with pytest.raises(InputError, match="holds the data"):
        read(tmp_path, data="data/*/image.nii.gz", output="data")
    assert read(tmp_path, data="data", output="data/study").output == tmp_path / "data" / "study"
    (raw / "datalist.json").unlink()
    with pytest.raises(InputError, match="would be taken for cases"):
        read(tmp_path, data="data", output="data/study")


def test_a_folder_with_somebodys_files_is_not_taken(tmp_path):
    kept = tmp_path / "out" / "data" / "scan.nii.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"scan")
    with pytest.raises(InputError, match="holds data, and no study was begun there"):
        save_study(read(tmp_path))
    with pytest.raises(InputError, match="holds data, and no study was begun there"):
        run_study(read(tmp_path))
    assert kept.read_bytes() == b"scan" and not (tmp_path / "out" / "study.json").exists()


def test_other_data_is_not_read_after_the_begin(tmp_path, caplog):
    begun(tmp_path)
    (tmp_path / "other").mkdir()
    save_study(read(tmp_path, data="other"))
    assert "is not read any more" in caplog.text


def test_files_of_the_preparation_start_from_the_studys_file(tmp_path):
    raw = tmp_path / "raw"
    write_phantom_cases(raw, 8, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    plan = Plan(read(tmp_path, data="raw/*/image.nii.gz", patients="each", prepare={"endo": "raw/*/endo.nii.gz"}))
    words = dict(pairwise(plan.jobs["prepare", ()].commands[0][1]))
    assert words["--endo"] == str(raw / "*" / "endo.nii.gz") and words["--input"] == str(raw / "*" / "image.nii.gz")


def test_a_pattern_of_scans_with_their_masks_is_divided_by_patient(tmp_path):
    """The example of docs/study.md: folders of scans, masks by a pattern, patients in the folders' names."""
    write_phantom_cases(tmp_path / "raw", 12, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    for i, case in enumerate(sorted((tmp_path / "raw").glob("phantom_*"))):
        case.rename(tmp_path / "raw" / f"P{i // 2:03d} visit{i % 2}")
    prepare = {"endo": "raw/*/endo.nii.gz", "patient_regex": r"^(P\d+)", "spacing": [6, 6, 6], "k": 2}
    told = {"data": "raw/*/image.nii.gz", "prepare": prepare, "test": 0.8, "cases": [1], "arms": ["R", "M"]}
    study = read(tmp_path, primary="M", maps=None, **told)
    said = run_study(study, dry_run=True)
    assert said.startswith("data: 12 cases, such as P000 visit0 (patient P000), P000 visit1 (patient P000)")
    plan = Plan(study)
    plan.out.mkdir()
    save_study(study)
    assert main(list(plan.jobs["prepare", ()].commands[0][1][3:])) == 0
    split(plan)
    entries = json.loads((plan.out / "split" / "test" / "datalist.json").read_text())["validation"]
    assert len(entries) == 10 and len({entry["patient"] for entry in entries}) == 5
    assert (plan.out / "split" / "test" / entries[0]["endo"]).resolve().is_relative_to((tmp_path / "raw").resolve())


def test_subjects_of_bids_are_the_patients_of_a_study(tmp_path):
    """The example of docs/your_data.md: sessions of a subject in folders, masks under derivatives."""
    write_phantom_cases(tmp_path / "raw", 4, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    for i, case in enumerate(sorted((tmp_path / "raw").glob("phantom_*"))):
        for role, folder, ending in (("image", "bids", "T1w"), ("endo", "bids/derivatives/seg", "label-LA_mask")):
            name = f"sub-{i // 2}_ses-{i % 2}_{ending}.nii.gz"
            path = tmp_path / folder / f"sub-{i // 2}" / f"ses-{i % 2}" / "anat" / name
            path.parent.mkdir(parents=True)
            (case / f"{role}.nii.gz").rename(path)
    prepare = {"endo": "bids/derivatives/seg/sub-*/ses-*/anat/*_label-LA_mask.nii.gz", "spacing": [6, 6, 6], "k": 2}
    told = {"data": "bids/sub-*/ses-*/anat/*_T1w.nii.gz", "prepare": prepare, "test": 0.5, "cases": [1]}
    said = run_study(read(tmp_path, primary="M", maps=None, arms=["R", "M"], **told), dry_run=True)
    assert said.startswith("data: 4 cases, such as sub-0_ses-0 (patient sub-0), sub-0_ses-1 (patient sub-0), sub-1")


@pytest.mark.parametrize(("changes", "match"), [
    ({"cases": [500]}, "500 labelled patients are wanted"),
    ({"labelled": ["nobody"]}, "labelled: .* has no cases of these names"),
    ({"test": ["nobody"]}, "test: .* has no labelled cases of these names"),
    ({"test": "testing"}, "has no such cases"),
    ({"patients": "each"}, "the data states otherwise"),
])  # fmt: skip
def test_a_dry_run_looks_at_the_data(tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        run_study(read(tmp_path, **changes), dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["segmenter", "generator", "maps"])
def test_a_bundle_that_would_do_more_is_refused_before_anything(which, tmp_path):
    source = {"segmenter": "la_unet", "generator": "pix2pix3d", "maps": "la_maps"}[which]
    bundle, canary = tmp_path / "bundle", tmp_path / "canary"
    shutil.copytree(ROOT / "bundles" / source, bundle, ignore=shutil.ignore_patterns("models", "docs", "runs"))
    file = json.loads(json.dumps(study_file()).replace(str(ROOT / "bundles" / source), str(bundle)))
    run_study(read(tmp_path, **file), dry_run=True)
    path = bundle / "configs" / ("train.json" if which == "segmenter" else "inference.json")
    content = json.loads(path.read_text()) | {"evil": f"$__import__('os').system('touch {canary}')"}
    path.write_text(json.dumps(content))
    for dry_run in (True, False):
        with pytest.raises(InputError, match=r"bundle: is not run(.|\n)*evil: the expression"):
            run_study(read(tmp_path, **file), dry_run=dry_run)
    assert not canary.exists() and not (tmp_path / "out").exists()


def test_a_dry_run_knows_the_names_of_raw_cases(tmp_path):
    write_phantom_cases(tmp_path / "raw", 8, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    with pytest.raises(InputError, match=r"labelled: .* has no cases of these names"):
        run_study(read(tmp_path, data="raw", patients="each", labelled=["nobody"]), dry_run=True)


def test_any_name_of_a_folder_is_an_output(tmp_path):
    """Snakemake's own command line would take some for YAML."""
    output = tmp_path / "a: b #1 {x} ü"
    plan = begun(tmp_path, output=str(output), arms=["R", "C", "S"], primary="S")
    _snakemake(plan, 1, None, plan.of("cases"), alone=True)  # all of them are there
    assert "Nothing to be done" in (plan.out / "logs" / "snakemake.log").read_text()


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


def _changed(tmp_path, change):
    """The phantoms' datalist, changed, in a folder of its own."""
    folder = tmp_path / "changed"
    folder.mkdir(parents=True)
    content = json.loads((phantoms() / "datalist.json").read_text())
    for entry in content["training"]:
        entry |= {"image": str(phantoms() / entry["image"]), "label": str(phantoms() / entry["label"])}
    change(content)
    (folder / "datalist.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("test", [0.65, "validation"])
def test_cases_without_labels_are_neither_tested_nor_labelled(tmp_path, test):
    def bare(content):
        listed = content["training"]
        content["unlabelled"] = [dict(entry) for entry in listed[9:13]]
        for entry in (*content["unlabelled"], listed[13]):  # the last one stays among the training cases
            del entry["label"]
        content["training"] = [*listed[:9], listed[13]]
        if test == "validation":
            content["validation"], content["training"] = content["training"][:6], content["training"][6:]

    told = {"test": test, "cases": [2], "unlabelled": True, "arms": ["R", "C", "RU", "M"], "primary": "M"}
    plan = begun(tmp_path, data=_changed(tmp_path, bare), **told)
    split = divide(plan.study, plan.out / "data" / "datalist.json")
    content = json.loads((plan.out / "data" / "datalist.json").read_text())
    without = {e["case"] for name in ("training", "unlabelled") for e in content[name] if "label" not in e}
    assert len(without) == 5
    assert not without & {*split.test, *split.sets["2"], *split.sets["all"]}
    held = {split.people[case] for case in split.test}
    assert {case for case in without if split.people[case] not in held} <= set(split.rest["2"])
    assert not held & {split.people[case] for case in split.rest["2"]}


def test_a_patient_has_one_name(tmp_path):
    def spaced(content):
        content["training"][5]["patient"] = content["training"][9]["patient"].lower() + " "

    with pytest.raises(InputError, match=r"may be one patient's.*\n.*'P09' and 'p09 '"):
        begun(tmp_path, data=_changed(tmp_path, spaced))


def test_the_control_has_more_cases_than_r(tmp_path):
    def single(content):
        content["training"] = content["training"][2:]
        for number, entry in enumerate(content["training"]):
            entry["patient"] = f"Q{number}"

    data = _changed(tmp_path, single)
    with pytest.raises(InputError, match="the arms R and C are the same"):
        begun(tmp_path / "same", data=data, cases=[7], test=0.4)
    with pytest.raises(InputError, match="no images are left for the arms RU and MU"):
        begun(tmp_path / "rest", data=data, cases=[7], test=0.4, arms=["R", "RU", "M"], primary="M", unlabelled=True)


def test_too_few_patients_are_an_error(tmp_path):
    with pytest.raises(InputError, match="20 labelled patients are wanted"):
        _divided(tmp_path / "many", cases=[20])
    with pytest.raises(InputError, match="the test has too few patients"):
        _divided(tmp_path, test=0.1)


def test_somebody_has_to_say_whose_scans_they_are(tmp_path):
    silent = tmp_path / "silent"
    silent.mkdir()
    content = json.loads((phantoms() / "datalist.json").read_text())
    for entry in content["training"]:
        entry |= {"image": str(phantoms() / entry["image"]), "label": str(phantoms() / entry["label"])}
        del entry["patient"]
    (silent / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="it is unknown whose scans 14 cases are"):
        begun(tmp_path, data=str(silent))
    assert len(set(_divided(tmp_path / "each", data=str(silent), patients="each")[1].people.values())) == 14
    with pytest.raises(InputError, match="the data states otherwise"):
        begun(tmp_path / "stated", patients="each")


def test_the_test_is_on_the_raw_scans_own_grids(tmp_path):
    raw = tmp_path / "raw"
    write_phantom_cases(raw, 10, size=(16, 16, 16), spacing=(6.0, 6.0, 6.0), k=2, progress=False)
    content = json.loads((raw / "datalist.json").read_text())
    assert "settings" not in content
    plan = Plan(read(tmp_path, data=str(raw), patients="each", test=0.5))
    save_study(plan.study)
    link(plan)  # in place of the preparation: the same files
    split(plan)
    entry = json.loads((plan.out / "split" / "test" / "datalist.json").read_text())["validation"][0]
    assert (plan.out / "split" / "test" / entry["image"]).resolve().is_relative_to(raw.resolve()) and "endo" in entry
