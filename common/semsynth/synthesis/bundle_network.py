"""A bundle's trained network as its inference builds it, on the CPU, and what is to be said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.geometry import TrainedGrid
from ..errors import InputError, is_out_of_memory
from ..files import sha256
from ..json_files import read_object, read_object_or_none
from ..training.weights import load_weights
from ..trust.parsers import parser_of
from .workflow import SHIPPED


def network_of(bundle: str | Path, weights: str | Path | None = None) -> nn.Module:
    """A bundle's trained network in float32, on the CPU.

    Args:
        bundle: its folder.
        weights: instead of the bundle's ``models/model.pt``; those of an overlay bring it, see :func:`configs_of`.

    Raises:
        InputError: no bundle there; a config that would do more than build a network, or builds none; weights that do
            not fit.
    """
    bundle = Path(bundle)
    source = Path(weights or bundle / SHIPPED)
    files = configs_of(bundle, source)
    config = bundle / "configs" / files[-1]
    parser = parser_of(bundle, *files)
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    state = {name: value.float() for name, value in load_weights(source).items()}
    if any(name.startswith("autoencoder.decoder.noise.") for name in state):
        parser["network_def#autoencoder#noise"] = True
    try:
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # of any kind that a config's components raise
        if is_out_of_memory(error):
            raise
        reason = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise InputError(f"{config}: its network_def cannot be built ({reason[0]}); take the bundle's own") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{config}: its network_def is a {type(network).__name__}, no network; take the bundle's own")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{source}: weights of another network ({str(error).splitlines()[-1].strip()})") from error
    return network


def configs_of(bundle: Path, weights: Path) -> list[str]:
    """Names below ``configs`` of what builds the network of a file of weights: ``inference.json``, and an overlay.

    The overlay is the one that takes weights of this name from the bundle's ``models``: ``ct.json`` for
    ``model_ct.pt``.

    Raises:
        InputError: where several overlays take it.
    """
    base, value = "inference.json", f"$@bundle_root + '/models/{weights.name}'"
    known = read_object_or_none(bundle / "configs" / base) or {}
    found = [
        path.name
        for path in sorted((bundle / "configs").glob("*.json"))
        if known.get("weights") != value and (read_object_or_none(path) or {}).get("weights") == value
    ]
    if len(found) > 1:
        raise InputError(
            f"{weights}: {' and '.join(found)} of {bundle} take weights of this name; copy the file to another name, "
            "and give it in one of them"
        )
    return [base, *found]


def _settings_of(bundle: Path, weights: Path) -> dict[str, Any]:
    """The settings at the top of these configs, merged as MONAI merges them."""
    merged: dict[str, Any] = {}
    for name in configs_of(bundle, weights):
        merged |= read_object(bundle / "configs" / name, damaged="take the bundle's own")
    return merged


def _vocabulary_of(bundle: Path, weights: Path) -> dict[str, str] | None:
    """Class index → name of the label maps that weights know, where metadata say it."""
    about = read_object_or_none(bundle / "configs" / "metadata.json") or {}
    return about.get(str(_settings_of(bundle, weights).get("vocabulary", "classes")))


def facts_of(bundle: Path, weights: str | Path | None = None) -> dict[str, Any]:
    """What a file of a bundle's network says of itself, wherever it goes: free of paths.

    Args:
        bundle: its folder.
        weights: instead of the bundle's ``models/model.pt``.

    Returns:
        Bundle, version, SHA-256 of the weights; where they are known classes, voxel size in mm, axes, how
        intensities are scaled, intended use, license of the weights and terms of their data.
    """
    metadata = bundle / "configs" / "metadata.json"
    about = read_object_or_none(metadata) or {}
    source = Path(weights or bundle / SHIPPED)
    geometry = TrainedGrid(source, metadata).geometry
    found = {
        "bundle": str(about.get("bundle") or bundle.resolve().name),
        "version": about.get("version"),
        "weights_sha256": sha256(source),
        "classes": _vocabulary_of(bundle, source) or _settings_of(bundle, source).get("class_names"),
        "spacing": geometry and list(geometry.spacing),
        "axes": geometry and geometry.axes,
        "intensity": geometry and geometry.intensity,
        "intended_use": about.get("intended_use"),
        "license": _license(bundle / "LICENSE"),
        "data_license": _text(bundle / "docs" / "data_license.txt"),
    }
    return {key: value for key, value in found.items() if value is not None}


def label_classes(bundle: Path, weights: str | Path | None = None) -> int | None:
    """How many classes the label maps have that a bundle's network is given; None where it is given images.

    Args:
        bundle: its folder.
        weights: instead of the bundle's ``models/model.pt``.
    """
    about = read_object_or_none(bundle / "configs" / "metadata.json") or {}
    try:
        given = about["network_data_format"]["inputs"]["image"]
        if given["format"] not in ("segmentation", "labels"):
            return None
        known = _vocabulary_of(bundle, Path(weights or bundle / SHIPPED))
        return len(known) if known else int(given["value_range"][1]) + 1
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(f"{bundle}: its metadata.json does not say what the network is given; take the bundle's own"
                         ) from None  # fmt: skip


def exemption(bundle: Path) -> str | None:
    """Why a bundle's network is no single graph, as its metadata says; None where it says nothing."""
    said = (read_object_or_none(bundle / "configs" / "metadata.json") or {}).get("export_exemption")
    return None if said is None else str(said)


def _license(path: Path) -> str | None:
    text = _text(path) or ""
    return "Apache-2.0" if "Apache License" in text[:200] else text.strip().partition("\n")[0] or None


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def plain(network: nn.Module) -> nn.Module:
    """The network in evaluation, float32, in the usual order of memory; changed in place."""
    network = network.float().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.contiguous()
    return network


def random_volume(size: Any, classes: int | None) -> torch.Tensor:
    """A label map ``(1, 1, H, W, D)`` of random classes, or an image in [0, 1]; the same for the same size."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, *size)
    if classes is None:
        return torch.rand(shape, generator=generator)
    return torch.randint(0, classes, shape, generator=generator).float()
