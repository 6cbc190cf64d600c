"""Scores per case as segmenters write them."""

from __future__ import annotations

import json
import math

import pytest
from semsynth.errors import InputError
from semsynth.study import read_patients, read_scores
from semsynth.study.scores import better


def test_the_folder_of_la_unets_evaluation_is_read(tmp_path):
    (tmp_path / "dice_raw.csv").write_text("filename,class0,mean\nA1,0.9,0.9\nB2.5,0.5,0.5\n")
    (tmp_path / "hd95_mm_raw.csv").write_text("filename,class0,mean\nA1,3.5,3.5\nB2.5,inf,inf\n")
    (tmp_path / "metrics.csv").write_text("dice,0.7\n")
    scores = read_scores(tmp_path)
    assert scores.values == {"dice": {"A1": 0.9, "B2.5": 0.5}, "hd95_mm": {"A1": 3.5, "B2.5": math.inf}}


def test_several_classes_are_their_mean_and_each_of_them(tmp_path):
    (tmp_path / "dice_raw.csv").write_text("filename,wall,class1,mean\n/data/A1/lge.nii.gz,0.9,0.7,0.8\n")
    scores = read_scores(tmp_path)
    assert scores.values == {"dice": {"A1": 0.8}}, "the case is called as in a datalist"
    assert scores.classes == {"dice": {"wall": {"A1": 0.9}, "class1": {"A1": 0.7}}}


def test_two_files_of_one_metric_are_refused(tmp_path):
    for name in ("iou", "jaccard"):
        (tmp_path / f"{name}_raw.csv").write_text("filename,class0,mean\nA1,0.9,0.9\n")
    with pytest.raises(InputError, match="another file of the folder is the metric 'jaccard'"):
        read_scores(tmp_path)


def _summary(folder, cases):
    """nnU-Net v2's summary.json, with its counts of voxels."""
    listed = [
        {
            "metrics": {label: {"Dice": d, "FN": 3, "FP": 2, "IoU": d / (2 - d), "TN": 90, "TP": 5, "n_pred": 7,
                                "n_ref": 8} for label, d in dice.items()},
            "prediction_file": f"/nnUNet_results/fold_0/validation/{case}.nii.gz",
            "reference_file": f"/nnUNet_preprocessed/gt_segmentations/{case}.nii.gz",
        }
        for case, dice in cases.items()
    ]  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.5}, "metric_per_case": listed}))


def test_nnu_nets_summary_is_read_as_file_or_folder(tmp_path):
    _summary(tmp_path, {"la_001": {"1": 0.8}, "la_002": {"1": 0.5}})
    for source in (tmp_path, tmp_path / "summary.json"):
        assert read_scores(source).values == {
            "dice": {"la_001": 0.8, "la_002": 0.5},
            "jaccard": {"la_001": pytest.approx(2 / 3), "la_002": pytest.approx(1 / 3)},
        }


def test_background_and_classes_that_nnu_net_finds_nowhere_count_in_no_mean(tmp_path):
    missing = {"0": 0.99, "1": 0.8, "(1, 2)": math.nan}
    _summary(tmp_path, {"la_001": missing, "la_002": {"0": 0.99, "1": 0.5, "(1, 2)": 0.7}})
    scores = read_scores(tmp_path)
    assert scores.values["dice"] == {"la_001": 0.8, "la_002": pytest.approx(0.6)}
    assert list(scores.classes["dice"]) == ["label 1", "label (1, 2)"]
    assert math.isnan(scores.classes["dice"]["label (1, 2)"]["la_001"])


@pytest.mark.parametrize(
    "text",
    [
        "case,Dice,HD95_mm\nP1,0.9,3.5\nP2,0.8,\n",
        "\ufeffcase;Dice;HD95 mm\r\nP1;0,9;3,5\r\nP2;0,8;NA\r\n",
        "case\tDSC\thd95 (mm)\nP1\t0.9\t3.5\nP2\t0.8\t-\n",
        '"case","Dice","HD95_mm",\n/data/P1.nii.gz,0.9,3.5,\n\nP2.nrrd,0.8,nan,\n',
    ],
)
def test_a_table_of_any_kind_is_read(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text, encoding="utf-8", newline="")
    values = read_scores(tmp_path / "scores.csv").values
    assert values.keys() == {"dice", "hd95_mm"} and values["dice"] == {"P1": 0.9, "P2": 0.8}
    assert values["hd95_mm"]["P1"] == 3.5 and math.isnan(values["hd95_mm"]["P2"])


def test_a_name_with_dots_and_no_file_keeps_them(tmp_path):
    (tmp_path / "a.csv").write_text("case,dice\n1.3.6.1,0.9\n")
    assert read_scores(tmp_path / "a.csv").values["dice"] == {"1.3.6.1": 0.9}


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("dice", "higher"), ("dice label 1", "higher"), ("hd95_mm", "lower"), ("assd", "lower"), ("dice_loss", ""),
     ("dice_std", ""), ("rve", ""), ("volume_ml", "")],
)  # fmt: skip
def test_only_metrics_that_are_known_have_a_direction(metric, direction):
    assert better(metric) == direction


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "case,dice\nP1,0.9\nP1,0.8\n", "the case 'P1' appears twice"),
        ("a.csv", "case,dice\nP1,high\n", "P1: dice needs to be a number, found 'high'"),
        ("a.csv", "case,hd95\nP1,2e9\n", "hd95 is 2e[+]09, and no score is above"),
        ("a.csv", "case,dice\nP1,90.5\n", r"dice is 90.5 and needs to lie in \[0, 1\]; divide per cent by 100"),
        ("a.csv", "case,dice\n\nP1,0.9,0.8\n", "line 3: has 3 columns, the headings are 2"),
        ("a.csv", "case,dice\nP1,0.9\nMean,0.9\n", "line 3: 'Mean' is no case's name"),
        ("a.csv", "case,dice\n,0.9\n", "line 2: '' is no case's name"),
        ("a.csv", "case,Dice,dice\nP1,1,1\n", "two columns are the metric 'dice'"),
        ("a.csv", "case dice\nP1 1\n", "found 2 lines and 1 columns"),
        ("a.csv", "", "found 0 lines and 0 columns"),
        ("a_raw.csv", "filename,class0\nP1,1\n", "needs a column 'mean', found class0"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "needs a list 'metric_per_case'"),
        ("a.json", '{"metric_per_case": [3]}', r"metric_per_case\[0\] needs 'prediction_file' and 'metrics'"),
        ("a.json", '{"metric_per_case": [{"prediction_file": "a", "metrics": {"1": {"TP": 3}}}]}', "neither Dice nor"),
        ("nothing.txt", "", "holds neither"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path if name in ("a_raw.csv", "nothing.txt") else tmp_path / name)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file; give the folder"):
        read_scores(tmp_path / "nowhere.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="is no text"):
        read_scores(tmp_path / "picture.csv")


def test_patients_are_those_that_entries_state_or_the_pattern_finds(tmp_path):
    entries = {
        "training": [{"image": "x/P1_ses-1.nii.gz", "case": "P1_a"}],
        "testing": [{"image": "y.nii.gz", "case": "other_b", "patient": "seven"}],
        "patient_regex": r"([^_]+)_",
    }
    (tmp_path / "datalist.json").write_text(json.dumps(entries))
    assert read_patients(tmp_path) == {"P1_a": "P1", "other_b": "seven"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [{"image": "a.nii.gz", "case": "A"}]}))
    assert read_patients(tmp_path / "datalist.json") == {}
    with pytest.raises(InputError, match="is no datalist"):
        read_patients(tmp_path / "nowhere")
    (tmp_path / "datalist.json").write_text(json.dumps(entries | {"patient_regex": "(Q.)_"}))
    with pytest.raises(InputError, match=r"datalist.json: its patient_regex: .*does not match the case name 'P1_a'"):
        read_patients(tmp_path)
