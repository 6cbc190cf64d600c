"""Evaluation: pairing, painting, draws, floors, conditional means, tables and files, on small phantoms."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from semsynth.cli.main import _join_lists, main
from semsynth.data.volumes import Volume, read_volume, scale_intensity, write_image, write_label
from semsynth.errors import InputError
from semsynth.evaluation import collect, evaluate, groups, measure
from semsynth.evaluation.distributions import feature_rows
from semsynth.evaluation.files import worst_pictures
from semsynth.evaluation.judge import JudgeFacts, Panel, targets_of
from semsynth.evaluation.measure import MeasurementStore, Measurer
from semsynth.evaluation.painting import average_means, class_means, paint
from semsynth.evaluation.run import open_extractors
from semsynth.evaluation.scores import FLOOR, PAINTING_OWN, PAINTING_TRAINING, Collected, paired_scores
from semsynth.evaluation.sources import RealCase, load_real
from semsynth.evaluation.systems import load_system, pair
from semsynth.evaluation.uncertainty import (
    Interval,
    conditional_mse,
    largest_n,
    make_draws,
    over_draws,
    pairwise_distance,
)
from semsynth.metrics import psnr
from semsynth.networks.features.registry import Features
from semsynth.networks.frozen import FrozenSegmenter
from semsynth.networks.segmentation import residual_unet, subvoxel_swin
from semsynth.ownership import is_marked_png
from semsynth.prepare.phantom import write_phantom_cases
from semsynth.provenance.frozen import load_segmenter
from semsynth.report.tables import Cell, Column, Table

SIZE = (48, 48, 48)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twelve phantoms: eight for training, four unseen."""
    folder = tmp_path_factory.mktemp("evaluation_data")
    write_phantom_cases(folder, 12, size=SIZE, spacing=(1.0, 1.0, 1.0), k=2, progress=False)
    content = json.loads((folder / "datalist.json").read_text())
    everything = [entry for split in ("training", "validation", "testing") for entry in content.pop(split)]
    listed = content | {"training": everything[:8], "validation": everything[8:]}
    (folder / "datalist.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.pt"
    torch.save(subvoxel_swin().state_dict(), path)
    return path


def noisy(folder, dataset, *, noise, samples=1, splits=("validation",), blur=0.0, record=None):
    """A system whose volumes are the real ones with noise, fading towards the mean by ``blur``."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for case in load_real(dataset).values():
        split = "training" if case.training else "validation"
        if split not in splits:
            continue
        image, _ = case.read()
        for sample in range(samples):
            random = np.random.default_rng([sample, *case.case.encode()])
            data = image.data * (1 - blur) + blur * image.data.mean() + noise * random.standard_normal(SIZE)
            name = f"{case.case}_s{sample}" if samples > 1 else case.case
            write_image(folder / f"{name}_synthetic.nii.gz", data.clip(0, 1), image.affine, "int16")
            about = {"case": name, "source_case": case.case, "sample": sample, "trained_on": bool(case.training)}
            (folder / f"{name}_synthetic.json").write_text(json.dumps(about | (record or {})))
            entries.append({"case": name, "source_case": case.case, "sample": sample,
                            "image": f"{name}_synthetic.nii.gz"})  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps({"training": entries}))
    return folder


@pytest.fixture(scope="module")
def systems(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    both = ("training", "validation")
    record = {"in_loss": [{"name": "la_unet_judge", "sha256": "0" * 64}], "weights_sha256": "1" * 64}
    return {
        "good": noisy(folder / "good", dataset, noise=0.02, samples=4, splits=both),
        "poor": noisy(folder / "poor", dataset, noise=0.15, blur=0.5, splits=both, record=record),
    }


@pytest.fixture(scope="module")
def results(dataset, systems, judge_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    judge = load_segmenter(subvoxel_swin(), judge_file, use="faithfulness", name="la_unet_judge")
    found = evaluate(
        {name: str(path) for name, path in systems.items()}, dataset, output,
        extractors=["la_unet_judge", "medicalnet_resnet34"], judge=judge, draws=20,
        weights={"la_unet_judge": judge_file, "medicalnet_resnet34": output / "none.pth"},
    )  # fmt: skip
    return found


def score(results, group, row, metric, extractor=""):
    found = [s for s in results.scores if (s.group, s.row, s.metric, s.extractor) == (group, row, metric, extractor)]
    assert len(found) == 1, (group, row, metric, extractor)
    return found[0]


def table(results, title):
    return next(t for t in results.tables if t.title.startswith(title))


def cell(results, title, row, column):
    found = table(results, title)
    index = [c.title for c in found.columns].index(column)
    return next(cells for cells in found.rows if cells[0].text.startswith(row))[index]


# ---- what is compared


def test_training_and_unseen_cases_come_from_the_splits(dataset):
    cases = load_real(dataset)
    assert sum(case.training for case in cases.values()) == 8 and len(cases) == 12
    assert all(case.label.is_file() for case in cases.values())


def test_train_real_says_which_cases_were_trained_on(dataset, tmp_path):
    content = json.loads((dataset / "datalist.json").read_text())
    absolute = {
        split: [e | {k: str(dataset / e[k]) for k in ("image", "label")} for e in content[split]]
        for split in ("training", "validation")
    }
    (tmp_path / "seen.json").write_text(json.dumps({"training": absolute["training"]}))
    (tmp_path / "unseen.json").write_text(json.dumps({"testing": absolute["validation"]}))
    cases = load_real(tmp_path / "unseen.json", train=tmp_path / "seen.json")
    assert sorted(case.case for case in cases.values() if case.training) == sorted(
        entry["case"] for entry in content["training"]
    )
    assert all(case.training is None for case in load_real(tmp_path / "unseen.json").values())


def test_files_pair_by_name_without_a_datalist(dataset, systems, tmp_path):
    flat, labels, made = tmp_path / "real", tmp_path / "labels", tmp_path / "made"
    for folder in (flat, labels, made):
        folder.mkdir()
    for case in list(load_real(dataset).values())[8:]:
        shutil.copy(case.image, flat / f"{case.case}.nii.gz")
        shutil.copy(case.label, labels / f"{case.case}.nii.gz")
        shutil.copy(case.image, made / f"{case.case}_synthetic.nii.gz")  # only paired here, not read
    cases = load_real(flat, labels=str(labels / "*.nii.gz"))
    system = load_system("x", str(made))
    assert pair([system], cases) == sorted(cases)
    assert all(case.label.parent == labels for case in cases.values())


def test_several_folders_or_numbered_entries_are_samples(systems, dataset, tmp_path):
    for seed in (0, 1):
        noisy(tmp_path / f"seed{seed}", dataset, noise=0.1)
    assert {len(files) for files in load_system("x", str(tmp_path / "seed*")).volumes.values()} == {2}
    good = load_system("good", str(systems["good"]))
    assert all(f"_s{i}_" in path.name for files in good.volumes.values() for i, path in enumerate(files))


def test_a_synthetic_volume_without_its_real_image_is_named(dataset, systems, tmp_path):
    made = shutil.copytree(systems["poor"], tmp_path / "made")
    content = json.loads((made / "datalist.json").read_text())
    content["training"][0]["source_case"] = "nobody"
    (made / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"without a real image of the same case name.*\n  - x: nobody"):
        pair([load_system("x", str(made))], load_real(dataset))


def test_other_names_for_the_same_image_are_told_apart(dataset, tmp_path):
    content = json.loads((dataset / "datalist.json").read_text())
    entry = content["validation"][0]
    other = {"case": entry["case"], "image": str(dataset / content["training"][0]["image"])}
    (tmp_path / "seen.json").write_text(json.dumps({"training": [other]}))
    with pytest.raises(InputError, match="different images under one name"):
        load_real(dataset, train=tmp_path / "seen.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, affine: (data[:-1], affine), r"must share one grid, found \(48, 48, 48\) and \(47, 48, 48\)"),
        (lambda data, affine: (data, affine + np.eye(4)[:, [3, 0, 1, 2]] * 0.5), "affines that differ"),
        (lambda data, affine: (data * 255, affine), r"intensities from 0 to 255; synthetic volumes need \[0, 1\]"),
        (lambda data, affine: (np.where(data > 0.5, np.nan, data), affine), "NaN or infinite voxels"),
    ],
)
def test_a_volume_that_cannot_be_compared_is_refused_with_its_case(dataset, tmp_path, change, message):
    case = next(iter(load_real(dataset).values()))
    image, _ = case.read()
    data, affine = change(image.data, image.affine)
    write_image(tmp_path / "x.nii.gz", data.astype(np.float32), affine, "float32")
    with pytest.raises(InputError, match=rf"(?s){case.case}: .*{message}"):
        case.read_synthetic(tmp_path / "x.nii.gz", image)


def test_all_volumes_on_other_grids_are_listed_before_anything_is_measured(dataset, systems, tmp_path):
    made = shutil.copytree(systems["poor"], tmp_path / "made")
    for name in ("phantom_003", "phantom_009"):
        image, _ = load_real(dataset)[name].read()
        write_image(made / f"{name}_synthetic.nii.gz", image.data[1:], image.affine, "int16")
    with pytest.raises(InputError, match=r"(?s)x, phantom_003: .*\(47, 48, 48\).*x, phantom_009: "):
        evaluate({"x": str(made)}, dataset, tmp_path / "out", extractors=[], draws=20)
    assert not (tmp_path / "out").exists()


def test_padding_is_cut_away_before_anything_is_measured(dataset, tmp_path):
    case = next(iter(load_real(dataset).values()))
    image, label = case.read()
    affine = image.affine.copy()
    affine[:3, 3] -= image.affine[:3, :3] @ [4, 4, 4]
    write_image(tmp_path / "image.nii.gz", np.pad(image.data * 0.5 + 0.25, 4), affine, "float32")
    write_label(tmp_path / "label.nii.gz", np.pad(label, 4), affine)
    content = {"start": [4, 4, 4], "shape": list(SIZE)}
    padded = RealCase("x", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", content=content)
    read, mask = padded.read()
    assert np.allclose(read.data, image.data, atol=1e-6), "scaled by its own minimum and maximum, not by the zeros"
    assert np.array_equal(mask, label) and np.allclose(read.affine, image.affine)
    synthetic = padded.read_synthetic(tmp_path / "image.nii.gz", read)
    assert synthetic.data.shape == SIZE and float(synthetic.data.min()) == pytest.approx(0.25)


# ---- painting


def test_painting_fills_each_class_with_its_mean():
    label = np.array([[[0, 0, 1, 3]]])
    means = class_means(np.array([[[0.2, 0.4, 0.5, 0.9]]]), label, 4)
    assert means[[0, 1, 3]] == pytest.approx([0.3, 0.5, 0.9]) and math.isnan(means[2])
    assert paint(label, means).ravel() == pytest.approx([0.3, 0.3, 0.5, 0.9])


def test_each_case_counts_once_and_an_unknown_class_gets_the_mean():
    means = average_means([np.array([0.2, np.nan, 0.6]), np.array([0.4, np.nan])])
    assert means == pytest.approx([0.3, 0.45, 0.6])


def test_training_means_are_those_of_the_training_cases_alone(dataset):
    cases = load_real(dataset)
    means = []
    for case in cases.values():
        image, label = case.read()
        means += [class_means(image.data, label, 4)] if case.training else []
    assert collect.training_means(cases) == pytest.approx(np.mean(means, axis=0))
    assert collect.training_means({n: c for n, c in cases.items() if not c.training}) is None


# ---- draws


@pytest.mark.parametrize(("scored", "pool", "n"), [(16, 64, 16), (4, 6, 4), (6, 3, 2)])
def test_draws_of_other_cases_have_one_size_and_no_duplicates(scored, pool, n):
    ours, others = [f"a{i}" for i in range(scored)], [f"b{i}" for i in range(pool)]
    draws = make_draws(ours, others, n, 25, seed=0)
    assert all(len(set(d.scored)) == len(set(d.reference)) == n for d in draws)
    assert len({d.reference for d in draws}) > 1
    assert draws == make_draws(ours, others, n, 25, seed=0) != make_draws(ours, others, n, 25, seed=1)


def test_the_scored_cases_are_never_in_the_reference():
    pool = [f"a{i}" for i in range(64)]
    draws = make_draws(pool, pool, 16, 50, seed=3)
    assert all(not set(d.scored) & set(d.reference) for d in draws)
    assert len({case for d in draws for case in d.scored}) > 60, "every draw takes other scored cases"
    mixed = make_draws([*pool[:8], "x", "y"], pool, 5, 50, seed=3)
    assert all(not set(d.scored) & set(d.reference) for d in mixed)
    assert {"x", "y"} <= {case for d in mixed for case in d.scored}


def test_the_largest_n_is_what_can_be_drawn():
    names = [f"c{i}" for i in range(12)]
    for a, b in itertools.product(range(1, 12, 3), range(1, 12, 3)):
        for start in (0, 2, 5):
            scored, pool = names[:a], names[start : start + b]
            n = largest_n(scored, pool)
            if n >= 2:
                make_draws(scored, pool, n, 3, seed=0)
            with pytest.raises(InputError, match="2 or more synthetic cases"):
                make_draws(scored, pool, n + 1, 3, seed=0)


def test_systems_share_their_draws():
    rows = {c: np.random.default_rng(i).normal(size=(1, 3)) for i, c in enumerate("abcdefgh")}
    seen = []

    def metric(y_pred, y):
        seen.append((y_pred.tobytes(), y.tobytes()))
        return float(y_pred.mean() - y.mean())

    draws = make_draws(list("abcd"), list("efgh"), 2, 20, seed=0)
    numbers = []

    def features(case, sample):
        numbers.append(sample)
        return rows[case]

    values = over_draws({"x": lambda c, s: rows[c], "y": features}, lambda c, s: rows[c], draws, metric)
    assert numbers == [draw.sample for draw in draws for _ in draw.scored] and len(set(numbers)) == 20
    assert np.array_equal(values["x"], values["y"]) and seen[::2] == seen[1::2] and len(values["x"]) == 20


def test_the_interval_holds_95_percent():
    interval = Interval.of(np.arange(1001) / 1000)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.025, 0.975))


def test_rows_of_features_are_a_volume_or_the_slices_of_a_plane():
    slices = {"axial": np.ones((5, 2), np.float32)}
    both = [{"net": Features(np.full(3, i, np.float32), slices)} for i in range(2)]
    found = Collected({"all": ["a"]}, [], features={"x": {"a": both}})
    assert feature_rows(found, "x", "net", None)("a", 3).tolist() == [[1, 1, 1]], "sample 3 of two is the second"
    assert feature_rows(found, "x", "net", "axial")("a", 0).shape == (5, 2)


# ---- the conditional mean


def test_the_closed_form_is_the_fit_over_all_subsets():
    random = np.random.default_rng(0)
    real = random.random((4, 4, 4))
    samples = real + 0.1 + 0.3 * random.standard_normal((5, 4, 4, 4))

    def error(n):
        subsets = itertools.combinations(range(5), n)
        return np.mean([np.square(samples[list(chosen)].mean(axis=0) - real).mean() for chosen in subsets])

    points = [(1 / n, error(n)) for n in (1, 2, 4)]
    slope, intercept = np.polyfit(*zip(*points, strict=True), deg=1)
    assert conditional_mse(samples, real) == pytest.approx((intercept, slope), rel=1e-9)


def test_noise_does_not_count_against_the_conditional_mean():
    random = np.random.default_rng(0)
    real = random.random((24, 24, 24))
    samples = real + 0.1 + 0.3 * random.standard_normal((8, 24, 24, 24))
    a, b = conditional_mse(samples, real)
    assert a == pytest.approx(0.01, rel=0.1) and b == pytest.approx(0.09, rel=0.02)
    with pytest.raises(InputError, match="2 or more samples"):
        conditional_mse(samples[:1], real)


# ---- the whole


def test_both_groups_stand_apart_with_equal_n(results):
    assert {s.group for s in results.scores} == {"unseen", "training"}
    assert {s.n for s in results.scores if s.extractor} == {4}
    assert score(results, "training", "good", "psnr").n == 8 and score(results, "unseen", "good", "psnr").n == 4


def test_paired_metrics_are_those_of_the_volumes(results, dataset, systems):
    system, cases = load_system("poor", str(systems["poor"])), load_real(dataset)
    values = []
    for case in cases.values():
        if not case.training:
            real = scale_intensity(read_volume(case.image).data)
            made = read_volume(system.volumes[case.case][0]).data.astype(np.float32).clip(0, 1)
            values.append(float(psnr(torch.from_numpy(made)[None, None], torch.from_numpy(real)[None, None])))
    found = score(results, "unseen", "poor", "psnr")
    assert (found.value, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-5)


def test_painting_rows_are_in_every_paired_table(results):
    own, known = (score(results, "unseen", row, "psnr").value for row in (PAINTING_OWN, PAINTING_TRAINING))
    assert own > known
    for title in ("Similarity to the real image, unseen", "Similarity to the real image, label maps of training"):
        names = [row[0].text for row in table(results, title).rows]
        assert names[:2] == [PAINTING_TRAINING, PAINTING_OWN] and "good, conditional mean" in names


def test_the_pairwise_distance_is_that_of_all_pairs():
    samples = np.random.default_rng(0).random((4, 9, 8, 17)).astype(np.float32)
    pairs = [np.mean((samples[i] - samples[j]) ** 2) for i in range(4) for j in range(i)]
    assert pairwise_distance(samples) == pytest.approx(np.sqrt(np.mean(pairs)), rel=1e-5)
    with pytest.raises(InputError, match="needs 2 or more per label map, got 1"):
        pairwise_distance(samples[:1])


def test_noise_hardly_counts_in_the_distance_of_averages_and_brightness_does():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 24, 20, 16)) * 0.1
    brightness = np.broadcast_to(np.arange(4.0)[:, None, None, None] * 0.1, noise.shape)
    assert pairwise_distance(noise) == pytest.approx(0.1 * np.sqrt(2), rel=0.02)
    assert pairwise_distance(noise, block=8) < 0.01
    assert pairwise_distance(brightness, block=8) == pytest.approx(pairwise_distance(brightness), rel=1e-6)
    assert pairwise_distance(noise[:, :3, :2], block=8) > 0  # an axis shorter than a block


def test_samples_of_one_map_have_a_table_of_their_diversity(results):
    rows = [s for s in results.scores if s.metric == "distance"]
    assert {(s.group, s.row) for s in rows} == {(g, "good") for g in ("unseen", "training")}
    assert all(s.value > 0 for s in rows)
    assert "Diversity" in results.text()


def test_a_stochastic_system_has_a_row_for_its_conditional_mean(results):
    single, mean = score(results, "unseen", "good", "psnr"), score(results, "unseen", "good, conditional mean", "psnr")
    assert mean.value > single.value + 5, "its samples differ from the truth by noise alone"
    assert cell(results, "Similarity", "good, single", "PSNR (dB)").text.startswith(f"{single.value:.2f} ±")
    assert "4 per map" in table(results, "Similarity").rows[2][0].text


def test_distribution_metrics_have_floor_interval_and_order(results):
    floor, good, poor = (score(results, "unseen", row, "fid", "la_unet_judge") for row in (FLOOR, "good", "poor"))
    assert good.floor == poor.floor == floor.value > 0 and floor.draws == 20
    assert good.value < poor.value and good.low < good.value < good.high
    ratio = cell(results, "Distribution, la_unet_judge, unseen", "poor", "FID / floor A")
    assert ratio.value == pytest.approx(poor.value / floor.value)


def test_a_network_of_the_systems_own_loss_is_marked(results):
    assert cell(results, "Distribution, la_unet_judge, unseen", "poor", "FID").text.endswith("†")
    assert "†" not in cell(results, "Distribution, la_unet_judge, unseen", "good", "FID").text
    assert any("own loss" in note for note in table(results, "Distribution, la_unet_judge, unseen").notes)


def test_what_is_not_there_is_a_dash_with_its_reason(results):
    for title, column in (("Distribution, medicalnet_resnet34, unseen", "FID"), ("Table 1, unseen", "MMD")):
        assert cell(results, title, "good", column).text == "—"
        assert any("none.pth" in note for note in table(results, title).notes)
    assert cell(results, "Similarity to the real image, unseen", "good", "LPIPS").text == "—"


def test_table_1_has_the_papers_columns(results):
    headings = [column.heading for column in table(results, "Table 1, unseen").columns]
    assert headings == ["Model", "FID ↓", "MMD ↓", "MS-SSIM ↑", "PSNR (dB) ↑"]


def test_table_2_of_med_lsdm_has_the_judges_dice_of_scans_and_of_both_kinds_of_maps(results):
    found = table(results, "Table 2 of Med-LSDM")
    rows = {row[0].text: row for row in found.rows}
    wanted = {
        "real scans, training set": ("training", FLOOR),
        "real scans, unseen": ("unseen", FLOOR),
        "poor, maps: unseen": ("unseen", "poor"),
        "poor, maps: training set": ("training", "poor"),
    }
    for name, (group, system) in wanted.items():
        assert rows[name][1].value == score(results, group, system, "dice").value
    published = [row for row in found.rows if row[0].text.startswith("published")]
    assert [row[2].text for row in published] == ["0.750", "0.715", "0.602", "0.710"]
    assert all(row[1].text == "—" for row in published)


def test_table_3_of_med_lsdm_stands_beside_its_published_figures_and_what_is_wrong_in_them(results):
    found = table(results, "Table 3 of Med-LSDM, unseen")
    headings = [column.title for column in found.columns]
    assert headings == ["method", "data", "FID", "3D-FID", "LPIPS", "SSIM", "RMSE", "PSNR (dB)"]
    poor = next(row for row in found.rows if row[0].text == "poor")
    assert poor[5].value == score(results, "unseen", "poor", "ssim").value
    assert poor[7].value == score(results, "unseen", "poor", "psnr").value
    assert [cell.text for cell in poor[2:5]] == ["—"] * 3
    assert [cell.text for cell in found.rows[-1]][:4] == ["published: Med-LSDM", "Duke Breast", "193.620", "0.0054"]
    said = " ".join(found.notes)
    assert "no targets" in said and "3D-FID: — because" in said and "none.pth" in said and "LPIPS: — because" in said
    assert "FID: — because efficientnet_lite0 was not asked for" in said


def test_differences_are_paired(results):
    found = {(d.first, d.second, d.metric): d for d in results.differences if d.group == "unseen"}
    assert found["good", "poor", "psnr"].value == pytest.approx(
        score(results, "unseen", "good", "psnr").value - score(results, "unseen", "poor", "psnr").value
    )
    assert ("poor", PAINTING_TRAINING, "ms_ssim") in found and 0 < found["good", "poor", "psnr"].p <= 1
    assert found["good", PAINTING_TRAINING, "fid"].high < 0
    assert ("good, conditional mean", PAINTING_TRAINING, "psnr") not in found, "no case has one"
    better = found["good, conditional mean", PAINTING_TRAINING, "mse"].value
    assert better < found["good", PAINTING_TRAINING, "mse"].value < 0


def test_what_a_system_was_trained_with_is_not_compared(results):
    assert not [d for d in results.differences if "poor" in (d.first, d.second) and d.metric in ("fid", "kid", "dice")]
    assert cell(results, "Faithfulness, unseen", "poor", "Dice").text.endswith("†")
    assert cell(results, "Differences, unseen", "FID, la_unet_judge", "poor − painting, training means").text == "—"
    assert score(results, "unseen", FLOOR, "dice").sha256 in table(results, "Faithfulness, unseen").notes[1]


def test_the_worst_case_is_shown_first(results, dataset, systems):
    cases = load_real(dataset)
    found = Collected({"unseen": [name for name, c in cases.items() if not c.training]}, [
        load_system("poor", str(systems["poor"]))])  # fmt: skip
    order = {name: 20.0 - i for i, name in enumerate(found.groups["unseen"])}
    found.values["poor"] = {name: [{"psnr": value}] for name, value in order.items()}
    shown = [picture.case for picture in worst_pictures(found, cases, 2)]
    assert shown == sorted(order, key=order.__getitem__)[:2]


class Bright(torch.nn.Module):
    def forward(self, x):
        return torch.cat([torch.zeros_like(x), x - 0.5], dim=1)


def test_what_the_judge_finds_is_held_against_the_same_class_of_the_map(dataset):
    image, label = next(iter(load_real(dataset).values())).read()
    drawn = Volume((label == 1).astype(np.float32), image.affine)
    values = Measurer([], Panel(FrozenSegmenter(Bright())), targets={1: 1}).faithfulness("c", [], drawn, label)
    assert (values["dice"], values["jaccard"], values["hd95"], values["asd"]) == (1, 1, 0, 0)


def test_faithfulness_is_held_against_the_real_images(results):
    names = [row[0].text for row in table(results, "Faithfulness, unseen").rows]
    assert names[0] == FLOOR and 0 <= score(results, "unseen", FLOOR, "dice").value <= 1


def test_noise_shows_between_slices(results):
    ratios = [score(results, "unseen", row, "slices_axial").value for row in (PAINTING_OWN, "good")]
    assert ratios[0] < 1 < ratios[1]


def test_all_files_say_the_same(results):
    found = score(results, "unseen", "good", "fid", "la_unet_judge")
    content = json.loads((results.output / "evaluation.json").read_text())
    rows = list(csv.DictReader((results.output / "evaluation.csv").open()))
    same = [s for s in content["scores"] if (s["group"], s["row"], s["metric"]) == ("unseen", "good", "fid")]
    line = [r for r in rows if (r["group"], r["row"], r["metric"]) == ("unseen", "good", "fid")]
    assert same[0]["value"] == float(line[0]["value"]) == found.value
    assert content["extractors"][0]["sha256"] == line[0]["sha256"] == found.sha256
    assert "medicalnet_resnet34" in content["unavailable"] and content["systems"][1]["weights_sha256"] == "1" * 64
    assert f"{found.value:.4g}"[:4] in (results.output / "evaluation.md").read_text(encoding="utf-8")
    cases = list(csv.DictReader((results.output / "cases.csv").open()))
    rows = [(row["system"], bool(row["psnr"])) for row in cases]
    assert len(rows) == 5 * 12 and all(measured != (system == FLOOR) for system, measured in rows)
    assert (
        "<html" in (results.output / "evaluation.html").read_text(encoding="utf-8")
        and "la_unet_judge" in results.text()
    )


def test_page_and_markdown_open_with_sentences_and_pictures(results):
    text = (results.output / "evaluation.md").read_text(encoding="utf-8")
    page = (results.output / "evaluation.html").read_text(encoding="utf-8")
    start = text[: text.index("### ")]
    assert text.startswith(
        "# Evaluation of synthetic volumes\n\n2 systems on 4 cases of 4 patients: unseen label maps."
    )
    assert "The judge finds the structures of the label map in good with Dice" in start
    assert "FID, la_unet_judge): good" in start and "poor is" not in start  # the judge was in its loss
    assert "in poor with Dice" in start and "it was in that system's loss, so that this says nothing" in start
    for name in ("summary_cases.png", "summary_scores.png"):
        assert is_marked_png(results.output / name) and f"]({name})" in start
    opening = page[page.index('class="opening"') :]
    assert opening.index("data:image/png") < opening.index("<h2")
    assert page.count('<figure><img src="data:image/png') == 2


def test_a_second_run_measures_nothing_again(results, dataset, systems, judge_file):
    kept = {path: path.stat().st_mtime_ns for path in (results.output / "measured").iterdir()}
    victim = next(iter(kept))
    content = victim.read_bytes()
    victim.write_bytes(content[:50])  # a damaged one is measured again
    judge = load_segmenter(subvoxel_swin(), judge_file, use="faithfulness", name="la_unet_judge")
    again = evaluate(
        {name: str(path) for name, path in systems.items()}, dataset, results.output, judge=judge, draws=20,
        extractors=["la_unet_judge"], weights={"la_unet_judge": judge_file},
    )  # fmt: skip
    changed = [path for path, time in kept.items() if path.stat().st_mtime_ns != time]
    assert changed == [victim] and victim.read_bytes()[:50] == content[:50]
    for before in (s for s in results.scores if s.metric in ("psnr", "fid", "dice")):
        assert before in again.scores


def test_memory_does_not_grow_with_the_cases(dataset, systems, tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    most = 0
    read = RealCase.read

    def watched(self):
        nonlocal most
        image, label = read(self)
        alive.append(weakref.ref(image.data))
        most = max(most, sum(ref() is not None for ref in alive))
        return image, label

    monkeypatch.setattr(RealCase, "read", watched)
    evaluate({"poor": str(systems["poor"])}, dataset, tmp_path, extractors=[], draws=20)
    assert len(alive) > 20 and most <= 3


def test_without_labels_or_training_cases_the_rest_is_still_there(dataset, systems, tmp_path, caplog):
    flat = tmp_path / "real"
    flat.mkdir()
    for case in list(load_real(dataset).values())[8:]:
        shutil.copy(case.image, flat / f"{case.case}.nii.gz")
    made = noisy(tmp_path / "made", dataset, noise=0.1)
    for path in made.glob("*.json"):
        if path.name != "datalist.json":
            path.unlink()
    found = evaluate({"x": str(made)}, flat, tmp_path / "out", extractors=[], draws=20)
    assert {s.group for s in found.scores} == {"all"} and score(found, "all", "x", "psnr").n == 4
    assert "give --train-real" in caplog.text and not any(s.row == PAINTING_OWN for s in found.scores)


def test_one_case_has_no_distribution_but_everything_else(dataset, systems, judge_file, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    case = list(load_real(dataset).values())[-1]
    image, _ = case.read()
    write_image(made / f"{case.case}_synthetic.nii.gz", image.data, image.affine, "float32")
    found = evaluate({"x": str(made)}, dataset, tmp_path / "out", extractors=["la_unet_judge"], draws=20,
                     weights={"la_unet_judge": judge_file})  # fmt: skip
    note = table(found, "Distribution, la_unet_judge").notes[0]
    assert "need 2 or more synthetic cases" in note and math.isinf(score(found, "unseen", "x", "psnr").value)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["scores"]


def test_a_volume_too_small_for_ms_ssim_has_a_dash_there(tiny_dataset, tmp_path):
    made = noisy_tiny(tmp_path / "made", tiny_dataset)
    found = evaluate({"x": str(made)}, tiny_dataset, tmp_path / "out", extractors=[], draws=20)
    row = next(r for r in table(found, "Similarity").rows if r[0].text == "x")
    shown = dict(zip([c.title for c in table(found, "Similarity").columns], [c.text for c in row], strict=True))
    assert shown["MS-SSIM"] == "—" and shown["SSIM"] != "—" != shown["PSNR (dB)"]


def noisy_tiny(folder, dataset):
    folder.mkdir()
    for case in load_real(dataset).values():
        image, _ = case.read()
        write_image(folder / f"{case.case}_synthetic.nii.gz", image.data * 0.9, image.affine, "float32")
    return folder


@pytest.mark.parametrize("options", [{"draws": 5}, {"n": 40}])
def test_settings_that_cannot_be_are_refused(dataset, systems, judge_file, tmp_path, options):
    with pytest.raises(InputError, match=r"20 or more|2 or more synthetic cases"):
        evaluate({"x": str(systems["poor"])}, dataset, tmp_path, extractors=["la_unet_judge"],
                 weights={"la_unet_judge": judge_file}, **options)  # fmt: skip


def test_several_classes_of_a_judge_are_scored_each_and_on_average(dataset, judge_file):
    case = next(iter(load_real(dataset).values()))
    image, label = case.read()
    judge = load_segmenter(subvoxel_swin(), judge_file, use="faithfulness")
    values = Measurer([], Panel(judge), targets={1: 1, 0: 0}).faithfulness("c", [], image, label)
    assert values["dice"] == pytest.approx((values["dice of class 0"] + values["dice of class 1"]) / 2)
    assert "dice of class 1" not in Measurer([], Panel(judge), targets={1: 1}).faithfulness("c", [], image, label)


def test_what_was_measured_is_found_by_all_that_it_depends_on(tmp_path):
    store, calls = MeasurementStore(tmp_path), []

    def compute():
        calls.append(1)
        return {"x": np.arange(3)}

    for key in (["a", 1], ["a", 1], ["a", 2]):
        assert np.array_equal(store.recall(key, compute)["x"], np.arange(3))
    assert len(calls) == 2 and not list(tmp_path.glob(".*"))


# ---- the command


def test_the_command_compares_several_systems(dataset, systems, tmp_path, capsys):
    arguments = ["evaluate", "--synthetic", f"good={systems['good']}", f"poor={systems['poor']}", "--real",
                 str(dataset), "--output", str(tmp_path), "--extractors", "medicalnet_resnet50", "--weights",
                 f"medicalnet_resnet50={tmp_path / 'none.pth'}", "--draws", "20", "--pictures", "1"]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "good, single samples (4 per map)" in shown and "poor" in shown and "evaluation.html" in shown
    assert (tmp_path / "evaluation.html").is_file()


def test_the_command_says_what_is_wrong(dataset, tmp_path, capsys):
    assert main(["evaluate", "--synthetic", str(tmp_path / "none"), "--real", str(dataset)]) == 1
    assert "no synthetic volumes found" in capsys.readouterr().err
    assert main(["evaluate", "--synthetic", "a=", "--real", str(dataset)]) == 1
    assert "--synthetic takes NAME=VALUE" in capsys.readouterr().err


def test_a_perfect_copy_has_perfect_values(dataset):
    image, _ = next(iter(load_real(dataset).values())).read()
    values = Measurer([], targets={1: 1}).paired([], image, image)
    assert math.isinf(values["psnr"]) and values["ssim"] == pytest.approx(1) and values["slices_axial"] == 1


# ---- what must not pass for something else


def listed(path, entries, split="training"):
    path.write_text(json.dumps({split: entries}))
    return path


def entries_of(dataset, *, label=True):
    keys = ("image", "label") if label else ("image",)
    return [{"case": c.case} | {k: str(getattr(c, k)) for k in keys} for c in load_real(dataset).values()]


def test_a_training_list_adds_to_the_split_and_takes_no_label_away(dataset, tmp_path):
    some = listed(tmp_path / "some.json", entries_of(dataset, label=False)[:3])
    cases = load_real(dataset, train=some)
    assert sum(case.training for case in cases.values()) == 8 and all(case.label for case in cases.values())


def test_one_image_under_two_names_and_synthetic_images_are_not_real_cases(dataset, systems, tmp_path):
    double = entries_of(dataset)[:2]
    with pytest.raises(InputError, match="duplicate"):
        load_real(listed(tmp_path / "double.json", [*double, double[0] | {"case": "again"}]))
    made = [entry | {"synthetic": True} for entry in double]
    with pytest.raises(InputError, match="lists synthetic volumes as real ones"):
        load_real(listed(tmp_path / "made.json", made))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, label: (image * 0, label), "constant"),
        (lambda image, label: (np.where(image > 0.5, np.nan, image), label), "NaN"),
        (lambda image, label: (image, label - 1.0), "label"),
        (lambda image, label: (image, label * 0.4), "label"),
    ],
)
def test_bad_real_files_are_listed_before_anything_is_measured(dataset, tmp_path, change, message):
    case = next(iter(load_real(dataset).values()))
    image, label = case.read()
    for name, data in zip(("image", "label"), change(image.data, label), strict=True):
        write_image(tmp_path / f"{name}.nii.gz", data.astype(np.float32), image.affine, "float32")
    entry = {"case": "odd", "image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    with pytest.raises(InputError, match=rf"(?s)odd.*{message}"):
        load_real(listed(tmp_path / "d.json", [entry]))


def test_volumes_of_two_weights_or_given_twice_are_not_one_system(dataset, tmp_path):
    for name in "ab":
        noisy(tmp_path / name, dataset, noise=0.1, record={"weights_sha256": name * 64})
    with pytest.raises(InputError, match=r"2 different weights(?s:.*)synthetic\.nii\.gz"):
        load_system("x", [str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(InputError, match="given twice"):
        load_system("x", [str(tmp_path / "a"), str(tmp_path / "a")])


@pytest.mark.parametrize("content", ["{", "[1]", '{"sample": "one", "source_case": "p"}'])
def test_a_record_that_cannot_be_read_is_named(dataset, tmp_path, content):
    image, _ = next(iter(load_real(dataset).values())).read()
    write_image(tmp_path / "p_synthetic.nii.gz", image.data, image.affine, "int16")
    (tmp_path / "p_synthetic.json").write_text(content)
    with pytest.raises(InputError, match="p_synthetic"):
        load_system("x", str(tmp_path))


def test_samples_without_a_datalist_are_told_by_their_records_and_links_by_their_names(systems, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for path in systems["good"].glob("phantom_*"):
        target = shutil.copy(path, tmp_path / f"blob_{path.name}")
        (made / path.name).symlink_to(target)
    (made / "._hidden.nii.gz").write_bytes(b"")
    system = load_system("good", str(made))
    assert {len(files) for files in system.volumes.values()} == {4} and len(system.volumes) == 12
    one = load_system("x", str(made / "phantom_000_s0*.nii.gz"))
    assert list(one.volumes) == ["phantom_000"]


def test_samples_are_in_the_order_of_their_numbers(dataset, tmp_path):
    noisy(tmp_path / "made", dataset, noise=0.1, samples=11)
    (tmp_path / "made" / "datalist.json").unlink()
    for files in load_system("x", str(tmp_path / "made")).volumes.values():
        assert [path.name.split("_s")[1].split("_")[0] for path in files] == [str(i) for i in range(11)]


def test_what_the_record_says_goes_before_the_split(dataset, tmp_path, caplog):
    seen = noisy(tmp_path / "seen", dataset, noise=0.1, splits=("training",), record={"trained_on": True})
    new = noisy(tmp_path / "new", dataset, noise=0.1, splits=("training",), record={"trained_on": False})
    cases, systems = load_real(dataset), {n: load_system(n, str(p)) for n, p in (("seen", seen), ("new", new))}
    names = sorted(systems["seen"].volumes)
    assert set(groups.group_cases(names, cases, [systems["seen"]])) == {"training"}
    assert (
        set(groups.group_cases(names, cases, [systems["new"]])) == {"unseen"} and "not by the datalist's" in caplog.text
    )
    assert set(groups.group_cases(names, cases, list(systems.values()))) == {"mixed"}
    unknown = {name: replace(case, training=None) for name, case in cases.items()}
    silent = replace(systems["new"], records={})
    for those in ([silent], [silent, systems["new"]]):
        assert set(groups.group_cases(names, unknown, those)) == {"all"}


def test_a_stray_case_does_not_take_the_other_groups_numbers_away(dataset, systems, judge_file, tmp_path):
    stray = next(case.case for case in load_real(dataset).values() if case.training)
    content = json.loads((systems["poor"] / "datalist.json").read_text())
    keep = [e for e in content["training"] if e["source_case"] == stray or e["source_case"] > "phantom_007"]
    made = shutil.copytree(systems["poor"], tmp_path / "made")
    (made / "datalist.json").write_text(json.dumps({"training": keep}))
    found = evaluate({"x": str(made)}, dataset, tmp_path / "out", extractors=["la_unet_judge"], draws=20,
                     weights={"la_unet_judge": judge_file})  # fmt: skip
    assert score(found, "unseen", "x", "fid", "la_unet_judge").n == 4
    assert "found 1 and" in table(found, "Distribution, la_unet_judge, label maps of training").notes[0]


def test_other_label_maps_than_the_volumes_own_are_told(dataset, tmp_path, caplog):
    made = noisy(tmp_path / "made", dataset, noise=0.1, record={"label_sha256": "0" * 64})
    found = evaluate({"x": str(made)}, dataset, tmp_path / "out", extractors=[], draws=20)
    assert "were made from other label maps" in caplog.text and not found.differences
    assert any("x was made from other label maps" in note for note in table(found, "Similarity").notes)


def test_label_maps_of_other_names_are_no_label_maps(dataset, systems, tmp_path, caplog):
    cases = list(load_real(dataset).values())
    for folder, names in (("none", ["a", "b"]), ("some", [cases[0].case, "b"])):
        (tmp_path / folder).mkdir()
        for name, case in zip(names, cases, strict=False):
            shutil.copy(case.label, tmp_path / folder / f"{name}.nii.gz")
    with pytest.raises(InputError, match="no label map has the name of a case; they are called none_a, none_b"):
        load_real(dataset, labels=str(tmp_path / "none"))
    assert sum(case.label is not None for case in load_real(dataset, labels=str(tmp_path / "some")).values()) == 1
    assert "has no label map of 11 of 12 cases" in caplog.text


def test_a_mask_that_one_sample_misses_costs_that_sample_alone():
    found = Collected({"all": ["a", "b"]}, [])
    found.values["x"] = {"a": [{"hd95": 3.0}, {"hd95": math.inf}], "b": [{"hd95": math.inf}]}
    (only,) = paired_scores(found, ["hd95"], ["x"])
    assert (only.value, only.n, only.sd) == (3.0, 1, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "nowhere/judge.pt"], "nowhere/judge.pt: no such file"),
        (["--judge", "x.pt", "--judge-channels", "4,8"], "--judge-channels goes with --judge-classes"),
        (["--judge-spacing", "4,4,2.5"], "--judge-spacing goes with --judge, the file of weights"),
        (["--feature-spacing", "0"], "--feature-spacing must be above 0 and at most 10 mm, got 0"),
        (["--feature-spacing", "1e999"], "--feature-spacing must be above 0 and at most 10 mm, got inf"),
        (["--in-loss", "someone=x"], "no such name 'someone'"),
        (["--weights", "medicalnet=x"], "no such name 'medicalnet'"),
        (["--seed", "-1"], "--seed must be a whole number from 0"),
        (["--draws", "3"], "--draws must be 20 or more"),
        (["--pictures", "-1"], "--pictures must be 0 or more"),
        (["--device", "cuda:7"], "no GPU"),
    ],
)
def test_settings_that_would_be_lost_are_refused(dataset, systems, capsys, arguments, message):
    assert main(["evaluate", "--synthetic", str(systems["poor"]), "--real", str(dataset), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_option_given_twice_goes_on():
    assert _join_lists(["evaluate", "--synthetic", "a=x", "--real", "d", "--synthetic=b=y", "c=z"]) == [
        "evaluate", "--real", "d", "--synthetic", "['a=x', 'b=y', 'c=z']",
    ]  # fmt: skip


def test_no_cell_becomes_a_formula():
    text = Table("t", [Column("a"), Column("b")], [[Cell("=1+1"), Cell("-1", -1.0)]]).csv()
    assert text.splitlines()[1] == "'=1+1,-1.0"


def test_the_judges_own_encoder_gives_its_features_without_reading_its_file_again(dataset, judge_file):
    judge = load_segmenter(subvoxel_swin(), judge_file, use="faithfulness", name="la_unet_judge")
    (own,), absent = open_extractors(["la_unet_judge"], judge=judge)
    (read,), _ = open_extractors(["la_unet_judge"], {"la_unet_judge": judge_file})
    image = measure.tensor(next(iter(load_real(dataset).values())).read()[0])
    assert absent == {} and own.about() == read.about()
    assert np.array_equal(own.describe(image).volume, read.describe(image).volume)
    other = FrozenSegmenter(residual_unet(2, channels=(4, 8)), name="la_unet_judge")
    assert open_extractors(["la_unet_judge"], judge=other)[0] == [], "another network, whatever it is called"


def test_a_judge_of_other_anatomy_is_off_and_the_tables_say_why(dataset, systems, tmp_path):
    judge = FrozenSegmenter(subvoxel_swin(), name="la_unet_judge", classes=["liver"])
    found = evaluate(str(systems["poor"]), dataset, tmp_path, name="alone", judge=judge, draws=20,
                     extractors=["la_unet_judge"])  # fmt: skip
    assert {s.row for s in found.scores} >= {"alone"} and not any(s.metric in ("dice", "fid") for s in found.scores)
    assert found.text().count("la_unet_judge segments liver, which these label maps do not have") >= 2


def test_a_judge_that_knows_some_of_the_classes_says_which_it_does_not(caplog):
    judge = FrozenSegmenter(torch.nn.Identity(), name="organs", classes=["larynx", "left parotid", "mandible"])
    names = {0: "background", 3: "Left_Parotid", 5: "Larynx"}
    assert targets_of(judge, names) == {1: 5, 2: 3} and "mandible is not judged" in caplog.text
    assert targets_of(judge, names, [7, 8]) == {1: 7, 2: 8} and targets_of(judge, names, {2: 4}) == {2: 4}
    assert Panel(judge).facts() == JudgeFacts("organs", "", (1.0, 1.0, 1.0)) and Panel().facts() is None


def test_the_command_takes_a_judge_of_several_classes(dataset, tmp_path, capsys):
    made = noisy(tmp_path / "good", dataset, noise=0.02)  # of the unseen cases
    torch.manual_seed(0)
    weights = tmp_path / "organs.pt"
    torch.save(residual_unet(4, channels=(4, 8)).state_dict(), weights)
    command = ["evaluate", "--synthetic", f"good={made}", "--real", str(dataset), "--judge", str(weights)]
    command += ["--judge-classes", "2,3,1", "--judge-spacing", "3,3,3", "--judge-channels", "4,8"]
    command += ["--extractors", "medicalnet_resnet50", "--weights", f"medicalnet_resnet50={tmp_path / 'none.pth'}"]
    command += ["--draws", "20", "--pictures", "0", "--output", str(tmp_path / "report")]
    assert main(command) == 0
    text = (tmp_path / "report" / "evaluation.md").read_text(encoding="utf-8")
    assert (
        all(f"Dice of {name}" in text for name in ("wall", "tissue 1", "endo"))
        and "judge: organs, at 3 × 3 × 3 mm" in text
    )
    # its first class is held against the map's class 2
    judge = load_segmenter(
        residual_unet(4, channels=(4, 8)), weights, use="faithfulness", spacing=(3.0,) * 3, largest_component=[]
    )
    case = next(iter(load_real(dataset).values()))
    image, label = case.read()
    found = judge.segment(measure.tensor(image))[0].numpy()
    values = Measurer([], Panel(judge), targets={1: 2, 2: 3, 3: 1}).faithfulness("c", [], image, label)
    overlap = 2 * np.count_nonzero((found == 1) & (label == 2))
    wanted = overlap / (np.count_nonzero(found == 1) + np.count_nonzero(label == 2))
    assert values["dice of class 2"] == pytest.approx(wanted, abs=1e-6)
    for wrong, message in (
        (["--judge-channels", "8,16"], "organs.pt: no residual U-Net of 3 classes and background with the widths 8,16"),
        (["--judge-channels", "8"], "--judge-channels must be two or more widths"),
        (["--judge-spacing", "3"], "--judge-spacing must be three lengths in mm"),
    ):
        assert main([*command[:7], "--judge-classes", "2,3,1", *wrong]) == 1
        assert message in capsys.readouterr().err
    assert main([*command[:5], "--judge-classes", "1"]) == 1
    assert "--judge-classes goes with --judge" in capsys.readouterr().err


def test_the_largest_component_is_kept_of_the_classes_that_are_named(dataset):
    class Bright(torch.nn.Module):
        def forward(self, image):
            return torch.cat([0.5 - image, image - 0.5], dim=1)

    volume = torch.zeros(1, 12, 12, 12)
    volume[0, 1:3, 1:3, 1:3], volume[0, 6:10, 6:10, 6:10] = 1.0, 1.0
    for largest, voxels in (([1], 64), ([], 72)):
        judge = FrozenSegmenter(Bright(), largest_component=largest)
        assert int((judge.segment(MetaTensor(volume, affine=torch.eye(4))) == 1).sum()) == voxels


def test_slices_are_seen_at_the_spacing_that_is_asked_for(dataset, systems, tmp_path):
    command = ["evaluate", "--synthetic", f"good={systems['good']}", "--real", str(dataset), "--draws", "20"]
    command += ["--extractors", "efficientnet_lite0", "--feature-spacing", "2", "--pictures", "0"]
    assert main([*command, "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "evaluation.md").read_text(encoding="utf-8")
    assert "input 2 × 2 × 2 mm" in text and "slice step mm 8, pixel mm 1.0" in text
