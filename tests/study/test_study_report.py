"""A study's report, of scores that are there."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from semsynth.study.plan import Plan
from semsynth.study.report import write_report
from semsynth.synthesis.gate import Thresholds
from tiny_study import begun, held_out, with_scores


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = begun(tmp_path_factory.mktemp("report"), cases=[3, 2], curve=["MG"])
    with_scores(plan)
    write_report(plan)
    return plan


def test_the_page_opens_with_the_sentence_and_the_forest_plot(reported):
    page = (reported.out / "report" / "report.html").read_text()
    assert (
        page.index("MG (3 patients) is better than R (3 patients)")
        < page.index("data:image/png")
        < page.index("<table")
    )
    assert "C (all training cases) is better" in page and "% of that gain" in page
    for picture in ("forest.png", "curve.png", "cases.png"):
        assert (reported.out / "report" / picture).stat().st_size > 5_000


def test_every_number_is_in_the_tables(reported):
    folder = reported.out / "report"
    scores = list(csv.DictReader((folder / "scores.csv").open()))
    assert len(scores) == len(reported.tests()) * len(held_out(reported))
    rows = {
        (r["role"], r["arm"], r["against"], r["metric"]): r for r in csv.DictReader((folder / "contrasts.csv").open())
    }
    main = rows["primary", "MG", "R", "dice"]
    assert float(main["difference"]) == pytest.approx(0.04, abs=0.002) and float(main["low"]) > 0
    assert not main["p_holm"] and float(rows["secondary", "S", "R", "dice"]["p_holm"]) >= 0
    assert float(rows["control", "R", "R", "hd95_mm"]["difference"]) < 0
    arms = list(csv.DictReader((folder / "arms.csv").open()))
    assert {(row["cases"], row["arm"]) for row in arms} == {(cases, arm) for cases, arm, _ in reported.tests()}


def test_where_it_comes_from_is_said(reported):
    text = (reported.out / "report" / "report.md").read_text()
    assert "opened 1 time:" in text and reported.study.digest in text and "versions: " in text
    assert "- primary contrast, named before anything was run: MG against R, 3 labelled patients" in text
    guard = json.loads((reported.out / "guard.json").read_text())
    listed = text.split("- weights:")[1].split("\n- ")[0].splitlines()
    assert listed[1:] == [f"  - {c['use']}: {c['file']} {c['sha256']}" for c in guard["checked"]] and listed[0] == ""


def test_without_the_control_there_is_a_report_too(tmp_path):
    """No arm needs all cases then, and so nothing makes their list."""
    plan = begun(tmp_path, arms=["R", "S"], primary="S")
    assert not [job for job in plan.jobs.values() if "split/all/datalist.json" in job.inputs]
    shutil.rmtree(plan.out / "split" / "all")
    with_scores(plan)
    page = write_report(plan).read_text()
    assert "S (3 patients)" in page and "C (all training cases)" not in page


def test_what_the_gate_refused_is_in_a_table(reported):
    job = next(iter(reported.of("volumes")))
    told = {"made": 300, "taken": 236, "refused": {"HD95": 44, "Dice": 20}}
    path = reported.out / "volumes" / job.key[0] / job.key[1] / "augment.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for thresholds, limits in ((Thresholds(0.6554, 23.01, 16), "0.655 | 23"), (Thresholds(0.5), "0.5 | —")):
        path.write_text(json.dumps(told | {"thresholds": asdict(thresholds)}))
        write_report(reported)
        text = (reported.out / "report" / "report.md").read_text()
        assert f"| {job.key[1]} | {job.key[0]} | 300 | 236 | 64 (Dice 20, HD95 44) | {limits} |" in text
    path.unlink()


def test_trusted_weights_are_an_alarm(reported, tmp_path):
    guard = reported.out / "guard.json"
    before = guard.read_text()
    guard.write_text(json.dumps(json.loads(before) | {"trusted": ["judge.pt: nobody knows"]}))
    write_report(reported)
    page = (reported.out / "report" / "report.html").read_text()
    guard.write_text(before)
    assert '<p class="alarm">Weights with unknown training cases were trusted' in page and "color:#b00020" in page
    assert "**Weights with unknown training cases" in Path(reported.out / "report" / "report.md").read_text()
