"""A study's report, of scores that are there."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from zlib import crc32

import pytest
from semsynth.data.volumes import read_label
from semsynth.study.guard import check_leaks
from semsynth.study.plan import Plan
from semsynth.study.report import write_report
from semsynth.study.steps import open_test
from tiny_study import begun, held_out

GAINS = {("all", "R"): 0.06, ("3", "MG"): 0.04, ("3", "P"): 0.01, ("3", "S"): 0.005}


def with_scores(plan: Plan) -> None:
    """Scores of every segmenter, and segmentations: the experts' masks."""
    check_leaks(plan)
    open_test(plan)
    entries = held_out(plan)
    for cases, arm, seed in plan.tests():
        folder = plan.out / "test" / cases / arm / str(seed)
        folder.mkdir(parents=True)
        for metric, scale in (("dice", 1.0), ("hd95_mm", -20.0), ("asd_mm", -5.0)):
            rows = []
            for number, entry in enumerate(entries):
                better = GAINS.get((cases, arm), 0.0) + 0.001 * (crc32(f"{cases}{arm}{seed}{number}".encode()) % 5)
                value = (0.8 + 0.01 * number if scale > 0 else 12 + number) + scale * better
                rows.append(f"{entry['case']},{value},{value}\n")
            (folder / f"{metric}_raw.csv").write_text("filename,class0,mean\n" + "".join(rows))
    for job in plan.of("segmentations"):
        folder = (plan.out / job.output).parent
        folder.mkdir(parents=True)
        for entry in entries:
            assert read_label(entry["label"]).data.max() >= 1
            shutil.copy(entry["label"], folder / f"{entry['case']}_seg.nii.gz")


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
    assert "primary contrast, named before anything was run: MG against R, 3 labelled patients" in text


def test_trusted_weights_are_an_alarm(reported, tmp_path):
    guard = reported.out / "guard.json"
    before = guard.read_text()
    guard.write_text(json.dumps(json.loads(before) | {"trusted": ["judge.pt: nobody knows"]}))
    write_report(reported)
    page = (reported.out / "report" / "report.html").read_text()
    guard.write_text(before)
    assert '<p class="alarm">Weights were trusted of which nobody knows' in page and "color:#b00020" in page
    assert "**Weights were trusted" in Path(reported.out / "report" / "report.md").read_text()
