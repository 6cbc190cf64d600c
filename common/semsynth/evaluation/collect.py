"""One case after the other: real image, paintings, and every system's samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.intensity import HU, MIN_MAX
from ..data.volumes import Volume
from ..files import sha256
from ..memory import LESS_TO_EVALUATE, memory_advice
from .measure import Measurer, similarities
from .painting import average_means, class_means, paint
from .scores import DIVERSE_BLOCKS, FLOOR, IN_UNIT, MIN_SAMPLES, PAINTING_OWN, PAINTING_TRAINING, Collected
from .sources import RealCase
from .uncertainty import conditional_mse, pairwise_distance


def collect(found: Collected, cases: Mapping[str, RealCase], scored: Sequence[str], measurer: Measurer) -> None:
    """Measure every volume once: real images, paintings, and every system's samples."""
    known = training_means(cases)
    references = [case for case in cases if case not in set(scored)] if measurer.extractors else []
    total = len(references) + len(scored) + sum(len(s.volumes[case]) for s in found.systems for case in scored)
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, desc="evaluation", unit="volume", mininterval=interval) as bar:
        for case in [*scored, *references]:
            with memory_advice(f"case {case}", LESS_TO_EVALUATE):
                image, label = cases[case].read()
                key = _key(cases[case])
                real = found.features.setdefault(FLOOR, {})
                real[case] = [measurer.features(key, image)]
                if case in set(scored):
                    _score_case(found, cases[case], (image, label, key), known, measurer, bar)
            bar.update()


def training_means(cases: Mapping[str, RealCase]) -> NDArray[np.float64] | None:
    """Class means over the training cases that have label maps; None where there are none."""
    means = []
    for case in cases.values():
        if case.training and case.label is not None:
            image, label = case.read()
            assert label is not None
            means.append(class_means(image.data, label, int(label.max()) + 1))
    return average_means(means) if means else None


def _key(case: RealCase) -> list[Any]:
    rule = case.scaling if case.intensity is None or case.intensity.window is None else case.intensity
    known = [] if rule == MIN_MAX else [rule.to_json()]  # so that measurements of before are found again
    return [sha256(case.image), None if case.label is None else sha256(case.label), case.content, *known]


def _score_case(
    found: Collected,
    case: RealCase,
    truth: tuple[Volume, NDArray[np.int64] | None, list[Any]],
    known: NDArray[np.float64] | None,
    measurer: Measurer,
    bar: Any,
) -> None:
    image, label, key = truth

    def add(row: str, name: list[Any], volume: Volume) -> None:
        values = {} if row == FLOOR else in_unit(measurer.paired([*key, *name], volume, image), case)
        if label is not None:
            values |= measurer.faithfulness(case.case, [*key, *name], volume, label)
        found.values.setdefault(row, {}).setdefault(case.case, []).append(values)
        if row != FLOOR:
            features = measurer.features([*key, *name], volume)
            found.features.setdefault(row, {}).setdefault(case.case, []).append(features)

    add(FLOOR, [], image)
    if label is not None:
        own = class_means(image.data, label, int(label.max()) + 1)
        for row, means in ((PAINTING_TRAINING, known), (PAINTING_OWN, own)):
            if means is not None:
                add(row, ["painting", np.round(means, 6).tolist()], Volume(paint(label, means), image.affine))
    for system in found.systems:
        samples = []
        for path in system.volumes[case.case]:
            held = system.held.get(path)
            volume = case.read_synthetic(path, image, held)
            samples.append(volume.data)
            add(system.name, [sha256(path), *([] if held is None else [held.to_json()["window"]])], volume)
            bar.update()
        if len(samples) > 1:
            _several(found, system.name, case, np.stack(samples), image)


def in_unit(values: dict[str, float], case: RealCase) -> dict[str, float]:
    """The values, and the mean absolute error in Hounsfield units, where the data set has them."""
    if case.intensity is None or case.intensity.unit != HU or case.unit_range is None or "mae" not in values:
        return values
    low, high = case.unit_range
    return values | {IN_UNIT: values["mae"] * (high - low)}


def _several(found: Collected, row: str, case: RealCase, samples: NDArray[np.floating], image: Volume) -> None:
    """What several samples of one map say together."""
    distances = {name: pairwise_distance(samples, block=block) for name, block in DIVERSE_BLOCKS.items()}
    found.diversity.setdefault(row, {})[case.case] = distances
    if len(samples) < MIN_SAMPLES:
        return
    mean = torch.from_numpy(samples.mean(axis=0, dtype=np.float32))[None, None]
    truth = torch.from_numpy(np.ascontiguousarray(image.data))[None, None]
    values = {name: float(v) for name, v in similarities(mean, truth).items() if name not in ("psnr", "rmse")}
    values = in_unit(values, case) | {"mse": conditional_mse(samples, image.data)[0]}
    found.conditional.setdefault(row, {})[case.case] = values
