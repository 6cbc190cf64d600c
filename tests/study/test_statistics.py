"""Contrasts of arms over patients and seeds, and the sentences that follow from them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from semsynth.study.arms import ARMS as STANDARD
from semsynth.study.arms import kind
from semsynth.study.results import Findings, _line
from semsynth.study.scores import worst_tenth
from semsynth.study.sentences import compared, reasons, verdict
from semsynth.study.statistics import Trained, contrast, corrected, interval
from statsmodels.stats.multitest import multipletests

CASES = [f"c{i}" for i in range(10)]
PEOPLE = {case: f"p{max(i, 1)}" for i, case in enumerate(CASES)}  # the first two are of one patient


ARMS = list(STANDARD.values())


def _arm(name: str, values: np.ndarray, cases: str = "16", metric: str = "dice") -> Trained:
    """``values`` ``(seeds, cases)``."""
    return Trained(cases, name, {seed: {metric: dict(zip(CASES, map(float, row), strict=True))}
                                 for seed, row in enumerate(values)})  # fmt: skip


def _values(gain: float, noise: float = 0.01, seed: int = 0, apart: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    seeds = np.array([-apart, 0, apart])[:, None]
    return np.linspace(0.7, 0.9, 10) + gain + noise * random.standard_normal((3, 10)) + seeds


def test_scans_of_a_patient_count_once():
    first, second = _values(0.0, noise=0.0), _values(0.0, noise=0.0)
    first[:, 0] += 0.1
    found = contrast(_arm("M", first), _arm("R", second), "dice", PEOPLE)
    assert len(found.patients) == 9
    assert found.delta[0] == pytest.approx(0.05) and found.difference == pytest.approx(0.05 / 9)


def test_a_clear_gain_is_found_and_none_is_not():
    clear = contrast(_arm("M", _values(0.05)), _arm("R", _values(0.0, seed=1)), "dice", PEOPLE)
    assert clear.verdict == "better" and clear.low > 0 and clear.gained() == (9, 0)
    assert "M (16 patients) is better than R (16 patients) by 0.0" in compared(clear)
    none = contrast(_arm("M", _values(0.0)), _arm("R", _values(0.0, seed=1)), "dice", PEOPLE)
    assert none.verdict == "no evidence" and "no evidence that" in compared(none)
    assert "would probably have been found" in compared(none)


def test_seeds_that_differ_widen_the_interval():
    same = contrast(_arm("M", _values(0.02)), _arm("R", _values(0.0, seed=1)), "dice", PEOPLE)
    apart = contrast(_arm("M", _values(0.02, apart=0.03)), _arm("R", _values(0.0, seed=1)), "dice", PEOPLE)
    assert apart.high - apart.low > 2 * (same.high - same.low)
    assert same.verdict == "better" and apart.verdict == "no evidence"
    assert apart.detectable > 2 * same.detectable
    assert apart.se_seeds == pytest.approx(0.03 / math.sqrt(3), rel=0.2)


def test_arms_of_the_same_seeds_are_compared_seed_by_seed():
    """What a seed does to both arms alike is no difference between them."""
    both = [_arm(name, _values(gain, apart=0.05, seed=seed)) for name, gain, seed in (("M", 0.02, 0), ("R", 0.0, 1))]
    assert contrast(*both, "dice", PEOPLE).verdict == "better"
    other = Trained("16", "R", {seed + 5: scores for seed, scores in both[1].scores.items()})
    assert contrast(both[0], other, "dice", PEOPLE).verdict == "no evidence"


def test_the_interval_of_one_seed_is_that_of_the_patients_alone():
    from semsynth.study.compare import interval as of_patients

    delta = np.linspace(-0.01, 0.05, 9)
    ours = interval(delta[None], np.zeros((1, 9)), draws=20_000)
    assert ours == pytest.approx(of_patients(delta, draws=20_000), abs=2e-3)


def test_few_patients_have_no_interval():
    assert interval(np.random.default_rng(0).random((3, 4)), np.zeros((3, 4))) == (None, None)
    assert interval(np.ones((3, 8)), np.zeros((3, 8))) == (None, None)


def test_a_distance_that_one_arm_lacks_gives_no_verdict():
    values = _values(0.0)
    values[1, 3] = math.inf
    found = contrast(_arm("M", values, metric="hd95_mm"), _arm("R", _values(0.1), metric="hd95_mm"), "hd95_mm", PEOPLE)
    assert found.verdict == "unequal" and found.left_out == ("c3",) and "no verdict" in compared(found)


def test_distances_that_both_lack_are_counted_by_seed():
    """Of three seeds one arm lacks the case with all, the other with one."""
    first, second = _values(0.0), _values(0.1, seed=1)
    first[:, 0], second[1, 0] = math.inf, math.inf
    found = contrast(_arm("M", first, metric="hd95_mm"), _arm("R", second, metric="hd95_mm"), "hd95_mm", PEOPLE)
    assert found.lost == (1.0, pytest.approx(1 / 3)) and found.verdict == "unequal" and found.left_out == ("c0",)
    second[:, 0] = math.inf
    found = contrast(_arm("M", first, metric="hd95_mm"), _arm("R", second, metric="hd95_mm"), "hd95_mm", PEOPLE)
    assert found.verdict == "better" and "1 case without a value left out" in compared(found)
    line = _line(_arm("M", first, metric="hd95_mm"), "hd95_mm", PEOPLE)
    assert line.missing == 3 and math.isfinite(line.mean)


def test_a_share_of_the_control_is_said_of_a_gain_alone():
    for gain in (0.0, -0.05):
        said = verdict(_findings(gain, 0.08))
        assert "Positive control" in said[1] and "of that gain" not in said[1]


def test_smaller_distances_are_better():
    found = contrast(_arm("M", _values(-0.1), metric="hd95_mm"), _arm("R", _values(0.0, seed=1), metric="hd95_mm"),
                     "hd95_mm", PEOPLE)  # fmt: skip
    assert found.verdict == "better" and found.difference < 0 and found.p_better < 0.05


def test_secondary_contrasts_are_corrected_by_holm():
    against = _arm("R", _values(0.0, seed=1))
    several = [contrast(_arm(name, _values(gain)), against, "dice", PEOPLE)
               for name, gain in (("S", 0.05), ("M", 0.01), ("G", 0.0))]  # fmt: skip
    wanted = multipletests([c.p for c in several], method="holm")[1]
    assert [c.p_holm for c in corrected(several)] == pytest.approx(list(wanted))


def test_the_worst_tenth():
    assert worst_tenth(range(20), "higher") == 0.5 and worst_tenth(range(20), "lower") == 18.5
    assert worst_tenth([3.0], "higher") == 3.0 and math.isnan(worst_tenth([math.nan], "higher"))


def _findings(gain: float, control: float | None, painted: float = 0.0) -> Findings:
    real = _arm("R", _values(0.0, seed=1))
    main, paint = _arm("MG", _values(gain)), _arm("P", _values(painted, seed=2))
    others = [contrast(paint, real, "dice", PEOPLE), contrast(main, paint, "dice", PEOPLE)]
    best = [] if control is None else [contrast(_arm("R", _values(control), "all"), real, "dice", PEOPLE)]
    return Findings([real, main, paint], PEOPLE, [], [contrast(main, real, "dice", PEOPLE)], best, others)


def test_without_a_control_that_works_there_is_no_verdict():
    said = verdict(_findings(0.05, 0.0))
    assert said[0].startswith("No verdict: the positive control") and said[1].startswith("For completeness, not as")
    assert "better" not in said[1] and reasons(_findings(0.05, 0.0), ARMS) == []
    said = verdict(_findings(0.05, 0.08))
    assert "MG (16 patients) is better" in said[0] and "% of that gain" in said[1]
    assert "no positive control" in verdict(_findings(0.05, None))[1]


@pytest.mark.parametrize("name", ["O", "O1"])
def test_synthetic_only_that_is_worse_tells_of_a_gap(name):
    """Also under another name, as an arm with fewer seeds has."""
    real = _arm("R", _values(0.0, seed=1))
    found = _findings(0.05, 0.05)
    only = contrast(_arm(name, _values(-0.1)), real, "dice", PEOPLE)
    arms = [*ARMS, replace(STANDARD["O"], name="O1", about="one seed", seeds=(0,))]
    said = reasons(Findings(found.trained, PEOPLE, [], found.primary, found.control, [only, *found.others]), arms)
    assert said[0].startswith("The sentences below are exploratory")
    assert "a gap between synthetic volumes and scans" in said[1]


def test_an_arm_of_another_name_is_what_its_settings_say():
    assert kind(replace(STANDARD["O"], name="O1", about="one seed", seeds=(0,))) == "O"
    assert [kind(arm) for arm in ARMS] == list(STANDARD)
    assert kind(replace(STANDARD["MG"], name="MG_1to3", ratio=(1, 3))) == ""
    assert kind(replace(STANDARD["S"], name="S2", generator="pix2pix3d")) == ""


def test_one_seed_is_said(tmp_path):
    found = contrast(_arm("O", _values(0.05)[:1]), _arm("R", _values(0.0, seed=1)), "dice", PEOPLE)
    assert found.seeds == (1, 3) and "one seed of an arm" in compared(found)


def test_painted_maps_that_are_as_good_say_that_texture_adds_nothing():
    assert "no evidence that the network's texture adds" in " ".join(reasons(_findings(0.03, 0.05, painted=0.03), ARMS))
    assert "texture" not in " ".join(reasons(_findings(0.05, 0.05), ARMS))
