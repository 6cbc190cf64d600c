"""The whole audit: read, compare, judge, write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..data.nesting import refuse_found
from ..errors import InputError
from ..evaluation.measure import MeasurementStore, Measurer
from ..evaluation.run import check_feature_memory, check_feature_spacing, open_extractors
from ..files import remove_left_over
from ..locks import one_at_a_time
from ..networks.frozen import FrozenSegmenter
from ..paths import as_path
from .collect import compare_all
from .copies import FALSE_POSITIVES, check_rate
from .files import audit_files, headline, write_audit
from .findings import Findings, conclude
from .levels import Extra, FeatureLevels, ShapeLevel
from .sides import load_sides
from .volumes import load_made
from .white_box import white_box

logger = logging.getLogger(__name__)


@one_at_a_time("semsynth audit")
def audit(
    synthetic: str | Sequence[str],
    train: str | Path,
    heldout: str | Sequence[str],
    output: str | Path,
    *,
    weights: Sequence[str] = (),
    bundle: str | Path | None = None,
    extractors: Sequence[str] = (),
    extractor_weights: Mapping[str, str] | None = None,
    feature_spacing: float = 1.0,
    judge: FrozenSegmenter | None = None,
    false_positives: float = FALSE_POSITIVES,
    seed: int = 0,
    download: bool = False,
    device: torch.device | str = "cpu",
    wait: bool = False,
) -> Findings:
    """Look for scans of the training in synthetic volumes, and write what was found.

    Args:
        synthetic: see :func:`semsynth.privacy.volumes.load_made`.
        train: real scans that the generator was trained on, see :func:`semsynth.privacy.sides.load_sides`.
        heldout: real scans that it was not trained on.
        output: folder for ``audit.json``, ``audit.md``, ``audit.html``, ``volumes.csv``, and apart from these, because
            they show patients, ``closest_pairs.png`` and ``closest_pairs.csv``.
        weights: files of the generator's weights, whose cards say what it has seen.
        bundle: bundle of a latent diffusion, whose first weights of ``weights`` are attacked by their diffusion loss.
        extractors: feature networks, of :data:`semsynth.networks.features.registry.EXTRACTORS`.
        extractor_weights: extractor → file of its weights.
        feature_spacing: mm per voxel at which feature networks see volumes.
        judge: judge whose encoder is a feature network as well.
        false_positives: share of real scans of other patients that are flagged.
        seed: seed of the draws.
        download: ask the hub for feature networks' weights that are not here.
        device: device of the feature networks.
        wait: wait until another audit that writes into ``output`` has ended; without it such an audit is an error.

    Returns:
        What was found; the verdict is one of :data:`semsynth.provenance.audits.VERDICTS`.

    Raises:
        InputError: for volumes or lists that cannot be used, a rate that so few real scans cannot carry, or files in
            ``output`` that are not ours.
    """
    output = as_path(output, "output")
    folders = [synthetic] if isinstance(synthetic, str) else list(synthetic)
    others = [heldout] if isinstance(heldout, str) else list(heldout)
    if not folders or not others:
        raise InputError(f"no {'held-out scans' if folders else 'synthetic volumes'}; give --synthetic and --heldout")
    if bundle is not None and len(weights) != 1:
        raise InputError(
            f"--bundle takes one file of --weights, got {len(weights)}; give the one that is to be attacked"
        )
    refuse_found(output, [*folders, str(train), *others], ["measured"])
    audit_files(output).check()
    real = load_sides(str(train), others, weights)
    check_rate(len(real.all), false_positives)
    check_feature_spacing(feature_spacing)
    check_feature_memory(real.all, extractors, feature_spacing)
    made = load_made(folders, real.all)
    logger.info(
        "%d synthetic volumes, %d training scans, %d held-out scans", len(made), len(real.train), len(real.heldout)
    )
    remove_left_over(output / "measured")
    store = MeasurementStore(output / "measured")
    extras: list[Extra] = [ShapeLevel()]
    networks, _ = open_extractors(
        extractors, extractor_weights, device, feature_spacing, judge=judge, download=download
    )
    if networks:
        extras.append(FeatureLevels(Measurer(networks, targets={}, store=store, device=device)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the arrays are so small that threads only wait for each other
    try:
        compared = compare_all(made, real, extras, store, seed=seed)
    finally:
        torch.set_num_threads(threads)
    inside = None if bundle is None else white_box(bundle, weights[0], real, store, seed=seed, device=device)
    found = conclude(made, real, compared, false_positives, seed=seed, white_box=[inside] if inside else [])
    write_audit(found, output)
    logger.info("%s", headline(found))
    return found
