"""Fair floors: patients, references, what was trained on, and means that keep what is negative."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from semsynth.data.volumes import read_volume, write_image
from semsynth.data.voxels import hash_file
from semsynth.errors import InputError
from semsynth.evaluation import evaluate
from semsynth.evaluation.distributions import all_distributions, sizes
from semsynth.evaluation.groups import as_trained, group_cases
from semsynth.evaluation.judge import Panel
from semsynth.evaluation.layout import Facts, Layout
from semsynth.evaluation.measure import MeasurementStore, Measurer
from semsynth.evaluation.scores import FLOOR, FLOOR_TRAINING, Collected, all_scores, conditional_scores
from semsynth.evaluation.seen import Exposure, judge_has_seen
from semsynth.evaluation.sources import RealCase, load_real
from semsynth.evaluation.systems import System
from semsynth.evaluation.uncertainty import conditional_mse, largest_n, make_draws
from semsynth.files import sha256
from semsynth.handlers import MetricsSummary
from semsynth.networks.features.registry import FeatureExtractor, Features
from semsynth.networks.frozen import FrozenSegmenter
from semsynth.networks.segmentation import subvoxel_swin
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.provenance.frozen import load_segmenter


def real(name, *, training=None, patient=None):
    return RealCase(name, Path(f"{name}.nii.gz"), training=training, patient=patient)


def system(name="x", *, trained=(), untrained=()):
    records = {c: {"trained_on": True} for c in trained} | {c: {"trained_on": False} for c in untrained}
    return System(name, {c: (Path(c),) for c in records}, records)


# ---- who was trained on what


def test_a_record_that_nobody_knows_makes_no_case_unseen():
    cases = {"a": real("a", training=False), "b": real("b", training=True), "c": real("c", training=False)}
    unknown = System("x", {c: (Path(c),) for c in cases}, {"a": {"trained_on": None}, "b": {"trained_on": None}})
    assert group_cases("abc", cases, [unknown]) == {"unseen": ["c"], "training": ["b"], "all": ["a"]}


def test_scans_of_another_preparation_or_in_another_file_are_training_scans(tmp_path):
    (tmp_path / "train").mkdir()
    fine = listing(
        tmp_path / "train", {"training": [{"case": "a", "image": "a.nii", "source_voxels": {"image": "1" * 64}}]}
    )
    other = [{"case": "other", "image": "b.nii", "source_voxels": {"image": "1" * 64}}, {"case": "c", "image": "c.nii"}]
    path = listing(tmp_path, {"validation": other})
    for name, seed in (("b.nii", 1), ("c.nii", 2)):
        noise = np.random.default_rng(seed).random((16, 16, 16)).astype(np.float32)
        write_image(tmp_path / name, noise, np.eye(4), "float32")
    found = load_real(path, train=fine)
    assert {name: case.training for name, case in found.items()} == {"a": True, "other": True, "c": False}
    same = read_volume(tmp_path / "train" / "a.nii").data[::-1].astype(np.float64) * 3
    nib.save(nib.Nifti1Image(same, np.eye(4)), tmp_path / "a.nii")
    path.write_text(json.dumps({"validation": [{"case": "a", "image": "a.nii"}]}))
    assert load_real(path, train=fine)["a"].training, "the same scan in another file"


# ---- whose scan it is


def listing(folder, entries, **more):
    random = np.random.default_rng(0)
    for split in entries.values():
        for entry in split:
            write_image(folder / entry["image"], random.random((16, 16, 16)).astype(np.float32), np.eye(4), "float32")
    path = folder / "datalist.json"
    path.write_text(json.dumps(entries | more))
    return path


def test_the_patient_is_the_entrys_or_the_patterns_or_the_case(tmp_path):
    entries = {"training": [{"case": "p1_a", "image": "a.nii.gz", "patient": "someone"},
                            {"case": "p1_b", "image": "b.nii.gz"}],
               "validation": [{"case": "p2_a", "image": "c.nii.gz", "patient": 7}]}  # fmt: skip
    cases = load_real(listing(tmp_path, entries, patient_regex="(p[0-9]+)_"))
    assert {n: c.person for n, c in cases.items()} == {"p1_a": "someone", "p1_b": "p1", "p2_a": "7"}
    assert {n: c.split for n, c in cases.items()} == {"p1_a": "training", "p1_b": "training", "p2_a": "validation"}
    cases = load_real(listing(tmp_path, entries))
    assert cases["p1_b"].person == "p1_b" and cases["p1_b"].patient is None


def test_a_training_list_lends_its_patients(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    entry = {"case": "a", "image": "a.nii.gz"}
    plain = listing(tmp_path / "a", {"testing": [entry]})
    train = listing(tmp_path / "b", {"training": [entry | {"patient": "p"}]})
    assert load_real(plain, train=train)["a"].person == "p"


def test_unseen_scans_of_patients_that_were_trained_on_stand_apart(caplog):
    cases = {"t": real("t", training=True, patient="p"), "leaked": real("leaked", training=False, patient="p"),
             "new": real("new", training=False, patient="q"), "moved": real("moved", training=True, patient="p"),
             "other": real("other", training=True, patient="r"),
             "last": real("last", training=True, patient="s")}  # fmt: skip
    # the split says that the generator was trained on "moved", "other" and "last", its records say no
    one = system(untrained=["leaked", "new", "moved", "other"], trained=["last"])
    groups = group_cases(["leaked", "new", "moved", "other", "last"], cases, [one])
    assert groups == {"unseen": ["new", "other"], "same patient": ["leaked", "moved"], "training": ["last"]}
    assert "2 of 4 unseen cases are scans of patients of whom another scan was trained on" in caplog.text
    settled = as_trained(cases, [one])
    assert [n for n, c in settled.items() if c.training] == ["t", "last"]
    silent = replace(one, records={})
    assert as_trained(cases, [one, silent])["other"].training, "of a system that says nothing the split does"
    # a record that trained on it makes its patient known
    assert group_cases(["leaked", "new"], cases | {"twin": real("twin", patient="q")},
                       [replace(one, records={**one.records, "twin": {"trained_on": True}})]) == {
        "same patient": ["leaked", "new"]}  # fmt: skip


# ---- draws


def test_no_patient_is_on_both_sides_or_twice_on_one():
    people = {f"u{i}": f"p{i // 2}" for i in range(12)} | {f"t{i}": f"p{4 + i // 3}" for i in range(60)}
    scored, pool = [c for c in people if c[0] == "u"], list(people)
    training = [c for c in people if c[0] == "t"]
    n = largest_n(scored, pool, people)
    assert n == 6, "six patients are scored, whatever the number of their scans"
    draws = make_draws(scored, pool, n, 40, 0, people, training)
    for draw in draws:
        sides = [[people[c] for c in side] for side in (draw.scored, draw.reference, draw.training)]
        assert all(len(set(side)) == len(side) == n for side in sides)
        assert not set(sides[0]) & set(sides[1]) and not set(sides[2]) & set(sides[1])
        assert set(draw.training) <= set(training)
    assert {c for d in draws for c in d.scored} == set(scored), "each scan of a patient has its turn"
    with pytest.raises(InputError, match="each of another patient, found 6 and 18 others"):
        make_draws(scored, pool, 7, 3, 0, people)


def test_the_other_sides_are_the_same_with_and_without_training_cases():
    names = [f"c{i}" for i in range(40)]
    without = make_draws(names[:10], names, 10, 20, 0)
    assert [replace(d, training=()) for d in make_draws(names[:10], names, 10, 20, 0, {}, names[10:])] == without
    assert all(not d.training for d in make_draws(names[:10], names, 10, 20, 0, {}, names[10:15]))


def test_a_small_group_takes_what_it_has_and_the_unseen_ones_say_how_many():
    assert sizes({"unseen": 10, "same patient": 6, "training": 29}, 64) == {
        "unseen": 10, "same patient": 6, "training": 10}  # fmt: skip
    assert sizes({"unseen": 1, "training": 30}, 64) == {"unseen": 1, "training": 30}, "a stray one says nothing"
    assert sizes({"unseen": 42}, 64) == {"unseen": 32}, "half of the training cases are left for floor B"
    assert sizes({"unseen": 42}, 20) == {"unseen": 42}, "which may not cost more than half"
    assert sizes({"unseen": 2}, 3) == {"unseen": 2}, "nor leave one"


# ---- floors


class Rows(FeatureExtractor):
    """Says that it is a feature network; its features are made up."""

    def __init__(self, **more):
        super().__init__(torch.nn.Linear(1, 1), name="made_up", sha256="f" * 64, dimension=6, intensity="none", **more)


def made_up(*, shift=2.0, train=60, unseen=15, per_patient=1):
    """Unseen patients differ from those of training by ``shift``; the system hands out what training looks like."""
    random = np.random.default_rng(0)
    cases, features = {}, {FLOOR: {}, "copier": {}}
    for i in range(train + unseen):
        name, training = f"c{i:03d}", i < train
        cases[name] = real(name, training=training, patient=f"p{i // per_patient}")
        value = random.normal(size=6) + (0 if training else shift * np.eye(6)[0])
        features[FLOOR][name] = [{"made_up": Features(value, {})}]
        if not training:
            features["copier"][name] = [{"made_up": Features(random.normal(size=6), {})}]
    scored = [n for n, c in cases.items() if not c.training]
    found = Collected({"unseen": scored}, [system("copier", untrained=scored)], features=features, cases=cases)
    return found


def test_a_generator_that_imitates_training_scans_beats_floor_a_and_not_floor_b():
    found = made_up()
    spread, absent, sides = all_distributions(found, list(found.cases), [Rows()], 60, None, 0)
    scores = {s.row: s for s in all_scores(found, spread, None) if s.metric == "fid"}
    copier = scores["copier"]
    assert absent == {} and copier.n == 15 and set(scores) == {FLOOR, FLOOR_TRAINING, "copier"}
    assert copier.floor == scores[FLOOR].value and copier.floor_training == scores[FLOOR_TRAINING].value
    assert copier.value < 0.7 * copier.floor, "better than strangers, which says nothing"
    assert copier.low < copier.floor_training < copier.value, "no nearer than other scans of that kind"
    assert copier.references_training == 15 and sides["unseen"].training.text() == "15"


def test_without_strangers_both_floors_are_one():
    found = made_up(shift=0)
    spread, _, _ = all_distributions(found, list(found.cases), [Rows()], 60, None, 0)
    score = next(s for s in all_scores(found, spread, None) if (s.row, s.metric) == (FLOOR, "fid"))
    assert score.value == pytest.approx(score.floor_training, rel=0.25)


def tables(found, network, **facts):
    spread, absent, sides = all_distributions(found, list(found.cases), [network], 20, None, 0)
    about = {network.name: network.about()}
    layout = Layout(found, all_scores(found, spread, None), Facts(about, {}, {}, absent, None, sides=sides, **facts))
    return {t.title: t for t in layout.tables([])}


def test_the_table_has_both_floors_and_says_what_the_references_are():
    found = made_up()
    (table,) = [t for title, t in tables(found, Rows(trained_on="nothing at all")).items() if "Distribution" in title]
    rows = {row[0].text: row for row in table.rows}
    assert {"real images (floor A)", "training scans (floor B)", "copier"} <= set(rows)
    assert [c.title for c in table.columns][:4] == ["system", "FID", "FID / floor A", "FID / floor B"]
    assert rows["real images (floor A)"][2].text == rows["training scans (floor B)"][3].text == "1.00"
    assert rows["copier"][3].value == pytest.approx(rows["copier"][1].value / rows["training scans (floor B)"][1].value)
    text = " ".join(table.notes)
    assert "references: of the 15 of a draw, training scans of the systems: 15" in text
    assert "trained on nothing at all" in text and "15 patients; weights (SHA-256): copier not recorded" in text


def test_where_too_few_training_scans_are_left_there_is_a_dash_and_why():
    few = tables(made_up(train=30, unseen=20), Rows())
    (table,) = [t for title, t in few.items() if "Distribution" in title]
    row = next(row for row in table.rows if row[0].text == "copier")
    assert row[3].text != "—", "n is smaller, so that there is a floor B"
    found = made_up(train=12, unseen=40)
    (table,) = [t for title, t in tables(found, Rows()).items() if "Distribution" in title]
    row = next(row for row in table.rows if row[0].text == "copier")
    assert row[2].text != "—" and row[3].text == "—"
    assert any(note.startswith("floor B: — because of 12 patients") for note in table.notes)
    assert any(" to " in note for note in table.notes if note.startswith("references: of")), "not all are"
    found.cases = {n: replace(c, training=None) for n, c in found.cases.items()}
    (table,) = [t for title, t in tables(found, Rows()).items() if "Distribution" in title]
    assert any("it is unknown which of the" in note for note in table.notes)
    assert any("no training scans are known" in note for note in table.notes)


def test_what_a_network_says_of_its_training_makes_nothing_be_measured_again(tmp_path):
    class Counting(Rows):
        calls = 0

        def describe(self, volume):
            Counting.calls += 1
            return Features(np.zeros(6, np.float32), {})

    volume = SimpleNamespace(data=np.zeros((4, 4, 4), np.float32), affine=np.eye(4))
    for text in ("", "something"):
        Measurer([Counting(trained_on=text)], targets={}, store=MeasurementStore(tmp_path)).features(["k"], volume)
    assert Counting.calls == 1 and "trained_on" in Rows(trained_on="x").about()


# ---- conditional means


def test_no_case_is_dropped_for_a_negative_error():
    found = Collected({"all": ["a", "b", "c"]}, [system(untrained=["a", "b", "c"])])
    errors = {"a": 0.02, "b": -0.005, "c": 0.006}
    found.conditional["x"] = {case: {"mse": value, "ms_ssim": 0.8} for case, value in errors.items()}
    scores = {s.metric: s for s in conditional_scores(found)}
    mean, sd = np.mean(list(errors.values())), np.std(list(errors.values()), ddof=1)
    assert {s.n for s in scores.values()} == {3} and (scores["mse"].value, scores["mse"].sd) == (
        mean,
        pytest.approx(sd),
    )
    assert scores["psnr"].value == pytest.approx(-10 * math.log10(mean))
    assert scores["rmse"].value == pytest.approx(math.sqrt(mean))
    step = 1e-7  # the spread is that of the squared errors times the slope
    assert scores["psnr"].sd == pytest.approx(abs(-10 * math.log10((mean + step) / mean)) / step * sd, rel=1e-4)
    assert scores["rmse"].sd == pytest.approx((math.sqrt(mean + step) - math.sqrt(mean)) / step * sd, rel=1e-4)
    found.conditional["x"]["a"]["mse"] = -0.01
    assert {s.metric for s in conditional_scores(found)} == {"mse", "ms_ssim"}, "no PSNR of a negative mean"
    del found.conditional["x"]["a"]
    assert conditional_scores(found) == [], "a map with too few samples: no row rather than one of the other cases"


def test_squared_errors_are_unbiased_where_many_are_negative():
    random = np.random.default_rng(0)
    truth = random.random((3, 3, 3))
    found = [conditional_mse(truth + 0.05 + 0.5 * random.standard_normal((4, 3, 3, 3)), truth)[0] for _ in range(4000)]
    assert np.mean(np.array(found) < 0) > 0.3
    assert np.mean(found) == pytest.approx(0.0025, abs=4 * np.std(found) / math.sqrt(len(found)))
    assert 10 * np.mean(np.maximum(found, 0)) > 0.05, "what dropping or clipping them would give"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("floors")
    write_phantom_cases(folder, 6, size=(32, 32, 32), spacing=(1.5, 1.5, 1.5), k=2, progress=False)
    content = json.loads((folder / "datalist.json").read_text())
    every = [entry for split in ("training", "validation", "testing") for entry in content.pop(split, [])]
    for entry, patient in zip(every, "aabcde", strict=True):
        entry["patient"] = patient
    listed = {"training": [every[0], *every[4:]], "validation": every[1:4]}
    (folder / "datalist.json").write_text(json.dumps(content | listed))
    return folder


def synthesised(folder, data, samples):
    folder.mkdir(parents=True)
    entries = []
    for case in load_real(data).values():
        image, _ = case.read()
        for sample in range(samples):
            noise = 0.05 * np.random.default_rng([sample, *case.case.encode()]).standard_normal(image.data.shape)
            name = f"{case.case}_s{sample}.nii.gz"
            write_image(folder / name, (image.data + noise).clip(0, 1).astype(np.float32), image.affine, "float32")
            entries.append({"image": name, "source_case": case.case, "sample": sample})
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return folder


def test_three_samples_of_a_map_are_too_few_for_a_conditional_mean(phantoms, tmp_path):
    made = {f"s{n}": str(synthesised(tmp_path / f"s{n}", phantoms, n)) for n in (3, 4)}
    found = evaluate(made, phantoms, tmp_path / "out", extractors=[], draws=20, pictures=0)
    rows = {s.row for s in found.scores}
    assert "s4, conditional mean" in rows and "s3, conditional mean" not in rows
    (table,) = [t for t in found.tables if t.title.startswith("Similarity to the real image, unseen")]
    assert any("s3: no conditional mean, which needs 4 samples of every map (fewest: 3)" in n for n in table.notes)
    assert not any(n.startswith("s4: no") for n in table.notes)
    assert any("2 of validation; 2 patients" in note for note in table.notes)
    assert {s.group for s in found.scores} == {"unseen", "same patient", "training"}
    compared = {(d.first, d.metric) for d in found.differences}
    assert ("s4, conditional mean", "mse") in compared and ("s4, conditional mean", "psnr") not in compared
    mse = {s.row: s for s in found.scores if (s.group, s.metric) == ("unseen", "mse")}
    assert (
        mse["s4"].value == pytest.approx(0.05**2, rel=0.5) and mse["s4, conditional mean"].value < mse["s4"].value / 4
    )


# ---- what a judge has seen


class Remembers:
    """Stands in for what a card says."""

    def __init__(self, *names, known=True, complete=True):
        self.names, self.known, self.complete = names, known, complete

    def reasons(self, case, files, voxels):
        return ["same name"] if case in self.names and files["image"] == Path(f"{case}.nii.gz") else []


def test_a_case_is_seen_or_not_or_nobody_knows():
    cases = {n: real(n) for n in "ab"}
    assert judge_has_seen(cases, Remembers("a")) == {"a": True, "b": False}
    assert judge_has_seen(cases, Remembers("a", complete=False)) == {"a": True, "b": None}
    assert judge_has_seen(cases, Remembers("a", known=False)) == judge_has_seen(cases, None) == {"a": None, "b": None}


def test_another_scan_of_the_same_patient_counts_apart():
    cases = {"a": real("a", patient="p"), "b": real("b", patient="p"), "c": real("c"), "d": real("d")}
    seen = {"a": True, "b": False, "c": False, "d": None}
    assert Exposure.among(["a", "b", "c", "d"], cases, seen) == Exposure(4, 1, 1, 1)
    text = Exposure.among(["b", "c"], cases, seen).text("judge")
    assert text == "judge was trained on none of these 2 cases, and on another scan of the patient of 1 more"
    assert (Exposure(3, 1, 0, 1).certain, Exposure(3, 0, 0, 1).certain, Exposure(3, 0, 0, 0).certain) == (1, None, 0)
    assert "is not known" in Exposure.among(["d"], cases, seen).text("judge")


def test_numbers_of_cases_that_the_judge_was_trained_on_are_marked(phantoms, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "judge.pt"
    torch.save(subvoxel_swin().state_dict(), weights)
    cases = load_real(phantoms)
    seen = [{"voxels": {"image": hash_file(c.image)}} for n, c in cases.items() if c.training]
    weights.with_suffix(".json").write_text(json.dumps({"training_cases": seen, "unknown_parents": []}))
    judge = load_segmenter(subvoxel_swin(), weights, use="faithfulness", name="la_unet_judge")
    made = synthesised(tmp_path / "made", phantoms, 1)
    found = evaluate(str(made), phantoms, tmp_path / "out", judge=judge, extractors=["la_unet_judge"], draws=20)
    tables = {t.title: t for t in found.tables if t.title.startswith(("Faithfulness", "Distribution"))}
    marked = {title: "‡" in t.rows[0][1].text for title, t in tables.items()}
    unseen, same, training = (f"Faithfulness, {t}" for t in (
        "unseen label maps (n = 2)", "label maps of unseen scans of patients that were trained on (n = 1)",
        "label maps of training cases (n = 3)"))  # fmt: skip
    assert (marked[unseen], marked[same], marked[training]) == (False, False, True)
    notes = {title: " ".join(t.notes) for title, t in tables.items()}
    assert "la_unet_judge was trained on 3 of these 3 cases" in notes[training] and "‡ this network" in notes[training]
    assert "trained on none of these 1 cases, and on another scan of the patient of 1 more" in notes[same]
    assert (
        "none of these 2 cases; of the 2 references of a draw: " in notes["Distribution, la_unet_judge, " + unseen[14:]]
    )
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {s["seen"] for s in content["scores"] if (s["group"], s["metric"]) == ("training", "dice")} == {3}
    assert content["groups"]["same patient"]["judges"][sha256(weights)]["patients"] == 1
    assert content["groups"]["unseen"]["drawn"]["references_training"]["most"] <= 2
    rows = list(csv.DictReader((tmp_path / "out" / "evaluation.csv").open()))
    assert any(row["floor_training"] for row in rows) and (tmp_path / "out" / "evaluation.html").is_file()
    shutil.rmtree(made)


# ---- two judges


class Finds(torch.nn.Module):
    """A judge that finds everything, or nothing."""

    def __init__(self, everything: bool):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(1.0 if everything else -1.0))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), torch.zeros_like(x) + self.shift], dim=1)


def judge(sha256, *, everything=True, **kwargs):
    return FrozenSegmenter(Finds(everything), name="la_unet_judge", sha256=sha256, largest_component=[], **kwargs)


def test_the_second_judge_takes_the_cases_whose_patients_the_first_was_trained_on():
    cases = {n: real(n, patient=p) for n, p in zip("abcdefg", "pppqqrr", strict=True)}
    seen = {
        "1" * 64: {"a": True, "b": False, "c": None, "d": False, "e": False, "f": True, "g": True},
        "2" * 64: {"a": False, "b": False, "c": None, "d": True, "e": True, "f": True, "g": False},
    }
    panel = Panel.of(judge("1" * 64), judge("2" * 64), cases, seen)
    # c: of nobody knows whether the second has seen it; f, g: of a patient of both
    assert panel.seconded == {"a", "b"}
    assert [panel.judge(n).sha256[0] for n in "abcdefg"] == list("2211111")
    assert panel.seen(seen) == {"a": False, "b": False, "c": None, "d": False, "e": False, "f": True, "g": True}
    facts = panel.facts()
    assert facts.hashes("ab") == ["2" * 64] and facts.hashes("d") == ["1" * 64]
    assert facts.hashes("bd") == ["1" * 64, "2" * 64]


def test_judges_that_do_not_go_together_are_refused():
    cases, seen = {"a": real("a")}, {"1": {"a": False}, "2": {"a": False}}
    with pytest.raises(InputError, match="a second judge needs a first"):
        Panel.of(None, judge("2"), cases, seen)
    with pytest.raises(InputError, match="the second judge is the first"):
        Panel.of(judge("1"), judge("1"), cases, seen)
    with pytest.raises(InputError, match=r"work at \(1.0, 1.0, 1.0\) and \(2.0, 2.0, 2.0\) mm"):
        Panel.of(judge("1"), judge("2", spacing=(2.0, 2.0, 2.0)), cases, seen)
    assert Panel.of(judge("1"), None, cases, seen).facts().second == ""
    assert Panel().judge("a") is None and Panel().seen(seen) == {}


def test_an_evaluation_asks_of_each_case_the_judge_that_has_not_seen_it(phantoms, tmp_path):
    cases = load_real(phantoms)
    training = sorted(n for n, c in cases.items() if c.training)
    halves = training[:1], [n for n in training[1:] if cases[n].person != cases[training[0]].person]
    judges = []
    for i, half in enumerate(halves):
        file = tmp_path / f"judge_{i}.pt"
        torch.save({"x": torch.tensor(i)}, file)
        seen = [{"voxels": {"image": hash_file(cases[n].image)}} for n in half]
        file.with_suffix(".json").write_text(json.dumps({"training_cases": seen, "unknown_parents": []}))
        judges.append(judge(sha256(file), everything=i == 1, source=file))
    made = synthesised(tmp_path / "made", phantoms, 1)
    first_judge, second_judge = judges
    found = evaluate(
        str(made), phantoms, tmp_path / "out", judge=first_judge, second_judge=second_judge, extractors=[], draws=20
    )
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    dice = {row["case"]: float(row["dice"]) for row in rows if row["system"] == "synthetic"}
    mine = {n for n in dice if cases[n].person == cases[training[0]].person}
    assert mine and all((dice[n] > 0) == (n in mine) for n in dice), "the second finds everything, the first nothing"
    scores = {s.group: s for s in found.scores if (s.row, s.metric) == ("synthetic", "dice")}
    first, second = judges[0].sha256, judges[1].sha256
    assert scores["training"].sha256 == f"{first} and {second}" and scores["unseen"].sha256 == first
    assert scores["training"].seen == 0, "no case is judged by who has seen it"
    assert f"on whose patients it was trained, the second judge, SHA-256 {second}" in found.text()
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["judge"]["second_sha256"] == second and content["groups"]["training"]["second_judge"] >= 1


# ---- standard deviations


def test_the_summary_of_a_segmentation_has_the_sample_standard_deviation(tmp_path):
    engine = Engine(lambda *_: None)
    values = np.array([[0.9, 0.5], [0.7, np.nan], [0.8, 0.1]])
    MetricsSummary(tmp_path, ["dice"]).attach(engine)
    engine.state.metric_details = {"dice": torch.from_numpy(values)}
    engine.run([0])
    rows = {row["class"]: row for row in csv.DictReader((tmp_path / "dice_summary.csv").open())}
    assert (rows["class0"]["sd"], rows["class0"]["n"]) == ("0.1000", "3") and rows["class1"]["n"] == "2"
    assert float(rows["mean"]["sd"]) == pytest.approx(np.std([0.7, 0.7, 0.45], ddof=1), abs=1e-4)
    missing = MetricsSummary(tmp_path, ["hd95"])
    with pytest.raises(InputError, match="no details of a metric 'hd95'; there are dice"):
        missing(engine)
