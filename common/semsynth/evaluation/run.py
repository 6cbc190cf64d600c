"""The whole evaluation: pair, measure, score, write."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import InputError
from ..labels import ENDO
from ..metrics import lpips
from ..networks.features import EXTRACTORS, FeatureExtractor, FeaturesUnavailable, load_features
from ..networks.frozen import FrozenSegmenter
from ..volumes import Volume, sha256
from .files import Results, worst_pictures, write_results
from .layout import Facts, Layout
from .measure import Measurer, Memory, similarities
from .painting import average_means, class_means, paint
from .scores import (
    ALL,
    CONDITIONAL,
    CONSISTENT,
    FAITHFUL,
    FLOOR,
    MIXED,
    PAINTED_OWN,
    PAINTED_TRAINING,
    PAIRED,
    TRAINING,
    UNSEEN,
    Collected,
    Distribution,
    Score,
    differences,
    distributions,
    paired_scores,
)
from .sources import RealCase, load_real
from .systems import System, check_grids, load_system, pair
from .uncertainty import conditional_mse, largest_n, make_draws

logger = logging.getLogger(__name__)
DEFAULT_EXTRACTORS = ("medicalnet_resnet34", "efficientnet_lite0", "la_unet_judge")
COMPARED = ("psnr", "ms_ssim", "dice")


def open_extractors(
    names: Sequence[str], weights: Mapping[str, str | Path] | None = None, device: torch.device | str = "cpu"
) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The feature networks that are to be had, and for the others why not.

    Args:
        names: of :data:`semsynth.networks.features.EXTRACTORS`.
        weights: name → file, where it does not come from a package or a hub.
        device: where they compute.
    """
    there, absent = [], {}
    for name in dict.fromkeys(names):
        try:
            there.append(load_features(name, weights=(weights or {}).get(name), device=device))
        except FeaturesUnavailable as error:
            absent[name] = str(error)
            logger.warning("%s", error)
    return there, absent


def evaluate(
    synthetic: Mapping[str, str | Sequence[str]],
    real: str | Path,
    output: str | Path,
    *,
    train_real: str | Path | None = None,
    labels: str | None = None,
    extractors: Sequence[str] = DEFAULT_EXTRACTORS,
    weights: Mapping[str, str | Path] | None = None,
    judge: FrozenSegmenter | None = None,
    targets: Mapping[int, int] | None = None,
    in_loss: Mapping[str, Sequence[str]] | None = None,
    with_lpips: bool = False,
    draws: int = 100,
    n: int | None = None,
    seed: int = 0,
    pictures: int = 16,
    show: bool = False,
    device: torch.device | str = "cpu",
) -> Results:
    """Compare synthetic volumes with real ones by every metric, and write tables and a report.

    Cases are paired by name. Those that the generators were trained on stand apart. In memory are one case's volumes at
    a time and the features of all. What is measured stays in ``<output>/measured``: the same command goes on after an
    interruption, and a further system costs only its own volumes.

    Args:
        synthetic: name of a system → folders or patterns, see :func:`semsynth.evaluation.systems.load_system`.
        real: real images, see :func:`semsynth.evaluation.sources.load_real`.
        output: folder for ``evaluation.md``, ``.csv``, ``.json``, ``.html`` and ``cases.csv``.
        train_real: real images that the generators were trained on.
        labels: label maps by case name, instead of those that ``real`` names.
        extractors: feature networks of distribution metrics.
        weights: extractor → file of weights.
        judge: a segmentation network that was in no system's loss.
        targets: class of the judge → class of the label maps; 1 → 1 (the left-atrial cavity) unless said otherwise.
        in_loss: system → networks that were in its loss, beside those that its records name.
        with_lpips: also LPIPS (extra ``lpips``).
        draws: of reference cases.
        n: volumes on each side of a draw; as many as every group allows unless given.
        seed: of the draws.
        pictures: cases per system and group in the report, worst first.
        show: log the tables, for those who do not print the result.
        device: of metrics and networks.

    Raises:
        InputError: nothing to compare, files that cannot be used, volumes on different grids, too few cases.
    """
    _check_settings(synthetic, weights or {}, in_loss or {}, draws=draws, seed=seed, pictures=pictures)
    cases = load_real(real, train=train_real, labels=labels)
    systems = [load_system(name, src, in_loss=(in_loss or {}).get(name, ())) for name, src in synthetic.items()]
    painted = pair(systems, cases)
    check_grids(systems, cases, painted)
    networks, absent = open_extractors(extractors, weights, device)
    reasons = _reasons(judge, with_lpips)
    memory = Memory(Path(output) / "measured")
    measurer = Measurer(networks, judge, targets=targets or {1: ENDO}, with_lpips=with_lpips and "lpips" not in reasons,
                        memory=memory, device=device)  # fmt: skip
    found = Collected(_groups(painted, cases, systems), systems, _other_maps(cases, systems, painted))
    counts = ", ".join(f"{group}: {len(members)} cases" for group, members in found.groups.items())
    logger.info("%s; %d real images in all", counts, len(cases))
    collect(found, cases, painted, measurer)
    spread, without = _distributions(found, cases, networks, draws, n, seed)
    scores = _scores(found, spread, judge)
    compared = differences(found, COMPARED, spread, judge)
    facts = Facts({e.name: e.about() for e in networks}, absent, reasons, without, judge, found.other_maps)
    results = Results(Layout(found, scores, facts).tables(compared), scores, compared, Path(output))
    write_results(results, found, facts, worst_pictures(found, cases, pictures))
    if show:
        logger.info("\n%s\n\n%s", results.text(), Path(output) / "evaluation.html")
    return results


def _check_settings(
    synthetic: Mapping[str, Any], weights: Mapping[str, Any], in_loss: Mapping[str, Any], *, draws: int, seed: int,
    pictures: int,
) -> None:  # fmt: skip
    if not synthetic:
        raise InputError("no system to evaluate; give --synthetic NAME=FOLDER")
    taken = sorted(set(synthetic) & {FLOOR, PAINTED_TRAINING, PAINTED_OWN})
    if taken:
        raise InputError(f"a system cannot be called {taken[0]!r}, which is a row of the tables; rename it")
    for option, names, known in (("weights", weights, EXTRACTORS), ("in-loss", in_loss, tuple(synthetic))):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise InputError(f"--{option}: no such name {unknown[0]!r}; there are {', '.join(known)}")
    for option, value, least in (("draws", draws, 20), ("seed", seed, 0), ("pictures", pictures, 0)):
        if value < least:
            raise InputError(f"--{option} must be {least} or more, got {value}")


def _reasons(judge: FrozenSegmenter | None, with_lpips: bool) -> dict[str, str]:
    """Why something is not measured."""
    reasons = {}
    if judge is None:
        reasons["judge"] = "no judge was given or found (models/judge.pt of the bundle la_unet)"
    if with_lpips:
        try:
            lpips(torch.zeros(1, 1, 64, 64, 8), torch.zeros(1, 1, 64, 64, 8))
        except InputError as error:
            reasons["lpips"] = str(error)
            logger.warning("LPIPS: %s", error)
    else:
        reasons["lpips"] = "it was not asked for (--lpips)"
    return reasons


def _groups(painted: Sequence[str], cases: Mapping[str, RealCase], systems: Sequence[System]) -> dict[str, list[str]]:
    """Cases by who was trained on them: what a system's own record says goes before the split that a case is in."""
    groups: dict[str, list[str]] = {UNSEEN: [], TRAINING: [], MIXED: [], ALL: []}
    other = []
    for case in painted:
        records = [system.trained_on(case) for system in systems]
        said = {cases[case].training if record is None else record for record in records}
        group = UNSEEN if said == {False} else TRAINING if said == {True} else MIXED if True in said else ALL
        groups[group].append(case)
        split = cases[case].training
        other += [case] if split is not None and any(r is not None and r != split for r in records) else []
    if other:
        logger.warning("%d cases are grouped by what the systems' records say of their training, not by the datalist's "
                       "splits: %s…", len(other), ", ".join(other[:3]))  # fmt: skip
    if groups[ALL]:
        logger.warning("nobody says whether the systems were trained on %d of these cases; give --train-real",
                       len(groups[ALL]))  # fmt: skip
    return {group: members for group, members in groups.items() if members}


def _other_maps(cases: Mapping[str, RealCase], systems: Sequence[System], painted: Sequence[str]) -> list[str]:
    """Systems whose volumes were made from other label maps than those that they are scored with."""
    found = []
    hashes = {case: sha256(label) for case in painted if (label := cases[case].label) is not None}
    for system in systems:
        stated = {case: system.records.get(case, {}).get("label_sha256") for case in hashes}
        different = [case for case, value in stated.items() if value is not None and value != hashes[case]]
        if different:
            found.append(system.name)
            logger.warning("%s: %d of %d cases were made from other label maps than --real has: painting does not know "
                           "what it knows, and faithfulness is to another map", system.name, len(different),
                           len(hashes))  # fmt: skip
    return found


# ---- measuring


def collect(found: Collected, cases: Mapping[str, RealCase], painted: Sequence[str], measurer: Measurer) -> None:
    """Measure every volume once: real images, paintings, and every system's samples."""
    known = _training_means(cases)
    references = [case for case in cases if case not in set(painted)] if measurer.extractors else []
    total = len(references) + len(painted) + sum(len(s.volumes[case]) for s in found.systems for case in painted)
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with tqdm(total=total, desc="evaluation", unit="volume", mininterval=interval) as bar:
        for case in [*painted, *references]:
            image, label = cases[case].read()
            key = _key(cases[case])
            real = found.features.setdefault(FLOOR, {})
            real[case] = [measurer.features(key, image)]
            if case in set(painted):
                _painted_case(found, cases[case], (image, label, key), known, measurer, bar)
            bar.update()


def _training_means(cases: Mapping[str, RealCase]) -> NDArray[np.float64] | None:
    """Class means over the training cases that have label maps; None where there are none."""
    means = []
    for case in cases.values():
        if case.training and case.label is not None:
            image, label = case.read()
            assert label is not None
            means.append(class_means(image.data, label, int(label.max()) + 1))
    return average_means(means) if means else None


def _key(case: RealCase) -> list[Any]:
    return [sha256(case.image), None if case.label is None else sha256(case.label), case.content]


def _painted_case(
    found: Collected,
    case: RealCase,
    truth: tuple[Volume, NDArray[np.int64] | None, list[Any]],
    known: NDArray[np.float64] | None,
    measurer: Measurer,
    bar: Any,
) -> None:
    image, label, key = truth

    def add(row: str, name: list[Any], volume: Volume) -> None:
        values = {} if row == FLOOR else measurer.paired([*key, *name], volume, image)
        if label is not None:
            values |= measurer.faithfulness([*key, *name], volume, label)
        found.values.setdefault(row, {}).setdefault(case.case, []).append(values)
        if row != FLOOR:
            features = measurer.features([*key, *name], volume)
            found.features.setdefault(row, {}).setdefault(case.case, []).append(features)

    add(FLOOR, [], image)
    if label is not None:
        own = class_means(image.data, label, int(label.max()) + 1)
        for row, means in ((PAINTED_TRAINING, known), (PAINTED_OWN, own)):
            if means is not None:
                add(row, ["painting", np.round(means, 6).tolist()], Volume(paint(label, means), image.affine))
    for system in found.systems:
        samples = []
        for path in system.volumes[case.case]:
            volume = case.read_synthetic(path, image)
            samples.append(volume.data)
            add(system.name, [sha256(path)], volume)
            bar.update()
        if len(samples) > 1:
            _conditional(found, system.name, case.case, np.stack(samples), image)


def _conditional(found: Collected, row: str, case: str, samples: NDArray[np.floating], image: Volume) -> None:
    a, _ = conditional_mse(samples, image.data)
    mean = torch.from_numpy(samples.mean(axis=0, dtype=np.float32))[None, None]
    truth = torch.from_numpy(np.ascontiguousarray(image.data))[None, None]
    values = {name: float(value) for name, value in similarities(mean, truth).items()}
    limit = {"psnr": -10 * math.log10(a), "rmse": math.sqrt(a)} if a > 0 else {"psnr": math.nan, "rmse": math.nan}
    found.conditional.setdefault(row, {})[case] = values | limit


# ---- scoring


def _distributions(
    found: Collected,
    cases: Mapping[str, RealCase],
    networks: Sequence[FeatureExtractor],
    draws: int,
    n: int | None,
    seed: int,
) -> tuple[list[Distribution], dict[str, str]]:
    """Over the same draws for all systems of a group, with one n for all groups, because FID depends on it.

    Returns:
        The metrics, and for groups without them the reason.
    """
    possible = {group: largest_n(members, list(cases)) for group, members in found.groups.items()}
    # a few stray cases in one group must not take the others' n away
    size = min(value for value in possible.values() if value >= max(possible.values()) / 2) if n is None else n
    result: list[Distribution] = []
    absent: dict[str, str] = {}
    for group, members in found.groups.items():
        try:
            drawn = make_draws(members, list(cases), size, draws, seed)
        except InputError as error:
            if n is not None:
                raise
            absent[group] = str(error)
            if networks:
                logger.warning("%s: no distribution metrics: %s", group, error)
            continue
        result += [item for network in networks for item in distributions(found, group, drawn, network)]
    return result, absent


def _scores(found: Collected, spread: Sequence[Distribution], judge: FrozenSegmenter | None) -> list[Score]:
    rows = [row for row in (PAINTED_TRAINING, PAINTED_OWN) if row in found.values]
    rows += [system.name for system in found.systems]
    means = [f"{row}, {CONDITIONAL}" for row in found.conditional]
    several = dict.fromkeys(
        name for row in found.values.values() for case in row.values() for values in case for name in values
        if " of class " in name
    )  # fmt: skip
    scores = paired_scores(found, [*PAIRED, *CONSISTENT], rows) + paired_scores(found, PAIRED, means)
    scores += paired_scores(found, [*FAITHFUL, *several], [FLOOR, *rows], judge)
    return scores + [score for item in spread for score in item.scores(found.systems)]
