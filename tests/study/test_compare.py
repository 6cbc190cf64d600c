"""Paired differences of two segmenters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.study import Scores, compare
from semsynth.study.compare import interval
from semsynth.study.layout import sentence, tables


def _scores(name: str, **metrics) -> Scores:
    return Scores(Path(name), {m: {f"P{i}": float(v) for i, v in enumerate(values)} for m, values in metrics.items()})


def _pair(delta, metric="dice"):
    base = np.linspace(0.7, 0.9, len(delta))
    return _scores("new", **{metric: base + delta}), _scores("old", **{metric: base})


GAIN = np.array([0.01, 0.02, 0.015, 0.03, -0.005, 0.012, 0.02, 0.018])


def test_the_difference_is_paired_and_the_tests_are_scipys():
    (paired,) = compare(*_pair(GAIN)).metrics
    assert paired.difference == pytest.approx(GAIN.mean()) and paired.sd == pytest.approx(GAIN.std(ddof=1))
    assert paired.effect == pytest.approx(GAIN.mean() / GAIN.std(ddof=1))
    assert paired.p == wilcoxon(paired.delta).pvalue
    assert paired.p_better == wilcoxon(paired.delta, alternative="greater").pvalue
    assert paired.gained() == (7, 1) and paired.verdict == "better"
    assert 0 < paired.low < paired.difference < paired.high


def test_a_distance_is_better_where_it_is_smaller():
    (paired,) = compare(*_pair(-GAIN, "hd95_mm")).metrics
    assert paired.better == "lower" and paired.verdict == "better" and paired.gained() == (7, 1)
    assert paired.p_better < 0.05 and paired.difference < 0
    (worse,) = compare(*_pair(GAIN, "hd95_mm")).metrics
    assert worse.verdict == "worse" and worse.p_better > 0.9


def test_a_metric_of_unknown_direction_is_only_higher_or_lower():
    found = compare(*_pair(GAIN, "volume_ml"))
    (paired,) = found.metrics
    assert paired.verdict == "other" and paired.p_better is None
    assert "volume_ml: scores is higher than baseline by 0.0150" in sentence(found, paired)


def test_scans_of_one_patient_count_as_one():
    new, old = _pair(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.06, 0.06, 0.06]))
    whose = {f"P{i}": "one" for i in (5, 6, 7)}
    (paired,) = compare(new, old, whose).metrics
    assert len(paired.delta) == 6 and paired.difference == pytest.approx(0.01)
    assert len(paired.cases) == 8 and paired.patients[-3:] == ("one",) * 3


def test_a_case_without_a_finite_value_is_left_out_on_both_sides_and_named():
    new, old = (
        _scores("new", dice=[0.5] * 6, hd95_mm=[1, np.inf, 2, 3, 4, 5]),
        _scores("old", dice=[0.4] * 6, hd95_mm=[2] * 6),
    )
    found = compare(new, old)
    dice, distance = found.metrics
    assert len(dice.cases) == 6 and distance.cases == ("P0", "P2", "P3", "P4", "P5")
    assert any("left out on both sides" in note and "P1 (inf in new)" in note for note in tables(found)[0].notes)


def test_cases_of_one_side_alone_and_unknown_patients_are_told():
    new, old = _pair(GAIN)
    old.values["dice"]["extra"] = 0.5
    notes = " ".join(tables(compare(new, old, {"P0": "a"}))[0].notes)
    assert "1 cases without scores of scores: extra" in notes and "7 of 8 cases do not say whose scan they are" in notes


def test_fewer_than_five_patients_have_no_interval():
    found = compare(*_pair(GAIN[:4]))
    (paired,) = found.metrics
    assert paired.low is None and paired.verdict == "too few"
    assert "With 4 patients no interval is given" in sentence(found, paired)


def test_no_evidence_says_what_could_have_been_shown():
    found = compare(*_pair(GAIN - GAIN.mean() + 0.001))
    text = sentence(found, found.metrics[0])
    assert "no evidence of a difference (+0.00100, 95 % interval [-0." in text and "8 patients can show 0.0" in text


def test_the_same_scores_differ_by_nothing():
    (paired,) = compare(*_pair(np.zeros(8))).metrics
    assert (paired.low, paired.high, paired.p, paired.effect, paired.verdict) == (0.0, 0.0, 1.0, None, "no evidence")


def test_the_interval_follows_from_the_seed_and_not_from_the_order_of_cases():
    assert interval(GAIN, seed=1) == interval(GAIN, seed=1) != interval(GAIN, seed=2)
    new, old = _pair(GAIN)
    turned = [Scores(s.source, {"dice": dict(reversed(s.values["dice"].items()))}) for s in (new, old)]
    assert compare(*turned).metrics[0].low == compare(new, old).metrics[0].low


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """A bootstrap of the means alone holds it in 88 % with eight values."""
    random = np.random.default_rng(0)
    ends = [interval(random.normal(1.0, 1.0, 8), draws=1000, seed=i) for i in range(400)]
    assert 0.92 <= np.mean([low <= 1.0 <= high for low, high in ends]) <= 0.98


def test_the_smallest_difference_is_found_in_80_of_100():
    (paired,) = compare(*_pair(GAIN)).metrics
    random = np.random.default_rng(0)
    drawn = random.normal(paired.detectable, paired.sd, (2000, len(GAIN)))
    assert np.mean(ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        (_scores("a", dice=[1, 1]), _scores("b", jaccard=[1, 1]), "no metric is in both"),
        (_scores("a", dice=[1]), Scores(Path("b"), {"dice": {"Q": 1.0}}), "no case is in both"),
        (_scores("a", dice=[np.nan]), _scores("b", dice=[1]), "no case has finite values in both"),
    ],
)
def test_what_cannot_be_compared_is_named(new, old, message):
    with pytest.raises(InputError, match=message):
        compare(new, old)


@pytest.fixture
def written(tmp_path) -> Path:
    random = np.random.default_rng(0)
    base = random.uniform(0.6, 0.9, 10)
    for name, values in (("old", base), ("new", base + 0.02 + random.normal(0, 0.003, 10))):
        rows = "".join(f"case_{i}$,{v},{10 * (1 - v)}\n" for i, v in enumerate(values))
        (tmp_path / f"{name}.csv").write_text(f"case,dice,hd95_mm\n{rows}")
    return tmp_path


def test_the_command_says_it_in_words_and_writes_page_tables_and_picture(written, capsys):
    out = written / "out"
    command = ["compare", "--scores", f"new={written / 'new.csv'}", "--baseline", f"old={written / 'old.csv'}"]
    assert main(command) == 0
    assert "Dice: new is better than old by 0.0186 (95 % interval [+0.0" in capsys.readouterr().out and not out.exists()
    assert main([*command, "--output", str(out)]) == 0
    page = (out / "comparison.md").read_text()
    assert "HD95 (mm): new is better than old by" in page and "![difference of each case](comparison.png)" in page
    assert (out / "comparison_cases.csv").read_text().count("\n") == 11
    assert (out / "comparison.csv").read_text().startswith("metric,patients,difference,")
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--output", str(out), "--metrics", "hd95_mm"]) == 0, "its own files are replaced"
    assert "Dice" not in (out / "comparison.md").read_text()


def test_the_command_replaces_no_file_of_the_user(written, capsys):
    (written / "comparison.md").write_text("my notes\n")
    command = ["compare", "--scores", str(written / "new.csv"), "--baseline", str(written / "old.csv")]
    assert main([*command, "--output", str(written)]) == 1
    assert "comparison.md" in capsys.readouterr().err and (written / "comparison.md").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "a=NEW", "--baseline", "a=OLD"], "are both called 'a'"),
        (["--scores", "NEW,OLD", "--baseline", "OLD"], "--scores takes one folder or file, got 2"),
        (["--scores", "NEW", "--baseline", "OLD", "--metrics", "asd"], "has no metric 'asd'; there are dice, hd95_mm"),
        (["--scores", "NEW", "--baseline", "OLD", "--draws", "3"], "draws must lie in 1000…10000000, got 3"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_message(written, capsys, options, message):
    typed = [o.replace("NEW", str(written / "new.csv")).replace("OLD", str(written / "old.csv")) for o in options]
    assert main(["compare", *typed]) == 1
    assert message in capsys.readouterr().err
