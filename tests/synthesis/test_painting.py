"""Painted label maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from semsynth.data.entries import load_datalist
from semsynth.data.intensity import Scaling
from semsynth.data.volumes import read_label, read_volume
from semsynth.errors import InputError
from semsynth.synthesis.painting import paint, paint_all, styles_of


def _label() -> np.ndarray:
    label = np.zeros((24, 24, 16), dtype=np.int64)
    label[6:18, 6:18, 4:12] = 1
    label[2:4] = 2
    return label


STYLES = np.array([[[0.2, 0.02], [0.7, 0.03], [0.5, 0.0]], [[0.3, 0.05], [0.8, 0.05], [np.nan, np.nan]]])


def test_each_class_has_the_brightness_of_a_scan():
    label = _label()
    volume = paint(label, STYLES, seed=0)
    assert volume.shape == label.shape and volume.dtype == np.float32 and 0 <= volume.min() <= volume.max() <= 1
    means = [volume[label == c].mean() for c in range(3)]
    assert means[0] < means[2] < means[1] and volume[label == 0].std() > 0.01


def test_a_seed_decides_all():
    label = _label()
    assert np.array_equal(paint(label, STYLES, seed=3), paint(label, STYLES, seed=3))
    assert not np.array_equal(paint(label, STYLES, seed=3), paint(label, STYLES, seed=4))


def test_a_class_that_no_scan_has_is_refused():
    with pytest.raises(InputError, match="class 3 is in the label map"):
        paint(np.full((4, 4, 4), 3), STYLES, seed=0)


def test_a_datalists_maps_are_painted_with_the_scans_brightness(tiny_dataset, tmp_path):
    datalist = tiny_dataset / "datalist.json"
    styles = styles_of(datalist)
    assert styles.shape == (2, 4, 2)
    entry = load_datalist(datalist, "training")[0]
    scaled, label = Scaling()(read_volume(entry["image"]).data), read_label(entry["label"]).data
    assert styles[0, 1, 0] == pytest.approx(float(scaled[label == 1].mean()), abs=1e-3)
    made = paint_all(datalist, datalist, tmp_path, seed=0)
    entries = json.loads(made.read_text())["training"]
    assert [e["case"] for e in entries] == [f"{e['case']}_p" for e in load_datalist(datalist, "training")]
    assert all(e["synthetic"] for e in entries)
    assert len(load_datalist(made, "training")) == 2  # a training takes it
    before = (tmp_path / entries[0]["image"]).read_bytes()
    paint_all(datalist, datalist, tmp_path, seed=0)
    assert (tmp_path / entries[0]["image"]).read_bytes() == before
