"""Levels that are shown and do not decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from semsynth.data.volumes import Volume
from semsynth.evaluation.judge import judge_features, load_judge
from semsynth.evaluation.measure import Measurer
from semsynth.privacy.levels import SHAPE, FeatureLevels, ShapeLevel
from tiny_patients import AFFINE, patient

JUDGE = Path(__file__).resolve().parents[2] / "bundles" / "la_unet" / "models" / "judge_1.pt"


def _volumes(seed: int) -> tuple[Volume, Volume]:
    image, label = patient(seed)
    return Volume(image, AFFINE), Volume(label, AFFINE)


def test_the_judge_sees_a_copy_as_its_scan() -> None:
    features = judge_features(load_judge(str(JUDGE)))
    assert features is not None
    level = FeatureLevels(Measurer([features], targets={}))
    for seed in range(4):
        level.add(str(seed), *_volumes(seed))
    row = level.row("copy of 2", *_volumes(2))
    training = np.array([True, True, True, False])
    (name,), (sides,) = zip(*level.sides(row, training, np.ones(4, dtype=bool)).items(), strict=True)
    assert name == "features of la_unet_judge" and sides.scan == 2 and sides.other == 3
    assert sides.train > 0.99 > sides.heldout


def test_shapes_are_those_of_the_cavity() -> None:
    level = ShapeLevel()
    for seed in range(4):
        level.add(str(seed), *_volumes(seed))
    row = level.row("copy of 1", *_volumes(1))
    assert row is not None
    training, allowed = np.array([True, True, False, False]), np.ones(4, dtype=bool)
    sides = level.sides(row, training, allowed)[SHAPE]
    assert sides.scan == 1 and sides.train > 0.99
    allowed[1] = False
    assert level.sides(row, training, allowed)[SHAPE].scan == 0
    assert level.row("without a map", _volumes(0)[0], None) is None
