"""Membership inference with the weights in hand: the diffusion loss of a scan, which a memorised scan lowers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..evaluation.measure import MeasurementStore
from ..evaluation.sources import RealCase
from ..files import sha256
from ..labels import plain
from ..networks.latent_diffusion import LatentDiffusion
from ..synthesis.bundle_network import network_of
from ..training.engines.diffusion import fixed_predictions
from .collect import bar
from .membership import Attack, attack
from .sides import RealSides

LEVELS = 4
"""Time steps at which the loss is taken, evenly over all."""
MOST_PER_SIDE = 50


def white_box(
    bundle: str | Path,
    weights: str | Path,
    real: RealSides,
    store: MeasurementStore,
    *,
    seed: int = 0,
    most: int = MOST_PER_SIDE,
    device: torch.device | str = "cpu",
) -> Attack | None:
    """Tell training scans from held-out ones by the loss that the denoiser has on them.

    The signal is the mean over time steps of the negative logarithm of the mean squared error, with the same noise for
    all scans. A scan's style and label map are given, as in training.

    Args:
        bundle: folder of a bundle of a latent diffusion.
        weights: its weights.
        real: scans with label maps, prepared as those of the training.
        store: store of finished losses.
        seed: seed of the draws of scans, where there are more than ``most`` on a side, and of the attack.
        most: scans per side.
        device: device of the network.

    Returns:
        The attack; None for fewer than 5 scans on a side.

    Raises:
        InputError: for a bundle of another kind, or scans without label maps.
    """
    network = network_of(bundle, weights)
    if not isinstance(network, LatentDiffusion):
        raise InputError(f"--bundle {bundle}: its network is a {type(network).__name__} and has no diffusion loss; "
                         "leave --bundle out")  # fmt: skip
    network = network.to(device).eval()
    bare = sorted(name for name, case in real.all.items() if case.label is None)
    if bare:
        raise InputError("--bundle needs label maps of the scans in --train and --heldout, prepared as those of the "
                         "training ('semsynth prepare --like'); without: ", bare)  # fmt: skip
    sides = [_drawn(cases, most, seed) for cases in (real.train, real.heldout)]
    digest = sha256(Path(weights))
    jobs = [(side, name) for side, names in enumerate(sides) for name in names]
    signals: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for side, name in bar(jobs, len(jobs), "diffusion loss", "scan"):
        case = real.all[name]
        what = ["diffusion loss", LEVELS, digest, sha256(case.image), sha256(Path(str(case.label)))]
        found = store.recall(what, lambda case=case: {"loss": losses(network, case)})  # type: ignore[misc]
        signals[side][name] = -float(np.log(found["loss"]).mean())
    people = {name: case.person for name, case in real.all.items()}
    return attack("weights: diffusion loss", signals[0], signals[1], people, seed=seed)


def _drawn(cases: Mapping[str, RealCase], most: int, seed: int) -> Sequence[str]:
    names = sorted(cases)
    return [names[i] for i in sorted(np.random.default_rng(seed).permutation(len(names))[:most])]


@torch.no_grad()
def losses(network: LatentDiffusion, case: RealCase) -> np.ndarray:
    """Mean squared errors of the denoiser on a scan, one per time step ``(LEVELS,)``."""
    volume, classes = case.read()
    assert classes is not None
    device = next(network.parameters()).device
    image, label = (
        torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None].to(device)
        for array in (volume.data, classes)
    )
    if int(label.max()) >= network.num_classes:
        raise InputError(f"{case.case}: {case.label} has class {int(label.max())}, and the network knows "
                         f"{network.num_classes}; prepare the scans with 'semsynth prepare --like'")  # fmt: skip
    style = network.encode(plain(image), plain(label))[0] if network.style_channels else None
    predicted, wanted = fixed_predictions(network, label, image, style, levels=LEVELS)
    errors = (predicted.float() - wanted.float()).square()
    return np.array([float(part.mean()) for part in errors.chunk(LEVELS, dim=1)])
