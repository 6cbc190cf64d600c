"""Cross-validation: what a fold takes over from its study, and all folds together."""

from __future__ import annotations

import csv
import json

import pytest
from semsynth.cli.main import main
from semsynth.study.arms import ALL
from semsynth.study.folds import adopt, pool, to_be_adopted
from semsynth.study.plan import ADOPTED, Plan
from semsynth.study.run import _needed, describe, run_study
from semsynth.study.saved import save_study
from semsynth.study.splits import read_split
from semsynth.study.steps import cases, link, split
from tiny_study import begun, read, with_scores

ARMS = ["R", "C", "S", "RU"]
TOLD = {"arms": ARMS, "primary": "S", "unlabelled": True, "maps": None}


def _divided(tmp_path, number: int, **changes) -> Plan:
    plan = Plan(read(tmp_path, fold=number, **TOLD | changes))
    plan.out.mkdir(parents=True)
    save_study(plan.study)
    link(plan)
    split(plan)
    for job in plan.of("cases"):
        cases(plan, *job.key)
    return plan


def test_a_fold_takes_over_what_its_study_trained_of_the_same_cases(tmp_path):
    whole = begun(tmp_path, **TOLD)
    said = run_study(read(tmp_path, fold=1, **TOLD), dry_run=True)
    assert "trainings of the study are taken over" in said
    fold = _divided(tmp_path, 1)
    wanted = [job.output for job in to_be_adopted(fold)]
    taken = adopt(fold)
    assert taken == wanted
    left = {job.rule for job in _needed(fold, taken) if not (fold.out / job.output).exists()}
    assert "segmenter" in left and not left & {"volumes", "training"}  # nobody waits for them
    assert "volumes:" not in describe(fold, 1, taken) and "volumes:" not in said
    assert "segmenters/3/S/1/model_final.pt" in taken and "weights/3/generator/model_final.pt" in taken
    for output in taken:
        assert (fold.out / output).read_bytes() == (whole.out / output).read_bytes()
        assert (fold.out / output).with_suffix(".json").is_file()
    left = {job.key[:2] for job in fold.of("segmenter") if job.output not in taken}
    assert left == {(ALL, "R"), ("3", "RU")}  # other cases, and images of the fold's test patients
    assert adopt(fold) == taken == json.loads((fold.out / ADOPTED).read_text())["outputs"]


@pytest.mark.parametrize("changes", [
    {"ratio": [1, 2]}, {"segmenter": {"epochs": 2}}, {"seed": 1}, {"volumes": {"per_case": 3}},
])  # fmt: skip
def test_a_study_with_other_settings_or_cases_is_not_taken_over(tmp_path, changes):
    begun(tmp_path, **TOLD)
    told = dict(changes)
    if "segmenter" in told:
        from tiny_study import told as file

        told["segmenter"] = file()["segmenter"] | told["segmenter"]
    taken = adopt(_divided(tmp_path, 1, **told))
    kinds = {output.split("/")[2] for output in taken if output.startswith("segmenters")}
    assert "S" not in kinds
    assert "seed" not in changes or taken == []  # other patients are labelled


@pytest.mark.parametrize(("fold", "said"), [("1", "fold 1 of 2"), ("all", "fold 2 of 2"), ("x", "or all, got 'x'")])
def test_folds_are_asked_for_by_number_or_all(tmp_path, capsys, fold, said):
    read(tmp_path, **TOLD)  # writes the file
    done = main(["study", "--config", str(tmp_path / "study.yaml"), "--fold", fold, "--dry-run"])
    printed = capsys.readouterr()
    assert said in printed.out + printed.err and done == (1 if fold == "x" else 0)


def test_without_a_study_beside_it_a_fold_trains_all(tmp_path):
    assert adopt(_divided(tmp_path, 1)) == []


def test_all_folds_together_test_every_patient_once(tmp_path):
    plans = [begun(tmp_path, fold=number, arms=["R", "C", "S"], primary="S") for number in (1, 2)]
    for plan in plans:
        with_scores(plan)
    page = pool(plans)
    assert page.parent == tmp_path / "out" / "folds_of_2"
    rows = list(csv.DictReader((page.parent / "scores.csv").open()))
    people = [{read_split(plan.out)["patients"][case] for case in read_split(plan.out)["test"]} for plan in plans]
    assert not people[0] & people[1] and {row["patient"] for row in rows} == people[0] | people[1]
    assert len(rows) == 9 * sum(len(read_split(plan.out)["test"]) for plan in plans)
    said = page.with_suffix(".md").read_text()
    assert "This is a cross-validation inside the training patients, not the test" in said
    (row,) = [row for row in csv.DictReader((page.parent / "contrasts.csv").open())
               if row["role"] == "primary" and row["metric"] == "dice"]  # fmt: skip
    assert int(row["patients"]) == len(people[0] | people[1])
