"""Paired differences of two segmenters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp, wilcoxon
from semsynth.cli.main import main
from semsynth.errors import InputError
from semsynth.study import Scores, compare
from semsynth.study.compare import interval, p_values
from semsynth.study.layout import cases_table, sentence, tables


def _cases(values) -> dict[str, float]:
    return {f"P{i}": float(value) for i, value in enumerate(values)}


def _scores(name: str, classes=None, **metrics) -> Scores:
    by_class = {m: {c: _cases(values) for c, values in own.items()} for m, own in (classes or {}).items()}
    return Scores(Path(name), {metric: _cases(values) for metric, values in metrics.items()}, by_class)


def _pair(delta, metric="dice"):
    base = np.linspace(0.7, 0.9, len(delta))
    return _scores("new", **{metric: base + delta}), _scores("old", **{metric: base})


GAIN = np.array([0.01, 0.02, 0.015, 0.03, -0.005, 0.012, 0.02, 0.018])


def test_the_difference_is_paired_and_the_tests_are_scipys():
    (paired,) = compare(*_pair(GAIN)).metrics
    assert paired.difference == pytest.approx(GAIN.mean()) and paired.sd == pytest.approx(GAIN.std(ddof=1))
    assert paired.effect == pytest.approx(GAIN.mean() / GAIN.std(ddof=1))
    untied = GAIN + np.linspace(0, 1e-4, 8)
    assert p_values(untied, "higher") == (
        pytest.approx(wilcoxon(untied).pvalue),
        pytest.approx(wilcoxon(untied, alternative="greater").pvalue),
    )
    assert paired.gained() == (7, 1) and paired.verdict == "better"
    assert 0 < paired.low < paired.difference < paired.high


def test_a_distance_is_better_where_it_is_smaller():
    (paired,) = compare(*_pair(-GAIN, "hd95_mm")).metrics
    assert paired.better == "lower" and paired.verdict == "better" and paired.gained() == (7, 1)
    assert paired.p_better < 0.05 and paired.difference < 0
    (worse,) = compare(*_pair(GAIN, "hd95_mm")).metrics
    assert worse.verdict == "worse" and worse.p_better > 0.9


def test_the_worst_case_is_the_lowest_dice_and_the_largest_distance():
    values = np.linspace(0.1, 0.9, 12)
    new, old = (_scores(name, dice=values, hd95_mm=10 * values) for name in ("new", "old"))
    dice, _, distance, _ = tables(compare(new, old))[0].rows
    assert [cell.value for cell in dice[-2:]] == pytest.approx([values[0], values[:2].mean()])
    assert [cell.value for cell in distance[-2:]] == pytest.approx([9.0, 10 * values[-2:].mean()])


def test_a_metric_of_unknown_direction_is_only_higher_or_lower():
    found = compare(*_pair(GAIN, "volume_ml"))
    (paired,) = found.metrics
    assert paired.verdict == "other" and paired.p_better is None
    assert sentence(found, paired).startswith("volume_ml: new has higher values than baseline, by 0.015 (")
    assert "7 higher, 1 lower" in tables(found)[1].text()


def test_scans_of_one_patient_count_as_one():
    new, old = _pair(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.06, 0.06, 0.06]))
    whose = {"P5": "one", "P6": "one", "P7": "one"}
    (paired,) = compare(new, old, whose).metrics
    assert len(paired.delta) == 6 and paired.difference == pytest.approx(0.01)
    assert len(paired.cases) == 8 and paired.patients[-3:] == ("one",) * 3
    assert len(compare(new, old, {"P5": "P0"}).metrics[0].delta) == 8, "a patient called as another case is another one"


def test_a_case_without_a_finite_value_is_left_out_on_both_sides_and_gives_no_verdict():
    new = _scores("new", dice=[0.5] * 8, hd95_mm=[1, np.inf, 2, 3, 4, 5, 3, np.inf])
    old = _scores("old", dice=[0.4] * 8, hd95_mm=[12] * 7 + [np.nan])
    found = compare(new, old)
    dice, distance = found.metrics
    assert len(dice.cases) == 8 and distance.cases == ("P0", "P2", "P3", "P4", "P5", "P6")
    assert distance.lost == (1, 0) and distance.high < 0 and distance.verdict == "unequal"
    assert "no verdict. 1 case without a value of new, 0 without one of baseline" in sentence(found, distance)
    assert any("2 cases left out on both sides" in note and "P1, P7" in note for note in tables(found)[0].notes)
    assert "P1,P1,0.5,0.4,0.1" in cases_table(found).csv().replace("0.09999999999999998", "0.1")


def test_only_classes_that_both_have_a_value_of_are_averaged():
    first = {"hd95_mm": {"a": [1.0] * 6, "b": [np.nan, 2.0, 2.0, 2.0, 2.0, 2.0]}}
    second = {"hd95_mm": {"a": [1.0] * 6, "b": [50.0] + [2.0] * 5}}
    new, old = (_scores(n, c, hd95_mm=[np.nanmean(pair) for pair in zip(*c["hd95_mm"].values(), strict=True)])
                for n, c in (("new", first), ("old", second)))  # fmt: skip
    together, of_a, of_b = compare(new, old).metrics
    assert (together.metric, of_a.metric, of_b.metric) == ("hd95_mm", "hd95_mm a", "hd95_mm b")
    assert not together.delta.any() and together.lost == (1, 0) == of_b.lost and of_a.lost == (0, 0)


def test_what_only_one_side_has_and_unknown_patients_are_told():
    new, old = _pair(GAIN)
    old.values["dice"]["extra"] = 0.5  # type: ignore[index]
    new.values["hd95"], old.values["hd95_mm"] = {"P0": 1.0}, {"P0": 1.0}  # type: ignore[index]
    notes = " ".join(compare(new, old, {"P0": "a"}).unpaired)
    assert "dice: 1 case not scored in new, and left out: extra" in notes
    assert "only new has the metrics hd95 only baseline has the metrics hd95_mm" in notes
    assert "7 cases of 8 counted as patients of their own" in notes


def test_fewer_than_five_patients_and_equal_differences_have_no_interval():
    found = compare(*_pair(GAIN[:4]))
    (paired,) = found.metrics
    assert paired.low is None and "There is no interval: fewer than 5 patients." in sentence(found, paired)
    found = compare(*_pair(np.full(8, 0.01)))
    (paired,) = found.metrics
    assert paired.low is None and paired.effect is None and paired.detectable is None
    assert "There is no interval: all patients differ by the same amount." in sentence(found, paired)


def test_no_evidence_says_what_could_have_been_found():
    found = compare(*_pair(GAIN - GAIN.mean() + 0.001))
    text = sentence(found, found.metrics[0])
    assert "no evidence that new and baseline differ (+0.001, 95 % interval [-0.008, +0.009]" in text
    assert "With 8 patients, a true difference of about 0.012 or more would probably be found." in text


def test_the_same_scores_differ_by_nothing():
    (paired,) = compare(*_pair(np.zeros(8))).metrics
    assert (paired.difference, paired.low, paired.p, paired.p_better, paired.effect) == (0.0, None, 1.0, 1.0, None)


def test_the_interval_follows_from_the_seed_and_not_from_the_order_of_cases():
    assert interval(GAIN, seed=1) == interval(GAIN, seed=1) != interval(GAIN, seed=2)
    new, old = _pair(GAIN)
    turned = [Scores(s.source, {"dice": dict(reversed(s.values["dice"].items()))}, {}) for s in (new, old)]
    assert compare(*turned).metrics[0].low == compare(new, old).metrics[0].low


@pytest.mark.parametrize(
    ("n", "share", "least"),
    [(5, 1.0, 0.88), (8, 1.0, 0.92), (20, 1.0, 0.92), (8, 0.125, 0.65), (20, 0.125, 0.87)],
)
def test_the_interval_holds_the_truth_as_often_as_the_docs_say(n, share, least):
    """Normal values, or a large gain that one patient in eight has. The means' own percentiles have 0.88 with 8."""
    random = np.random.default_rng(0)
    held = []
    for i in range(400):
        drawn = random.normal(1, 1, n) if share == 1 else random.normal(0, 0.3, n) + 3 * (random.random(n) < share)
        low, high = interval(drawn, draws=1000, seed=i)
        held.append(low <= (1 if share == 1 else 3 * share) <= high)
    assert least <= np.mean(held) <= 0.98


@pytest.mark.parametrize("delta", [[0.01] * 7 + [-0.05], [0.01] * 9 + [-0.07], [0.0] * 19 + [0.3]])
def test_what_few_patients_decide_is_no_evidence(delta):
    low, high = interval(np.array(delta))
    assert min(delta) <= low <= 0 <= high <= max(delta)


@pytest.mark.parametrize(
    ("delta", "two_sided", "one_sided"),
    [([0.3] * 3 + [0.0] * 17, 0.25, 0.125), ([0.01, 0.01, 0.01, -0.01, -0.01, 0.02, 0.01], 0.359375, 0.1796875)],
)
def test_p_values_are_exact_with_zeros_and_ties(delta, two_sided, one_sided):
    assert p_values(np.array(delta), "higher") == (pytest.approx(two_sided), pytest.approx(one_sided))


def test_last_digits_of_floating_point_make_no_difference():
    (paired,) = compare(*_pair(np.array([0.01, 0.01, 0.01, -0.01, -0.01, 0.02, 0.01]))).metrics
    assert paired.p == pytest.approx(0.359375)


def test_many_differences_take_scipys_test():
    delta = np.random.default_rng(0).normal(0.1, 1, 40)
    assert p_values(delta, "lower")[1] == wilcoxon(delta, alternative="less").pvalue


def test_the_smallest_difference_is_found_in_80_of_100():
    (paired,) = compare(*_pair(GAIN)).metrics
    random = np.random.default_rng(0)
    drawn = random.normal(paired.detectable, paired.sd, (2000, len(GAIN)))
    assert np.mean(ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("new", "old", "patients", "message"),
    [
        (_scores("a", dice=[1, 1]), _scores("b", jaccard=[1, 1]), None, "no metric is in both"),
        (_scores("a", dice=[1]), Scores(Path("b"), {"dice": {"Q": 1.0}}, {}), None, "no case is in both"),
        (_scores("a", dice=[np.nan]), _scores("b", dice=[1]), None, "no case has finite values in both"),
        (_scores("a", dice=[1]), _scores("b", dice=[1]), {"x": "y"}, r"none of the 1 cases \(P0\) is among those"),
    ],
)
def test_what_cannot_be_compared_is_named(new, old, patients, message):
    with pytest.raises(InputError, match=message):
        compare(new, old, patients)


@pytest.fixture
def written(tmp_path) -> Path:
    random = np.random.default_rng(0)
    base = random.uniform(0.6, 0.9, 10)
    for name, values in (("old", base), ("new", base + 0.02 + random.normal(0, 0.003, 10))):
        rows = "".join(f"case_{i}$,{v},{10 * (1 - v)},{v}\n" for i, v in enumerate(values))
        (tmp_path / f"{name}.csv").write_text(f"case,dice,hd95_mm,dice_loss\n{rows}")
    return tmp_path


def test_the_command_says_it_in_words_and_writes_page_tables_and_picture(written, capsys):
    out = written / "out"
    command = ["compare", "--scores", f"new={written / 'new.csv'}", "--baseline", f"old={written / 'old.csv'}"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Dice: new is better than old by 0.0186 (95 % interval [+0.01" in said and not out.exists()
    assert main([*command, "--output", str(out)]) == 0
    page = (out / "comparison.md").read_text()
    assert "HD95 (mm): new is better than old by" in page
    assert "![difference of each case in Dice, HD95 (mm), dice_loss](comparison.png)" in page
    assert (out / "comparison_cases.csv").read_text().count("\n") == 11
    lines = (out / "comparison.csv").read_text().splitlines()
    assert lines[0].startswith("metric,patients,cases,left_out,mean,") and len(lines) == 4
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    patients = [{"image": "a", "case": f"case_{i}$", "patient": f"p{i // 2}"} for i in range(10)]
    (written / "datalist.json").write_text(json.dumps({"testing": patients}))
    more = ["--output", str(out), "--metrics", "HD95_mm", "--patients", str(written)]
    assert main([*command, *more]) == 0, "its own files are replaced"
    assert ", 5 patients)" in capsys.readouterr().out
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
        (["--scores", "NEW", "--baseline", "OLD", "--metrics", "asd"], "no metric 'asd'; there are 'dice', 'hd95_mm'"),
        (["--scores", "NEW", "--baseline", "OLD", "--metrics="], "no metric is asked for"),
        (["--scores", "NEW", "--baseline", "OLD", "--patients", "OLD"], "is no datalist"),
        (["--scores", "NEW", "--baseline", "OLD", "--draws", "3"], "draws must lie in 1000…10000000, got 3"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_message(written, capsys, options, message):
    typed = [o.replace("NEW", str(written / "new.csv")).replace("OLD", str(written / "old.csv")) for o in options]
    assert main(["compare", *typed]) == 1
    assert message in capsys.readouterr().err
