"""Networks that are never trained, from their files of weights: judges, feature networks, perceptual losses."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..networks.features.extractor import existing_file, load_exactly, named_tensors
from ..networks.features.medicalnet import MANIFEST, load_medicalnet
from ..networks.features.perceptual import PerceptualLoss
from ..networks.features.registry import EXTRACTORS, JUDGE, FeatureExtractor, FeaturesUnavailable, JudgeEncoder
from ..networks.features.slicewise import SlicewiseEfficientNet, load_slicewise
from ..networks.frozen import FrozenSegmenter
from ..networks.segmentation import subvoxel_swin
from ..paths import as_path
from .weights import read_hashed_weights

logger = logging.getLogger(__name__)


def load_segmenter(
    network: nn.Module,
    weights: str | Path | None,
    *,
    use: str,
    name: str = "",
    device: torch.device | str = "cpu",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    largest_component: Sequence[int] = (1,),
    classes: Sequence[str] = (),
) -> FrozenSegmenter | None:
    """A trained segmentation network, or None with one warning where its weights are not there.

    Args:
        network: as the weights need it.
        weights: the file, for example of the bundle ``la_unet``; None switches it off without a warning.
        use: name of the use that is off without it, for the warning ("the judge's Dice").
        name: name in tables; the file's unless given.
        device: device on which it computes.
        spacing: mm per voxel that it was trained at.
        largest_component: classes of which only the largest component counts.
        classes: names of the classes that it segments, from 1 on.

    Raises:
        InputError: when the file is there and is not the one that its card describes, or does not fit the network.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from monai.data import MetaTensor
        >>> from semsynth.networks.segmentation import residual_unet
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(residual_unet(channels=(4, 8)).state_dict(), f"{folder}/judge.pt")
        ...     judge = load_segmenter(residual_unet(channels=(4, 8)), f"{folder}/judge.pt", use="the judge's Dice")
        >>> judge.segment(MetaTensor(torch.rand(1, 32, 32, 32), affine=torch.eye(4))).shape
        torch.Size([1, 32, 32, 32])
    """
    if weights is None:
        return None
    path = as_path(weights, "judge_weights")
    if not path.is_file():
        logger.warning("%s: no such weights; %s is off. Train or copy that bundle's weights, or give another path",
                       path, use)  # fmt: skip
        return None
    state, found = read_hashed_weights(path, fix="copy the file again, or give null to do without")
    try:
        network.load_state_dict(state)
    except Exception as error:
        raise InputError(
            f"{path}: does not fit the network that is to use it ({str(error).splitlines()[0]}); give the weights of "
            "that architecture, or null to do without"
        ) from error
    return FrozenSegmenter(
        network, spacing=spacing, name=name or path.stem, sha256=found, largest_component=largest_component,
        classes=classes, source=path,
    ).to(device)  # fmt: skip


def load_features(
    name: str,
    *,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    spacing: float = 1.0,
    download: bool = False,
) -> FeatureExtractor:
    """A feature network by its name, with the weights that the name stands for.

    The published networks' files are compared with their SHA-256. ``la_unet_judge`` is whatever file of that
    architecture is given: which one it was, its SHA-256 says beside every number.

    Args:
        name: one of :data:`EXTRACTORS`: ``medicalnet_resnet34`` and ``medicalnet_resnet50`` (from the Hugging Face
            hub's cache, or with ``download`` from the hub), ``efficientnet_lite0`` (from an installed package),
            ``la_unet_judge`` (from the bundle ``la_unet``).
        weights: the weights' file, where it is not to be looked for; needed for ``la_unet_judge``.
        device: device on which it computes.
        spacing: mm per voxel at which ``efficientnet_lite0`` takes slices; the others have one of their own.
        download: ask the hub for weights that are not here; without it no network is ever asked.

    Raises:
        FeaturesUnavailable: when the weights cannot be had, in one line.
        InputError: for an unknown name, another file than the published one, or one of another architecture.
    """
    if name not in EXTRACTORS:
        raise InputError(f"no feature network is called {name!r}; there are {', '.join(EXTRACTORS)}")
    extractor: FeatureExtractor
    if name in MANIFEST:
        extractor = load_medicalnet(name, weights, download=download)
    elif name == JUDGE:
        extractor = _load_judge(weights)
    else:
        extractor = load_slicewise(weights, spacing=spacing)
    return extractor.to(device)


def _load_judge(weights: str | Path | None) -> JudgeEncoder:
    if weights is None:
        raise FeaturesUnavailable(f"{JUDGE}: give the path of the bundle la_unet's models/judge_1.pt as weights")
    path = existing_file(weights, name=JUDGE)
    network = subvoxel_swin()
    state, found = read_hashed_weights(path, f"weights of {JUDGE}")
    load_exactly(network, named_tensors(state, path, name=JUDGE), path=path, name=JUDGE)
    return JudgeEncoder(network, sha256=found, source=path)


def load_perceptual(
    names: str | Sequence[str],
    *,
    weights: Mapping[str, str | Path | None] | None = None,
    device: torch.device | str = "cpu",
    slices: int = 2,
    depths: int | None = None,
    pixel_mm: float | None = None,
    download: bool = False,
) -> PerceptualLoss:
    """A perceptual loss with the first of several feature networks whose weights can be had; the log says which.

    Args:
        names: names of :data:`semsynth.networks.features.registry.EXTRACTORS`, in order of preference.
        weights: name → file of weights, for networks whose file is not to be looked for.
        device: device on which it computes.
        slices, depths: see :class:`PerceptualLoss`.
        pixel_mm: pixel size of the slices that the slice-wise network sees; 1.0 is four times cheaper than its 0.5. 3D
            networks see voxels as they are and do not use it.
        download: ask the hub for weights that are not here; without it no network is ever asked.

    Raises:
        FeaturesUnavailable: when none can be had, in one line.
        InputError: for a name that no network has, or a file that is not the named network's; none other takes its
            place then.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    weights = dict(weights or {})
    unknown = [name for name in (*wanted, *weights) if name not in EXTRACTORS]
    if unknown or not wanted:
        what = f"no feature network is called {unknown[0]!r}" if unknown else "a perceptual loss needs a network's name"
        raise InputError(f"{what}; there are {', '.join(EXTRACTORS)}")
    if pixel_mm is not None and not 0 < pixel_mm <= 1:
        raise InputError(f"pixel_mm must be 1 or a fraction of it, got {pixel_mm}")
    reasons = []
    for name in wanted:
        try:
            extractor = load_features(name, weights=weights.get(name), device=device, download=download)
        except FeaturesUnavailable as reason:
            reasons.append(str(reason))
            continue
        for reason_ in reasons:
            logger.warning("perceptual loss without a preferred network: %s", reason_)
        if pixel_mm is not None and isinstance(extractor, SlicewiseEfficientNet):
            extractor.pixel_mm = float(pixel_mm)
        logger.info("perceptual loss with %s (SHA-256 %s…)", extractor.name, extractor.sha256[:12])
        return PerceptualLoss(extractor, slices=slices, depths=depths)
    raise FeaturesUnavailable(f"no network for the perceptual loss ({', '.join(wanted)}): {'; '.join(reasons)}")
