"""Cases that may be of one patient: the contrasts again, as if they were."""

from __future__ import annotations

import csv
import json

import pytest
from semsynth.errors import InputError
from semsynth.study.linked import joined_patients, seen_by_links, without
from semsynth.study.plan import Plan
from semsynth.study.report import write_report
from semsynth.study.saved import load_study, save_study
from semsynth.study.statistics import Trained
from tiny_study import begun, with_scores


def test_links_join_patients_also_through_others():
    people = {"a": "P3", "b": "P2", "c": "P1", "d": "P4", "e": "P2"}
    joined = joined_patients(people, [["a", "b"], ["e", "c"], ["x", "d"]])
    assert joined == {"a": "P1", "b": "P1", "c": "P1", "d": "P4", "e": "P1"}


def test_scores_of_cases_are_left_out():
    trained = Trained("3", "M", {0: {"dice": {"a": 0.8, "b": 0.9}}, 1: {"dice": {"a": 0.7, "b": 0.6}}})
    assert without(trained, ["a"]).scores == {0: {"dice": {"b": 0.9}}, 1: {"dice": {"b": 0.6}}}
    assert trained.tested("dice") == {"a", "b"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    made = begun(tmp_path_factory.mktemp("linked"), cases=[3])
    with_scores(made)
    return made


def _with_links(plan: Plan, linked: list[list[str]]) -> Plan:
    """As a study is, whose links are named after its trainings."""
    told = json.loads((plan.out / "study.json").read_text()) | {"linked": linked}
    (plan.out / "study.json").write_text(json.dumps(told))
    return Plan(load_study(plan.out))


def _lists(plan: Plan) -> tuple[list[str], list[str], list[str]]:
    """One case per patient: of the test; labelled ones; those in training of patients who are not labelled."""
    people = json.loads((plan.out / "split" / "split.json").read_text())["patients"]

    def names(name: str, key: str = "training") -> dict[str, str]:
        listed = json.loads((plan.out / "split" / name / "datalist.json").read_text())[key]
        return {people[entry["case"]]: entry["case"] for entry in listed}

    labelled = names("3")
    further = [case for patient, case in names("all").items() if patient not in labelled]
    return list(names("test", "validation").values()), list(labelled.values()), further


def _scans(plan: Plan, *cases: str) -> tuple[str, ...]:
    """All test scans of these cases' patients."""
    split = json.loads((plan.out / "split" / "split.json").read_text())
    return tuple(sorted(c for c in split["test"] if split["patients"][c] in {split["patients"][k] for k in cases}))


def test_contrasts_leave_out_what_an_arm_has_seen_by_a_link(plan):
    tested, labelled, further = _lists(plan)
    again = _with_links(plan, [[tested[0], labelled[0]], [tested[1], further[0]], [tested[2], tested[3]]])
    seen = seen_by_links([again])
    assert seen["all", "R"] == _scans(plan, *tested[:2])
    assert seen["3", "R"] == seen["3", "MG"] == _scans(plan, tested[0])
    write_report(again)
    rows = {(r["role"], r["arm"], r["against"], r["metric"]): r
            for r in csv.DictReader((plan.out / "report" / "contrasts.csv").open())}  # fmt: skip
    patients = int(rows["primary", "MG", "R", "dice"]["patients"])
    assert patients == len(tested)
    assert int(rows["linked primary", "MG", "R", "dice"]["patients"]) == patients - 2  # one seen, two are one
    assert int(rows["linked control", "R", "R", "dice"]["patients"]) == patients - 3
    text = (plan.out / "report" / "report.md").read_text()
    again_said = [line for line in text.splitlines() if line.startswith("If the linked cases are of one patient: ")]
    assert "No verdict: the positive control" in again_said[0]  # two patients are left of it
    assert len(again_said) == 2 and "not as a result: Dice of MG (3 patients) less R" in again_said[1]
    assert f"C (all training cases): {', '.join(_scans(plan, *tested[:2]))}" in text
    assert "### If the linked cases are of one patient" in text and again.study.digest == plan.study.digest


def test_without_links_nothing_is_said_of_them(plan):
    write_report(_with_links(plan, []))
    assert "linked" not in (plan.out / "report" / "report.md").read_text()
    assert "linked" not in (plan.out / "report" / "contrasts.csv").read_text()


def test_arms_with_unlabelled_images_have_seen_all(tmp_path):
    made = begun(tmp_path, cases=[3], arms=["R", "C", "RU"], primary="RU", unlabelled=True)
    tested, _, further = _lists(made)
    seen = seen_by_links([_with_links(made, [[tested[0], further[0]]])])
    assert seen == dict.fromkeys([("all", "R"), ("3", "RU")], _scans(made, tested[0]))


def test_links_can_be_named_after_trainings(plan):
    tested, labelled, _ = _lists(plan)
    save_study(_with_links(plan, [[tested[0], labelled[0]]]).study)
    assert load_study(plan.out).linked == ((tested[0], labelled[0]),)


def test_names_that_are_no_cases_are_named(plan):
    again = _with_links(plan, [["nobody", _lists(plan)[0][0]]])
    with pytest.raises(InputError, match="linked: the data has no cases of these names") as error:
        write_report(again)
    assert "nobody" in str(error.value)
