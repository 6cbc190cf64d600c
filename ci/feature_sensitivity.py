"""What feature networks notice: FID of changed real volumes, as a multiple of the unchanged ones' own.

    python ci/feature_sensitivity.py DATASET_DIR --judge bundles/la_unet/models/judge_1.pt [--measured FOLDER]

DATASET_DIR is what ``semsynth prepare`` wrote. Cases that the judge was trained on, by the card beside its weights, and
other scans of their patients are left out. Of the others, some are painted with the training cases' class means,
blurred, or given noise, and held against real images of other patients; mean and 2.5-97.5 % range of the ratio over
draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from semsynth.data.volumes import Volume
from semsynth.evaluation import open_extractors
from semsynth.evaluation.measure import MeasurementStore, Measurer
from semsynth.evaluation.painting import average_means, class_means, paint
from semsynth.evaluation.seen import judge_has_seen
from semsynth.evaluation.sources import load_real
from semsynth.evaluation.uncertainty import Interval, largest_n, make_draws, over_draws
from semsynth.files import sha256
from semsynth.metrics import fid
from semsynth.provenance.seen import Seen
from torch import from_numpy
from tqdm import tqdm


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--judge", required=True, help="weights of la_unet_judge")
    parser.add_argument("--measured", help="an evaluation's folder of finished measurements, to use and to add to")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--cases", type=int, default=24, help="how many cases are changed")
    options = parser.parse_args()
    networks, _ = open_extractors(["efficientnet_lite0", "la_unet_judge"], {"la_unet_judge": options.judge})
    measurer = Measurer(networks, targets={}, store=MeasurementStore(options.measured))
    cases = load_real(options.dataset_dir)
    means = average_means(
        class_means(image.data, label, int(label.max()) + 1)
        for image, label in (case.read() for case in cases.values() if case.training)
    )
    known = judge_has_seen(cases, Seen.of(options.judge))
    people = {cases[name].person for name, seen in known.items() if seen}
    cases = {name: case for name, case in cases.items() if case.person not in people}
    unseen = sorted(cases, key=lambda name: (cases[name].training, name))[: options.cases]
    print(f"{len(cases)} cases of patients that the judge was not trained on, {len(unseen)} of them changed")
    rows: dict[str, dict] = {name: {} for name in ("real", "painted", "blurred, σ 0.7 voxels", "noise of 0.03")}
    for name, case in tqdm(cases.items(), mininterval=10):
        image, label = case.read()
        key = [sha256(case.image), None if case.label is None else sha256(case.label), case.content]
        rows["real"][name] = measurer.features(key, image)
        if name in unseen:
            noise = 0.03 * np.random.default_rng(list(name.encode())).standard_normal(image.data.shape)
            changed = (paint(label, means), gaussian_filter(image.data, 0.7), (image.data + noise).clip(0, 1))
            for row, data in zip(list(rows)[1:], changed, strict=True):
                volume = Volume(data.astype(np.float32), image.affine)
                rows[row][name] = measurer.features(["sensitivity", row, *key], volume)
    people = {name: case.person for name, case in cases.items()}
    n = largest_n(unseen, list(cases), people)
    draws = make_draws(unseen, list(cases), n, options.draws, seed=0, patients=people)
    for network in networks:
        features = {
            row: (lambda case, sample, f=found, e=network.name: f[case][e].volume[None]) for row, found in rows.items()
        }
        metric = lambda a, b: float(fid(from_numpy(a), from_numpy(b)))  # noqa: E731
        values = over_draws(features, features["real"], draws, metric)
        for row in list(rows)[1:]:
            ratio = Interval.of(values[row] / values["real"])
            print(f"{network.name:<20}{row:<24}{ratio.mean:6.2f} [{ratio.low:.2f}, {ratio.high:.2f}]  (n = {n})")


if __name__ == "__main__":
    main()
